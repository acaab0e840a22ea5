//! A folder of endorsements: what is put there while a session runs has its evidence appraised again.
//!
//! `*.crl` are certificate revocation lists and `*.der` certificates, in DER; `tcb-info.json` and
//! `qe-identity.json` are Intel's collateral, signed, as its service gives them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use attestation::{Verifier, VerifierBuilder};
use casemate::Endorsements;
use casemate::error::describe;

/// Most files that are looked at.
const MAX_FILES: usize = 256;
/// Most bytes of one of them.
const MAX_FILE: u64 = 1 << 20;

/// What tells that a file has changed: inode, length, and both times in nanoseconds.
type Stamp = (u64, u64, [i64; 4]);

/// A folder, and what was in it when it was last read.
pub struct Folder {
    path: PathBuf,
    builder: VerifierBuilder,
    seen: BTreeMap<PathBuf, Stamp>,
}

impl Folder {
    /// A folder that adds to this verifier. Gives the verifier with what is there now, too.
    ///
    /// # Errors
    ///
    /// What is wrong with the folder or a file in it, in words.
    pub fn read(path: PathBuf, builder: VerifierBuilder) -> Result<(Self, Verifier), String> {
        let mut folder = Self {
            path,
            builder,
            seen: BTreeMap::new(),
        };
        let files = folder.files()?;
        let verifier = folder.verifier(files.keys())?;
        folder.seen = files;
        Ok((folder, verifier))
    }

    fn files(&self) -> Result<BTreeMap<PathBuf, Stamp>, String> {
        let unreadable =
            |error: io::Error| format!("cannot read `{}`: {error}", self.path.display());
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(&self.path).map_err(unreadable)? {
            let path = entry.map_err(unreadable)?.path();
            // One that has just gone is not there.
            let Ok(metadata) = fs::metadata(&path) else {
                continue;
            };
            if !metadata.is_file() || kind(&path).is_none() {
                continue;
            }
            let times = [
                metadata.mtime(),
                metadata.mtime_nsec(),
                metadata.ctime(),
                metadata.ctime_nsec(),
            ];
            files.insert(path, (metadata.ino(), metadata.len(), times));
            if files.len() > MAX_FILES {
                return Err(format!("`{}` has too many files", self.path.display()));
            }
        }
        Ok(files)
    }

    fn verifier<'a>(&self, files: impl Iterator<Item = &'a PathBuf>) -> Result<Verifier, String> {
        let mut builder = self.builder.clone();
        let mut collateral = attestation::Endorsements::default();
        let mut has_collateral = false;
        for path in files {
            let named = |error: &dyn std::error::Error| {
                format!("cannot use `{}`: {}", path.display(), describe(error))
            };
            let length = fs::metadata(path).map_err(|error| named(&error))?.len();
            if length > MAX_FILE {
                return Err(format!("`{}` is too long", path.display()));
            }
            let bytes = fs::read(path).map_err(|error| named(&error))?;
            match kind(path) {
                Some(Kind::Crl) => builder = builder.crl(bytes),
                Some(Kind::Certificate) => builder = builder.endorsement(bytes),
                Some(Kind::TcbInfo) => {
                    has_collateral = true;
                    collateral = collateral.with_tcb_info(bytes).map_err(|e| named(&e))?;
                }
                Some(Kind::QeIdentity) => {
                    has_collateral = true;
                    collateral = collateral.with_qe_identity(bytes).map_err(|e| named(&e))?;
                }
                None => {}
            }
        }
        if has_collateral {
            builder = builder.collateral(collateral);
        }
        builder.build().map_err(|error| describe(&error))
    }
}

impl Endorsements for Folder {
    fn renewed(&mut self) -> Result<Option<Verifier>, String> {
        let files = self.files()?;
        if files == self.seen {
            return Ok(None);
        }
        // A file that is being written is read again when it has changed again.
        self.seen = files;
        self.verifier(self.seen.keys()).map(Some)
    }
}

enum Kind {
    Crl,
    Certificate,
    TcbInfo,
    QeIdentity,
}

fn kind(path: &Path) -> Option<Kind> {
    match path.file_name()?.to_str()? {
        "tcb-info.json" => Some(Kind::TcbInfo),
        "qe-identity.json" => Some(Kind::QeIdentity),
        name if name.ends_with(".crl") => Some(Kind::Crl),
        name if name.ends_with(".der") => Some(Kind::Certificate),
        _ => None,
    }
}
