//! The layer, put on the tasks of one process after the other.

use std::collections::BTreeMap;

use super::Layer;
use super::lent::{TRAP, Unfinished};
use super::script::{Operands, Script, Step, TOGETHER};
use super::tasks::{self, field};
use super::tracer::{Tracer, failure, or_gone};
use crate::isolation::spawner::Failure;
use crate::sys::ptrace;

/// Takes the registers of every task that has stopped, to put a layer on it.
pub(super) fn borrow(tracer: &mut Tracer) -> Result<(), Failure> {
    let stopped = tracer.tasks.iter();
    let stopped = stopped.filter(|(_, task)| task.stop.is_some() && !task.treated);
    let fresh = stopped.filter(|(_, task)| task.lent.is_none());
    for tid in fresh.map(|(tid, _)| *tid).collect::<Vec<_>>() {
        let Some(known) = Known::of(tid) else {
            continue;
        };
        if let Some(task) = tracer.tasks.get_mut(&tid) {
            (task.process, task.filters) = (known.process, known.filters);
            task.steps = known.steps;
        }
        match tracer.lend(tid) {
            Ok(()) | Err(Unfinished::Gone) => {}
            Err(Unfinished::Failed(failure)) => return Err(failure),
        }
    }
    Ok(())
}

/// Puts the layer on every task that has stopped and does not have it. Of a process that is killed
/// meanwhile nothing is wanted.
pub(super) fn treat(tracer: &mut Tracer, layer: &Layer) -> Result<(), Failure> {
    borrow(tracer)?;
    let mut processes = BTreeMap::<i32, Vec<i32>>::new();
    for (tid, task) in &tracer.tasks {
        if task.lent.is_some() {
            processes.entry(task.process).or_default().push(*tid);
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
    let gate = tracer.gate(first)?;
    let steps = |tid: &i32| tracer.tasks.get(tid).is_some_and(|task| task.steps);
    let script = threads
        .iter()
        .all(steps)
        .then(|| Script::put(layer, first, gate));
    match script.flatten() {
        Some(script) => {
            let done = in_one_turn(tracer, layer, threads, &script);
            if let Err(error) = script.take_away() {
                // It must not execute what it does not know.
                or_gone(
                    ptrace::signal_task(tracer.process(first), first, libc::SIGKILL),
                    first,
                )?;
                return Err(Failure::at("tightening: giving code back")(error).into());
            }
            done?;
        }
        None => call_by_call(tracer, layer, threads, gate)?,
    }
    // The first is asked more than that.
    let asked = usize::from(layer.probe.is_some());
    for tid in &threads[asked..] {
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

/// Has the threads execute the calls that were put on a page of their code.
fn in_one_turn(
    tracer: &mut Tracer,
    layer: &Layer,
    threads: &[i32],
    script: &Script,
) -> Result<(), Unfinished> {
    let mut later = threads.iter();
    match tracer.execute(threads[0], script.first, script.end)? {
        (_, 0..) => drop(later.next()),
        (Some(Step::Filter), NOT_TOGETHER) => {
            // Any instruction of the script that makes a system call will do.
            let gate = script.call();
            load_one_by_one(tracer, threads, gate, script.operands)?;
        }
        (step, result) => return Err(refused(step.map_or("", Step::doing), result).into()),
    }
    if layer.lost_rights == 0 {
        return Ok(());
    }
    for tid in later {
        let (step, result) = tracer.execute(*tid, script.others, script.end)?;
        if result < 0 {
            return Err(refused(step.map_or("", Step::doing), result).into());
        }
    }
    Ok(())
}

/// The same where a process' code cannot be borrowed, or an `int3` would change what its threads do at
/// `SIGTRAP`.
fn call_by_call(
    tracer: &mut Tracer,
    layer: &Layer,
    threads: &[i32],
    gate: u64,
) -> Result<(), Unfinished> {
    let first = threads[0];
    let page = Page::map(tracer, first, gate, layer)?;
    if layer.lost_rights != 0 {
        let mut ask =
            |tid, nr, arguments, step: Step| ask(tracer, tid, gate, nr, arguments, step.doing());
        let create = libc::SYS_landlock_create_ruleset;
        let attributes = [
            page.operands.attributes(),
            size_of::<u64>() as u64,
            0,
            0,
            0,
            0,
        ];
        let ruleset = [
            ask(first, create, attributes, Step::Ruleset)?,
            0,
            0,
            0,
            0,
            0,
        ];
        for &tid in threads {
            let restrict = libc::SYS_landlock_restrict_self;
            ask(tid, restrict, ruleset, Step::Restrict)?;
        }
        ask(first, libc::SYS_close, ruleset, Step::Close)?;
    }
    let arguments = filtering(page.operands, TOGETHER);
    match tracer.call(first, gate, libc::SYS_seccomp as u32, arguments)? {
        0 => {}
        NOT_TOGETHER => load_one_by_one(tracer, threads, gate, page.operands)?,
        result => return Err(refused(Step::Filter.doing(), result).into()),
    }
    page.unmap(tracer, first, gate)
}

/// Threads that have different filters already do not take one together.
const NOT_TOGETHER: i64 = -(libc::ESRCH as i64);

fn load_one_by_one(
    tracer: &mut Tracer,
    threads: &[i32],
    gate: u64,
    operands: Operands,
) -> Result<(), Unfinished> {
    let (nr, arguments) = (libc::SYS_seccomp, filtering(operands, 0));
    for &tid in threads {
        ask(tracer, tid, gate, nr, arguments, Step::Filter.doing())?;
    }
    Ok(())
}

fn filtering(operands: Operands, flags: u64) -> [u64; 6] {
    let mode = u64::from(libc::SECCOMP_SET_MODE_FILTER);
    [mode, flags, operands.filter(), 0, 0, 0]
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
        let text = tasks::read(format!("/proc/{tid}/status")).ok()?;
        let signals = |name| u64::from_str_radix(field(&text, name)?, 16).ok();
        let (blocked, ignored) = (signals("SigBlk:")?, signals("SigIgn:")?);
        Some(Self {
            process: field(&text, "Tgid:")?.parse().ok()?,
            filters: field(&text, "Seccomp_filters:")?.parse().ok()?,
            steps: (blocked | ignored) & TRAP == 0,
        })
    }
}

/// Memory that is mapped for what the calls point to.
struct Page {
    operands: Operands,
    length: u64,
}

impl Page {
    fn map(tracer: &mut Tracer, tid: i32, gate: u64, layer: &Layer) -> Result<Self, Unfinished> {
        let length = Operands::length(&layer.filter);
        let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        let arguments = [0, length, protection, flags, u64::MAX, 0];
        let nr = libc::SYS_mmap;
        let at = ask(tracer, tid, gate, nr, arguments, "mapping a page")?;
        let operands = Operands { at };
        let bytes = operands.bytes(layer.lost_rights, &layer.filter);
        or_gone(ptrace::write_memory(tid, at, &bytes), tid)?;
        Ok(Self { operands, length })
    }

    fn unmap(self, tracer: &mut Tracer, tid: i32, gate: u64) -> Result<(), Unfinished> {
        // Where the layer itself takes munmap(2) away, the page stays.
        let arguments = [self.operands.at, self.length, 0, 0, 0, 0];
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
