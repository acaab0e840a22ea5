//! While the workload runs its limits fall to those of the reduced tier, and rise again when the risk
//! has faded.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use casemate::adjust::Change;
use casemate::isolation::child::Ending;
use casemate::plan::Tier;
use casemate::record::Record;
use common::{Policy, Room, Running, cgroups};

const RISK: &str = "falls-after = \"10ms\"\noperator = { adds = 30, half-life = \"2s\" }";
const RULE: &str = "forbid (principal, action == Action::\"use\", resource) \
                    when { context.risk >= 20 };";

/// The CPU quota that the kernel has for the sandbox, in microseconds of each 100 milliseconds.
fn quota(running: &Running) -> Option<u64> {
    told(running.init(), "cpu.cfs_quota_us").or_else(|| told(running.init(), "cpu.max"))
}

/// What a file of the sandbox' cgroup begins with.
fn told(init: i32, file: &str) -> Option<u64> {
    let own = fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap();
    let names: Vec<_> = own
        .lines()
        .filter_map(|line| line.rsplit('/').next())
        // At the root of a hierarchy it has no cgroup of its own there; every path ends with nothing.
        .filter(|name| !name.is_empty())
        .collect();
    let ours = |path: &PathBuf| names.iter().any(|name| path.ends_with(name));
    cgroups().into_iter().filter(ours).find_map(|path| {
        let text = fs::read_to_string(path.join(file)).ok()?;
        text.split_whitespace().next()?.parse().ok()
    })
}

fn wait_for(running: &Running, tier: Tier, times: usize) {
    running.wait_for_records(
        times,
        |r| matches!(r, Record::Adjusted { change: Change::Limit(to), .. } if *to == tier),
    );
}

#[test]
fn limits_fall_with_the_risk_and_rise_when_it_has_faded() {
    let Some(room) = Room::new() else { return };
    let running = room
        .setup(&Policy::shell("echo ready; read -r line; exit 6").with_rules(RISK, RULE))
        .start();
    running.wait_for_output("ready");
    // The policy of these stories has two cores; without a table of its own the reduced tier has a tenth.
    let Some(full) = quota(&running) else {
        println!("skipped: no cgroup with a CPU quota can be made here");
        assert_eq!(running.finish().outcome().ending, Ending::Code(6));
        return;
    };
    assert_eq!(full, 200_000);
    for round in 1..=2 {
        running.handle.operator("doubt");
        wait_for(&running, Tier::Reduced, round);
        wait_for(&running, Tier::Full, round);
        assert_eq!(quota(&running), Some(200_000));
    }
    // Long enough for a look at it.
    running.handle.operator("doubt");
    running.handle.operator("more doubt");
    running.handle.operator("and more");
    wait_for(&running, Tier::Reduced, 3);
    assert_eq!(quota(&running), Some(20_000));
    let told = running.finish();
    assert_eq!(
        told.outcome().ending,
        Ending::Code(6),
        "{:#?}",
        told.records
    );
}

#[test]
fn while_something_is_taken_the_session_comes_first_and_the_workload_stands_back() {
    let Some(room) = Room::new() else { return };
    let real_time = Command::new("chrt").args(["-f", "1", "true"]).status();
    if !real_time.is_ok_and(|status| status.success()) {
        println!("skipped: no real-time scheduling here");
        return;
    }
    let script = Policy::shell("echo ready; read -r line").with_rules(RISK, RULE);
    let mut setup = room.setup(&script);
    let seen = Arc::<Mutex<Vec<_>>>::default();
    let init = Arc::<AtomicI32>::default();
    let (seeing, whose) = (Arc::clone(&seen), Arc::clone(&init));
    setup.watcher = Box::new(move |record| {
        if let Record::Adjusting {
            change: Change::Limit(Tier::Reduced),
            ..
        } = record
        {
            let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
            // See proc_pid_stat(5): the 41st field, of which the second is in brackets.
            let mut fields = stat.rsplit(')').next().unwrap().split_whitespace();
            let policy = fields.nth(38).map(str::to_owned);
            let idle = told(whose.load(Ordering::Acquire), "cpu.idle");
            seeing.lock().unwrap().push((policy, idle));
        }
    });
    let running = setup.start();
    running.wait_for_output("ready");
    init.store(running.init(), Ordering::Release);
    if told(running.init(), "cpu.idle").is_none() {
        println!("skipped: no cgroup that can be idle can be made here");
        running.finish();
        return;
    }
    // By the second time it has slept for long.
    running.handle.operator("doubt");
    wait_for(&running, Tier::Reduced, 1);
    wait_for(&running, Tier::Full, 1);
    running.handle.operator("doubt");
    wait_for(&running, Tier::Reduced, 2);
    assert_eq!(
        told(running.init(), "cpu.idle"),
        Some(0),
        "stands back for good"
    );
    running.finish();
    let seen = seen.lock().unwrap();
    // `SCHED_FIFO`.
    assert_eq!(seen.last(), Some(&(Some("1".into()), Some(1))));
}

#[test]
fn as_many_processes_run_as_the_policy_says_and_not_one_more() {
    let Some(room) = Room::new() else { return };
    // Its shell, and what that starts; 32 in the policy of these stories.
    let script = "echo ready; read -r line; while sleep 60 & do echo started; done";
    let running = room.setup(&Policy::shell(script)).start();
    running.wait_for_output("ready");
    if told(running.init(), "pids.max").is_none() {
        println!("skipped: no cgroup with a limit of processes can be made here");
        running.finish();
        return;
    }
    let told = running.finish();
    assert_eq!(
        told.stdout.matches("started").count(),
        31,
        "{}",
        told.stderr
    );
}
