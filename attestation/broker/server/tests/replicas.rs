//! Two brokers with one etcd: whatever one of them says holds at the other.

#![allow(clippy::unwrap_used)]

mod play;

use play::etcd::Etcd;
use play::{Asked, Client, Guest, Play, SECRET};
use serde_json::{Value, json};

const OPEN: &str = "default/key/open";

/// Two replicas and their etcd; `None` where there is no etcd.
fn replicas() -> Option<(Etcd, Play, Play)> {
    let etcd = Etcd::start()?;
    let [one, other] = [0; 2].map(|_| Play::replica(&etcd.uri(), ""));
    Some((etcd, one, other))
}

fn attested(client: &Client) -> (Guest, Asked) {
    let (guest, asked) = (Guest::with_ec(), client.auth());
    let told = client.attest(&asked, &guest.attestation(&asked));
    assert_eq!(told.0, 200, "{told:?}");
    (guest, asked)
}

#[test]
fn a_session_goes_on_at_another_replica_also_when_the_first_is_gone() {
    let Some((_etcd, mut one, other)) = replicas() else {
        return;
    };
    let guest = Guest::with_ec();
    let asked = one.client().auth();
    assert_eq!(
        other.client().attest(&asked, &guest.attestation(&asked)).0,
        200
    );
    let (status, jwe) = one.client().resource(&asked, OPEN);
    assert_eq!((status, guest.open(&jwe)), (200, SECRET.to_vec()));
    one.kill();
    let (status, jwe) = other.client().resource(&asked, OPEN);
    assert_eq!((status, guest.open(&jwe)), (200, SECRET.to_vec()));
}

#[test]
fn of_many_who_attest_on_one_nonce_at_both_replicas_one_is_appraised() {
    let Some((_etcd, one, other)) = replicas() else {
        return;
    };
    for _ in 0..5 {
        let asked = one.client().auth();
        let attestation = Guest::with_ec().attestation(&asked);
        let statuses: Vec<u16> = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..6)
                .map(|at| {
                    let client = [&one, &other][at % 2].client();
                    let (asked, attestation) = (&asked, &attestation);
                    scope.spawn(move || client.attest(asked, attestation).0)
                })
                .collect();
            tries.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let won = statuses.iter().filter(|status| **status == 200).count();
        assert_eq!(won, 1, "{statuses:?}");
        // And once more, when it is over, at the replica that did not hand it out.
        let (status, told) = other.client().attest(&asked, &attestation);
        assert_eq!(
            (status, &told["type"]),
            (401, &json!("casemate:nonce-unknown"))
        );
    }
}

#[test]
fn what_is_revoked_at_one_replica_is_revoked_at_the_other_when_it_is_answered() {
    let Some((_etcd, mut one, mut other)) = replicas() else {
        return;
    };
    let (_, asked) = attested(&other.client());
    assert_eq!(other.client().resource(&asked, OPEN).0, 200);
    one.admin(&["revoke", OPEN, "--why", "it leaked"]).unwrap();
    assert_eq!(other.client().resource(&asked, OPEN).0, 403);
    other.restart();
    assert_eq!(other.client().resource(&asked, OPEN).0, 403);
    // What the other takes back is not revoked again because the first remembers that it did so.
    other
        .admin(&["restore", OPEN, "--why", "it did not"])
        .unwrap();
    one.restart();
    assert_eq!(one.client().resource(&asked, OPEN).0, 200);
    assert_eq!(other.client().resource(&asked, OPEN).0, 200);
}

#[test]
fn whoever_waits_at_one_replica_hears_of_a_revocation_at_the_other() {
    let Some((_etcd, one, other)) = replicas() else {
        return;
    };
    let (_, asked) = attested(&other.client());
    let (status, told) = other.client().lease(&asked, OPEN, 0);
    assert_eq!((status, told["seconds"].as_u64()), (200, Some(60)));
    let told = std::thread::scope(|scope| {
        // Twenty seconds, a third of the lease, if nothing comes.
        let waiting = scope.spawn(|| other.client().lease(&asked, OPEN, 60));
        one.admin(&["revoke", OPEN, "--why", "it leaked"]).unwrap();
        waiting.join().unwrap()
    });
    assert_eq!(told, (200, json!({ "ended": "revoked" })));
}

#[test]
fn withdrawn_reference_values_end_what_rests_on_them_at_every_replica() {
    let Some((_etcd, one, other)) = replicas() else {
        return;
    };
    let (_, asked) = attested(&other.client());
    assert_eq!(other.client().resource(&asked, OPEN).0, 200);
    // Of another guest: nobody who attests now is known.
    let mut values: Value =
        serde_json::from_slice(&std::fs::read(one.path("reference.json")).unwrap()).unwrap();
    withdraw(&mut values);
    std::fs::write(one.path("newer.json"), values.to_string()).unwrap();
    one.admin(&["reference", "newer.json", "--why", "a bad build"])
        .unwrap();
    let ended = other.client().lease(&asked, OPEN, 0);
    assert_eq!(ended, (200, json!({ "ended": "attest" })));
    assert_eq!(other.client().resource(&asked, OPEN).0, 401);
    let (_, again) = attested(&other.client());
    assert_eq!(other.client().resource(&again, OPEN).0, 403);
    // Back to those of the configuration.
    one.admin(&["reference", "--why", "it was good"]).unwrap();
    let (_, again) = attested(&other.client());
    assert_eq!(other.client().resource(&again, OPEN).0, 200);
    // What cannot be used changes nothing.
    std::fs::write(one.path("newer.json"), "{").unwrap();
    assert!(
        one.admin(&["reference", "newer.json", "--why", "x"])
            .is_err()
    );
    assert_eq!(other.client().resource(&again, OPEN).0, 200);
}

/// Changes every measurement that there is.
fn withdraw(values: &mut Value) {
    match values {
        Value::String(text) if text.len() == 96 => *text = "77".repeat(48),
        Value::Array(all) => all.iter_mut().for_each(withdraw),
        Value::Object(all) => all.values_mut().for_each(withdraw),
        _ => {}
    }
}

#[test]
fn without_its_store_a_broker_releases_nothing_and_says_that_it_cannot() {
    let Some((mut etcd, one, other)) = replicas() else {
        return;
    };
    let (guest, asked) = attested(&one.client());
    let fresh = one.client().auth();
    let attestation = guest.attestation(&fresh);
    etcd.pause();
    // All at once, for each of them waits for as long as an election may take.
    std::thread::scope(|scope| {
        for replica in [&one, &other] {
            let client = || replica.client();
            let (asked, fresh, attestation) = (&asked, &fresh, &attestation);
            scope.spawn(move || {
                let (status, told) = client().resource(asked, OPEN);
                let told = (status, &told["type"]);
                assert_eq!(told, (503, &json!("casemate:unavailable")));
            });
            scope.spawn(move || assert_eq!(client().attest(fresh, attestation).0, 503));
            scope.spawn(move || assert_eq!(client().lease(asked, OPEN, 0).0, 503));
            scope.spawn(move || assert!(!client().is_healthy()));
            scope.spawn(move || {
                let ask = br#"{"version":"0.4.0","tee":"snp"}"#;
                assert_eq!(client().post("auth", None, ask).unwrap().0, 503);
            });
        }
    });
    etcd.go_on();
    // Nothing of it was an attempt on the nonce; what was handed out is good, also after a crash of etcd.
    etcd.restart();
    assert_eq!(other.client().attest(&fresh, &attestation).0, 200);
    assert_eq!(one.client().attest(&fresh, &attestation).0, 401);
    assert_eq!(one.client().resource(&asked, OPEN).0, 200);
}
