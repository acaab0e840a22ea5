//! The names and numbers of the system calls of this architecture.
//!
//! Follows the kernel's `arch/x86/entry/syscalls/syscall_64.tbl` and `scripts/syscall.tbl` (Linux
//! 7.0). The whole table is here, allowed or not, so that a message can name what was denied.

/// Returns the name of a system call of this architecture.
pub fn syscall_name(nr: u32) -> Option<&'static str> {
    TABLE.iter().find_map(|(first, names)| {
        let index = usize::try_from(nr.checked_sub(*first)?).ok()?;
        names.get(index).copied()
    })
}

/// Returns the number of a system call on this architecture.
pub fn syscall_number(name: &str) -> Option<u32> {
    syscalls().find_map(|(nr, known)| (known == name).then_some(nr))
}

/// Lists every system call of this architecture, in the order of their numbers.
pub fn syscalls() -> impl Iterator<Item = (u32, &'static str)> {
    TABLE
        .iter()
        .flat_map(|(first, names)| (*first..).zip(names.iter().copied()))
}

/// Returns the highest number in the table: what is above it, this release has never heard of.
pub fn highest_syscall() -> u32 {
    syscalls().map(|(nr, _)| nr).max().unwrap_or(0)
}

/// Tells whether any architecture has a system call of this name.
///
/// Profiles are written once for all of them, and `open` or `fork` do not exist everywhere.
pub fn is_syscall_name(name: &str) -> bool {
    [X86_64, AARCH64]
        .iter()
        .flat_map(|table| table.iter())
        .any(|(_, names)| names.contains(&name))
}

/// Rows of consecutive numbers: the first, and the names from there on.
type Table = &'static [(u32, &'static [&'static str])];

#[cfg(target_arch = "x86_64")]
const TABLE: Table = X86_64;
#[cfg(target_arch = "aarch64")]
const TABLE: Table = AARCH64;

#[rustfmt::skip]
const X86_64: Table = &[
    (0, &["read", "write", "open", "close", "stat", "fstat", "lstat", "poll"]),
    (8, &["lseek", "mmap", "mprotect", "munmap", "brk", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn"]),
    (16, &["ioctl", "pread64", "pwrite64", "readv", "writev", "access", "pipe", "select"]),
    (24, &["sched_yield", "mremap", "msync", "mincore", "madvise", "shmget", "shmat", "shmctl"]),
    (32, &["dup", "dup2", "pause", "nanosleep", "getitimer", "alarm", "setitimer", "getpid"]),
    (40, &["sendfile", "socket", "connect", "accept", "sendto", "recvfrom", "sendmsg", "recvmsg"]),
    (48, &["shutdown", "bind", "listen", "getsockname", "getpeername", "socketpair", "setsockopt", "getsockopt"]),
    (56, &["clone", "fork", "vfork", "execve", "exit", "wait4", "kill", "uname"]),
    (64, &["semget", "semop", "semctl", "shmdt", "msgget", "msgsnd", "msgrcv", "msgctl"]),
    (72, &["fcntl", "flock", "fsync", "fdatasync", "truncate", "ftruncate", "getdents", "getcwd"]),
    (80, &["chdir", "fchdir", "rename", "mkdir", "rmdir", "creat", "link", "unlink"]),
    (88, &["symlink", "readlink", "chmod", "fchmod", "chown", "fchown", "lchown", "umask"]),
    (96, &["gettimeofday", "getrlimit", "getrusage", "sysinfo", "times", "ptrace", "getuid", "syslog"]),
    (104, &["getgid", "setuid", "setgid", "geteuid", "getegid", "setpgid", "getppid", "getpgrp"]),
    (112, &["setsid", "setreuid", "setregid", "getgroups", "setgroups", "setresuid", "getresuid", "setresgid"]),
    (120, &["getresgid", "getpgid", "setfsuid", "setfsgid", "getsid", "capget", "capset", "rt_sigpending"]),
    (128, &["rt_sigtimedwait", "rt_sigqueueinfo", "rt_sigsuspend", "sigaltstack", "utime", "mknod", "uselib", "personality"]),
    (136, &["ustat", "statfs", "fstatfs", "sysfs", "getpriority", "setpriority", "sched_setparam", "sched_getparam"]),
    (144, &["sched_setscheduler", "sched_getscheduler", "sched_get_priority_max", "sched_get_priority_min", "sched_rr_get_interval", "mlock", "munlock", "mlockall"]),
    (152, &["munlockall", "vhangup", "modify_ldt", "pivot_root", "_sysctl", "prctl", "arch_prctl", "adjtimex"]),
    (160, &["setrlimit", "chroot", "sync", "acct", "settimeofday", "mount", "umount2", "swapon"]),
    (168, &["swapoff", "reboot", "sethostname", "setdomainname", "iopl", "ioperm", "create_module", "init_module"]),
    (176, &["delete_module", "get_kernel_syms", "query_module", "quotactl", "nfsservctl", "getpmsg", "putpmsg", "afs_syscall"]),
    (184, &["tuxcall", "security", "gettid", "readahead", "setxattr", "lsetxattr", "fsetxattr", "getxattr"]),
    (192, &["lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr", "removexattr", "lremovexattr", "fremovexattr"]),
    (200, &["tkill", "time", "futex", "sched_setaffinity", "sched_getaffinity", "set_thread_area", "io_setup", "io_destroy"]),
    (208, &["io_getevents", "io_submit", "io_cancel", "get_thread_area", "lookup_dcookie", "epoll_create", "epoll_ctl_old", "epoll_wait_old"]),
    (216, &["remap_file_pages", "getdents64", "set_tid_address", "restart_syscall", "semtimedop", "fadvise64", "timer_create", "timer_settime"]),
    (224, &["timer_gettime", "timer_getoverrun", "timer_delete", "clock_settime", "clock_gettime", "clock_getres", "clock_nanosleep", "exit_group"]),
    (232, &["epoll_wait", "epoll_ctl", "tgkill", "utimes", "vserver", "mbind", "set_mempolicy", "get_mempolicy"]),
    (240, &["mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive", "mq_notify", "mq_getsetattr", "kexec_load", "waitid"]),
    (248, &["add_key", "request_key", "keyctl", "ioprio_set", "ioprio_get", "inotify_init", "inotify_add_watch", "inotify_rm_watch"]),
    (256, &["migrate_pages", "openat", "mkdirat", "mknodat", "fchownat", "futimesat", "newfstatat", "unlinkat"]),
    (264, &["renameat", "linkat", "symlinkat", "readlinkat", "fchmodat", "faccessat", "pselect6", "ppoll"]),
    (272, &["unshare", "set_robust_list", "get_robust_list", "splice", "tee", "sync_file_range", "vmsplice", "move_pages"]),
    (280, &["utimensat", "epoll_pwait", "signalfd", "timerfd_create", "eventfd", "fallocate", "timerfd_settime", "timerfd_gettime"]),
    (288, &["accept4", "signalfd4", "eventfd2", "epoll_create1", "dup3", "pipe2", "inotify_init1", "preadv"]),
    (296, &["pwritev", "rt_tgsigqueueinfo", "perf_event_open", "recvmmsg", "fanotify_init", "fanotify_mark", "prlimit64", "name_to_handle_at"]),
    (304, &["open_by_handle_at", "clock_adjtime", "syncfs", "sendmmsg", "setns", "getcpu", "process_vm_readv", "process_vm_writev"]),
    (312, &["kcmp", "finit_module", "sched_setattr", "sched_getattr", "renameat2", "seccomp", "getrandom", "memfd_create"]),
    (320, &["kexec_file_load", "bpf", "execveat", "userfaultfd", "membarrier", "mlock2", "copy_file_range", "preadv2"]),
    (328, &["pwritev2", "pkey_mprotect", "pkey_alloc", "pkey_free", "statx", "io_pgetevents", "rseq", "uretprobe"]),
    (336, &["uprobe"]),
    (424, &["pidfd_send_signal", "io_uring_setup", "io_uring_enter", "io_uring_register", "open_tree", "move_mount", "fsopen", "fsconfig"]),
    (432, &["fsmount", "fspick", "pidfd_open", "clone3", "close_range", "openat2", "pidfd_getfd", "faccessat2"]),
    (440, &["process_madvise", "epoll_pwait2", "mount_setattr", "quotactl_fd", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "memfd_secret"]),
    (448, &["process_mrelease", "futex_waitv", "set_mempolicy_home_node", "cachestat", "fchmodat2", "map_shadow_stack", "futex_wake", "futex_wait"]),
    (456, &["futex_requeue", "statmount", "listmount", "lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules", "mseal", "setxattrat"]),
    (464, &["getxattrat", "listxattrat", "removexattrat", "open_tree_attr", "file_getattr", "file_setattr", "listns", "rseq_slice_yield"]),
];

#[rustfmt::skip]
const AARCH64: Table = &[
    (0, &["io_setup", "io_destroy", "io_submit", "io_cancel", "io_getevents", "setxattr", "lsetxattr", "fsetxattr"]),
    (8, &["getxattr", "lgetxattr", "fgetxattr", "listxattr", "llistxattr", "flistxattr", "removexattr", "lremovexattr"]),
    (16, &["fremovexattr", "getcwd", "lookup_dcookie", "eventfd2", "epoll_create1", "epoll_ctl", "epoll_pwait", "dup"]),
    (24, &["dup3", "fcntl", "inotify_init1", "inotify_add_watch", "inotify_rm_watch", "ioctl", "ioprio_set", "ioprio_get"]),
    (32, &["flock", "mknodat", "mkdirat", "unlinkat", "symlinkat", "linkat", "renameat", "umount2"]),
    (40, &["mount", "pivot_root", "nfsservctl", "statfs", "fstatfs", "truncate", "ftruncate", "fallocate"]),
    (48, &["faccessat", "chdir", "fchdir", "chroot", "fchmod", "fchmodat", "fchownat", "fchown"]),
    (56, &["openat", "close", "vhangup", "pipe2", "quotactl", "getdents64", "lseek", "read"]),
    (64, &["write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "sendfile"]),
    (72, &["pselect6", "ppoll", "signalfd4", "vmsplice", "splice", "tee", "readlinkat", "newfstatat"]),
    (80, &["fstat", "sync", "fsync", "fdatasync", "sync_file_range", "timerfd_create", "timerfd_settime", "timerfd_gettime"]),
    (88, &["utimensat", "acct", "capget", "capset", "personality", "exit", "exit_group", "waitid"]),
    (96, &["set_tid_address", "unshare", "futex", "set_robust_list", "get_robust_list", "nanosleep", "getitimer", "setitimer"]),
    (104, &["kexec_load", "init_module", "delete_module", "timer_create", "timer_gettime", "timer_getoverrun", "timer_settime", "timer_delete"]),
    (112, &["clock_settime", "clock_gettime", "clock_getres", "clock_nanosleep", "syslog", "ptrace", "sched_setparam", "sched_setscheduler"]),
    (120, &["sched_getscheduler", "sched_getparam", "sched_setaffinity", "sched_getaffinity", "sched_yield", "sched_get_priority_max", "sched_get_priority_min", "sched_rr_get_interval"]),
    (128, &["restart_syscall", "kill", "tkill", "tgkill", "sigaltstack", "rt_sigsuspend", "rt_sigaction", "rt_sigprocmask"]),
    (136, &["rt_sigpending", "rt_sigtimedwait", "rt_sigqueueinfo", "rt_sigreturn", "setpriority", "getpriority", "reboot", "setregid"]),
    (144, &["setgid", "setreuid", "setuid", "setresuid", "getresuid", "setresgid", "getresgid", "setfsuid"]),
    (152, &["setfsgid", "times", "setpgid", "getpgid", "getsid", "setsid", "getgroups", "setgroups"]),
    (160, &["uname", "sethostname", "setdomainname", "getrlimit", "setrlimit", "getrusage", "umask", "prctl"]),
    (168, &["getcpu", "gettimeofday", "settimeofday", "adjtimex", "getpid", "getppid", "getuid", "geteuid"]),
    (176, &["getgid", "getegid", "gettid", "sysinfo", "mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive"]),
    (184, &["mq_notify", "mq_getsetattr", "msgget", "msgctl", "msgrcv", "msgsnd", "semget", "semctl"]),
    (192, &["semtimedop", "semop", "shmget", "shmctl", "shmat", "shmdt", "socket", "socketpair"]),
    (200, &["bind", "listen", "accept", "connect", "getsockname", "getpeername", "sendto", "recvfrom"]),
    (208, &["setsockopt", "getsockopt", "shutdown", "sendmsg", "recvmsg", "readahead", "brk", "munmap"]),
    (216, &["mremap", "add_key", "request_key", "keyctl", "clone", "execve", "mmap", "fadvise64"]),
    (224, &["swapon", "swapoff", "mprotect", "msync", "mlock", "munlock", "mlockall", "munlockall"]),
    (232, &["mincore", "madvise", "remap_file_pages", "mbind", "get_mempolicy", "set_mempolicy", "migrate_pages", "move_pages"]),
    (240, &["rt_tgsigqueueinfo", "perf_event_open", "accept4", "recvmmsg"]),
    (260, &["wait4", "prlimit64", "fanotify_init", "fanotify_mark", "name_to_handle_at", "open_by_handle_at", "clock_adjtime", "syncfs"]),
    (268, &["setns", "sendmmsg", "process_vm_readv", "process_vm_writev", "kcmp", "finit_module", "sched_setattr", "sched_getattr"]),
    (276, &["renameat2", "seccomp", "getrandom", "memfd_create", "bpf", "execveat", "userfaultfd", "membarrier"]),
    (284, &["mlock2", "copy_file_range", "preadv2", "pwritev2", "pkey_mprotect", "pkey_alloc", "pkey_free", "statx"]),
    (292, &["io_pgetevents", "rseq", "kexec_file_load"]),
    (424, &["pidfd_send_signal", "io_uring_setup", "io_uring_enter", "io_uring_register", "open_tree", "move_mount", "fsopen", "fsconfig"]),
    (432, &["fsmount", "fspick", "pidfd_open", "clone3", "close_range", "openat2", "pidfd_getfd", "faccessat2"]),
    (440, &["process_madvise", "epoll_pwait2", "mount_setattr", "quotactl_fd", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "memfd_secret"]),
    (448, &["process_mrelease", "futex_waitv", "set_mempolicy_home_node", "cachestat", "fchmodat2", "map_shadow_stack", "futex_wake", "futex_wait"]),
    (456, &["futex_requeue", "statmount", "listmount", "lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules", "mseal", "setxattrat"]),
    (464, &["getxattrat", "listxattrat", "removexattrat", "open_tree_attr", "file_getattr", "file_setattr", "listns", "rseq_slice_yield"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_those_of_libc() {
        for (name, nr) in [
            ("read", libc::SYS_read),
            ("openat", libc::SYS_openat),
            ("clone3", libc::SYS_clone3),
            ("seccomp", libc::SYS_seccomp),
            ("landlock_restrict_self", libc::SYS_landlock_restrict_self),
            ("pidfd_getfd", libc::SYS_pidfd_getfd),
            ("io_uring_setup", libc::SYS_io_uring_setup),
            ("mseal", libc::SYS_mseal),
            ("process_vm_readv", libc::SYS_process_vm_readv),
            ("umount2", libc::SYS_umount2),
        ] {
            assert_eq!(syscall_number(name).map(i64::from), Some(nr), "{name}");
            assert_eq!(u32::try_from(nr).ok().and_then(syscall_name), Some(name));
        }
    }

    #[test]
    fn every_number_and_name_is_there_once() {
        let listed: Vec<_> = syscalls().collect();
        assert!(listed.is_sorted_by(|a, b| a.0 < b.0));
        for (nr, name) in &listed {
            assert_eq!(syscall_number(name), Some(*nr), "{name}");
            assert_eq!(syscall_name(*nr), Some(*name));
        }
        assert_eq!(syscall_name(highest_syscall() + 1), None);
        assert!(listed.len() > 300);
    }
}
