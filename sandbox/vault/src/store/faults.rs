//! What can happen to a writer, for tests: it dies before its n-th step, or power goes and takes
//! with it whatever was not synced.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use super::{INDEX, OBJECTS, Place};

/// Counts the steps of a writer, and remembers them.
pub(crate) struct Faults {
    left: AtomicI64,
    real: AtomicBool,
    recorded: Mutex<Option<Vec<Step>>>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            left: AtomicI64::new(i64::MAX),
            real: AtomicBool::new(false),
            recorded: Mutex::new(None),
        }
    }
}

/// One call that changes the store. Files are told apart by their inodes.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Link(PathBuf, u64),
    Write(u64, u64, Vec<u8>),
    Sync(u64),
    SyncDir(Place),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
}

/// The end of a writer: an error, after which nothing works, or `SIGKILL`.
pub(crate) struct Death {
    real: bool,
}

impl Death {
    pub(super) fn now(self) -> io::Error {
        if self.real {
            let this = rustix::process::getpid();
            let _ = rustix::process::kill_process(this, rustix::process::Signal::KILL);
        }
        io::Error::other("killed by the test")
    }
}

impl Faults {
    /// Lets `steps` more steps happen, and none after.
    pub(crate) fn die_after(&self, steps: i64) {
        self.left.store(steps, Ordering::SeqCst);
    }

    /// As [`Faults::die_after`], but the process is killed, with no code of ours to clean up.
    pub(crate) fn kill_after(&self, steps: i64) {
        self.real.store(true, Ordering::SeqCst);
        self.die_after(steps);
    }

    /// Starts to remember steps.
    pub(crate) fn record(&self) {
        *self.recorded.lock().unwrap() = Some(Vec::new());
    }

    /// The steps since [`Faults::record`].
    pub(crate) fn steps(&self) -> Vec<Step> {
        self.recorded.lock().unwrap().take().unwrap()
    }

    pub(super) fn step(&self) -> Result<(), Death> {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            let real = self.real.load(Ordering::SeqCst);
            return Err(Death { real });
        }
        Ok(())
    }

    pub(super) fn opened(&self, place: Place, name: &str, file: &File) {
        self.push(|| Step::Link(path(place, name), inode(file)));
    }

    pub(super) fn wrote(&self, file: &File, bytes: &[u8], offset: u64) {
        self.push(|| Step::Write(inode(file), offset, bytes.to_vec()));
    }

    pub(super) fn synced(&self, file: &File) {
        self.push(|| Step::Sync(inode(file)));
    }

    pub(super) fn synced_dir(&self, place: Place) {
        self.push(|| Step::SyncDir(place));
    }

    pub(super) fn renamed(&self, from: &str, to: &str) {
        self.push(|| Step::Rename(from.into(), to.into()));
    }

    pub(super) fn removed(&self, place: Place, name: &str) {
        self.push(|| Step::Unlink(path(place, name)));
    }

    fn push(&self, step: impl FnOnce() -> Step) {
        if let Some(steps) = &mut *self.recorded.lock().unwrap() {
            steps.push(step());
        }
    }
}

fn path(place: Place, name: &str) -> PathBuf {
    directory(place).join(name)
}

fn directory(place: Place) -> &'static Path {
    Path::new(match place {
        Place::Root => "",
        Place::Objects => OBJECTS,
        Place::Index => INDEX,
    })
}

fn inode(file: &File) -> u64 {
    file.metadata().unwrap().ino()
}

/// A disk that keeps what was synced, and of the rest what chance gives.
pub(crate) struct Disk {
    /// Content by inode: what is durable, and the writes that are not yet.
    files: BTreeMap<u64, (Vec<u8>, Vec<Write>)>,
    /// Names that are durable, and the changes of names that are not yet.
    names: BTreeMap<PathBuf, u64>,
    pending: Vec<Step>,
}

/// Offset and bytes.
type Write = (u64, Vec<u8>);

/// Writes are torn where sectors end.
const SECTOR: usize = 512;

impl Disk {
    /// A disk that holds these files durably; paths are relative to the vault.
    pub(crate) fn new(files: &[(PathBuf, u64, Vec<u8>)]) -> Self {
        let whole = |(_, inode, bytes): &(PathBuf, u64, Vec<u8>)| (*inode, (bytes.clone(), vec![]));
        Self {
            files: files.iter().map(whole).collect(),
            names: files.iter().map(|(p, i, _)| (p.clone(), *i)).collect(),
            pending: Vec::new(),
        }
    }

    pub(crate) fn apply(&mut self, step: &Step) {
        match step {
            Step::Write(inode, offset, bytes) => {
                let writes = &mut self.files.entry(*inode).or_default().1;
                let sectors = bytes.chunks(SECTOR);
                writes.extend(sectors.zip((*offset..).step_by(SECTOR)).map(own));
            }
            Step::Sync(inode) => {
                let (durable, writes) = self.files.entry(*inode).or_default();
                writes.drain(..).for_each(|write| put(durable, &write));
            }
            Step::SyncDir(place) => {
                let (now, later) = std::mem::take(&mut self.pending)
                    .into_iter()
                    .partition(|step| parent(step) == directory(*place));
                self.pending = later;
                let now: Vec<Step> = now;
                now.iter().for_each(|step| rename(&mut self.names, step));
            }
            names => self.pending.push(names.clone()),
        }
    }

    /// What is found after the power went: everything durable, and of the rest what `keep` says.
    pub(crate) fn after_power_cut(
        &self,
        mut keep: impl FnMut() -> bool,
    ) -> Vec<(PathBuf, Vec<u8>)> {
        let mut names = self.names.clone();
        for step in self.pending.iter().filter(|_| keep()) {
            rename(&mut names, step);
        }
        let content = |(path, inode): (PathBuf, u64)| {
            let empty = Default::default();
            let (durable, writes) = self.files.get(&inode).unwrap_or(&empty);
            let mut bytes = durable.clone();
            writes
                .iter()
                .filter(|_| keep())
                .for_each(|write| put(&mut bytes, write));
            (path, bytes)
        };
        names.into_iter().map(content).collect()
    }
}

fn own((bytes, offset): (&[u8], u64)) -> Write {
    (offset, bytes.to_vec())
}

fn put(file: &mut Vec<u8>, (offset, bytes): &Write) {
    let (start, end) = (*offset as usize, *offset as usize + bytes.len());
    file.resize(file.len().max(end), 0);
    file[start..end].copy_from_slice(bytes);
}

fn parent(step: &Step) -> &Path {
    match step {
        Step::Link(path, _) | Step::Unlink(path) | Step::Rename(_, path) => path.parent().unwrap(),
        _ => Path::new(""),
    }
}

fn rename(names: &mut BTreeMap<PathBuf, u64>, step: &Step) {
    match step {
        Step::Link(path, inode) => drop(names.insert(path.clone(), *inode)),
        Step::Unlink(path) => drop(names.remove(path)),
        Step::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        _ => {}
    }
}
