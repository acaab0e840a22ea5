//! What must be true of a whole log: tampering, tearing, failing disks, many writers.
#![allow(clippy::unwrap_used)]

mod crash;
mod faulty;
mod redacting;
mod tamper;
mod writing;

use super::*;
use serde_json::json;

const ORIGIN: &str = "example.org/vm-1";

/// Small enough that a test sees segments rotate and the publisher run.
const SMALL: Limits = Limits {
    commit: 16 << 10,
    publish: 64 << 10,
    backlog: 256 << 10,
    segments: wal::Sizes {
        first: 16 << 10,
        last: 64 << 10,
    },
};

fn key() -> LogKey {
    LogKey::from_seed(&[1; 32]).unwrap()
}

fn verifier() -> LogVerifier {
    key().verifier(ORIGIN).unwrap()
}

fn record(n: u64) -> Record {
    let time = Duration::new(1_700_000_000 + n, 0);
    Record::new("decision", time, n * 1_000_000_000, json!({ "n": n }))
}

fn scratch() -> (tempfile::TempDir, std::path::PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("log");
    (root, dir)
}

/// Creates a log on a disk that spares the syncs: most tests are not about them, and they take time.
fn create(dir: &Path, limits: Limits) -> Result<Log, LogError> {
    Log::create_on(Arc::new(Sparing::default()), dir, ORIGIN, key(), limits)
}

fn open(dir: &Path) -> Result<Log, LogError> {
    Log::open_on(Arc::new(Sparing::default()), dir, key(), LIMITS)
}

/// The real disk, but for its syncs.
#[derive(Default)]
struct Sparing(OsDisk);

impl Disk for Sparing {
    fn create_dir(&self, path: &Path) -> std::io::Result<()> {
        self.0.create_dir(path)
    }
    fn write(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write(path, bytes)
    }
    fn sync(&self, _: &Path, _: &[std::path::PathBuf]) -> std::io::Result<()> {
        Ok(())
    }
    fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
        self.0.rename(from, to)
    }
    fn remove(&self, path: &Path) -> std::io::Result<()> {
        self.0.remove(path)
    }
    fn remove_dir(&self, path: &Path) -> std::io::Result<()> {
        self.0.remove_dir(path)
    }
    fn open(&self, path: &Path) -> std::io::Result<Box<dyn disk::Slab>> {
        self.0.open(path)
    }
}

/// A log of `size` records, closed.
fn closed_log(dir: &Path, size: u64) -> Checkpoint {
    let log = create(dir, LIMITS).unwrap();
    log.append_all(&(0..size).map(record).collect::<Vec<_>>())
        .unwrap();
    log.close().unwrap()
}

/// Copies a directory, as somebody who took a backup would.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(file.file_name());
        match file.file_type().unwrap().is_dir() {
            true => copy(&file.path(), &target),
            false => drop(std::fs::copy(file.path(), target).unwrap()),
        }
    }
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for file in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        match file.file_type().unwrap().is_dir() {
            true => all.extend(files(&file.path())),
            false => all.push(file.path()),
        }
    }
    all.sort();
    all
}
