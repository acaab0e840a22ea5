//! The key hierarchy: KEK ▸ root key ▸ labelled keys ▸ DEKs.
//!
//! ```text
//! slot       box(KEK, "slot", vault | slot | epoch | kind | wrap | parameters)  holds the VRK
//! PRK        HKDF-Extract(salt = vault id, VRK)          the VRK is dropped after this
//! labels     HKDF-Expand(PRK, "casemate-vault v1 " + {header, manifest, index, wrap} | 0 | suite | epoch)
//!            index and wrap by key epoch: the manifest's, and for wraps the one before it too
//! DEK        32 random bytes for each object version, AES-256-GCM-SIV under `wrap`, in the index
//! extent     (K_enc | K_com) = HKDF-Expand(DEK, "… extent" | 0 | suite | vault | SHA-256(front))
//! ```
//!
//! DEKs are wrapped with random nonces, at most [`MAX_WRAPS`] under one key; GCM-SIV (RFC 8452)
//! keeps even a repeated nonce from giving keys away.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hmac;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::commit::FIRST_HEADER_EPOCH;
use crate::error::{Part, VaultError};
use crate::format::header::{self, Header, MAX_PARAMETERS, Slot};
use crate::format::index::{Extent, WRAPPED_LEN};
use crate::format::object::FRONT_LEN;
use crate::format::{Id, SUITE};
use crate::kek::{KekError, KekProvider};
use crate::sealed::{self, CommittingKeys, Unopened, sha256};
use crate::secret::SecretKey;
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
    /// A random KEK, kept as shares of which some give it back.
    Recovery,
    /// A random KEK, sealed by a TPM 2.0 to its PCRs.
    Tpm,
    /// A KEK that a key in an HSM derives (PKCS #11).
    Pkcs11,
    /// A kind of this number, which this version does not know.
    Other(u8),
}

impl SlotKind {
    fn number(self) -> u8 {
        match self {
            Self::Broker => 1,
            Self::Passphrase => 2,
            Self::Recovery => 3,
            Self::Tpm => 4,
            Self::Pkcs11 => 5,
            Self::Other(number) => number,
        }
    }

    fn of(number: u8) -> Self {
        match number {
            1 => Self::Broker,
            2 => Self::Passphrase,
            3 => Self::Recovery,
            4 => Self::Tpm,
            5 => Self::Pkcs11,
            other => Self::Other(other),
        }
    }
}

impl fmt::Display for SlotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broker => f.write_str("broker"),
            Self::Passphrase => f.write_str("passphrase"),
            Self::Recovery => f.write_str("recovery"),
            Self::Tpm => f.write_str("tpm"),
            Self::Pkcs11 => f.write_str("pkcs11"),
            Self::Other(number) => write!(f, "unknown ({number})"),
        }
    }
}

/// What a slot tells to whoever holds no key, in clear.
///
/// A [`KekProvider`] gets it unauthenticated: the header is believed only after the slot was opened.
/// What [`Vault::slots`](crate::Vault::slots) lists was authenticated.
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
    /// The manifest's, the one before it, and those that it had while this vault was open.
    epochs: RwLock<Vec<Arc<EpochKeys>>>,
}

/// The keys of one key epoch. While DEKs are rotated, those not rotated yet are of the one before.
pub(crate) struct EpochKeys {
    epoch: u64,
    pub(crate) index: SecretKey,
    wrap: SecretKey,
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
        let root = SecretKey::random(&arena).map_err(VaultError::io(MEMORY))?;
        let slot = new_slot(vault_id, FIRST_HEADER_EPOCH, provider, &root)?;
        let keys = Self::derive(arena, vault_id, &root)?;
        keys.enter(&root, FIRST_EPOCH)?;
        Ok((keys, slot))
    }

    /// Draws the root key that takes this one's place; returns it and its keys, in this epoch.
    pub(crate) fn renewed(&self, epoch: u64) -> Result<(Self, SecretKey), VaultError> {
        let arena = Arena::default();
        let root = SecretKey::random(&arena).map_err(VaultError::io(MEMORY))?;
        let keys = Self::derive(arena, self.vault_id, &root)?;
        keys.enter(&root, epoch)?;
        Ok((keys, root))
    }

    /// Opens the first slot that belongs to the provider's key; returns the root key too, which
    /// only new slots are made of.
    pub(crate) fn open(
        header: &Header,
        provider: &dyn KekProvider,
    ) -> Result<(Self, SecretKey), VaultError> {
        let kind = provider.kind();
        if header.slots.iter().all(|slot| slot.kind != kind.number()) {
            return Err(VaultError::NoSlot { kind });
        }
        let arena = Arena::default();
        let root = root_key(header, provider, &arena)?.ok_or(VaultError::WrongKek)?;
        Ok((Self::derive(arena, header.vault_id, &root)?, root))
    }

    fn derive(arena: Arena, vault_id: Id, root: &SecretKey) -> Result<Self, VaultError> {
        let prk = sealed::extract(&vault_id, root);
        let key = |label, epoch| {
            sealed::expand_key(&prk, label, epoch, &arena).map_err(VaultError::io(MEMORY))
        };
        Ok(Self {
            header: key("casemate-vault v1 header", 0)?,
            manifest: key("casemate-vault v1 manifest", 0)?,
            epochs: RwLock::default(),
            vault_id,
            arena,
        })
    }

    /// Derives the keys that a manifest of this key epoch needs. Those that are there already stay:
    /// a lease may need them.
    pub(crate) fn enter(&self, root: &SecretKey, epoch: u64) -> Result<(), VaultError> {
        let wanted = [epoch, epoch.saturating_sub(1)];
        let mut epochs = self.epochs.write().unwrap_or_else(PoisonError::into_inner);
        let prk = sealed::extract(&self.vault_id, root);
        for epoch in wanted.into_iter().filter(|epoch| *epoch >= FIRST_EPOCH) {
            if epochs.iter().any(|keys| keys.epoch == epoch) {
                continue;
            }
            let key = |label| {
                sealed::expand_key(&prk, label, epoch, &self.arena).map_err(VaultError::io(MEMORY))
            };
            let index = key("casemate-vault v1 index")?;
            let wrap = key("casemate-vault v1 wrap")?;
            epochs.push(Arc::new(EpochKeys { epoch, index, wrap }));
        }
        Ok(())
    }

    /// The keys of a key epoch; `None` if the manifest never was of it, nor of the one after.
    pub(crate) fn at(&self, epoch: u64) -> Option<Arc<EpochKeys>> {
        let epochs = self.epochs.read().unwrap_or_else(PoisonError::into_inner);
        epochs.iter().find(|keys| keys.epoch == epoch).cloned()
    }

    /// The bytes of a header's file.
    pub(crate) fn seal_header(&self, header: &Header) -> Vec<u8> {
        let mut bytes = header.encode();
        let mac = self.header_mac(&bytes);
        bytes.extend_from_slice(&mac);
        bytes
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

    /// The weakest protection of the memory that holds keys.
    pub(crate) fn protection(&self) -> MemoryProtection {
        self.arena
            .protection()
            .unwrap_or(MemoryProtection::Ordinary)
    }

    /// Draws a DEK for one object version, and wraps it in this key epoch.
    pub(crate) fn new_dek(
        &self,
        object: &Id,
        version: u64,
        epoch: u64,
    ) -> Result<(SecretKey, [u8; WRAPPED_LEN]), VaultError> {
        let dek = SecretKey::random(&self.arena).map_err(VaultError::io(MEMORY))?;
        let wrapped = self.wrap(&dek, object, version, epoch)?;
        Ok((dek, wrapped))
    }

    /// Wraps the DEK of one object version.
    pub(crate) fn wrap(
        &self,
        dek: &SecretKey,
        object: &Id,
        version: u64,
        epoch: u64,
    ) -> Result<[u8; WRAPPED_LEN], VaultError> {
        let mut nonce = [0; 12];
        getrandom::fill(&mut nonce).map_err(|_| VaultError::Crypto)?;
        let mut body = Zeroizing::new([0; 32]);
        body.copy_from_slice(dek.expose());
        let aad = Aad::from(self.dek_context(object, version, epoch));
        let keys = self.at(epoch).ok_or(VaultError::Crypto)?;
        let tag = keys
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
        Ok(wrapped)
    }

    /// Unwraps the DEK of an extent; `None` if it is not this object's, version's or vault's.
    pub(crate) fn dek(&self, object: &Id, extent: &Extent) -> std::io::Result<Option<SecretKey>> {
        SecretKey::filled(&self.arena, |dek| {
            let keys = self.at(extent.key_epoch)?;
            let (nonce, rest) = extent.wrapped_dek.split_first_chunk::<12>()?;
            let (ciphertext, tag) = rest.split_at_checked(32)?;
            let context = self.dek_context(object, extent.version, extent.key_epoch);
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let aad = Aad::from(context);
            keys.wrapper()?
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

    fn dek_context(&self, object: &Id, version: u64, epoch: u64) -> [u8; 32] {
        let label: &[u8] = b"casemate-vault v1 dek";
        let (version, epoch) = (version.to_le_bytes(), epoch.to_le_bytes());
        sha256(&[label, &[0], &self.vault_id, object, &version, &epoch])
    }
}

impl EpochKeys {
    fn wrapper(&self) -> Option<LessSafeKey> {
        UnboundKey::new(&AES_256_GCM_SIV, self.wrap.expose())
            .ok()
            .map(LessSafeKey::new)
    }
}

/// Draws an identifier of 16 random bytes.
pub(crate) fn random_id() -> Result<Id, VaultError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|_| VaultError::Crypto)?;
    Ok(id)
}

/// The root key, from the first slot that belongs to the provider's key; `None` if none does, and
/// [`KekError::Refused`] if the provider gave no key for some of them.
pub(crate) fn root_key(
    header: &Header,
    provider: &dyn KekProvider,
    arena: &Arena,
) -> Result<Option<SecretKey>, VaultError> {
    let kind = provider.kind().number();
    let mut refused = None;
    for slot in header.slots.iter().filter(|slot| slot.kind == kind) {
        let kek = match provider.kek(&slot.info(&header.vault_id)) {
            // Sealed elsewhere, or to another state of the device: the next slot may be its own.
            Err(error @ KekError::Refused(_)) => {
                refused = Some(error);
                continue;
            }
            kek => kek?,
        };
        let context = slot.context(&header.vault_id);
        match sealed::open(kek.key(), SLOT_LABEL, &context, &slot.sealed_key) {
            Ok(mut root) => {
                let root = root
                    .first_chunk_mut::<32>()
                    .ok_or(VaultError::damaged(Part::Slot))?;
                return SecretKey::take_into(arena, root)
                    .map(Some)
                    .map_err(VaultError::io(MEMORY));
            }
            Err(Unopened::Commitment) => {}
            Err(Unopened::Content) => return Err(VaultError::damaged(Part::Slot)),
        }
    }
    refused.map_or(Ok(None), |error| Err(error.into()))
}

/// Makes a slot that the provider's key opens, for the header of this epoch.
pub(crate) fn new_slot(
    vault_id: Id,
    epoch: u64,
    provider: &dyn KekProvider,
    root: &SecretKey,
) -> Result<Slot, VaultError> {
    let parameters = provider.new_slot()?;
    if parameters.len() > MAX_PARAMETERS {
        return Err(KekError::Parameters.into());
    }
    let info = SlotInfo {
        vault_id,
        slot_id: random_id()?,
        kind: provider.kind(),
        epoch,
        parameters,
    };
    let kek = provider.kek(&info)?;
    let SlotInfo {
        slot_id,
        kind,
        parameters,
        ..
    } = info;
    let kind = kind.number();
    let context = header::context(&vault_id, &slot_id, kind, epoch, &parameters);
    let sealed = sealed::seal(kek.key(), SLOT_LABEL, &context, root.expose())?;
    Ok(Slot {
        id: slot_id,
        kind,
        epoch,
        parameters,
        sealed_key: sealed.try_into().map_err(|_| VaultError::Crypto)?,
    })
}

impl Slot {
    /// What the slot tells in clear.
    pub(crate) fn info(&self, vault_id: &Id) -> SlotInfo {
        SlotInfo {
            vault_id: *vault_id,
            slot_id: self.id,
            kind: SlotKind::of(self.kind),
            epoch: self.epoch,
            parameters: self.parameters.clone(),
        }
    }
}

const MEMORY: &str = "protect memory for keys";
const SLOT_LABEL: &str = "casemate-vault v1 slot";
