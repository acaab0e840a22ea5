//! What this host holds that a sandbox could have left behind.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

use crate::Result;

/// Counts, to be compared before and after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    mounts: usize,
    namespaces: usize,
    cgroups: usize,
    descriptors: usize,
    processes: usize,
}

impl Held {
    /// Counts what there is: cgroups of this process' sandboxes, processes and threads below it, and the
    /// namespaces of all processes.
    pub fn now() -> Result<Self> {
        let mut namespaces = BTreeSet::new();
        let mut processes = 0;
        for process in fs::read_dir("/proc")?.flatten() {
            let path = process.path();
            if !process
                .file_name()
                .to_string_lossy()
                .bytes()
                .all(|b| b.is_ascii_digit())
            {
                continue;
            }
            for kind in fs::read_dir(path.join("ns"))
                .into_iter()
                .flatten()
                .flatten()
            {
                namespaces.extend(fs::read_link(kind.path()).ok());
            }
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            processes += usize::from(name.starts_with("casemate-spawn"));
        }
        Ok(Self {
            mounts: fs::read_to_string("/proc/self/mountinfo")?.lines().count(),
            namespaces: namespaces.len(),
            cgroups: cgroups(Path::new("/sys/fs/cgroup"), 6),
            descriptors: fs::read_dir("/proc/self/fd")?.count(),
            processes,
        })
    }
}

fn cgroups(folder: &Path, depth: u32) -> usize {
    if depth == 0 {
        return 0;
    }
    let own = format!("casemate-{}-", std::process::id());
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| {
            usize::from(entry.file_name().to_string_lossy().starts_with(&own))
                + cgroups(&entry.path(), depth - 1)
        })
        .sum()
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} mounts, {} namespaces, {} cgroups of ours, {} descriptors, {} spawners",
            self.mounts, self.namespaces, self.cgroups, self.descriptors, self.processes
        )
    }
}
