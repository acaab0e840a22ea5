//! `sandboxctl audit why`: what led to an adjustment, from the log alone.

use std::process::ExitCode;

use casemate::explain::{Explanation, explain};
use clap::Args;
use vault::audit::Escaped;

use super::Verify;
use crate::failure::Failure;

#[derive(Args)]
pub struct Why {
    #[command(flatten)]
    verify: Verify,
    /// Number of a record about an adjustment, as `audit show` prints it. Without it: every adjustment.
    record: Option<u64>,
}

impl Why {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let verified = self.verify.verified()?;
        let entries = verified.records().collect::<Result<Vec<_>, _>>()?;
        let numbers: Vec<u64> = match self.record {
            Some(number) => vec![number],
            None => {
                let ordered = entries
                    .iter()
                    .filter(|entry| entry.record.kind == "adjusting");
                ordered.map(|entry| entry.seq).collect()
            }
        };
        for number in numbers {
            let told = explain(&entries, number).ok_or_else(|| {
                Failure::new(format!("record {number} is about no adjustment"))
                    .hint("`sandboxctl audit show LOG --kind adjusting` lists them")
            })?;
            if self.verify.json {
                println!("{}", serde_json::to_string(&told)?);
            } else {
                print_why(&told);
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print_why(told: &Explanation) {
    let line = |seq: Option<u64>, what: &str, text: &str| {
        let seq = seq.map_or_else(String::new, |seq| seq.to_string());
        println!("{seq:>5}  {what:<13} {}", Escaped(text));
    };
    line(Some(told.ordered), "adjusting", &told.change.to_string());
    for rule in &told.because {
        line(None, "because", rule);
    }
    line(told.decided, "facts", &told.facts.to_string());
    for (seq, signal) in &told.signals {
        line(Some(*seq), "signal", &signal.to_string());
    }
    match &told.outcome {
        Some((seq, kind, payload)) => line(Some(*seq), kind, &payload.to_string()),
        None => line(None, "outcome", "the log ends before"),
    }
}
