//! A lever that hangs must not keep the sandbox alive: whoever waits for it can do nothing else.
//!
//! Every lever has a deadline of its own where it waits for something the workload could keep from
//! happening. This is for what nobody thought of, and for a disk that takes no record: a thread that
//! does nothing but wait kills the sandbox when a change is not made and recorded in time. The session
//! finds it ended.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// How long a change may take, with its record.
pub(super) const CHANGE_DEADLINE: Duration = Duration::from_secs(5);

/// Kills a sandbox from any thread.
pub type Killer = Box<dyn FnMut() + Send>;

/// Waits for changes to be made in time.
pub(super) struct Watchdog {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// Set while a change is under way: to begin one wakes nobody.
    timer: OwnedFd,
    over: AtomicBool,
}

impl Watchdog {
    /// Begins to watch.
    ///
    /// # Errors
    ///
    /// When no thread can be started, or there is no timer.
    pub(super) fn start(mut kill: Killer) -> io::Result<Self> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
        let over = AtomicBool::new(false);
        let shared = Arc::new(Shared { timer, over });
        let watched = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("sandbox-watchdog".into())
            .spawn(move || {
                loop {
                    let waited = rustix::io::read(&watched.timer, &mut [0; 8]);
                    if watched.over.load(Ordering::Acquire) {
                        return;
                    }
                    if waited != Err(rustix::io::Errno::INTR) {
                        kill();
                    }
                }
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// A change begins; it ends when the answer is dropped.
    ///
    /// # Errors
    ///
    /// When the timer cannot be set: nobody would notice that the change hangs.
    pub(super) fn watch(&self) -> io::Result<Watched> {
        self.shared.set(CHANGE_DEADLINE)?;
        Ok(Watched(Arc::clone(&self.shared)))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.shared.over.store(true, Ordering::Release);
        let woken = self.shared.set(Duration::from_nanos(1));
        if let (Ok(()), Some(thread)) = (woken, self.thread.take()) {
            let _ = thread.join();
        }
    }
}

/// A change under way.
pub(super) struct Watched(Arc<Shared>);

impl Drop for Watched {
    fn drop(&mut self) {
        // If it cannot be, the sandbox is killed though the change was made.
        let _ = self.0.set(Duration::ZERO);
    }
}

impl Shared {
    /// Sets the timer; 0 is never.
    fn set(&self, within: Duration) -> io::Result<()> {
        let it_value = Timespec::try_from(within).map_err(io::Error::other)?;
        let it_interval = Timespec::default();
        let times = Itimerspec {
            it_interval,
            it_value,
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &times)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::time::Instant;

    use super::*;

    #[test]
    fn a_change_that_hangs_gets_the_sandbox_killed_and_one_that_is_made_does_not() {
        let (killed, kills) = channel();
        let watchdog = Watchdog::start(Box::new(move || {
            let _ = killed.send(Instant::now());
        }));
        let watchdog = watchdog.expect("a thread");
        drop(watchdog.watch().expect("a timer"));
        let began = Instant::now();
        let hanging = watchdog.watch().expect("a timer");
        let at = kills.recv_timeout(4 * CHANGE_DEADLINE).expect("a kill");
        assert!(at - began >= CHANGE_DEADLINE, "too early");
        drop(hanging);
        drop(watchdog);
        assert!(kills.try_recv().is_err(), "killed twice");
    }
}
