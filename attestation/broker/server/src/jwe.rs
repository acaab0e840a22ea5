//! Secrets on their way to clients that speak JOSE.
//!
//! Follows RFC 7516, "Flattened JWE JSON Serialization Syntax", and RFC 7518: ECDH-ES+A256KW (section 4.6)
//! and RSA-OAEP-256 (section 4.3) for the key, A256GCM for the content. The header is written as clients
//! of the KBS protocol write it again before they check it: `alg`, `enc`, then the rest by name.

use attestation::SealedSecret;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{
    self, Algorithm, ECDH_P256, ECDH_P384, ECDH_P521, PrivateKey, UnparsedPublicKey,
};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};
use aws_lc_rs::rsa::{
    OAEP_SHA256_MGF1SHA256, OaepPublicEncryptingKey, PublicEncryptingKey, PublicKeyComponents,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::jwk::Curve;

/// A secret that only the owner of a key can read.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Encrypted {
    /// To an EC or RSA key.
    Jwe(Jwe),
    /// To a release key.
    Sealed(SealedSecret),
}

/// A JWE in its flattened form.
#[derive(Debug, Serialize)]
pub struct Jwe {
    protected: String,
    encrypted_key: String,
    iv: String,
    ciphertext: String,
    tag: String,
}

/// Why a secret could not be encrypted: the key is none that can be used, or there is no randomness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the secret cannot be encrypted to this key")]
pub struct JweError;

/// Encrypts a secret to a point on a curve.
///
/// # Errors
///
/// [`JweError`] if it is not on the curve.
pub fn to_ec(curve: Curve, point: &[u8], secret: &[u8]) -> Result<Jwe, JweError> {
    let algorithm = algorithm(curve);
    let ephemeral = PrivateKey::generate(algorithm).map_err(|_| JweError)?;
    let public = ephemeral.compute_public_key().map_err(|_| JweError)?;
    let peer = UnparsedPublicKey::new(algorithm, point);
    let wrapping = agreement::agree(&ephemeral, peer, JweError, |shared| {
        Ok(derive("ECDH-ES+A256KW", shared))
    })?;
    let (x, y) = public.as_ref()[1..].split_at(curve.coordinate());
    let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
    let curve = curve.name();
    let header = format!(
        r#"{{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":{{"crv":"{curve}","kty":"EC","x":"{x}","y":"{y}"}}}}"#
    );
    encrypt(&header, secret, |key| {
        let wrapper = AesKek::new(&AES_256, &wrapping[..]).map_err(|_| JweError)?;
        let mut wrapped = [0; 40];
        let wrapped = wrapper.wrap(key, &mut wrapped).map_err(|_| JweError)?;
        Ok(wrapped.to_vec())
    })
}

/// Encrypts a secret to an RSA key.
///
/// # Errors
///
/// [`JweError`] if it is no such key.
pub fn to_rsa(modulus: &[u8], exponent: &[u8], secret: &[u8]) -> Result<Jwe, JweError> {
    let components = PublicKeyComponents {
        n: modulus,
        e: exponent,
    };
    let public: PublicEncryptingKey = components.try_into().map_err(|_| JweError)?;
    let public = OaepPublicEncryptingKey::new(public).map_err(|_| JweError)?;
    encrypt(r#"{"alg":"RSA-OAEP-256","enc":"A256GCM"}"#, secret, |key| {
        let mut out = vec![0; public.ciphertext_size()];
        let encrypted = public.encrypt(&OAEP_SHA256_MGF1SHA256, key, &mut out, None);
        Ok(encrypted.map_err(|_| JweError)?.to_vec())
    })
}

/// Encrypts under a new key, which `wrap` encrypts in turn.
fn encrypt(
    header: &str,
    secret: &[u8],
    wrap: impl FnOnce(&[u8]) -> Result<Vec<u8>, JweError>,
) -> Result<Jwe, JweError> {
    let mut key = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *key).map_err(|_| JweError)?;
    let mut iv = [0; 12];
    getrandom::fill(&mut iv).map_err(|_| JweError)?;
    let protected = URL_SAFE_NO_PAD.encode(header);
    let cipher = UnboundKey::new(&AES_256_GCM, &*key).map_err(|_| JweError)?;
    // Becomes the ciphertext in place: no copy of the secret is left.
    let mut text = Zeroizing::new(secret.to_vec());
    let tag = LessSafeKey::new(cipher).seal_in_place_separate_tag(
        Nonce::assume_unique_for_key(iv),
        Aad::from(protected.as_bytes()),
        &mut text,
    );
    Ok(Jwe {
        encrypted_key: URL_SAFE_NO_PAD.encode(wrap(&*key)?),
        iv: URL_SAFE_NO_PAD.encode(iv),
        ciphertext: URL_SAFE_NO_PAD.encode(&*text),
        tag: URL_SAFE_NO_PAD.encode(tag.map_err(|_| JweError)?),
        protected,
    })
}

/// Concat KDF (RFC 7518 section 4.6.2) for 256 bits, without information about the parties.
fn derive(algorithm: &str, shared: &[u8]) -> Zeroizing<[u8; 32]> {
    let mut hash = Sha256::new();
    hash.update(1_u32.to_be_bytes());
    hash.update(shared);
    hash.update(
        u32::try_from(algorithm.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    hash.update(algorithm);
    for nobody in [0_u32, 0] {
        hash.update(nobody.to_be_bytes());
    }
    hash.update(256_u32.to_be_bytes());
    Zeroizing::new(hash.finalize().into())
}

fn algorithm(curve: Curve) -> &'static Algorithm {
    match curve {
        Curve::P256 => &ECDH_P256,
        Curve::P384 => &ECDH_P384,
        Curve::P521 => &ECDH_P521,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
    use aws_lc_rs::rsa::{KeySize, OaepPrivateDecryptingKey, PrivateDecryptingKey};
    use serde_json::Value;

    use super::*;

    /// Reads a JWE, as its receiver does.
    fn open(jwe: &Jwe, unwrap: impl FnOnce(&Value, &[u8]) -> Vec<u8>) -> Option<Vec<u8>> {
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
        let header: Value = serde_json::from_slice(&decode(&jwe.protected)).unwrap();
        let key = unwrap(&header, &decode(&jwe.encrypted_key));
        let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
        let nonce = Nonce::try_assume_unique_for_key(&decode(&jwe.iv)).unwrap();
        let mut text = [decode(&jwe.ciphertext), decode(&jwe.tag)].concat();
        let aad = Aad::from(jwe.protected.as_bytes());
        let opened = cipher.open_in_place(nonce, aad, &mut text).ok()?;
        Some(opened.to_vec())
    }

    #[test]
    fn the_owner_of_an_ec_key_reads_the_secret_on_every_curve() {
        for curve in [Curve::P256, Curve::P384, Curve::P521] {
            let own = PrivateKey::generate(algorithm(curve)).unwrap();
            let jwe = to_ec(curve, own.compute_public_key().unwrap().as_ref(), b"secret").unwrap();
            let opened = open(&jwe, |header, wrapped| {
                assert_eq!(
                    (&header["alg"], &header["enc"]),
                    (&"ECDH-ES+A256KW".into(), &"A256GCM".into())
                );
                let coordinate = |name: &str| {
                    URL_SAFE_NO_PAD
                        .decode(header["epk"][name].as_str().unwrap())
                        .unwrap()
                };
                let point = [vec![4], coordinate("x"), coordinate("y")].concat();
                let peer = UnparsedPublicKey::new(algorithm(curve), point);
                let key = agreement::agree(&own, peer, JweError, |shared| {
                    Ok(derive("ECDH-ES+A256KW", shared))
                });
                let mut out = [0; 32];
                let wrapper = AesKek::new(&AES_256, &key.unwrap()[..]).unwrap();
                wrapper.unwrap(wrapped, &mut out).unwrap().to_vec()
            });
            assert_eq!(opened.unwrap(), b"secret", "{curve:?}");
        }
    }

    #[test]
    fn the_owner_of_an_rsa_key_reads_the_secret() {
        let own = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
        let public: PublicKeyX509Der<'_> = own.public_key().as_der().unwrap();
        // SubjectPublicKeyInfo ends with the modulus and, after five bytes of header and value, 65537.
        let (rest, exponent) = public.as_ref().split_at(public.as_ref().len() - 3);
        let modulus = &rest[rest.len() - 2 - 256..rest.len() - 2];
        let jwe = to_rsa(modulus, exponent, b"secret").unwrap();
        let own = OaepPrivateDecryptingKey::new(own).unwrap();
        let opened = open(&jwe, |header, encrypted| {
            assert_eq!(header["alg"], "RSA-OAEP-256");
            let mut out = vec![0; own.min_output_size()];
            own.decrypt(&OAEP_SHA256_MGF1SHA256, encrypted, &mut out, None)
                .unwrap()
                .to_vec()
        });
        assert_eq!(opened.unwrap(), b"secret");
    }

    #[test]
    fn a_point_off_the_curve_and_a_number_that_is_no_modulus_are_refused() {
        let mut point = vec![4; 65];
        assert!(to_ec(Curve::P256, &point, b"secret").is_err());
        point.truncate(33);
        assert!(to_ec(Curve::P256, &point, b"secret").is_err());
        assert!(to_rsa(&[2; 256], &[1, 0, 1], b"secret").is_err());
    }

    #[test]
    fn the_key_derivation_is_that_of_nist_sp_800_56a() {
        // Computed with Python: hashlib.sha256(bytes.fromhex("00000001" + "11" * 32 + "0000000e") +
        // b"ECDH-ES+A256KW" + bytes(8) + bytes.fromhex("00000100")).hexdigest()
        let derived = derive("ECDH-ES+A256KW", &[0x11; 32]);
        assert_eq!(attestation::Hex(*derived).to_string(), KDF);
    }

    const KDF: &str = "2b91f686dd74adb8af60b622c02082ade214b7e61acce682eeb3bfedefbe57c7";
}
