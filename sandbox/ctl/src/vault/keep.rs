//! `sandboxctl vault mv`, `snapshot`, `export`, `import`, `rekey`, `rotate`, `erase`.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use ::vault::{Access, Vault as Store};
use clap::Args;

use super::At;
use super::source::{Devices, News, Opens, Told};
use crate::failure::Failure;

#[derive(Args)]
pub struct Mv {
    #[command(flatten)]
    at: At,
    /// Name of the object, or of a directory of objects.
    from: String,
    /// Its new name.
    to: String,
    /// Take the place of an object that has the new name.
    #[arg(long)]
    replace: bool,
}

impl Mv {
    pub fn run(self) -> Result<(), Failure> {
        let mut vault = self.at.open(Access::ReadWrite)?;
        if !self.replace && self.from != self.to && vault.info(&self.to).is_some() {
            return Err(Failure::new("an object of the new name exists already")
                .hint("--replace has the other take its place"));
        }
        vault
            .rename(&self.from, &self.to)
            .map_err(|error| self.at.explain(error))
    }
}

#[derive(Args)]
pub struct Snapshot {
    #[command(flatten)]
    at: At,
    /// Folder to make, with the vault as it is now; on the same file system it shares its files.
    to: PathBuf,
}

impl Snapshot {
    pub fn run(self) -> Result<(), Failure> {
        let vault = self.at.open(Access::ReadWrite)?;
        vault.snapshot(&self.to).map_err(|error| {
            Failure::caused(format!("snapshot `{}`", self.to.display()), &error)
        })?;
        println!(
            "made snapshot `{}` of generation {}; the same keys open it",
            self.to.display(),
            vault.generation()
        );
        Ok(())
    }
}

#[derive(Args)]
pub struct Export {
    #[command(flatten)]
    at: At,
    /// Folder of the vault to make; only its own key opens it.
    to: PathBuf,
    /// Export only objects whose names begin so.
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    #[command(flatten)]
    new: News,
}

impl Export {
    pub fn run(self) -> Result<(), Failure> {
        let vault = self.at.open(Access::ReadOnly)?;
        let (kek, said) = named(&self.new, &self.at.devices)?;
        let failed = |error| Failure::caused(format!("vault `{}`", self.to.display()), &error);
        let mut export =
            Store::create(&self.to, kek.as_ref(), Default::default()).map_err(failed)?;
        let copied = export.copy_from(&vault, &self.prefix, &self.prefix, |_| ());
        let copied = copied.map_err(|error| {
            drop(export);
            // Nothing half made is left; that it cannot be removed changes nothing about the error.
            let _ = Store::erase(&self.to);
            failed(error)
        })?;
        println!(
            "exported {} objects to `{}`",
            copied.len(),
            self.to.display()
        );
        print!("{said}");
        Ok(())
    }
}

#[derive(Args)]
pub struct Import {
    #[command(flatten)]
    at: At,
    /// Folder of the vault to import from.
    from: PathBuf,
    /// File with the key of that vault (64 hexadecimal digits).
    #[arg(long, value_name = "FILE")]
    from_key_file: PathBuf,
    /// Import only objects whose names begin so.
    #[arg(long, default_value = "", hide_default_value = true)]
    prefix: String,
    /// What their names begin with here, in place of the prefix. [default: the prefix]
    #[arg(long)]
    under: Option<String>,
}

impl Import {
    pub fn run(self) -> Result<(), Failure> {
        let mut vault = self.at.open(Access::ReadWrite)?;
        let kek = super::source::key_in(&self.from_key_file)?;
        let failed = |error| Failure::caused(format!("vault `{}`", self.from.display()), &error);
        let from = Store::open(&self.from, kek.as_ref(), Access::ReadOnly).map_err(failed)?;
        let under = self.under.as_deref().unwrap_or(&self.prefix);
        let copied = vault
            .copy_from(&from, &self.prefix, under, |_| ())
            .map_err(failed)?;
        println!("imported {} objects", copied.len());
        Ok(())
    }
}

#[derive(Args)]
pub struct Rekey {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    new: News,
}

impl Rekey {
    pub fn run(self) -> Result<(), Failure> {
        let opened = self.at.kek()?;
        let mut vault = self.at.open_with(opened.as_ref(), Access::ReadWrite)?;
        let new = self.new.kek(&self.at.devices)?;
        let (kek, said) = new.unwrap_or((opened, String::new()));
        vault
            .rekey(&[kek.as_ref()])
            .map_err(|error| self.at.explain(error))?;
        println!("the vault has a new root key, and this key alone opens it");
        print!("{said}");
        Ok(())
    }
}

#[derive(Args)]
pub struct Rotate {
    #[command(flatten)]
    at: At,
}

/// Bytes between two commits: what is lost when a rotation is interrupted.
const STRETCH: u64 = 256 << 20;

impl Rotate {
    pub fn run(self) -> Result<(), Failure> {
        let mut vault = self.at.open(Access::ReadWrite)?;
        let mut left = vault
            .begin_rotation()
            .map_err(|error| self.at.explain(error))?;
        let all = left.map_or(0, |rotation| rotation.left);
        let shown = io::stderr().is_terminal();
        while let Some(rotation) = left {
            if shown {
                let _ = write!(io::stderr(), "\r{} objects left ", rotation.left);
            }
            left = vault
                .rotate_some(STRETCH)
                .map_err(|error| self.at.explain(error))?;
        }
        if shown && all > 0 {
            let _ = writeln!(io::stderr(), "\r{} objects left ", 0);
        }
        println!("rotated the keys of {all} objects");
        Ok(())
    }
}

#[derive(Args)]
pub struct Erase {
    /// Folder of the vault.
    vault: PathBuf,
    /// Really: nothing brings it back.
    #[arg(long, required = true)]
    yes: bool,
}

impl Erase {
    pub fn run(self) -> Result<(), Failure> {
        Store::erase(&self.vault).map_err(|error| {
            Failure::caused(format!("vault `{}`", self.vault.display()), &error)
        })?;
        println!("erased vault `{}`", self.vault.display());
        println!("  copies made earlier still open with their keys: destroy those too");
        Ok(())
    }
}

/// The new key that has to be named.
pub fn named(new: &News, devices: &Devices) -> Result<Told, Failure> {
    new.kek(devices)?.ok_or_else(|| {
        Failure::new("no new key is named").hint("such as --new-key-file FILE; see --help")
    })
}

impl At {
    /// Refuses to read two secrets from one standard input.
    pub fn one_input(opens: &Opens, new: &News) -> Result<(), Failure> {
        if opens.takes_input() && new.takes_input() {
            return Err(
                Failure::new("both passphrases cannot come from standard input")
                    .hint("put one of them into a file"),
            );
        }
        Ok(())
    }
}
