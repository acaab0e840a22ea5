//! The groups profiles are made of: the calls by name, and the reason for each condition.
//!
//! Names that an architecture has not got are skipped there. What is in no group is denied, among
//! it whatever makes namespaces or mounts, reaches into other processes, loads code into the
//! kernel, sets clocks, or goes round the filter (`io_uring_*`).

use super::profile::Fate;
use super::rule::ArgTest;

/// Calls that belong together.
pub(super) struct Group {
    /// Allowed whatever the arguments: names between spaces.
    pub allow: &'static str,
    /// Allowed on conditions.
    pub conditional: &'static [Conditional],
}

/// One call whose fate is that of the first alternative whose tests all hold.
pub(super) struct Conditional {
    pub name: &'static str,
    pub when: &'static [(&'static [ArgTest], Fate)],
    pub otherwise: Fate,
}

/// The named profiles. A later group overrules an earlier one.
pub(super) const PROFILES: &[(&str, &[&Group])] = &[
    (
        "default",
        &[
            &RUN,
            &FILES,
            &MEMORY,
            &TIME,
            &SIGNALS,
            &EVENTS,
            &PROCESSES,
            &IDENTITY,
            &IPC,
            &SOCKETS,
            &CONFINEMENT,
        ],
    ),
    (
        "compute",
        &[
            // The last step before the program runs is its own `execve`, under this filter.
            &RUN,
            &EXEC,
            &THREADS,
            &FILES,
            &MEMORY,
            &TIME,
            &SIGNALS,
            &EVENTS,
            &CONFINEMENT,
        ],
    ),
    (
        // As `compute`, and it may call out, as far as `[network]` grants it.
        "network-client",
        &[
            &RUN,
            &EXEC,
            &THREADS,
            &FILES,
            &MEMORY,
            &TIME,
            &SIGNALS,
            &EVENTS,
            &SOCKETS,
            &CONFINEMENT,
        ],
    ),
    (
        "jit",
        &[
            &RUN,
            &FILES,
            &MEMORY,
            &JIT,
            &TIME,
            &SIGNALS,
            &EVENTS,
            &PROCESSES,
            &IDENTITY,
            &IPC,
            &SOCKETS,
            &CONFINEMENT,
        ],
    ),
];

/// What any program makes from its first instruction to its last.
const RUN: Group = Group {
    allow: "arch_prctl brk exit exit_group futex futex_requeue futex_wait futex_waitv futex_wake \
        get_robust_list getcpu getegid geteuid getgid getgroups getpgid getpgrp getpid \
        getppid getpriority getrandom getresgid getresuid getrlimit getrusage getsid gettid \
        getuid membarrier restart_syscall rseq rseq_slice_yield \
        sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr \
        sched_getparam sched_getscheduler sched_rr_get_interval sched_yield set_robust_list \
        set_tid_address setrlimit sysinfo umask uname",
    conditional: &[
        not_of_init("prlimit64"),
        // Query, or back to plain Linux. READ_IMPLIES_EXEC would make every mapping executable
        // past all other checks, and nothing ordinary gives up its address randomisation.
        Conditional {
            name: "personality",
            when: &[
                (&[ArgTest::low_is(0, 0)], Fate::Allow),
                (&[ArgTest::low_is(0, u32::MAX)], Fate::Allow),
            ],
            otherwise: Fate::Deny,
        },
        // A list, because new options appear: not in it are PR_SET_MM (rewrites what /proc tells),
        // PR_SET_PTRACER (loosens Yama), PR_SET_SPECULATION_CTRL (can turn mitigations off),
        // PR_SET_MEMORY_MERGE (shares pages with other sandboxes, a timing channel) and
        // PR_SET_SYSCALL_USER_DISPATCH (surface without use here). PR_SET_SECCOMP only tightens.
        Conditional {
            name: "prctl",
            when: &[
                (&[ArgTest::low_between(0, 1, 4)], Fate::Allow), // parent-death signal, dumpable
                (&[ArgTest::low_between(0, 7, 8)], Fate::Allow), // keep capabilities
                (&[ArgTest::low_between(0, 13, 16)], Fate::Allow), // timing, thread name
                (&[ArgTest::low_between(0, 21, 25)], Fate::Allow), // seccomp, bounding set, TSC (query)
                (&[ArgTest::low_is(0, 27)], Fate::Allow),          // securebits (query)
                (&[ArgTest::low_between(0, 29, 30)], Fate::Allow), // timer slack
                (&[ArgTest::low_between(0, 36, 42)], Fate::Allow), // subreaper, no_new_privs, huge pages
                (&[ArgTest::low_is(0, 47)], Fate::Allow),          // ambient capabilities
                (&[ArgTest::low_is(0, 52)], Fate::Allow),          // speculation (query)
                (&[ArgTest::low_between(0, 65, 66)], Fate::Allow), // MDWE
                (&[ArgTest::low_is(0, 0x5356_4d41)], Fate::Allow), // PR_SET_VMA: names for mappings
                (&[ArgTest::low_is(0, 0x4155_5856)], Fate::Allow), // PR_GET_AUXV
            ],
            otherwise: Fate::Deny,
        },
    ],
};

/// Files and directories: which ones, Landlock and the mounts decide.
const FILES: Group = Group {
    allow: "access cachestat chdir chmod chown close close_range copy_file_range creat dup dup2 \
        dup3 faccessat faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fchmodat2 \
        fchown fchownat fcntl fdatasync fgetxattr file_getattr file_setattr flistxattr flock \
        fremovexattr fsetxattr fstat fstatfs fsync ftruncate futimesat getcwd getdents \
        getdents64 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 \
        inotify_rm_watch lchown lgetxattr link linkat listxattr listxattrat llistxattr \
        lremovexattr lseek lsetxattr lstat mkdir mkdirat newfstatat open openat openat2 pipe \
        pipe2 pread64 preadv preadv2 pwrite64 pwritev pwritev2 read readahead readlink \
        readlinkat readv removexattr removexattrat rename renameat renameat2 rmdir sendfile \
        setxattr setxattrat splice stat statfs statx symlink symlinkat sync sync_file_range \
        syncfs tee truncate unlink unlinkat utime utimensat utimes vmsplice write writev",
    conditional: &[
        // Pipes, plain files and sockets; never a device.
        Conditional {
            name: "mknod",
            when: &[
                (
                    &[ArgTest::Low {
                        index: 1,
                        mask: FILE_TYPE,
                        value: 0,
                    }],
                    Fate::Allow,
                ),
                (
                    &[ArgTest::Low {
                        index: 1,
                        mask: FILE_TYPE,
                        value: libc::S_IFREG,
                    }],
                    Fate::Allow,
                ),
                (
                    &[ArgTest::Low {
                        index: 1,
                        mask: FILE_TYPE,
                        value: libc::S_IFIFO,
                    }],
                    Fate::Allow,
                ),
                (
                    &[ArgTest::Low {
                        index: 1,
                        mask: FILE_TYPE,
                        value: libc::S_IFSOCK,
                    }],
                    Fate::Allow,
                ),
            ],
            otherwise: Fate::Deny,
        },
        Conditional {
            name: "mknodat",
            when: &[
                (
                    &[ArgTest::Low {
                        index: 2,
                        mask: FILE_TYPE,
                        value: 0,
                    }],
                    Fate::Allow,
                ),
                (
                    &[ArgTest::Low {
                        index: 2,
                        mask: FILE_TYPE,
                        value: libc::S_IFREG,
                    }],
                    Fate::Allow,
                ),
                (
                    &[ArgTest::Low {
                        index: 2,
                        mask: FILE_TYPE,
                        value: libc::S_IFIFO,
                    }],
                    Fate::Allow,
                ),
                (
                    &[ArgTest::Low {
                        index: 2,
                        mask: FILE_TYPE,
                        value: libc::S_IFSOCK,
                    }],
                    Fate::Allow,
                ),
            ],
            otherwise: Fate::Deny,
        },
        // Not the commands that type into a terminal (TIOCSTI), paste into a console (TIOCLINUX),
        // take the console (TIOCCONS), load a line discipline (TIOCSETD), or hand out other
        // namespaces (NS_GET_*, type 0xb7). The kernel takes the command as 32 bits, and so
        // does the test: TIOCSTI with something in the upper half is TIOCSTI.
        Conditional {
            name: "ioctl",
            when: &[
                (&[ArgTest::low_is(1, 0x5412)], Fate::Deny),
                (&[ArgTest::low_is(1, 0x541c)], Fate::Deny),
                (&[ArgTest::low_is(1, 0x541d)], Fate::Deny),
                (&[ArgTest::low_is(1, 0x5423)], Fate::Deny),
                (
                    &[ArgTest::Low {
                        index: 1,
                        mask: IOCTL_TYPE,
                        value: 0xb700,
                    }],
                    Fate::Deny,
                ),
            ],
            otherwise: Fate::Allow,
        },
    ],
};

/// Memory: never writable and executable at once.
///
/// No `memfd_create`: an anonymous file is written first and can then be mapped executable, past every
/// path rule. The seal against execution (and the sysctl `vm.memfd_noexec`) stops `execve` only, not
/// `mmap`, and a filter cannot see what kind of file a mapping is of.
const MEMORY: Group = Group {
    allow: "get_mempolicy madvise map_shadow_stack mincore mlock mlock2 mlockall mremap mseal \
        msync munlock munlockall munmap pkey_alloc pkey_free",
    conditional: &[
        // Executable mappings only of private pages, so that no second, writable view of the same
        // pages can exist. The dynamic loader maps libraries privately.
        Conditional {
            name: "mmap",
            when: &[
                (&[NOT_EXECUTABLE], Fate::Allow),
                (
                    &[
                        NOT_WRITABLE,
                        ArgTest::Low {
                            index: 3,
                            mask: libc::MAP_TYPE as u32,
                            value: libc::MAP_PRIVATE as u32,
                        },
                    ],
                    Fate::Allow,
                ),
            ],
            otherwise: Fate::Deny,
        },
        Conditional {
            name: "mprotect",
            when: &[
                (&[NOT_EXECUTABLE], Fate::Allow),
                (&[NOT_WRITABLE], Fate::Allow),
            ],
            otherwise: Fate::Deny,
        },
        Conditional {
            name: "pkey_mprotect",
            when: &[
                (&[NOT_EXECUTABLE], Fate::Allow),
                (&[NOT_WRITABLE], Fate::Allow),
            ],
            otherwise: Fate::Deny,
        },
    ],
};

/// Writing code and executing it, as a just-in-time compiler does (V8, the JVM): private memory only, so that
/// there is still no second view of it, and no file is executed that could be written.
const JIT: Group = Group {
    allow: "mprotect pkey_mprotect",
    conditional: &[Conditional {
        name: "mmap",
        when: &[
            (&[NOT_EXECUTABLE], Fate::Allow),
            (
                &[ArgTest::Low {
                    index: 3,
                    mask: libc::MAP_TYPE as u32,
                    value: libc::MAP_PRIVATE as u32,
                }],
                Fate::Allow,
            ),
        ],
        otherwise: Fate::Deny,
    }],
};

/// Reading clocks and waiting; also what the vsyscall page turns into (time, gettimeofday, getcpu).
const TIME: Group = Group {
    allow: "alarm clock_getres clock_gettime clock_nanosleep getitimer gettimeofday nanosleep \
        setitimer time timer_create timer_delete timer_getoverrun timer_gettime \
        timer_settime timerfd_create timerfd_gettime timerfd_settime times",
    conditional: &[],
};

/// Signals: who can be reached, the pid namespace and Landlock's scope decide.
const SIGNALS: Group = Group {
    allow: "kill pause pidfd_open pidfd_send_signal rt_sigaction rt_sigpending rt_sigprocmask \
        rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo \
        sigaltstack signalfd signalfd4 tgkill tkill",
    conditional: &[],
};

/// Waiting for many things at once.
const EVENTS: Group = Group {
    allow: "epoll_create epoll_create1 epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd \
        eventfd2 poll ppoll pselect6 select",
    conditional: &[],
};

/// Starting processes and threads, and waiting for them.
const PROCESSES: Group = Group {
    allow: "execve fork ioprio_get setpgid setsid vfork wait4 waitid",
    conditional: &[
        not_of_init("sched_setaffinity"),
        not_of_init("sched_setattr"),
        not_of_init("sched_setparam"),
        not_of_init("sched_setscheduler"),
        SETPRIORITY,
        // As `setpriority`, with numbers of its own: IOPRIO_WHO_PROCESS is 1, IOPRIO_WHO_USER 3.
        Conditional {
            name: "ioprio_set",
            when: &[
                (
                    &[ArgTest::low_is(0, 1), ArgTest::low_is(1, INIT)],
                    Fate::Deny,
                ),
                (&[ArgTest::low_is(0, 3)], Fate::Deny),
            ],
            otherwise: Fate::Allow,
        },
        // clone3 has its flags behind a pointer and is denied with ENOSYS: callers come back here.
        Conditional {
            name: "clone",
            when: &[(
                &[ArgTest::low_without(
                    0,
                    NEW_NAMESPACES | libc::CLONE_UNTRACED as u32,
                )],
                Fate::Allow,
            )],
            otherwise: Fate::Deny,
        },
        // Running a descriptor runs what no path names.
        Conditional {
            name: "execveat",
            when: &[(
                &[ArgTest::low_without(4, libc::AT_EMPTY_PATH as u32)],
                Fate::Allow,
            )],
            otherwise: Fate::Deny,
        },
    ],
};

/// Not the init's priority: not by its number (PRIO_PROCESS), nor by its user's (PRIO_USER).
const SETPRIORITY: Conditional = Conditional {
    name: "setpriority",
    when: &[
        (
            &[
                ArgTest::low_is(0, libc::PRIO_PROCESS),
                ArgTest::low_is(1, INIT),
            ],
            Fate::Deny,
        ),
        (&[ArgTest::low_is(0, libc::PRIO_USER)], Fate::Deny),
    ],
    otherwise: Fate::Allow,
};

/// A call that changes the process its first argument names: any but the sandbox's init, which does
/// the supervisor's bidding and, having the workload's user id, would not be safe from it.
const fn not_of_init(name: &'static str) -> Conditional {
    Conditional {
        name,
        when: OF_INIT,
        otherwise: Fate::Allow,
    }
}

const OF_INIT: &[(&[ArgTest], Fate)] = &[(&[ArgTest::low_is(0, INIT)], Fate::Deny)];

/// The one `execve` that starts a program which is to start no others.
const EXEC: Group = Group {
    allow: "execve",
    conditional: &[],
};

/// New threads of the same process, and nothing else.
const THREADS: Group = Group {
    allow: "",
    conditional: &[
        not_of_init("sched_setaffinity"),
        SETPRIORITY,
        Conditional {
            name: "clone",
            when: &[(
                &[ArgTest::Low {
                    index: 0,
                    mask: libc::CLONE_THREAD as u32 | NEW_NAMESPACES | libc::CLONE_UNTRACED as u32,
                    value: libc::CLONE_THREAD as u32,
                }],
                Fate::Allow,
            )],
            otherwise: Fate::Deny,
        },
    ],
};

/// Changing one's own ids and capabilities: without privilege there is only down.
const IDENTITY: Group = Group {
    allow: "capget capset setfsgid setfsuid setgid setgroups setregid setresgid setresuid \
        setreuid setuid",
    conditional: &[],
};

/// What reaches beyond a workload that has no namespaces of its own: System V IPC, message queues, and
/// changes of what a file is like, of a file that is named and not opened.
pub(super) const SHARED: &str = "mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget msgrcv \
    msgsnd semctl semget semop semtimedop shmat shmctl shmdt shmget \
    chmod fchmodat fchmodat2 chown lchown fchownat setxattr lsetxattr setxattrat \
    removexattr lremovexattr removexattrat utime utimes futimesat";

/// Calls that change the process which their first argument names; 0 is the caller.
pub(super) const OF_A_PROCESS: [&str; 5] = [
    "prlimit64",
    "sched_setaffinity",
    "sched_setattr",
    "sched_setparam",
    "sched_setscheduler",
];

/// System V IPC and message queues, private to the sandbox by its ipc namespace.
const IPC: Group = Group {
    allow: "mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedsend mq_unlink msgctl msgget \
        msgrcv msgsnd semctl semget semop semtimedop shmctl shmdt shmget",
    conditional: &[Conditional {
        name: "shmat",
        when: &[(&[ArgTest::low_without(2, SHM_EXEC)], Fate::Allow)],
        otherwise: Fate::Deny,
    }],
};

/// Unix sockets freely; sockets of every other family through the supervisor.
const SOCKETS: Group = Group {
    allow: "accept accept4 getpeername getsockname getsockopt recvfrom recvmmsg recvmsg shutdown",
    conditional: &[
        Conditional {
            name: "socket",
            when: &[(&[ArgTest::low_is(0, libc::AF_UNIX as u32)], Fate::Allow)],
            otherwise: Fate::Deny,
        },
        Conditional {
            name: "socketpair",
            when: &[(&[ArgTest::low_is(0, libc::AF_UNIX as u32)], Fate::Allow)],
            otherwise: Fate::Deny,
        },
        // Addresses are behind pointers, so whoever hands out sockets has to look at them. Without
        // a supervisor there are only Unix sockets, and Landlock and the mounts confine those.
        Conditional {
            name: "connect",
            when: &[],
            otherwise: Fate::Broker,
        },
        Conditional {
            name: "bind",
            when: &[],
            otherwise: Fate::Broker,
        },
        // Listening on a socket without an address gives it one.
        Conditional {
            name: "listen",
            when: &[],
            otherwise: Fate::Broker,
        },
        Conditional {
            name: "sendto",
            when: &[(
                &[
                    ArgTest::Full {
                        index: 4,
                        mask: u64::MAX,
                        value: 0,
                    },
                    ArgTest::low_without(3, libc::MSG_FASTOPEN as u32),
                ],
                Fate::Allow,
            )],
            otherwise: Fate::Broker,
        },
        // With MSG_FASTOPEN sending is connecting. An address in the message header cannot be seen
        // here: a datagram socket must not be handed out unless something else checks where it sends.
        Conditional {
            name: "sendmsg",
            when: &[(
                &[ArgTest::low_without(2, libc::MSG_FASTOPEN as u32)],
                Fate::Allow,
            )],
            otherwise: Fate::Deny,
        },
        Conditional {
            name: "sendmmsg",
            when: &[(
                &[ArgTest::low_without(3, libc::MSG_FASTOPEN as u32)],
                Fate::Allow,
            )],
            otherwise: Fate::Deny,
        },
        // Brokered sockets are the supervisor's: no filter programs in them, no change of device,
        // no upper-layer protocol, no repair mode, no packet filter tables.
        Conditional {
            name: "setsockopt",
            when: &[
                (&[SOL_SOCKET, ArgTest::low_between(2, 25, 26)], Fate::Deny), // device, filter
                (&[SOL_SOCKET, ArgTest::low_between(2, 50, 52)], Fate::Deny), // BPF filters
                (&[SOL_SOCKET, ArgTest::low_is(2, 62)], Fate::Deny),          // device by index
                (&[ArgTest::low_is(1, 6), ArgTest::low_is(2, 19)], Fate::Deny), // TCP_REPAIR
                (&[ArgTest::low_is(1, 6), ArgTest::low_is(2, 31)], Fate::Deny), // TCP_ULP
                (
                    &[ArgTest::low_is(1, 0), ArgTest::low_between(2, 64, 127)],
                    Fate::Deny,
                ), // iptables
                (
                    &[ArgTest::low_is(1, 41), ArgTest::low_between(2, 64, 65)],
                    Fate::Deny,
                ), // ip6tables
            ],
            otherwise: Fate::Allow,
        },
    ],
};

/// A rule that holds where the supervisor brokers TCP connections.
pub(super) struct NetworkRule {
    pub name: &'static str,
    pub when: &'static [(&'static [ArgTest], Fate)],
    pub otherwise: Fate,
    /// Whether the profile's own rule decides what none of these alternatives does.
    pub keeps_others: bool,
}

/// What a brokered network is for a filter. The reasons: `isolation::network`.
pub(super) const NETWORK: &[NetworkRule] = &[
    NetworkRule {
        name: "socket",
        when: &[
            (&[INET, STREAM, ArgTest::low_is(2, 0)], Fate::Ask),
            (&[INET, STREAM, ArgTest::low_is(2, 6)], Fate::Ask),
            (&[INET6, STREAM, ArgTest::low_is(2, 0)], Fate::Ask),
            (&[INET6, STREAM, ArgTest::low_is(2, 6)], Fate::Ask),
            // In the sandbox's own network, for the resolver.
            (&[INET, DATAGRAM, ArgTest::low_is(2, 0)], Fate::Allow),
            (&[INET, DATAGRAM, ArgTest::low_is(2, 17)], Fate::Allow),
            (&[INET6, DATAGRAM, ArgTest::low_is(2, 0)], Fate::Allow),
            (&[INET6, DATAGRAM, ArgTest::low_is(2, 17)], Fate::Allow),
            // C libraries ask the kernel for its addresses so, and do without.
            (&[ArgTest::low_is(0, libc::AF_NETLINK as u32)], Fate::Refuse),
        ],
        otherwise: Fate::Deny,
        keeps_others: true,
    },
    NetworkRule {
        name: "connect",
        when: &[],
        otherwise: Fate::Ask,
        keeps_others: false,
    },
    // Listening on a socket without an address gives it one, of the host.
    NetworkRule {
        name: "listen",
        when: &[],
        otherwise: Fate::Ask,
        keeps_others: false,
    },
    // With MSG_FASTOPEN sending is connecting. Otherwise TCP does not look at an address.
    NetworkRule {
        name: "sendto",
        when: &[(
            &[ArgTest::low_with(3, libc::MSG_FASTOPEN as u32)],
            Fate::Deny,
        )],
        otherwise: Fate::Allow,
        keeps_others: false,
    },
    NetworkRule {
        name: "sendmsg",
        when: &[(
            &[ArgTest::low_with(2, libc::MSG_FASTOPEN as u32)],
            Fate::Deny,
        )],
        otherwise: Fate::Allow,
        keeps_others: false,
    },
    NetworkRule {
        name: "sendmmsg",
        when: &[(
            &[ArgTest::low_with(3, libc::MSG_FASTOPEN as u32)],
            Fate::Deny,
        )],
        otherwise: Fate::Allow,
        keeps_others: false,
    },
    // Only what changes how bytes travel; never where to, through what, or as whose.
    NetworkRule {
        name: "setsockopt",
        when: &[
            (&[SOL_SOCKET, ArgTest::low_between(2, 25, 26)], Fate::Deny), // device, filter
            (&[SOL_SOCKET, ArgTest::low_is(2, 36)], Fate::Deny),          // mark
            (&[SOL_SOCKET, ArgTest::low_between(2, 50, 52)], Fate::Deny), // BPF filters
            (&[SOL_SOCKET, ArgTest::low_is(2, 62)], Fate::Deny),          // device by index
            (&[SOL_TCP, ArgTest::low_is(2, 19)], Fate::Deny),             // TCP_REPAIR
            (&[SOL_TCP, ArgTest::low_is(2, 31)], Fate::Deny),             // TCP_ULP
            (&[SOL_IP, ArgTest::low_is(2, 4)], Fate::Deny), // IP_OPTIONS: source routes
            (&[SOL_IP, ArgTest::low_between(2, 64, 127)], Fate::Deny), // iptables
            (&[SOL_IPV6, ArgTest::low_is(2, 57)], Fate::Deny), // IPV6_RTHDR: source routes
            (&[SOL_IPV6, ArgTest::low_between(2, 64, 65)], Fate::Deny), // ip6tables
            (&[SOL_SOCKET, ArgTest::low_is(2, 2)], Fate::Allow), // SO_REUSEADDR
            (&[SOL_SOCKET, ArgTest::low_between(2, 6, 10)], Fate::Allow), // buffers, keep-alive
            (&[SOL_SOCKET, ArgTest::low_between(2, 12, 13)], Fate::Allow), // priority, linger
            (&[SOL_SOCKET, ArgTest::low_between(2, 15, 16)], Fate::Allow), // SO_REUSEPORT, SO_PASSCRED
            (&[SOL_SOCKET, ArgTest::low_between(2, 18, 21)], Fate::Allow), // thresholds, timeouts
            (&[SOL_SOCKET, ArgTest::low_is(2, 29)], Fate::Allow),          // SO_TIMESTAMP
            (&[SOL_SOCKET, ArgTest::low_between(2, 34, 35)], Fate::Allow), // SO_PASSSEC, SO_TIMESTAMPNS
            (&[SOL_SOCKET, ArgTest::low_is(2, 37)], Fate::Allow),          // SO_TIMESTAMPING
            (&[SOL_SOCKET, ArgTest::low_is(2, 42)], Fate::Allow),          // SO_PEEK_OFF
            (&[SOL_SOCKET, ArgTest::low_is(2, 47)], Fate::Allow),          // SO_MAX_PACING_RATE
            (&[SOL_SOCKET, ArgTest::low_is(2, 60)], Fate::Allow),          // SO_ZEROCOPY
            (&[SOL_SOCKET, ArgTest::low_between(2, 63, 67)], Fate::Allow), // as above, 64-bit time
            (&[SOL_SOCKET, ArgTest::low_is(2, 76)], Fate::Allow),          // SO_PASSPIDFD
            (&[SOL_SOCKET, ArgTest::low_is(2, 83)], Fate::Allow),          // SO_PASSRIGHTS
            (&[SOL_TCP, ArgTest::low_between(2, 1, 10)], Fate::Allow), // TCP_NODELAY … TCP_WINDOW_CLAMP
            (&[SOL_TCP, ArgTest::low_between(2, 12, 13)], Fate::Allow), // TCP_QUICKACK, TCP_CONGESTION
            (&[SOL_TCP, ArgTest::low_between(2, 16, 18)], Fate::Allow), // thin streams, user timeout
            (&[SOL_TCP, ArgTest::low_is(2, 25)], Fate::Allow),          // TCP_NOTSENT_LOWAT
            (&[SOL_TCP, ArgTest::low_is(2, 36)], Fate::Allow),          // TCP_INQ
            (&[SOL_IP, ArgTest::low_between(2, 1, 2)], Fate::Allow),    // IP_TOS, IP_TTL
            (&[SOL_IP, ArgTest::low_is(2, 8)], Fate::Allow),            // IP_PKTINFO: receiving
            (&[SOL_IP, ArgTest::low_between(2, 10, 13)], Fate::Allow),  // MTU, errors, TTL, TOS
            (&[SOL_IP, ArgTest::low_is(2, 24)], Fate::Allow),           // IP_BIND_ADDRESS_NO_PORT
            (&[SOL_IPV6, ArgTest::low_is(2, 16)], Fate::Allow),         // IPV6_UNICAST_HOPS
            (&[SOL_IPV6, ArgTest::low_is(2, 23)], Fate::Allow),         // IPV6_MTU_DISCOVER
            (&[SOL_IPV6, ArgTest::low_between(2, 25, 26)], Fate::Allow), // errors, IPV6_V6ONLY
            (&[SOL_IPV6, ArgTest::low_is(2, 49)], Fate::Allow),         // IPV6_RECVPKTINFO
            (&[SOL_IPV6, ArgTest::low_is(2, 51)], Fate::Allow),         // IPV6_RECVHOPLIMIT
            (&[SOL_IPV6, ArgTest::low_between(2, 66, 67)], Fate::Allow), // traffic class
            (
                &[ArgTest::low_is(1, 17), ArgTest::low_between(2, 103, 104)],
                Fate::Allow,
            ), // UDP segments
        ],
        otherwise: Fate::Refuse,
        keeps_others: false,
    },
    NetworkRule {
        name: "ioctl",
        when: &[
            // Owner, urgent mark, time stamp.
            (&[ArgTest::low_between(1, 0x8901, 0x8907)], Fate::Allow),
            // Everything else with sockets: interfaces, routes, bridges of the network they are of.
            (
                &[ArgTest::Low {
                    index: 1,
                    mask: IOCTL_TYPE,
                    value: 0x8900,
                }],
                Fate::Refuse,
            ),
        ],
        otherwise: Fate::Deny,
        keeps_others: true,
    },
];

const INET: ArgTest = ArgTest::low_is(0, libc::AF_INET as u32);
const INET6: ArgTest = ArgTest::low_is(0, libc::AF_INET6 as u32);
/// The second argument of socket(2) without its flags.
const STREAM: ArgTest = ArgTest::Low {
    index: 1,
    mask: 0xf,
    value: libc::SOCK_STREAM as u32,
};
const DATAGRAM: ArgTest = ArgTest::Low {
    index: 1,
    mask: 0xf,
    value: libc::SOCK_DGRAM as u32,
};
const SOL_IP: ArgTest = ArgTest::low_is(1, 0);
const SOL_TCP: ArgTest = ArgTest::low_is(1, 6);
const SOL_IPV6: ArgTest = ArgTest::low_is(1, 41);

/// Confining oneself further.
const CONFINEMENT: Group = Group {
    allow: "landlock_add_rule landlock_create_ruleset landlock_restrict_self",
    conditional: &[
        // Not with a listener of its own: the kernel lets the newer filter's listener answer first,
        // and one listener per process tree is all there is.
        Conditional {
            name: "seccomp",
            when: &[(
                &[ArgTest::full_without(
                    1,
                    libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                )],
                Fate::Allow,
            )],
            otherwise: Fate::Deny,
        },
    ],
};

/// Calls from before Linux 5.1 whose users fall back on `ENOSYS`, and on nothing else.
pub(super) const FALL_BACK_ON_ENOSYS: &[&str] = &[
    "copy_file_range",
    "getrandom",
    "io_pgetevents",
    "io_setup",
    "membarrier",
    "mlock2",
    "pkey_alloc",
    "preadv2",
    "pwritev2",
    "renameat2",
    "rseq",
    "statx",
    "uretprobe",
    "uprobe",
];

/// The mapping is not to be executable (argument 2 of `mmap` and `mprotect`).
pub(super) const NOT_EXECUTABLE: ArgTest = ArgTest::low_without(2, libc::PROT_EXEC as u32);
const NOT_WRITABLE: ArgTest = ArgTest::low_without(2, libc::PROT_WRITE as u32);

/// Every flag of `clone` that makes a namespace. Of time namespaces only `unshare` makes one.
const NEW_NAMESPACES: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u32;

/// Process id of the sandbox's init, as the workload sees it.
const INIT: u32 = 1;
const FILE_TYPE: u32 = libc::S_IFMT;
const SHM_EXEC: u32 = 0o100_000;
/// The bits of an ioctl command that say whose it is (`_IOC_TYPE`).
const IOCTL_TYPE: u32 = 0xff00;
const SOL_SOCKET: ArgTest = ArgTest::low_is(1, libc::SOL_SOCKET as u32);
