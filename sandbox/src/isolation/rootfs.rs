//! The root file system of a sandbox, assembled with the new mount API.
//!
//! An empty tmpfs becomes the root; trees of the host are cloned (`open_tree`), made read-only or
//! mapped while still detached, and attached by descriptor (`move_mount`), so that no path is walked
//! twice. Then `pivot_root`, and the host's tree is gone. See mount_setattr(2), open_tree(2),
//! move_mount(2), pivot_root(2).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use super::floor::{Bind, DataMount, Floor, Rootfs};
use super::namespace::Mappings;
use super::spawner::Failure;
use crate::enforcement::Item;
use crate::sys::mount::{self, attr};

/// Trees that root opened before the sandbox's namespaces existed, by their place inside.
#[derive(Debug, Default)]
pub struct Prepared {
    trees: BTreeMap<String, OwnedFd>,
    unmapped: Vec<String>,
}

/// A vault's place in the new root.
#[derive(Debug)]
pub enum DataPlace {
    /// Mounted as FUSE: whoever holds this descriptor serves it.
    Fuse(OwnedFd),
    /// A tmpfs which the workload sees read-only, and the holder of this descriptor can write.
    Memory(OwnedFd),
}

/// Clones the granted trees and maps their owner to the sandbox's user.
pub fn prepare_owned(floor: &Floor, mappings: &mut Mappings) -> Result<Prepared, Failure> {
    let mut prepared = Prepared::default();
    for bind in floor.rootfs.binds.iter().filter(|b| b.owned) {
        let step = || format!("opening `{}`", bind.from);
        let tree = clone_tree(&bind.from).map_err(|e| Failure::at(step())(e.into()))?;
        let owner = rustix::fs::fstat(&tree).map_err(|e| Failure::at(step())(e.into()))?;
        let mapping = mappings.get(
            (owner.st_uid, owner.st_gid),
            (floor.host_uid, floor.host_gid),
        )?;
        if mount::set_attributes(tree.as_fd(), 0, Some(mapping)).is_err() {
            prepared.unmapped.push(bind.from.clone());
        }
        prepared.trees.insert(bind.at.clone(), tree);
    }
    Ok(prepared)
}

/// Builds the root file system and moves into it. Returns what was enforced, and the places of the
/// vaults in the order of `floor.rootfs.data`.
///
/// Called in the new mount namespace by the sandbox's init.
pub fn assemble(
    rootfs: &Rootfs,
    mut prepared: Prepared,
    mut fuse: Vec<OwnedFd>,
) -> Result<(Vec<Item>, Vec<DataPlace>), Failure> {
    let mut items = Vec::new();
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(at("making the mounts private"))?;

    // Sources first: the new root may cover one of them while it is being built.
    let mut trees = Vec::new();
    for bind in &rootfs.binds {
        if let Some(tree) = open(bind, &mut prepared)? {
            trees.push((bind, tree));
        }
    }
    if !prepared.unmapped.is_empty() {
        items.push(Item::partly(
            2,
            "file-owner",
            format!(
                "ids cannot be mapped on the file system of {}",
                prepared.unmapped.join(", ")
            ),
        ));
    }
    let root = tmpfs(
        "0755",
        16 << 20,
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV,
    )
    .map_err(at("making the root"))?;
    attach(root.as_fd(), CWD, "/tmp")
        .or_else(|_| attach(root.as_fd(), CWD, "/"))
        .map_err(at("mounting the root"))?;
    rustix::process::fchdir(&root).map_err(at("entering the root"))?;

    for (place, target) in &rootfs.links {
        let (parent, name) = parent_of(root.as_fd(), place).map_err(at_place(place))?;
        rustix::fs::symlinkat(target, &parent, name).map_err(at_place(place))?;
    }
    for (bind, tree) in trees {
        let place = mount_point(root.as_fd(), &bind.at, &tree).map_err(at_place(&bind.at))?;
        attach(tree.as_fd(), place.as_fd(), "").map_err(at_place(&bind.at))?;
    }
    for (place, content) in &rootfs.files {
        let (parent, name) = parent_of(root.as_fd(), place).map_err(at_place(place))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644))
            .map_err(at_place(place))?;
        File::from(file)
            .write_all(content.as_bytes())
            .map_err(Failure::at(format!("writing `{place}`")))?;
    }
    scratch(root.as_fd(), rootfs.scratch)?;
    items.push(proc(root.as_fd())?);
    let mut places = Vec::new();
    for data in &rootfs.data {
        places.push(data_place(root.as_fd(), data, fuse.pop())?);
    }

    mount::pivot_root_here().map_err(Failure::at("changing the root"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(at("leaving the host's root"))?;
    rustix::process::chdir("/").map_err(at("entering the root"))?;
    make_read_only()?;
    items.insert(
        0,
        Item::full(
            2,
            "rootfs",
            format!("{} trees of the host, root read-only", rootfs.binds.len()),
        ),
    );
    Ok((items, places))
}

/// Clones the source of a bind and takes from it what it does not need, while it is still detached.
fn open(bind: &Bind, prepared: &mut Prepared) -> Result<Option<OwnedFd>, Failure> {
    let tree = match prepared.trees.remove(&bind.at) {
        Some(tree) => tree,
        None => match clone_tree(&bind.from) {
            Ok(tree) => tree,
            Err(Errno::NOENT) if bind.optional => return Ok(None),
            Err(error) => return Err(at_owned(format!("opening `{}`", bind.from))(error)),
        },
    };
    let mut attributes = attr::NOSUID;
    if !bind.writable && !bind.device {
        attributes |= attr::RDONLY;
    }
    if !bind.device {
        attributes |= attr::NODEV;
    }
    if !bind.executable {
        attributes |= attr::NOEXEC;
    }
    mount::set_attributes(tree.as_fd(), attributes, None)
        .map_err(Failure::at(format!("protecting `{}`", bind.at)))?;
    Ok(Some(tree))
}

fn clone_tree(path: &str) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    rustix::mount::open_tree(CWD, path, flags)
}

fn tmpfs(mode: &str, size: u64, attributes: MountAttrFlags) -> rustix::io::Result<OwnedFd> {
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&fs, "mode", mode)?;
    rustix::mount::fsconfig_set_string(&fs, "size", size.to_string())?;
    rustix::mount::fsconfig_create(&fs)?;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

fn attach(tree: BorrowedFd<'_>, at: BorrowedFd<'_>, path: &str) -> rustix::io::Result<()> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    if path.is_empty() {
        flags |= MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    }
    rustix::mount::move_mount(tree, "", at, path, flags)
}

/// Opens a path of the new root without following a link or leaving the root.
fn open_inside(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let relative = path.trim_start_matches('/');
    rustix::fs::openat2(
        root,
        if relative.is_empty() { "." } else { relative },
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
}

/// Opens the folder in which `path` lies, making it and those above it as needed.
fn parent_of<'p>(root: BorrowedFd<'_>, path: &'p str) -> rustix::io::Result<(OwnedFd, &'p str)> {
    let (folder, name) = path
        .trim_end_matches('/')
        .rsplit_once('/')
        .unwrap_or(("", path));
    Ok((folder_at(root, folder)?, name))
}

fn folder_at(root: BorrowedFd<'_>, path: &str) -> rustix::io::Result<OwnedFd> {
    let directory = OFlags::PATH | OFlags::DIRECTORY;
    match open_inside(root, path, directory) {
        Err(Errno::NOENT) => {
            let (parent, name) = parent_of(root, path)?;
            match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            open_inside(root, path, directory)
        }
        other => other,
    }
}

/// Opens the place for a tree, a folder or a file like its source, making it as needed.
fn mount_point(root: BorrowedFd<'_>, path: &str, tree: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode);
    if kind == FileType::Directory {
        return folder_at(root, path);
    }
    match open_inside(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => {
            let (parent, name) = parent_of(root, path)?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o444))?;
            open_inside(root, path, OFlags::PATH)
        }
        other => other,
    }
}

/// Mounts the writable places that every program expects: `/tmp` and `/dev/shm`.
fn scratch(root: BorrowedFd<'_>, size: u64) -> Result<(), Failure> {
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    for place in ["/tmp", "/dev/shm"] {
        let tree = tmpfs("1777", size, attributes).map_err(at_place(place))?;
        let point = folder_at(root, place).map_err(at_place(place))?;
        attach(tree.as_fd(), point.as_fd(), "").map_err(at_place(place))?;
    }
    Ok(())
}

/// Mounts a `/proc` of this process namespace that shows processes only, and of them only one's own.
///
/// A host that itself runs in a container with a masked `/proc` does not permit that; the sandbox
/// then has none.
fn proc(root: BorrowedFd<'_>) -> Result<Item, Failure> {
    let point = folder_at(root, "/proc").map_err(at_place("/proc"))?;
    let mounted = (|| {
        let fs = rustix::mount::fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&fs, "hidepid", "invisible")?;
        rustix::mount::fsconfig_set_string(&fs, "subset", "pid")?;
        rustix::mount::fsconfig_create(&fs)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let tree = rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        attach(tree.as_fd(), point.as_fd(), "")
    })();
    Ok(match mounted {
        Ok(()) => Item::full(2, "proc", "own processes only, read-only"),
        Err(error) => Item::partly(
            2,
            "proc",
            format!("no /proc inside: {error} (a container around this host masks it)"),
        ),
    })
}

/// Opens `/dev/fuse` once for each of `count` file systems; fewer when this user may not.
///
/// The kernel wants the descriptor to have been opened in the user namespace that mounts it, so this
/// happens inside; as root before the init gives up root's id, for the device often belongs to root.
pub fn open_fuse(count: usize) -> Vec<OwnedFd> {
    let open =
        |_| rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).ok();
    (0..count).map_while(open).collect()
}

/// Makes the place of a vault: FUSE where `/dev/fuse` can be opened, else a tmpfs.
fn data_place(
    root: BorrowedFd<'_>,
    data: &DataMount,
    device: Option<OwnedFd>,
) -> Result<DataPlace, Failure> {
    let point = folder_at(root, &data.at).map_err(at_place(&data.at))?;
    if let Some(device) = device
        && let Ok(tree) = fuse_tree(&device, data.writable)
    {
        attach(tree.as_fd(), point.as_fd(), "").map_err(at_place(&data.at))?;
        return Ok(DataPlace::Fuse(device));
    }
    if data.writable {
        return Err(Failure {
            step: format!("mounting `{}`", data.at),
            error:
                "a vault that is written to needs /dev/fuse, which cannot be opened here; let this \
                    user open it, or use `access = \"read\"`"
                    .into(),
            errno: None,
        });
    }
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let writable = tmpfs("0755", data.size, attributes).map_err(at_place(&data.at))?;
    let shown = rustix::mount::open_tree(
        &writable,
        "",
        OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH,
    )
    .map_err(at_place(&data.at))?;
    mount::set_attributes(shown.as_fd(), attr::RDONLY, None)
        .map_err(Failure::at(format!("protecting `{}`", data.at)))?;
    attach(shown.as_fd(), point.as_fd(), "").map_err(at_place(&data.at))?;
    Ok(DataPlace::Memory(writable))
}

fn fuse_tree(device: &OwnedFd, writable: bool) -> rustix::io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let fs = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&fs, "source", "casemate-vault")?;
    rustix::mount::fsconfig_set_string(&fs, "fd", device.as_raw_fd().to_string())?;
    rustix::mount::fsconfig_set_string(&fs, "rootmode", "40000")?;
    let (uid, gid) = (rustix::process::getuid(), rustix::process::getgid());
    rustix::mount::fsconfig_set_string(&fs, "user_id", uid.as_raw().to_string())?;
    rustix::mount::fsconfig_set_string(&fs, "group_id", gid.as_raw().to_string())?;
    rustix::mount::fsconfig_create(&fs)?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    if !writable {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Makes the mount of the root itself read-only; the writable mounts below it stay as they are.
fn make_read_only() -> Result<(), Failure> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(at("opening the root"))?;
    mount::set_attributes_of_one(root.as_fd(), attr::RDONLY)
        .map_err(Failure::at("making the root read-only"))
}

/// Whether a path of the host exists, and whether it is a link, for those who plan a rootfs.
pub fn host_entry(path: &str) -> Option<HostEntry> {
    let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    Some(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => HostEntry::Link(std::fs::read_link(path).ok()?.to_str()?.to_owned()),
        _ => HostEntry::Tree,
    })
}

/// What stands at a path of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEntry {
    /// A symbolic link, to this target.
    Link(String),
    /// A folder or file.
    Tree,
}

fn at(step: &'static str) -> impl FnOnce(Errno) -> Failure {
    move |errno| Failure::at(step)(io::Error::from(errno))
}

fn at_owned(step: String) -> impl FnOnce(Errno) -> Failure {
    move |errno| Failure::at(step)(io::Error::from(errno))
}

fn at_place(place: &str) -> impl FnOnce(Errno) -> Failure {
    let step = format!("mounting `{place}`");
    move |errno| {
        let mut failure = Failure::at(step)(io::Error::from(errno));
        if errno == Errno::ROFS {
            failure.error = "the place for it does not exist in the tree it lies in".into();
        }
        failure
    }
}
