//! Key slots of an open vault: who else may open it, and who no longer.
//!
//! ```text
//! next header written beside, fdatasync ▸ renamed over `vault` ▸ directory fsync ▸ commit names its epoch
//! ```
//!
//! A writer that dies leaves the old header or the new one, and the next writer finishes the commit.
//! After the commit, the old header is refused: it cannot be put back.

use crate::envelope::{self, SlotInfo};
use crate::error::VaultError;
use crate::format::header::{FILE, Header, MAX_SLOTS, NEXT_FILE};
use crate::format::index::Index;
use crate::kek::{KekError, KekProvider};
use crate::store::{Place, Store};
use crate::vault::Vault;

impl Vault {
    /// Lists the slots, each of which some key opens.
    pub fn slots(&self) -> Vec<SlotInfo> {
        let slots = self.header.slots.iter();
        slots.map(|slot| slot.info(&self.id())).collect()
    }

    /// Lets one more key open this vault. Takes the same time for any amount of data.
    ///
    /// # Errors
    ///
    /// [`VaultError::SlotsFull`] with 16 slots, [`VaultError::KeyInUse`] if the key opens a slot,
    /// [`VaultError::Kek`], [`VaultError::ReadOnly`], or [`VaultError::Poisoned`]. If writing failed
    /// half way, the vault is poisoned, and which header is there shows when it is opened again.
    pub fn add_slot(&mut self, kek: &dyn KekProvider) -> Result<SlotInfo, VaultError> {
        self.writable()?;
        let root = self.root.as_ref().ok_or(VaultError::ReadOnly)?;
        if self.header.slots.len() >= MAX_SLOTS {
            return Err(VaultError::SlotsFull);
        }
        match envelope::root_key(&self.header, kek, &self.shared.keys.arena) {
            Ok(Some(_)) => return Err(VaultError::KeyInUse),
            Ok(None) | Err(VaultError::Kek(KekError::Refused(_))) => {}
            Err(error) => return Err(error),
        }
        let mut next = self.next_header()?;
        let slot = envelope::new_slot(next.vault_id, next.epoch, kek, root)?;
        let info = slot.info(&next.vault_id);
        next.slots.push(slot);
        self.replace_header(next)?;
        Ok(info)
    }

    /// Takes a slot away: its key opens this vault no more.
    ///
    /// The root key stays what it was. Somebody who kept a copy of the old header *and* has the key
    /// can still open that copy, and with its root key read what is stored; against this, put the
    /// objects into a new vault.
    ///
    /// # Errors
    ///
    /// [`VaultError::NoSuchSlot`], [`VaultError::LastSlot`], [`VaultError::ReadOnly`], or
    /// [`VaultError::Poisoned`]. A failure half way is as for [`Vault::add_slot`].
    pub fn remove_slot(&mut self, id: [u8; 16]) -> Result<(), VaultError> {
        self.writable()?;
        let mut next = self.next_header()?;
        next.slots.retain(|slot| slot.id != id);
        if next.slots.len() == self.header.slots.len() {
            return Err(VaultError::NoSuchSlot);
        }
        if next.slots.is_empty() {
            return Err(VaultError::LastSlot);
        }
        self.replace_header(next)
    }

    pub(crate) fn next_header(&self) -> Result<Header, VaultError> {
        let epoch = self.header.epoch.checked_add(1);
        Ok(Header {
            epoch: epoch.ok_or(VaultError::TooLarge)?,
            ..self.header.clone()
        })
    }

    fn replace_header(&mut self, next: Header) -> Result<(), VaultError> {
        let bytes = self.shared.keys.seal_header(&next);
        self.write_next_header(&bytes)?;
        // From here on the disk may hold either header, so any failure needs a fresh look.
        let replaced = self.rename_next_header().and_then(|()| {
            self.header = next;
            self.commit(Index::clone(&self.commit.index))
        });
        self.poisoned |= replaced.is_err();
        replaced
    }

    /// Makes the next header durable beside the one that counts.
    pub(crate) fn write_next_header(&self, bytes: &[u8]) -> Result<(), VaultError> {
        let store = &self.shared.store;
        write_next(store, bytes).map_err(|e| {
            // Left there it is harmless, and removed by the next writer.
            let _ = store.remove(Place::Root, NEXT_FILE);
            VaultError::io(REPLACE)(e)
        })
    }

    /// Makes the next header the one that counts.
    pub(crate) fn rename_next_header(&self) -> Result<(), VaultError> {
        let store = &self.shared.store;
        store
            .rename(NEXT_FILE, FILE)
            .and_then(|()| store.sync_dir(Place::Root))
            .map_err(VaultError::io(REPLACE))
    }
}

const REPLACE: &str = "replace the vault's header";

fn write_next(store: &Store, bytes: &[u8]) -> std::io::Result<()> {
    store.remove(Place::Root, NEXT_FILE)?;
    let file = store.create_file(Place::Root, NEXT_FILE)?;
    store.write_at(&file, bytes, 0)?;
    store.sync(&file)
}
