//! `sandboxctl audit prove` and `audit check`: one record, with the evidence that it is in the log.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use ::vault::audit::{self, LogVerifier, Proof};
use clap::Args;

use super::{Key, ORIGIN, Verify, public_key, query};
use crate::failure::Failure;

#[derive(Args)]
pub struct Prove {
    #[command(flatten)]
    verify: Verify,
    /// Number of the record, as `audit show` prints it.
    record: u64,
}

impl Prove {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let verifier = self.verify.verifier()?;
        let log = self.verify.log.display();
        let proof = audit::prove(&self.verify.log, &verifier, self.record)
            .map_err(|error| Failure::caused(format!("no proof from the log `{log}`"), &error))?;
        println!("{}", serde_json::to_string_pretty(&proof)?);
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Args)]
pub struct Check {
    /// File with the proof. [default: standard input]
    proof: Option<PathBuf>,
    /// The log's public key (64 hexadecimal digits), as evidence or `run` named it.
    #[arg(long, value_name = "HEX", value_parser = public_key)]
    key: Key,
    /// The log's name.
    #[arg(long, default_value = ORIGIN)]
    origin: String,
    /// Print the record as JSON.
    #[arg(long)]
    json: bool,
}

/// More than any proof takes: a record, and a hash for each level of the tree.
const MAX_PROOF: u64 = 256 << 10;

impl Check {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let mut text = String::new();
        match &self.proof {
            Some(path) => {
                let file =
                    File::open(path).and_then(|f| f.take(MAX_PROOF).read_to_string(&mut text));
                file.map_err(|e| Failure::caused(format!("cannot read `{}`", path.display()), &e))?;
            }
            None => {
                io::stdin().take(MAX_PROOF).read_to_string(&mut text)?;
            }
        }
        let proof: Proof = serde_json::from_str(&text)
            .map_err(|error| Failure::caused("this is no proof", &error))?;
        let verifier = LogVerifier::new(&self.origin, self.key.0)?;
        let entry = proof
            .check(&verifier)
            .map_err(|error| Failure::caused("the proof does not hold", &error))?;
        query::print(&entry, self.json);
        Ok(ExitCode::SUCCESS)
    }
}
