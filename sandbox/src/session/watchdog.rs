//! A lever that hangs must not keep the sandbox alive: whoever waits for it can do nothing else.
//!
//! Every lever has a deadline of its own where it waits for something the workload could keep from
//! happening. This is for what nobody thought of, and for a disk that takes no record: a thread that
//! does nothing but wait kills the sandbox when a change is not made and recorded in time. The session
//! finds it ended.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a change may take, with its record.
pub(super) const CHANGE_DEADLINE: Duration = Duration::from_secs(5);

/// Kills a sandbox from any thread.
pub type Killer = Box<dyn FnMut() + Send>;

/// Waits for changes to be made in time.
pub(super) struct Watchdog {
    state: Arc<(Mutex<State>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct State {
    /// When the change under way has to be made.
    until: Option<Instant>,
    /// The thread sleeps until it is woken.
    idle: bool,
    over: bool,
}

impl Watchdog {
    /// Begins to watch.
    ///
    /// # Errors
    ///
    /// When no thread can be started.
    pub(super) fn start(mut kill: Killer) -> std::io::Result<Self> {
        let state = Arc::<(Mutex<State>, Condvar)>::default();
        let watched = Arc::clone(&state);
        let thread = std::thread::Builder::new()
            .name("sandbox-watchdog".into())
            .spawn(move || {
                let (state, changed) = &*watched;
                let mut state = lock(state);
                while !state.over {
                    let Some(until) = state.until else {
                        state.idle = true;
                        state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                        state.idle = false;
                        continue;
                    };
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        state.until = None;
                        kill();
                        continue;
                    }
                    let waited = changed.wait_timeout(state, left);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            })?;
        Ok(Self {
            state,
            thread: Some(thread),
        })
    }

    /// A change begins; it ends when the answer is dropped.
    pub(super) fn watch(&self) -> Watched {
        let mut state = lock(&self.state.0);
        state.until = Some(Instant::now() + CHANGE_DEADLINE);
        // If it sleeps until the end of an earlier change, it will look again then, which is soon enough.
        if state.idle {
            self.state.1.notify_one();
        }
        drop(state);
        Watched(Arc::clone(&self.state))
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        lock(&self.state.0).over = true;
        self.state.1.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A change under way.
pub(super) struct Watched(Arc<(Mutex<State>, Condvar)>);

impl Drop for Watched {
    fn drop(&mut self) {
        // Nobody has to be woken for that: the thread looks again when the time is over.
        lock(&self.0.0).until = None;
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_change_that_hangs_gets_the_sandbox_killed_and_one_that_is_made_does_not() {
        let (killed, kills) = channel();
        let watchdog = Watchdog::start(Box::new(move || {
            let _ = killed.send(Instant::now());
        }));
        let watchdog = watchdog.expect("a thread");
        drop(watchdog.watch());
        let began = Instant::now();
        let hanging = watchdog.watch();
        let at = kills.recv_timeout(4 * CHANGE_DEADLINE).expect("a kill");
        assert!(at - began >= CHANGE_DEADLINE, "too early");
        drop(hanging);
        drop(watchdog);
        assert!(kills.try_recv().is_err(), "killed twice");
    }
}
