//! Bytes in text: fixed lengths in hexadecimal, bounded lengths in base64.
//!
//! A value of the wrong length is refused where it is read. Nothing here pads or truncates.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Exactly `N` bytes, written as `2 * N` lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hex<const N: usize>(pub [u8; N]);

impl<const N: usize> Hex<N> {
    /// Whether every byte is zero, the usual spelling of "not set" in hardware reports.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }
}

impl<const N: usize> From<[u8; N]> for Hex<N> {
    fn from(bytes: [u8; N]) -> Self {
        Self(bytes)
    }
}

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        // Piece by piece, not byte by byte: an appraisal writes some thousand digits.
        self.0.chunks(32).try_for_each(|piece| {
            let mut text = [0; 64];
            for (pair, byte) in text.as_chunks_mut::<2>().0.iter_mut().zip(piece) {
                *pair = [
                    DIGITS[usize::from(byte >> 4)],
                    DIGITS[usize::from(byte & 15)],
                ];
            }
            let text = text.get(..2 * piece.len()).unwrap_or_default();
            f.write_str(std::str::from_utf8(text).map_err(|_| fmt::Error)?)
        })
    }
}

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why text is not the hexadecimal form of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {digits} hexadecimal digits")]
pub struct HexError {
    /// How many digits the value has.
    pub digits: usize,
}

impl<const N: usize> std::str::FromStr for Hex<N> {
    type Err = HexError;

    fn from_str(text: &str) -> Result<Self, HexError> {
        let wrong = HexError {
            digits: N.saturating_mul(2),
        };
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != N || !rest.is_empty() {
            return Err(wrong);
        }
        let mut bytes = [0; N];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = (digit(*high).ok_or(wrong)? << 4) | digit(*low).ok_or(wrong)?;
        }
        Ok(Self(bytes))
    }
}

fn digit(character: u8) -> Option<u8> {
    match character {
        b'0'..=b'9' => Some(character - b'0'),
        b'a'..=b'f' => Some(character - b'a' + 10),
        b'A'..=b'F' => Some(character - b'A' + 10),
        _ => None,
    }
}

impl<const N: usize> Serialize for Hex<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Digits<const N: usize>;
        impl<const N: usize> Visitor<'_> for Digits<N> {
            type Value = Hex<N>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{} hexadecimal digits", N.saturating_mul(2))
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Hex<N>, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Digits)
    }
}

/// At most `MAX` bytes: base64 (RFC 4648 section 4, padded) in text formats, a byte string in CBOR.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Blob<const MAX: usize>(Vec<u8>);

impl<const MAX: usize> Blob<MAX> {
    /// Takes the bytes, or gives back how many there were if they are too many.
    pub(crate) fn new(bytes: Vec<u8>) -> Result<Self, usize> {
        if bytes.len() > MAX {
            return Err(bytes.len());
        }
        Ok(Self(bytes))
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.0
    }
}

impl<const MAX: usize> fmt::Debug for Blob<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl<const MAX: usize> Serialize for Blob<MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.serialize_str(&STANDARD.encode(&self.0))
        } else {
            serializer.serialize_bytes(&self.0)
        }
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Blob<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes<const MAX: usize>;
        impl<const MAX: usize> Visitor<'_> for Bytes<MAX> {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX} bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
            fn visit_byte_buf<E: serde::de::Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Vec<u8>, E> {
                if text.len() / 4 > MAX / 3 + 1 {
                    return Err(E::invalid_length(text.len(), &self));
                }
                STANDARD.decode(text).map_err(E::custom)
            }
        }
        let bytes = if deserializer.is_human_readable() {
            deserializer.deserialize_str(Bytes::<MAX>)?
        } else {
            deserializer.deserialize_byte_buf(Bytes::<MAX>)?
        };
        Self::new(bytes).map_err(|length| D::Error::invalid_length(length, &Bytes::<MAX>))
    }
}

/// At most `MAX` items. Reading stops at the first one too many instead of collecting them all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Few<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> Few<T, MAX> {
    /// Adds an item, or gives back how many there would be if they are too many.
    pub(crate) fn push(&mut self, item: T) -> Result<(), usize> {
        if self.0.len() >= MAX {
            return Err(self.0.len().saturating_add(1));
        }
        self.0.push(item);
        Ok(())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn iter(&self) -> std::slice::Iter<'_, T> {
        self.0.iter()
    }
}

impl<T, const MAX: usize> Default for Few<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Few<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T, const MAX: usize>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Items<T, MAX> {
            type Value = Few<T, MAX>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX} items")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut few = Few::default();
                while let Some(item) = items.next_element()? {
                    few.push(item)
                        .map_err(|count| A::Error::invalid_length(count, &self))?;
                }
                Ok(few)
            }
        }
        deserializer.deserialize_seq(Items(std::marker::PhantomData))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_of_the_wrong_length_is_refused_not_padded() {
        assert!("00".repeat(31).parse::<Hex<32>>().is_err());
        assert!("00".repeat(33).parse::<Hex<32>>().is_err());
        assert!("0".repeat(63).parse::<Hex<32>>().is_err());
        assert!("+0".repeat(32).parse::<Hex<32>>().is_err());
        assert_eq!("00".repeat(32).parse::<Hex<32>>().unwrap(), Hex([0; 32]));
    }

    #[test]
    fn more_bytes_than_allowed_are_refused_in_text_and_in_cbor() {
        let long = Blob::<9>(vec![7; 9]);
        let json = serde_json::to_string(&long).unwrap();
        assert_eq!(serde_json::from_str::<Blob<9>>(&json).unwrap(), long);
        assert!(serde_json::from_str::<Blob<8>>(&json).is_err());
        let mut cbor = Vec::new();
        ciborium::into_writer(&long, &mut cbor).unwrap();
        assert_eq!(cbor.len(), 10, "a byte string, not an array");
        assert_eq!(
            ciborium::from_reader::<Blob<9>, _>(&cbor[..]).unwrap(),
            long
        );
        assert!(ciborium::from_reader::<Blob<8>, _>(&cbor[..]).is_err());
    }

    #[test]
    fn base64_has_one_spelling() {
        assert!(serde_json::from_str::<Blob<8>>("\"AA==\"").is_ok());
        assert!(serde_json::from_str::<Blob<8>>("\"AA\"").is_err());
        assert!(serde_json::from_str::<Blob<8>>("\"AB==\"").is_err());
    }
}
