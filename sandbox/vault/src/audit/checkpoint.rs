//! Signed tree heads.
//!
//! Follows C2SP "tlog-checkpoint" (origin, size, root, extension lines) inside C2SP "signed-note"
//! (text, empty line, signature lines), with Ed25519 signatures of type 0x01.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::key::{LogKey, LogVerifier, is_key_name, key_id};
use super::merkle::Hash;

/// The most bytes a checkpoint may have, signatures included.
pub const MAX_NOTE: usize = 64 * 1024;
/// The most signatures a checkpoint may carry; those of unknown keys are skipped.
pub const MAX_SIGNATURES: usize = 100;

/// A tree head that the log's key signed.
///
/// Only [`LogKey::sign`] and [`LogVerifier::open`] make one, so holding one proves the signature
/// was made or checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    head: Head,
    note: String,
}

/// What a checkpoint says: the unsigned body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The log's name, unique to it: schema-less URL by convention, without white space.
    pub origin: String,
    /// How many leaves the tree has.
    pub size: u64,
    /// The root of that tree.
    pub root: Hash,
    /// Further lines that the log vouches for, such as `att <digest>`.
    pub extensions: Vec<String>,
}

/// Why a checkpoint is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoteError {
    /// Not the form of a checkpoint.
    #[error("not a checkpoint: {0}")]
    Malformed(&'static str),
    /// Another log's checkpoint.
    #[error("checkpoint is of the log `{found}`, not of `{expected}`")]
    Origin {
        /// The log that was asked for.
        expected: String,
        /// The log that the checkpoint names.
        found: String,
    },
    /// The key that should have signed did not.
    #[error("checkpoint carries no signature of the key `{0}`")]
    Unsigned(String),
    /// The key signed twice, so one of the lines was put there by somebody else.
    #[error("checkpoint carries two signatures of the key `{0}`")]
    Duplicated(String),
    /// The signature is not the key's.
    #[error("signature of the key `{0}` does not verify")]
    Signature(String),
}

impl LogKey {
    /// Signs a tree head.
    ///
    /// # Errors
    ///
    /// [`NoteError::Malformed`] if the head cannot be written as a checkpoint.
    pub fn sign(&self, head: Head) -> Result<Checkpoint, NoteError> {
        let text = head.encode()?;
        let name = &head.origin;
        let mut blob = key_id(name, &self.public()).to_vec();
        blob.extend_from_slice(&self.sign_bytes(text.as_bytes()));
        let note = format!("{text}\n\u{2014} {name} {}\n", STANDARD.encode(blob));
        Ok(Checkpoint { head, note })
    }
}

impl LogVerifier {
    /// Reads a checkpoint and checks that it is this log's and that this key signed it.
    ///
    /// Signatures of other keys, such as witnesses, are left alone.
    ///
    /// # Errors
    ///
    /// Each [`NoteError`] is a reason not to believe it.
    pub fn open(&self, note: &[u8]) -> Result<Checkpoint, NoteError> {
        let name = || self.name().to_owned();
        let note = as_text(note)?;
        let (text, signatures) = split_note(note)?;
        let head = Head::decode(text)?;
        if head.origin != self.name() {
            let (expected, found) = (name(), head.origin);
            return Err(NoteError::Origin { expected, found });
        }
        let id = self.id();
        let mut own = None;
        for line in signatures {
            let (signer, blob) = signature_line(line)?;
            if signer == self.name() && blob[..4] == id && own.replace(blob).is_some() {
                return Err(NoteError::Duplicated(name()));
            }
        }
        let own = own.ok_or_else(|| NoteError::Unsigned(name()))?;
        if !self.has_signed(text.as_bytes(), &own[4..]) {
            return Err(NoteError::Signature(name()));
        }
        Ok(Checkpoint {
            head,
            note: note.to_owned(),
        })
    }
}

impl Checkpoint {
    /// What was signed.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The log it is of.
    pub fn origin(&self) -> &str {
        &self.head.origin
    }

    /// How many leaves it covers.
    pub fn size(&self) -> u64 {
        self.head.size
    }

    /// The root over them.
    pub fn root(&self) -> &Hash {
        &self.head.root
    }

    /// The signed note, as stored and exchanged.
    pub fn note(&self) -> &str {
        &self.note
    }
}

impl Head {
    /// Writes the text that is signed.
    ///
    /// # Errors
    ///
    /// [`NoteError::Malformed`] if origin or an extension would break the form.
    pub fn encode(&self) -> Result<String, NoteError> {
        let lines = || self.extensions.iter();
        if !is_key_name(&self.origin) {
            return Err(NoteError::Malformed(
                "origin has white space, `+` or control characters",
            ));
        }
        if lines().any(|l| l.is_empty() || l.chars().any(char::is_control)) {
            return Err(NoteError::Malformed(
                "extension line is empty or has control characters",
            ));
        }
        let mut text = format!(
            "{}\n{}\n{}\n",
            self.origin,
            self.size,
            STANDARD.encode(self.root)
        );
        lines().for_each(|line| text.extend([line.as_str(), "\n"]));
        if text.len() > MAX_NOTE / 2 {
            return Err(NoteError::Malformed("extension lines are too long"));
        }
        Ok(text)
    }

    /// Reads the text that was signed. This checks the form only; [`LogVerifier::open`] believes.
    ///
    /// # Errors
    ///
    /// [`NoteError::Malformed`] for any text that [`Head::encode`] would not have written.
    pub fn decode(text: &str) -> Result<Head, NoteError> {
        let mut lines = text.lines();
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next())
        else {
            return Err(NoteError::Malformed("three lines are the least"));
        };
        let size = size
            .parse()
            .map_err(|_| NoteError::Malformed("size is not a number"))?;
        let root = if root.len() == 44 {
            STANDARD.decode(root).ok()
        } else {
            None
        };
        let root = root.and_then(|root| root.try_into().ok());
        let head = Head {
            origin: origin.to_owned(),
            size,
            root: root.ok_or(NoteError::Malformed("root is not base64 of 32 bytes"))?,
            extensions: lines.map(str::to_owned).collect(),
        };
        if head.encode()? != text {
            return Err(NoteError::Malformed("not in the one spelling"));
        }
        Ok(head)
    }

    /// Reads origin, size and root of a signed note without checking who signed it.
    pub(super) fn peek(note: &[u8]) -> Result<Head, NoteError> {
        Head::decode(split_note(as_text(note)?)?.0)
    }
}

pub(super) fn as_text(note: &[u8]) -> Result<&str, NoteError> {
    if note.len() > MAX_NOTE {
        return Err(NoteError::Malformed("too long"));
    }
    let note = std::str::from_utf8(note).map_err(|_| NoteError::Malformed("not UTF-8"))?;
    if note.chars().any(|c| c.is_control() && c != '\n') {
        return Err(NoteError::Malformed("control characters"));
    }
    Ok(note)
}

/// Parts the signed text (its last line end included) from the signature lines.
pub(super) fn split_note(note: &str) -> Result<(&str, Vec<&str>), NoteError> {
    let at = note
        .rfind("\n\n")
        .ok_or(NoteError::Malformed("no signature block"))?;
    let (text, block) = (&note[..at + 1], &note[at + 2..]);
    let block = block
        .strip_suffix('\n')
        .ok_or(NoteError::Malformed("last line is cut"))?;
    let lines: Vec<&str> = block.split('\n').take(MAX_SIGNATURES + 1).collect();
    if lines.len() > MAX_SIGNATURES {
        return Err(NoteError::Malformed("too many signatures"));
    }
    Ok((text, lines))
}

pub(super) fn signature_line(line: &str) -> Result<(&str, Vec<u8>), NoteError> {
    let line = line
        .strip_prefix("\u{2014} ")
        .and_then(|line| line.split_once(' '));
    let (name, blob) = line.ok_or(NoteError::Malformed("a signature line has another form"))?;
    let blob = STANDARD
        .decode(blob)
        .ok()
        .filter(|blob| blob.len() > 4 && is_key_name(name));
    Ok((
        name,
        blob.ok_or(NoteError::Malformed("a signature is not base64"))?,
    ))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> LogKey {
        LogKey::from_seed(&[9; 32]).unwrap()
    }

    fn head() -> Head {
        Head {
            origin: "example.org/log".into(),
            size: 7,
            root: [1; 32],
            extensions: vec!["att 00ff".into()],
        }
    }

    #[test]
    fn the_example_verifier_key_of_signed_note_is_read() {
        // From the documentation of golang.org/x/mod/sumdb/note.
        let text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let verifier: LogVerifier = text.parse().unwrap();
        assert_eq!(verifier.to_string(), text);
        let note = "If you think cryptography is the answer to your problem,\n\
                    then you don't know what your problem is.\n\n\
                    \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
        let (text, lines) = split_note(note).unwrap();
        let (name, blob) = signature_line(lines[0]).unwrap();
        assert_eq!((name, &blob[..4]), ("PeterNeumann", &verifier.id()[..]));
        assert!(verifier.has_signed(text.as_bytes(), &blob[4..]));
    }

    #[test]
    fn a_signed_checkpoint_is_believed() {
        let signed = key().sign(head()).unwrap();
        let verifier = key().verifier("example.org/log").unwrap();
        assert_eq!(verifier.open(signed.note().as_bytes()).unwrap(), signed);
        assert_eq!(signed.head(), &head());
    }

    #[test]
    fn every_flipped_byte_of_a_checkpoint_is_noticed() {
        let note = key().sign(head()).unwrap().note().as_bytes().to_vec();
        let verifier = key().verifier("example.org/log").unwrap();
        for (at, bit) in (0..note.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut forged = note.clone();
            forged[at] ^= 1 << bit;
            assert!(verifier.open(&forged).is_err(), "byte {at} bit {bit}");
        }
        (0..note.len()).for_each(|n| assert!(verifier.open(&note[..n]).is_err()));
    }

    #[test]
    fn checkpoints_of_others_and_doubled_signatures_are_refused() {
        let signed = key().sign(head()).unwrap();
        let note = signed.note();
        let other_log = key().verifier("example.org/other").unwrap();
        assert!(matches!(
            other_log.open(note.as_bytes()),
            Err(NoteError::Origin { .. })
        ));
        let other_key = LogKey::from_seed(&[8; 32])
            .unwrap()
            .verifier("example.org/log")
            .unwrap();
        assert!(matches!(
            other_key.open(note.as_bytes()),
            Err(NoteError::Unsigned(_))
        ));
        let verifier = key().verifier("example.org/log").unwrap();
        let line = note.lines().last().unwrap();
        let twice = format!("{note}{line}\n");
        assert!(matches!(
            verifier.open(twice.as_bytes()),
            Err(NoteError::Duplicated(_))
        ));
        // A bad key id is another key's, and so is no signature of ours.
        let mut blob = signature_line(line).unwrap().1;
        blob[0] ^= 1;
        let bad_id = note.replace(
            line,
            &format!("\u{2014} example.org/log {}", STANDARD.encode(blob)),
        );
        assert!(matches!(
            verifier.open(bad_id.as_bytes()),
            Err(NoteError::Unsigned(_))
        ));
        // A witness may sign too.
        let cosigned = format!(
            "{note}\u{2014} witness.example {}\n",
            STANDARD.encode([5; 76])
        );
        assert!(verifier.open(cosigned.as_bytes()).is_ok());
    }

    #[test]
    fn extension_lines_cannot_break_out() {
        for line in ["", "a\nb", "a\r", "\u{1b}"] {
            let head = Head {
                extensions: vec![line.into()],
                ..head()
            };
            assert!(key().sign(head).is_err(), "{line:?}");
        }
        for origin in ["", "a b", "a+b", "a\nb"] {
            assert!(key().verifier(origin).is_err());
            assert!(
                key()
                    .sign(Head {
                        origin: origin.into(),
                        ..head()
                    })
                    .is_err()
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,80}\n\\PC{0,20}\n\n\u{2014} \\PC{0,40}\n") {
            let verifier = key().verifier("example.org/log").unwrap();
            prop_assert!(verifier.open(text.as_bytes()).is_err());
            let _ = text.parse::<LogVerifier>();
        }
    }
}
