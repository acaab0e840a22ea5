//! The keys of a log: the one that signs, and the one that checks.
//!
//! Follows C2SP "signed-note", Ed25519 keys of type 0x01.

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

use super::merkle::sha256;

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

    /// Signs bytes with Ed25519: 64 bytes.
    pub(super) fn sign_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        self.pair.sign(bytes).as_ref().to_vec()
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

    /// Tells whether this key signed `bytes`.
    pub(super) fn has_signed(&self, bytes: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.public)
            .verify(bytes, signature)
            .is_ok()
    }

    /// The first four bytes of SHA-256(name ‖ LF ‖ 0x01 ‖ key).
    pub(super) fn id(&self) -> [u8; 4] {
        key_id(&self.name, &self.public)
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

const ED25519_TYPE: u8 = 0x01;

pub(super) fn is_key_name(name: &str) -> bool {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '+';
    !name.is_empty() && name.len() <= 256 && !name.contains(bad)
}

pub(super) fn key_id(name: &str, public: &[u8; 32]) -> [u8; 4] {
    let hash = sha256(&[name.as_bytes(), &[b'\n', ED25519_TYPE], public]);
    [hash[0], hash[1], hash[2], hash[3]]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key() -> LogKey {
        LogKey::from_seed(&[9; 32]).unwrap()
    }

    #[test]
    fn the_public_key_is_that_of_rfc_8032() {
        let seed = b"\x9d\x61\xb1\x9d\xef\xfd\x5a\x60\xba\x84\x4a\xf4\x92\xec\x2c\xc4\x44\x49\xc5\x69\x7b\x32\x69\x19\x70\x3b\xac\x03\x1c\xae\x7f\x60";
        let public = LogKey::from_seed(seed).unwrap().public();
        assert_eq!(public[..4], [0xd7, 0x5a, 0x98, 0x01]);
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
}
