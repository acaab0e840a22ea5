//! What two bundles grant differently, and whether the newer one grants at most as much.

#![allow(clippy::unwrap_used)]

use policy::{Bundle, Change, Diff, Facts};

const TABLES: &str = "version = 1\nname = \"a\"\n[workload]\ncommand = [\"/bin/true\"]\n[files]\nread = [\"/app\"]\n[network]\nconnect = [\"a.example:1\"]\n";
const RULES: &str = "permit (principal, action, resource);\nforbid (principal, action == Action::\"connect\", resource) when { context.risk >= 40 };";

fn bundle(tables: &str, rules: &str) -> Bundle {
    let source = format!("{tables}[rules]\ncedar = '''\n{rules}\n'''\n");
    Bundle::parse(&source, "p.toml").unwrap_or_else(|error| panic!("{error}"))
}

fn between(old: &str, new: &str) -> Diff {
    let (old, new) = (bundle(TABLES, old), bundle(TABLES, new));
    let diff = old.diff(&new);
    // Every example is one: the bundles do disagree under it.
    for flip in &diff.flips {
        let (before, after) = (old.decide(&flip.facts), new.decide(&flip.facts));
        assert_ne!(before.grants(&flip.grant), after.grants(&flip.grant));
        assert_eq!(after.grants(&flip.grant), flip.change == Change::Gained);
    }
    diff
}

#[test]
fn the_same_rules_in_other_words_are_equal() {
    let spelled = "permit (principal, action, resource) unless { action == Action::\"connect\" && context.risk > 39 };";
    let diff = between(RULES, spelled);
    assert!(diff.is_equal() && diff.is_narrowing(), "{diff}");
    assert_eq!(diff.to_string(), "both grant the same\n");
    assert!(between(RULES, RULES).is_equal());
}

#[test]
fn a_lower_threshold_narrows_and_a_higher_one_does_not() {
    let stricter = RULES.replace("40", "20");
    let diff = between(RULES, &stricter);
    assert!(diff.is_narrowing() && !diff.is_equal());
    assert_eq!(
        diff.to_string(),
        "- connect a.example:1: denied with risk 20\nthe newer grants at most as much\n"
    );
    let diff = between(&stricter, RULES);
    assert!(!diff.is_narrowing());
    assert_eq!(
        diff.to_string(),
        "+ connect a.example:1: granted with risk 20\nthe newer may grant more\n"
    );
}

#[test]
fn a_grant_that_moves_both_ways_is_told_twice() {
    let diff = between(RULES, &RULES.replace("risk >= 40", "tcb == \"revoked\""));
    let changes: Vec<(Change, &str)> = diff
        .flips
        .iter()
        .map(|flip| (flip.change, flip.told.as_str()))
        .collect();
    assert_eq!(
        changes,
        [
            (Change::Gained, "risk 40"),
            (Change::Lost, "tcb \"revoked\"")
        ]
    );
}

#[test]
fn a_difference_that_takes_two_gaps_at_once_is_found() {
    let both = "context.gaps.contains(\"a\") && context.gaps.contains(\"b\") && !context.gaps.contains(\"c\")";
    let diff = between(
        RULES,
        &RULES.replace(
            "context.risk >= 40",
            &format!("context.risk >= 40 || {both}"),
        ),
    );
    assert!(diff.complete);
    assert_eq!(diff.flips[0].told, "gaps `a`, `b`");
}

#[test]
fn what_cannot_be_searched_is_not_called_equal_or_narrower() {
    let crossed = RULES.replace("context.risk >= 40", "context.risk > context.evidence_age");
    let diff = between(RULES, &crossed);
    assert!(!diff.complete && !diff.is_equal() && !diff.is_narrowing());

    let never: String = (0..9)
        .map(|n| format!(" && context.gaps.contains(\"g{n}\")"))
        .collect();
    let rule =
        format!("\nforbid (principal, action, resource) when {{ context.risk > 100{never} }};");
    let diff = between(RULES, &format!("{RULES}{rule}"));
    assert!(diff.flips.is_empty() && !diff.complete && !diff.is_equal());
    assert!(diff.to_string().contains("not all"), "{diff}");
}

#[test]
fn entries_of_tables_are_compared_exactly() {
    let old = bundle(TABLES, RULES);
    let wider = TABLES.replace("[\"/app\"]", "[\"/app\", \"/srv\"]");
    let new = bundle(&wider, RULES);
    let words = |diff: &Diff| diff.to_string();
    assert_eq!(
        words(&old.diff(&new)),
        "+ read /srv\nthe newer may grant more\n"
    );
    assert_eq!(
        words(&new.diff(&old)),
        "- read /srv\nthe newer grants at most as much\n"
    );
    assert!(new.diff(&old).is_narrowing());
}

#[test]
fn another_folder_behind_the_same_grant_is_a_difference() {
    let old = bundle(TABLES, RULES);
    let moved = TABLES.replace("\"/app\"", "{ from = \"/etc\", at = \"/app\" }");
    let diff = old.diff(&bundle(&moved, RULES));
    assert!(!diff.is_equal() && !diff.is_narrowing());
    assert_eq!(diff.settings[0].place, "files `/app`");
}

#[test]
fn limits_narrow_downwards_only() {
    let limited = |isolation: &str| bundle(&format!("{TABLES}[isolation]\n{isolation}\n"), RULES);
    for (more, less) in [
        ("memory = \"512MiB\"", "memory = \"256MiB\""),
        ("pids = 64", "pids = 8"),
        ("cpu = 2.0", "cpu = 1.0"),
        ("", "time = \"10s\""),
        ("reduced = {}", "reduced = { pids = 8 }"),
    ] {
        let (more, less) = (limited(more), limited(less));
        assert_eq!(more.diff(&less).settings.len(), 1);
        assert!(more.diff(&less).is_narrowing());
        assert!(!less.diff(&more).is_narrowing());
    }
}

#[test]
fn a_diff_of_very_many_rules_stays_affordable() {
    let rules: String = (0..300)
        .map(|n| format!("forbid (principal, action, resource) when {{ context.risk == {} && context.evidence_age > {n} }};\n", n % 101))
        .collect();
    let diff = between(RULES, &format!("{RULES}\n{rules}"));
    assert!(!diff.complete);
    assert!(diff.flips.iter().any(|flip| flip.facts != Facts::unknown()));
}
