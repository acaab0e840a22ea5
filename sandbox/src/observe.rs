//! Watching what an unknown program does, to propose a policy for it.
//!
//! The program is **not** confined to the least it needs: that is what is to be found out. It runs as
//! the caller's user, gains no privileges, and, where the kernel has Landlock, writes only below the
//! folders that it was given; it reads and connects as it likes. Every system call is looked at
//! through ptrace(2). Nothing is decided on what is read from the program's memory, so that a
//! program that changes it in between deceives only its own proposal.

mod names;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use landlock::{
    ABI, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, path_beneath_rules,
};
use policy::learn::{Given, Observation, Seen, What};
use rustix::process::{PidfdFlags, Signal};

use crate::isolation::network;
use crate::plan::{HOST_ETC, HOST_TREES, OWN_ETC};
use crate::sys::trace::{self, Stop};
use crate::syscall::profile::Profile;
use crate::syscall::table::syscall_name;

/// A program to be observed.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// The folder in which it runs, absolute.
    pub cwd: PathBuf,
    /// Folders below which it may write.
    pub writable: Vec<PathBuf>,
    /// The longest it may take; it is killed then.
    pub time: Option<Duration>,
}

/// Why a program could not be observed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ObserveError {
    /// There is no program.
    #[error("no program is named")]
    Empty,
    /// The program could not be started.
    #[error("cannot start `{0}`")]
    Start(String, #[source] io::Error),
    /// ptrace(2) failed: it may be forbidden here.
    #[error("cannot watch its system calls")]
    Trace(#[source] io::Error),
    /// Landlock refused what it was told.
    #[error("cannot keep it from writing elsewhere")]
    Confine(#[source] landlock::RulesetError),
}

/// The most different things that are noted of one run.
const MOST_SEEN: usize = 1 << 15;
/// The longest answer of a name server that is read from a program.
const MOST_ANSWER: usize = 4000;
/// The longest path that is read from a program.
const MOST_PATH: usize = 4096;

/// Runs a program to its end and tells what it did, and its exit code.
///
/// It takes the place of a shell: stdin, stdout and stderr are this process's. Its process tree is
/// killed when the program itself ends.
///
/// # Errors
///
/// [`ObserveError`]; nothing runs then.
pub fn observe(observed: &Observed) -> Result<(Observation, i32), ObserveError> {
    // Only the thread that starts a process can trace it, and what it traces ends with it.
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| Watch::run(observed));
        let lost = || {
            Err(ObserveError::Trace(io::Error::other(
                "the watching thread is lost",
            )))
        };
        watch.join().unwrap_or_else(|_| lost())
    })
}

/// What a sandbox of this host gives every workload.
pub fn given<R>(use_it: impl FnOnce(&Given<'_>) -> R) -> R {
    let trees: Vec<&str> = HOST_TREES
        .into_iter()
        .chain(HOST_ETC)
        .chain(OWN_ETC)
        .collect();
    let profiles: Vec<Profile> = Profile::names()
        .filter_map(|name| Profile::named(name).ok())
        .collect();
    let profiles: Vec<(&str, BTreeSet<&str>)> = profiles
        .iter()
        .map(|profile| (profile.name(), profile.allowed().collect()))
        .collect();
    use_it(&Given {
        trees: &trees,
        profiles: &profiles,
        public: network::is_public,
    })
}

/// One run that is being watched.
struct Watch {
    started: Instant,
    seen: BTreeMap<What, Seen>,
    /// What each task was doing when it entered the kernel.
    pending: HashMap<i32, Pending>,
    /// Sockets on which name servers were asked.
    asking: BTreeSet<(i32, u64)>,
    tasks: BTreeSet<i32>,
    most_tasks: usize,
    memory: u64,
}

/// A system call that has not returned yet, and what it will have done if it succeeds.
struct Pending {
    done: Vec<What>,
    /// What to say if it is refused.
    refused: Option<String>,
    /// Where the answer of a name server will stand.
    answer: Option<u64>,
}

impl Watch {
    fn run(observed: &Observed) -> Result<(Observation, i32), ObserveError> {
        let program = observed.command.first().ok_or(ObserveError::Empty)?;
        let start = |error| ObserveError::Start(program.clone(), error);
        let mut confined = confined(&observed.writable)?;
        let mut command = Command::new(program);
        command
            .args(&observed.command[1..])
            .env_clear()
            .envs(&observed.env)
            .current_dir(&observed.cwd);
        trace::confined(&mut command, move || match confined.take() {
            Some(ruleset) => ruleset.restrict_self().map(drop).map_err(io::Error::other),
            None => Ok(()),
        });
        let child = trace::traced(&mut command).spawn().map_err(start)?;
        let root = i32::try_from(child.id()).unwrap_or(i32::MAX);
        let mut watch = Watch {
            started: Instant::now(),
            seen: BTreeMap::new(),
            pending: HashMap::new(),
            asking: BTreeSet::new(),
            tasks: BTreeSet::new(),
            most_tasks: 1,
            memory: 0,
        };
        if let Some(path) = found(program, observed) {
            watch.note(What::Exec(path));
        }
        let ended = until(root, observed.time).map_err(ObserveError::Trace)?;
        let code = watch.follow(root).map_err(ObserveError::Trace)?;
        drop(ended);
        let seen = watch.seen.into_values().collect();
        let millis = u64::try_from(watch.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let observation = Observation {
            command: observed.command.clone(),
            env: observed.env.clone(),
            cwd: observed.cwd.clone(),
            runs: 1,
            memory: watch.memory,
            pids: watch.most_tasks as u64,
            millis,
            seen,
        };
        Ok((observation, code))
    }

    /// Resumes whatever stops, until the program itself has ended.
    fn follow(&mut self, root: i32) -> io::Result<i32> {
        loop {
            let Some((pid, stop)) = trace::wait()? else {
                return Err(io::Error::other("the program is lost"));
            };
            let new = self.tasks.insert(pid);
            self.most_tasks = self.most_tasks.max(self.tasks.len());
            let mut signal = 0;
            match stop {
                Stop::Entry { nr, args } => self.enter(pid, nr, &args),
                Stop::Exit(answer) => self.leave(pid, answer),
                // The first stop of a new task is not for it.
                Stop::Signal(_) if new && pid == root => trace::follow(pid)?,
                Stop::Signal(libc::SIGSTOP) if new => {}
                Stop::Signal(other) => signal = other,
                Stop::Other => {}
                Stop::Gone { code, memory } => {
                    self.memory = self.memory.max(memory);
                    self.tasks.remove(&pid);
                    self.pending.remove(&pid);
                    if pid == root {
                        return Ok(code);
                    }
                    continue;
                }
            }
            trace::resume(pid, signal)?;
        }
    }

    fn note(&mut self, what: What) {
        let at = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Some(seen) = self.seen.get_mut(&what) {
            seen.times += 1;
        } else if self.seen.len() < MOST_SEEN {
            let seen = Seen {
                what: what.clone(),
                run: 1,
                at,
                times: 1,
            };
            self.seen.insert(what, seen);
        }
    }

    fn enter(&mut self, pid: i32, nr: u64, args: &[u64; 6]) {
        let Some(name) = u32::try_from(nr).ok().and_then(syscall_name) else {
            return;
        };
        self.note(What::Syscall(name.to_owned()));
        let task = Task(pid);
        let done = task.would_do(name, args);
        let refused = match name {
            _ if done.is_empty() => None,
            "connect" | "bind" => None,
            _ => done.iter().find_map(|what| match what {
                What::Change(path) | What::Write(path) => {
                    Some(format!("writing `{}`", path.display()))
                }
                _ => None,
            }),
        };
        if done
            .iter()
            .any(|what| matches!(what, What::Connect(to) if to.ends_with(":53")))
            && self.asking.len() < MOST_SEEN
        {
            self.asking.insert((pid, args[0]));
        }
        let answer = match self.asking.contains(&(pid, args[0])) {
            true => task.receives(name, args),
            false => None,
        };
        let pending = Pending {
            done,
            refused,
            answer,
        };
        self.pending.insert(pid, pending);
    }

    fn leave(&mut self, pid: i32, answer: i64) {
        let Some(Pending {
            done,
            refused,
            answer: heard,
        }) = self.pending.remove(&pid)
        else {
            return;
        };
        if let (Some(at), Ok(length)) = (heard, usize::try_from(answer))
            && let Some((name, addresses)) =
                names::answered(&Task(pid).bytes(at, length.min(MOST_ANSWER)))
        {
            for address in addresses {
                self.note(What::Resolved(name.clone(), address));
            }
        }
        let answer = i32::try_from(answer).unwrap_or(0);
        if answer >= 0 || answer == -libc::EINPROGRESS {
            done.into_iter().for_each(|what| self.note(what));
        } else if [-libc::EACCES, -libc::EPERM, -libc::EROFS].contains(&answer)
            && let Some(what) = refused
        {
            self.note(What::Refused(what));
        }
    }
}

/// A task that is stopped, and can be asked what it means.
struct Task(i32);

impl Task {
    /// What a system call will have done if it succeeds.
    fn would_do(&self, name: &str, args: &[u64; 6]) -> Vec<What> {
        const HERE: u64 = libc::AT_FDCWD as u32 as u64;
        let one = |folder: u64, path: u64| self.path(folder, path);
        let reads = |path: Option<PathBuf>| path.map(What::Read).into_iter().collect();
        let changes = |paths: [Option<PathBuf>; 2]| -> Vec<What> {
            let folders = paths
                .into_iter()
                .flatten()
                .filter_map(|path| folder_of(&path));
            folders.map(What::Change).collect()
        };
        match name {
            "open" => self.opens(one(HERE, args[0]), args[1]),
            "openat" => self.opens(one(args[0], args[1]), args[2]),
            "openat2" => self.opens(one(args[0], args[1]), self.word(args[2]).unwrap_or(0)),
            "creat" => self.opens(one(HERE, args[0]), (libc::O_CREAT | libc::O_WRONLY) as u64),
            "execve" => one(HERE, args[0]).map(What::Exec).into_iter().collect(),
            "execveat" => one(args[0], args[1]).map(What::Exec).into_iter().collect(),
            "stat" | "lstat" | "access" | "readlink" => {
                reads(one(HERE, args[0]).filter(|p| !p.is_dir()))
            }
            "newfstatat" | "statx" | "faccessat" | "faccessat2" | "readlinkat" => {
                reads(one(args[0], args[1]).filter(|p| !p.is_dir()))
            }
            "mkdir" | "rmdir" | "unlink" | "mknod" => changes([one(HERE, args[0]), None]),
            "mkdirat" | "unlinkat" | "mknodat" => changes([one(args[0], args[1]), None]),
            "rename" | "link" => changes([one(HERE, args[0]), one(HERE, args[1])]),
            "renameat" | "renameat2" | "linkat" => {
                changes([one(args[0], args[1]), one(args[2], args[3])])
            }
            "symlink" => changes([one(HERE, args[1]), None]),
            "symlinkat" => changes([one(args[1], args[2]), None]),
            "truncate" | "chmod" | "chown" | "lchown" | "utimes" => {
                one(HERE, args[0]).map(What::Write).into_iter().collect()
            }
            "fchmodat" | "fchmodat2" | "fchownat" | "utimensat" => {
                one(args[0], args[1]).map(What::Write).into_iter().collect()
            }
            "connect" => self
                .address(args[1], args[2])
                .map(What::Connect)
                .into_iter()
                .collect(),
            "sendto" if args[4] != 0 => self
                .address(args[4], args[5])
                .map(What::Connect)
                .into_iter()
                .collect(),
            "bind" => self
                .address(args[1], args[2])
                .map(What::Listen)
                .into_iter()
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Where a system call will put what it receives.
    fn receives(&self, name: &str, args: &[u64; 6]) -> Option<u64> {
        match name {
            "recvfrom" | "read" => Some(args[1]),
            // The first buffer of a message: `msg_iov` of a `msghdr`, `iov_base` of that.
            "recvmsg" => self.word(self.word(args[1].checked_add(16)?)?),
            _ => None,
        }
    }

    fn opens(&self, path: Option<PathBuf>, flags: u64) -> Vec<What> {
        let Some(path) = path else { return Vec::new() };
        let flag = |flag: i32| flags & flag as u64 == flag as u64;
        let writes = flags & libc::O_ACCMODE as u64 != libc::O_RDONLY as u64 || flag(libc::O_TRUNC);
        let made = flag(libc::O_CREAT) && !path.exists() || flag(libc::O_TMPFILE);
        vec![match (writes, made) {
            (_, true) if flag(libc::O_TMPFILE) => What::Change(path),
            (_, true) => folder_of(&path).map_or(What::Write(path), What::Change),
            (true, false) => What::Write(path),
            (false, false) if path.is_dir() && !flag(libc::O_PATH) => What::List(path),
            (false, false) => What::Read(path),
        }]
    }

    /// The path at an address of its memory, absolute and without `..`.
    fn path(&self, folder: u64, at: u64) -> Option<PathBuf> {
        let mut bytes = self.bytes(at, MOST_PATH);
        let end = bytes.iter().position(|byte| *byte == 0)?;
        bytes.truncate(end);
        // What is no text cannot stand in a policy either.
        let path = PathBuf::from(String::from_utf8(bytes).ok()?);
        if path.as_os_str().is_empty() {
            return None;
        }
        let base = match folder as u32 as i32 {
            _ if path.is_absolute() => PathBuf::from("/"),
            libc::AT_FDCWD => std::fs::read_link(format!("/proc/{}/cwd", self.0)).ok()?,
            folder => std::fs::read_link(format!("/proc/{}/fd/{folder}", self.0)).ok()?,
        };
        Some(normal(&base.join(path)))
    }

    /// `host:port`, or the path of a Unix socket.
    fn address(&self, at: u64, length: u64) -> Option<String> {
        let bytes = self.bytes(at, usize::try_from(length).unwrap_or(0).min(128));
        let family = i32::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let port = || Some(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?));
        match family {
            libc::AF_INET => {
                let address = Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(4..8)?).ok()?);
                port()
                    .filter(|port| *port != 0)
                    .map(|port| format!("{address}:{port}"))
            }
            libc::AF_INET6 => {
                let address = Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?);
                port()
                    .filter(|port| *port != 0)
                    .map(|port| format!("[{address}]:{port}"))
            }
            libc::AF_UNIX => {
                let path = bytes.get(2..)?.split(|byte| *byte == 0).next()?;
                let path = String::from_utf8(path.to_vec()).ok()?;
                (!path.is_empty()).then_some(path)
            }
            _ => None,
        }
    }

    fn word(&self, at: u64) -> Option<u64> {
        Some(u64::from_ne_bytes(self.bytes(at, 8).try_into().ok()?))
    }

    /// Up to so many bytes of its memory; fewer where it ends.
    fn bytes(&self, at: u64, most: usize) -> Vec<u8> {
        const PAGE: u64 = 4096;
        let mut bytes = Vec::new();
        let Ok(memory) = std::fs::File::open(format!("/proc/{}/mem", self.0)) else {
            return bytes;
        };
        let mut from = at;
        while bytes.len() < most {
            let left = usize::try_from(PAGE - from % PAGE).unwrap_or(1);
            let mut page = vec![0; left.min(most - bytes.len())];
            match memory.read_at(&mut page, from) {
                Ok(read) if read > 0 => {
                    bytes.extend_from_slice(&page[..read]);
                    if page[..read].contains(&0) && most == MOST_PATH {
                        break;
                    }
                    from = from.saturating_add(read as u64);
                }
                _ => break,
            }
        }
        bytes
    }
}

/// The rules that keep it from writing elsewhere; nothing where the kernel has no Landlock.
fn confined(writable: &[PathBuf]) -> Result<Option<RulesetCreated>, ObserveError> {
    let write = AccessFs::from_write(ABI::V5) & !AccessFs::IoctlDev;
    let given = writable.iter().map(PathBuf::as_path);
    let folders = given.chain(["/tmp", "/dev"].map(Path::new));
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(write)
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.add_rules(path_beneath_rules(folders, write)))
        .map(Some)
        .map_err(ObserveError::Confine)
}

/// Kills the program when its time is over, unless the answer is dropped before.
fn until(root: i32, time: Option<Duration>) -> io::Result<mpsc::Sender<()>> {
    let (ended, end) = mpsc::channel::<()>();
    if let (Some(time), Some(pid)) = (time, rustix::process::Pid::from_raw(root)) {
        let program = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        std::thread::spawn(move || {
            if end.recv_timeout(time) == Err(mpsc::RecvTimeoutError::Timeout) {
                // A program that is gone needs no killing.
                let _ = rustix::process::pidfd_send_signal(&program, Signal::KILL);
            }
        });
    }
    Ok(ended)
}

/// The file that is executed for the name of a program.
fn found(program: &str, observed: &Observed) -> Option<PathBuf> {
    if program.contains('/') {
        return Some(normal(&observed.cwd.join(program)));
    }
    let path = observed.env.get("PATH")?;
    let mut candidates = path
        .split(':')
        .map(|folder| Path::new(folder).join(program));
    candidates.find(|candidate| candidate.is_file())
}

fn folder_of(path: &Path) -> Option<PathBuf> {
    path.parent().map(Path::to_owned)
}

/// The path without `.` and `..`, as if no part of it were a link.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => {
                normal.pop();
            }
            _ => {}
        }
    }
    normal
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn shell(script: &str, folder: &Path) -> (Observation, i32) {
        observe(&Observed {
            command: vec!["sh".into(), "-c".into(), script.into()],
            env: BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into())]),
            cwd: folder.into(),
            writable: vec![folder.join("out")],
            time: None,
        })
        .unwrap()
    }

    #[test]
    fn what_a_program_does_is_seen() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let at = folder.path();
        std::fs::create_dir(at.join("out")).unwrap();
        std::fs::write(at.join("in.txt"), "in").unwrap();
        let (seen, code) = shell("cat in.txt > out/copy; ls missing; exit 3", at);
        assert_eq!(code, 3);
        let has = |what: &What| seen.seen.iter().any(|seen| seen.what == *what);
        assert!(has(&What::Read(at.join("in.txt"))), "{seen:?}");
        assert!(has(&What::Change(at.join("out"))), "{seen:?}");
        assert!(has(&What::Syscall("execve".into())), "{seen:?}");
        assert!(!has(&What::Read(at.join("missing"))), "{seen:?}");
        assert!(seen.pids >= 2, "{seen:?}");
        assert!(seen.memory > 0);
    }

    #[test]
    fn it_writes_nowhere_else() {
        if Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_write(ABI::V1))
            .is_err()
        {
            eprintln!("skipped: this kernel has no Landlock");
            return;
        }
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::create_dir(folder.path().join("out")).unwrap();
        let (seen, _) = shell("echo x > elsewhere", folder.path());
        assert!(!folder.path().join("elsewhere").exists());
        let refused =
            |seen: &Seen| matches!(&seen.what, What::Refused(what) if what.contains("writing"));
        assert!(seen.seen.iter().any(refused), "{seen:?}");
    }

    #[test]
    fn its_time_ends() {
        let (_, code) = observe(&Observed {
            command: vec!["sh".into(), "-c".into(), "read never < /dev/zero".into()],
            env: BTreeMap::from([("PATH".into(), "/usr/bin:/bin".into())]),
            cwd: "/".into(),
            writable: Vec::new(),
            time: Some(Duration::from_millis(50)),
        })
        .unwrap();
        assert_eq!(code, 128 + libc::SIGKILL);
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let error = observe(&Observed {
            command: vec!["/nowhere/tool".into()],
            env: BTreeMap::new(),
            cwd: "/".into(),
            writable: Vec::new(),
            time: None,
        });
        assert!(matches!(error, Err(ObserveError::Start(..))), "{error:?}");
    }
}
