//! Giving objects other names: content, version and key stay.

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
    let names: Vec<String> = index
        .range(under.clone()..)
        .map(|(name, _)| name.clone())
        .take_while(|name| name.starts_with(&under))
        .collect();
    if names.is_empty() {
        return Err(VaultError::NotFound);
    }
    // A directory cannot go below itself.
    if index.contains_key(to) || to.starts_with(&under) {
        return Err(NameError::Conflict.into());
    }
    let moved: Vec<_> = names
        .iter()
        .filter_map(|name| index.remove_entry(name))
        .collect();
    check_place(index, to)?;
    for (name, record) in moved {
        let name = format!("{to}/{}", &name[under.len()..]);
        name::check(&name)?;
        index.insert(name, record);
    }
    Ok(())
}
