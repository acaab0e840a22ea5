//! What an agent must not forget: it survives the agent, and is not put back to an earlier day.

#![allow(clippy::unwrap_used)]

mod service;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use service::{Service, program, rest};

const SEAL: &str = "[seal]\nkey = \"file:seal.key\"\nanchor = \"file:anchor\"\n";

/// An agent that seals what it must not forget, with a policy `work` of version 3.
fn sealing() -> Service {
    let service = Service::prepared(SEAL, |folder| {
        fs::write(folder.join("seal.key"), "07".repeat(32)).unwrap();
        service::mode(&folder.join("seal.key"), 0o600);
    });
    version(&service, 3);
    service
}

fn version(service: &Service, version: u64) {
    service.policy("work", "true");
    let path = service.folder.path().join("policies/work.toml");
    let policy = fs::read_to_string(&path).unwrap();
    let policy = policy.replace("version = 1", &format!("version = {version}"));
    fs::write(path, policy).unwrap();
}

/// What running `work` comes to: the code of an ending, or why it was refused.
fn run(service: &Service) -> Value {
    let lines = rest(service.run(&json!({ "policy": "work" })));
    let last = lines.last().unwrap();
    match last["error"]["code"].as_str() {
        Some(code) => json!(code),
        None => last["outcome"]["ending"]["code"].clone(),
    }
}

fn copy(from: &Path, to: &Path) {
    let done = Command::new("cp").arg("-a").arg(from).arg(to).status();
    assert!(done.unwrap().success());
}

/// What an agent says that does not start.
fn refused(service: &Service) -> String {
    let told = program(service.folder.path()).output().unwrap();
    assert!(!told.status.success());
    String::from_utf8(told.stderr).unwrap()
}

#[test]
fn a_policy_that_was_replaced_stays_replaced_also_for_an_agent_that_was_killed() {
    let mut service = sealing();
    assert_eq!(run(&service), 0);
    version(&service, 2);
    assert_eq!(run(&service), "old-version");
    service.restart();
    assert_eq!(run(&service), "old-version");
    version(&service, 4);
    assert_eq!(run(&service), 0);
    version(&service, 3);
    assert_eq!(run(&service), "old-version");
}

#[test]
fn a_state_that_was_put_back_or_taken_away_is_refused() {
    let mut service = sealing();
    let folder = service.folder.path().to_owned();
    assert_eq!(run(&service), 0);
    service.kill();
    let (state, earlier) = (folder.join("state/sealed"), folder.join("earlier"));
    copy(&state, &earlier);
    service.restart();
    version(&service, 5);
    assert_eq!(run(&service), 0);
    service.kill();
    let now = folder.join("now");
    fs::rename(&state, &now).unwrap();
    copy(&earlier, &state);
    let said = refused(&service);
    assert!(said.contains("sealed state cannot be relied on"), "{said}");
    assert!(
        said.contains("earlier") || said.contains("rolled back") || said.contains("generation"),
        "{said}"
    );

    // Nor does an agent begin anew.
    fs::remove_dir_all(&state).unwrap();
    let said = refused(&service);
    assert!(said.contains("sealed state cannot be relied on"), "{said}");
    fs::remove_dir_all(&state).unwrap();

    // What it left itself is good.
    fs::rename(&now, &state).unwrap();
    service.restart();
    assert_eq!(run(&service), 0);
}

#[test]
fn a_log_that_was_cut_or_changed_after_its_run_keeps_the_agent_from_starting() {
    let mut service = sealing();
    assert_eq!(run(&service), 0);
    service.kill();
    let runs = service.folder.path().join("state/runs");
    let log = fs::read_dir(&runs).unwrap().next().unwrap().unwrap().path();
    let kept = service.folder.path().join("kept");
    copy(&log, &kept);
    let checkpoint = log.join("checkpoint");
    let mut note = fs::read(&checkpoint).unwrap();
    let last = note.len() - 4;
    note[last] = if note[last] == b'A' { b'B' } else { b'A' };
    fs::write(&checkpoint, note).unwrap();
    let said = refused(&service);
    assert!(said.contains("is not what this agent left"), "{said}");

    // A log that an operator has cleared away as a whole is none that was changed.
    fs::remove_dir_all(&log).unwrap();
    service.restart();
    service.kill();
    fs::rename(kept, log).unwrap();
    service.restart();
    assert_eq!(run(&service), 0);
}

#[test]
fn a_key_that_others_can_read_or_that_is_another_seals_nothing() {
    let mut service = sealing();
    assert_eq!(run(&service), 0);
    service.kill();
    let key = service.folder.path().join("seal.key");
    service::mode(&key, 0o644);
    assert!(refused(&service).contains("key"), "others can read it");
    service::mode(&key, 0o600);
    fs::write(&key, "08".repeat(32)).unwrap();
    assert!(refused(&service).contains("sealed state"), "it is another");
}
