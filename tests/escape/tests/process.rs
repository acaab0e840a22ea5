//! What holds without namespaces, under `backend = "process"`, besides what the checklist has.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // What the other tests ask of a run.
mod world;

use std::fs;
use std::path::PathBuf;

use casemate::SessionError;
use casemate::isolation::child::Ending;
use casemate::syscall::landlock;
use world::World;

const ROOMY: &str = "memory = \"256MiB\"\npids = 24\ntime = \"60s\"";

#[test]
fn what_is_not_enforced_is_a_gap_that_rules_can_refuse() {
    let world = World::new();
    let rules = |gap: &str| {
        format!(
            "[rules]\ncedar = 'permit (principal, action, resource); \
             forbid (principal, action == Action::\"live\", resource) \
             when {{ context.gaps.contains(\"{gap}\") }};'\n"
        )
    };
    for gap in [
        "namespaces",
        "rootfs",
        "files",
        "tighten",
        "memory-protection",
    ] {
        let run = world.inside_process(ROOMY, &rules(gap), &["io-uring"]);
        assert_eq!(run.output, "", "{gap}: {:?}", run.result);
        let started = run
            .result
            .is_ok_and(|outcome| outcome.ending == Ending::Code(0));
        assert!(!started, "{gap}");
    }
    // A gap that there is not.
    let run = world.inside_process(ROOMY, &rules("seccomp"), &["io-uring"]);
    assert_eq!(run.result.unwrap().ending, Ending::Code(0));
    assert_eq!(run.output, "io-uring closed ENOSYS\n");
}

#[test]
fn what_takes_namespaces_is_refused_before_anything_runs() {
    let world = World::new();
    let network = "[network]\nconnect = [\"127.0.0.1:1\"]";
    let run = world.inside_process(ROOMY, network, &["io-uring"]);
    let Err(SessionError::Plan(refused)) = run.result else {
        panic!("{:?}", run.result);
    };
    assert!(refused.to_string().contains("`127.0.0.1:1`"), "{refused}");
    assert_eq!(run.output, "");
}

#[test]
fn a_daemon_does_not_outlive_the_session_without_namespaces_either() {
    let world = World::new();
    let marker = format!("{}-daemon", world.path().display());
    let run = world.inside_process(ROOMY, "", &["linger", &marker]);
    assert_eq!(run.result.unwrap().ending, Ending::Code(0));
    assert_eq!(run.output, "left\n");
    assert_eq!(world::left_behind(&marker), Vec::<String>::new());
}

#[test]
fn a_fork_bomb_is_gone_with_the_session_without_namespaces_either() {
    if !world::capable() {
        println!("skipped: an ordinary user's processes are not limited: the gap `cgroup`");
        return;
    }
    let world = World::new();
    let marker = format!("{}-forks", world.path().display());
    let run = world.inside_process(ROOMY, "", &["fork-bomb", &marker]);
    assert_eq!(
        run.result.unwrap().ending,
        Ending::Code(0),
        "{}",
        run.output
    );
    assert!(run.output.ends_with("EAGAIN\n"), "{}", run.output);
    assert_eq!(world::left_behind(&marker), Vec::<String>::new());
}

#[test]
fn a_workload_without_namespaces_that_kills_everyone_kills_nobody_else() {
    if landlock::abi() < landlock::SIGNAL_ABI {
        println!("skipped: Landlock keeps signals inside from ABI 6, and less is a gap");
        return;
    }
    let mut world = World::new();
    let run = world.inside_process(ROOMY, "", &["kill-everyone"]);
    assert_eq!(
        run.result.unwrap().ending,
        Ending::Code(0),
        "{}",
        run.output
    );
    assert!(!run.output.contains("killed"), "{}", run.output);
    assert!(world.bystander_lives());
}

#[test]
fn the_folder_of_a_workload_goes_with_it() {
    let world = World::new();
    // What it can write of the host is its own folder and what is granted.
    let run = world.inside_process(ROOMY, "", &["home"]);
    assert_eq!(run.result.unwrap().ending, Ending::Code(0));
    let home = PathBuf::from(run.output.trim());
    let prefix = format!("/tmp/casemate-home-{}-", std::process::id());
    assert!(home.to_string_lossy().starts_with(&prefix), "{home:?}");
    assert!(fs::symlink_metadata(&home).is_err(), "{home:?} is left");
}
