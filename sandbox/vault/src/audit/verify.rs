//! Checking a log from its files alone: from the entries up to the signature.
//!
//! Memory does not grow with the log: bundles are read one after the other.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::checkpoint::{Checkpoint, NoteError};
use super::disk;
use super::error::LogError;
use super::key::{KeyError, LogVerifier};
use super::merkle::{Edge, Hash, TILE_WIDTH, TileId};
use super::record::{Entry, RecordError};
use super::scan::{self, Bundle, Next, Seen};
use super::store::{self, Entries, MAX_BUNDLE, bundle_path, read_bundle, tile_path};
use super::wal;

/// A log whose every record, tile and signature was found to agree.
///
/// Only [`verify`] makes one. It proves that the first [`Verified::size`] records are those the
/// key signed; that they are the newest that were ever signed, only an `expected` checkpoint from
/// elsewhere can tell.
#[derive(Clone, Debug)]
pub struct Verified {
    dir: PathBuf,
    checkpoint: Checkpoint,
    key_source: KeySource,
    tail: Tail,
    clock_jumps: u64,
}

/// What stands behind the last checkpoint.
#[derive(Clone, Copy, Debug)]
struct Tail {
    unsigned: u64,
    torn: bool,
    copy: bool,
}

/// Where the key came from that a log was verified with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KeySource {
    /// From the caller.
    Pinned,
    /// From `key.pub` beside the log: who can replace the log can replace the key with it.
    BesideTheLog,
}

/// Why a log is not to be believed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// There is no checkpoint, so nothing says what the log should hold.
    #[error("`{0}` has no checkpoint: nothing vouches for what it holds")]
    NoCheckpoint(PathBuf),
    /// There is no public key beside the log, and none was given.
    #[error("`{0}` has no public key: verify with the pinned one")]
    NoKey(PathBuf),
    /// The public key beside the log is not one.
    #[error("public key beside the log cannot be read")]
    Key(#[source] KeyError),
    /// The public key beside the log is not the pinned one.
    #[error("public key beside the log is not the pinned one")]
    OtherKey,
    /// The checkpoint is of another log, unsigned or forged.
    #[error("checkpoint is not to be believed")]
    Checkpoint(#[source] NoteError),
    /// Records at the end are gone although they were signed for.
    #[error("log ends after {have} records, but {signed} were signed for: its tail is lost")]
    TailLost {
        /// Records that are there.
        have: u64,
        /// Records that the checkpoint covers.
        signed: u64,
    },
    /// A file in the middle is gone.
    #[error("`{0}` is missing")]
    Missing(PathBuf),
    /// An entry is not the one that was signed for.
    #[error("record {0} is not the one that was signed for")]
    Changed(u64),
    /// The entries do not have the signed root, though they agree with the tiles.
    #[error("records and tiles are not those that were signed for")]
    OtherRoot,
    /// The entries are the signed ones, but a tile beside them is not theirs.
    #[error("tile `{0}` does not agree with the records")]
    Tile(PathBuf),
    /// A file that is not of the form it should be.
    #[error("`{path}` is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// A signed entry is no record.
    #[error("entry {index} is no record")]
    Record {
        /// Its number.
        index: u64,
        /// What is wrong with it.
        source: RecordError,
    },
    /// A record that stands where it does not belong.
    #[error("record {index} is out of place: {why}")]
    OutOfPlace {
        /// Its number.
        index: u64,
        /// What does not fit: its number, origin or clock.
        why: &'static str,
    },
    /// The log is older than a checkpoint of it that is known.
    #[error("log was rolled back: {signed} records are signed for, {expected} were before")]
    RolledBack {
        /// The size of the known checkpoint.
        expected: u64,
        /// The size of the stored one.
        signed: u64,
    },
    /// The log is not the one that a known checkpoint is of: its history was rewritten.
    #[error("log was forked: its first {0} records are not those of the expected checkpoint")]
    Fork(u64),
    /// Records that were acknowledged after the last checkpoint are gone.
    #[error("acknowledged records from number {0} on are missing")]
    Lost(u64),
    /// A file cannot be read.
    #[error("`{path}` cannot be read")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Checks the log in `dir` from its entries up.
///
/// `pinned` is the key that the log should be signed with. Without it the key beside the log is
/// taken, which shows damage but not replacement; [`Verified::key_source`] tells which it was.
/// `expected` is a checkpoint that was seen before: the log has to continue it.
///
/// # Errors
///
/// [`VerifyError`] for the first disagreement found, the most telling one where several are.
pub fn verify(
    dir: &Path,
    pinned: Option<&LogVerifier>,
    expected: Option<&Checkpoint>,
) -> Result<Verified, VerifyError> {
    let (verifier, key_source) = choose_key(dir, pinned)?;
    let mut checkpoint = stored_checkpoint(dir, &verifier)?;
    for _ in 0..RETRIES {
        let error = match verify_at(dir, &verifier, &checkpoint, expected) {
            Ok((tail, clock_jumps)) => {
                let dir = dir.to_owned();
                return Ok(Verified {
                    dir,
                    checkpoint,
                    key_source,
                    tail,
                    clock_jumps,
                });
            }
            Err(error) => error,
        };
        // A writer may have published more meanwhile, and taken away what it replaced.
        let newer = stored_checkpoint(dir, &verifier)?;
        if newer.size() <= checkpoint.size() {
            return Err(error);
        }
        checkpoint = newer;
    }
    let (tail, clock_jumps) = verify_at(dir, &verifier, &checkpoint, expected)?;
    let dir = dir.to_owned();
    Ok(Verified {
        dir,
        checkpoint,
        key_source,
        tail,
        clock_jumps,
    })
}

/// How often a log that is being written is looked at anew.
const RETRIES: usize = 8;

/// Checks everything against this checkpoint. Gives what follows it, and the clock jumps before.
fn verify_at(
    dir: &Path,
    verifier: &LogVerifier,
    checkpoint: &Checkpoint,
    expected: Option<&Checkpoint>,
) -> Result<(Tail, u64), VerifyError> {
    if let Some(expected) = expected {
        continues(checkpoint, expected)?;
    }
    let mut check = Check {
        dir,
        expected,
        tree: Edge::new(),
        tile: None,
        changed: None,
        fork: false,
    };
    let mut clock = Clock::default();
    check.root_at_expected_size();
    let mut outcome = Ok(());
    scan::bundles(dir, checkpoint, |bundle| {
        outcome = check.bundle(bundle, &mut clock);
        match outcome {
            Ok(()) => Next::More,
            Err(_) => Next::Stop,
        }
    });
    if outcome.is_ok() && check.tree.size() < checkpoint.size() {
        outcome = Err(VerifyError::OtherRoot);
    }
    if outcome.is_ok() && check.tree.root() != *checkpoint.root() {
        outcome = Err(VerifyError::OtherRoot);
    }
    if matches!(outcome, Ok(()) | Err(VerifyError::OtherRoot)) {
        check.edge();
    }
    // What was changed explains better than what follows from it.
    match (check.changed, outcome) {
        (Some(index), Err(_)) => return Err(VerifyError::Changed(index)),
        (_, outcome) => outcome?,
    }
    if check.fork {
        return Err(VerifyError::Fork(expected.map_or(0, Checkpoint::size)));
    }
    if let Some(tile) = check.tile {
        return Err(tile);
    }
    let tail = tail(dir, verifier, checkpoint.size())?;
    Ok((tail, clock.jumps))
}

impl Verified {
    /// How many records are signed for.
    pub fn size(&self) -> u64 {
        self.checkpoint.size()
    }

    /// The root over them.
    pub fn root(&self) -> &Hash {
        self.checkpoint.root()
    }

    /// The signed checkpoint: keep it, to be `expected` next time.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Where the key came from.
    pub fn key_source(&self) -> KeySource {
        self.key_source
    }

    /// How many records follow that no checkpoint covers yet: left by a crash, or being written.
    /// Nothing proves them before the log is opened again.
    pub fn unsigned_tail(&self) -> u64 {
        self.tail.unsigned
    }

    /// Whether a write was torn that nobody had been told of.
    pub fn torn_tail(&self) -> bool {
        self.tail.torn
    }

    /// Whether this is a published copy, without the segments of its writer: what came after the
    /// checkpoint cannot be seen in it.
    pub fn is_copy(&self) -> bool {
        self.tail.copy
    }

    /// How often the wall clock moved more than a second away from the monotonic clock between two
    /// neighbouring records of one boot.
    pub fn clock_jumps(&self) -> u64 {
        self.clock_jumps
    }

    /// Reads the signed records again, in order. They are checked once more on the way, since the
    /// files may have changed; the last item is an error if they did.
    pub fn records(&self) -> Records {
        Records::new(&self.dir, self.checkpoint.clone())
    }
}

/// The records of a log, in order, checked against its checkpoint as they are read.
///
/// After an error there is no further item. Only when the iterator ends without an error were all
/// records those that were signed for.
pub struct Records {
    dir: PathBuf,
    checkpoint: Checkpoint,
    tree: Edge,
    bundle: std::vec::IntoIter<Vec<u8>>,
    clock: Clock,
    done: bool,
}

impl Iterator for Records {
    type Item = Result<Entry, VerifyError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let index = self.tree.size();
        if index == self.checkpoint.size() {
            self.done = true;
            let same = self.tree.root() == *self.checkpoint.root();
            return (!same).then_some(Err(VerifyError::OtherRoot));
        }
        let read = self.read(index);
        self.done = read.is_err();
        Some(read)
    }
}

impl Records {
    fn new(dir: &Path, checkpoint: Checkpoint) -> Records {
        let (bundle, tree) = (Vec::new().into_iter(), Edge::new());
        Records {
            dir: dir.to_owned(),
            checkpoint,
            tree,
            bundle,
            clock: Clock::default(),
            done: false,
        }
    }

    fn read(&mut self, index: u64) -> Result<Entry, VerifyError> {
        if index.is_multiple_of(TILE_WIDTH) {
            let (number, size) = (index / TILE_WIDTH, self.checkpoint.size());
            let width = (size - index).min(TILE_WIDTH);
            let bytes = read_bundle(&self.dir, number, width)
                .map_err(|error| without(&self.dir, size, number, width, error))?;
            let entries: Vec<Vec<u8>> = Entries::new(&bytes).map(<[u8]>::to_vec).collect();
            self.bundle = entries.into_iter();
        }
        let bytes = self.bundle.next().ok_or(VerifyError::OtherRoot)?;
        let seen = scan::look_at(&bytes, index, self.checkpoint.origin())?;
        self.clock.see(index, &seen)?;
        let entry = Entry::decode(&bytes);
        let entry = entry.map_err(|source| VerifyError::Record { index, source })?;
        self.tree.push(seen.leaf, |_, _| ());
        Ok(entry)
    }
}

/// Tells what a bundle that cannot be read means: the tail or the middle is gone, or damaged.
pub(super) fn without(
    dir: &Path,
    signed: u64,
    number: u64,
    width: u64,
    error: LogError,
) -> VerifyError {
    let have = match bundle_widths(dir, number) {
        Ok(widths) => widths.into_iter().filter(|have| *have < width).max(),
        Err(error) => return error,
    };
    let last = signed.div_ceil(TILE_WIDTH);
    let later = (number + 1..last).any(|n| {
        let there = |width| dir.join(bundle_path(n, width)).exists();
        there(TILE_WIDTH) || (n + 1 == last && there(signed % TILE_WIDTH))
    });
    match error {
        LogError::Io { path, source, .. } if source.kind() == io::ErrorKind::NotFound => {
            match later {
                true => VerifyError::Missing(path),
                false => {
                    let have = number * TILE_WIDTH + have.unwrap_or(0);
                    VerifyError::TailLost { have, signed }
                }
            }
        }
        LogError::Damaged { path, why } => match disk::read(&path, MAX_BUNDLE) {
            // Cut inside the last bundle: whole entries are left, but too few.
            Ok(bytes) if !later && Entries::new(&bytes).number() < width => {
                let have = number * TILE_WIDTH + Entries::new(&bytes).number();
                VerifyError::TailLost { have, signed }
            }
            _ => VerifyError::Damaged { path, why },
        },
        error => from_log(error),
    }
}

/// Holds tiles and the expected checkpoint against the entries.
struct Check<'a> {
    dir: &'a Path,
    expected: Option<&'a Checkpoint>,
    tree: Edge,
    tile: Option<VerifyError>,
    /// The first entry that is not the one its tile tells of.
    changed: Option<u64>,
    fork: bool,
}

impl Check<'_> {
    /// Takes the next records, up to the first that is not in order.
    fn bundle(&mut self, bundle: Bundle, clock: &mut Clock) -> Result<(), VerifyError> {
        let Bundle { seen, root, error } = bundle;
        let first = self.tree.size();
        let mut sound = seen.len();
        let mut failed = error;
        for (at, seen) in seen.iter().enumerate() {
            if let Err(error) = clock.see(first + at as u64, seen) {
                (sound, failed) = (at, Some(error));
                break;
            }
        }
        let leaves: Vec<Hash> = seen.iter().take(sound).map(|seen| seen.leaf).collect();
        let inside = first + 1..first + TILE_WIDTH;
        let cut = self.expected.is_some_and(|e| inside.contains(&e.size()));
        match root.filter(|_| sound as u64 == TILE_WIDTH && !cut) {
            Some(root) => self.whole_tile(&leaves, root),
            None => leaves.into_iter().for_each(|leaf| self.leaf(leaf)),
        }
        failed.map_or(Ok(()), Err)
    }

    fn whole_tile(&mut self, leaves: &[Hash], root: Hash) {
        let mut full = Vec::new();
        self.tree
            .push_tile(leaves, root, |id, hashes| full.push((id, hashes.to_vec())));
        full.into_iter()
            .for_each(|(id, hashes)| self.tile(id, &hashes));
        self.root_at_expected_size();
    }

    fn leaf(&mut self, leaf: Hash) {
        let mut full = Vec::new();
        self.tree
            .push(leaf, |id, hashes| full.push((id, hashes.to_vec())));
        full.into_iter()
            .for_each(|(id, hashes)| self.tile(id, &hashes));
        self.root_at_expected_size();
    }

    fn root_at_expected_size(&mut self) {
        if let Some(expected) = self.expected.filter(|e| e.size() == self.tree.size()) {
            self.fork |= self.tree.root() != *expected.root();
        }
    }

    /// Compares the partial tiles on the right edge.
    fn edge(&mut self) {
        let partials = self.tree.partials().to_vec();
        for (level, hashes) in (0u8..)
            .zip(partials)
            .filter(|(_, hashes)| !hashes.is_empty())
        {
            let number = self.tree.size() >> (8 * level) >> 8;
            self.tile(TileId { level, number }, &hashes);
        }
    }

    fn tile(&mut self, id: TileId, hashes: &[Hash]) {
        let width = hashes.len() as u64;
        match store::read_tile(self.dir, id, width) {
            Ok(stored) => {
                let differs = stored.iter().zip(hashes).position(|(a, b)| a != b);
                let Some(at) = differs else { return };
                if id.level == 0 {
                    self.changed
                        .get_or_insert(id.number * TILE_WIDTH + at as u64);
                }
                let path = self.dir.join(tile_path(id, width));
                self.tile.get_or_insert(VerifyError::Tile(path));
            }
            Err(error) => {
                self.tile.get_or_insert(from_log(error));
            }
        }
    }
}

/// Sees that the monotonic clock goes forward, and counts how often the wall clock parts from it.
#[derive(Default)]
struct Clock {
    last: Option<([u8; 16], u64, u64)>,
    jumps: u64,
}

impl Clock {
    fn see(&mut self, index: u64, seen: &Seen) -> Result<(), VerifyError> {
        const SECOND: u128 = 1_000_000_000;
        let now = (seen.boot, seen.mono_ns, seen.time_ns);
        let Some((_, mono, time)) = self
            .last
            .replace(now)
            .filter(|(boot, ..)| *boot == seen.boot)
        else {
            return Ok(());
        };
        if mono > seen.mono_ns {
            let why = "its monotonic clock runs backwards";
            return Err(VerifyError::OutOfPlace { index, why });
        }
        let apart = |time, mono| i128::from(time) - i128::from(mono);
        let jumped = apart(time, mono).abs_diff(apart(seen.time_ns, seen.mono_ns)) > SECOND;
        self.jumps += u64::from(jumped);
        Ok(())
    }
}

fn choose_key(
    dir: &Path,
    pinned: Option<&LogVerifier>,
) -> Result<(LogVerifier, KeySource), VerifyError> {
    let path = dir.join("key.pub");
    let stored = match disk::read(&path, 1024) {
        Ok(bytes) => Some(bytes),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(VerifyError::Io { path, source }),
    };
    let parse = |bytes: Vec<u8>| {
        let text = String::from_utf8(bytes).ok();
        let text = text.as_deref().and_then(|text| text.strip_suffix('\n'));
        text.ok_or(KeyError::Verifier("one line of text is expected"))?
            .parse()
    };
    let stored: Option<LogVerifier> = stored.map(parse).transpose().map_err(VerifyError::Key)?;
    match (pinned, stored) {
        (Some(pinned), Some(stored)) if stored != *pinned => Err(VerifyError::OtherKey),
        (Some(pinned), _) => Ok((pinned.clone(), KeySource::Pinned)),
        (None, Some(stored)) => Ok((stored, KeySource::BesideTheLog)),
        (None, None) => Err(VerifyError::NoKey(dir.to_owned())),
    }
}

pub(super) fn stored_checkpoint(
    dir: &Path,
    verifier: &LogVerifier,
) -> Result<Checkpoint, VerifyError> {
    let note = store::read_checkpoint(dir).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => VerifyError::NoCheckpoint(dir.to_owned()),
        _ => VerifyError::Io {
            path: dir.join("checkpoint"),
            source,
        },
    })?;
    verifier.open(&note).map_err(VerifyError::Checkpoint)
}

/// Refuses a checkpoint that cannot continue the expected one, whatever the entries are.
fn continues(checkpoint: &Checkpoint, expected: &Checkpoint) -> Result<(), VerifyError> {
    if checkpoint.origin() != expected.origin() {
        return Err(VerifyError::Checkpoint(NoteError::Origin {
            expected: expected.origin().to_owned(),
            found: checkpoint.origin().to_owned(),
        }));
    }
    let (expected, signed) = (expected.size(), checkpoint.size());
    if signed < expected {
        return Err(VerifyError::RolledBack { expected, signed });
    }
    Ok(())
}

/// Counts what follows the checkpoint: in the segments, or in bundles beyond it.
fn tail(dir: &Path, key: &LogVerifier, size: u64) -> Result<Tail, VerifyError> {
    let segments = dir.join("wal");
    let copy = !segments.exists();
    let (mut end, mut torn, mut from) = (size, false, size);
    loop {
        if copy {
            break;
        }
        match wal::scan(&segments, None, from, |_| Ok(())) {
            Ok(tail) => {
                (end, torn) = (tail.next, tail.torn);
                break;
            }
            Err(error) => {
                // Segments go once a newer checkpoint covers them.
                let newer = stored_checkpoint(dir, key)?.size();
                if newer <= from {
                    return Err(from_log(error));
                }
                from = newer;
            }
        }
    }
    let mut number = size / TILE_WIDTH;
    loop {
        let most = bundle_widths(dir, number)?.into_iter().max().unwrap_or(0);
        end = end.max(number * TILE_WIDTH + most);
        if most < TILE_WIDTH {
            return Ok(Tail {
                unsigned: end - size,
                torn,
                copy,
            });
        }
        number += 1;
    }
}

/// The widths that bundle `number` is stored in, partial and full.
fn bundle_widths(dir: &Path, number: u64) -> Result<Vec<u64>, VerifyError> {
    let mut widths = Vec::new();
    if dir.join(bundle_path(number, TILE_WIDTH)).exists() {
        widths.push(TILE_WIDTH);
    }
    let partials = dir.join(bundle_path(number, 1));
    let partials = partials.parent().unwrap_or(dir);
    let io = |source| VerifyError::Io {
        path: partials.to_owned(),
        source,
    };
    let listing = match fs::read_dir(partials) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(widths),
        listing => listing.map_err(io)?,
    };
    for file in listing {
        let name = file.map_err(io)?.file_name();
        widths.extend(
            name.to_str()
                .and_then(|n| n.parse::<u64>().ok())
                .filter(|w| *w < TILE_WIDTH),
        );
    }
    Ok(widths)
}

pub(super) fn from_log(error: LogError) -> VerifyError {
    match error {
        LogError::Lost { index, .. } => VerifyError::Lost(index),
        LogError::Damaged { path, why } => VerifyError::Damaged { path, why },
        LogError::Io { path, source, .. } if source.kind() == io::ErrorKind::NotFound => {
            VerifyError::Missing(path)
        }
        LogError::Io { path, source, .. } | LogError::Full { path, source } => VerifyError::Io {
            path,
            source: io::Error::new(source.kind(), source),
        },
        other => VerifyError::Io {
            path: PathBuf::new(),
            source: io::Error::other(other),
        },
    }
}
