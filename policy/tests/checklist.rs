//! Ways in which policy engines were made to say yes, and where each is tried.
//!
//! | Way | Tried in |
//! |---|---|
//! | a `forbid` fails to evaluate: missing or mistyped attribute, overflow | `src/decide/tests.rs` (Cedar alone says yes), `fail_open.rs`: `a_missing_or_mistyped_attribute_…`, `arithmetic_is_refused_…` |
//! | no default, or `allow` by default; an undefined word within a negation | `fail_open.rs`: `no_rules_and_no_permit_grant_nothing`, `what_is_not_in_the_schema_is_refused` |
//! | something is true of every element of nothing; text compares greater than numbers | here |
//! | a key twice, the last wins; `-0`, `NaN`, 2⁵³+1, huge numbers | here |
//! | rules that take forever, or the stack | `errors.rs`: `deep_nesting_…`, `tables_that_are_too_long_…`; `decisions.rs`: `linting_and_explaining_many_rules_…` |
//! | compiled and interpreted rules differ; a slice leaves a rule out | `src/decide/tests.rs`: `compiled_conditions_decide_as_cedar_does`, `slices_decide_as_all_rules_together_do` |
//! | a bundle that is unsigned, signed by too few, older, of a wrong schema, cut short, endless | here; every flipped byte: `src/signature.rs` |
//! | decisions during a reload rest on no bundle, or on two | here |
//! | who decides crashes, or holds a poisoned lock | deciding is a total function of a value; a lost session kills: `tests/killed_supervisor.rs` |
//! | who informs is down or late | `fail_open.rs`: `a_fact_that_is_not_known_has_its_worst_value`, `evidence_is_never_taken_for_younger_…`; `tests/stale_evidence.rs` |
//! | a flood of signals, or of their points | `src/risk/tests.rs`: `a_storm_is_bounded_…`, `one_more_signal_never_lowers_the_score`; `tests/storm.rs` |
//! | loosened by itself, by an operator's order, by a newer bundle | `sandbox/src/session/reload.rs`, `sandbox/src/order.rs`, `tests/policy_reloaded.rs` |
//! | a cached decision, or one that is older than its use | none is kept; open descriptors: `tests/clean_room.rs`, flows: `tests/network.rs` |
//! | another spelling of a path, by case, `..`, slashes, invisible characters | here; `fail_open.rs`: `text_that_does_not_look_like_what_it_is_is_refused` |
//! | an unknown action, type or thing | `fail_open.rs`: `what_no_table_lists_is_never_granted`, `a_forbid_about_a_misspelt_thing_…` |
//! | an unknown gap | here, and `sandbox/src/refusal.rs` |
//! | the host exchanges the policy when secrets are in memory | `sandbox/src/session/reload.rs`: signature, version and name; evidence names the new one |
//! | a rule's name twice, or a second bundle that shadows the first | `fail_open.rs`: `two_rules_of_one_name_are_refused`; includes: here |
//! | an explanation tells what is secret | here |
//! | bytes that nobody should have written | `mutations.rs`, and `policy/fuzz` |

#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::{Arc, RwLock};

use policy::signature::{PolicyKey, SignatureError, verify};
use policy::{Bundle, Facts, Grant};

fn source(version: u64, least: u8) -> String {
    format!(
        "version = {version}\nname = \"p\"\n[workload]\ncommand = [\"true\"]\n[files]\nread = [\"/app\"]\n[rules]\ncedar = '''\npermit (principal, action, resource);\nforbid (principal, action, resource) when {{ context.risk >= {least} }};\n'''\n"
    )
}

fn bundle(version: u64, least: u8) -> Bundle {
    Bundle::parse(&source(version, least), "p.toml").unwrap()
}

#[test]
fn facts_with_a_key_twice_are_refused_and_the_last_does_not_win() {
    for facts in [
        r#"{ "risk": 99, "risk": 1 }"#,
        r#"{ "tcb": "revoked", "tcb": "up-to-date" }"#,
    ] {
        let error = serde_json::from_str::<Facts>(facts)
            .unwrap_err()
            .to_string();
        assert!(error.contains("duplicate field"), "{error}");
    }
}

#[test]
fn numbers_that_are_read_differently_by_different_readers_are_refused() {
    for facts in [
        r#"{ "risk": -0.0 }"#,
        r#"{ "risk": 1e1 }"#,
        r#"{ "risk": 20.0 }"#,
        r#"{ "risk": NaN }"#,
        r#"{ "risk": "20" }"#,
        r#"{ "risk": 256 }"#,
        r#"{ "risk": -1 }"#,
        r#"{ "risk": null }"#,
        r#"{ "evidence_age": 9007199254740993.0 }"#,
        r#"{ "evidence_age": 18446744073709551616 }"#,
        r#"{ "debug": 0 }"#,
        r#"{ "gaps": "none" }"#,
    ] {
        assert!(serde_json::from_str::<Facts>(facts).is_err(), "{facts}");
    }
    // The largest that can be written is older than any limit.
    let facts = r#"{ "risk": 0, "evidence_age": 18446744073709551615 }"#;
    let facts: Facts = serde_json::from_str(facts).unwrap();
    let text = source(1, 80).replace(
        "context.risk >= 80",
        "context.evidence_age >= 9223372036854775807",
    );
    let bundle = Bundle::parse(&text, "p.toml").unwrap();
    assert!(!bundle.decide(&facts).live());
}

#[test]
fn another_spelling_of_a_path_is_no_second_grant() {
    for path in [
        "/app/",
        "/app/.",
        "//app",
        "/app/../app",
        "/./app",
        "app",
        "/app\\u0000",
        "/app\\u202e",
    ] {
        let text = source(1, 80).replace("\"/app\"", &format!("\"/app\", \"{path}\""));
        assert!(Bundle::parse(&text, "p.toml").is_err(), "{path}");
    }
    let bundle = bundle(1, 80);
    let calm = Facts {
        risk: 0,
        ..Facts::unknown()
    };
    assert!(bundle.decide(&calm).grants(&Grant::read_path("/app")));
    for other in ["/app/secret", "/App", "/apps", "/"] {
        assert!(
            !bundle.decide(&calm).grants(&Grant::read_path(other)),
            "{other}"
        );
        assert_eq!(bundle.decide_about(&calm, &Grant::read_path(other)), None);
    }
}

#[test]
fn a_bundle_that_is_unsigned_old_cut_short_or_endless_is_refused() {
    let key = PolicyKey::generate("ops").unwrap();
    let trusted = [key.verifier()];
    let bundle = bundle(3, 80);
    let note = key.sign(&bundle);
    assert!(verify(&bundle, "", &trusted, 1, 0).is_err());
    assert!(matches!(
        verify(&bundle, &note, &trusted, 2, 0),
        Err(SignatureError::TooFew { .. })
    ));
    assert!(matches!(
        verify(&bundle, &note, &trusted, 1, 4),
        Err(SignatureError::Older { .. })
    ));
    let long = "#".repeat(100 << 20);
    assert!(Bundle::parse(&long, "p.toml").is_err());
    let text = source(3, 80);
    for end in (0..text.len()).filter(|end| text.is_char_boundary(*end)) {
        // Cut within the last line, which is white space, it is the same policy under another digest.
        if let Ok(cut) = Bundle::parse(&text[..end], "p.toml") {
            assert_ne!(
                verify(&cut, &note, &trusted, 1, 0).map(|_| ()),
                Ok(()),
                "{end}"
            );
        }
    }
}

#[test]
fn decisions_while_bundles_are_exchanged_rest_on_one_bundle_each() {
    let bundles = [bundle(1, 20), bundle(2, 60)];
    let now = Arc::new(RwLock::new(bundles[0].clone()));
    let facts = Facts {
        risk: 40,
        ..Facts::unknown()
    };
    std::thread::scope(|scope| {
        let deciders: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        let bundle = now.read().unwrap().clone();
                        let decision = bundle.decide(&facts);
                        // All or nothing: never a part of each, and never an empty set of rules.
                        let expected = if bundle.version() == 1 {
                            0
                        } else {
                            bundle.grants().len()
                        };
                        assert_eq!(decision.granted.len(), expected);
                    }
                })
            })
            .collect();
        for round in 0..5_000 {
            *now.write().unwrap() = bundles[round % 2].clone();
        }
        deciders
            .into_iter()
            .for_each(|decider| decider.join().unwrap());
    });
}

#[test]
fn an_included_file_brings_entries_and_no_rules_and_counts_in_the_digest() {
    let text = source(1, 80).replace("name = \"p\"", "name = \"p\"\ninclude = [\"more.toml\"]");
    let with =
        |more: &'static str| Bundle::parse_with(&text, "p.toml", &move |_| Ok(more.to_owned()));
    let one = with("[files]\nread = [\"/one\"]\n").unwrap();
    let two = with("[files]\nread = [\"/two\"]\n").unwrap();
    assert!(one.grants().contains(&Grant::read_path("/one")));
    assert_ne!(one.digest(), two.digest());
    for refused in [
        "[rules]\ncedar = \"permit (principal, action, resource);\"\n",
        "[workload]\ncommand = [\"sh\"]\n",
        "[files]\nread = [\"/app\"]\n",
        "[syscalls]\nprofile = \"compute\"\n",
        "include = [\"further.toml\"]\n",
        "[files\n",
    ] {
        let error = with(refused).unwrap_err().to_string();
        assert!(error.contains("`more.toml` has mistakes"), "{error}");
    }
    assert!(Bundle::parse(&text, "p.toml").is_err());
    for name in ["/etc/passwd", "../up.toml", "a/../../b", ""] {
        let text = source(1, 80).replace(
            "name = \"p\"",
            &format!("name = \"p\"\ninclude = [\"{name}\"]"),
        );
        let asked = |_: &str| -> Result<String, String> { panic!("nobody asks for this") };
        assert!(
            Bundle::parse_with(&text, "p.toml", &asked).is_err(),
            "{name}"
        );
    }
}

/// The bundle with one more rule.
fn with_rule(rule: &str) -> Result<Bundle, policy::BundleError> {
    let text = source(1, 80);
    Bundle::parse(
        &text.replace("permit (", &format!("{rule}\npermit (")),
        "p.toml",
    )
}

#[test]
fn what_is_true_of_every_element_of_nothing_is_no_condition() {
    for condition in [
        "context.gaps.containsAll([])",
        "[].containsAll(context.gaps)",
        "!([].contains(context.tcb))",
        "context.gaps == []",
    ] {
        let rule = format!("permit (principal, action, resource) when {{ {condition} }};");
        assert!(with_rule(&rule).is_err(), "{condition}");
    }
}

#[test]
fn text_is_not_compared_with_numbers_and_texts_have_no_order() {
    for condition in [
        "\"9\" > 80",
        "context.risk < \"80\"",
        "context.tcb < \"up-to-date\"",
        "context.risk == \"0\"",
        "context.risk == true",
    ] {
        let rule = format!("permit (principal, action, resource) when {{ {condition} }};");
        assert!(with_rule(&rule).is_err(), "{condition}");
    }
}

#[test]
fn a_rule_about_a_gap_that_no_host_can_have_is_found() {
    let forbids = |condition: &str| {
        let rule = format!("forbid (principal, action, resource) when {{ {condition} }};");
        with_rule(&rule).unwrap()
    };
    let known = ["cgroup", "landlock"];
    for (condition, count) in [
        ("context.gaps.contains(\"landlok\")", 1),
        (
            "context.gaps.containsAny([\"cgroup\", \"landlok\", \"seccmp\"])",
            2,
        ),
        (
            "context.gaps.contains(\"landlock\") || context.gaps.contains(\"unknown\")",
            0,
        ),
        (
            "context.tcb == \"revoked\" && context.gaps.containsAll([\"cgroup\"])",
            0,
        ),
    ] {
        let found = forbids(condition).unknown_gaps(&known);
        assert_eq!(found.len(), count, "{condition}: {found:?}");
    }
    let found = forbids("context.gaps.contains(\"landlok\")").unknown_gaps(&known);
    assert_eq!(found[0].help.as_deref(), Some("did you mean `landlock`?"));
}

#[test]
fn a_decision_and_its_explanation_tell_of_rules_and_facts_and_of_nothing_else() {
    let text = source(1, 10).replace(
        "[files]",
        "env = { TOKEN = \"canary-1\" }\n[data]\nd = { vault = \"canary-2.vault\", at = \"/d\", key = \"file:canary-3\" }\n[files]",
    );
    let bundle = Bundle::parse(&text, "p.toml").unwrap();
    for facts in [Facts::best(), Facts::unknown()] {
        let told = serde_json::to_string(&(bundle.decide(&facts), bundle.explain(&facts))).unwrap();
        assert!(told.contains("read vault d"), "{told}");
        assert!(!told.contains("canary"), "{told}");
    }
}
