//! Machines that go on from a template: what they share with their siblings, and what they do not.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use super::{Place, text};

#[test]
fn clones_of_a_template_share_no_key_and_no_random_number() {
    let script = "od -An -N16 -tx1 /dev/urandom; echo kept > /out/result";
    let tables = "[attestation]\naccept = [\"simulated\"]";
    let Some(place) = Place::new(script, tables) else {
        return;
    };
    let mut drawn = BTreeSet::new();
    let mut expected = 0;
    for clone in 0..3 {
        let warm = [
            "--warm",
            "--templates",
            "templates",
            "--dangerously-accept-simulated",
        ];
        let output = place.run(&warm);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{told}");
        let result = fs::read_to_string(place.path("out/result")).unwrap();
        assert_eq!(result, "kept\n");
        fs::remove_file(place.path("out/result")).unwrap();

        // The key of the log and the evidence, with the key that keys would be sealed to, are new each time.
        let records = place.records();
        let key = records.iter().find_map(|record| record["log-key"].as_str());
        drawn.insert(key.unwrap().to_owned());
        let attested = told
            .lines()
            .find(|line| line.contains("\"kind\":\"attested\""));
        let attested: serde_json::Value = serde_json::from_str(attested.unwrap()).unwrap();
        let evidence = attested["record"]["evidence"].to_string();
        assert!(evidence.len() > 32, "{attested}");
        drawn.insert(evidence);
        let lines = text(&output.stdout);
        drawn.extend(lines.lines().map(str::to_owned));
        expected += 3;
        assert_eq!(
            drawn.len(),
            expected,
            "shared with another clone: {drawn:#?}"
        );

        let made = records.iter().any(|r| r["machine"]["origin"] == "template");
        assert_eq!(made, clone == 0, "it is made once: {records:#?}");
        place.session_log_verifies();
        for log in ["log", "log.machine"] {
            fs::remove_dir_all(place.path(log)).unwrap();
        }
    }
    let templates = place.path("templates");
    assert_eq!(fs::metadata(&templates).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::read_dir(templates).unwrap().count(), 1);
}

#[test]
fn a_confidential_machine_does_not_start_from_a_template() {
    let Some(place) = Place::new("true", "") else {
        return;
    };
    let snp = ["--tee", "sev-snp", "--firmware", "/bin/true"];
    let output = place.run(&[&snp[..], &["--warm", "--templates", "templates"]].concat());
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{told}");
    assert!(
        told.contains("a confidential machine cannot start from a template"),
        "{told}"
    );
    assert!(!place.path("templates").exists());
}
