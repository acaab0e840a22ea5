//! The parts of the new mount API that `rustix` leaves out.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::check;

/// Attributes of a mount, as `MOUNT_ATTR_*` of mount_setattr(2).
pub mod attr {
    /// No writing through this mount.
    pub const RDONLY: u64 = 0x1;
    /// Set-user-id bits and file capabilities have no effect.
    pub const NOSUID: u64 = 0x2;
    /// Device files cannot be opened.
    pub const NODEV: u64 = 0x4;
    /// Programs cannot be executed.
    pub const NOEXEC: u64 = 0x8;
    /// Ids are mapped by a user namespace.
    pub const IDMAP: u64 = 0x0010_0000;
}

/// Layout of `struct mount_attr`, version 0 (32 bytes).
#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets attributes of a mount and of everything mounted below it; with `user_namespace` the ids of
/// files are seen through that namespace's mapping. See mount_setattr(2).
///
/// # Errors
///
/// `EINVAL` when the file system cannot map ids, `EPERM` when a locked attribute would change.
pub fn set_attributes(
    tree: BorrowedFd<'_>,
    set: u64,
    user_namespace: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    apply(
        tree,
        set,
        user_namespace,
        libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
    )
}

/// Sets attributes of a mount, but not of what is mounted below it.
///
/// # Errors
///
/// `EPERM` when a locked attribute would change.
pub fn set_attributes_of_one(tree: BorrowedFd<'_>, set: u64) -> io::Result<()> {
    apply(tree, set, None, libc::AT_EMPTY_PATH)
}

fn apply(
    tree: BorrowedFd<'_>,
    set: u64,
    user_namespace: Option<BorrowedFd<'_>>,
    flags: libc::c_int,
) -> io::Result<()> {
    let idmap = if user_namespace.is_some() {
        attr::IDMAP
    } else {
        0
    };
    let attributes = MountAttr {
        attr_set: set | idmap,
        attr_clr: 0,
        propagation: 0,
        userns_fd: user_namespace.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: the path is an empty string that ends with a zero byte, `attributes` outlives the call
    // and its size is given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(&attributes),
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// Makes the directory `.` the root of this mount namespace and puts the old root on top of it, from
/// where `unmount(".", DETACH)` drops it. See pivot_root(2), "pivot_root(".", ".")".
///
/// # Errors
///
/// `EINVAL` when `.` is not a mount point.
pub fn pivot_root_here() -> io::Result<()> {
    // SAFETY: both paths are constant strings that end with a zero byte.
    check(unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) })?;
    Ok(())
}
