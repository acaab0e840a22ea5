//! A decision is a function of bundle and facts: whoever has the log and the policy arrives at every
//! decision again, bit for bit.

#![allow(clippy::unwrap_used)]

mod common;

use casemate::record::{Record, hex};
use common::{Policy, Room, Told};
use policy::{Bundle, Facts};
use sha2::{Digest, Sha256};

/// Facts and digest of every decision in the verified log, as text.
fn decisions(told: &Told) -> Vec<(Facts, String)> {
    let entries = told.entries();
    let decided = entries
        .iter()
        .filter(|entry| entry.record.kind == "decided");
    decided
        .map(|entry| {
            let payload = &entry.record.payload;
            let facts = serde_json::from_value(payload["facts"].clone()).unwrap();
            (facts, payload["digest"].as_str().unwrap().to_owned())
        })
        .collect()
}

/// The digest of what this bundle decides from these facts.
fn decide(bundle: &Bundle, facts: &Facts) -> String {
    hex(&Sha256::digest(
        serde_json::to_vec(&bundle.decide(facts)).unwrap(),
    ))
}

/// A run whose risk rises in steps, so that several decisions differ.
fn policy() -> Policy {
    // Until it is stopped: a workload that ends by itself may be over before anything is decided.
    let script = "while :; do unshare --user true 2>/dev/null; done";
    Policy::shell(script).with_data().with_rules(
        "denied-syscall = { adds = 7, half-life = \"1h\" }",
        "forbid (principal, action == Action::\"use\", resource) when { context.risk >= 10 && !context.gaps.contains(\"cgroup\") };\n\
         forbid (principal, action == Action::\"read\", resource is Vault) when { context.risk >= 30 };\n\
         forbid (principal, action == Action::\"live\", resource) when { context.risk >= 60 };",
    )
}

#[test]
fn every_recorded_decision_is_arrived_at_again() {
    let Some(room) = Room::new() else { return };
    let told = room.setup(&policy()).run();
    let decisions = decisions(&told);
    // The first, and the one that stopped it; what lies between depends on how many calls were seen at once.
    assert!(decisions.len() >= 2, "{:?}", told.kinds());
    // From the text of the policy, as a reader of the log has it; the log names its digest.
    let bundle = policy().bundle();
    let Record::Opened { digest, .. } = &told.records[0] else {
        unreachable!()
    };
    assert_eq!(*digest, hex(&bundle.digest()));
    for (facts, digest) in &decisions {
        assert_eq!(decide(&bundle, facts), *digest, "{facts:?}");
    }
}

#[test]
fn other_facts_or_another_policy_do_not_arrive_there() {
    let Some(room) = Room::new() else { return };
    let told = room.setup(&policy()).run();
    let (facts, digest) = decisions(&told).pop().unwrap();
    let bundle = policy().bundle();
    assert_ne!(
        decide(
            &bundle,
            &Facts {
                risk: 0,
                ..facts.clone()
            }
        ),
        digest
    );
    let mut other = policy();
    other.rules = other.rules.replace(">= 60", ">= 61");
    assert_ne!(decide(&other.bundle(), &facts), digest);
}
