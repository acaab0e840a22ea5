//! Giving objects other names: content, version and key stay.

use std::collections::BTreeMap;

use crate::error::VaultError;
use crate::format::index::Index;
use crate::name::{self, NameError};
use crate::vault::{Vault, check_place};

impl Vault {
    /// Gives an object, or everything below a directory, another name, in one commit. Takes the same
    /// time for any amount of data.
    ///
    /// An object takes the place of an object, as rename(2) does it; a directory goes only where
    /// nothing is.
    ///
    /// # Errors
    ///
    /// [`VaultError::NotFound`], [`VaultError::Name`] if the new name cannot be one or is taken,
    /// [`VaultError::ReadOnly`], or [`VaultError::Poisoned`].
    pub fn rename(&mut self, from: &str, to: &str) -> Result<(), VaultError> {
        self.writable()?;
        name::check(to)?;
        let mut next = Index::clone(&self.commit.index);
        if let Some(record) = next.remove(from) {
            check_place(&next, to)?;
            next.insert(to.to_owned(), record);
        } else {
            rename_directory(&mut next, from, to)?;
        }
        self.commit(next)
    }
}

fn rename_directory(index: &mut Index, from: &str, to: &str) -> Result<(), VaultError> {
    let under = format!("{from}/");
    let objects = take_below(index, &under);
    let mut directories = take_below(&mut index.directories, &under);
    directories.extend(index.directories.remove_entry(from));
    if objects.is_empty() && directories.is_empty() {
        return Err(VaultError::NotFound);
    }
    // A directory cannot go below itself.
    if index.contains_key(to) || to.starts_with(&under) {
        return Err(NameError::Conflict.into());
    }
    check_place(index, to)?;
    let renamed = |name: &str| {
        let name = format!("{to}{}", &name[from.len()..]);
        name::check(&name).map(|()| name)
    };
    for (name, record) in objects {
        index.insert(renamed(&name)?, record);
    }
    for (name, directory) in directories {
        index.directories.insert(renamed(&name)?, directory);
    }
    Ok(())
}

/// Takes everything out whose name begins so.
fn take_below<T>(names: &mut BTreeMap<String, T>, under: &str) -> Vec<(String, T)> {
    let below: Vec<String> = names
        .range(under.to_owned()..)
        .map(|(name, _)| name.clone())
        .take_while(|name| name.starts_with(under))
        .collect();
    below
        .iter()
        .filter_map(|name| names.remove_entry(name))
        .collect()
}
