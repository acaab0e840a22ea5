//! Trying out what the kernel lets this process do, in children that end at once.
//!
//! The process that asks may have threads, so a child does nothing between `clone` and `_exit` but
//! system calls: no allocation, no lock, no destructor that matters. Children are made without a
//! termination signal, so that the process gets no `SIGCHLD` and its own `wait` does not see them;
//! each is waited for here.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use super::seccomp::{self, LoadFlags};
use crate::syscall::Program;

/// How a try in a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The kernel let it.
    Done,
    /// The kernel refused with this error number.
    Refused(i32),
    /// The child was ended by this signal.
    Killed(i32),
    /// The child could not be made or its end not be seen.
    Unknown,
}

/// Who a child is when it tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    /// With the rights of this process.
    Self_,
    /// As the user `nobody`, if this process may become that; else as it is.
    Nobody,
}

/// Tries to make namespaces (`CLONE_NEW*`), all in one call.
pub fn namespaces(flags: i32, who: As) -> Outcome {
    in_child(who, || syscall(unshare(flags)))
}

/// Tries to make a user namespace, to be root in it, and to use that: to change a mount in it.
///
/// Where AppArmor restricts user namespaces, making one succeeds and only its use is refused.
pub fn usable_user_namespace(who: As) -> Outcome {
    in_child(who, || {
        let outside = effective_user();
        syscall(unshare(libc::CLONE_NEWUSER))?;
        let mut map = [0u8; 32];
        let mut rest = &mut map[..];
        io::Write::write_fmt(&mut rest, format_args!("0 {outside} 1")).map_err(|_| libc::EIO)?;
        let left = rest.len();
        let length = map.len() - left;
        write_file(c"/proc/self/uid_map", &map[..length])?;
        syscall(unshare(libc::CLONE_NEWNS))?;
        syscall(make_private())
    })
}

/// Tries to mount `/proc` with only its process part in a new pid and mount namespace.
pub fn proc_mount(extra: i32, who: As) -> Outcome {
    in_child(who, || {
        syscall(unshare(extra | libc::CLONE_NEWNS | libc::CLONE_NEWPID))?;
        // Only a child is in the new pid namespace.
        match in_child(As::Self_, || {
            syscall(make_private())?;
            syscall(mount_proc())
        }) {
            Outcome::Done => Ok(()),
            Outcome::Refused(errno) => Err(errno),
            _ => Err(libc::ECHILD),
        }
    })
}

/// Tries to open a file, `O_RDWR` if it is to be written.
pub fn open(path: &CStr, write: bool, who: As) -> Outcome {
    in_child(who, || {
        let mode = if write { libc::O_RDWR } else { libc::O_RDONLY };
        // SAFETY: the path is a live C string.
        syscall(unsafe { libc::open(path.as_ptr(), mode | libc::O_CLOEXEC) })
    })
}

/// Tries to seize a child of its own with `ptrace` and these options (`PTRACE_O_*`).
pub fn ptrace_seize(options: i32, who: As) -> Outcome {
    in_child(who, || {
        with_sleeper(|pid| {
            let none = std::ptr::null_mut::<libc::c_void>();
            let options = std::ptr::without_provenance_mut::<libc::c_void>(options as usize);
            // SAFETY: PTRACE_SEIZE takes a pid and bits, and touches no memory of ours.
            syscall(unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, none, options) } as i32)
        })
    })
}

/// Tries to read memory of a child of its own, as the supervisor does with its sandboxes.
pub fn read_child(who: As) -> Outcome {
    in_child(who, || {
        with_sleeper(|pid| {
            let (source, mut target) = (0u64, 0u64);
            let local = iovec((&raw mut target).cast());
            // A clone has everything at the same address.
            let remote = iovec((&raw const source).cast_mut().cast());
            // SAFETY: both vectors have one element; the local one describes a live u64.
            syscall(unsafe {
                libc::process_vm_readv(pid, &raw const local, 1, &raw const remote, 1, 0)
            } as i32)
        })
    })
}

/// Tries to load a filter with a listener; `EBUSY` if there is one already.
pub fn listener(filter: &Program) -> Outcome {
    with_listener(filter, |_| Ok(()))
}

/// Tries whether a listener can wake synchronously.
pub fn synchronous_wake_up(filter: &Program) -> Outcome {
    with_listener(filter, |listener| {
        seccomp::wake_synchronously(listener.as_fd())
    })
}

fn with_listener(filter: &Program, then: impl Fn(&OwnedFd) -> io::Result<()>) -> Outcome {
    in_child(As::Self_, || {
        syscall(set_no_new_privs())?;
        let listener = seccomp::load_with_listener(filter, LoadFlags::default());
        listener
            .and_then(|listener| then(&listener))
            .map_err(|e| e.raw_os_error().unwrap_or(libc::EIO))
    })
}

/// Tries to load a program of two instructions that lets everything pass.
///
/// `attach_type` is that of `enum bpf_attach_type`. Nothing is attached.
///
/// # Errors
///
/// `EPERM` without the right to; `EINVAL` if the kernel does not know the type.
pub fn load_bpf(program_type: u32, attach_type: u32) -> io::Result<OwnedFd> {
    // r0 = 1; exit
    let instructions: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
    let attributes = BpfLoad {
        program_type,
        count: 2,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        attach_type,
        ..BpfLoad::default()
    };
    let size = size_of::<BpfLoad>();
    const BPF_PROG_LOAD: libc::c_int = 5;
    // SAFETY: the kernel reads `size` bytes of a live structure, and what its two pointers show to:
    // two instructions and a C string, both alive.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size) };
    owned(fd)
}

/// The first fields of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct BpfLoad {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
}

/// Tries to make memory that not even the kernel maps.
///
/// # Errors
///
/// `ENOSYS` if the kernel has none, or it was not enabled at boot.
pub fn secret_memory() -> io::Result<OwnedFd> {
    // SAFETY: takes flags only and makes a new descriptor.
    owned(unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) })
}

/// Tells whether `io_uring` could be set up: the kernel looks at the right before the arguments.
pub fn io_uring_is_on() -> bool {
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: with no parameters the kernel stops at reading them.
    let result = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, none) };
    result == -1 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// Tells whether memory can be sealed against change of its mapping.
pub fn memory_sealing_is_known() -> bool {
    // SAFETY: an empty range seals nothing.
    unsafe { libc::syscall(libc::SYS_mseal, 0 as libc::c_ulong, 0 as libc::c_ulong, 0) == 0 }
}

/// Asks an open `/dev/kvm` for its version, which has been 12 since 2007.
///
/// # Errors
///
/// `ENOTTY` if this is not KVM.
pub fn kvm_version(kvm: impl AsFd) -> io::Result<i32> {
    const KVM_GET_API_VERSION: libc::Ioctl = 0xae00;
    // SAFETY: this ioctl takes no argument.
    match unsafe { libc::ioctl(kvm.as_fd().as_raw_fd(), KVM_GET_API_VERSION, 0) } {
        -1 => Err(io::Error::last_os_error()),
        version => Ok(version),
    }
}

/// Returns how many bytes this process may lock in memory; `u64::MAX` for no limit.
///
/// # Errors
///
/// None that a kernel gives.
pub fn lockable_memory() -> io::Result<u64> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel writes one `rlimit` into a live local.
    match unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } {
        0 => Ok(limit.rlim_cur),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Returns the effective user id of this process.
pub fn effective_user() -> u32 {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Returns a leaf of CPUID as eax, ebx, ecx, edx; zeros beyond the highest leaf.
#[cfg(target_arch = "x86_64")]
pub fn cpuid(leaf: u32) -> [u32; 4] {
    use std::arch::x86_64::__cpuid_count;
    #[allow(unused_unsafe)]
    // SAFETY: every processor of this architecture has the instruction.
    unsafe {
        if __cpuid_count(leaf & 0x8000_0000, 0).eax < leaf {
            return [0; 4];
        }
        let one = __cpuid_count(leaf, 0);
        [one.eax, one.ebx, one.ecx, one.edx]
    }
}

/// Runs `work` in a child and tells how it ended.
///
/// `work` may only make system calls: see the module.
pub(super) fn in_child(who: As, work: impl FnOnce() -> Result<(), i32>) -> Outcome {
    match raw_fork() {
        ..0 => Outcome::Unknown,
        0 => {
            let result = become_(who).and_then(|()| work());
            let code = result.err().map_or(0, |errno| errno.clamp(1, 255));
            // SAFETY: ends this child without running anything of the process it was copied from.
            unsafe { libc::_exit(code) }
        }
        pid => wait(pid),
    }
}

fn raw_fork() -> i32 {
    let none = 0 as libc::c_ulong;
    // The system call itself and not fork(3): no handlers run, no lock of the C library is taken,
    // and with no flags at all there is no termination signal.
    // SAFETY: without CLONE_VM the child has its own copy of memory and stack; it only makes system
    // calls until it ends.
    unsafe { libc::syscall(libc::SYS_clone, none, none, none, none, none) as i32 }
}

fn wait(pid: i32) -> Outcome {
    let mut status = 0;
    loop {
        // SAFETY: the kernel writes one int into a live local. The pid is a child of ours that
        // nobody else waits for.
        match unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } {
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return Outcome::Unknown,
            _ if libc::WIFSIGNALED(status) => return Outcome::Killed(libc::WTERMSIG(status)),
            _ => {
                return match libc::WEXITSTATUS(status) {
                    0 => Outcome::Done,
                    errno => Outcome::Refused(errno),
                };
            }
        }
    }
}

fn become_(who: As) -> Result<(), i32> {
    const NOBODY: libc::c_long = 65534;
    if who == As::Self_ || effective_user() != 0 {
        return Ok(());
    }
    let none = std::ptr::null::<libc::gid_t>();
    // The system calls themselves: the C library's would signal threads the child has not got.
    // SAFETY: integers and an empty list.
    syscall(unsafe { libc::syscall(libc::SYS_setgroups, 0 as libc::c_ulong, none) } as i32)?;
    // SAFETY: integers only.
    syscall(unsafe { libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY) } as i32)?;
    // SAFETY: integers only.
    syscall(unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) } as i32)?;
    // What changed its user is not dumpable, and so owns nothing in /proc.
    // SAFETY: integers only.
    syscall(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1 as libc::c_ulong, 0, 0, 0) })
}

/// Gives `work` the pid of another process that sleeps, and ends that afterwards.
fn with_sleeper(work: impl FnOnce(i32) -> Result<(), i32>) -> Result<(), i32> {
    let pid = raw_fork();
    if pid == 0 {
        let kill = libc::SIGKILL as libc::c_ulong;
        // An outer filter may kill whoever tries; nobody else would end this one then.
        // SAFETY: integers only.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, kill, 0, 0, 0) };
        loop {
            // SAFETY: waits for a signal.
            unsafe { libc::pause() };
        }
    }
    syscall(pid)?;
    let result = work(pid);
    // SAFETY: the pid is a child that has not been waited for, so it is still that child.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    wait(pid);
    result
}

fn write_file(path: &CStr, bytes: &[u8]) -> Result<(), i32> {
    // SAFETY: the path is a live C string.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    syscall(fd)?;
    // SAFETY: the descriptor was opened just now; the kernel reads `len` bytes of a live slice. The
    // child ends soon, and the descriptor with it.
    match unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) } {
        ..0 => syscall(-1),
        _ => Ok(()),
    }
}

fn unshare(flags: i32) -> i32 {
    // SAFETY: flags only; the caller is a child with one thread.
    unsafe { libc::unshare(flags) }
}

fn make_private() -> i32 {
    let none = std::ptr::null();
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: a live C string; source, type and data are not read for this flag.
    unsafe { libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) }
}

fn mount_proc() -> i32 {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    let proc = c"proc".as_ptr();
    let options = c"subset=pid,hidepid=invisible".as_ptr();
    // SAFETY: live C strings.
    unsafe { libc::mount(proc, c"/proc".as_ptr(), proc, flags, options.cast()) }
}

fn set_no_new_privs() -> i32 {
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: integers only.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, on, unused, unused, unused) }
}

fn iovec(base: *mut libc::c_void) -> libc::iovec {
    libc::iovec {
        iov_base: base,
        iov_len: size_of::<u64>(),
    }
}

fn syscall(result: i32) -> Result<(), i32> {
    match result {
        ..0 => Err(io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EINVAL)),
        _ => Ok(()),
    }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor for us.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
