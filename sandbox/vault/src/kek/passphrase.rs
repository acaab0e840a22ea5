//! A KEK from a passphrase, by Argon2id (RFC 9106).
//!
//! ```text
//! slot parameters: memory u32 (KiB) | passes u32 | lanes u32 | salt 16
//! ```

use std::fmt;
use std::io;

use argon2::{Algorithm, Argon2, Params, Version};
use zeroize::Zeroizing;

use super::{KekError, KekProvider};
use crate::envelope::{SlotInfo, SlotKind};
use crate::format::{Reader, Writer};
use crate::secret::Kek;

const SALT_LEN: usize = 16;

/// What one guess at a passphrase costs.
///
/// The default is the second recommended choice of RFC 9106, section 4, for one lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Memory in KiB, from 8 MiB to 1 GiB.
    pub memory_kib: u32,
    /// Passes over the memory, from 1 to 16.
    pub passes: u32,
    /// Lanes, from 1 to 16; computed one after the other.
    pub lanes: u32,
}

impl Default for Cost {
    fn default() -> Self {
        Self {
            memory_kib: 64 * 1024,
            passes: 3,
            lanes: 1,
        }
    }
}

impl Cost {
    /// The least that is worth calling a cost; also used where many vaults are opened in tests.
    pub const LEAST: Self = Self {
        memory_kib: 8 * 1024,
        passes: 1,
        lanes: 1,
    };

    /// Most KiB times passes: bounds the time that a forged header can take.
    const MOST_WORK: u64 = 4 * 1024 * 1024;

    fn checked(self) -> Result<Params, KekError> {
        let memory = (8 * 1024..=1024 * 1024).contains(&self.memory_kib);
        let small = (1..=16).contains(&self.passes) && (1..=16).contains(&self.lanes);
        let work = u64::from(self.memory_kib) * u64::from(self.passes);
        if !memory || !small || work > Self::MOST_WORK {
            return Err(KekError::Parameters);
        }
        Params::new(self.memory_kib, self.passes, self.lanes, Some(32))
            .map_err(|_| KekError::Parameters)
    }
}

/// A passphrase, and what new slots for it shall cost.
pub struct Passphrase {
    phrase: Zeroizing<Vec<u8>>,
    cost: Cost,
}

impl Passphrase {
    /// Takes a passphrase; its bytes count, so `é` typed in two ways is two passphrases.
    pub fn new(phrase: Zeroizing<Vec<u8>>) -> Self {
        Self {
            phrase,
            cost: Cost::default(),
        }
    }

    /// Sets what new slots cost. Existing slots keep the cost they were made with.
    #[must_use]
    pub fn with_cost(self, cost: Cost) -> Self {
        Self { cost, ..self }
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Passphrase")
            .field("cost", &self.cost)
            .finish_non_exhaustive()
    }
}

impl KekProvider for Passphrase {
    fn kind(&self) -> SlotKind {
        SlotKind::Passphrase
    }

    fn new_slot(&self) -> Result<Vec<u8>, KekError> {
        self.cost.checked()?;
        let mut salt = [0; SALT_LEN];
        getrandom::fill(&mut salt)
            .map_err(|_| KekError::Unavailable(io::Error::other("no random bytes")))?;
        let mut out = Writer::default();
        out.u32(self.cost.memory_kib)
            .u32(self.cost.passes)
            .u32(self.cost.lanes)
            .bytes(&salt);
        Ok(out.finish())
    }

    fn kek(&self, slot: &SlotInfo) -> Result<Kek, KekError> {
        let (cost, salt) = parse(&slot.parameters).ok_or(KekError::Parameters)?;
        let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, cost.checked()?);
        let mut key = Zeroizing::new([0; 32]);
        argon
            .hash_password_into(&self.phrase, &salt, &mut key[..])
            .map_err(|e| KekError::Unavailable(io::Error::other(e.to_string())))?;
        Kek::take(&mut key).map_err(KekError::Unavailable)
    }
}

fn parse(parameters: &[u8]) -> Option<(Cost, [u8; SALT_LEN])> {
    let mut reader = Reader::new(parameters);
    let memory_kib = reader.u32().ok()?;
    let (passes, lanes) = (reader.u32().ok()?, reader.u32().ok()?);
    let salt = reader.array().ok()?;
    reader.is_empty().then_some((
        Cost {
            memory_kib,
            passes,
            lanes,
        },
        salt,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(memory_kib: u32, passes: u32, lanes: u32) -> SlotInfo {
        let mut out = Writer::default();
        out.u32(memory_kib)
            .u32(passes)
            .u32(lanes)
            .bytes(&[7; SALT_LEN]);
        SlotInfo {
            vault_id: [0; 16],
            slot_id: [0; 16],
            kind: SlotKind::Passphrase,
            epoch: 1,
            parameters: out.finish(),
        }
    }

    #[test]
    fn a_slot_that_would_exhaust_the_machine_is_refused_before_it_is_computed() {
        let passphrase = Passphrase::new(Zeroizing::new(b"x".to_vec()));
        for (memory, passes, lanes) in [
            (u32::MAX, 1, 1),
            (8192, u32::MAX, 1),
            (8192, 1, u32::MAX),
            (1024 * 1024, 16, 1),
            (8, 1, 1),
            (8192, 0, 1),
            (8192, 1, 0),
        ] {
            let refused = passphrase.kek(&slot(memory, passes, lanes));
            assert!(
                matches!(refused, Err(KekError::Parameters)),
                "{memory} {passes} {lanes}"
            );
        }
    }

    #[test]
    fn another_passphrase_or_salt_gives_another_key() -> Result<(), KekError> {
        let slot_a = slot(8192, 1, 1);
        let mut slot_b = slot(8192, 1, 1);
        slot_b.parameters[12] ^= 1;
        let one = Passphrase::new(Zeroizing::new(b"one".to_vec()));
        let two = Passphrase::new(Zeroizing::new(b"two".to_vec()));
        assert_eq!(one.kek(&slot_a)?, one.kek(&slot_a)?);
        assert_ne!(one.kek(&slot_a)?, two.kek(&slot_a)?);
        assert_ne!(one.kek(&slot_a)?, one.kek(&slot_b)?);
        Ok(())
    }
}
