//! What lint finds out about rules by trying all facts, and that what it says is so.

#![allow(missing_docs, clippy::unwrap_used)]

use policy::{Bundle, Facts, Grant, Lever};
use proptest::prelude::*;

fn bundle(rules: &str) -> Bundle {
    let source = format!(
        "version = 1\nname = \"p\"\n[workload]\ncommand = [\"true\"]\n[network]\nconnect = [\"a.example:1\"]\n[data]\none = {{ vault = \"one.vault\", at = \"/one\" }}\n[risk]\noperator = {{ adds = 100 }}\n[rules]\ncedar = '''\n{rules}\n'''\n"
    );
    Bundle::parse(&source, "p.toml").unwrap_or_else(|error| panic!("{error}"))
}

fn findings(rules: &str) -> Vec<String> {
    let found = bundle(rules).lint().into_iter();
    found
        .map(|one| format!("{} / {}", one.message, one.help.unwrap_or_default()))
        .collect()
}

const STOP: &str = "@id(\"stop\") forbid (principal, action == Action::\"live\", resource) when { context.risk >= 80 };";

#[test]
fn a_rule_that_another_covers_is_found() {
    let found = findings(&format!(
        "permit (principal, action, resource);\n{STOP}\n\
         @id(\"wide\") forbid (principal, action == Action::\"connect\", resource) when {{ context.risk >= 20 }};\n\
         @id(\"narrow\") forbid (principal, action == Action::\"connect\", resource) when {{ context.risk >= 40 }};"
    ));
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("whenever it holds, wide (line 15) does too"),
        "{found:?}"
    );
}

#[test]
fn a_rule_that_never_holds_is_found() {
    let found = findings(&format!(
        "permit (principal, action, resource);\n{STOP}\n\
         forbid (principal, action == Action::\"connect\", resource) when {{ context.risk >= 40 && context.risk < 20 }};"
    ));
    assert_eq!(
        found,
        ["this rule never holds, whatever the facts / correct its conditions, or leave it out"]
    );
}

#[test]
fn a_lever_that_the_host_lacks_is_told_where_a_rule_needs_it() {
    let bundle = bundle(&format!(
        "permit (principal, action, resource);\n{STOP}\n\
         forbid (principal, action == Action::\"connect\", resource) when {{ context.risk >= 20 }};\n\
         forbid (principal, action == Action::\"read\", resource is Vault);"
    ));
    let lacking = |levers: &[Lever]| {
        let levers = levers
            .iter()
            .map(|lever| (*lever, "no listener".to_owned()));
        bundle.lint_levers(&levers.collect())
    };
    let found = lacking(&[Lever::Network, Lever::Data, Lever::Freeze]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].line, 15);
    assert!(
        found[0].message.contains("`connect a.example:1`"),
        "{found:?}"
    );
    assert_eq!(lacking(&[Lever::Resources]), []);
}

#[test]
fn a_contradiction_names_both_sides() {
    let found = findings(&format!(
        "permit (principal, action, resource);\n{STOP}\n\
         @id(\"no-network\") forbid (principal, action == Action::\"connect\", resource);"
    ));
    assert_eq!(
        found,
        [
            "`connect a.example:1` is never granted, whatever the facts / no-network (line 15) forbids it under all facts: change that, or leave the entry out"
        ]
    );
    let found = findings(&format!(
        "permit (principal, action in [Action::\"live\", Action::\"proceed\", Action::\"read\", Action::\"use\", Action::\"exec\"], resource);\n{STOP}\n\
         @id(\"idle\") permit (principal, action == Action::\"connect\", resource);\n\
         forbid (principal, action == Action::\"connect\", resource) when {{ context.risk >= 0 }};"
    ));
    assert!(
        found
            .iter()
            .any(|one| one.starts_with("this rule grants nothing")),
        "{found:?}"
    );
}

#[test]
fn changes_of_several_facts_are_explained_and_none_can_be_left_out() {
    let bundle = bundle(
        "permit (principal, action, resource);\n\
         forbid (principal, action == Action::\"read\", resource is Vault) when { context.risk >= 40 };\n\
         forbid (principal, action == Action::\"read\", resource is Vault) unless { context.tcb == \"up-to-date\" && !context.debug };",
    );
    let facts = Facts {
        risk: 90,
        debug: Some(false),
        ..Facts::unknown()
    };
    let explained = bundle.explain(&facts);
    let vault = explained
        .iter()
        .find(|one| one.grant == Grant::read_vault("one"))
        .unwrap();
    assert_eq!(
        vault.would_be_granted_if,
        ["risk < 40 and tcb = \"up-to-date\""]
    );
    let explained = bundle.explain(&Facts::unknown());
    let vault = explained
        .iter()
        .find(|one| one.grant == Grant::read_vault("one"))
        .unwrap();
    assert_eq!(
        vault.would_be_granted_if,
        ["risk < 40 and tcb = \"up-to-date\" and debug = false"]
    );
}

fn rule() -> impl Strategy<Value = String> {
    let effect = prop_oneof![Just("permit"), Just("forbid")];
    let action = prop_oneof![
        Just("action"),
        Just("action == Action::\"connect\""),
        Just("action == Action::\"read\""),
    ];
    let sign = prop_oneof![Just(">="), Just("<"), Just("==")];
    let fact = prop_oneof![
        (sign.clone(), 0..=100_u8).prop_map(|(sign, n)| format!("context.risk {sign} {n}")),
        (sign, 0..900_u16).prop_map(|(sign, n)| format!("context.evidence_age {sign} {n}")),
        Just("context.debug".to_owned()),
    ];
    (effect, action, fact).prop_map(|(effect, action, fact)| {
        format!("{effect} (principal, {action}, resource) when {{ {fact} }};")
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn decisions_are_monotone_where_lint_says_so(
        rules in proptest::collection::vec(rule(), 1..5),
        points in proptest::collection::vec((0..=100_u8, 0..=100_u8, 0..1000_u64, 0..1000_u64, any::<bool>()), 24),
    ) {
        let bundle = bundle(&rules.join("\n"));
        let findings = bundle.lint();
        let warned = |fact: &str| {
            findings.iter().any(|one| one.message.contains(&format!("a worse `{fact}`")))
        };
        let granted = |risk, age, debug| bundle.decide(&Facts {
            risk,
            debug: Some(debug),
            evidence_age: Some(std::time::Duration::from_secs(age)),
            ..Facts::unknown()
        }).granted;
        for (risk, other, age, older, debug) in points {
            let (risk, riskier) = (risk.min(other), risk.max(other));
            let (age, older) = (age.min(older), age.max(older));
            let better = granted(risk, age, debug);
            for (fact, worse) in [
                ("risk", granted(riskier, age, debug)),
                ("evidence_age", granted(risk, older, debug)),
                ("debug", granted(risk, age, true)),
            ] {
                prop_assert!(worse.is_subset(&better) || warned(fact), "{fact}: {rules:?}");
            }
        }
    }

    #[test]
    fn what_is_narrower_never_grants_more(
        rules in proptest::collection::vec(rule(), 1..4),
        more in proptest::collection::vec(rule(), 1..3),
        points in proptest::collection::vec((0..=100_u8, 0..1000_u64, any::<bool>()), 24),
    ) {
        let old = bundle(&rules.join("\n"));
        let new = bundle(&rules.iter().chain(&more).cloned().collect::<Vec<_>>().join("\n"));
        let diff = old.diff(&new);
        prop_assert!(diff.complete);
        let mut gains = false;
        for (risk, age, debug) in points {
            let facts = Facts {
                risk,
                debug: Some(debug),
                evidence_age: Some(std::time::Duration::from_secs(age)),
                ..Facts::unknown()
            };
            gains |= !new.decide(&facts).granted.is_subset(&old.decide(&facts).granted);
        }
        prop_assert!(!gains || !diff.is_narrowing(), "{:?} {:?}", rules, more);
    }
}
