//! Memory outside the store of how far a vault has come.
//!
//! A store can prove that its bytes belong together, not that they are the latest. A freshness
//! anchor remembers generation and root, and moves only forward: a store put back to an earlier day
//! is then noticed, also by a machine that never saw it before.

mod file;

use std::io;

pub use file::FileAnchor;

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
