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

#[test]
fn a_launch_digest_is_computed_and_a_different_one_explained() {
    let Some(snp) = vectors() else { return };
    let firmware = snp.with_file_name("launch-measurement/ovmf_AmdSev_suffix.bin");
    let measure = |more: &[&str]| {
        let firmware = firmware.display().to_string();
        let common = ["measure", "--firmware", &firmware, "--vcpu-type", "EPYC-v4"];
        let output = sandboxctl(&[&common[..], more].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        (text, output.status.code().unwrap())
    };
    let empty = [
        "--kernel",
        "/dev/null",
        "--initrd",
        "/dev/null",
        "--command-line",
    ];
    let launch = |vcpus: &'static str| {
        let line = [
            "console=ttyS0 loglevel=7",
            "--features",
            "0x21",
            "--vcpus",
            vcpus,
        ];
        [&empty[..], &line].concat()
    };
    let (digest, code) = measure(&launch("1"));
    let expected = "803f691094946e42068aaa3a8f9e26a5c89f36f7b73ecfb28c653360fe4b3aba\
                    7e534442e7e1e17895dfe778d0228977";
    assert_eq!((digest.trim(), code), (expected, 0));
    let (text, code) = measure(&[&launch("4")[..], &["--found", expected]].concat());
    assert_eq!(code, 5);
    assert!(text.contains("1 vCPUs instead of 4"), "{text}");
    let (json, _) = measure(&[&launch("1")[..], &["--json"]].concat());
    assert!(json.contains(expected), "{json}");
}

/// A quote of Azure's TPM, its parts in files as Azure's tools give them.
#[test]
fn evidence_of_a_virtual_tpm_is_bundled_and_explained() {
    let Some(snp) = vectors() else { return };
    let file = snp.with_file_name("vtpm/trustee-az-snp-evidence-v0.json");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let bytes = |value: &serde_json::Value| -> Vec<u8> {
        let numbers = value.as_array().unwrap().iter();
        numbers
            .map(|it| u8::try_from(it.as_u64().unwrap()).unwrap())
            .collect()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("hcl"), bytes(&json["report"])).unwrap();
    std::fs::write(path("quote"), bytes(&json["quote"]["message"])).unwrap();
    std::fs::write(path("signature"), bytes(&json["quote"]["signature"])).unwrap();
    let pcrs: serde_json::Map<String, serde_json::Value> = json["quote"]["pcrs"]
        .as_array()
        .unwrap()
        .iter()
        .enumerate()
        .map(|(number, value)| {
            let hex: String = bytes(value)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            (number.to_string(), hex.into())
        })
        .collect();
    std::fs::write(path("pcrs"), serde_json::to_vec(&pcrs).unwrap()).unwrap();
    let ca = |name: &str| snp.join("ca").join(name).display().to_string();
    let vek = snp.join("vek/sev-vcek-b67b09bf.der").display().to_string();
    let (milan, ark) = (ca("sev-milan-67d303bd.der"), ca("ark-milan-69d063b4.der"));
    let (hcl, bundle) = (path("hcl"), path("bundle"));
    let output = sandboxctl(&[
        "bundle",
        &hcl,
        "--hcl",
        &hcl,
        "--vek",
        &vek,
        "--intermediate",
        &milan,
        "--root",
        &ark,
        "--tpm-quote",
        &path("quote"),
        "--tpm-signature",
        &path("signature"),
        "--tpm-pcrs",
        &path("pcrs"),
        "--output",
        &bundle,
    ]);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let explain =
        |binding: &[&str]| sandboxctl(&[&["explain", &bundle, "--at", AT], binding].concat());
    let output = explain(&["--dangerously-ignore-binding"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("pass     vtpm.pcr-digest"), "{text}");
    assert!(text.contains("unknown  vtpm.pcrs"), "{text}");
    let output = explain(&["--qualifying-data", "00"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("vtpm-nonce"));
}

#[test]
fn a_folder_of_endorsements_completes_a_bare_report() {
    let Some(snp) = vectors() else { return };
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    std::fs::create_dir(&cache).unwrap();
    let report = snp.join("reports/genoa-v3-baremetal-vcek-vmpl0-8d8bfb3e.bin");
    let bytes = std::fs::read(&report).unwrap();
    let hex = |bytes: &[u8]| {
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let vek = format!(
        "vek-genoa-{}-{}.der",
        hex(&bytes[0x1a0..0x1e0]),
        hex(&bytes[0x180..0x188])
    );
    for (from, to) in [
        ("vek/sev-vcek-ab5a6bc8.der", vek.as_str()),
        ("ca/sev-genoa-5464738c.der", "ask-genoa.der"),
        ("ca/ark-genoa-4c6598d1.der", "ark-genoa.der"),
    ] {
        std::fs::copy(snp.join(from), cache.join(to)).unwrap();
    }
    let path = |path: &std::path::Path| path.display().to_string();
    let (report, cache) = (path(&report), path(&cache));
    let data = hex(&bytes[REPORT_DATA]);
    let bundle = |name: &str, more: &[&str]| {
        let output = path(&folder.path().join(name));
        let made = sandboxctl(&[&["bundle", &report, "--output", &output], more].concat());
        assert!(
            made.status.success(),
            "{}",
            String::from_utf8_lossy(&made.stderr)
        );
        output
    };
    let code = |bundle: &str, more: &[&str]| {
        let common = ["verify", bundle, "--at", AT, "--report-data", &data];
        sandboxctl(&[&common[..], more].concat()).status.code()
    };
    let bare = bundle("bare", &[]);
    assert_eq!(code(&bare, &[]), Some(1));
    // Believed, and of unknown measurement.
    assert_eq!(code(&bare, &["--endorsements", &cache]), Some(3));
    let whole = bundle("whole", &["--cache", &cache]);
    assert_eq!(code(&whole, &[]), Some(3));
    let nowhere = path(&folder.path().join("nowhere"));
    assert_eq!(code(&bare, &["--endorsements", &nowhere]), Some(1));
}

#[test]
fn four_commands_lead_from_a_challenge_to_a_verdict_without_hardware() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/attestation.md");
    let page = std::fs::read_to_string(page).unwrap();
    let section = page.split("## Try it without hardware").nth(1).unwrap();
    let block = section.split("```console\n").nth(1).unwrap();
    let commands = block.split("```").next().unwrap();
    for tee in ["tdx", "sev-snp"] {
        let folder = tempfile::tempdir().unwrap();
        let codes: Vec<Option<i32>> = commands
            .lines()
            .map(|command| {
                let command = command.strip_prefix("$ sandboxctl ").unwrap();
                let command = command.replace("--simulated tdx", &format!("--simulated {tee}"));
                let output = Command::new(env!("CARGO_BIN_EXE_sandboxctl"))
                    .args(command.split(' '))
                    .current_dir(folder.path())
                    .output()
                    .unwrap();
                output.status.code()
            })
            .collect();
        assert_eq!(codes, [Some(0), Some(0), Some(3), Some(0)], "{tee}");

        let path = |name: &str| folder.path().join(name).display().to_string();
        let (evidence, asked) = (path("evidence.json"), path("challenge.json"));
        let refused = |arguments: &[&str]| {
            let output = sandboxctl(&[&["verify", &evidence], arguments].concat());
            assert_eq!(output.status.code(), Some(1));
            String::from_utf8(output.stderr).unwrap()
        };
        let by_nobody = refused(&["--challenge", &asked]);
        assert!(
            by_nobody.contains("(unknown-root)")
                && by_nobody.contains("--dangerously-accept-simulated"),
            "{by_nobody}"
        );
        let other = path("other.json");
        let fresh = sandboxctl(&["challenge", "--output", &other]);
        assert!(fresh.status.success());
        let replayed = refused(&["--challenge", &other, "--dangerously-accept-simulated"]);
        assert!(
            replayed.contains("(binding)") && replayed.contains("ask it again"),
            "{replayed}"
        );
        // Nothing is written over.
        assert!(
            !sandboxctl(&["challenge", "--output", &other])
                .status
                .success()
        );
    }
}

#[test]
fn a_bundle_is_made_of_a_report_or_a_quote_and_of_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.bin");
    std::fs::write(&file, "neither").unwrap();
    let file = file.display().to_string();
    let output = sandboxctl(&["bundle", &file]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(
        text.contains("neither a report of SEV-SNP nor a quote"),
        "{text}"
    );
    let output = sandboxctl(&["bundle", &file, "--tee", "sev-snp"]);
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(
        text.contains("no report of SEV-SNP: ") && text.contains("7 bytes"),
        "{text}"
    );

    let Some(snp) = vectors() else { return };
    let quote = snp.join("../tdx/quotes/emr-v5-baremetal-cf77a6e9.dat");
    let output = sandboxctl(&["bundle", &quote.display().to_string()]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with(r#"{"tee":"tdx""#), "{text}");
}
