//! `sandboxctl image`: what a policy's machine boots into.

use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use attestation::{Hex, ReferenceValues};
use casemate::isolation::microvm;
use casemate::isolation::microvm::machine::COMMAND_LINE;
use casemate::record::hex;
use clap::{Args, Subcommand};
use guest_agent::Assembly;
use guest_agent::vm::host::{Inputs, Options, image_of, measurement, newest_kernel};

use crate::attest::read_up_to;
use crate::failure::{Failure, describe};
use crate::machine::Machine;

/// More than any firmware, kernel or image has.
const MOST: u64 = 2 << 30;

#[derive(Subcommand)]
pub enum Image {
    /// Make the initial RAM disk of a policy's machine: the same inputs give the same bytes.
    ///
    /// Prints its SHA-256 and, with `--firmware`, what an SEV-SNP guest will be measured as: `--json` gives
    /// that as reference values for a broker.
    Build(Build),
}

#[derive(Args)]
pub struct Build {
    /// The policy file.
    policy: PathBuf,
    /// Where the image goes; it must not exist yet.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Print reference values for a broker or `attest verify`.
    #[arg(long, requires = "firmware")]
    json: bool,
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
        let expected = match &options.firmware {
            Some(firmware) => Some(self.expected(&assembly, &options, firmware)?),
            None => None,
        };
        if self.json {
            let mut reference = ReferenceValues::default();
            reference.sev_snp.measurements = expected.map(|digest| vec![digest]);
            println!("{}", reference.to_json());
            return Ok(ExitCode::SUCCESS);
        }
        println!("sha256        {}", hex(&digest));
        println!("policy        {}", hex(&assembly.bundle().digest()));
        println!("command line  {COMMAND_LINE}");
        if let Some(expected) = expected {
            println!("sev-snp       {expected}");
        }
        Ok(ExitCode::SUCCESS)
    }

    /// What the policy's machine will be measured as, with the kernel it would be launched with.
    fn expected(
        &self,
        assembly: &Assembly,
        options: &Options,
        firmware: &Path,
    ) -> Result<Hex<48>, Failure> {
        let kernel = match &options.kernel {
            Some(kernel) => kernel.clone(),
            None => newest_kernel().map_err(|error| Failure::new(describe(&error)))?,
        };
        let firmware = read_up_to(firmware, MOST)?;
        let kernel = read_up_to(&kernel, MOST)?;
        let image = read_up_to(&self.output, MOST)?;
        let isolation = &assembly.bundle().tables().isolation;
        let size = u64::try_from(image.len()).unwrap_or(u64::MAX);
        let machine = microvm::Machine::sized(isolation.memory, isolation.cpu, size);
        Ok(measurement(&machine, &firmware, &kernel, &image)?)
    }
}
