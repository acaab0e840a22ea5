//! The description of the broker's interface is true of what it answers.

#![allow(clippy::unwrap_used)]

mod play;
#[path = "../../../../tests/common/tool.rs"]
mod tool;

use std::process::Command;

use play::{Guest, Play};
use serde_json::{Value, json};

const OPENAPI: &str = include_str!("../../../../docs/broker-openapi.json");

#[test]
fn what_is_asked_at_random_is_answered_as_described() {
    let Some(schemathesis) = tool::tool("schemathesis") else {
        return;
    };
    let play = Play::start("[limits]\nasks-per-minute = 1000000\n");
    let (client, guest) = (play.client(), Guest::with_ec());
    let asked = client.auth();
    assert_eq!(client.attest(&asked, &guest.attestation(&asked)).0, 200);

    // The same description, with names that there are, and without waiting.
    let mut described: Value = serde_json::from_str(OPENAPI).unwrap();
    for (_, methods) in described["paths"].as_object_mut().unwrap() {
        for (method, operation) in methods.as_object_mut().unwrap() {
            let parameters = match method.as_str() {
                "parameters" => Some(operation),
                _ => operation.get_mut("parameters"),
            };
            let parameters = parameters.and_then(Value::as_array_mut);
            for parameter in parameters.into_iter().flatten() {
                let names: &[&str] = match parameter["name"].as_str().unwrap() {
                    "repository" => &["default", "other"],
                    "type" | "kind" => &["key", "other"],
                    "tag" => &["open", "limited", "missing"],
                    "wait" => {
                        parameter["schema"] = json!({ "type": "integer", "enum": [0] });
                        continue;
                    }
                    _ => continue,
                };
                parameter["schema"] = json!({ "type": "string", "enum": names });
            }
        }
    }
    let schema = play.path("openapi.json");
    std::fs::write(&schema, described.to_string()).unwrap();

    // Once as nobody, once as somebody who attested.
    let cookie = format!("Cookie: kbs-session-id={}", asked.session);
    // The cookie is sent also where the tool means to leave it out, and is then no mistake of the broker's.
    let excluded = "positive_data_acceptance,negative_data_rejection,ignored_auth";
    for further in [
        &[][..],
        &["--header", &cookie, "--exclude-checks", excluded],
    ] {
        let told = Command::new(&schemathesis)
            .arg("run")
            .arg(&schema)
            .args(["--url", &format!("https://{}", play.address())])
            .args(["--tls-verify", play.path("tls.pem").to_str().unwrap()])
            .args(["--checks", "all", "--max-examples", "20", "--seed", "1"])
            // What is well-formed can still be no evidence, and be for nobody.
            .args(["--exclude-checks", "positive_data_acceptance"])
            .args(["--phases", "examples,coverage,fuzzing"])
            .args(["--generation-database", "none", "--no-color"])
            .args(["--request-timeout", "30"])
            .args(further)
            .current_dir(play.path(""))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&told.stdout);
        let wrong = String::from_utf8_lossy(&told.stderr);
        assert!(told.status.success(), "{said}\n{wrong}");
    }
    // It was the broker that was asked, and it still serves.
    assert!(play.client().is_healthy());
    let (_, counted) = client.text("metrics").unwrap();
    let challenged = counted
        .lines()
        .find_map(|line| line.strip_prefix("casemate_broker_challenged_total "));
    assert!(challenged.unwrap().parse::<u32>().unwrap() > 1, "{counted}");
}
