//! Which tasks there are in a sandbox.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal};
use serde::{Deserialize, Serialize};

use crate::isolation::spawner::Failure;

/// Where the tasks of a sandbox are found, and what holds them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its init, which is ours and stays as it is.
    pub init: i32,
    /// Its cgroup on v2, if it has one: the kernel's own list of its tasks.
    pub cgroup: Option<PathBuf>,
    /// Its pid namespace, by which tasks are found without such a cgroup: number of its inode.
    pub namespace: u64,
    /// Whether that cgroup is frozen. It is thawed once every task is stopped otherwise, and frozen
    /// again before they are let go.
    pub frozen: bool,
}

impl Target {
    /// Lists every thread of every process but the init's.
    pub fn tasks(&self) -> io::Result<Vec<i32>> {
        let mut tasks = match &self.cgroup {
            Some(folder) => fs::read_to_string(folder.join("cgroup.threads"))?
                .split_whitespace()
                .filter_map(|tid| tid.parse().ok())
                .collect(),
            None => self.tasks_of_namespace()?,
        };
        // A task that this process cannot name, since it is in another pid namespace.
        if tasks.contains(&0) {
            return Err(io::Error::other("a task is not visible from here"));
        }
        tasks.retain(|tid| *tid != self.init);
        Ok(tasks)
    }

    fn tasks_of_namespace(&self) -> io::Result<Vec<i32>> {
        let wanted = PathBuf::from(format!("pid:[{}]", self.namespace));
        let mut tasks = Vec::new();
        for pid in numbers(Path::new("/proc"))? {
            if pid == self.init {
                continue;
            }
            let folder = PathBuf::from(format!("/proc/{pid}"));
            match fs::read_link(folder.join("ns/pid")) {
                Ok(found) if found == wanted => {}
                // Somebody else's, unless it is a child of the init that made itself unreadable: by
                // executing a program it may not read.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    if self.is_ours(pid) {
                        return Err(io::Error::other(format!("process {pid} is not readable")));
                    }
                    continue;
                }
                _ => continue,
            }
            // It may have ended since.
            tasks.extend(numbers(&folder.join("task")).unwrap_or_default());
        }
        Ok(tasks)
    }

    /// Whether a process descends from the init. In doubt it does.
    fn is_ours(&self, pid: i32) -> bool {
        let mut at = pid;
        while at != self.init {
            at = match status(at, "PPid:").and_then(|parent| parent.parse().ok()) {
                Some(0 | 1) => return false,
                Some(parent) => parent,
                // Gone, and its children with another parent by now.
                None => return Path::new(&format!("/proc/{pid}")).exists() && at != pid,
            };
        }
        true
    }

    /// Lets tasks of a frozen sandbox execute what is put into them.
    pub fn thaw(&self) -> Result<(), Failure> {
        self.write_frozen("0")
    }

    /// Freezes what was frozen before.
    pub fn freeze_again(&self) -> Result<(), Failure> {
        self.write_frozen("1")
    }

    fn write_frozen(&self, value: &str) -> Result<(), Failure> {
        match &self.cgroup {
            Some(folder) if self.frozen => fs::write(folder.join("cgroup.freeze"), value)
                .map_err(Failure::at("freezing the sandbox again")),
            _ => Ok(()),
        }
    }

    /// Sees to it that no task executes another instruction once it is let go.
    pub fn hold(&self, processes: impl Iterator<Item = i32>) {
        if let Some(folder) = &self.cgroup
            && fs::write(folder.join("cgroup.freeze"), "1").is_ok()
        {
            return;
        }
        for process in processes.filter_map(Pid::from_raw) {
            // Gone is as good as stopped.
            let _ = rustix::process::kill_process(process, Signal::STOP);
        }
    }
}

/// The value of a field of a task's `status`, up to the first blank.
pub(super) fn status(tid: i32, name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    field(&text, name).map(str::to_owned)
}

/// The same of a text that was read already.
pub(super) fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?;
    value.split_whitespace().next()
}

fn numbers(folder: &Path) -> io::Result<Vec<i32>> {
    let entries = fs::read_dir(folder)?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(names.collect())
}
