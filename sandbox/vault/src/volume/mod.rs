//! A vault as files that can be changed at any place, as a mounted file system changes them.
//!
//! ```text
//! write ▸ chunks in memory ▸ (many) sealed into an extent of their own ▸ fsync: index, manifest, anchor
//! ```
//!
//! What is written stays in memory, up to [`Limits::unsealed`], and is sealed before it goes to disk:
//! the written chunks of a file become a new extent, under a new key. Nothing that is committed is ever
//! overwritten. A commit is of everything that was done before it, names and content, so that a crash
//! leaves the whole volume at one commit or the next. [`Volume::commit`] is what fsync(2) asks for, of
//! any file; several callers share one.
//!
//! The volume is its vault's one writer. Nodes are numbered as in the FUSE protocol, in which 1 is the
//! root, and live for as long as a name, an open file or the kernel's count refers to them.

mod commit;
mod file;
mod ops;
mod tree;

#[cfg(test)]
mod tests;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use self::tree::{Content, Kind, Tree};
use crate::commit::Shared;
use crate::error::{ReadError, VaultError};
use crate::format::Id;
use crate::lease::{Lease, LeaseTerms};
use crate::vault::{Clock, Vault};

pub(crate) use self::ops::{Change, Entry, New, NodeKind, Stat, Time};
pub(crate) use self::tree::ROOT;

/// What a volume may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of written chunks that are kept in memory, over all files.
    pub unsealed: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { unsealed: 64 << 20 }
    }
}

/// Why something could not be done to a volume.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// As a file system refuses it.
    #[error("the file system refuses this")]
    Refused(#[source] std::io::Error),
    /// What is stored could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The vault could not be written to.
    #[error(transparent)]
    Vault(#[from] VaultError),
}

impl VolumeError {
    /// The number that a system call would fail with.
    pub fn errno(&self) -> Errno {
        let of = |error: &std::io::Error| Errno::from_io_error(error).unwrap_or(Errno::IO);
        match self {
            Self::Refused(error) => of(error),
            Self::Read(ReadError::Io { source, .. })
            | Self::Vault(VaultError::Io { source, .. }) => of(source),
            Self::Read(_) | Self::Vault(_) => Errno::IO,
        }
    }
}

impl From<Errno> for VolumeError {
    fn from(errno: Errno) -> Self {
        Self::Refused(errno.into())
    }
}

/// What was done to a volume and is in no commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Uncommitted {
    /// Operations that changed something.
    pub changes: u64,
    /// Bytes written to files.
    pub bytes: u64,
}

/// A vault, and the changes that are on their way into it.
pub struct Volume {
    /// `None` once it is closed.
    writer: Mutex<Option<Writer>>,
    state: Mutex<State>,
    clock: Clock,
    limits: Limits,
    /// Bytes of chunks that are written and not sealed.
    unsealed: AtomicU64,
    /// Operations that changed something, ever; and bytes they wrote.
    changes: AtomicU64,
    bytes: AtomicU64,
    /// Of those, what is committed.
    committed_changes: AtomicU64,
    committed_bytes: AtomicU64,
}

struct Writer {
    vault: Vault,
    /// Files of extents that a commit which failed would have made durable.
    unsynced: Vec<Id>,
}

struct State {
    tree: Tree,
    /// `None` once it is closed: with it go the keys.
    shared: Option<Arc<Shared>>,
    key_epoch: u64,
}

impl Volume {
    /// Takes a vault that is open for writing.
    ///
    /// # Errors
    ///
    /// [`VaultError::ReadOnly`] if it is not.
    pub fn new(vault: Vault, limits: Limits) -> Result<Self, VaultError> {
        Self::after(None, vault, limits)
    }

    /// Takes a vault that is shown in the place of an earlier volume: no node has a number that one of
    /// that volume had.
    ///
    /// # Errors
    ///
    /// As for [`Volume::new`].
    pub fn after(before: Option<&Self>, vault: Vault, limits: Limits) -> Result<Self, VaultError> {
        vault.writable()?;
        let first = before.map_or(ROOT, |before| before.state().tree.next());
        let state = State {
            tree: Tree::new(&vault.commit.index, first),
            shared: Some(Arc::clone(&vault.shared)),
            key_epoch: vault.commit.manifest.key_epoch,
        };
        Ok(Self {
            clock: vault.clock(),
            writer: Mutex::new(Some(Writer {
                vault,
                unsynced: Vec::new(),
            })),
            state: Mutex::new(state),
            limits,
            unsealed: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            committed_changes: AtomicU64::new(0),
            committed_bytes: AtomicU64::new(0),
        })
    }

    /// Grants a subject this volume, as far as the terms go; their prefix must be empty.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Refused`] if the volume is closed or a prefix was given.
    pub fn lease(&self, terms: LeaseTerms) -> Result<Lease, VolumeError> {
        if !terms.prefix.is_empty() {
            return Err(Errno::INVAL.into());
        }
        let shared = self.state().shared()?;
        Ok(Lease::new(shared, Arc::default(), None, terms))
    }

    /// What would be lost if the volume were closed now.
    pub fn uncommitted(&self) -> Uncommitted {
        let left = |all: &AtomicU64, committed: &AtomicU64| {
            let committed = committed.load(Ordering::Acquire);
            all.load(Ordering::Acquire).saturating_sub(committed)
        };
        Uncommitted {
            changes: left(&self.changes, &self.committed_changes),
            bytes: left(&self.bytes, &self.committed_bytes),
        }
    }

    /// Gives the vault and its keys up, with whatever is not committed, and says what that was. From now
    /// on everything fails.
    pub fn close(&self) -> Uncommitted {
        let writer = self.writer().take();
        let mut state = self.state();
        let shared = state.shared.take();
        for (_, content) in state.tree.files() {
            let mut file = content.write();
            file.forget();
            if let Some(shared) = &shared {
                self::commit::discard(shared, std::mem::take(&mut file.fresh));
            }
        }
        drop(writer);
        self.uncommitted()
    }

    /// The vault's state as of the last commit: its generation and root; `None` once it is closed.
    pub fn committed(&self) -> Option<(u64, [u8; 32])> {
        let writer = self.writer();
        let vault = &writer.as_ref()?.vault;
        Some((vault.generation(), vault.root()))
    }

    /// Whether an anchor remembers the vault's state.
    pub fn is_anchored(&self) -> bool {
        self.writer()
            .as_ref()
            .is_some_and(|w| w.vault.is_anchored())
    }

    fn now(&self) -> u64 {
        (self.clock)()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, Option<Writer>> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a change. While the state is locked, so that a commit has either counted it or not made it.
    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Volume {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Volume")
            .field("uncommitted", &self.uncommitted())
            .finish_non_exhaustive()
    }
}

impl State {
    fn shared(&self) -> Result<Arc<Shared>, Errno> {
        self.shared.clone().ok_or(Errno::ACCESS)
    }

    fn content(&self, number: u64) -> Result<Content, Errno> {
        match &self.tree.get(number).ok_or(Errno::NOENT)?.kind {
            Kind::File(content) => Ok(content.clone()),
            Kind::Directory(_) => Err(Errno::ISDIR),
        }
    }
}
