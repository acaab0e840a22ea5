//! The page on ways out is true: each line of it names attacks and tests that exist, and each attack is refused
//! by what the page says, in a container and without namespaces.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // What the other tests ask of a run.
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use casemate::isolation::child::Ending;
use world::{World, verdicts};

const PAGE: &str = include_str!("../../../docs/escape-checklist.md");
const ROOMY: &str = "memory = \"256MiB\"\npids = 64\ncpu = 2.0\ntime = \"60s\"";
/// There are so many lines, the last of which is about what is not built.
const LINES: usize = 35;

/// The cells of each row under a heading.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let section = PAGE.split(heading).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|row| row.starts_with("| "));
    // The first names the columns.
    rows.skip(1)
        .map(|row| row.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect()
}

/// What is in backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Every source of the workspace in which tests are.
fn source() -> String {
    fn collect(folder: &Path, text: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, text);
            } else if path.extension().is_some_and(|it| it == "rs") {
                *text += &std::fs::read_to_string(path).unwrap();
            }
        }
    }
    let mut text = String::new();
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for folder in ["tests", "sandbox"] {
        collect(&top.join(folder), &mut text);
    }
    text
}

#[test]
fn every_line_of_the_list_has_attacks_or_tests_that_exist() {
    let source = source();
    let attacks: BTreeSet<_> = rows("## What refuses each")
        .iter()
        .map(|row| quoted(row[0])[0])
        .collect();
    let mut tried = BTreeSet::new();
    let list = rows("## The list");
    for (number, row) in list.iter().enumerate() {
        let [line, _, named, tests] = row[..] else {
            panic!("{row:?}");
        };
        assert_eq!(line, (number + 1).to_string());
        let (named, tests) = (quoted(named), quoted(tests));
        let built = number + 1 < LINES;
        assert_eq!(built, !named.is_empty() || !tests.is_empty(), "line {line}");
        for attack in &named {
            assert!(
                attacks.contains(attack),
                "line {line}: no attack `{attack}`"
            );
        }
        for test in tests {
            assert!(
                source.contains(&format!("fn {test}(")),
                "line {line}: no test `{test}`"
            );
        }
        tried.extend(named);
    }
    assert_eq!(list.len(), LINES);
    let left: Vec<_> = attacks.difference(&tried).collect();
    assert!(left.is_empty(), "in no line: {left:?}");
}

#[test]
fn every_attack_is_refused_by_what_the_page_says() {
    let world = World::new();
    let outside = verdicts(&world.outside());
    let process = world.inside_process(ROOMY, "", &["all"]);
    let container = world.inside(ROOMY, "", &["all"]);
    for run in [&process, &container] {
        let ending = run.result.as_ref().unwrap().ending;
        assert_eq!(ending, Ending::Code(0), "{}", run.output);
        assert_eq!(run.terminal.typed(), 0);
    }
    let (in_process, inside) = (verdicts(&process.output), verdicts(&container.output));
    println!(
        "{:<28} {:<10} {:<28} container",
        "attack", "unconfined", "process"
    );
    let told = |verdicts: &BTreeMap<String, String>, name: &str| {
        verdicts
            .get(name)
            .map_or("missing", |verdict| verdict.trim())
            .to_owned()
    };
    let page = rows("## What refuses each");
    let mut wrong = Vec::new();
    for row in &page {
        let [name, expected, without] = row[..] else {
            panic!("{row:?}");
        };
        let name = quoted(name)[0];
        if !cfg!(target_arch = "x86_64") && !outside.contains_key(name) {
            // An attack for another processor.
            continue;
        }
        let (p, c) = (told(&in_process, name), told(&inside, name));
        let control = told(&outside, name);
        let control = control.split(' ').next().unwrap_or_default();
        println!("{name:<28} {control:<10} {p:<28} {c}");
        if !agrees(&c, expected, &container.gaps) {
            wrong.push(format!("{name} in a container: {c}; the page: {expected}"));
        }
        if !agrees(&p, without, &process.gaps) {
            wrong.push(format!("{name} under `process`: {p}; the page: {without}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let named: BTreeSet<_> = page.iter().map(|row| quoted(row[0])[0]).collect();
    for name in outside.keys() {
        assert!(named.contains(name.as_str()), "not on the page: `{name}`");
    }
}

/// Whether a verdict is one of those that a cell allows: closed with one of these answers, or open where a
/// gap of this name was reported.
fn agrees(verdict: &str, cell: &str, gaps: &BTreeSet<String>) -> bool {
    let words = quoted(cell);
    if cell.starts_with("open: ") {
        let reported = words.iter().all(|gap| gaps.contains(*gap));
        return verdict.starts_with("open") && reported;
    }
    verdict
        .strip_prefix("closed ")
        .is_some_and(|detail| words.iter().any(|word| detail.contains(word)))
}

#[test]
fn an_answer_that_the_page_does_not_have_is_noticed() {
    let gaps = BTreeSet::from(["namespaces".to_owned()]);
    assert!(agrees("closed EPERM", "`EPERM` filter", &gaps));
    assert!(agrees(
        "closed execve: EACCES Code(0)",
        "`EPERM`, `EACCES`",
        &gaps
    ));
    assert!(agrees("open 3", "open: `namespaces`", &gaps));
    assert!(!agrees("closed ENOENT", "`EPERM` filter", &gaps));
    assert!(!agrees("open 3", "`EPERM` filter", &gaps));
    assert!(!agrees("stuck EPERM", "`EPERM` filter", &gaps));
    assert!(!agrees("missing", "`EPERM` filter", &gaps));
    assert!(!agrees("open 3", "open: `rootfs`", &gaps));
}
