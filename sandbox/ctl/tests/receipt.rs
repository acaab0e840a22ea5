//! Receipts: a run proven to somebody who was not there, and nothing about it that can be changed.

#![allow(clippy::unwrap_used)]

mod play;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{SystemTime, UNIX_EPOCH};

use attestation::{ReferenceValues, UnixTime, Verifier};
use casemate::receipt::{Receipt, Refuted};
use play::Play;
use serde_json::{Value, json};
use vault::audit::{Log, LogKey, Signed};

const YEAR: u64 = 365 * 24 * 60 * 60;

const POLICY: &str = r#"
version = 1
name = "proven"
include = ["shared.toml"]
[attestation]
accept = ["simulated"]
reference-values = "reference.json"
[workload]
command = ["sh", "-c", "cat /data/greeting > /out/copy; exit 7"]
[data]
sales = { vault = "sales.vault", at = "/data", access = "read", key = "file:sales.key" }
[rules]
cedar = 'permit (principal, action, resource);'
"#;
const SHARED: &str = "[files]\nwrite = [{ from = \"out\", at = \"/out\" }]\n";

/// A run of [`POLICY`] that has come to its end, with its receipt; `None` where no sandbox can be made.
fn run() -> Option<(Play, Vec<u8>)> {
    run_to("receipt.json")
}

/// The same, with the receipt under this name.
fn run_to(name: &str) -> Option<(Play, Vec<u8>)> {
    let play = Play::new("", "")?;
    let reference =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/clean-room/reference.json");
    fs::copy(reference, play.path("reference.json")).unwrap();
    fs::write(play.path("policy.toml"), POLICY).unwrap();
    fs::write(play.path("shared.toml"), SHARED).unwrap();
    fs::write(play.path("greeting"), "hello").unwrap();
    play.does(&["vault", "create", "sales.vault", "--key-file", "sales.key"]);
    play.does(&[
        "vault",
        "put",
        "sales.vault",
        "greeting",
        "greeting",
        "--key-file",
        "sales.key",
    ]);
    let ran = play.run(&[
        "run",
        "policy.toml",
        "--log",
        "log",
        "--receipt",
        name,
        "--dangerously-accept-simulated",
    ]);
    assert_eq!(ran.status.code(), Some(7), "{ran:?}");
    let receipt = fs::read(play.path(name)).unwrap();
    Some((play, receipt))
}

fn verify(play: &Play, further: &[&str]) -> Output {
    let usual = [
        "receipt",
        "verify",
        "receipt.json",
        "--dangerously-accept-simulated",
    ];
    play.run(&[&usual[..], further].concat())
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// What verifies as the command line does with all that the run's own side trusts.
fn verifier(play: &Play) -> Verifier {
    let reference = fs::read(play.path("reference.json")).unwrap();
    Verifier::builder()
        .reference_values(ReferenceValues::from_json(&reference).unwrap())
        .dangerous()
        .accept_simulated()
        .build()
        .unwrap()
}

#[test]
fn a_receipt_proves_a_run_to_somebody_who_was_not_there() {
    let Some((play, _)) = run() else { return };
    let all = ["--reference", "reference.json", "--policy", "policy.toml"];
    let told = verify(&play, &all);
    let text = String::from_utf8(told.stdout).unwrap();
    assert_eq!(told.status.code(), Some(0), "{text}");
    for part in [
        "proven, as of",
        "tier affirming",
        "`proven` version 1",
        "cat /data/greeting",
        "`sales`: the key was released; 5 bytes were read",
        "arrived at again",
        r#"{"code":7}: the workload ended"#,
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let told = verify(&play, &[&all[..], &["--json"]].concat());
    let told: Value = serde_json::from_slice(&told.stdout).unwrap();
    assert_eq!(told["proven"], true);
    assert_eq!(told["statement"]["ending"], json!({ "code": 7 }));
    assert_eq!(told["statement"]["data"][0]["read"], 5);

    // Without reference values nothing is affirmed, and nobody believes a simulator by accident.
    assert_eq!(verify(&play, &[]).status.code(), Some(3));
    let refused = play.run(&["receipt", "verify", "receipt.json"]);
    let why = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(why.contains("unknown-root"), "{why}");
}

#[test]
fn a_receipt_of_another_policy_than_the_expected_is_refused() {
    let Some((play, _)) = run() else { return };
    fs::write(play.path("other.toml"), format!("{POLICY}# \n")).unwrap();
    let refused = verify(&play, &["--policy", "other.toml", "--json"]);
    assert_eq!(refused.status.code(), Some(1));
    let told: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!(told["code"], "unexpected-policy");
}

#[test]
fn a_receipt_says_as_of_when_it_holds_also_without_any_network() {
    let Some((play, _)) = run() else { return };
    let verify_at = |at: u64| {
        let program = env!("CARGO_BIN_EXE_sandboxctl");
        let alone = ["--user", "--map-root-user", "--net", "--", program];
        let mut command = Command::new("unshare");
        command.args(alone).current_dir(play.path("."));
        command.args([
            "receipt",
            "verify",
            "receipt.json",
            "--dangerously-accept-simulated",
        ]);
        command.args([
            "--reference",
            "reference.json",
            "--json",
            "--at",
            &at.to_string(),
        ]);
        let output = command.output().unwrap();
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code().unwrap(), told)
    };
    let ended = verify_at(now()).1["statement"]["ended"].as_u64().unwrap();

    let (code, told) = verify_at(ended + 5 * YEAR);
    assert_eq!((code, &told["as-of"]), (0, &json!(ended + 5 * YEAR)));
    assert_eq!(told["lapsed"], Value::Null);

    // The certificates of the simulated TEE are good for seven years.
    let (code, told) = verify_at(ended + 8 * YEAR);
    assert_eq!(
        (code, &told["lapsed"]["code"]),
        (5, &json!("certificate-expired"))
    );
    assert!(told["as-of"].as_u64().unwrap() <= ended);

    let (code, told) = verify_at(ended - 1);
    assert_eq!((code, &told["code"]), (1, &json!("future")));
}

#[test]
fn every_changed_value_of_a_receipt_is_refused() {
    let Some((play, receipt)) = run() else { return };
    let (verifier, at) = (verifier(&play), UnixTime(now() + 60));
    let holds = |receipt: &Value| -> Result<(), Refuted> {
        let json = serde_json::to_vec(receipt).unwrap();
        Receipt::from_json(&json)?.verify(&verifier, at).map(|_| ())
    };
    let genuine: Value = serde_json::from_slice(&receipt).unwrap();
    holds(&genuine).unwrap();
    let mut places = Vec::new();
    walk(&genuine, &mut String::new(), &mut places);
    let mut tried = 0;
    for place in &places {
        for changed in changes(genuine.pointer(place).unwrap()) {
            let mut receipt = genuine.clone();
            *receipt.pointer_mut(place).unwrap() = changed.clone();
            assert!(holds(&receipt).is_err(), "{place} as {changed} is believed");
            tried += 1;
        }
    }
    println!("{tried} changes of {} values, all refused", places.len());
    assert!(places.len() > 60, "{places:?}");
}

#[test]
fn every_changed_value_of_a_signed_receipt_is_refused_also_if_signed_anew() {
    let Some((play, genuine)) = run_to("receipt.cose") else {
        return;
    };
    let (verifier, at) = (verifier(&play), UnixTime(now() + 60));
    let holds = |message: &[u8]| -> Result<(), Refuted> {
        Receipt::read(message)?.verify(&verifier, at).map(|_| ())
    };
    holds(&genuine).unwrap();
    let told = play.run(&[
        "receipt",
        "verify",
        "receipt.cose",
        "--dangerously-accept-simulated",
        "--reference",
        "reference.json",
        "--policy",
        "policy.toml",
    ]);
    assert_eq!(told.status.code(), Some(0), "{told:?}");

    // The same with its signature as it was, and with that of somebody else.
    let kind = "application/vnd.casemate.receipt+cbor";
    let signed = Signed::open(kind, &genuine).unwrap();
    let payload: ciborium::Value = ciborium::from_reader(signed.payload()).unwrap();
    let stranger = LogKey::generate().unwrap();
    let log = Log::create(&play.path("strange"), "casemate/run", stranger).unwrap();
    let stranger = log.signer();
    let (code, refused) = ("signature", holds(&stranger.sign(kind, signed.payload())));
    assert_eq!(refused.unwrap_err().code(), code);
    let mut tried = 0;
    for changed in changed_in(&payload) {
        let mut bytes = Vec::new();
        ciborium::into_writer(&changed, &mut bytes).unwrap();
        let kept = genuine.windows(signed.payload().len());
        let at = kept
            .into_iter()
            .position(|it| it == signed.payload())
            .unwrap();
        let mut pasted = genuine[..at - 5].to_vec();
        pasted.push(0x5a);
        pasted.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        pasted.extend(&bytes);
        pasted.extend(&genuine[at + signed.payload().len()..]);
        assert!(holds(&pasted).is_err(), "believed");
        assert!(holds(&stranger.sign(kind, &bytes)).is_err(), "believed");
        tried += 1;
    }
    for at in (0..genuine.len()).step_by(7) {
        let mut message = genuine.clone();
        message[at] ^= 1;
        assert!(holds(&message).is_err(), "byte {at}");
    }
    println!("{tried} changes, all refused");
    assert!(tried > 60);
}

/// The value with each of the values in it changed, one at a time.
fn changed_in(value: &ciborium::Value) -> Vec<ciborium::Value> {
    use ciborium::Value as Cbor;
    let mut all = vec![match value {
        Cbor::Integer(number) => Cbor::from(i128::from(*number) as i64 + 1),
        Cbor::Text(text) => Cbor::from(format!("{text}A")),
        Cbor::Bytes(bytes) => {
            let mut bytes = bytes.clone();
            match bytes.first_mut() {
                Some(first) => *first ^= 1,
                None => bytes.push(0),
            }
            Cbor::Bytes(bytes)
        }
        Cbor::Bool(value) => Cbor::Bool(!value),
        _ => Cbor::from("x"),
    }];
    match value {
        Cbor::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                for changed in changed_in(item) {
                    let mut items = items.clone();
                    items[at] = changed;
                    all.push(Cbor::Array(items));
                }
            }
        }
        Cbor::Map(fields) => {
            for (at, (_, item)) in fields.iter().enumerate() {
                for changed in changed_in(item) {
                    let mut fields = fields.clone();
                    fields[at].1 = changed;
                    all.push(Cbor::Map(fields));
                }
                let mut fewer = fields.clone();
                fewer.remove(at);
                all.push(Cbor::Map(fewer));
            }
        }
        _ => {}
    }
    all
}

/// The place of every value, from the whole to each leaf.
fn walk(value: &Value, place: &mut String, places: &mut Vec<String>) {
    places.push(place.clone());
    let long = place.len();
    let inside: Vec<(String, &Value)> = match value {
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(at, item)| (at.to_string(), item))
            .collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, item)| (name.replace('/', "~1"), item))
            .collect(),
        _ => Vec::new(),
    };
    for (name, item) in inside {
        place.push('/');
        place.push_str(&name);
        walk(item, place, places);
        place.truncate(long);
    }
}

/// What a value could be changed to.
fn changes(value: &Value) -> Vec<Value> {
    let mut changes = vec![Value::Null, json!("x")];
    match value {
        Value::Null => {}
        Value::Bool(value) => changes.push(json!(!value)),
        Value::Number(number) => {
            let number = number.as_i64().unwrap();
            changes.extend([json!(number + 1), json!(number - 1)]);
        }
        Value::String(text) => {
            for at in [0, text.len() / 2, text.len().saturating_sub(1)] {
                let Some(there) = text[at.min(text.len())..].chars().next() else {
                    continue;
                };
                for other in ['0', 'A', there.to_ascii_uppercase()] {
                    let mut changed = text.clone();
                    changed.replace_range(at..at + there.len_utf8(), &other.to_string());
                    changes.push(json!(changed));
                }
            }
            changes.extend([json!(format!("{text} ")), json!(format!("{text}A"))]);
        }
        Value::Array(items) => {
            let twice = items.iter().chain(items.last()).cloned().collect();
            let reversed = items.iter().rev().cloned().collect();
            changes.extend([Value::Array(twice), Value::Array(reversed), json!([])]);
            changes.push(items.iter().skip(1).cloned().collect());
            changes.push(
                items
                    .iter()
                    .take(items.len().saturating_sub(1))
                    .cloned()
                    .collect(),
            );
        }
        Value::Object(fields) => {
            for name in fields.keys() {
                let mut fewer = fields.clone();
                fewer.remove(name);
                changes.push(Value::Object(fewer));
            }
            let mut more = fields.clone();
            more.insert("more".into(), json!(1));
            changes.push(Value::Object(more));
        }
    }
    changes.retain(|changed| changed != value);
    changes
}

#[test]
fn a_run_without_evidence_has_no_receipt_and_says_so() {
    let Some(play) = Play::new("", "") else {
        return;
    };
    let policy = "version = 1\nname = \"unproven\"\n[workload]\ncommand = [\"true\"]\n\
                  [rules]\ncedar = 'permit (principal, action, resource);'\n";
    fs::write(play.path("policy.toml"), policy).unwrap();
    let arguments = [
        "run",
        "policy.toml",
        "--log",
        "log",
        "--quiet",
        "--receipt",
        "receipt.json",
    ];
    let ran = play.run(&arguments);
    let why = String::from_utf8(ran.stderr).unwrap();
    assert_eq!(ran.status.code(), Some(125), "{why}");
    assert!(why.contains("no evidence was believed"), "{why}");
    assert!(!play.path("receipt.json").exists());

    // Nothing runs when its receipt would have no place.
    fs::write(play.path("receipt.json"), "mine").unwrap();
    let ran = play.run(&[
        "run",
        "policy.toml",
        "--log",
        "other",
        "--receipt",
        "receipt.json",
    ]);
    assert_eq!(ran.status.code(), Some(125));
    assert!(!play.path("other").exists());
    assert_eq!(fs::read(play.path("receipt.json")).unwrap(), b"mine");
}
