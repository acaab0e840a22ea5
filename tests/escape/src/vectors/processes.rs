//! Reaching into other processes: the sandbox's init, its supervisor, and others of the host.

use std::fs;
use std::io;

use libc::c_long;

use super::{Vector, vector};
use crate::attempt::Attempt;
use crate::setting::Setting;
use crate::sys;

pub const ALL: &[Vector] = &[
    vector("process-vm-readv", |setting| {
        let own = setting.keeper();
        Attempt::any([
            (own.to_string(), read_memory(own)),
            ("parent".into(), read_memory(parent())),
        ])
    }),
    vector("process-vm-writev", |_| {
        let (buffer, vectors) = ([0_u8; 8], 1);
        let vector = [sys::address(&buffer), 0];
        let at = sys::address(&vector);
        let pid = parent() as usize;
        Attempt::succeeds(sys::call(
            libc::SYS_process_vm_writev,
            [pid, at, vectors, at, vectors, 0],
        ))
    }),
    vector("ptrace-init", |setting| {
        Attempt::succeeds(seize(setting.keeper()))
    }),
    vector("ptrace-parent", |_| Attempt::succeeds(seize(parent()))),
    vector("pidfd-getfd", |setting| {
        Attempt::any([setting.keeper(), parent()].map(|pid| {
            let taken = pidfd(pid).and_then(|pidfd| {
                sys::call(libc::SYS_pidfd_getfd, [pidfd as usize, 0, 0, 0, 0, 0])
            });
            (format!("process {pid}"), Attempt::succeeds(taken))
        }))
    }),
    vector("kcmp", |_| {
        let (me, parent) = (std::process::id() as usize, parent() as usize);
        Attempt::succeeds(sys::call(libc::SYS_kcmp, [me, parent, 0, 0, 0, 0]))
    }),
    vector("process-madvise", |_| {
        Attempt::reaches(sys::call(
            libc::SYS_process_madvise,
            [usize::MAX, 0, 0, 0, 0, 0],
        ))
    }),
    vector("init-memory", |setting| {
        of_keeper(setting, |proc| open_both(&format!("{proc}/mem")))
    }),
    vector("init-root", |setting| {
        of_keeper(setting, |proc| {
            fs::read_dir(format!("{proc}/root/")).map(drop)
        })
    }),
    vector("init-program", |setting| {
        of_keeper(setting, |proc| {
            sys::open(format!("{proc}/exe"), libc::O_RDONLY).map(drop)
        })
    }),
    vector("init-environment", |setting| {
        of_keeper(setting, |proc| {
            fs::read(format!("{proc}/environ")).map(drop)
        })
    }),
    vector("init-descriptors", |setting| {
        of_keeper(setting, |proc| fs::read_dir(format!("{proc}/fd")).map(drop))
    }),
    vector("init-maps", |setting| {
        of_keeper(setting, |proc| fs::read(format!("{proc}/maps")).map(drop))
    }),
    // `/proc/self/exe` of runc was once the way out: nothing of the supervisor is executed inside.
    vector("own-program-writable", |_| {
        Attempt::succeeds(sys::open("/proc/self/exe", libc::O_RDWR))
    }),
    vector("host-process-visible", |setting| {
        outside(setting, |pid| fs::read_dir(format!("/proc/{pid}")))
    }),
    vector("host-process-command", |setting| {
        outside(setting, |pid| fs::read(format!("/proc/{pid}/cmdline")))
    }),
    vector("host-process-signal", |setting| {
        // Signal 0: may one be sent?
        outside(setting, |pid| {
            sys::call(libc::SYS_kill, [pid as usize, 0, 0, 0, 0, 0])
        })
    }),
    vector("host-process-pidfd", |setting| outside(setting, pidfd)),
    vector("init-signal", |setting| {
        let pid = setting.keeper() as usize;
        let killed = sys::call(libc::SYS_kill, [pid, 0, 0, 0, 0, 0]);
        let threads = sys::call(libc::SYS_tgkill, [pid, pid, 0, 0, 0, 0]);
        Attempt::succeeds(killed.or(threads))
    }),
    vector("init-signal-by-pidfd", |setting| {
        let sent = pidfd(setting.keeper()).and_then(|pidfd| {
            sys::call(libc::SYS_pidfd_send_signal, [pidfd as usize, 0, 0, 0, 0, 0])
        });
        Attempt::succeeds(sent)
    }),
    vector("init-group", |setting| {
        // SAFETY: takes an integer.
        let group = unsafe { libc::getpgid(setting.keeper()) };
        let joined = sys::call(libc::SYS_setpgid, [0, group.max(1) as usize, 0, 0, 0, 0]);
        Attempt::succeeds(joined)
    }),
    // The init has the workload's user id, which is all that these calls ask for. Whoever slows it down
    // slows down what the supervisor does through it.
    vector("init-limits", |setting| {
        let old = [0_u64; 2];
        let (pid, which) = (setting.keeper() as usize, libc::RLIMIT_NOFILE as usize);
        Attempt::succeeds(sys::call(
            libc::SYS_prlimit64,
            [pid, which, 0, sys::address(&old), 0, 0],
        ))
    }),
    vector("init-priority", |setting| {
        let set = |which: usize, who| sys::call(libc::SYS_setpriority, [which, who, 0, 0, 0, 0]);
        let of_user = if setting.inside {
            set(2, 0)
        } else {
            Err(io::ErrorKind::Other.into())
        };
        Attempt::any([
            (
                "process".into(),
                Attempt::succeeds(set(0, setting.keeper() as usize)),
            ),
            ("user".into(), Attempt::succeeds(of_user)),
        ])
    }),
    vector("init-io-priority", |setting| {
        // Class 2 (best effort), level 4: what it is anyhow.
        let set =
            |which: usize, who| sys::call(libc::SYS_ioprio_set, [which, who, 0x4004, 0, 0, 0]);
        let of_user = if setting.inside {
            set(3, 1000)
        } else {
            Err(io::ErrorKind::Other.into())
        };
        Attempt::any([
            (
                "process".into(),
                Attempt::succeeds(set(1, setting.keeper() as usize)),
            ),
            ("user".into(), Attempt::succeeds(of_user)),
        ])
    }),
    vector("init-scheduler", |setting| {
        let parameter = [0_u64; 1];
        let at = sys::address(&parameter);
        let pid = setting.keeper() as usize;
        let policy = libc::SCHED_OTHER as usize;
        Attempt::any([
            (
                "policy".into(),
                Attempt::succeeds(sys::call(
                    libc::SYS_sched_setscheduler,
                    [pid, policy, at, 0, 0, 0],
                )),
            ),
            (
                "parameter".into(),
                Attempt::succeeds(sys::call(libc::SYS_sched_setparam, [pid, at, 0, 0, 0, 0])),
            ),
        ])
    }),
    vector("init-affinity", |setting| {
        let all = [u64::MAX; 16];
        let pid = setting.keeper() as usize;
        let set = sys::call(
            libc::SYS_sched_setaffinity,
            [pid, size_of_val(&all), sys::address(&all), 0, 0, 0],
        );
        Attempt::succeeds(set)
    }),
];

fn parent() -> i32 {
    // SAFETY: takes nothing.
    unsafe { libc::getppid() }
}

fn pidfd(pid: i32) -> io::Result<c_long> {
    sys::call(libc::SYS_pidfd_open, [pid as usize, 0, 0, 0, 0, 0])
}

fn seize(pid: i32) -> io::Result<c_long> {
    const PTRACE_SEIZE: usize = 0x4206;
    sys::call(libc::SYS_ptrace, [PTRACE_SEIZE, pid as usize, 0, 0, 0, 0])
}

/// Reads something that lies at the same address in this process and in its parent.
fn read_memory(pid: i32) -> Attempt {
    static THERE: u64 = 7;
    let buffer = [0_u8; 8];
    let (local, remote) = ([sys::address(&buffer), 8], [sys::address(&THERE), 8]);
    let (local, remote) = (sys::address(&local), sys::address(&remote));
    Attempt::succeeds(sys::call(
        libc::SYS_process_vm_readv,
        [pid as usize, local, 1, remote, 1, 0],
    ))
}

fn open_both(path: &str) -> io::Result<()> {
    sys::open(path, libc::O_RDWR)
        .or_else(|_| sys::open(path, libc::O_RDONLY))
        .map(drop)
}

fn of_keeper(setting: &Setting, attack: impl FnOnce(&str) -> io::Result<()>) -> Attempt {
    Attempt::succeeds(attack(&format!("/proc/{}", setting.keeper())))
}

/// Attacks the host's process, if no process inside can have its number.
fn outside<T: std::fmt::Debug>(
    setting: &Setting,
    attack: impl FnOnce(i32) -> io::Result<T>,
) -> Attempt {
    let apart = setting.inside && setting.shared.is_none();
    if apart && setting.host_pid <= std::process::id() as i32 {
        return Attempt::Closed("its number may be in use inside".into());
    }
    Attempt::succeeds(attack(setting.host_pid))
}
