//! The few file operations that the log is written with, so that tests can make each one fail.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, statx};
use rustix::io::Errno;

/// Writes to files and makes them durable.
pub(super) trait Disk: Send + Sync {
    /// Makes a directory; one that is there already is as good.
    fn create_dir(&self, path: &Path) -> io::Result<()>;
    /// Writes a whole file, replacing what it held. Not durable before [`Disk::sync`].
    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Makes files and directory entries durable. All are below `root`.
    fn sync(&self, root: &Path, paths: &[PathBuf]) -> io::Result<()>;
    /// Renames a file, replacing what was there.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes a directory that is empty.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// Opens a file to be written in place.
    fn open(&self, path: &Path) -> io::Result<Box<dyn Slab>>;
}

/// A file of fixed size that is written in place.
pub(super) trait Slab: Send {
    /// Writes all of `bytes` at `offset`.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the written bytes durable.
    fn sync(&self) -> io::Result<()>;
    /// Tells whether the file is still the one at `path`, with one name and of `size` bytes.
    fn is_at(&self, path: &Path, size: u64) -> io::Result<bool>;
}

/// The disk as the operating system gives it.
#[derive(Default)]
pub(super) struct OsDisk {
    /// Kept open, since a sync of the file system tells of the errors after its file was opened.
    root: Mutex<Option<File>>,
}

/// From how many files on one sync of the whole file system costs less than one for each.
const MANY: usize = 24;

impl Disk for OsDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && is_dir(path) => Ok(()),
            made => made,
        }
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut options = options();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(bytes)
    }

    fn sync(&self, root: &Path, paths: &[PathBuf]) -> io::Result<()> {
        let mut open = self.root.lock().unwrap_or_else(PoisonError::into_inner);
        let root = match &mut *open {
            Some(open) => open,
            none => none.insert(File::open(root)?),
        };
        if paths.len() > MANY {
            return Ok(rustix::fs::syncfs(&*root)?);
        }
        drop(open);
        paths
            .iter()
            .try_for_each(|path| options().read(true).open(path)?.sync_all())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Slab>> {
        Ok(Box::new(OsSlab(options().write(true).open(path)?)))
    }
}

struct OsSlab(File);

impl Slab for OsSlab {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn is_at(&self, path: &Path, size: u64) -> io::Result<bool> {
        // Times are not asked for: once somebody has seen them, the kernel gives the next write a
        // time of its own, and writes the inode with it. That takes half as long as the sync itself.
        let what = StatxFlags::INO | StatxFlags::NLINK | StatxFlags::SIZE;
        let open = statx(&self.0, c"", AtFlags::EMPTY_PATH, what)?;
        let named = match statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, what) {
            Err(Errno::NOENT) => return Ok(false),
            named => named?,
        };
        let file = |it: &Statx| (it.stx_dev_major, it.stx_dev_minor, it.stx_ino);
        Ok(file(&open) == file(&named) && open.stx_nlink == 1 && open.stx_size == size)
    }
}

/// Reads a regular file of at most `limit` bytes.
///
/// Answers `NotFound` for a missing file and `FileTooLarge` beyond the limit.
pub(super) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    // Not to wait for the other end, should somebody have put a pipe here.
    let nonblock = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nonblock.bits() as i32)
        .open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ));
    }
    if meta.len() > limit {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = Vec::with_capacity(meta.len() as usize);
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Options that follow no symbolic link in the last part of a path.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32);
    options
}

fn is_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir())
}
