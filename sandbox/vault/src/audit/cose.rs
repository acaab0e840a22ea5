//! What is said in a log's name beside its records: a message signed with the log's key.
//!
//! Follows RFC 9052 (COSE), section 4.2 (`COSE_Sign1`, tagged) and RFC 9053, section 2.2 (EdDSA):
//!
//! ```text
//! 18([ << { 1: -8, 3: KIND, 4: public key } >>, {}, payload, signature ])
//! signed: [ "Signature1", protected, h'', payload ]
//! ```
//!
//! Deterministically encoded, so that a message has one spelling. No checkpoint can be taken for one or
//! the other way round: what is signed there is text, and here begins with the byte 0x84.

use std::fmt;
use std::sync::Arc;

use ciborium::Value;

use super::key::{LogKey, LogVerifier};

/// The tag of `COSE_Sign1`.
const TAG: u64 = 18;
/// The first byte of every message of this form.
pub const FIRST_BYTE: u8 = 0xd2;
// Header parameters.
const ALG: i64 = 1;
const CONTENT_TYPE: i64 = 3;
const KID: i64 = 4;
/// The algorithm EdDSA.
const EDDSA: i64 = -8;
/// A name for [`LogVerifier`], which signs nothing here.
const NO_NAME: &str = "cose";

/// Signs in the name of a log, also after that was closed.
#[derive(Clone)]
pub struct Signer(Arc<LogKey>);

/// A message whose signature was checked with the key that it names.
///
/// Only [`Signed::open`] makes one. Whether that key is to be believed is for its reader to say.
#[derive(Clone, PartialEq, Eq)]
pub struct Signed {
    key: [u8; 32],
    payload: Vec<u8>,
}

/// Why a signed message is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignedError {
    /// It is no `COSE_Sign1` of this form, in the one spelling.
    #[error("it is no signed message of this kind")]
    Form,
    /// The key that it names did not sign it.
    #[error("its signature is not that of the key that it names")]
    Signature,
}

impl Signer {
    pub(super) fn new(key: Arc<LogKey>) -> Self {
        Self(key)
    }

    /// Signs a payload of this kind (a media type).
    #[must_use]
    pub fn sign(&self, kind: &str, payload: &[u8]) -> Vec<u8> {
        let protected = protected(kind, &self.0.public());
        let signature = self.0.sign_bytes(&to_be_signed(&protected, payload));
        message(protected, payload, signature)
    }
}

impl Signed {
    /// Reads a message of this kind, and checks its signature.
    ///
    /// # Errors
    ///
    /// [`SignedError`]
    pub fn open(kind: &str, bytes: &[u8]) -> Result<Self, SignedError> {
        let value: Value = ciborium::from_reader(bytes).map_err(|_| SignedError::Form)?;
        let Value::Tag(TAG, inner) = value else {
            return Err(SignedError::Form);
        };
        let parts = inner.into_array().map_err(|_| SignedError::Form)?;
        let Ok([protected_header, _, payload, signature]) = <[Value; 4]>::try_from(parts) else {
            return Err(SignedError::Form);
        };
        let bytes_of = |value: Value| value.into_bytes().map_err(|_| SignedError::Form);
        let header = bytes_of(protected_header)?;
        let (payload, signature) = (bytes_of(payload)?, bytes_of(signature)?);
        let key = key_in(&header).ok_or(SignedError::Form)?;
        // Everything else is what it has to be, or this would be another message.
        if header != protected(kind, &key)
            || message(header.clone(), &payload, signature.clone()) != bytes
        {
            return Err(SignedError::Form);
        }
        let verifier = LogVerifier::new(NO_NAME, key).map_err(|_| SignedError::Form)?;
        match verifier.has_signed(&to_be_signed(&header, &payload), &signature) {
            true => Ok(Self { key, payload }),
            false => Err(SignedError::Signature),
        }
    }

    /// The public key that it names and that signed it.
    #[must_use]
    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// What was signed.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signer(..)")
    }
}

impl fmt::Debug for Signed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signed({} bytes)", self.payload.len())
    }
}

fn protected(kind: &str, key: &[u8; 32]) -> Vec<u8> {
    encoded(&Value::Map(vec![
        (ALG.into(), EDDSA.into()),
        (CONTENT_TYPE.into(), kind.into()),
        (KID.into(), Value::Bytes(key.to_vec())),
    ]))
}

fn key_in(header: &[u8]) -> Option<[u8; 32]> {
    let header: Value = ciborium::from_reader(header).ok()?;
    let (_, key) = header.into_map().ok()?.pop()?;
    key.into_bytes().ok()?.try_into().ok()
}

fn to_be_signed(protected: &[u8], payload: &[u8]) -> Vec<u8> {
    encoded(&Value::Array(vec![
        "Signature1".into(),
        Value::Bytes(protected.to_vec()),
        Value::Bytes(Vec::new()),
        Value::Bytes(payload.to_vec()),
    ]))
}

fn message(protected: Vec<u8>, payload: &[u8], signature: Vec<u8>) -> Vec<u8> {
    let parts = vec![
        Value::Bytes(protected),
        Value::Map(Vec::new()),
        Value::Bytes(payload.to_vec()),
        Value::Bytes(signature),
    ];
    encoded(&Value::Tag(TAG, Box::new(Value::Array(parts))))
}

fn encoded(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Writing to memory does not fail.
    let _ = ciborium::into_writer(value, &mut bytes);
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const KIND: &str = "application/example";

    fn signer(seed: u8) -> Signer {
        Signer::new(Arc::new(LogKey::from_seed(&[seed; 32]).unwrap()))
    }

    #[test]
    fn what_was_signed_is_read_again_and_names_its_key() {
        let message = signer(1).sign(KIND, b"said");
        assert_eq!(message[0], FIRST_BYTE);
        let signed = Signed::open(KIND, &message).unwrap();
        assert_eq!(signed.payload(), b"said");
        assert_eq!(*signed.key(), signer(1).0.public());
        assert_eq!(
            Signed::open("application/other", &message),
            Err(SignedError::Form)
        );
    }

    #[test]
    fn the_encoding_is_that_of_the_standard() {
        let message = signer(1).sign(KIND, b"said");
        let key = signer(1).0.public();
        let mut header = vec![0xa3, 0x01, 0x27, 0x03, 0x73];
        header.extend(KIND.as_bytes());
        header.extend([0x04, 0x58, 0x20]);
        header.extend(key);
        let mut expected = vec![0xd2, 0x84, 0x58, u8::try_from(header.len()).unwrap()];
        expected.extend(&header);
        expected.extend([0xa0, 0x44]);
        expected.extend(b"said");
        expected.extend([0x58, 0x40]);
        assert_eq!(message[..message.len() - 64], expected);
    }

    #[test]
    fn every_flipped_bit_every_shorter_and_every_longer_message_is_refused() {
        let genuine = signer(1).sign(KIND, b"said");
        for at in 0..genuine.len() {
            for bit in 0..8 {
                let mut message = genuine.clone();
                message[at] ^= 1 << bit;
                assert!(Signed::open(KIND, &message).is_err(), "{at}.{bit}");
            }
            assert!(Signed::open(KIND, &genuine[..at]).is_err(), "{at}");
        }
        assert!(Signed::open(KIND, &[&genuine[..], b"\0"].concat()).is_err());
    }

    #[test]
    fn another_spelling_of_the_same_is_refused() {
        let genuine = signer(1).sign(KIND, b"said");
        let at = genuine.windows(5).position(|it| it == b"\x44said").unwrap();
        // The length of the payload in one byte more than it takes.
        let longer = [&genuine[..at], &b"\x58\x04said"[..], &genuine[at + 5..]].concat();
        assert_eq!(Signed::open(KIND, &longer), Err(SignedError::Form));
    }
}
