//! What a workload gets of the host's own file tree, where it has none of its own (the backend `process`).

use std::path::Path;

use policy::Tables;

use super::{DEVICES, HOST_ETC, HOST_TREES, PlanError};
use crate::isolation::floor::Bind;
use crate::syscall::landlock::Rights;

/// What it may touch besides the granted trees.
///
/// # Errors
///
/// [`PlanError::Unsupported`] for what takes namespaces.
pub(super) fn rights(tables: &Tables) -> Result<Vec<(String, Rights)>, PlanError> {
    let needs = |what: &str| {
        Err(PlanError::Unsupported(format!(
            "{what} cannot be had with the backend `process`, which has no namespaces: use \
             `backend = \"container\"`"
        )))
    };
    if let policy::Rootfs::Path(_) = tables.workload.rootfs {
        return needs("a root file system of its own (`[workload] rootfs`)");
    }
    if let Some(name) = tables.data.keys().next() {
        return needs(&format!("the vault `{name}`"));
    }
    if let Some(endpoint) = tables.network.connect.first() {
        return needs(&format!("a connection to `{endpoint}`"));
    }
    let there = |path: &&str| Path::new(path).exists();
    let executed = HOST_TREES.into_iter().filter(there);
    let read = HOST_ETC.into_iter().filter(there);
    let devices = DEVICES.into_iter().map(|device| format!("/dev/{device}"));
    Ok(executed
        .map(|path| (path.to_owned(), Rights::READ_EXEC))
        .chain(read.map(|path| (path.to_owned(), Rights::READ)))
        .chain(devices.map(|path| (path, Rights::READ_WRITE)))
        .collect())
}

/// The trees from which it executes programs.
pub(super) fn executed() -> Vec<Bind> {
    let tree = |path: &str| Bind {
        from: path.into(),
        at: path.into(),
        writable: false,
        executable: true,
        optional: true,
        device: false,
        owned: false,
    };
    HOST_TREES.into_iter().map(tree).collect()
}

/// Refuses to show a tree at another place than its own.
pub(super) fn in_place(from: &Path, at: &Path) -> Result<(), PlanError> {
    // Component by component: `/a/./b/` is `/a/b`.
    if from.components().eq(at.components()) {
        return Ok(());
    }
    Err(PlanError::Unsupported(format!(
        "the backend `process` has no mounts, so `{}` cannot be seen at `{}`: grant it by its own path",
        from.display(),
        at.display()
    )))
}
