//! The broker: secrets, and the one way to them.

use std::collections::BTreeMap;

use attestation::{
    Challenge, Evidence, Nonce, Role, SealedSecret, UnixTime, Verifier, release_context,
};
use zeroize::Zeroizing;

use crate::nonces::{Nonces, Refused};
use crate::policy::ReleasePolicy;
use crate::release::{Release, ReleaseError};

/// How long a nonce is good for, unless set otherwise.
const NONCE_SECONDS: u64 = 120;
/// How many nonces may be unspent at once, unless set otherwise: 3 MiB of memory.
const NONCE_CAPACITY: usize = 65_536;

/// Holds secrets and releases them to guests that prove what they are.
///
/// Secrets are zeroed on drop and shown nowhere.
pub struct Broker {
    verifier: Verifier,
    nonces: Nonces,
    resources: BTreeMap<String, Resource>,
}

struct Resource {
    secret: Zeroizing<Vec<u8>>,
    policy: ReleasePolicy,
}

/// Collects what a [`Broker`] holds.
pub struct BrokerBuilder {
    verifier: Verifier,
    resources: BTreeMap<String, Resource>,
    nonce_seconds: u64,
    nonce_capacity: usize,
}

/// Why there is no challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChallengeError {
    /// Too many nonces are unspent; they expire within minutes.
    #[error("too many challenges are unanswered; try again later")]
    Busy,
    /// The operating system gives no random numbers.
    #[error("no random numbers for a nonce")]
    Random,
}

impl Broker {
    /// Starts a broker that believes what this verifier believes.
    #[must_use]
    pub fn builder(verifier: Verifier) -> BrokerBuilder {
        BrokerBuilder {
            verifier,
            resources: BTreeMap::new(),
            nonce_seconds: NONCE_SECONDS,
            nonce_capacity: NONCE_CAPACITY,
        }
    }

    /// Believes what this verifier believes from now on. Nonces and secrets stay.
    pub fn verify_with(&mut self, verifier: Verifier) {
        self.verifier = verifier;
    }

    /// Hands out a nonce that is good once, for a short time.
    ///
    /// # Errors
    ///
    /// [`ChallengeError::Busy`] or [`ChallengeError::Random`].
    pub fn challenge(&self, now: UnixTime) -> Result<Nonce, ChallengeError> {
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce).map_err(|_| ChallengeError::Random)?;
        if !self.nonces.insert(nonce, now) {
            return Err(ChallengeError::Busy);
        }
        Ok(nonce)
    }

    /// Releases a secret to the guest whose evidence answers the challenge.
    ///
    /// The nonce is spent whatever the outcome. Where the evidence came over a channel, the caller
    /// has put *its own* view of that channel into `challenge`, never the guest's.
    ///
    /// # Errors
    ///
    /// [`ReleaseError`]; nothing was released.
    pub fn release(
        &self,
        evidence: &Evidence,
        challenge: &Challenge,
        resource: &str,
        now: UnixTime,
    ) -> Result<Release, ReleaseError> {
        self.nonces
            .spend(&challenge.nonce, now)
            .map_err(|refused| match refused {
                Refused::Unknown => ReleaseError::NonceUnknown,
                Refused::Expired => ReleaseError::NonceExpired,
            })?;
        if challenge.role != Role::Guest {
            return Err(ReleaseError::Role);
        }
        let appraisal = self
            .verifier
            .appraise(evidence, challenge, now)
            .map_err(ReleaseError::NotBelieved)?;
        let Some(Resource { secret, policy }) = self.resources.get(resource) else {
            // Whoever is not welcome anywhere does not learn what there is.
            return Err(
                match ReleasePolicy::default().permits(&appraisal, challenge) {
                    Ok(()) => ReleaseError::NoSuchResource {
                        appraisal: Box::new(appraisal),
                    },
                    Err(reason) => ReleaseError::Unwelcome {
                        reason,
                        appraisal: Box::new(appraisal),
                    },
                },
            );
        };
        if let Err(reason) = policy.permits(&appraisal, challenge) {
            return Err(ReleaseError::Unwelcome {
                reason,
                appraisal: Box::new(appraisal),
            });
        }
        let context = release_context(resource, &challenge.report_data());
        match SealedSecret::seal(&challenge.release_key, &context, secret) {
            Ok(sealed) => Ok(Release {
                sealed,
                appraisal,
                resource: resource.to_owned(),
            }),
            Err(source) => Err(ReleaseError::Seal {
                appraisal: Box::new(appraisal),
                source,
            }),
        }
    }
}

impl BrokerBuilder {
    /// Adds a secret under a name; a second one of the same name takes the place of the first.
    ///
    /// A secret of more than [`attestation::MAX_SECRET`] bytes is never released.
    #[must_use]
    pub fn resource(
        mut self,
        name: impl Into<String>,
        secret: Zeroizing<Vec<u8>>,
        policy: ReleasePolicy,
    ) -> Self {
        self.resources
            .insert(name.into(), Resource { secret, policy });
        self
    }

    /// Sets for how many seconds a nonce is good; 120 if not set.
    #[must_use]
    pub fn nonce_lifetime(mut self, seconds: u64) -> Self {
        self.nonce_seconds = seconds;
        self
    }

    /// Sets how many nonces may be unspent at once; 65536 if not set.
    #[must_use]
    pub fn nonce_capacity(mut self, nonces: usize) -> Self {
        self.nonce_capacity = nonces;
        self
    }

    /// Builds the broker.
    #[must_use]
    pub fn build(self) -> Broker {
        Broker {
            verifier: self.verifier,
            nonces: Nonces::new(self.nonce_seconds, self.nonce_capacity),
            resources: self.resources,
        }
    }
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&String> = self.resources.keys().collect();
        f.debug_struct("Broker")
            .field("resources", &names)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for BrokerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BrokerBuilder(..)")
    }
}
