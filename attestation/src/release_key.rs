//! The key that released secrets are sealed to.
//!
//! HPKE (RFC 9180) in base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, ChaCha20Poly1305. The
//! public key is bound into evidence by [`crate::Challenge`]; the private key never leaves the
//! process that made it.

use hpke::aead::ChaCha20Poly1305;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable as _, Kem as _, OpModeR, OpModeS, Serializable as _};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::encoding::{Blob, Hex};

type Kem = X25519HkdfSha256;

const INFO: &[u8] = b"casemate/attestation/release-key/v1";
const CONTEXT: &[u8] = b"casemate/attestation/release/v1";
const TAG: usize = 16;

/// The most bytes a sealed secret may have.
pub const MAX_SECRET: usize = 64 * 1024;
const MAX_SEALED: usize = MAX_SECRET + TAG;

/// An X25519 private key: opens what was sealed to its public half.
///
/// Zeroed on drop.
pub struct ReleaseKey {
    private: <Kem as hpke::Kem>::PrivateKey,
    public: [u8; 32],
}

/// A secret that only one [`ReleaseKey`] opens, in one context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct SealedSecret {
    /// The encapsulated key, 32 bytes.
    enc: Hex<32>,
    /// The secret and a tag of 16 bytes.
    ciphertext: Blob<MAX_SEALED>,
}

/// Why a secret was not sealed or not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The operating system gives no random numbers.
    #[error("no random numbers for a key")]
    Random,
    /// The public key is not one that a secret can be sealed to.
    #[error("the release key is not a usable X25519 key")]
    Key,
    /// The secret is longer than [`MAX_SECRET`].
    #[error("the secret has {0} bytes, at most 65536 can be sealed")]
    TooLarge(usize),
    /// The secret was sealed to another key, for another context, or was changed.
    #[error("the sealed secret does not open with this key in this context")]
    Open,
}

impl ReleaseKey {
    /// Makes a new key.
    ///
    /// # Errors
    ///
    /// [`SealError::Random`].
    pub fn generate() -> Result<Self, SealError> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed).map_err(|_| SealError::Random)?;
        let (private, public) = Kem::derive_keypair(&*seed);
        Ok(Self {
            private,
            public: public.to_bytes().into(),
        })
    }

    /// The public half, as [`crate::Challenge::release_key`] takes it.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        self.public
    }

    /// Opens a secret that was sealed to this key in the same context.
    ///
    /// # Errors
    ///
    /// [`SealError::Open`].
    pub fn open(
        &self,
        sealed: &SealedSecret,
        context: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let enc = <Kem as hpke::Kem>::EncappedKey::from_bytes(&sealed.enc.0)
            .map_err(|_| SealError::Open)?;
        hpke::single_shot_open::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeR::Base,
            &self.private,
            &enc,
            INFO,
            sealed.ciphertext.as_slice(),
            context,
        )
        .map(Zeroizing::new)
        .map_err(|_| SealError::Open)
    }
}

impl std::fmt::Debug for ReleaseKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReleaseKey(public {})", Hex(self.public))
    }
}

impl SealedSecret {
    /// Seals a secret to a public key in a context, which is authenticated but not part of the
    /// result.
    ///
    /// # Errors
    ///
    /// [`SealError::Key`] for a key that gives no secrecy, [`SealError::TooLarge`],
    /// [`SealError::Random`].
    pub fn seal(public: &[u8; 32], context: &[u8], secret: &[u8]) -> Result<Self, SealError> {
        if secret.len() > MAX_SECRET {
            return Err(SealError::TooLarge(secret.len()));
        }
        // Asked beforehand, for the sealing itself could only panic.
        getrandom::fill(&mut [0; 1]).map_err(|_| SealError::Random)?;
        let public =
            <Kem as hpke::Kem>::PublicKey::from_bytes(public).map_err(|_| SealError::Key)?;
        let (enc, ciphertext) = hpke::single_shot_seal::<ChaCha20Poly1305, HkdfSha256, Kem>(
            &OpModeS::Base,
            &public,
            INFO,
            secret,
            context,
        )
        .map_err(|_| SealError::Key)?;
        Ok(Self {
            enc: Hex(enc.to_bytes().into()),
            ciphertext: Blob::new(ciphertext).map_err(SealError::TooLarge)?,
        })
    }
}

/// The context that a released resource is sealed in.
///
/// ```text
///  0  31  "casemate/attestation/release/v1" (ASCII)
/// 31  64  report data of the evidence that was appraised
/// 95   …  name of the resource (UTF-8)
/// ```
///
/// So a secret opens only as the resource it was asked for as, and only by whoever attested.
#[must_use]
pub fn release_context(resource: &str, report_data: &[u8; 64]) -> Vec<u8> {
    [CONTEXT, report_data, resource.as_bytes()].concat()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_secret_opens_with_its_key_in_its_context_only() {
        let (key, other) = (
            ReleaseKey::generate().unwrap(),
            ReleaseKey::generate().unwrap(),
        );
        let sealed = SealedSecret::seal(&key.public(), b"context", b"secret").unwrap();
        assert_eq!(&key.open(&sealed, b"context").unwrap()[..], b"secret");
        assert_eq!(key.open(&sealed, b"contexT"), Err(SealError::Open));
        assert_eq!(other.open(&sealed, b"context"), Err(SealError::Open));
    }

    #[test]
    fn every_flipped_bit_of_a_sealed_secret_is_noticed() {
        let key = ReleaseKey::generate().unwrap();
        let sealed = SealedSecret::seal(&key.public(), b"", b"secret").unwrap();
        for at in 0..sealed.ciphertext.as_slice().len() {
            let mut bytes = sealed.ciphertext.as_slice().to_vec();
            bytes[at] ^= 1;
            let changed = SealedSecret {
                ciphertext: Blob::new(bytes).unwrap(),
                ..sealed.clone()
            };
            assert_eq!(key.open(&changed, b""), Err(SealError::Open));
        }
        for at in 0..32 {
            let mut enc = sealed.enc;
            enc.0[at] ^= 1;
            assert_eq!(
                key.open(
                    &SealedSecret {
                        enc,
                        ..sealed.clone()
                    },
                    b""
                ),
                Err(SealError::Open)
            );
        }
    }

    #[test]
    fn a_key_that_gives_no_secrecy_is_refused() {
        assert_eq!(
            SealedSecret::seal(&[0; 32], b"", b"secret"),
            Err(SealError::Key)
        );
    }

    #[test]
    fn a_sealed_secret_survives_json_and_shows_nothing() {
        let key = ReleaseKey::generate().unwrap();
        let sealed = SealedSecret::seal(&key.public(), b"", b"secret").unwrap();
        let json = serde_json::to_string(&sealed).unwrap();
        assert_eq!(serde_json::from_str::<SealedSecret>(&json).unwrap(), sealed);
        assert!(serde_json::from_str::<SealedSecret>(&json.replace("enc", "env")).is_err());
        assert!(SealedSecret::seal(&key.public(), b"", &vec![0; MAX_SECRET + 1]).is_err());
    }
}
