//! The notifier: system calls outside the profile are refused, and reported as they are; those that the
//! supervisor makes in the workload's place are handed to who makes them.
//!
//! A plain thread, never a task of an async runtime: with the synchronous wake-up it runs on the
//! workload's own CPU. What the profile has, and no lever needs, does not come here and costs nothing.
//! Nothing that was looked at through a pointer is let through: see [`crate::isolation::network`]. Starts
//! of programs are, while their gate is open ([`exec`](crate::lever::exec)).
//!
//! The thread has a descriptor table of its own, with the listener in it and nothing else. It reads the
//! workload's memory, and so can wait for a page of a vault, which this very process serves. If the
//! process is killed then, the FUSE devices have to close before that thread ends, and not after.
//!
//! See seccomp_unotify(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::event::{PollFd, PollFlags};

use super::profile::denied_errno;
use super::table::syscall_name;
use crate::event::{Denied, Event};
use crate::isolation::network::broker::{Broker, Brokered};
use crate::lever::exec::Gate;
use crate::sys::process;
use crate::sys::seccomp::{self, Answer, Notification};

/// A thread that will answer notified calls, until the last task under the filter is gone.
///
/// When this process ends, so does the listener, and the kernel answers `ENOSYS`. Dropping what was not
/// begun ends the thread.
#[derive(Debug)]
pub struct Notifier {
    listener: SyncSender<i32>,
    work: SyncSender<Work>,
    ready: Receiver<io::Result<()>>,
    /// The listener in the table of this process, while the thread may not have its own copy.
    ours: Option<OwnedFd>,
}

/// Who answers, and who hears of what was refused.
#[derive(Debug)]
pub struct Work {
    /// Where starts of programs are asked for.
    pub gate: Option<Gate>,
    /// Who makes connections.
    pub network: Option<Broker>,
    /// Where what was refused is reported.
    pub events: SyncSender<Event>,
}

impl Notifier {
    /// Starts the thread, before there is a listener.
    ///
    /// # Errors
    ///
    /// When no thread can be started.
    pub fn start() -> io::Result<Self> {
        let (listener, given) = sync_channel(1);
        let (work, begun) = sync_channel::<Work>(1);
        let (say_ready, ready) = sync_channel(1);
        let run = move || {
            let Ok(number) = given.recv() else { return };
            // The copy of the listener in this table is this thread's; that of the others is closed
            // when it says that it is ready.
            let own = process::own_descriptors().and_then(|()| process::close_all_but(number));
            let separate = own.is_ok();
            let _ = say_ready.send(own);
            if !separate {
                return;
            }
            let listener = Arc::new(process::adopt(number));
            // Waited for where calls come from, so that nobody has to be woken when it is given.
            if wait(&listener)
                && let Ok(work) = begun.recv()
            {
                answer_all(
                    &listener,
                    work.gate.as_ref(),
                    work.network.as_ref(),
                    &work.events,
                );
            }
        };
        std::thread::Builder::new()
            .name("sandbox-notifier".into())
            .spawn(run)?;
        Ok(Self {
            listener,
            work,
            ready,
            ours: None,
        })
    }

    /// Gives it the listener.
    pub fn take(&mut self, listener: OwnedFd) {
        // An older kernel does not know the flag; then a wake-up costs more, and nothing else changes.
        let _ = seccomp::wake_synchronously(listener.as_fd());
        let _ = self.listener.send(listener.as_raw_fd());
        self.ours = Some(listener);
    }

    /// Lets it answer.
    pub fn begin(&self, work: Work) {
        let _ = self.work.send(work);
    }

    /// Waits until the thread has a descriptor table of its own, and closes the listener in this one.
    ///
    /// # Errors
    ///
    /// When it cannot get one; it answers nothing then.
    pub fn settle(&mut self) -> io::Result<()> {
        if self.ours.is_none() {
            return Ok(());
        }
        // Until then the number must not be closed, and not be given to anything else.
        let own = self.ready.recv().map_err(io::Error::other)?;
        self.ours = None;
        own
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        let _ = self.settle();
    }
}

fn answer_all(
    listener: &Arc<OwnedFd>,
    gate: Option<&Gate>,
    network: Option<&Broker>,
    events: &SyncSender<Event>,
) {
    while wait(listener) {
        let notification = match seccomp::receive(listener.as_fd()) {
            Ok(notification) => notification,
            // The caller was killed while it waited, or a signal came: neither is an end.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => {
                continue;
            }
            Err(_) => return,
        };
        if gate.is_some_and(|gate| gate.lets(&notification.data)) {
            // Nothing was looked at that the caller could change.
            let _ = seccomp::respond(listener.as_fd(), notification.id, Answer::Continue);
            continue;
        }
        let brokered = network.map_or(Brokered::Not, |broker| {
            broker.answer(listener, &notification)
        });
        let (event, errno) = match brokered {
            Brokered::Answered => continue,
            Brokered::Denied(event) => (event, libc::EACCES),
            Brokered::Not => {
                let errno = denied_errno(notification.data.nr);
                (Event::Denied(describe(&notification)), errno)
            }
        };
        // The report first: what a workload does last is heard of before its end. A flood of refused
        // calls waits here for the session, and so does whoever makes them.
        if events.send(event).is_err() {
            // Nobody listens any more. Closing the listener makes the kernel answer by itself.
            return;
        }
        // A caller that is gone in the meantime needs no answer.
        let _ = seccomp::respond(listener.as_fd(), notification.id, Answer::Errno(errno));
    }
}

/// Waits for a call. False when none will come any more.
fn wait(listener: &OwnedFd) -> bool {
    loop {
        let mut watched = [PollFd::new(listener, PollFlags::IN)];
        match rustix::event::poll(&mut watched, None) {
            Ok(_) => return watched[0].revents().contains(PollFlags::IN),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

fn describe(notification: &Notification) -> Denied {
    let data = &notification.data;
    let name = syscall_name(data.nr).map_or_else(|| format!("syscall {}", data.nr), str::to_owned);
    let detail = match name.as_str() {
        "socket" | "socketpair" => family(data.args[0]),
        "ioctl" => format!("{:#x}", data.args[1] & 0xffff_ffff),
        "prctl" | "clone" | "unshare" | "personality" => format!("{:#x}", data.args[0]),
        _ => String::new(),
    };
    Denied {
        name,
        detail,
        pid: notification.pid,
    }
}

/// Names the address family of a socket, the first argument of socket(2): a register, so that nothing
/// can change it behind our back.
fn family(number: u64) -> String {
    match number as i32 {
        libc::AF_INET => "AF_INET".into(),
        libc::AF_INET6 => "AF_INET6".into(),
        libc::AF_NETLINK => "AF_NETLINK".into(),
        libc::AF_PACKET => "AF_PACKET".into(),
        libc::AF_VSOCK => "AF_VSOCK".into(),
        libc::AF_ALG => "AF_ALG".into(),
        other => format!("family {other}"),
    }
}
