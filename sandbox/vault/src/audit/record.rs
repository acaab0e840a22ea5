//! What the log keeps, as a value and as bytes.
//!
//! A record becomes a leaf as deterministic CBOR (RFC 8949, "Core Deterministic Encoding
//! Requirements"): one map, keys in bytewise order, shortest heads, shortest floats.
//!
//! ```text
//! { "seq":  uint     position in the log, equal to the leaf index
//!   "boot": bytes16  one opening of the log; mono never runs backwards within it
//!   "kind": text     what happened, [a-z0-9._-]{1,64}
//!   "mono": uint     nanoseconds of the writer's monotonic clock
//!   "time": uint     nanoseconds since 1970-01-01 UTC
//!   "origin":  text  the log this record was written for
//!   "payload": any   JSON data model, at most 16 KiB encoded }
//! ```

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use ciborium::value::Value as Cbor;
use serde_json::Value;

use super::leaf::{Leaf, is_kind};

/// The most bytes a payload may take in CBOR: 16 KiB. Bigger evidence is recorded by its digest.
pub const MAX_PAYLOAD: usize = 16 * 1024;

/// The most bytes a whole leaf may take: a payload and everything that goes around it.
pub const MAX_ENTRY: usize = MAX_PAYLOAD + 1024;

/// The deepest a payload may nest.
pub const MAX_DEPTH: usize = 32;

/// Something that happened, as its witness tells it.
///
/// The log adds what the witness must not choose: position, boot and origin.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What happened: `decision`, `lease`, `adjusting`. Lower case letters, digits, `.`, `_`, `-`.
    pub kind: Cow<'static, str>,
    /// Wall clock, as the time since 1970-01-01 UTC, kept to the nanosecond.
    pub time: Duration,
    /// Monotonic clock in nanoseconds. A record that was overtaken on its way into the log takes
    /// the value of the one before it, so that the clock never runs backwards within a boot.
    pub mono_ns: u64,
    /// The particulars. At most [`MAX_PAYLOAD`] bytes once encoded.
    pub payload: Value,
}

/// A record read back from the log, with what the log added.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The record's position, equal to its leaf index.
    pub seq: u64,
    /// The opening of the log it was written in.
    pub boot: [u8; 16],
    /// The log it was written for.
    pub origin: String,
    /// The record as it was given.
    pub record: Record,
}

/// Why something cannot be a record, or bytes are none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// The payload is over [`MAX_PAYLOAD`].
    #[error(
        "payload of the record is over the limit of {MAX_PAYLOAD} bytes: record its digest instead"
    )]
    TooBig,
    /// The payload nests deeper than [`MAX_DEPTH`].
    #[error("payload of the record nests deeper than {MAX_DEPTH} levels")]
    TooDeep,
    /// The kind is empty, too long, or spelt with other characters than `[a-z0-9._-]`.
    #[error("kind of a record is 1 to 64 of the characters a-z, 0-9, `.`, `_`, `-`")]
    Kind,
    /// The time does not fit in 64 bits of nanoseconds.
    #[error("time of the record is beyond the year 2554")]
    Time,
    /// A field of the payload cannot be what can be redacted.
    #[error("field `{0}` of the record {1}")]
    Field(String, &'static str),
    /// Bytes of the log that are no record.
    #[error("entry is no record: {0}")]
    Malformed(&'static str),
}

impl Record {
    /// Makes a record of something that happened at `time` (and `mono_ns`).
    pub fn new(
        kind: impl Into<Cow<'static, str>>,
        time: Duration,
        mono_ns: u64,
        payload: Value,
    ) -> Record {
        Record {
            kind: kind.into(),
            time,
            mono_ns,
            payload,
        }
    }
}

impl Entry {
    /// Encodes the entry as the bytes of its leaf.
    ///
    /// # Errors
    ///
    /// As [`RecordError`] says for records that cannot be kept.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let draft = Draft::new(&self.record, &self.boot, &self.origin)?;
        let mut out = Vec::new();
        draft.finish(self.seq, self.record.mono_ns, &mut out);
        Ok(out)
    }

    /// Reads the bytes of a leaf.
    ///
    /// # Errors
    ///
    /// [`RecordError::Malformed`] for anything that [`Entry::encode`] would not have written,
    /// byte for byte.
    pub fn decode(bytes: &[u8]) -> Result<Entry, RecordError> {
        let leaf = Leaf::scan(bytes)?;
        let payload: Cbor =
            ciborium::de::from_reader_with_recursion_limit(leaf.payload, MAX_DEPTH + 8)
                .map_err(|_| RecordError::Malformed("not CBOR"))?;
        Ok(Entry {
            seq: leaf.seq,
            boot: leaf.boot,
            origin: leaf.origin.to_owned(),
            record: Record {
                kind: Cow::Owned(leaf.kind.to_owned()),
                time: Duration::from_nanos(leaf.time_ns),
                mono_ns: leaf.mono_ns,
                payload: to_json(payload)?,
            },
        })
    }
}

/// Prints one line that stays one line, whatever a workload put into its strings.
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = self.record.time;
        write!(
            f,
            "{} {}.{:09} ",
            self.seq,
            time.as_secs(),
            time.subsec_nanos()
        )?;
        write!(
            f,
            "{} {}",
            Escaped(&self.record.kind),
            Escaped(&self.record.payload.to_string())
        )
    }
}

/// Text with everything that could move a cursor, end a line or turn the reading direction
/// written as `\uXXXX`, which JSON strings read back as the same character.
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            if is_safe(c) {
                fmt::Write::write_char(f, c)?;
            } else {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(f, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }
}

fn is_safe(c: char) -> bool {
    let moves = c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}');
    let turns = matches!(c, '\u{061c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}');
    let hides = matches!(c, '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !(moves || turns || hides)
}

/// A record encoded but for its position, which only the log's queue knows.
pub(super) struct Draft {
    /// From the field after `seq` up to the value of `mono`.
    before: Vec<u8>,
    pub(super) mono_ns: u64,
    /// From the field after `mono` to the end.
    after: Vec<u8>,
}

impl Draft {
    pub(super) fn new(
        record: &Record,
        boot: &[u8; 16],
        origin: &str,
    ) -> Result<Draft, RecordError> {
        if !is_kind(&record.kind) {
            return Err(RecordError::Kind);
        }
        let time = u64::try_from(record.time.as_nanos()).map_err(|_| RecordError::Time)?;
        let mut before = Vec::with_capacity(64);
        put_text(&mut before, "boot");
        put_head(&mut before, BYTES, 16);
        before.extend_from_slice(boot);
        put_text(&mut before, "kind");
        put_text(&mut before, &record.kind);
        put_text(&mut before, "mono");
        let mut after = Vec::with_capacity(256);
        put_text(&mut after, "time");
        put_head(&mut after, UINT, time);
        put_text(&mut after, "origin");
        put_text(&mut after, origin);
        put_text(&mut after, "payload");
        let start = after.len();
        put_json(&mut after, &record.payload, start + MAX_PAYLOAD, MAX_DEPTH)?;
        if after.len() - start > MAX_PAYLOAD {
            return Err(RecordError::TooBig);
        }
        Ok(Draft {
            before,
            mono_ns: record.mono_ns,
            after,
        })
    }

    /// Appends the finished leaf to `out`.
    pub(super) fn finish(&self, seq: u64, mono_ns: u64, out: &mut Vec<u8>) {
        put_head(out, MAP, 7);
        put_text(out, "seq");
        put_head(out, UINT, seq);
        out.extend_from_slice(&self.before);
        put_head(out, UINT, mono_ns);
        out.extend_from_slice(&self.after);
    }
}

fn to_json(value: Cbor) -> Result<Value, RecordError> {
    Ok(match value {
        Cbor::Null => Value::Null,
        Cbor::Bool(b) => Value::Bool(b),
        Cbor::Text(text) => Value::String(text),
        Cbor::Integer(n) => match (u64::try_from(n), i64::try_from(n)) {
            (Ok(n), _) => Value::from(n),
            (_, Ok(n)) => Value::from(n),
            _ => return Err(RecordError::Malformed("integer out of range")),
        },
        Cbor::Float(n) => serde_json::Number::from_f64(n)
            .map(Value::Number)
            .ok_or(RecordError::Malformed("number is not finite"))?,
        Cbor::Array(items) => {
            Value::Array(items.into_iter().map(to_json).collect::<Result<_, _>>()?)
        }
        Cbor::Map(fields) => {
            let text = |key: Cbor| {
                key.into_text()
                    .map_err(|_| RecordError::Malformed("not text"))
            };
            let field = |(key, value)| Ok((text(key)?, to_json(value)?));
            Value::Object(fields.into_iter().map(field).collect::<Result<_, _>>()?)
        }
        _ => return Err(RecordError::Malformed("a type that JSON does not have")),
    })
}

const UINT: u8 = 0 << 5;
const NINT: u8 = 1 << 5;
const BYTES: u8 = 2 << 5;
const TEXT: u8 = 3 << 5;
const ARRAY: u8 = 4 << 5;
const MAP: u8 = 5 << 5;

/// Writes a head (RFC 8949, "Specification of the CBOR Encoding") in its shortest form.
fn put_head(out: &mut Vec<u8>, major: u8, n: u64) {
    let bytes = n.to_be_bytes();
    match n {
        0..=23 => out.push(major | bytes[7]),
        24..=0xff => out.extend_from_slice(&[major | 24, bytes[7]]),
        0x100..=0xffff => out.extend_from_slice(&[major | 25, bytes[6], bytes[7]]),
        0x1_0000..=0xffff_ffff => {
            out.push(major | 26);
            out.extend_from_slice(&bytes[4..]);
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&bytes);
        }
    }
}

pub(super) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_head(out, TEXT, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// Writes a value of JSON in the one spelling that it has here; what goes beyond `end` is refused.
pub(super) fn put_json(
    out: &mut Vec<u8>,
    v: &Value,
    end: usize,
    depth: usize,
) -> Result<(), RecordError> {
    let depth = depth.checked_sub(1).ok_or(RecordError::TooDeep)?;
    match v {
        Value::Null => out.push(0xf6),
        Value::Bool(false) => out.push(0xf4),
        Value::Bool(true) => out.push(0xf5),
        Value::Number(n) => {
            if let Some(n) = n.as_u64() {
                put_head(out, UINT, n);
            } else if let Some(n) = n.as_i64() {
                // CBOR counts negative integers from -1 upwards: -1 - n is the complement.
                put_head(out, NINT, !n as u64);
            } else {
                let n = n
                    .as_f64()
                    .ok_or(RecordError::Malformed("number is not finite"))?;
                ciborium::into_writer(&n, &mut *out)
                    .map_err(|_| RecordError::Malformed("number cannot be written"))?;
            }
        }
        Value::String(text) => {
            if text.len() > MAX_PAYLOAD {
                return Err(RecordError::TooBig);
            }
            put_text(out, text);
        }
        Value::Array(items) => {
            put_head(out, ARRAY, items.len() as u64);
            for item in items {
                put_json(out, item, end, depth)?;
            }
        }
        Value::Object(fields) => {
            put_head(out, MAP, fields.len() as u64);
            let mut fields: Vec<_> = fields.iter().collect();
            // Bytewise order of encoded keys: the head comes first, so shorter keys do.
            fields.sort_unstable_by_key(|(key, _)| (key.len(), key.as_bytes()));
            for (key, value) in fields {
                if key.len() > MAX_PAYLOAD {
                    return Err(RecordError::TooBig);
                }
                put_text(out, key);
                put_json(out, value, end, depth)?;
            }
        }
    }
    // Looked at on the way, so that a payload far over the limit is not first encoded whole.
    if out.len() > end {
        Err(RecordError::TooBig)
    } else {
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn entry(payload: Value) -> Entry {
        Entry {
            seq: 1_000_000,
            boot: [7; 16],
            origin: "example.org/vm".into(),
            record: Record::new("decision", Duration::new(1_700_000_000, 5), 42, payload),
        }
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_filter_map("finite", |n| n.is_finite().then(|| Value::from(n))),
            "\\PC{0,40}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::btree_map(".{0,30}", inner, 0..6)
                    .prop_map(|m| Value::Object(m.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn a_record_is_read_back_as_it_was_written(payload in any_json()) {
            let written = entry(payload);
            let bytes = written.encode().unwrap();
            prop_assert_eq!(Entry::decode(&bytes).unwrap(), written);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Entry::decode(&bytes);
        }

        #[test]
        fn whatever_is_read_has_one_spelling(at in 0usize..120, to in any::<u8>()) {
            let mut bytes = entry(json!({"a": [1, -1, 1.5, "x"], "bb": null})).encode().unwrap();
            let at = at % bytes.len();
            bytes[at] = to;
            if let Ok(read) = Entry::decode(&bytes) {
                prop_assert_eq!(read.encode().unwrap(), bytes);
            }
        }
    }

    #[test]
    fn the_encoding_is_that_of_rfc_8949() {
        let mut out = Vec::new();
        put_json(
            &mut out,
            &json!({"b": -500, "a": 1.5, "aa": [true]}),
            1000,
            9,
        )
        .unwrap();
        assert_eq!(out, b"\xa3\x61a\xf9\x3e\x00\x61b\x39\x01\xf3\x62aa\x81\xf5");
    }

    #[test]
    fn a_payload_over_the_limit_is_refused_and_the_limit_is_named() {
        let at_limit = "x".repeat(MAX_PAYLOAD - 3);
        assert!(entry(Value::from(at_limit)).encode().unwrap().len() <= MAX_ENTRY);
        let over = entry(Value::from("x".repeat(MAX_PAYLOAD - 2)))
            .encode()
            .unwrap_err();
        assert_eq!(over, RecordError::TooBig);
        assert!(over.to_string().contains("16384"));
        assert_eq!(
            entry(json!(vec![0; 10 << 20])).encode().unwrap_err(),
            RecordError::TooBig
        );
        assert_eq!(
            entry("x".repeat(10 << 20).into()).encode().unwrap_err(),
            RecordError::TooBig
        );
    }

    #[test]
    fn a_payload_too_deep_is_refused() {
        let deep = (0..MAX_DEPTH).fold(json!(1), |inner, _| json!([inner]));
        assert_eq!(entry(deep).encode().unwrap_err(), RecordError::TooDeep);
        let fits = (1..MAX_DEPTH).fold(json!(1), |inner, _| json!([inner]));
        let fits = entry(fits);
        assert_eq!(Entry::decode(&fits.encode().unwrap()).unwrap(), fits);
    }

    #[test]
    fn a_printed_record_is_one_line_without_control_or_bidi_characters() {
        let hostile = "a\nb\r\u{1b}[2J\0\u{7f}\u{9b}\u{202e}\u{2066}\u{2028}\u{200b}\u{e0041}";
        let line = entry(json!({ hostile: hostile })).to_string();
        assert!(line.chars().all(is_safe), "{line:?}");
        let payload: Value = serde_json::from_str(line.splitn(4, ' ').nth(3).unwrap()).unwrap();
        assert_eq!(payload, json!({ hostile: hostile }));
        for kind in ["", "a b", "a\n", "A", "\u{e9}", &"k".repeat(65)] {
            let mut bad = entry(json!(null));
            bad.record.kind = Cow::Owned(kind.to_string());
            assert_eq!(bad.encode().unwrap_err(), RecordError::Kind);
        }
    }
}
