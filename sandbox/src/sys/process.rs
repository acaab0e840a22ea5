//! Making processes, and what a process gives up before it runs code it does not trust.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::process::Pid;

use super::check;

/// Which namespaces a new process is born into, as `CLONE_NEW*` bits of clone(2).
pub type NamespaceFlags = u64;

/// The side of a fork that returned.
#[derive(Debug)]
pub enum Forked {
    /// This is the new process.
    Child,
    /// This is the caller; the child has this process id, and this descriptor refers to it for ever.
    Parent {
        /// Process id as the caller sees it.
        pid: Pid,
        /// pidfd of the child, close-on-exec.
        pidfd: OwnedFd,
    },
}

/// Layout of `struct clone_args`, `CLONE_ARGS_SIZE_VER2` (88 bytes): see clone3(2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Forks into new namespaces and, if given, straight into a cgroup (v2).
///
/// Being born in the cgroup costs no grace period, which a later write of `cgroup.procs` would.
///
/// # Errors
///
/// What clone3(2) answers: `EPERM` when the host forbids one of the namespaces; `ENOSYS` when a filter around
/// this process hides the call, and a cgroup was given.
pub fn fork_into(namespaces: NamespaceFlags, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Forked> {
    let mut args = CloneArgs {
        flags: namespaces,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= 0x2_0000_0000; // CLONE_INTO_CGROUP
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    fork_with(args)
}

/// Forks a child that shares this process' descriptor table until it executes a program.
///
/// A descriptor the child opens (the seccomp listener, above all) is then the parent's too, without
/// being passed by a system call that the child's own filter might refuse.
///
/// # Errors
///
/// What clone3(2) answers.
pub fn fork_sharing_descriptors() -> io::Result<Forked> {
    fork_with(CloneArgs {
        flags: libc::CLONE_FILES as u64,
        ..CloneArgs::default()
    })
}

/// Forks a child of this process' parent, which is told of its end as of this process' own.
///
/// # Errors
///
/// What clone3(2) answers.
pub fn fork_sibling() -> io::Result<Forked> {
    fork_with(CloneArgs {
        flags: libc::CLONE_PARENT as u64,
        ..CloneArgs::default()
    })
}

fn fork_with(mut args: CloneArgs) -> io::Result<Forked> {
    let mut pidfd: libc::c_int = -1;
    args.flags |= libc::CLONE_PIDFD as u64;
    if args.flags & libc::CLONE_PARENT as u64 == 0 {
        args.exit_signal = libc::SIGCHLD as u64;
    }
    args.pidfd = &raw mut pidfd as u64;
    // SAFETY: without CLONE_VM the child gets a copy of this address space and returns from the same
    // call, as with fork(2). Only the spawner and the processes it makes call this; they have one
    // thread, so no lock can be held by a thread that the child does not have.
    let forked =
        check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) });
    let pid = match forked {
        // A sandbox around this one hides it, since it cannot see its flags. The older call has all of them
        // but those for cgroups.
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) && args.cgroup == 0 => {
            let flags = args.flags | args.exit_signal;
            let (none, at) = (0usize, &raw mut pidfd);
            // SAFETY: as above; without a stack of its own the child goes on with its copy of this one, and
            // the third argument is where the pidfd is stored (CLONE_PIDFD), on every architecture.
            check(unsafe { libc::syscall(libc::SYS_clone, flags, none, at, none, none) })?
        }
        forked => forked?,
    };
    if pid == 0 {
        return Ok(Forked::Child);
    }
    let pid = Pid::from_raw(pid as i32).ok_or(io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel stored a fresh descriptor here (CLONE_PIDFD) that nobody else owns; it is read
    // through a pointer because the compiler did not see the write.
    let pidfd = unsafe { OwnedFd::from_raw_fd((&raw const pidfd).read_volatile()) };
    Ok(Forked::Parent { pid, pidfd })
}

/// Ends this process at once, without running destructors or exit handlers of the parent's copy.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns and touches no memory.
    unsafe { libc::_exit(code) }
}

/// Takes over a descriptor that the forked workload opened in the shared table, or that was copied into
/// this thread's own.
pub fn adopt(number: i32) -> OwnedFd {
    // SAFETY: the workload gave up its own handle to this number before it told it, and both processes
    // share one table; or the table is a copy, whose descriptors no value owns. So the descriptor is open
    // and this is its one owner.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Closes every descriptor from `first` on. See close_range(2).
///
/// # Errors
///
/// What close_range(2) answers.
pub fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: integers only. The caller owns no descriptor in a Rust value yet: the spawner calls this
    // first of all.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) })?;
    Ok(())
}

/// Gives this thread a descriptor table of its own: a copy, which the other threads do not see change.
///
/// # Errors
///
/// What unshare(2) answers.
pub fn own_descriptors() -> io::Result<()> {
    // SAFETY: the argument is an integer. Descriptors keep their numbers and stay valid in both tables;
    // the caller sees to it that each table closes its own copies.
    check(libc::c_long::from(unsafe {
        libc::unshare(libc::CLONE_FILES)
    }))
    .map(drop)
}

/// Closes every descriptor of this thread's own table but `kept`, stdin, stdout and stderr.
///
/// # Errors
///
/// What close_range(2) answers.
pub fn close_all_but(kept: i32) -> io::Result<()> {
    let kept = kept.cast_unsigned();
    for (first, last) in [(3, kept.saturating_sub(1)), ((kept + 1).max(3), u32::MAX)] {
        if first <= last {
            // SAFETY: integers only. The table is a copy, in which no Rust value owns a descriptor but
            // the caller's one.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
        }
    }
    Ok(())
}

/// How a thread is served: its share of the CPU, and how soon it gets it.
///
/// `struct sched_attr` in its first version, 48 bytes; see sched_setattr(2). For an ordinary thread the
/// runtime is the length of its slices in nanoseconds, from Linux 6.12 on (0: the default).
#[derive(Clone, Debug, Default)]
#[repr(C)]
pub struct Service {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// The shortest slice there is, in nanoseconds.
const SHORT_SLICE: u64 = 100_000;
/// The most urgent nice value.
const FIRST: i32 = -20;

impl Service {
    /// How a thread is served; 0 is the calling one.
    ///
    /// # Errors
    ///
    /// `Unsupported` when it has a policy other than `SCHED_OTHER`.
    fn of(thread: i32) -> io::Result<Self> {
        let mut service = Self::default();
        let size = size_of::<Self>();
        // SAFETY: the kernel writes at most `size` bytes to one live structure.
        check(unsafe {
            libc::syscall(libc::SYS_sched_getattr, thread, &raw mut service, size, 0)
        })?;
        if service.policy != libc::SCHED_OTHER as u32 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(service)
    }

    /// Lets the calling thread be served so, and what it starts from now on.
    ///
    /// # Errors
    ///
    /// `EPERM` when an ordinary user asks for a more urgent nice value.
    pub fn apply(&self) -> io::Result<()> {
        self.apply_to(0)
    }

    fn apply_to(&self, thread: i32) -> io::Result<()> {
        // SAFETY: the kernel reads one live structure.
        check(unsafe { libc::syscall(libc::SYS_sched_setattr, thread, &raw const *self, 0) })
            .map(drop)
    }

    /// Has a thread be served so again, as far as that is permitted.
    fn restore(self, thread: i32) {
        // Who is not root may give the policy back, but not let it be inherited again. Or it has ended.
        let _ = self.apply_to(thread).or_else(|_| {
            let flags = self.flags | RESET_ON_FORK;
            Self { flags, ..self }.apply_to(thread)
        });
    }
}

/// As long as it lives, the thread that began it runs soon when it wakes, also while somebody else uses
/// the whole CPU: in short slices, and, unless an ordinary user asks, with all of the CPU that it needs.
/// What it starts meanwhile is served as usual.
#[derive(Debug)]
pub struct Prompt(Option<Service>);

impl Prompt {
    /// Begins, as far as that is permitted.
    pub fn begin() -> Self {
        Self(hurry(RESET_ON_FORK))
    }
}

impl Drop for Prompt {
    fn drop(&mut self) {
        if let Some(before) = self.0.take() {
            before.restore(0);
        }
    }
}

/// As long as it lives, a thread comes before all that have no real-time policy.
///
/// Needs the right to real-time scheduling (sched(7)); without it nothing changes.
#[derive(Debug)]
pub struct First {
    thread: i32,
    before: Option<Service>,
}

impl First {
    /// Begins, for a thread of this process; 0 is the calling one.
    pub fn begin(thread: i32) -> Self {
        let first = |before: Service| {
            let first = Service {
                policy: libc::SCHED_FIFO as u32,
                flags: before.flags | RESET_ON_FORK,
                priority: 1,
                ..before.clone()
            };
            first.apply_to(thread).map(|()| before)
        };
        Self {
            thread,
            before: Service::of(thread).and_then(first).ok(),
        }
    }
}

impl Drop for First {
    fn drop(&mut self) {
        if let Some(before) = self.before.take() {
            before.restore(self.thread);
        }
    }
}

/// See `sched_flags` in sched_setattr(2).
const RESET_ON_FORK: u64 = 1;

/// Puts this thread before others, and what it starts: short slices, and, unless an ordinary user asks,
/// all of the CPU that it needs. Gives how it was served before; `None` when nothing was changed.
pub fn come_first() -> Option<Service> {
    hurry(0)
}

fn hurry(flags: u64) -> Option<Service> {
    let before = Service::of(0).ok()?;
    let first = Service {
        flags: before.flags | flags,
        nice: FIRST,
        runtime: SHORT_SLICE,
        ..before.clone()
    };
    // An ordinary user who says that it is not to be inherited could not take that back.
    let short = Service {
        flags: before.flags,
        nice: before.nice,
        ..first.clone()
    };
    first.apply().or_else(|_| short.apply()).ok()?;
    Some(before)
}

/// Marks every descriptor from `first` on to be closed by exec. See close_range(2).
///
/// # Errors
///
/// What close_range(2) answers.
pub fn close_from_on_exec(first: u32) -> io::Result<()> {
    // SAFETY: integers only, and nothing is closed now.
    check(unsafe {
        libc::syscall(
            libc::SYS_close_range,
            first,
            u32::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        )
    })?;
    Ok(())
}

/// Makes `id` the real, effective and saved group and user of this single-threaded process, and
/// leaves all supplementary groups when `drop_groups`.
///
/// # Errors
///
/// `EPERM` without the capabilities, `EINVAL` when the id is not mapped in the user namespace.
pub fn become_user(uid: u32, gid: u32, drop_groups: bool) -> io::Result<()> {
    if drop_groups {
        // SAFETY: a count of zero makes the kernel read no memory. See setgroups(2).
        check(unsafe { libc::syscall(libc::SYS_setgroups, 0usize, std::ptr::null::<u32>()) })?;
    }
    // SAFETY: integers only. See setresgid(2); the raw call suffices for a process with one thread.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    // SAFETY: integers only. See setresuid(2).
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
    Ok(())
}

/// Moves this process into new namespaces of the given kinds. See unshare(2).
///
/// # Errors
///
/// `EPERM` when the host forbids it.
pub fn unshare(namespaces: NamespaceFlags) -> io::Result<()> {
    // SAFETY: integers only; the process has one thread, so nothing shared is pulled from under it.
    check(unsafe { libc::syscall(libc::SYS_unshare, namespaces) })?;
    Ok(())
}

/// Drops every capability for good: bounding, ambient, effective, permitted and inheritable sets.
///
/// # Errors
///
/// Any error means that some capability may be left; the caller must not go on.
pub fn drop_capabilities() -> io::Result<()> {
    lock_capabilities()?;
    clear_capabilities()
}

/// Keeps this process and all that it starts from ever getting a capability that it has not: bounding and
/// ambient sets, securebits. Those that it has it keeps.
///
/// # Errors
///
/// `EPERM` without `CAP_SETPCAP`. Any error means that some may still be got.
pub fn lock_capabilities() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: integers only. See PR_CAPBSET_DROP in prctl(2).
        let dropped = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if dropped < 0 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                // Past the last capability this kernel knows.
                Some(libc::EINVAL) => break,
                _ => return Err(error),
            }
        }
    }
    clear_ambient()?;
    // No gain by user id 0, no keeping over a change of user id, and all of it locked.
    // Bits: NOROOT 0, NO_SETUID_FIXUP 2, KEEP_CAPS (lock only) 5, NO_CAP_AMBIENT_RAISE 6, with their
    // locks one bit above each. See capabilities(7), "The securebits flags".
    let securebits: libc::c_ulong = 0b1110_1111;
    // SAFETY: integers only. See PR_SET_SECUREBITS in prctl(2).
    check(i64::from(unsafe {
        libc::prctl(libc::PR_SET_SECUREBITS, securebits, 0, 0, 0)
    }))?;
    Ok(())
}

fn clear_ambient() -> io::Result<()> {
    // SAFETY: integers only. See PR_CAP_AMBIENT_CLEAR_ALL in prctl(2).
    check(i64::from(unsafe {
        libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        )
    }))
    .map(drop)
}

/// Gives up the ambient, effective, permitted and inheritable capabilities. What is executed later gets
/// none under `no_new_privs`.
///
/// # Errors
///
/// Any error means that some capability may be left; the caller must not go on.
pub fn clear_capabilities() -> io::Result<()> {
    clear_ambient()?;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let none = [[0u32; 3]; 2];
    // SAFETY: `header` and two `__user_cap_data_struct` (version 3) of zeros outlive the call. See
    // capset(2).
    check(unsafe { libc::syscall(libc::SYS_capset, std::ptr::from_ref(&header), none.as_ptr()) })?;
    Ok(())
}

/// Sets one resource limit, soft and hard, of this process. See setrlimit(2).
///
/// # Errors
///
/// `EPERM` when the hard limit would rise.
pub fn set_limit(resource: u32, value: u64) -> io::Result<()> {
    let limit = libc::rlimit64 {
        rlim_cur: value,
        rlim_max: value,
    };
    // SAFETY: `limit` outlives the call; a null old-limit pointer is allowed.
    check(unsafe {
        libc::syscall(
            libc::SYS_prlimit64,
            0,
            resource,
            std::ptr::from_ref(&limit),
            std::ptr::null::<u8>(),
        )
    })?;
    Ok(())
}

/// Sends a signal to every process it may reach but itself and process 1; in a process namespace of
/// one's own, to the whole namespace. See kill(2).
pub fn signal_everyone(signal: i32) {
    // SAFETY: integers only.
    unsafe { libc::kill(-1, signal) };
}

/// Replaces this process by a program. Returns only on failure.
///
/// # Errors
///
/// What execve(2) answers.
pub fn execute(program: &CString, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end with a null pointer and, like the strings, outlive the call.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Gives this program the role of the spawner when it was started as one, before `main` runs.
///
/// A program that links the crate can then be its own spawner without a line in its `main`, and the
/// spawner starts before the program's runtime has made threads or read its arguments.
#[used]
#[unsafe(link_section = ".init_array")]
static SPAWNER_ENTRY: extern "C" fn(
    libc::c_int,
    *const *const libc::c_char,
    *const *const libc::c_char,
) = spawner_entry;

extern "C" fn spawner_entry(
    count: libc::c_int,
    arguments: *const *const libc::c_char,
    _environment: *const *const libc::c_char,
) {
    if count != 1 || arguments.is_null() {
        return;
    }
    // SAFETY: the C runtime calls functions of .init_array with argc, argv and envp; with argc of 1
    // the first pointer is a string that ends with a zero byte.
    let name = unsafe { std::ffi::CStr::from_ptr(*arguments) };
    if name.to_bytes() == crate::isolation::spawner::NAME.as_bytes() {
        exit_now(crate::isolation::spawner::main());
    }
    if name.to_bytes() == crate::isolation::microvm::warden::NAME.as_bytes() {
        exit_now(crate::isolation::microvm::warden::main());
    }
}
