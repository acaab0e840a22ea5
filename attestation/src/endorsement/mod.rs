//! X.509 as far as hardware vendors use it: structure, signatures, dates.
//!
//! Follows RFC 5280 for certificates and CRLs, RFC 4055 for RSASSA-PSS (AMD), RFC 5758 for ECDSA
//! (Intel, NVIDIA) and RFC 4055 for RSASSA-PKCS1-v1_5 (keys of virtual TPMs). Signatures are checked over the received bytes, never over a re-encoding.
//! Which key is trusted for what is decided by the verifier of each TEE.

mod certificate;
mod crl;
mod link;
mod folder;
mod path;
mod pem;
mod read;

pub(crate) use certificate::Certificate;
pub(crate) use crl::Crl;
pub(crate) use link::{LinkError, Lists, Remembered, current, issued, key_digest};
pub use folder::{EndorsedAttester, EndorsementFolder, EndorsementName, FolderError};
pub use path::PathError;
pub(crate) use path::{MAX_PATH, Path, RootKey};
pub use pem::certificates_from_pem;
pub(crate) use read::{Elements, integer};

/// Why DER is not a certificate or CRL of the supported form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum X509Error {
    /// The bytes are not DER of the expected structure.
    #[error("not DER of the expected structure at `{0}`")]
    Structure(&'static str),
    /// The signature algorithm is none that a vendor signs with, or is named differently inside and
    /// outside of the signed part. AMD: RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48
    /// bytes. Intel: ECDSA with SHA-256. NVIDIA: ECDSA with SHA-384. Keys of virtual TPMs:
    /// RSASSA-PKCS1-v1_5 with SHA-256, SHA-384 or SHA-512.
    #[error("signature algorithm is none that a vendor signs with")]
    Algorithm,
    /// An extension occurs twice.
    #[error("an extension occurs twice")]
    DuplicateExtension,
    /// An extension that must be understood is not.
    #[error("a critical extension is not understood")]
    CriticalExtension,
}

/// RSASSA-PSS, SHA-384, MGF1 with SHA-384, salt 48, trailer field written out although it is the
/// default. AMD writes most of its certificates like this.
pub(crate) const PSS_SHA384_EXPLICIT: &[u8] = b"\x30\x46\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x39\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\xa2\x03\x02\x01\x30\xa3\x03\x02\x01\x01";

/// The same algorithm with the default trailer field left out, as DER asks for.
const PSS_SHA384: &[u8] = b"\x30\x41\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x34\xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\xa2\x03\x02\x01\x30";

/// `rsaEncryption` with NULL parameters.
pub(crate) const RSA_ENCRYPTION: &[u8] =
    b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00";

/// `id-ecPublicKey` on `secp384r1`.
pub(crate) const EC_P384: &[u8] =
    b"\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x22";

/// `id-ecPublicKey` on `prime256v1`, which is P-256.
pub(crate) const EC_P256: &[u8] =
    b"\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";

/// `ecdsa-with-SHA256`.
pub(crate) const ECDSA_SHA256: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";

/// `ecdsa-with-SHA384`.
pub(crate) const ECDSA_SHA384: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03";

/// `sha256WithRSAEncryption`, `sha384WithRSAEncryption`, `sha512WithRSAEncryption`, NULL parameters.
pub(crate) const RSA_SHA256: &[u8] =
    b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00";
const RSA_SHA384: &[u8] = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c\x05\x00";
const RSA_SHA512: &[u8] = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d\x05\x00";

/// How a certificate or CRL is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scheme {
    /// RSASSA-PSS with SHA-384, by a key of 2048 to 8192 bits.
    RsaPss,
    /// RSASSA-PKCS1-v1_5 by a key of 2048 to 8192 bits.
    RsaSha256,
    RsaSha384,
    RsaSha512,
    /// ECDSA with SHA-256, by a key on P-256.
    Ecdsa,
    /// ECDSA with SHA-384, by a key on P-384.
    Ecdsa384,
}

impl Scheme {
    /// The scheme of an `AlgorithmIdentifier`, DER.
    fn of(algorithm: &[u8]) -> Result<Self, X509Error> {
        match algorithm {
            PSS_SHA384_EXPLICIT | PSS_SHA384 => Ok(Self::RsaPss),
            ECDSA_SHA256 => Ok(Self::Ecdsa),
            ECDSA_SHA384 => Ok(Self::Ecdsa384),
            RSA_SHA256 => Ok(Self::RsaSha256),
            RSA_SHA384 => Ok(Self::RsaSha384),
            RSA_SHA512 => Ok(Self::RsaSha512),
            _ => Err(X509Error::Algorithm),
        }
    }

    /// Whether `signature` over `message` verifies under a key: PKCS#1 `RSAPublicKey` in DER, or an
    /// uncompressed point. A key of the wrong kind verifies nothing.
    fn verifies(self, public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        use ring::signature;
        let algorithm: &dyn signature::VerificationAlgorithm = match self {
            Self::RsaPss => &signature::RSA_PSS_2048_8192_SHA384,
            Self::RsaSha256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            Self::RsaSha384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            Self::RsaSha512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            Self::Ecdsa => &signature::ECDSA_P256_SHA256_ASN1,
            Self::Ecdsa384 => &signature::ECDSA_P384_SHA384_ASN1,
        };
        signature::UnparsedPublicKey::new(algorithm, public_key)
            .verify(message, signature)
            .is_ok()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::attester::Attester as _;
    use crate::{SimulatedTee, UnixTime, simulated_crl};
    use proptest::prelude::*;

    /// Real certificates and a real CRL, to be damaged.
    fn originals() -> Vec<Vec<u8>> {
        let now = UnixTime(1_790_000_000);
        let evidence = SimulatedTee::new(now).unwrap().attest(&[0; 64]).unwrap();
        let endorsements = evidence.endorsements();
        vec![
            endorsements.vek().unwrap().to_vec(),
            endorsements.root().unwrap().to_vec(),
            simulated_crl(now, Some(now.plus_seconds(1)), true).unwrap(),
        ]
    }

    #[test]
    fn the_two_spellings_of_the_algorithm_differ_in_the_trailer_only() {
        let explicit = PSS_SHA384_EXPLICIT
            .strip_suffix(b"\xa3\x03\x02\x01\x01")
            .unwrap();
        assert_eq!(explicit[15..], PSS_SHA384[15..]);
        assert!(Scheme::of(&PSS_SHA384[..66]).is_err());
    }

    #[test]
    fn a_critical_extension_that_is_not_understood_is_refused() {
        let root = originals().swap_remove(1);
        // basicConstraints (2.5.29.19) of the root becomes nameConstraints (2.5.29.30), critical.
        let at = root
            .windows(5)
            .position(|bytes| bytes == b"\x06\x03\x55\x1d\x13")
            .unwrap();
        let mut other = root.clone();
        other[at + 4] = 0x1e;
        assert!(Certificate::parse(&other).is_ok());
        let mut grown = [&other[..at + 5], b"\x01\x01\xff", &other[at + 5..]].concat();
        // The lengths around it grow by three: two-byte lengths of certificate, tbs; one-byte
        // lengths of [3], list and extension are found by walking back.
        let mut lengths = vec![3, 7];
        lengths.extend([at - 1, at - 3, at - 5]);
        for length in lengths {
            grown[length] += 3;
        }
        assert_eq!(
            Certificate::parse(&grown).err(),
            Some(X509Error::CriticalExtension)
        );
    }

    #[test]
    fn the_algorithm_named_inside_is_the_one_used_outside() {
        // The whole of a certificate but the algorithm in its signed part, spelt the other way.
        let root = originals().swap_remove(1);
        let length = PSS_SHA384_EXPLICIT.len();
        let at = root
            .windows(length)
            .position(|bytes| bytes == PSS_SHA384_EXPLICIT)
            .unwrap();
        let mut other = [&root[..at], PSS_SHA384, &root[at + length..]].concat();
        // Five bytes less in the two-byte lengths of certificate and signed part.
        other[3] -= 5;
        other[7] -= 5;
        assert_eq!(Certificate::parse(&other).err(), Some(X509Error::Algorithm));
    }

    #[test]
    fn every_truncation_is_refused() {
        for der in originals() {
            for length in 0..der.len() {
                assert!(Certificate::parse(&der[..length]).is_err());
                assert!(Crl::parse(&der[..length]).is_err());
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn no_damage_makes_the_parsers_panic(
            edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            noise in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            for der in originals() {
                let mut damaged = der.clone();
                for (at, byte) in &edits {
                    let at = at.index(damaged.len());
                    damaged[at] = *byte;
                }
                let _ = Certificate::parse(&damaged);
                let _ = Crl::parse(&damaged);
            }
            let _ = Certificate::parse(&noise);
            let _ = Crl::parse(&noise);
        }
    }
}
