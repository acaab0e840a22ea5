//! Group commit: many threads append, one at a time writes for all of them.
//!
//! ```text
//! append ─▶ waiting ─▶ commit (one write, one sync) ─▶ unpublished ─▶ publish (tiles, checkpoint)
//!    ▲                         │ acknowledged
//!    └─────────────────────────┘
//! ```
//!
//! Whoever finds nobody writing writes; publishing has a thread of its own, so that nobody who
//! appends pays for it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::checkpoint::Checkpoint;
use super::error::LogError;
use super::key::LogKey;
use super::record::Draft;
use super::store::{Entries, Store};
use super::wal::{Segments, Sizes, Wal};

/// How much is gathered before something happens by itself.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    /// Bytes that one commit takes at most, when others wait too.
    pub(super) commit: usize,
    /// Bytes of acknowledged records after which a checkpoint is published.
    pub(super) publish: usize,
    /// Bytes of acknowledged records without checkpoint at which those who append have to wait.
    pub(super) backlog: usize,
    /// How big the segments are that records become durable in first.
    pub(super) segments: Sizes,
}

pub(super) const LIMITS: Limits = Limits {
    commit: 1 << 20,
    publish: 4 << 20,
    backlog: 32 << 20,
    segments: Sizes {
        first: 256 << 10,
        last: 8 << 20,
    },
};

/// How often the one who writes stands back for others at most.
const LINGER: usize = 64;

pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) origin: String,
    pub(super) boot: [u8; 16],
    pub(super) key: LogKey,
    limits: Limits,
    queue: Mutex<Queue>,
    /// Wakes those who append: records became durable, room was made, or the log stopped.
    durable: Condvar,
    /// Wakes the publisher.
    enough: Condvar,
    wal: Mutex<Option<Wal>>,
    segments: Arc<Segments>,
    /// Locked before `queue` where both are.
    store: Mutex<Store>,
}

/// Records on their way: `durable ≤ next`, and what lies between waits or is being written.
pub(super) struct Queue {
    waiting: Vec<u8>,
    next: u64,
    pub(super) durable: u64,
    writing: bool,
    /// How many callers wait for what the next commit will hold.
    callers: usize,
    /// How many waited for the last.
    last: usize,
    mono_ns: u64,
    unpublished: Vec<Vec<u8>>,
    backlog: usize,
    stopped: Option<LogError>,
    pub(super) closed: bool,
}

impl Shared {
    pub(super) fn new(
        dir: &Path,
        origin: &str,
        boot: [u8; 16],
        key: LogKey,
        limits: Limits,
        store: Store,
        wal: Wal,
    ) -> Shared {
        let size = store.tree().size();
        let queue = Queue {
            waiting: Vec::new(),
            next: size,
            durable: size,
            writing: false,
            callers: 0,
            last: 0,
            mono_ns: 0,
            unpublished: Vec::new(),
            backlog: 0,
            stopped: None,
            closed: false,
        };
        Shared {
            dir: dir.to_owned(),
            origin: origin.to_owned(),
            boot,
            key,
            limits,
            queue: Mutex::new(queue),
            durable: Condvar::new(),
            enough: Condvar::new(),
            segments: wal.segments(),
            wal: Mutex::new(Some(wal)),
            store: Mutex::new(store),
        }
    }

    /// Gives the record its number and leaves it for the next commit. `entry` becomes its bytes.
    pub(super) fn enqueue<'a>(
        &'a self,
        mut queue: MutexGuard<'a, Queue>,
        draft: &Draft,
        entry: &mut Vec<u8>,
    ) -> Result<(MutexGuard<'a, Queue>, u64), LogError> {
        loop {
            queue.check()?;
            let full = queue.waiting.len() >= self.limits.commit;
            if !full && queue.backlog < self.limits.backlog {
                break;
            }
            queue = match full && !queue.writing {
                // Nobody is writing, so whoever fills the commit has to.
                true => self.commit(queue)?,
                false => self
                    .durable
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
        let seq = queue.next;
        // A clock that was read before another record came in does not turn time back.
        queue.mono_ns = queue.mono_ns.max(draft.mono_ns);
        entry.clear();
        draft.finish(seq, queue.mono_ns, entry);
        queue
            .waiting
            .extend_from_slice(&(entry.len() as u16).to_be_bytes());
        queue.waiting.extend_from_slice(entry);
        queue.next += 1;
        Ok((queue, seq))
    }

    /// Returns once record `index` is durable. Whoever finds nobody writing writes for all.
    pub(super) fn wait_until_durable<'a>(
        &'a self,
        mut queue: MutexGuard<'a, Queue>,
        index: u64,
    ) -> Result<(), LogError> {
        queue.callers += 1;
        while queue.durable <= index {
            if let Some(error) = &queue.stopped {
                return Err(error.clone());
            }
            queue = match queue.writing {
                true => self
                    .durable
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner),
                false => self.commit(queue)?,
            };
        }
        Ok(())
    }

    /// Makes durable whatever waits.
    fn commit<'a>(
        &'a self,
        mut queue: MutexGuard<'a, Queue>,
    ) -> Result<MutexGuard<'a, Queue>, LogError> {
        queue.writing = true;
        let first = queue.durable;
        // Those who were woken by the last sync are on their way: let as many come again, or the
        // first to be back would sync alone, and all others wait for the next one.
        for _ in 0..LINGER {
            if queue.callers >= queue.last || queue.waiting.len() >= self.limits.commit {
                break;
            }
            drop(queue);
            std::thread::yield_now();
            queue = self.queue();
        }
        let next = queue.next;
        let body = std::mem::take(&mut queue.waiting);
        queue.last = std::mem::take(&mut queue.callers);
        drop(queue);
        let committed = match &mut *self.wal() {
            Some(wal) => wal.commit(&self.key, first, (next - first) as u32, &body),
            None => Err(LogError::Closed),
        };
        let mut queue = self.queue();
        queue.writing = false;
        match committed {
            Ok(()) => {
                queue.durable = next;
                queue.backlog += body.len();
                queue.unpublished.push(body);
                if queue.backlog >= self.limits.publish {
                    self.enough.notify_one();
                }
                self.durable.notify_all();
                Ok(queue)
            }
            Err(error) => {
                // Under the same lock: nobody may write what comes after a hole.
                queue.stopped.get_or_insert_with(|| error.clone());
                drop(queue);
                self.durable.notify_all();
                self.enough.notify_all();
                Err(error)
            }
        }
    }

    /// Publishes the durable records, and gives up the segments they were in.
    pub(super) fn publish(&self, extensions: &[String]) -> Result<Checkpoint, LogError> {
        let mut store = self.store();
        if let Some(error) = &self.queue().stopped {
            return Err(LogError::Stopped(Box::new(error.clone())));
        }
        let covered = self.absorb(&mut store);
        let published = store.publish(&self.key, extensions);
        let retired = published.and_then(|checkpoint| {
            self.segments.retire(checkpoint.size())?;
            Ok(checkpoint)
        });
        if retired.is_ok() {
            self.queue().backlog -= covered;
            self.durable.notify_all();
        }
        match retired {
            Err(LogError::Checkpoint(note)) => Err(LogError::Checkpoint(note)),
            retired => retired.map_err(|error| self.stop(error)),
        }
    }

    /// Moves durable records into the tree. Gives how many bytes the tree holds unpublished.
    pub(super) fn absorb(&self, store: &mut Store) -> usize {
        let (batches, backlog) = {
            let mut queue = self.queue();
            (std::mem::take(&mut queue.unpublished), queue.backlog)
        };
        batches
            .iter()
            .for_each(|batch| store.absorb(Entries::new(batch)));
        backlog
    }

    pub(super) fn publish_when_enough(&self) {
        let _stop = StopOnPanic(self);
        loop {
            let mut queue = self.queue();
            while queue.backlog < self.limits.publish && !queue.closed && queue.stopped.is_none() {
                queue = self
                    .enough
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if queue.closed || queue.stopped.is_some() {
                return;
            }
            drop(queue);
            // An error has stopped the log; those who append are told.
            let _ = self.publish(&[]);
        }
    }

    /// Lets nothing more in, and the publisher end.
    pub(super) fn shut(&self) {
        self.queue().closed = true;
        self.durable.notify_all();
        self.enough.notify_all();
    }

    /// Stops the log for good. Gives the error back.
    pub(super) fn stop(&self, error: LogError) -> LogError {
        self.queue().stopped.get_or_insert_with(|| error.clone());
        self.durable.notify_all();
        self.enough.notify_all();
        error
    }

    // A thread that panicked held no lock over a change it had not finished: these hold no
    // invariant that `stopped` and `writing` do not keep.
    pub(super) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wal(&self) -> MutexGuard<'_, Option<Wal>> {
        self.wal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Stops the log should the publisher panic: nobody may wait for it in vain.
struct StopOnPanic<'a>(&'a Shared);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop(LogError::Closed);
        }
    }
}

impl Queue {
    fn check(&self) -> Result<(), LogError> {
        match &self.stopped {
            Some(error) => Err(LogError::Stopped(Box::new(error.clone()))),
            None if self.closed => Err(LogError::Closed),
            None => Ok(()),
        }
    }
}
