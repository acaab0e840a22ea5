//! System calls as they are, without a library that knows better.

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;

use libc::{c_int, c_long};

/// Makes any system call.
pub fn call(number: c_long, arguments: [usize; 6]) -> io::Result<c_long> {
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: the attack is the point. Callers pass integers, or addresses of values that outlive the
    // call; what else a call may do happens in a process that exists for it alone.
    check(unsafe { libc::syscall(number, a, b, c, d, e, f) })
}

/// Turns the return value of a system call into a result.
pub fn check(value: c_long) -> io::Result<c_long> {
    if value < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}

/// Opens a path with these flags of open(2), and mode 0755 for what it creates.
pub fn open(path: impl AsRef<Path>, flags: c_int) -> io::Result<OwnedFd> {
    open_at(libc::AT_FDCWD, path, flags)
}

/// Opens a path from a folder with these flags of open(2).
pub fn open_at(folder: c_int, path: impl AsRef<Path>, flags: c_int) -> io::Result<OwnedFd> {
    let path = text(path)?;
    // SAFETY: `path` is a string that ends with a zero byte and outlives the call.
    let opened = unsafe { libc::openat(folder, path.as_ptr(), flags | libc::O_CLOEXEC, 0o755) };
    owned(c_long::from(opened))
}

/// Takes over a descriptor that a system call returned.
pub fn owned(returned: impl Into<c_long>) -> io::Result<OwnedFd> {
    let descriptor = check(returned.into())?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as c_int) })
}

/// A path as the kernel takes it.
pub fn text(path: impl AsRef<Path>) -> io::Result<CString> {
    Ok(CString::new(path.as_ref().as_os_str().as_encoded_bytes())?)
}

/// The address of a value, for an argument of [`call`].
pub fn address<T: ?Sized>(value: &T) -> usize {
    std::ptr::from_ref(value).cast::<u8>() as usize
}
