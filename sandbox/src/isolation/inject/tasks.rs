//! Which tasks there are in a sandbox, and what keeps them where they are.
//!
//! The kernel lists those of a cgroup on v2 to the last one that is made meanwhile. Without one there is
//! `/proc` only, which is no list of one moment: then all are stopped first, by one signal that the
//! kernel gives to a whole pid namespace under one lock.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use crate::isolation::spawner::Failure;
use crate::isolation::trees::Namespaces;
use crate::sys::process::{self, Forked};

/// A sandbox whose tasks are wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Its init, which is ours and stays as it is.
    pub init: i32,
    /// Its cgroup on v2, if it has one.
    pub cgroup: Option<PathBuf>,
    /// Whether that cgroup is frozen. It is thawed once every task is stopped otherwise, and frozen
    /// again before they are let go.
    pub frozen: bool,
}

/// The tasks of a sandbox, among which nothing escapes.
pub(super) enum Tasks {
    /// All that are in this cgroup.
    Listed { target: Target, cgroup: PathBuf },
    /// All that are in this pid namespace, stopped, and those of them that were stopped before.
    Stopped {
        namespace: Namespace,
        before: BTreeSet<i32>,
    },
}

/// A pid namespace, as `/proc` tells of it.
pub(super) struct Namespace {
    name: PathBuf,
    init: i32,
}

impl Tasks {
    /// Begins to look.
    pub fn of(target: Target, namespaces: &Namespaces) -> Result<Self, Failure> {
        if let Some(cgroup) = target.cgroup.clone() {
            return Ok(Self::Listed { target, cgroup });
        }
        let inode = rustix::fs::fstat(&namespaces.pids);
        let inode = inode.map_err(io::Error::from).map_err(listing())?.st_ino;
        let namespace = Namespace {
            name: PathBuf::from(format!("pid:[{inode}]")),
            init: target.init,
        };
        let stopped = |pid: &i32| status(*pid, "State:").is_some_and(|state| state == "T");
        let before = namespace.processes()?.into_iter().filter(stopped).collect();
        stop_everyone(namespaces)?;
        Ok(Self::Stopped { namespace, before })
    }

    /// Lists every thread of every process but the init's.
    pub fn list(&self) -> Result<Vec<i32>, Failure> {
        match self {
            Self::Listed { target, cgroup } => {
                let list = read(cgroup.join("cgroup.threads")).map_err(listing())?;
                let numbers = list.split_whitespace().filter_map(|word| word.parse().ok());
                let mut tasks: Vec<i32> = numbers.collect();
                tasks.retain(|tid| *tid != target.init);
                match tasks.contains(&0) {
                    // A task that this process cannot name: it is in another pid namespace.
                    true => Err(listing()(io::Error::other("a task is not visible"))),
                    false => Ok(tasks),
                }
            }
            Self::Stopped { namespace, .. } => {
                let threads = |pid| numbers(Path::new(&format!("/proc/{pid}/task")));
                // One that has ended meanwhile has none.
                let processes = namespace.processes()?.into_iter();
                Ok(processes
                    .filter_map(|pid| threads(pid).ok())
                    .flatten()
                    .collect())
            }
        }
    }

    /// Lets tasks of a frozen sandbox execute what is put into them.
    pub fn thaw(&self) -> Result<(), Failure> {
        match self {
            Self::Listed { target, cgroup } if target.frozen => freeze(cgroup, "0"),
            _ => Ok(()),
        }
    }

    /// Sees to it, before the tasks of these processes are let go, that those run on that ran before.
    pub fn let_run(&self, processes: impl Iterator<Item = i32>) -> Result<(), Failure> {
        match self {
            Self::Listed { target, cgroup } if target.frozen => freeze(cgroup, "1"),
            Self::Listed { .. } => Ok(()),
            Self::Stopped { before, .. } => {
                let running = processes.filter(|pid| !before.contains(pid));
                for process in running.filter_map(Pid::from_raw) {
                    // It may have been killed.
                    let _ = rustix::process::kill_process(process, Signal::CONT);
                }
                Ok(())
            }
        }
    }

    /// Sees to it that no task executes another instruction when it is let go.
    pub fn hold(&self) {
        if let Self::Listed { cgroup, .. } = self {
            let _ = freeze(cgroup, "1");
        }
    }
}

impl Namespace {
    /// Every process in it but its init.
    fn processes(&self) -> Result<Vec<i32>, Failure> {
        let mut ours = Vec::new();
        for pid in numbers(Path::new("/proc")).map_err(listing())? {
            match fs::read_link(format!("/proc/{pid}/ns/pid")) {
                _ if pid == self.init => {}
                Ok(found) if found == self.name => ours.push(pid),
                // Somebody else's, unless it is a child of the init that made itself unreadable: by
                // executing a program that it may not read.
                Err(error)
                    if error.kind() == io::ErrorKind::PermissionDenied
                        && descends(pid, self.init) =>
                {
                    let said = format!("process {pid} is not readable");
                    return Err(listing()(io::Error::other(said)));
                }
                _ => {}
            }
        }
        Ok(ours)
    }
}

fn freeze(cgroup: &Path, value: &str) -> Result<(), Failure> {
    let file = cgroup.join("cgroup.freeze");
    fs::write(file, value).map_err(Failure::at("freezing the tasks"))
}

/// Sends SIGSTOP to every process in the sandbox's pid namespace but its init. See kill(2), "pid equals
/// -1"; who says it has to be in that namespace itself, for a moment.
fn stop_everyone(namespaces: &Namespaces) -> Result<(), Failure> {
    apart(|| {
        let enter = |fd, kind| move_into_link_name_space(fd, Some(kind));
        enter(namespaces.user.as_fd(), LinkNameSpaceType::User)?;
        enter(namespaces.pids.as_fd(), LinkNameSpaceType::ProcessID)?;
        // Only what is forked from now on is in it.
        apart(|| {
            process::signal_everyone(libc::SIGSTOP);
            Ok(())
        })
    })
    .map_err(Failure::at("stopping the tasks"))
}

/// Does something in a process of its own.
fn apart(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    match process::fork_into(0, None)? {
        Forked::Child => {
            let errno = work()
                .err()
                .map(|error| error.raw_os_error().unwrap_or(255));
            process::exit_now(errno.unwrap_or(0).clamp(0, 255))
        }
        Forked::Parent { pidfd, .. } => {
            let status = loop {
                match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
                    Err(rustix::io::Errno::INTR) => {}
                    other => break other?,
                }
            };
            match status.and_then(|status| status.exit_status()) {
                Some(0) => Ok(()),
                Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                None => Err(io::ErrorKind::Interrupted.into()),
            }
        }
    }
}

/// Whether a process descends from another. In doubt it does.
fn descends(pid: i32, from: i32) -> bool {
    let mut at = pid;
    while at != from {
        at = match status(at, "PPid:").and_then(|parent| parent.parse().ok()) {
            Some(0 | 1) => return false,
            Some(parent) => parent,
            // Gone, and its children with another parent by now.
            None => return at != pid && Path::new(&format!("/proc/{pid}")).exists(),
        };
    }
    true
}

fn listing() -> impl FnOnce(io::Error) -> Failure {
    Failure::at("listing the tasks")
}

/// Reads a file of the kernel's, most of which fit into a page: at once, and not bit by bit as a file whose
/// length is told as 0.
pub(super) fn read(path: impl AsRef<Path>) -> io::Result<String> {
    let mut text = String::with_capacity(4096);
    let file = fs::File::open(path)?;
    file.take(MOST_TOLD).read_to_string(&mut text)?;
    Ok(text)
}

/// More than the kernel tells in one file: the threads of 2^22 tasks take half of it.
const MOST_TOLD: u64 = 64 << 20;

/// The value of a field of a task's `status`, up to the first blank.
pub(super) fn status(tid: i32, name: &str) -> Option<String> {
    let text = read(format!("/proc/{tid}/status")).ok()?;
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
