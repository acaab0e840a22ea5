//! Which of the workers listen for requests, and which sleep.
//!
//! A processor that has gone idle takes longer to wake than a request takes to answer, and the kernel
//! wakes somebody for each request if anybody sleeps at the device. So, while requests come: those who
//! listen do not sleep, there are no more of them than processors to keep awake, and everybody else
//! sleeps here instead, until those who listen are all busy.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

/// The most that listen at once.
const MOST: usize = 2;

/// How long after a request the next one is waited for without sleeping.
const PATIENCE: Duration = Duration::from_micros(60);

/// Lets workers listen by turns.
pub struct Listeners {
    state: Mutex<State>,
    wanted: Condvar,
    most: usize,
    start: Instant,
    /// When the last request came, in nanoseconds since the start.
    last: AtomicU64,
}

struct State {
    listening: usize,
    stopped: bool,
}

impl Default for Listeners {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                listening: 0,
                stopped: false,
            }),
            wanted: Condvar::new(),
            most: available_parallelism().map_or(1, |all| all.get().min(MOST)),
            start: Instant::now(),
            last: AtomicU64::new(0),
        }
    }
}

impl Listeners {
    /// Returns when the caller shall listen; `false` if nobody shall any more. `rest` is called if that
    /// may take a while.
    pub fn listen(&self, rest: impl FnOnce()) -> bool {
        let mut state = self.state();
        if state.listening >= self.most && !state.stopped {
            drop(state);
            rest();
            state = self.state();
        }
        while state.listening >= self.most && !state.stopped {
            state = self
                .wanted
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.listening += 1;
        !state.stopped
    }

    /// One of those who listen has a request, and does not listen until it asks to again.
    pub fn took_one(&self) {
        let now = self.start.elapsed().as_nanos() as u64;
        self.last.store(now, Ordering::Relaxed);
        let mut state = self.state();
        state.listening = state.listening.saturating_sub(1);
        let nobody = state.listening == 0;
        drop(state);
        if nobody {
            self.wanted.notify_one();
        }
    }

    /// Whether the next request is worth staying awake for.
    pub fn are_awake(&self) -> bool {
        let last = Duration::from_nanos(self.last.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(last) < PATIENCE
    }

    /// Has everybody give up.
    pub fn stop(&self) {
        self.state().stopped = true;
        self.wanted.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;
    use std::thread;

    #[test]
    fn whoever_is_left_listens_when_all_others_are_busy_and_stopping_frees_everybody() {
        let listeners = Listeners {
            most: 2,
            ..Listeners::default()
        };
        let (said, heard) = channel();
        thread::scope(|scope| {
            assert!(listeners.listen(|| ()) && listeners.listen(|| ()));
            for _ in 0..2 {
                let (listeners, said) = (&listeners, said.clone());
                scope.spawn(move || said.send(listeners.listen(|| ())));
            }
            // One busy, one listening: the others sleep on.
            listeners.took_one();
            assert!(heard.try_recv().is_err());
            listeners.took_one();
            assert_eq!(heard.recv(), Ok(true));
            assert!(listeners.are_awake() || listeners.start.elapsed() > PATIENCE);
            listeners.stop();
            let _ = heard.recv();
            assert!(!listeners.listen(|| ()));
        });
    }
}
