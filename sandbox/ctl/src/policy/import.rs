//! `sandboxctl policy import-seccomp`: an OCI seccomp profile as a `[syscalls]` table.

use std::path::PathBuf;
use std::process::ExitCode;

use ::policy::learn::BROKERED;
use ::policy::seccomp::{self, Base};
use casemate::syscall::profile::Profile;
use casemate::syscall::table::is_syscall_name;
use clap::Args;

use crate::failure::Failure;

#[derive(Args)]
pub struct ImportSeccomp {
    /// The profile (JSON), as Docker and OCI runtimes read it.
    file: PathBuf,
    /// The profile of ours on which the table stands.
    #[arg(long, default_value = "default")]
    profile: String,
    /// Print the table as JSON.
    #[arg(long)]
    json: bool,
}

impl ImportSeccomp {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let profile = Profile::named(&self.profile)?;
        let allowable = |name: &str| profile.clone().allow([name]).is_ok();
        let base = Base {
            name: profile.name(),
            allowed: profile.allowed().collect(),
            known: &is_syscall_name,
            withheld: &|name| BROKERED.contains(&name) || !allowable(name),
        };
        let imported = seccomp::import(&super::read(&self.file)?, &base)?;
        match self.json {
            true => println!("{}", serde_json::to_string_pretty(&imported)?),
            false => print!("{}", imported.table()),
        }
        Ok(ExitCode::SUCCESS)
    }
}
