//! The newest evidence that was believed, and when it has to be renewed.

use std::time::Duration;

use attestation::{Appraisal, Challenge, Evidence, UnixTime, Verifier};
use policy::Bundle;

use crate::error::describe;
use crate::facts;
use crate::receipt;
use crate::record::{Record, hex};

use super::courier::SharedAttester;

/// Shortest time between two tries to have evidence believed.
const RETRY: Duration = Duration::from_millis(200);
/// How often it is looked whether endorsements have changed.
const LOOK: Duration = Duration::from_secs(1);

/// Where endorsements come from while a session runs: certificates, revocation lists, collateral.
pub trait Endorsements: Send {
    /// A verifier with all that is there, if that has changed since it was last asked.
    ///
    /// # Errors
    ///
    /// What is wrong with what is there, in words; the verifier in use goes on.
    fn renewed(&mut self) -> Result<Option<Verifier>, String>;
}

/// Who collects evidence, who appraises it, and what came of that.
pub(super) struct Attested {
    attester: SharedAttester,
    verifier: Verifier,
    appraisal: Option<Appraisal>,
    believed: Option<Duration>,
    due: Option<Duration>,
    endorsements: Option<Box<dyn Endorsements>>,
    looked: Duration,
    /// The evidence that was believed last, and what it answers.
    held: Option<(Evidence, Challenge)>,
    /// The best appraisal of this session: smaller is better.
    best: Option<(policy::Tier, policy::Tcb)>,
    worse: Option<String>,
}

impl Attested {
    pub(super) fn new(
        attester: SharedAttester,
        verifier: Verifier,
        endorsements: Option<Box<dyn Endorsements>>,
    ) -> Self {
        Self {
            attester,
            verifier,
            appraisal: None,
            believed: None,
            due: None,
            endorsements,
            looked: Duration::ZERO,
            held: None,
            best: None,
            worse: None,
        }
    }

    /// Appraises the evidence that is held once more, if what it rests on has changed. What is not
    /// believed any more is no appraisal any more.
    pub(super) fn reconsider(&mut self, bundle: &Bundle, now: Duration) -> Option<Record> {
        let endorsements = self.endorsements.as_mut()?;
        if now < self.looked + LOOK {
            return None;
        }
        self.looked = now;
        match endorsements.renewed() {
            Ok(verifier) => self.verifier = verifier?,
            Err(error) => {
                let code = "endorsements".to_owned();
                return Some(Record::NotAttested { code, error });
            }
        }
        let (evidence, challenge) = self.held.as_ref()?;
        match self.appraised(evidence, challenge, bundle, now) {
            Ok(appraisal) => {
                let digest = receipt::digest_of(evidence);
                Some(self.keep(appraisal, digest))
            }
            Err((code, error)) => {
                (self.appraisal, self.believed) = (None, None);
                self.worse = Some(format!("the evidence is not believed any more: {error}"));
                Some(Record::NotAttested { code, error })
            }
        }
    }

    /// In which way the newest appraisal is worse than the best one before.
    pub(super) fn worse(&self) -> Option<&str> {
        self.worse.as_deref()
    }

    fn keep(&mut self, appraisal: Appraisal, bundle: String) -> Record {
        let rank = facts::rank(&appraisal);
        let best = *self.best.get_or_insert(rank);
        self.worse = (rank.0 > best.0 || rank.1 > best.1).then(|| {
            format!(
                "tier {}, tcb {}; it was {}, {}",
                rank.0, rank.1, best.0, best.1
            )
        });
        self.best = Some((rank.0.min(best.0), rank.1.min(best.1)));
        let record = Record::Attested {
            tee: appraisal.tee().to_string(),
            evidence: hex(appraisal.evidence_digest()),
            bundle,
            appraisal: serde_json::to_value(&appraisal).unwrap_or_default(),
        };
        self.appraisal = Some(appraisal);
        record
    }

    /// Believes nothing any more until evidence is appraised anew.
    pub(super) fn forget(&mut self) {
        (self.appraisal, self.believed, self.held) = (None, None, None);
    }

    /// Collects and appraises evidence. What cannot be had or believed leaves the last appraisal to
    /// age.
    pub(super) fn renew(
        &mut self,
        challenge: &Challenge,
        bundle: &Bundle,
        now: Duration,
    ) -> Record {
        let max_age = bundle.tables().attestation.max_age;
        match self.believe(challenge, bundle, now) {
            Ok((appraisal, evidence)) => {
                let record = self.keep(appraisal, receipt::digest_of(&evidence));
                self.held = Some((evidence, challenge.clone()));
                self.believed = Some(now);
                // Well before it is too old: if that fails, there is time for more tries.
                self.due = max_age.map(|age| now + age - age / 5);
                record
            }
            Err((code, error)) => {
                // What was believed once and is forgotten is asked for again, whatever the age allowed.
                let forgotten = self.best.is_some() && self.appraisal.is_none();
                let wait = max_age.map(|age| (age / 10).max(RETRY));
                self.due = wait.or(forgotten.then_some(RETRY)).map(|wait| now + wait);
                Record::NotAttested { code, error }
            }
        }
    }

    fn believe(
        &mut self,
        challenge: &Challenge,
        bundle: &Bundle,
        now: Duration,
    ) -> Result<(Appraisal, Evidence), (String, String)> {
        let mut attester = self.attester.try_lock().map_err(|_| {
            let busy = "the attester gives evidence to somebody else just now";
            ("no-evidence".to_owned(), busy.to_owned())
        })?;
        let evidence = attester
            .attest(&challenge.report_data())
            .map_err(|error| ("no-evidence".to_owned(), describe(&error)))?;
        drop(attester);
        let appraisal = self.appraised(&evidence, challenge, bundle, now)?;
        Ok((appraisal, evidence))
    }

    fn appraised(
        &self,
        evidence: &Evidence,
        challenge: &Challenge,
        bundle: &Bundle,
        now: Duration,
    ) -> Result<Appraisal, (String, String)> {
        let appraisal = self
            .verifier
            .appraise(evidence, challenge, UnixTime(now.as_secs()))
            .map_err(|error| (error.code().to_owned(), describe(&error)))?;
        let name = if appraisal.is_simulated() {
            "simulated"
        } else {
            appraisal.tee().name()
        };
        let accepted = &bundle.tables().attestation.accept;
        if accepted.iter().any(|tee| tee.as_str() == name) {
            return Ok(appraisal);
        }
        let error = format!("evidence of `{name}` is not in the policy's `[attestation] accept`");
        Err(("not-accepted".into(), error))
    }

    /// The evidence that was believed last, and the challenge that it answers.
    pub(super) fn held(&self) -> Option<&(Evidence, Challenge)> {
        self.held.as_ref()
    }

    pub(super) fn appraisal(&self) -> Option<&Appraisal> {
        self.appraisal.as_ref()
    }

    /// Age of the newest evidence that was believed.
    pub(super) fn age(&self, now: Duration) -> Option<Duration> {
        self.believed.map(|at| now.saturating_sub(at))
    }

    /// Whether a certificate or list that the appraisal rests on is past its end.
    pub(super) fn is_expired(&self, now: Duration) -> bool {
        self.expiry().is_some_and(|end| now > end)
    }

    /// Whether evidence should be collected again.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        self.due.is_some_and(|due| now >= due)
    }

    /// When the mere passing of time next changes something about the evidence.
    pub(super) fn next_change(&self, bundle: &Bundle, now: Duration) -> Option<Duration> {
        let aged = self
            .believed
            .zip(self.age(now))
            .and_then(|(believed, age)| {
                let stale = bundle.tables().attestation.max_age.filter(|max| *max > age);
                let ages = [stale, bundle.next_age(age)];
                ages.into_iter().flatten().min().map(|age| believed + age)
            });
        let expiry = self
            .expiry()
            .filter(|end| *end >= now)
            .map(|end| end + Duration::from_secs(1));
        let look = self
            .endorsements
            .as_ref()
            .map(|_| self.looked.max(now) + LOOK);
        [aged, expiry, self.due, look].into_iter().flatten().min()
    }

    fn expiry(&self) -> Option<Duration> {
        self.appraisal
            .as_ref()
            .map(|appraisal| Duration::from_secs(appraisal.not_after().0))
    }
}
