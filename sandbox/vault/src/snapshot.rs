//! The vault as it is now, kept at another place.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::Path;

use crate::create::appear;
use crate::error::VaultError;
use crate::format::{header, manifest};
use crate::store::{Place, Store, file_name};
use crate::vault::Vault;

impl Vault {
    /// Makes `dir`, which must not exist, a vault of the same content, keys and generation.
    ///
    /// Objects never change, so on the same file system their files are shared by hard links, and a
    /// snapshot takes almost no room and time. What damages such a file damages both: for a backup,
    /// take the snapshot on another disk. To an anchor, a snapshot is an earlier state put back.
    ///
    /// It appears whole or not at all. Only the writer may take one, so that it is of one state.
    ///
    /// # Errors
    ///
    /// [`VaultError::Exists`], [`VaultError::ReadOnly`], [`VaultError::Poisoned`], or
    /// [`VaultError::Io`].
    pub fn snapshot(&self, dir: &Path) -> Result<(), VaultError> {
        self.writable()?;
        let io = VaultError::io("take a snapshot");
        appear(dir, |beside| {
            let to = Store::create(beside).map_err(&io)?;
            self.copy_store(&to).map_err(&io)
        })
    }

    fn copy_store(&self, to: &Store) -> io::Result<()> {
        let from = &self.shared.store;
        let write = |place, name: &str, bytes: &[u8]| {
            let file = to.create_file(place, name)?;
            to.write_at(&file, bytes, 0)?;
            to.sync(&file)
        };
        for file in self.commit.index.files().collect::<HashSet<_>>() {
            let name = file_name(&file);
            if from.link(to, Place::Objects, &name).is_ok() {
                continue;
            }
            let mut file = to.create_file(Place::Objects, &name)?;
            let source: File = from.open_file(Place::Objects, &name)?;
            io::copy(&mut &source, &mut file)?;
            to.sync(&file)?;
        }
        for segment in &self.commit.manifest.segments {
            let name = file_name(&segment.id);
            let bytes = from.read(Place::Index, &name, segment.len)?;
            write(Place::Index, &name, &bytes)?;
        }
        let newest = manifest::file(self.generation());
        let bytes = from.read(Place::Root, newest, manifest::LEN as u64)?;
        write(Place::Root, newest, &bytes)?;
        let header = self.shared.keys.seal_header(&self.header);
        write(Place::Root, header::FILE, &header)?;
        to.sync_dir(Place::Objects)?;
        to.sync_dir(Place::Index)?;
        to.sync_dir(Place::Root)
    }
}
