//! `sandboxctl doctor`: what this host can enforce.

use std::process::ExitCode;

use clap::Args;

use crate::failure::Failure;

#[derive(Args)]
pub struct Doctor {
    /// Print the findings as JSON.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let findings = casemate::doctor::Doctor::probe();
        if self.json {
            println!("{}", serde_json::to_string_pretty(&findings)?);
        } else {
            print!("{}", casemate::doctor::Table(&findings));
        }
        Ok(ExitCode::SUCCESS)
    }
}
