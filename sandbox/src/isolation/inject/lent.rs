//! What a stopped task lends, and the system calls that it makes in our stead.
//!
//! It lends its registers; it is given them back with the signals it had blocked, and the kernel then
//! restarts the system call that it was in.

use std::fs;
use std::io;
use std::time::Duration;

use rustix::process::Pid;
use rustix::thread::CpuSet;

use super::script::Step;
use super::tracer::{Tracer, failure, or_gone};
use crate::isolation::spawner::Failure;
use crate::sys::ptrace::{self, Registers, SYSCALL_INSTRUCTION, Stop};

/// What a task lent, to be given back as it was.
pub(super) struct Lent {
    registers: Registers,
    blocked: u64,
    /// Pointer to the restartable sequence it was in, and where that pointer stands: the kernel clears
    /// it when the task runs elsewhere, and then forgets to restart the sequence.
    sequence: Option<(u64, [u8; 8])>,
    /// The processors that it may run on, and not only the one it now has to.
    processors: Option<CpuSet>,
    /// Signals that nothing blocks, taken while it made calls.
    held: Vec<i32>,
}

/// Why a call in a task's stead has no result.
pub(super) enum Unfinished {
    /// The task was killed.
    Gone,
    Failed(Failure),
}

impl From<Failure> for Unfinished {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl Tracer {
    /// Takes a stopped task's registers, and keeps signals from it, to make calls in its stead.
    pub(super) fn lend(&mut self, tid: i32) -> Result<(), Unfinished> {
        let Some(task) = self.tasks.get_mut(&tid) else {
            return Err(Unfinished::Gone);
        };
        let Some(registers) = gone(ptrace::registers(tid), tid)? else {
            return Err(failure(format!("task {tid} is in 32-bit mode")).into());
        };
        let mut pointer = [0; 8];
        let sequence = ptrace::restartable_sequence(tid)
            .filter(|place| ptrace::read_memory(tid, *place, &mut pointer).is_ok())
            .map(|place| (place, pointer))
            .filter(|(_, pointer)| *pointer != [0; 8]);
        if let Some((place, _)) = sequence {
            // What it executes in our stead is no part of that.
            or_gone(ptrace::write_memory(tid, place, &[0; 8]), tid)?;
        }
        let blocked = gone(ptrace::blocked_signals(tid), tid)?;
        task.lent = Some(Lent {
            registers: registers.waiting_again(),
            blocked,
            sequence,
            processors: onto_this_processor(tid),
            held: Vec::new(),
        });
        let blocked = if task.steps { !TRAP } else { u64::MAX };
        gone(ptrace::block_signals(tid, blocked), tid)?;
        // Not everybody may: then its own filters have to permit what is asked of it.
        let _ = ptrace::set_options(tid, ptrace::FOLLOW_UNFILTERED);
        Ok(())
    }

    /// Finds an instruction in a task's memory that makes a system call: the one it has just come from, or
    /// any other.
    pub(super) fn gate(&self, tid: i32) -> Result<u64, Unfinished> {
        let mut bytes = [0; 2];
        let lent = self.tasks.get(&tid).and_then(|task| task.lent.as_ref());
        let last = lent.map_or(0, |lent| lent.registers.instruction().wrapping_sub(2));
        if ptrace::read_memory(tid, last, &mut bytes).is_ok() && bytes == SYSCALL_INSTRUCTION {
            return Ok(last);
        }
        let maps = fs::read_to_string(format!("/proc/{tid}/maps")).unwrap_or_default();
        let executable = maps.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let range = (
                u64::from_str_radix(start, 16).ok()?,
                u64::from_str_radix(end, 16).ok()?,
            );
            let code = words.next()?.contains('x') && !line.ends_with("[vsyscall]");
            code.then_some((!line.ends_with("[vdso]"), range))
        });
        let mut executable: Vec<_> = executable.collect();
        // The kernel's own page first: it is small, and every program has it.
        executable.sort();
        for (_, (start, end)) in executable {
            let mut code = vec![0; (end - start).min(MOST_CODE) as usize];
            if ptrace::read_memory(tid, start, &mut code).is_err() {
                continue;
            }
            if let Some(at) = code.windows(2).position(|pair| pair == SYSCALL_INSTRUCTION) {
                return Ok(start + at as u64);
            }
        }
        Err(failure(format!(
            "task {tid} has no instruction that makes system calls"
        ))
        .into())
    }

    /// Lets a task that lent its registers make a system call.
    pub(super) fn call(
        &mut self,
        tid: i32,
        gate: u64,
        nr: u32,
        arguments: [u64; 6],
    ) -> Result<i64, Unfinished> {
        let task = self.tasks.get(&tid).ok_or(Unfinished::Gone)?;
        let lent = task.lent.as_ref().ok_or(Unfinished::Gone)?;
        let registers = lent.registers.calling(gate, nr, arguments);
        gone(ptrace::set_registers(tid, &registers), tid)?;
        if task.steps {
            return self.step_over(tid, gate);
        }
        // To its beginning, and to its end.
        for _ in 0..2 {
            loop {
                self.resume(tid, ptrace::resume_to_call)?;
                match self.stop_of(tid)? {
                    Some(Stop::Call) => break,
                    Some(stop) => self.hold(tid, stop)?,
                    None => return Err(Unfinished::Gone),
                }
            }
        }
        let registers = gone(ptrace::registers(tid), tid)?;
        Ok(registers.ok_or(Unfinished::Gone)?.result())
    }

    /// Lets a task execute the call at `gate`, which takes half as many turns as stopping it at the call's
    /// beginning and end.
    fn step_over(&mut self, tid: i32, gate: u64) -> Result<i64, Unfinished> {
        let after = gate.wrapping_add(SYSCALL_INSTRUCTION.len() as u64);
        let registers = self.run_to(tid, after, ptrace::resume_for_one)?;
        Ok(registers.result())
    }

    /// Lets a task that lent its registers execute a script, to the `int3` at its end. Tells which step it
    /// came to, and that one's result.
    pub(super) fn execute(
        &mut self,
        tid: i32,
        from: u64,
        end: u64,
    ) -> Result<(Option<Step>, i64), Unfinished> {
        let task = self.tasks.get(&tid).ok_or(Unfinished::Gone)?;
        let lent = task.lent.as_ref().ok_or(Unfinished::Gone)?;
        gone(
            ptrace::set_registers(tid, &lent.registers.executing(from)),
            tid,
        )?;
        let registers = self.run_to(tid, end + 1, |tid| ptrace::resume(tid, 0))?;
        Ok((Step::numbered(registers.kept()), registers.result()))
    }

    /// Lets a task run, by `how`, until its `SIGTRAP` before this instruction.
    fn run_to(
        &mut self,
        tid: i32,
        instruction: u64,
        how: impl Fn(i32) -> io::Result<()>,
    ) -> Result<Registers, Unfinished> {
        loop {
            self.resume(tid, &how)?;
            // It has not stopped yet: no need to look.
            if !self.wait(TURN)? {
                self.move_away(tid);
            }
            let stop = self.stop_of(tid)?.ok_or(Unfinished::Gone)?;
            if stop == Stop::Signal(libc::SIGTRAP) {
                let registers = gone(ptrace::registers(tid), tid)?.ok_or(Unfinished::Gone)?;
                if registers.instruction() == instruction {
                    return Ok(registers);
                }
            }
            // Somebody else's signal came first.
            self.hold(tid, stop)?;
        }
    }

    /// Moves a task that lent its registers to other processors than this thread's: somebody else has that.
    fn move_away(&self, tid: i32) {
        let task = self.tasks.get(&tid);
        let Some(mut others) = task.and_then(|task| task.lent.as_ref()?.processors) else {
            return;
        };
        others.unset(rustix::thread::sched_getcpu());
        // Where there is no other it stays.
        let _ = rustix::thread::sched_setaffinity(Pid::from_raw(tid), &others);
    }

    /// Gives a task back what it lent. When it is let go, the kernel has it look for signals first, and
    /// restart the system call that these registers say it was in.
    pub(super) fn give_back(&mut self, tid: i32) -> Result<(), Failure> {
        if self.tasks.get(&tid).is_none_or(|task| task.lent.is_none()) {
            return Ok(());
        }
        if self.stop_of(tid)?.is_none() {
            return Ok(());
        }
        let process = self.process(tid);
        let Some(lent) = self.tasks.get_mut(&tid).and_then(|task| task.lent.take()) else {
            return Ok(());
        };
        if let Some((place, pointer)) = lent.sequence {
            or_gone(ptrace::write_memory(tid, place, &pointer), tid)?;
        }
        if let Some(processors) = lent.processors {
            let restored = rustix::thread::sched_setaffinity(Pid::from_raw(tid), &processors);
            or_gone(restored.map_err(io::Error::from), tid)?;
        }
        or_gone(ptrace::set_options(tid, ptrace::FOLLOW), tid)?;
        or_gone(ptrace::set_registers(tid, &lent.registers), tid)?;
        or_gone(ptrace::block_signals(tid, lent.blocked), tid)?;
        lent.held
            .into_iter()
            .try_for_each(|signal| or_gone(ptrace::signal_task(process, tid, signal), tid))
    }

    /// Remembers a signal that is not given to a task now.
    ///
    /// # Errors
    ///
    /// When it is a fault. Signals of others that could be taken for one are blocked: the task was led to
    /// where there is nothing to execute.
    fn hold(&mut self, tid: i32, stop: Stop) -> Result<(), Failure> {
        if let Stop::Signal(libc::SIGSEGV | libc::SIGBUS | libc::SIGILL) = stop {
            return Err(failure(format!("task {tid} cannot execute system calls")));
        }
        if let (Stop::Signal(signal), Some(task)) = (stop, self.tasks.get_mut(&tid))
            && let Some(lent) = &mut task.lent
        {
            lent.held.push(signal);
        }
        self.in_time()
    }
}

/// Keeps this thread on the processor it is on, and lets it go where it may again when dropped.
///
/// A call that a task makes for us is a dozen turns between the two. Waking another processor for each
/// costs ten times as much, on a virtual machine above all.
pub(super) struct Here(Option<CpuSet>);

impl Here {
    pub(super) fn stay() -> Self {
        Self(onto_this_processor(0))
    }
}

impl Drop for Here {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = rustix::thread::sched_setaffinity(None, before);
        }
    }
}

/// Moves a task (0: this thread) onto the processor that this thread is on, and tells where it could be
/// before; `None` when it has to stay where it is.
fn onto_this_processor(tid: i32) -> Option<CpuSet> {
    let task = Pid::from_raw(tid);
    let here = rustix::thread::sched_getcpu();
    let before = rustix::thread::sched_getaffinity(task).ok()?;
    let mut only = CpuSet::new();
    only.set(here);
    let moved = before.is_set(here) && rustix::thread::sched_setaffinity(task, &only).is_ok();
    moved.then_some(before)
}

fn gone<T>(result: io::Result<T>, tid: i32) -> Result<T, Unfinished> {
    result.map_err(|error| match error.raw_os_error() {
        Some(libc::ESRCH) => Unfinished::Gone,
        _ => Failure::at(format!("tracing task {tid}"))(error).into(),
    })
}

/// How long a task may take for its turn before it is moved to another processor: most take a tenth.
const TURN: Duration = Duration::from_micros(200);

/// Most bytes of one mapping that are searched.
const MOST_CODE: u64 = 1 << 20;

/// `SIGTRAP` in a set of signals.
pub(super) const TRAP: u64 = 1 << (libc::SIGTRAP - 1);
