//! Watching the system calls of a process that was started for it: ptrace(2).
//!
//! Every function is called by the thread that started the process; the kernel refuses others.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::check;

/// The bit that marks a stop as one for a system call (`PTRACE_O_TRACESYSGOOD`).
const SYSCALL_STOP: i32 = libc::SIGTRAP | 0x80;
const PTRACE_GET_SYSCALL_INFO: libc::c_uint = 0x420e;

/// A tracee that does not run at the moment, or never will again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It is about to make a system call.
    Entry {
        /// Its number.
        nr: u64,
        /// Its arguments.
        args: [u64; 6],
    },
    /// A system call has returned this; errors are negative.
    Exit(i64),
    /// A Unix signal is about to be delivered.
    Signal(i32),
    /// Something that needs nothing but to be resumed.
    Other,
    /// It is gone: exit code, or 128 and the Unix signal.
    Gone {
        /// The code.
        code: i32,
        /// The most memory it had, in bytes.
        memory: u64,
    },
}

/// Makes the command's process ask to be traced by this thread. It stops right after it was executed.
pub fn traced(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec this makes one system call, and touches no memory of the parent's.
    unsafe {
        command.pre_exec(|| {
            check(libc::ptrace(
                libc::PTRACE_TRACEME,
                0,
                std::ptr::null_mut::<libc::c_void>(),
                std::ptr::null_mut::<libc::c_void>(),
            ))
            .map(drop)
        })
    }
}

/// Runs this in the command's process between fork and exec. What it does must neither wait for a lock
/// nor for another thread: only this one lives there.
pub fn confined(
    command: &mut Command,
    mut confine: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
) {
    // SAFETY: the caller makes system calls only; allocation works because the C library's fork
    // leaves its allocator usable in the child.
    unsafe {
        command.pre_exec(move || {
            rustix::thread::set_no_new_privs(true)?;
            confine()
        });
    }
}

/// Makes a stopped tracee's children tracees too, and kills all of them if this thread ends.
pub fn follow(pid: i32) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_EXITKILL;
    request(libc::PTRACE_SETOPTIONS, pid, options as usize)
}

/// Lets a tracee go on to the next system call, and delivers a Unix signal (0: none).
pub fn resume(pid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, pid, signal as usize)
}

/// Waits until any tracee of this thread stops. None when there is none left.
pub fn wait() -> io::Result<Option<(i32, Stop)>> {
    let mut status = 0;
    // SAFETY: all-zero bytes are a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = loop {
        // SAFETY: both pointers are to live variables of the right types.
        let pid = unsafe {
            libc::wait4(
                -1,
                &raw mut status,
                libc::__WALL | libc::__WNOTHREAD,
                &raw mut usage,
            )
        };
        if pid >= 0 {
            break pid;
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
            error if error.kind() == io::ErrorKind::Interrupted => {}
            error => return Err(error),
        }
    };
    let gone = |code| {
        let memory = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
        Stop::Gone { code, memory }
    };
    let stop = if libc::WIFEXITED(status) {
        gone(libc::WEXITSTATUS(status))
    } else if libc::WIFSIGNALED(status) {
        gone(128 + libc::WTERMSIG(status))
    } else if libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == SYSCALL_STOP {
        syscall(pid)?
    } else if libc::WIFSTOPPED(status) && status >> 16 == 0 {
        Stop::Signal(libc::WSTOPSIG(status))
    } else {
        Stop::Other
    };
    Ok(Some((pid, stop)))
}

/// What the tracee asks of the kernel, or was answered (`struct ptrace_syscall_info`).
fn syscall(pid: i32) -> io::Result<Stop> {
    let mut info = [0_u64; 11];
    // SAFETY: the kernel writes at most as many bytes as it is told the buffer has.
    let length = unsafe {
        libc::ptrace(
            PTRACE_GET_SYSCALL_INFO as _,
            pid,
            std::mem::size_of_val(&info),
            info.as_mut_ptr(),
        )
    };
    match check(length) {
        Ok(_) => {}
        // It was killed meanwhile, and will be waited for.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(Stop::Other),
        Err(error) => return Err(error),
    }
    let [kind, _, _, first, args @ ..] = info;
    Ok(match kind & 0xff {
        1 => Stop::Entry {
            nr: first,
            args: [args[0], args[1], args[2], args[3], args[4], args[5]],
        },
        2 => Stop::Exit(first as i64),
        _ => Stop::Other,
    })
}

fn request(what: libc::c_uint, pid: i32, data: usize) -> io::Result<()> {
    // SAFETY: these requests take integers and touch no memory of ours.
    let done = unsafe { libc::ptrace(what as _, pid, 0_usize, data) };
    match check(done) {
        // It was killed meanwhile, and will be waited for.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
        other => other.map(drop),
    }
}
