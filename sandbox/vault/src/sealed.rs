//! One box for everything small that is sealed: slots, manifests, index segments.
//!
//! ```text
//! salt 32 | commitment 32 | ciphertext | tag 16
//! (K_enc 32 | K_com 32) = HKDF-Expand(key, label | 0x00 | suite | SHA-256(context) | salt)
//! ```
//!
//! The salt is fresh for every box, so each `K_enc` seals one message and the nonce is zero. `K_com`
//! commits to key *and* context, and is compared in constant time before any AEAD call: a box that
//! opens under two keys cannot be built. Follows RFC 5869 (expand), RFC 5116 (AES-256-GCM).

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::digest::{self, SHA256};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk, Salt};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::format::SUITE;
use crate::secret::SecretKey;
use crate::sys::Arena;

/// Bytes a box adds to its plaintext.
pub(crate) const OVERHEAD: usize = SALT_LEN + COMMITMENT_LEN + TAG_LEN;

/// Bytes of a key commitment.
pub(crate) const COMMITMENT_LEN: usize = 32;

/// Bytes of an AEAD tag.
pub(crate) const TAG_LEN: usize = 16;

const SALT_LEN: usize = 32;

/// Why a box did not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unopened {
    /// The commitment is not this key's: another key or context, or a damaged commitment.
    Commitment,
    /// The key is right, the content is not.
    Content,
}

/// The cryptographic library failed where it cannot, short of having no random bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unsealed;

/// Seals `plaintext` so that it opens under this key, label and context only.
pub(crate) fn seal(
    key: &SecretKey,
    label: &str,
    context: &[u8],
    plaintext: &[u8],
) -> Result<Vec<u8>, Unsealed> {
    let mut salt = [0; SALT_LEN];
    getrandom::fill(&mut salt).map_err(|_| Unsealed)?;
    let keys = derive(key, label, context, &salt).ok_or(Unsealed)?;
    let mut sealed = Vec::with_capacity(plaintext.len() + OVERHEAD);
    sealed.extend_from_slice(&salt);
    sealed.extend_from_slice(keys.commitment());
    sealed.extend_from_slice(plaintext);
    let aead = keys.aead().ok_or(Unsealed)?;
    let aad = Aad::from(sha256(&[context]));
    let tag = aead
        .seal_in_place_separate_tag(zero_nonce(), aad, &mut sealed[SALT_LEN + COMMITMENT_LEN..])
        .map_err(|_| Unsealed)?;
    sealed.extend_from_slice(tag.as_ref());
    Ok(sealed)
}

/// Opens a box that [`seal`] made with the same key, label and context.
pub(crate) fn open(
    key: &SecretKey,
    label: &str,
    context: &[u8],
    sealed: &[u8],
) -> Result<Zeroizing<Vec<u8>>, Unopened> {
    let (salt, rest) = sealed
        .split_first_chunk::<SALT_LEN>()
        .ok_or(Unopened::Content)?;
    let (commitment, rest) = rest
        .split_first_chunk::<COMMITMENT_LEN>()
        .ok_or(Unopened::Content)?;
    let (ciphertext, tag) = rest
        .split_last_chunk::<TAG_LEN>()
        .ok_or(Unopened::Content)?;
    let keys = derive(key, label, context, salt).ok_or(Unopened::Content)?;
    if !bool::from(keys.commitment().ct_eq(commitment)) {
        return Err(Unopened::Commitment);
    }
    let aead = keys.aead().ok_or(Unopened::Content)?;
    let aad = Aad::from(sha256(&[context]));
    let mut plaintext = Zeroizing::new(vec![0; ciphertext.len()]);
    aead.open_separate_gather(zero_nonce(), aad, ciphertext, tag, &mut plaintext)
        .map_err(|_| Unopened::Content)?;
    Ok(plaintext)
}

/// An encryption key and what commits to it, from one derivation. On the heap, because a value that
/// moves leaves copies behind.
pub(crate) struct CommittingKeys(Zeroizing<Vec<u8>>);

impl CommittingKeys {
    /// Expands `(K_enc | K_com)` from a uniformly random key.
    pub(crate) fn expand(key: &[u8; 32], info: &[&[u8]]) -> Option<Self> {
        let mut out = Zeroizing::new(vec![0; 64]);
        Prk::new_less_safe(HKDF_SHA256, key)
            .expand(info, Len(64))
            .and_then(|okm| okm.fill(&mut out[..]))
            .ok()?;
        Some(Self(out))
    }

    pub(crate) fn commitment(&self) -> &[u8] {
        &self.0[32..]
    }

    /// Moves `K_enc` into protected memory.
    pub(crate) fn into_key(mut self, arena: &Arena) -> std::io::Result<SecretKey> {
        let (key, _) = self
            .0
            .split_first_chunk_mut::<32>()
            .ok_or(std::io::ErrorKind::Other)?;
        SecretKey::take_into(arena, key)
    }

    fn aead(&self) -> Option<LessSafeKey> {
        UnboundKey::new(&AES_256_GCM, &self.0[..32])
            .ok()
            .map(LessSafeKey::new)
    }
}

/// Extracts a pseudorandom key from the vault root key, salted with the vault's id.
pub(crate) fn extract(vault_id: &[u8; 16], root_key: &SecretKey) -> Prk {
    Salt::new(HKDF_SHA256, vault_id).extract(root_key.expose())
}

/// Expands one labelled key of 32 bytes into protected memory.
pub(crate) fn expand_key(
    prk: &Prk,
    label: &str,
    epoch: u64,
    arena: &Arena,
) -> std::io::Result<SecretKey> {
    let info: [&[u8]; 4] = [label.as_bytes(), &[0], &[SUITE], &epoch.to_le_bytes()];
    let key = SecretKey::filled(arena, |key| {
        prk.expand(&info, Len(32))
            .and_then(|okm| okm.fill(key))
            .ok()
    })?;
    key.ok_or_else(|| std::io::Error::other("no key could be derived"))
}

/// SHA-256 over the parts, one after the other.
pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

fn derive(key: &SecretKey, label: &str, context: &[u8], salt: &[u8]) -> Option<CommittingKeys> {
    let context = sha256(&[context]);
    CommittingKeys::expand(
        key.expose(),
        &[label.as_bytes(), &[0], &[SUITE], &context, salt],
    )
}

// The key is used for one message only; see the top of this module.
fn zero_nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

struct Len(usize);

impl KeyType for Len {
    fn len(&self) -> usize {
        self.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_box_opens_under_its_own_key_label_and_context_only() {
        let arena = Arena::default();
        let (key, other) = (
            SecretKey::random(&arena).unwrap(),
            SecretKey::random(&arena).unwrap(),
        );
        let sealed = seal(&key, "a", b"context", b"content").unwrap();
        assert_eq!(**open(&key, "a", b"context", &sealed).unwrap(), *b"content");
        assert_eq!(
            open(&other, "a", b"context", &sealed),
            Err(Unopened::Commitment)
        );
        assert_eq!(
            open(&key, "b", b"context", &sealed),
            Err(Unopened::Commitment)
        );
        assert_eq!(
            open(&key, "a", b"contexT", &sealed),
            Err(Unopened::Commitment)
        );
    }

    #[test]
    fn every_flipped_byte_of_a_box_is_noticed() {
        let key = SecretKey::random(&Arena::default()).unwrap();
        let sealed = seal(&key, "a", b"context", b"content").unwrap();
        for at in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[at] ^= 1;
            assert!(open(&key, "a", b"context", &flipped).is_err(), "byte {at}");
        }
        for len in 0..sealed.len() {
            assert!(
                open(&key, "a", b"context", &sealed[..len]).is_err(),
                "length {len}"
            );
        }
    }
}
