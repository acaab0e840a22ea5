//! The ready policies mean what their cases say, and nothing about them is suspicious.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use policy::{Bundle, Cases, Facts};

fn policies() -> Vec<PathBuf> {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let found = fs::read_dir(examples.join("policies")).unwrap();
    let found = found.map(|entry| entry.unwrap().path()).filter(|path| {
        let name = path.to_string_lossy();
        name.ends_with(".toml") && !name.ends_with(".test.toml")
    });
    found
        .chain([examples.join("clean-room/policy.toml")])
        .collect()
}

#[test]
fn each_holds_its_cases_and_they_reach_every_rule() {
    let policies = policies();
    assert!(policies.len() >= 5);
    for path in policies {
        let text = fs::read_to_string(&path).unwrap();
        let bundle = Bundle::parse(&text, "policy.toml").unwrap_or_else(|e| panic!("{e}"));
        let cases = fs::read_to_string(path.with_extension("test.toml")).unwrap();
        let cases = Cases::parse(&cases, "cases.toml", &bundle).unwrap_or_else(|e| panic!("{e}"));
        let report = cases.run(&bundle);
        assert!(report.passed(), "{}: {report}", path.display());
        assert_eq!(
            report.uncovered().count(),
            0,
            "{}: {report}",
            path.display()
        );
    }
}

#[test]
fn none_has_a_warning_but_the_one_that_is_tried_without_a_tee() {
    for path in policies() {
        let text = fs::read_to_string(&path).unwrap();
        let warnings = Bundle::parse(&text, "policy.toml").unwrap().lint();
        let meant = |message: &str| {
            path.ends_with("clean-room/policy.toml") && message.contains("`simulated`")
        };
        let other: Vec<_> = warnings.iter().filter(|one| !meant(&one.message)).collect();
        assert!(other.is_empty(), "{}: {other:?}", path.display());
    }
}

#[test]
fn each_is_explained_on_a_page_and_denies_what_matters_when_nothing_is_known() {
    for path in policies() {
        let folder = path.parent().unwrap();
        let page = match path.ends_with("policy.toml") {
            true => folder.join("README.md"),
            false => path.with_extension("md"),
        };
        assert!(fs::read_to_string(page).unwrap().len() > 500);
        let bundle = Bundle::parse(&fs::read_to_string(&path).unwrap(), "policy.toml").unwrap();
        let decision = bundle.decide(&Facts::unknown());
        assert!(!decision.live(), "{}", path.display());
    }
}
