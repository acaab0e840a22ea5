//! The `process` backend: layer 3 alone, for hosts that allow no namespaces.
//!
//! ```text
//! spawner ─▶ keeper ─▶ workload: its own user (as root), limits, no capabilities, no_new_privs,
//!    │          │                Landlock over the host's own file tree, seccomp; then the program
//!    └──────────┴── whatever the workload starts stays below them, and ends with them
//! ```
//!
//! The workload lives among the host's processes, mounts and interfaces. What keeps it from them is
//! Landlock, without which nothing is started, and the filter; cgroups limit it where they can be had.
//! What namespaces would have given is reported as not enforced, by the names that policies know:
//!
//! | Gap | What is open |
//! |---|---|
//! | `namespaces` | names and attributes of the host's files (not their contents, not folders' lists), its host name, its clock |
//! | `rootfs` | no tree of its own: granted trees are where they are on the host, and one folder in `/tmp`, whose size has no limit, is the workload's |
//! | `file-owner` | as root: granted files keep their owners, whom the workload's user is not |
//! | `proc` | no right to `/proc`, which some programs want |
//! | `memory-protection` | a file that was written can be mapped executable, though not executed |
//! | `files`, `tighten`, `exec` | cannot be taken while it runs: losing such a grant stops the workload. The right to start programs can, where a rule may take it |
//!
//! A policy that has none of it says so: `forbid (…, action == Action::"live", …) when {
//! context.gaps.contains("namespaces") }`. There are no vaults and no network here, which a policy that asks
//! for them is told before anything runs.

pub mod descendants;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use super::container::Container;
use super::floor::Floor;
use super::spawner::Failure;
use super::{Backend, Instance, Launch};
use crate::enforcement::Item;
use crate::sys::process;

/// Where the folders of workloads are made.
const HOMES: &str = "/tmp";
/// How their names begin; the supervisor's process id follows.
const HOME: &str = "casemate-home-";

/// Confines a process and what it starts, and gives them no namespaces.
#[derive(Debug)]
pub struct Process(Container);

impl Process {
    /// Starts the spawner and makes the cgroups.
    ///
    /// # Errors
    ///
    /// When the spawner cannot be started.
    pub fn prepare() -> Result<Self, Failure> {
        Container::prepare_without_mounts().map(Self)
    }
}

impl Backend for Process {
    fn launch(self: Box<Self>, launch: Launch<'_>) -> Result<Box<dyn Instance>, Failure> {
        if launch.floor.home.is_none() {
            return Err(other_backend());
        }
        Box::new(self.0).launch_any(launch)
    }
}

/// The floor was made for a backend other than the one that is to launch it.
pub(super) fn other_backend() -> Failure {
    Failure {
        step: "launching the floor".into(),
        error:
            "it was made for another backend: let `[isolation] backend` name the one that runs it"
                .into(),
        errno: None,
    }
}

/// A name for the folder of a workload that this process supervises.
pub(crate) fn home() -> String {
    format!("{HOMES}/{HOME}{}", super::cgroup::unique())
}

/// Makes the workload's folder, and removes those of supervisors that were killed together with their
/// spawners.
///
/// # Errors
///
/// When it exists already, or cannot be made.
pub(super) fn make_home(floor: &Floor) -> Result<(), Failure> {
    let Some(home) = &floor.home else {
        return Ok(());
    };
    sweep(Path::new(HOMES));
    let made = fs::DirBuilder::new()
        .mode(0o700)
        .create(home)
        .and_then(|()| {
            // In a folder whose sticky bit keeps others from putting something else in its place.
            match floor.privileged {
                true => std::os::unix::fs::lchown(home, Some(floor.host_uid), Some(floor.host_gid)),
                false => Ok(()),
            }
        });
    made.map_err(Failure::at(format!(
        "making the workload's folder `{home}`"
    )))
}

/// Removes a workload's folder, after the last process that could write there.
pub(super) fn remove_home(home: &str) {
    let _ = fs::remove_dir_all(home);
}

fn sweep(homes: &Path) {
    let own = rustix::process::geteuid().as_raw();
    for entry in fs::read_dir(homes).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let unique = name.to_str().and_then(|name| name.strip_prefix(HOME));
        let ours = |metadata: &fs::Metadata| {
            metadata.is_dir()
                && (metadata.uid() == own || super::namespace::is_sandbox_uid(metadata.uid()))
        };
        if unique.is_some_and(super::cgroup::is_left_over)
            && entry.metadata().is_ok_and(|metadata| ours(&metadata))
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// What the absence of namespaces leaves open, in the terms of the plan.
pub(super) fn items(floor: &Floor) -> Vec<Item> {
    let mut items = vec![
        Item::not(
            2,
            "namespaces",
            "none: the host's processes, interfaces and mounts are there; Landlock and the filter stand \
             before them",
        ),
        Item::not(
            2,
            "rootfs",
            "the host's own file tree, of which Landlock gives the granted parts; nothing limits the \
             size of the workload's folder",
        ),
        Item::partly(2, "proc", "no right to /proc"),
    ];
    if floor.privileged {
        items.push(Item::partly(
            2,
            "file-owner",
            format!(
                "files keep their owners; the workload is user {}",
                floor.host_uid
            ),
        ));
    }
    items
}

/// Becomes the user of the workload, without capabilities, for good.
pub(super) fn give_up_privileges(floor: &Floor) -> Result<(), Failure> {
    let step = "dropping capabilities";
    match process::lock_capabilities() {
        // Without the right to change the bounding set an ordinary user gains nothing from it either: what
        // is executed under no_new_privs gets no capability.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && !floor.privileged => {}
        locked => locked.map_err(Failure::at(step))?,
    }
    if floor.privileged {
        process::become_user(floor.host_uid, floor.host_gid, true)
            .map_err(Failure::at("becoming the sandbox's user"))?;
    }
    process::clear_capabilities().map_err(Failure::at(step))
}

/// Without Landlock nothing would stand between the workload and the host's files.
pub(super) fn without_landlock(why: io::Error) -> Failure {
    Failure::at("restricting files, which the backend `process` cannot do without")(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_supervisors_that_are_gone_are_swept() {
        let homes = tempfile::tempdir().expect("a folder");
        let own = super::super::cgroup::unique();
        let (_, rest) = own.split_once('-').expect("three parts");
        let gone = homes.path().join(format!("{HOME}4194305-{rest}"));
        let kept = [
            homes.path().join(format!("{HOME}{own}")),
            homes.path().join(format!("{HOME}x-00000000")),
            homes.path().join("other"),
        ];
        for folder in kept.iter().chain([&gone]) {
            fs::create_dir(folder).expect("a folder");
        }
        sweep(homes.path());
        assert!(!gone.exists());
        assert!(kept.iter().all(|folder| folder.exists()));
    }
}
