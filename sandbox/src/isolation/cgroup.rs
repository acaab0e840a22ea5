//! Cgroups of a sandbox: limits, freezing, killing; on v2, on v1, and on hosts that have both.
//!
//! Where a host has both, v2 places, freezes and kills, and v1 limits. Each controller is looked for
//! by itself (`/proc/self/mountinfo`, `/proc/self/cgroup`), none is assumed. See cgroups(7) and the
//! kernel's "Control Group v2".

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::enforcement::Item;

/// Controllers that limit: the only ones a sandbox needs.
const LIMITING: [&str; 3] = ["memory", "pids", "cpu"];
/// Period of the CPU quota, in microseconds.
const CPU_PERIOD: u64 = 100_000;
/// How long a freeze may take before it counts as failed.
const FREEZE_DEADLINE: Duration = Duration::from_secs(2);
/// How long is waited from one look to the next whether a freeze is done: at first, and at most.
const SHORTEST_LOOK: Duration = Duration::from_micros(10);
const LONGEST_LOOK: Duration = Duration::from_millis(1);

/// Upper bounds on what the whole sandbox may use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Number of processes and threads.
    pub pids: Option<u64>,
    /// CPU time, in cores.
    pub cpu: Option<f64>,
}

/// Folders of the cgroups in which a sandbox is born.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    v2: Option<PathBuf>,
    v1: Vec<PathBuf>,
}

impl Placement {
    /// Moves this process into the v1 cgroups: what it makes later is born there. On v2 a child is
    /// born straight in its cgroup instead ([`Placement::birthplace`]).
    ///
    /// By way of `tasks`, which moves the calling thread: `cgroup.procs` would first wait, for an RCU
    /// grace period of 10 ms or so, until no process anywhere makes threads. A spawner has one thread.
    pub fn enter(&self) {
        for folder in &self.v1 {
            let _ = fs::write(folder.join("tasks"), "0");
        }
    }

    /// Opens the v2 cgroup for `CLONE_INTO_CGROUP`.
    pub fn birthplace(&self) -> io::Result<Option<OwnedFd>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.v2
            .as_ref()
            .map(|folder| Ok(rustix::fs::open(folder, flags, Mode::empty())?))
            .transpose()
    }

    /// Moves this process out again.
    pub fn leave(&self) {
        self.v1.iter().for_each(|folder| leave(folder));
    }

    /// Moves this process out of where the CPU is shared. What it uses otherwise goes on to count there.
    pub fn leave_cpu(&self) {
        let shares = |folder: &&PathBuf| folder.join("cpu.shares").exists();
        let sharing = self.v1.iter().filter(shares);
        sharing.for_each(|folder| leave(folder));
    }

    /// Removes the cgroups, which must be empty. The kernel may need a moment after the last exit.
    pub fn remove(&self) {
        for folder in self.v1.iter().chain(&self.v2) {
            let deadline = Instant::now() + Duration::from_millis(500);
            while let Err(error) = fs::remove_dir(folder) {
                if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() > deadline {
                    break;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn leave(folder: &Path) {
    if let Some(parent) = folder.parent() {
        let _ = fs::write(parent.join("tasks"), "0");
    }
}

/// The cgroups of one sandbox. Dropping removes them.
#[derive(Debug)]
pub struct Cgroup {
    placement: Placement,
    /// Which folder holds the limits of a controller, and whether it is v2.
    controllers: BTreeMap<&'static str, (PathBuf, bool)>,
    freezer: Option<(PathBuf, bool)>,
    /// `cpu.idle`, from Linux 5.15 on.
    idle: Option<fs::File>,
}

impl Cgroup {
    /// Makes the cgroups for a sandbox, as far as this host and user permit.
    ///
    /// Never fails: the [`Item`]s say what is missing.
    pub fn create() -> (Self, Vec<Item>) {
        let host = Host::read();
        let name = unique_name();
        let mut cgroup = Self {
            placement: Placement::default(),
            controllers: BTreeMap::new(),
            freezer: None,
            idle: None,
        };
        if let Some((folder, controllers)) = host.make_v2(&name) {
            if folder.join("cgroup.freeze").exists() {
                cgroup.freezer = Some((folder.clone(), true));
            }
            for controller in controllers {
                cgroup
                    .controllers
                    .insert(controller, (folder.clone(), true));
            }
            cgroup.placement.v2 = Some(folder);
        }
        for controller in LIMITING.into_iter().chain(["freezer"]) {
            let wanted = if controller == "freezer" {
                cgroup.freezer.is_none()
            } else {
                !cgroup.controllers.contains_key(controller)
            };
            let Some(parent) = host.v1.get(controller).filter(|_| wanted) else {
                continue;
            };
            sweep(parent);
            let folder = parent.join(&name);
            // Two controllers may share one hierarchy (`cpu,cpuacct`).
            if fs::create_dir(&folder).is_err() && !cgroup.placement.v1.contains(&folder) {
                continue;
            }
            if controller == "freezer" {
                cgroup.freezer = Some((folder.clone(), false));
            } else {
                cgroup
                    .controllers
                    .insert(controller, (folder.clone(), false));
            }
            if !cgroup.placement.v1.contains(&folder) {
                cgroup.placement.v1.push(folder);
            }
        }
        cgroup.idle = cgroup.controllers.get("cpu").and_then(|(folder, _)| {
            let file = fs::File::options()
                .write(true)
                .open(folder.join("cpu.idle"));
            file.ok()
        });
        let items = cgroup.report();
        (cgroup, items)
    }

    fn report(&self) -> Vec<Item> {
        let mode = match (&self.placement.v2, self.placement.v1.is_empty()) {
            (Some(_), true) => "v2",
            (Some(_), false) => "v2 places and freezes, v1 limits",
            (None, false) => "v1",
            (None, true) => {
                return vec![Item::not(
                    2,
                    "cgroup",
                    "no cgroup can be made by this user: processes are limited together, private memory for each \
                     process, and the CPU not at all",
                )];
            }
        };
        let missing: Vec<_> = LIMITING
            .iter()
            .filter(|c| !self.controllers.contains_key(**c))
            .copied()
            .collect();
        vec![if missing.is_empty() && self.freezer.is_some() {
            Item::full(2, "cgroup", mode)
        } else {
            Item::partly(
                2,
                "cgroup",
                format!("{mode}; without {}", missing.join(", ")),
            )
        }]
    }

    /// Where the sandbox is to be born.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// The folder on v2 that holds every task of the sandbox and nothing else.
    pub fn on_v2(&self) -> Option<&Path> {
        self.placement.v2.as_deref()
    }

    /// Whether this controller limits the sandbox.
    pub fn limits(&self, controller: &str) -> bool {
        self.controllers.contains_key(controller)
    }

    /// Whether limits can be set at all.
    pub fn limits_something(&self) -> bool {
        !self.controllers.is_empty()
    }

    /// Sets the limits; takes effect at once on the running sandbox.
    ///
    /// # Errors
    ///
    /// The first limit that could not be written. A controller this host lacks is no error here: it
    /// was reported when the cgroups were made.
    pub fn limit(&self, limits: &Limits) -> io::Result<()> {
        if let Some((folder, v2)) = self.controllers.get("memory") {
            let value = limits
                .memory
                .map_or_else(|| unlimited(*v2, "-1"), |m| m.to_string());
            if *v2 {
                write(folder, "memory.max", &value)?;
                // No way out through swap.
                let _ = write(folder, "memory.swap.max", "0");
            } else {
                write(folder, "memory.limit_in_bytes", &value)?;
                let _ = write(folder, "memory.memsw.limit_in_bytes", &value);
            }
        }
        if let Some((folder, _)) = self.controllers.get("pids") {
            let ours = self.processes_of_ours();
            let value = limits
                .pids
                .map_or_else(|| "max".to_owned(), |p| (p + ours).to_string());
            write(folder, "pids.max", &value)?;
        }
        if let Some((folder, v2)) = self.controllers.get("cpu") {
            let quota = limits
                .cpu
                .map(|cores| ((cores * CPU_PERIOD as f64) as u64).max(1_000));
            if *v2 {
                let quota = quota.map_or_else(|| "max".to_owned(), |q| q.to_string());
                write(folder, "cpu.max", &format!("{quota} {CPU_PERIOD}"))?;
            } else {
                write(folder, "cpu.cfs_period_us", &CPU_PERIOD.to_string())?;
                let quota = quota.map_or_else(|| "-1".to_owned(), |q| q.to_string());
                write(folder, "cpu.cfs_quota_us", &quota)?;
            }
        }
        Ok(())
    }

    /// How many processes of a sandbox are not the workload's to count: its init; where v1 limits, the
    /// spawner; and what that forks to reach all tasks where no v2 cgroup lists them.
    fn processes_of_ours(&self) -> u64 {
        let (v1, v2) = (!self.placement.v1.is_empty(), self.placement.v2.is_some());
        1 + u64::from(v1) + if v2 { 0 } else { 2 }
    }

    /// What the sandbox met of its limits so far, as far as this host counts it.
    pub fn pressure(&self) -> Pressure {
        let mut pressure = Pressure::default();
        if let Some((folder, v2)) = self.controllers.get("memory") {
            let file = if *v2 {
                "memory.events"
            } else {
                "memory.oom_control"
            };
            pressure.killed = counter(folder, file, "oom_kill");
        }
        if let Some((folder, _)) = self.controllers.get("pids") {
            pressure.forks_refused = counter(folder, "pids.events", "max");
        }
        if let Some(folder) = &self.placement.v2 {
            for resource in ["cpu", "memory", "io"] {
                let file = folder.join(format!("{resource}.pressure"));
                let stalled = fs::read_to_string(file).ok();
                if let Some(share) = stalled.as_deref().and_then(stalled_share) {
                    pressure.stalled.insert(resource, share);
                }
            }
        }
        pressure
    }

    /// Lets the sandbox stand back for whoever else wants the CPU, or no more.
    ///
    /// For the moment in which something is taken from it: a thread that serves it, stands in the way
    /// with a lock in its hand and wants to be rid of it, would otherwise wait behind it for a tick.
    /// Where the host has nothing to do it with, that is slower, and nothing worse.
    pub fn give_way(&self, now: bool) {
        let value: &[u8] = if now { b"1" } else { b"0" };
        let _ = self.idle.as_ref().map(|file| file.write_at(value, 0));
    }

    /// Has the sandbox come before others on the CPU, without a limit there. What was before is returned,
    /// for [`limit_cpu`](Self::limit_cpu).
    ///
    /// For work that its tasks have to take part in, and that ends with their being stopped: a task that
    /// has used up its share would run again in the next period only, and be waited for as long.
    ///
    /// # Errors
    ///
    /// When a limit cannot be read. Nothing is lifted then.
    pub fn lift_cpu(&self) -> io::Result<CpuLimits> {
        let Some((folder, v2)) = self.controllers.get("cpu") else {
            return Ok(CpuLimits(Vec::new()));
        };
        // A quota that nobody can use up, rather than none: the kernel rewrites its own code when the last
        // one is lifted.
        let files = if *v2 {
            [("cpu.max", "1000000000"), ("cpu.weight", "10000")]
        } else {
            [("cpu.cfs_quota_us", "1000000000"), ("cpu.shares", "262144")]
        };
        let mut before = Vec::with_capacity(files.len());
        for (file, _) in files {
            before.push((file, fs::read_to_string(folder.join(file))?));
        }
        for (file, most) in files {
            // Where it cannot be lifted the work takes longer.
            let _ = write(folder, file, most);
        }
        Ok(CpuLimits(before))
    }

    /// Puts limits in force again that were lifted.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn limit_cpu(&self, before: CpuLimits) -> io::Result<()> {
        let Some((folder, _)) = self.controllers.get("cpu") else {
            return Ok(());
        };
        // On v2 the limit stands before its period; both are written back.
        let mut limits = before.0.iter();
        limits.try_for_each(|(file, limit)| write(folder, file, limit.trim_end()))
    }

    /// Whether the sandbox can be frozen by its cgroup.
    pub fn freezes(&self) -> bool {
        self.freezer.is_some()
    }

    /// Freezes or thaws everything in the sandbox and waits until the kernel says that it is done.
    ///
    /// # Errors
    ///
    /// `TimedOut` when a task does not stop within two seconds.
    pub fn freeze(&self, frozen: bool) -> io::Result<()> {
        let Some((folder, v2)) = &self.freezer else {
            return Err(io::ErrorKind::Unsupported.into());
        };
        if *v2 {
            write(folder, "cgroup.freeze", if frozen { "1" } else { "0" })?;
            return wait_for(folder, frozen);
        }
        let state = if frozen { "FROZEN" } else { "THAWED" };
        let deadline = Instant::now() + FREEZE_DEADLINE;
        loop {
            // On v1 a freeze can need to be asked for again while tasks are forking.
            write(folder, "freezer.state", state)?;
            if fs::read_to_string(folder.join("freezer.state"))?.trim() == state {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::yield_now();
        }
    }

    /// What kills everything in the sandbox when `1` is written to it, where v2 gives that.
    pub fn kill_switch(&self) -> Option<fs::File> {
        let folder = self.placement.v2.as_ref()?;
        let file = fs::File::options()
            .write(true)
            .open(folder.join("cgroup.kill"));
        file.ok()
    }

    /// Lets what was killed while frozen die. The v1 freezer keeps even those; thawed, they die before
    /// they execute another instruction. On v2 nothing is to be done.
    pub fn let_die(&self) {
        if let Some((folder, false)) = &self.freezer {
            let _ = write(folder, "freezer.state", "THAWED");
        }
    }

    /// Kills everything in the sandbox at once, where v2 gives that.
    ///
    /// # Errors
    ///
    /// `Unsupported` without `cgroup.kill`; the caller then kills the sandbox's init.
    pub fn kill(&self) -> io::Result<()> {
        match &self.placement.v2 {
            Some(folder) => write(folder, "cgroup.kill", "1"),
            None => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.placement.remove();
    }
}

/// The CPU limits that a sandbox had: each file of its cgroup with what it held.
pub struct CpuLimits(Vec<(&'static str, String)>);

/// What a sandbox met of its limits: what is `None` or missing, this host does not count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// Processes killed for lack of memory (`oom_kill` of memory.events, or of memory.oom_control).
    pub killed: Option<u64>,
    /// Forks refused by the limit of processes (`max` of pids.events).
    pub forks_refused: Option<u64>,
    /// Share of the last ten seconds, in percent, in which some task waited for a resource (`some avg10`
    /// of pressure stall information).
    pub stalled: BTreeMap<&'static str, u8>,
}

/// The number after a name in a file of such lines.
fn counter(folder: &Path, file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(folder.join(file)).ok()?;
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(key, _)| *key == name)?.1.trim().parse().ok()
}

/// `some avg10=12.34 …` of a file of pressure stall information, rounded down.
fn stalled_share(text: &str) -> Option<u8> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let share = some
        .split(' ')
        .find_map(|part| part.strip_prefix("avg10="))?;
    share
        .split('.')
        .next()?
        .parse::<u8>()
        .ok()
        .map(|share| share.min(100))
}

fn unlimited(v2: bool, v1_word: &str) -> String {
    if v2 {
        "max".to_owned()
    } else {
        v1_word.to_owned()
    }
}

fn write(folder: &Path, file: &str, value: &str) -> io::Result<()> {
    fs::write(folder.join(file), value)
        .map_err(|e| io::Error::new(e.kind(), format!("cannot write `{value}` to `{file}`: {e}")))
}

/// Waits until `cgroup.events` says what was asked for. The kernel wakes a poll of it once in ten
/// milliseconds at most, so it is looked at instead, less and less often.
fn wait_for(folder: &Path, frozen: bool) -> io::Result<()> {
    let wanted: &[u8] = if frozen { b"frozen 1" } else { b"frozen 0" };
    let deadline = Instant::now() + FREEZE_DEADLINE;
    let events = fs::File::open(folder.join("cgroup.events"))?;
    let (mut text, mut pause) = ([0; 256], SHORTEST_LOOK);
    loop {
        let length = events.read_at(&mut text, 0)?;
        let mut lines = text[..length].split(|byte| *byte == b'\n');
        if lines.any(|line| line == wanted) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_LOOK);
    }
}

fn unique_name() -> String {
    format!("casemate-{}", unique())
}

/// Something that no other sandbox has, and by which [`is_left_over`] knows whose it is: this process' id, its
/// pid namespace, and chance.
pub(super) fn unique() -> String {
    let mut random = [0u8; 4];
    // Names need to differ, not to be secret.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    let (pid, namespace) = (std::process::id(), pid_namespace());
    format!("{pid}-{namespace:x}-{:08x}", u32::from_ne_bytes(random))
}

/// Whether what has this name belonged to a process that is gone. Of a process in another pid namespace nobody
/// can tell.
pub(super) fn is_left_over(unique: &str) -> bool {
    let mut parts = unique.split('-');
    let (Some(pid), Some(namespace)) = (parts.next(), parts.next()) else {
        return false;
    };
    let is_number = !pid.is_empty() && pid.bytes().all(|b| b.is_ascii_digit());
    is_number
        && u64::from_str_radix(namespace, 16) == Ok(pid_namespace())
        && !Path::new("/proc").join(pid).exists()
}

fn pid_namespace() -> u64 {
    // Without `/proc` all are as one, and none is found to be gone there.
    fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}

/// Removes empty cgroups whose supervisor and spawner were both killed.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let unique = name
            .to_str()
            .and_then(|name| name.strip_prefix("casemate-"));
        if unique.is_some_and(is_left_over) {
            // Fails, and rightly, when something still runs in it.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// The cgroups this process is in, by hierarchy: where a sandbox's can be made.
#[derive(Debug, Default)]
struct Host {
    /// Where on v2 this process is.
    v2: Option<PathBuf>,
    /// The top of v2, as far as this process sees it.
    v2_top: Option<PathBuf>,
    v1: BTreeMap<String, PathBuf>,
}

impl Host {
    fn read() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::parse(&mounts, &own)
    }

    /// Makes a v2 cgroup, in the place that hands down most controllers, and tells which these are.
    ///
    /// Controllers cannot be handed down by a cgroup that has processes of its own, as the one this
    /// process is in has. Only the top of all may have both, so root looks there first.
    fn make_v2(&self, name: &str) -> Option<(PathBuf, Vec<&'static str>)> {
        let needed: Vec<_> = LIMITING
            .into_iter()
            .filter(|controller| !self.v1.contains_key(*controller))
            .collect();
        let mut best: Option<(PathBuf, Vec<&'static str>)> = None;
        for parent in self.v2_top.iter().chain(&self.v2) {
            sweep(parent);
            for controller in &needed {
                let _ = fs::write(
                    parent.join("cgroup.subtree_control"),
                    format!("+{controller}"),
                );
            }
            let folder = parent.join(name);
            if fs::create_dir(&folder).is_err() {
                continue;
            }
            let listed = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
            let given: Vec<_> = LIMITING
                .into_iter()
                .filter(|controller| listed.split_whitespace().any(|word| word == *controller))
                .collect();
            let enough = needed.iter().all(|controller| given.contains(controller));
            let worse = match &best {
                Some((_, had)) if had.len() >= given.len() => Some(folder.clone()),
                Some((known, _)) => Some(known.clone()),
                None => None,
            };
            if worse.as_ref() != Some(&folder) {
                best = Some((folder, given));
            }
            if let Some(worse) = worse {
                let _ = fs::remove_dir(worse);
            }
            if enough {
                break;
            }
        }
        best
    }

    /// See proc_pid_mountinfo(5) and cgroups(7), "/proc/pid/cgroup".
    fn parse(mounts: &str, own: &str) -> Self {
        let mut host = Self::default();
        let own: Vec<(&str, &str)> = own
            .lines()
            .filter_map(|line| line.split_once(':')?.1.split_once(':'))
            .collect();
        for line in mounts.lines() {
            let Some((before, after)) = line.split_once(" - ") else {
                continue;
            };
            let before: Vec<_> = before.split(' ').collect();
            let after: Vec<_> = after.split(' ').collect();
            let (Some(root), Some(point)) = (before.get(3), before.get(4)) else {
                continue;
            };
            let (Some(kind), Some(options)) = (after.first(), after.get(2)) else {
                continue;
            };
            let place = |path: &str| {
                let below = path
                    .strip_prefix(root.trim_end_matches('/'))
                    .unwrap_or(path);
                Path::new(point).join(below.trim_start_matches('/'))
            };
            match *kind {
                "cgroup2" => {
                    if let Some((_, path)) =
                        own.iter().find(|(controllers, _)| controllers.is_empty())
                    {
                        host.v2.get_or_insert_with(|| place(path));
                        host.v2_top.get_or_insert_with(|| PathBuf::from(point));
                    }
                }
                "cgroup" => {
                    for option in options.split(',') {
                        let path = own.iter().find(|(c, _)| c.split(',').any(|c| c == option));
                        if let Some((_, path)) = path {
                            host.v1
                                .entry(option.to_owned())
                                .or_insert_with(|| place(path));
                        }
                    }
                }
                _ => {}
            }
        }
        host
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_gives_each_controller_its_hierarchy() {
        let mounts = "25 24 0:22 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      26 24 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      27 24 0:24 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let own = "3:memory:/jobs/a\n2:cpu,cpuacct:/\n0::/\n";
        let host = Host::parse(mounts, own);
        assert_eq!(
            host.v2.as_deref(),
            Some(Path::new("/sys/fs/cgroup/unified"))
        );
        assert_eq!(host.v1["memory"], Path::new("/sys/fs/cgroup/memory/jobs/a"));
        assert_eq!(host.v1["cpu"], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert!(!host.v1.contains_key("pids"));
    }

    #[test]
    fn a_v2_host_places_below_the_callers_own_cgroup() {
        let mounts = "26 24 0:23 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let host = Host::parse(mounts, "0::/user.slice/session.scope\n");
        let wanted = Path::new("/sys/fs/cgroup/user.slice/session.scope");
        assert_eq!(host.v2.as_deref(), Some(wanted));
        assert_eq!(host.v2_top.as_deref(), Some(Path::new("/sys/fs/cgroup")));
        assert!(host.v1.is_empty());
    }

    #[test]
    fn the_place_that_hands_down_controllers_is_taken_and_no_other_is_left() {
        // Plain folders in place of a cgroup file system: only the choice is tested here.
        let top = tempfile::tempdir().expect("a folder");
        let own = top.path().join("session.scope");
        fs::create_dir(&own).expect("a folder");
        let host = Host {
            v2: Some(own.clone()),
            v2_top: Some(top.path().into()),
            ..Host::default()
        };
        let (made, controllers) = host.make_v2("casemate-1-x").expect("a cgroup");
        assert_eq!(made, top.path().join("casemate-1-x"));
        assert!(controllers.is_empty());
        assert!(!own.join("casemate-1-x").exists());
    }

    #[test]
    fn a_container_sees_its_own_subtree_as_the_mounts_root() {
        let mounts = "27 24 0:24 /docker/x /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let host = Host::parse(mounts, "4:pids:/docker/x/y\n");
        assert_eq!(host.v1["pids"], Path::new("/sys/fs/cgroup/pids/y"));
    }

    #[test]
    fn the_share_of_stalled_tasks_is_read_from_its_line() {
        let text = "some avg10=42.99 avg60=1.00 avg300=0.00 total=9\nfull avg10=3.00 avg60=0.00\n";
        assert_eq!(stalled_share(text), Some(42));
        for garbage in [
            "",
            "some",
            "some avg10=",
            "some avg10=x.1",
            "full avg10=3.00",
        ] {
            assert_eq!(stalled_share(garbage), None, "{garbage}");
        }
    }

    #[test]
    fn only_what_a_process_of_this_pid_namespace_left_is_known_as_left_over() {
        let own = unique();
        assert!(!is_left_over(&own));
        let namespace = pid_namespace();
        // No process id is as high.
        assert!(is_left_over(&format!("4194305-{namespace:x}-00000000")));
        assert!(!is_left_over(&format!(
            "4194305-{:x}-00000000",
            namespace ^ 1
        )));
        for garbage in ["", "-", "x", "4194305", "4194305-", "-1-2", "4194305-zz-0"] {
            assert!(!is_left_over(garbage), "{garbage}");
        }
    }

    #[test]
    fn garbage_gives_no_cgroup_and_no_panic() {
        let host = Host::parse("x - \n - cgroup\na b c d e - cgroup2", "::::\nnothing\n");
        assert!(host.v1.is_empty());
    }
}
