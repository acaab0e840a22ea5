//! Mounts of a running sandbox, changed from inside its mount namespace by a short-lived helper.
//!
//! The workload may own folders above a mount point, so no symbolic link is followed on the way, and
//! what is found there has to be a mount point. See setns(2), umount2(2), open_tree(2), move_mount(2).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::{WaitId, WaitIdOptions};
use serde::{Deserialize, Serialize};

use super::spawner::Failure;
use crate::sys::mount::{self, attr};
use crate::sys::process::{self, Forked};

/// What is done to a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Narrowing {
    /// It is gone for every later lookup.
    Detach,
    /// Every later lookup finds it read-only.
    ReadOnly,
}

/// The namespaces of a sandbox that have to be entered to change its mounts, or to reach all of its
/// processes at once.
#[derive(Debug)]
pub struct Namespaces {
    /// The user namespace, which owns the other.
    pub user: OwnedFd,
    /// The mount namespace.
    pub mounts: OwnedFd,
    /// The pid namespace.
    pub pids: OwnedFd,
}

impl Namespaces {
    /// All of them, in the order in which they are sent.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 3] {
        [self.user.as_fd(), self.mounts.as_fd(), self.pids.as_fd()]
    }

    /// Takes them as they were sent.
    ///
    /// # Errors
    ///
    /// When there are more or fewer.
    pub fn received(descriptors: Vec<OwnedFd>) -> Result<Self, Failure> {
        match <[OwnedFd; 3]>::try_from(descriptors) {
            Ok([user, mounts, pids]) => Ok(Self { user, mounts, pids }),
            Err(_) => Err(Failure {
                step: "taking the namespaces".into(),
                error: "descriptors are missing".into(),
                errno: None,
            }),
        }
    }
}

/// Narrows the mount at an absolute path inside a sandbox. Returns when it is in force.
pub fn narrow(namespaces: &Namespaces, at: &str, narrowing: Narrowing) -> Result<(), Failure> {
    let step = || match narrowing {
        Narrowing::Detach => format!("detaching `{at}`"),
        Narrowing::ReadOnly => format!("making `{at}` read-only"),
    };
    match process::fork_into(0, None).map_err(Failure::at(step()))? {
        Forked::Child => {
            let code = match inside(namespaces, Path::new(at), narrowing) {
                Ok(()) => 0,
                Err(error) => error
                    .raw_os_error()
                    .filter(|errno| (1..255).contains(errno))
                    .unwrap_or(255),
            };
            process::exit_now(code)
        }
        Forked::Parent { pidfd, .. } => {
            let status = loop {
                match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
                    Err(rustix::io::Errno::INTR) => {}
                    other => break other.map_err(|errno| Failure::at(step())(errno.into()))?,
                }
            };
            match status.and_then(|status| status.exit_status()) {
                Some(0) => Ok(()),
                Some(errno) => Err(Failure::at(step())(io::Error::from_raw_os_error(errno))),
                None => Err(Failure::at(step())(io::ErrorKind::Interrupted.into())),
            }
        }
    }
}

/// What the helper does. It exits afterwards, so it may leave its own namespaces for good.
fn inside(namespaces: &Namespaces, at: &Path, narrowing: Narrowing) -> io::Result<()> {
    use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
    move_into_link_name_space(namespaces.user.as_fd(), Some(LinkNameSpaceType::User))?;
    move_into_link_name_space(namespaces.mounts.as_fd(), Some(LinkNameSpaceType::Mount))?;
    let (parent, name) = at
        .parent()
        .zip(at.file_name())
        .ok_or(io::ErrorKind::InvalidInput)?;
    let folder = rustix::fs::openat2(
        CWD,
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )?;
    // From here on the name is the only step that is walked, and no link is followed in it.
    rustix::process::fchdir(&folder)?;
    let replacement = match narrowing {
        Narrowing::Detach => None,
        Narrowing::ReadOnly => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE
                | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
            let tree = rustix::mount::open_tree(CWD, name, flags)?;
            mount::set_attributes(tree.as_fd(), attr::RDONLY, None)?;
            Some(tree)
        }
    };
    // Not a mount point: EINVAL.
    rustix::mount::unmount(name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    if let Some(tree) = replacement {
        let place = rustix::fs::openat(
            CWD,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        // A link in its place would be followed by nobody, and mounted over by nobody.
        let kind = rustix::fs::statat(&place, "", AtFlags::EMPTY_PATH)?.st_mode;
        if rustix::fs::FileType::from_raw_mode(kind) == rustix::fs::FileType::Symlink {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&tree, "", &place, "", flags)?;
    }
    Ok(())
}
