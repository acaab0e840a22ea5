//! The broker: secrets, and the one way to them.

use std::collections::BTreeMap;

use attestation::{
    Challenge, Evidence, Nonce, Role, SealedSecret, UnixTime, Verifier, release_context,
};
use zeroize::Zeroizing;

use crate::nonces::{Nonces, Refused};
use crate::policy::ReleasePolicy;
use crate::release::{Attested, Refusal, Release, ReleaseError, SpentNonce, Standing};

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
        let attested = self.attest(evidence, challenge, now)?;
        let standing = attested.standing();
        let appraisal = attested.appraisal;
        let secret = match self.secret_for(&standing, resource) {
            Ok(secret) => secret,
            Err(Refusal::Unwelcome(reason)) => {
                return Err(ReleaseError::Unwelcome {
                    reason,
                    appraisal: Box::new(appraisal),
                });
            }
            Err(Refusal::NoSuchResource) => {
                return Err(ReleaseError::NoSuchResource {
                    appraisal: Box::new(appraisal),
                });
            }
        };
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

    /// Appraises the evidence of a guest that answers the challenge, for one who then asks for several
    /// secrets. The nonce is spent whatever the outcome.
    ///
    /// # Errors
    ///
    /// [`ReleaseError`] of the nonce, the role or the evidence.
    pub fn attest(
        &self,
        evidence: &Evidence,
        challenge: &Challenge,
        now: UnixTime,
    ) -> Result<Attested, ReleaseError> {
        self.spend(&challenge.nonce, now)?;
        self.attest_spent(evidence, challenge, SpentNonce(challenge.nonce), now)
    }

    /// As [`Broker::attest`], with a nonce that was spent elsewhere.
    ///
    /// # Errors
    ///
    /// [`ReleaseError`] of the role or the evidence; of the nonce, if the challenge has another one.
    pub fn attest_spent(
        &self,
        evidence: &Evidence,
        challenge: &Challenge,
        spent: SpentNonce,
        now: UnixTime,
    ) -> Result<Attested, ReleaseError> {
        if spent.0 != challenge.nonce {
            return Err(ReleaseError::NonceUnknown);
        }
        if challenge.role != Role::Guest {
            return Err(ReleaseError::Role);
        }
        let appraisal = self
            .verifier
            .appraise(evidence, challenge, now)
            .map_err(ReleaseError::NotBelieved)?;
        Ok(Attested {
            appraisal,
            policy: Some(challenge.policy_digest),
            over_channel: challenge.channel.is_some(),
        })
    }

    /// Appraises evidence that is bound to a nonce in the way of another protocol, by report data that the
    /// caller has computed from the nonce it has spent and what the guest sent. No policy bundle is bound
    /// then.
    ///
    /// # Errors
    ///
    /// [`ReleaseError`] of the evidence.
    pub fn attest_bound_to(
        &self,
        evidence: &Evidence,
        report_data: &[u8; 64],
        _spent: SpentNonce,
        now: UnixTime,
    ) -> Result<Attested, ReleaseError> {
        let appraisal = self
            .verifier
            .appraise_bound_to(evidence, report_data, now)
            .map_err(ReleaseError::NotBelieved)?;
        Ok(Attested {
            appraisal,
            policy: None,
            over_channel: false,
        })
    }

    /// The secret of this name, for a guest that has attested: to be sealed to the key in its evidence,
    /// and to nothing else.
    ///
    /// # Errors
    ///
    /// [`Refusal`]; what the guest is told does not depend on which.
    pub fn secret_for(&self, standing: &Standing, resource: &str) -> Result<&[u8], Refusal> {
        match self.resources.get(resource) {
            Some(Resource { secret, policy }) => match policy.permits_standing(standing) {
                Ok(()) => Ok(secret),
                Err(reason) => Err(Refusal::Unwelcome(reason)),
            },
            // Whoever is not welcome anywhere does not learn what there is.
            None => match ReleasePolicy::default().permits_standing(standing) {
                Ok(()) => Err(Refusal::NoSuchResource),
                Err(reason) => Err(Refusal::Unwelcome(reason)),
            },
        }
    }

    /// Names of the secrets.
    pub fn resources(&self) -> impl Iterator<Item = &str> {
        self.resources.keys().map(String::as_str)
    }

    fn spend(&self, nonce: &Nonce, now: UnixTime) -> Result<(), ReleaseError> {
        self.nonces
            .spend(nonce, now)
            .map_err(|refused| match refused {
                Refused::Unknown => ReleaseError::NonceUnknown,
                Refused::Expired => ReleaseError::NonceExpired,
            })
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
