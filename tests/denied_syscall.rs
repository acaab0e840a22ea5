//! A system call that was refused raises the risk, and the rules take away, step by step, what the
//! workload has: its data while it reads, then its time, then its life.

#![allow(clippy::unwrap_used)]

mod common;

use casemate::Why;
use casemate::adjust::Change;
use casemate::isolation::child::Ending;
use casemate::record::Record;
use common::{DATA, Policy, Room, Told};

const RISK: &str = "denied-syscall = { adds = 30, half-life = \"1h\" }";
const WITHDRAW: &str = "forbid (principal, action == Action::\"read\", resource is Vault) \
                        when { context.risk >= 25 };";
const FREEZE: &str = "forbid (principal, action == Action::\"proceed\", resource) \
                      when { context.risk >= 50 };";
const STOP: &str = "forbid (principal, action == Action::\"live\", resource) \
                    when { context.risk >= 80 };";

/// Shell functions: one refused call (a user namespace of its own), and what a descriptor still gives.
const SHELL: &str = "refused() { unshare --user true 2>/dev/null && echo GRANTED; }\n\
                     go_on() { read -r line; }\n";

fn script(rest: &str) -> Policy {
    Policy::shell(&format!("{SHELL}{rest}")).with_data()
}

/// Where a change was announced and where it was in force.
fn adjusted(told: &Told, wanted: &Change) -> (usize, usize) {
    let before = told.at(
        "announcing",
        |r| matches!(r, Record::Adjusting { change, .. } if change == wanted),
    );
    let after = told.at(
        "adjusting",
        |r| matches!(r, Record::Adjusted { change, .. } if change == wanted),
    );
    (before, after)
}

#[test]
fn data_is_withdrawn_while_the_workload_runs_and_an_open_descriptor_reads_nothing_more() {
    let Some(room) = Room::new() else { return };
    let policy = script(
        "exec 3< /data/customers.csv 4< /data/customers.csv\n\
         cat <&3; echo held\n\
         refused; echo tried; go_on\n\
         echo \"open: [$(cat <&4 2>/dev/null)]\"\n\
         echo \"again: [$(cat /data/customers.csv 2>/dev/null)]\"\n\
         exit 5",
    )
    .with_rules(RISK, WITHDRAW);
    let mut running = room.setup(&policy).start();
    running.wait_for_output("tried");
    let data = Change::Withdraw("customers".into());
    running.wait_for(
        "the withdrawal",
        |r| matches!(r, Record::Adjusted { change, .. } if *change == data),
    );
    running.stdin = None;
    let told = running.finish();
    // It goes on without its data, to its own end.
    assert_eq!(
        (told.outcome().ending, &told.outcome().why),
        (Ending::Code(5), &Why::Ended)
    );
    assert_eq!(
        told.stdout,
        format!("{DATA}held\ntried\nopen: []\nagain: []\n")
    );

    let signal = told.at("the signal", |r| {
        matches!(
            r,
            Record::Signal {
                sensor: "denied-syscall",
                ..
            }
        )
    });
    let (before, after) = adjusted(&told, &data);
    let decided = told.records[..before]
        .iter()
        .rposition(|r| r.kind() == "decided")
        .unwrap();
    assert!(signal < decided && decided < before && before < after);
    let Record::Signal { detail, risk, .. } = &told.records[signal] else {
        unreachable!()
    };
    assert!(
        detail.starts_with("unshare") && *risk >= 29,
        "{detail}, risk {risk}"
    );
    let Record::Decided { denied, .. } = &told.records[decided] else {
        unreachable!()
    };
    assert!(
        denied
            .iter()
            .any(|d| d.grant.contains("customers") && d.because[0].contains("forbid")),
        "{denied:?}"
    );
    let Record::Adjusting { because, .. } = &told.records[before] else {
        unreachable!()
    };
    assert!(because[0].contains("context.risk >= 25"), "{because:?}");
    let Some(Record::Closed { withdrawn, .. }) = told.records.last() else {
        unreachable!()
    };
    assert!(withdrawn.contains("customers"));
}

#[test]
fn a_frozen_workload_does_nothing_more_until_it_is_stopped() {
    let Some(room) = Room::new() else { return };
    let policy = script("refused; echo one; go_on; refused; echo two; go_on; echo thawed")
        .with_rules(RISK, &format!("{WITHDRAW}\n{FREEZE}"));
    let mut running = room.setup(&policy).start();
    running.wait_for_output("one");
    std::io::Write::write_all(running.stdin.as_mut().unwrap(), b"\n").unwrap();
    let freeze = Change::Freeze(true);
    running.wait_for(
        "the freeze",
        |r| matches!(r, Record::Adjusted { change, .. } if *change == freeze),
    );
    // It could go on now if it ran at all; asked to end, it is stopped rather than waited for.
    running.handle.kill(libc::SIGTERM);
    let told = running.finish();
    assert_eq!(
        (told.outcome().ending, &told.outcome().why),
        (Ending::Killed(9), &Why::Asked)
    );
    assert!(!told.stdout.contains("thawed"), "{}", told.stdout);
    let (_, withdrawn) = adjusted(&told, &Change::Withdraw("customers".into()));
    let (before, frozen) = adjusted(&told, &freeze);
    let (stopping, _) = adjusted(&told, &Change::Stop);
    assert!(withdrawn < before && frozen < stopping);
}

#[test]
fn the_rules_stop_a_workload_that_goes_on_trying() {
    let Some(room) = Room::new() else { return };
    let policy =
        script("while :; do refused; done").with_rules(RISK, &format!("{WITHDRAW}\n{STOP}"));
    let told = room.setup(&policy).run();
    assert_eq!(told.outcome().ending, Ending::Killed(9));
    let Why::Policy(because) = &told.outcome().why else {
        panic!("{:?}", told.outcome())
    };
    assert!(because[0].contains("context.risk >= 80"), "{because:?}");
    let (_, withdrawn) = adjusted(&told, &Change::Withdraw("customers".into()));
    let (stopping, stopped) = adjusted(&told, &Change::Stop);
    let ended = told.at("its end", |r| r.kind() == "ended");
    assert!(withdrawn < stopping && stopping < stopped && stopped < ended);
    assert!(!told.stdout.contains("GRANTED"));
}

#[test]
fn a_call_that_the_profile_has_raises_nothing() {
    let Some(room) = Room::new() else { return };
    let policy = script("cat /data/customers.csv > /dev/null; ls / > /dev/null; exit 0")
        .with_rules(RISK, STOP);
    let told = room.setup(&policy).run();
    assert_eq!(told.outcome().ending, Ending::Code(0));
    assert_eq!(told.signals("denied-syscall"), 0, "{:#?}", told.records);
}
