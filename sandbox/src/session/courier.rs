//! Keys asked for while the workload runs, without waiting for whoever releases them.
//!
//! A broker is reached over a network that the host controls. If the session waited for its answer, the
//! host could keep every lever from moving by keeping the answer back. So a thread asks, and the
//! session hears of it as of any other event.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use attestation::{AttestError, Attester, Challenge, Evidence, Nonce, Tee, UnixTime};
use vault::anchor::FreshnessAnchor;
use vault::{Access, OpenOptions, Vault};

use crate::event::Event;
use crate::release::{self, Identity, KeyBroker, ReleaseError};

/// An attester that the session and a release under way use in turn.
pub(super) type SharedAttester = Arc<Mutex<Box<dyn Attester>>>;

/// As whom the session gives evidence now.
type SharedIdentity = Arc<Mutex<Arc<Identity>>>;

/// Gives evidence in the name of a session while it runs: to whoever it has to prove itself to again in
/// order to keep what it was given.
#[derive(Clone)]
pub struct Witness {
    identity: SharedIdentity,
    attester: SharedAttester,
}

impl Witness {
    /// Answers a nonce that came over this channel, under the policy that is in force now.
    ///
    /// # Errors
    ///
    /// [`AttestError`] when no evidence can be had.
    pub fn answer(
        &self,
        nonce: Nonce,
        channel: Option<[u8; 32]>,
    ) -> Result<(Challenge, Evidence), AttestError> {
        let challenge = Challenge {
            channel,
            ..current(&self.identity).challenge(nonce)
        };
        let evidence = Turns(&self.attester).attest(&challenge.report_data())?;
        Ok((challenge, evidence))
    }
}

fn current(identity: &SharedIdentity) -> Arc<Identity> {
    Arc::clone(&identity.lock().unwrap_or_else(PoisonError::into_inner))
}

/// What remembers the latest commit of vaults, by entry of the `[data]` table.
type Anchors = BTreeMap<String, Arc<dyn FreshnessAnchor>>;

/// What came of asking.
type Answer = Result<Arc<Vault>, ReleaseError>;

/// The broker that was asked comes back with its answer.
type Return = Receiver<(Box<dyn KeyBroker>, Answer)>;

/// Who asks for keys, and whether it is under way.
pub(super) struct Courier {
    broker: Option<Box<dyn KeyBroker>>,
    anchors: Anchors,
    identity: SharedIdentity,
    attester: SharedAttester,
    away: Option<(String, Return)>,
}

impl Courier {
    pub(super) fn new(
        broker: Option<Box<dyn KeyBroker>>,
        anchors: Anchors,
        identity: Arc<Identity>,
        attester: SharedAttester,
    ) -> Self {
        Self {
            broker,
            anchors,
            identity: Arc::new(Mutex::new(identity)),
            attester,
            away: None,
        }
    }

    /// Has a vault opened, and waits: there is no sandbox yet that would have to be adjusted. `None`
    /// without a broker.
    pub(super) fn open(
        &mut self,
        name: &str,
        path: &Path,
        access: Access,
        now: UnixTime,
    ) -> Option<Answer> {
        let broker = self.broker.as_deref_mut()?;
        let options = options(&self.anchors, name, access);
        let (identity, attester) = (current(&self.identity), &mut Turns(&self.attester));
        Some(release::open_vault(
            name, path, &identity, attester, broker, options, now,
        ))
    }

    /// Asks as another identity from now on. What is under way was asked as the one before.
    pub(super) fn adopt(&mut self, identity: Arc<Identity>) {
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity;
    }

    /// Who gives evidence in this session's name.
    pub(super) fn witness(&self) -> Witness {
        Witness {
            identity: Arc::clone(&self.identity),
            attester: Arc::clone(&self.attester),
        }
    }

    /// Whether one can be sent now: there is a broker, and it is not being asked already.
    pub(super) fn is_here(&self) -> bool {
        self.broker.is_some()
    }

    /// Has a vault opened, and reports [`Event::Answered`] when that has come to an end.
    ///
    /// # Errors
    ///
    /// When no thread can be started.
    pub(super) fn send(
        &mut self,
        name: &str,
        path: &Path,
        access: Access,
        now: UnixTime,
        events: SyncSender<Event>,
    ) -> std::io::Result<()> {
        let Some(mut broker) = self.broker.take() else {
            return Err(std::io::ErrorKind::NotConnected.into());
        };
        let (answers, answer) = channel();
        let (identity, attester) = (current(&self.identity), Arc::clone(&self.attester));
        let options = options(&self.anchors, name, access);
        let (data, path) = (name.to_owned(), path.to_owned());
        std::thread::Builder::new()
            .name("sandbox-keys".into())
            .spawn(move || {
                let mut turns = Turns(&attester);
                let opened = release::open_vault(
                    &data,
                    &path,
                    &identity,
                    &mut turns,
                    &mut *broker,
                    options,
                    now,
                );
                // A session that is over needs neither; a vault nobody takes is closed again.
                let _ = answers.send((broker, opened));
                let _ = events.send(Event::Answered);
            })?;
        self.away = Some((name.to_owned(), answer));
        Ok(())
    }

    /// Takes the answer, if there is one, with the name of what was asked for.
    pub(super) fn answer(&mut self) -> Option<(String, Answer)> {
        let (name, answer) = self.away.as_ref()?;
        let (broker, opened) = answer.try_recv().ok()?;
        let name = name.clone();
        self.broker = Some(broker);
        self.away = None;
        Some((name, opened))
    }
}

fn options(anchors: &Anchors, name: &str, access: Access) -> OpenOptions {
    OpenOptions {
        access,
        anchor: anchors.get(name).cloned(),
        ..OpenOptions::default()
    }
}

/// Takes the attester for one piece of evidence at a time, so that a broker that is slow keeps nobody
/// else from it.
struct Turns<'a>(&'a SharedAttester);

impl Attester for Turns<'_> {
    fn tee(&self) -> Tee {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).tee()
    }

    fn attest(&mut self, report_data: &[u8; 64]) -> Result<Evidence, AttestError> {
        let mut attester = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        attester.attest(report_data)
    }
}
