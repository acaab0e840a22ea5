//! The broker's checklist is true: each of its lines has its reason and its tests in the source.

#![allow(clippy::unwrap_used)]

#[path = "../../../../tests/common/pages.rs"]
mod pages;

use std::collections::BTreeSet;
use std::path::Path;

use pages::quoted;

const CHECKLIST: &str = include_str!("../../../../docs/broker-checklist.md");

const OPENAPI: &str = include_str!("../../../../docs/broker-openapi.json");
const HTTP: &str = include_str!("../src/http.rs");

#[test]
fn the_description_of_the_interface_has_every_path_and_no_other() {
    let described: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
    let described: BTreeSet<_> = described["paths"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    let served = HTTP
        .split(".route(")
        .skip(1)
        .filter_map(|rest| rest.split('"').nth(1));
    assert_eq!(described, served.map(str::to_owned).collect());
}

#[test]
fn every_line_of_the_brokers_checklist_names_a_reason_and_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let folders = ["attestation", "guest-agent", "policy", "sandbox", "tests"];
    let source = pages::source(folders.map(|folder| root.join(folder)));
    let mut lines = BTreeSet::new();
    for row in CHECKLIST.lines().filter(|row| row.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [line, _, reasons, tests] = cells[..] else {
            panic!("{row}");
        };
        if tests == "Test" {
            continue;
        }
        assert!(lines.insert(line), "{line} occurs twice");
        for reason in quoted(reasons) {
            assert!(source.contains(reason), "{line}: no reason `{reason}`");
        }
        let tests = quoted(tests);
        assert!(!tests.is_empty(), "{line}");
        for test in tests {
            let is_there = source.contains(&format!("fn {test}("));
            assert!(is_there, "{line}: no `{test}`");
        }
    }
    let groups = [("G-A", 5), ("G-P", 4), ("G-L", 3), ("G-S", 3)];
    for (group, count) in groups {
        for number in 1..=count {
            let line = format!("{group}{number}");
            assert!(lines.contains(line.as_str()), "{line}");
        }
    }
}
