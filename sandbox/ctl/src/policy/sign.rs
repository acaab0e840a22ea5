//! `sandboxctl policy key`, `sign`, `verify`: who vouches for a policy.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::policy::signature::{self, PolicyKey, PolicyVerifier};
use clap::Args;
use serde_json::json;
use zeroize::Zeroizing;

use crate::failure::Failure;

#[derive(Args)]
pub struct Key {
    /// Name of the key, such as `ops.example.com`.
    name: String,
    /// Where to write the private key; the file must not exist yet.
    #[arg(long, short, value_name = "FILE")]
    output: PathBuf,
    /// Print the public key as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Sign {
    /// The policy file.
    policy: PathBuf,
    /// The private key.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The note to write, or to add a signature to. [default: the policy's name with `.note`]
    #[arg(long, value_name = "FILE")]
    note: Option<PathBuf>,
    /// Print what was signed as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Verify {
    /// The policy file.
    policy: PathBuf,
    /// A trusted public key, as `policy key` printed it; may be given several times.
    #[arg(long, value_name = "KEY", required = true)]
    key: Vec<PolicyVerifier>,
    /// The note. [default: the policy's name with `.note`]
    #[arg(long, value_name = "FILE")]
    note: Option<PathBuf>,
    /// How many of the trusted keys must have signed.
    #[arg(long, value_name = "N", default_value_t = 1)]
    need: usize,
    /// The least version that is accepted.
    #[arg(long, value_name = "VERSION", default_value_t = 0)]
    at_least: u64,
    /// Print who vouches for it as JSON.
    #[arg(long)]
    json: bool,
}

impl Key {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let key = PolicyKey::generate(&self.name)?;
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.output)
            .map_err(|error| {
                Failure::caused(format!("cannot make `{}`", self.output.display()), &error)
            })?;
        file.write_all(key.secret().as_bytes())?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        let public = key.verifier().to_string();
        match self.json {
            true => println!("{}", json!({ "key": public })),
            false => println!("{public}"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Sign {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let bundle = super::load(&self.policy)?;
        let secret = Zeroizing::new(super::read(&self.key)?);
        let key = PolicyKey::read(&secret)?;
        let path = self.note.unwrap_or_else(|| note_beside(&self.policy));
        let note = match fs::read_to_string(&path) {
            Ok(note) => key.cosign(&bundle, &note).map_err(|error| {
                Failure::from(error).hint(format!(
                    "`{}` is there already: remove it to sign anew",
                    path.display()
                ))
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => key.sign(&bundle),
            Err(error) => {
                return Err(Failure::caused(
                    format!("cannot read `{}`", path.display()),
                    &error,
                ));
            }
        };
        fs::write(&path, note).map_err(|error| {
            Failure::caused(format!("cannot write `{}`", path.display()), &error)
        })?;
        let (name, version) = (bundle.name(), bundle.version());
        match self.json {
            true => println!(
                "{}",
                json!({ "name": name, "version": version, "note": path })
            ),
            false => println!(
                "{}: `{name}` version {version} is vouched for",
                path.display()
            ),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Verify {
    pub fn run(self) -> Result<ExitCode, Failure> {
        let bundle = super::load(&self.policy)?;
        let path = self
            .note
            .clone()
            .unwrap_or_else(|| note_beside(&self.policy));
        let note = super::read(&path)?;
        let vouched = signature::verify(&bundle, &note, &self.key, self.need, self.at_least);
        let vouched = match vouched {
            Ok(vouched) => vouched,
            Err(error) => return Err(Failure::from(error).code(1)),
        };
        let (name, version, by) = (vouched.name(), vouched.version(), vouched.by());
        if self.json {
            let told = json!({ "name": name, "version": version, "by": by });
            println!("{}", serde_json::to_string_pretty(&told)?);
        } else {
            let by: Vec<&str> = by.iter().map(String::as_str).collect();
            println!(
                "`{name}` version {version}: vouched for by {}",
                by.join(", ")
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Where the note of a policy is, unless somebody says otherwise.
pub fn note_beside(policy: &Path) -> PathBuf {
    let mut name = policy.as_os_str().to_owned();
    name.push(".note");
    name.into()
}
