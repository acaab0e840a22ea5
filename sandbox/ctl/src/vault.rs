//! `sandboxctl vault`: make and use vaults.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::vault::kek::{KekProvider, Passphrase, Released};
use ::vault::{Access, Part, Vault as Store, VaultError};
use casemate::record::hex;
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
    /// List, add and remove the keys that open a vault.
    #[command(subcommand)]
    Kek(Kek),
}

#[derive(Subcommand)]
pub enum Kek {
    /// List the key slots: id, kind, and the header epoch in which each was made.
    Ls(Ls),
    /// Let one more key open the vault. With --new-key-file and no such file, a new key is made.
    Add(Add),
    /// Take a key slot away; its key then opens the vault no more.
    Rm(RmSlot),
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
pub struct Add {
    #[command(flatten)]
    at: At,
    /// File with the new key (64 hexadecimal digits).
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with = "new_passphrase_file",
        required_unless_present = "new_passphrase_file"
    )]
    new_key_file: Option<PathBuf>,
    /// File whose first line is the new passphrase (`-` for standard input).
    #[arg(long, value_name = "FILE")]
    new_passphrase_file: Option<PathBuf>,
}

#[derive(Args)]
pub struct RmSlot {
    #[command(flatten)]
    at: At,
    /// Id of the slot, as `kek ls` prints it, or the first digits of it.
    slot: String,
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
            Self::Kek(Kek::Ls(command)) => command.slots(),
            Self::Kek(Kek::Add(command)) => command.run(),
            Self::Kek(Kek::Rm(command)) => command.run(),
        }
        .map(|()| ExitCode::SUCCESS)
    }
}

impl At {
    fn kek(&self) -> Result<Box<dyn KekProvider>, Failure> {
        kek(self.key_file.as_deref(), self.passphrase_file.as_deref())
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

/// The key in one of these files; clap saw to it that there is one.
fn kek(key: Option<&Path>, phrase: Option<&Path>) -> Result<Box<dyn KekProvider>, Failure> {
    match phrase {
        Some(path) => Ok(Box::new(Passphrase::new(passphrase(path)?))),
        None => released(read_key(key.unwrap_or(Path::new("")))?),
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
        let verified = vault
            .verify(|_| {})
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
        println!(
            "  no anchor remembers the newest root: a store put back as a whole looks the same"
        );
        Ok(())
    }
}

impl Ls {
    fn slots(self) -> Result<(), Failure> {
        let slots = self.at.open(Access::ReadOnly)?.slots();
        if self.json {
            let list: Vec<_> = slots
                .iter()
                .map(|s| json!({ "slot": hex(&s.slot_id), "kind": s.kind.to_string(), "epoch": s.epoch }))
                .collect();
            println!("{}", serde_json::to_string_pretty(&list)?);
        } else {
            for slot in slots {
                println!(
                    "{}  {:<10}  {:>5}",
                    hex(&slot.slot_id),
                    slot.kind,
                    slot.epoch
                );
            }
        }
        Ok(())
    }
}

impl Add {
    fn run(self) -> Result<(), Failure> {
        let from_input = |path: &Option<PathBuf>| path.as_deref() == Some(Path::new("-"));
        if from_input(&self.at.passphrase_file) && from_input(&self.new_passphrase_file) {
            return Err(
                Failure::new("both passphrases cannot come from standard input")
                    .hint("put one of them into a file"),
            );
        }
        // Opened first: a key to nothing would only puzzle.
        let mut vault = self.at.open(Access::ReadWrite)?;
        let fresh = self.new_key_file.as_ref().filter(|path| !path.exists());
        let new = match fresh {
            Some(path) => released(new_key(path)?)?,
            None => kek(
                self.new_key_file.as_deref(),
                self.new_passphrase_file.as_deref(),
            )?,
        };
        // A failure half way may have added it all the same, so the new key file stays.
        let slot = vault
            .add_slot(new.as_ref())
            .map_err(|error| self.at.explain(error))?;
        println!("added key slot {}, kind {}", hex(&slot.slot_id), slot.kind);
        if let Some(path) = fresh {
            println!(
                "its key is in `{}`: give it to the broker, and keep a copy",
                path.display()
            );
        }
        Ok(())
    }
}

impl RmSlot {
    fn run(self) -> Result<(), Failure> {
        let mut vault = self.at.open(Access::ReadWrite)?;
        let slots = vault.slots().into_iter().map(|slot| slot.slot_id);
        let wanted = self.slot.to_ascii_lowercase();
        let matching: Vec<_> = slots
            .filter(|id| !wanted.is_empty() && hex(id).starts_with(&wanted))
            .collect();
        let hint = "`sandboxctl vault kek ls` lists the slots";
        let id = match matching[..] {
            [id] => id,
            [] => {
                let message = format!("the vault has no key slot `{}`", self.slot.escape_default());
                return Err(Failure::new(message).hint(hint));
            }
            _ => {
                let message = format!("several key slots begin with `{wanted}`");
                return Err(Failure::new(message).hint(hint));
            }
        };
        vault
            .remove_slot(id)
            .map_err(|error| self.at.explain(error))?;
        println!("removed key slot {}", hex(&id));
        println!("  a copy of the vault from before still opens with its key");
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
