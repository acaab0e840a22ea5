//! Slices and guards decide as all rules together do.

#![allow(clippy::unwrap_used)]

use cedar_policy::{AuthorizationError, Decision as CedarDecision, Policy, PolicyId, PolicySet};
use proptest::prelude::*;

use super::*;
use crate::facts::{Tcb, Tier};
use crate::{Bundle, reader, rules};

const TABLES: &str = r#"
version = 1
name = "sliced"
[workload]
command = ["/bin/true"]
[files]
read = ["/app"]
write = ["/out"]
[network]
connect = ["a.example:1", "b.example:2"]
[data]
one = { vault = "one.vault", at = "/one" }
two = { vault = "two.vault", at = "/two", access = "read-write" }
"#;

const OVERFLOW: &str = "context.risk * 9223372036854775807 > 80";

/// Builds an engine; conditions that are refused at load are put in afterwards.
fn engine(written: &[String]) -> (Engine, PolicySet) {
    let harmless = written.join("\n").replace(OVERFLOW, "context.risk == 0");
    let source = format!("{TABLES}[rules]\ncedar = \"\"\"\n{harmless}\n\"\"\"\n");
    Bundle::parse(&source, "sliced.toml").unwrap_or_else(|error| panic!("{error}"));
    let contents = reader::read(&source, &|_| Err(String::new())).unwrap();
    let schema = schema::parse().unwrap();
    let grants = Grant::all(&contents.tables);
    let entities = crate::bundle::entities("sliced", &grants);
    let mut rules = rules::read(&source, &contents.rules, &schema, &entities)
        .unwrap()
        .rules;
    for (index, (rule, text)) in rules.iter_mut().zip(written).enumerate() {
        rule.policy = Policy::parse(Some(PolicyId::new(index.to_string())), text).unwrap();
    }
    let all = PolicySet::from_policies(rules.iter().map(|rule| rule.policy.clone())).unwrap();
    (
        Engine::new(schema, "sliced", &grants, &rules, 1).unwrap(),
        all,
    )
}

/// Decides with all rules for every grant, as Cedar would, but closed against errors.
fn unsliced(engine: &Engine, all: &PolicySet, facts: &Facts) -> BTreeSet<Grant> {
    let context = Asked::about(engine, facts).context(engine).unwrap().clone();
    let holds = |target: &&Target| {
        let request = engine.request(target, &context, true).unwrap();
        let response = Authorizer::new().is_authorized(&request, all, &engine.entities);
        let forbid_failed = response.diagnostics().errors().any(|error| {
            let AuthorizationError::PolicyEvaluationError(error) = error;
            all.policy(error.policy_id()).unwrap().effect() == cedar_policy::Effect::Forbid
        });
        response.decision() == CedarDecision::Allow && !forbid_failed
    };
    engine
        .targets
        .iter()
        .filter(holds)
        .map(|target| target.grant.clone())
        .collect()
}

fn facts(risk: u8, tcb: Tcb) -> Facts {
    Facts {
        risk,
        tcb,
        tier: Tier::Affirming,
        ..Facts::unknown()
    }
}

#[test]
fn an_error_in_a_forbid_denies_and_one_in_a_permit_does_not_grant() {
    let permit = "permit (principal, action, resource);".to_owned();
    let forbid = format!("forbid (principal, action, resource) when {{ {OVERFLOW} }};");
    let (engine, all) = engine(&[permit, forbid]);

    // Cedar alone says yes.
    let context = {
        let facts = facts(50, Tcb::UpToDate);
        Asked::about(&engine, &facts)
            .context(&engine)
            .unwrap()
            .clone()
    };
    let request = engine.request(&engine.targets[0], &context, true).unwrap();
    let plain = Authorizer::new().is_authorized(&request, &all, &engine.entities);
    assert_eq!(plain.decision(), CedarDecision::Allow);

    let decision = engine.decide(&facts(50, Tcb::UpToDate));
    assert!(decision.granted.is_empty());
    assert!(
        decision
            .denied
            .iter()
            .all(|denial| denial.because[0].kind == ReasonKind::Errored)
    );
    assert_eq!(engine.decide(&facts(0, Tcb::UpToDate)).denied.len(), 0);

    let broken = format!("permit (principal, action, resource) when {{ {OVERFLOW} }};");
    let (engine, _) = self::engine(&[broken]);
    let decision = engine.decide(&facts(50, Tcb::UpToDate));
    assert!(decision.granted.is_empty());
    assert_eq!(decision.denied[0].because.len(), 1);
    assert_eq!(decision.denied[0].because[0].kind, ReasonKind::Errored);
}

#[test]
fn rules_about_everything_are_evaluated_once_for_all_grants() {
    let rules: Vec<String> = [
        "permit (principal, action, resource);",
        "forbid (principal, action == Action::\"connect\", resource) when { context.risk > 1 };",
        "forbid (principal, action, resource == Vault::\"one\") when { context.risk > 2 };",
        "forbid (principal, action, resource is Endpoint) when { resource.port == 2 };",
    ]
    .map(str::to_owned)
    .into();
    let (engine, _) = engine(&rules);
    assert_eq!(engine.global.permits, [0]);
    assert_eq!(engine.global.len(), 1);
    let count = |part: fn(&Head) -> &Part| -> usize {
        engine.heads.iter().map(|head| part(head).len()).sum()
    };
    assert_eq!(count(|head| &head.blind), 1);
    // Only one of the two endpoints has the port.
    assert_eq!(count(|head| &head.sighted), 0);
    let own: usize = engine.targets.iter().map(|target| target.own.len()).sum();
    assert_eq!(own, 2);
}

fn rule() -> impl Strategy<Value = String> {
    let effect = prop_oneof![Just("permit"), Just("forbid")];
    let action = prop_oneof![
        Just("action"),
        Just("action == Action::\"read\""),
        Just("action == Action::\"connect\""),
        Just("action in [Action::\"read\", Action::\"write\", Action::\"live\"]"),
        Just("action in Action::\"proceed\""),
    ];
    let resource = prop_oneof![
        Just("resource"),
        Just("resource is Vault"),
        Just("resource is Path"),
        Just("resource == Vault::\"two\""),
        Just("resource in Path::\"/out\""),
        Just("resource is Endpoint in Endpoint::\"a.example:1\""),
    ];
    let condition = prop_oneof![
        Just(""),
        Just("when { context.risk >= 20 }"),
        Just("unless { context.tcb == \"up-to-date\" }"),
        Just("when { resource == Endpoint::\"b.example:2\" || resource == Vault::\"one\" }"),
        Just("when { action == Action::\"write\" } unless { context.risk < 40 }"),
        Just("when { resource has port && context.risk > 60 }"),
        Just("when { principal has name && principal.name == \"sliced\" }"),
        Just("when { context.risk * 9223372036854775807 > 80 }"),
        Just("when { context.risk >= 20 && resource == Vault::\"two\" }"),
        Just("unless { resource == Path::\"/app\" || context.risk < 40 }"),
        Just("when { !(resource == Vault::\"one\" && context.risk < 40) && !(resource is Path) }"),
        Just("when { resource has host && (resource.host like \"a*\" || context.risk > 60) }"),
        Just("when { resource has port } when { resource.port < context.risk }"),
        Just("when { if context.risk > 40 then resource is Vault else resource is Path }"),
        Just("when { resource is Vault && context.risk * 9223372036854775807 > 80 }"),
        Just("when { context.risk * 9223372036854775807 > 80 || resource is Path }"),
        Just("when { context.risk * 9223372036854775807 > 80 && resource is Path }"),
        Just(
            "when { resource is Path } unless { resource == Path::\"/out\" && context.risk > 19 }"
        ),
    ];
    (effect, action, resource, condition).prop_map(|(effect, action, resource, condition)| {
        format!("{effect} (principal, {action}, {resource}) {condition};")
    })
}

/// Conditions of any shape, about resources and facts.
fn condition() -> impl Strategy<Value = String> {
    let atom = prop_oneof![
        Just("resource == Vault::\"one\""),
        Just("resource is Path"),
        Just("resource == Path::\"/out\""),
        Just("(resource has port && resource.port == 2)"),
        Just("context.risk >= 20"),
        Just("context.tcb == \"up-to-date\""),
        Just("context.risk * 9223372036854775807 > 80"),
    ];
    atom.prop_map(str::to_owned)
        .prop_recursive(3, 12, 2, |inner| {
            let two = (inner.clone(), inner.clone());
            prop_oneof![
                two.clone().prop_map(|(a, b)| format!("({a} && {b})")),
                two.clone().prop_map(|(a, b)| format!("({a} || {b})")),
                two.prop_map(|(a, b)| format!("(if {a} then {b} else !({b}))")),
                inner.prop_map(|a| format!("!({a})")),
            ]
        })
}

/// Conditions of any shape that compare facts with literals.
fn about_facts() -> impl Strategy<Value = String> {
    let number = prop_oneof![Just("context.risk"), Just("context.evidence_age")];
    let sign = prop_oneof![
        Just("=="),
        Just("!="),
        Just("<"),
        Just("<="),
        Just(">"),
        Just(">=")
    ];
    let literal = prop_oneof![Just(-1), Just(0), Just(20), Just(100), Just(600)];
    let compared = (number, sign, literal, any::<bool>()).prop_map(
        |(fact, sign, literal, turned)| match turned {
            true => format!("{literal} {sign} {fact}"),
            false => format!("{fact} {sign} {literal}"),
        },
    );
    let other = prop_oneof![
        Just("context.tcb == \"up-to-date\""),
        Just("\"none\" != context.tier"),
        Just("[\"revoked\", \"unknown\"].contains(context.tcb)"),
        Just("context.simulated"),
        Just("context.debug == false"),
        Just("context.debug != true"),
        Just("context.gaps.contains(\"cgroup\")"),
        Just("context.gaps.containsAny([\"cgroup\", \"data\"])"),
        Just("context.gaps.containsAll([\"cgroup\", \"data\"])"),
        Just("context.gaps.isEmpty()"),
    ];
    let atom = prop_oneof![compared, other.prop_map(str::to_owned)];
    atom.prop_recursive(3, 12, 2, |inner| {
        let two = (inner.clone(), inner.clone());
        prop_oneof![
            two.clone().prop_map(|(a, b)| format!("({a} && {b})")),
            two.prop_map(|(a, b)| format!("({a} || {b})")),
            inner.prop_map(|a| format!("!({a})")),
        ]
    })
}

/// Facts of every kind, with all edges of what `about_facts` compares with.
fn any_facts() -> impl Strategy<Value = Facts> {
    let seconds = prop_oneof![
        Just(0),
        Just(1),
        Just(19),
        Just(20),
        Just(21),
        Just(600),
        Just(601)
    ];
    let gap = prop_oneof![
        Just("cgroup"),
        Just("data"),
        Just("other"),
        Just(Facts::UNKNOWN_GAP)
    ];
    (
        prop_oneof![
            Just(0_u8),
            Just(19),
            Just(20),
            Just(21),
            Just(99),
            Just(100)
        ],
        proptest::sample::select(Tier::ALL),
        proptest::sample::select(Tcb::ALL),
        any::<[Option<bool>; 2]>(),
        proptest::option::of(seconds),
        proptest::collection::btree_set(gap, 0..3),
    )
        .prop_map(|(risk, tier, tcb, [simulated, debug], age, gaps)| Facts {
            risk,
            tier,
            tcb,
            simulated,
            debug,
            evidence_age: age.map(std::time::Duration::from_secs),
            gaps: gaps.into_iter().map(str::to_owned).collect(),
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn slices_decide_as_all_rules_together_do(rules in proptest::collection::vec(rule(), 1..8)) {
        let (engine, all) = engine(&rules);
        for risk in [0, 1, 20, 41, 61, 100] {
            for tcb in [Tcb::UpToDate, Tcb::Unknown] {
                let facts = facts(risk, tcb);
                let decision = engine.decide(&facts);
                prop_assert_eq!(&decision.granted, &unsliced(&engine, &all, &facts));
                prop_assert_eq!(
                    decision.granted.len() + decision.denied.len(), engine.targets.len()
                );
                prop_assert!(decision.denied.iter().all(|denial| !denial.because.is_empty()));
            }
        }
    }

    #[test]
    fn a_rule_is_passed_over_only_where_it_cannot_hold(
        condition in condition(),
        word in prop_oneof![Just("when"), Just("unless")],
        forbids in any::<bool>(),
    ) {
        let mut rules = vec![format!("permit (principal, action, resource) {word} {{ {condition} }};")];
        if forbids {
            rules = vec![
                "permit (principal, action, resource);".to_owned(),
                format!("forbid (principal, action, resource) {word} {{ {condition} }};"),
            ];
        }
        let (engine, all) = engine(&rules);
        for (risk, tcb) in [(0, Tcb::UpToDate), (30, Tcb::UpToDate), (0, Tcb::Unknown), (30, Tcb::Unknown)] {
            let facts = facts(risk, tcb);
            prop_assert_eq!(engine.decide(&facts).granted, unsliced(&engine, &all, &facts));
        }
    }

    #[test]
    fn compiled_conditions_decide_as_cedar_does(
        condition in about_facts(),
        word in prop_oneof![Just("when"), Just("unless")],
        all_facts in proptest::collection::vec(any_facts(), 8),
    ) {
        let rule = format!("permit (principal, action, resource) {word} {{ {condition} }};");
        let (engine, all) = engine(&[rule]);
        prop_assert_eq!(engine.global.compiled.len(), 1);
        for facts in &all_facts {
            prop_assert_eq!(engine.decide(facts).granted, unsliced(&engine, &all, facts));
            for grant in engine.targets.iter().map(|target| &target.grant) {
                let verdict = engine.decide_about(facts, grant).unwrap();
                let decision = engine.decide(facts);
                prop_assert_eq!(verdict.granted, decision.grants(grant));
                prop_assert_eq!(&*verdict.because, decision.because(grant));
            }
        }
    }
}
