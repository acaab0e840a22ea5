//! A floor and its launch, without evidence, policy rules, vaults and log.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use casemate::event::Event;
use casemate::isolation::cgroup::Limits;
use casemate::isolation::child::Ending;
use casemate::isolation::floor::Floor;
use casemate::isolation::spawner::Failure;
use casemate::isolation::{Backend, Launch};
use casemate::plan::{self, FileAccess, Plan, Tier};
use policy::{Bundle, Endpoint};

/// What a launch came to.
pub struct Launched {
    pub ending: Ending,
    pub output: String,
    /// Process id of its init.
    pub init: i32,
}

/// A floor, and limits.
pub struct Room {
    pub floor: Floor,
    pub limits: Limits,
    connect: Vec<(Endpoint, bool)>,
}

impl Room {
    /// A shell script over these trees of the host, shown for reading.
    pub fn new(script: &str, grants: &[(PathBuf, String)]) -> Self {
        let read: Vec<_> = grants
            .iter()
            .map(|(from, at)| format!("{{ from = {from:?}, at = {at:?} }}"))
            .collect();
        let files = format!("read = [{}]", read.join(", "));
        Self::of(&["/bin/sh", "-c", script], &files, "")
    }

    /// A command, with lines of `[files]` and other tables.
    pub fn of(command: &[&str], files: &str, tables: &str) -> Self {
        let command = serde_json::to_string(command).unwrap();
        let source = format!(
            "version = 1\nname = \"floor\"\n[attestation]\naccept = [\"simulated\"]\n\
             [workload]\ncommand = {command}\n\
             [isolation]\nmemory = \"512MiB\"\npids = 64\n\
             [files]\n{files}\n{tables}\n\
             [rules]\ncedar = \"permit (principal, action, resource);\"\n"
        );
        let bundle = Bundle::parse(&source, "floor.toml")
            .unwrap_or_else(|error| panic!("{error}\n{source}"));
        let tables = bundle.tables();
        let place = |file: &policy::FileGrant| file.at.to_string_lossy().into_owned();
        let read = tables
            .files
            .read
            .iter()
            .map(|file| (place(file), FileAccess::Read));
        let write = tables
            .files
            .write
            .iter()
            .map(|file| (place(file), FileAccess::Write));
        let plan = Plan {
            exec: true,
            files: read.chain(write).collect(),
            connect: tables.network.connect.iter().cloned().collect(),
            ..Plan::default()
        };
        Self {
            floor: plan::floor(&bundle, &plan, Path::new("/"), &Default::default()).unwrap(),
            limits: plan::limits(tables, Tier::Full),
            connect: tables
                .network
                .connect
                .iter()
                .map(|to| (to.clone(), true))
                .collect(),
        }
    }

    /// Runs it without input.
    pub fn run(&self, backend: impl Backend) -> Launched {
        self.run_with(backend, "")
    }

    /// Runs it with a line of input, to its end. Nothing is left of it then.
    pub fn run_with(&self, backend: impl Backend, line: &str) -> Launched {
        self.try_run_with(backend, line).unwrap()
    }

    /// Runs it without input, if it can be launched.
    #[allow(dead_code)] // Not every test expects otherwise.
    pub fn try_run(&self, backend: impl Backend) -> Result<Launched, Failure> {
        self.try_run_with(backend, "")
    }

    fn try_run_with(&self, backend: impl Backend, line: &str) -> Result<Launched, Failure> {
        let (mut input, mut output) =
            (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        writeln!(input, "{line}").unwrap();
        input.rewind().unwrap();
        let errors: OwnedFd = output.try_clone().unwrap().into();
        let (events, heard) = mpsc::sync_channel(64);
        let unserved = || Failure::at("serving a vault")(std::io::ErrorKind::Unsupported.into());
        let mut instance = Box::new(backend).launch(Launch {
            floor: &self.floor,
            limits: self.limits,
            stdio: [input.into(), output.try_clone().unwrap().into(), errors],
            gate: None,
            serve: &mut |_, _| Err(unserved()),
            connect: &self.connect,
            events,
        })?;
        let init = instance.pid().as_raw_nonzero().get();
        instance.start().unwrap();
        let ending = loop {
            match heard.recv().unwrap() {
                Event::Ended(ending) => break ending,
                Event::Failed(failure) => panic!("{failure}"),
                _ => {}
            }
        };
        drop(instance);
        let mut written = String::new();
        output.rewind().unwrap();
        output.read_to_string(&mut written).unwrap();
        Ok(Launched {
            ending,
            output: written,
            init,
        })
    }
}

/// Tests that count what their process holds, and those whose sandboxes would be counted, run alone.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // A test that failed left nothing that matters here.
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What this process holds that a sandbox could leave behind: its mounts, cgroups and descriptors, and the
/// processes below it with their namespaces.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    mounts: usize,
    descriptors: usize,
    cgroups: Vec<PathBuf>,
    processes: BTreeSet<u32>,
    namespaces: BTreeSet<PathBuf>,
}

impl Held {
    /// Waits until no more and no less is held: threads close their descriptors when they end.
    pub fn again(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while held() != *self {
            assert!(
                Instant::now() < deadline,
                "{:#?}\nbefore: {self:#?}",
                held()
            );
            std::thread::yield_now();
        }
    }
}

pub fn held() -> Held {
    let own = std::process::id();
    let mut processes = BTreeSet::new();
    let mut namespaces = BTreeSet::new();
    for task in fs::read_dir("/proc/self/task").unwrap().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            processes.insert(child.parse().unwrap());
            let kinds = fs::read_dir(format!("/proc/{child}/ns"))
                .into_iter()
                .flatten();
            namespaces.extend(
                kinds
                    .flatten()
                    .filter_map(|kind| fs::read_link(kind.path()).ok()),
            );
        }
    }
    let mut cgroups = Vec::new();
    find(
        Path::new("/sys/fs/cgroup"),
        &format!("casemate-{own}-"),
        6,
        &mut cgroups,
    );
    cgroups.sort();
    Held {
        descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
        mounts: fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .lines()
            .count(),
        cgroups,
        processes,
        namespaces,
    }
}

fn find(folder: &Path, name: &str, depth: u32, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            if entry.file_name().to_string_lossy().starts_with(name) {
                found.push(entry.path());
            }
            find(&entry.path(), name, depth - 1, found);
        }
    }
}
