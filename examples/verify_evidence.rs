//! A relying party in 20 lines: is this evidence of the guest that I mean, on hardware that I accept?
//!
//! `cargo run --example verify_evidence -- evidence.json reference.json challenge.json`: the bundle
//! that the guest sent, what is expected of it, and the challenge that it was asked with.
//! `docs/attestation.md` says where each comes from.

use std::error::Error;

use attestation::{Challenge, Evidence, ReferenceValues, TrustTier, UnixTime, Verifier};

/// Says until when the guest is to be trusted, or prints what stands against it.
pub fn trusted_until(
    verifier: &Verifier,
    evidence: &Evidence,
    challenge: &Challenge,
    now: UnixTime,
) -> Result<UnixTime, Box<dyn Error>> {
    // An error: not to be believed. An appraisal: believed, and more or less welcome.
    let appraisal = verifier.appraise(evidence, challenge, now)?;
    for check in appraisal.checks() {
        if check.leaves != TrustTier::Affirming {
            println!("{}: {}, not {}", check.id, check.observed, check.required);
        }
    }
    match appraisal.tier() {
        TrustTier::Affirming => Ok(appraisal.not_after()),
        tier => Err(tier.name().into()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut files = std::env::args().skip(1).map(std::fs::read);
    let missing = || Err(std::io::Error::other("a file is missing"));
    let mut next = || files.next().unwrap_or_else(missing);
    let evidence = Evidence::from_json(&next()?)?;
    let reference = ReferenceValues::from_json(&next()?)?;
    let challenge: Challenge = serde_json::from_slice(&next()?)?;

    let verifier = Verifier::builder().reference_values(reference).build()?;
    let now = UnixTime::from(std::time::SystemTime::now());
    let until = trusted_until(&verifier, &evidence, &challenge, now)?;
    println!("trust it until {until}");
    Ok(())
}
