//! Somebody else who saw a log, and says so.
//!
//! Follows C2SP "tlog-cosignature": Ed25519, type 0x04, over the checkpoint's text and the time. A
//! witness remembers the last checkpoint it signed and signs only what continues it, so of two histories
//! of a log, at most one finds its witnesses.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::checkpoint::{self, Checkpoint, NoteError};
use super::key::{KeyError, LogKey, LogVerifier, is_key_name};
use super::merkle::sha256;
use super::verify::{VerifyError, verify};

/// A witness with its key.
#[derive(Debug)]
pub struct Witness {
    key: LogKey,
    name: String,
}

/// What a witness's signatures are checked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitnessVerifier {
    name: String,
    key: LogVerifier,
}

/// Key type of a timestamped cosignature.
const COSIGNATURE: u8 = 0x04;

impl Witness {
    /// Names a witness: a schema-less URL by convention, without white space or `+`.
    ///
    /// # Errors
    ///
    /// [`KeyError::Verifier`] if the name cannot be one.
    pub fn new(name: &str, key: LogKey) -> Result<Self, KeyError> {
        key.verifier(name)?;
        let name = name.to_owned();
        Ok(Self { key, name })
    }

    /// What its signatures are checked with.
    ///
    /// # Errors
    ///
    /// None that [`Witness::new`] did not have.
    pub fn verifier(&self) -> Result<WitnessVerifier, KeyError> {
        Ok(WitnessVerifier {
            name: self.name.clone(),
            key: self.key.verifier(&self.name)?,
        })
    }

    /// Verifies the log in `dir`, from its records up, against the key and the checkpoint that this
    /// witness signed last; returns its checkpoint with the witness's signature.
    ///
    /// Keep what is returned, and give it as `last` the next time.
    ///
    /// # Errors
    ///
    /// [`VerifyError::RolledBack`] or [`VerifyError::Fork`] if the log does not continue `last`: nothing
    /// is signed then, and there is something to tell. Else as [`verify`].
    pub fn cosign(
        &self,
        dir: &Path,
        log: &LogVerifier,
        last: Option<&Checkpoint>,
        time: Duration,
    ) -> Result<Checkpoint, VerifyError> {
        let verified = verify(dir, Some(log), last)?;
        let note = verified.checkpoint().note();
        let signed = self.signed(note, time.as_secs());
        log.open(signed.as_bytes()).map_err(VerifyError::Checkpoint)
    }

    fn signed(&self, note: &str, seconds: u64) -> String {
        let text = note.rfind("\n\n").map_or(note, |at| &note[..=at]);
        let mut blob = key_id(&self.name, &self.key.public()).to_vec();
        blob.extend_from_slice(&seconds.to_be_bytes());
        blob.extend_from_slice(&self.key.sign_bytes(message(text, seconds).as_bytes()));
        format!("{note}\u{2014} {} {}\n", self.name, STANDARD.encode(blob))
    }
}

impl WitnessVerifier {
    /// When this witness signed the checkpoint, as the time since 1970 in whole seconds.
    ///
    /// # Errors
    ///
    /// [`NoteError::Unsigned`] if it did not, [`NoteError::Duplicated`] or [`NoteError::Signature`].
    pub fn signed(&self, checkpoint: &Checkpoint) -> Result<Duration, NoteError> {
        let name = || self.name.clone();
        let (text, lines) =
            checkpoint::split_note(checkpoint::as_text(checkpoint.note().as_bytes())?)?;
        let id = key_id(&self.name, self.key.public());
        let mut own = None;
        for line in lines {
            let (signer, blob) = checkpoint::signature_line(line)?;
            if signer == self.name && blob[..4] == id && own.replace(blob).is_some() {
                return Err(NoteError::Duplicated(name()));
            }
        }
        let own = own.ok_or_else(|| NoteError::Unsigned(name()))?;
        let (seconds, signature) = own[4..]
            .split_first_chunk::<8>()
            .ok_or_else(|| NoteError::Signature(name()))?;
        let seconds = u64::from_be_bytes(*seconds);
        if !self
            .key
            .has_signed(message(text, seconds).as_bytes(), signature)
        {
            return Err(NoteError::Signature(name()));
        }
        Ok(Duration::from_secs(seconds))
    }
}

/// As in C2SP "signed-note": name, key id, type and key.
impl fmt::Display for WitnessVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let public = self.key.public();
        let id = u32::from_be_bytes(key_id(&self.name, public));
        let key = STANDARD.encode([&[COSIGNATURE][..], public].concat());
        write!(f, "{}+{id:08x}+{key}", self.name)
    }
}

impl FromStr for WitnessVerifier {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let wrong = || KeyError::Verifier("not a witness's key: name+id+base64 of type 0x04");
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(_), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(wrong());
        };
        let bytes = STANDARD.decode(key).map_err(|_| wrong())?;
        let (COSIGNATURE, public) = bytes
            .split_first()
            .and_then(|(kind, key)| Some((*kind, <[u8; 32]>::try_from(key).ok()?)))
            .ok_or_else(wrong)?
        else {
            return Err(wrong());
        };
        let verifier = Self {
            name: name.to_owned(),
            key: LogVerifier::new(name, public)?,
        };
        // One spelling, and the id is the key's.
        if is_key_name(name) && verifier.to_string() == text {
            Ok(verifier)
        } else {
            Err(wrong())
        }
    }
}

/// What a witness signs.
fn message(text: &str, seconds: u64) -> String {
    format!("cosignature/v1\ntime {seconds}\n{text}")
}

fn key_id(name: &str, public: &[u8; 32]) -> [u8; 4] {
    let hash = sha256(&[name.as_bytes(), b"\n", &[COSIGNATURE], public]);
    [hash[0], hash[1], hash[2], hash[3]]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::audit::{Log, Record};

    const TIME: Duration = Duration::from_secs(1_700_000_000);

    fn witness(seed: u8) -> Witness {
        Witness::new("witness.example/w", LogKey::from_seed(&[seed; 32]).unwrap()).unwrap()
    }

    fn key() -> LogKey {
        LogKey::from_seed(&[9; 32]).unwrap()
    }

    fn log() -> LogVerifier {
        key().verifier("example.org/log").unwrap()
    }

    fn append(dir: &Path, note: &str) {
        let log = match dir.exists() {
            true => Log::open(dir, key()),
            false => Log::create(dir, "example.org/log", key()),
        };
        let log = log.unwrap();
        log.append(&Record::new("test", TIME, 0, note.into()))
            .unwrap();
        log.close().unwrap();
    }

    #[test]
    fn a_witness_signs_what_continues_what_it_saw_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let (dir, fork) = (root.path().join("log"), root.path().join("fork"));
        append(&dir, "one");
        let first = witness(1).cosign(&dir, &log(), None, TIME).unwrap();
        append(&dir, "two");
        let second = witness(1).cosign(&dir, &log(), Some(&first), TIME).unwrap();
        assert_eq!(second.size(), 2);
        // The log's own key cannot make it sign another history, nor an older one.
        append(&fork, "another one");
        append(&fork, "two");
        append(&fork, "three");
        assert!(matches!(
            witness(1).cosign(&fork, &log(), Some(&second), TIME),
            Err(VerifyError::Fork(2))
        ));
        let older = root.path().join("older");
        append(&older, "one");
        assert!(matches!(
            witness(1).cosign(&older, &log(), Some(&second), TIME),
            Err(VerifyError::RolledBack { .. })
        ));
    }

    #[test]
    fn a_cosignature_tells_who_and_when_and_no_byte_of_it_can_be_changed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("log");
        append(&dir, "one");
        let cosigned = witness(1).cosign(&dir, &log(), None, TIME).unwrap();
        let verifier = witness(1).verifier().unwrap();
        assert_eq!(verifier.signed(&cosigned), Ok(TIME));
        assert!(matches!(
            witness(2).verifier().unwrap().signed(&cosigned),
            Err(NoteError::Unsigned(_))
        ));
        let note = cosigned.note().as_bytes();
        let line = cosigned.note().trim_end().rfind('\n').unwrap() + 1;
        for at in line..note.len() - 1 {
            let mut forged = note.to_vec();
            forged[at] ^= 1;
            let read = log().open(&forged);
            assert!(
                read.is_err() || verifier.signed(&read.unwrap()).is_err(),
                "byte {at}"
            );
        }
        // A second one of the same witness was put there by somebody else.
        let twice = format!("{}{}", cosigned.note(), &cosigned.note()[line..]);
        let twice = log().open(twice.as_bytes()).unwrap();
        assert!(matches!(
            verifier.signed(&twice),
            Err(NoteError::Duplicated(_))
        ));
    }

    #[test]
    fn a_witness_s_key_is_written_as_signed_note_has_it() {
        let verifier = witness(1).verifier().unwrap();
        let text = verifier.to_string();
        assert!(
            text.starts_with("witness.example/w+") && text.contains("+B"),
            "{text}"
        );
        assert_eq!(text.parse::<WitnessVerifier>().unwrap(), verifier);
        for bad in [
            "",
            "w",
            "w+00000000+AAAA",
            &text[1..],
            &text.replace("+B", "+A"),
        ] {
            assert!(bad.parse::<WitnessVerifier>().is_err(), "{bad}");
        }
    }
}
