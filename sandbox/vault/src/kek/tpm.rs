//! A KEK sealed by this machine's TPM 2.0 to its PCRs.
//!
//! Parameters of a slot: PCR mask u32 | length u16 | private area | length u16 | public area. The areas
//! are the TPM's own, TPM2B_PRIVATE and TPM2B_PUBLIC without their lengths.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use zeroize::Zeroizing;

use super::{KekError, KekProvider};
use crate::envelope::{SlotInfo, SlotKind};
use crate::format::{Malformed, Reader, Writer};
use crate::secret::Kek;
use crate::tpm::{Pcrs, Sealed, Tpm as Device, TpmError};

/// Seals KEKs to the PCRs of a TPM, and unseals them.
pub struct Tpm {
    device: Mutex<Device>,
    pcrs: Pcrs,
}

impl Tpm {
    /// Opens a TPM's device ([`DEVICE`](crate::tpm::DEVICE)), or the socket of an emulator.
    ///
    /// `pcrs` is what new slots are sealed to; a slot that is opened names its own.
    ///
    /// # Errors
    ///
    /// [`KekError::Unavailable`] if there is no TPM, or not for this user.
    pub fn open(device: &Path, pcrs: Pcrs) -> Result<Self, KekError> {
        let device = Device::open(device).map_err(KekError::Unavailable)?;
        let device = Mutex::new(device);
        Ok(Self { device, pcrs })
    }
}

impl std::fmt::Debug for Tpm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tpm")
            .field("pcrs", &self.pcrs)
            .finish_non_exhaustive()
    }
}

impl KekProvider for Tpm {
    fn kind(&self) -> SlotKind {
        SlotKind::Tpm
    }

    fn new_slot(&self) -> Result<Vec<u8>, KekError> {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(&mut key[..])
            .map_err(|e| KekError::Unavailable(std::io::Error::other(e)))?;
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let Sealed { private, public } = device.seal(&key[..], self.pcrs).map_err(failed)?;
        let mut out = Writer::default();
        out.u32(self.pcrs.mask())
            .u16(private.len() as u16)
            .bytes(&private)
            .u16(public.len() as u16)
            .bytes(&public);
        Ok(out.finish())
    }

    fn kek(&self, slot: &SlotInfo) -> Result<Kek, KekError> {
        let (pcrs, sealed) = parse(&slot.parameters).map_err(|_| KekError::Parameters)?;
        let mut device = self.device.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key = device.unseal(&sealed, pcrs).map_err(failed)?;
        let key: &mut [u8; 32] = key
            .as_mut_slice()
            .try_into()
            .map_err(|_| KekError::Parameters)?;
        Kek::take(key).map_err(KekError::Unavailable)
    }
}

pub(crate) fn parse(parameters: &[u8]) -> Result<(Pcrs, Sealed), Malformed> {
    let mut fields = Reader::new(parameters);
    let pcrs = Pcrs::of_mask(fields.u32()?).ok_or(Malformed::Field)?;
    let mut area = || {
        let len = usize::from(fields.u16()?);
        fields.take(len).map(<[u8]>::to_vec)
    };
    let (private, public) = (area()?, area()?);
    if !fields.is_empty() {
        return Err(Malformed::Field);
    }
    Ok((pcrs, Sealed { private, public }))
}

fn failed(error: TpmError) -> KekError {
    match error {
        TpmError::Pcrs | TpmError::OtherTpm => KekError::Refused(Box::new(error)),
        TpmError::Io(error) => KekError::Unavailable(error),
        other => KekError::Unavailable(std::io::Error::other(other)),
    }
}
