//! A folder that was granted is taken away while the workload runs: first its writing, then all of it.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;

use casemate::adjust::Change;
use casemate::isolation::child::Ending;
use casemate::record::Record;
use common::{Policy, Room, Running};

const RISK: &str = "operator = { adds = 30, half-life = \"1h\" }";
const RULES: &str = "forbid (principal, action == Action::\"write\", resource == Path::\"/out\") \
                     when { context.risk >= 25 };\n\
                     forbid (principal, action == Action::\"read\", resource == Path::\"/out\") \
                     when { context.risk >= 50 };";

fn wait_for(running: &Running, wanted: Change) {
    running.wait_for(
        "the change",
        |r| matches!(r, Record::Adjusted { change, .. } if *change == wanted),
    );
}

#[test]
fn a_granted_folder_becomes_read_only_and_then_goes_while_the_workload_runs() {
    let Some(room) = Room::new() else { return };
    let policy = Policy::shell(
        "try() { (echo $1 > /out/$1) 2>/dev/null && echo wrote $1 || echo no $1; }\n\
         exec 3> /out/held\n\
         try one; read -r line\n\
         try two; echo \"reads $(cat /out/one)\"; read -r line\n\
         try three; cat /out/one 2>/dev/null || echo gone\n\
         echo late >&3; exit 4",
    )
    .with_rules(RISK, RULES);
    let mut running = room.setup(&policy).start();
    running.wait_for_output("wrote one");
    running.handle.operator("first doubt");
    wait_for(&running, Change::ReadOnly("/out".into()));
    writeln!(running.stdin.as_ref().unwrap(), "go on").unwrap();
    running.wait_for_output("reads one");
    running.handle.operator("second doubt");
    wait_for(&running, Change::Detach("/out".into()));
    running.stdin = None;
    let told = running.finish();
    assert_eq!(
        told.outcome().ending,
        Ending::Code(4),
        "{:#?}",
        told.records
    );
    assert_eq!(
        told.stdout,
        "wrote one\nno two\nreads one\nno three\ngone\n"
    );
    // What the lever promises, and no more: a descriptor that was open stays open.
    assert_eq!(
        std::fs::read_to_string(room.out().join("held")).unwrap(),
        "late\n"
    );
    assert!(!room.out().join("two").exists());
}

#[test]
fn what_was_taken_is_back_on_the_host_as_it_was() {
    let Some(room) = Room::new() else { return };
    let policy = Policy::shell("echo kept > /out/kept; echo ready; read -r line; ls /out")
        .with_rules(RISK, RULES);
    let mut running = room.setup(&policy).start();
    running.wait_for_output("ready");
    running.handle.operator("one");
    running.handle.operator("two");
    wait_for(&running, Change::Detach("/out".into()));
    running.stdin = None;
    let told = running.finish();
    assert_eq!(
        told.stdout, "ready\n",
        "nothing is listed where the folder was"
    );
    assert_eq!(
        std::fs::read_to_string(room.out().join("kept")).unwrap(),
        "kept\n"
    );
}

#[test]
fn a_tree_that_was_taken_is_out_of_reach_for_who_stands_in_it_or_holds_a_folder_of_it() {
    let Some(room) = Room::new() else { return };
    // The shell's working folder is the tree, and descriptor 4 leads to a folder in it.
    let policy = Policy::shell(
        "mkdir /out/below; echo kept > /out/kept; echo deep > /out/below/deep; cd /out/below\n\
         exec 4< . ; exec 5< deep; cat /proc/self/fd/4/deep; echo ready; read -r line\n\
         cat deep 2>/dev/null || echo no file\n\
         ls . 2>/dev/null || echo no list\n\
         cat ../kept 2>/dev/null || echo no way up\n\
         (echo new > new) 2>/dev/null || echo no new file\n\
         cat /proc/self/fd/4/deep 2>/dev/null || echo no descriptor\n\
         cat <&5; cd /; echo all else > /tmp/x; cat /tmp/x; exit 3",
    )
    .with_rules(RISK, RULES);
    let running = room.setup(&policy).start();
    running.wait_for_output("ready");
    running.handle.operator("one");
    running.handle.operator("two");
    wait_for(&running, Change::Detach("/out".into()));
    let told = running.finish();
    assert_eq!(told.outcome().ending, Ending::Code(3), "{told:#?}");
    assert_eq!(
        told.stdout,
        "deep\nready\nno file\nno list\nno way up\nno new file\nno descriptor\ndeep\nall else\n"
    );
    assert!(!room.out().join("below/new").exists());
}
