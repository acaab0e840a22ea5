//! What can go wrong with a vault, and what it means.

use std::fmt;
use std::io;

use crate::anchor::AnchorError;
use crate::audit::Escaped;
use crate::format::Malformed;
use crate::kek::KekError;
use crate::name::NameError;

/// The part of a vault whose bytes are not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Part {
    /// The file `vault`.
    Header,
    /// A slot of the header: its key is right, its content is not.
    Slot,
    /// Both manifests, or the link between them.
    Manifest,
    /// A segment of the index.
    Index,
    /// The file of an object: missing, of another length, or not the one the index names.
    Object,
    /// One chunk of an object, counted from zero.
    Chunk(u64),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("header"),
            Self::Slot => f.write_str("key slot"),
            Self::Manifest => f.write_str("manifest"),
            Self::Index => f.write_str("index"),
            Self::Object => f.write_str("object"),
            Self::Chunk(index) => write!(f, "chunk {index}"),
        }
    }
}

/// A part, and the object it belongs to, in words.
struct Damaged<'a>(&'a Part, &'a Option<String>);

impl fmt::Display for Damaged<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(what, object) = self;
        let Some(object) = object.as_deref().map(Escaped) else {
            return match what {
                Part::Chunk(_) => write!(f, "{what} of an object"),
                Part::Object => f.write_str("an object"),
                _ => write!(f, "the {what} of the vault"),
            };
        };
        match what {
            Part::Object => write!(f, "object `{object}`"),
            Part::Chunk(_) => write!(f, "{what} of object `{object}`"),
            _ => write!(f, "the {what} entry of object `{object}`"),
        }
    }
}

/// Why a vault could not be created, opened or changed.
///
/// No variant carries a byte of content, and only [`VaultError::Tampered`] carries a name: that of the
/// object which the holder of the open vault was reading.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VaultError {
    /// There is no vault at this path.
    #[error("not a vault: there is no file `vault` with a vault's header here")]
    NotAVault,
    /// Something exists where the vault should be created.
    #[error("something exists at this path already; choose another or remove it")]
    Exists,
    /// Written by a later version of this software.
    #[error("the vault has format {found}, this version reads up to {supported}; update it")]
    NewerFormat {
        /// The format found.
        found: u16,
        /// The latest format this version reads.
        supported: u16,
    },
    /// No slot of the provider's kind.
    #[error("the vault has no key slot of kind `{kind}`; use a key of another kind")]
    NoSlot {
        /// The kind the provider serves.
        kind: crate::SlotKind,
    },
    /// The slots are undamaged, and none belongs to this key.
    #[error("the key opens no slot of this vault: wrong passphrase, or the key of another vault")]
    WrongKek,
    /// Stored bytes are not what was written: damage or an attack.
    #[error("{} was tampered with or damaged; restore it from a copy", Damaged(.what, .object))]
    Tampered {
        /// Which part.
        what: Part,
        /// The object it belongs to, where one was being read.
        object: Option<String>,
    },
    /// The store is older than what the anchor remembers.
    #[error("the vault was put back to generation {found}; generation {expected} was committed")]
    RolledBack {
        /// The generation found.
        found: u64,
        /// The generation the anchor remembers.
        expected: u64,
    },
    /// The store has another history than the one the anchor remembers.
    #[error("the vault and its anchor tell different histories from generation {generation} on")]
    Forked {
        /// The generation found.
        generation: u64,
    },
    /// The store is no longer as this writer left it.
    #[error(
        "the vault was changed since this writer's generation {generation}: the writer was put back to an \
         earlier moment, or another one ignored its lock; open the vault again"
    )]
    Moved {
        /// The generation that the writer knows.
        generation: u64,
    },
    /// The anchor could not be asked, or not be moved.
    #[error("the freshness anchor failed")]
    Anchor(#[source] AnchorError),
    /// Somebody else has this vault open for writing.
    #[error("the vault is open for writing elsewhere; close it there first")]
    Locked,
    /// The vault was opened for reading.
    #[error("the vault is open for reading only")]
    ReadOnly,
    /// A write failed half way, so that memory and disk may differ.
    #[error("an earlier write failed; open the vault again")]
    Poisoned,
    /// No object of that name.
    #[error("no object of that name")]
    NotFound,
    /// The name cannot name an object.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Every slot of the header is taken.
    #[error(
        "all {} key slots are taken; remove one first",
        crate::format::header::MAX_SLOTS
    )]
    SlotsFull,
    /// The key opens a slot already.
    #[error("this key opens the vault already; add another one")]
    KeyInUse,
    /// No slot of that id.
    #[error("the vault has no such key slot")]
    NoSuchSlot,
    /// It is the only slot: without it nobody could open the vault.
    #[error("this is the last key slot; add another key first")]
    LastSlot,
    /// The object or the index is larger than the format allows.
    #[error("too large for this vault's chunk size; create a vault with larger chunks")]
    TooLarge,
    /// The key could not be had.
    #[error("no key")]
    Kek(#[from] KekError),
    /// The reader or writer that the caller gave failed.
    #[error("the caller's end of the transfer failed")]
    Transfer(#[source] io::Error),
    /// A system call failed.
    #[error("could not {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// No random bytes, or the cryptographic library refused.
    #[error("the cryptographic library failed; nothing was written")]
    Crypto,
}

/// Why an object could not be read. Nothing was handed out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Stored bytes are not what was written.
    #[error("{} was tampered with or damaged", Damaged(.what, .object))]
    Tampered {
        /// Which part.
        what: Part,
        /// The object's name, where it was opened by name.
        object: Option<String>,
    },
    /// A system call failed.
    #[error("could not {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl From<ReadError> for VaultError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Tampered { what, object } => Self::Tampered { what, object },
            ReadError::Io { doing, source } => Self::Io { doing, source },
        }
    }
}

impl VaultError {
    pub(crate) fn tampered(what: Part) -> impl Fn(Malformed) -> Self {
        move |malformed| match malformed {
            Malformed::Newer(found) => Self::NewerFormat {
                found,
                supported: match what {
                    Part::Index => crate::format::index::FORMAT,
                    _ => crate::format::FORMAT,
                },
            },
            Malformed::Magic | Malformed::Field => Self::damaged(what),
        }
    }

    /// Damage to a part of the vault itself.
    pub(crate) fn damaged(what: Part) -> Self {
        Self::Tampered { what, object: None }
    }

    pub(crate) fn io(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

impl ReadError {
    /// Damage to a part of an object, which whoever opened it by name can name.
    pub(crate) const fn damaged(what: Part) -> Self {
        Self::Tampered { what, object: None }
    }

    /// The same error, about this chunk of the object: an extent counts its own.
    pub(crate) fn in_chunk(self, index: u64) -> Self {
        match self {
            Self::Tampered {
                what: Part::Chunk(_),
                object,
            } => Self::Tampered {
                what: Part::Chunk(index),
                object,
            },
            other => other,
        }
    }

    /// The same error, about the object of this name.
    pub(crate) fn of(self, name: &str) -> Self {
        match self {
            Self::Tampered { what, object: None } => Self::Tampered {
                what,
                object: Some(name.to_owned()),
            },
            other => other,
        }
    }

    pub(crate) fn io(doing: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

impl From<crate::sealed::Unsealed> for VaultError {
    fn from(_: crate::sealed::Unsealed) -> Self {
        Self::Crypto
    }
}
