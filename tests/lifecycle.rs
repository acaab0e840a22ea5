//! From start to end: however a workload ends, the session says how, and leaves nothing behind.
//!
//! That nothing is left, and that the log verifies and tells the same, is checked after every run.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use casemate::isolation::child::Ending;
use casemate::record::Record;
use casemate::{SessionError, Why};
use common::{DATA, Policy, Room, Told};

#[test]
fn the_exit_code_is_passed_through() {
    let Some(room) = Room::new() else { return };
    for code in [0, 3, 255] {
        let told = room.run(&format!("exit {code}"));
        assert_eq!(told.outcome().ending, Ending::Code(code));
        assert_eq!(told.outcome().why, Why::Ended);
    }
}

#[test]
fn a_run_with_data_is_recorded_step_by_step() {
    let Some(room) = Room::new() else { return };
    let told = room
        .setup(&Policy::shell("cat /data/customers.csv").with_data())
        .run();
    assert_eq!(told.outcome().ending, Ending::Code(0));
    assert_eq!(told.stdout, DATA);
    let steps = [
        "opened", "attested", "decided", "released", "prepared", "started", "ended", "closed",
    ];
    let kinds = told.kinds();
    let told_steps: Vec<_> = kinds
        .iter()
        .filter(|kind| steps.contains(kind))
        .copied()
        .collect();
    assert_eq!(told_steps, steps);
    let Some(Record::Closed {
        read, withdrawn, ..
    }) = told.records.last()
    else {
        unreachable!()
    };
    assert!(read["customers"] >= DATA.len() as u64, "{read:?}");
    assert!(withdrawn.is_empty());
}

#[test]
fn death_by_a_signal_is_told() {
    let Some(room) = Room::new() else { return };
    for (name, number) in [("TERM", 15), ("KILL", 9), ("USR1", 10)] {
        let told = room.run(&format!("kill -{name} $$; exit 1"));
        assert_eq!(told.outcome().ending, Ending::Killed(number), "{name}");
        assert_eq!(told.outcome().why, Why::Ended);
    }
}

#[test]
fn stdin_stdout_and_stderr_are_passed_through() {
    let Some(room) = Room::new() else { return };
    let script = "cat; echo complaint >&2";
    let mut running = room.setup(&Policy::shell(script)).start();
    running
        .stdin
        .as_mut()
        .unwrap()
        .write_all(b"from outside\n")
        .unwrap();
    running.wait_for_output("from outside\n");
    let told = running.finish();
    assert_eq!(
        (told.stdout.as_str(), told.stderr.as_str()),
        ("from outside\n", "complaint\n")
    );
}

#[test]
fn what_is_written_to_a_granted_folder_is_there_afterwards() {
    let Some(room) = Room::new() else { return };
    let told = room.run("echo result > /out/result");
    assert_eq!(told.outcome().ending, Ending::Code(0), "{told:#?}");
    assert_eq!(
        fs::read_to_string(room.out().join("result")).unwrap(),
        "result\n"
    );
}

#[test]
fn a_unix_signal_is_passed_on_to_the_workload() {
    let Some(room) = Room::new() else { return };
    let script = "trap 'echo heard; exit 7' USR1; echo ready; while :; do read -r line; done";
    let running = room.setup(&Policy::shell(script)).start();
    running.wait_for_output("ready");
    running.handle.kill(libc::SIGUSR1);
    running.wait_for_output("heard");
    let told = running.finish();
    assert_eq!(
        (told.outcome().ending, &told.outcome().why),
        (Ending::Code(7), &Why::Ended)
    );
    let passed = told.at("the signal", |r| {
        matches!(
            r,
            Record::Kill {
                signal: libc::SIGUSR1,
                ..
            }
        )
    });
    assert!(passed < told.at("its end", |r| matches!(r, Record::Ended { .. })));
}

#[test]
fn a_workload_that_ends_on_the_first_sigterm_was_asked_to() {
    let Some(room) = Room::new() else { return };
    let script = "trap 'exit 4' TERM; echo ready; while :; do read -r line; done";
    let running = room.setup(&Policy::shell(script)).start();
    running.wait_for_output("ready");
    running.handle.kill(libc::SIGTERM);
    let told = running.wait_until_over();
    assert_eq!(
        (told.outcome().ending, &told.outcome().why),
        (Ending::Code(4), &Why::Asked)
    );
}

#[test]
fn a_second_sigterm_stops_a_workload_that_ignores_the_first() {
    let Some(room) = Room::new() else { return };
    let script = "trap 'echo ignored' TERM; echo ready; while :; do read -r line; done";
    let running = room.setup(&Policy::shell(script)).start();
    running.wait_for_output("ready");
    running.handle.kill(libc::SIGTERM);
    running.wait_for_output("ignored");
    running.handle.kill(libc::SIGTERM);
    let told = running.wait_until_over();
    assert_eq!(
        (told.outcome().ending, &told.outcome().why),
        (Ending::Killed(9), &Why::Asked)
    );
}

#[test]
fn the_time_limit_stops_the_workload() {
    let Some(room) = Room::new() else { return };
    let mut policy = Policy::shell("echo ready; while :; do read -r line; done").with_data();
    policy.time = "1s".into();
    let told = room.setup(&policy).start().wait_until_over();
    assert_eq!(
        (told.outcome().ending, &told.outcome().why),
        (Ending::Killed(9), &Why::Time)
    );
    let Some(Record::Closed { withdrawn, .. }) = told.records.last() else {
        unreachable!()
    };
    assert!(
        withdrawn.contains("customers"),
        "the data goes before the workload"
    );
}

#[test]
fn a_daemon_that_was_left_behind_is_gone_when_run_returns() {
    let Some(room) = Room::new() else { return };
    // Forked twice, in a session of its own, deaf to signals, holding none of the pipes.
    let daemon = "trap '' TERM HUP INT; echo here > /out/daemon; while :; do sleep 1000; done";
    let script = format!(
        "(setsid sh -c \"{daemon}\" </dev/null >/dev/null 2>&1 &) ; \
         while ! test -s /out/daemon; do :; done"
    );
    let told = room.run(&script);
    assert_eq!(told.outcome().ending, Ending::Code(0), "{told:#?}");
    // That no process of the sandbox's namespace is left was checked when the run was over.
    assert_eq!(
        fs::read_to_string(room.out().join("daemon")).unwrap(),
        "here\n"
    );
}

fn launch_failure(told: &Told) -> (String, Option<i32>) {
    match &told.result {
        Err(SessionError::Launch(failure)) => (failure.step.clone(), failure.errno),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_command_that_does_not_exist_is_told_from_one_that_failed() {
    let Some(room) = Room::new() else { return };
    for command in ["no-such-command", "/usr/bin/no-such-command"] {
        let told = room.setup(&Policy::command(&[command])).run();
        assert_eq!(
            launch_failure(&told),
            (format!("executing `{command}`"), Some(libc::ENOENT))
        );
        assert!(!told.kinds().contains(&"ended"));
    }
}

#[test]
fn a_command_that_may_not_be_executed_is_told_so() {
    let Some(room) = Room::new() else { return };
    let program = room.out().join("program");
    fs::write(&program, "#!/bin/sh\nexit 0\n").unwrap();
    for mode in [0o644, 0o755] {
        // Not even with the bit set: nothing that can be written is executed.
        fs::set_permissions(&program, PermissionsExt::from_mode(mode)).unwrap();
        let told = room.setup(&Policy::command(&["/out/program"])).run();
        assert_eq!(
            launch_failure(&told),
            ("executing `/out/program`".into(), Some(libc::EACCES))
        );
    }
}

#[test]
fn the_workload_comes_before_nobody() {
    let Some(room) = Room::new() else { return };
    // Root's spawner does, to be in time with what it takes; what it forks does not.
    assert_eq!(room.run("nice").stdout, "0\n");
}
