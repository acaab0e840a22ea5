//! `sandboxctl attest`: collect evidence, bundle it, and have it appraised offline.

mod attached;
mod collect;
mod fetched;
mod measure;
mod refusal;
mod selftest;
mod token;
mod trust;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use ::vault::audit::Escaped;
use attestation::snp::Report;
use attestation::tdx::Quote;
use attestation::{
    Appraisal, Challenge, Check, Endorsements, Evidence, Hex, Outcome, ReferenceValues, Tee,
    TrustTier,
};
use clap::{Args, Subcommand, ValueEnum};

use crate::failure::Failure;

pub use trust::Trust;

/// Exit code when evidence is believed, and its tier is `warning`.
const WARNING: u8 = 3;
/// Exit code when evidence is believed, and its tier is `contraindicated`.
const CONTRAINDICATED: u8 = 4;

#[derive(Subcommand)]
pub enum Attest {
    /// Make a challenge with a fresh nonce, for a guest to answer with evidence.
    Challenge(collect::NewChallenge),
    /// Collect evidence from the TEE of this machine.
    Collect(collect::Collect),
    /// Put a raw report or quote and what vouches for it into one evidence bundle.
    Bundle(Box<Bundle>),
    /// Appraise an evidence bundle, offline: what it lacks to be affirmed.
    ///
    /// Exit code 0: affirming. 3: warning. 4: contraindicated. 1: not to be believed.
    Verify(Box<Verify>),
    /// Appraise an evidence bundle, offline, and print every check with what was seen and asked for.
    Explain(Box<Verify>),
    /// Let the verifier try itself on genuine evidence, and on everything that can be changed about it.
    ///
    /// Exit code 0: every verdict is the expected one and no change was affirmed. 1: not so.
    Selftest(selftest::Selftest),
    /// Sign a table of what AMD's firmware versions are worth; prints the key to verify it with.
    SignTable(token::SignTable),
    /// Compute what the launch digest of an SEV-SNP guest has to be, and say what differs if it is
    /// another.
    Measure(measure::Measure),
}

#[derive(Args)]
pub struct Bundle {
    /// The raw report of SEV-SNP (1184 bytes), or the quote of TDX.
    report: PathBuf,
    /// Which TEE made it. [default: what it looks like]
    #[arg(long, value_enum)]
    tee: Option<Kind>,
    /// Certificate of the key that signed the report: VCEK or VLEK (DER).
    #[arg(long, value_name = "FILE")]
    vek: Option<PathBuf>,
    /// Certificate that vouches for it: ASK or ASVK (DER).
    #[arg(long, value_name = "FILE")]
    intermediate: Option<PathBuf>,
    /// Certificate of the root: ARK (DER). It has to be a pinned one.
    #[arg(long, value_name = "FILE")]
    root: Option<PathBuf>,
    /// Intel's TCB info, as its service sent it (JSON).
    #[arg(long, value_name = "FILE")]
    tcb_info: Option<PathBuf>,
    /// Intel's identity of the quoting enclave, as its service sent it (JSON).
    #[arg(long, value_name = "FILE")]
    qe_identity: Option<PathBuf>,
    /// Certificate of the key that signed both (DER).
    #[arg(long, value_name = "FILE")]
    tcb_signing: Option<PathBuf>,
    /// Revocation list to put in (DER). May be repeated.
    #[arg(long, value_name = "FILE")]
    crl: Vec<PathBuf>,
    /// Event log of a TDX guest: `/sys/firmware/acpi/tables/data/CCEL`.
    #[arg(long, value_name = "FILE")]
    event_log: Option<PathBuf>,
    #[command(flatten)]
    attached: attached::Attached,
    #[command(flatten)]
    fetched: fetched::Fetched,
    /// File for the bundle (JSON); it must not exist yet. [default: standard output]
    #[arg(long, short)]
    output: Option<PathBuf>,
}

#[derive(Args)]
pub struct Verify {
    /// The evidence bundle, JSON or CBOR (`-` for standard input).
    evidence: PathBuf,
    #[command(flatten)]
    binding: Binding,
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    ear: token::EarOutput,
    /// Write reference values down that name this guest and its firmware, to be looked at and kept by
    /// whoever says that it is the right one; the file must not exist yet.
    #[arg(long, value_name = "FILE")]
    propose: Option<PathBuf>,
    /// Print the appraisal as JSON.
    #[arg(long)]
    json: bool,
}

/// Which TEE made a report.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    SevSnp,
    Tdx,
}

/// What the evidence has to be bound to.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Binding {
    /// The 64 bytes that the evidence must be bound to (128 hexadecimal digits).
    #[arg(long, value_name = "HEX", value_parser = Hex::<64>::from_str)]
    report_data: Option<Hex<64>>,
    /// What the TPM's quote must be bound to, where that is not 64 bytes (hexadecimal digits).
    #[arg(long, value_name = "HEX")]
    qualifying_data: Option<String>,
    /// File with the challenge that the evidence must answer (JSON).
    #[arg(long, value_name = "FILE")]
    challenge: Option<PathBuf>,
    /// Believe evidence whatever it is bound to, and so also a replay of somebody else's.
    #[arg(long)]
    dangerously_ignore_binding: bool,
}

impl Attest {
    pub fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Challenge(challenge) => challenge.run(),
            Self::Collect(collect) => collect.run(),
            Self::Bundle(bundle) => bundle.run(),
            Self::Verify(verify) => verify.run(false),
            Self::Explain(verify) => verify.run(true),
            Self::Selftest(selftest) => selftest.run(),
            Self::SignTable(sign) => sign.run(),
            Self::Measure(measure) => measure.run(),
        }
    }
}

impl Bundle {
    fn run(self) -> Result<ExitCode, Failure> {
        let mut endorsements = Endorsements::default();
        if let Some(path) = &self.vek {
            endorsements = endorsements.with_vek(read(path)?)?;
        }
        if let Some(path) = &self.intermediate {
            endorsements = endorsements.with_intermediate(read(path)?)?;
        }
        if let Some(path) = &self.root {
            endorsements = endorsements.with_root(read(path)?)?;
        }
        if let Some(path) = &self.tcb_info {
            endorsements = endorsements.with_tcb_info(read(path)?)?;
        }
        if let Some(path) = &self.qe_identity {
            endorsements = endorsements.with_qe_identity(read(path)?)?;
        }
        if let Some(path) = &self.tcb_signing {
            endorsements = endorsements.with_tcb_signing(read(path)?)?;
        }
        let report = self.attached.hardware_report(read(&self.report)?)?;
        let tee = self.tee(&report)?;
        let mut evidence = Evidence::new(tee, report, endorsements)?;
        for path in &self.crl {
            evidence = evidence.with_crl(read(path)?)?;
        }
        if let Some(path) = &self.event_log {
            evidence = evidence.with_event_log(read(path)?)?;
        }
        let evidence = self.attached.add_to(evidence)?;
        let evidence = self.fetched.add_to(evidence)?;
        write(&evidence, self.output.as_deref())
    }
}

impl Bundle {
    /// What made the report, which has to be of the form that it makes.
    fn tee(&self, report: &[u8]) -> Result<Tee, Failure> {
        let snp = || Report::parse(report).map_err(Failure::from);
        let tdx = || Quote::parse(report).map_err(Failure::from);
        let wrong = |what: &str, failure: Failure| {
            let path = self.report.display();
            Failure::new(format!("`{path}` is no {what}: {failure}"))
        };
        match self.tee {
            Some(Kind::SevSnp) => snp()
                .map(|_| Tee::SevSnp)
                .map_err(|failure| wrong("report of SEV-SNP", failure)),
            Some(Kind::Tdx) => tdx()
                .map(|_| Tee::Tdx)
                .map_err(|failure| wrong("quote of TDX", failure)),
            None if snp().is_ok() => Ok(Tee::SevSnp),
            None if tdx().is_ok() => Ok(Tee::Tdx),
            None => Err(Failure::new(format!(
                "`{}` is neither a report of SEV-SNP nor a quote of TDX",
                self.report.display()
            ))
            .hint("`--tee` says what is wrong with it")),
        }
    }
}

impl Verify {
    fn run(&self, explain: bool) -> Result<ExitCode, Failure> {
        let bytes = read(&self.evidence)?;
        let is_json = bytes.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{');
        let evidence = if is_json {
            Evidence::from_json(&bytes)
        } else {
            Evidence::from_cbor(&bytes)
        };
        let evidence = evidence.map_err(|error| {
            Failure::caused(
                format!("`{}` is no evidence bundle", self.evidence.display()),
                &error,
            )
            .hint("`sandboxctl attest bundle` makes one of a raw report and its certificates")
        })?;
        let now = self.trust.time();
        let evidence = match self.trust.folder() {
            Some(folder) => folder.complete(evidence, now)?,
            None => evidence,
        };
        let binding = self.binding.bytes(&evidence)?;
        let appraisal = self
            .trust
            .verifier()?
            .appraise_quote_bound_to(&evidence, &binding, now);
        let appraisal = appraisal.map_err(|error| refusal::explained(&error))?;
        self.ear.write(&appraisal)?;
        if let Some(path) = &self.propose {
            let values = ReferenceValues::naming(&appraisal).to_json();
            create(path, &format!("{values}\n"))?;
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&appraisal)?);
        } else {
            print(&appraisal, explain, self.binding.dangerously_ignore_binding);
        }
        Ok(verdict(&appraisal))
    }
}

impl Binding {
    fn bytes(&self, evidence: &Evidence) -> Result<Vec<u8>, Failure> {
        if let Some(Hex(report_data)) = &self.report_data {
            return Ok(report_data.to_vec());
        }
        if let Some(qualifying_data) = &self.qualifying_data {
            return attached::digits(qualifying_data);
        }
        if let Some(path) = &self.challenge {
            return Ok(challenge(path)?.report_data().to_vec());
        }
        // Whatever it says of itself: the user asked for that by name.
        evidence.claimed_binding().ok_or_else(|| {
            Failure::new("the evidence does not say what it is bound to")
                .hint("it is too short, or it has GPUs, which hide it: give `--report-data`")
        })
    }
}

/// The exit code that tells the tier.
pub fn verdict(appraisal: &Appraisal) -> ExitCode {
    ExitCode::from(match appraisal.tier() {
        TrustTier::Affirming => 0,
        TrustTier::Warning => WARNING,
        _ => CONTRAINDICATED,
    })
}

/// What an appraisal comes to, and what stands against it; every check, if asked to `explain`.
pub fn print(appraisal: &Appraisal, explain: bool, unbound: bool) {
    let simulated = if appraisal.is_simulated() {
        " (simulated: proves nothing)"
    } else {
        ""
    };
    println!(
        "{}{simulated}: tier {}",
        appraisal.tee(),
        appraisal.tier().name()
    );
    println!("  tcb         {}", appraisal.tcb_status().name());
    println!(
        "  measurement {}",
        casemate::record::hex(appraisal.measurement())
    );
    if let Some(tpm) = appraisal.vtpm() {
        println!("  tpm key     {}", tpm.key);
    }
    for gpu in appraisal.gpus() {
        println!("  gpu         {} {}", Escaped(&gpu.model), gpu.device);
    }
    println!("  valid until {}", appraisal.not_after());
    if unbound {
        println!("  binding     ignored: this may be a replay");
    }
    let limits = |check: &&Check| check.leaves != TrustTier::Affirming;
    let shown: Vec<_> = if explain {
        appraisal.checks().iter().collect()
    } else {
        appraisal.checks().iter().filter(limits).collect()
    };
    if shown.is_empty() {
        println!("  nothing stands against it");
    }
    for check in shown {
        let outcome = match check.outcome {
            Outcome::Pass => "pass",
            Outcome::Fail => "fail",
            Outcome::Skipped => "skipped",
            _ => "unknown",
        };
        println!("  {outcome:<8} {}", check.id);
        for (label, text) in [("seen", &check.observed), ("asked", &check.required)] {
            if !text.is_empty() {
                println!("           {label:<8} {}", Escaped(text));
            }
        }
        if explain {
            println!("           source   {}", check.source);
        }
        if check.leaves != TrustTier::Affirming {
            println!("           so the tier is {} at best", check.leaves.name());
        }
    }
}

fn challenge(path: &Path) -> Result<Challenge, Failure> {
    serde_json::from_slice(&read(path)?).map_err(|error| {
        Failure::caused(format!("`{}` is no challenge", path.display()), &error)
            .hint("`sandboxctl attest challenge` makes one")
    })
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    /// More than any evidence, certificate or list has.
    const MOST: u64 = 16 << 20;
    read_up_to(path, MOST)
}

pub(crate) fn read_up_to(path: &Path, most: u64) -> Result<Vec<u8>, Failure> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let result = if path.as_os_str() == "-" {
        std::io::stdin().take(most).read_to_end(&mut bytes)
    } else {
        fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes))
    };
    result.map_err(|error| Failure::caused(format!("cannot read `{}`", path.display()), &error))?;
    Ok(bytes)
}

fn write(evidence: &Evidence, output: Option<&Path>) -> Result<ExitCode, Failure> {
    write_text(&evidence.to_json(), output)
}

fn write_text(text: &str, output: Option<&Path>) -> Result<ExitCode, Failure> {
    use std::io::Write as _;
    match output {
        Some(path) => create(path, &format!("{text}\n"))?,
        None => writeln!(std::io::stdout(), "{text}")?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Writes a file that does not exist yet.
fn create(path: &Path, text: &str) -> Result<(), Failure> {
    use std::io::Write as _;
    fs::File::create_new(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| Failure::caused(format!("cannot write `{}`", path.display()), &error))
}
