//! The published tree, as files that any static file server can hand out.
//!
//! Follows C2SP "tlog-tiles":
//!
//! ```text
//! checkpoint               the signed tree head
//! tile/<L>/<N>             256 hashes of level L         tile/<L>/<N>.p/<W>      W < 256 of them
//! tile/entries/<N>         256 × (length[2] entry)       tile/entries/<N>.p/<W>  W of them
//! ```
//!
//! Everything a checkpoint covers is durable before the checkpoint is.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checkpoint::{Checkpoint, Head, NoteError};
use super::disk::{self, Disk};
use super::error::LogError;
use super::key::LogKey;
use super::merkle::{Edge, Hash, TILE_WIDTH, TileId, leaf_hash};
use super::record::MAX_ENTRY;

/// The most bytes an entry bundle may have.
pub(super) const MAX_BUNDLE: u64 = TILE_WIDTH * (MAX_ENTRY as u64 + 2);

/// The tree of one log, with what has not been written yet.
pub(super) struct Store {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    origin: String,
    tree: Edge,
    /// The entry bundle on the right edge.
    bundle: Vec<u8>,
    /// Full tiles and bundles that wait to be written.
    full: Vec<(PathBuf, Vec<u8>)>,
    published: Option<Checkpoint>,
    /// Partial tiles of the published checkpoint, and of the one before.
    partials: Vec<PathBuf>,
    superseded: Vec<PathBuf>,
}

impl Store {
    pub(super) fn create(dir: &Path, disk: Arc<dyn Disk>, origin: &str) -> Store {
        Store {
            dir: dir.to_owned(),
            disk,
            origin: origin.to_owned(),
            tree: Edge::new(),
            bundle: Vec::new(),
            full: Vec::new(),
            published: None,
            partials: Vec::new(),
            superseded: Vec::new(),
        }
    }

    /// Takes up the tree of a checkpoint that was believed.
    pub(super) fn open(
        dir: &Path,
        disk: Arc<dyn Disk>,
        published: Checkpoint,
    ) -> Result<Store, LogError> {
        let size = published.size();
        let (mut levels, mut partials) = (Vec::new(), Vec::new());
        for level in (0..8u8).take_while(|level| size >> (8 * level) != 0) {
            let end = size >> (8 * level);
            let id = TileId {
                level,
                number: end / TILE_WIDTH,
            };
            let width = end % TILE_WIDTH;
            if width == 0 {
                levels.push(Vec::new());
                continue;
            }
            levels.push(read_tile(dir, id, width)?);
            partials.push(dir.join(tile_path(id, width)));
        }
        let mut bundle = Vec::new();
        if !size.is_multiple_of(TILE_WIDTH) {
            let (number, width) = (size / TILE_WIDTH, size % TILE_WIDTH);
            bundle = read_bundle(dir, number, width)?;
            let leaves = Entries::new(&bundle).map(leaf_hash);
            let path = dir.join(bundle_path(number, width));
            if !leaves.eq(levels.first().into_iter().flatten().copied()) {
                return Err(LogError::damaged(
                    &path,
                    "its entries are not those of the tree",
                ));
            }
            partials.push(path);
        }
        let tree = Edge::resume(size, levels).filter(|tree| tree.root() == *published.root());
        let tree = tree.ok_or_else(|| {
            LogError::damaged(&dir.join("tile"), "the tree is not the one that was signed")
        })?;
        let origin = published.origin().to_owned();
        let published = Some(published);
        let (full, superseded) = (Vec::new(), Vec::new());
        let dir = dir.to_owned();
        Ok(Store {
            dir,
            disk,
            origin,
            tree,
            bundle,
            full,
            published,
            partials,
            superseded,
        })
    }

    pub(super) fn tree(&self) -> &Edge {
        &self.tree
    }

    /// The last entry on the right edge, if its bundle is not full.
    pub(super) fn last_entry(&self) -> Option<&[u8]> {
        Entries::new(&self.bundle).last()
    }

    /// Adds durable entries to the tree.
    pub(super) fn absorb(&mut self, entries: Entries<'_>) {
        entries.for_each(|entry| self.absorb_one(entry));
    }

    /// Adds one entry to the tree.
    pub(super) fn absorb_one(&mut self, entry: &[u8]) {
        self.bundle
            .extend_from_slice(&(entry.len() as u16).to_be_bytes());
        self.bundle.extend_from_slice(entry);
        let full = &mut self.full;
        self.tree.push(leaf_hash(entry), |id, hashes| {
            full.push((tile_path(id, TILE_WIDTH), hashes.concat()));
        });
        let size = self.tree.size();
        if size.is_multiple_of(TILE_WIDTH) {
            let path = bundle_path(size / TILE_WIDTH - 1, TILE_WIDTH);
            self.full.push((path, std::mem::take(&mut self.bundle)));
        }
    }

    /// Writes the tree, makes it durable, and only then signs its head and puts it in place.
    pub(super) fn publish(
        &mut self,
        key: &LogKey,
        extensions: &[String],
    ) -> Result<Checkpoint, LogError> {
        let size = self.tree.size();
        if let Some(published) = &self.published
            && published.size() == size
            && published.head().extensions == extensions
        {
            return Ok(published.clone());
        }
        let (origin, extensions) = (self.origin.clone(), extensions.to_vec());
        let head = Head {
            origin,
            size,
            root: self.tree.root(),
            extensions,
        };
        let checkpoint = key.sign(head).map_err(LogError::Checkpoint)?;

        let partials = self.write_tree()?;
        self.put(&self.dir.join("checkpoint"), checkpoint.note().as_bytes())?;
        self.full.clear();

        // The partial tiles of one checkpoint back stay, for readers that have just read it.
        self.sweep()?;
        let before = std::mem::replace(&mut self.partials, partials);
        self.superseded = before
            .into_iter()
            .filter(|p| !self.partials.contains(p))
            .collect();
        self.published = Some(checkpoint.clone());
        Ok(checkpoint)
    }

    /// What the log is written with.
    pub(super) fn disk(&self) -> &dyn Disk {
        &*self.disk
    }

    /// Removes the partial tiles that newer ones have taken the place of.
    pub(super) fn sweep(&mut self) -> Result<(), LogError> {
        use io::ErrorKind::{DirectoryNotEmpty, NotFound};
        for path in std::mem::take(&mut self.superseded) {
            let gone = |e: io::Error| match e.kind() {
                DirectoryNotEmpty | NotFound => Ok(()),
                _ => Err(LogError::io("removed", &path, e)),
            };
            self.disk.remove(&path).or_else(gone)?;
            path.parent()
                .map_or(Ok(()), |dir| self.disk.remove_dir(dir))
                .or_else(gone)?;
        }
        Ok(())
    }

    /// Writes a small file so that either the old or the new one is there, whatever happens.
    pub(super) fn put(&self, path: &Path, bytes: &[u8]) -> Result<(), LogError> {
        let new = path.with_extension("new");
        let io = |what| move |e| LogError::io(what, path, e);
        self.disk.write(&new, bytes).map_err(io("written"))?;
        let sync = |path: &PathBuf| self.disk.sync(&self.dir, std::slice::from_ref(path));
        sync(&new).map_err(io("made durable"))?;
        self.disk.rename(&new, path).map_err(io("replaced"))?;
        sync(&self.dir).map_err(io("made durable"))
    }

    /// Writes full and partial tiles and bundles, durably. Gives the paths of the partial ones.
    fn write_tree(&self) -> Result<Vec<PathBuf>, LogError> {
        let size = self.tree.size();
        let mut partials = Vec::new();
        for (level, hashes) in (0u8..)
            .zip(self.tree.partials())
            .filter(|(_, h)| !h.is_empty())
        {
            let id = TileId {
                level,
                number: size >> (8 * level) >> 8,
            };
            partials.push((tile_path(id, hashes.len() as u64), hashes.concat()));
        }
        if !self.bundle.is_empty() {
            let path = bundle_path(size / TILE_WIDTH, size % TILE_WIDTH);
            partials.push((path, self.bundle.clone()));
        }
        let mut sync = BTreeSet::new();
        // What the published checkpoint rests on is not touched: it holds the same bytes already.
        let published = |path: &Path| self.partials.contains(&self.dir.join(path));
        let partial = partials.iter().filter(|(path, _)| !published(path));
        for (path, bytes) in self.full.iter().chain(partial) {
            self.write(path, bytes, &mut sync)?;
        }
        let sync: Vec<PathBuf> = sync.into_iter().collect();
        let io = |e| LogError::io("made durable", &self.dir.join("tile"), e);
        self.disk.sync(&self.dir, &sync).map_err(io)?;
        Ok(partials
            .into_iter()
            .map(|(path, _)| self.dir.join(path))
            .collect())
    }

    fn write(
        &self,
        path: &Path,
        bytes: &[u8],
        sync: &mut BTreeSet<PathBuf>,
    ) -> Result<(), LogError> {
        let mut at = self.dir.clone();
        let parents = path.parent().into_iter().flat_map(Path::components);
        sync.insert(at.clone());
        for part in parents {
            at.push(part);
            if sync.insert(at.clone()) {
                self.disk
                    .create_dir(&at)
                    .map_err(|e| LogError::io("made", &at, e))?;
            }
        }
        let path = self.dir.join(path);
        self.disk
            .write(&path, bytes)
            .map_err(|e| LogError::io("written", &path, e))?;
        sync.insert(path);
        Ok(())
    }
}

/// The path of a tile of `width` hashes.
pub(super) fn tile_path(id: TileId, width: u64) -> PathBuf {
    numbered(format!("tile/{}", id.level), id.number, width)
}

/// The path of a bundle of `width` entries.
pub(super) fn bundle_path(number: u64, width: u64) -> PathBuf {
    numbered("tile/entries".to_owned(), number, width)
}

/// Spells a number in groups of three digits, all but the last led by `x`: 1234067 is
/// `x001/x234/067`.
fn numbered(mut path: String, number: u64, width: u64) -> PathBuf {
    let digits = format!("{number:03}");
    let digits = format!(
        "{digits:0>width$}",
        width = digits.len().next_multiple_of(3)
    );
    for at in (0..digits.len()).step_by(3) {
        path.push_str(if at + 3 < digits.len() { "/x" } else { "/" });
        path.push_str(&digits[at..at + 3]);
    }
    if width < TILE_WIDTH {
        path.push_str(&format!(".p/{width}"));
    }
    path.into()
}

/// Reads the first `width` hashes of a tile, from the partial tile or from one that is full by now.
pub(super) fn read_tile(dir: &Path, id: TileId, width: u64) -> Result<Vec<Hash>, LogError> {
    let (path, wanted, bytes) = read_either(dir, |w| tile_path(id, w), width, 32 * TILE_WIDTH)?;
    let (hashes, rest) = bytes.as_chunks::<32>();
    if !rest.is_empty() || hashes.len() as u64 != wanted {
        return Err(LogError::damaged(&path, "a tile of another width"));
    }
    Ok(hashes[..width as usize].to_vec())
}

/// Reads a bundle and cuts it to its first `width` entries.
pub(super) fn read_bundle(dir: &Path, number: u64, width: u64) -> Result<Vec<u8>, LogError> {
    let (path, wanted, mut bytes) =
        read_either(dir, |w| bundle_path(number, w), width, MAX_BUNDLE)?;
    let mut entries = Entries::new(&bytes);
    let have: u64 = entries.by_ref().take(width as usize).map(|_| 1).sum();
    let end = bytes.len() - entries.rest.len();
    let more: u64 = entries.by_ref().map(|_| 1).sum();
    if !entries.rest.is_empty() {
        return Err(LogError::damaged(&path, "an entry of the bundle is cut"));
    }
    if have + more != wanted {
        return Err(LogError::damaged(&path, "a bundle of another width"));
    }
    bytes.truncate(end);
    Ok(bytes)
}

/// Reads the file of this width, or else a wider one, whose beginning is the same: a partial tile goes
/// once a wider one was published. Gives its width, too.
fn read_either(
    dir: &Path,
    path: impl Fn(u64) -> PathBuf,
    width: u64,
    limit: u64,
) -> Result<(PathBuf, u64, Vec<u8>), LogError> {
    let exact = dir.join(path(width));
    let missing = match disk::read(&exact, limit) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => e,
        Err(e) => return Err(LogError::io("read", &exact, e)),
        Ok(bytes) => return Ok((exact, width, bytes)),
    };
    for wider in wider(&exact, width).chain([TILE_WIDTH]) {
        let path = dir.join(path(wider));
        if let Ok(bytes) = disk::read(&path, limit) {
            return Ok((path, wider, bytes));
        }
    }
    Err(LogError::io("read", &exact, missing))
}

/// The widths beyond `width` that stand beside a partial tile.
fn wider(partial: &Path, width: u64) -> impl Iterator<Item = u64> {
    let listing = partial.parent().and_then(|dir| std::fs::read_dir(dir).ok());
    let names = listing
        .into_iter()
        .flatten()
        .flatten()
        .map(|file| file.file_name());
    let widths = names.filter_map(|name| name.to_str()?.parse().ok());
    widths.filter(move |wider| (width + 1..TILE_WIDTH).contains(wider))
}

/// Reads the stored checkpoint, unchecked.
pub(super) fn read_checkpoint(dir: &Path) -> Result<Vec<u8>, io::Error> {
    disk::read(&dir.join("checkpoint"), super::checkpoint::MAX_NOTE as u64)
}

/// The origin that an unchecked checkpoint claims.
pub(super) fn claimed_origin(note: &[u8]) -> Result<String, NoteError> {
    Ok(Head::peek(note)?.origin)
}

/// Entries behind one another, each after its length in two bytes. Ends at the first that is cut.
#[derive(Clone)]
pub(super) struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Entries<'a> {
        Entries { rest: bytes }
    }

    /// How many whole entries follow.
    pub(super) fn number(&self) -> u64 {
        self.clone().map(|_| 1).sum()
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, rest) = self.rest.split_first_chunk::<2>()?;
        let (entry, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
        self.rest = rest;
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_tlog_tiles() {
        let path = |number, width| bundle_path(number, width).display().to_string();
        assert_eq!(path(0, 256), "tile/entries/000");
        assert_eq!(path(999, 1), "tile/entries/999.p/1");
        assert_eq!(path(1234067, 256), "tile/entries/x001/x234/067");
        let id = TileId {
            level: 2,
            number: 1000,
        };
        assert_eq!(
            tile_path(id, 5).display().to_string(),
            "tile/2/x001/000.p/5"
        );
    }

    #[test]
    fn entries_end_where_they_are_cut() {
        let bytes = [0, 1, 7, 0, 0, 0, 2, 8];
        assert!(Entries::new(&bytes).eq([&[7][..], &[]]));
        assert_eq!(Entries::new(&bytes).number(), 2);
    }
}
