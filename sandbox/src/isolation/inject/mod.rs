//! A further layer on every task of a running sandbox, whether it wants it or not.
//!
//! ```text
//! seize ─▶ list again until nothing is new ─▶ all are stopped      meanwhile the order is recorded
//!                                              │ each process: filter over all threads, Landlock
//!                                              │ in each thread, what came of it
//! let go ◀─ registers and signals as they were ◀┘
//! ```
//!
//! Done by the spawner, which has one thread, so that no program that uses the SDK gets stops of tasks
//! it knows nothing of. Seizing is what freezes: a task that is seized stops before its next
//! instruction, and what it forks meanwhile is seized at birth. The cgroup's freezer would keep a task
//! from making the very calls that are put into it.
//!
//! A layer only narrows (seccomp(2), landlock(7)), so a second one does no harm. When something does
//! not work out the sandbox is left frozen, or stopped by `SIGSTOP`, and the failure says why; a task
//! that did not even stop is killed.

// Registers and instructions are the processor's own.
#[cfg(target_arch = "x86_64")]
mod lent;
#[cfg(target_arch = "x86_64")]
mod remote;
#[cfg(target_arch = "x86_64")]
mod script;
mod tasks;
#[cfg(target_arch = "x86_64")]
mod tracer;

#[cfg(target_arch = "x86_64")]
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::spawner::Failure;
use super::trees::Namespaces;
use crate::syscall::{Program, SeccompData, syscall_number};
#[cfg(target_arch = "x86_64")]
use lent::Here;
pub use tasks::Target;
#[cfg(target_arch = "x86_64")]
use tasks::Tasks;
#[cfg(target_arch = "x86_64")]
use tracer::Tracer;

/// How long all of it may take: less than the spawner is waited for.
#[cfg(target_arch = "x86_64")]
const DEADLINE: Duration = Duration::from_millis(1200);

/// What every task takes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Rights of Landlock that are lost everywhere, `LANDLOCK_ACCESS_FS_*`; 0 for no domain.
    pub lost_rights: u64,
    /// A filter that allows everything but what is lost.
    pub filter: Program,
    /// A call to be tried with null pointers afterwards, and the error number it then fails with.
    pub probe: Option<(u32, i32)>,
}

/// The tasks of a sandbox, of which none executes an instruction. Whatever is left of them when this process
/// ends is killed.
#[cfg(target_arch = "x86_64")]
pub struct Halted {
    tracer: Tracer,
    tasks: Tasks,
    _here: Here,
}

#[cfg(target_arch = "x86_64")]
impl Halted {
    /// Stops every task of a sandbox but its init.
    ///
    /// # Errors
    ///
    /// [`Failure`] when one task did not stop; none of them executes an instruction then.
    pub fn begin(namespaces: &Namespaces, target: Target) -> Result<Self, Failure> {
        let mut halted = Self {
            tracer: Tracer::new(Instant::now() + DEADLINE),
            tasks: Tasks::of(target, namespaces)?,
            _here: Here::stay(),
        };
        match halted.stop_everyone() {
            Ok(()) => Ok(halted),
            Err(failure) => {
                halted.end(Err(failure.clone()))?;
                Err(failure)
            }
        }
    }

    /// Puts a layer on them and lets them go. Returns when all have it.
    ///
    /// # Errors
    ///
    /// [`Failure`] when one task could not be given it; none of them executes an instruction then.
    pub fn inject(mut self, layer: &Layer) -> Result<(), Failure> {
        self.tracer.begin_anew(Instant::now() + DEADLINE);
        let done = self.treat_everyone(layer);
        self.end(done)
    }

    fn stop_everyone(&mut self) -> Result<(), Failure> {
        // Listed anew until a pass over what is there, begun when everything known had stopped, finds
        // nothing unknown: then nothing untreated is left that could make another task.
        loop {
            let mut fresh = false;
            for tid in self.tasks.list()? {
                fresh |= self.tracer.seize(tid)?;
            }
            fresh |= self.tracer.settle(true)?;
            if !fresh {
                break;
            }
            self.tracer.in_time()?;
        }
        remote::borrow(&mut self.tracer)
    }

    fn treat_everyone(&mut self, layer: &Layer) -> Result<(), Failure> {
        let (tracer, tasks) = (&mut self.tracer, &self.tasks);
        tasks.thaw()?;
        remote::treat(tracer, layer)?;
        if tracer.all_treated() {
            return tasks.let_run(tracer.processes());
        }
        // What is left waits in the kernel for something that another task may have to do, as a parent in
        // vfork(2) does. It executes nothing before it stops; the others have the layer, and so has all
        // that they make from now on.
        tasks.let_run(tracer.processes())?;
        tracer.release_treated()?;
        while !tracer.all_treated() {
            tracer.settle(false)?;
            remote::treat(tracer, layer)?;
            tracer.in_time()?;
        }
        Ok(())
    }

    fn end(mut self, done: Result<(), Failure>) -> Result<(), Failure> {
        if done.is_err() {
            self.tasks.hold();
        }
        let released = self.tracer.release_all();
        done.and(released)
    }
}

/// The tasks of a sandbox, stopped: not on this architecture.
#[cfg(not(target_arch = "x86_64"))]
pub struct Halted(std::convert::Infallible);

#[cfg(not(target_arch = "x86_64"))]
impl Halted {
    /// # Errors
    ///
    /// Always.
    pub fn begin(_: &Namespaces, _: Target) -> Result<Self, Failure> {
        Err(Failure {
            step: "tightening".into(),
            error: "only x86-64 has it".into(),
            errno: None,
        })
    }

    /// # Errors
    ///
    /// Never called.
    pub fn inject(self, _: &Layer) -> Result<(), Failure> {
        match self.0 {}
    }
}

/// What on this host, or in this filter, stands against putting a layer on a sandbox.
pub fn obstacle(filter: &Program, privileged: bool) -> Option<String> {
    if !cfg!(target_arch = "x86_64") {
        return Some("only x86-64 has it".into());
    }
    let scope = std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope");
    if scope.is_ok_and(|scope| scope.trim() == "3") {
        return Some("kernel.yama.ptrace_scope is 3: nobody traces anything".into());
    }
    if privileged {
        return None;
    }
    // Root gets past the filter; an ordinary user has to be let.
    let mode = u64::from(libc::SECCOMP_SET_MODE_FILTER);
    let needed = [
        (
            "mmap",
            [
                0,
                4096,
                (libc::PROT_READ | libc::PROT_WRITE) as u64,
                0,
                0,
                0,
            ],
        ),
        (
            "seccomp",
            [mode, libc::SECCOMP_FILTER_FLAG_TSYNC, 0, 0, 0, 0],
        ),
        ("landlock_create_ruleset", [0; 6]),
        ("landlock_restrict_self", [0; 6]),
        ("close", [0; 6]),
    ];
    let refused = |name: &str, arguments| {
        let call = syscall_number(name).map(|nr| SeccompData::new(nr, arguments));
        call.is_none_or(|call| filter.evaluate(&call) != libc::SECCOMP_RET_ALLOW)
    };
    let name = needed
        .iter()
        .find(|(name, arguments)| refused(name, *arguments));
    name.map(|(name, _)| format!("the policy denies `{name}`, and only root gets past that"))
}
