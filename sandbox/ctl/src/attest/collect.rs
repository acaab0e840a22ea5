//! `sandboxctl attest challenge` and `attest collect`: what is asked for, and the evidence of it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::SystemTime;

use attestation::{
    AttestError, Attester, Challenge, Hex, Nonce, Role, SimulatedTdx, SimulatedTee, UnixTime,
};
use clap::{Args, ValueEnum};

use super::{challenge, read, write, write_text};
use crate::failure::Failure;

#[derive(Args)]
pub(crate) struct NewChallenge {
    /// SHA-256 of the policy that has to be in force (64 hexadecimal digits). [default: zeroes]
    #[arg(long, value_name = "HEX", value_parser = Hex::<32>::from_str)]
    policy_digest: Option<Hex<32>>,
    /// Ed25519 key of the guest's audit log (64 hexadecimal digits). [default: zeroes]
    #[arg(long, value_name = "HEX", value_parser = Hex::<32>::from_str)]
    log_key: Option<Hex<32>>,
    /// X25519 key that secrets are to be sealed to (64 hexadecimal digits). [default: zeroes]
    #[arg(long, value_name = "HEX", value_parser = Hex::<32>::from_str)]
    release_key: Option<Hex<32>>,
    /// The channel that the evidence is to come over, for example its TLS exporter (64 hexadecimal
    /// digits). [default: none]
    #[arg(long, value_name = "HEX", value_parser = Hex::<32>::from_str)]
    channel: Option<Hex<32>>,
    /// File for the challenge (JSON); it must not exist yet. [default: standard output]
    #[arg(long, short)]
    output: Option<PathBuf>,
}

impl NewChallenge {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let key = |key: Option<Hex<32>>| key.map_or([0; 32], |key| key.0);
        let challenge = Challenge {
            role: Role::Guest,
            nonce: fresh()?,
            channel: self.channel.map(|channel| channel.0),
            policy_digest: key(self.policy_digest),
            log_key: key(self.log_key),
            release_key: key(self.release_key),
        };
        let json = serde_json::to_string_pretty(&challenge)?;
        write_text(&json, self.output.as_deref())
    }
}

fn fresh() -> Result<Nonce, Failure> {
    let mut nonce = [0; 32];
    let flags = rustix::rand::GetRandomFlags::empty();
    match rustix::rand::getrandom(&mut nonce[..], flags) {
        Ok(filled) if filled == nonce.len() => Ok(nonce),
        _ => Err(Failure::new("the kernel gives no random numbers")),
    }
}

#[derive(Args)]
pub(crate) struct Collect {
    #[command(flatten)]
    binding: Binding,
    /// Put the firmware's event log of a TDX guest in: `/sys/firmware/acpi/tables/data/CCEL`. It has to
    /// explain every RTMR, so leave it out where something else extends them.
    #[arg(long, conflicts_with = "simulated")]
    event_log: bool,
    /// Simulate a guest instead of asking this machine's TEE, to try things out: the evidence proves
    /// nothing, and is believed only with `--dangerously-accept-simulated`.
    #[arg(long, value_enum, value_name = "TEE")]
    simulated: Option<Simulated>,
    /// File for the bundle (JSON); it must not exist yet. [default: standard output]
    #[arg(long, short)]
    output: Option<PathBuf>,
}

/// What the evidence is to be bound to.
#[derive(Args)]
#[group(required = true, multiple = false)]
struct Binding {
    /// The 64 bytes that the evidence is to be bound to (128 hexadecimal digits).
    #[arg(long, value_name = "HEX", value_parser = Hex::<64>::from_str)]
    report_data: Option<Hex<64>>,
    /// File with the challenge to answer (JSON; `attest challenge` makes one).
    #[arg(long, value_name = "FILE")]
    challenge: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Simulated {
    SevSnp,
    Tdx,
}

impl Collect {
    pub(crate) fn run(self) -> Result<ExitCode, Failure> {
        let report_data = match (&self.binding.report_data, &self.binding.challenge) {
            (Some(Hex(report_data)), _) => *report_data,
            (None, Some(path)) => challenge(path)?.report_data(),
            (None, None) => return Err(Failure::new("give `--report-data` or `--challenge`")),
        };
        let mut evidence = self.attester()?.attest(&report_data)?;
        if self.event_log {
            let log = read(Path::new("/sys/firmware/acpi/tables/data/CCEL"))?;
            let length = attestation::tdx::EventLog::parse(&log)?.length();
            // The rest is what the firmware fills the table with.
            evidence = evidence.with_event_log(log.into_iter().take(length).collect())?;
        }
        write(&evidence, self.output.as_deref())
    }

    fn attester(&self) -> Result<Box<dyn Attester>, Failure> {
        let now = UnixTime::from(SystemTime::now());
        match self.simulated {
            Some(Simulated::SevSnp) => Ok(Box::new(SimulatedTee::new(now)?)),
            Some(Simulated::Tdx) => Ok(Box::new(SimulatedTdx::new(now)?)),
            None => attestation::detect().map_err(|error| match error {
                AttestError::NoTee => Failure::from(error)
                    .hint("`--simulated sev-snp` shows what would come, and proves nothing"),
                error => error.into(),
            }),
        }
    }
}
