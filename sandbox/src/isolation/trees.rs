//! Granted trees of a running sandbox, taken out of its mount namespace and put back.
//!
//! ```text
//! as granted ─▶ clone, unmount ─▶ held, detached ─▶ moved in again
//!            └▶ clone, read-only, move in instead
//! ```
//!
//! A short-lived helper does it from inside the sandbox's namespaces. It shares the spawner's
//! descriptors and nothing else, so that a tree it clones stays open here when it has ended: what comes
//! back is the very mount that was granted, not what its path leads to by then.
//!
//! The workload may own folders above a mount point, so no symbolic link is followed on the way, and
//! what is taken out has to be a mount point. See setns(2), umount2(2), open_tree(2), move_mount(2).

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::{WaitId, WaitIdOptions};

use super::floor::Floor;
use super::spawner::Failure;
use crate::plan::FileAccess;
use crate::sys::mount::{self, attr};
use crate::sys::process::{self, Forked};

/// The namespaces of a sandbox that have to be entered to change its mounts.
#[derive(Debug)]
pub struct Namespaces {
    /// The user namespace, which owns the other.
    pub user: OwnedFd,
    /// The mount namespace.
    pub mounts: OwnedFd,
}

/// The granted trees of one sandbox, by their place inside.
#[derive(Debug, Default)]
pub struct Trees(BTreeMap<String, Tree>);

/// One granted tree: how it is mounted now, and what can be mounted in its place.
#[derive(Debug)]
struct Tree {
    granted: FileAccess,
    now: Option<FileAccess>,
    all: Option<OwnedFd>,
    read_only: Option<OwnedFd>,
}

impl Trees {
    /// The trees of a floor, mounted as granted.
    pub fn of(floor: &Floor) -> Self {
        let granted = floor.rootfs.binds.iter().filter(|bind| bind.owned);
        let tree = |writable| {
            let granted = if writable {
                FileAccess::Write
            } else {
                FileAccess::Read
            };
            Tree {
                granted,
                now: Some(granted),
                all: None,
                read_only: None,
            }
        };
        Self(
            granted
                .map(|bind| (bind.at.clone(), tree(bind.writable)))
                .collect(),
        )
    }

    /// Lets a tree be seen with this access, or not at all, by every later lookup. Returns when it is
    /// in force.
    ///
    /// # Errors
    ///
    /// [`Failure`] when it was not granted, its mount is not found, or the kernel refuses. The tree is
    /// as it was, or gone.
    pub fn show(
        &mut self,
        namespaces: &Namespaces,
        at: &str,
        access: Option<FileAccess>,
    ) -> Result<(), Failure> {
        let step = match access {
            None => format!("taking `{at}` away"),
            Some(access) => format!("letting `{at}` be seen, to {access}"),
        };
        let refused = |why: &str| Failure {
            step: step.clone(),
            error: why.into(),
            errno: None,
        };
        let tree = self
            .0
            .get_mut(at)
            .ok_or_else(|| refused("it was never granted"))?;
        if access > Some(tree.granted) {
            return Err(refused("it was granted for reading only"));
        }
        if tree.now == access {
            return Ok(());
        }
        let mut slots = Slots::new().map_err(Failure::at(step.clone()))?;
        let forked = process::fork_sharing_descriptors().map_err(Failure::at(step.clone()))?;
        let (taken, errno) = match forked {
            Forked::Child => {
                let mut taken = false;
                let result = tree.change(namespaces, Path::new(at), access, &mut slots, &mut taken);
                let errno = result
                    .err()
                    .map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO));
                let gone = if taken { GONE } else { 0 };
                process::exit_now(errno.clamp(0, GONE - 2) | gone)
            }
            Forked::Parent { pidfd, .. } => {
                match wait(&pidfd).map_err(Failure::at(step.clone()))? {
                    Some(code) if code != UNKNOWN => (code & GONE != 0, code & !GONE),
                    _ => {
                        // Nobody knows what is mounted there: no later wish for this tree is fulfilled.
                        self.0.remove(at);
                        return Err(refused("its helper did not come to an end"));
                    }
                }
            }
        };
        if taken {
            slots.keep(tree);
            tree.now = None;
        }
        if errno != 0 {
            return Err(Failure::at(step)(io::Error::from_raw_os_error(errno)));
        }
        tree.now = access;
        // It is mounted now. A copy held as well could be moved in nowhere else.
        match access {
            Some(access) if access == tree.granted => tree.all = None,
            Some(_) => tree.read_only = None,
            None => {}
        }
        Ok(())
    }
}

/// In the helper's exit code: the mount was taken out. Below it: `errno`, or zero.
const GONE: i32 = 128;
/// The helper's exit code when it left two mounts where one should be.
const UNKNOWN: i32 = 255;

/// Numbers in the descriptor table at which the helper leaves the clones it makes.
struct Slots {
    all: Option<OwnedFd>,
    read_only: Option<OwnedFd>,
}

impl Slots {
    fn new() -> io::Result<Self> {
        let empty = || File::open("/dev/null").map(OwnedFd::from);
        Ok(Self {
            all: Some(empty()?),
            read_only: Some(empty()?),
        })
    }

    /// Keeps what the helper cloned before it took the mount out, as [`Tree::clone_into`] does.
    fn keep(self, tree: &mut Tree) {
        if tree.all.is_none() {
            tree.all = self.all;
        }
        if tree.granted == FileAccess::Write && tree.read_only.is_none() {
            tree.read_only = self.read_only;
        }
    }
}

impl Tree {
    /// What the helper does. It exits afterwards, so it may leave its own namespaces for good.
    fn change(
        &mut self,
        namespaces: &Namespaces,
        at: &Path,
        access: Option<FileAccess>,
        slots: &mut Slots,
        taken: &mut bool,
    ) -> io::Result<()> {
        let name = enter(namespaces, at)?;
        if self.now.is_some() {
            self.clone_into(name, slots)?;
        }
        let all = self.all.as_ref().or(slots.all.as_ref());
        let read_only = self.read_only.as_ref().or(slots.read_only.as_ref());
        let tree = match access {
            None => None,
            Some(access) if access == self.granted => all,
            Some(_) => read_only,
        };
        // Under what is there, so that there is no moment without either. Linux 6.5 and later.
        let beneath = self.now.is_some()
            && tree
                .is_some_and(|tree| attach(tree, name, MoveMountFlags::MOVE_MOUNT_BENEATH).is_ok());
        if self.now.is_some() {
            // Not a mount point: EINVAL.
            let unmounted =
                rustix::mount::unmount(name, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            if beneath && unmounted.is_err() {
                process::exit_now(UNKNOWN)
            }
            unmounted?;
            *taken = true;
        }
        match tree {
            Some(tree) if !beneath => attach(tree, name, MoveMountFlags::empty()),
            _ => Ok(()),
        }
    }

    /// Clones what is mounted at `name` in every form that may be wanted there later and is not held.
    fn clone_into(&self, name: &Path, slots: &mut Slots) -> io::Result<()> {
        let clone = || {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE
                | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
            rustix::mount::open_tree(CWD, name, flags)
        };
        let flags = rustix::io::DupFlags::CLOEXEC;
        if let (None, Some(slot)) = (&self.all, &mut slots.all) {
            rustix::io::dup3(clone()?, slot, flags)?;
        }
        if let (FileAccess::Write, None, Some(slot)) =
            (self.granted, &self.read_only, &mut slots.read_only)
        {
            let tree = clone()?;
            mount::set_attributes(tree.as_fd(), attr::RDONLY, None)?;
            rustix::io::dup3(tree, slot, flags)?;
        }
        Ok(())
    }
}

/// Mounts a detached tree at a name of the current folder.
fn attach(tree: &OwnedFd, name: &Path, how: MoveMountFlags) -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = rustix::fs::openat(CWD, name, flags, Mode::empty())?;
    // A link in its place would be followed by nobody, and mounted over by nobody.
    let kind = rustix::fs::statat(&place, "", AtFlags::EMPTY_PATH)?.st_mode;
    if FileType::from_raw_mode(kind) == FileType::Symlink {
        return Err(io::Error::from_raw_os_error(libc::ELOOP));
    }
    let flags =
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH | how;
    Ok(rustix::mount::move_mount(tree, "", &place, "", flags)?)
}

/// Enters the sandbox and the folder in which `at` lies; gives the name that is left to walk, in which
/// no link is followed.
fn enter<'a>(namespaces: &Namespaces, at: &'a Path) -> io::Result<&'a Path> {
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
    rustix::process::fchdir(&folder)?;
    Ok(Path::new(name))
}

/// Waits for the helper: its exit code, or `None` when it was killed.
fn wait(pidfd: &OwnedFd) -> io::Result<Option<i32>> {
    loop {
        match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?.and_then(|status| status.exit_status())),
        }
    }
}
