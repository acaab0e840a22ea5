//! The kernel's random number generator.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::check;

/// `RNDRESEEDCRNG` of linux/random.h, which libc does not have: `_IO('R', 0x07)`.
const RESEED: libc::c_ulong = 0x5207;

/// Has the generator behind this device file draw a new key from all that was mixed in so far. Before this
/// returns; what is drawn later depends on it.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_ADMIN`, `ENODATA` before the generator was seeded for the first time.
pub fn reseed(device: &File) -> io::Result<()> {
    // SAFETY: this request takes no argument and touches no memory of ours.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), RESEED) };
    check(done.into()).map(drop)
}
