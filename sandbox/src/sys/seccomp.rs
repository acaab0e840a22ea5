//! Loading seccomp filters, and the listener that is told of notified calls.
//!
//! Follows seccomp(2), seccomp_unotify(2) and the kernel's `include/uapi/linux/seccomp.h`.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::syscall::program::{Instruction, Program, SeccompData};

/// How a filter is loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadFlags {
    /// Every thread of the process gets the filter, or none does (`SECCOMP_FILTER_FLAG_TSYNC`).
    pub all_threads: bool,
    /// Once the listener has received a call, only a fatal signal interrupts the caller
    /// (`SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`, Linux 5.19). Only counts with a listener.
    pub wait_killable: bool,
}

/// Loads a filter for this thread, or for all threads of the process.
///
/// Needs `no_new_privs` or `CAP_SYS_ADMIN` in the caller's user namespace.
///
/// # Errors
///
/// `EACCES` without either of these; `ESRCH` if some thread cannot take the filter over;
/// `ENOMEM` if the filters of this process are too long together.
pub fn load(program: &Program, flags: LoadFlags) -> io::Result<()> {
    let mut bits = 0;
    if flags.all_threads {
        bits |= libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
    }
    set_mode_filter(program, bits).map(drop)
}

/// Loads a filter and returns the descriptor its notified calls are read from.
///
/// # Errors
///
/// As [`load`], and `EBUSY` if a filter that is already in force has a listener: the kernel allows
/// one for a whole chain of filters.
pub fn load_with_listener(program: &Program, flags: LoadFlags) -> io::Result<OwnedFd> {
    let mut bits = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    if flags.all_threads {
        bits |= libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
    }
    if flags.wait_killable {
        bits |= libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    }
    let fd = i32::try_from(set_mode_filter(program, bits)?).map_err(io::Error::other)?;
    // SAFETY: with NEW_LISTENER success means a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_mode_filter(program: &Program, flags: libc::c_ulong) -> io::Result<libc::c_long> {
    let instructions = program.instructions();
    let header = libc::sock_fprog {
        // A `Program` has at most 4096 instructions.
        len: instructions.len() as libc::c_ushort,
        filter: instructions.as_ptr().cast_mut().cast::<libc::sock_filter>(),
    };
    // SAFETY: the header describes a live slice of instructions laid out as `sock_filter` (checked
    // below); the kernel copies and does not write them.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER as libc::c_ulong,
            flags,
            &raw const header,
        )
    })
}

const _: () = assert!(size_of::<Instruction>() == size_of::<libc::sock_filter>());
const _: () = assert!(size_of::<SeccompData>() == size_of::<libc::seccomp_data>());
const _: () = assert!(size_of::<Notification>() == size_of::<libc::seccomp_notif>());
const _: () = assert!(size_of::<Response>() == size_of::<libc::seccomp_notif_resp>());
const _: () = assert!(size_of::<AddFd>() == size_of::<libc::seccomp_notif_addfd>());

/// A call that waits for an answer, laid out as `struct seccomp_notif`: 80 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notification {
    /// Names this call until it is answered or its caller is gone.
    pub id: u64,
    /// The thread that called, in the reader's pid namespace; 0 if it cannot be seen from there.
    pub pid: u32,
    /// Nothing yet.
    pub flags: u32,
    /// The call.
    pub data: SeccompData,
}

/// The answer to a notified call, laid out as `struct seccomp_notif_resp`: 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Response {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

/// A descriptor for the caller, laid out as `struct seccomp_notif_addfd`: 24 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AddFd {
    id: u64,
    flags: u32,
    source: u32,
    target: u32,
    target_flags: u32,
}

/// What the caller of a notified call sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The call returns this value.
    Value(i64),
    /// The call fails with this error number, given as a positive number.
    Errno(i32),
    /// The kernel runs the call after all (`SECCOMP_USER_NOTIF_FLAG_CONTINUE`).
    ///
    /// Never for a call whose arguments were inspected through a pointer: the caller can change
    /// what they point to in the meantime.
    #[allow(dead_code, reason = "no call is let through after it was notified")]
    Continue,
}

/// Waits for the next notified call.
///
/// # Errors
///
/// `ENOENT` if the caller was killed in the meantime: not an end, ask again. `EINTR` if a signal
/// came first.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Notification> {
    // The kernel refuses a structure that is not zeroed.
    let mut notification = Notification::default();
    ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_RECV, &mut notification)?;
    Ok(notification)
}

/// Answers a notified call.
///
/// # Errors
///
/// `ENOENT` if the caller is gone, `EINPROGRESS` if the call was answered already.
pub fn respond(listener: BorrowedFd<'_>, id: u64, answer: Answer) -> io::Result<()> {
    let (value, error, flags) = match answer {
        Answer::Value(value) => (value, 0, 0),
        Answer::Errno(errno) => (0, -errno, 0),
        Answer::Continue => (0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32),
    };
    let mut response = Response {
        id,
        value,
        error,
        flags,
    };
    ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_SEND, &mut response).map(drop)
}

/// Tells whether the caller still waits, so that its thread id still means that thread.
///
/// To be asked after whatever was read of the caller through its thread id, before it is believed.
pub fn id_is_valid(listener: BorrowedFd<'_>, id: u64) -> bool {
    let mut id = id;
    ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_ID_VALID, &mut id).is_ok()
}

/// Puts a copy of a descriptor into the caller's table and answers the call with its number.
///
/// # Errors
///
/// `ENOENT` if the caller is gone, `EMFILE` if its table is full.
pub fn respond_with_fd(
    listener: BorrowedFd<'_>,
    id: u64,
    source: BorrowedFd<'_>,
    close_on_exec: bool,
) -> io::Result<i32> {
    add(
        listener,
        id,
        source,
        close_on_exec,
        libc::SECCOMP_ADDFD_FLAG_SEND as u32,
    )
}

/// Puts a copy of a descriptor into the caller's table and leaves the call unanswered.
///
/// Returns its number there.
///
/// # Errors
///
/// As [`respond_with_fd`].
#[allow(dead_code, reason = "each descriptor is itself the answer")]
pub fn add_fd(
    listener: BorrowedFd<'_>,
    id: u64,
    source: BorrowedFd<'_>,
    close_on_exec: bool,
) -> io::Result<i32> {
    add(listener, id, source, close_on_exec, 0)
}

fn add(
    listener: BorrowedFd<'_>,
    id: u64,
    source: BorrowedFd<'_>,
    close_on_exec: bool,
    flags: u32,
) -> io::Result<i32> {
    let mut request = AddFd {
        id,
        flags,
        source: source.as_raw_fd().cast_unsigned(),
        target: 0,
        target_flags: if close_on_exec {
            libc::O_CLOEXEC.cast_unsigned()
        } else {
            0
        },
    };
    ioctl(listener, libc::SECCOMP_IOCTL_NOTIF_ADDFD, &mut request)
}

/// Makes a notified caller and the reader take turns on one CPU (`SYNC_WAKE_UP`, Linux 6.6).
///
/// Worth a factor of ten on virtual machines, where waking another CPU is an interrupt.
///
/// # Errors
///
/// `EINVAL` on a kernel without it: everything works without, only slower.
pub fn wake_synchronously(listener: BorrowedFd<'_>) -> io::Result<()> {
    // This ioctl takes the flags in place of a pointer.
    // SAFETY: the argument is an integer, no memory is touched.
    check(libc::c_long::from(unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS,
            SYNC_WAKE_UP,
        )
    }))
    .map(drop)
}

/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`.
const SYNC_WAKE_UP: libc::c_ulong = 1;

fn ioctl<T>(listener: BorrowedFd<'_>, request: libc::Ioctl, argument: &mut T) -> io::Result<i32> {
    // SAFETY: each caller passes the structure its request reads and writes, of the size encoded
    // in the request's number, exclusively borrowed for the duration of the call.
    let result = unsafe {
        libc::ioctl(
            listener.as_fd().as_raw_fd(),
            request,
            std::ptr::from_mut(argument),
        )
    };
    check(libc::c_long::from(result))?;
    Ok(result)
}

/// Tells whether the kernel knows an action, given as `SECCOMP_RET_*`.
pub fn action_is_available(action: u32) -> bool {
    // SAFETY: the kernel reads four bytes of a live local.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_ACTION_AVAIL as libc::c_ulong,
            0 as libc::c_ulong,
            &raw const action,
        )
    })
    .is_ok()
}

/// Returns the sizes the kernel uses for a notification, a response and the data of a call.
///
/// # Errors
///
/// `EINVAL` before Linux 5.0, which has no notifications.
pub fn notification_sizes() -> io::Result<(u16, u16, u16)> {
    let mut sizes = libc::seccomp_notif_sizes {
        seccomp_notif: 0,
        seccomp_notif_resp: 0,
        seccomp_data: 0,
    };
    // SAFETY: the kernel writes one `seccomp_notif_sizes` into a live local.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_GET_NOTIF_SIZES as libc::c_ulong,
            0 as libc::c_ulong,
            &raw mut sizes,
        )
    })?;
    Ok((
        sizes.seccomp_notif,
        sizes.seccomp_notif_resp,
        sizes.seccomp_data,
    ))
}

/// Tells whether the kernel knows the bits of `flags` (`SECCOMP_FILTER_FLAG_*`).
///
/// The kernel looks at the flags before the filter, so a filter nobody could load (address 0)
/// tells: `EFAULT` for known flags, `EINVAL` for unknown ones.
pub fn flags_are_known(flags: libc::c_ulong) -> bool {
    // SAFETY: with a null filter the kernel stops at reading it; nothing is installed.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER as libc::c_ulong,
            flags,
            std::ptr::null::<libc::sock_fprog>(),
        )
    };
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    match result {
        ..0 => Err(io::Error::last_os_error()),
        _ => Ok(result),
    }
}

#[cfg(test)]
mod tests;
