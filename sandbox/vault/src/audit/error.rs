//! What can go wrong with a log that is being written.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::checkpoint::NoteError;
use super::key::KeyError;
use super::record::RecordError;

/// Why a log could not be opened or a record not be kept.
///
/// Whatever it is: no record was acknowledged, so the effect that waits for it must not happen.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// The directory holds a log already, or the remains of one.
    #[error("`{0}` holds a log already, or the remains of one")]
    Exists(PathBuf),
    /// The directory holds no log.
    #[error("`{0}` holds no log: it has no checkpoint")]
    NoLog(PathBuf),
    /// Another writer has the log.
    #[error("log in `{0}` is open for another writer")]
    Locked(PathBuf),
    /// The key is not the one that the log is signed with.
    #[error("log in `{0}` is signed with another key")]
    WrongKey(PathBuf),
    /// The name or key cannot be used.
    #[error("key or name of the log cannot be used")]
    Key(#[source] Arc<KeyError>),
    /// The last checkpoint is not to be believed.
    #[error("checkpoint of the log is not to be believed")]
    Checkpoint(#[source] NoteError),
    /// The record cannot be kept. The log goes on.
    #[error("record cannot be kept")]
    Record(#[source] RecordError),
    /// Records that were acknowledged are gone: somebody cut or lost part of the log.
    #[error("acknowledged records from number {index} on are missing: keep `{path}` as evidence")]
    Lost {
        /// The first record that is missing.
        index: u64,
        /// Where it should be.
        path: PathBuf,
    },
    /// A file of the log does not hold what was written to it.
    #[error("`{path}` is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Records between two checkpoints are not those of this log's key.
    #[error("`{0}` was not written with the key of this log")]
    Forged(PathBuf),
    /// The file that records go to was removed, replaced, renamed or resized by somebody else.
    #[error("`{0}` was removed, replaced or resized while it was open")]
    Displaced(PathBuf),
    /// There is no space left.
    #[error("no room left for `{path}`")]
    Full {
        /// The file that did not fit.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A file cannot be read, written or made durable.
    #[error("`{path}` cannot be {what}")]
    Io {
        /// What was tried: `read`, `written`, `made durable`.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// An earlier error stopped the log. After a failed sync nobody knows what the disk holds, so
    /// nothing is tried again; opening the log anew finds out.
    #[error("log stopped after an earlier error: remove its cause and open the log again")]
    Stopped(#[source] Box<LogError>),
    /// The log was closed.
    #[error("log is closed")]
    Closed,
}

impl LogError {
    pub(super) fn io(what: &'static str, path: &Path, source: io::Error) -> LogError {
        let (path, full) = (path.to_owned(), what != "read" && is_full(&source));
        let source = Arc::new(source);
        if full {
            LogError::Full { path, source }
        } else {
            LogError::Io { what, path, source }
        }
    }

    pub(super) fn damaged(path: &Path, why: &'static str) -> LogError {
        LogError::Damaged {
            path: path.to_owned(),
            why,
        }
    }
}

fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}
