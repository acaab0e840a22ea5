//! A vault: created, opened, filled, read, and asked to prove itself.

use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::anchor::FreshnessAnchor;
use crate::commit::{self, Commit, Failed, Next, Shared};
use crate::create;
use crate::envelope::random_id;
use crate::error::VaultError;
use crate::find::{Found, find, not_a_vault};
use crate::format::header::Header;
use crate::format::index::{Index, Record};
use crate::format::{ChunkSize, Padding};
use crate::kek::KekProvider;
use crate::lease::{Lease, LeaseTerms};
use crate::name::{self, NameError};
use crate::object::Object;
use crate::secret::{Plaintext, SecretKey};
use crate::store::{Lock, Place, Store, file_name};
use crate::stream;
use crate::sys::MemoryProtection;

/// Nanoseconds since the Unix epoch, from whatever clock the caller trusts.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// What a new vault is like.
#[derive(Clone, Copy, Debug, Default)]
pub struct CreateOptions {
    /// How much is sealed as one.
    pub chunk: ChunkSize,
    /// What stored lengths tell.
    pub padding: Padding,
}

/// How far an open vault may be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Not at all; any number of readers share a vault.
    #[default]
    ReadOnly,
    /// By one writer at a time.
    ReadWrite,
}

/// How to open a vault.
#[derive(Clone)]
pub struct OpenOptions {
    /// For reading, or for writing too.
    pub access: Access,
    /// What remembers the latest commit. Without one, a store that was put back as a whole to an
    /// earlier day cannot be told from a fresh one.
    pub anchor: Option<Arc<dyn FreshnessAnchor>>,
    /// Tells the time of changes. Informative: nothing is decided by it.
    pub clock: Clock,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            access: Access::default(),
            anchor: None,
            clock: Arc::new(system_time),
        }
    }
}

impl std::fmt::Debug for OpenOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenOptions")
            .field("access", &self.access)
            .field("anchored", &self.anchor.is_some())
            .finish_non_exhaustive()
    }
}

/// What a vault tells about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectInfo {
    /// Its name, a relative path with `/` between the parts.
    pub name: String,
    /// Bytes of content.
    pub len: u64,
    /// When it was put, in nanoseconds since the Unix epoch, by the writer's clock.
    pub modified: u64,
    /// How often it was put under this name, from 1.
    pub version: u64,
    /// Permissions, as in chmod(2).
    pub mode: u16,
    /// Whether it is a symbolic link, whose target is the content.
    pub is_link: bool,
}

/// An open vault.
///
/// Holding one proves that a key opened it and that header, manifest and index are whole; what is
/// in objects is proven as it is read.
pub struct Vault {
    pub(crate) shared: Arc<Shared>,
    pub(crate) header: Header,
    /// What new slots are made of; held by a writer, and by none of its leases.
    pub(crate) root: Option<SecretKey>,
    pub(crate) commit: Commit,
    access: Access,
    clock: Clock,
    pub(crate) anchor: Option<Arc<dyn FreshnessAnchor>>,
    anchored: bool,
    pub(crate) poisoned: bool,
    _lock: Lock,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vault")
            .field("generation", &self.generation())
            .field("access", &self.access)
            .finish_non_exhaustive()
    }
}

impl Vault {
    /// Creates an empty vault at `dir`, which must not exist, and opens it for writing.
    ///
    /// It appears whole or not at all: it is made beside `dir` and renamed there.
    ///
    /// # Errors
    ///
    /// [`VaultError::Exists`] if something is at `dir` already.
    pub fn create(
        dir: &Path,
        kek: &dyn KekProvider,
        options: CreateOptions,
    ) -> Result<Self, VaultError> {
        Self::create_with(dir, kek, options, writing())
    }

    /// Creates an empty vault, as [`Vault::create`] does, and opens it for writing as told.
    ///
    /// # Errors
    ///
    /// As for [`Vault::create`], and [`VaultError::Anchor`] if the first commit was not remembered.
    /// `open.access` is not looked at.
    pub fn create_with(
        dir: &Path,
        kek: &dyn KekProvider,
        options: CreateOptions,
        open: OpenOptions,
    ) -> Result<Self, VaultError> {
        create::create(dir, kek, options, &open)?;
        Self::open_with(
            dir,
            kek,
            OpenOptions {
                access: Access::ReadWrite,
                ..open
            },
        )
    }

    /// Opens the vault at `dir`, without an anchor.
    ///
    /// # Errors
    ///
    /// [`VaultError::NotAVault`], [`VaultError::NewerFormat`], [`VaultError::NoSlot`],
    /// [`VaultError::WrongKek`], [`VaultError::Tampered`], or [`VaultError::Locked`] if another
    /// writer has it.
    pub fn open(dir: &Path, kek: &dyn KekProvider, access: Access) -> Result<Self, VaultError> {
        Self::open_with(
            dir,
            kek,
            OpenOptions {
                access,
                ..OpenOptions::default()
            },
        )
    }

    /// Opens the vault at `dir`.
    ///
    /// # Errors
    ///
    /// As for [`Vault::open`], and [`VaultError::RolledBack`], [`VaultError::Forked`] or
    /// [`VaultError::Anchor`] if the anchor disagrees or does not answer.
    pub fn open_with(
        dir: &Path,
        kek: &dyn KekProvider,
        options: OpenOptions,
    ) -> Result<Self, VaultError> {
        let OpenOptions {
            access,
            anchor,
            clock,
        } = options;
        let store = Store::open(dir).map_err(not_a_vault)?;
        let lock = match access {
            Access::ReadOnly => store.lock_reader(),
            Access::ReadWrite => store.lock_writer(),
        };
        let lock = lock.map_err(|e| match e.kind() {
            io::ErrorKind::WouldBlock => VaultError::Locked,
            io::ErrorKind::NotFound => VaultError::NotAVault,
            _ => VaultError::Io {
                doing: "lock the vault",
                source: e,
            },
        })?;

        let Found {
            header,
            root,
            shared,
            commit,
        } = find(store, kek)?;
        let anchored = match &anchor {
            Some(anchor) => commit::check_anchor(&shared, &commit, access, anchor.as_ref())?,
            None => false,
        };
        if access == Access::ReadWrite {
            commit::collect(&shared.store, &commit);
        }
        let mut vault = Self {
            shared: Arc::new(shared),
            header,
            root: (access == Access::ReadWrite).then_some(root),
            commit,
            access,
            clock,
            anchor,
            anchored,
            poisoned: false,
            _lock: lock,
        };
        // A writer replaced the header and died: until a manifest names it, the old one would do.
        if access == Access::ReadWrite && vault.header.epoch != vault.commit.manifest.header_epoch {
            vault.commit(Index::clone(&vault.commit.index))?;
        }
        Ok(vault)
    }

    /// The vault's id, 16 random bytes; public.
    pub fn id(&self) -> [u8; 16] {
        self.shared.keys.vault_id
    }

    /// The SHA-256 of the newest manifest: stands for every byte of every object.
    pub fn root(&self) -> [u8; 32] {
        self.commit.root
    }

    /// How many commits there were, from 1 (the empty vault).
    pub fn generation(&self) -> u64 {
        self.commit.manifest.generation
    }

    /// Whether an anchor remembers this state, or the one before it: without, a store that was put
    /// back as a whole to an earlier day cannot be told from a fresh one.
    pub fn is_anchored(&self) -> bool {
        self.anchored
    }

    /// Whether it was opened for writing.
    pub fn is_writable(&self) -> bool {
        self.access == Access::ReadWrite
    }

    /// How well the memory that holds this vault's keys is protected.
    pub fn protection(&self) -> MemoryProtection {
        self.shared.keys.protection()
    }

    /// Lists all objects, by name.
    pub fn list(&self) -> Vec<ObjectInfo> {
        self.commit
            .index
            .iter()
            .map(|(name, record)| info(name, record))
            .collect()
    }

    /// Tells about one object.
    pub fn info(&self, name: &str) -> Option<ObjectInfo> {
        self.commit.index.get(name).map(|record| info(name, record))
    }

    /// Stores what `reader` yields under this name, in place of what was there.
    ///
    /// When this returns, the object is durable; when it fails, nothing has changed.
    ///
    /// # Errors
    ///
    /// [`VaultError::Name`] for a name that cannot be one, [`VaultError::Transfer`] if the reader
    /// failed, [`VaultError::ReadOnly`], or [`VaultError::Poisoned`] after a failed commit.
    pub fn put(&mut self, name: &str, reader: impl Read) -> Result<ObjectInfo, VaultError> {
        let mut stored = self.put_all([(name, reader)])?;
        stored.pop().ok_or(VaultError::NotFound)
    }

    /// Stores many objects in one commit: all of them, or none.
    ///
    /// # Errors
    ///
    /// As for [`Vault::put`].
    pub fn put_all<N: AsRef<str>, R: Read>(
        &mut self,
        entries: impl IntoIterator<Item = (N, R)>,
    ) -> Result<Vec<ObjectInfo>, VaultError> {
        self.writable()?;
        let mut next = Index::clone(&self.commit.index);
        let mut stored = Vec::new();
        let mut written = Vec::new();
        let outcome = entries.into_iter().try_for_each(|(name, reader)| {
            let (name, file) = (name.as_ref(), random_id()?);
            check_place(&next, name)?;
            written.push(file);
            let record = self.write_object(next.get(name), file, reader)?;
            stored.push(info(name, &record));
            next.insert(name.to_owned(), record);
            Ok(())
        });
        if let Err(e) = outcome {
            self.discard(&written);
            return Err(e);
        }
        let committed = self.commit(next);
        // A poisoned vault may have committed: its files are left to the next writer to judge.
        if committed.is_err() && !self.poisoned {
            self.discard(&written);
        }
        committed.map(|()| stored)
    }

    /// Writes the content of an object to `writer`; returns the bytes written.
    ///
    /// # Errors
    ///
    /// [`VaultError::NotFound`], [`VaultError::Transfer`] if the writer failed, or
    /// [`VaultError::Tampered`]: what was written until then is verified, and incomplete.
    pub fn get(&self, name: &str, mut writer: impl Write) -> Result<u64, VaultError> {
        let object = self.object(name)?;
        let mut buffer = Plaintext::zeros(STRETCH.min(object.len().max(1)) as usize);
        let mut offset = 0;
        while offset < object.len() {
            let read = object
                .read_at(&mut buffer, offset)
                .map_err(|e| e.of(name))?;
            writer
                .write_all(&buffer[..read])
                .map_err(VaultError::Transfer)?;
            offset += read as u64;
        }
        writer.flush().map_err(VaultError::Transfer)?;
        Ok(offset)
    }

    /// Opens an object for reading at any place.
    ///
    /// # Errors
    ///
    /// [`VaultError::NotFound`], or [`VaultError::Tampered`] if its file is not what the index names.
    pub fn object(&self, name: &str) -> Result<Object, VaultError> {
        let record = self.commit.index.get(name).ok_or(VaultError::NotFound)?;
        let object = Object::open(&self.shared.store, &self.shared.keys, record);
        Ok(object.map_err(|e| e.of(name))?)
    }

    /// Removes an object, or an empty directory. Its key is in no index any more, so a copy of its file
    /// stays closed.
    ///
    /// # Errors
    ///
    /// [`VaultError::NotFound`], [`VaultError::ReadOnly`], or [`VaultError::Poisoned`].
    pub fn remove(&mut self, name: &str) -> Result<(), VaultError> {
        self.writable()?;
        let mut next = Index::clone(&self.commit.index);
        if next.remove(name).is_none() {
            let empty = next.directories.remove(name).is_some();
            check_place(&next, name)?;
            if !empty {
                return Err(VaultError::NotFound);
            }
        }
        self.commit(next)
    }

    /// Grants a subject a view of this vault as it is now.
    ///
    /// The lease stands on its own: later puts and removes are not seen through it, and files it
    /// may need stay.
    ///
    /// # Errors
    ///
    /// [`VaultError::Io`] if the readers' lock cannot be taken.
    pub fn lease(&self, terms: LeaseTerms) -> Result<Lease, VaultError> {
        let lock = self
            .shared
            .store
            .lock_reader()
            .map_err(VaultError::io("lock the vault"))?;
        Ok(Lease::new(
            Arc::clone(&self.shared),
            Arc::clone(&self.commit.index),
            Some(lock),
            terms,
        ))
    }

    pub(crate) fn writable(&self) -> Result<(), VaultError> {
        match (self.access, self.poisoned) {
            (Access::ReadOnly, _) => Err(VaultError::ReadOnly),
            (Access::ReadWrite, true) => Err(VaultError::Poisoned),
            (Access::ReadWrite, false) => Ok(()),
        }
    }

    fn write_object(
        &self,
        before: Option<&Record>,
        file_id: [u8; 16],
        reader: impl Read,
    ) -> Result<Record, VaultError> {
        let (object_id, version) = match before {
            Some(record) => (
                record.object_id,
                record.version.checked_add(1).ok_or(VaultError::TooLarge)?,
            ),
            None => (random_id()?, 1),
        };
        let plan = stream::Plan {
            chunk: self.shared.chunk,
            padding: self.shared.padding,
            file_id,
            object_id,
            version,
            key_epoch: self.commit.manifest.key_epoch,
            number: 0,
        };
        let (extent, len) = stream::write(&self.shared, &plan, reader)?;
        let whole = Record::whole(object_id, len, (self.clock)(), extent);
        // What is put in the place of a link is a file; a file keeps its permissions.
        let mode = before.filter(|b| !b.is_link).map_or(whole.mode, |b| b.mode);
        Ok(Record { mode, ..whole })
    }

    pub(crate) fn commit(&mut self, index: Index) -> Result<(), VaultError> {
        let next = self.next(index);
        let written = commit::write(&self.shared, &self.commit, next, self.anchor.as_deref());
        self.committed(written)
    }

    /// A next state that differs in its objects only.
    pub(crate) fn next(&self, index: Index) -> Next {
        Next {
            index,
            header_epoch: self.header.epoch,
            key_epoch: self.commit.manifest.key_epoch,
            time: (self.clock)(),
        }
    }

    /// Takes the outcome of a commit for the state of this handle.
    pub(crate) fn committed(&mut self, outcome: Result<Commit, Failed>) -> Result<(), VaultError> {
        match outcome {
            Ok(commit) => {
                let before = std::mem::replace(&mut self.commit, commit);
                commit::retire(&self.shared.store, before, &self.commit);
                Ok(())
            }
            Err(Failed { error, undecided }) => {
                self.poisoned = undecided;
                Err(error)
            }
        }
    }

    pub(crate) fn clock(&self) -> Clock {
        Arc::clone(&self.clock)
    }

    fn discard(&self, files: &[[u8; 16]]) {
        for file in files {
            // What cannot be removed is an orphan, and collected by the next writer.
            let _ = self.shared.store.remove(Place::Objects, &file_name(file));
        }
    }

    #[cfg(test)]
    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    #[cfg(test)]
    pub(crate) fn index(&self) -> &Index {
        &self.commit.index
    }
}

/// Bytes that `get` reads at once; a whole number of chunks of every size.
const STRETCH: u64 = 1 << 20;

/// A name must be valid, and must not be a directory of another or lie under a file.
pub(crate) fn check_place(index: &Index, name: &str) -> Result<(), NameError> {
    name::check(name)?;
    let under = format!("{name}/");
    let below = |(found, _): (&String, _)| found.starts_with(&under);
    let taken = index.range(under.clone()..).next().map(|(n, _)| (n, ()));
    let directory = index.directories.range(under.clone()..).next();
    let taken = taken.is_some_and(below)
        || directory.map(|(n, _)| (n, ())).is_some_and(below)
        || index.directories.contains_key(name);
    let below_a_file = name
        .match_indices('/')
        .any(|(at, _)| index.contains_key(&name[..at]));
    if taken || below_a_file {
        Err(NameError::Conflict)
    } else {
        Ok(())
    }
}

pub(crate) fn info(name: &str, record: &Record) -> ObjectInfo {
    ObjectInfo {
        name: name.to_owned(),
        len: record.len,
        modified: record.modified,
        version: record.version,
        mode: record.mode,
        is_link: record.is_link,
    }
}

fn writing() -> OpenOptions {
    OpenOptions {
        access: Access::ReadWrite,
        ..OpenOptions::default()
    }
}

fn system_time() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
