//! Tests of policies: what passes, what fails and why, which rules were never reached, and what a
//! refused file says.

#![allow(clippy::unwrap_used)]

use policy::{Bundle, Cases};
use proptest::prelude::*;

const GOOD: &str = r#"
[facts]
tier = "affirming"
tcb = "up-to-date"
risk = 0

[[case]]
name = "data while all is well"
expect = { granted = ["read vault customers", "proceed", "live"] }

[[case]]
name = "quiet at risk 20"
facts = { risk = 20 }
expect = { denied = ["connect api.example.com:443"], granted = ["live"] }

[[case]]
name = "stopped at 80"
facts = { risk = 80 }
expect = { denied = ["live", "proceed"] }
"#;

fn bundle() -> Bundle {
    let source = include_str!("../examples/clean-room.toml");
    Bundle::parse(source, "clean-room.toml").unwrap_or_else(|error| panic!("{error}"))
}

fn cases(source: &str) -> Cases {
    Cases::parse(source, "c.toml", &bundle()).unwrap_or_else(|error| panic!("{error}"))
}

/// The only problem after a replacement in the good file: line, column, message, help.
fn problem(from: &str, to: &str) -> (usize, usize, String, String) {
    assert!(GOOD.contains(from));
    let error = Cases::parse(&GOOD.replacen(from, to, 1), "c.toml", &bundle()).unwrap_err();
    let [problem] = error.diagnostics() else {
        panic!("{error}");
    };
    let help = problem.help.clone().unwrap_or_default();
    (problem.line, problem.column, problem.message.clone(), help)
}

#[test]
fn cases_that_hold_pass_and_rules_they_do_not_reach_are_named() {
    let report = cases(GOOD).run(&bundle());
    assert!(report.passed(), "{report}");
    let missed: Vec<&str> = report.uncovered().map(|rule| rule.rule.as_str()).collect();
    assert_eq!(missed, ["slow-down", "data-needs-trust"]);
    let text = report.to_string();
    assert!(
        text.contains("3 passed, 0 failed\n4 of 6 rules decided something\n"),
        "{text}"
    );
}

#[test]
fn a_case_that_does_not_hold_fails_with_the_rule_that_decided() {
    let report = cases(&GOOD.replace("risk = 20", "risk = 19")).run(&bundle());
    assert!(!report.passed());
    let wrong = &report.outcomes[1].wrong;
    assert_eq!(wrong.len(), 1);
    assert_eq!(wrong[0].grant.to_string(), "connect api.example.com:443");
    assert!(wrong[0].granted);
    assert_eq!(&*wrong[0].because[0].rule, "rule 1");
    let text = report.to_string();
    assert!(
        text.contains("FAILED  quiet at risk 20 (line 11)\n        connect api.example.com:443: granted, and should be denied\n"),
        "{text}"
    );
}

#[test]
fn what_a_case_does_not_say_is_unknown() {
    let alone = "[[case]]\nname = \"only risk\"\nfacts = { risk = 0 }\nexpect = { denied = [\"read vault customers\"], granted = [\"live\"] }\n";
    assert!(cases(alone).run(&bundle()).passed());
    let empty = "[[case]]\nname = \"nothing\"\nexpect = { denied = [\"live\"] }\n";
    assert!(cases(empty).run(&bundle()).passed());
}

#[test]
fn a_grant_that_a_later_bundle_lost_fails_its_cases() {
    let cases = cases(GOOD);
    let source = include_str!("../examples/clean-room.toml");
    let without: String = source
        .lines()
        .filter(|line| !line.starts_with("customers ="))
        .map(|line| format!("{line}\n"))
        .collect();
    let later = Bundle::parse(&without, "p.toml").unwrap_or_else(|error| panic!("{error}"));
    let report = cases.run(&later);
    assert_eq!(report.outcomes[0].wrong.len(), 1);
    assert!(report.outcomes[0].wrong[0].because.is_empty());
}

#[test]
fn mistakes_are_told_with_their_place_and_what_was_meant() {
    let text = |line, column, message: &str, help: &str| {
        (line, column, message.to_owned(), help.to_owned())
    };
    assert_eq!(
        problem("read vault customers", "read vault costumers"),
        text(
            9,
            23,
            "no table of the policy has `read vault costumers`",
            "did you mean `read vault customers`?"
        )
    );
    assert_eq!(
        problem("{ risk = 20 }", "{ rsik = 20 }"),
        text(
            13,
            11,
            "unknown key `rsik` in `[case.facts]`",
            "did you mean `risk`?"
        )
    );
    assert_eq!(
        problem("\"up-to-date\"", "\"uptodate\""),
        text(4, 7, "unknown tcb `uptodate`", "did you mean `up-to-date`?")
    );
    assert_eq!(
        problem("risk = 80", "risk = 101"),
        text(18, 18, "`risk` is not between 0 and 100", "")
    );
    assert_eq!(
        problem("\"stopped at 80\"", "\"quiet at risk 20\""),
        text(
            16,
            1,
            "another case is called `quiet at risk 20`",
            "it begins on line 11"
        )
    );
    assert_eq!(
        problem("\"proceed\", \"live\"", "\"live\", \"live\""),
        text(9, 55, "`live` occurs twice", "")
    );
    assert_eq!(
        problem("{ denied = [\"live\", \"proceed\"] }", "{}"),
        text(
            19,
            10,
            "this case expects nothing",
            "name grants: `expect = { granted = [\"live\"] }`"
        )
    );
    let error = Cases::parse("", "c.toml", &bundle()).unwrap_err();
    assert!(error.to_string().starts_with("error: there are no cases"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_file_makes_the_reader_panic(
        cut in 0..GOOD.len(),
        put in "[\\[\\]{}=\", a-z0-9\n-]{0,6}",
    ) {
        let mut text = GOOD.to_owned();
        text.insert_str(cut, &put);
        if let Ok(cases) = Cases::parse(&text, "c.toml", &bundle()) {
            cases.run(&bundle());
        }
    }
}
