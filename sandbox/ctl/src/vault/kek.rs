//! `sandboxctl vault kek`: the keys that open a vault.

use ::vault::Access;
use casemate::record::hex;
use clap::{Args, Subcommand};
use serde_json::json;

use super::At;
use super::keep::named;
use super::source::News;
use crate::failure::Failure;

#[derive(Subcommand)]
pub enum Kek {
    /// List the key slots: id, kind, and the header epoch in which each was made.
    Ls(List),
    /// Let one more key open the vault.
    Add(Add),
    /// Take a key slot away; its key then opens the vault no more.
    Rm(Remove),
}

#[derive(Args)]
pub struct List {
    #[command(flatten)]
    at: At,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct Add {
    #[command(flatten)]
    at: At,
    #[command(flatten)]
    new: News,
}

#[derive(Args)]
pub struct Remove {
    #[command(flatten)]
    at: At,
    /// Id of the slot, as `kek ls` prints it, or the first digits of it.
    slot: String,
}

impl Kek {
    pub fn run(self) -> Result<(), Failure> {
        match self {
            Self::Ls(command) => command.run(),
            Self::Add(command) => command.run(),
            Self::Rm(command) => command.run(),
        }
    }
}

impl List {
    fn run(self) -> Result<(), Failure> {
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
        At::one_input(&self.at.opens, &self.new)?;
        // Opened first: a key to nothing would only puzzle.
        let mut vault = self.at.open(Access::ReadWrite)?;
        let (new, said) = named(&self.new, &self.at.devices)?;
        // A failure half way may have added it all the same, so a new key file stays.
        let slot = vault
            .add_slot(new.as_ref())
            .map_err(|error| self.at.explain(error))?;
        println!("added key slot {}, kind {}", hex(&slot.slot_id), slot.kind);
        print!("{said}");
        Ok(())
    }
}

impl Remove {
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
