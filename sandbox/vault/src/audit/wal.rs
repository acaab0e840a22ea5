//! Where records become durable first: segments that group commits are written to in place.
//!
//! A segment is a file of zeros, named after the first record it may hold. Every commit starts on
//! a page of its own, so that no write touches bytes that were acknowledged before. All integers
//! are big endian.
//!
//! ```text
//! page 0   magic[16] salt[16] first[8] checksum[32] mac[32] 0…
//! page n   length[4] count[4] first[8] checksum[32] mac[32] body[length] 0…   to the page's end
//! body     (length[2] entry)*                                                  count times
//! ```
//!
//! The MAC is HMAC-SHA256, keyed from the log's key and the salt, over a digest of salt, offset,
//! head and body: somebody who can write the disk, but has no key, cannot have records signed at
//! the next opening. The checksum, SHA-256 over that digest and the MAC, tells everybody else what
//! is whole and what was torn.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::hmac;

use super::disk::{self, Disk, Slab};
use super::error::LogError;
use super::key::LogKey;
use super::merkle::{Hash, sha256};
use super::store::Entries;

/// Commits start at multiples of this, so that no sector is shared.
const PAGE: usize = 4096;
const MAGIC: &[u8; 16] = b"casemate wal v1\n";
const HEAD: usize = 80;
/// A segment read back is never bigger: the last size and the biggest commit beside it.
const MAX_SEGMENT: u64 = 64 << 20;
/// One segment kept for the next rotation.
const SPARE: &str = "spare";
const NEW: &str = "new";

/// How big segments are: small at first, so that a short log costs little, then growing.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) first: u64,
    pub(super) last: u64,
}

/// The writing end. One thread at a time.
pub(super) struct Wal {
    segments: Arc<Segments>,
    current: Segment,
}

/// The segments that hold records which no checkpoint covers yet.
pub(super) struct Segments {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    sizes: Sizes,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    /// First record and size of each, oldest first. The last one is being written.
    live: VecDeque<(u64, u64)>,
    /// Size of the spare segment.
    spare: Option<u64>,
}

struct Segment {
    slab: Box<dyn Slab>,
    path: PathBuf,
    seal: Seal,
    size: u64,
    end: u64,
    page: Vec<u8>,
}

struct Seal {
    salt: [u8; 16],
    key: Option<hmac::Key>,
}

impl Wal {
    /// Starts a new log of segments at record `first`; segments that are there are superseded.
    pub(super) fn start(
        dir: &Path,
        disk: Arc<dyn Disk>,
        key: &LogKey,
        sizes: Sizes,
        first: u64,
    ) -> Result<Wal, LogError> {
        let list = Mutex::new(List::default());
        let segments = Arc::new(Segments {
            dir: dir.to_owned(),
            disk,
            sizes,
            list,
        });
        let old = segment_files(dir)?;
        let current = segments.add(key, first, sizes.first)?;
        for (_, path) in old.into_iter().filter(|(_, path)| *path != current.path) {
            segments
                .disk
                .remove(&path)
                .map_err(|e| LogError::io("removed", &path, e))?;
        }
        Ok(Wal { segments, current })
    }

    pub(super) fn segments(&self) -> Arc<Segments> {
        self.segments.clone()
    }

    /// Makes a group of entries durable. Once this has failed, it must not be called again.
    pub(super) fn commit(
        &mut self,
        key: &LogKey,
        first: u64,
        count: u32,
        body: &[u8],
    ) -> Result<(), LogError> {
        let need = (HEAD + body.len()).next_multiple_of(PAGE) as u64;
        if self.current.end + need > self.current.size {
            let Sizes {
                first: least,
                last: most,
            } = self.segments.sizes;
            let grown = (self.current.size * 4).clamp(least, most);
            self.current = self
                .segments
                .add(key, first, grown.max(PAGE as u64 + need))?;
        }
        self.current.commit(first, count, body)
    }

    /// Leaves one empty segment behind, so that a log without any has lost something.
    pub(super) fn finish(self, key: &LogKey, next: u64) -> Result<(), LogError> {
        let Wal { segments, current } = self;
        let old = segment_files(&segments.dir)?;
        drop(current);
        let last = segments.add(key, next, PAGE as u64)?;
        for (_, path) in old.into_iter().filter(|(_, path)| *path != last.path) {
            segments
                .disk
                .remove(&path)
                .map_err(|e| LogError::io("removed", &path, e))?;
        }
        let spare = segments.dir.join(SPARE);
        if spare.exists() {
            segments
                .disk
                .remove(&spare)
                .map_err(|e| LogError::io("removed", &spare, e))?;
        }
        Ok(())
    }
}

impl Segments {
    /// Puts a new, empty, durable segment in place.
    fn add(&self, key: &LogKey, first: u64, size: u64) -> Result<Segment, LogError> {
        let path = self.dir.join(format!("{first:020}"));
        let mut salt = [0; 16];
        getrandom::fill(&mut salt)
            .map_err(|e| LogError::io("given a salt", &path, io::Error::other(e)))?;
        let seal = Seal::new(salt, Some(key));
        let mut head = [MAGIC.as_slice(), &salt, &first.to_be_bytes()].concat();
        head.extend_from_slice(&seal.over(0, &head, &[]));

        let new = self.dir.join(NEW);
        let io = |e| LogError::io("written", &new, e);
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let size = match list.spare.take_if(|spare| *spare >= size) {
            Some(spare) => {
                self.disk.rename(&self.dir.join(SPARE), &new).map_err(io)?;
                let slab = self.disk.open(&new).map_err(io)?;
                slab.write_at(&head, 0)
                    .and_then(|()| slab.sync())
                    .map_err(io)?;
                spare
            }
            None => {
                let mut zeros = vec![0; size as usize];
                zeros[..head.len()].copy_from_slice(&head);
                self.disk.write(&new, &zeros).map_err(io)?;
                self.disk
                    .sync(&self.dir, std::slice::from_ref(&new))
                    .map_err(io)?;
                size
            }
        };
        // Named only once it is whole: a segment with a name has a head.
        let dir = std::slice::from_ref(&self.dir);
        let io = |e| LogError::io("made durable", &path, e);
        self.disk.rename(&new, &path).map_err(io)?;
        self.disk.sync(&self.dir, dir).map_err(io)?;
        let slab = self.disk.open(&path).map_err(io)?;
        // An empty segment that a big commit did not fit into has just been replaced.
        list.live.pop_back_if(|(last, _)| *last == first);
        list.live.push_back((first, size));
        Ok(Segment {
            slab,
            path,
            seal,
            size,
            end: PAGE as u64,
            page: Vec::new(),
        })
    }

    /// Gives up the segments whose records are all below `size`, a published tree.
    pub(super) fn retire(&self, size: u64) -> Result<(), LogError> {
        loop {
            let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
            if list.live.get(1).is_none_or(|(first, _)| *first > size) {
                return Ok(());
            }
            let Some((first, bytes)) = list.live.pop_front() else {
                return Ok(());
            };
            let keep = list.spare.is_none() && bytes >= self.sizes.last;
            drop(list);
            let path = self.dir.join(format!("{first:020}"));
            let io = |e| LogError::io("retired", &path, e);
            if !keep {
                self.disk.remove(&path).map_err(io)?;
                continue;
            }
            // Zeroed here, off the path of those who append. Out of the way first: a segment
            // with a name has a head.
            let spare = self.dir.join(SPARE);
            self.disk.rename(&path, &spare).map_err(io)?;
            self.disk
                .sync(&self.dir, std::slice::from_ref(&self.dir))
                .map_err(io)?;
            let slab = self.disk.open(&spare).map_err(io)?;
            let zeros = vec![0; 1 << 20];
            let mut at = 0;
            while at < bytes {
                let n = (bytes - at).min(zeros.len() as u64);
                slab.write_at(&zeros[..n as usize], at).map_err(io)?;
                at += n;
            }
            slab.sync().map_err(io)?;
            self.list
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .spare = Some(bytes);
        }
    }
}

impl Segment {
    fn commit(&mut self, first: u64, count: u32, body: &[u8]) -> Result<(), LogError> {
        let page = &mut self.page;
        page.clear();
        page.extend_from_slice(&(body.len() as u32).to_be_bytes());
        page.extend_from_slice(&count.to_be_bytes());
        page.extend_from_slice(&first.to_be_bytes());
        let proof = self.seal.over(self.end, page, body);
        page.extend_from_slice(&proof);
        page.extend_from_slice(body);
        page.resize(page.len().next_multiple_of(PAGE), 0);
        let slab = &self.slab;
        slab.write_at(page, self.end)
            .map_err(|e| LogError::io("written", &self.path, e))?;
        slab.sync()
            .map_err(|e| LogError::io("made durable", &self.path, e))?;
        self.end += page.len() as u64;
        // Durable in a file that nobody can find is lost all the same.
        match slab.is_at(&self.path, self.size) {
            Ok(true) => Ok(()),
            Ok(false) => Err(LogError::Displaced(self.path.clone())),
            Err(e) => Err(LogError::io("looked at", &self.path, e)),
        }
    }
}

impl Seal {
    fn new(salt: [u8; 16], key: Option<&LogKey>) -> Seal {
        Seal {
            salt,
            key: key.map(|key| key.derive("casemate audit wal v1", &salt)),
        }
    }

    /// Checksum and MAC over what stands at `offset`.
    fn over(&self, offset: u64, head: &[u8], body: &[u8]) -> [u8; 64] {
        let digest = self.digest(offset, head, body);
        let mut out = [0; 64];
        if let Some(key) = &self.key {
            out[32..].copy_from_slice(hmac::sign(key, &digest).as_ref());
        }
        let checksum = sha256(&[&digest, &out[32..]]);
        out[..32].copy_from_slice(&checksum);
        out
    }

    /// Tells whether `proof` is that of what stands at `offset`: `None` if torn, `Some(false)` if
    /// whole but not written with the key.
    fn holds(&self, offset: u64, head: &[u8], body: &[u8], proof: &[u8]) -> Option<bool> {
        let digest = self.digest(offset, head, body);
        let (checksum, mac) = proof.split_at_checked(32)?;
        let by_us = || {
            self.key
                .as_ref()
                .is_none_or(|key| hmac::verify(key, &digest, mac).is_ok())
        };
        (checksum == sha256(&[&digest, mac])).then(by_us)
    }

    fn digest(&self, offset: u64, head: &[u8], body: &[u8]) -> Hash {
        sha256(&[&self.salt, &offset.to_be_bytes(), head, body])
    }
}

/// What the segments end with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tail {
    /// The number of the record that comes next.
    pub(super) next: u64,
    /// A write that was never acknowledged left something behind.
    pub(super) torn: bool,
}

/// Reads all whole commits from record `from` on and hands their entries to `each`.
///
/// With a key, commits that were not written with it are refused.
pub(super) fn scan(
    dir: &Path,
    key: Option<&LogKey>,
    from: u64,
    mut each: impl FnMut(Entries<'_>) -> Result<(), LogError>,
) -> Result<Tail, LogError> {
    let files = segment_files(dir)?;
    let mut next = None;
    let mut torn = false;
    for (first, path) in &files {
        // Records between two segments, or before the first one, were acknowledged and are gone.
        if next.unwrap_or(from) < *first || next.is_some_and(|next| next != *first) {
            return Err(LogError::Lost {
                index: next.unwrap_or(from),
                path: path.clone(),
            });
        }
        let bytes = disk::read(path, MAX_SEGMENT).map_err(|e| LogError::io("read", path, e))?;
        let seal = read_head(&bytes, *first, key, path)?;
        let tail = scan_segment(&bytes, &seal, *first, from, path, &mut each)?;
        (next, torn) = (Some(tail.next), tail.torn);
    }
    match next {
        Some(next) if next >= from => Ok(Tail { next, torn }),
        // The power went after the record of the cut was published, before the torn segment went.
        Some(next) if torn && next + 1 == from => Ok(Tail {
            next: from,
            torn: false,
        }),
        next => Err(LogError::Lost {
            index: next.unwrap_or(from),
            path: dir.to_owned(),
        }),
    }
}

/// Reads one segment that begins with record `first`, without a key.
pub(super) fn scan_bytes(
    bytes: &[u8],
    first: u64,
    path: &Path,
    each: &mut impl FnMut(Entries<'_>) -> Result<(), LogError>,
) -> Result<Tail, LogError> {
    let seal = read_head(bytes, first, None, path)?;
    scan_segment(bytes, &seal, first, first, path, each)
}

fn scan_segment(
    bytes: &[u8],
    seal: &Seal,
    first: u64,
    from: u64,
    path: &Path,
    each: &mut impl FnMut(Entries<'_>) -> Result<(), LogError>,
) -> Result<Tail, LogError> {
    let (mut at, mut next) = (PAGE, first);
    while let Some(commit) = read_commit(bytes, at, seal, path)? {
        if commit.first != next {
            return Err(LogError::Lost {
                index: next,
                path: path.to_owned(),
            });
        }
        let after = next + u64::from(commit.count);
        let entries = Entries::new(commit.body);
        if entries.number() != u64::from(commit.count) || (next < from && from < after) {
            return Err(LogError::damaged(
                path,
                "a commit does not hold what it says",
            ));
        }
        if next >= from {
            each(entries)?;
        }
        (at, next) = (at + commit.pages, after);
    }
    // A commit is written only after the one before it was acknowledged: whole ones beyond a
    // torn one mean that the torn one was whole once.
    let rest = bytes.get(at..).unwrap_or_default();
    let torn = rest.iter().any(|byte| *byte != 0);
    if torn {
        for later in (at + PAGE..bytes.len()).step_by(PAGE) {
            if read_commit(bytes, later, seal, path)?.is_some() {
                return Err(LogError::Lost {
                    index: next,
                    path: path.to_owned(),
                });
            }
        }
    }
    Ok(Tail { next, torn })
}

fn read_head(
    bytes: &[u8],
    first: u64,
    key: Option<&LogKey>,
    path: &Path,
) -> Result<Seal, LogError> {
    let damaged = || LogError::damaged(path, "its head is not that of a segment");
    let page = bytes.get(..PAGE).ok_or_else(damaged)?;
    let (head, rest) = page.split_at(40);
    let (proof, zeros) = rest.split_at(64);
    let mut salt = [0; 16];
    salt.copy_from_slice(&head[16..32]);
    let fits = head[..16] == MAGIC[..] && head[32..] == first.to_be_bytes();
    if !fits || zeros.iter().any(|byte| *byte != 0) {
        return Err(damaged());
    }
    let seal = Seal::new(salt, key);
    match seal.holds(0, head, &[], proof) {
        None => Err(damaged()),
        Some(false) => Err(LogError::Forged(path.to_owned())),
        Some(true) => Ok(seal),
    }
}

struct Commit<'a> {
    first: u64,
    count: u32,
    body: &'a [u8],
    pages: usize,
}

/// Reads the commit at `at`: `None` unless a whole one stands there.
fn read_commit<'a>(
    bytes: &'a [u8],
    at: usize,
    seal: &Seal,
    path: &Path,
) -> Result<Option<Commit<'a>>, LogError> {
    let Some((head, rest)) = bytes.get(at..).and_then(|rest| rest.split_at_checked(16)) else {
        return Ok(None);
    };
    let be = |range: std::ops::Range<usize>| {
        head[range]
            .iter()
            .fold(0u64, |n, byte| n << 8 | u64::from(*byte))
    };
    let (length, count, first) = (be(0..4) as usize, be(4..8) as u32, be(8..16));
    let Some((proof, rest)) = rest.split_at_checked(64) else {
        return Ok(None);
    };
    let pages = (HEAD + length).next_multiple_of(PAGE);
    let padding = pages - HEAD - length;
    let Some((body, rest)) = rest.split_at_checked(length) else {
        return Ok(None);
    };
    let zeros = rest
        .get(..padding)
        .is_some_and(|rest| rest.iter().all(|byte| *byte == 0));
    if count == 0 || !zeros {
        return Ok(None);
    }
    match seal.holds(at as u64, head, body, proof) {
        None => Ok(None),
        Some(false) => Err(LogError::Forged(path.to_owned())),
        Some(true) if first.checked_add(u64::from(count)).is_none() => Ok(None),
        Some(true) => Ok(Some(Commit {
            first,
            count,
            body,
            pages,
        })),
    }
}

/// The segments in `dir`, oldest first.
fn segment_files(dir: &Path) -> Result<Vec<(u64, PathBuf)>, LogError> {
    let io = |e| LogError::io("read", dir, e);
    let mut files = Vec::new();
    let listing = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(files),
        listing => listing.map_err(io)?,
    };
    for file in listing {
        let name = file.map_err(io)?.file_name();
        let number = name
            .to_str()
            .filter(|n| n.len() == 20 && n.bytes().all(|b| b.is_ascii_digit()));
        if let Some(first) = number.and_then(|n| n.parse().ok()) {
            files.push((first, dir.join(name)));
        }
    }
    files.sort();
    Ok(files)
}
