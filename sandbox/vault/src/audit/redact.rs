//! Fields of a record that can be taken back later, while everything proven about it stays proven.
//!
//! ```text
//! leaf            … "payload": { "subject": { "commitment": hex }, … }
//! fields/<hex>    { "name": "subject", "salt": hex16, "value": … }         as JSON, for as long as it is shown
//! commitment      SHA-256("casemate audit field v1" 00 | salt | name as CBOR | value as CBOR)
//! ```
//!
//! The tree is over the commitment, so it does not notice whether the value is there. The salt keeps
//! those who see only the commitment from trying out values. CBOR is that of records: one spelling.

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::disk::{self, Disk};
use super::error::LogError;
use super::merkle::{Hash, sha256};
use super::record::{Entry, MAX_DEPTH, MAX_PAYLOAD, Record, RecordError, put_json, put_text};

/// Fields that stay in the open: who did what, what was decided, and from what it follows.
pub const IN_THE_OPEN: [&str; 12] = [
    "action", "actor", "because", "by", "decision", "denied", "digest", "facts", "granted",
    "policy", "refused", "rules",
];

const FOLDER: &str = "fields";
const COMMITMENT: &str = "commitment";
/// A value of [`MAX_PAYLOAD`] bytes takes up to six times as many as JSON, where each is escaped.
const MAX_FILE: u64 = 8 * MAX_PAYLOAD as u64;

/// What a field of a record says, with what shows that it was recorded.
///
/// Proves nothing before [`Disclosure::is_of`], with an entry that was proven.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disclosure {
    /// The field.
    pub name: String,
    /// Hexadecimal, of 16 bytes.
    pub salt: String,
    /// What it says.
    pub value: Value,
}

impl Disclosure {
    /// Whether the record commits to this.
    pub fn is_of(&self, entry: &Entry) -> bool {
        let committed = commitment_of(&entry.record.payload[&self.name]);
        committed.is_some() && committed == self.commitment_text().as_deref()
    }

    /// The commitment as it stands in the record; `None` if no record commits to this.
    pub(super) fn commitment_text(&self) -> Option<String> {
        self.commitment().map(|hash| hex(&hash))
    }

    fn commitment(&self) -> Option<Hash> {
        let salt = unhex(&self.salt)?;
        let (mut name, mut value) = (Vec::new(), Vec::new());
        put_text(&mut name, &self.name);
        put_json(&mut value, &self.value, MAX_PAYLOAD, MAX_DEPTH).ok()?;
        Some(sha256(&[
            b"casemate audit field v1\0",
            &salt,
            &name,
            &value,
        ]))
    }
}

impl std::fmt::Debug for Disclosure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disclosure")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The record with commitments in the place of these fields, and what they commit to.
pub(super) fn commit(
    record: &Record,
    fields: &[&str],
) -> Result<(Record, Vec<Disclosure>), LogError> {
    let mut record = record.clone();
    let mut disclosures = Vec::with_capacity(fields.len());
    for name in fields {
        let refuse = |why| LogError::Record(RecordError::Field(name.to_string(), why));
        if IN_THE_OPEN.contains(name) {
            return Err(refuse("stays in the open"));
        }
        let field = record.payload.get_mut(name);
        let field = field.ok_or_else(|| refuse("is not there"))?;
        let mut salt = [0; 16];
        getrandom::fill(&mut salt)
            .map_err(|e| LogError::io("given a salt", Path::new(name), io::Error::other(e)))?;
        let disclosure = Disclosure {
            name: (*name).to_owned(),
            salt: hex(&salt),
            value: field.clone(),
        };
        let commitment = disclosure.commitment();
        let commitment = commitment.ok_or(LogError::Record(RecordError::TooBig))?;
        *field = json!({ COMMITMENT: hex(&commitment) });
        disclosures.push(disclosure);
    }
    Ok((record, disclosures))
}

/// Puts disclosures beside the log, durably.
pub(super) fn store(
    disk: &dyn Disk,
    dir: &Path,
    disclosures: &[Disclosure],
) -> Result<(), LogError> {
    let folder = dir.join(FOLDER);
    disk.create_dir(&folder)
        .map_err(|e| LogError::io("made", &folder, e))?;
    let mut paths = Vec::with_capacity(disclosures.len() + 2);
    for disclosure in disclosures {
        let name = disclosure.commitment_text();
        let path = folder.join(name.unwrap_or_default());
        let bytes = serde_json::to_vec(disclosure).unwrap_or_default();
        disk.write(&path, &bytes)
            .map_err(|e| LogError::io("written", &path, e))?;
        paths.push(path);
    }
    paths.extend([folder.clone(), dir.to_owned()]);
    disk.sync(dir, &paths)
        .map_err(|e| LogError::io("made durable", &folder, e))
}

/// What the record's fields say that are commitments, as far as it was not taken back.
///
/// # Errors
///
/// [`LogError::Damaged`] if what is there is not what was recorded.
pub fn disclosures(dir: &Path, entry: &Entry) -> Result<Vec<Disclosure>, LogError> {
    let mut found = Vec::new();
    for path in committed(dir, entry).map(|(_, path)| path) {
        let bytes = match disk::read(&path, MAX_FILE) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            read => read.map_err(|e| LogError::io("read", &path, e))?,
        };
        let disclosure = serde_json::from_slice(&bytes).ok();
        let disclosure = disclosure.filter(|it: &Disclosure| it.is_of(entry));
        let other = || LogError::damaged(&path, "it is not what the record commits to");
        found.push(disclosure.ok_or_else(other)?);
    }
    Ok(found)
}

/// Takes back what a field of a record says. The record, its commitment and its proofs stay.
///
/// Copies that were handed out are out of reach, and so are blocks that the file system has not written
/// over.
///
/// # Errors
///
/// [`LogError::Record`] if the record does not commit to the field: what stands in the tree itself, as who
/// did what and why always does, cannot be taken out of it.
pub fn redact(dir: &Path, entry: &Entry, field: &str) -> Result<(), LogError> {
    let Some((_, path)) = committed(dir, entry).find(|(name, _)| *name == field) else {
        let why = "is part of the record itself";
        return Err(LogError::Record(RecordError::Field(field.to_owned(), why)));
    };
    let io = |e| LogError::io("removed", &path, e);
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(io),
    }?;
    let folder = std::fs::File::open(dir.join(FOLDER));
    folder.and_then(|folder| folder.sync_all()).map_err(io)
}

/// The fields that are commitments, and where what they say lies.
fn committed<'a>(dir: &Path, entry: &'a Entry) -> impl Iterator<Item = (&'a str, PathBuf)> {
    let folder = dir.join(FOLDER);
    let fields = entry.record.payload.as_object().into_iter().flatten();
    fields.filter_map(move |(name, value)| {
        let hash = commitment_of(value)?;
        Some((name.as_str(), folder.join(hash)))
    })
}

/// The commitment that a value is; a name that leads nowhere else.
fn commitment_of(value: &Value) -> Option<&str> {
    let fields = value.as_object().filter(|fields| fields.len() == 1)?;
    let hash = fields.get(COMMITMENT)?.as_str()?;
    let is_hash = hash.len() == 64 && hash.bytes().all(|byte| digit(byte).is_some());
    is_hash.then_some(hash)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 16]> {
    let mut out = [0; 16];
    let digits: Option<Vec<u8>> = text.bytes().map(digit).collect();
    let digits = digits.filter(|digits| digits.len() == 2 * out.len())?;
    for (byte, pair) in out.iter_mut().zip(digits.chunks(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(out)
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}
