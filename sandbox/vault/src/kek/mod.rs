//! Where the key that opens a vault comes from.
//!
//! A new kind: a file here, a line below, a number in [`SlotKind`].

mod broker;
mod passphrase;
#[cfg(feature = "pkcs11")]
mod pkcs11;
mod recovery;
mod tpm;

use std::io;

pub use broker::Released;
pub use passphrase::{Cost, Passphrase};
#[cfg(feature = "pkcs11")]
pub use pkcs11::Pkcs11;
pub use recovery::{Recovery, ShareError};
pub use tpm::Tpm;
pub(crate) use tpm::parse as parse_tpm;

use crate::envelope::{SlotInfo, SlotKind};
use crate::secret::Kek;

/// Yields the KEK of a slot.
pub trait KekProvider {
    /// Names the kind of slot this provider opens.
    fn kind(&self) -> SlotKind;

    /// Chooses the parameters of a new slot, at most 1024 bytes. They are stored in clear and bound
    /// to the sealed key.
    ///
    /// # Errors
    ///
    /// [`KekError::Unavailable`] if there are no random bytes to choose them from.
    fn new_slot(&self) -> Result<Vec<u8>, KekError>;

    /// Yields the KEK for this slot.
    ///
    /// The slot's fields are not authenticated yet: a provider bounds what they make it do.
    ///
    /// # Errors
    ///
    /// [`KekError::Parameters`] if the slot asks for what the provider will not do.
    fn kek(&self, slot: &SlotInfo) -> Result<Kek, KekError>;
}

/// Why there is no KEK.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KekError {
    /// The slot's parameters are malformed, or beyond what is safe to compute.
    #[error("the parameters of the key slot are damaged or out of bounds")]
    Parameters,
    /// The shares do not give a key back.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The device that keeps the key does not give this one out; another slot's it may.
    #[error("the device does not give the key out")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The key exists, but cannot be had now.
    #[error("the key cannot be had")]
    Unavailable(#[source] io::Error),
}
