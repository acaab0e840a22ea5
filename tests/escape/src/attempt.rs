//! What came of an attempt.

use std::fmt;
use std::io;

/// What came of trying a vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attempt {
    /// The attack works; this is what it got.
    Open(String),
    /// It does not; this is what stopped it.
    Closed(String),
    /// The vector could not be tried to its end, which proves nothing.
    Stuck(String),
}

/// Errors by which the kernel says that the caller may not, whatever it asked for.
const REFUSALS: [i32; 3] = [libc::EPERM, libc::EACCES, libc::ENOSYS];

impl Attempt {
    /// Judges a call that means harm if it succeeds.
    pub fn succeeds<T: fmt::Debug>(result: io::Result<T>) -> Self {
        match result {
            Ok(got) => Self::Open(format!("{got:?}")),
            Err(error) => Self::Closed(name(&error)),
        }
    }

    /// Judges a call with useless arguments: the kernel looked at them if it complains of them.
    pub fn reaches<T: fmt::Debug>(result: io::Result<T>) -> Self {
        match result {
            Err(error) if error.raw_os_error().is_some_and(|e| !REFUSALS.contains(&e)) => {
                Self::Open(format!("reached the kernel: {}", name(&error)))
            }
            other => Self::succeeds(other),
        }
    }

    /// Is open if one of several is, and then says which.
    pub fn any(attempts: impl IntoIterator<Item = (String, Self)>) -> Self {
        let mut last = Self::Closed("nothing to try".into());
        for (what, attempt) in attempts {
            match attempt {
                Self::Open(detail) => return Self::Open(format!("{what}: {detail}")),
                other => last = other,
            }
        }
        last
    }

    /// Reads what [`fmt::Display`] wrote.
    pub fn parse(line: &str) -> Self {
        match line.split_once(' ') {
            Some(("open", detail)) => Self::Open(detail.into()),
            Some(("closed", detail)) => Self::Closed(detail.into()),
            _ => Self::Stuck(line.into()),
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open(detail) => write!(f, "open {detail}"),
            Self::Closed(detail) => write!(f, "closed {detail}"),
            Self::Stuck(detail) => write!(f, "stuck {detail}"),
        }
    }
}

/// Names an error as errno(3) does, for those that matter here.
pub fn name(error: &io::Error) -> String {
    let known = [
        (libc::EPERM, "EPERM"),
        (libc::ENOENT, "ENOENT"),
        (libc::ESRCH, "ESRCH"),
        (libc::EBADF, "EBADF"),
        (libc::EAGAIN, "EAGAIN"),
        (libc::EACCES, "EACCES"),
        (libc::EFAULT, "EFAULT"),
        (libc::EEXIST, "EEXIST"),
        (libc::EXDEV, "EXDEV"),
        (libc::ETXTBSY, "ETXTBSY"),
        (libc::ENXIO, "ENXIO"),
        (libc::ENODEV, "ENODEV"),
        (libc::ENOTDIR, "ENOTDIR"),
        (libc::EINVAL, "EINVAL"),
        (libc::ENOTTY, "ENOTTY"),
        (libc::EROFS, "EROFS"),
        (libc::ENOSYS, "ENOSYS"),
        (libc::ELOOP, "ELOOP"),
        (libc::EAFNOSUPPORT, "EAFNOSUPPORT"),
        (libc::EPROTONOSUPPORT, "EPROTONOSUPPORT"),
        (libc::ECONNREFUSED, "ECONNREFUSED"),
        (libc::ENOKEY, "ENOKEY"),
        (libc::EOPNOTSUPP, "EOPNOTSUPP"),
    ];
    match error.raw_os_error() {
        Some(errno) => known
            .iter()
            .find(|(known, _)| *known == errno)
            .map_or_else(|| format!("errno {errno}"), |(_, name)| (*name).to_owned()),
        None => error.to_string(),
    }
}
