//! The page of attacks is true: it has each line of the checklist, and each test that it names exists.

#![allow(clippy::unwrap_used)]

#[path = "../../../tests/common/pages.rs"]
mod pages;

use std::collections::BTreeSet;
use std::path::Path;

const ATTACKS: &str = include_str!("../../../docs/vault-attacks.md");

/// How many lines the checklist has on vaults, and on logs.
const LINES: [(&str, u32); 2] = [("V", 40), ("A", 17)];

#[test]
fn every_line_of_the_checklist_names_tests_that_exist_or_says_why_there_is_none() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folders = ["attestation", "guest-agent", "sandbox", "tests"];
    let source = pages::source(folders.map(|folder| root.join(folder)));
    let mut lines = BTreeSet::new();
    for row in ATTACKS.lines().filter(|row| row.starts_with("| ")) {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [line, _, tests] = cells[..] else {
            panic!("{row}");
        };
        if tests == "Test" {
            continue;
        }
        assert!(lines.insert(line), "{line} occurs twice");
        let named = pages::quoted(tests);
        let reason = tests.strip_prefix("none: ").unwrap_or_default();
        assert_eq!(named.is_empty(), !reason.is_empty(), "{line}");
        for test in named {
            let is_test = source.contains(&format!("#[test]\nfn {test}("))
                || source.contains(&format!("#[test]\n    fn {test}("));
            assert!(is_test, "{line}: no `{test}`");
        }
    }
    let wanted = LINES
        .into_iter()
        .flat_map(|(kind, last)| (1..=last).map(move |n| format!("{kind}{n}")));
    let wanted: Vec<String> = wanted.collect();
    assert_eq!(lines.len(), wanted.len());
    for line in &wanted {
        assert!(lines.contains(line.as_str()), "{line} was left out");
    }
}
