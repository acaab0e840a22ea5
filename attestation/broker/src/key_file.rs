//! Key files: what a broker would release, kept beside a policy.
//!
//! A key file is one line of 64 hexadecimal digits (32 bytes), a regular file that nobody but its
//! owner can read.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Bytes of a key.
pub const KEY_LEN: usize = 32;
/// Most bytes read of a key file: its digits and some white space.
const MAX_FILE: u64 = 256;

/// Why a key file could not be read or made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error("cannot read the key file `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others than the owner can read or write it.
    #[error("the key file `{}` can be read by others", path.display())]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// It holds something else than a key.
    #[error("`{}` is no key file: it must hold 64 hexadecimal digits", path.display())]
    Form {
        /// The file.
        path: PathBuf,
    },
    /// A new file cannot be written.
    #[error("cannot write the key file `{}`", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system gives no random bytes.
    #[error("the system gives no random bytes")]
    Random,
}

impl KeyFileError {
    /// What a user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { path, .. } => {
                let path = path.display();
                Some(format!(
                    "`sandboxctl vault create VAULT --key-file {path}` makes a vault and its key"
                ))
            }
            Self::Exposed { path, .. } => Some(format!("chmod 600 {}", path.display())),
            _ => None,
        }
    }
}

/// Reads the 32 bytes of a key file.
///
/// # Errors
///
/// [`KeyFileError::Read`] if it is missing, [`KeyFileError::Exposed`] if it is open to others,
/// [`KeyFileError::Form`] if it is something else than a key.
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let unreadable = |source| KeyFileError::Read {
        path: path.into(),
        source,
    };
    // A named pipe must not hold us up; whether it is a regular file is asked of what was opened.
    let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nonblock)
        .open(path)
        .map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if !metadata.is_file() {
        return Err(KeyFileError::Form { path: path.into() });
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(KeyFileError::Exposed {
            path: path.into(),
            mode: metadata.mode() & 0o777,
        });
    }
    // Room for all of it at once: a buffer that grows leaves copies behind.
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize + 1));
    file.take(MAX_FILE + 1)
        .read_to_end(&mut text)
        .map_err(unreadable)?;
    decode(text.trim_ascii()).ok_or_else(|| KeyFileError::Form { path: path.into() })
}

/// Makes a key file with a new random key, unless there is a file already.
///
/// # Errors
///
/// [`KeyFileError::Write`] if the file exists or cannot be written; [`KeyFileError::Random`].
pub fn create(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyFileError> {
    let mut key = Zeroizing::new(vec![0u8; KEY_LEN]);
    let flags = rustix::rand::GetRandomFlags::empty();
    if !matches!(rustix::rand::getrandom(&mut key[..], flags), Ok(KEY_LEN)) {
        return Err(KeyFileError::Random);
    }
    let mut text = Zeroizing::new(String::with_capacity(2 * KEY_LEN + 1));
    for byte in key.iter() {
        text.extend(
            [byte >> 4, byte & 15].map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)])),
        );
    }
    text.push('\n');
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .map_err(|source| KeyFileError::Write {
            path: path.into(),
            source,
        })?;
    Ok(key)
}

fn decode(digits: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    if digits.len() != 2 * KEY_LEN {
        return None;
    }
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let mut key = Zeroizing::new(Vec::with_capacity(KEY_LEN));
    for pair in digits.chunks_exact(2) {
        key.push(digit(pair[0])? << 4 | digit(pair[1])?);
    }
    Some(key)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_that_was_made_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        let made = create(&path).unwrap();
        assert_eq!(*read(&path).unwrap(), *made);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(
            matches!(create(&path), Err(KeyFileError::Write { .. })),
            "a key is never replaced"
        );
    }

    #[test]
    fn a_key_file_open_to_others_is_refused_with_the_command_that_closes_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        create(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o601] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = read(&path).unwrap_err();
            assert!(matches!(error, KeyFileError::Exposed { mode: found, .. } if found == mode));
            assert!(error.hint().unwrap().starts_with("chmod 600 "));
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.key");
        create(&path).unwrap();
        let digits = "0f".repeat(KEY_LEN);
        for text in [
            "",
            "0f",
            &digits[1..],
            &format!("{digits}0"),
            &digits.replacen('0', "+", 1),
        ] {
            fs::write(&path, text).unwrap();
            assert!(
                matches!(read(&path), Err(KeyFileError::Form { .. })),
                "{text:?}"
            );
        }
        fs::write(&path, digits.to_uppercase() + "\n").unwrap();
        assert_eq!(*read(&path).unwrap(), [0x0f; KEY_LEN]);
        assert!(
            matches!(read(folder.path()), Err(KeyFileError::Form { .. })),
            "a folder"
        );
    }
}
