//! Genuine event logs replay to what an independent implementation got, and to the registers of the
//! quotes that were taken with them.
//!
//! The vectors are not part of this repository: they are read from `$CASEMATE_VECTORS`, or else
//! from `../shared/vectors` beside the workspace. Where they are missing these tests say so and
//! pass, except under `CI`.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use attestation::Hex;
use attestation::tdx::{EventLog, Quote};
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
