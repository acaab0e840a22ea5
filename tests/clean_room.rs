//! The clean room, as the README runs it: the agreed result is right, and what was not agreed ends it.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The same customers as `run.sh` makes with awk, summed up here by other means.
fn spend_by_region() -> String {
    let regions = ["north", "south", "east", "west", "centre"];
    let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    let mut seed: u64 = 42;
    for _ in 0..200_000 {
        seed = (seed * 1103 + 12345) % (1 << 20);
        let (count, sum) = sums.entry(regions[(seed % 5) as usize]).or_default();
        *count += 1;
        *sum += seed % 9973;
    }
    sums.iter()
        .map(|(region, (count, sum))| format!("{region},{count},{sum}\n"))
        .collect()
}

#[test]
fn the_clean_room_gives_the_agreed_result_and_stops_what_was_not_agreed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let room = tempfile::tempdir().expect("a folder");
    let output = Command::new(root.join("examples/clean-room/run.sh"))
        .env("SANDBOXCTL", common::sandboxctl().get_program())
        .env("CLEAN_ROOM_DIR", room.path().join("run"))
        .output()
        .expect("the script starts");
    let shown = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{shown}");

    let result = fs::read_to_string(room.path().join("run/out/spend-by-region.csv"));
    assert_eq!(result.expect("a result"), spend_by_region());
    assert!(
        shown.contains("analysis: the data is gone, also from the open descriptor"),
        "{shown}"
    );
    assert!(shown.contains("/etc/shadow"), "{shown}");
    assert!(shown.contains("log verified"), "{shown}");

    let records = common::sandboxctl()
        .args(["audit", "show", "--json"])
        .arg(room.path().join("run/log"))
        .output()
        .expect("the log is read");
    let records: Vec<Value> = records
        .stdout
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice(line).expect("a record"))
        .collect();
    let position = |wanted: &dyn Fn(&Value) -> bool| records.iter().position(wanted);
    let kind = |name: &'static str| move |record: &Value| record["kind"] == name;
    let change = |name: &'static str, change: Value| {
        move |record: &Value| record["kind"] == name && record["payload"]["change"] == change
    };
    let withdraw = serde_json::json!({ "withdraw": "customers" });
    let order = [
        position(&kind("attested")),
        position(&kind("released")),
        position(&kind("prepared")),
        position(&kind("started")),
        position(&kind("signal")).max(position(&kind("started")).map(|at| at + 1)),
        position(&change("adjusting", withdraw.clone())),
        position(&change("adjusted", withdraw)),
        position(&change("adjusting", "stop".into())),
        position(&change("adjusted", "stop".into())),
        position(&kind("ended")),
        position(&kind("closed")),
    ];
    assert!(order.iter().all(Option::is_some), "{order:?}\n{shown}");
    assert!(
        order.is_sorted(),
        "records are out of order: {order:?}\n{shown}"
    );
}
