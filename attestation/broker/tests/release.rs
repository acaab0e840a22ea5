//! A secret reaches attested guests, and nobody else.

#![allow(clippy::unwrap_used)]

use attestation::{
    Attester as _, Challenge, Evidence, Nonce, ReferenceValues, ReleaseKey, Role, SealError,
    SimulatedTee, SimulatedTeeBuilder, TrustTier, UnixTime, Verifier, VerifierBuilder,
    release_context,
};
use broker::{Broker, ChallengeError, Release, ReleaseError, ReleasePolicy};
use zeroize::Zeroizing;

const NOW: UnixTime = UnixTime(1_790_000_000);
const SECRET: &[u8] = b"the key of the vault";

fn reference() -> ReferenceValues {
    SimulatedTee::new(NOW).unwrap().reference_values()
}

fn verifier() -> VerifierBuilder {
    Verifier::builder()
        .reference_values(reference())
        .dangerous()
        .accept_simulated()
}

fn broker() -> Broker {
    broker_with(ReleasePolicy::default())
}

fn broker_with(policy: ReleasePolicy) -> Broker {
    Broker::builder(verifier().build().unwrap())
        .resource("vault", Zeroizing::new(SECRET.to_vec()), policy)
        .resource(
            "other",
            Zeroizing::new(vec![1; 32]),
            ReleasePolicy::default(),
        )
        .nonce_lifetime(60)
        .build()
}

fn tee() -> SimulatedTeeBuilder {
    SimulatedTee::builder(NOW)
}

fn challenge(nonce: Nonce, key: &ReleaseKey) -> Challenge {
    Challenge {
        role: Role::Guest,
        nonce,
        channel: Some([2; 32]),
        policy_digest: [3; 32],
        log_key: [4; 32],
        release_key: key.public(),
    }
}

fn attest(tee: SimulatedTeeBuilder, challenge: &Challenge) -> Evidence {
    tee.build()
        .unwrap()
        .attest(&challenge.report_data())
        .unwrap()
}

/// One whole exchange of a guest with a broker.
fn ask(broker: &Broker, tee: SimulatedTeeBuilder) -> Result<Release, ReleaseError> {
    let key = ReleaseKey::generate().unwrap();
    let challenge = challenge(broker.challenge(NOW).unwrap(), &key);
    broker.release(&attest(tee, &challenge), &challenge, "vault", NOW)
}

fn refusal(tee: SimulatedTeeBuilder) -> &'static str {
    ask(&broker(), tee).unwrap_err().code()
}

#[test]
fn an_attested_guest_gets_the_secret_and_opens_it() {
    let (broker, key) = (broker(), ReleaseKey::generate().unwrap());
    let challenge = challenge(broker.challenge(NOW).unwrap(), &key);
    let release = broker
        .release(&attest(tee(), &challenge), &challenge, "vault", NOW)
        .unwrap();
    let context = release_context("vault", &challenge.report_data());
    assert_eq!(&key.open(&release.sealed, &context).unwrap()[..], SECRET);
    assert_eq!(release.resource, "vault");
    assert_eq!(release.appraisal.tier(), TrustTier::Affirming);
    assert!(release.appraisal.is_simulated());

    // As another resource, or for another piece of evidence, it does not open.
    let other = release_context("other", &challenge.report_data());
    assert_eq!(
        key.open(&release.sealed, &other).unwrap_err(),
        SealError::Open
    );
    let other = release_context("vault", &[0; 64]);
    assert_eq!(
        key.open(&release.sealed, &other).unwrap_err(),
        SealError::Open
    );
}

#[test]
fn a_nonce_is_good_once() {
    let (broker, key) = (broker(), ReleaseKey::generate().unwrap());
    let challenge = challenge(broker.challenge(NOW).unwrap(), &key);
    let evidence = attest(tee(), &challenge);
    assert!(broker.release(&evidence, &challenge, "vault", NOW).is_ok());
    let again = broker
        .release(&evidence, &challenge, "vault", NOW)
        .unwrap_err();
    assert_eq!(again.code(), "nonce-unknown");
}

#[test]
fn a_nonce_is_spent_by_a_refusal_too() {
    let (broker, key) = (broker(), ReleaseKey::generate().unwrap());
    let challenge = challenge(broker.challenge(NOW).unwrap(), &key);
    let bad = attest(tee().debug(true), &challenge);
    assert_eq!(
        broker
            .release(&bad, &challenge, "vault", NOW)
            .unwrap_err()
            .code(),
        "debug"
    );
    let good = attest(tee(), &challenge);
    let late = broker.release(&good, &challenge, "vault", NOW).unwrap_err();
    assert_eq!(late.code(), "nonce-unknown");
}

#[test]
fn a_nonce_expires() {
    let (broker, key) = (broker(), ReleaseKey::generate().unwrap());
    for (seconds, code) in [(60, "nonce-expired"), (61, "nonce-expired")] {
        let challenge = challenge(broker.challenge(NOW).unwrap(), &key);
        let evidence = attest(tee(), &challenge);
        let late = NOW.plus_seconds(seconds);
        assert_eq!(
            broker
                .release(&evidence, &challenge, "vault", late)
                .unwrap_err()
                .code(),
            code
        );
    }
    let challenge = challenge(broker.challenge(NOW).unwrap(), &key);
    let evidence = attest(tee(), &challenge);
    assert!(
        broker
            .release(&evidence, &challenge, "vault", NOW.plus_seconds(59))
            .is_ok()
    );
}

#[test]
fn a_nonce_of_another_broker_or_of_nobody_is_unknown() {
    let key = ReleaseKey::generate().unwrap();
    for nonce in [broker().challenge(NOW).unwrap(), [0; 32]] {
        let challenge = challenge(nonce, &key);
        let evidence = attest(tee(), &challenge);
        let refusal = broker()
            .release(&evidence, &challenge, "vault", NOW)
            .unwrap_err();
        assert_eq!(refusal.code(), "nonce-unknown");
    }
}

#[test]
fn of_many_who_use_one_nonce_at_once_one_gets_the_secret() {
    let (broker, key) = (broker(), ReleaseKey::generate().unwrap());
    let challenge = challenge(broker.challenge(NOW).unwrap(), &key);
    let evidence = attest(tee(), &challenge);
    let released = std::thread::scope(|scope| {
        let tries: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| broker.release(&evidence, &challenge, "vault", NOW).is_ok()))
            .collect();
        tries
            .into_iter()
            .map(|handle| handle.join().unwrap())
            .filter(|won| *won)
            .count()
    });
    assert_eq!(released, 1);
}

#[test]
fn evidence_must_answer_this_very_challenge() {
    let (broker, key) = (broker(), ReleaseKey::generate().unwrap());
    let thief = ReleaseKey::generate().unwrap();
    let fresh = || challenge(broker.challenge(NOW).unwrap(), &key);
    let changes: [fn(Challenge, &ReleaseKey) -> Challenge; 5] = [
        |challenge, thief| Challenge {
            release_key: thief.public(),
            ..challenge
        },
        |challenge, _| Challenge {
            channel: Some([9; 32]),
            ..challenge
        },
        |challenge, _| Challenge {
            channel: None,
            ..challenge
        },
        |challenge, _| Challenge {
            policy_digest: [9; 32],
            ..challenge
        },
        |challenge, _| Challenge {
            log_key: [9; 32],
            ..challenge
        },
    ];
    for change in changes {
        let asked = fresh();
        let evidence = attest(tee(), &asked);
        let presented = change(asked, &thief);
        let refusal = broker
            .release(&evidence, &presented, "vault", NOW)
            .unwrap_err();
        assert_eq!(refusal.code(), "binding");
        assert!(refusal.appraisal().is_none());
    }
    // Evidence that answered an earlier nonce.
    let (old, new) = (fresh(), fresh());
    let refusal = broker
        .release(&attest(tee(), &old), &new, "vault", NOW)
        .unwrap_err();
    assert_eq!(refusal.code(), "binding");
}

#[test]
fn only_guests_are_given_secrets() {
    let (broker, key) = (broker(), ReleaseKey::generate().unwrap());
    let asked = challenge(broker.challenge(NOW).unwrap(), &key);
    let asked = Challenge {
        role: Role::Broker,
        ..asked
    };
    let evidence = attest(tee(), &asked);
    assert_eq!(
        broker
            .release(&evidence, &asked, "vault", NOW)
            .unwrap_err()
            .code(),
        "role"
    );
}

#[test]
fn unwelcome_guests_are_refused_each_with_its_reason() {
    assert_eq!(refusal(tee().debug(true)), "debug");
    assert_eq!(refusal(tee().measurement([7; 48])), "contraindicated");
    assert_eq!(refusal(tee().vmpl(1)), "contraindicated");
    assert_eq!(refusal(tee().migration_agent(true)), "contraindicated");
    assert_eq!(refusal(tee().report_version(6)), "warning");
    assert_eq!(refusal(tee().other_root()), "unknown-root");
    assert_eq!(refusal(tee().expired_vek()), "certificate-expired");
    assert_eq!(refusal(tee().answering([0; 64])), "binding");
    assert_eq!(
        refusal(tee().tamper_report(|report| report[0x90] ^= 1)),
        "signature"
    );
}

#[test]
fn a_refusal_of_believed_evidence_carries_the_verdict_for_the_record() {
    let refusal = ask(&broker(), tee().debug(true)).unwrap_err();
    assert!(refusal.appraisal().unwrap().debug());
    assert_eq!(
        refusal.appraisal().unwrap().tier(),
        TrustTier::Contraindicated
    );
}

#[test]
fn a_warning_is_enough_only_where_the_policy_says_so() {
    let old = || {
        let tcb = attestation::DEFAULT_TCB;
        tee().tcb(attestation::snp::TcbVersion {
            snp: tcb.snp - 1,
            ..tcb
        })
    };
    assert_eq!(ask(&broker(), old()).unwrap_err().code(), "warning");
    let lenient = broker_with(ReleasePolicy::default().dangerous().accept_warning());
    assert!(ask(&lenient, old()).is_ok());
    assert_eq!(
        ask(&lenient, tee().debug(true)).unwrap_err().code(),
        "debug"
    );
    assert_eq!(
        ask(&lenient, tee().vmpl(1)).unwrap_err().code(),
        "contraindicated"
    );
}

#[test]
fn a_secret_goes_only_to_guests_under_the_policies_it_is_for() {
    // `challenge` binds evidence to the bundle whose digest is 3, 3, ….
    let welcome = broker_with(ReleasePolicy::default().only_for([[9; 32], [3; 32]]));
    ask(&welcome, tee()).unwrap();
    for policies in [vec![[9; 32]], vec![]] {
        let elsewhere = broker_with(ReleasePolicy::default().only_for(policies));
        assert_eq!(ask(&elsewhere, tee()).unwrap_err().code(), "policy");
    }
}

#[test]
fn a_debug_guest_gets_nothing_even_where_debug_is_allowed() {
    let mut reference = reference();
    reference.sev_snp.dangerously_allow_debug = true;
    let verifier = verifier().reference_values(reference).build().unwrap();
    let policy = ReleasePolicy::default().dangerous().accept_warning();
    let broker = Broker::builder(verifier)
        .resource("vault", Zeroizing::new(SECRET.to_vec()), policy)
        .build();
    assert_eq!(ask(&broker, tee().debug(true)).unwrap_err().code(), "debug");
}

#[test]
fn without_reference_values_nothing_is_released() {
    let verifier = Verifier::builder()
        .dangerous()
        .accept_simulated()
        .build()
        .unwrap();
    let broker = Broker::builder(verifier)
        .resource(
            "vault",
            Zeroizing::new(SECRET.to_vec()),
            ReleasePolicy::default(),
        )
        .build();
    assert_eq!(ask(&broker, tee()).unwrap_err().code(), "warning");
}

#[test]
fn a_simulated_guest_gets_nothing_from_a_broker_that_did_not_ask_for_one() {
    let verifier = Verifier::builder()
        .reference_values(reference())
        .build()
        .unwrap();
    let broker = Broker::builder(verifier)
        .resource(
            "vault",
            Zeroizing::new(SECRET.to_vec()),
            ReleasePolicy::default(),
        )
        .build();
    assert_eq!(ask(&broker, tee()).unwrap_err().code(), "unknown-root");
}

#[test]
fn what_exists_is_told_to_welcome_guests_only() {
    let (broker, key) = (broker(), ReleaseKey::generate().unwrap());
    for (guest, code) in [
        (tee(), "no-such-resource"),
        (tee().report_version(6), "warning"),
    ] {
        let challenge = challenge(broker.challenge(NOW).unwrap(), &key);
        let evidence = attest(guest, &challenge);
        let refusal = broker
            .release(&evidence, &challenge, "nothing", NOW)
            .unwrap_err();
        assert_eq!(refusal.code(), code);
        assert!(refusal.appraisal().is_some());
    }
}

#[test]
fn a_release_key_that_gives_no_secrecy_is_refused() {
    let (broker, key) = (broker(), ReleaseKey::generate().unwrap());
    let weak = challenge(broker.challenge(NOW).unwrap(), &key);
    let weak = Challenge {
        release_key: [0; 32],
        ..weak
    };
    let evidence = attest(tee(), &weak);
    assert_eq!(
        broker
            .release(&evidence, &weak, "vault", NOW)
            .unwrap_err()
            .code(),
        "seal"
    );
}

#[test]
fn unanswered_challenges_are_bounded() {
    let broker = Broker::builder(verifier().build().unwrap())
        .nonce_capacity(3)
        .nonce_lifetime(10)
        .build();
    for _ in 0..3 {
        assert!(broker.challenge(NOW).is_ok());
    }
    assert_eq!(broker.challenge(NOW), Err(ChallengeError::Busy));
    assert!(broker.challenge(NOW.plus_seconds(10)).is_ok());
}

#[test]
fn a_broker_shows_names_and_no_secrets() {
    let shown = format!("{:?}", broker());
    assert!(shown.contains("vault"));
    assert!(!shown.contains("116"), "bytes of the secret: {shown}");
}
