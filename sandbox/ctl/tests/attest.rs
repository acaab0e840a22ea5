//! Genuine evidence of an AMD machine, from raw files to a verdict, offline.
//!
//! The files are not part of this repository: `CASEMATE_VECTORS` names their folder, `../shared/vectors`
//! beside the workspace is looked at otherwise. Without them the tests say so and pass, except in CI.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Command, Output};

/// Bound to by whoever asked for the report; it stands in the report at byte 0x50.
const REPORT_DATA: std::ops::Range<usize> = 0x50..0x90;
/// A time at which every certificate of the chain is valid.
const AT: &str = "1780000000";

fn vectors() -> Option<PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors");
    let folder = std::env::var_os("CASEMATE_VECTORS").map_or_else(|| beside.into(), PathBuf::from);
    if folder.join("snp").is_dir() {
        return Some(folder.join("snp"));
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "no vectors in {}",
        folder.display()
    );
    println!("skipped: no vectors in {}", folder.display());
    None
}

fn sandboxctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sandboxctl"))
        .arg("attest")
        .args(arguments)
        .output()
        .unwrap()
}

/// A bundle of a genuine Genoa report, and what it is bound to, in hexadecimal.
fn genuine(folder: &tempfile::TempDir) -> Option<(String, String)> {
    let snp = vectors()?;
    let report = snp.join("reports/genoa-v3-baremetal-vcek-vmpl0-8d8bfb3e.bin");
    let bundle = folder.path().join("evidence.json").display().to_string();
    let path = |name: &str| snp.join(name).display().to_string();
    let output = sandboxctl(&[
        "bundle",
        &report.display().to_string(),
        "--vek",
        &path("vek/sev-vcek-ab5a6bc8.der"),
        "--intermediate",
        &path("ca/sev-genoa-5464738c.der"),
        "--root",
        &path("ca/ark-genoa-4c6598d1.der"),
        "--output",
        &bundle,
    ]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let bound: String = std::fs::read(report).unwrap()[REPORT_DATA]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    Some((bundle, bound))
}

#[test]
fn genuine_evidence_is_believed_and_not_affirmed_without_reference_values() {
    let folder = tempfile::tempdir().unwrap();
    let Some((bundle, bound)) = genuine(&folder) else {
        return;
    };
    let output = sandboxctl(&["verify", &bundle, "--report-data", &bound, "--at", AT]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3), "{text}");
    assert!(
        text.contains("sev-snp: tier warning") && text.contains("snp.measurement"),
        "{text}"
    );
    let explained = sandboxctl(&["explain", &bundle, "--report-data", &bound, "--at", AT]);
    assert!(
        String::from_utf8(explained.stdout)
            .unwrap()
            .contains("AMD root")
    );
}

#[test]
fn the_same_appraisal_is_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let Some((bundle, bound)) = genuine(&folder) else {
        return;
    };
    let appraise = || {
        sandboxctl(&[
            "verify",
            &bundle,
            "--report-data",
            &bound,
            "--at",
            AT,
            "--json",
        ])
        .stdout
    };
    assert_eq!(appraise(), appraise());
}

#[test]
fn genuine_evidence_for_somebody_else_or_out_of_its_time_is_not_believed() {
    let folder = tempfile::tempdir().unwrap();
    let Some((bundle, bound)) = genuine(&folder) else {
        return;
    };
    let other = "0".repeat(128);
    for arguments in [
        &["verify", &bundle, "--report-data", &other, "--at", AT][..],
        &["verify", &bundle, "--report-data", &bound, "--at", "0"],
    ] {
        let output = sandboxctl(arguments);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("not to be believed"), "{text}");
    }
}

/// The key of RFC 8410, section 10.3: everybody has it.
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC
-----END PRIVATE KEY-----
";

#[test]
fn firmware_is_judged_by_a_signed_table_and_the_verdict_travels_as_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let Some((bundle, report_data)) = genuine(&folder) else {
        return;
    };
    let file = |name: &str| folder.path().join(name).display().to_string();
    let (key, table, token) = (file("key.pem"), file("table"), file("token"));
    std::fs::write(&key, KEY).unwrap();
    let source = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../attestation/data/amd-tcb.json"
    );
    let signing = [
        "sign-table",
        source,
        "--key",
        &key,
        "--name",
        "tcb.example",
        "-o",
        &table,
    ];
    let output = sandboxctl(&signing);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let public = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    assert!(public.starts_with("tcb.example+"), "{public}");

    let with = |public: &str| {
        sandboxctl(&[
            "explain",
            &bundle,
            "--report-data",
            &report_data,
            "--at",
            AT,
            "--tcb-table",
            &table,
            "--tcb-table-key",
            public,
            "--ear",
            &token,
            "--ear-key",
            &key,
        ])
    };
    let output = with(&public);
    let text = String::from_utf8(output.stdout).unwrap();
    // The table begins after this time, and so warns; it is read all the same.
    assert!(text.contains("tcb         up-to-date"), "{text}");
    assert!(text.contains("AMD-SB-3019"), "{text}");
    let token = std::fs::read_to_string(&token).unwrap();
    assert_eq!(token.split('.').count(), 3, "{token}");

    let other = public.replace("tcb.example", "tcb.elsewhere");
    assert!(!with(&other).status.success());
}
