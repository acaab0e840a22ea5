//! New keys for what is stored already.
//!
//! ```text
//! rekey    new root key ▸ every DEK wrapped anew ▸ index and manifest under it ▸ header renamed
//! rotate   next key epoch ▸ object by object: new DEK, sealed anew ▸ commit … until none is left
//! ```
//!
//! Rekeying takes little time and shuts out whoever has the old root key; rotating shuts out whoever
//! has a DEK, takes as long as writing everything, and goes on where it was interrupted.

use std::sync::Arc;

use crate::commit::{self, Next, Shared};
use crate::copy::Stream;
use crate::envelope::{self, random_id};
use crate::error::{Part, VaultError};
use crate::format::header::{Header, MAX_SLOTS};
use crate::format::index::{Index, Record};
use crate::kek::KekProvider;
use crate::store::{Place, file_name};
use crate::stream;
use crate::vault::Vault;

/// How far the rotation of DEKs is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The key epoch that objects are rotated into.
    pub epoch: u64,
    /// Objects whose DEK is of the epoch before.
    pub left: u64,
    /// Bytes of their content.
    pub bytes_left: u64,
}

impl Vault {
    /// Draws a new root key, and lets exactly these keys open the vault.
    ///
    /// All DEKs are wrapped anew; no object is rewritten. After this, old copies of index, manifest
    /// and header open with nothing that the vault still holds: what was removed before is gone
    /// for good, unless somebody kept an old header *and* has a key that opened it.
    ///
    /// # Errors
    ///
    /// [`VaultError::LastSlot`] without a key, [`VaultError::SlotsFull`] with more than 16,
    /// [`VaultError::Kek`], [`VaultError::ReadOnly`], or [`VaultError::Poisoned`]. If writing failed
    /// half way, the vault is poisoned, and which root key it has shows when it is opened again.
    pub fn rekey(&mut self, keks: &[&dyn KekProvider]) -> Result<(), VaultError> {
        self.writable()?;
        if keks.is_empty() {
            return Err(VaultError::LastSlot);
        }
        if keks.len() > MAX_SLOTS {
            return Err(VaultError::SlotsFull);
        }
        let key_epoch = self.commit.manifest.key_epoch;
        let (keys, root) = self.shared.keys.renewed(key_epoch)?;
        let mut header: Header = self.next_header()?;
        header.slots = keks
            .iter()
            .map(|kek| envelope::new_slot(header.vault_id, header.epoch, *kek, &root))
            .collect::<Result<_, _>>()?;
        let mut index = Index::clone(&self.commit.index);
        for record in index.values_mut() {
            let object = record.object_id;
            for extent in &mut record.extents {
                let dek = self.shared.keys.dek(&object, extent);
                let dek = dek.map_err(VaultError::io("protect memory for keys"))?;
                let dek = dek.ok_or(VaultError::damaged(Part::Index))?;
                extent.wrapped_dek = keys.wrap(&dek, &object, extent.version, extent.key_epoch)?;
            }
        }
        let shared = Shared {
            store: Arc::clone(&self.shared.store),
            keys,
            ..*self.shared
        };

        // The old header goes with the old manifest, which is still there; the new one goes with the
        // new manifest. So the rename is what decides.
        let bytes = shared.keys.seal_header(&header);
        self.write_next_header(&bytes)?;
        let next = Next {
            header_epoch: header.epoch,
            ..self.next(index)
        };
        let rename = || self.rename_next_header();
        let anchor = self.anchor.as_deref();
        let written = commit::write_and(&shared, &self.commit, next, rename, anchor);
        self.committed(written)?;
        (self.shared, self.header, self.root) = (Arc::new(shared), header, Some(root));
        Ok(())
    }

    /// How far the rotation of DEKs is; `None` if all objects are of one key epoch.
    pub fn rotation(&self) -> Option<Rotation> {
        let epoch = self.commit.manifest.key_epoch;
        let index = self.commit.index.values();
        let due = index.filter(|record| record.is_due(epoch));
        let (left, bytes_left) = due.fold((0, 0u64), |(left, bytes), record| {
            (left + 1, bytes.saturating_add(record.len))
        });
        (left > 0).then_some(Rotation {
            epoch,
            left,
            bytes_left,
        })
    }

    /// Starts to rotate the DEKs of all objects: each is due for a new one from here on.
    ///
    /// [`Vault::rotate_some`] then does the work, between whatever else is done to the vault. If a
    /// rotation is under way, this changes nothing.
    ///
    /// # Errors
    ///
    /// [`VaultError::ReadOnly`] or [`VaultError::Poisoned`].
    pub fn begin_rotation(&mut self) -> Result<Option<Rotation>, VaultError> {
        self.writable()?;
        if self.rotation().is_none() && !self.commit.index.is_empty() {
            let root = self.root.as_ref().ok_or(VaultError::ReadOnly)?;
            let epoch = self.commit.manifest.key_epoch.checked_add(1);
            let key_epoch = epoch.ok_or(VaultError::TooLarge)?;
            self.shared.keys.enter(root, key_epoch)?;
            let next = Next {
                key_epoch,
                ..self.next(Index::clone(&self.commit.index))
            };
            let anchor = self.anchor.as_deref();
            let written = commit::write(&self.shared, &self.commit, next, anchor);
            self.committed(written)?;
        }
        Ok(self.rotation())
    }

    /// Seals objects anew, each under a new DEK, until about `bytes` of content are done, at least
    /// one object; returns what is left.
    ///
    /// # Errors
    ///
    /// [`VaultError::Tampered`] if an object cannot be read; [`VaultError::ReadOnly`] or
    /// [`VaultError::Poisoned`]. Objects rotated by earlier calls stay rotated.
    pub fn rotate_some(&mut self, bytes: u64) -> Result<Option<Rotation>, VaultError> {
        self.writable()?;
        let Some(Rotation { epoch, .. }) = self.rotation() else {
            return Ok(None);
        };
        let mut next = Index::clone(&self.commit.index);
        let (mut written, mut done) = (Vec::new(), 0);
        let outcome = next
            .iter_mut()
            .filter(|(_, record)| record.is_due(epoch))
            .try_for_each(|(name, record)| {
                if done > 0 && done >= bytes {
                    return Ok(());
                }
                done = done.saturating_add(record.len.max(1));
                let file = random_id()?;
                written.push(file);
                *record = self.sealed_anew(name, record, file, epoch)?;
                Ok(())
            });
        if let Err(error) = outcome.and_then(|()| self.commit(next)) {
            if !self.poisoned {
                for file in &written {
                    let _ = self.shared.store.remove(Place::Objects, &file_name(file));
                }
            }
            return Err(error);
        }
        Ok(self.rotation())
    }

    fn sealed_anew(
        &self,
        name: &str,
        record: &Record,
        file_id: [u8; 16],
        key_epoch: u64,
    ) -> Result<Record, VaultError> {
        let plan = stream::Plan {
            chunk: self.shared.chunk,
            padding: self.shared.padding,
            file_id,
            object_id: record.object_id,
            version: record.version,
            key_epoch,
            number: 0,
        };
        let mut source = Stream::new(self.object(name)?);
        let written = stream::write(&self.shared, &plan, &mut source);
        let (extent, len) =
            written.map_err(|error| source.why().map_or(error, |e| e.of(name).into()))?;
        let whole = Record::whole(record.object_id, len, record.modified, extent);
        Ok(Record {
            mode: record.mode,
            is_link: record.is_link,
            ..whole
        })
    }
}
