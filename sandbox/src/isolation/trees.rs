//! Granted trees of a running sandbox, taken out of its mount namespace and put back.
//!
//! ```text
//! as granted ─▶ clone, unmount ─▶ held, detached ─▶ moved in again
//!            └▶ clone, read-only, move in instead
//! ```
//!
//! A process of its own does it, which the spawner forks before it enters the sandbox's cgroups, so that
//! nothing the workload uses up keeps it from working. It enters the sandbox's namespaces once, and
//! waits there: nothing has to be made or entered when a tree is to be taken. The workload does not see
//! it, being in another pid namespace. What it cloned stays open with it: what comes back is the very
//! mount that was granted, not what its path leads to by then.
//!
//! The workload may own folders above a mount point, so no symbolic link is followed on the way, and
//! what is taken out has to be a mount point. See setns(2), umount2(2), open_tree(2), move_mount(2).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::floor::Floor;
use super::spawner::Failure;
use super::wire;
use crate::plan::FileAccess;
use crate::sys::mount::{self, attr};

/// The namespaces of a sandbox that have to be entered to change its mounts, or to reach all of its
/// processes at once.
#[derive(Debug)]
pub struct Namespaces {
    /// The user namespace, which owns the others.
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

/// What is asked of the process that moves trees.
#[derive(Serialize, Deserialize)]
pub enum Wish {
    /// These are the trees, as they were granted. Descriptors: the namespaces.
    Begin(BTreeMap<String, FileAccess>),
    /// Let a tree be seen so, or not at all.
    Show(String, Option<FileAccess>),
}

/// The granted trees of a floor, by their place inside.
pub fn granted(floor: &Floor) -> BTreeMap<String, FileAccess> {
    let granted = floor.rootfs.binds.iter().filter(|bind| bind.owned);
    let access = |writable| match writable {
        true => FileAccess::Write,
        false => FileAccess::Read,
    };
    granted
        .map(|bind| (bind.at.clone(), access(bind.writable)))
        .collect()
}

/// Moves the trees of one sandbox, as long as its supervisor lives. Answers every wish.
///
/// # Errors
///
/// When the socket fails.
pub fn serve(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut trees = Trees::default();
    while let Some((wish, descriptors)) = wire::receive::<Wish>(socket)? {
        let done = match wish {
            Wish::Begin(granted) => trees.begin(granted, descriptors),
            Wish::Show(at, access) => trees.show(&at, access),
        };
        wire::send(socket, &done, &[])?;
    }
    Ok(())
}

/// The granted trees of the sandbox that this process has entered, by their place inside.
#[derive(Debug, Default)]
struct Trees(BTreeMap<String, Tree>);

/// One granted tree: how it is mounted now, and what can be mounted in its place.
#[derive(Debug)]
struct Tree {
    granted: FileAccess,
    now: Option<FileAccess>,
    all: Option<OwnedFd>,
    read_only: Option<OwnedFd>,
}

impl Trees {
    /// Enters the sandbox.
    fn begin(
        &mut self,
        granted: BTreeMap<String, FileAccess>,
        namespaces: Vec<OwnedFd>,
    ) -> Result<(), Failure> {
        let namespaces = Namespaces::received(namespaces)?;
        let enter = |fd: &OwnedFd, kind| {
            move_into_link_name_space(fd.as_fd(), Some(kind))
                .map_err(io::Error::from)
                .map_err(Failure::at("entering the sandbox"))
        };
        enter(&namespaces.user, LinkNameSpaceType::User)?;
        enter(&namespaces.mounts, LinkNameSpaceType::Mount)?;
        let tree = |granted| Tree {
            granted,
            now: Some(granted),
            all: None,
            read_only: None,
        };
        self.0 = granted
            .into_iter()
            .map(|(at, granted)| (at, tree(granted)))
            .collect();
        Ok(())
    }

    /// Lets a tree be seen with this access, or not at all, by every later lookup. Returns when it is
    /// in force.
    ///
    /// # Errors
    ///
    /// [`Failure`] when it was not granted, its mount is not found, or the kernel refuses. The tree is
    /// as it was, or gone.
    fn show(&mut self, at: &str, access: Option<FileAccess>) -> Result<(), Failure> {
        let step = || match access {
            None => format!("taking `{at}` away"),
            Some(access) => format!("letting `{at}` be seen, to {access}"),
        };
        let refused = |why: &str| Failure {
            step: step(),
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
        match tree.change(Path::new(at), access) {
            Ok(()) => Ok(()),
            Err(Unchanged::Refused(error)) => Err(Failure::at(step())(error)),
            Err(Unchanged::Twice) => {
                // No later wish for this tree is fulfilled.
                self.0.remove(at);
                Err(refused("two mounts were left where one should be"))
            }
        }
    }
}

/// Why a tree could not be changed.
enum Unchanged {
    /// It is as it was, or gone.
    Refused(io::Error),
    /// Nobody knows what is mounted there.
    Twice,
}

impl<E: Into<io::Error>> From<E> for Unchanged {
    fn from(error: E) -> Self {
        Self::Refused(error.into())
    }
}

impl Tree {
    fn change(&mut self, at: &Path, access: Option<FileAccess>) -> Result<(), Unchanged> {
        let name = enter_folder_of(at)?;
        if self.now.is_some() {
            self.hold(name)?;
        }
        let wanted = match access {
            None => None,
            Some(access) if access == self.granted => self.all.as_ref(),
            Some(_) => self.read_only.as_ref(),
        };
        // Under what is there, so that there is no moment without either. Linux 6.5 and later.
        let beneath = self.now.is_some()
            && wanted
                .is_some_and(|tree| attach(tree, name, MoveMountFlags::MOVE_MOUNT_BENEATH).is_ok());
        if self.now.is_some() {
            // Not a mount point: EINVAL.
            let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            match rustix::mount::unmount(name, flags) {
                Err(_) if beneath => return Err(Unchanged::Twice),
                unmounted => unmounted?,
            }
            self.now = None;
        }
        if let (Some(tree), false) = (wanted, beneath) {
            attach(tree, name, MoveMountFlags::empty())?;
        }
        self.now = access;
        // It is mounted now. A copy held as well could be moved in nowhere else.
        match access {
            Some(access) if access == self.granted => self.all = None,
            Some(_) => self.read_only = None,
            None => {}
        }
        Ok(())
    }

    /// Clones what is mounted at `name` in every form that may be wanted there later and is not held.
    fn hold(&mut self, name: &Path) -> io::Result<()> {
        let clone = || {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE
                | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
            rustix::mount::open_tree(CWD, name, flags)
        };
        if self.all.is_none() {
            self.all = Some(clone()?);
        }
        if self.granted == FileAccess::Write && self.read_only.is_none() {
            let tree = clone()?;
            mount::set_attributes(tree.as_fd(), attr::RDONLY, None)?;
            self.read_only = Some(tree);
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

/// Makes the folder in which `at` lies the current one; gives the name that is left to walk, in which no
/// link is followed.
fn enter_folder_of(at: &Path) -> io::Result<&Path> {
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
