//! Reading and writing fields, little endian, with every length checked.

use super::Malformed;

/// Takes fields off the front of a slice.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed::Field)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed::Field)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// Takes a field that must hold exactly these bytes.
    pub(crate) fn expect(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if self.take(value.len())? == value {
            Ok(())
        } else {
            Err(Malformed::Field)
        }
    }

    /// Takes magic number and format; a file of a later format says so, whatever follows.
    pub(crate) fn magic(&mut self, magic: &[u8; 8]) -> Result<(), Malformed> {
        if self.array::<8>().ok().as_ref() != Some(magic) {
            return Err(Malformed::Magic);
        }
        match self.u16()? {
            super::FORMAT => Ok(()),
            0 => Err(Malformed::Field),
            newer => Err(Malformed::Newer(newer)),
        }
    }

    /// Checks that only zeros are left.
    pub(crate) fn only_zeros(&self) -> Result<(), Malformed> {
        if self.0.iter().all(|byte| *byte == 0) {
            Ok(())
        } else {
            Err(Malformed::Field)
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Puts fields one after the other.
#[derive(Default)]
pub(crate) struct Writer(Vec<u8>);

impl Writer {
    /// Starts with magic number and format.
    pub(crate) fn magic(magic: &[u8; 8]) -> Self {
        let mut writer = Self::default();
        writer.bytes(magic).bytes(&super::FORMAT.to_le_bytes());
        writer
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Fills up with zeros; what is longer already stays as it is.
    pub(crate) fn pad_to(&mut self, len: usize) -> &mut Self {
        if self.0.len() < len {
            self.0.resize(len, 0);
        }
        self
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}
