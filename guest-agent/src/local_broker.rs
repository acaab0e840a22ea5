//! The relying party in this process: a real broker, with keys from files.
//!
//! It appraises the evidence it is given like any other broker and releases a key only then. What it
//! cannot give is distance: whoever controls this machine controls it too.

use std::collections::BTreeMap;

use attestation::{Challenge, Evidence, Nonce, SealedSecret, UnixTime, Verifier};
use broker::{Broker, ReleasePolicy};
use casemate::error::describe;
use casemate::release::{KeyBroker, Refusal};
use zeroize::Zeroizing;

/// A broker in this process.
pub struct LocalBroker(Broker);

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
        Self(builder.build())
    }
}

impl KeyBroker for LocalBroker {
    fn challenge(&mut self, now: UnixTime) -> Result<Nonce, Refusal> {
        self.0.challenge(now).map_err(|error| Refusal {
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
        self.0
            .release(evidence, challenge, resource, now)
            .map(|release| release.sealed)
            .map_err(|error| Refusal {
                code: error.code().into(),
                message: describe(&error),
            })
    }
}
