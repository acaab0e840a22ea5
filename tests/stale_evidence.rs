//! Trust fades: evidence that cannot be renewed takes the data away and stops the workload, and fresh
//! evidence in time lets it go on.

#![allow(clippy::unwrap_used)]

mod common;

use casemate::Why;
use casemate::adjust::Change;
use casemate::isolation::child::Ending;
use casemate::record::Record;
use common::{Policy, Room, tee};

const RULES: &str = "forbid (principal, action == Action::\"read\", resource is Vault) when { context.risk >= 50 };\n\
                     forbid (principal, action == Action::\"live\", resource) when { context.risk >= 50 };";

fn policy(script: &str) -> Policy {
    let mut policy = Policy::shell(script)
        .with_data()
        .with_rules("stale-evidence = { adds = 60 }", RULES);
    policy.max_age = "2s".into();
    policy
}

#[test]
fn evidence_that_cannot_be_renewed_takes_the_data_and_stops_the_workload() {
    let Some(room) = Room::new() else { return };
    let mut setup = room.setup(&policy("cat /data/customers.csv; read -r forever"));
    // One for the session, one for the key of its vault.
    setup.tee = Box::new(tee().fail_after(2).build().unwrap());
    let told = setup.start().wait_until_over();

    assert_eq!(told.outcome().ending, Ending::Killed(9));
    assert!(
        matches!(told.outcome().why, Why::Policy(_)),
        "{:?}",
        told.outcome()
    );
    let failed = told.at(
        "the failure",
        |r| matches!(r, Record::NotAttested { code, .. } if code == "no-evidence"),
    );
    let stale = told.at("stale evidence", |r| {
        matches!(
            r,
            Record::Signal {
                sensor: "stale-evidence",
                holds: Some(true),
                risk: 60,
                ..
            }
        )
    });
    let data = Change::Withdraw("customers".into());
    let gone = told.at(
        "the data",
        |r| matches!(r, Record::Adjusted { change, .. } if *change == data),
    );
    let stop = told.at("the stop", |r| {
        matches!(
            r,
            Record::Adjusting {
                change: Change::Stop,
                ..
            }
        )
    });
    assert!(failed < stale && stale < gone && gone < stop);
}

#[test]
fn fresh_evidence_in_time_keeps_it_running_past_the_age() {
    let Some(room) = Room::new() else { return };
    let mut policy = policy("cat /data/customers.csv; read -r line; cat /data/customers.csv");
    policy.max_age = "1s".into();
    let running = room.setup(&policy).start();
    running.wait_for_output("south");
    // Attested at the start and then every 0.8 s: the third evidence comes when the first is stale.
    running.wait_for_records(3, |r| matches!(r, Record::Attested { .. }));
    let told = running.finish();
    assert_eq!(
        (told.outcome().ending, &told.outcome().why),
        (Ending::Code(0), &Why::Ended)
    );
    assert_eq!(
        told.stdout.matches("south").count(),
        2,
        "the data is still there"
    );
    assert_eq!(told.signals("stale-evidence"), 0, "{:?}", told.kinds());
}

#[test]
fn a_failure_to_renew_that_passes_in_time_is_recorded_and_harmless() {
    let Some(room) = Room::new() else { return };
    let mut setup = room.setup(&policy("read -r line; cat /data/customers.csv"));
    let mut calls = 0;
    // The third evidence, the first renewal, is spoilt; the next is not.
    let spoilt = tee().tamper_report(move |report| {
        calls += 1;
        report[0x90] ^= u8::from(calls == 3);
    });
    setup.tee = Box::new(spoilt.build().unwrap());
    let running = setup.start();
    running.wait_for_records(2, |r| matches!(r, Record::Attested { .. }));
    let told = running.finish();
    assert_eq!(told.outcome().ending, Ending::Code(0));
    let refused = told.at("the refusal", |r| matches!(r, Record::NotAttested { .. }));
    let Record::NotAttested { code, .. } = &told.records[refused] else {
        unreachable!()
    };
    assert_eq!(code, "signature");
    assert_eq!(told.signals("stale-evidence"), 0, "{:?}", told.kinds());
}
