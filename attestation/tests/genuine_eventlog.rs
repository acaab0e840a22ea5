//! Genuine event logs replay to what an independent implementation got, and to the registers of the
//! quotes that were taken with them.
//!
//! The vectors are not part of this repository: they are read from `$CASEMATE_VECTORS`, or else
//! from `../shared/vectors` beside the workspace. Where they are missing these tests say so and
//! pass, except under `CI`.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use attestation::tdx::{EventLog, Quote};
use attestation::{
    ApplicationEvent, Appraisal, AppraiseError, Endorsements, Evidence, Hex, Outcome,
    ReferenceValues, Tee, TrustTier, UnixTime, Verifier,
};
use serde_json::Value;

fn vectors() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
    let root = std::env::var_os("CASEMATE_VECTORS").map_or(beside, PathBuf::from);
    if root.join("eventlog/replay.json").exists() {
        return Some(root);
    }
    let missing = format!("no vectors in {}", root.display());
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    println!("skipped: {missing}; set CASEMATE_VECTORS");
    None
}

fn read(root: &Path, path: &str) -> Vec<u8> {
    std::fs::read(root.join(path)).unwrap()
}

#[test]
fn every_genuine_event_log_replays_to_the_expected_registers() {
    let Some(root) = vectors() else {
        return;
    };
    let expected: Value = serde_json::from_slice(&read(&root, "eventlog/replay.json")).unwrap();
    let zero = "0".repeat(96);
    let mut replayed = 0;
    for (file, expected) in expected.as_object().unwrap() {
        if !file.contains("ccel") {
            continue;
        }
        let bytes = read(&root, file);
        if file.contains("sm3") {
            let error = EventLog::parse(&bytes).unwrap_err();
            assert_eq!(error.code(), "event-log-algorithm");
            continue;
        }
        let log = EventLog::parse(&bytes).unwrap_or_else(|error| panic!("{file}: {error}"));
        let registers = log.replay();
        for (index, value) in registers.values().iter().enumerate() {
            let value = value.to_string();
            let expected = &expected["sha384"][(index + 1).to_string()];
            let expected = expected.as_str().unwrap_or(&zero);
            assert_eq!(value, expected, "{file}, RTMR{index}");
        }
        replayed += 1;
    }
    assert!(replayed >= 11);
}

#[test]
fn a_genuine_log_explains_the_registers_of_its_own_quote_only() {
    let Some(root) = vectors() else {
        return;
    };
    let explained = |log: &str, quote: &str| {
        let log = read(&root, log);
        let quote = read(&root, quote);
        let rtmrs = Quote::parse(&quote).unwrap().report().rtmrs().map(Hex);
        EventLog::parse(&log).unwrap().replay().explain(&rtmrs)
    };
    let quote = "tdx/quotes/emr-v4-baremetal-3ab56d67.dat";
    assert_eq!(
        explained("eventlog/baremetal-live2-ccel.dat", quote),
        [true; 4]
    );
    assert_eq!(
        explained("eventlog/baremetal-live-ccel-mismatch.dat", quote),
        [true, true, false, true]
    );
    // The application of this one extends registers that the firmware's log does not tell of.
    let [rtmr0, ..] = explained(
        "eventlog/dstack-ccel.dat",
        "tdx/quotes/emr-v4-baremetal-32f07013.dat",
    );
    assert!(rtmr0);
}

/// Appraises a genuine quote with a log, and what an application says it added.
fn appraise(
    root: &Path,
    log: Option<&str>,
    events: &[ApplicationEvent],
    reference: ReferenceValues,
) -> Result<Appraisal, AppraiseError> {
    let quote = read(root, "tdx/quotes/emr-v4-baremetal-3ab56d67.dat");
    let report_data = Quote::parse(&quote).unwrap().report().report_data();
    let mut evidence = Evidence::new(Tee::Tdx, quote, Endorsements::default()).unwrap();
    if let Some(log) = log {
        let bytes = read(root, &format!("eventlog/{log}"));
        let length = EventLog::parse(&bytes).map_or(bytes.len(), |log| log.length());
        evidence = evidence.with_event_log(bytes[..length].to_vec()).unwrap();
    }
    for event in events {
        evidence = evidence.with_application_event(event.clone()).unwrap();
    }
    let again = Evidence::from_json(evidence.to_json().as_bytes()).unwrap();
    assert_eq!(again, evidence);
    // 2026-05-01, when its certificates are valid.
    let verifier = Verifier::builder().reference_values(reference).build();
    verifier
        .unwrap()
        .appraise_bound_to(&evidence, &report_data, UnixTime(1_777_593_600))
}

const OWN: Option<&str> = Some("baremetal-live2-ccel.dat");

#[test]
fn a_log_that_does_not_explain_every_register_contraindicates() {
    let Some(root) = vectors() else {
        return;
    };
    let seen = |log, events: &[ApplicationEvent]| {
        let appraisal = appraise(&root, log, events, ReferenceValues::default()).unwrap();
        let check = appraisal.check("tdx.event-log").unwrap().clone();
        (check.outcome, check.observed, appraisal.tier())
    };
    let (outcome, observed, tier) = seen(OWN, &[]);
    assert_eq!(
        (outcome, tier),
        (Outcome::Pass, TrustTier::Warning),
        "{observed}"
    );
    assert_eq!(seen(None, &[]).0, Outcome::Skipped);
    let (outcome, observed, tier) = seen(Some("baremetal-live-ccel-mismatch.dat"), &[]);
    assert_eq!((outcome, tier), (Outcome::Fail, TrustTier::Contraindicated));
    assert!(observed.ends_with("RTMR2"), "{observed}");
    // An application that says it extended what nobody extended.
    let event = |rtmr, digest, data: &str| ApplicationEvent {
        rtmr,
        digest: Hex(digest),
        data: data.to_owned(),
    };
    let (outcome, observed, _) = seen(OWN, &[event(3, [1; 48], "")]);
    assert_eq!(outcome, Outcome::Fail);
    assert!(observed.ends_with("RTMR3"), "{observed}");
    let code = |events: &[ApplicationEvent]| {
        let refused = appraise(&root, OWN, events, ReferenceValues::default());
        refused.unwrap_err().code()
    };
    assert_eq!(code(&[event(4, [1; 48], "")]), "event-log-register");
    assert_eq!(
        code(&[event(3, [1; 48], "said, not measured")]),
        "event-log-data"
    );
}

#[test]
fn a_log_that_cannot_be_read_is_refused() {
    let Some(root) = vectors() else {
        return;
    };
    let refused = appraise(
        &root,
        Some("hygon-csv-sm3-ccel.dat"),
        &[],
        ReferenceValues::default(),
    );
    assert_eq!(refused.unwrap_err().code(), "event-log-algorithm");
}

#[test]
fn programs_that_were_started_are_held_against_the_reference_values() {
    let Some(root) = vectors() else {
        return;
    };
    let bytes = read(&root, "eventlog/baremetal-live2-ccel.dat");
    let log = EventLog::parse(&bytes).unwrap();
    let started: Vec<Hex<48>> = log
        .events()
        .iter()
        .filter(|event| event.kind == 0x8000_0003)
        .map(|event| event.digest)
        .collect();
    assert!(!started.is_empty());
    let outcome = |log, allowed: &[Hex<48>]| {
        let mut reference = ReferenceValues::default();
        reference.tdx.boot_applications = Some(allowed.to_vec());
        let appraisal = appraise(&root, log, &[], reference).unwrap();
        appraisal.check("tdx.boot-applications").unwrap().outcome
    };
    assert_eq!(outcome(OWN, &started), Outcome::Pass);
    assert_eq!(outcome(OWN, &started[1..]), Outcome::Fail);
    assert_eq!(outcome(OWN, &[]), Outcome::Fail);
    // A log that does not replay proves no program.
    let other = Some("baremetal-live-ccel-mismatch.dat");
    assert_eq!(outcome(other, &started), Outcome::Fail);
    assert_eq!(outcome(None, &started), Outcome::Unknown);
}

#[test]
fn registers_that_only_tdx_has_do_not_come_with_other_evidence() {
    use attestation::{Attester as _, SimulatedTee};
    let now = UnixTime(1_790_000_000);
    let mut tee = SimulatedTee::new(now).unwrap();
    let evidence = tee
        .attest(&[1; 64])
        .unwrap()
        .with_event_log(vec![1])
        .unwrap();
    let verifier = Verifier::builder().dangerous().accept_simulated().build();
    let refused = verifier
        .unwrap()
        .appraise_bound_to(&evidence, &[1; 64], now);
    assert_eq!(refused.unwrap_err().code(), "event-log-misplaced");
}
