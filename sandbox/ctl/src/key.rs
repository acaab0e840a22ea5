//! Keys that a broker would release, in files.

use std::path::Path;

use guest_agent::key_file::{self, KeyFileError};
use zeroize::Zeroizing;

use crate::failure::Failure;

/// Reads a key file: 64 hexadecimal digits (32 bytes), readable by its owner only.
///
/// # Errors
///
/// When it is missing, open to others, or something else than a key.
pub fn read_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    key_file::read(path).map_err(explain)
}

/// Makes a key file with a new random key, unless there is a file already.
///
/// # Errors
///
/// When the file cannot be written.
pub fn new_key(path: &Path) -> Result<Zeroizing<Vec<u8>>, Failure> {
    key_file::create(path).map_err(explain)
}

fn explain(error: KeyFileError) -> Failure {
    let hint = error.hint();
    let failure = Failure::from(error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
