//! The newest evidence that was believed, and when it has to be renewed.

use std::time::Duration;

use attestation::{Appraisal, Challenge, UnixTime, Verifier};
use policy::Bundle;

use crate::error::describe;
use crate::record::{Record, hex};

use super::courier::SharedAttester;

/// Shortest time between two tries to have evidence believed.
const RETRY: Duration = Duration::from_millis(200);

/// Who collects evidence, who appraises it, and what came of that.
pub(super) struct Attested {
    attester: SharedAttester,
    verifier: Verifier,
    appraisal: Option<Appraisal>,
    believed: Option<Duration>,
    due: Option<Duration>,
}

impl Attested {
    pub(super) fn new(attester: SharedAttester, verifier: Verifier) -> Self {
        Self {
            attester,
            verifier,
            appraisal: None,
            believed: None,
            due: None,
        }
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
            Ok(appraisal) => {
                let record = Record::Attested {
                    tee: appraisal.tee().to_string(),
                    evidence: hex(appraisal.evidence_digest()),
                    appraisal: serde_json::to_value(&appraisal).unwrap_or_default(),
                };
                self.appraisal = Some(appraisal);
                self.believed = Some(now);
                // Well before it is too old: if that fails, there is time for more tries.
                self.due = max_age.map(|age| now + age - age / 5);
                record
            }
            Err((code, error)) => {
                self.due = max_age.map(|age| now + (age / 10).max(RETRY));
                Record::NotAttested { code, error }
            }
        }
    }

    fn believe(
        &mut self,
        challenge: &Challenge,
        bundle: &Bundle,
        now: Duration,
    ) -> Result<Appraisal, (String, String)> {
        let mut attester = self.attester.try_lock().map_err(|_| {
            let busy = "the attester gives evidence to somebody else just now";
            ("no-evidence".to_owned(), busy.to_owned())
        })?;
        let evidence = attester
            .attest(&challenge.report_data())
            .map_err(|error| ("no-evidence".to_owned(), describe(&error)))?;
        let appraisal = self
            .verifier
            .appraise(&evidence, challenge, UnixTime(now.as_secs()))
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
        [aged, expiry, self.due].into_iter().flatten().min()
    }

    fn expiry(&self) -> Option<Duration> {
        self.appraisal
            .as_ref()
            .map(|appraisal| Duration::from_secs(appraisal.not_after().0))
    }
}
