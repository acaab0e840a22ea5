//! An anchor in a file: for development, and for a file kept where the store's keeper cannot write.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::{AnchorError, Anchored, FreshnessAnchor};

/// Remembers one vault in one file: `"CSMANCHR"` | vault id 16 | generation u64 | root 32.
///
/// Worth as much as the place of the file: whoever can put back both store and file is not noticed.
#[derive(Debug)]
pub struct FileAnchor {
    path: PathBuf,
    turn: Mutex<()>,
}

impl FileAnchor {
    /// Names the file; it is created by the first commit.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            turn: Mutex::new(()),
        }
    }

    fn load(&self, vault: &[u8; 16]) -> Result<Option<Anchored>, AnchorError> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(AnchorError::Unreachable(e)),
        };
        super::parse(&bytes, vault)
            .map(Some)
            .ok_or(AnchorError::Damaged)
    }
}

impl FreshnessAnchor for FileAnchor {
    fn read(&self, vault: &[u8; 16]) -> Result<Option<Anchored>, AnchorError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.load(vault)
    }

    fn advance(
        &self,
        vault: &[u8; 16],
        from: Option<Anchored>,
        to: Anchored,
    ) -> Result<(), AnchorError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = fs::File::create(self.path.with_extension("lock"));
        let lock = lock.map_err(AnchorError::Unreachable)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|e| AnchorError::Unreachable(e.into()))?;
        if self.load(vault)? != from {
            return Err(AnchorError::Moved);
        }
        let bytes = super::encode(vault, to);
        replace(&self.path, &bytes).map_err(AnchorError::Unreachable)
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let next = path.with_extension("next");
    let mut file = fs::File::create(&next)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    let parent = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    fs::File::open(parent)?.sync_all()
}
