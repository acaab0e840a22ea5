//! A key goes to evidence that deserves it, and to no other: else the vault stays shut, the workload
//! is not started, and the record says why.

#![allow(clippy::unwrap_used)]

mod common;

use attestation::{SimulatedTeeBuilder, Verifier};
use casemate::SessionError;
use casemate::record::Record;
use casemate::release::ReleaseError;
use common::{DATA, Local, Policy, Room, Setup, Told, reference, tee, verifier};

/// Runs what would betray that it ran, or what it read.
fn attempt(change: impl FnOnce(&mut Setup<'_>)) -> Option<Told> {
    let room = Room::new()?;
    let policy = Policy::shell("echo ran; cat /data/*; touch /out/ran").with_data();
    let mut setup = room.setup(&policy);
    change(&mut setup);
    let told = setup.run();
    // Whatever was wrong, these hold.
    assert!(
        !room.out().join("ran").exists() && told.stdout.is_empty(),
        "it ran: {told:#?}"
    );
    for never in ["released", "prepared", "started", "ended"] {
        assert!(
            !told.kinds().contains(&never),
            "{never} in {:?}",
            told.kinds()
        );
    }
    let Some(Record::Closed { why, read, .. }) = told.records.last() else {
        unreachable!()
    };
    assert!(
        why.starts_with("error: ") && read.is_empty(),
        "{why}, {read:?}"
    );
    Some(told)
}

/// What the broker answered, and that the record says the same.
fn refused(told: &Told, code: &str, words: &str) {
    let Err(SessionError::Release(ReleaseError::Refused { refusal, resource })) = &told.result
    else {
        panic!("{:?}", told.result)
    };
    assert_eq!(
        (refusal.code.as_str(), resource.as_str()),
        (code, "customers")
    );
    not_released(told, words);
}

fn not_released(told: &Told, words: &str) {
    let at = told.at(
        "the refusal",
        |r| matches!(r, Record::NotReleased { data, .. } if data == "customers"),
    );
    let Record::NotReleased { error, .. } = &told.records[at] else {
        unreachable!()
    };
    assert!(error.contains(words), "{error}");
    assert_eq!(*error, told.error());
}

/// A run whose guest is believed here, and shows the broker another face.
fn with_tee(bad: SimulatedTeeBuilder) -> impl FnOnce(&mut Setup<'_>) {
    move |setup| setup.tee = Box::new(bad.build().unwrap())
}

#[test]
fn good_evidence_opens_the_vault() {
    let Some(room) = Room::new() else { return };
    let told = room
        .setup(&Policy::shell("cat /data/customers.csv").with_data())
        .run();
    assert_eq!(told.stdout, DATA);
    assert!(told.kinds().contains(&"released"));
}

#[test]
fn evidence_for_another_challenge_gets_no_key() {
    let Some(told) = attempt(with_tee(tee().answering([7; 64]))) else {
        return;
    };
    refused(&told, "binding", "bound to a different challenge");
    assert!(told.kinds().contains(&"not-attested"));
}

#[test]
fn a_debug_guest_gets_no_key() {
    let Some(told) = attempt(with_tee(tee().debug(true))) else {
        return;
    };
    refused(&told, "debug", "the host can read the guest's memory");
}

#[test]
fn evidence_under_an_unknown_root_gets_no_key() {
    let Some(told) = attempt(with_tee(tee().other_root())) else {
        return;
    };
    refused(&told, "unknown-root", "not to be believed");
}

#[test]
fn a_guest_with_another_measurement_gets_no_key() {
    let Some(told) = attempt(with_tee(tee().measurement([9; 48]))) else {
        return;
    };
    let Err(SessionError::Release(ReleaseError::Refused { refusal, .. })) = &told.result else {
        panic!("{:?}", told.result)
    };
    let code = refusal.code.clone();
    assert!(
        ["contraindicated", "warning"].contains(&code.as_str()),
        "{code}"
    );
    refused(&told, &code, "not good enough");
}

#[test]
fn a_broker_that_does_not_accept_simulated_evidence_gives_no_key() {
    let strict = Verifier::builder()
        .reference_values(reference())
        .build()
        .unwrap();
    let told = attempt(|setup| {
        let key = [1; 32];
        setup.broker = Some(Local::new(strict, "customers", &key));
    });
    let Some(told) = told else { return };
    // Here it was believed; the broker decides for itself.
    assert!(told.kinds().contains(&"attested"));
    refused(&told, "unknown-root", "not to be believed");
}

#[test]
fn a_broker_that_never_heard_of_the_vault_says_so() {
    let told = attempt(|setup| setup.broker = Some(Local::new(verifier(), "others", &[1; 32])));
    let Some(told) = told else { return };
    refused(&told, "no-such-resource", "no resource of this name");
}

#[test]
fn a_guest_that_gives_no_evidence_gets_no_key() {
    let Some(told) = attempt(with_tee(tee().fail_after(1))) else {
        return;
    };
    assert!(matches!(
        told.result,
        Err(SessionError::Release(ReleaseError::Evidence(_)))
    ));
    not_released(&told, "no evidence could be collected");
}

#[test]
fn a_key_of_another_vault_opens_nothing() {
    let told = attempt(|setup| setup.broker = Some(Local::new(verifier(), "customers", &[1; 32])));
    let Some(told) = told else { return };
    assert!(matches!(
        told.result,
        Err(SessionError::Release(ReleaseError::Vault {
            source: vault::VaultError::WrongKek,
            ..
        }))
    ));
    not_released(&told, "the key of another vault");
}

#[test]
fn a_secret_that_is_no_key_opens_nothing() {
    let told = attempt(|setup| setup.broker = Some(Local::new(verifier(), "customers", &[1; 31])));
    let Some(told) = told else { return };
    assert!(matches!(
        told.result,
        Err(SessionError::Release(ReleaseError::Sealed { .. }))
    ));
}

#[test]
fn a_policy_with_a_vault_and_nobody_to_ask_for_its_key_does_not_run() {
    let Some(told) = attempt(|setup| setup.broker = None) else {
        return;
    };
    assert!(matches!(told.result, Err(SessionError::NoBroker)));
}

#[test]
fn a_vault_that_is_not_there_is_named() {
    let Some(room) = Room::new() else { return };
    std::fs::remove_dir_all(room.vault()).unwrap();
    let told = room.setup(&Policy::shell("echo ran").with_data()).run();
    assert!(told.stdout.is_empty());
    not_released(&told, "not a vault");
    assert!(
        told.error().contains(room.vault().to_str().unwrap()),
        "{}",
        told.error()
    );
}

#[test]
fn data_that_the_rules_deny_from_the_start_is_not_even_asked_for() {
    let Some(room) = Room::new() else { return };
    let rules = "forbid (principal, action == Action::\"read\", resource is Vault) \
                 when { context.tier != \"affirming\" };";
    let policy = Policy::shell("ls /data || echo nothing")
        .with_data()
        .with_rules("", rules);
    let mut setup = room.setup(&policy);
    setup.tee = Box::new(tee().answering([7; 64]).build().unwrap());
    let told = setup.run();
    assert_eq!(told.stdout, "nothing\n", "{told:#?}");
    assert!(!told.kinds().contains(&"released") && !told.kinds().contains(&"not-released"));
}
