//! Keys: from evidence, by way of a broker that appraises it, to an open vault.
//!
//! ```text
//! challenge ◀─ KeyBroker ◀─ evidence, bound to the challenge and to this session's release key
//!                  └─ sealed KEK ─▶ opened with the release key ─▶ Vault::open
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use attestation::{
    AttestError, Attester, Challenge, Evidence, Nonce, ReleaseKey, Role, SealedSecret, UnixTime,
};
use policy::Bundle;
use vault::kek::{KekError, Released};
use vault::{Access, OpenOptions, Vault};
use zeroize::Zeroize;

/// What a relying party's broker does for a session, wherever it runs.
pub trait KeyBroker: Send {
    /// The name under which the broker has the key of a `[data]` entry: what it is sealed as.
    fn name_of(&self, resource: &str) -> String {
        resource.to_owned()
    }

    /// Gives a nonce that evidence must answer, once and soon, to be given the key of this resource.
    ///
    /// # Errors
    ///
    /// [`Refusal`] when the broker cannot be asked or gives none.
    fn challenge(&mut self, resource: &str, now: UnixTime) -> Result<Nonce, Refusal>;

    /// What names the channel over which that nonce came, and over which evidence has to go (RFC 9266,
    /// `tls-exporter`); `None` if there is none.
    fn channel(&self, resource: &str) -> Option<[u8; 32]> {
        let _ = resource;
        None
    }

    /// Appraises the evidence and, if it is good enough for this resource, seals the key of the
    /// resource to the release key that the evidence is bound to.
    ///
    /// # Errors
    ///
    /// [`Refusal`] with the broker's reason.
    fn release(
        &mut self,
        evidence: &Evidence,
        challenge: &Challenge,
        resource: &str,
        now: UnixTime,
    ) -> Result<SealedSecret, Refusal>;
}

/// Why a broker gave no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// Stable name of the reason.
    pub code: String,
    /// The reason in words.
    pub message: String,
}

/// Why a vault could not be opened for a session.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// No evidence could be collected.
    #[error("no evidence could be collected")]
    Evidence(#[source] AttestError),
    /// The broker refused.
    #[error("the key of `{resource}` was not released ({}): {}", refusal.code, refusal.message)]
    Refused {
        /// Entry of the `[data]` table.
        resource: String,
        /// The broker's answer.
        refusal: Refusal,
    },
    /// What the broker sent was not sealed to this session.
    #[error("the key of `{resource}` was sealed for somebody else, or changed on its way")]
    Sealed {
        /// Entry of the `[data]` table.
        resource: String,
    },
    /// The vault did not open with the released key.
    #[error("vault `{}` cannot be opened", path.display())]
    Vault {
        /// Folder of the vault.
        path: PathBuf,
        /// Why.
        source: vault::VaultError,
    },
    /// A key could not be kept in protected memory.
    #[error("no protected memory for a key")]
    Memory(#[source] KekError),
}

/// What a session binds into its evidence: everything a relying party needs to know whom it answers.
#[derive(Debug)]
pub struct Identity {
    /// Digest of the policy bundle.
    pub policy_digest: [u8; 32],
    /// Public key of the session's audit log (Ed25519).
    pub log_key: [u8; 32],
    /// Key to which secrets are sealed for this session.
    pub release_key: Arc<ReleaseKey>,
}

impl Identity {
    /// The same, under another policy bundle.
    pub fn under(&self, policy_digest: [u8; 32]) -> Self {
        Self {
            policy_digest,
            log_key: self.log_key,
            release_key: Arc::clone(&self.release_key),
        }
    }

    /// The challenge for a nonce: what evidence must be bound to.
    pub fn challenge(&self, nonce: Nonce) -> Challenge {
        Challenge {
            role: Role::Guest,
            nonce,
            channel: None,
            policy_digest: self.policy_digest,
            log_key: self.log_key,
            release_key: self.release_key.public(),
        }
    }
}

/// Has the key of one vault released and opens the vault with it.
///
/// # Errors
///
/// [`ReleaseError`]; nothing was opened then.
pub fn open_vault(
    resource: &str,
    path: &Path,
    identity: &Identity,
    attester: &mut dyn Attester,
    broker: &mut dyn KeyBroker,
    options: OpenOptions,
    now: UnixTime,
) -> Result<Arc<Vault>, ReleaseError> {
    let refused = |refusal| ReleaseError::Refused {
        resource: resource.into(),
        refusal,
    };
    let nonce = broker.challenge(resource, now).map_err(refused)?;
    let challenge = Challenge {
        channel: broker.channel(resource),
        ..identity.challenge(nonce)
    };
    let report_data = challenge.report_data();
    let evidence = attester
        .attest(&report_data)
        .map_err(ReleaseError::Evidence)?;
    let sealed = broker
        .release(&evidence, &challenge, resource, now)
        .map_err(refused)?;
    let sealed_for_us = || ReleaseError::Sealed {
        resource: resource.into(),
    };
    let secret = identity
        .release_key
        .open(
            &sealed,
            &attestation::release_context(&broker.name_of(resource), &report_data),
        )
        .map_err(|_| sealed_for_us())?;
    let mut bytes: [u8; 32] = secret.as_slice().try_into().map_err(|_| sealed_for_us())?;
    let kek = Released::take(&mut bytes);
    bytes.zeroize();
    let vault =
        Vault::open_with(path, &kek.map_err(ReleaseError::Memory)?, options).map_err(|source| {
            ReleaseError::Vault {
                path: path.into(),
                source,
            }
        })?;
    Ok(Arc::new(vault))
}

/// How far a vault of the bundle is opened: for writing where the workload may write to it.
pub fn access(bundle: &Bundle, name: &str) -> Access {
    let entry = bundle.tables().data.get(name);
    match entry.map(|entry| entry.access) {
        Some(policy::Access::ReadWrite) => Access::ReadWrite,
        _ => Access::ReadOnly,
    }
}

/// Folders of the bundle's vaults, by entry of the `[data]` table, resolved against `base`.
pub fn vault_paths(bundle: &Bundle, base: &Path) -> BTreeMap<String, PathBuf> {
    let tables = bundle.tables();
    tables
        .data
        .iter()
        .map(|(name, data)| (name.clone(), base.join(&data.vault)))
        .collect()
}
