//! Text under an Ed25519 signature.
//!
//! Follows C2SP "signed-note": the text, an empty line, and lines `— <name> <base64>` whose content is
//! four bytes that name the key and the signature over the text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{Context, SHA256};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

/// The type of Ed25519 keys.
const TYPE: u8 = 0x01;
/// The most signatures that are looked at.
const MAX_SIGNATURES: usize = 16;

/// A key that notes can be verified with: `<name>+<8 hexadecimal digits>+<base64>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoteKey {
    name: String,
    public: [u8; 32],
}

/// Why text is not a note of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoteError {
    /// The key is not of the form that notes have.
    #[error("the key is not `<name>+<digits>+<base64>` of an Ed25519 key")]
    Key,
    /// The text has no signature lines after an empty line.
    #[error("the text is not a signed note")]
    Form,
    /// The key signed nothing of it.
    #[error("the note is not signed by the key")]
    Unsigned,
    /// The key is named, but its signature does not verify.
    #[error("the signature on the note does not verify")]
    Signature,
}

impl std::str::FromStr for NoteKey {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::Key);
        };
        let bytes = STANDARD.decode(key).map_err(|_| NoteError::Key)?;
        let [TYPE, public @ ..] = bytes.as_slice() else {
            return Err(NoteError::Key);
        };
        let public = public.try_into().map_err(|_| NoteError::Key)?;
        let key = Self::new(name, public)?;
        let expected: String = key.id().iter().map(|byte| format!("{byte:02x}")).collect();
        if id != expected {
            return Err(NoteError::Key);
        }
        Ok(key)
    }
}

impl std::fmt::Display for NoteKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let id: String = self.id().iter().map(|byte| format!("{byte:02x}")).collect();
        let key = STANDARD.encode([&[TYPE], &self.public[..]].concat());
        write!(f, "{}+{id}+{key}", self.name)
    }
}

impl NoteKey {
    /// A key of this name.
    ///
    /// # Errors
    ///
    /// [`NoteError::Key`] if the name is empty or has white space or a plus sign in it.
    pub fn new(name: &str, public: [u8; 32]) -> Result<Self, NoteError> {
        let odd = |character: char| character.is_whitespace() || character == '+';
        if name.is_empty() || name.contains(odd) {
            return Err(NoteError::Key);
        }
        let name = name.to_owned();
        Ok(Self { name, public })
    }

    /// SHA-256 of name, line feed, type and key, shortened.
    fn id(&self) -> [u8; 4] {
        let mut all = Context::new(&SHA256);
        all.update(self.name.as_bytes());
        all.update(&[b'\n', TYPE]);
        all.update(&self.public);
        let mut id = [0; 4];
        id.iter_mut()
            .zip(all.finish().as_ref())
            .for_each(|(to, from)| *to = *from);
        id
    }

    /// The text of a note that this key signed, with the line feed that ends it.
    ///
    /// # Errors
    ///
    /// [`NoteError`] if it is no note, or not one of this key.
    pub fn open<'a>(&self, note: &'a str) -> Result<&'a str, NoteError> {
        let split = note.rfind("\n\n").ok_or(NoteError::Form)?;
        let (text, signatures) = note.split_at(split.saturating_add(1));
        let signatures = signatures.strip_prefix('\n').ok_or(NoteError::Form)?;
        for line in signatures.lines().take(MAX_SIGNATURES) {
            let line = line.strip_prefix("— ").ok_or(NoteError::Form)?;
            let (name, encoded) = line.split_once(' ').ok_or(NoteError::Form)?;
            let bytes = STANDARD.decode(encoded).map_err(|_| NoteError::Form)?;
            let (id, signature) = bytes.split_at_checked(4).ok_or(NoteError::Form)?;
            if name != self.name || id != self.id() {
                continue;
            }
            return UnparsedPublicKey::new(&ED25519, &self.public)
                .verify(text.as_bytes(), signature)
                .map(|()| text)
                .map_err(|_| NoteError::Signature);
        }
        Err(NoteError::Unsigned)
    }
}

/// Signs text, which must end in a line feed, and gives the note and the key it can be verified with.
///
/// # Errors
///
/// [`NoteError::Form`] if the text does not end in a line feed, [`NoteError::Key`] if the name is not
/// one that a key can have.
pub fn sign(text: &str, name: &str, key: &Ed25519KeyPair) -> Result<(String, NoteKey), NoteError> {
    if !text.ends_with('\n') {
        return Err(NoteError::Form);
    }
    let mut public = [0; 32];
    public.copy_from_slice(key.public_key().as_ref());
    let verifier = NoteKey::new(name, public)?;
    let signature = key.sign(text.as_bytes());
    let line = STANDARD.encode([&verifier.id(), signature.as_ref()].concat());
    Ok((format!("{text}\n— {name} {line}\n"), verifier))
}

/// Signs text with a private key in PKCS#8, DER; see [`sign`].
///
/// # Errors
///
/// [`NoteError::Key`] if it is not an Ed25519 key; otherwise as [`sign`].
pub fn sign_pkcs8(text: &str, name: &str, der: &[u8]) -> Result<(String, NoteKey), NoteError> {
    let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).map_err(|_| NoteError::Key)?;
    sign(text, name, &key)
}

/// The DER of a private key in PEM (RFC 7468, `PRIVATE KEY`); nothing if it is not one.
#[must_use]
pub fn pkcs8_from_pem(pem: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(pem).ok()?;
    let body = text.trim().strip_prefix("-----BEGIN PRIVATE KEY-----")?;
    let body = body.strip_suffix("-----END PRIVATE KEY-----")?;
    let letters: String = body.split_ascii_whitespace().collect();
    STANDARD.decode(letters).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn key(seed: u8) -> Ed25519KeyPair {
        Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
    }

    #[test]
    fn a_note_opens_with_the_key_that_signed_it_only() {
        let (note, verifier) = sign("a text\n\nof two parts\n", "table", &key(1)).unwrap();
        assert_eq!(verifier.open(&note), Ok("a text\n\nof two parts\n"));
        let again: NoteKey = verifier.to_string().parse().unwrap();
        assert_eq!(again, verifier);
        let (_, other) = sign("\n", "table", &key(2)).unwrap();
        assert_eq!(other.open(&note), Err(NoteError::Unsigned));
        let changed = note.replace("two", "2wo");
        assert_eq!(verifier.open(&changed), Err(NoteError::Signature));
        assert_eq!(verifier.open("no note"), Err(NoteError::Form));
        assert_eq!(
            verifier.open("text\n\nno signature\n"),
            Err(NoteError::Form)
        );
    }

    #[test]
    fn a_key_is_spelt_in_one_way() {
        let (_, verifier) = sign("\n", "table", &key(1)).unwrap();
        let text = verifier.to_string();
        assert!(text.replace("table", "chair").parse::<NoteKey>().is_err());
        assert!("table+00000000+AQ==".parse::<NoteKey>().is_err());
        assert!(sign("\n", "two words", &key(1)).is_err());
        assert!(sign("no line", "table", &key(1)).is_err());
    }
}
