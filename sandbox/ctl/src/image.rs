//! `sandboxctl image`: what a policy's machine boots into.

use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use casemate::isolation::microvm::machine::COMMAND_LINE;
use casemate::record::hex;
use clap::{Args, Subcommand};
use guest_agent::Assembly;
use guest_agent::vm::host::{Inputs, image_of};

use crate::failure::{Failure, describe};
use crate::machine::Machine;

#[derive(Subcommand)]
pub enum Image {
    /// Make the initial RAM disk of a policy's machine: the same inputs give the same bytes.
    ///
    /// Prints its SHA-256, and the command line that the kernel is booted with. `attest measure snp
    /// --initrd` computes from it what an SEV-SNP guest will be measured as.
    Build(Build),
}

#[derive(Args)]
pub struct Build {
    /// The policy file.
    policy: PathBuf,
    /// Where the image goes; it must not exist yet.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    #[command(flatten)]
    machine: Machine,
}

impl Image {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let Self::Build(build) = self;
        build.run()
    }
}

impl Build {
    fn run(&self) -> Result<ExitCode, Failure> {
        let assembly = Assembly::read(&self.policy)?;
        let options = self.machine.options()?;
        let image = image_of(&Inputs {
            assembly: &assembly,
            options: &options,
        });
        let image = image.map_err(|error| Failure::new(describe(&error)))?;
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&self.output);
        let file = file.map_err(|error| {
            Failure::caused(format!("cannot make `{}`", self.output.display()), &error)
        })?;
        let mut file = BufWriter::new(file);
        let digest = image.write(&mut file);
        let digest = digest.map_err(|error| Failure::new(describe(&error)))?;
        file.flush()?;
        file.get_ref().sync_all()?;
        println!("sha256        {}", hex(&digest));
        println!("policy        {}", hex(&assembly.bundle().digest()));
        println!("command line  {COMMAND_LINE}");
        Ok(ExitCode::SUCCESS)
    }
}
