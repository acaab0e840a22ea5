//! Keys of clients: what a secret is encrypted to.
//!
//! Follows RFC 7517 (JWK), RFC 7518 section 6 (EC, RSA) and RFC 8037 (OKP). Which algorithm is used is
//! said by the key, and is part of what its owner's evidence is bound to.

use attestation::Hex;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What an X25519 key is used for: HPKE (RFC 9180) as [`attestation::SealedSecret`] has it.
pub const HPKE: &str = "HPKE-Base-X25519-SHA256-ChaCha20Poly1305";

/// A key that secrets can be encrypted to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientKey {
    /// ECDH-ES+A256KW.
    Ec {
        /// The curve.
        curve: Curve,
        /// The point, uncompressed.
        point: Vec<u8>,
    },
    /// RSA-OAEP-256.
    Rsa {
        /// The modulus, big endian.
        modulus: Vec<u8>,
        /// The exponent, big endian.
        exponent: Vec<u8>,
    },
    /// The release key of a Casemate guest: its evidence is bound to an [`attestation::Challenge`].
    Hpke {
        /// X25519.
        release_key: [u8; 32],
        /// SHA-256 of the policy bundle in force.
        policy_digest: [u8; 32],
        /// The key of its log.
        log_key: [u8; 32],
    },
}

/// Curves that are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Curve {
    /// NIST P-256.
    P256,
    /// NIST P-384.
    P384,
    /// NIST P-521.
    P521,
}

/// Why runtime data names no usable key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// There is no key, or not in the form of one.
    #[error("there is no `tee-pubkey` in the form of a JWK")]
    Form,
    /// It is for an algorithm that is not used.
    #[error("the algorithm of the key is not taken: use ECDH-ES+A256KW, RSA-OAEP-256 or {HPKE}")]
    Algorithm,
    /// It is on a curve that is not known.
    #[error("the curve of the key is not taken: use P-256, P-384 or P-521")]
    Curve,
    /// It is shorter or longer than such keys are.
    #[error("the key is not of a length that is taken")]
    Length,
}

impl Curve {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::P256 => "P-256",
            Self::P384 => "P-384",
            Self::P521 => "P-521",
        }
    }

    /// Bytes of a coordinate.
    pub fn coordinate(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
            Self::P521 => 66,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RuntimeData {
    tee_pubkey: Jwk,
    policy_digest: Option<String>,
    log_key: Option<String>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    alg: String,
    #[serde(default)]
    crv: String,
    #[serde(default)]
    x: String,
    #[serde(default)]
    y: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
}

impl ClientKey {
    /// Reads the key in runtime data.
    ///
    /// # Errors
    ///
    /// [`KeyError`].
    pub fn of(runtime_data: &Value) -> Result<Self, KeyError> {
        let data = RuntimeData::deserialize(runtime_data).map_err(|_| KeyError::Form)?;
        let jwk = &data.tee_pubkey;
        match (jwk.kty.as_str(), jwk.alg.as_str()) {
            ("EC", "ECDH-ES+A256KW") => {
                let curve = [Curve::P256, Curve::P384, Curve::P521]
                    .into_iter()
                    .find(|curve| curve.name() == jwk.crv)
                    .ok_or(KeyError::Curve)?;
                let mut point = vec![4];
                for coordinate in [&jwk.x, &jwk.y] {
                    let bytes = bytes(coordinate)?;
                    if bytes.len() != curve.coordinate() {
                        return Err(KeyError::Length);
                    }
                    point.extend(bytes);
                }
                Ok(Self::Ec { curve, point })
            }
            ("RSA", "RSA-OAEP-256") => {
                let (modulus, exponent) = (bytes(&jwk.n)?, bytes(&jwk.e)?);
                // 2048 to 4096 bits; the usual exponents have one to three bytes.
                if !(256..=512).contains(&modulus.len()) || !(1..=4).contains(&exponent.len()) {
                    return Err(KeyError::Length);
                }
                Ok(Self::Rsa { modulus, exponent })
            }
            ("OKP", HPKE) if jwk.crv == "X25519" => {
                let release_key = bytes(&jwk.x)?.try_into().map_err(|_| KeyError::Length)?;
                let digits = |text: &Option<String>| {
                    let text = text.as_deref().ok_or(KeyError::Form)?;
                    let hex: Hex<32> = text.parse().map_err(|_| KeyError::Form)?;
                    Ok(hex.0)
                };
                Ok(Self::Hpke {
                    release_key,
                    policy_digest: digits(&data.policy_digest)?,
                    log_key: digits(&data.log_key)?,
                })
            }
            _ => Err(KeyError::Algorithm),
        }
    }

    /// The kind of key, for records.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ec { curve, .. } => curve.name(),
            Self::Rsa { .. } => "RSA",
            Self::Hpke { .. } => "X25519",
        }
    }
}

fn bytes(text: &str) -> Result<Vec<u8>, KeyError> {
    // The longest is a modulus of 4096 bits.
    if text.len() > 700 {
        return Err(KeyError::Length);
    }
    URL_SAFE_NO_PAD.decode(text).map_err(|_| KeyError::Form)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(jwk: Value) -> Result<ClientKey, KeyError> {
        ClientKey::of(&json!({ "nonce": "n", "tee-pubkey": jwk }))
    }

    #[test]
    fn keys_of_unsafe_or_unknown_algorithms_and_sizes_are_refused() {
        let number = |length: usize| URL_SAFE_NO_PAD.encode(vec![0x81; length]);
        let rsa = |alg: &str, length| {
            of(json!({ "kty": "RSA", "alg": alg, "n": number(length), "e": "AQAB" }))
        };
        assert!(rsa("RSA-OAEP-256", 256).is_ok());
        for alg in ["RSA1_5", "RSA-OAEP", "none", ""] {
            assert_eq!(rsa(alg, 256), Err(KeyError::Algorithm));
        }
        for length in [0, 128, 255, 513] {
            assert_eq!(rsa("RSA-OAEP-256", length), Err(KeyError::Length));
        }
        let ec = |curve: &str, x, y| {
            of(
                json!({ "kty": "EC", "alg": "ECDH-ES+A256KW", "crv": curve, "x": number(x), "y": number(y) }),
            )
        };
        assert!(ec("P-256", 32, 32).is_ok() && ec("P-521", 66, 66).is_ok());
        assert_eq!(ec("P-256", 31, 33), Err(KeyError::Length));
        assert_eq!(ec("secp256k1", 32, 32), Err(KeyError::Curve));
        assert_eq!(ClientKey::of(&json!({ "nonce": "n" })), Err(KeyError::Form));
        assert_eq!(ClientKey::of(&json!([])), Err(KeyError::Form));
    }

    #[test]
    fn a_release_key_comes_with_what_else_its_evidence_is_bound_to() {
        let key = json!({ "kty": "OKP", "crv": "X25519", "alg": HPKE, "x": URL_SAFE_NO_PAD.encode([7; 32]) });
        assert_eq!(of(key.clone()), Err(KeyError::Form));
        let data = json!({ "tee-pubkey": key, "policy-digest": "02".repeat(32), "log-key": "03".repeat(32) });
        let expected = ClientKey::Hpke {
            release_key: [7; 32],
            policy_digest: [2; 32],
            log_key: [3; 32],
        };
        assert_eq!(ClientKey::of(&data), Ok(expected));
    }
}
