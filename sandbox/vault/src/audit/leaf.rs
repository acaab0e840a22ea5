//! The bytes of a leaf, looked at where they are.
//!
//! One record has one spelling: the deterministic CBOR of [`super::record`]. Everything else is refused
//! here, without building anything, so that a log is verified about as fast as it is hashed.

use super::record::{MAX_DEPTH, MAX_ENTRY, MAX_PAYLOAD, RecordError};

/// A record in its bytes, found to be in the one spelling.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Leaf<'a> {
    pub(super) seq: u64,
    pub(super) boot: [u8; 16],
    pub(super) kind: &'a str,
    pub(super) mono_ns: u64,
    /// Nanoseconds since 1970.
    pub(super) time_ns: u64,
    pub(super) origin: &'a str,
    /// CBOR with the JSON data model.
    pub(super) payload: &'a [u8],
}

impl<'a> Leaf<'a> {
    /// Reads a leaf.
    pub(super) fn scan(bytes: &'a [u8]) -> Result<Self, RecordError> {
        if bytes.len() > MAX_ENTRY {
            return Err(RecordError::Malformed("longer than a record may be"));
        }
        let mut rest = Cursor(bytes);
        if rest.head()? != (MAP, 7) {
            return Err(RecordError::Malformed("not a map of seven fields"));
        }
        let seq = rest.uint("seq")?;
        rest.named("boot")?;
        let boot = match rest.head()? {
            (BYTES, 16) => rest.take(16)?.try_into().map_err(|_| CUT)?,
            _ => return Err(RecordError::Malformed("boot is not 16 bytes")),
        };
        rest.named("kind")?;
        let kind = rest.text()?;
        if !is_kind(kind) {
            return Err(RecordError::Kind);
        }
        let (mono_ns, time_ns) = (rest.uint("mono")?, rest.uint("time")?);
        rest.named("origin")?;
        let origin = rest.text()?;
        rest.named("payload")?;
        let payload = rest.0;
        rest.json(MAX_DEPTH)?;
        if !rest.0.is_empty() {
            return Err(RecordError::Malformed("bytes follow the record"));
        }
        if payload.len() > MAX_PAYLOAD {
            return Err(RecordError::TooBig);
        }
        Ok(Self {
            seq,
            boot,
            kind,
            mono_ns,
            time_ns,
            origin,
            payload,
        })
    }
}

/// Whether this can be a record's kind.
pub(super) fn is_kind(kind: &str) -> bool {
    let ok = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    (1..=64).contains(&kind.len()) && kind.bytes().all(ok)
}

// Major types (RFC 8949, "Specification of the CBOR Encoding").
const UINT: u8 = 0;
const NINT: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const ARRAY: u8 = 4;
const MAP: u8 = 5;
const SIMPLE: u8 = 7;

const CUT: RecordError = RecordError::Malformed("ends too early");
const SPELLING: RecordError = RecordError::Malformed("not in deterministic encoding");

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], RecordError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(CUT)?;
        self.0 = rest;
        Ok(taken)
    }

    /// Takes a head: major type and argument, in the shortest form.
    fn head(&mut self) -> Result<(u8, u64), RecordError> {
        let [first] = *self.take(1)? else {
            return Err(CUT);
        };
        let (major, info) = (first >> 5, first & 31);
        if info < 24 {
            return Ok((major, u64::from(info)));
        }
        if info > 27 {
            return Err(SPELLING);
        }
        let long = self.take(1 << (info - 24))?;
        let argument = long.iter().fold(0, |n, byte| n << 8 | u64::from(*byte));
        // A float's bits are not a number that could be shorter.
        let least = [24, 1 << 8, 1 << 16, 1 << 32][usize::from(info - 24)];
        if major != SIMPLE && argument < least {
            return Err(SPELLING);
        }
        Ok((major, argument))
    }

    fn text(&mut self) -> Result<&'a str, RecordError> {
        let (TEXT, len) = self.head()? else {
            return Err(RecordError::Malformed("not text"));
        };
        let bytes = self.take(usize::try_from(len).map_err(|_| CUT)?)?;
        std::str::from_utf8(bytes).map_err(|_| RecordError::Malformed("not UTF-8"))
    }

    fn named(&mut self, name: &'static str) -> Result<(), RecordError> {
        if self.text()? == name {
            Ok(())
        } else {
            Err(RecordError::Malformed("fields are not those of a record"))
        }
    }

    fn uint(&mut self, name: &'static str) -> Result<u64, RecordError> {
        self.named(name)?;
        match self.head()? {
            (UINT, n) => Ok(n),
            _ => Err(RecordError::Malformed("not an integer")),
        }
    }

    /// Passes over a value of the JSON data model.
    fn json(&mut self, depth: usize) -> Result<(), RecordError> {
        let depth = depth.checked_sub(1).ok_or(RecordError::TooDeep)?;
        let start = self.0;
        match self.head()? {
            (UINT, _) => Ok(()),
            (NINT, n) if i64::try_from(n).is_ok() => Ok(()),
            (NINT, _) => Err(RecordError::Malformed("integer out of range")),
            (TEXT, len) => {
                let bytes = self.take(usize::try_from(len).map_err(|_| CUT)?)?;
                match std::str::from_utf8(bytes) {
                    Ok(_) => Ok(()),
                    Err(_) => Err(RecordError::Malformed("not UTF-8")),
                }
            }
            // A count beyond the bytes ends with the bytes: nothing is set aside for it.
            (ARRAY, count) => (0..count).try_for_each(|_| self.json(depth)),
            (MAP, count) => {
                let mut last = None;
                for _ in 0..count {
                    let key = self.text()?;
                    // Bytewise order of encoded keys: the head comes first, so shorter keys do.
                    let key = (key.len(), key);
                    if last.replace(key).is_some_and(|last| last >= key) {
                        return Err(SPELLING);
                    }
                    self.json(depth)?;
                }
                Ok(())
            }
            (SIMPLE, _) => {
                let spelt = &start[..start.len() - self.0.len()];
                simple(spelt)
            }
            _ => Err(RecordError::Malformed("a type that JSON does not have")),
        }
    }
}

/// Checks false, true, null, or a finite number in its shortest form.
fn simple(spelt: &[u8]) -> Result<(), RecordError> {
    let number = match *spelt {
        [0xf4..=0xf6] => return Ok(()),
        // Half precision is as short as it gets.
        [0xf9, a, _] if a & 0x7c != 0x7c => return Ok(()),
        [0xfa, a, b, c, d] => f64::from(f32::from_be_bytes([a, b, c, d])),
        [0xfb, a, b, c, d, e, f, g, h] => f64::from_be_bytes([a, b, c, d, e, f, g, h]),
        [0xf9, ..] => return Err(RecordError::Malformed("number is not finite")),
        _ => return Err(RecordError::Malformed("a type that JSON does not have")),
    };
    if !number.is_finite() {
        return Err(RecordError::Malformed("number is not finite"));
    }
    let mut shortest = Vec::with_capacity(9);
    match ciborium::into_writer(&number, &mut shortest) {
        Ok(()) if shortest == spelt => Ok(()),
        _ => Err(SPELLING),
    }
}
