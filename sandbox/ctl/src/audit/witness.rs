//! `sandboxctl audit witness`: sees that a log only grows, and says so with a signature.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use ::vault::audit::{LogKey, Witness as Signer};
use clap::Args;

use super::Verify;
use crate::failure::Failure;

#[derive(Args)]
pub struct Witness {
    #[command(flatten)]
    verify: Verify,
    /// The witness's name, unique to it, such as `witness.example/alice`.
    #[arg(long)]
    name: String,
    /// File with the witness's own key; made if it is not there.
    #[arg(long, value_name = "FILE")]
    witness_key: PathBuf,
    /// File in which the witness keeps what it signed last of this log; the signed checkpoint is
    /// written there, for whoever verifies with --expect.
    #[arg(long, value_name = "FILE")]
    seen: PathBuf,
}

impl Witness {
    pub fn run(&self) -> Result<ExitCode, Failure> {
        let log = self.verify.verifier()?;
        let seen = format!("checkpoint `{}`", self.seen.display());
        let last = match fs::read(&self.seen) {
            Ok(note) => Some(log.open(&note).map_err(|e| Failure::caused(&seen, &e))?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Failure::caused(seen, &error)),
        };
        let signer = Signer::new(&self.name, self.key()?)?;
        let time = SystemTime::now().duration_since(UNIX_EPOCH)?;
        let signed = signer
            .cosign(&self.verify.log, &log, last.as_ref(), time)
            .map_err(|error| {
                let log = self.verify.log.display();
                Failure::caused(format!("the log `{log}` is not signed"), &error)
                    .hint("keep the log and the checkpoint seen before: together they show it")
            })?;
        // Whole or not at all: without it the witness would sign any history.
        let next = self.seen.with_extension("next");
        fs::write(&next, signed.note())
            .and_then(|()| fs::File::open(&next)?.sync_all())
            .and_then(|()| fs::rename(&next, &self.seen))
            .map_err(|error| Failure::caused(seen, &error))?;
        println!("signed {} records", signed.size());
        println!(
            "  verify with --expect {} --witness {}",
            self.seen.display(),
            signer.verifier()?
        );
        Ok(ExitCode::SUCCESS)
    }

    fn key(&self) -> Result<LogKey, Failure> {
        let failed = |error| {
            Failure::caused(
                format!("witness key `{}`", self.witness_key.display()),
                &error,
            )
        };
        if self.witness_key.exists() {
            return LogKey::load(&self.witness_key).map_err(failed);
        }
        let key = LogKey::generate().map_err(failed)?;
        key.save(&self.witness_key).map_err(failed)?;
        Ok(key)
    }
}
