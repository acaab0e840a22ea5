//! Memory outside the store of how far a vault has come.
//!
//! A store can prove that its bytes belong together, not that they are the latest. A freshness
//! anchor remembers generation and root, and moves only forward: a store put back to an earlier day
//! is then noticed, also by a machine that never saw it before.

mod file;
mod tpm;

use std::io;
use std::path::Path;
use std::sync::Arc;

pub use file::FileAnchor;
pub use tpm::TpmAnchor;

/// A commit, as an anchor remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchored {
    /// Number of the commit, from 1.
    pub generation: u64,
    /// [`Vault::root`](crate::Vault::root) after it.
    pub root: [u8; 32],
}

/// Remembers the latest commit of vaults.
pub trait FreshnessAnchor: Send + Sync {
    /// Reads what is remembered of this vault; `None` if nothing ever was.
    ///
    /// # Errors
    ///
    /// If the anchor cannot be asked. The vault then stays closed.
    fn read(&self, vault: &[u8; 16]) -> Result<Option<Anchored>, AnchorError>;

    /// Moves from one commit to the next, if `from` is what is remembered.
    ///
    /// # Errors
    ///
    /// [`AnchorError::Moved`] if something else is remembered: another writer was faster.
    fn advance(
        &self,
        vault: &[u8; 16],
        from: Option<Anchored>,
        to: Anchored,
    ) -> Result<(), AnchorError>;
}

/// Why an anchor did not answer or move.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnchorError {
    /// The anchor remembers another commit than the one to move from.
    #[error("the anchor was moved by another writer")]
    Moved,
    /// What the anchor stores makes no sense.
    #[error("the anchor's memory is damaged")]
    Damaged,
    /// The anchor could not be reached.
    #[error("the anchor cannot be reached")]
    Unreachable(#[source] io::Error),
}

/// The anchor that a URI names: `file:PATH`, relative to `base`, or `tpm:0xINDEX`, an NV index of this
/// machine's TPM; `None` for anything else.
pub fn named(uri: &str, base: &Path) -> Option<Arc<dyn FreshnessAnchor>> {
    match uri.split_once(':')? {
        ("file", path) if !path.is_empty() => Some(Arc::new(FileAnchor::new(base.join(path)))),
        ("tpm", index) => {
            let index = u32::from_str_radix(index.strip_prefix("0x")?, 16).ok()?;
            Some(Arc::new(TpmAnchor::new(crate::tpm::DEVICE, index)?))
        }
        _ => None,
    }
}

const MAGIC: &[u8; 8] = b"CSMANCHR";
const LEN: usize = 8 + 16 + 8 + 32;

/// What an anchor keeps of one vault: magic | vault id 16 | generation u64 | root 32.
fn encode(vault: &[u8; 16], anchored: Anchored) -> Vec<u8> {
    let generation = anchored.generation.to_le_bytes();
    [&MAGIC[..], vault, &generation, &anchored.root].concat()
}

/// Reads what [`encode`] wrote of this vault.
pub(crate) fn parse(bytes: &[u8], vault: &[u8; 16]) -> Option<Anchored> {
    let rest = bytes.strip_prefix(MAGIC)?.strip_prefix(vault)?;
    let (generation, root) = rest.split_first_chunk::<8>()?;
    Some(Anchored {
        generation: u64::from_le_bytes(*generation),
        root: root.try_into().ok()?,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_names_a_file_or_an_index_of_the_owner() {
        let base = Path::new("/");
        for good in ["file:a.anchor", "tpm:0x01800000", "tpm:0x1bfffff"] {
            assert!(named(good, base).is_some(), "{good}");
        }
        for bad in [
            "",
            "file",
            "file:",
            "tpm:",
            "tpm:1",
            "tpm:0x01c00000",
            "tpm:0x017fffff",
            "http://x",
        ] {
            assert!(named(bad, base).is_none(), "{bad}");
        }
    }

    #[test]
    fn what_is_remembered_of_another_vault_is_not_believed() {
        let anchored = Anchored {
            generation: 7,
            root: [9; 32],
        };
        let bytes = encode(&[1; 16], anchored);
        assert_eq!(bytes.len(), LEN);
        assert_eq!(parse(&bytes, &[1; 16]), Some(anchored));
        assert_eq!(parse(&bytes, &[2; 16]), None);
        (0..LEN).for_each(|len| assert_eq!(parse(&bytes[..len], &[1; 16]), None));
    }
}
