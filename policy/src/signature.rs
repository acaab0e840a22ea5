//! Signatures over policies: who vouches for which version.
//!
//! A detached C2SP "signed-note" with Ed25519 signatures (type 0x01), so that tools which know the
//! format can make and check them. Its text names the policy, its version and its digest:
//!
//! ```text
//! casemate/policy
//! clean-room
//! 3
//! 4mS7…  (SHA-256, base64)
//!
//! — ops.example.com Az3gr…
//! ```
//!
//! Keys are spelled as notes spell them: `name+id+key`, and `PRIVATE+KEY+name+id+key`.

use std::collections::BTreeSet;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::bundle::Bundle;

/// The first line of what is signed: no other kind of note can be taken for a policy's.
const ORIGIN: &str = "casemate/policy";
/// The most bytes a note may have.
const MOST_BYTES: usize = 16 * 1024;
/// The most signatures a note may carry.
const MOST_SIGNATURES: usize = 32;
/// Ed25519, as signed notes number it.
const KIND: u8 = 1;
const PRIVATE: &str = "PRIVATE+KEY+";

/// A key that vouches for policies. Zeroed on drop, as far as it is ours.
pub struct PolicyKey {
    name: String,
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
}

/// The public half of a [`PolicyKey`], and its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PolicyVerifier {
    name: String,
    public: [u8; 32],
}

/// A bundle that enough keys vouch for.
///
/// Only [`verify`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vouched {
    name: String,
    version: u64,
    by: BTreeSet<String>,
}

/// Why a policy's signature, or a key for it, is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// Not the form of a signed note about a policy.
    #[error("not a policy's signature: {0}")]
    Malformed(&'static str),
    /// Not the form of a key.
    #[error("not a policy key: {0}")]
    Key(&'static str),
    /// The note is about another file, or this file was changed after it was signed.
    #[error("the signature is for other contents: the policy was changed, or is another one")]
    Contents,
    /// The note names another policy or version than the file itself.
    #[error("the signature names `{name}` version {version}, which the policy is not")]
    Named {
        /// The name in the note.
        name: String,
        /// The version in the note.
        version: u64,
    },
    /// A trusted key has a line that it did not sign.
    #[error("the signature of `{0}` does not verify")]
    Wrong(String),
    /// A trusted key has two lines.
    #[error("the note has two signatures of `{0}`")]
    Duplicated(String),
    /// Too few trusted keys have signed.
    #[error("{have} of the trusted keys have signed, and {need} must")]
    TooFew {
        /// How many have.
        have: usize,
        /// How many must.
        need: usize,
    },
    /// An older policy than was accepted before.
    #[error("version {version} is older than version {least}, which was accepted before")]
    Older {
        /// The version of this policy.
        version: u64,
        /// The least that is accepted.
        least: u64,
    },
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
}

/// Checks that `need` of the trusted keys vouch for a bundle, and that it is not older than `least`.
///
/// # Errors
///
/// Each [`SignatureError`] is a reason not to use the bundle. No key at all is never enough.
pub fn verify(
    bundle: &Bundle,
    note: &str,
    trusted: &[PolicyVerifier],
    need: usize,
    least: u64,
) -> Result<Vouched, SignatureError> {
    let note = Note::parse(note)?;
    let mut by = BTreeSet::new();
    let mut keys = BTreeSet::new();
    for (name, blob) in &note.signatures {
        let known = trusted
            .iter()
            .find(|key| key.name == *name && key.id() == blob[..4]);
        let Some(key) = known else { continue };
        if !keys.insert(key.public) {
            return Err(SignatureError::Duplicated(name.clone()));
        }
        UnparsedPublicKey::new(&ED25519, key.public)
            .verify(note.text.as_bytes(), &blob[4..])
            .map_err(|_| SignatureError::Wrong(name.clone()))?;
        by.insert(name.clone());
    }
    let (have, need) = (keys.len(), need.max(1));
    if have < need {
        return Err(SignatureError::TooFew { have, need });
    }
    if note.digest != bundle.digest() {
        return Err(SignatureError::Contents);
    }
    if note.name != bundle.name() || note.version != bundle.version() {
        let Note { name, version, .. } = note;
        return Err(SignatureError::Named { name, version });
    }
    let version = bundle.version();
    if version < least {
        return Err(SignatureError::Older { version, least });
    }
    Ok(Vouched {
        name: bundle.name().to_owned(),
        version,
        by,
    })
}

impl Vouched {
    /// The policy's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its version: from now on the least to accept.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The names of the keys that vouch for it; never empty.
    pub fn by(&self) -> &BTreeSet<String> {
        &self.by
    }
}

impl PolicyKey {
    /// Makes a key of this name.
    ///
    /// # Errors
    ///
    /// [`SignatureError::Key`] for a name that notes cannot carry, [`SignatureError::Random`].
    pub fn generate(name: &str) -> Result<Self, SignatureError> {
        let random = ring::rand::SystemRandom::new();
        let seed = ring::rand::generate::<[u8; 32]>(&random).map_err(|_| SignatureError::Random)?;
        Self::from_seed(name, Zeroizing::new(seed.expose()))
    }

    fn from_seed(name: &str, seed: Zeroizing<[u8; 32]>) -> Result<Self, SignatureError> {
        check_name(name)?;
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_ref())
            .map_err(|_| SignatureError::Key("its bytes are no Ed25519 key"))?;
        Ok(PolicyKey {
            name: name.to_owned(),
            seed,
            pair,
        })
    }

    /// Reads `PRIVATE+KEY+name+id+key`.
    ///
    /// # Errors
    ///
    /// [`SignatureError::Key`].
    pub fn read(text: &str) -> Result<Self, SignatureError> {
        let rest = text
            .trim_end()
            .strip_prefix(PRIVATE)
            .ok_or(SignatureError::Key("it does not begin with `PRIVATE+KEY+`"))?;
        let (name, id, bytes) = spelled(rest)?;
        let key = Self::from_seed(name, bytes)?;
        match key.verifier().id() == id {
            true => Ok(key),
            false => Err(SignatureError::Key("its id is not that of its bytes")),
        }
    }

    /// Spells the key for a file that only its owner may read.
    pub fn secret(&self) -> Zeroizing<String> {
        let blob = Zeroizing::new([&[KIND], self.seed.as_slice()].concat());
        let id = hex(self.verifier().id());
        let key = Zeroizing::new(STANDARD.encode(&*blob));
        Zeroizing::new(format!("{PRIVATE}{}+{id}+{}", self.name, *key))
    }

    /// The public half.
    pub fn verifier(&self) -> PolicyVerifier {
        let mut public = [0; 32];
        public.copy_from_slice(self.pair.public_key().as_ref());
        PolicyVerifier {
            name: self.name.clone(),
            public,
        }
    }

    /// Vouches for a bundle. The answer is a note of its own, to be stored beside the file.
    pub fn sign(&self, bundle: &Bundle) -> String {
        let text = text(bundle);
        let line = self.line(&text);
        format!("{text}\n{line}")
    }

    /// Adds this key's signature to a note that others have signed.
    ///
    /// # Errors
    ///
    /// [`SignatureError::Contents`] if the note is about something else,
    /// [`SignatureError::Duplicated`] if this key has signed it already.
    pub fn cosign(&self, bundle: &Bundle, note: &str) -> Result<String, SignatureError> {
        let parsed = Note::parse(note)?;
        if parsed.text != text(bundle) {
            return Err(SignatureError::Contents);
        }
        let id = self.verifier().id();
        let is_own = |(name, blob): &(String, [u8; 68])| *name == self.name && blob[..4] == id;
        if parsed.signatures.iter().any(is_own) {
            return Err(SignatureError::Duplicated(self.name.clone()));
        }
        Ok(format!("{note}{}", self.line(parsed.text)))
    }

    fn line(&self, text: &str) -> String {
        let mut blob = self.verifier().id().to_vec();
        blob.extend_from_slice(self.pair.sign(text.as_bytes()).as_ref());
        format!("\u{2014} {} {}\n", self.name, STANDARD.encode(blob))
    }
}

impl fmt::Debug for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PolicyKey({}, ..)", self.name)
    }
}

impl PolicyVerifier {
    /// The key's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first four bytes of SHA-256 over name, newline, kind and key.
    fn id(&self) -> [u8; 4] {
        let mut hash = Sha256::new();
        hash.update(self.name.as_bytes());
        hash.update([b'\n', KIND]);
        hash.update(self.public);
        let hash: [u8; 32] = hash.finalize().into();
        [hash[0], hash[1], hash[2], hash[3]]
    }
}

impl fmt::Display for PolicyVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = STANDARD.encode([&[KIND], self.public.as_slice()].concat());
        write!(f, "{}+{}+{key}", self.name, hex(self.id()))
    }
}

impl std::str::FromStr for PolicyVerifier {
    type Err = SignatureError;

    /// Reads `name+id+key`.
    fn from_str(text: &str) -> Result<Self, SignatureError> {
        let text = text.trim_end();
        if text.starts_with(PRIVATE) {
            return Err(SignatureError::Key(
                "it is a private key, and stays with its owner",
            ));
        }
        let (name, id, bytes) = spelled(text)?;
        let verifier = PolicyVerifier {
            name: name.to_owned(),
            public: *bytes,
        };
        match verifier.id() == id {
            true => Ok(verifier),
            false => Err(SignatureError::Key("its id is not that of its bytes")),
        }
    }
}

/// What is signed.
fn text(bundle: &Bundle) -> String {
    let digest = STANDARD.encode(bundle.digest());
    format!(
        "{ORIGIN}\n{}\n{}\n{digest}\n",
        bundle.name(),
        bundle.version()
    )
}

/// A note, read but not believed.
struct Note<'a> {
    text: &'a str,
    name: String,
    version: u64,
    digest: [u8; 32],
    /// Key name, key id (4 bytes) and signature (64 bytes).
    signatures: Vec<(String, [u8; 68])>,
}

impl<'a> Note<'a> {
    fn parse(note: &'a str) -> Result<Self, SignatureError> {
        use SignatureError::Malformed;
        if note.len() > MOST_BYTES {
            return Err(Malformed("it is too long"));
        }
        if note.chars().any(|c| c.is_control() && c != '\n') {
            return Err(Malformed("it has control characters"));
        }
        let at = note
            .rfind("\n\n")
            .ok_or(Malformed("it has no signatures"))?;
        let (text, signatures) = (&note[..=at], &note[at + 2..]);
        let lines: Vec<&str> = text.lines().collect();
        let &[ORIGIN, name, version, digest] = lines.as_slice() else {
            return Err(Malformed("its text is not about a policy"));
        };
        let number = version.parse::<u64>().ok();
        let version = number
            .filter(|number| number.to_string() == version)
            .ok_or(Malformed("its version is no number"))?;
        let digest = decoded(digest).ok_or(Malformed("its digest is not 32 bytes"))?;
        let signatures = signatures
            .strip_suffix('\n')
            .ok_or(Malformed("its last line does not end"))?;
        let signatures: Vec<&str> = signatures.split('\n').collect();
        if signatures.len() > MOST_SIGNATURES {
            return Err(Malformed("it has too many signatures"));
        }
        let signatures = signatures.into_iter().map(|line| {
            let rest = line.strip_prefix("\u{2014} ")?;
            let (name, blob) = rest.split_once(' ')?;
            check_name(name).ok()?;
            Some((name.to_owned(), decoded(blob)?))
        });
        Ok(Note {
            text,
            name: name.to_owned(),
            version,
            digest,
            signatures: signatures
                .collect::<Option<_>>()
                .ok_or(Malformed("one of its signature lines has not their form"))?,
        })
    }
}

/// Name, id and bytes of a key.
type Spelled<'a> = (&'a str, [u8; 4], Zeroizing<[u8; 32]>);

/// The parts of `name+id+key`.
fn spelled(text: &str) -> Result<Spelled<'_>, SignatureError> {
    use SignatureError::Key;
    let mut parts = text.splitn(3, '+');
    let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(Key("it is not `name+id+key`"));
    };
    check_name(name)?;
    let id = u32::from_str_radix(id, 16)
        .ok()
        .filter(|_| id.len() == 8)
        .ok_or(Key("its id is not 8 hexadecimal digits"))?;
    let blob = Zeroizing::new(STANDARD.decode(key).map_err(|_| Key("it is not base64"))?);
    let (Some(&KIND), Ok(key)) = (
        blob.first(),
        <[u8; 32]>::try_from(&blob[1.min(blob.len())..]),
    ) else {
        return Err(Key("it is not an Ed25519 key"));
    };
    Ok((name, id.to_be_bytes(), Zeroizing::new(key)))
}

fn check_name(name: &str) -> Result<(), SignatureError> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || c == '+';
    if name.is_empty() || name.len() > 128 || name.contains(bad) {
        return Err(SignatureError::Key(
            "its name is empty, long, or has white space or `+`",
        ));
    }
    Ok(())
}

fn decoded<const N: usize>(text: &str) -> Option<[u8; N]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

fn hex(id: [u8; 4]) -> String {
    format!("{:08x}", u32::from_be_bytes(id))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn bundle(version: u64) -> Bundle {
        let source = format!(
            "version = {version}\nname = \"p\"\n[workload]\ncommand = [\"true\"]\n[rules]\ncedar = \"permit (principal, action, resource);\"\n"
        );
        Bundle::parse(&source, "p.toml").unwrap()
    }

    fn key(name: &str, byte: u8) -> PolicyKey {
        PolicyKey::from_seed(name, Zeroizing::new([byte; 32])).unwrap()
    }

    #[test]
    fn keys_are_read_as_they_are_written_and_say_nothing_in_debug() {
        let key = PolicyKey::generate("ops.example.com").unwrap();
        let again = PolicyKey::read(&key.secret()).unwrap();
        assert_eq!(again.verifier(), key.verifier());
        assert_eq!(key.verifier().to_string().parse(), Ok(key.verifier()));
        assert_eq!(format!("{key:?}"), "PolicyKey(ops.example.com, ..)");
        let refused = |text: &str| text.parse::<PolicyVerifier>().unwrap_err();
        assert!(matches!(refused(&key.secret()), SignatureError::Key(_)));
        let public = key.verifier().to_string();
        for bad in [
            "",
            "a+b",
            "+00000000+AQ==",
            "a b+00000000+AQ==",
            &public.replace("ops", "opt"),
            &public[..public.len() - 4],
        ] {
            assert!(matches!(refused(bad), SignatureError::Key(_)), "{bad}");
        }
    }

    #[test]
    fn what_enough_trusted_keys_signed_is_vouched_for() {
        let (one, two) = (key("one", 1), key("two", 2));
        let trusted = [one.verifier(), two.verifier()];
        let bundle = bundle(3);
        let note = one.sign(&bundle);
        assert_eq!(verify(&bundle, &note, &trusted, 1, 3).unwrap().version(), 3);
        let need_two = |note: &str| verify(&bundle, note, &trusted, 2, 0);
        let too_few = SignatureError::TooFew { have: 1, need: 2 };
        assert_eq!(need_two(&note), Err(too_few));
        let both = two.cosign(&bundle, &note).unwrap();
        assert_eq!(need_two(&both).unwrap().by().len(), 2);
        // A stranger's line neither helps nor hurts.
        let with_stranger = key("three", 3).cosign(&bundle, &both).unwrap();
        assert_eq!(need_two(&with_stranger).unwrap().by().len(), 2);
        assert!(verify(&bundle, &note, &[], 0, 0).is_err());
    }

    #[test]
    fn nothing_else_is() {
        let one = key("one", 1);
        let (bundle, trusted) = (bundle(3), [one.verifier()]);
        let note = one.sign(&bundle);
        let refused = |bundle: &Bundle, note: &str, least| verify(bundle, note, &trusted, 1, least);
        assert_eq!(
            refused(&bundle, &note, 4),
            Err(SignatureError::Older {
                version: 3,
                least: 4
            })
        );
        let other = self::bundle(4);
        assert_eq!(refused(&other, &note, 0), Err(SignatureError::Contents));
        let twice = format!("{note}{}", note.lines().last().unwrap().to_owned() + "\n");
        assert_eq!(
            refused(&bundle, &twice, 0),
            Err(SignatureError::Duplicated("one".into()))
        );
        assert_eq!(
            one.cosign(&bundle, &note),
            Err(SignatureError::Duplicated("one".into()))
        );
        // The same name with another key is a stranger.
        let stranger = key("one", 9).sign(&bundle);
        assert_eq!(
            refused(&bundle, &stranger, 0),
            Err(SignatureError::TooFew { have: 0, need: 1 })
        );
        // Every byte counts.
        for at in 0..note.len() {
            let mut bytes = note.clone().into_bytes();
            bytes[at] ^= 1;
            if let Ok(changed) = String::from_utf8(bytes) {
                assert!(
                    refused(&bundle, &changed, 0).is_err(),
                    "byte {at}: {changed}"
                );
            }
            if note.is_char_boundary(at) {
                assert!(refused(&bundle, &note[..at], 0).is_err(), "cut at {at}");
            }
        }
    }
}
