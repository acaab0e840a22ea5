//! Seizing tasks, and waiting until they have stopped.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use super::lent::Lent;
use super::tasks::status;
use crate::isolation::spawner::Failure;
use crate::sys::ptrace::{self, Stop};
use crate::sys::signal;

/// How long is waited before one looks why a task does not stop.
pub(super) const PATIENCE: Duration = Duration::from_millis(1);

/// How long a task that is killed may take to end.
const FAREWELL: Duration = Duration::from_millis(400);

/// Who traces the tasks of a sandbox.
pub(super) struct Tracer {
    pub tasks: BTreeMap<i32, Task>,
    deadline: Instant,
}

/// A task that is seized.
#[derive(Default)]
pub(super) struct Task {
    /// Its process; 0 until somebody needed to know.
    pub process: i32,
    /// How many filters it had before.
    pub filters: u32,
    /// Whether it can be made to execute one instruction without changing what it does at `SIGTRAP`: the
    /// kernel gives that signal to whoever ignores or blocks it by force, and forgets that it was so.
    pub steps: bool,
    /// How it stopped; `None` while it runs.
    pub stop: Option<Stop>,
    /// What is to be restored, while it makes calls in its stead.
    pub lent: Option<Lent>,
    /// Whether it has the layer.
    pub treated: bool,
}

impl Tracer {
    pub fn new(deadline: Instant) -> Self {
        Self {
            tasks: BTreeMap::new(),
            deadline,
        }
    }

    /// What follows has until then.
    pub fn begin_anew(&mut self, deadline: Instant) {
        self.deadline = deadline;
    }

    /// Seizes a task and asks it to stop. True when it was not known, whatever became of it.
    pub fn seize(&mut self, tid: i32) -> Result<bool, Failure> {
        if self.tasks.contains_key(&tid) {
            return Ok(false);
        }
        match ptrace::seize(tid) {
            Ok(()) => {
                self.tasks.insert(tid, Task::default());
                self.interrupt(tid)?;
            }
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => {
                let own = std::process::id().to_string();
                let state = status(tid, "State:");
                if matches!(state.as_deref(), None | Some("Z" | "X")) {
                    // It has ended, and will never run again.
                    return Ok(false);
                }
                match status(tid, "TracerPid:") {
                    // Seized at birth; its first stop is on its way.
                    Some(tracer) if tracer == own => {
                        self.tasks.insert(tid, Task::default());
                    }
                    Some(tracer) if tracer != "0" => {
                        return Err(failure(format!("task {tid} is traced by {tracer} already")));
                    }
                    _ => return Err(Failure::at(format!("seizing task {tid}"))(error)),
                }
            }
        }
        Ok(true)
    }

    /// Waits until every task has stopped on its way to user mode. When `stuck_may_wait`, one that
    /// sleeps uninterruptibly while all others have stopped is left for later. True when tasks came
    /// that were not known.
    pub fn settle(&mut self, stuck_may_wait: bool) -> Result<bool, Failure> {
        let mut came = false;
        loop {
            self.take_stops()?;
            came |= self.push_on()?;
            if self.tasks.values().all(|task| task.stop.is_some()) {
                return Ok(came);
            }
            self.in_time()?;
            if self.wait(PATIENCE)? {
                continue;
            }
            self.forget_the_gone();
            let stuck = |tid: &i32| status(*tid, "State:").is_none_or(|state| state == "D");
            let mut running = self.tasks.iter().filter(|(_, task)| task.stop.is_none());
            if stuck_may_wait && running.all(|(tid, _)| stuck(tid)) {
                return Ok(came);
            }
        }
    }

    /// Lets tasks that stopped elsewhere go on to where they can be treated. True when one of them has
    /// made another.
    fn push_on(&mut self) -> Result<bool, Failure> {
        let mut born = false;
        let elsewhere: Vec<_> = self
            .tasks
            .iter()
            .filter_map(|(tid, task)| Some((*tid, task.stop.filter(|s| *s != Stop::Trap)?)))
            .collect();
        for (tid, stop) in elsewhere {
            let signal = match stop {
                // It is given its signal, and stops on the way into the handler.
                Stop::Signal(signal) => signal,
                Stop::Event(libc::PTRACE_EVENT_EXEC) => {
                    // The thread that executed has taken the place and number of its process' first.
                    if let Ok(former) = ptrace::event_message(tid)
                        && former != tid
                    {
                        self.tasks.remove(&former);
                    }
                    0
                }
                Stop::Event(_) => {
                    // Seized at birth, it stops by itself.
                    if let Ok(child) = ptrace::event_message(tid) {
                        born |= !self.tasks.contains_key(&child);
                        self.tasks.entry(child).or_default();
                    }
                    0
                }
                _ => 0,
            };
            self.interrupt(tid)?;
            self.resume(tid, |tid| ptrace::resume(tid, signal))?;
        }
        Ok(born)
    }

    /// Waits until one task has stopped, or is gone (`None`).
    pub fn stop_of(&mut self, tid: i32) -> Result<Option<Stop>, Failure> {
        loop {
            match self.tasks.get(&tid).map(|task| task.stop) {
                None => return Ok(None),
                Some(Some(stop)) => return Ok(Some(stop)),
                Some(None) => {}
            }
            self.take_stop(tid)?;
            if self.tasks.get(&tid).is_some_and(|task| task.stop.is_none())
                && !self.wait(PATIENCE)?
            {
                self.forget_the_gone();
                self.in_time()?;
            }
        }
    }

    /// Lets a stopped task run by `how`. A task that was killed meanwhile is heard of later.
    pub fn resume(
        &mut self,
        tid: i32,
        how: impl FnOnce(i32) -> io::Result<()>,
    ) -> Result<(), Failure> {
        if let Some(task) = self.tasks.get_mut(&tid) {
            task.stop = None;
        }
        or_gone(how(tid), tid)
    }

    /// Asks a task to stop, or to stop once more.
    pub fn interrupt(&self, tid: i32) -> Result<(), Failure> {
        or_gone(ptrace::interrupt(tid), tid)
    }

    /// Takes every stop that is there.
    fn take_stops(&mut self) -> Result<(), Failure> {
        let running = self.tasks.iter().filter(|(_, task)| task.stop.is_none());
        for tid in running.map(|(tid, _)| *tid).collect::<Vec<_>>() {
            self.take_stop(tid)?;
        }
        Ok(())
    }

    fn take_stop(&mut self, tid: i32) -> Result<(), Failure> {
        match ptrace::stop_of(tid) {
            Ok(None) => {}
            Ok(Some(Stop::Ended)) => drop(self.tasks.remove(&tid)),
            Ok(stop) => self.tasks.entry(tid).or_default().stop = stop,
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {
                drop(self.tasks.remove(&tid));
            }
            Err(error) => return Err(Failure::at(format!("waiting for task {tid}"))(error)),
        }
        Ok(())
    }

    /// Waits until something has stopped, or for so long. False when nothing has.
    pub fn wait(&self, patience: Duration) -> Result<bool, Failure> {
        // Blocked in the spawner, and so here.
        signal::wait_for(libc::SIGCHLD, patience).map_err(Failure::at("waiting for the tasks"))
    }

    /// A thread that another one's exec(2) ended is not always heard of.
    fn forget_the_gone(&mut self) {
        self.tasks
            .retain(|tid, task| task.stop.is_some() || status(*tid, "State:").is_some());
    }

    /// # Errors
    ///
    /// When the time is up.
    pub fn in_time(&self) -> Result<(), Failure> {
        if Instant::now() < self.deadline {
            return Ok(());
        }
        let running = |(tid, task): (&i32, &Task)| task.stop.is_none().then(|| tid.to_string());
        let left: Vec<_> = self.tasks.iter().filter_map(running).take(8).collect();
        Err(failure(if left.is_empty() {
            "new tasks kept coming until the time was up".into()
        } else {
            format!("tasks did not stop in time: {}", left.join(", "))
        }))
    }

    pub fn all_treated(&self) -> bool {
        self.tasks.values().all(|task| task.treated)
    }

    /// Every process of which a task is seized.
    pub fn processes(&self) -> impl Iterator<Item = i32> {
        let mut all: Vec<_> = self.tasks.keys().map(|tid| self.process(*tid)).collect();
        all.sort_unstable();
        all.dedup();
        all.into_iter()
    }

    /// The process of a task, or the task itself when it cannot be told any more.
    pub fn process(&self, tid: i32) -> i32 {
        match self.tasks.get(&tid) {
            Some(task) if task.process != 0 => task.process,
            _ => status(tid, "Tgid:")
                .and_then(|process| process.parse().ok())
                .unwrap_or(tid),
        }
    }

    /// Lets those go that have the layer.
    pub fn release_treated(&mut self) -> Result<(), Failure> {
        let treated = self.tasks.iter().filter(|(_, task)| task.treated);
        for tid in treated.map(|(tid, _)| *tid).collect::<Vec<_>>() {
            self.release(tid)?;
        }
        Ok(())
    }

    /// Lets every task go as it was. One that cannot be let go, since it has not stopped, is killed.
    pub fn release_all(&mut self) -> Result<(), Failure> {
        let mut results = Ok(());
        for tid in self.tasks.keys().copied().collect::<Vec<_>>() {
            // All are tried before an error is reported.
            results = results.and(self.release(tid));
        }
        for (tid, process) in self
            .tasks
            .keys()
            .map(|tid| (*tid, self.process(*tid)))
            .collect::<Vec<_>>()
        {
            or_gone(ptrace::signal_task(process, tid, libc::SIGKILL), tid)?;
            self.tasks.entry(tid).or_default().stop = None;
        }
        // Nobody else hears of their end while they are traced.
        let until = Instant::now() + FAREWELL;
        while !self.tasks.is_empty() && Instant::now() < until {
            self.take_stops()?;
            self.wait(PATIENCE)?;
        }
        results
    }

    fn release(&mut self, tid: i32) -> Result<(), Failure> {
        self.give_back(tid)?;
        if self.tasks.get(&tid).is_some_and(|task| task.stop.is_none()) {
            return Ok(());
        }
        self.tasks.remove(&tid);
        or_gone(ptrace::detach(tid), tid)
    }
}

/// A task that is gone needs nothing more.
pub(super) fn or_gone(result: io::Result<()>, tid: i32) -> Result<(), Failure> {
    match result {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
            Err(Failure::at(format!("tracing task {tid}"))(error))
        }
        _ => Ok(()),
    }
}

pub(super) fn failure(error: String) -> Failure {
    Failure {
        step: "tightening".into(),
        error,
        errno: None,
    }
}
