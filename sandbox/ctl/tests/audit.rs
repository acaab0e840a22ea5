//! Audit logs from the command line: searched, proven, exported; and refused once they were changed.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use vault::audit::{Log, LogKey, Record};

/// A folder with a log of 300 records in it.
struct Desk {
    dir: TempDir,
    key: String,
}

impl Desk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::create(
            &dir.path().join("log"),
            "casemate/run",
            LogKey::generate().unwrap(),
        )
        .unwrap();
        let key = log.public_key().map(|b| format!("{b:02x}")).concat();
        let records: Vec<_> = (0..300u64)
            .map(|n| match n % 3 {
                0 => (
                    "signal",
                    json!({ "sensor": "denied-syscall", "risk": n / 3 }),
                ),
                1 => (
                    "adjusting",
                    json!({ "change": { "vault": "sales" }, "because": ["line 7", "line 9"] }),
                ),
                _ => ("started", json!(null)),
            })
            .zip(1000..)
            .map(|((kind, payload), second)| {
                Record::new(kind, Duration::from_secs(second), second, payload)
            })
            .collect();
        log.append_all(&records).unwrap();
        log.close().unwrap();
        Self { dir, key }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sandboxctl"))
            .arg("audit")
            .args(arguments)
            .current_dir(self.dir.path())
            .output()
            .unwrap()
    }

    /// Runs what must succeed; returns the lines it printed.
    fn does(&self, arguments: &[&str]) -> Vec<String> {
        let output = self.run(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments:?}: {said}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// Runs what must fail; returns what it said.
    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

#[test]
fn records_are_found_by_kind_field_and_time() {
    let desk = Desk::new();
    let count = |with: &[&str]| {
        let all = [&["query", "log", "--count", "--key", &desk.key][..], with].concat();
        desk.does(&all)[0].parse::<u64>().unwrap()
    };
    assert_eq!(count(&[]), 300);
    assert_eq!(count(&["--kind", "signal"]), 100);
    assert_eq!(count(&["--kind", "signal", "--kind", "started"]), 200);
    assert_eq!(count(&["--where", "change.vault=sales"]), 100);
    assert_eq!(count(&["--where", "because=line 9"]), 100);
    assert_eq!(count(&["--where", "because=line 9", "--kind", "signal"]), 0);
    assert_eq!(count(&["--where", "risk=7"]), 1);
    assert_eq!(count(&["--since", "1290", "--until", "1295"]), 5);
    let found = desk.does(&["query", "log", "--where", "risk=7", "--json"]);
    let found: Value = serde_json::from_str(&found[0]).unwrap();
    assert_eq!(
        (&found["seq"], &found["kind"]),
        (&json!(21), &json!("signal"))
    );
}

#[test]
fn the_tail_of_a_log_is_its_last_records() {
    let desk = Desk::new();
    let lines = desk.does(&["tail", "log", "-n", "2"]);
    let starts: Vec<_> = lines
        .iter()
        .map(|line| line.trim_start()[..3].to_owned())
        .collect();
    assert_eq!(starts, ["298", "299"]);
    assert_eq!(desk.does(&["tail", "log", "-n", "1000"]).len(), 300);
}

#[test]
fn a_record_is_proven_without_the_log_and_no_other_is() {
    let desk = Desk::new();
    let proof = desk
        .does(&["prove", "log", "21", "--key", &desk.key])
        .join("\n");
    fs::write(desk.path("proof"), &proof).unwrap();
    let check = ["check", "proof", "--key", &desk.key];
    assert!(desk.does(&check)[0].contains("denied-syscall"));
    let other = "00".repeat(32);
    assert!(
        desk.fails(&["check", "proof", "--key", &other])
            .contains("does not hold")
    );
    let mut forged: Value = serde_json::from_str(&proof).unwrap();
    forged["index"] = json!(22);
    fs::write(desk.path("proof"), forged.to_string()).unwrap();
    assert!(desk.fails(&check).contains("does not hold"));
    assert!(desk.fails(&["prove", "log", "300"]).contains("no proof"));
}

#[test]
fn an_export_has_every_record_once_in_both_forms() {
    let desk = Desk::new();
    for format in ["jsonl", "ocsf"] {
        let lines = desk.does(&["export", "log", "--format", format]);
        let objects: Vec<Value> = lines
            .iter()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(objects.len(), 300);
        let number = |object: &Value| match format {
            "jsonl" => object["seq"].as_u64(),
            _ => object["metadata"]["sequence"].as_u64(),
        };
        assert!(objects.iter().zip(0..).all(|(o, n)| number(o) == Some(n)));
    }
}

#[test]
fn a_changed_log_gives_no_record() {
    let desk = Desk::new();
    let bundle = desk.path("log/tile/entries/000");
    let mut bytes = fs::read(&bundle).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    fs::write(&bundle, bytes).unwrap();
    for command in ["tail", "query", "export", "show", "verify"] {
        assert!(
            desk.fails(&[command, "log"]).contains("does not verify"),
            "{command}"
        );
    }
}
