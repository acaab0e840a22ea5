//! What comes of asking for a secret.

use std::fmt;

use attestation::{
    Appraisal, AppraiseError, Hex, Nonce, SealError, SealedSecret, TrustTier, UnixTime,
};
use serde::{Deserialize, Serialize};

/// A secret on its way to the guest that attested, and why it may go there.
#[derive(Debug)]
#[non_exhaustive]
pub struct Release {
    /// The secret, sealed to the release key of the evidence in
    /// [`attestation::release_context`].
    pub sealed: SealedSecret,
    /// What the decision rests on.
    pub appraisal: Appraisal,
    /// The name of the secret.
    pub resource: String,
}

/// A guest whose evidence was believed, and the policy bundle that it is bound to.
///
/// Only [`crate::Broker::attest`] and what it is made of make one, each for one nonce.
#[derive(Clone, Debug)]
pub struct Attested {
    pub(crate) appraisal: Appraisal,
    pub(crate) policy: Option<[u8; 32]>,
    pub(crate) over_channel: bool,
}

impl Attested {
    /// Says that what its evidence is bound to names the channel over which it came, as this caller sees it.
    #[must_use]
    pub fn over_channel(mut self) -> Self {
        self.over_channel = true;
        self
    }

    /// The verdict on its evidence.
    #[must_use]
    pub fn appraisal(&self) -> &Appraisal {
        &self.appraisal
    }

    /// The policy bundle that its evidence is bound to (SHA-256).
    #[must_use]
    pub fn policy(&self) -> Option<&[u8; 32]> {
        self.policy.as_ref()
    }

    /// What of it decides about secrets.
    #[must_use]
    pub fn standing(&self) -> Standing {
        Standing {
            over_channel: self.over_channel,
            ..Standing::of(&self.appraisal, self.policy.as_ref())
        }
    }
}

/// What of an attestation decides about secrets.
///
/// It can be kept where replicas of a broker find it. So whoever can write there decides, too: that
/// place is as trusted as the broker itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Standing {
    pub(crate) tier: TrustTier,
    pub(crate) debug: bool,
    not_after: UnixTime,
    pub(crate) policy: Option<Hex<32>>,
    #[serde(default)]
    pub(crate) over_channel: bool,
}

impl Standing {
    pub(crate) fn of(appraisal: &Appraisal, policy: Option<&[u8; 32]>) -> Self {
        Self {
            tier: appraisal.tier(),
            debug: appraisal.debug(),
            not_after: appraisal.not_after(),
            policy: policy.copied().map(Hex),
            over_channel: false,
        }
    }

    /// When something that the verdict rests on ends.
    #[must_use]
    pub fn not_after(&self) -> UnixTime {
        self.not_after
    }
}

/// A nonce that was spent: evidence that answers it may be appraised, once.
///
/// [`crate::Broker::attest`] spends a nonce of its own table. Where replicas share their nonces,
/// whoever spent one there says so.
#[derive(Debug)]
pub struct SpentNonce(pub(crate) Nonce);

impl SpentNonce {
    /// Says that this caller, and of all who tried nobody else, has spent a nonce that was handed out and
    /// had not expired.
    #[must_use]
    pub fn by_swap(nonce: Nonce) -> Self {
        Self(nonce)
    }
}

/// Why a guest that has attested is given no secret of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Its evidence is not good enough.
    #[error("the evidence is not good enough: {0}")]
    Unwelcome(Unwelcome),
    /// There is no secret of this name.
    #[error("there is no resource of this name")]
    NoSuchResource,
}

impl Refusal {
    /// The stable name of this reason.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unwelcome(reason) => reason.code(),
            Self::NoSuchResource => "no-such-resource",
        }
    }
}

/// What is wrong with an appraisal that was believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unwelcome {
    /// The host can read the guest's memory.
    Debug,
    /// Something is unknown or out of date.
    Warning,
    /// Something is as it must not be.
    Contraindicated,
    /// The appraisal says nothing.
    Nothing,
    /// The guest runs under a policy bundle that the secret is not for.
    Policy,
    /// The evidence is not bound to the channel that it came over.
    Channel,
}

impl Unwelcome {
    fn code(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Warning => "warning",
            Self::Contraindicated => "contraindicated",
            Self::Nothing => "no-verdict",
            Self::Policy => "policy",
            Self::Channel => "channel",
        }
    }
}

impl fmt::Display for Unwelcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Debug => "the host can read the guest's memory",
            Self::Warning => "something is unknown or out of date",
            Self::Contraindicated => "something is as it must not be",
            Self::Nothing => "nothing was checked",
            Self::Policy => "the secret is not for the policy bundle it is bound to",
            Self::Channel => "it is not bound to the channel it came over",
        })
    }
}

/// Why no secret was released.
///
/// For records. What a guest is told is no more than [`ReleaseError::code`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The nonce was not handed out here, or was spent before.
    #[error("the nonce was not handed out here or was spent before; ask for a new challenge")]
    NonceUnknown,
    /// The nonce expired.
    #[error("the nonce expired; ask for a new challenge")]
    NonceExpired,
    /// The evidence is not that of a guest.
    #[error("only guests are given secrets")]
    Role,
    /// The evidence is not to be believed.
    #[error("the evidence is not to be believed")]
    NotBelieved(#[source] AppraiseError),
    /// The evidence is believed, but not good enough.
    #[error("the evidence is not good enough: {reason}")]
    Unwelcome {
        /// What is wrong.
        reason: Unwelcome,
        /// The whole verdict, for the record.
        appraisal: Box<Appraisal>,
    },
    /// There is no secret of this name. Told to attested guests only.
    #[error("there is no resource of this name")]
    NoSuchResource {
        /// The whole verdict, for the record.
        appraisal: Box<Appraisal>,
    },
    /// The secret could not be sealed to the key in the evidence.
    #[error("the secret could not be sealed")]
    Seal {
        /// The whole verdict, for the record.
        appraisal: Box<Appraisal>,
        /// Why not.
        source: SealError,
    },
}

impl ReleaseError {
    /// The stable name of this reason.
    ///
    /// For evidence that is not believed: that of [`AppraiseError::code`].
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NonceUnknown => "nonce-unknown",
            Self::NonceExpired => "nonce-expired",
            Self::Role => "role",
            Self::NotBelieved(error) => error.code(),
            Self::Unwelcome { reason, .. } => reason.code(),
            Self::NoSuchResource { .. } => "no-such-resource",
            Self::Seal { .. } => "seal",
        }
    }

    /// The verdict on the evidence, if it came to one.
    #[must_use]
    pub fn appraisal(&self) -> Option<&Appraisal> {
        match self {
            Self::Unwelcome { appraisal, .. }
            | Self::NoSuchResource { appraisal }
            | Self::Seal { appraisal, .. } => Some(appraisal),
            Self::NonceUnknown | Self::NonceExpired | Self::Role | Self::NotBelieved(_) => None,
        }
    }
}
