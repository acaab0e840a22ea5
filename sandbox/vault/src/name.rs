//! Names of objects: relative paths, valid everywhere a vault is served.

/// Most bytes of a name.
pub(crate) const MAX_LEN: usize = 4096;

/// Most bytes between two slashes.
const MAX_COMPONENT: usize = 255;

/// Why a name cannot name an object.
///
/// The name itself is not part of the message: names are as secret as the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Empty, or longer than 4096 bytes.
    #[error("a name has 1 to 4096 bytes")]
    Length,
    /// A part between slashes is empty, longer than 255 bytes, `.` or `..`.
    #[error("each part of a name has 1 to 255 bytes and is neither `.` nor `..`")]
    Component,
    /// Holds a NUL byte.
    #[error("a name holds no NUL byte")]
    Nul,
    /// A directory of this name exists, or a file where a directory is needed.
    #[error("a file and a directory cannot share a name")]
    Conflict,
}

/// Checks that this is a relative path without tricks.
pub(crate) fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() || name.len() > MAX_LEN {
        return Err(NameError::Length);
    }
    if name.contains('\0') {
        return Err(NameError::Nul);
    }
    for part in name.split('/') {
        if part.is_empty() || part.len() > MAX_COMPONENT || part == "." || part == ".." {
            return Err(NameError::Component);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_directory_are_refused() {
        for bad in [
            "",
            "/etc/passwd",
            "a/",
            "a//b",
            "..",
            "a/../b",
            "./a",
            "a\0b",
            "a/.",
        ] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        assert_eq!(check(&"a".repeat(256)), Err(NameError::Component));
        assert_eq!(check(&"a/".repeat(3000)), Err(NameError::Length));
        for good in ["a", "a/b.c", "..a", "ä/ß", "a b/…"] {
            assert_eq!(check(good), Ok(()), "{good:?}");
        }
    }
}
