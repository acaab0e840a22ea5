//! `sandboxctl audit`: read and verify the log of a run.

use std::path::PathBuf;
use std::process::ExitCode;

use ::vault::audit::{self, Escaped, KeySource, LogVerifier, Verified};
use casemate::explain::{Explanation, explain};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::failure::Failure;

#[derive(Subcommand)]
pub enum Audit {
    /// Recompute a log and check it against its signed checkpoint.
    Verify(Verify),
    /// Verify a log and print its records.
    Show(Show),
    /// Verify a log and tell why one adjustment was made: rules, decision, facts, signals.
    Why(Why),
}

#[derive(Args)]
pub struct Verify {
    /// Folder of the log.
    log: PathBuf,
    /// The log's public key (64 hexadecimal digits), as evidence or `run` named it. Without it the key
    /// stored beside the log is used, which whoever rewrote the log could have replaced too.
    #[arg(long, value_name = "HEX", value_parser = public_key)]
    key: Option<Key>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Show {
    #[command(flatten)]
    verify: Verify,
    /// Print only records of this kind.
    #[arg(long)]
    kind: Option<String>,
}

#[derive(Args)]
pub struct Why {
    #[command(flatten)]
    verify: Verify,
    /// Number of a record about an adjustment, as `audit show` prints it. Without it: every adjustment.
    record: Option<u64>,
}

#[derive(Clone)]
struct Key([u8; 32]);

fn public_key(text: &str) -> Result<Key, String> {
    let bytes: Option<Vec<u8>> = (0..text.len() / 2)
        .map(|i| {
            text.get(2 * i..2 * i + 2)
                .and_then(|pair| u8::from_str_radix(pair, 16).ok())
        })
        .collect();
    bytes
        .filter(|_| text.len() == 64)
        .and_then(|bytes| bytes.try_into().ok())
        .map(Key)
        .ok_or_else(|| "a public key has 64 hexadecimal digits".to_owned())
}

impl Audit {
    pub fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Verify(verify) => verify.run(),
            Self::Show(show) => show.run(),
            Self::Why(why) => why.run(),
        }
    }
}

impl Verify {
    fn verified(&self) -> Result<Verified, Failure> {
        let pinned = self
            .key
            .as_ref()
            .map(|key| LogVerifier::new("casemate/run", key.0))
            .transpose()?;
        audit::verify(&self.log, pinned.as_ref(), None).map_err(|error| {
            Failure::caused(
                format!("the log `{}` does not verify", self.log.display()),
                &error,
            )
            .hint("do not rely on it: keep it as it is and compare with a copy made earlier")
        })
    }

    fn run(&self) -> Result<ExitCode, Failure> {
        let verified = self.verified()?;
        let root = casemate::record::hex(verified.root());
        let pinned = verified.key_source() == KeySource::Pinned;
        if self.json {
            let result = json!({
                "verified": true, "records": verified.size(), "root": root, "key-pinned": pinned,
                "unsigned-tail": verified.unsigned_tail(), "clock-jumps": verified.clock_jumps(),
            });
            println!("{}", serde_json::to_string_pretty(&result)?);
            return Ok(ExitCode::SUCCESS);
        }
        println!("log verified: {} records, root {root}", verified.size());
        if !pinned {
            println!("  with the key stored beside it; --key pins the one that the evidence named");
        }
        if verified.unsigned_tail() > 0 {
            println!(
                "  {} records after the last checkpoint are not vouched for",
                verified.unsigned_tail()
            );
        }
        if verified.clock_jumps() > 0 {
            println!("  the clock was set back {} times", verified.clock_jumps());
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Show {
    fn run(&self) -> Result<ExitCode, Failure> {
        let verified = self.verify.verified()?;
        for entry in verified.records() {
            let entry = entry?;
            let record = &entry.record;
            if self.kind.as_ref().is_some_and(|kind| *kind != record.kind) {
                continue;
            }
            if self.verify.json {
                let line = json!({
                    "seq": entry.seq, "kind": record.kind, "at": record.time.as_secs_f64(),
                    "payload": record.payload,
                });
                println!("{line}");
            } else {
                let payload = record.payload.to_string();
                println!(
                    "{:>5}  {:<13} {}",
                    entry.seq,
                    record.kind,
                    Escaped(&payload)
                );
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Why {
    fn run(self) -> Result<ExitCode, Failure> {
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
