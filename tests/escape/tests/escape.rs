//! Every known way out of a sandbox, tried.
//!
//! The probe beside this runs as a workload under the default profile, and once more as an ordinary
//! process, to see that what it tries does work where nothing stands against it.

#![allow(clippy::unwrap_used)]

mod world;

use std::fs;

use casemate::Why;
use casemate::isolation::child::Ending;
use world::{World, capable, left_behind, verdicts};

const ROOMY: &str = "memory = \"256MiB\"\npids = 64\ncpu = 2.0\ntime = \"60s\"";

#[test]
fn no_vector_is_open_inside() {
    let world = World::new();
    let run = world.inside(ROOMY, "", &["all"]);
    let outcome = run
        .result
        .unwrap_or_else(|error| panic!("{error:?}\n{}", run.output));
    assert_eq!(
        (outcome.ending, outcome.why),
        (Ending::Code(0), Why::Ended),
        "{}",
        run.output
    );
    let verdicts = verdicts(&run.output);
    assert!(
        verdicts.len() > 100,
        "the probe ended early:\n{}",
        run.output
    );
    let open: Vec<_> = verdicts
        .iter()
        .filter(|(_, verdict)| !verdict.starts_with("closed"))
        .map(|(name, verdict)| format!("{name} {verdict}"))
        .collect();
    assert!(
        open.is_empty(),
        "{} of {} vectors:\n{}",
        open.len(),
        verdicts.len(),
        open.join("\n")
    );
    assert_eq!(
        run.terminal.typed(),
        0,
        "something was typed into the supervisor's terminal"
    );
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let here = world.path().to_str().unwrap();
    let leaked = mounts
        .lines()
        .find(|line| line.contains("casemate-escape ") || line.contains(here));
    assert_eq!(leaked, None, "a mount of the sandbox appears on the host");
    assert_eq!(
        fs::read_to_string(world.path().join("read/file")).unwrap(),
        "granted"
    );
}

#[test]
fn the_same_vectors_are_open_outside() {
    let outside = verdicts(&World::new().outside());
    for (name, verdict) in &outside {
        println!("{name} {verdict}");
    }
    let privileged = if capable() { PRIVILEGED } else { &[] };
    let closed: Vec<_> = OPEN_ANYWHERE
        .iter()
        .chain(privileged)
        .filter(|name| {
            !outside
                .get(**name)
                .is_some_and(|verdict| verdict.starts_with("open"))
        })
        .map(|name| {
            format!(
                "{name} {}",
                outside.get(*name).map_or("missing", String::as_str)
            )
        })
        .collect();
    assert!(
        closed.is_empty(),
        "these prove nothing inside:\n{}",
        closed.join("\n")
    );
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_vsyscall_page_is_no_way_round_the_filter() {
    let run = World::new().inside(ROOMY, "[syscalls]\ndeny = [\"time\"]", &["vsyscall"]);
    assert_eq!(run.result.unwrap().ending, Ending::Code(0));
    assert_eq!(run.output, "vsyscall closed as the call: false\n");
}

#[test]
fn a_workload_that_kills_everyone_kills_nobody_else() {
    let mut world = World::new();
    let run = world.inside(ROOMY, "", &["kill-everyone"]);
    let outcome = run.result.unwrap();
    assert_eq!(
        (outcome.ending, outcome.why),
        (Ending::Code(0), Why::Ended),
        "{}",
        run.output
    );
    // Nobody else is there to be killed.
    assert_eq!(run.output, "survived -1\n");
    assert!(world.bystander_lives());
}

#[test]
fn a_fork_bomb_is_bounded_and_gone_with_the_session() {
    let world = World::new();
    let marker = format!("{}-forks", world.path().display());
    let run = world.inside(
        "memory = \"256MiB\"\npids = 24",
        "",
        &["fork-bomb", &marker],
    );
    assert_eq!(
        run.result.unwrap().ending,
        Ending::Code(0),
        "{}",
        run.output
    );
    let words: Vec<_> = run.output.split_whitespace().collect();
    let ["forked", forked, "EAGAIN"] = words[..] else {
        panic!("{}", run.output)
    };
    let forked: u32 = forked.parse().unwrap();
    assert!((1..=26).contains(&forked), "{forked}");
    assert_eq!(left_behind(&marker), Vec::<String>::new());
}

#[test]
fn a_daemon_does_not_outlive_the_session() {
    let world = World::new();
    let marker = format!("{}-daemon", world.path().display());
    let run = world.inside(ROOMY, "", &["linger", &marker]);
    assert_eq!(run.result.unwrap().ending, Ending::Code(0));
    assert_eq!(run.output, "left\n");
    assert_eq!(left_behind(&marker), Vec::<String>::new());
}

#[test]
fn a_memory_bomb_ends_inside() {
    if !capable() {
        println!(
            "skipped: without privilege no cgroup bounds the memory, which is reported as a gap"
        );
        return;
    }
    let mut world = World::new();
    let run = world.inside("memory = \"64MiB\"\npids = 24", "", &["memory-bomb"]);
    assert_eq!(
        run.result.unwrap().ending,
        Ending::Killed(libc::SIGKILL),
        "{}",
        run.output
    );
    assert_eq!(run.output, "started\n");
    assert!(world.bystander_lives());
}

/// What any process of any ordinary Linux may do.
const OPEN_ANYWHERE: &[&str] = &[
    "abstract-socket",
    "abstract-socket-made-before",
    "capabilities",
    "exec-by-loader",
    "exec-from-grant",
    "host-process-command",
    "host-process-signal",
    "host-process-visible",
    "inet-datagram",
    "inet-high-bits",
    "inet-stream",
    "inet6",
    "init-affinity",
    "init-environment",
    "init-limits",
    "init-priority",
    "init-scheduler",
    "init-signal",
    "kernel-secrets",
    "leaked-descriptors",
    "link-out-of-grant",
    "map-write-exec",
    "memfd-double-map",
    "memfd-execve",
    "memfd-private-exec",
    "netlink-route",
    "path-socket",
    "proc-self-mem",
    "proc-sys",
    "protect-exec",
    "read-grant-datagram",
    "read-grant-socket",
    "rename-out-of-grant",
    "secret-above",
    "secret-above-descriptor",
    "secret-by-link",
    "secret-by-path",
    "secret-by-proc",
    "seccomp-own-listener",
    "shmat-exec",
    "sys",
    "write-read-grant",
];

/// What root may on top of that.
const PRIVILEGED: &[&str] = &[
    "become-root",
    "chroot",
    "fsopen",
    "mount-bind",
    "mount-tmpfs",
    "open-tree",
    "pivot-root",
    "raise-capabilities",
    "setgroups",
    "shadow",
    "shadow-by-own-link",
    "tiocsti",
    "tiocsti-high-bits",
    "unshare-mount",
    "write-system",
];
