//! What happens to a request.
//!
//! Each step of an exchange is one function: [`Service::challenge`], [`Service::attest`],
//! [`Service::release`], and [`Service::lease`] for as long as what was released is in use. They block
//! (signatures, the log, the store), and so run beside the threads that serve connections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use attestation::ear::{EarError, Issuer, TokenKey};
use attestation::{Challenge, Evidence, Hex, Nonce, Role, SealedSecret, UnixTime, release_context};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use broker::{Attested, Broker, ReleaseError, SpentNonce, Standing};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::{Semaphore, watch};

use crate::believing::{Believing, Current, REFERENCE};
use crate::config::{Config, Limits};
use crate::journal::{Event, Journal, JournalError};
use crate::jwe::{self, Encrypted};
use crate::jwk::ClientKey;
use crate::sessions::{self, Guest, Pace, Session, SessionError, Sessions};
use crate::store::{AnyStore, Changes, Expected, StoreError, Swap};
use crate::tally::Tally;
use crate::tls::Channel;
use crate::wire::{self, Attestation};

/// Where in the store it is what all replicas have to be told.
const TOLD: &str = "told/";
/// Where what was revoked is.
const REVOKED: &str = "told/revoked/";
/// How long one question for news may take.
const NEWS: Duration = Duration::from_secs(2);
/// How long to wait before the next one, when there is no answer.
const PAUSE: Duration = Duration::from_millis(200);
/// How often it is looked whether endorsements have changed.
const LOOK: Duration = Duration::from_secs(1);

/// A broker that serves.
pub struct Service {
    believing: Believing,
    rules: BTreeMap<String, String>,
    store: AnyStore,
    /// Held by releases under way; a revocation waits for them.
    releasing: RwLock<()>,
    sessions: Sessions,
    pace: Pace,
    limits: Limits,
    appraisals: Arc<Semaphore>,
    token_key: TokenKey,
    journal: Journal,
    tally: Tally,
    /// Counts what leases may have to be looked at again for.
    news: watch::Sender<u64>,
    /// Whether a record could not be written: nothing is released any more then.
    broken: AtomicBool,
    ending: AtomicBool,
}

/// Why a client gets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The request is not of the form that it should have.
    Form(&'static str),
    /// There is no such session, or nobody attested in it.
    Session,
    /// The evidence is not believed, by the code of the reason.
    Evidence(&'static str),
    /// It is not for this client, or is not there.
    Resource,
    /// Too much is asked at once.
    Busy,
    /// What it needs cannot be reached, so nothing is known.
    Unavailable,
    /// Something is wrong here.
    Broken,
}

/// How long a secret that was released may still be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leased {
    /// So many seconds from the moment of asking.
    For(u64),
    /// Not any more.
    Ended(Ended),
}

/// Why a lease has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// The secret is for nobody any more, or not for this guest.
    Revoked,
    /// The session is over, or what its evidence rested on has changed: who attests again may go on.
    Attest,
}

/// What is needed to answer somebody in a session, all as of one moment.
struct Looked<'a> {
    session: Session,
    believing: RwLockReadGuard<'a, Current>,
    revoked: bool,
}

impl Service {
    /// Serves what a configuration says, with a store.
    ///
    /// # Errors
    ///
    /// [`EarError::Key`] when there is no randomness for the key that signs tokens.
    pub fn new(config: Config, store: AnyStore, journal: Journal) -> Result<Self, EarError> {
        let limits = config.limits;
        Ok(Self {
            believing: config.believing,
            rules: config.rules,
            sessions: Sessions::new(Arc::clone(&store), limits.session, limits.nonce),
            store,
            releasing: RwLock::default(),
            pace: Pace::new(limits.asks_per_minute),
            appraisals: Arc::new(Semaphore::new(limits.appraisals)),
            limits,
            token_key: token_key()?,
            journal,
            tally: Tally::default(),
            news: watch::Sender::default(),
            broken: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        })
    }

    /// Gives a nonce in a new session: its name, and the nonce.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn challenge(
        &self,
        tee: &str,
        client: SocketAddr,
        channel: Option<Channel>,
        now: UnixTime,
    ) -> Result<(String, Nonce), Refused> {
        if !self.pace.admits(client.ip(), now) {
            self.tally.busy();
            return Err(Refused::Busy);
        }
        let (mut name, mut nonce) = ([0; 32], [0; 32]);
        getrandom::fill(&mut name).map_err(|_| Refused::Broken)?;
        getrandom::fill(&mut nonce).map_err(|_| Refused::Broken)?;
        let name = URL_SAFE_NO_PAD.encode(name);
        match self.sessions.begin(&name, tee, nonce, channel, now) {
            Ok(()) => {
                self.tally.challenged();
                Ok((name, nonce))
            }
            Err(SessionError::Busy) => {
                self.tally.busy();
                Err(Refused::Busy)
            }
            Err(error) => Err(self.unavailable(&error)),
        }
    }

    /// Appraises evidence that answers the session's nonce, once: whatever comes of it, the nonce is spent.
    /// Gives a token (EAR) about the verdict, for others: here it opens nothing.
    ///
    /// # Errors
    ///
    /// [`Refused`]; the reason is in the log.
    pub fn attest(
        &self,
        id: &str,
        body: &[u8],
        client: SocketAddr,
        channel: Option<Channel>,
        now: UnixTime,
    ) -> Result<String, Refused> {
        let looked = self.look(id, None, now)?;
        let (mut session, believing) = (looked.session, looked.believing);
        let attestation: Attestation = serde_json::from_slice(body)
            .map_err(|_| Refused::Form("the request is no attestation"))?;
        let data = &attestation.runtime_data;
        if data["nonce"] != STANDARD.encode(session.nonce()) {
            return Err(Refused::Form(
                "the runtime data has another nonce than the session",
            ));
        }
        let key =
            ClientKey::of(data).map_err(|_| Refused::Form("the runtime data has no usable key"))?;
        let evidence = attestation.tee_evidence.evidence();
        let evidence =
            evidence.map_err(|_| Refused::Form("the evidence is of no form that is known"))?;
        let pseudonym = pseudonym(id);
        let not_attested = |code, why: &dyn std::error::Error| {
            self.tally.not_attested();
            self.write(&Event::NotAttested {
                session: &pseudonym,
                client: client.to_string(),
                code,
                why: described(why),
            })?;
            Err(Refused::Evidence(code))
        };
        let spent = match self.sessions.spend(&mut session, now) {
            Ok(spent) => spent,
            Err(error @ SessionError::NonceUnknown) => {
                return not_attested("nonce-unknown", &error);
            }
            Err(error @ SessionError::NonceExpired) => {
                return not_attested("nonce-expired", &error);
            }
            Err(error) => return Err(self.unavailable(&error)),
        };
        let bound = match data.get("tls-exporter") {
            None => None,
            // One connection from the nonce to here, and the one that the guest sees.
            Some(seen) => match channel.filter(|own| session.channel() == Some(*own)) {
                Some(own) if *seen == Hex(own.0).to_string() => Some(own),
                _ => return not_attested("binding", &OtherChannel),
            },
        };
        let evidence = match self.completed(evidence, now) {
            Ok(evidence) => evidence,
            Err(error) => return not_attested("endorsements", &error),
        };
        let (report_data, attested) = appraise(
            &believing.broker,
            &evidence,
            &key,
            spent,
            &session,
            data,
            bound,
            now,
        );
        let reference = believing.reference;
        drop(believing);
        let attested = match attested {
            Ok(attested) => attested,
            Err(error) => return not_attested(error.code(), &error),
        };
        let appraisal = attested.appraisal();
        self.write(&Event::Attested {
            session: &pseudonym,
            client: client.to_string(),
            tee: format!(
                "{}, said to be {}",
                appraisal.tee(),
                session.tee().escape_default()
            ),
            tier: appraisal.tier().name(),
            evidence: attestation_hex(appraisal.evidence_digest()),
            policy: attested.policy().map(attestation_hex),
            key: key.kind(),
        })?;
        let issuer = Issuer {
            developer: "casemate".to_owned(),
            build: concat!("casemate-broker ", env!("CARGO_PKG_VERSION")).to_owned(),
            lifetime: self.limits.session,
        };
        let token = self.token_key.sign(appraisal, &issuer);
        let token = token.map_err(|_| Refused::Broken)?;
        let guest = Guest {
            standing: attested.standing(),
            key,
            report_data: Hex(report_data),
            at: now,
            reference,
            channel: bound.map(|channel| Hex(channel.0)),
        };
        match self.sessions.attested(session, guest, now) {
            Ok(()) => {
                self.tally.attested();
                Ok(token)
            }
            Err(SessionError::Store(error)) => Err(self.unavailable(&error)),
            Err(_) => Err(Refused::Session),
        }
    }

    /// Releases a secret to who attested in a session: recorded first, then encrypted to the key in the
    /// evidence.
    ///
    /// # Errors
    ///
    /// [`Refused`]; the reason is in the log.
    pub fn release(
        &self,
        id: &str,
        resource: &str,
        channel: Option<Channel>,
        now: UnixTime,
    ) -> Result<Encrypted, Refused> {
        // Held until the secret is on its way: a revocation here is in force when it is answered.
        let _releasing = self
            .releasing
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let looked = self.look(id, Some(resource), now)?;
        let guest = looked.guest().ok_or(Refused::Session)?;
        let session = pseudonym(id);
        let refused = |code| {
            self.tally.refused();
            self.write(&Event::Refused {
                session: &session,
                resource,
                code,
            })?;
            Err(Refused::Resource)
        };
        // Whoever attested over one connection goes on over that one.
        if guest.channel.is_some() && guest.channel != channel.map(|own| Hex(own.0)) {
            return refused("channel");
        }
        let secret = match looked.secret(&guest.standing, resource, now) {
            Ok(secret) => secret,
            Err(code) => return refused(code),
        };
        self.write(&Event::Releasing {
            session: &session,
            resource,
        })?;
        let encrypted = match &guest.key {
            ClientKey::Ec { curve, point } => {
                jwe::to_ec(*curve, point, secret).map(Encrypted::Jwe).ok()
            }
            ClientKey::Rsa { modulus, exponent } => jwe::to_rsa(modulus, exponent, secret)
                .map(Encrypted::Jwe)
                .ok(),
            ClientKey::Hpke { release_key, .. } => {
                let context = release_context(resource, &guest.report_data.0);
                let sealed = SealedSecret::seal(release_key, &context, secret);
                sealed.map(Encrypted::Sealed).ok()
            }
        };
        match encrypted {
            Some(encrypted) => {
                self.tally.released();
                Ok(encrypted)
            }
            None => refused("key"),
        }
    }

    /// For how long who attested in a session may use a secret without asking again.
    ///
    /// # Errors
    ///
    /// [`Refused::Unavailable`] when nothing is known; what was said before holds until it ends.
    pub fn lease(&self, id: &str, resource: &str, now: UnixTime) -> Result<Leased, Refused> {
        let looked = match self.look(id, Some(resource), now) {
            Ok(looked) => looked,
            Err(Refused::Session) => return Ok(Leased::Ended(Ended::Attest)),
            Err(other) => return Err(other),
        };
        let Some(guest) = looked.guest() else {
            return Ok(Leased::Ended(Ended::Attest));
        };
        if let Err(code) = looked.secret(&guest.standing, resource, now) {
            let why = match code {
                "lapsed" => Ended::Attest,
                _ => Ended::Revoked,
            };
            return Ok(Leased::Ended(why));
        }
        let ends = [guest.standing.not_after(), looked.session.expires()];
        let left = ends
            .into_iter()
            .map(|end| end.0.saturating_sub(now.0))
            .min();
        self.tally.leased();
        Ok(Leased::For(left.unwrap_or(0).min(self.limits.lease)))
    }

    /// Session, verifier, and whether a secret is revoked, as of one moment.
    fn look(&self, id: &str, resource: Option<&str>, now: UnixTime) -> Result<Looked<'_>, Refused> {
        let session = sessions::key(id);
        let revoked = resource.map(|resource| format!("{REVOKED}{resource}"));
        let keys = [Some(session.as_str()), Some(REFERENCE), revoked.as_deref()];
        let keys: Vec<_> = keys.into_iter().flatten().collect();
        let read = self.store.read(&keys, now);
        let mut read = read.map_err(|error| self.unavailable(&error))?.into_iter();
        let (entry, reference) = (read.next().flatten(), read.next().flatten());
        let revoked = read.next().flatten().is_some();
        let believing = self
            .believing
            .by(reference.as_ref(), now)
            .map_err(|error| {
                crate::server::note(format_args!("{}", described(&error)));
                Refused::Broken
            })?;
        let entry = entry.ok_or(Refused::Session)?;
        let session = Session::read(session, &entry, now).ok_or(Refused::Session)?;
        Ok(Looked {
            session,
            believing,
            revoked,
        })
    }

    /// Revokes a secret, or takes that back; recorded first. In force at every replica when this returns.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; if the store could not be reached, it may be in force or not.
    pub fn set_revoked(
        &self,
        resource: &str,
        revoke: bool,
        uid: u32,
        why: &str,
        now: UnixTime,
    ) -> Result<(), ChangeError> {
        let _nobody = self
            .releasing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        self.journal.write(&match revoke {
            true => Event::Revoked { resource, uid, why },
            false => Event::Restored { resource, uid, why },
        })?;
        let value = json!({ "uid": uid, "why": why, "at": now.0 }).to_string();
        self.tell(
            &format!("{REVOKED}{resource}"),
            revoke.then_some(value.as_bytes()),
            now,
        )
    }

    /// Registers reference values in place of those of the configuration and of those registered before, or
    /// takes that back; recorded first. In force at every replica when this returns.
    ///
    /// # Errors
    ///
    /// [`ChangeError`]; reference values that cannot be used change nothing.
    pub fn set_reference(
        &self,
        json: Option<&[u8]>,
        uid: u32,
        why: &str,
        now: UnixTime,
    ) -> Result<(), ChangeError> {
        if let Some(json) = json {
            attestation::ReferenceValues::from_json(json)?;
        }
        let digest = json.map(|json| Hex::<32>(Sha256::digest(json).into()).to_string());
        let _nobody = self
            .releasing
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        self.journal.write(&Event::Reference { digest, uid, why })?;
        self.tell(REFERENCE, json, now)
    }

    fn tell(&self, key: &str, value: Option<&[u8]>, now: UnixTime) -> Result<(), ChangeError> {
        let swap = Swap {
            key,
            expected: Expected::Anything,
            value,
            lifetime: None,
        };
        self.store.swap(&swap, now)?;
        self.look_again();
        Ok(())
    }

    /// Takes into the store what an older log says is revoked.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn adopt(&self, revoked: &BTreeSet<String>, now: UnixTime) -> Result<(), StoreError> {
        for resource in revoked {
            let swap = Swap {
                key: &format!("{REVOKED}{resource}"),
                expected: Expected::Absent,
                value: Some(b"{}"),
                lifetime: None,
            };
            self.store.swap(&swap, now)?;
        }
        Ok(())
    }

    /// Waits for what other replicas and the operator change, and has leases looked at again for it, until
    /// the service ends.
    pub fn watch(&self, now: impl Fn() -> UnixTime) {
        let mut after = None;
        while !self.ending.load(Ordering::Relaxed) {
            let news = match after {
                None => self
                    .store
                    .list(TOLD, now())
                    .map(|listing| (true, Some(listing.revision))),
                Some(seen) => self
                    .store
                    .changes(TOLD, seen, NEWS)
                    .map(|changes| match changes {
                        Changes::Since { keys, revision } => (!keys.is_empty(), Some(revision)),
                        Changes::Forgotten => (true, None),
                    }),
            };
            match news {
                Ok((changed, next)) => {
                    after = next;
                    if changed {
                        self.look_again();
                    }
                }
                Err(error) => {
                    self.unavailable(&error);
                    std::thread::sleep(PAUSE);
                }
            }
        }
    }

    /// Looks whether endorsements have changed, until the service ends.
    pub fn watch_endorsements(&self, now: impl Fn() -> UnixTime) {
        while self.believing.folder().is_some() && !self.ending.load(Ordering::Relaxed) {
            match self.believing.reread(now()) {
                Ok(true) => self.look_again(),
                Ok(false) => {}
                Err(error) => crate::server::note(format_args!("{}", described(&error))),
            }
            std::thread::sleep(LOOK);
        }
    }

    fn look_again(&self) {
        self.news
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Ends what watches, and those who wait for news.
    pub fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
        self.look_again();
    }

    /// What tells that leases may have changed.
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// How long the answer about a lease may be kept back: so that it is renewed well before its end.
    pub fn longest_wait(&self) -> Duration {
        match self.ending.load(Ordering::Relaxed) {
            true => Duration::ZERO,
            false => Duration::from_secs(self.limits.lease / 3),
        }
    }

    /// How long a request may take.
    pub fn patience(&self) -> Duration {
        Duration::from_secs(self.limits.patience)
    }

    /// How many may send evidence at once.
    pub fn room(&self) -> &Arc<Semaphore> {
        &self.appraisals
    }

    /// What was counted.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Whether it can do what it is for: the log is written, the store answers.
    ///
    /// # Errors
    ///
    /// [`Refused::Broken`], [`Refused::Unavailable`].
    pub fn health(&self, now: UnixTime) -> Result<(), Refused> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(Refused::Broken);
        }
        let read = self.store.read(&[REFERENCE], now);
        read.map(drop).map_err(|error| self.unavailable(&error))
    }

    /// Names of the secrets, for whom each is, and whether it is revoked; and what was counted.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    pub fn list(&self, now: UnixTime) -> Result<serde_json::Value, StoreError> {
        let told = self.store.list(TOLD, now)?.entries;
        let revoked = |name: &String| told.contains_key(&format!("{REVOKED}{name}"));
        let resources: Vec<_> = self
            .rules
            .iter()
            .map(|(name, rule)| json!({ "name": name, "for": rule, "revoked": revoked(name) }))
            .collect();
        Ok(json!({
            "resources": resources,
            "registered-reference-values": told.contains_key(REFERENCE),
            "counted": self.tally.json(),
        }))
    }

    /// Whether there is a secret of this name.
    pub fn has(&self, resource: &str) -> bool {
        self.rules.contains_key(resource)
    }

    /// The audit log, when nothing is served any more.
    pub fn into_journal(self) -> Journal {
        self.journal
    }

    fn completed(
        &self,
        evidence: Evidence,
        now: UnixTime,
    ) -> Result<Evidence, attestation::FolderError> {
        match self.believing.folder() {
            Some(folder) => folder.complete(evidence, now),
            None => Ok(evidence),
        }
    }

    fn write(&self, event: &Event<'_>) -> Result<(), Refused> {
        self.journal.write(event).map_err(|error| {
            self.broken.store(true, Ordering::Relaxed);
            crate::server::note(format_args!("{}", described(&error)));
            Refused::Broken
        })
    }

    fn unavailable(&self, error: &dyn std::error::Error) -> Refused {
        // Once for a while of it: whoever cuts the network must not fill the disk.
        if self.tally.unavailable() {
            crate::server::note(format_args!("{}", described(error)));
        }
        Refused::Unavailable
    }
}

impl Looked<'_> {
    /// Who attested, if what its evidence was appraised by is still what evidence is appraised by.
    fn guest(&self) -> Option<&Guest> {
        let guest = self.session.guest()?;
        let current = guest.reference == self.believing.reference;
        (current && guest.at >= self.believing.since).then_some(guest)
    }

    /// The secret, or the stable name of why not.
    fn secret(
        &self,
        standing: &Standing,
        resource: &str,
        now: UnixTime,
    ) -> Result<&[u8], &'static str> {
        match self.believing.broker.secret_for(standing, resource) {
            Ok(_) if self.revoked => Err("revoked"),
            Ok(_) if now > standing.not_after() => Err("lapsed"),
            Ok(secret) => Ok(secret),
            Err(refusal) => Err(refusal.code()),
        }
    }
}

/// Why something that the operator wanted changed was not.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChangeError {
    /// It could not be recorded, so it was not done.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// It was recorded; whether it is in force is not known.
    #[error("it may be in force or not: try again")]
    Store(#[from] StoreError),
    /// The reference values cannot be used.
    #[error("the reference values cannot be used")]
    Reference(#[from] attestation::ReferenceError),
}

/// The evidence is for another connection than the one it came over.
#[derive(Debug, thiserror::Error)]
#[error("the evidence is bound to another connection than the one it came over")]
struct OtherChannel;

#[allow(clippy::too_many_arguments)] // one step of `attest`, with what it has found
fn appraise(
    broker: &Broker,
    evidence: &Evidence,
    key: &ClientKey,
    spent: SpentNonce,
    session: &Session,
    runtime_data: &serde_json::Value,
    bound: Option<Channel>,
    now: UnixTime,
) -> ([u8; 64], Result<Attested, ReleaseError>) {
    match key {
        ClientKey::Hpke {
            release_key,
            policy_digest,
            log_key,
        } => {
            let challenge = Challenge {
                role: Role::Guest,
                nonce: *session.nonce(),
                channel: bound.map(|channel| channel.0),
                policy_digest: *policy_digest,
                log_key: *log_key,
                release_key: *release_key,
            };
            let attested = broker.attest_spent(evidence, &challenge, spent, now);
            (challenge.report_data(), attested)
        }
        _ => {
            let report_data = wire::report_data(runtime_data);
            let attested = broker.attest_bound_to(evidence, &report_data, spent, now);
            let attested = attested.map(|attested| match bound {
                // It is in the runtime data, which the evidence is bound to.
                Some(_) => attested.over_channel(),
                None => attested,
            });
            (report_data, attested)
        }
    }
}

/// A key for the tokens of this run; those who rely on them ask again after it.
fn token_key() -> Result<TokenKey, EarError> {
    let random = SystemRandom::new();
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &random);
    TokenKey::from_pkcs8(der.map_err(|_| EarError::Key)?.as_ref())
}

/// How a session is named in records: who reads them must not be able to go on with it.
fn pseudonym(id: &str) -> String {
    let digest: [u8; 32] = Sha256::digest(id).into();
    let short: [u8; 8] = std::array::from_fn(|at| digest[at]);
    attestation::Hex(short).to_string()
}

fn attestation_hex(bytes: &[u8; 32]) -> String {
    attestation::Hex(*bytes).to_string()
}

/// An error with its causes.
pub fn described(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
