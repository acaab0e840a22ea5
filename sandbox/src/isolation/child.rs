//! The ordered steps from a bare new process to the workload's first instruction.
//!
//! ```text
//! init (pid 1 inside)                              workload
//!   tie own life to the spawner's
//!   wait until the user is mapped
//!   cgroup namespace, host name, user
//!   root file system                ─▶ vault places to the supervisor
//!   fork ───────────────────────────────────────▶ session, limits, capabilities, no_new_privs
//!                                                   memory protection, Landlock
//!   ◀────────────────────────── listener ───────── seccomp, last of all
//!   report, wait for the word to start
//!   ──────────────────────────────── go ─────────▶ exec
//!   reap, forward signals, tell how it ended
//! ```
//!
//! When the init ends, the kernel kills everything else in its process namespace. For a floor without
//! namespaces it is a *keeper* instead: the second and the third step fall away, the workload becomes
//! its user by itself, and the keeper ends what the workload leaves behind ([`super::process`]).

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, IntoRawFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{DumpableBehavior, Pid, Signal, WaitOptions};
use serde::{Deserialize, Serialize};

use super::floor::{Floor, INSIDE_ID};
use super::namespace;
use super::network;
use super::process::descendants;
use super::rootfs::{self, DataPlace, Prepared};
use super::spawner::Failure;
use super::wire;
use crate::enforcement::Item;
use crate::sys::process::{self, Forked, Service};
use crate::sys::seccomp::{self, LoadFlags};
use crate::sys::signal;
use crate::syscall::landlock::{
    LandlockError, LandlockPlan, Rights, SIGNAL_ABI, Scopes, UNIX_CONNECT_ABI,
};
use crate::syscall::memory;

/// What the init says to its supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromInit {
    /// A vault's place is mounted; its descriptor comes along.
    Place {
        /// Entry of the `[data]` table.
        name: String,
        /// Whether the descriptor is a FUSE device, to be served, or a folder, to be filled.
        fuse: bool,
    },
    /// The sandbox's network is up; the socket that its resolver is to serve comes along.
    Resolver,
    /// Everything is in force; the workload waits. The user, the mount and the pid namespace come along,
    /// if it has its own, and the seccomp listener, if there is one.
    Prepared {
        /// What was enforced.
        items: Vec<Item>,
        /// Whether the listener comes along.
        listens: bool,
    },
    /// A step failed; not one instruction of the workload's program ran.
    Failed(Failure),
    /// The workload ended, and everything it started with it.
    Ended(Ending),
}

/// What the supervisor says to the init.
#[derive(Debug, Serialize, Deserialize)]
pub enum ToInit {
    /// The vault's place is served, or filled.
    Served,
    /// Execute the workload. Its stdin, stdout and stderr come along, if it was made without knowing them.
    Start,
    /// Send this Unix signal to the workload.
    Kill(i32),
    /// Stop everything with SIGSTOP (true) or let it go on (false): freezing without a cgroup.
    Pause(bool),
}

/// How a workload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// It exited with this code.
    Code(i32),
    /// This Unix signal ended it.
    Killed(i32),
}

/// What the forked workload tells the init: a line of JSON through a pipe.
#[derive(Debug, Serialize, Deserialize)]
enum FromWorkload {
    /// All is in force; number of the listener in the shared descriptor table.
    Confined {
        items: Vec<Item>,
        listener: Option<i32>,
    },
    /// A step failed, exec included.
    Failed(Failure),
}

/// The forked workload, as its init sees it.
struct Workload {
    pid: Pid,
    report: File,
    signals: OwnedFd,
}

/// Runs as the first process of the sandbox. Never returns.
pub fn init(
    floor: &Floor,
    usual: Option<&Service>,
    prepared: Prepared,
    mapped: OwnedFd,
    control: OwnedFd,
    stdio: [OwnedFd; 3],
) -> ! {
    let last = match prepare(floor, usual, prepared, mapped, &control, stdio) {
        Ok(workload) => attend(workload, &control, floor.home.is_some()),
        Err(failure) => FromInit::Failed(failure),
    };
    // When this process ends, whatever the workload left behind is killed; only then it is over.
    let _ = wire::send(control.as_fd(), &last, &[]);
    process::exit_now(0)
}

/// Brings everything into force and starts the workload.
fn prepare(
    floor: &Floor,
    usual: Option<&Service>,
    prepared: Prepared,
    mapped: OwnedFd,
    control: &OwnedFd,
    stdio: [OwnedFd; 3],
) -> Result<Workload, Failure> {
    tie_to_parent()?;
    // The spawner comes before others; the sandbox does not.
    usual
        .map_or(Ok(()), Service::apply)
        .map_err(Failure::at("giving up the spawner's priority"))?;
    let shares = floor.home.is_some();
    if shares {
        descendants::gather().map_err(Failure::at("becoming the parent of what is left behind"))?;
    } else if !floor.privileged {
        namespace::map_own_user(floor)?;
    }
    // Also catches a spawner that ended before the line above: its end of the pipe is then closed.
    if !matches!(rustix::io::read(&mapped, &mut [0u8; 1]), Ok(1)) {
        process::exit_now(1);
    }
    drop(mapped);
    let (items, namespaces) = match shares {
        true => (super::process::items(floor), Vec::new()),
        false => inhabit(floor, prepared, control)?,
    };
    begin(floor, items, namespaces, control, stdio)
}

/// Makes the namespaces and the root file system the sandbox's own. Gives the user, the mount and the pid
/// namespace besides what is in force.
fn inhabit(
    floor: &Floor,
    prepared: Prepared,
    control: &OwnedFd,
) -> Result<(Vec<Item>, Vec<OwnedFd>), Failure> {
    let fuse = rootfs::open_fuse(floor.rootfs.data.len());
    // Whoever holds these can change the mounts later; this process itself gives up the right to.
    let namespaces = ["user", "mnt", "pid"].map(|kind| File::open(format!("/proc/self/ns/{kind}")));
    let [user, mounts, pids] = namespaces;
    let user = user.map_err(Failure::at("opening the user namespace"))?;
    let mounts = mounts.map_err(Failure::at("opening the mount namespace"))?;
    let pids = pids.map_err(Failure::at("opening the pid namespace"))?;
    process::become_user(INSIDE_ID, INSIDE_ID, floor.privileged)
        .map_err(Failure::at("becoming the sandbox's user"))?;
    // A change of user clears it; see PR_SET_PDEATHSIG in prctl(2).
    tie_to_parent()?;
    process::unshare(libc::CLONE_NEWCGROUP as u64)
        .map_err(Failure::at("entering the cgroup namespace"))?;
    rustix::system::sethostname(floor.hostname.as_bytes()).map_err(at("setting the host name"))?;
    if floor.network {
        let resolver = network::set_up_inside().map_err(Failure::at("setting the network up"))?;
        wire::send(control.as_fd(), &FromInit::Resolver, &[resolver.as_fd()])
            .map_err(Failure::at("handing over the resolver's socket"))?;
    }
    let mut items = vec![Item::full(
        2,
        "namespaces",
        "user mount pid net ipc uts cgroup",
    )];
    let (made, places) = rootfs::assemble(&floor.rootfs, prepared, fuse)?;
    items.extend(made);
    for (data, place) in floor.rootfs.data.iter().zip(places) {
        let (fuse, descriptor) = match place {
            DataPlace::Fuse(device) => (true, device),
            DataPlace::Memory(folder) => (false, folder),
        };
        let message = FromInit::Place {
            name: data.name.clone(),
            fuse,
        };
        wire::send(control.as_fd(), &message, &[descriptor.as_fd()])
            .map_err(Failure::at("handing over a vault's place"))?;
        drop(descriptor);
        expect(control, |said| matches!(said, ToInit::Served));
    }
    let namespaces = [user, mounts, pids].map(OwnedFd::from);
    Ok((items, namespaces.into()))
}

/// Forks the workload, follows it until it is confined, and waits for the word to start it.
fn begin(
    floor: &Floor,
    mut items: Vec<Item>,
    namespaces: Vec<OwnedFd>,
    control: &OwnedFd,
    stdio: [OwnedFd; 3],
) -> Result<Workload, Failure> {
    let shares = floor.home.is_some();
    connect(stdio).map_err(at("connecting stdin, stdout and stderr"))?;

    let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
    let (report, reports) = pipe().map_err(at("making a pipe"))?;
    let (go, start) = pipe().map_err(at("making a pipe"))?;
    process::close_from_on_exec(3).map_err(Failure::at("closing descriptors"))?;
    let forked =
        process::fork_sharing_descriptors().map_err(Failure::at("forking the workload"))?;
    let (pid, pidfd) = match forked {
        Forked::Child => workload(floor, File::from(reports), &go),
        Forked::Parent { pid, pidfd } => {
            // In the shared table this end is the workload's own until it execs.
            std::mem::forget(reports);
            (pid, pidfd)
        }
    };
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(at("protecting the init"))?;
    if !shares {
        // A keeper has to signal another user's processes.
        process::drop_capabilities().map_err(Failure::at("dropping the init's capabilities"))?;
    }

    let mut report = File::from(report);
    let listener = match hear(&mut report, &pidfd)? {
        FromWorkload::Confined {
            items: confined,
            listener,
        } => {
            items.extend(confined);
            listener
        }
        FromWorkload::Failed(failure) => return Err(failure),
    };
    // The descriptor table is shared: the listener the workload made is this process' own, and closing
    // it here takes it from the workload, before that runs.
    let listener = listener.map(process::adopt);
    let descriptors = namespaces.iter().chain(&listener).map(AsFd::as_fd);
    let descriptors: Vec<_> = descriptors.collect();
    let listens = listener.is_some();
    let prepared = FromInit::Prepared { items, listens };
    wire::send(control.as_fd(), &prepared, &descriptors)
        .map_err(Failure::at("reporting what is in force"))?;
    drop((namespaces, listener));
    let signals = signal::collect().map_err(Failure::at("watching signals"))?;
    wait_to_start(control, shares);
    rustix::io::write(&start, &[1]).map_err(at("starting the workload"))?;
    // Likewise.
    std::mem::forget((go, start));
    Ok(Workload {
        pid,
        report,
        signals,
    })
}

fn tie_to_parent() -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(at("tying the sandbox to its supervisor"))
}

/// Waits for the supervisor's word. Any other word, or its end, ends the sandbox.
fn expect(control: &OwnedFd, wanted: impl FnOnce(&ToInit) -> bool) {
    match wire::receive::<ToInit>(control.as_fd()) {
        Ok(Some((said, _))) if wanted(&said) => {}
        _ => process::exit_now(1),
    }
}

/// Puts descriptors in the places of stdin, stdout and stderr.
fn connect([input, output, error]: [OwnedFd; 3]) -> rustix::io::Result<()> {
    rustix::stdio::dup2_stdin(&input)?;
    rustix::stdio::dup2_stdout(&output)?;
    rustix::stdio::dup2_stderr(&error)
}

/// Waits for the word to start. Without a cgroup the workload can be frozen before it.
fn wait_to_start(control: &OwnedFd, shares: bool) {
    loop {
        match wire::receive::<ToInit>(control.as_fd()) {
            Ok(Some((ToInit::Start, stdio))) => {
                if let Ok(stdio) = <[OwnedFd; 3]>::try_from(stdio)
                    // In the table that the workload shares, so it is its stdio too.
                    && connect(stdio).is_err()
                {
                    process::exit_now(1);
                }
                return;
            }
            Ok(Some((ToInit::Pause(stop), _))) => pause_all(stop, shares),
            _ => process::exit_now(1),
        }
    }
}

/// Reads the workload's next line, or notices that it died without one.
fn hear(report: &mut File, pidfd: &OwnedFd) -> Result<FromWorkload, Failure> {
    let mut line = Vec::new();
    let mut chunk = [0u8; 4096];
    loop {
        let mut watched = [
            PollFd::new(report, PollFlags::IN),
            PollFd::new(pidfd, PollFlags::IN),
        ];
        match rustix::event::poll(&mut watched, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(at("hearing from the workload")(error)),
        }
        if watched[0].revents().is_empty() {
            return Err(Failure {
                step: "confining the workload".into(),
                error: "it ended before it could run (its own filter may forbid `write` or `read`)"
                    .into(),
                errno: None,
            });
        }
        let read = report
            .read(&mut chunk)
            .map_err(Failure::at("hearing from the workload"))?;
        line.extend_from_slice(&chunk[..read]);
        if line.ends_with(b"\n") || read == 0 {
            return serde_json::from_slice(&line)
                .map_err(|e| Failure::at("hearing from the workload")(e.into()));
        }
    }
}

/// The workload's side of the fork: confines itself, waits for the word, executes. Never returns.
fn workload(floor: &Floor, mut reports: File, go: &OwnedFd) -> ! {
    let failure = match confine(floor) {
        Ok((items, listener)) => {
            let execution = Execution::of(floor);
            tell(&mut reports, &FromWorkload::Confined { items, listener });
            if !matches!(rustix::io::read(go, &mut [0u8; 1]), Ok(1)) {
                process::exit_now(1);
            }
            execution.execute()
        }
        Err(failure) => failure,
    };
    tell(&mut reports, &FromWorkload::Failed(failure));
    process::exit_now(127)
}

fn tell(reports: &mut File, message: &FromWorkload) {
    if let Ok(mut line) = serde_json::to_vec(message) {
        line.push(b'\n');
        let _ = reports.write_all(&line);
    }
}

/// Puts the floor in force on this process, in the one order that works.
fn confine(floor: &Floor) -> Result<(Vec<Item>, Option<i32>), Failure> {
    let mut items = Vec::new();
    rustix::process::setsid().map_err(at("starting a session"))?;
    rustix::process::chdir(floor.directory.as_str()).map_err(at_owned(format!(
        "entering the working directory `{}`",
        floor.directory
    )))?;
    for (resource, value) in &floor.limits {
        process::set_limit(*resource, *value).map_err(Failure::at("setting resource limits"))?;
    }
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    if floor.home.is_some() {
        super::process::give_up_privileges(floor)?;
        // A change of user clears it.
        tie_to_parent()?;
    } else {
        process::drop_capabilities().map_err(Failure::at("dropping capabilities"))?;
    }
    rustix::thread::set_no_new_privs(true).map_err(at("setting no_new_privs"))?;
    items.push(Item::full(
        2,
        "capabilities",
        "none; securebits locked; no_new_privs",
    ));
    signal::reset_all().map_err(Failure::at("resetting signals"))?;
    items.push(restrict_files(floor)?);
    let protection = match floor.compiles {
        // `PR_SET_MDWE` would refuse that; what it would have closed is reported as open.
        true => memory::inspect(Some(&floor.filter)),
        false => memory::protect(Some(&floor.filter)).map_err(Failure::at("protecting memory"))?,
    };
    // Only mounts can say that nothing of a file is executed, mapped neither.
    let mapped = floor.home.as_ref().map(|_| "mapping-of-written-files");
    let open: Vec<_> = protection.open().chain(mapped).collect();
    items.push(if open.is_empty() {
        Item::full(3, "memory-protection", "written memory is never executable")
    } else {
        Item::partly(
            3,
            "memory-protection",
            format!("still open: {}", open.join(", ")),
        )
    });
    // Last: from here on only what the profile has is possible.
    let (listener, item) =
        filter_calls(floor).map_err(Failure::at("installing the system call filter"))?;
    items.push(item);
    Ok((items, listener))
}

/// Takes on the Landlock ruleset. A host without Landlock leaves the mounts as the only wall, and a
/// gap in the report; a host that has it and refuses is a failure.
fn restrict_files(floor: &Floor) -> Result<Item, Failure> {
    // What this root file system does not have needs no right.
    let paths = floor
        .landlock
        .iter()
        .filter(|(path, _)| Path::new(path).exists())
        .cloned();
    let plan = LandlockPlan::new(paths, Scopes::default());
    let restrict = || {
        // What cannot be reached from the root of the sandbox is out of reach, whoever holds a folder
        // of it: that is all the second domain says, and what makes taking a tree reach working
        // folders and folders held open. A tree that was detached has no way up to the root.
        let connected = LandlockPlan::new([("/", Rights::ALL)], Scopes::default()).build()?;
        let enforced = plan.build()?.restrict_self()?;
        connected.restrict_self()?;
        Ok(enforced)
    };
    let enforced = match restrict() {
        Ok(enforced) => enforced,
        Err(error) if floor.home.is_some() => {
            return Err(super::process::without_landlock(io::Error::other(error)));
        }
        Err(error @ LandlockError::Unavailable(_)) => {
            return Ok(Item::not(3, "landlock", crate::error::describe(&error)));
        }
        Err(error) => return Err(Failure::at("restricting files")(io::Error::other(error))),
    };
    let abi = enforced.abi();
    let gaps = enforced
        .gaps()
        .iter()
        .filter(|gap| !gap.closed_elsewhere)
        .map(|gap| gap.what);
    let sockets = (floor.unix_connect && abi < UNIX_CONNECT_ABI).then_some(
        "reach Unix sockets in folders that may only be read, as the policy allows by name",
    );
    // Elsewhere a pid namespace hides them.
    let signals = (floor.home.is_some() && !floor.privileged && abi < SIGNAL_ABI)
        .then_some("signal the other processes of its user");
    let open: Vec<_> = gaps.chain(sockets).chain(signals).collect();
    Ok(if open.is_empty() {
        Item::full(
            3,
            "landlock",
            format!("ABI {abi}, {} paths", floor.landlock.len()),
        )
    } else {
        Item::partly(
            3,
            "landlock",
            format!("ABI {abi} cannot keep it from: {}", open.join("; ")),
        )
    })
}

/// Loads the filter, with a listener where the kernel gives one: there is one for a whole chain.
fn filter_calls(floor: &Floor) -> io::Result<(Option<i32>, Item)> {
    let flags = LoadFlags {
        // Refused calls are answered at once, and need not be made twice for a Unix signal. A connection
        // can take minutes: whoever waits for one has to be frozen, traced and interrupted meanwhile.
        wait_killable: !floor.network,
        ..LoadFlags::default()
    };
    let size = floor.filter.instructions().len();
    match seccomp::load_with_listener(&floor.filter, flags) {
        Ok(listener) => {
            let detail = format!("{size} instructions; refused calls are reported");
            Ok((
                Some(listener.into_raw_fd()),
                Item::full(3, "seccomp", detail),
            ))
        }
        Err(error) => {
            seccomp::load(&floor.silent_filter, LoadFlags::default())?;
            let detail = format!("in force, but refused calls are not reported: {error}");
            Ok((None, Item::partly(3, "seccomp", detail)))
        }
    }
}

/// What execve(2) will be given, laid out before the word comes.
struct Execution {
    name: String,
    candidates: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Execution {
    fn of(floor: &Floor) -> Self {
        let strings = |all: &[String]| -> Vec<CString> {
            all.iter()
                .filter_map(|s| CString::new(s.as_str()).ok())
                .collect()
        };
        let name = floor.command.first().cloned().unwrap_or_default();
        let path = floor
            .environment
            .iter()
            .find_map(|v| v.strip_prefix("PATH="))
            .unwrap_or("/usr/local/bin:/usr/bin:/bin");
        let candidates = if name.contains('/') {
            vec![name.clone()]
        } else {
            path.split(':')
                .map(|folder| format!("{folder}/{name}"))
                .collect()
        };
        Self {
            candidates: strings(&candidates),
            arguments: strings(&floor.command),
            environment: strings(&floor.environment),
            name,
        }
    }

    /// Executes the program; returns only with the reason why that was not possible.
    fn execute(&self) -> Failure {
        // As execvp(3): the first that exists decides, and a refusal is remembered over an absence.
        let mut worst = io::Error::from_raw_os_error(libc::ENOENT);
        for program in &self.candidates {
            let error = process::execute(program, &self.arguments, &self.environment);
            match error.raw_os_error() {
                Some(libc::ENOENT | libc::ENOTDIR) => {}
                Some(libc::EACCES) => worst = error,
                _ => {
                    worst = error;
                    break;
                }
            }
        }
        Failure::at(format!("executing `{}`", self.name))(worst)
    }
}

/// Lives as the sandbox's init until the workload ends: reaps, forwards, pauses.
fn attend(mut workload: Workload, control: &OwnedFd, shares: bool) -> FromInit {
    loop {
        let mut watched = [
            PollFd::new(control, PollFlags::IN),
            PollFd::new(&workload.signals, PollFlags::IN),
        ];
        match rustix::event::poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return FromInit::Failed(at("waiting for the workload")(error)),
        }
        let spoken = !watched[0].revents().is_empty();
        while let Ok(Some(_)) = signal::next(&workload.signals) {}
        while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
            if pid != workload.pid {
                continue;
            }
            if shares && let Err(error) = descendants::end() {
                return FromInit::Failed(Failure::at("ending what the workload left behind")(
                    error,
                ));
            }
            if let Some(failure) = exec_failure(&mut workload.report) {
                return FromInit::Failed(failure);
            }
            return FromInit::Ended(match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => Ending::Code(code),
                (None, signal) => Ending::Killed(signal.unwrap_or(libc::SIGKILL)),
            });
        }
        if spoken {
            match wire::receive::<ToInit>(control.as_fd()) {
                Ok(Some((ToInit::Kill(number), _))) => {
                    // Its whole group, as a terminal would.
                    if let Some(signal) = Signal::from_named_raw(number) {
                        let _ = rustix::process::kill_process_group(workload.pid, signal);
                    }
                }
                Ok(Some((ToInit::Pause(stop), _))) => pause_all(stop, shares),
                Ok(Some((ToInit::Served | ToInit::Start, _))) => {}
                // The supervisor is gone; so is the sandbox.
                Ok(None) | Err(_) => process::exit_now(1),
            }
        }
    }
}

/// Stops or continues everything in this process namespace but the init itself. The kernel does it
/// under one lock, so that no fork slips by. See kill(2), "pid equals -1". In a process namespace that is
/// the host's, everything below the keeper.
fn pause_all(stop: bool, shares: bool) {
    if shares {
        let done = if stop {
            descendants::stop()
        } else {
            descendants::go_on()
        };
        if done.is_err() {
            // What cannot be stopped ends.
            process::exit_now(1);
        }
        return;
    }
    process::signal_everyone(if stop { libc::SIGSTOP } else { libc::SIGCONT });
}

/// What the workload said last, if that was why its program could not be executed.
fn exec_failure(report: &mut File) -> Option<Failure> {
    let mut watched = [PollFd::new(report, PollFlags::IN)];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if rustix::event::poll(&mut watched, Some(&now)).ok()? == 0 {
        return None;
    }
    let mut line = [0u8; 4096];
    let read = report.read(&mut line).ok()?;
    match serde_json::from_slice(&line[..read]).ok()? {
        FromWorkload::Failed(failure) => Some(failure),
        FromWorkload::Confined { .. } => None,
    }
}

fn at(step: &'static str) -> impl FnOnce(rustix::io::Errno) -> Failure {
    move |errno| Failure::at(step)(errno.into())
}

fn at_owned(step: String) -> impl FnOnce(rustix::io::Errno) -> Failure {
    move |errno| Failure::at(step)(errno.into())
}
