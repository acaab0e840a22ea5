//! An anchor in the memory of a TPM, which does not come back with a copy of the disk.

use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use super::{AnchorError, Anchored, FreshnessAnchor};
use crate::tpm::{Tpm, TpmError};

/// Remembers one vault in one NV index: `"CSMANCHR"` | vault id 16 | generation u64 | root 32.
///
/// Holds against whoever has the disk. It does not hold against whoever may use this TPM as its owner,
/// which is root on this machine; nor against a host that puts back a virtual TPM with the disk.
///
/// A writer on this machine is alone, because it holds the vault's lock; two copies of one vault on one
/// machine need an anchor each.
#[derive(Debug)]
pub struct TpmAnchor {
    device: PathBuf,
    index: u32,
    turn: Mutex<()>,
}

impl TpmAnchor {
    /// Names the TPM's device, or the socket of an emulator, and an NV index of the owner's range
    /// (`0x01800000` to `0x01bfffff`); `None` for another. The index is made by the first commit.
    pub fn new(device: impl Into<PathBuf>, index: u32) -> Option<Self> {
        (0x0180_0000..0x01c0_0000).contains(&index).then(|| Self {
            device: device.into(),
            index,
            turn: Mutex::new(()),
        })
    }

    fn load(&self, tpm: &mut Tpm, vault: &[u8; 16]) -> Result<Option<Anchored>, AnchorError> {
        let bytes = tpm
            .nv_read(self.index, super::LEN as u16)
            .map_err(unreachable)?;
        let Some(bytes) = bytes else {
            return Ok(None);
        };
        super::parse(&bytes, vault)
            .map(Some)
            .ok_or(AnchorError::Damaged)
    }
}

impl FreshnessAnchor for TpmAnchor {
    fn read(&self, vault: &[u8; 16]) -> Result<Option<Anchored>, AnchorError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tpm = Tpm::open(&self.device).map_err(AnchorError::Unreachable)?;
        self.load(&mut tpm, vault)
    }

    fn advance(
        &self,
        vault: &[u8; 16],
        from: Option<Anchored>,
        to: Anchored,
    ) -> Result<(), AnchorError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tpm = Tpm::open(&self.device).map_err(AnchorError::Unreachable)?;
        if self.load(&mut tpm, vault)? != from {
            return Err(AnchorError::Moved);
        }
        tpm.nv_write(self.index, &super::encode(vault, to))
            .map_err(unreachable)
    }
}

fn unreachable(error: TpmError) -> AnchorError {
    AnchorError::Unreachable(match error {
        TpmError::Io(error) => error,
        other => io::Error::other(other),
    })
}
