//! The directory of a vault: every read and write of it goes through here.
//!
//! All paths are relative to open directories and follow no symbolic link. New files appear under new
//! random names, and only the manifest slot, which is written last, makes them count. The one file
//! that is replaced, by a rename, is the header.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};

use crate::format::Id;

#[cfg(test)]
pub(crate) mod faults;

/// A directory of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Root,
    Objects,
    Index,
}

/// Held by the one writer.
pub(crate) const WRITER_LOCK: &str = "writer.lock";
/// Shared by readers and leases; while anybody holds it, no object file is removed.
pub(crate) const READERS_LOCK: &str = "readers.lock";

const OBJECTS: &str = "objects";
const INDEX: &str = "index";
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The open directories of a vault.
pub(crate) struct Store {
    root: OwnedFd,
    objects: OwnedFd,
    index: OwnedFd,
    #[cfg(test)]
    pub(crate) faults: faults::Faults,
}

/// A lock that ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread forked has the file open until it
        // executes something else, and would keep the lock for so long.
        let _ = rustix::fs::flock(&self.0, FlockOperation::Unlock);
    }
}

impl Store {
    /// Every lock file.
    pub(crate) const LOCKS: [&str; 2] = [WRITER_LOCK, READERS_LOCK];

    /// Opens the directories; `NotFound` if this is not a vault's directory.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let root = rustix::fs::open(path, DIRECTORY, Mode::empty())?;
        let objects = rustix::fs::openat(&root, OBJECTS, DIRECTORY, Mode::empty())?;
        let index = rustix::fs::openat(&root, INDEX, DIRECTORY, Mode::empty())?;
        Ok(Self {
            root,
            objects,
            index,
            #[cfg(test)]
            faults: faults::Faults::default(),
        })
    }

    /// Makes the directories and lock files of a new vault; `path` must not exist.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mode = Mode::RWXU;
        rustix::fs::mkdir(path, mode)?;
        let root = rustix::fs::open(path, DIRECTORY, Mode::empty())?;
        rustix::fs::mkdirat(&root, OBJECTS, mode)?;
        rustix::fs::mkdirat(&root, INDEX, mode)?;
        let store = Self::open(path)?;
        store.create_file(Place::Root, WRITER_LOCK)?;
        store.create_file(Place::Root, READERS_LOCK)?;
        Ok(store)
    }

    /// Opens a file for reading.
    pub(crate) fn open_file(&self, place: Place, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::openat(
            self.dir(place),
            name,
            flags,
            Mode::empty(),
        )?);
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(file)
    }

    /// Reads a whole file of at most `max` bytes; a longer one is `FileTooLarge`.
    pub(crate) fn read(&self, place: Place, name: &str, max: u64) -> io::Result<Vec<u8>> {
        let file = self.open_file(place, name)?;
        let len = file.metadata()?.len();
        if len > max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Creates a file that must not exist.
    pub(crate) fn create_file(&self, place: Place, name: &str) -> io::Result<File> {
        self.gate()?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = rustix::fs::openat(self.dir(place), name, flags | OFlags::CLOEXEC, mode)?;
        let file = File::from(fd);
        #[cfg(test)]
        self.faults.opened(place, name, &file);
        Ok(file)
    }

    /// Opens a file of the root for writing in place, or creates it.
    pub(crate) fn slot_file(&self, name: &str) -> io::Result<File> {
        self.gate()?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = File::from(rustix::fs::openat(&self.root, name, flags, mode)?);
        #[cfg(test)]
        self.faults.opened(Place::Root, name, &file);
        Ok(file)
    }

    /// Opens a file that must exist, for writing over it.
    pub(crate) fn open_to_overwrite(&self, place: Place, name: &str) -> io::Result<File> {
        self.gate()?;
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::openat(self.dir(place), name, flags, Mode::empty())?;
        Ok(File::from(fd))
    }

    pub(crate) fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        #[cfg(test)]
        if let Err(e) = self.faults.step() {
            // What a dying machine leaves: half of it.
            file.write_all_at(&bytes[..bytes.len() / 2], offset).ok();
            return Err(e.now());
        }
        #[cfg(test)]
        self.faults.wrote(file, bytes, offset);
        file.write_all_at(bytes, offset)
    }

    /// Makes a file's bytes durable.
    pub(crate) fn sync(&self, file: &File) -> io::Result<()> {
        self.gate()?;
        #[cfg(test)]
        self.faults.synced(file);
        file.sync_data()
    }

    /// Makes new object files durable, bytes and names.
    pub(crate) fn sync_objects(&self, files: &[Id]) -> io::Result<()> {
        /// From here on one call for the whole file system is cheaper than one for each file.
        const MANY: usize = 16;
        if files.is_empty() {
            return Ok(());
        }
        if files.len() < MANY || cfg!(test) {
            for file in files {
                self.sync(&self.open_file(Place::Objects, &file_name(file))?)?;
            }
        } else {
            rustix::fs::syncfs(&self.root)?;
        }
        self.sync_dir(Place::Objects)
    }

    /// Bytes in all and bytes left on the file system below.
    pub(crate) fn room(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::fstatvfs(&self.root)?;
        let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
        Ok((bytes(stat.f_blocks), bytes(stat.f_bavail)))
    }

    /// Makes a directory's entries durable.
    pub(crate) fn sync_dir(&self, place: Place) -> io::Result<()> {
        self.gate()?;
        #[cfg(test)]
        self.faults.synced_dir(place);
        rustix::fs::fsync(self.dir(place))?;
        Ok(())
    }

    /// Puts one file of the root in the place of another: whoever opens it finds the one or the other.
    pub(crate) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.gate()?;
        #[cfg(test)]
        self.faults.renamed(from, to);
        rustix::fs::renameat(&self.root, from, &self.root, to)?;
        Ok(())
    }

    /// Gives a file a name in another store too; fails between file systems.
    pub(crate) fn link(&self, to: &Self, place: Place, name: &str) -> io::Result<()> {
        let (from, to) = (self.dir(place), to.dir(place));
        rustix::fs::linkat(from, name, to, name, AtFlags::empty())?;
        Ok(())
    }

    /// Removes a file; one that is gone already is no error.
    pub(crate) fn remove(&self, place: Place, name: &str) -> io::Result<()> {
        self.gate()?;
        #[cfg(test)]
        self.faults.removed(place, name);
        match rustix::fs::unlinkat(self.dir(place), name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Lists the files whose names are ids.
    pub(crate) fn ids(&self, place: Place) -> io::Result<Vec<Id>> {
        let mut ids = Vec::new();
        for entry in rustix::fs::Dir::read_from(self.dir(place))? {
            ids.extend(entry?.file_name().to_str().ok().and_then(parse_id));
        }
        Ok(ids)
    }

    /// Takes the writer's lock; `WouldBlock` if another writer has it.
    pub(crate) fn lock_writer(&self) -> io::Result<Lock> {
        self.lock(WRITER_LOCK, FlockOperation::NonBlockingLockExclusive)
    }

    /// Takes a share of the readers' lock.
    pub(crate) fn lock_reader(&self) -> io::Result<Lock> {
        self.lock(READERS_LOCK, FlockOperation::LockShared)
    }

    /// Takes the readers' lock alone; `WouldBlock` if there are readers.
    pub(crate) fn lock_out_readers(&self) -> io::Result<Lock> {
        self.lock(READERS_LOCK, FlockOperation::NonBlockingLockExclusive)
    }

    fn lock(&self, name: &str, operation: FlockOperation) -> io::Result<Lock> {
        let file = self.open_file(Place::Root, name)?;
        rustix::fs::flock(&file, operation)?;
        Ok(Lock(file))
    }

    fn dir(&self, place: Place) -> &OwnedFd {
        match place {
            Place::Root => &self.root,
            Place::Objects => &self.objects,
            Place::Index => &self.index,
        }
    }

    #[allow(clippy::unused_self, clippy::unnecessary_wraps)]
    fn gate(&self) -> io::Result<()> {
        #[cfg(test)]
        self.faults.step().map_err(faults::Death::now)?;
        Ok(())
    }
}

/// The file name of an id: 32 lowercase hexadecimal digits.
pub(crate) fn file_name(id: &Id) -> String {
    use std::fmt::Write;
    id.iter().fold(String::with_capacity(32), |mut name, byte| {
        let _ = write!(name, "{byte:02x}");
        name
    })
}

fn parse_id(name: &str) -> Option<Id> {
    if name.len() != 32 || !name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return None;
    }
    u128::from_str_radix(name, 16).ok().map(u128::to_be_bytes)
}
