//! A KEK that a broker released to this attested guest.

use super::{KekError, KekProvider};
use crate::envelope::{SlotInfo, SlotKind};
use crate::secret::{Kek, SecretKey};

/// A released KEK. How it was released is the broker's matter; here it is 32 bytes.
#[derive(Debug)]
pub struct Released(SecretKey);

impl Released {
    /// Moves the key into protected memory, and zeroes where it came from.
    ///
    /// # Errors
    ///
    /// [`KekError::Unavailable`] if the kernel gives no memory; the source is zeroed all the same.
    pub fn take(key: &mut [u8; SecretKey::LEN]) -> Result<Self, KekError> {
        SecretKey::take(key)
            .map(Self)
            .map_err(KekError::Unavailable)
    }
}

impl KekProvider for Released {
    fn kind(&self) -> SlotKind {
        SlotKind::Broker
    }

    fn new_slot(&self) -> Result<Vec<u8>, KekError> {
        Ok(Vec::new())
    }

    fn kek(&self, slot: &SlotInfo) -> Result<Kek, KekError> {
        if !slot.parameters.is_empty() {
            return Err(KekError::Parameters);
        }
        Kek::copy_of(&self.0).map_err(KekError::Unavailable)
    }
}
