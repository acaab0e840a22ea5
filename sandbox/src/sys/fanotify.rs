//! Hearing of programs as the kernel opens them to execute them.
//!
//! Follows fanotify_init(2), fanotify_mark(2) and fanotify(7).

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One opening of a file in order to execute it.
#[derive(Debug)]
pub struct Opened {
    /// The file, opened for reading; `None` when more happened than the kernel could keep.
    pub file: Option<OwnedFd>,
    /// Process that executes it.
    pub pid: i32,
}

/// Makes a group that is told, and does not block what it is told of.
///
/// # Errors
///
/// `EPERM` without CAP_SYS_ADMIN in the initial user namespace, `ENOSYS` if the kernel was built without.
pub fn group() -> io::Result<OwnedFd> {
    let flags = libc::FAN_CLASS_NOTIF | libc::FAN_CLOEXEC | libc::FAN_NONBLOCK;
    let events = libc::O_RDONLY | libc::O_LARGEFILE | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the call takes no pointer.
    let group = unsafe { libc::fanotify_init(flags, events as libc::c_uint) };
    super::check(group.into())?;
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(group) })
}

/// Has the group told of every execution from the mount that this path leads to.
///
/// # Errors
///
/// As fanotify_mark(2).
pub fn watch_mount(group: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    let path = CString::new(path)?;
    let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_MOUNT;
    // SAFETY: the path is a string that ends with NUL and lives until the call returns.
    let marked = unsafe {
        libc::fanotify_mark(
            group.as_raw_fd(),
            flags,
            libc::FAN_OPEN_EXEC,
            libc::AT_FDCWD,
            path.as_ptr(),
        )
    };
    super::check(marked.into()).map(drop)
}

/// Takes what has happened since, as much as fits one read.
///
/// # Errors
///
/// As read(2); `WouldBlock` if nothing has.
pub fn read(group: BorrowedFd<'_>) -> io::Result<Vec<Opened>> {
    const LENGTH: usize = size_of::<libc::fanotify_event_metadata>();
    let mut bytes = [0u8; 4096];
    let length = rustix::io::read(group, &mut bytes)?;
    let mut opened = Vec::new();
    let mut rest = &bytes[..length];
    while rest.len() >= LENGTH {
        // SAFETY: at least as many bytes are there as the structure has, any of which are valid for it,
        // and it is read wherever it is aligned.
        let event = unsafe {
            rest.as_ptr()
                .cast::<libc::fanotify_event_metadata>()
                .read_unaligned()
        };
        let file = (event.fd >= 0)
            // SAFETY: the kernel has made this descriptor for the reader of the event, who is us.
            .then(|| unsafe { OwnedFd::from_raw_fd(event.fd) });
        opened.push(Opened {
            file,
            pid: event.pid,
        });
        let next = (event.event_len as usize).max(LENGTH);
        rest = rest.get(next..).unwrap_or_default();
    }
    Ok(opened)
}
