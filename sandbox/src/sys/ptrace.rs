//! Tracing a task: stopping it, lending it other registers, letting it run to its next stop.
//!
//! Follows ptrace(2), with `PTRACE_SEIZE` throughout: attaching sends the task no signal. Whoever
//! traces is one thread, and so is everything here: the process that calls it has no other.

use std::io;

use super::check;

/// Seized tasks are killed when their tracer ends, and what they fork or clone is seized from birth.
pub const FOLLOW: i32 = libc::PTRACE_O_EXITKILL
    | libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEEXEC;

/// As [`FOLLOW`], and the task's own filters do not apply to it. Only ever set on a task that is
/// stopped, and taken back before it is let go.
pub const FOLLOW_UNFILTERED: i32 = FOLLOW | libc::PTRACE_O_SUSPEND_SECCOMP;

/// How a task stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Where [`interrupt`] stops it, or in a group stop: on its way to user mode, with every signal
    /// still ahead of it.
    Trap,
    /// Before or after a system call.
    Call,
    /// About to be given this Unix signal.
    Signal(i32),
    /// It made another task, or executed a program; in the middle of that system call.
    Event(i32),
    /// It exists no more.
    Ended,
}

/// The general registers of a task.
#[derive(Clone, Copy)]
pub struct Registers(libc::user_regs_struct);

impl Registers {
    /// Address of the next instruction.
    pub fn instruction(&self) -> u64 {
        self.0.rip
    }

    /// What the last system call returned: a negative error number when it failed.
    pub fn result(&self) -> i64 {
        self.0.rax.cast_signed()
    }

    /// These registers as they have to be to make a system call by the instruction at `at`. The call
    /// that was under way, if any, is not restarted from them.
    #[must_use]
    pub fn calling(mut self, at: u64, nr: u32, arguments: [u64; 6]) -> Self {
        [
            self.0.rdi, self.0.rsi, self.0.rdx, self.0.r10, self.0.r8, self.0.r9,
        ] = arguments;
        self.0.rax = nr.into();
        self.executing(at)
    }

    /// These registers as they have to be to execute what stands at `at`, outside of any system call, with
    /// 0 for [`kept`](Self::kept).
    #[must_use]
    pub fn executing(mut self, at: u64) -> Self {
        self.0.orig_rax = u64::MAX;
        self.0.rip = at;
        self.0.rbx = 0;
        self
    }

    /// What a script keeps in `rbx`.
    pub fn kept(&self) -> u64 {
        self.0.rbx
    }
}

impl Registers {
    /// These registers as they should be resumed: a wait that fails with `EINTR` whenever its task is
    /// stopped, without any signal having been handled, goes on waiting instead.
    ///
    /// Most calls say to the kernel by a number of their own that they can be restarted. These say
    /// `EINTR` at once: signal(7), "Interruption of system calls and library functions by stop
    /// signals". A time limit that they have begins anew.
    #[must_use]
    pub fn waiting_again(mut self) -> Self {
        const WAITS: [libc::c_long; 10] = [
            libc::SYS_epoll_wait,
            libc::SYS_epoll_pwait,
            libc::SYS_epoll_pwait2,
            libc::SYS_semop,
            libc::SYS_semtimedop,
            libc::SYS_rt_sigtimedwait,
            libc::SYS_accept,
            libc::SYS_accept4,
            libc::SYS_recvfrom,
            libc::SYS_recvmsg,
        ];
        let nr = self.0.orig_rax.cast_signed();
        if WAITS.contains(&nr) && self.result() == -i64::from(libc::EINTR) {
            // If a handler runs after all, the kernel makes this EINTR again.
            self.0.rax = ERESTARTNOHAND.cast_unsigned();
        }
        self
    }
}

/// The bytes of the instruction that makes a system call.
pub const SYSCALL_INSTRUCTION: [u8; 2] = [0x0f, 0x05];

/// Begins to trace a task, which goes on running.
///
/// # Errors
///
/// `EPERM` without the right to, when it is traced already, and when it has ended; `ESRCH`.
pub fn seize(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, 0, FOLLOW as usize)
}

/// Asks a task to stop before it executes its next instruction.
///
/// # Errors
///
/// `ESRCH` when it is gone.
pub fn interrupt(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, 0, 0)
}

/// Lets a stopped task run, giving it a Unix signal (0: none).
///
/// # Errors
///
/// `ESRCH` when it is gone, or was killed while it was stopped.
pub fn resume(tid: i32, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, 0, signal as usize)
}

/// Lets a stopped task run to the next beginning or end of a system call.
///
/// # Errors
///
/// As [`resume`].
pub fn resume_to_call(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, 0, 0)
}

/// Lets a stopped task execute one instruction. When that was done, it is about to be given `SIGTRAP`.
///
/// # Errors
///
/// As [`resume`].
pub fn resume_for_one(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_SINGLESTEP, tid, 0, 0)
}

/// Lets a stopped task go for good. A group stop that it was part of goes on.
///
/// # Errors
///
/// As [`resume`].
pub fn detach(tid: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, 0, 0)
}

/// Changes the options of a stopped task: [`FOLLOW`] or [`FOLLOW_UNFILTERED`].
///
/// # Errors
///
/// `EPERM` for the latter without `CAP_SYS_ADMIN` on the host, or under a filter of one's own.
pub fn set_options(tid: i32, options: i32) -> io::Result<()> {
    request(libc::PTRACE_SETOPTIONS, tid, 0, options as usize)
}

/// The number that came with [`Stop::Event`]: the new task's id, or the former one of who executed.
///
/// # Errors
///
/// As [`resume`].
pub fn event_message(tid: i32) -> io::Result<i32> {
    let mut message: libc::c_ulong = 0;
    let place = (&raw mut message).expose_provenance();
    request(libc::PTRACE_GETEVENTMSG, tid, 0, place)?;
    // SAFETY: a live local that the kernel has written.
    Ok(unsafe { (&raw const message).read_volatile() } as i32)
}

/// Reads the registers of a stopped task; `None` when it is in 32-bit mode.
///
/// # Errors
///
/// As [`resume`].
pub fn registers(tid: i32) -> io::Result<Option<Registers>> {
    let mut registers = std::mem::MaybeUninit::<libc::user_regs_struct>::zeroed();
    let mut vector = libc::iovec {
        iov_base: registers.as_mut_ptr().cast(),
        iov_len: size_of::<libc::user_regs_struct>(),
    };
    request(
        libc::PTRACE_GETREGSET,
        tid,
        NT_PRSTATUS,
        (&raw mut vector).expose_provenance(),
    )?;
    // SAFETY: as above; the kernel stores the length that it wrote.
    let length = unsafe { (&raw const vector.iov_len).read_volatile() };
    // SAFETY: zeroed before, and integers only.
    let registers = unsafe { registers.assume_init() };
    Ok((length == size_of::<libc::user_regs_struct>()).then_some(Registers(registers)))
}

/// Sets the registers of a stopped task.
///
/// # Errors
///
/// As [`resume`].
pub fn set_registers(tid: i32, registers: &Registers) -> io::Result<()> {
    let vector = libc::iovec {
        iov_base: (&raw const registers.0).cast_mut().cast(),
        iov_len: size_of::<libc::user_regs_struct>(),
    };
    request(
        libc::PTRACE_SETREGSET,
        tid,
        NT_PRSTATUS,
        (&raw const vector).expose_provenance(),
    )
}

/// Reads which Unix signals a stopped task has blocked: bit n - 1 for signal n.
///
/// # Errors
///
/// As [`resume`].
pub fn blocked_signals(tid: i32) -> io::Result<u64> {
    let mut mask = 0u64;
    request(
        libc::PTRACE_GETSIGMASK as _,
        tid,
        size_of::<u64>(),
        (&raw mut mask).expose_provenance(),
    )?;
    // SAFETY: a live local that the kernel has written.
    Ok(unsafe { (&raw const mask).read_volatile() })
}

/// Sets which Unix signals a stopped task has blocked.
///
/// # Errors
///
/// As [`resume`].
pub fn block_signals(tid: i32, mask: u64) -> io::Result<()> {
    request(
        libc::PTRACE_SETSIGMASK as _,
        tid,
        size_of::<u64>(),
        (&raw const mask).expose_provenance(),
    )
}

/// Where a stopped task keeps the pointer to its restartable sequence, if it registered such a place.
/// See rseq(2).
pub fn restartable_sequence(tid: i32) -> Option<u64> {
    let mut place = RseqConfiguration::default();
    request(
        libc::PTRACE_GET_RSEQ_CONFIGURATION as _,
        tid,
        size_of::<RseqConfiguration>(),
        (&raw mut place).expose_provenance(),
    )
    .ok()?;
    // SAFETY: a live local that the kernel has written.
    let area = unsafe { (&raw const place.area).read_volatile() };
    (area != 0).then(|| area + RSEQ_CS_OFFSET)
}

/// Layout of `struct ptrace_rseq_configuration`: 24 bytes.
#[repr(C)]
#[derive(Default)]
struct RseqConfiguration {
    area: u64,
    size: u32,
    signature: u32,
    flags: u32,
    padding: u32,
}

/// Reads memory of a traced task.
///
/// # Errors
///
/// `EFAULT` where nothing is mapped; `UnexpectedEof` when only a part could be read.
pub fn read_memory(tid: i32, at: u64, into: &mut [u8]) -> io::Result<()> {
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let remote = remote(at, into.len());
    // SAFETY: one vector each; the local one describes an exclusively borrowed slice.
    let read = unsafe { libc::process_vm_readv(tid, &raw const local, 1, &raw const remote, 1, 0) };
    whole(read as i64, into.len())
}

/// Writes memory of a traced task.
///
/// # Errors
///
/// `EFAULT` where nothing can be written; `UnexpectedEof` when only a part could be.
pub fn write_memory(tid: i32, at: u64, bytes: &[u8]) -> io::Result<()> {
    let local = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let remote = remote(at, bytes.len());
    // SAFETY: one vector each; the kernel only reads from the local one, a live slice.
    let written =
        unsafe { libc::process_vm_writev(tid, &raw const local, 1, &raw const remote, 1, 0) };
    whole(written as i64, bytes.len())
}

/// Takes the next stop or the end of a traced task, if it has come to one. See waitpid(2).
///
/// # Errors
///
/// `ECHILD` when it is not traced, or gone.
pub fn stop_of(tid: i32) -> io::Result<Option<Stop>> {
    let mut status = 0;
    // SAFETY: the kernel writes one int into a live local.
    let found = unsafe { libc::waitpid(tid, &raw mut status, libc::__WALL | libc::WNOHANG) };
    if check(found.into())? == 0 {
        return Ok(None);
    }
    if !libc::WIFSTOPPED(status) {
        return Ok(Some(Stop::Ended));
    }
    let signal = libc::WSTOPSIG(status);
    let stop = match status >> 16 {
        EVENT_STOP => Stop::Trap,
        0 if signal == libc::SIGTRAP | 0x80 => Stop::Call,
        0 => Stop::Signal(signal),
        event => Stop::Event(event),
    };
    Ok(Some(stop))
}

/// Sends a Unix signal to one task.
///
/// # Errors
///
/// `ESRCH` when it is gone.
pub fn signal_task(process: i32, tid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_tgkill, process, tid, signal) }).map(drop)
}

fn remote(at: u64, length: usize) -> libc::iovec {
    libc::iovec {
        iov_base: std::ptr::without_provenance_mut(at as usize),
        iov_len: length,
    }
}

fn whole(done: i64, length: usize) -> io::Result<()> {
    match check(done)? as usize {
        done if done == length => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn request(request: Request, tid: i32, address: usize, data: usize) -> io::Result<()> {
    let pointer = std::ptr::with_exposed_provenance_mut::<libc::c_void>;
    // SAFETY: each caller passes numbers, or the address of a live local or borrowed structure of the
    // size that its request reads or writes, for the duration of the call.
    check(unsafe { libc::ptrace(request, tid, pointer(address), pointer(data)) }).map(drop)
}

#[cfg(target_env = "musl")]
type Request = libc::c_int;
#[cfg(not(target_env = "musl"))]
type Request = libc::c_uint;

const NT_PRSTATUS: usize = 1;
/// Where `rseq_cs` stands in `struct rseq`.
const RSEQ_CS_OFFSET: u64 = 8;
/// `PTRACE_EVENT_STOP`.
const EVENT_STOP: i32 = 128;
/// `-ERESTARTNOHAND` of the kernel's `include/linux/errno.h`: restart unless a handler runs.
const ERESTARTNOHAND: i64 = -514;
