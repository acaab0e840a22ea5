//! Corners in which a policy engine can say yes by accident; here each of them says no.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::time::Duration;

use policy::{Action, Bundle, Endpoint, Facts, Grant, Resource, Tcb, Tier};

fn source(rules: &str) -> String {
    format!(
        r#"version = 1
name = "corners"
[workload]
command = ["/bin/true"]
[files]
read = ["/app"]
[network]
connect = ["a.example:443"]
[data]
customers = {{ vault = "customers.vault", at = "/data" }}
[risk]
operator = {{ adds = 100 }}
[rules]
cedar = """
{rules}
"""
"#
    )
}

fn bundle(rules: &str) -> Bundle {
    Bundle::parse(&source(rules), "corners.toml").unwrap_or_else(|error| panic!("{error}"))
}

/// The message of the only problem with these rules.
fn refusal(rules: &str) -> String {
    let error = Bundle::parse(&source(rules), "corners.toml").unwrap_err();
    assert_eq!(error.diagnostics().len(), 1, "{error}");
    error.diagnostics()[0].message.clone()
}

fn best() -> Facts {
    Facts {
        risk: 0,
        tier: Tier::Affirming,
        tcb: Tcb::UpToDate,
        simulated: Some(false),
        debug: Some(false),
        evidence_age: Some(Duration::ZERO),
        gaps: BTreeSet::new(),
    }
}

#[test]
fn a_fact_that_is_not_known_has_its_worst_value() {
    let cases = [
        (
            "context.risk >= 100",
            Facts {
                risk: 100,
                ..best()
            },
        ),
        (
            "context.tcb != \"up-to-date\"",
            Facts {
                tcb: Tcb::Unknown,
                ..best()
            },
        ),
        (
            "context.tier != \"affirming\"",
            Facts {
                tier: Tier::None,
                ..best()
            },
        ),
        (
            "context.simulated",
            Facts {
                simulated: None,
                ..best()
            },
        ),
        (
            "context.debug",
            Facts {
                debug: None,
                ..best()
            },
        ),
        (
            "context.evidence_age > 600",
            Facts {
                evidence_age: None,
                ..best()
            },
        ),
        (
            "context.evidence_age >= 9223372036854775807",
            Facts {
                evidence_age: None,
                ..best()
            },
        ),
        (
            "context.gaps.contains(\"seccomp\")",
            Facts {
                gaps: Facts::unknown().gaps,
                ..best()
            },
        ),
        (
            "!context.gaps.isEmpty()",
            Facts {
                gaps: Facts::unknown().gaps,
                ..best()
            },
        ),
    ];
    for (condition, one_unknown) in cases {
        let bundle = bundle(&format!(
            "permit (principal, action, resource);\nforbid (principal, action, resource) when {{ {condition} }};"
        ));
        assert_eq!(bundle.decide(&best()).denied, [], "{condition}");
        assert!(
            bundle.decide(&one_unknown).granted.is_empty(),
            "{condition}"
        );
        assert!(
            bundle.decide(&Facts::unknown()).granted.is_empty(),
            "{condition}"
        );
        // A log entry without the fact is a fact that is not known.
        let empty: Facts = serde_json::from_str("{}").unwrap();
        assert_eq!(empty, Facts::unknown());
    }
}

#[test]
fn a_missing_or_mistyped_attribute_never_reaches_evaluation() {
    let permit = "permit (principal, action, resource);\n";
    for (rule, message) in [
        (
            "forbid (principal, action == Action::\"connect\", resource) when { context.rsk > 80 };",
            "attribute `rsk` in context for Action::\"connect\" not found",
        ),
        (
            "forbid (principal, action, resource) when { context.risk > \"80\" };",
            "unexpected type: expected Long but saw String",
        ),
        (
            "forbid (principal, action, resource is Vault) when { resource.labl == \"x\" };",
            "attribute `labl` on entity type `Vault` not found",
        ),
        (
            "forbid (principal, action, resource) when { context[\"risk\"] > 80 };",
            "attributes are written with a dot in rules",
        ),
    ] {
        assert_eq!(refusal(&format!("{permit}{rule}")), message);
    }
    for facts in [
        r#"{"risk": "99"}"#,
        r#"{"risk": 1e1}"#,
        r#"{"risk": 1.0}"#,
        r#"{"risk": -1}"#,
        r#"{"risk": 101}"#,
        r#"{"risk": 18446744073709551617}"#,
        r#"{"risk": NaN}"#,
        r#"{"risk": null}"#,
        r#"{"risk": 99, "risk": 1}"#,
        r#"{"rsk": 1}"#,
        r#"{"tcb": "fine"}"#,
        r#"{"tier": "Affirming"}"#,
        r#"{"simulated": 0}"#,
        r#"{"evidence_age": -1}"#,
        r#"{"evidence_age": 1.5}"#,
        r#"{"gaps": "none"}"#,
    ] {
        assert!(serde_json::from_str::<Facts>(facts).is_err(), "{facts}");
    }
}

#[test]
fn arithmetic_is_refused_wherever_it_stands() {
    for condition in [
        "context.risk + 1 > 80",
        "context.risk * 92233720368547758 > 80",
        "context.risk - 1 > 80",
        "context.risk -1 > 80",
        "-context.risk < 80",
        "-(1) < 80",
        "{\"a\": context.risk + 1}.a > 80",
        "(if context.debug then 1 else 2) -1 > 0",
    ] {
        let rule = format!("forbid (principal, action, resource) when {{ {condition} }};");
        assert_eq!(
            refusal(&rule),
            "arithmetic can overflow, and is not allowed in rules"
        );
    }
    // A negative number is none, and neither are signs in strings and comments.
    bundle("permit (principal, action, resource) when { context.risk > -1 }; // + - *");
    bundle("permit (principal, action, resource) when { context.tcb like \"up-to-*\" };");
}

#[test]
fn what_is_not_in_the_schema_is_refused() {
    for (rule, message) in [
        (
            "permit (principal, action == Action::\"reed\", resource);",
            "unrecognized action `Action::\"reed\"`",
        ),
        (
            "permit (principal, action, resource is Valt);",
            "unrecognized entity type `Valt`",
        ),
        (
            "permit (principal is User, action, resource);",
            "unrecognized entity type `User`",
        ),
        (
            "permit (principal == ?principal, action, resource);",
            "expected a static policy, got a template containing the slot ?principal",
        ),
    ] {
        assert_eq!(refusal(rule), message);
    }
}

#[test]
fn a_forbid_about_a_misspelt_thing_is_refused_and_not_ignored() {
    let permit = "permit (principal, action, resource);\n";
    for (rule, message) in [
        (
            "forbid (principal, action, resource == Vault::\"custmers\");",
            "no table has `Vault::\"custmers\"`",
        ),
        (
            "forbid (principal, action, resource) when { resource == Endpoint::\"a.example\" };",
            "no table has `Endpoint::\"a.example\"`",
        ),
        (
            "forbid (principal == Workload::\"other\", action, resource);",
            "no table has `Workload::\"other\"`",
        ),
        (
            "forbid (principal, action, resource) when { context.tcb == \"revokd\" };",
            "`tcb` never has the value `revokd`",
        ),
        (
            "forbid (principal, action, resource) when { \"warn\" == context.tier };",
            "`tier` never has the value `warn`",
        ),
        (
            "forbid (principal, action, resource) when { [\"revoked\", \"outofdate\"].contains(context.tcb) };",
            "`tcb` never has the value `outofdate`",
        ),
    ] {
        assert_eq!(refusal(&format!("{permit}{rule}")), message);
    }
}

#[test]
fn two_rules_of_one_name_are_refused() {
    let rules = "@id(\"a\")\npermit (principal, action, resource);\n@id(\"a\")\nforbid (principal, action, resource);";
    assert_eq!(refusal(rules), "another rule is called `a`");
    // Nor may a name be that of a rule without one.
    let rules = "permit (principal, action, resource);\n@id(\"rule 1\")\nforbid (principal, action, resource);";
    assert_eq!(refusal(rules), "another rule is called `rule 1`");
}

#[test]
fn a_rule_cannot_have_a_name_that_says_nothing() {
    for name in ["", " ", "a\\nb", "a\\u{1b}[2J", &"x".repeat(65)] {
        let rule = format!("@id(\"{name}\")\npermit (principal, action, resource);");
        // Escapes of Cedar's own have to pass through TOML first.
        let rule = rule.replace('\\', "\\\\");
        assert!(
            refusal(&rule).ends_with("is not a name for a rule"),
            "{rule}"
        );
    }
}

#[test]
fn text_that_does_not_look_like_what_it_is_is_refused() {
    for hidden in ['\u{202e}', '\u{2066}', '\u{200b}', '\u{feff}'] {
        let rules = format!("permit (principal, action, resource); // {hidden} ;");
        assert_eq!(
            refusal(&rules),
            format!(
                "the invisible character U+{:04X} is not allowed",
                u32::from(hidden)
            )
        );
    }
}

#[test]
fn a_refusal_cannot_command_the_terminal_it_is_printed_on() {
    let error = Bundle::parse("a = \"\x1b[2J\u{9b}31m\"\n\u{202e} = 1", "p.toml").unwrap_err();
    assert!(!error.to_string().contains(['\x1b', '\u{9b}', '\u{202e}']));
    let error = Bundle::parse(&source("permit \x1b[2J"), "p.toml").unwrap_err();
    assert!(!error.to_string().contains('\x1b'));
}

#[test]
fn no_rules_and_no_permit_grant_nothing() {
    assert_eq!(refusal(""), "there are no rules: nothing would be granted");
    assert_eq!(
        refusal("// permit (principal, action, resource);"),
        "there are no rules: nothing would be granted"
    );
    let decision =
        bundle("forbid (principal, action, resource) when { context.risk > 1 };").decide(&best());
    assert!(decision.granted.is_empty());
    assert!(!decision.live());
    assert!(!decision.proceed());
}

#[test]
fn what_no_table_lists_is_never_granted() {
    let decision = bundle("permit (principal, action, resource);").decide(&best());
    assert!(decision.grants(&Grant::read_path("/app")));
    for grant in [
        Grant::write_path("/app"),
        Grant::read_path("/app/"),
        Grant::read_path("/app/sub"),
        Grant::read_path("/APP"),
        Grant::read_vault("Customers"),
        Grant::write_vault("customers"),
        Grant::connect(Endpoint {
            host: "a.example".to_owned(),
            port: 80,
        }),
        Grant {
            action: Action::Connect,
            resource: Resource::Vault("customers".to_owned()),
        },
    ] {
        // `/app/` and `/app` are the same path to the standard library.
        let same = grant == Grant::read_path("/app");
        assert_eq!(decision.grants(&grant), same, "{grant}");
        assert_eq!(decision.because(&grant).is_empty(), !same, "{grant}");
    }
}

#[test]
fn risk_above_a_hundred_counts_as_a_hundred() {
    let bundle = bundle(
        "permit (principal, action, resource);\nforbid (principal, action, resource) when { context.risk == 100 };",
    );
    assert!(
        bundle
            .decide(&Facts {
                risk: 255,
                ..best()
            })
            .granted
            .is_empty()
    );
}

#[test]
fn evidence_is_never_taken_for_younger_than_it_is() {
    let bundle = bundle(
        "permit (principal, action, resource);\nforbid (principal, action, resource) when { context.evidence_age > 600 };",
    );
    let aged = |evidence_age| {
        bundle.decide(&Facts {
            evidence_age: Some(evidence_age),
            ..best()
        })
    };
    assert!(aged(Duration::from_secs(600)).live());
    assert!(!aged(Duration::new(600, 1)).live());
    assert!(!aged(Duration::MAX).live());
}
