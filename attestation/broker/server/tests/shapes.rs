//! Exchanges as Trustee and its clients have them: every request of a client of Confidential Containers is taken, and
//! every answer has the recorded shape. `shapes/kbs.json` says where each shape is from.

#![allow(clippy::unwrap_used)]

mod play;
#[path = "play/snp_json.rs"]
mod snp_json;

use attestation::{Attester as _, SimulatedTee, UnixTime};
use broker_server::wire::report_data;
use play::{Asked, Guest, Play, SECRET};
use serde_json::{Value, json};

const RECORDED: &str = include_str!("shapes/kbs.json");

/// What a value is made of.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(items) => {
            let first = items.first().map(shape);
            assert!(items.iter().all(|item| Some(shape(item)) == first));
            first.into_iter().collect()
        }
        Value::Object(fields) => {
            let shapes = fields.iter().map(|(name, it)| (name.clone(), shape(it)));
            Value::Object(shapes.collect())
        }
    }
}

/// The recorded shapes; with this key and this evidence where they leave it open.
fn recorded(key: &str) -> Value {
    let mut recorded: Value = serde_json::from_str(RECORDED).unwrap();
    let (key, evidence) = (recorded["keys"][key].clone(), recorded["evidence"].clone());
    let request = &mut recorded["attest"]["request"];
    request["runtime-data"]["tee-pubkey"] = key;
    request["tee-evidence"]["primary_evidence"] = evidence;
    recorded
}

#[test]
fn clients_of_trustee_are_served_in_its_shapes_with_keys_of_either_kind() {
    let play = Play::start("");
    let config = play.client_config();
    let mut tee = SimulatedTee::new(UnixTime::from(std::time::SystemTime::now())).unwrap();
    for (key, guest) in [("EC", Guest::with_ec()), ("RSA", Guest::with_rsa())] {
        let recorded = recorded(key);
        let mut stream = play.tls_with(&config);
        let mut asked = |line: &str, session: &str, body: &Value, recorded: &Value| {
            let body = if body.is_null() {
                String::new()
            } else {
                body.to_string()
            };
            play::send(&mut stream, line, session, &body);
            let (status, header, told) = play::receive(&mut stream);
            assert_eq!(json!(status), recorded["status"], "{line}: {told}");
            assert_eq!(shape(&told), recorded["response"], "{line}");
            assert!(
                header.contains("content-type: application/json"),
                "{header}"
            );
            (header, told)
        };

        let request = json!({ "version": "0.1.1", "tee": "snp", "extra-params": { "tee-metadata": {
            "primary_tee": { "tee": "snp", "metadata": {} }, "additional_tees": [] } } });
        assert_eq!(shape(&request), recorded["auth"]["request"]);
        let (header, told) = asked("POST /kbs/v0/auth", "", &request, &recorded["auth"]);
        let cookie = header
            .lines()
            .find_map(|line| line.strip_prefix("set-cookie: "));
        let (name, rest) = cookie.unwrap().split_once('=').unwrap();
        assert_eq!(name, recorded["auth"]["cookie"]);
        let session = rest.split(';').next().unwrap().to_owned();
        let nonce = told["nonce"].as_str().unwrap().to_owned();

        let asked_for = Asked { session, nonce };
        let mut attestation = guest.attestation_with(&asked_for, &mut tee);
        let bound = report_data(&attestation["runtime-data"]);
        attestation["tee-evidence"]["primary_evidence"] =
            snp_json::of(&tee.attest(&bound).unwrap());
        attestation["init-data"] = json!({ "format": "toml", "body": "" });
        assert_eq!(shape(&attestation), recorded["attest"]["request"], "{key}");
        let session = &asked_for.session;
        let (_, told) = asked(
            "POST /kbs/v0/attest",
            session,
            &attestation,
            &recorded["attest"],
        );
        let parts: Vec<_> = told["token"].as_str().unwrap().split('.').collect();
        for (part, names) in [(0, "header"), (1, "claims")] {
            let part: Value = serde_json::from_slice(&play::decoded(&json!(parts[part]))).unwrap();
            for name in recorded["token"][names].as_array().unwrap() {
                assert!(!part[name.as_str().unwrap()].is_null(), "{name}: {part}");
            }
        }

        let line = "GET /kbs/v0/resource/default/key/open";
        let (_, jwe) = asked(line, session, &Value::Null, &recorded["resource"]);
        let header: Value = serde_json::from_slice(&play::decoded(&jwe["protected"])).unwrap();
        assert_eq!(shape(&header), recorded["resource"]["protected"][key]);
        assert_eq!(
            header["alg"],
            attestation["runtime-data"]["tee-pubkey"]["alg"]
        );
        assert_eq!(guest.open(&jwe), SECRET);
    }
}

#[test]
fn refusals_have_the_statuses_and_the_shape_that_clients_of_trustee_know() {
    let play = Play::start("");
    let (client, guest, recorded) = (play.client(), Guest::with_ec(), recorded("EC"));
    let errors = &recorded["errors"];
    let asked = client.auth();
    let (status, told) = client.resource(&asked, "default/key/open");
    assert_eq!(
        (json!(status), shape(&told)),
        (errors["not attested"].clone(), errors["response"].clone())
    );
    assert_eq!(client.attest(&asked, &guest.attestation(&asked)).0, 200);
    let (status, told) = client.resource(&asked, "default/key/limited");
    assert_eq!(
        (json!(status), shape(&told)),
        (
            errors["not for this guest"].clone(),
            errors["response"].clone()
        )
    );
}
