//! What is left when something is killed, hangs, or fills up: a machine that is gone, a word that says why,
//! and logs that verify.

use std::fs;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::{Place, text};

#[test]
fn a_machine_that_is_killed_ends_the_run_with_a_word_and_logs_that_verify() {
    let Some(place) = Place::new("sleep 600", "") else {
        return;
    };
    let started = place.started(&[]);
    kill_process(started.qemu, Signal::KILL).unwrap();
    let (code, told) = started.end();
    assert_eq!(code, Some(125), "{told}");
    assert!(
        told.contains("the machine ended without saying why"),
        "{told}"
    );
    let records = place.records();
    let why = records.last().unwrap()["why"].to_string();
    assert!(why.contains("without saying why"), "{why}");
    place.session_log_verifies();
}

#[test]
fn a_machine_that_hangs_is_ended() {
    let Some(place) = Place::new("sleep 600", "") else {
        return;
    };
    let started = place.started(&["--patience", "3"]);
    kill_process(started.qemu, Signal::STOP).unwrap();
    let (code, told) = started.end();
    assert_eq!(code, Some(125), "{told}");
    assert!(told.contains("did not answer for 3 s"), "{told}");
    place.records();
    place.session_log_verifies();
}

#[test]
fn no_machine_outlives_its_supervisor() {
    let Some(place) = Place::new("sleep 600", "") else {
        return;
    };
    let started = place.started(&[]);
    kill_process(Pid::from_child(&started.child), Signal::KILL).unwrap();
    started.end();
    place.session_log_verifies();
    // Nobody closed it, but what is there is what was written.
    vault::audit::verify(&place.path("log.machine"), None, None).unwrap();
}

#[test]
fn a_guest_without_its_agent_is_told_from_what_its_console_says() {
    let Some(place) = Place::new("true", "") else {
        return;
    };
    let output = place.run(&["--agent", "/bin/true"]);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{told}");
    assert!(told.contains("without saying why"), "{told}");
    assert!(told.contains("Kernel panic"), "{told}");
    place.records();
}

#[test]
fn a_disk_that_fills_up_ends_the_machine() {
    if !rustix::process::getuid().is_root() {
        println!("skipped: only root mounts a small disk");
        return;
    }
    // Each look of a rule at a fading risk is a record, and the disk that takes them is full soon.
    let script = "while :; do unshare --user true; done";
    let tables =
        "[risk]\nfalls-after = \"1ms\"\ndenied-syscall = { adds = 20, half-life = \"2ms\" }";
    let Some(place) = Place::new(script, tables) else {
        return;
    };
    let policy = fs::read_to_string(place.path("policy.toml")).unwrap();
    let rules = "permit (principal, action, resource); \
                 forbid (principal, action == Action::\"use\", resource) when { context.risk >= 10 };";
    let policy = policy.replace("permit (principal, action, resource);", rules);
    fs::write(place.path("policy.toml"), policy).unwrap();
    let run = place.command(&["--with", "/usr/bin/unshare"]);
    // Only there the small disk is seen, so the logs are taken out of it.
    let small = "kept=$1; cp -a \"$2\" \"$kept/copy\" && mount -t tmpfs -o size=1m small \"$2\" && \
                 cp -a \"$kept/copy/.\" \"$2\" && cd \"$2\" && shift 2 && { \"$@\"; code=$?; \
                 cp -a log log.machine \"$kept\"; exit \"$code\"; }";
    let kept = tempfile::tempdir().unwrap();
    let output = Command::new("unshare")
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            small,
            "sh",
        ])
        .args([kept.path(), place.0.path()])
        .arg(run.get_program())
        .args(run.get_args())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{told}");
    assert!(told.contains("the log cannot be kept here"), "{told}");
    assert!(told.contains("is the disk full?"), "{told}");
    for log in ["log", "log.machine"] {
        vault::audit::verify(&kept.path().join(log), None, None).unwrap();
    }
}
