//! The pages on attestation are true: each line of the checklist has its code and its tests in the
//! source, and each reference value that can be given is explained.

#![allow(clippy::unwrap_used)]

#[path = "../../tests/common/pages.rs"]
mod pages;

use std::collections::BTreeSet;
use std::path::Path;

use pages::quoted;

const CHECKLIST: &str = include_str!("../../docs/attestation-checklist.md");
const GUIDE: &str = include_str!("../../docs/attestation.md");
const REFERENCE: &str = include_str!("../src/reference.rs");

#[test]
fn every_line_of_the_checklist_names_a_reason_and_a_test_that_exist() {
    let source = pages::source([Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()]);
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
            let literal = format!("\"{reason}\"");
            let is_there = source.contains(&literal) || source.contains(&format!("fn {reason}("));
            assert!(is_there, "{line}: no reason `{reason}`");
        }
        let tests = quoted(tests);
        assert!(!tests.is_empty(), "{line}");
        for test in tests {
            assert!(
                source.contains(&format!("fn {test}(")),
                "{line}: no `{test}`"
            );
        }
    }
    // Nothing was left out of the two long lists.
    for number in 1..=54 {
        assert!(lines.contains(format!("S{number}").as_str()), "S{number}");
    }
    for number in 1..=34 {
        assert!(lines.contains(format!("T{number}").as_str()), "T{number}");
    }
}

#[test]
fn every_reference_value_is_explained_in_the_guide() {
    let section = GUIDE.split("## Reference values").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let explained: BTreeSet<&str> = quoted(section).into_iter().collect();
    let fields = REFERENCE.lines().filter_map(|line| {
        let (field, _) = line.strip_prefix("    pub ")?.split_once(": ")?;
        (!field.starts_with("fn ")).then(|| field.replace('_', "-"))
    });
    let mut count = 0;
    for field in fields {
        assert!(explained.contains(field.as_str()), "{field}");
        count += 1;
    }
    assert!(count >= 50, "{count}");
}
