//! `sandboxctl`: the command line of Casemate. One file per subcommand.

#![forbid(unsafe_code)]

mod adjust;
mod attest;
mod audit;
mod doctor;
mod failure;
mod image;
mod key;
mod machine;
mod policy;
mod receipt;
mod run;
mod status;
mod timeline;
mod vault;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;

/// Run code over data that nobody else may see.
///
/// One policy file, four layers (attestation, isolation, system calls, vaults with audit), decided
/// again at every change.
#[derive(Parser)]
#[command(name = "sandboxctl", version, max_term_width = 100, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "\
Exit codes of `run`: that of the workload; 128+N when signal N ended it; 122 when the policy stopped it;
124 when its time limit did; 125 when sandboxctl failed (nothing runs then); 126 and 127 when the
program could not be executed or found. Other commands: 0, or 1 when they failed, 2 for wrong usage; what `attest verify`, `policy diff`
and `policy test` mean by theirs is in their own help.";

#[derive(Subcommand)]
enum Command {
    /// Run the workload of a policy under all four layers.
    Run(run::Run),
    /// List the sandboxes that run, and how each of them is.
    Status(status::Status),
    /// Order something of a running sandbox; it only tightens what the policy grants.
    Adjust(adjust::Adjust),
    /// Collect evidence, and have it appraised offline.
    #[command(subcommand)]
    Attest(attest::Attest),
    /// Make and use vaults.
    #[command(subcommand)]
    Vault(vault::Vault),
    /// Read and verify audit logs.
    #[command(subcommand)]
    Audit(audit::Audit),
    /// Verify what remains of a run: its receipt.
    #[command(subcommand)]
    Receipt(receipt::Receipt),
    /// Check policies and explain what they decide.
    #[command(subcommand)]
    Policy(policy::Policy),
    /// Make what a policy's machine boots into.
    #[command(subcommand)]
    Image(image::Image),
    /// Tell what this host can enforce, and how to get the rest.
    Doctor(doctor::Doctor),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    if !matches!(command, Command::Run(_)) {
        end_with_the_reader();
    }
    let result = match command {
        Command::Run(command) => command.run(),
        Command::Status(command) => command.run(),
        Command::Adjust(command) => command.run(),
        Command::Attest(command) => command.run(),
        Command::Vault(command) => command.run(),
        Command::Audit(command) => command.run(),
        Command::Receipt(command) => command.run(),
        Command::Policy(command) => command.run(),
        Command::Image(command) => command.run(),
        Command::Doctor(command) => command.run(),
    };
    result.unwrap_or_else(|failure| failure.report())
}

/// Ends without a word when whoever reads stdout has gone, as after `| head`: with the exit code that a
/// shell gives of SIGPIPE.
fn end_with_the_reader() {
    let otherwise = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let printing = |message: &str| message.starts_with("failed printing to stdout");
        if panic.payload_as_str().is_some_and(printing) {
            std::process::exit(141);
        }
        otherwise(panic);
    }));
}

impl From<Failure> for ExitCode {
    fn from(failure: Failure) -> Self {
        failure.report()
    }
}
