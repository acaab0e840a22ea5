//! The pages on attestation are true: each line of the checklist has its code and its tests in the
//! source, and each reference value that can be given is explained.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

const CHECKLIST: &str = include_str!("../../docs/attestation-checklist.md");
const GUIDE: &str = include_str!("../../docs/attestation.md");
const REFERENCE: &str = include_str!("../src/reference.rs");

/// Every source of attestation, its broker included; the page's own test is not one.
fn source() -> String {
    fn collect(folder: &Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, text);
            } else if path.extension().is_some_and(|it| it == "rs")
                && !path.ends_with("tests/pages.rs")
            {
                *text += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let mut text = String::new();
    collect(Path::new(env!("CARGO_MANIFEST_DIR")), &mut text);
    text
}

/// What is in backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_line_of_the_checklist_names_a_reason_and_a_test_that_exist() {
    let source = source();
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
