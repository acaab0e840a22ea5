//! What a newcomer types first.

#![allow(clippy::unwrap_used)]

use std::process::{Command, Output};

fn sandboxctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sandboxctl"))
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn every_command_explains_itself() {
    let commands: &[&[&str]] = &[
        &[],
        &["run"],
        &["status"],
        &["adjust"],
        &["attest"],
        &["attest", "challenge"],
        &["attest", "collect"],
        &["attest", "bundle"],
        &["attest", "verify"],
        &["attest", "explain"],
        &["attest", "selftest"],
        &["attest", "sign-table"],
        &["audit", "export"],
        &["audit", "witness"],
        &["audit", "check"],
        &["audit", "prove"],
        &["audit", "query"],
        &["audit", "tail"],
        &["attest", "measure"],
        &["vault"],
        &["vault", "create"],
        &["vault", "put"],
        &["vault", "get"],
        &["vault", "ls"],
        &["vault", "rm"],
        &["vault", "verify"],
        &["vault", "mv"],
        &["vault", "snapshot"],
        &["vault", "export"],
        &["vault", "import"],
        &["vault", "rekey"],
        &["vault", "rotate"],
        &["vault", "erase"],
        &["vault", "kek"],
        &["vault", "kek", "ls"],
        &["vault", "kek", "add"],
        &["vault", "kek", "rm"],
        &["audit"],
        &["audit", "verify"],
        &["audit", "show"],
        &["audit", "timeline"],
        &["policy"],
        &["policy", "check"],
        &["policy", "explain"],
        &["policy", "diff"],
        &["policy", "test"],
        &["policy", "learn"],
        &["policy", "replay"],
        &["policy", "key"],
        &["policy", "sign"],
        &["policy", "verify"],
        &["policy", "schema"],
        &["policy", "import-seccomp"],
        &["vault", "kek", "ls"],
        &["doctor"],
    ];
    for command in commands {
        let mut arguments = command.to_vec();
        arguments.push("--help");
        let output = sandboxctl(&arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.success() && text.contains("Usage:"),
            "{command:?}: {text}"
        );
    }
}

#[test]
fn wrong_usage_is_told_with_code_2_and_on_stderr() {
    for arguments in [
        &["fly"][..],
        &["run"],
        &["run", "a", "--jsn"],
        &["vault", "ls", "v"],
    ] {
        let output = sandboxctl(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(
            output.stdout.is_empty() && !output.stderr.is_empty(),
            "{arguments:?}"
        );
    }
}

#[test]
fn the_exit_codes_of_run_are_in_the_help() {
    let text = String::from_utf8(sandboxctl(&["--help"]).stdout).unwrap();
    for code in ["122", "124", "125", "126", "127"] {
        assert!(text.contains(code), "{code} is not in:\n{text}");
    }
}

#[test]
fn doctor_names_a_fix_for_what_is_missing() {
    let output = sandboxctl(&["doctor", "--json"]);
    let findings: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert!(findings.len() > 20);
    let missing = findings
        .iter()
        .filter(|finding| finding["status"] == "missing");
    for finding in missing {
        assert!(finding["fix"].is_string(), "{finding}");
    }
}

#[test]
fn a_reader_that_has_gone_is_nothing_to_complain_about() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_sandboxctl"))
        .args(["policy", "schema"])
        .stdout(writer)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(141));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
