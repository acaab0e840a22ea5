//! `sandboxctl vault`: make and use vaults.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::vault::kek::{KekProvider, Passphrase, Released};
use ::vault::{Access, Part, Vault as Store, VaultError};
use clap::{Args, Subcommand};
use serde_json::json;
use zeroize::Zeroizing;

use crate::failure::Failure;
use crate::key::{new_key, read_key};

#[derive(Subcommand)]
pub enum Vault {
    /// Make a vault. With --key-file and no such file, a new key is made too.
    Create(Create),
    /// Put a file, or standard input, into a vault.
    Put(Put),
    /// Get an object out of a vault.
    Get(Get),
    /// List a vault's objects.
    Ls(Ls),
    /// Remove an object, and the key that could open it.
    Rm(Rm),
    /// Read everything and check every byte.
    Verify(Verify),
}

/// Where the vault is, and what opens it.
#[derive(Args)]
struct At {
    /// Folder of the vault.
    vault: PathBuf,
    /// File with the key that a broker would release (64 hexadecimal digits).
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "passphrase_file",
        required_unless_present = "passphrase_file"
    )]
    key_file: Option<PathBuf>,
    /// File whose first line is the passphrase (`-` for standard input).
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
}

#[derive(Args)]
pub struct Create {
    #[command(flatten)]
    at: At,
}

#[derive(Args)]
pub struct Put {
    #[command(flatten)]
    at: At,
    /// Name of the object inside, such as `2026/customers.csv`.
    name: String,
    /// File to put there. [default: standard input]
    file: Option<PathBuf>,
}

#[derive(Args)]
pub struct Get {
    #[command(flatten)]
    at: At,
    /// Name of the object.
    name: String,
    /// File to write; it must not exist. [default: standard output]
    file: Option<PathBuf>,
}

#[derive(Args)]
pub struct Ls {
    #[command(flatten)]
    at: At,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Rm {
    #[command(flatten)]
    at: At,
    /// Name of the object.
    name: String,
}

#[derive(Args)]
pub struct Verify {
    #[command(flatten)]
    at: At,
}

impl Vault {
    pub fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Self::Create(command) => command.run(),
            Self::Put(command) => command.run(),
            Self::Get(command) => command.run(),
            Self::Ls(command) => command.run(),
            Self::Rm(command) => command.run(),
            Self::Verify(command) => command.run(),
        }
        .map(|()| ExitCode::SUCCESS)
    }
}

impl At {
    fn kek(&self) -> Result<Box<dyn KekProvider>, Failure> {
        if let Some(path) = &self.passphrase_file {
            return Ok(Box::new(Passphrase::new(passphrase(path)?)));
        }
        let path = self.key_file.as_deref().unwrap_or(Path::new(""));
        released(read_key(path)?)
    }

    fn open(&self, access: Access) -> Result<Store, Failure> {
        let kek = self.kek()?;
        Store::open(&self.vault, kek.as_ref(), access).map_err(|error| self.explain(error))
    }

    fn explain(&self, error: VaultError) -> Failure {
        let hint = match &error {
            VaultError::Tampered {
                what: Part::Slot, ..
            } => Some("check that the key belongs to this vault"),
            VaultError::Tampered { .. } => Some("nothing of the vault was changed now"),
            _ => None,
        };
        let failure = Failure::caused(format!("vault `{}`", self.vault.display()), &error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    }
}

fn released(mut key: Zeroizing<Vec<u8>>) -> Result<Box<dyn KekProvider>, Failure> {
    let bytes: &mut [u8; 32] = key
        .as_mut_slice()
        .try_into()
        .map_err(|_| Failure::new("a key has 32 bytes"))?;
    Ok(Box::new(Released::take(bytes)?))
}

fn passphrase(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |error: io::Error| {
        Failure::caused(
            format!("cannot read the passphrase from `{}`", path.display()),
            &error,
        )
    };
    let mut text = Zeroizing::new(Vec::new());
    if path.as_os_str() == "-" {
        io::stdin()
            .take(4096)
            .read_to_end(&mut text)
            .map_err(failed)?;
    } else {
        File::open(path)
            .and_then(|file| file.take(4096).read_to_end(&mut text))
            .map_err(failed)?;
    }
    let end = text
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(text.len());
    text.truncate(end);
    if text.is_empty() {
        return Err(Failure::new("the passphrase is empty"));
    }
    Ok(text)
}

impl Create {
    fn run(self) -> Result<(), Failure> {
        let fresh = self.at.key_file.as_ref().filter(|path| !path.exists());
        if self.at.vault.exists() {
            return Err(Failure::new(format!(
                "`{}` exists already",
                self.at.vault.display()
            )));
        }
        let kek = match fresh {
            Some(path) => released(new_key(path)?)?,
            None => self.at.kek()?,
        };
        let vault = Store::create(&self.at.vault, kek.as_ref(), Default::default());
        let vault = vault.map_err(|error| {
            if let Some(path) = fresh {
                // A key to nothing would only puzzle.
                let _ = std::fs::remove_file(path);
            }
            self.at.explain(error)
        })?;
        println!(
            "made vault `{}`, id {}",
            self.at.vault.display(),
            casemate::record::hex(&vault.id())
        );
        if let Some(path) = fresh {
            println!(
                "its key is in `{}`: give it to the broker, and keep a copy",
                path.display()
            );
        }
        Ok(())
    }
}

impl Put {
    fn run(self) -> Result<(), Failure> {
        let mut vault = self.at.open(Access::ReadWrite)?;
        let info = match &self.file {
            Some(path) => {
                let file = File::open(path).map_err(|e| {
                    Failure::caused(format!("cannot read `{}`", path.display()), &e)
                })?;
                let size = file.metadata().map(|m| m.len()).unwrap_or(0);
                vault.put(&self.name, Counted::new(file, size, "sealed"))
            }
            None => vault.put(&self.name, io::stdin().lock()),
        };
        let info = info.map_err(|error| self.at.explain(error))?;
        println!("{}: {} bytes", info.name, info.len);
        Ok(())
    }
}

impl Get {
    fn run(self) -> Result<(), Failure> {
        let vault = self.at.open(Access::ReadOnly)?;
        let Some(path) = &self.file else {
            vault
                .get(&self.name, io::stdout().lock())
                .map_err(|error| self.at.explain(error))?;
            return Ok(());
        };
        let file = File::options().write(true).create_new(true).open(path);
        let file =
            file.map_err(|e| Failure::caused(format!("cannot write `{}`", path.display()), &e))?;
        vault.get(&self.name, file).map_err(|error| {
            let _ = std::fs::remove_file(path);
            self.at.explain(error)
        })?;
        Ok(())
    }
}

impl Ls {
    fn run(self) -> Result<(), Failure> {
        let objects = self.at.open(Access::ReadOnly)?.list();
        if self.json {
            let list: Vec<_> = objects
                .iter()
                .map(|o| json!({ "name": o.name, "bytes": o.len, "version": o.version }))
                .collect();
            println!("{}", serde_json::to_string_pretty(&list)?);
        } else {
            for object in objects {
                println!(
                    "{:>12}  {}",
                    object.len,
                    ::vault::audit::Escaped(&object.name)
                );
            }
        }
        Ok(())
    }
}

impl Rm {
    fn run(self) -> Result<(), Failure> {
        let mut vault = self.at.open(Access::ReadWrite)?;
        vault
            .remove(&self.name)
            .map_err(|error| self.at.explain(error))
    }
}

impl Verify {
    fn run(self) -> Result<(), Failure> {
        let vault = self.at.open(Access::ReadOnly)?;
        let verified = vault
            .verify(|_| {})
            .map_err(|error| self.at.explain(error))?;
        println!(
            "vault verified: {} objects, {} bytes",
            verified.objects, verified.bytes
        );
        println!(
            "  root {}, generation {}",
            casemate::record::hex(&vault.root()),
            vault.generation()
        );
        println!(
            "  no anchor remembers the newest root: a store put back as a whole looks the same"
        );
        Ok(())
    }
}

/// A reader that shows how far it is, on a terminal.
struct Counted<R> {
    inner: R,
    done: u64,
    total: u64,
    shown: u64,
    verb: &'static str,
}

impl<R> Counted<R> {
    fn new(inner: R, total: u64, verb: &'static str) -> Self {
        // Nothing is shown for what takes no time, or to a file.
        let total = if io::stderr().is_terminal() && total > 64 << 20 {
            total
        } else {
            0
        };
        Self {
            inner,
            done: 0,
            total,
            shown: 0,
            verb,
        }
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.done += read as u64;
        let percent = (self.done * 100).checked_div(self.total).unwrap_or(0);
        if percent > self.shown {
            self.shown = percent;
            let end = if self.done >= self.total { "\n" } else { "" };
            let _ = write!(io::stderr(), "\r{percent:>3} % {}{end}", self.verb);
        }
        Ok(read)
    }
}
