//! Keys whose broker is on the host's side: asked through the channel, answered with a sealed key.
//!
//! The host only carries what the broker says. A nonce of its own invention is of no use to it: what
//! evidence for it opens is the broker's to decide; and a key that it did not get from there opens no
//! vault.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use attestation::{Challenge, Evidence, Nonce, SealedSecret, UnixTime};
use casemate::isolation::microvm::Link;
use casemate::release::{KeyBroker, Refusal};

use super::{KeyRequest, Refused, ToHost};

/// How long the host may take to answer.
const DEADLINE: Duration = Duration::from_secs(60);

/// Answers that are waited for, by number.
pub(super) struct Waiting<T>(Mutex<(u64, BTreeMap<u64, SyncSender<T>>)>);

impl<T> Waiting<T> {
    pub(super) fn new() -> Self {
        Self(Mutex::new((0, BTreeMap::new())))
    }

    /// Asks by `ask`, which is told the number, and waits for the answer.
    pub(super) fn answer_to<E>(&self, ask: impl FnOnce(u64) -> Result<(), E>) -> Option<T> {
        let (sender, answer) = mpsc::sync_channel(1);
        let number = {
            let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.0 += 1;
            let number = waiting.0;
            waiting.1.insert(number, sender);
            number
        };
        let answer = match ask(number) {
            Ok(()) => answer.recv_timeout(DEADLINE).ok(),
            Err(_) => None,
        };
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.1.remove(&number);
        answer
    }

    /// Hands an answer to who waits for it; one that nobody asked for is dropped.
    pub(super) fn answered(&self, number: u64, answer: T) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = waiting.1.remove(&number) {
            let _ = sender.send(answer);
        }
    }

    /// Nobody will answer any more.
    pub(super) fn give_up(&self) {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.1.clear();
    }
}

/// What is asked of brokers on the host's side.
pub(super) struct Asked {
    pub(super) challenges: Waiting<Result<Nonce, Refused>>,
    pub(super) releases: Waiting<Result<SealedSecret, Refused>>,
}

/// The broker on the host's side, as the session sees it.
pub(super) struct CarriedBroker {
    pub(super) link: Arc<Link>,
    pub(super) asked: Arc<Asked>,
}

impl KeyBroker for CarriedBroker {
    fn challenge(&mut self, resource: &str, _: UnixTime) -> Result<Nonce, Refusal> {
        let ask = |number| {
            self.link
                .send(&ToHost::Challenge(number, resource.to_owned()))
        };
        heard(self.asked.challenges.answer_to(ask))
    }

    fn release(
        &mut self,
        evidence: &Evidence,
        challenge: &Challenge,
        resource: &str,
        _: UnixTime,
    ) -> Result<SealedSecret, Refusal> {
        let request = Box::new(KeyRequest {
            resource: resource.to_owned(),
            evidence: evidence.clone(),
            challenge: challenge.clone(),
        });
        let ask = |number| self.link.send(&ToHost::Release(number, request));
        heard(self.asked.releases.answer_to(ask))
    }
}

fn heard<T>(answer: Option<Result<T, Refused>>) -> Result<T, Refusal> {
    match answer {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(refused)) => Err(refused.into()),
        None => Err(Refusal {
            code: "unreachable".into(),
            message: "the host does not answer".into(),
        }),
    }
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self {
            code: refused.code,
            message: refused.message,
        }
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            code: refusal.code,
            message: refusal.message,
        }
    }
}
