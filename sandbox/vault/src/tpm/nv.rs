//! A few bytes in a TPM's own memory (Part 3, "Non-volatile Storage").

use super::wire::{self, Command};
use super::{Tpm, TpmError};

impl Tpm {
    /// Reads the first `len` bytes of an index; `None` if there is no such index, or nothing in it.
    pub(crate) fn nv_read(&mut self, index: u32, len: u16) -> Result<Option<Vec<u8>>, TpmError> {
        let command = Command::new(wire::NV_READ)
            .handle(wire::OWNER)
            .handle(index)
            .password()
            .u16(len)
            .u16(0);
        match self.call(command) {
            Ok(mut answer) => answer.bytes().map(Some),
            Err(TpmError::Refused(code)) if wire::is_nothing(code) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes all bytes of an index at once, and makes the index first if there is none.
    pub(crate) fn nv_write(&mut self, index: u32, bytes: &[u8]) -> Result<(), TpmError> {
        match self.write(index, bytes) {
            Err(TpmError::Refused(code)) if wire::is_nothing(code) => {
                self.define(index, bytes.len() as u16)?;
                self.write(index, bytes)
            }
            outcome => outcome,
        }
    }

    fn write(&mut self, index: u32, bytes: &[u8]) -> Result<(), TpmError> {
        let command = Command::new(wire::NV_WRITE)
            .handle(wire::OWNER)
            .handle(index)
            .password()
            .sized(bytes)
            .u16(0);
        self.call(command).map(drop)
    }

    fn define(&mut self, index: u32, len: u16) -> Result<(), TpmError> {
        let command = Command::new(wire::NV_DEFINE_SPACE)
            .handle(wire::OWNER)
            .password()
            .sized(&[])
            .sized(&wire::nv_public(index, len));
        self.call(command).map(drop)
    }
}
