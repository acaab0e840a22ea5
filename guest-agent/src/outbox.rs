//! What waits to be told of a session.
//!
//! A session never waits for whoever follows it. Of an attached one every record is told, and a caller who
//! falls too far behind is given up, which ends it. Of a detached one the newest lines are kept, whether
//! somebody follows or not. The workload's outputs wait as in a pipe, while there is somebody to wait for.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::api::Reply;

/// Most records that wait; with records of at most a few dozen KiB.
const MAX_RECORDS: usize = 1024;
/// Most pieces of output that wait.
const MAX_OUTPUTS: usize = 8;
/// Most bytes that are kept of a detached session.
const MAX_KEPT: usize = 1 << 20;

/// A queue of lines between a session and who follows it.
#[derive(Debug)]
pub(crate) struct Outbox {
    detached: bool,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    lines: VecDeque<Line>,
    outputs: usize,
    bytes: usize,
    /// Lines dropped since one was taken last.
    missed: u64,
    /// Who follows: numbers are given out once.
    follower: Option<u64>,
    followers: u64,
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

/// What a follower gets next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// A line.
    Line(Vec<u8>),
    /// That was all.
    End,
    /// There may have been more, but not for this follower.
    Cut,
}

impl Outbox {
    pub fn new(detached: bool) -> Self {
        Self {
            detached,
            inner: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Whether the session goes on without a follower.
    pub fn is_detached(&self) -> bool {
        self.detached
    }

    /// Adds a line that must not wait. False, and nobody listens any more, when too many do.
    pub fn record(&self, bytes: Vec<u8>) -> bool {
        let mut inner = self.lock();
        let full = inner.lines.len() - inner.outputs >= MAX_RECORDS;
        if inner.state == State::Open && full && !self.detached {
            inner.state = State::Abandoned;
        }
        self.add(inner, bytes, false)
    }

    /// Adds a piece of output, and waits until there is room for it if somebody follows. False when nobody
    /// listens any more.
    pub fn output(&self, bytes: Vec<u8>) -> bool {
        let mut inner = self.lock();
        while inner.state == State::Open
            && inner.outputs >= MAX_OUTPUTS
            && (!self.detached || inner.follower.is_some())
        {
            inner = self
                .changed
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.add(inner, bytes, true)
    }

    fn add(&self, mut inner: MutexGuard<'_, Inner>, bytes: Vec<u8>, output: bool) -> bool {
        self.changed.notify_all();
        if inner.state != State::Open {
            return false;
        }
        while self.detached
            && (inner.lines.len() >= MAX_RECORDS || inner.bytes + bytes.len() > MAX_KEPT)
            && inner.take().is_some()
        {
            inner.missed += 1;
        }
        inner.bytes += bytes.len();
        inner.outputs += usize::from(output);
        inner.lines.push_back(Line { bytes, output });
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

    /// Begins to follow; gives a number for [`Outbox::next`], or nothing if somebody follows already.
    pub fn follow(&self) -> Option<u64> {
        let mut inner = self.lock();
        if inner.follower.is_some() || inner.state == State::Abandoned {
            return None;
        }
        inner.followers += 1;
        inner.follower = Some(inner.followers);
        inner.follower
    }

    /// Ends to follow. True if an attached session has lost its caller by that.
    pub fn leave(&self, follower: u64) -> bool {
        let mut inner = self.lock();
        if inner.follower != Some(follower) {
            return false;
        }
        inner.follower = None;
        let lost = !self.detached && inner.state != State::Finished;
        if lost {
            inner.state = State::Abandoned;
        }
        self.changed.notify_all();
        lost
    }

    /// Waits for the next line.
    pub fn next(&self, follower: u64) -> Next {
        let mut inner = self.lock();
        loop {
            if inner.state == State::Abandoned || inner.follower != Some(follower) {
                return Next::Cut;
            }
            if inner.missed > 0 {
                let missed = std::mem::take(&mut inner.missed);
                return Next::Line(Reply::Missed(missed).line());
            }
            if let Some(line) = inner.take() {
                self.changed.notify_all();
                return Next::Line(line);
            }
            if inner.state == State::Finished {
                return Next::End;
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

impl Inner {
    fn take(&mut self) -> Option<Vec<u8>> {
        let line = self.lines.pop_front()?;
        self.outputs -= usize::from(line.output);
        self.bytes -= line.bytes.len();
        Some(line.bytes)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn sent(outbox: &Outbox, follower: u64) -> Vec<u8> {
        let mut sent = Vec::new();
        while let Next::Line(line) = outbox.next(follower) {
            sent.extend(line);
        }
        sent
    }

    #[test]
    fn lines_are_sent_in_order_and_to_the_last() {
        let outbox = Outbox::new(false);
        assert!(
            outbox.record(b"a".to_vec())
                && outbox.output(b"b".to_vec())
                && outbox.record(b"c".to_vec())
        );
        outbox.finish();
        let follower = outbox.follow().unwrap();
        assert_eq!(outbox.follow(), None, "one follows at a time");
        assert_eq!(sent(&outbox, follower), b"abc");
        assert_eq!(outbox.next(follower), Next::End);
        assert!(
            !outbox.record(b"d".to_vec()),
            "nothing is added after the end"
        );
        assert!(!outbox.leave(follower), "nothing is lost after the end");
    }

    #[test]
    fn a_session_never_waits_for_a_caller_who_does_not_read() {
        let outbox = Outbox::new(false);
        (0..MAX_OUTPUTS).for_each(|_| assert!(outbox.output(Vec::new())));
        (0..MAX_RECORDS)
            .for_each(|_| assert!(outbox.record(Vec::new()), "outputs take no room of records"));
        assert!(!outbox.record(Vec::new()), "the caller is given up");
        assert!(
            !outbox.output(Vec::new()),
            "and outputs do not wait for ever"
        );
        assert_eq!(outbox.follow(), None);
    }

    #[test]
    fn a_detached_session_keeps_the_newest_and_counts_the_rest() {
        let outbox = Outbox::new(true);
        for number in 0..MAX_RECORDS + 3 {
            assert!(outbox.output(format!("{number}\n").into_bytes()));
        }
        let follower = outbox.follow().unwrap();
        assert_eq!(
            outbox.next(follower),
            Next::Line(b"{\"missed\":3}\n".to_vec())
        );
        assert_eq!(outbox.next(follower), Next::Line(b"3\n".to_vec()));
        assert!(!outbox.leave(follower), "it goes on");
        assert_eq!(outbox.next(follower), Next::Cut);
        let large = vec![0; MAX_KEPT / 2 + 1];
        assert!(outbox.record(large.clone()) && outbox.record(large));
        assert!(outbox.lock().bytes <= MAX_KEPT);
        assert!(outbox.follow().unwrap() > follower);
    }

    #[test]
    fn outputs_wait_for_room() {
        let outbox = Outbox::new(false);
        (0..MAX_OUTPUTS).for_each(|_| assert!(outbox.output(b"x".to_vec())));
        let follower = outbox.follow().unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| outbox.output(b"last".to_vec()));
            assert_eq!(outbox.next(follower), Next::Line(b"x".to_vec()));
            assert!(waiting.join().unwrap());
        });
        assert!(
            outbox.leave(follower),
            "an attached session has lost its caller"
        );
        assert!(!outbox.record(Vec::new()));
    }
}
