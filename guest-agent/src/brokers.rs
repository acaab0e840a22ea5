//! Which broker has the key of which `[data]` entry.

use std::collections::BTreeMap;

use attestation::{Challenge, Evidence, Nonce, SealedSecret, UnixTime};
use casemate::release::{KeyBroker, Refusal};

use crate::remote_broker::RemoteBroker;

/// Brokers elsewhere for the entries that name one, and the one in this process for all others.
pub struct Brokers {
    local: Box<dyn KeyBroker>,
    remote: BTreeMap<String, RemoteBroker>,
}

impl Brokers {
    /// Puts them together; the remote ones by `[data]` entry.
    #[must_use]
    pub fn new(local: impl KeyBroker + 'static, remote: BTreeMap<String, RemoteBroker>) -> Self {
        Self {
            local: Box::new(local),
            remote,
        }
    }

    fn of(&mut self, resource: &str) -> &mut dyn KeyBroker {
        match self.remote.get_mut(resource) {
            Some(remote) => remote,
            None => &mut *self.local,
        }
    }
}

impl KeyBroker for Brokers {
    fn name_of(&self, resource: &str) -> String {
        match self.remote.get(resource) {
            Some(remote) => remote.name_of(resource),
            None => self.local.name_of(resource),
        }
    }

    fn challenge(&mut self, resource: &str, now: UnixTime) -> Result<Nonce, Refusal> {
        self.of(resource).challenge(resource, now)
    }

    fn channel(&self, resource: &str) -> Option<[u8; 32]> {
        match self.remote.get(resource) {
            Some(remote) => remote.channel(resource),
            None => self.local.channel(resource),
        }
    }

    fn release(
        &mut self,
        evidence: &Evidence,
        challenge: &Challenge,
        resource: &str,
        now: UnixTime,
    ) -> Result<SealedSecret, Refusal> {
        self.of(resource)
            .release(evidence, challenge, resource, now)
    }
}
