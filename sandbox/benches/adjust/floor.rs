//! What each lever rests on, in bare system calls: no policy, no record, no sandbox. Nothing that moves
//! the lever can be faster.

use std::io::Read;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use casemate::isolation::cgroup::{Cgroup, Limits};
use casemate::syscall::landlock::{LandlockPlan, Rights, Scopes};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{Signal, WaitIdOptions};
use seccompiler::{BpfProgram, sock_filter};

use crate::Result;

/// The times of so many moves.
pub type Floor = fn(rounds: u32) -> Result<Vec<Duration>>;

/// One message to a file system that the kernel asks: as `FUSE_NOTIFY_INVAL_INODE` is one.
pub fn one_write(rounds: u32) -> Result<Vec<Duration>> {
    let (_end, begin) = rustix::pipe::pipe()?;
    let message = [0; 40];
    let size = message.len() as u32;
    (0..rounds.min((64 << 10) / size))
        .map(|_| timed(|| Ok(rustix::io::write(&begin, &message).map(drop)?)))
        .collect()
}

/// umount2(2) of a bind mount.
pub fn detach(rounds: u32) -> Result<Vec<Duration>> {
    mounted(rounds, |at| {
        Ok(rustix::mount::unmount(at, UnmountFlags::DETACH)?)
    })
}

/// mount(2) that remounts a bind mount read-only.
pub fn read_only(rounds: u32) -> Result<Vec<Duration>> {
    mounted(rounds, |at| {
        let flags = MountFlags::BIND | MountFlags::RDONLY;
        Ok(rustix::mount::mount_remount(at, flags, c"")?)
    })
}

/// Does something to a bind mount, again and again, in a thread with mounts of its own.
fn mounted(rounds: u32, change: fn(&Path) -> Result<()>) -> Result<Vec<Duration>> {
    let work = move || -> Result<Vec<Duration>> {
        // SAFETY: this thread shares no descriptors differently from before; only its mounts are its own.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
        rustix::mount::mount_change(
            "/",
            rustix::mount::MountPropagationFlags::REC
                | rustix::mount::MountPropagationFlags::PRIVATE,
        )?;
        let folder = tempfile::tempdir()?;
        let at = folder.path();
        let times = (0..rounds).map(|_| {
            rustix::mount::mount_bind(at, at)?;
            let time = timed(|| change(at))?;
            // Gone already, if that was the change.
            let _ = rustix::mount::unmount(at, UnmountFlags::DETACH);
            Ok(time)
        });
        times.collect()
    };
    let thread = std::thread::spawn(move || work().map_err(|error| error.to_string()));
    Ok(thread
        .join()
        .map_err(|_| "the thread of mounts panicked")??)
}

/// shutdown(2) of a connection over the loopback interface.
pub fn shut(rounds: u32) -> Result<Vec<Duration>> {
    let server = TcpListener::bind("127.0.0.1:0")?;
    let to = server.local_addr()?;
    (0..rounds)
        .map(|_| {
            let ours = TcpStream::connect(to)?;
            let _theirs = server.accept()?;
            timed(|| Ok(ours.shutdown(Shutdown::Both)?))
        })
        .collect()
}

/// A store to memory that another thread reads.
pub fn store(rounds: u32) -> Result<Vec<Duration>> {
    let switch = AtomicBool::new(true);
    (0..rounds)
        .map(|round| timed(|| Ok(switch.store(round % 2 == 0, Ordering::SeqCst))))
        .collect()
}

/// A Landlock domain and a filter, taken on by a thread itself.
pub fn confine(rounds: u32) -> Result<Vec<Duration>> {
    const ALLOW: sock_filter = sock_filter {
        code: 6, // BPF_RET
        jt: 0,
        jf: 0,
        k: 0x7fff_0000, // SECCOMP_RET_ALLOW
    };
    let program: BpfProgram = vec![ALLOW; 8];
    let work = move || -> Result<Duration> {
        let ruleset = LandlockPlan::new([("/usr", Rights::READ)], Scopes::default());
        let ruleset = ruleset.build()?;
        timed(|| {
            ruleset.restrict_self()?;
            Ok(seccompiler::apply_filter(&program)?)
        })
    };
    let alone = || {
        let work = work.clone();
        let thread = std::thread::spawn(move || work().map_err(|error| error.to_string()));
        Ok(thread.join().map_err(|_| "a confined thread panicked")??)
    };
    (0..rounds).map(|_| alone()).collect()
}

/// One limit, written to a cgroup.
pub fn limit(rounds: u32) -> Result<Vec<Duration>> {
    let (cgroup, _) = Cgroup::create();
    if !cgroup.limits("pids") {
        return Err("no cgroup limits tasks here".into());
    }
    let times = (0..rounds).map(|round| {
        let limits = Limits {
            memory: None,
            pids: Some(u64::from(16 + round % 2)),
            cpu: None,
        };
        timed(|| Ok(cgroup.limit(&limits)?))
    });
    times.collect()
}

/// SIGSTOP to one busy process, until it is stopped.
pub fn stop(rounds: u32) -> Result<Vec<Duration>> {
    let mut child = Busy::start()?;
    let times = (0..rounds).map(|_| {
        let time = timed(|| child.kill_until(Signal::STOP, WaitIdOptions::STOPPED))?;
        rustix::process::kill_process(child.pid()?, Signal::CONT)?;
        Ok(time)
    });
    let times = times.collect();
    child.0.kill()?;
    child.0.wait()?;
    times
}

/// SIGKILL to one busy process, until it is dead.
pub fn kill(rounds: u32) -> Result<Vec<Duration>> {
    (0..rounds)
        .map(|_| {
            let mut child = Busy::start()?;
            let time = timed(|| child.kill_until(Signal::KILL, WaitIdOptions::EXITED))?;
            child.0.wait()?;
            Ok(time)
        })
        .collect()
}

/// A process that does nothing but run.
struct Busy(Child);

impl Busy {
    fn start() -> Result<Self> {
        let mut child = Command::new("sh")
            .args(["-c", "echo; while :; do :; done"])
            .stdout(Stdio::piped())
            .spawn()?;
        child.stdout.take().ok_or("no pipe")?.read_exact(&mut [0])?;
        Ok(Self(child))
    }

    fn pid(&self) -> Result<rustix::process::Pid> {
        let pid = i32::try_from(self.0.id())?;
        Ok(rustix::process::Pid::from_raw(pid).ok_or("no process")?)
    }

    fn kill_until(&mut self, signal: Signal, change: WaitIdOptions) -> Result<()> {
        let pid = self.pid()?;
        rustix::process::kill_process(pid, signal)?;
        rustix::process::waitid(
            rustix::process::WaitId::Pid(pid),
            change | WaitIdOptions::NOWAIT,
        )?;
        Ok(())
    }
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed())
}
