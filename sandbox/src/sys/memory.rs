//! Memory protection a process takes on for itself and cannot take off again.
//!
//! Follows `PR_SET_MDWE` in prctl(2).

use std::io;

/// Refuses, for this process and its children, to make memory executable that was not mapped so,
/// or to map memory writable and executable.
///
/// # Errors
///
/// `EINVAL` before Linux 6.3, and where another architecture has no such protection.
pub fn refuse_exec_gain() -> io::Result<()> {
    let bits = libc::c_ulong::from(libc::PR_MDWE_REFUSE_EXEC_GAIN);
    prctl(libc::PR_SET_MDWE, bits).map(drop)
}

/// Tells whether this process is refused executable memory.
///
/// # Errors
///
/// `EINVAL` before Linux 6.3.
pub fn exec_gain_is_refused() -> io::Result<bool> {
    let bits = prctl(libc::PR_GET_MDWE, 0)?;
    Ok(bits.cast_unsigned() & libc::PR_MDWE_REFUSE_EXEC_GAIN != 0)
}

fn prctl(option: libc::c_int, bits: libc::c_ulong) -> io::Result<libc::c_int> {
    let unused: libc::c_ulong = 0;
    // SAFETY: both options take integers and touch no memory of ours; that later mappings are
    // refused is what the caller asks for.
    match unsafe { libc::prctl(option, bits, unused, unused, unused) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}
