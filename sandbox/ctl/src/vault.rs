//! `sandboxctl vault`: make and use vaults.

mod keep;
mod kek;
mod mount;
mod source;

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::vault::kek::KekProvider;
use ::vault::{
    Access, ChunkSize, CreateOptions, OpenOptions, Part, Progress, Vault as Store, VaultError,
};
use casemate::record::hex;
use clap::{Args, Subcommand};
use serde_json::json;

use self::keep::{Erase, Export, Import, Mv, Rekey, Rotate, Snapshot};
use self::kek::Kek;
use self::mount::Mount;
use self::source::{Devices, Opens, new_released};
use crate::failure::Failure;

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
    /// Give an object, or a directory of objects, another name.
    Mv(Mv),
    /// Read everything and check every byte.
    Verify(Verify),
    /// Keep the vault as it is now in another folder.
    Snapshot(Snapshot),
    /// Copy objects into a new vault that another key opens.
    Export(Export),
    /// Copy objects out of another vault into this one.
    Import(Import),
    /// Draw a new root key; one key alone opens the vault then.
    Rekey(Rekey),
    /// Seal every object anew under new keys; goes on where it was interrupted.
    Rotate(Rotate),
    /// Show a vault as a directory, to read and write, until Ctrl-C.
    Mount(Mount),
    /// Destroy a vault: no key opens it any more.
    Erase(Erase),
    /// List, add and remove the keys that open a vault.
    #[command(subcommand)]
    Kek(Kek),
}

/// Where the vault is, and what opens it.
#[derive(Args)]
pub struct At {
    /// Folder of the vault.
    vault: PathBuf,
    #[command(flatten)]
    opens: Opens,
    #[command(flatten)]
    devices: Devices,
    /// What remembers the vault's latest commit: `file:PATH`, or `tpm:0xINDEX`, an NV index of the TPM
    /// such as 0x01800001. Give it to every command that changes the vault.
    #[arg(long, value_name = "URI")]
    anchor: Option<String>,
}

#[derive(Args)]
pub struct Create {
    #[command(flatten)]
    at: At,
    /// KiB that are sealed together: 4 or 16 for databases, whose reads are small; 64 or 256 for files
    /// that are read as a whole.
    #[arg(long, value_name = "KIB", default_value = "16", value_parser = chunk)]
    chunk: ChunkSize,
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
            Self::Mv(command) => command.run(),
            Self::Verify(command) => command.run(),
            Self::Snapshot(command) => command.run(),
            Self::Export(command) => command.run(),
            Self::Import(command) => command.run(),
            Self::Rekey(command) => command.run(),
            Self::Rotate(command) => command.run(),
            Self::Mount(command) => command.run(),
            Self::Erase(command) => command.run(),
            Self::Kek(command) => command.run(),
        }
        .map(|()| ExitCode::SUCCESS)
    }
}

impl At {
    fn kek(&self) -> Result<Box<dyn KekProvider>, Failure> {
        self.opens.kek(&self.devices)
    }

    fn open(&self, access: Access) -> Result<Store, Failure> {
        self.open_with(self.kek()?.as_ref(), access)
    }

    fn open_with(&self, kek: &dyn KekProvider, access: Access) -> Result<Store, Failure> {
        Store::open_with(&self.vault, kek, self.options(access)?)
            .map_err(|error| self.explain(error))
    }

    fn options(&self, access: Access) -> Result<OpenOptions, Failure> {
        let anchor = match &self.anchor {
            Some(uri) => Some(::vault::anchor::named(uri, Path::new("")).ok_or_else(|| {
                Failure::new(format!("`{}` is no anchor", uri.escape_default()))
                    .hint("name one as file:PATH or tpm:0x01800001")
            })?),
            None => None,
        };
        Ok(OpenOptions {
            access,
            anchor,
            ..OpenOptions::default()
        })
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

fn chunk(text: &str) -> Result<ChunkSize, String> {
    match text {
        "4" => Ok(ChunkSize::KiB4),
        "16" => Ok(ChunkSize::KiB16),
        "64" => Ok(ChunkSize::KiB64),
        "256" => Ok(ChunkSize::KiB256),
        _ => Err("a chunk has 4, 16, 64 or 256 KiB".into()),
    }
}

impl Create {
    fn run(self) -> Result<(), Failure> {
        let fresh = self
            .at
            .opens
            .key_file
            .as_ref()
            .filter(|path| !path.exists());
        if self.at.vault.exists() {
            return Err(Failure::new(format!(
                "`{}` exists already",
                self.at.vault.display()
            )));
        }
        let kek = match fresh {
            Some(path) => new_released(path)?,
            None => self.at.kek()?,
        };
        let options = self.at.options(Access::ReadWrite)?;
        let shape = CreateOptions {
            chunk: self.chunk,
            ..CreateOptions::default()
        };
        let vault = Store::create_with(&self.at.vault, kek.as_ref(), shape, options);
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
            hex(&vault.id())
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
        let mut shown = Shown::default();
        let verified = vault
            .verify(|progress| shown.tell(progress))
            .map_err(|error| self.at.explain(error))?;
        println!(
            "vault verified: {} objects, {} bytes",
            verified.objects, verified.bytes
        );
        println!(
            "  root {}, generation {}",
            hex(&vault.root()),
            vault.generation()
        );
        if vault.is_anchored() {
            println!("  an anchor remembers this state");
        } else {
            println!(
                "  no anchor remembers the newest root: a store put back as a whole looks the same"
            );
        }
        Ok(())
    }
}

/// How far a verification is, on a terminal.
#[derive(Default)]
struct Shown(u64);

impl Shown {
    fn tell(&mut self, progress: Progress) {
        let percent = (progress.bytes * 100)
            .checked_div(progress.of_bytes)
            .unwrap_or(0);
        // Nothing is shown for what takes no time, or to a file.
        if percent > self.0 && progress.of_bytes > 64 << 20 && io::stderr().is_terminal() {
            self.0 = percent;
            let end = if percent == 100 { "\n" } else { "" };
            let _ = write!(io::stderr(), "\r{percent:>3} % verified{end}");
        }
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
