//! Filters in a real kernel: children of this process load one and try to get round it.
#![allow(clippy::unwrap_used)]

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc;

use super::*;
use crate::sys::probe::{As, Outcome, in_child};
use crate::syscall::table::syscall_number;
use crate::syscall::{Action, FilterSpec, Profile, SyscallRule};

fn no_new_privs() -> Result<(), i32> {
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: integers only.
    errno(libc::c_long::from(unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, on, unused, unused, unused)
    }))
}

fn errno(result: libc::c_long) -> Result<(), i32> {
    match result {
        -1 => Err(io::Error::last_os_error().raw_os_error().unwrap()),
        _ => Ok(()),
    }
}

/// Makes a call by name in a child under the filter.
fn call(filter: &Program, name: &str, args: [u64; 5]) -> Outcome {
    raw(
        filter,
        libc::c_long::from(syscall_number(name).unwrap()),
        args,
    )
}

fn raw(filter: &Program, nr: libc::c_long, [a, b, c, d, e]: [u64; 5]) -> Outcome {
    under(filter, || {
        // SAFETY: the calls tried take integers, or are refused before a pointer is looked at; a
        // child that came to harm would be told as such.
        errno(unsafe { libc::syscall(nr, a, b, c, d, e, 0u64) })
    })
}

fn under(filter: &Program, work: impl FnOnce() -> Result<(), i32>) -> Outcome {
    in_child(As::Self_, || {
        no_new_privs()?;
        load(filter, LoadFlags::default()).map_err(|e| e.raw_os_error().unwrap())?;
        work()
    })
}

fn default() -> Program {
    Profile::named("default").unwrap().compile(false).unwrap()
}

#[test]
fn the_kernel_refuses_what_the_default_profile_denies() {
    let filter = default();
    let (read, write, exec) = (1u64, 2u64, 4u64);
    let (shared, private) = (0x21u64, 0x22u64); // anonymous
    let refused = |name, args, errno| {
        assert_eq!(
            call(&filter, name, args),
            Outcome::Refused(errno),
            "{name} {args:x?}"
        );
    };
    let new_user = libc::CLONE_NEWUSER as u64;
    refused("unshare", [new_user, 0, 0, 0, 0], libc::EPERM);
    refused(
        "clone",
        [new_user | libc::SIGCHLD as u64, 0, 0, 0, 0],
        libc::EPERM,
    );
    refused("clone3", [0, 88, 0, 0, 0], libc::ENOSYS);
    refused("setns", [0, 0, 0, 0, 0], libc::EPERM);
    refused("mount", [0; 5], libc::EPERM);
    refused("fsopen", [0; 5], libc::ENOSYS);
    refused("ptrace", [0; 5], libc::EPERM);
    refused("process_vm_readv", [0; 5], libc::EPERM);
    refused("pidfd_getfd", [0; 5], libc::ENOSYS);
    refused("kcmp", [0; 5], libc::EPERM);
    refused("bpf", [0; 5], libc::EPERM);
    refused("io_uring_setup", [1, 0, 0, 0, 0], libc::ENOSYS);
    refused("userfaultfd", [1, 0, 0, 0, 0], libc::EPERM);
    refused("add_key", [0; 5], libc::EPERM);
    refused("keyctl", [0; 5], libc::EPERM);
    refused("perf_event_open", [0; 5], libc::EPERM);
    refused("open_by_handle_at", [0; 5], libc::EPERM);
    refused("personality", [0x0040_0000, 0, 0, 0, 0], libc::EPERM);
    refused("personality", [0x0004_0000, 0, 0, 0, 0], libc::EPERM);
    refused("ioctl", [0, 0x5412, 0, 0, 0], libc::EPERM);
    refused("ioctl", [0, 0x1_0000_5412, 0, 0, 0], libc::EPERM);
    refused("ioctl", [0, 0x541c, 0, 0, 0], libc::EPERM);
    refused("ioctl", [0, 0xb701, 0, 0, 0], libc::EPERM);
    refused(
        "mmap",
        [0, 4096, read | write | exec, private, u64::MAX],
        libc::EACCES,
    );
    refused(
        "mmap",
        [0, 4096, read | exec, shared, u64::MAX],
        libc::EACCES,
    );
    refused("mprotect", [0, 4096, write | exec, 0, 0], libc::EACCES);
    refused("shmat", [0, 0, 0o100_000, 0, 0], libc::EACCES);
    refused(
        "memfd_create",
        [c"x".as_ptr() as u64, 0, 0, 0, 0],
        libc::EACCES,
    );
    let sealed = u64::from(libc::MFD_NOEXEC_SEAL);
    refused(
        "memfd_create",
        [c"x".as_ptr() as u64, sealed, 0, 0, 0],
        libc::EACCES,
    );
    // The sandbox's init, by number and by user.
    for name in [
        "prlimit64",
        "sched_setaffinity",
        "sched_setattr",
        "sched_setparam",
        "sched_setscheduler",
    ] {
        refused(name, [1, 0, 0, 0, 0], libc::EPERM);
    }
    refused(
        "setpriority",
        [libc::PRIO_PROCESS as u64, 1, 0, 0, 0],
        libc::EPERM,
    );
    refused(
        "setpriority",
        [libc::PRIO_USER as u64, 0, 0, 0, 0],
        libc::EPERM,
    );
    refused("ioprio_set", [1, 1, 0x4004, 0, 0], libc::EPERM);
    refused("ioprio_set", [3, 0, 0x4004, 0, 0], libc::EPERM);
    refused(
        "execveat",
        [0, c"".as_ptr() as u64, 0, 0, 0x1000],
        libc::EACCES,
    );
    refused(
        "socket",
        [libc::AF_INET as u64, 1, 0, 0, 0],
        libc::EAFNOSUPPORT,
    );
    refused(
        "socket",
        [libc::AF_VSOCK as u64, 1, 0, 0, 0],
        libc::EAFNOSUPPORT,
    );
    refused(
        "socket",
        [libc::AF_NETLINK as u64, 3, 9, 0, 0],
        libc::EAFNOSUPPORT,
    );
    refused("prctl", [35, 0, 0, 0, 0], libc::EPERM);
    refused(
        "mknodat",
        [u64::MAX, c"/x".as_ptr() as u64, 0o020_600, 0, 0],
        libc::EPERM,
    );
    refused("seccomp", [1, 8, 0, 0, 0], libc::EPERM);
    assert_eq!(raw(&filter, 5000, [0; 5]), Outcome::Refused(libc::ENOSYS));
}

#[test]
fn the_kernel_runs_what_the_default_profile_allows() {
    let filter = default();
    let done = |name, args| assert_eq!(call(&filter, name, args), Outcome::Done, "{name}");
    done("getpid", [0; 5]);
    done("mmap", [0, 4096, 5, 0x22, u64::MAX]);
    done("mmap", [0, 4096, 3, 0x21, u64::MAX]);
    done("prlimit64", [0, libc::RLIMIT_CORE.into(), 0, 0, 0]);
    done("setpriority", [libc::PRIO_PROCESS as u64, 0, 19, 0, 0]);
    done("personality", [0xffff_ffff, 0, 0, 0, 0]);
    done("socket", [libc::AF_UNIX as u64, 1, 0, 0, 0]);
    done("prctl", [38, 1, 0, 0, 0]);
    done("landlock_create_ruleset", [0, 0, 1, 0, 0]);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn other_calling_conventions_are_killed() {
    let getppid_i386 = || {
        let mut result = 64i64; // getppid of i386
        // SAFETY: the 32-bit entry clobbers r8 to r11 at most, and this call touches no memory.
        unsafe {
            std::arch::asm!(
                "int 0x80", inlateout("rax") result,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        if result > 0 {
            Ok(())
        } else {
            Err(-result as i32)
        }
    };
    let filter = default();
    assert_eq!(under(&filter, getppid_i386), Outcome::Killed(libc::SIGSYS));
    // The same call is fine without the filter, or this test would prove nothing.
    match in_child(As::Self_, getppid_i386) {
        Outcome::Done => {}
        other => println!("this kernel has no 32-bit entry: {other:?}"),
    }
    let x32_getpid = libc::c_long::from(0x4000_0000 | 39);
    assert_eq!(
        raw(&filter, x32_getpid, [0; 5]),
        Outcome::Killed(libc::SIGSYS)
    );
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_vsyscall_page_gets_the_same_verdict_as_the_call() {
    if !std::fs::read_to_string("/proc/self/maps")
        .unwrap()
        .contains("[vsyscall]")
    {
        println!("skipped: this kernel has no vsyscall page");
        return;
    }
    let time = || {
        // SAFETY: the page is mapped, as looked up above, and has time() at this address.
        let time: extern "C" fn(usize) -> i64 =
            unsafe { std::mem::transmute(0xffff_ffff_ff60_0400_usize) };
        let result = time(0);
        if result > 0 {
            Ok(())
        } else {
            Err(-result as i32)
        }
    };
    assert_eq!(under(&default(), time), Outcome::Done);
    let denying = Profile::named("default").unwrap().deny(["time"]).unwrap();
    assert_eq!(
        under(&denying.compile(false).unwrap(), time),
        Outcome::Refused(libc::EPERM)
    );
}

#[test]
fn ordinary_programs_run_under_the_default_profile() {
    let dir = tempfile::tempdir().unwrap();
    for script in [
        "seq 9 | sort -r | awk '{ n += $1 } END { print n }' | grep 45 && ls -l / | wc -l && date",
        "command -v python3 || exit 0; python3 -c 'import subprocess, threading, sqlite3, socket
t = threading.Thread(target=print); t.start(); t.join()
sqlite3.connect(\"db\").execute(\"create table t (x)\")
assert subprocess.run([\"true\"]).returncode == 0
a, b = socket.socketpair(); a.send(b\"x\"); assert b.recv(1) == b\"x\"'",
        "command -v git || exit 0; git init -q repo && cd repo && git status --short",
        "command -v sqlite3 || exit 0; sqlite3 other 'create table t (x); insert into t values (1);'",
    ] {
        let filter = default();
        let mut command = Command::new("/bin/sh");
        command.args(["-euc", script]).current_dir(dir.path());
        // SAFETY: between fork and exec only two system calls are made.
        unsafe {
            command.pre_exec(move || {
                no_new_privs().map_err(io::Error::from_raw_os_error)?;
                load(&filter, LoadFlags::default())
            });
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
    }
}

#[test]
fn a_notified_call_gets_the_supervisors_answer() {
    let mut spec = FilterSpec::new(Action::Allow);
    for name in ["getppid", "socket", "getpriority", "getsid"] {
        spec.rules.insert(
            syscall_number(name).unwrap(),
            SyscallRule::always(Action::Notify),
        );
    }
    let filter = spec.compile().unwrap();
    let (send, listeners) = mpsc::channel();
    // SAFETY: integers only. The answer is 0 where the session's leader is outside the pid namespace.
    let session = unsafe { libc::syscall(libc::SYS_getsid, 0) };
    // A filter is a thread's, and so is what is called from here on.
    let caller = std::thread::spawn(move || {
        no_new_privs().unwrap();
        let flags = LoadFlags {
            wait_killable: true,
            ..LoadFlags::default()
        };
        let listener = load_with_listener(&filter, flags).unwrap();
        let second = load_with_listener(&filter, flags).unwrap_err();
        assert_eq!(
            second.raw_os_error(),
            Some(libc::EBUSY),
            "one listener is all there is"
        );
        send.send(listener).unwrap();
        // SAFETY: integers only, in all four.
        let call = |nr| unsafe { libc::syscall(nr, libc::AF_INET, libc::SOCK_STREAM, 7) };
        assert_eq!(call(libc::SYS_getppid), 4242);
        let fd = i32::try_from(call(libc::SYS_socket)).unwrap();
        // SAFETY: the supervisor has put this descriptor into our table.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        std::io::Read::read_to_string(&mut std::fs::File::from(fd), &mut String::new()).unwrap();
        assert_eq!(errno(call(libc::SYS_getpriority)), Err(libc::EXDEV));
        // SAFETY: integers only.
        let answer = unsafe { libc::syscall(libc::SYS_getsid, 0) };
        assert_eq!(answer, session, "the kernel answers");
    });

    let listener = listeners.recv().unwrap();
    let listener = listener.as_fd();
    wake_synchronously(listener).unwrap();
    let next = || {
        let call = receive(listener).unwrap();
        assert!(id_is_valid(listener, call.id));
        assert!(call.pid > 0);
        call
    };
    let call = next();
    assert_eq!(i64::from(call.data.nr), libc::SYS_getppid);
    respond(listener, call.id, Answer::Value(4242)).unwrap();
    let again = respond(listener, call.id, Answer::Value(1)).unwrap_err();
    assert!(matches!(
        again.raw_os_error(),
        Some(libc::ENOENT | libc::EINPROGRESS)
    ));

    let call = next();
    assert_eq!(call.data.args[0] as u32, libc::AF_INET as u32);
    let file = std::fs::File::open("/proc/self/cmdline").unwrap();
    let other = add_fd(listener, call.id, file.as_fd(), true).unwrap();
    let number = respond_with_fd(listener, call.id, file.as_fd(), true).unwrap();
    assert!(other > 2 && number > 2 && other != number);

    let call = next();
    assert_eq!(call.data.args[2] as u32, 7);
    respond(listener, call.id, Answer::Errno(libc::EXDEV)).unwrap();
    let call = next();
    respond(listener, call.id, Answer::Continue).unwrap();
    caller.join().unwrap();
    assert!(!id_is_valid(listener, call.id));
}

#[test]
fn a_call_nobody_answers_fails_when_the_listener_is_closed() {
    let mut spec = FilterSpec::new(Action::Allow);
    spec.rules.insert(
        syscall_number("getppid").unwrap(),
        SyscallRule::always(Action::Notify),
    );
    let filter = spec.compile().unwrap();
    let outcome = in_child(As::Self_, || {
        no_new_privs()?;
        drop(load_with_listener(&filter, LoadFlags::default()).map_err(|_| libc::EIO)?);
        // SAFETY: takes nothing.
        errno(unsafe { libc::syscall(libc::SYS_getppid) })
    });
    assert_eq!(outcome, Outcome::Refused(libc::ENOSYS));
}

#[test]
fn the_kernel_knows_what_we_build_on() {
    assert_eq!(notification_sizes().unwrap(), (80, 24, 64));
    assert!(action_is_available(libc::SECCOMP_RET_USER_NOTIF));
    assert!(!action_is_available(0x1234_0000));
    assert!(flags_are_known(libc::SECCOMP_FILTER_FLAG_TSYNC));
    assert!(!flags_are_known(1 << 20));
}
