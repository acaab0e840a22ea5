//! Ways in which policy engines were made to say yes, tried here.
//!
//! Those about rules and missing facts are in `fail_open.rs`, about every byte of a signature in
//! `src/signature.rs`, about bytes that nobody should have written in `mutations.rs`.

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
