//! Making a vault unreadable for good.

use std::fs;
use std::io;
use std::path::Path;

use crate::error::VaultError;
use crate::find::not_a_vault;
use crate::format::{header, manifest};
use crate::store::{Place, Store, file_name};
use crate::vault::Vault;

impl Vault {
    /// Erases the vault at `dir`: what its slots hold is overwritten first, so that no key opens
    /// what may be left of the rest, and then everything is removed. Needs no key.
    ///
    /// A disk that keeps old blocks (flash, snapshots of a file system) may keep the slots, and
    /// copies made earlier are copies still: destroy the keys too.
    ///
    /// # Errors
    ///
    /// [`VaultError::NotAVault`], or [`VaultError::Locked`] if a writer, a reader or a lease has it.
    /// After [`VaultError::Io`] it may be erased in part; call again.
    pub fn erase(dir: &Path) -> Result<(), VaultError> {
        let store = Store::open(dir).map_err(not_a_vault)?;
        // Nothing that has no header's name is taken for a vault and removed.
        store
            .open_file(Place::Root, header::FILE)
            .map_err(not_a_vault)?;
        let taken = |e: io::Error| match e.kind() {
            io::ErrorKind::WouldBlock => VaultError::Locked,
            _ => VaultError::io("lock the vault")(e),
        };
        let writer = store.lock_writer().map_err(taken)?;
        let readers = store.lock_out_readers().map_err(taken)?;
        overwrite(&store)
            .and_then(|()| remove(&store))
            .and_then(|()| {
                drop((readers, writer));
                // Directories last. One that holds something foreign stays, and says so.
                fs::remove_dir(dir.join("objects"))?;
                fs::remove_dir(dir.join("index"))?;
                fs::remove_dir(dir)
            })
            .map_err(VaultError::io("erase the vault"))
    }
}

/// Overwrites what the root key and the DEKs are sealed in, where it is.
fn overwrite(store: &Store) -> io::Result<()> {
    let mut files: Vec<(Place, String)> = [header::FILE, header::NEXT_FILE]
        .into_iter()
        .chain(manifest::FILES)
        .map(|name| (Place::Root, name.to_owned()))
        .collect();
    let segments = store.ids(Place::Index)?;
    files.extend(segments.iter().map(|id| (Place::Index, file_name(id))));
    for (place, name) in files {
        let file = match store.open_to_overwrite(place, &name) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        let mut noise = vec![0; 64 * 1024];
        let len = file.metadata()?.len();
        for at in (0..len).step_by(noise.len()) {
            getrandom::fill(&mut noise).map_err(io::Error::other)?;
            let now = (len - at).min(noise.len() as u64) as usize;
            store.write_at(&file, &noise[..now], at)?;
        }
        store.sync(&file)?;
    }
    Ok(())
}

fn remove(store: &Store) -> io::Result<()> {
    for place in [Place::Objects, Place::Index] {
        for id in store.ids(place)? {
            store.remove(place, &file_name(&id))?;
        }
    }
    // The header goes last: until then, erasing again finds a vault.
    for name in manifest::FILES
        .into_iter()
        .chain([header::NEXT_FILE])
        .chain(Store::LOCKS)
        .chain([header::FILE])
    {
        store.remove(Place::Root, name)?;
    }
    store.sync_dir(Place::Root)
}
