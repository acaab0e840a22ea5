//! The example for relying parties does what it says.

#![allow(clippy::unwrap_used)]

use attestation::{
    Attester as _, Challenge, ReferenceValues, Role, SimulatedTdx, SimulatedTee, UnixTime, Verifier,
};

#[path = "../../examples/verify_evidence.rs"]
#[allow(dead_code)]
mod verify_evidence;

use verify_evidence::trusted_until;

const NOW: UnixTime = UnixTime(1_790_000_000);

fn challenge(nonce: u8) -> Challenge {
    Challenge {
        role: Role::Guest,
        nonce: [nonce; 32],
        channel: None,
        policy_digest: [0; 32],
        log_key: [0; 32],
        release_key: [0; 32],
    }
}

fn verifier(reference: ReferenceValues) -> Verifier {
    let builder = Verifier::builder().reference_values(reference);
    builder.dangerous().accept_simulated().build().unwrap()
}

#[test]
fn the_example_trusts_the_guest_that_was_meant_and_no_other() {
    let (mut snp, mut tdx) = (
        SimulatedTee::new(NOW).unwrap(),
        SimulatedTdx::new(NOW).unwrap(),
    );
    let report_data = challenge(1).report_data();
    for (evidence, reference) in [
        (snp.attest(&report_data), snp.reference_values()),
        (tdx.attest(&report_data), tdx.reference_values()),
    ] {
        let (evidence, known) = (evidence.unwrap(), verifier(reference));
        let until = trusted_until(&known, &evidence, &challenge(1), NOW).unwrap();
        assert!(until > NOW);
        let other = trusted_until(&known, &evidence, &challenge(2), NOW);
        let refusal = other.unwrap_err().to_string();
        assert_eq!(refusal, "the evidence is bound to a different challenge");
        let unknown = verifier(ReferenceValues::default());
        let warning = trusted_until(&unknown, &evidence, &challenge(1), NOW);
        assert_eq!(warning.unwrap_err().to_string(), "warning");
        let of_production = Verifier::builder().build().unwrap();
        assert!(trusted_until(&of_production, &evidence, &challenge(1), NOW).is_err());
    }
}
