//! `sandboxctl audit`: read and verify the log of a run.

mod export;
mod prove;
mod query;

use std::path::PathBuf;
use std::process::ExitCode;

use ::vault::audit::{self, KeySource, LogVerifier, Verified};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::failure::Failure;

#[derive(Subcommand)]
pub enum Audit {
    /// Recompute a log and check it against its signed checkpoint.
    Verify(Verify),
    /// Verify a log and print its records.
    Show(Show),
    /// Verify a log and print its last records.
    Tail(query::Tail),
    /// Verify a log and print the records that are asked for.
    Query(query::Query),
    /// Export one record with the proof that it is in the log.
    Prove(prove::Prove),
    /// Check an exported proof, without the log.
    Check(prove::Check),
    /// Verify a log and export its records for other systems.
    Export(export::Export),
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

/// The name of logs that sessions write.
const ORIGIN: &str = "casemate/run";

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
            Self::Tail(tail) => tail.run(),
            Self::Query(query) => query.run(),
            Self::Prove(prove) => prove.run(),
            Self::Check(check) => check.run(),
            Self::Export(export) => export.run(),
        }
    }
}

impl Verify {
    fn pinned(&self) -> Result<Option<LogVerifier>, Failure> {
        let key = self.key.as_ref();
        Ok(key.map(|key| LogVerifier::new(ORIGIN, key.0)).transpose()?)
    }

    /// The pinned key, or else the one beside the log.
    fn verifier(&self) -> Result<LogVerifier, Failure> {
        if let Some(pinned) = self.pinned()? {
            return Ok(pinned);
        }
        let path = self.log.join("key.pub");
        let text = std::fs::read_to_string(&path)
            .map_err(|e| Failure::caused(format!("cannot read `{}`", path.display()), &e))?;
        Ok(text.trim_end().parse()?)
    }

    /// The checkpoint as it is stored now.
    fn stored_note(&self) -> std::io::Result<Vec<u8>> {
        std::fs::read(self.log.join("checkpoint"))
    }

    fn verified(&self) -> Result<Verified, Failure> {
        let pinned = self.pinned()?;
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
            query::print(&entry, self.verify.json);
        }
        Ok(ExitCode::SUCCESS)
    }
}
