//! `sandboxctl policy replay`: what a recorded run was decided, decided again.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::policy::{Bundle, Change, Facts};
use ::vault::audit;
use casemate::record::{decision_digest, hex};
use clap::Args;
use serde_json::{Value, json};

use crate::failure::Failure;

#[derive(Args)]
pub struct Replay {
    /// Folder of the run's log, which is verified first.
    log: PathBuf,
    /// The policy that the run was under; several, if it was reloaded.
    #[arg(long, value_name = "FILE", required = true)]
    policy: Vec<PathBuf>,
    /// Another policy: tell what it would have granted differently.
    #[arg(long, value_name = "FILE")]
    other: Option<PathBuf>,
    /// Print the decisions as JSON.
    #[arg(long)]
    json: bool,
}

/// A decision of a recorded run.
struct Recorded {
    /// The record's number.
    seq: u64,
    facts: Facts,
    /// Digest of what was decided.
    digest: String,
    /// Digest of the policy that was in force.
    policy: String,
}

impl Replay {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let bundles = self
            .policy
            .iter()
            .map(|path| super::load(path))
            .collect::<Result<Vec<_>, _>>()?;
        let other = self.other.as_deref().map(super::load).transpose()?;
        let decisions = decisions(&self.log)?;
        let mut told = Vec::new();
        let mut differing = 0_usize;
        for recorded in &decisions {
            let bundle = bundles
                .iter()
                .find(|bundle| hex(&bundle.digest()) == recorded.policy)
                .ok_or_else(|| {
                    Failure::new(format!(
                        "record {} was decided under a policy of another digest, {}",
                        recorded.seq, recorded.policy
                    ))
                    .hint("give the file exactly as it was, with `--policy`")
                })?;
            let (same, differences) = compare(bundle, other.as_ref(), recorded);
            differing += usize::from(!same);
            told.push(json!({
                "seq": recorded.seq, "facts": recorded.facts, "same": same,
                "differences": differences.iter().map(|(grant, change)| json!({
                    "grant": grant, "change": change,
                })).collect::<Vec<Value>>(),
            }));
            if !self.json && !same {
                println!(
                    "record {}, with risk {}:",
                    recorded.seq, recorded.facts.risk
                );
                if differences.is_empty() {
                    println!("  the recorded digest is not that of this decision");
                }
                for (grant, change) in &differences {
                    match change {
                        Change::Gained => println!("  + {grant}"),
                        Change::Lost => println!("  - {grant}"),
                    }
                }
            }
        }
        if self.json {
            let result = json!({ "decisions": told, "differing": differing });
            println!("{}", serde_json::to_string_pretty(&result)?);
        } else {
            let all = decisions.len();
            match (differing, &self.other) {
                (0, None) => println!(
                    "{}, arrived at again bit for bit",
                    super::several(all, "decision")
                ),
                (0, Some(_)) => println!("{}: none would differ", super::several(all, "decision")),
                (some, _) => println!("{some} of {} would differ", super::several(all, "decision")),
            }
        }
        Ok(match differing {
            0 => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        })
    }
}

/// Whether a decision comes out the same, and which grants do not.
fn compare(
    bundle: &Bundle,
    other: Option<&Bundle>,
    recorded: &Recorded,
) -> (bool, Vec<(::policy::Grant, Change)>) {
    let decision = bundle.decide(&recorded.facts);
    match other {
        None => (decision_digest(&decision) == recorded.digest, Vec::new()),
        Some(other) => {
            let differences = decision.differences(&other.decide(&recorded.facts));
            (differences.is_empty(), differences)
        }
    }
}

/// The facts of the last decision in a log, up to the record of this number.
pub fn facts_at(log: &Path, at: Option<u64>) -> Result<Facts, Failure> {
    let decisions = decisions(log)?;
    let mut until = decisions
        .into_iter()
        .filter(|recorded| at.is_none_or(|at| recorded.seq <= at));
    let last = until.next_back();
    last.map(|recorded| recorded.facts)
        .ok_or_else(|| Failure::new(format!("`{}` has no decision up to there", log.display())))
}

/// Every decision of a log that verifies.
fn decisions(log: &Path) -> Result<Vec<Recorded>, Failure> {
    let unreadable = |error: &dyn std::error::Error| {
        Failure::caused(
            format!("the log `{}` does not verify", log.display()),
            error,
        )
        .hint("do not rely on it: keep it as it is and compare with a copy made earlier")
    };
    let verified = audit::verify(log, None, None).map_err(|error| unreadable(&error))?;
    let mut policy = String::new();
    let mut decisions = Vec::new();
    for entry in verified.records() {
        let entry = entry.map_err(|error| unreadable(&error))?;
        let payload = &entry.record.payload;
        let text = |key: &str| payload[key].as_str().unwrap_or_default().to_owned();
        match &*entry.record.kind {
            "opened" | "reloading" => policy = text("digest"),
            "decided" => {
                let facts = serde_json::from_value(payload["facts"].clone()).map_err(|error| {
                    Failure::caused(format!("record {} holds no facts", entry.seq), &error)
                })?;
                decisions.push(Recorded {
                    seq: entry.seq,
                    facts,
                    digest: text("digest"),
                    policy: policy.clone(),
                });
            }
            _ => {}
        }
    }
    Ok(decisions)
}
