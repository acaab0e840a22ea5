//! A newer policy comes into force while the workload runs, or is refused and changes nothing.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpListener;

use casemate::adjust::Change;
use casemate::record::{Record, decision_digest, hex};
use common::{Policy, Room};
use policy::{Bundle, Facts};

const RISK: &str = "operator = { adds = 30, half-life = \"1h\" }";
const RULE: &str = "forbid (principal, action == Action::\"read\", resource is Vault) \
                    when { context.risk >= 90 };";

/// The policy of this run, as text of a later version.
fn later(policy: &Policy, version: u64, from: &str, to: &str) -> Bundle {
    let text = policy.text();
    let line = text
        .lines()
        .find(|line| line.starts_with("version"))
        .unwrap();
    assert!(text.contains(from), "{text}");
    let text = text
        .replace(line, &format!("version = {version}"))
        .replace(from, to);
    Bundle::parse(&text, "later.toml").unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_newer_policy_takes_what_it_no_longer_grants_and_is_recorded_before() {
    let Some(room) = Room::new() else { return };
    let policy = Policy::shell("echo ready; read -r line; exit 0")
        .with_data()
        .with_rules(RISK, RULE);
    let running = room.setup(&policy).start();
    running.wait_for_output("ready");
    running.handle.operator("doubt");
    running.wait_for("risk", |r| matches!(r, Record::Signal { risk: 30, .. }));
    let newer = later(&policy, 1000, ">= 90", ">= 25");
    running.handle.reload(newer.clone());
    running.wait_for("withdrawal", |r| {
        matches!(
            r,
            Record::Adjusted {
                change: Change::Withdraw(_),
                ..
            }
        )
    });
    let told = running.finish();
    let at = |kind: &str| told.records.iter().position(|r| r.kind() == kind).unwrap();
    let Record::Reloading { version, digest } = &told.records[at("reloading")] else {
        unreachable!()
    };
    assert_eq!(
        (*version, digest.as_str()),
        (1000, hex(&newer.digest()).as_str())
    );
    assert!(at("reloading") < at("adjusting"), "{:?}", told.kinds());
    // What was decided since then is arrived at again under the newer policy only.
    let decided = told.records[at("reloading")..]
        .iter()
        .find_map(|record| match record {
            Record::Decided { facts, digest, .. } => Some((facts, digest)),
            _ => None,
        });
    let (facts, digest): (&Facts, &String) = decided.unwrap();
    assert_eq!(decision_digest(&newer.decide(facts)), *digest);
    assert_ne!(decision_digest(&policy.bundle().decide(facts)), *digest);
}

#[test]
fn a_policy_that_would_change_the_floor_is_refused_and_the_old_one_stays() {
    let Some(room) = Room::new() else { return };
    let policy = Policy::shell("echo ready; read -r line; exit 0")
        .with_data()
        .with_rules(RISK, RULE);
    let running = room.setup(&policy).start();
    running.wait_for_output("ready");
    running
        .handle
        .reload(later(&policy, 1000, "read -r line", "read -r other"));
    running.handle.reload(later(&policy, 0, ">= 90", ">= 10"));
    running.handle.not_reloaded("it has mistakes");
    running.wait_for_records(3, |r| matches!(r, Record::NotReloaded { .. }));
    running.handle.operator("doubt");
    running.wait_for("risk", |r| matches!(r, Record::Signal { risk: 30, .. }));
    let told = running.finish();
    let why: Vec<&str> = told
        .records
        .iter()
        .filter_map(|record| match record {
            Record::NotReloaded { why } => Some(why.as_str()),
            _ => None,
        })
        .collect();
    assert!(why[0].contains("`workload` differs"), "{why:?}");
    assert!(why[1].contains("is not above version"), "{why:?}");
    assert_eq!(why[2], "it has mistakes");
    let kinds = told.kinds();
    assert!(!kinds.contains(&"reloading"), "{kinds:?}");
    let withdrawn = |r: &&Record| {
        matches!(
            r,
            Record::Adjusted {
                change: Change::Withdraw(_),
                ..
            }
        )
    };
    assert_eq!(
        told.records.iter().filter(withdrawn).count(),
        0,
        "{kinds:?}"
    );
}

#[test]
fn what_goes_with_its_entry_is_taken_from_live_connections_too() {
    let Some(room) = Room::new() else { return };
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = server.local_addr().unwrap();
    let script = format!(
        "exec 3<>/dev/tcp/{}/{}; echo ready; read -r got <&3 || echo ended; \
         (exec 4<>/dev/tcp/{0}/{1}) 2>/dev/null || echo refused",
        endpoint.ip(),
        endpoint.port()
    );
    let policy = Policy::command(&["bash", "-c", &script]).connecting(&[&endpoint.to_string()]);
    let running = room.setup(&policy).start();
    let flow = server.accept().unwrap();
    running.wait_for_output("ready");
    let listed = format!("\"{endpoint}\"");
    running.handle.reload(later(&policy, 1000, &listed, ""));
    let told = running.finish();
    drop(flow);
    assert_eq!(told.stdout, "ready\nended\nrefused\n", "{told:#?}");
    let taken = Change::Disconnect(endpoint.to_string());
    told.at(
        "the end of connections",
        |r| matches!(r, Record::Adjusted { change, .. } if *change == taken),
    );
}

#[test]
fn a_newer_policy_takes_the_right_to_start_programs_that_no_rule_was_about_before() {
    let Some(room) = Room::new() else { return };
    let policy = Policy::shell(
        "echo ready; read -r line; (/bin/true) 2>/dev/null && echo started || echo refused",
    )
    .with_rules(RISK, "");
    let running = room.setup(&policy).start();
    running.wait_for_output("ready");
    let rule = "permit (principal, action, resource);\nforbid (principal, action == Action::\"exec\", resource) when { context.risk >= 0 };";
    let newer = later(&policy, 1000, "permit (principal, action, resource);", rule);
    running.handle.reload(newer);
    running.wait_for("no more programs", |r| {
        matches!(
            r,
            Record::Adjusted {
                change: Change::Exec(false),
                ..
            }
        )
    });
    let told = running.finish();
    assert_eq!(told.stdout, "ready\nrefused\n", "{told:#?}");
}

#[test]
fn rules_about_a_gap_that_cannot_be_are_refused_from_the_start_and_later() {
    let Some(room) = Room::new() else { return };
    let misspelt = "forbid (principal, action == Action::\"live\", resource) when { context.gaps.contains(\"landlok\") };";
    let policy = Policy::shell("echo ran").with_rules(RISK, misspelt);
    let told = room.setup(&policy).run();
    assert_eq!(told.stdout, "");
    let error = told.result.as_ref().unwrap_err().to_string();
    assert!(error.contains("there is no gap `landlok`"), "{error}");

    let policy = Policy::shell("echo ready; read -r line").with_rules(RISK, RULE);
    let running = room.setup(&policy).start();
    running.wait_for_output("ready");
    running.handle.reload(later(&policy, 1000, RULE, misspelt));
    running.wait_for(
        "refusal",
        |r| matches!(r, Record::NotReloaded { why } if why.contains("landlok")),
    );
    let kinds = running.finish();
    assert!(!kinds.kinds().contains(&"reloading"), "{kinds:#?}");
}
