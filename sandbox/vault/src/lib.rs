//! Layer 4: data that opens only with a key, and is read only under a lease.
//!
//! ```text
//! KekProvider ─▶ Kek ─▶ slot ─▶ VRK ─┬▶ manifest (generation, root) ─▶ index (names, wrapped DEKs)
//!                                    └▶ wrap key ─▶ DEK ─▶ chunks of one object version
//! Vault ─▶ Lease { subject, prefix, rights, expiry } ─▶ read_at ─▶ (FUSE) ─▶ workload
//! ```
//!
//! The bytes on disk are described in `docs/vault-format.md`, well enough for a second
//! implementation. What a subject may lease is decided in `policy`; where the KEK comes from, in
//! the broker. A lease without an audit log is refused by the session, not here.
//!
//! Nothing is handed out before it was verified: a chunk's tag before its first byte, its place in
//! the object by the object's Merkle root, the object by the index, the index by the manifest. The
//! hash of the manifest, [`Vault::root`], is what an [`anchor`] remembers, so that the store as a
//! whole cannot be put back to an earlier day.

#![deny(unsafe_code)]

pub mod anchor;
pub mod audit;
mod error;
mod extent;
mod format;
pub mod kek;
mod lease;
mod name;
mod object;
mod secret;
pub mod tpm;
mod vault;

mod commit;
mod copy;
mod create;
mod envelope;
mod erase;
mod find;
mod rename;
mod rotate;
mod sealed;
mod slots;
mod snapshot;
mod store;
mod stream;
mod tree;
mod verify;
pub mod volume;

// The one place with unsafe code: memory that is locked, and hidden from dumps.
#[allow(unsafe_code)]
mod sys;

#[cfg(feature = "fuse")]
pub mod fuse;

#[doc(hidden)]
pub mod fuzz;

pub use crate::envelope::{SlotInfo, SlotKind};
pub use crate::error::{Part, ReadError, VaultError};
pub use crate::format::{ChunkSize, Padding};
pub use crate::lease::{
    Damage, Expiry, Lease, LeaseError, LeaseTerms, LeaseUse, LeasedObject, Rights,
};
pub use crate::name::NameError;
pub use crate::object::Object;
pub use crate::rotate::Rotation;
pub use crate::secret::{Kek, SecretKey};
pub use crate::sys::MemoryProtection;
pub use crate::vault::{Access, Clock, CreateOptions, ObjectInfo, OpenOptions, Vault};

pub use crate::verify::{Progress, Verified};

#[cfg(test)]
mod tests;
