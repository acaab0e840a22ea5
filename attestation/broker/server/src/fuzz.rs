//! What a fuzzer feeds: bytes that anybody may have written. Each entry must return, whatever they are.

use axum::http::header::COOKIE;
use axum::http::{HeaderMap, HeaderValue};
use serde_json::Value;

use crate::jwk::ClientKey;
use crate::sessions::Session;
use crate::store::{Entry, etcd};
use crate::wire::{self, Attestation};
use crate::{admin, coco, http, jwe};

/// Takes any bytes, and returns.
pub type Target = fn(&[u8]);

/// Every entry, by its name.
pub const TARGETS: [(&str, Target); 7] = [
    ("auth", auth),
    ("attest", attest),
    ("snp", snp),
    ("jwk", jwk),
    ("admin", order),
    ("names", names),
    ("store", store),
];

/// Feeds one target.
///
/// # Panics
///
/// If there is no target of this name, or it was broken.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(target, _)| *target == name);
    assert!(target.is_some(), "there is no target `{name}`");
    target.into_iter().for_each(|(_, target)| target(bytes));
}

/// The body of `auth`.
pub fn auth(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<wire::Request>(bytes)
        && http::is_known(&request.version)
    {
        assert!(request.version.starts_with("0."));
    }
}

/// The body of `attest`.
pub fn attest(bytes: &[u8]) {
    let Ok(attestation) = serde_json::from_slice::<Attestation>(bytes) else {
        return;
    };
    if let Ok(evidence) = attestation.tee_evidence.evidence() {
        assert!(!evidence.report().is_empty());
    }
    let _ = ClientKey::of(&attestation.runtime_data);
    // Canonical JSON is JSON.
    let mut text = String::new();
    wire::canonical(&attestation.runtime_data, &mut text);
    assert!(serde_json::from_str::<Value>(&text).is_ok());
    let _ = wire::report_data(&attestation.runtime_data);
}

/// Evidence of a guest of Confidential Containers.
pub fn snp(bytes: &[u8]) {
    if let Ok(value) = serde_json::from_slice(bytes)
        && let Ok(evidence) = coco::evidence(&value)
        && evidence.tee() == attestation::Tee::SevSnp
    {
        assert_eq!(evidence.report().len(), attestation::snp::REPORT_LENGTH);
    }
}

/// A client's key, and a secret encrypted to it.
pub fn jwk(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else {
        return;
    };
    let jwe = match ClientKey::of(&value) {
        Ok(ClientKey::Ec { curve, point }) => {
            assert_eq!(point.len(), 1 + 2 * curve.coordinate());
            jwe::to_ec(curve, &point, b"secret")
        }
        Ok(ClientKey::Rsa { modulus, exponent }) => jwe::to_rsa(&modulus, &exponent, b"secret"),
        _ => return,
    };
    if let Ok(jwe) = jwe
        && let Ok(value) = serde_json::to_value(jwe)
    {
        assert!(value["protected"].is_string());
    }
}

/// What an operator asks.
pub fn order(bytes: &[u8]) {
    if let Ok(ask) = serde_json::from_slice::<admin::Ask>(bytes) {
        let text = serde_json::to_vec(&ask).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<admin::Ask>(&text).ok(), Some(ask));
    }
}

/// A cookie.
pub fn names(bytes: &[u8]) {
    let Ok(cookie) = HeaderValue::from_bytes(bytes) else {
        return;
    };
    if let Some(session) = http::session(&HeaderMap::from_iter([(COOKIE, cookie)])) {
        assert_eq!(session.len(), 43);
    }
}

/// What a store holds and says, which may be another's.
pub fn store(bytes: &[u8]) {
    let entry = Entry {
        value: bytes.to_vec(),
        version: 1,
    };
    let _ = Session::read("session/x".to_owned(), &entry, attestation::UnixTime(0));
    etcd::fuzz(bytes);
}

#[cfg(test)]
#[path = "../../../fuzz/changes.rs"]
mod changes;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use attestation::{Attester as _, SimulatedTee, UnixTime};
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::json;

    use super::changes::{Random, changed};
    use super::*;
    use crate::coco::snp_json;

    /// Well-formed bytes for each target: what is changed a little goes deep.
    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let evidence = SimulatedTee::new(UnixTime(1_790_000_000))
            .and_then(|mut tee| tee.attest(&[7; 64]))
            .unwrap();
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        // The base point of P-256, and a number that is no product of two primes.
        let (x, y) = (
            "axfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpY",
            "T-NC4v4af5uO5-tKfA-eFivOM1drMV7Oy7ZAaDe_UfU",
        );
        let ec = json!({ "kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": x, "y": y });
        let rsa =
            json!({ "kty": "RSA", "alg": "RSA-OAEP-256", "n": text(&[0x81; 256]), "e": "AQAB" });
        let okp =
            json!({ "kty": "OKP", "crv": "X25519", "alg": crate::jwk::HPKE, "x": text(&[7; 32]) });
        let data = |key| json!({ "nonce": "n", "tee-pubkey": key, "policy-digest": "02".repeat(32), "log-key": "03".repeat(32) });
        let attestation = |data: Value, primary: Value| {
            json!({ "init-data": null, "runtime-data": data,
                    "tee-evidence": { "primary_evidence": primary, "additional_evidence": "" } })
        };
        let snp = snp_json::of(&evidence);
        let tdx = json!({ "quote": "AAAA", "cc_eventlog": "AAAA" });
        let seeds = match target {
            "auth" => vec![json!({ "version": "0.4.0", "tee": "snp", "extra-params": "" })],
            "attest" => vec![
                attestation(data(ec), serde_json::to_value(&evidence).unwrap()),
                attestation(data(rsa), tdx),
                attestation(data(okp), snp),
            ],
            "snp" => vec![snp, tdx],
            "jwk" => vec![data(ec), data(rsa), data(okp)],
            "admin" => vec![
                json!({ "list": {} }),
                json!({ "revoke": { "resource": "a/b/c", "why": "x" } }),
                json!({ "reference": { "values": "{}", "why": "x" } }),
            ],
            "names" => {
                let cookie = format!("a=b; kbs-session-id={}", "x".repeat(43));
                return vec![cookie.into_bytes()];
            }
            "store" => vec![
                json!({ "result": { "header": { "revision": "1" }, "created": true, "events": [
                    { "kv": { "key": "eC9h", "value": "", "mod_revision": "1" } } ] } }),
                json!({ "tee": "snp", "nonce": "01".repeat(32), "began": 1, "nonce_expires": 2,
                        "nonce-expires": 2, "expires": 3, "state": "asked" }),
            ],
            other => panic!("no seeds for {other}"),
        };
        seeds
            .iter()
            .map(|seed| seed.to_string().into_bytes())
            .collect()
    }

    #[test]
    fn no_changed_bytes_break_a_parser() {
        let mut random = Random::new();
        for (name, target) in TARGETS {
            let seeds = seeds(name);
            target(&[]);
            target("[".repeat(100_000).as_bytes());
            for round in 0..1_500 {
                let seed = &seeds[round % seeds.len()];
                target(seed);
                target(&changed(seed, &mut random));
            }
        }
    }
}
