//! A store in one file, for a broker without replicas: redb.
//!
//! One thread writes. It takes all swaps that wait, and makes them durable together, so that many who
//! attest at once wait for one write to the disk and not for one each.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use attestation::UnixTime;
use redb::backends::FileBackend;
use redb::{
    Builder, Database, Durability, ReadableDatabase, ReadableTable, ReadableTableMetadata, Table,
    TableDefinition,
};

use super::{Changes, Entry, Expected, Listing, MAX_VALUE, Store, StoreError, Swap};

/// Version and end of each value, eight bytes each, and the value.
const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
/// What ends when.
const ENDS: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("ends");
/// The number of the last change.
const REVISION: TableDefinition<'_, (), u64> = TableDefinition::new("revision");
/// Bytes before a value.
const HEAD: usize = 16;
/// Most entries that end by themselves.
const MAX_ENDING: u64 = 131_072;
/// Most swaps that are made durable together.
const BATCH: usize = 256;
/// How long a batch waits to be as large as the one before.
const GATHER: Duration = Duration::from_millis(2);
/// Most entries that have ended which one batch clears away, beside its own work.
const SWEEP: usize = 512;
/// Changes that are remembered for those who watch.
const REMEMBERED: usize = 4_096;
/// Memory for what was read.
const CACHE: usize = 16 << 20;

/// A store in a file.
pub struct Embedded {
    database: Arc<Database>,
    jobs: Option<SyncSender<Job>>,
    told: Arc<Told>,
    writer: Option<std::thread::JoinHandle<()>>,
    path: String,
}

/// A swap that waits for its turn.
struct Job {
    key: String,
    expected: Expected,
    value: Option<Vec<u8>>,
    lifetime: Option<u64>,
    now: UnixTime,
    answer: SyncSender<Result<Option<u64>, StoreError>>,
}

/// The last changes, for those who watch.
#[derive(Default)]
struct Told {
    last: Mutex<Last>,
    news: Condvar,
}

#[derive(Default)]
struct Last {
    /// All changes up to this one are in `changes`, or were forgotten.
    revision: u64,
    /// The last one that was forgotten.
    forgotten: u64,
    changes: VecDeque<(u64, String)>,
}

impl Embedded {
    /// Opens a store, or makes it, for this user only.
    ///
    /// # Errors
    ///
    /// [`StoreError::File`], also when another process has it open.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let name = path.display().to_string();
        let failed = |error: &dyn std::fmt::Display| StoreError::File {
            path: name.clone(),
            why: error.to_string(),
        };
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600);
        let file = options.open(path).map_err(|error| failed(&error))?;
        let mut builder = Builder::new();
        builder.set_cache_size(CACHE);
        let file = FileBackend::new(file).map_err(|error| failed(&error))?;
        let database = builder.create_with_backend(file);
        let database = database.map_err(|error| failed(&error))?;
        let revision = prepared(&database).map_err(|error| failed(&error))?;
        let told = Told::default();
        let last = Last {
            revision,
            forgotten: revision,
            changes: VecDeque::new(),
        };
        *told.lock() = last;
        let (database, told) = (Arc::new(database), Arc::new(told));
        let (jobs, waiting) = sync_channel(BATCH);
        let (mine, tell, of) = (Arc::clone(&database), Arc::clone(&told), name.clone());
        let writer = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || write(&mine, &tell, &waiting, &of))
            .map_err(|error| failed(&error))?;
        Ok(Self {
            database,
            jobs: Some(jobs),
            told,
            writer: Some(writer),
            path: name,
        })
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> StoreError {
        StoreError::File {
            path: self.path.clone(),
            why: error.to_string(),
        }
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        // Without anybody who asks, the writer ends; then the file is closed.
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

impl Store for Embedded {
    fn read(&self, keys: &[&str], now: UnixTime) -> Result<Vec<Option<Entry>>, StoreError> {
        let read = || -> Result<_, redb::Error> {
            let entries = self.database.begin_read()?.open_table(ENTRIES)?;
            let entry =
                |key: &&str| Ok(entries.get(*key)?.and_then(|held| live(held.value(), now)));
            keys.iter().map(entry).collect()
        };
        read().map_err(|error| self.failed(&error))
    }

    fn list(&self, prefix: &str, now: UnixTime) -> Result<Listing, StoreError> {
        let list = || -> Result<_, redb::Error> {
            let transaction = self.database.begin_read()?;
            let entries = transaction.open_table(ENTRIES)?;
            let revision = transaction.open_table(REVISION)?.get(())?;
            let mut listing = Listing {
                revision: revision.map_or(0, |revision| revision.value()),
                ..Listing::default()
            };
            for held in entries.range(prefix..)? {
                let (key, held) = held?;
                if !key.value().starts_with(prefix) {
                    break;
                }
                if let Some(entry) = live(held.value(), now) {
                    listing.entries.insert(key.value().to_owned(), entry);
                }
            }
            Ok(listing)
        };
        list().map_err(|error| self.failed(&error))
    }

    fn swap(&self, swap: &Swap<'_>, now: UnixTime) -> Result<Option<u64>, StoreError> {
        if swap.value.is_some_and(|value| value.len() > MAX_VALUE) {
            return Err(StoreError::Strange("a value is too large".into()));
        }
        let (sender, answer) = sync_channel(1);
        let job = Job {
            key: swap.key.to_owned(),
            expected: swap.expected,
            value: swap.value.map(<[u8]>::to_vec),
            lifetime: swap.lifetime,
            now,
            answer: sender,
        };
        let gone = || self.failed(&"its writer has ended");
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }

    fn changes(&self, prefix: &str, after: u64, patience: Duration) -> Result<Changes, StoreError> {
        let deadline = Instant::now() + patience;
        let mut last = self.told.lock();
        loop {
            if after < last.forgotten {
                return Ok(Changes::Forgotten);
            }
            let new = last
                .changes
                .iter()
                .filter(|(revision, _)| *revision > after);
            let keys: Vec<_> = new
                .filter(|(_, key)| key.starts_with(prefix))
                .map(|(_, key)| key.clone())
                .collect();
            let left = deadline.saturating_duration_since(Instant::now());
            if !keys.is_empty() || left.is_zero() {
                let revision = last.revision.max(after);
                return Ok(Changes::Since { keys, revision });
            }
            let waited = self.told.news.wait_timeout(last, left);
            last = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Told {
    fn lock(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, revision: u64, changed: Vec<(u64, String)>) {
        let mut last = self.lock();
        last.revision = revision;
        last.changes.extend(changed);
        while last.changes.len() > REMEMBERED {
            if let Some((forgotten, _)) = last.changes.pop_front() {
                last.forgotten = forgotten;
            }
        }
        drop(last);
        self.news.notify_all();
    }
}

/// Makes the tables; gives the number of the last change.
fn prepared(database: &Database) -> Result<u64, redb::Error> {
    let transaction = database.begin_write()?;
    transaction.open_table(ENTRIES)?;
    transaction.open_table(ENDS)?;
    let revision = {
        let table = transaction.open_table(REVISION)?;
        let held = table.get(())?;
        held.map_or(0, |revision| revision.value())
    };
    transaction.commit()?;
    Ok(revision)
}

/// Makes swaps for as long as somebody may ask for one.
fn write(database: &Database, told: &Told, waiting: &Receiver<Job>, path: &str) {
    let mut before = 1;
    while let Ok(first) = waiting.recv() {
        let mut jobs = vec![first];
        // Where many asked a moment ago, many are about to: they share this one.
        let deadline = Instant::now() + GATHER;
        while jobs.len() < before {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(next) = waiting.recv_timeout(left) else {
                break;
            };
            jobs.push(next);
        }
        let room = BATCH - jobs.len();
        jobs.extend(waiting.try_iter().take(room));
        before = jobs.len();
        match batch(database, &jobs) {
            Ok((results, revision, changed)) => {
                // In this order: who was answered finds it told.
                told.tell(revision, changed);
                for (job, result) in jobs.iter().zip(results) {
                    let _ = job.answer.send(result);
                }
            }
            Err(error) => {
                for job in &jobs {
                    let _ = job.answer.send(Err(StoreError::File {
                        path: path.to_owned(),
                        why: error.to_string(),
                    }));
                }
            }
        }
    }
}

type Entries<'a> = Table<'a, &'static str, &'static [u8]>;
type Ends<'a> = Table<'a, (u64, &'static str), ()>;
type Results = (
    Vec<Result<Option<u64>, StoreError>>,
    u64,
    Vec<(u64, String)>,
);

fn batch(database: &Database, jobs: &[Job]) -> Result<Results, redb::Error> {
    let mut transaction = database.begin_write()?;
    // What is new and ends by itself may be lost with the machine: nobody has spent it yet. What was
    // there and is not any more must not come back.
    let fleeting = |job: &Job| job.expected == Expected::Absent && job.lifetime.is_some();
    if jobs.iter().all(fleeting) {
        transaction.set_durability(Durability::None)?;
    }
    let mut changed = Vec::new();
    let (results, revision) = {
        let mut revisions = transaction.open_table(REVISION)?;
        let held = revisions.get(())?.map(|revision| revision.value());
        let mut revision = held.unwrap_or(0);
        let mut results = Vec::with_capacity(jobs.len());
        let mut tables = (
            transaction.open_table(ENTRIES)?,
            transaction.open_table(ENDS)?,
        );
        for job in jobs {
            let result = one(&mut tables, job, revision + 1)?;
            if matches!(result, Ok(Some(_))) {
                revision += 1;
                // What ends by itself is nothing to watch.
                if job.lifetime.is_none() {
                    changed.push((revision, job.key.clone()));
                }
            }
            results.push(result);
        }
        revisions.insert((), revision)?;
        if let Some(now) = jobs.iter().map(|job| job.now).max() {
            sweep(&mut tables, now)?;
        }
        (results, revision)
    };
    transaction.commit()?;
    Ok((results, revision, changed))
}

fn one(
    (entries, ends): &mut (Entries<'_>, Ends<'_>),
    job: &Job,
    revision: u64,
) -> Result<Result<Option<u64>, StoreError>, redb::Error> {
    let held = entries
        .get(job.key.as_str())?
        .map(|held| held.value().to_vec());
    let there = held.as_deref().and_then(|held| live(held, job.now));
    let fits = match job.expected {
        Expected::Anything => true,
        Expected::Absent => there.is_none(),
        Expected::Version(version) => there.is_some_and(|entry| entry.version == version),
    };
    if !fits {
        return Ok(Ok(None));
    }
    if job.lifetime.is_some() && job.value.is_some() && ends.len()? >= MAX_ENDING {
        return Ok(Err(StoreError::Full));
    }
    if let Some((_, end)) = held.as_deref().and_then(head) {
        ends.remove((end, job.key.as_str()))?;
    }
    match &job.value {
        None => {
            entries.remove(job.key.as_str())?;
        }
        Some(value) => {
            let end = job
                .lifetime
                .map_or(u64::MAX, |seconds| job.now.plus_seconds(seconds).0);
            let bytes = [&revision.to_le_bytes()[..], &end.to_le_bytes(), value].concat();
            entries.insert(job.key.as_str(), bytes.as_slice())?;
            if end != u64::MAX {
                ends.insert((end, job.key.as_str()), ())?;
            }
        }
    }
    Ok(Ok(Some(revision)))
}

/// Clears away what has ended.
fn sweep((entries, ends): &mut (Entries<'_>, Ends<'_>), now: UnixTime) -> Result<(), redb::Error> {
    for _ in 0..SWEEP {
        let (end, key) = match ends.first()? {
            Some((first, _)) if first.value().0 <= now.0 => {
                let (end, key) = first.value();
                (end, key.to_owned())
            }
            _ => return Ok(()),
        };
        ends.remove((end, key.as_str()))?;
        entries.remove(key.as_str())?;
    }
    Ok(())
}

/// Version and end of what is held.
fn head(held: &[u8]) -> Option<(u64, u64)> {
    let (head, _) = held.split_first_chunk::<HEAD>()?;
    let (version, end) = head.split_at(8);
    let number = |bytes: &[u8]| Some(u64::from_le_bytes(bytes.try_into().ok()?));
    Some((number(version)?, number(end)?))
}

/// What is held, unless it has ended.
fn live(held: &[u8], now: UnixTime) -> Option<Entry> {
    let (version, end) = head(held)?;
    (now.0 < end).then(|| Entry {
        value: held.get(HEAD..).unwrap_or_default().to_vec(),
        version,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::contract;
    use super::*;

    #[test]
    fn a_file_is_a_store() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store")).unwrap();
        contract::holds(&store, "test/");
    }

    #[test]
    fn what_was_swapped_is_there_after_the_broker_was_killed() {
        let folder = tempfile::tempdir().unwrap();
        let (path, copy) = (folder.path().join("store"), folder.path().join("copy"));
        let store = Embedded::open(&path).unwrap();
        let now = UnixTime(100);
        let put = |key, expected| {
            let swap = Swap {
                lifetime: Some(10),
                ..contract::put(key, expected, b"x")
            };
            store.swap(&swap, now).unwrap().is_some()
        };
        assert!(put("spent", Expected::Absent) && put("asked", Expected::Absent));
        let version = store.read(&["spent"], now).unwrap()[0]
            .clone()
            .unwrap()
            .version;
        let gone = Swap {
            value: None,
            ..contract::put("spent", Expected::Version(version), b"")
        };
        assert!(store.swap(&gone, now).unwrap().is_some());
        // As a crash leaves it.
        std::fs::copy(&path, &copy).unwrap();
        let again = Embedded::open(&copy).unwrap();
        let entries = again.read(&["spent", "asked"], now).unwrap();
        assert!(entries[0].is_none() && entries[1].is_some());
        // Versions go on: what was there before is not taken for what comes.
        assert!(
            again
                .swap(&contract::put("new", Expected::Absent, b"y"), now)
                .unwrap()
                .is_some()
        );
        assert!(
            again.read(&["new"], now).unwrap()[0]
                .clone()
                .unwrap()
                .version
                > version
        );
    }

    #[test]
    fn what_has_ended_is_gone_and_its_room_is_free_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store")).unwrap();
        let put = |key: &str, now| {
            let swap = Swap {
                lifetime: Some(10),
                ..contract::put(key, Expected::Absent, b"x")
            };
            store.swap(&swap, UnixTime(now)).unwrap().is_some()
        };
        assert!(put("a", 0) && !put("a", 9));
        assert!(store.read(&["a"], UnixTime(9)).unwrap()[0].is_some());
        assert!(store.read(&["a"], UnixTime(10)).unwrap()[0].is_none());
        assert!(put("b", 20));
        let left = store
            .database
            .begin_read()
            .unwrap()
            .open_table(ENTRIES)
            .unwrap();
        assert_eq!(
            left.len().unwrap(),
            1,
            "the one that ended was cleared away"
        );
    }

    #[test]
    fn who_watches_from_too_long_ago_is_told_to_list_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Embedded::open(&folder.path().join("store")).unwrap();
        let now = UnixTime(0);
        assert!(
            store
                .swap(&contract::put("a", Expected::Absent, b"x"), now)
                .unwrap()
                .is_some()
        );
        let told = Last {
            revision: 9,
            forgotten: 5,
            changes: VecDeque::new(),
        };
        *store.told.lock() = told;
        assert_eq!(
            store.changes("a", 4, Duration::ZERO).unwrap(),
            Changes::Forgotten
        );
    }

    #[test]
    fn a_store_that_is_open_is_not_opened_by_a_second_broker() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let _first = Embedded::open(&path).unwrap();
        assert!(matches!(
            Embedded::open(&path),
            Err(StoreError::File { .. })
        ));
    }
}
