//! `sandboxctl receipt`: what remains of a run, verified by somebody who was not there.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::vault::audit::Escaped;
use casemate::receipt::{self, Basis, MAX_RECEIPT, Proven, Statement};
use casemate::record::hex;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::attest::{self, Trust};
use crate::failure::Failure;

/// Exit code when all of it is proven, but the evidence was believed only when it was given.
const LAPSED: u8 = 5;

#[derive(Subcommand)]
pub enum Receipt {
    /// Verify a receipt, offline: evidence, policy, each decision, and every record of the run. In JSON, or
    /// signed (COSE).
    ///
    /// Exit code 0: proven, and the evidence is affirmed. 3: its tier is warning. 4: contraindicated. 5:
    /// proven, but what vouches for the evidence has ended since the run; the verdict is as of the run.
    /// 1: refused.
    Verify(Box<Verify>),
}

#[derive(Args)]
pub struct Verify {
    /// The receipt (`-` for standard input).
    receipt: PathBuf,
    /// The policy that the run must have been under; several, if it was reloaded.
    #[arg(long, value_name = "FILE")]
    policy: Vec<PathBuf>,
    #[command(flatten)]
    trust: Trust,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

impl Receipt {
    pub fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Verify(verify) => verify.run(),
        }
    }
}

impl Verify {
    fn run(&self) -> Result<ExitCode, Failure> {
        // One byte more is enough to be refused.
        let bytes = attest::read_up_to(&self.receipt, MAX_RECEIPT as u64 + 1)?;
        let verifier = self.trust.verifier()?;
        let policies = self
            .policy
            .iter()
            .map(|path| crate::policy::load(path))
            .collect::<Result<Vec<_>, _>>()?;
        let proven = receipt::Receipt::read(&bytes)
            .and_then(|receipt| receipt.verify(&verifier, self.trust.time()));
        let proven = match proven {
            Ok(proven) => proven,
            Err(refuted) => return self.refuse(refuted.code(), &refuted),
        };
        let expected = policies.iter().map(|policy| hex(&policy.digest()));
        let expected: Vec<_> = expected.collect();
        let named = &proven.statement().policies;
        if !expected.is_empty() && named.iter().any(|named| !expected.contains(&named.digest)) {
            let unexpected = Failure::new("the run was under another policy than the expected one");
            return self.refuse_with("unexpected-policy", unexpected);
        }
        if self.json {
            println!("{}", serde_json::to_string_pretty(&as_json(&proven))?);
        } else {
            print(&proven, !expected.is_empty());
        }
        Ok(match proven.lapsed() {
            Some(_) => ExitCode::from(LAPSED),
            None => attest::verdict(proven.appraisal()),
        })
    }

    fn refuse(&self, code: &str, why: &dyn std::error::Error) -> Result<ExitCode, Failure> {
        let failure = Failure::caused(format!("the receipt proves nothing ({code})"), why);
        self.refuse_with(
            code,
            match code {
                "unknown-root" => failure.hint(
                    "evidence of a simulated TEE proves nothing; to try things out, add \
                     --dangerously-accept-simulated",
                ),
                "future" => failure.hint("`--at` is before the end of the run, or this clock is"),
                _ => failure,
            },
        )
    }

    fn refuse_with(&self, code: &str, failure: Failure) -> Result<ExitCode, Failure> {
        if self.json {
            let why = failure.to_string();
            println!("{}", json!({ "proven": false, "code": code, "why": why }));
        }
        Err(failure)
    }
}

/// Where a receipt will be, taken before anything runs: a run is not to end without the receipt that
/// was asked for because its place was none.
pub struct Place {
    path: PathBuf,
    file: File,
}

impl Place {
    /// The file, for who fills it in another way.
    pub fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Leaves no empty file behind of a run that has no receipt.
    pub fn abandon(self) {
        let _ = std::fs::remove_file(&self.path);
    }

    /// Makes the file, which must not exist yet.
    pub fn take(path: &Path) -> Result<Self, Failure> {
        let path = path.to_owned();
        match File::create_new(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => {
                let what = format!("cannot make the receipt `{}`", path.display());
                Err(Failure::caused(what, &error))
            }
        }
    }

    /// Writes the receipt of a session that is over, or takes the file away again.
    pub fn fill(mut self, log: &Path, basis: &Basis) -> Result<(), Failure> {
        let made = receipt::Receipt::of(log, basis).map_err(Failure::from);
        let signed = is_signed(&self.path);
        let written = made.and_then(|receipt| {
            let bytes = match signed {
                true => receipt.to_cose(basis)?,
                false => [&serde_json::to_vec_pretty(&receipt)?[..], b"\n"].concat(),
            };
            self.file.write_all(&bytes)?;
            Ok(self.file.sync_all()?)
        });
        written.map_err(|failure| {
            let _ = std::fs::remove_file(&self.path);
            Failure::new(format!("the run has no receipt: {failure}"))
                .hint("the workload has ended all the same; its log says how")
        })
    }
}

/// Whether a receipt of this name is in its signed form.
pub fn is_signed(path: &Path) -> bool {
    path.extension().is_some_and(|it| it == "cose")
}

fn as_json(proven: &Proven) -> Value {
    json!({
        "proven": true,
        "as-of": proven.as_of(),
        "lapsed": proven.lapsed(),
        "statement": proven.statement(),
        "appraisal": proven.appraisal(),
    })
}

fn print(proven: &Proven, policy_expected: bool) {
    let statement = proven.statement();
    match proven.lapsed() {
        None => println!("proven, as of {}", proven.as_of()),
        Some(lapsed) => {
            println!("proven, as of the run only ({})", proven.as_of());
            println!("  {} ({})", lapsed.message, lapsed.code);
            println!("  that the run was before that is the word of the guest alone");
        }
    }
    attest::print(proven.appraisal(), false, false);
    for (number, policy) in statement.policies.iter().enumerate() {
        let label = if number == 0 { "policy" } else { "reloaded" };
        let name = Escaped(&policy.name);
        println!("{label:<11} `{name}` version {}", policy.version);
        println!("  digest      {}", policy.digest);
    }
    if !policy_expected {
        println!("  expected    by nobody: say which with --policy");
    }
    told(statement);
}

fn told(statement: &Statement) {
    let command: Vec<_> = statement
        .workload
        .command
        .iter()
        .map(|part| format!("{part:?}"))
        .collect();
    println!("workload    {}", Escaped(&command.join(" ")));
    println!("  digest      {}", statement.workload.digest);
    for data in &statement.data {
        let name = Escaped(&data.name);
        println!(
            "data        `{name}`: the key was released; {} bytes were read",
            data.read
        );
        println!(
            "  vault       {}, changed {} times before",
            data.vault, data.generation
        );
        println!("  root        {}", data.root);
        if statement.withdrawn.contains(&data.name) {
            println!("  withdrawn   while it ran");
        }
    }
    let decisions = statement.decisions.len();
    println!("decisions   {decisions}, each arrived at again from the policy and what was known");
    println!("signals     {}", statement.signals);
    for adjustment in &statement.adjustments {
        let state = if adjustment.in_force {
            "in force"
        } else {
            "NOT in force"
        };
        println!(
            "adjusted    {} ({state})",
            Escaped(&adjustment.change.to_string())
        );
        for rule in &adjustment.because {
            println!("  because     {}", Escaped(rule));
        }
    }
    for ordered in &statement.orders {
        println!(
            "ordered     {} by {}",
            Escaped(&ordered.order.to_string()),
            Escaped(&ordered.by.to_string())
        );
        println!("  because     {}", Escaped(&ordered.why));
    }
    match &statement.ending {
        Some(ending) => println!(
            "ended       {}: {}",
            Escaped(&ending.to_string()),
            Escaped(&statement.why)
        ),
        None => println!("ended       {}", Escaped(&statement.why)),
    }
    println!("  from        {}", statement.began);
    println!("  to          {}", statement.ended);
}
