//! The clean room with its key somewhere else: a broker of its own, reached over TLS, that releases the
//! key to this policy in an attested guest; and a receipt that proves the run to its owner.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::rooms::{DATA, Rooms};

#[test]
fn the_clean_room_runs_with_a_key_from_a_broker_elsewhere_and_its_owner_has_the_proof() {
    let Some(mut rooms) = Rooms::new() else {
        return;
    };
    let told = rooms.run("log", &["--receipt", "receipt.json"]);
    let text = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "{text}");
    assert_eq!(
        fs::read_to_string(rooms.path("guest/out/copy")).unwrap(),
        DATA
    );

    // The owner of the data looks at both: what the broker recorded, and what the run can prove.
    let proof = rooms.proof();
    assert_eq!(proof["statement"]["data"][0]["read"], DATA.len());
    rooms.end_broker();
    let records = rooms.records();
    let of = |kind: &str| {
        let position = records.iter().position(|record| record["kind"] == kind);
        position.unwrap_or_else(|| panic!("{kind} is not in {records:?}"))
    };
    let attested = &records[of("attested")];
    assert_eq!(attested["policy"], rooms.policy_digest());
    assert_eq!(
        attested["policy"],
        proof["statement"]["policies"][0]["digest"]
    );
    assert!(of("attested") < of("releasing"));
    assert_eq!(records[of("releasing")]["session"], attested["session"]);
}

#[test]
fn another_policy_gets_no_key_and_nothing_runs() {
    let Some(rooms) = Rooms::new() else { return };
    rooms.write(
        "guest/policy.toml",
        &rooms.policy("cat /data/customers.csv > /out/copy; true"),
    );
    rooms.refused(&rooms.run("log", &[]), "it is not released to this guest");
}

#[test]
fn a_revoked_key_and_a_broker_that_is_gone_let_nothing_run() {
    let Some(mut rooms) = Rooms::new() else {
        return;
    };
    let revoke = [
        "revoke",
        "--admin",
        "admin",
        "default/key/customers",
        "--why",
        "it leaked",
    ];
    rooms.succeeds(
        common::casemate_broker()
            .args(revoke)
            .current_dir(rooms.path("owner")),
    );
    rooms.refused(&rooms.run("log", &[]), "it is not released to this guest");
    rooms.end_broker();
    rooms.refused(&rooms.run("other", &[]), "the broker cannot be reached");
}

#[test]
fn a_broker_with_another_certificate_is_not_asked() {
    let Some(rooms) = Rooms::new() else { return };
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let other = parameters.self_signed(&key).unwrap().pem();
    rooms.write("guest/broker.pem", &other);
    rooms.refused(&rooms.run("log", &[]), "the broker cannot be reached");
}
