//! What was taken comes back when the policy grants it again, while the workload runs: recorded before,
//! as it was granted, and of no use to what was opened under the old grant of data.

#![allow(clippy::unwrap_used)]

mod common;

use casemate::adjust::Change;
use casemate::isolation::child::Ending;
use casemate::plan::FileAccess;
use casemate::record::Record;
use common::{DATA, Policy, Room, Told};

/// Fades by itself, once nobody raises it any more.
const RISK: &str = "operator = { adds = 30, half-life = \"100ms\" }";

fn forbid(action: &str, resource: &str) -> String {
    format!(
        "forbid (principal, action == Action::\"{action}\", resource {resource}) \
         when {{ context.risk >= 10 }};"
    )
}

fn tells_of(change: &Change) -> impl Fn(&Record) -> bool {
    let change = change.clone();
    move |record| matches!(record, Record::Adjusted { change: made, .. } if *made == change)
}

/// Each change was a record before it was made, and the first was made before the second.
fn assert_taken_then_given(told: &Told, taken: &Change, given: &Change) {
    let ordered = |wanted: &Change| {
        told.at("the order", |record| {
            matches!(record, Record::Adjusting { change, because } if change == wanted && !because.is_empty())
        })
    };
    let made = |wanted: &Change| told.at("the change", tells_of(wanted));
    assert!(ordered(taken) < made(taken));
    assert!(made(taken) < ordered(given));
    assert!(ordered(given) < made(given));
}

#[test]
fn a_folder_that_was_taken_is_there_again_when_the_risk_has_faded() {
    let Some(room) = Room::new() else { return };
    std::fs::write(room.out().join("kept"), "kept\n").unwrap();
    let policy = Policy::shell(
        "exec 3> /out/held; echo ready\n\
         while cat /out/kept > /dev/null 2>&1; do :; done; echo gone\n\
         echo while it was gone >&3\n\
         until (echo again > /out/again) 2> /dev/null; do :; done; echo back\n\
         cat /out/kept /out/held; exit 3",
    )
    .with_rules(
        RISK,
        &(forbid("read", "is Path") + &forbid("write", "is Path")),
    );
    let running = room.setup(&policy).start();
    running.wait_for_output("ready");
    running.doubt_until_output("gone");
    let told = running.finish();
    assert_eq!(
        told.outcome().ending,
        Ending::Code(3),
        "{:#?}",
        told.records
    );
    assert_eq!(told.stdout, "ready\ngone\nback\nkept\nwhile it was gone\n");
    let given = Change::Restore {
        at: "/out".into(),
        access: FileAccess::Write,
    };
    assert_taken_then_given(&told, &Change::Detach("/out".into()), &given);
    assert_eq!(
        std::fs::read_to_string(room.out().join("again")).unwrap(),
        "again\n"
    );
}

#[test]
fn a_folder_that_could_only_be_read_can_be_written_again() {
    let Some(room) = Room::new() else { return };
    std::fs::write(room.out().join("kept"), "kept\n").unwrap();
    let policy = Policy::shell(
        "echo x > /out/x && echo ready\n\
         while (echo x > /out/x) 2> /dev/null; do :; done; echo read-only\n\
         cat /out/kept\n\
         until (echo again > /out/again) 2> /dev/null; do :; done; echo back; exit 3",
    )
    .with_rules(RISK, &forbid("write", "is Path"));
    let running = room.setup(&policy).start();
    running.wait_for_output("ready");
    running.doubt_until_output("read-only");
    let told = running.finish();
    assert_eq!(
        told.outcome().ending,
        Ending::Code(3),
        "{:#?}",
        told.records
    );
    assert_eq!(told.stdout, "ready\nread-only\nkept\nback\n");
    let given = Change::Restore {
        at: "/out".into(),
        access: FileAccess::Write,
    };
    assert_taken_then_given(&told, &Change::ReadOnly("/out".into()), &given);
}

#[test]
fn a_folder_inside_one_that_changes_keeps_its_own_rights() {
    let Some(room) = Room::new() else { return };
    std::fs::create_dir_all(room.path().join("outer/inner")).unwrap();
    std::fs::write(room.out().join("marker"), "").unwrap();
    let mut policy = Policy::shell(
        "echo x > /tree/inner/x && echo ready\n\
         while (echo x > /tree/x) 2> /dev/null; do :; done; echo read-only\n\
         until [ -e /tree/inner/marker ]; do :; done; echo inner\n\
         until (echo again > /tree/again) 2> /dev/null; do :; done; echo back\n\
         until [ -e /tree/inner/marker ]; do :; done\n\
         echo again > /tree/inner/again; exit 3",
    )
    .with_rules(RISK, &forbid("write", "== Path::\"/tree\""));
    policy.files =
        "write = [{ from = \"outer\", at = \"/tree\" }, { from = \"out\", at = \"/tree/inner\" }]"
            .into();
    let running = room.setup(&policy).start();
    running.wait_for_output("ready");
    running.doubt_until_output("inner");
    let told = running.finish();
    assert_eq!(
        told.outcome().ending,
        Ending::Code(3),
        "{:#?}",
        told.records
    );
    assert_eq!(told.stdout, "ready\nread-only\ninner\nback\n");
    assert!(room.out().join("again").exists());
    assert!(!room.path().join("outer/inner/again").exists());
}

#[test]
fn data_comes_back_with_a_key_that_was_released_anew_and_old_descriptors_stay_useless() {
    let Some(room) = Room::new() else { return };
    let policy = Policy::shell(
        "exec 3< /data/customers.csv\n\
         cat /data/customers.csv > /dev/null && echo ready\n\
         there() { grep -q Ada /data/customers.csv 2> /dev/null; }\n\
         while there; do :; done; echo gone\n\
         until there; do :; done; cat /data/customers.csv; echo back\n\
         if read -r line <&3; then echo \"old descriptor: $line\"; fi; exit 3",
    )
    .with_data()
    .with_rules(RISK, &forbid("read", "is Vault"));
    let running = room.setup(&policy).start();
    running.wait_for_output("ready");
    running.doubt_until_output("gone");
    let told = running.finish();
    assert_eq!(
        told.outcome().ending,
        Ending::Code(3),
        "{:#?}",
        told.records
    );
    assert_eq!(told.stdout, format!("ready\ngone\n{DATA}back\n"));
    let (taken, given) = (
        Change::Withdraw("customers".into()),
        Change::Release("customers".into()),
    );
    assert_taken_then_given(&told, &taken, &given);
    // Asked for anew, between the order and the effect.
    let back = told.at("the end of the withdrawal", tells_of(&taken));
    let shown = told.at("the data being back", tells_of(&given));
    let between: Vec<_> = told.records[back..shown].iter().map(Record::kind).collect();
    assert!(
        between.contains(&"releasing") && between.contains(&"released"),
        "{between:?}"
    );
    let Some(Record::Closed {
        read, withdrawn, ..
    }) = told.records.last()
    else {
        unreachable!()
    };
    assert!(read["customers"] >= 2 * DATA.len() as u64, "{read:?}");
    assert!(withdrawn.contains("customers"));
}
