//! What a fuzzer feeds: bytes that anybody may have written. Each entry must return.

use crate::{Bundle, Cases, Facts};

/// Reads bytes as a policy, and uses what is read in every way there is.
pub fn bundle(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let included = |name: &str| match name {
        "self.toml" => Ok(text.clone().into_owned()),
        _ => Err("there is no such file".to_owned()),
    };
    match Bundle::parse_with(&text, "fuzzed.toml", &included) {
        Ok(bundle) => {
            let decision = bundle.decide(&Facts::unknown());
            assert_eq!(
                decision.granted.len() + decision.denied.len(),
                bundle.grants().len()
            );
            bundle.lint();
            bundle.unknown_gaps(&["landlock"]);
            bundle.explain(&Facts::unknown());
            assert!(bundle.diff(&bundle).flips.is_empty());
            if let Err(error) = Cases::parse(&text, "fuzzed.toml", &bundle) {
                let _ = error.to_string();
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Reads bytes as a signed note, as keys, as a seccomp profile and as facts.
pub fn others(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let minimal = "version = 1\nname = \"p\"\n[workload]\ncommand = [\"true\"]\n[rules]\ncedar = \"permit (principal, action, resource);\"\n";
    if let Ok(bundle) = Bundle::parse(minimal, "minimal.toml") {
        let key = text.parse::<crate::signature::PolicyVerifier>();
        let trusted: Vec<_> = key.into_iter().collect();
        assert!(crate::signature::verify(&bundle, &text, &trusted, 1, 0).is_err());
    }
    let _ = crate::signature::PolicyKey::read(&text);
    let base = crate::seccomp::Base {
        name: "default",
        allowed: ["read", "write"].into(),
        known: &|name| name.len() < 9,
        withheld: &|name| name == "mount",
    };
    if let Ok(imported) = crate::seccomp::import(&text, &base) {
        let _ = imported.table();
    }
    if let Ok(facts) = serde_json::from_str::<Facts>(&text) {
        assert!(facts.risk <= 100);
    }
    let _ = serde_json::from_str::<crate::learn::Observation>(&text);
}
