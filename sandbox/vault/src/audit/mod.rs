//! The audit log: what was decided and done, in an order that nobody can rewrite.
//!
//! ```text
//! Record ─▶ Log::append ─▶ wal/ (durable: acknowledged) ─▶ tile/ ─▶ checkpoint (signed)
//!                                                                       │
//!                          Record ◀─ verify, prove ◀────────────────────┘
//! ```
//!
//! - [`Log`] writes. [`Log::append`] returns once the record is durable, never before, and one
//!   sync serves everybody who waits for one.
//! - The tree is RFC 6962's, its files are C2SP "tlog-tiles" and "tlog-checkpoint": tools made for
//!   certificate transparency read them.
//! - [`verify`] recomputes everything from the entries; [`prove`] exports one record with the
//!   evidence that it is in the log. Neither needs the writer.
//!
//! What a log alone cannot tell is that it was rolled back to an earlier state of itself as a
//! whole. That takes a checkpoint kept elsewhere: see `expected` of [`verify`].

mod checkpoint;
mod disk;
mod error;
mod merkle;
mod proof;
mod record;
mod store;
mod verify;
mod wal;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;

pub use checkpoint::{
    Checkpoint, Head, KeyError, LogKey, LogVerifier, MAX_NOTE, MAX_SIGNATURES, NoteError,
};
pub use error::LogError;
pub use merkle::{
    Edge, Hash, Nodes, TILE_WIDTH, TileId, empty_root, leaf_hash, node_hash, prove_consistency,
    prove_inclusion, verify_consistency, verify_inclusion,
};
pub use proof::{Consistency, Proof, ProofError, prove, prove_since};
pub use record::{Entry, Escaped, MAX_DEPTH, MAX_ENTRY, MAX_PAYLOAD, Record, RecordError};
pub use verify::{KeySource, Records, Verified, VerifyError, verify};

use disk::{Disk, OsDisk};
use record::Draft;
use store::{Entries, Store};
use wal::Wal;

/// The kind of the record that tells of a write which was cut because nobody had been told of it.
pub const RECOVERED: &str = "recovered";

/// A log that is open for writing; the only writer it has.
///
/// Shared by reference between threads. Dropping it publishes what is durable, as far as that
/// goes; [`Log::close`] says how far it went.
pub struct Log {
    shared: Arc<Shared>,
    publisher: Option<JoinHandle<()>>,
    /// Holds the lock on the directory.
    _lock: File,
}

/// What [`Log::append`] gives for a record that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The record's number, counted from 0.
    pub index: u64,
    /// Its leaf in the tree, for an inclusion proof to be checked against.
    pub leaf_hash: Hash,
}

/// How much is gathered before something happens by itself.
#[derive(Clone, Copy)]
struct Limits {
    /// Bytes that one commit takes at most, when others wait too.
    commit: usize,
    /// Bytes of acknowledged records after which a checkpoint is published.
    publish: usize,
    /// Bytes of acknowledged records without checkpoint at which those who append have to wait.
    backlog: usize,
}

const LIMITS: Limits = Limits {
    commit: 1 << 20,
    publish: 4 << 20,
    backlog: 32 << 20,
};

struct Shared {
    dir: PathBuf,
    origin: String,
    boot: [u8; 16],
    key: LogKey,
    limits: Limits,
    queue: Mutex<Queue>,
    /// Wakes those who append: records became durable, room was made, or the log stopped.
    durable: Condvar,
    /// Wakes the publisher.
    enough: Condvar,
    wal: Mutex<Option<Wal>>,
    segments: Arc<wal::Segments>,
    /// Locked before `queue` where both are.
    store: Mutex<Store>,
}

/// Records on their way: `durable ≤ next`, and what lies between waits or is being written.
struct Queue {
    waiting: Vec<u8>,
    next: u64,
    durable: u64,
    writing: bool,
    mono_ns: u64,
    unpublished: Vec<Vec<u8>>,
    backlog: usize,
    stopped: Option<LogError>,
    closed: bool,
}

impl Log {
    /// Starts a log in `dir`, which is made if it is not there and must not hold one.
    ///
    /// `origin` names the log in every record and checkpoint: a schema-less URL by convention,
    /// unique to it, without white space or `+`. The public key is stored beside the log as
    /// `key.pub`; those who verify should have it from elsewhere.
    ///
    /// # Errors
    ///
    /// [`LogError::Exists`] rather than starting anew over anything that was a log.
    pub fn create(dir: &Path, origin: &str, key: LogKey) -> Result<Log, LogError> {
        Log::create_on(Arc::new(OsDisk), dir, origin, key, LIMITS)
    }

    /// Opens the log in `dir` to go on writing it.
    ///
    /// Every record that was ever acknowledged is there afterwards, and under a new checkpoint. If
    /// a write was torn, which can only be one that nobody was told of, it is cut, and a record of
    /// the kind [`RECOVERED`] says so.
    ///
    /// # Errors
    ///
    /// [`LogError::Lost`], [`LogError::Damaged`], [`LogError::Forged`] if the files are not what
    /// this log wrote. Nothing is repaired then and nothing removed.
    pub fn open(dir: &Path, key: LogKey) -> Result<Log, LogError> {
        Log::open_on(Arc::new(OsDisk), dir, key, LIMITS)
    }

    /// Appends a record and returns once it is durable.
    ///
    /// # Errors
    ///
    /// [`LogError::Record`] refuses this record only. After any other error the log is stopped.
    pub fn append(&self, record: &Record) -> Result<Receipt, LogError> {
        let draft = self.draft(record)?;
        let shared = &*self.shared;
        let mut entry = Vec::with_capacity(512);
        let index = shared.enqueue(shared.queue(), &draft, &mut entry)?.1;
        // Hashed while others gather for the same sync.
        let leaf_hash = leaf_hash(&entry);
        shared.wait_until_durable(index)?;
        Ok(Receipt { index, leaf_hash })
    }

    /// Appends records in this order and returns once all are durable.
    ///
    /// If one cannot be kept, none is. Records of others may come to stand between them.
    ///
    /// # Errors
    ///
    /// As [`Log::append`].
    pub fn append_all(&self, records: &[Record]) -> Result<Vec<Receipt>, LogError> {
        let drafts = records
            .iter()
            .map(|r| self.draft(r))
            .collect::<Result<Vec<_>, _>>()?;
        let shared = &*self.shared;
        let (mut receipts, mut entry) = (Vec::with_capacity(drafts.len()), Vec::new());
        for draft in &drafts {
            let index = shared.enqueue(shared.queue(), draft, &mut entry)?.1;
            receipts.push(Receipt {
                index,
                leaf_hash: leaf_hash(&entry),
            });
        }
        if let Some(last) = receipts.last() {
            shared.wait_until_durable(last.index)?;
        }
        Ok(receipts)
    }

    /// Publishes everything acknowledged so far under a signed checkpoint.
    ///
    /// # Errors
    ///
    /// Those of the files. The log is stopped then.
    pub fn checkpoint(&self) -> Result<Checkpoint, LogError> {
        self.checkpoint_with(&[])
    }

    /// As [`Log::checkpoint`], with extension lines the log vouches for, such as `att <digest>`.
    ///
    /// # Errors
    ///
    /// [`LogError::Checkpoint`] if a line cannot be one; the log goes on. Else as
    /// [`Log::checkpoint`].
    pub fn checkpoint_with(&self, extensions: &[String]) -> Result<Checkpoint, LogError> {
        self.shared.publish(extensions)
    }

    /// How many records are durable.
    pub fn size(&self) -> u64 {
        self.shared.queue().durable
    }

    /// The root of the tree over the records that are durable.
    pub fn root(&self) -> Hash {
        let mut store = self.shared.store();
        self.shared.absorb(&mut store);
        store.tree().root()
    }

    /// The log's name.
    pub fn origin(&self) -> &str {
        &self.shared.origin
    }

    /// The public key, 32 bytes: what evidence binds.
    pub fn public_key(&self) -> [u8; 32] {
        self.shared.key.public()
    }

    /// Publishes the last checkpoint and lets go of the log.
    ///
    /// # Errors
    ///
    /// What stopped the log, or kept the checkpoint from being written. All that was acknowledged
    /// is durable all the same.
    pub fn close(mut self) -> Result<Checkpoint, LogError> {
        self.finish()
    }

    fn finish(&mut self) -> Result<Checkpoint, LogError> {
        let shared = &*self.shared;
        shared.queue().closed = true;
        shared.enough.notify_all();
        shared.durable.notify_all();
        if let Some(publisher) = self.publisher.take() {
            // It never panics; if it did, publishing below finds out what is left to do.
            let _ = publisher.join();
        }
        let checkpoint = shared.publish(&[])?;
        match shared.wal().take() {
            Some(wal) => wal.finish(&shared.key, checkpoint.size())?,
            None => return Err(LogError::Closed),
        }
        Ok(checkpoint)
    }

    fn draft(&self, record: &Record) -> Result<Draft, LogError> {
        Draft::new(record, &self.shared.boot, &self.shared.origin).map_err(LogError::Record)
    }

    fn create_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        origin: &str,
        key: LogKey,
        limits: Limits,
    ) -> Result<Log, LogError> {
        let verifier = key
            .verifier(origin)
            .map_err(|e| LogError::Key(Arc::new(e)))?;
        disk.create_dir(dir)
            .map_err(|e| LogError::io("made", dir, e))?;
        let lock = lock(dir)?;
        if ["checkpoint", "tile", "wal", "key.pub"]
            .iter()
            .any(|name| dir.join(name).exists())
        {
            return Err(LogError::Exists(dir.to_owned()));
        }
        let mut store = Store::create(dir, disk.clone(), origin);
        store.put(&dir.join("key.pub"), format!("{verifier}\n").as_bytes())?;
        // Segments first: a checkpoint without any says that something was lost.
        let wal = start_wal(dir, disk, &key, 0)?;
        store.publish(&key, &[])?;
        Log::start(dir, origin, key, limits, store, wal, lock)
    }

    fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        key: LogKey,
        limits: Limits,
    ) -> Result<Log, LogError> {
        let lock = lock(dir)?;
        let path = dir.join("checkpoint");
        let note = store::read_checkpoint(dir).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => LogError::NoLog(dir.to_owned()),
            _ => LogError::io("read", &path, e),
        })?;
        let origin = store::claimed_origin(&note).map_err(LogError::Checkpoint)?;
        let verifier = key
            .verifier(&origin)
            .map_err(|e| LogError::Key(Arc::new(e)))?;
        let stored = disk::read(&dir.join("key.pub"), 1024);
        let stored = stored.map_err(|e| LogError::io("read", &dir.join("key.pub"), e))?;
        if stored != format!("{verifier}\n").as_bytes() {
            return Err(LogError::WrongKey(dir.to_owned()));
        }
        let published = verifier.open(&note).map_err(LogError::Checkpoint)?;
        let size = published.size();
        let mut store = Store::open(dir, disk.clone(), published)?;
        let mut last = store.last_entry().map(<[u8]>::to_vec);
        let tail = wal::scan(&dir.join("wal"), Some(&key), size, |entries| {
            last = entries.clone().last().map(<[u8]>::to_vec);
            store.absorb(entries);
            Ok(())
        })?;
        store.publish(&key, &[])?;
        let wal = start_wal(dir, disk, &key, tail.next)?;
        let log = Log::start(dir, &origin, key, limits, store, wal, lock)?;
        if tail.torn {
            // No clock is at hand: the time is that of the last record that was kept.
            let last = last.and_then(|bytes| Entry::decode(&bytes).ok());
            let time = last.map_or(Duration::ZERO, |last| last.record.time);
            let why = json!({ "at": tail.next, "why": "a write nobody was told of was torn" });
            log.append(&Record::new(RECOVERED, time, 0, why))?;
        }
        Ok(log)
    }

    fn start(
        dir: &Path,
        origin: &str,
        key: LogKey,
        limits: Limits,
        store: Store,
        wal: Wal,
        lock: File,
    ) -> Result<Log, LogError> {
        let mut boot = [0; 16];
        let io = |e| LogError::io("opened", dir, e);
        getrandom::fill(&mut boot).map_err(|e| io(std::io::Error::other(e)))?;
        let size = store.tree().size();
        let queue = Queue {
            waiting: Vec::new(),
            next: size,
            durable: size,
            writing: false,
            mono_ns: 0,
            unpublished: Vec::new(),
            backlog: 0,
            stopped: None,
            closed: false,
        };
        let shared = Arc::new(Shared {
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
        });
        let publisher = std::thread::Builder::new().name("audit-log".into()).spawn({
            let shared = shared.clone();
            move || shared.publish_when_enough()
        });
        Ok(Log {
            shared,
            publisher: Some(publisher.map_err(io)?),
            _lock: lock,
        })
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if self.publisher.is_some() {
            // Best effort: what was acknowledged is durable, and opening again publishes it.
            let _ = self.finish();
        }
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shared { dir, origin, .. } = &*self.shared;
        f.debug_struct("Log")
            .field("dir", dir)
            .field("origin", origin)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Gives the record its number and leaves it for the next commit. `entry` becomes its bytes.
    fn enqueue<'a>(
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
    fn wait_until_durable(&self, index: u64) -> Result<(), LogError> {
        let mut queue = self.queue();
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
        let (first, next) = (queue.durable, queue.next);
        let body = std::mem::take(&mut queue.waiting);
        queue.writing = true;
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
                drop(queue);
                Err(self.stop(error))
            }
        }
    }

    /// Publishes the durable records, and gives up the segments they were in.
    fn publish(&self, extensions: &[String]) -> Result<Checkpoint, LogError> {
        let mut store = self.store();
        if let Some(error) = &self.queue().stopped {
            return Err(LogError::Stopped(Box::new(error.clone())));
        }
        self.absorb(&mut store);
        let published = store.publish(&self.key, extensions);
        let retired = published.and_then(|checkpoint| {
            self.segments.retire(checkpoint.size())?;
            Ok(checkpoint)
        });
        match retired {
            Err(LogError::Checkpoint(note)) => Err(LogError::Checkpoint(note)),
            retired => retired.map_err(|error| self.stop(error)),
        }
    }

    /// Moves durable records into the tree.
    fn absorb(&self, store: &mut Store) {
        let batches = {
            let mut queue = self.queue();
            queue.backlog = 0;
            std::mem::take(&mut queue.unpublished)
        };
        self.durable.notify_all();
        batches
            .iter()
            .for_each(|batch| store.absorb(Entries::new(batch)));
    }

    fn publish_when_enough(&self) {
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

    /// Stops the log for good. Gives the error back.
    fn stop(&self, error: LogError) -> LogError {
        self.queue().stopped.get_or_insert_with(|| error.clone());
        self.durable.notify_all();
        self.enough.notify_all();
        error
    }

    // A thread that panicked held no lock over a change it had not finished: these hold no
    // invariant that `stopped` and `writing` do not keep.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wal(&self) -> MutexGuard<'_, Option<Wal>> {
        self.wal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Takes the one writer's place. The lock is on the directory itself: a lock file could be replaced.
fn lock(dir: &Path) -> Result<File, LogError> {
    let file = File::open(dir).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => LogError::NoLog(dir.to_owned()),
        _ => LogError::io("opened", dir, e),
    })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(LogError::Locked(dir.to_owned())),
        Err(std::fs::TryLockError::Error(e)) => Err(LogError::io("locked", dir, e)),
    }
}

fn start_wal(dir: &Path, disk: Arc<dyn Disk>, key: &LogKey, next: u64) -> Result<Wal, LogError> {
    let wal = dir.join("wal");
    disk.create_dir(&wal)
        .map_err(|e| LogError::io("made", &wal, e))?;
    disk.sync(dir, &[dir.to_owned()])
        .map_err(|e| LogError::io("made durable", dir, e))?;
    Wal::start(&wal, disk, key, next)
}
