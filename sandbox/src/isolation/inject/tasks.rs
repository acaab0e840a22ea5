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
    /// Names every thread of every process but the init's. True when there was none besides, at one
    /// moment at least; false when that cannot be told, since tasks were made meanwhile.
    pub fn each(&self, mut found: impl FnMut(i32) -> Result<(), Failure>) -> Result<bool, Failure> {
        let listing = || Failure::at("listing the tasks");
        match &self.cgroup {
            Some(folder) => {
                let list = fs::read_to_string(folder.join("cgroup.threads")).map_err(listing())?;
                for tid in list.split_whitespace() {
                    // 0: a task that this process cannot name, since it is in another pid namespace.
                    match tid.parse() {
                        Ok(tid) if tid == self.init => {}
                        Ok(tid @ 1..) => found(tid)?,
                        _ => return Err(listing()(io::Error::other("a task is not visible"))),
                    }
                }
                // What is made joins the end of the list, which the kernel walks to its end.
                Ok(true)
            }
            None => {
                let before = newest()?;
                let mut processes = numbers(Path::new("/proc")).map_err(listing())?;
                // One that makes the next and ends is among the newest.
                processes.sort_unstable_by(|one, other| other.cmp(one));
                for pid in processes {
                    for tid in self.threads_of(pid).map_err(listing())? {
                        found(tid)?;
                    }
                }
                // /proc is no list of one moment: a task that was made while it was read can be missing.
                Ok(newest()? == before)
            }
        }
    }

    /// The threads of a process, if it is in the sandbox and not its init.
    fn threads_of(&self, pid: i32) -> io::Result<Vec<i32>> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let ours = match fs::read_link(folder.join("ns/pid")) {
            _ if pid == self.init => false,
            Ok(found) => found == Path::new(&format!("pid:[{}]", self.namespace)),
            // Somebody else's, unless it is a child of the init that made itself unreadable: by
            // executing a program that it may not read.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                if self.is_ours(pid) {
                    return Err(io::Error::other(format!("process {pid} is not readable")));
                }
                false
            }
            Err(_) => false,
        };
        // It may have ended since.
        Ok(match ours {
            true => numbers(&folder.join("task")).unwrap_or_default(),
            false => Vec::new(),
        })
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

/// The number that was given to a task last, anywhere on this host. See proc_loadavg(5).
fn newest() -> Result<String, Failure> {
    let text = fs::read_to_string("/proc/loadavg").map_err(Failure::at("listing the tasks"))?;
    Ok(text
        .split_whitespace()
        .last()
        .unwrap_or_default()
        .to_owned())
}

fn numbers(folder: &Path) -> io::Result<Vec<i32>> {
    let entries = fs::read_dir(folder)?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(names.collect())
}
