//! What waits to be sent to the caller of a run.
//!
//! A session never waits for its caller: records have room of their own, and a caller who falls too far
//! behind is given up. The workload's outputs are what waits instead, as in a pipe.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Most records that wait; with records of at most a few dozen KiB.
const MAX_RECORDS: usize = 1024;
/// Most pieces of output that wait.
const MAX_OUTPUTS: usize = 8;

/// A queue of lines between a session and the thread that sends them.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    lines: VecDeque<Line>,
    outputs: usize,
    state: State,
}

#[derive(Debug)]
struct Line {
    bytes: Vec<u8>,
    output: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// Nothing is added any more; what waits is still sent.
    Finished,
    /// The caller is gone or too slow: nothing is sent any more.
    Abandoned,
}

impl Outbox {
    /// Adds a line that must not wait. False, and nobody listens any more, when too many do.
    pub fn record(&self, bytes: Vec<u8>) -> bool {
        let mut inner = self.lock();
        if inner.state == State::Open && inner.lines.len() - inner.outputs >= MAX_RECORDS {
            inner.state = State::Abandoned;
        }
        if inner.state != State::Open {
            self.changed.notify_all();
            return false;
        }
        inner.lines.push_back(Line {
            bytes,
            output: false,
        });
        self.changed.notify_all();
        true
    }

    /// Adds a piece of output, and waits until there is room for it. False when nobody listens.
    pub fn output(&self, bytes: Vec<u8>) -> bool {
        let mut inner = self.lock();
        while inner.state == State::Open && inner.outputs >= MAX_OUTPUTS {
            inner = self
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if inner.state != State::Open {
            return false;
        }
        inner.lines.push_back(Line {
            bytes,
            output: true,
        });
        inner.outputs += 1;
        self.changed.notify_all();
        true
    }

    /// Lets what waits be sent, and nothing more.
    pub fn finish(&self) {
        let mut inner = self.lock();
        if inner.state == State::Open {
            inner.state = State::Finished;
        }
        self.changed.notify_all();
    }

    /// Gives the caller up.
    pub fn abandon(&self) {
        self.lock().state = State::Abandoned;
        self.changed.notify_all();
    }

    /// Sends lines as they come, until the outbox is finished and empty, or abandoned.
    ///
    /// # Errors
    ///
    /// What the caller's connection answers; the outbox is abandoned then.
    pub fn send_to(&self, caller: &mut impl Write) -> io::Result<()> {
        while let Some(line) = self.next() {
            if let Err(error) = caller.write_all(&line) {
                self.abandon();
                return Err(error);
            }
        }
        Ok(())
    }

    fn next(&self) -> Option<Vec<u8>> {
        let mut inner = self.lock();
        loop {
            if inner.state == State::Abandoned {
                inner.lines.clear();
                return None;
            }
            if let Some(line) = inner.lines.pop_front() {
                inner.outputs -= usize::from(line.output);
                self.changed.notify_all();
                return Some(line.bytes);
            }
            if inner.state == State::Finished {
                return None;
            }
            inner = self
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is complete when the lock is given back, also in a panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_sent_in_order_and_to_the_last() {
        let outbox = Outbox::default();
        assert!(
            outbox.record(b"a".to_vec())
                && outbox.output(b"b".to_vec())
                && outbox.record(b"c".to_vec())
        );
        outbox.finish();
        let mut sent = Vec::new();
        outbox.send_to(&mut sent).unwrap();
        assert_eq!(sent, b"abc");
        assert!(
            !outbox.record(b"d".to_vec()),
            "nothing is added after the end"
        );
    }

    #[test]
    fn a_session_never_waits_for_a_caller_who_does_not_read() {
        let outbox = Outbox::default();
        (0..MAX_OUTPUTS).for_each(|_| assert!(outbox.output(Vec::new())));
        (0..MAX_RECORDS)
            .for_each(|_| assert!(outbox.record(Vec::new()), "outputs take no room of records"));
        assert!(!outbox.record(Vec::new()), "the caller is given up");
        assert!(
            !outbox.output(Vec::new()),
            "and outputs do not wait for ever"
        );
    }

    #[test]
    fn outputs_wait_for_room() {
        let outbox = Outbox::default();
        (0..MAX_OUTPUTS).for_each(|_| assert!(outbox.output(b"x".to_vec())));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| outbox.output(b"last".to_vec()));
            assert_eq!(outbox.next().unwrap(), b"x");
            assert!(waiting.join().unwrap());
        });
    }
}
