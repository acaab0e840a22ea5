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
mod commit;
mod disk;
mod error;
pub(crate) mod fuzz;
mod key;
mod leaf;
mod merkle;
mod proof;
mod record;
mod redact;
mod scan;
mod store;
mod verify;
mod wal;
mod witness;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::json;

pub use checkpoint::{Checkpoint, Head, MAX_NOTE, MAX_SIGNATURES, NoteError};
pub use error::LogError;
pub use key::{KeyError, LogKey, LogVerifier};
pub use merkle::{
    Edge, Hash, Nodes, TILE_WIDTH, TileId, empty_root, leaf_hash, node_hash, prove_consistency,
    prove_inclusion, verify_consistency, verify_inclusion,
};
pub use proof::{Consistency, Proof, ProofError, prove, prove_since};
pub use record::{Entry, Escaped, MAX_DEPTH, MAX_ENTRY, MAX_PAYLOAD, Record, RecordError};
pub use redact::{Disclosure, IN_THE_OPEN, disclosures, redact};
pub use verify::{KeySource, Records, Verified, VerifyError, verify};
pub use witness::{Witness, WitnessVerifier};

use commit::{LIMITS, Limits, Shared};
use disk::{Disk, OsDisk};
use record::Draft;
use store::Store;
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
    _lock: Lock,
}

/// What [`Log::append`] gives for a record that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The record's number, counted from 0.
    pub index: u64,
    /// Its leaf in the tree, for an inclusion proof to be checked against.
    pub leaf_hash: Hash,
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
        Log::create_on(Arc::<OsDisk>::default(), dir, origin, key, LIMITS)
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
        Log::open_on(Arc::<OsDisk>::default(), dir, key, LIMITS)
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
        let (queue, index) = shared.enqueue(shared.queue(), &draft, &mut entry)?;
        shared.wait_until_durable(queue, index)?;
        // Hashed last, where it keeps nobody from writing.
        let leaf_hash = leaf_hash(&entry);
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
            shared.wait_until_durable(shared.queue(), last.index)?;
        }
        Ok(receipts)
    }

    /// Appends a record of whose payload these fields are recorded as commitments, and keeps what they say
    /// beside the log, where [`redact()`] can take it back. It is durable before the record is.
    ///
    /// # Errors
    ///
    /// [`LogError::Record`] for a field that is not there or must stay in the open ([`IN_THE_OPEN`]); else as
    /// [`Log::append`].
    pub fn append_redactable(&self, record: &Record, fields: &[&str]) -> Result<Receipt, LogError> {
        let (record, disclosures) = redact::commit(record, fields)?;
        // Refused before anything of it is kept.
        self.draft(&record)?;
        let shared = &*self.shared;
        let stored = redact::store(shared.store().disk(), &shared.dir, &disclosures);
        stored.map_err(|error| shared.stop(error))?;
        self.append(&record)
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
        shared.shut();
        if let Some(publisher) = self.publisher.take() {
            // It never panics; if it did, publishing below finds out what is left to do.
            let _ = publisher.join();
        }
        let checkpoint = shared.publish(&[])?;
        match shared.wal().take() {
            Some(wal) => wal.finish(&shared.key, checkpoint.size())?,
            None => return Err(LogError::Closed),
        }
        shared.store().sweep()?;
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
        // A log whose directory a power cut takes back has lost everything it acknowledged.
        let above = dir.parent().filter(|above| !above.as_os_str().is_empty());
        let above = above.unwrap_or(Path::new(".")).to_owned();
        let synced = disk.sync(dir, std::slice::from_ref(&above));
        synced.map_err(|e| LogError::io("made durable", &above, e))?;
        if ["checkpoint", "tile", "wal", "key.pub"]
            .iter()
            .any(|name| dir.join(name).exists())
        {
            return Err(LogError::Exists(dir.to_owned()));
        }
        let mut store = Store::create(dir, disk.clone(), origin);
        store.put(&dir.join("key.pub"), format!("{verifier}\n").as_bytes())?;
        // Segments first: a checkpoint without any says that something was lost.
        let wal = start_wal(dir, disk, &key, limits, 0)?;
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
        if tail.torn {
            // No clock is at hand: the time is that of the last record that was kept.
            let last = last.and_then(|bytes| Entry::decode(&bytes).ok());
            let time = last.map_or(Duration::ZERO, |last| last.record.time);
            let why = json!({ "at": tail.next, "why": "a write nobody was told of was torn" });
            let record = Record::new(RECOVERED, time, 0, why);
            let (seq, boot) = (tail.next, new_boot(dir)?);
            let entry = Entry {
                seq,
                boot,
                origin: origin.clone(),
                record,
            };
            let entry = entry.encode().map_err(LogError::Record)?;
            // Straight into the tree: it is as durable as the checkpoint that covers the cut.
            store.absorb_one(&entry);
        }
        store.publish(&key, &[])?;
        let wal = start_wal(dir, disk, &key, limits, store.tree().size())?;
        Log::start(dir, &origin, key, limits, store, wal, lock)
    }

    fn start(
        dir: &Path,
        origin: &str,
        key: LogKey,
        limits: Limits,
        store: Store,
        wal: Wal,
        lock: Lock,
    ) -> Result<Log, LogError> {
        let boot = new_boot(dir)?;
        let shared = Arc::new(Shared::new(dir, origin, boot, key, limits, store, wal));
        let publisher = std::thread::Builder::new().name("audit-log".into()).spawn({
            let shared = shared.clone();
            move || shared.publish_when_enough()
        });
        Ok(Log {
            shared,
            publisher: Some(publisher.map_err(|e| LogError::io("opened", dir, e))?),
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

/// The one writer's place. Given up explicitly: a child that another thread forked has the file open
/// until it executes something else.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

/// Takes the one writer's place. The lock is on the directory itself: a lock file could be replaced.
fn lock(dir: &Path) -> Result<Lock, LogError> {
    let file = File::open(dir).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => LogError::NoLog(dir.to_owned()),
        _ => LogError::io("opened", dir, e),
    })?;
    match file.try_lock() {
        Ok(()) => Ok(Lock(file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(LogError::Locked(dir.to_owned())),
        Err(std::fs::TryLockError::Error(e)) => Err(LogError::io("locked", dir, e)),
    }
}

fn new_boot(dir: &Path) -> Result<[u8; 16], LogError> {
    let mut boot = [0; 16];
    let filled = getrandom::fill(&mut boot).map_err(std::io::Error::other);
    filled.map_err(|e| LogError::io("opened", dir, e))?;
    Ok(boot)
}

fn start_wal(
    dir: &Path,
    disk: Arc<dyn Disk>,
    key: &LogKey,
    limits: Limits,
    next: u64,
) -> Result<Wal, LogError> {
    let wal = dir.join("wal");
    disk.create_dir(&wal)
        .map_err(|e| LogError::io("made", &wal, e))?;
    disk.sync(dir, &[dir.to_owned()])
        .map_err(|e| LogError::io("made durable", dir, e))?;
    Wal::start(&wal, disk, key, limits.segments, next)
}
