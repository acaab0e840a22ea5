//! While the workload runs its limits fall to those of the reduced tier, and rise again when the risk
//! has faded.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::PathBuf;

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
    let own = fs::read_to_string(format!("/proc/{}/cgroup", running.init())).unwrap();
    let names: Vec<_> = own
        .lines()
        .filter_map(|line| line.rsplit('/').next())
        // At the root of a hierarchy it has no cgroup of its own there; every path ends with nothing.
        .filter(|name| !name.is_empty())
        .collect();
    let ours = |path: &PathBuf| names.iter().any(|name| path.ends_with(name));
    let read = |file: &str| {
        cgroups().into_iter().filter(ours).find_map(|path| {
            fs::read_to_string(path.join(file))
                .ok()?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
    };
    read("cpu.cfs_quota_us").or_else(|| read("cpu.max"))
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
