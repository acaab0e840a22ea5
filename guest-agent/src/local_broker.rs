//! The relying party in this process: a real broker, with keys from files.
//!
//! It appraises the evidence it is given like any other broker and releases a key only then. What it
//! cannot give is distance: whoever controls this machine controls it too.

use std::collections::BTreeMap;

use attestation::{Challenge, Evidence, Nonce, SealedSecret, UnixTime, Verifier};
use broker::{Broker, ReleasePolicy};
use casemate::Endorsements as _;
use casemate::error::describe;
use casemate::release::{KeyBroker, Refusal};
use zeroize::Zeroizing;

use crate::endorsements::Renewal;

/// A broker in this process.
pub struct LocalBroker {
    broker: Broker,
    endorsements: Option<Renewal>,
}

impl LocalBroker {
    /// Makes a broker that holds these keys, by resource, and releases them to guests under the policy
    /// bundle of this digest (SHA-256) only.
    #[must_use]
    pub fn new(
        verifier: Verifier,
        keys: BTreeMap<String, Zeroizing<Vec<u8>>>,
        policy: [u8; 32],
    ) -> Self {
        let builder = keys
            .into_iter()
            .fold(Broker::builder(verifier), |builder, (name, key)| {
                builder.resource(name, key, ReleasePolicy::default().only_for([policy]))
            });
        Self {
            broker: builder.build(),
            endorsements: None,
        }
    }

    /// Has it believe by what is in this folder of endorsements whenever it is asked for a key.
    #[must_use]
    pub fn endorsed_by(mut self, endorsements: Option<Renewal>) -> Self {
        self.endorsements = endorsements;
        self
    }
}

impl KeyBroker for LocalBroker {
    fn challenge(&mut self, _: &str, now: UnixTime) -> Result<Nonce, Refusal> {
        self.broker.challenge(now).map_err(|error| Refusal {
            code: "challenge".into(),
            message: describe(&error),
        })
    }

    fn release(
        &mut self,
        evidence: &Evidence,
        challenge: &Challenge,
        resource: &str,
        now: UnixTime,
    ) -> Result<SealedSecret, Refusal> {
        if let Some(endorsements) = &mut self.endorsements {
            let renewed = endorsements.renewed().map_err(|message| Refusal {
                code: "endorsements".into(),
                message,
            })?;
            if let Some(verifier) = renewed {
                self.broker.verify_with(verifier);
            }
        }
        self.broker
            .release(evidence, challenge, resource, now)
            .map(|release| release.sealed)
            .map_err(|error| Refusal {
                code: error.code().into(),
                message: describe(&error),
            })
    }
}
