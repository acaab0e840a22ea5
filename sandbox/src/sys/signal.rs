//! Unix signals as data: blocked, and read from a descriptor.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::check;

/// A set of all signals that can be blocked.
fn all_signals() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: sigfillset writes the whole set and cannot fail for a valid pointer.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        set.assume_init()
    }
}

/// Blocks every signal in this thread.
///
/// # Errors
///
/// What sigprocmask(2) answers.
pub fn block_all() -> io::Result<()> {
    let set = all_signals();
    // SAFETY: `set` is initialised and outlives the call; a null old set is allowed.
    check(i64::from(unsafe {
        libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut())
    }))?;
    Ok(())
}

/// Gives a descriptor from which blocked signals can be read.
///
/// # Errors
///
/// What signalfd(2) answers.
pub fn collect() -> io::Result<OwnedFd> {
    let set = all_signals();
    // SAFETY: `set` is initialised; -1 asks for a new descriptor.
    let fd = check(i64::from(unsafe {
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    }))?;
    // SAFETY: the kernel just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Takes one waiting signal number from the descriptor, if there is one.
///
/// # Errors
///
/// What read(2) answers, except that nothing waiting is `Ok(None)`.
pub fn next(collected: &OwnedFd) -> io::Result<Option<i32>> {
    let mut info = std::mem::MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    // SAFETY: the buffer is as large as one `signalfd_siginfo`, the unit in which signalfd reads.
    let read = unsafe {
        libc::read(
            collected.as_raw_fd(),
            info.as_mut_ptr().cast(),
            size_of::<libc::signalfd_siginfo>(),
        )
    };
    match check(read as i64) {
        // SAFETY: zeroed before, and plain integers: every bit pattern is a value.
        Ok(n) if n > 0 => Ok(Some(unsafe { info.assume_init() }.ssi_signo as i32)),
        Ok(_) => Ok(None),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}

/// Takes a blocked signal that is there, or comes within `patience`. False when none does.
///
/// # Errors
///
/// What sigtimedwait(2) answers.
pub fn wait_for(signal: i32, patience: Duration) -> io::Result<bool> {
    let mut set = std::mem::MaybeUninit::uninit();
    let patience = libc::timespec {
        tv_sec: patience.as_secs() as libc::time_t,
        tv_nsec: patience.subsec_nanos().into(),
    };
    // SAFETY: sigemptyset writes the whole set; all that is passed on is live, and a null place for what
    // is known of the signal is allowed.
    let taken = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        libc::sigtimedwait(set.as_ptr(), std::ptr::null_mut(), &raw const patience)
    };
    match check(taken.into()) {
        Ok(_) => Ok(true),
        Err(error) if [Some(libc::EAGAIN), Some(libc::EINTR)].contains(&error.raw_os_error()) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Unblocks all signals and gives each its default action again, as a new program expects.
///
/// # Errors
///
/// What sigprocmask(2) answers.
pub fn reset_all() -> io::Result<()> {
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: SIG_DFL is a valid disposition; numbers the C library reserves are refused, and
        // they carry no handler of ours.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    let mut empty = std::mem::MaybeUninit::uninit();
    // SAFETY: sigemptyset writes the whole set; sigprocmask reads it.
    check(i64::from(unsafe {
        libc::sigemptyset(empty.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, empty.as_ptr(), std::ptr::null_mut())
    }))?;
    Ok(())
}
