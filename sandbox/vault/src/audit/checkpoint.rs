//! Signed tree heads, and the keys that sign and check them.
//!
//! Follows C2SP "tlog-checkpoint" (origin, size, root, extension lines) inside C2SP "signed-note"
//! (text, empty line, signature lines), with Ed25519 signatures of type 0x01.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::merkle::{Hash, sha256};

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

/// Why a key could not be made, read or stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The machine gave no randomness or refused the seed.
    #[error("no signing key could be made from this seed")]
    Rejected,
    /// A key's file cannot be read or written.
    #[error("key file cannot be used")]
    Io(#[source] io::Error),
    /// Others than the owner may read or write the file.
    #[error("key file has mode {0:o}: set it to 600 and consider the key as seen by others")]
    Exposed(u32),
    /// The file is no seed of 32 bytes.
    #[error("key file is not a regular file of 32 bytes")]
    Length,
    /// Text that is no verifier key.
    #[error("not a verifier key (`name+hash+key`): {0}")]
    Verifier(&'static str),
}

/// The key that signs a log: an Ed25519 seed that is wiped when dropped.
pub struct LogKey {
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
}

/// The public half, with the name it signs under: enough to check every checkpoint of one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogVerifier {
    name: String,
    public: [u8; 32],
}

impl LogKey {
    /// Makes a new key from the operating system's randomness.
    ///
    /// # Errors
    ///
    /// [`KeyError::Rejected`] if there is none to be had.
    pub fn generate() -> Result<LogKey, KeyError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(|_| KeyError::Rejected)?;
        LogKey::from_seed(&seed)
    }

    /// Takes a seed of 32 bytes (RFC 8032), for a key that was derived or sealed elsewhere.
    ///
    /// # Errors
    ///
    /// [`KeyError::Rejected`] if the seed cannot be used.
    pub fn from_seed(seed: &[u8; 32]) -> Result<LogKey, KeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| KeyError::Rejected)?;
        Ok(LogKey {
            seed: Zeroizing::new(*seed),
            pair,
        })
    }

    /// Reads a seed from a file of 32 bytes that only its owner may touch.
    ///
    /// # Errors
    ///
    /// [`KeyError::Exposed`] if the file's mode lets others in.
    pub fn load(path: &Path) -> Result<LogKey, KeyError> {
        let no_follow = rustix::fs::OFlags::NOFOLLOW.bits() as i32;
        let mut options = OpenOptions::new();
        let file = options
            .read(true)
            .custom_flags(no_follow)
            .open(path)
            .map_err(KeyError::Io)?;
        let meta = file.metadata().map_err(KeyError::Io)?;
        if !meta.is_file() || meta.len() != 32 {
            return Err(KeyError::Length);
        }
        if meta.mode() & 0o077 != 0 {
            return Err(KeyError::Exposed(meta.mode() & 0o777));
        }
        let mut seed = Zeroizing::new([0; 32]);
        (&file).read_exact(&mut *seed).map_err(KeyError::Io)?;
        LogKey::from_seed(&seed)
    }

    /// Stores the seed in a new file of mode 600, durably.
    ///
    /// # Errors
    ///
    /// [`KeyError::Io`] if the file exists or cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(path);
        let mut file = file.map_err(KeyError::Io)?;
        file.write_all(&*self.seed)
            .and_then(|()| file.sync_all())
            .map_err(KeyError::Io)?;
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let parent = File::open(parent.unwrap_or(Path::new("."))).map_err(KeyError::Io)?;
        parent.sync_all().map_err(KeyError::Io)
    }

    /// The public half, under the name of the log that it signs.
    ///
    /// # Errors
    ///
    /// [`KeyError::Verifier`] if `origin` cannot be a key name: empty, or with white space, `+` or
    /// control characters.
    pub fn verifier(&self, origin: &str) -> Result<LogVerifier, KeyError> {
        LogVerifier::new(origin, self.public())
    }

    /// The public key, 32 bytes: what evidence binds.
    pub fn public(&self) -> [u8; 32] {
        let mut public = [0; 32];
        public.copy_from_slice(self.pair.public_key().as_ref());
        public
    }

    /// Signs a tree head.
    ///
    /// # Errors
    ///
    /// [`NoteError::Malformed`] if the head cannot be written as a checkpoint.
    pub fn sign(&self, head: Head) -> Result<Checkpoint, NoteError> {
        let text = head.encode()?;
        let name = &head.origin;
        let mut blob = key_id(name, &self.public()).to_vec();
        blob.extend_from_slice(self.pair.sign(text.as_bytes()).as_ref());
        let note = format!("{text}\n\u{2014} {name} {}\n", STANDARD.encode(blob));
        Ok(Checkpoint { head, note })
    }

    /// A key for another purpose, bound to `label` and `salt`: HMAC-SHA256 keyed with the seed.
    pub(super) fn derive(&self, label: &str, salt: &[u8]) -> aws_lc_rs::hmac::Key {
        use aws_lc_rs::hmac::{Context, HMAC_SHA256, Key};
        let mut context = Context::with_key(&Key::new(HMAC_SHA256, &*self.seed));
        context.update(label.as_bytes());
        context.update(&[0]);
        context.update(salt);
        Key::new(HMAC_SHA256, context.sign().as_ref())
    }
}

impl fmt::Debug for LogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogKey(..)")
    }
}

impl LogVerifier {
    /// Takes a public key of 32 bytes and the name it signs under.
    ///
    /// # Errors
    ///
    /// [`KeyError::Verifier`] if the name cannot be a key name.
    pub fn new(name: &str, public: [u8; 32]) -> Result<LogVerifier, KeyError> {
        if !is_key_name(name) {
            return Err(KeyError::Verifier(
                "a name has no white space, `+` or control characters",
            ));
        }
        Ok(LogVerifier {
            name: name.to_owned(),
            public,
        })
    }

    /// The name, equal to the log's origin.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public key, 32 bytes.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// Reads a checkpoint and checks that it is this log's and that this key signed it.
    ///
    /// Signatures of other keys, such as witnesses, are left alone.
    ///
    /// # Errors
    ///
    /// Each [`NoteError`] is a reason not to believe it.
    pub fn open(&self, note: &[u8]) -> Result<Checkpoint, NoteError> {
        let note = as_text(note)?;
        let (text, signatures) = split_note(note)?;
        let head = Head::decode(text)?;
        if head.origin != self.name {
            let (expected, found) = (self.name.clone(), head.origin);
            return Err(NoteError::Origin { expected, found });
        }
        let id = key_id(&self.name, &self.public);
        let mut own = None;
        for line in signatures {
            let (name, blob) = signature_line(line)?;
            if name == self.name && blob[..4] == id && own.replace(blob).is_some() {
                return Err(NoteError::Duplicated(self.name.clone()));
            }
        }
        let own = own.ok_or_else(|| NoteError::Unsigned(self.name.clone()))?;
        UnparsedPublicKey::new(&ED25519, &self.public)
            .verify(text.as_bytes(), &own[4..])
            .map_err(|_| NoteError::Signature(self.name.clone()))?;
        Ok(Checkpoint {
            head,
            note: note.to_owned(),
        })
    }
}

/// Writes the verifier key of C2SP "signed-note": `name+hash+base64(0x01 ‖ key)`.
impl fmt::Display for LogVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = u32::from_be_bytes(key_id(&self.name, &self.public));
        let mut key = vec![ED25519_TYPE];
        key.extend_from_slice(&self.public);
        write!(f, "{}+{id:08x}+{}", self.name, STANDARD.encode(key))
    }
}

impl FromStr for LogVerifier {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<LogVerifier, KeyError> {
        let mut parts = text.trim_end_matches('\n').splitn(3, '+');
        let (Some(name), Some(_), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(KeyError::Verifier("three parts are joined by `+`"));
        };
        if key.len() > 64 {
            return Err(KeyError::Verifier("the key is too long"));
        }
        let key = STANDARD
            .decode(key)
            .map_err(|_| KeyError::Verifier("the key is not base64"))?;
        let public = match key.split_first() {
            Some((&ED25519_TYPE, public)) => public.try_into(),
            _ => return Err(KeyError::Verifier("the key is not of type 1, Ed25519")),
        };
        let public = public.map_err(|_| KeyError::Verifier("the key is not 32 bytes"))?;
        let verifier = LogVerifier::new(name, public)?;
        // Written again and compared: the hash has to be the key's, in the one spelling.
        if verifier.to_string() != text.strip_suffix('\n').unwrap_or(text) {
            return Err(KeyError::Verifier("the hash is not that of name and key"));
        }
        Ok(verifier)
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

const ED25519_TYPE: u8 = 0x01;

fn as_text(note: &[u8]) -> Result<&str, NoteError> {
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
fn split_note(note: &str) -> Result<(&str, Vec<&str>), NoteError> {
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

fn signature_line(line: &str) -> Result<(&str, Vec<u8>), NoteError> {
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

pub(super) fn is_key_name(name: &str) -> bool {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '+';
    !name.is_empty() && name.len() <= 256 && !name.contains(bad)
}

/// The first four bytes of SHA-256(name ‖ LF ‖ 0x01 ‖ key).
fn key_id(name: &str, public: &[u8; 32]) -> [u8; 4] {
    let hash = sha256(&[name.as_bytes(), &[b'\n', ED25519_TYPE], public]);
    [hash[0], hash[1], hash[2], hash[3]]
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
    fn the_public_key_is_that_of_rfc_8032() {
        let seed = b"\x9d\x61\xb1\x9d\xef\xfd\x5a\x60\xba\x84\x4a\xf4\x92\xec\x2c\xc4\x44\x49\xc5\x69\x7b\x32\x69\x19\x70\x3b\xac\x03\x1c\xae\x7f\x60";
        let public = LogKey::from_seed(seed).unwrap().public();
        assert_eq!(public[..4], [0xd7, 0x5a, 0x98, 0x01]);
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
        assert_eq!(
            (name, &blob[..4]),
            ("PeterNeumann", &key_id(name, verifier.public())[..])
        );
        let public = UnparsedPublicKey::new(&ED25519, verifier.public());
        assert!(public.verify(text.as_bytes(), &blob[4..]).is_ok());
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

    #[test]
    fn a_key_file_that_others_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        key().save(&path).unwrap();
        assert_eq!(LogKey::load(&path).unwrap().public(), key().public());
        assert!(matches!(key().save(&path), Err(KeyError::Io(_))));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o640)).unwrap();
        assert!(matches!(LogKey::load(&path), Err(KeyError::Exposed(0o640))));
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::write(&path, [0; 31]).unwrap();
        assert!(matches!(LogKey::load(&path), Err(KeyError::Length)));
        assert_eq!(format!("{:?}", key()), "LogKey(..)");
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
