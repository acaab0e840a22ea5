//! Stories about whole vaults: attacked, killed, leased.

#![allow(clippy::unwrap_used)]

mod basics;
mod crash;
mod devices;
mod freshness;
mod lease;
mod model;
mod power;
mod renewal;
mod residue;
mod slots;
mod tamper;

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::kek::Released;
use crate::{Access, ChunkSize, CreateOptions, LeaseTerms, Padding, Rights, Vault, VaultError};

/// A vault in a directory of its own, with the key that opens it.
pub(crate) struct Bench {
    pub(crate) dir: TempDir,
    key: [u8; 32],
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            key: [0x42; 32],
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("v.vault")
    }

    pub(crate) fn kek(&self) -> Released {
        Released::take(&mut self.key.clone()).unwrap()
    }

    /// Small chunks and exact lengths, so that tests can count.
    pub(crate) fn create(&self) -> Vault {
        let options = CreateOptions {
            chunk: ChunkSize::KiB4,
            padding: Padding::None,
        };
        Vault::create(&self.path(), &self.kek(), options).unwrap()
    }

    pub(crate) fn open(&self) -> Result<Vault, VaultError> {
        Vault::open(&self.path(), &self.kek(), Access::ReadOnly)
    }

    pub(crate) fn write(&self) -> Result<Vault, VaultError> {
        Vault::open(&self.path(), &self.kek(), Access::ReadWrite)
    }

    /// Every regular file of the vault, with its content, in a fixed order.
    pub(crate) fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut files = Vec::new();
        collect(&self.path(), &mut files);
        files.sort();
        files
    }

    /// The one file that is in `now` and was not in `before`, in this directory.
    pub(crate) fn only_file(&self, directory: &str) -> PathBuf {
        let mut files = fs::read_dir(self.path().join(directory)).unwrap();
        let file = files.next().unwrap().unwrap().path();
        assert!(
            files.next().is_none(),
            "one file was expected in {directory}"
        );
        file
    }

    /// Flips a bit of an object's file.
    pub(crate) fn damage(&self, vault: &Vault, name: &str, at: usize) {
        let file = crate::store::file_name(&vault.index()[name].extents[0].file_id);
        let path = self.path().join("objects").join(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    }

    /// Makes the directory hold exactly these files.
    pub(crate) fn restore(&self, files: &[(PathBuf, Vec<u8>)]) {
        for (path, _) in self.files() {
            fs::remove_file(path).unwrap();
        }
        for (path, bytes) in files {
            fs::write(path, bytes).unwrap();
        }
    }
}

fn collect(dir: &Path, files: &mut Vec<(PathBuf, Vec<u8>)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
}

/// Bytes that differ everywhere, so that a swap is seen.
pub(crate) fn content(seed: u8, len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| seed ^ (i % 253) as u8 ^ (i / 253) as u8)
        .collect()
}

pub(crate) fn read(vault: &Vault, name: &str) -> Result<Vec<u8>, VaultError> {
    let mut out = Vec::new();
    vault.get(name, &mut out).map(|_| out)
}

pub(crate) fn terms() -> LeaseTerms {
    LeaseTerms {
        subject: "job-1".to_owned(),
        prefix: String::new(),
        rights: Rights::READ,
        expires: None,
    }
}
