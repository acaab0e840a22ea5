//! System calls that a stopped task makes in our stead, and what they put on it.
//!
//! The task lends its registers; it is given them back with the signals it had blocked, and the kernel
//! then restarts the system call that it was in. Its memory is not touched: arguments lie on a page of
//! their own that is mapped for them and unmapped again.

use std::collections::BTreeMap;
use std::fs;

use rustix::process::Pid;
use rustix::thread::CpuSet;

use super::Layer;
use super::tasks::field;
use super::tracer::{PATIENCE, Tracer, failure, or_gone};
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
enum Unfinished {
    /// The task was killed.
    Gone,
    Failed(Failure),
}

impl From<Failure> for Unfinished {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

/// Puts the layer on every task that has stopped and does not have it. Of a process that is killed
/// meanwhile nothing is wanted.
pub(super) fn treat(tracer: &mut Tracer, layer: &Layer) -> Result<(), Failure> {
    let _here = Here::stay();
    let mut processes = BTreeMap::<i32, Vec<i32>>::new();
    for (tid, task) in &mut tracer.tasks {
        if task.stop.is_some() && !task.treated {
            let Some(known) = Known::of(*tid) else {
                continue;
            };
            (task.process, task.filters) = (known.process, known.filters);
            task.steps = known.steps;
            processes.entry(known.process).or_default().push(*tid);
        }
    }
    for threads in processes.into_values() {
        match put_on(tracer, layer, &threads) {
            Ok(()) | Err(Unfinished::Gone) => {}
            Err(Unfinished::Failed(failure)) => return Err(failure),
        }
    }
    Ok(())
}

/// Puts the layer on the threads of one process, all of which have stopped.
fn put_on(tracer: &mut Tracer, layer: &Layer, threads: &[i32]) -> Result<(), Unfinished> {
    let Some(&first) = threads.first() else {
        return Ok(());
    };
    for &tid in threads {
        tracer.lend(tid)?;
    }
    let gate = gate(tracer, first)?;
    let page = Page::map(tracer, first, gate, layer)?;
    if layer.lost_rights != 0 {
        let create = libc::SYS_landlock_create_ruleset;
        let attributes = [page.attributes(), size_of::<u64>() as u64, 0, 0, 0, 0];
        let ruleset = ask(
            tracer,
            first,
            gate,
            create,
            attributes,
            "making a Landlock ruleset",
        )?;
        for &tid in threads {
            let restrict = libc::SYS_landlock_restrict_self;
            ask(
                tracer,
                tid,
                gate,
                restrict,
                [ruleset, 0, 0, 0, 0, 0],
                "restricting files",
            )?;
        }
        let close = [ruleset, 0, 0, 0, 0, 0];
        ask(
            tracer,
            first,
            gate,
            libc::SYS_close,
            close,
            "closing the ruleset",
        )?;
    }
    load(tracer, threads, gate, &page)?;
    page.unmap(tracer, first, gate)?;
    for tid in threads {
        let before = tracer.tasks.get(tid).map_or(0, |task| task.filters);
        let now = Known::of(*tid).ok_or(Unfinished::Gone)?.filters;
        if now <= before {
            return Err(failure(format!("task {tid} does not have the filter")).into());
        }
    }
    if let Some((nr, errno)) = layer.probe {
        // Under its filters again, as it will be.
        or_gone(ptrace::set_options(first, ptrace::FOLLOW), first)?;
        let result = tracer.call(first, gate, nr, [0; 6])?;
        if result != -i64::from(errno) {
            let said = format!("task {first} can still do what was taken: call {nr} gave {result}");
            return Err(failure(said).into());
        }
    }
    for &tid in threads {
        tracer.give_back(tid)?;
        if let Some(task) = tracer.tasks.get_mut(&tid) {
            task.treated = true;
        }
    }
    Ok(())
}

/// What the kernel says of a task.
struct Known {
    process: i32,
    /// How many filters it has.
    filters: u32,
    /// See [`Task::steps`](super::tracer::Task::steps).
    steps: bool,
}

impl Known {
    fn of(tid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
        let signals = |name| u64::from_str_radix(field(&text, name)?, 16).ok();
        let (blocked, ignored) = (signals("SigBlk:")?, signals("SigIgn:")?);
        Some(Self {
            process: field(&text, "Tgid:")?.parse().ok()?,
            filters: field(&text, "Seccomp_filters:")?.parse().ok()?,
            steps: (blocked | ignored) & TRAP == 0,
        })
    }
}

/// `SIGTRAP` in a set of signals.
const TRAP: u64 = 1 << (libc::SIGTRAP - 1);

/// Loads the filter for all threads at once, or one by one where they have different ones already.
fn load(tracer: &mut Tracer, threads: &[i32], gate: u64, page: &Page) -> Result<(), Unfinished> {
    let seccomp = libc::SYS_seccomp;
    let mode = u64::from(libc::SECCOMP_SET_MODE_FILTER);
    let together = libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
    let arguments = |flags: u64| [mode, flags, page.filter(), 0, 0, 0];
    let result = tracer.call(threads[0], gate, seccomp as u32, arguments(together))?;
    if result == 0 {
        return Ok(());
    }
    if result != -i64::from(libc::ESRCH) {
        return Err(refused("loading a filter", result).into());
    }
    for &tid in threads {
        ask(tracer, tid, gate, seccomp, arguments(0), "loading a filter")?;
    }
    Ok(())
}

/// Memory of the task that holds what its calls point to: the attributes of the ruleset, the header of
/// the filter, the filter.
struct Page {
    at: u64,
    length: u64,
}

const HEADER: u64 = 8;
const PROGRAM: u64 = 24;

impl Page {
    fn map(tracer: &mut Tracer, tid: i32, gate: u64, layer: &Layer) -> Result<Self, Unfinished> {
        let instructions = layer.filter.instructions();
        let length = PROGRAM + 8 * instructions.len() as u64;
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let arguments = [0, length, protection, flags, u64::MAX, 0];
        let at = ask(
            tracer,
            tid,
            gate,
            libc::SYS_mmap,
            arguments,
            "mapping a page",
        )?;
        let mut bytes = Vec::with_capacity(length as usize);
        bytes.extend(layer.lost_rights.to_ne_bytes());
        bytes.extend((instructions.len() as u64).to_ne_bytes());
        bytes.extend((at + PROGRAM).to_ne_bytes());
        for one in instructions {
            bytes.extend(one.code.to_ne_bytes());
            bytes.extend([one.jt, one.jf]);
            bytes.extend(one.k.to_ne_bytes());
        }
        or_gone(ptrace::write_memory(tid, at, &bytes), tid)?;
        Ok(Self { at, length })
    }

    fn attributes(&self) -> u64 {
        self.at
    }

    fn filter(&self) -> u64 {
        self.at + HEADER
    }

    fn unmap(self, tracer: &mut Tracer, tid: i32, gate: u64) -> Result<(), Unfinished> {
        // Where the layer itself takes munmap(2) away, the page stays.
        let arguments = [self.at, self.length, 0, 0, 0, 0];
        tracer.call(tid, gate, libc::SYS_munmap as u32, arguments)?;
        Ok(())
    }
}

/// Makes a call that has to succeed.
fn ask(
    tracer: &mut Tracer,
    tid: i32,
    gate: u64,
    nr: libc::c_long,
    arguments: [u64; 6],
    step: &str,
) -> Result<u64, Unfinished> {
    let result = tracer.call(tid, gate, nr as u32, arguments)?;
    u64::try_from(result).map_err(|_| refused(step, result).into())
}

fn refused(step: &str, result: i64) -> Failure {
    let errno = i32::try_from(-result).unwrap_or(libc::EIO);
    let error = std::io::Error::from_raw_os_error(errno);
    let reason = match errno {
        libc::E2BIG => format!("{error}: 16 domains of Landlock are on it already"),
        libc::EPERM | libc::ENOSYS | libc::EACCES => {
            format!("{error}: a filter of its own may forbid it, and only root gets past that")
        }
        _ => error.to_string(),
    };
    Failure {
        step: format!("tightening: {step}"),
        error: reason,
        errno: Some(errno),
    }
}

impl Tracer {
    /// Takes a stopped task's registers, and keeps signals from it, to make calls in its stead.
    fn lend(&mut self, tid: i32) -> Result<(), Unfinished> {
        let Some(task) = self.tasks.get_mut(&tid) else {
            return Err(Unfinished::Gone);
        };
        if task.lent.is_some() {
            return Ok(());
        }
        let Some(registers) = gone(ptrace::registers(tid), tid)? else {
            return Err(failure(format!("task {tid} is in 32-bit mode")).into());
        };
        let mut pointer = [0; 8];
        let sequence = ptrace::restartable_sequence(tid)
            .filter(|place| ptrace::read_memory(tid, *place, &mut pointer).is_ok())
            .map(|place| (place, pointer))
            .filter(|(_, pointer)| *pointer != [0; 8]);
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

    /// Lets a task that lent its registers make a system call.
    fn call(
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
                    Some(stop) => self.hold(tid, stop),
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
        loop {
            self.resume(tid, ptrace::resume_for_one)?;
            // It has not stopped yet: no need to look.
            self.wait(PATIENCE)?;
            let stop = self.stop_of(tid)?.ok_or(Unfinished::Gone)?;
            if stop == Stop::Signal(libc::SIGTRAP) {
                let registers = gone(ptrace::registers(tid), tid)?.ok_or(Unfinished::Gone)?;
                if registers.instruction() == after {
                    return Ok(registers.result());
                }
            }
            // Somebody else's signal came first.
            self.hold(tid, stop);
        }
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
            or_gone(restored.map_err(std::io::Error::from), tid)?;
        }
        or_gone(ptrace::set_options(tid, ptrace::FOLLOW), tid)?;
        or_gone(ptrace::set_registers(tid, &lent.registers), tid)?;
        or_gone(ptrace::block_signals(tid, lent.blocked), tid)?;
        lent.held
            .into_iter()
            .try_for_each(|signal| or_gone(ptrace::signal_task(process, tid, signal), tid))
    }

    /// Remembers a signal that is not given to a task now.
    fn hold(&mut self, tid: i32, stop: Stop) {
        if let (Stop::Signal(signal), Some(task)) = (stop, self.tasks.get_mut(&tid))
            && let Some(lent) = &mut task.lent
        {
            lent.held.push(signal);
        }
    }
}

/// Finds an instruction in a task's memory that makes a system call: the one it has just come from, or
/// any other.
fn gate(tracer: &Tracer, tid: i32) -> Result<u64, Unfinished> {
    let mut bytes = [0; 2];
    let lent = tracer.tasks.get(&tid).and_then(|task| task.lent.as_ref());
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

/// Keeps this thread on the processor it is on, and lets it go where it may again when dropped.
///
/// A call that a task makes for us is a dozen turns between the two. Waking another processor for each
/// costs ten times as much, on a virtual machine above all.
struct Here(Option<CpuSet>);

impl Here {
    fn stay() -> Self {
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

fn gone<T>(result: std::io::Result<T>, tid: i32) -> Result<T, Unfinished> {
    result.map_err(|error| match error.raw_os_error() {
        Some(libc::ESRCH) => Unfinished::Gone,
        _ => Failure::at(format!("tracing task {tid}"))(error).into(),
    })
}

/// Most bytes of one mapping that are searched.
const MOST_CODE: u64 = 1 << 20;
