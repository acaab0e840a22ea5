//! Kernel calls that no crate gives in a safe form: one call per function.
//!
//! This is the only folder of the crate with `unsafe`. A function here does not decide anything; it
//! says in its comment why the call is sound where it stands.

pub mod fanotify;
pub mod landlock;
pub mod memory;
pub mod mount;
pub mod network;
pub mod probe;
pub mod process;
#[cfg(target_arch = "x86_64")]
pub mod ptrace;
pub mod random;
pub mod seccomp;
pub mod signal;
pub mod trace;

use std::io;

/// Turns the return value of a system call into a result.
fn check(value: libc::c_long) -> io::Result<libc::c_long> {
    if value < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}
