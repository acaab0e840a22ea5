//! From what was written to what is committed.

use std::collections::HashSet;
use std::sync::atomic::Ordering;

use super::tree::{Kind, Node};
use super::{Errno, State, Volume, VolumeError};
use crate::commit::Shared;
use crate::error::VaultError;
use crate::format::Id;
use crate::store::{Place, file_name};

impl Volume {
    /// Makes everything durable that was done before this call.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Vault`] if it could not be written. Nothing is lost by that: it is tried again by
    /// the next call, unless the vault is poisoned.
    pub fn commit(&self) -> Result<(), VolumeError> {
        let wanted = self.changes.load(Ordering::Acquire);
        let mut writer = self.writer();
        let writer = writer.as_mut().ok_or(Errno::ACCESS)?;
        // Somebody else's commit was of our changes too.
        if self.committed_changes.load(Ordering::Acquire) >= wanted {
            return Ok(());
        }
        writer.vault.writable()?;
        let (index, mut files, changes, bytes, shared) = {
            let state = self.state();
            let shared = state.shared()?;
            let changes = self.changes.load(Ordering::Acquire);
            let bytes = self.bytes.load(Ordering::Acquire);
            self.seal(&state, |node| node.links > 0)?;
            let mut files = Vec::new();
            for (number, content) in state.tree.files() {
                let mut file = content.write();
                // What has no name is in no commit.
                if state.tree.get(number).is_some_and(|node| node.links > 0) {
                    files.append(&mut file.fresh);
                    if std::mem::take(&mut file.changed) {
                        file.record.version = file.record.version.saturating_add(1);
                    }
                }
            }
            (state.tree.index(), files, changes, bytes, shared)
        };
        // Those of an attempt that failed, too, unless they were replaced since.
        files.append(&mut writer.unsynced);
        let named: HashSet<Id> = index.files().collect();
        files.retain(|file| named.contains(file));
        let written = shared
            .store
            .sync_objects(&files)
            .map_err(VaultError::io("commit to the vault"))
            .and_then(|()| writer.vault.commit(index));
        if let Err(error) = written {
            writer.unsynced = files;
            return Err(error.into());
        }
        self.committed_changes.store(changes, Ordering::Release);
        self.committed_bytes.store(bytes, Ordering::Release);
        Ok(())
    }

    /// Seals what was written, if it is more than may be kept in memory.
    pub(super) fn keep_within_limits(&self) -> Result<(), VolumeError> {
        if self.unsealed.load(Ordering::Acquire) <= self.limits.unsealed {
            return Ok(());
        }
        self.seal(&self.state(), |_| true)
    }

    fn seal(&self, state: &State, which: impl Fn(&Node) -> bool) -> Result<(), VolumeError> {
        let shared = state.shared()?;
        for (_, node) in state.tree.nodes() {
            let Kind::File(content) = &node.kind else {
                continue;
            };
            if content.read().unsealed() == 0 || !which(node) {
                continue;
            }
            let mut file = content.write();
            let before = file.unsealed();
            file.seal(&shared, state.key_epoch)?;
            self.unsealed.fetch_sub(before, Ordering::AcqRel);
            if node.opens == 0 {
                file.close();
            }
        }
        Ok(())
    }
}

/// Removes files that no commit names.
pub(super) fn discard(shared: &Shared, files: Vec<Id>) {
    for file in files {
        // What cannot be removed is an orphan, and collected by the next writer.
        let _ = shared.store.remove(Place::Objects, &file_name(&file));
    }
}
