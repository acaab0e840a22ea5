//! The bytes on disk, version 1. The same, for other implementers: `docs/vault-format.md`.
//!
//! Parsing looks at lengths, magic numbers and allow-listed values only, and never allocates more
//! than it was given. Whether what was parsed is believed: [`crate::sealed`] and [`crate::stream`].

mod bytes;
pub(crate) mod header;
pub(crate) mod index;
pub(crate) mod manifest;
pub(crate) mod object;

pub(crate) use bytes::{Reader, Writer};

/// The format this crate writes.
pub(crate) const FORMAT: u16 = 1;

/// AES-256-GCM for chunks and boxes, AES-256-GCM-SIV for wrapped DEKs, SHA-256 throughout. The only
/// suite: there is no "none", and the byte goes into every derivation.
pub(crate) const SUITE: u8 = 1;

/// Most chunks an object may have: its tags (16 bytes each) are held in memory while it is written.
pub(crate) const MAX_CHUNKS: u64 = 1 << 26;

/// An identifier of 16 random bytes.
pub(crate) type Id = [u8; 16];

/// Why bytes were not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    /// Not this kind of file at all.
    Magic,
    /// Needs a reader for format `.0`.
    Newer(u16),
    /// A length, a reserved field or a value outside its allow list.
    Field,
}

/// How many bytes of plaintext are sealed as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChunkSize {
    /// 4 KiB: small random reads.
    KiB4,
    /// 16 KiB: a good middle, also where it is read and written at random.
    #[default]
    KiB16,
    /// 64 KiB: sequential reads.
    KiB64,
    /// 256 KiB: long sequential reads.
    KiB256,
}

impl ChunkSize {
    /// Bytes in a chunk.
    pub fn bytes(self) -> usize {
        1 << self.log2()
    }

    pub(crate) fn log2(self) -> u8 {
        match self {
            Self::KiB4 => 12,
            Self::KiB16 => 14,
            Self::KiB64 => 16,
            Self::KiB256 => 18,
        }
    }

    pub(crate) fn from_log2(log2: u8) -> Result<Self, Malformed> {
        match log2 {
            12 => Ok(Self::KiB4),
            14 => Ok(Self::KiB16),
            16 => Ok(Self::KiB64),
            18 => Ok(Self::KiB256),
            _ => Err(Malformed::Field),
        }
    }
}

/// What the length of a stored object tells about the length of its content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Padding {
    /// Everything: nothing is added.
    None,
    /// Its magnitude: at most 12 % is added, so that all lengths of about a size look alike (the
    /// Padmé scheme of "Reducing Metadata Leakage from Encrypted Files and Communication with PURBs").
    #[default]
    Padme,
}

impl Padding {
    /// The stored length for a content of `len` bytes; `None` if that does not fit in 64 bits.
    pub(crate) fn padded(self, len: u64) -> Option<u64> {
        match self {
            Self::None => Some(len),
            Self::Padme if len < 2 => Some(len),
            Self::Padme => {
                let exponent = len.ilog2();
                let kept = exponent.ilog2() + 1;
                let mask = (1u64 << exponent.saturating_sub(kept)) - 1;
                Some(len.checked_add(mask)? & !mask)
            }
        }
    }

    pub(crate) fn to_byte(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Padme => 1,
        }
    }

    pub(crate) fn from_byte(byte: u8) -> Result<Self, Malformed> {
        match byte {
            0 => Ok(Self::None),
            1 => Ok(Self::Padme),
            _ => Err(Malformed::Field),
        }
    }
}

/// Chunks for this many stored bytes: at least one, so that an empty object has a tag too.
pub(crate) fn chunks(stored: u64, chunk: ChunkSize) -> u64 {
    stored.div_ceil(chunk.bytes() as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padme_adds_at_most_twelve_percent_and_never_shrinks() {
        for len in (0..5000).chain([1 << 20, (1 << 30) + 1, (1 << 40) + 12345, u64::MAX / 2]) {
            let padded = Padding::Padme.padded(len).unwrap_or(0);
            assert!(
                padded >= len && padded - len <= len / 8,
                "{len} became {padded}"
            );
            assert_eq!(Padding::Padme.padded(padded), Some(padded));
        }
        assert_eq!(Padding::Padme.padded(u64::MAX), None);
    }
}
