//! The SDK in one page: a policy, a session, and what it tells while it runs.
//!
//! `cargo run --example quickstart`. The TEE is simulated, which proves nothing: on a confidential VM,
//! `attestation::detect()` takes its place and `dangerous()` goes.

use std::time::SystemTime;

use attestation::{SimulatedTee, UnixTime, Verifier};
use casemate::Session;
use policy::Bundle;
use vault::audit::{Log, LogKey};

const POLICY: &str = r#"
version = 1
name = "quickstart"

[attestation]
accept = ["simulated"]
max-age = "10m"

[workload]
command = ["sh", "-c", "echo \"inside: $(id), $(ls / | tr '\\n' ' ')\""]

[risk]
denied-syscall = { adds = 30, half-life = "60s" }

[rules]
cedar = """
permit (principal, action, resource);
forbid (principal, action == Action::"live", resource) when { context.risk >= 80 };
"""
"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let bundle = Bundle::parse(POLICY, "quickstart")?;
    let tee = SimulatedTee::new(UnixTime::from(SystemTime::now()))?;
    let verifier = Verifier::builder()
        .reference_values(tee.reference_values())
        .dangerous()
        .accept_simulated()
        .build()?;
    let folder = std::env::temp_dir().join(format!("casemate-quickstart-{}", std::process::id()));
    let log = Log::create(&folder, "casemate/quickstart", LogKey::generate()?)?;

    let session = Session::builder(bundle)
        .attested_by(Box::new(tee), verifier)
        .watched_by(|record, _| println!("recorded: {}", record.kind()))
        .logged_to(log)?;
    let outcome = session.run()?;

    println!("{}: {:?}", outcome.why, outcome.ending);
    let verified = vault::audit::verify(&folder, None, None)?;
    println!(
        "the log verifies: {} records in {}",
        verified.size(),
        folder.display()
    );
    Ok(())
}
