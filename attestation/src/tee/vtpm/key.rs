//! The attestation key of a TPM, and how it verifies.

use der::Tag;
use ring::digest::{SHA256, digest};
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_2048_8192_SHA384,
    RSA_PSS_2048_8192_SHA256, RSA_PSS_2048_8192_SHA384, RsaParameters, RsaPublicKeyComponents,
    UnparsedPublicKey,
};

use crate::encoding::Hex;
use crate::endorsement::{Certificate, EC_P256, Elements, RSA_ENCRYPTION};

use super::quote::{HashAlgorithm, TpmSignature};

/// A public key that signs quotes.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum AttestationKey {
    /// Modulus and exponent, big endian, without leading zeroes.
    Rsa { n: Vec<u8>, e: Vec<u8> },
    /// An uncompressed point on P-256.
    P256(Vec<u8>),
}

impl AttestationKey {
    pub(super) fn rsa(n: &[u8], e: &[u8]) -> Self {
        Self::Rsa {
            n: without_zeroes(n).to_vec(),
            e: without_zeroes(e).to_vec(),
        }
    }

    /// The key of a certificate, if it is of a kind that TPMs have.
    pub(super) fn of(certificate: &Certificate<'_>) -> Option<Self> {
        match certificate.key_algorithm {
            EC_P256 => Some(Self::P256(certificate.public_key.to_vec())),
            RSA_ENCRYPTION => {
                let mut numbers = Elements::of_whole(certificate.public_key, "RSA key").ok()?;
                let n = numbers.next(Tag::Integer).ok()?.content;
                let e = numbers.next(Tag::Integer).ok()?.content;
                numbers.end().ok()?;
                Some(Self::rsa(n, e))
            }
            _ => None,
        }
    }

    /// SHA-256 of the modulus or of the point: tells keys apart.
    pub(super) fn fingerprint(&self) -> Hex<32> {
        let mut hash = [0; 32];
        let (Self::Rsa { n: bytes, .. } | Self::P256(bytes)) = self;
        hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
        Hex(hash)
    }

    /// Whether a signature over `message` verifies; `None` if keys of this kind make none like it.
    pub(super) fn verifies(&self, message: &[u8], signature: &TpmSignature<'_>) -> Option<bool> {
        let rsa = |parameters: &RsaParameters, signature: &[u8]| match self {
            Self::Rsa { n, e } => Some(
                RsaPublicKeyComponents { n, e }
                    .verify(parameters, message, signature)
                    .is_ok(),
            ),
            Self::P256(_) => None,
        };
        match *signature {
            TpmSignature::RsaSsa { hash, signature } => match hash {
                HashAlgorithm::Sha256 => rsa(&RSA_PKCS1_2048_8192_SHA256, signature),
                HashAlgorithm::Sha384 => rsa(&RSA_PKCS1_2048_8192_SHA384, signature),
            },
            TpmSignature::RsaPss { hash, signature } => match hash {
                HashAlgorithm::Sha256 => rsa(&RSA_PSS_2048_8192_SHA256, signature),
                HashAlgorithm::Sha384 => rsa(&RSA_PSS_2048_8192_SHA384, signature),
            },
            TpmSignature::Ecdsa { hash, r, s } => match (self, hash) {
                (Self::P256(point), HashAlgorithm::Sha256) => {
                    let fixed = [padded(r)?, padded(s)?];
                    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
                    Some(key.verify(message, fixed.as_flattened()).is_ok())
                }
                _ => None,
            },
        }
    }
}

fn without_zeroes(number: &[u8]) -> &[u8] {
    let zeroes = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeroes..).unwrap_or_default()
}

fn padded(number: &[u8]) -> Option<[u8; 32]> {
    let number = without_zeroes(number);
    let mut padded = [0; 32];
    let start = padded.len().checked_sub(number.len())?;
    padded.get_mut(start..)?.copy_from_slice(number);
    Some(padded)
}
