//! What the verifier must refuse or must not affirm, each with its own code, on simulated evidence.

#![allow(clippy::unwrap_used)]

mod chain;
mod claims;
mod report;
mod table;

use crate::appraisal::{Appraisal, Outcome, SnpClaims, TrustTier};
use crate::attester::Attester as _;
use crate::challenge::{Challenge, Role};
use crate::evidence::{Endorsements, Evidence, Tee};
use crate::reference::ReferenceValues;
use crate::tee::simulated::{SimulatedTee, SimulatedTeeBuilder};
use crate::time::UnixTime;
use crate::verifier::{AppraiseError, Verifier};

const NOW: UnixTime = UnixTime(1_790_000_000);

fn challenge() -> Challenge {
    Challenge {
        role: Role::Guest,
        nonce: [1; 32],
        channel: Some([2; 32]),
        policy_digest: [3; 32],
        log_key: [4; 32],
        release_key: [5; 32],
    }
}

fn tee() -> SimulatedTeeBuilder {
    SimulatedTee::builder(NOW)
}

/// Reference values that affirm the default guest.
fn reference() -> ReferenceValues {
    SimulatedTee::new(NOW).unwrap().reference_values()
}

fn verifier(reference: ReferenceValues) -> Verifier {
    Verifier::builder()
        .reference_values(reference)
        .dangerous()
        .accept_simulated()
        .build()
        .unwrap()
}

fn evidence(tee: SimulatedTeeBuilder) -> Evidence {
    tee.build()
        .unwrap()
        .attest(&challenge().report_data())
        .unwrap()
}

fn appraise(tee: SimulatedTeeBuilder) -> Result<Appraisal, AppraiseError> {
    verifier(reference()).appraise(&evidence(tee), &challenge(), NOW)
}

fn code(tee: SimulatedTeeBuilder) -> &'static str {
    appraise(tee).unwrap_err().code()
}

/// The tier that evidence gets from reference values changed by `expect`.
fn judge(
    tee: SimulatedTeeBuilder,
    id: &str,
    expect: impl FnOnce(&mut crate::SnpReferenceValues),
) -> (Outcome, TrustTier) {
    let mut reference = reference();
    expect(&mut reference.sev_snp);
    let appraisal = verifier(reference)
        .appraise(&evidence(tee), &challenge(), NOW)
        .unwrap();
    (appraisal.check(id).unwrap().outcome, appraisal.tier())
}

fn claims(appraisal: &Appraisal) -> &SnpClaims {
    match appraisal.claims() {
        crate::Claims::SevSnp(claims) => claims,
        other => panic!("{other:?}"),
    }
}

/// The same evidence with another report.
fn with_report(evidence: &Evidence, report: Vec<u8>) -> Evidence {
    Evidence::new(Tee::Simulated, report, evidence.endorsements().clone()).unwrap()
}

/// The same evidence with other certificates.
fn with_certificates(evidence: &Evidence, [vek, intermediate, root]: [Vec<u8>; 3]) -> Evidence {
    let endorsements = Endorsements::default()
        .with_vek(vek)
        .and_then(|endorsements| endorsements.with_intermediate(intermediate))
        .and_then(|endorsements| endorsements.with_root(root))
        .unwrap();
    Evidence::new(Tee::Simulated, evidence.report().to_vec(), endorsements).unwrap()
}

fn certificates(evidence: &Evidence) -> [Vec<u8>; 3] {
    let endorsements = evidence.endorsements();
    [
        endorsements.vek(),
        endorsements.intermediate(),
        endorsements.root(),
    ]
    .map(|der| der.unwrap().to_vec())
}
