//! The session's log, kept twice: written in the guest's memory, and before any effect on the host's disk.
//!
//! The guest has no disk of its own, so durable means: the host says that it has it. A host that lies
//! can lose the log, which no guest can prevent; it cannot change it, since the key stays inside.
//!
//! ```text
//! piece   kind[1] length[2] path[length] rest
//! write   0   offset[8] size[8] bytes        the file has `size` bytes then
//! remove  1
//! folder  2
//! keep    3   number[8]                      make all of it durable, and say so
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use casemate::isolation::microvm::{ChannelError, Link};

use super::keys::Waiting;

/// Bytes that are compared, and sent, at once.
const PAGE: usize = 4096;
/// Most bytes of a file of a log, and of all of them.
const MAX_FILE: u64 = 64 << 20;
const MAX_LOG: u64 = 4 << 30;
/// How often a log that is being published is looked at again.
const TRIES: usize = 100;

/// Why the log is not kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeepError {
    /// The guest's own copy cannot be read.
    #[error("the log cannot be read")]
    Read(#[from] io::Error),
    /// It cannot be sent.
    #[error("the log cannot be sent")]
    Send(#[from] ChannelError),
    /// The host did not say that it has it.
    #[error("the host does not say that it keeps the log")]
    Silent,
    /// The host says that it cannot.
    #[error("the host cannot keep the log: {0}")]
    Refused(String),
}

/// What of a log has been sent.
pub(super) struct Mirror {
    folder: PathBuf,
    link: Arc<Link>,
    kept: Arc<Waiting<Result<(), String>>>,
    /// Files that are written in place, as they were sent.
    sent: BTreeMap<PathBuf, Vec<u8>>,
    /// Tiles, whose name says all of what is in them, and folders.
    named: BTreeSet<PathBuf>,
}

impl Mirror {
    pub(super) fn of(
        folder: &Path,
        link: Arc<Link>,
        kept: Arc<Waiting<Result<(), String>>>,
    ) -> Self {
        Self {
            folder: folder.to_owned(),
            link,
            kept,
            sent: BTreeMap::new(),
            named: BTreeSet::new(),
        }
    }

    /// Sends what is new, and returns when the host has it.
    pub(super) fn settle(&mut self) -> Result<(), KeepError> {
        let checkpoint = Path::new("checkpoint");
        for _ in 0..TRIES {
            // A checkpoint may not get there before the tiles that it covers; and they are written first.
            let signed = read(&self.folder.join(checkpoint))?;
            let found = files(&self.folder)?;
            let mut whole = true;
            for path in found.iter().filter(|path| *path != checkpoint) {
                whole &= self.send(path)?;
            }
            if !whole || read(&self.folder.join(checkpoint))? != signed {
                continue;
            }
            if let Some(signed) = signed {
                self.write(checkpoint, signed)?;
            }
            self.forget(&found)?;
            let link = &self.link;
            let keep = |number: u64| link.entry(piece(3, Path::new(""), &number.to_be_bytes()));
            return match self.kept.answer_to(keep) {
                Some(Ok(())) => Ok(()),
                Some(Err(why)) => Err(KeepError::Refused(why)),
                None => Err(KeepError::Silent),
            };
        }
        Err(io::Error::from(io::ErrorKind::ResourceBusy).into())
    }

    /// Sends a file or folder. False when it is gone already.
    fn send(&mut self, path: &Path) -> Result<bool, KeepError> {
        let here = self.folder.join(path);
        if here.is_dir() {
            if self.named.insert(path.to_owned()) {
                self.link.entry(piece(2, path, &[]))?;
            }
            return Ok(true);
        }
        let tile = path.starts_with("tile");
        if tile && self.named.contains(path) {
            return Ok(true);
        }
        let Some(bytes) = read(&here)? else {
            return Ok(false);
        };
        if tile {
            self.pages(path, &[], &bytes)?;
            self.named.insert(path.to_owned());
        } else {
            self.write(path, bytes)?;
        }
        Ok(true)
    }

    fn write(&mut self, path: &Path, bytes: Vec<u8>) -> Result<(), KeepError> {
        let before = self.sent.remove(path);
        if before.as_ref() != Some(&bytes) {
            self.pages(path, &before.unwrap_or_default(), &bytes)?;
        }
        self.sent.insert(path.to_owned(), bytes);
        Ok(())
    }

    /// Sends the pages that differ.
    fn pages(&self, path: &Path, before: &[u8], after: &[u8]) -> Result<(), KeepError> {
        let size = (after.len() as u64).to_be_bytes();
        let mut sent = false;
        for (number, page) in after.chunks(PAGE).enumerate() {
            let at = number * PAGE;
            let old = before.get(at..(at + page.len()).min(before.len()));
            // A file that is new has zeros where nothing was written.
            let same = match old {
                Some(old) if old.len() == page.len() => old == page,
                _ => page.iter().all(|byte| *byte == 0),
            };
            if !same {
                let rest = [&(at as u64).to_be_bytes()[..], &size, page].concat();
                self.link.entry(piece(0, path, &rest))?;
                sent = true;
            }
        }
        if !sent && before.len() != after.len() || after.is_empty() {
            let rest = [&0_u64.to_be_bytes()[..], &size].concat();
            self.link.entry(piece(0, path, &rest))?;
        }
        Ok(())
    }

    /// Has files removed that are not here any more.
    fn forget(&mut self, found: &BTreeSet<PathBuf>) -> Result<(), KeepError> {
        let known = self.sent.keys().chain(&self.named);
        let gone: Vec<_> = known
            .filter(|path| !found.contains(*path))
            .cloned()
            .collect();
        for path in gone.iter().rev() {
            self.sent.remove(path);
            self.named.remove(path);
            self.link.entry(piece(1, path, &[]))?;
        }
        Ok(())
    }
}

/// Every file and folder below, by its path from there.
fn files(folder: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(at) = folders.pop() {
        let entries = match fs::read_dir(folder.join(&at)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let path = at.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path);
        }
    }
    Ok(found)
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

fn piece(kind: u8, path: &Path, rest: &[u8]) -> Vec<u8> {
    let path = path.as_os_str().as_encoded_bytes();
    let length = u16::try_from(path.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[kind], &length[..], path, rest].concat()
}

/// The host's copy of a log.
pub(super) struct Copy {
    folder: PathBuf,
    /// Written to since the last sync.
    touched: BTreeSet<PathBuf>,
    bytes: u64,
    failed: Option<String>,
}

/// What a piece asks for.
pub(super) enum Took {
    /// Nothing more.
    Piece,
    /// To be told how it went.
    Keep(u64, Result<(), String>),
}

impl Copy {
    /// Makes the folder, which must not exist yet.
    pub(super) fn create(folder: &Path) -> io::Result<Self> {
        fs::DirBuilder::new().mode(0o700).create(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
            touched: BTreeSet::new(),
            bytes: 0,
            failed: None,
        })
    }

    /// Takes a piece of the log. What the disk does not take is told when it is asked for.
    ///
    /// `None` means that it is no piece of a log.
    pub(super) fn take(&mut self, piece: &[u8]) -> Option<Took> {
        let (kind, rest) = piece.split_first()?;
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (path, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        if *kind == 3 {
            let number = u64::from_be_bytes(rest.try_into().ok()?);
            return Some(Took::Keep(number, self.sync()));
        }
        let path = inside(std::str::from_utf8(path).ok()?)?;
        let done = match kind {
            0 => {
                let (offset, rest) = rest.split_first_chunk::<8>()?;
                let (size, bytes) = rest.split_first_chunk::<8>()?;
                let (offset, size) = (u64::from_be_bytes(*offset), u64::from_be_bytes(*size));
                self.write(&path, offset, size, bytes)
            }
            1 => self.remove(&path),
            2 => self.create_folder(&path),
            _ => return None,
        };
        if let (Err(error), None) = (done, &self.failed) {
            self.failed = Some(error.to_string());
        }
        Some(Took::Piece)
    }

    fn write(&mut self, path: &Path, offset: u64, size: u64, bytes: &[u8]) -> io::Result<()> {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        let end = offset.saturating_add(bytes.len() as u64);
        if size > MAX_FILE || end > size || self.bytes > MAX_LOG {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(self.folder.join(path))?;
        if file.metadata()?.len() != size {
            file.set_len(size)?;
            self.touch_folder(path);
        }
        file.write_all_at(bytes, offset)?;
        self.touched.insert(path.to_owned());
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.touched.remove(path);
        self.touch_folder(path);
        let here = self.folder.join(path);
        match here.is_dir() {
            true => {
                self.touched.remove(path);
                fs::remove_dir(here)
            }
            false => fs::remove_file(here),
        }
    }

    fn create_folder(&mut self, path: &Path) -> io::Result<()> {
        self.touch_folder(path);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(self.folder.join(path))
    }

    fn touch_folder(&mut self, path: &Path) {
        self.touched
            .insert(path.parent().unwrap_or(Path::new("")).to_owned());
    }

    fn sync(&mut self) -> Result<(), String> {
        for path in std::mem::take(&mut self.touched) {
            if self.failed.is_none() {
                let synced = File::open(self.folder.join(path)).and_then(|file| file.sync_all());
                self.failed = synced.err().map(|error| error.to_string());
            }
        }
        self.failed.clone().map_or(Ok(()), Err)
    }
}

/// A path that stays below the folder.
fn inside(path: &str) -> Option<PathBuf> {
    let path = Path::new(path);
    let plain = |part| matches!(part, Component::Normal(_));
    (path.components().all(plain) && path.components().next().is_some()).then(|| path.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixStream;
    use std::thread;

    use casemate::isolation::microvm::Incoming;
    use serde_json::json;
    use vault::audit::{Log, LogKey, Record, verify};

    use super::*;

    /// A log that is kept at another place: what is there after each record.
    struct Kept {
        log: Log,
        mirror: Mirror,
        copy: PathBuf,
        _folder: tempfile::TempDir,
    }

    impl Kept {
        /// `answer` is what the other end says of the disk.
        fn new(answer: fn(Result<(), String>) -> Result<(), String>) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let (here, copy) = (folder.path().join("here"), folder.path().join("copy"));
            let (inside, mut outside) = UnixStream::pair().unwrap();
            let kept = Arc::new(Waiting::new());
            let link = Link::new(inside);
            let (answers, receiver) = (Arc::clone(&kept), Link::new(io::sink()));
            let mut copying = Copy::create(&copy).unwrap();
            thread::spawn(move || {
                while let Ok(incoming) = receiver.receive(&mut outside) {
                    let Incoming::Entry(piece) = incoming else {
                        break;
                    };
                    if let Took::Keep(number, kept) = copying.take(&piece).unwrap() {
                        answers.answered(number, answer(kept));
                    }
                }
            });
            Self {
                log: Log::create(&here, "casemate/run", LogKey::generate().unwrap()).unwrap(),
                mirror: Mirror::of(&here, link, kept),
                copy,
                _folder: folder,
            }
        }

        fn append(&self, number: u64) {
            let payload = json!({ "number": number });
            let at = std::time::Duration::from_secs(1_800_000_000 + number);
            let record = Record::new("story", at, number, payload);
            self.log.append(&record).unwrap();
        }
    }

    #[test]
    fn the_copy_has_every_record_that_was_kept_and_verifies_at_any_time() {
        let mut kept = Kept::new(|kept| kept);
        // Beyond a full tile, so that partial ones come and go.
        for number in 0..300 {
            kept.append(number);
            if number % 7 == 0 {
                kept.mirror.settle().unwrap();
                if number % 49 == 0 {
                    kept.log.checkpoint().unwrap();
                    kept.mirror.settle().unwrap();
                }
                let verified = verify(&kept.copy, None, None).unwrap();
                let known = verified.size() + verified.unsigned_tail();
                assert_eq!(known, number + 1);
            }
        }
        let Kept {
            log,
            mut mirror,
            copy,
            ..
        } = kept;
        log.close().unwrap();
        mirror.settle().unwrap();
        let verified = verify(&copy, None, None).unwrap();
        assert_eq!(
            (verified.records().count(), verified.unsigned_tail()),
            (300, 0)
        );
    }

    #[test]
    fn what_the_disk_does_not_take_is_no_log() {
        let mut kept = Kept::new(|_| Err("no space left".into()));
        kept.append(0);
        let error = kept.mirror.settle().unwrap_err();
        assert!(matches!(error, KeepError::Refused(why) if why == "no space left"));
    }

    #[test]
    fn nothing_is_written_outside_of_the_copy() {
        let folder = tempfile::tempdir().unwrap();
        let mut copy = Copy::create(&folder.path().join("copy")).unwrap();
        let write = |path: &str| {
            let rest = [&0_u64.to_be_bytes()[..], &1_u64.to_be_bytes(), b"x"].concat();
            piece(0, Path::new(path), &rest)
        };
        for path in ["../out", "/tmp/out", "a/../../out", ""] {
            assert!(copy.take(&write(path)).is_none(), "{path}");
        }
        std::os::unix::fs::symlink(folder.path().join("out"), folder.path().join("copy/link"))
            .unwrap();
        assert!(copy.take(&write("link")).is_some());
        assert!(copy.sync().is_err(), "a link is not followed");
        assert!(!folder.path().join("out").exists());
        for length in 0..write("file").len() {
            let _ = copy.take(&write("file")[..length]);
        }
    }
}
