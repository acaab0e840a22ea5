//! The key hierarchy: KEK ▸ root key ▸ labelled keys ▸ DEKs.
//!
//! ```text
//! slot       box(KEK, "slot", vault | slot | epoch | kind | wrap | parameters)  holds the VRK
//! PRK        HKDF-Extract(salt = vault id, VRK)          the VRK is dropped after this
//! labels     HKDF-Expand(PRK, "casemate-vault v1 " + {header, manifest, index, wrap} | 0 | suite | epoch)
//! DEK        32 random bytes for each object version, AES-256-GCM-SIV under `wrap`, in the index
//! extent     (K_enc | K_com) = HKDF-Expand(DEK, "… extent" | 0 | suite | vault | SHA-256(front))
//! ```
//!
//! DEKs are wrapped with random nonces, at most [`MAX_WRAPS`] under one key; GCM-SIV (RFC 8452)
//! keeps even a repeated nonce from giving keys away.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::{hmac, rand};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::error::{Part, VaultError};
use crate::format::header::{self, Header, MAX_PARAMETERS, Slot};
use crate::format::index::{Record, WRAPPED_LEN};
use crate::format::object::FRONT_LEN;
use crate::format::{Id, SUITE};
use crate::kek::{KekError, KekProvider};
use crate::sealed::{self, CommittingKeys, Unopened, sha256};
use crate::secret::{Kek, SecretKey};
use crate::sys::{Arena, MemoryProtection};

/// Most DEKs wrapped under one key: far below where random nonces of 96 bits begin to collide.
pub(crate) const MAX_WRAPS: u64 = 1 << 32;

/// The kinds of key slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SlotKind {
    /// A KEK of 32 bytes, released by a broker to attested guests.
    Broker,
    /// A passphrase, stretched with Argon2id.
    Passphrase,
}

impl SlotKind {
    fn number(self) -> u8 {
        match self {
            Self::Broker => 1,
            Self::Passphrase => 2,
        }
    }
}

impl fmt::Display for SlotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Broker => "broker",
            Self::Passphrase => "passphrase",
        })
    }
}

/// What a provider is told about a slot. Not authenticated: the header is believed only after the
/// slot was opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SlotInfo {
    /// The vault, 16 random bytes.
    pub vault_id: [u8; 16],
    /// The slot, 16 random bytes.
    pub slot_id: [u8; 16],
    /// Its kind.
    pub kind: SlotKind,
    /// The header's epoch in which the slot was written.
    pub epoch: u64,
    /// What [`KekProvider::new_slot`] chose.
    pub parameters: Vec<u8>,
}

/// The labelled keys of an open vault, in protected memory.
pub(crate) struct Keys {
    pub(crate) arena: Arena,
    pub(crate) vault_id: Id,
    header: SecretKey,
    manifest: SecretKey,
    index: SecretKey,
    wrap: SecretKey,
    wrap_epoch: u64,
}

/// The key epoch of a new vault.
pub(crate) const FIRST_EPOCH: u64 = 1;

impl Keys {
    /// Draws a new root key; returns its keys and the slot that holds it.
    pub(crate) fn create(
        vault_id: Id,
        provider: &dyn KekProvider,
    ) -> Result<(Self, Slot), VaultError> {
        let arena = Arena::default();
        let root = SecretKey::random(&arena).map_err(VaultError::io("protect memory for keys"))?;
        let parameters = provider.new_slot()?;
        if parameters.len() > MAX_PARAMETERS {
            return Err(KekError::Parameters.into());
        }
        let info = SlotInfo {
            vault_id,
            slot_id: random_id()?,
            kind: provider.kind(),
            epoch: FIRST_EPOCH,
            parameters,
        };
        let kek = provider.kek(&info)?;
        let slot = seal_slot(&info, &kek, &root)?;
        Ok((Self::derive(arena, vault_id, &root)?, slot))
    }

    /// Opens the first slot that belongs to the provider's key.
    pub(crate) fn open(header: &Header, provider: &dyn KekProvider) -> Result<Self, VaultError> {
        let kind = provider.kind();
        let mut of_kind = header
            .slots
            .iter()
            .filter(|s| s.kind == kind.number())
            .peekable();
        if of_kind.peek().is_none() {
            return Err(VaultError::NoSlot { kind });
        }
        for slot in of_kind {
            let kek = provider.kek(&SlotInfo {
                vault_id: header.vault_id,
                slot_id: slot.id,
                kind,
                epoch: slot.epoch,
                parameters: slot.parameters.clone(),
            })?;
            let context = slot.context(&header.vault_id);
            match sealed::open(
                kek.key(),
                "casemate-vault v1 slot",
                &context,
                &slot.sealed_key,
            ) {
                Ok(mut root) => {
                    let arena = Arena::default();
                    let root = root
                        .first_chunk_mut::<32>()
                        .ok_or(VaultError::damaged(Part::Slot))?;
                    let root = SecretKey::take_into(&arena, root)
                        .map_err(VaultError::io("protect memory for keys"))?;
                    return Self::derive(arena, header.vault_id, &root);
                }
                Err(Unopened::Commitment) => {}
                Err(Unopened::Content) => return Err(VaultError::damaged(Part::Slot)),
            }
        }
        Err(VaultError::WrongKek)
    }

    fn derive(arena: Arena, vault_id: Id, root: &SecretKey) -> Result<Self, VaultError> {
        let prk = sealed::extract(&vault_id, root);
        let key = |label, epoch| {
            sealed::expand_key(&prk, label, epoch, &arena)
                .map_err(VaultError::io("protect memory for keys"))
        };
        Ok(Self {
            header: key("casemate-vault v1 header", 0)?,
            manifest: key("casemate-vault v1 manifest", 0)?,
            index: key("casemate-vault v1 index", FIRST_EPOCH)?,
            wrap: key("casemate-vault v1 wrap", FIRST_EPOCH)?,
            wrap_epoch: FIRST_EPOCH,
            vault_id,
            arena,
        })
    }

    /// Computes the MAC of a header.
    pub(crate) fn header_mac(&self, covered: &[u8]) -> [u8; 32] {
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.header.expose());
        let mut mac = [0; 32];
        mac.copy_from_slice(hmac::sign(&key, covered).as_ref());
        mac
    }

    /// Checks the MAC of a header: no slot was added, removed or brought back.
    pub(crate) fn check_header(&self, covered: &[u8], mac: &[u8; 32]) -> Result<(), VaultError> {
        if bool::from(self.header_mac(covered).ct_eq(mac)) {
            Ok(())
        } else {
            Err(VaultError::damaged(Part::Header))
        }
    }

    pub(crate) fn manifest(&self) -> &SecretKey {
        &self.manifest
    }

    pub(crate) fn index(&self) -> &SecretKey {
        &self.index
    }

    /// The epoch of new wraps.
    pub(crate) fn epoch(&self) -> u64 {
        self.wrap_epoch
    }

    /// The weakest protection of the memory that holds keys.
    pub(crate) fn protection(&self) -> MemoryProtection {
        self.arena
            .protection()
            .unwrap_or(MemoryProtection::Ordinary)
    }

    /// Draws a DEK for one object version, and wraps it.
    pub(crate) fn new_dek(
        &self,
        object: &Id,
        version: u64,
    ) -> Result<(SecretKey, [u8; WRAPPED_LEN]), VaultError> {
        let dek =
            SecretKey::random(&self.arena).map_err(VaultError::io("protect memory for keys"))?;
        let mut nonce = [0; 12];
        rand::fill(&mut nonce).map_err(|_| VaultError::Crypto)?;
        let mut body = Zeroizing::new([0; 32]);
        body.copy_from_slice(dek.expose());
        let aad = Aad::from(self.dek_context(object, version, self.wrap_epoch));
        let tag = self
            .wrapper()
            .and_then(|aead| {
                let nonce = Nonce::assume_unique_for_key(nonce);
                aead.seal_in_place_separate_tag(nonce, aad, &mut body[..])
                    .ok()
            })
            .ok_or(VaultError::Crypto)?;
        let mut wrapped = [0; WRAPPED_LEN];
        wrapped[..12].copy_from_slice(&nonce);
        wrapped[12..44].copy_from_slice(&body[..]);
        wrapped[44..].copy_from_slice(tag.as_ref());
        Ok((dek, wrapped))
    }

    /// Unwraps the DEK of a record; `None` if it is not this object's, version's or vault's.
    pub(crate) fn dek(&self, record: &Record) -> std::io::Result<Option<SecretKey>> {
        SecretKey::filled(&self.arena, |dek| {
            if record.key_epoch != self.wrap_epoch {
                return None;
            }
            let (nonce, rest) = record.wrapped_dek.split_first_chunk::<12>()?;
            let (ciphertext, tag) = rest.split_at_checked(32)?;
            let context = self.dek_context(&record.object_id, record.version, record.key_epoch);
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let aad = Aad::from(context);
            self.wrapper()?
                .open_separate_gather(nonce, aad, ciphertext, tag, dek)
                .ok()
        })
    }

    /// Derives the encryption key of an extent, and what commits to it.
    pub(crate) fn extent(
        &self,
        dek: &SecretKey,
        front: &[u8; FRONT_LEN],
    ) -> Option<CommittingKeys> {
        let label: &[u8] = b"casemate-vault v1 extent";
        let front = sha256(&[front]);
        CommittingKeys::expand(
            dek.expose(),
            &[label, &[0], &[SUITE], &self.vault_id, &front],
        )
    }

    fn wrapper(&self) -> Option<LessSafeKey> {
        UnboundKey::new(&AES_256_GCM_SIV, self.wrap.expose())
            .ok()
            .map(LessSafeKey::new)
    }

    fn dek_context(&self, object: &Id, version: u64, epoch: u64) -> [u8; 32] {
        let label: &[u8] = b"casemate-vault v1 dek";
        let (version, epoch) = (version.to_le_bytes(), epoch.to_le_bytes());
        sha256(&[label, &[0], &self.vault_id, object, &version, &epoch])
    }
}

/// Draws an identifier of 16 random bytes.
pub(crate) fn random_id() -> Result<Id, VaultError> {
    let mut id = [0; 16];
    rand::fill(&mut id).map_err(|_| VaultError::Crypto)?;
    Ok(id)
}

fn seal_slot(info: &SlotInfo, kek: &Kek, root: &SecretKey) -> Result<Slot, VaultError> {
    let kind = info.kind.number();
    let context = header::context(
        &info.vault_id,
        &info.slot_id,
        kind,
        info.epoch,
        &info.parameters,
    );
    let sealed = sealed::seal(kek.key(), "casemate-vault v1 slot", &context, root.expose())?;
    Ok(Slot {
        id: info.slot_id,
        kind,
        epoch: info.epoch,
        parameters: info.parameters.clone(),
        sealed_key: sealed.try_into().map_err(|_| VaultError::Crypto)?,
    })
}
