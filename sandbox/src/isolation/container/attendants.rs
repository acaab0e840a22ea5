//! The threads that attend to one sandbox: one answers its notified system calls, one hears how it ends.
//!
//! They are started while the sandbox is being made, so that nobody waits for them.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc::{SyncSender, sync_channel};

use crate::event::Event;
use crate::isolation::child::{Ending, FromInit};
use crate::isolation::wire;
use crate::syscall::notify::{Notifier, Work};

/// Both threads. Dropping it before there is somebody to tell ends them.
#[derive(Debug)]
pub(super) struct Attendants {
    notifier: Notifier,
    confined: SyncSender<()>,
    watcher: SyncSender<SyncSender<Event>>,
    /// What they are to do from the start on.
    assigned: Option<(Work, SyncSender<Event>)>,
}

impl Attendants {
    /// Starts them, for a sandbox whose init will speak on `control`.
    pub fn start(control: &OwnedFd) -> io::Result<Self> {
        let control = control.try_clone()?;
        let (watcher, told) = sync_channel::<SyncSender<Event>>(1);
        let (confined, is_confined) = sync_channel::<()>(1);
        let watch = move || {
            // Whoever makes the sandbox hears everything until then.
            if is_confined.recv().is_err() {
                return;
            }
            let event = match wire::receive(control.as_fd()) {
                Ok(Some((FromInit::Ended(ending), _))) => Event::Ended(ending),
                Ok(Some((FromInit::Failed(failure), _))) => Event::Failed(failure),
                // Killed from outside: by the kernel for lack of memory, or by a lever.
                _ => Event::Ended(Ending::Killed(libc::SIGKILL)),
            };
            // Long given, so that nobody had to be woken at the start.
            if let Ok(events) = told.recv() {
                let _ = events.send(event);
            }
        };
        // Ends by itself when the sandbox does.
        std::thread::Builder::new()
            .name("sandbox-control".into())
            .spawn(watch)?;
        Ok(Self {
            notifier: Notifier::start()?,
            confined,
            watcher,
            assigned: None,
        })
    }

    /// The sandbox waits for its start: both listen, the one to the init, the other to the listener.
    pub fn listen(&mut self, listener: Option<OwnedFd>) {
        let _ = self.confined.send(());
        if let Some(listener) = listener {
            self.notifier.take(listener);
        }
    }

    /// Says what is to be answered how, and who hears of the end.
    pub fn assign(&mut self, work: Work, events: SyncSender<Event>) {
        self.assigned = Some((work, events));
    }

    /// Lets both begin. Calls that were notified before wait for it.
    ///
    /// # Errors
    ///
    /// When nobody will answer.
    pub fn begin(&mut self) -> io::Result<()> {
        if let Some((work, events)) = self.assigned.take() {
            let _ = self.watcher.send(events);
            self.notifier.begin(work);
        }
        self.notifier.settle()
    }
}
