//! What the kernel says of its Landlock, asked by system call and never by securityfs.
//!
//! Follows landlock_create_ruleset(2). Rulesets themselves are made by the crate `landlock`.

use std::io;

/// Returns the version of Landlock the kernel offers, from 1.
///
/// # Errors
///
/// `ENOSYS` if the kernel was built without it, `EOPNOTSUPP` if it was left out at boot (`lsm=`).
pub fn abi() -> io::Result<u32> {
    ask(CREATE_RULESET_VERSION)
}

/// Returns the bits of the errata that are fixed in this kernel.
///
/// # Errors
///
/// `EINVAL` before Linux 6.15, which could not be asked.
pub fn errata() -> io::Result<u32> {
    ask(CREATE_RULESET_ERRATA)
}

fn ask(flag: libc::c_ulong) -> io::Result<u32> {
    // SAFETY: with these flags the kernel takes no attribute and creates nothing: null and 0.
    let result = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<libc::c_void>(),
            0 as libc::c_ulong,
            flag,
        )
    };
    u32::try_from(result).map_err(|_| io::Error::last_os_error())
}

const CREATE_RULESET_VERSION: libc::c_ulong = 1;
const CREATE_RULESET_ERRATA: libc::c_ulong = 2;
