//! A workload makes refused calls as fast as it can: the supervisor still hears an operator, does not
//! grow, writes little, and stops the workload when the policy says so.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::time::Instant;

use casemate::Why;
use casemate::adjust::Change;
use casemate::record::Record;
use common::{Policy, Room, files};

const WORKLOAD: &str = "the_workload_of_a_storm";
/// Told to the workload: how many calls it makes before it says so. It goes on after that.
const CALLS: &str = "CASEMATE_STORM_CALLS";
/// Most that the supervisor may grow, in KiB.
const MOST_GROWTH: u64 = 32 << 10;

#[test]
fn a_storm_of_refused_calls_neither_starves_nor_swells_the_supervisor_and_is_stopped_by_policy() {
    let Some(room) = Room::new() else { return };
    let calls = std::env::var(CALLS).unwrap_or("50000".into());
    let program = std::env::current_exe().unwrap();
    fs::copy(program, room.path().join("storm")).unwrap();
    let command = ["/storm", "--exact", WORKLOAD, "--ignored", "--nocapture"];
    let mut policy = Policy::command(&command).with_rules(
        "operator = { adds = 45, half-life = \"1h\" }",
        "forbid (principal, action == Action::\"write\", resource) when { context.risk >= 40 };\n\
         forbid (principal, action == Action::\"live\", resource) when { context.risk >= 80 };",
    );
    policy.files = "read = [{ from = \"storm\", at = \"/storm\" }]\n\
                    write = [{ from = \"out\", at = \"/out\" }]"
        .into();
    policy.time = "10m".into();
    policy.environment = format!("{CALLS} = \"{calls}\"");
    let running = room.setup(&policy).start();
    running.wait_for_output("storming");
    let (before, began) = (peak(), Instant::now());
    // In the middle of it.
    running.handle.operator("what is this?");
    let taken = Change::ReadOnly("/out".into());
    let reached = |r: &Record| matches!(r, Record::Adjusted { change, .. } if *change == taken);
    running.wait_for("the folder being read-only", reached);
    let heard = began.elapsed();
    running.wait_for_output_within("all made", 20 * common::DEADLINE);
    let stormed = began.elapsed();
    running.handle.operator("enough");
    let told = running.wait_until_over();
    let grown = peak().saturating_sub(before);
    assert!(
        matches!(told.outcome().why, Why::Policy(_)),
        "{:?}",
        told.outcome()
    );
    assert!(grown <= MOST_GROWTH, "the supervisor grew by {grown} KiB");
    let counted: u64 = told
        .records
        .iter()
        .map(|record| match record {
            Record::Signal {
                sensor: "denied-syscall",
                count,
                ..
            } => u64::from(*count),
            _ => 0,
        })
        .sum();
    let calls: u64 = calls.parse().unwrap();
    assert!(
        counted >= calls,
        "only {counted} of {calls} calls are in the log"
    );
    let seconds = began.elapsed().as_secs() + 2;
    let records = told.records.len() as u64;
    assert!(
        records <= 60 + 10 * seconds,
        "{records} records in {seconds} s"
    );
    let size: u64 = files(&told.log)
        .iter()
        .map(|f| f.metadata().unwrap().len())
        .sum();
    println!(
        "{counted} calls refused in {stormed:?}; an operator was heard after {heard:?}; the supervisor \
         grew by {grown} KiB; {records} records, {size} bytes of log"
    );
    assert!(size < 4 << 20, "{size} bytes of log");
}

#[test]
#[ignore = "run inside the sandbox of the test above"]
fn the_workload_of_a_storm() {
    let Ok(calls) = std::env::var(CALLS) else {
        return;
    };
    let calls: u64 = calls.parse().unwrap();
    println!("storming");
    for number in 0u64.. {
        // SAFETY: an operation that there is not, on a process that there is not: refused before the
        // kernel looks at any of it. A new argument each time, so that no two calls look alike.
        let made = unsafe { libc::syscall(libc::SYS_prctl, 0x7000_0000 + number, 0, 0, 0, 0) };
        assert_eq!(made, -1);
        if number == calls {
            println!("all made");
        }
    }
}

/// The most memory this process ever had, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap()
}
