//! A further layer on every task of a running sandbox, whether it wants it or not.
//!
//! ```text
//! seize ─▶ list again until nothing is new ─▶ all are stopped
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

/// Puts a layer on every task of a sandbox but its init. Returns when all have it.
///
/// # Errors
///
/// [`Failure`] when one task could not be given it; none of them executes an instruction then.
#[cfg(target_arch = "x86_64")]
pub fn inject(namespaces: &Namespaces, target: &Target, layer: &Layer) -> Result<(), Failure> {
    let mut tracer = Tracer::new(Instant::now() + DEADLINE);
    let tasks = Tasks::of(target, namespaces)?;
    let done = every_task(&mut tracer, &tasks, layer);
    if done.is_err() {
        tasks.hold();
    }
    let released = tracer.release_all();
    done.and(released)
}

/// Puts a layer on every task of a sandbox: not on this architecture.
///
/// # Errors
///
/// Always.
#[cfg(not(target_arch = "x86_64"))]
pub fn inject(_: &Namespaces, _: &Target, _: &Layer) -> Result<(), Failure> {
    Err(Failure {
        step: "tightening".into(),
        error: "only x86-64 has it".into(),
        errno: None,
    })
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

#[cfg(target_arch = "x86_64")]
fn every_task(tracer: &mut Tracer, tasks: &Tasks<'_>, layer: &Layer) -> Result<(), Failure> {
    // Listed anew until a pass over what is there, begun when everything known had stopped, finds
    // nothing unknown: then nothing untreated is left that could make another task.
    loop {
        let mut fresh = false;
        for tid in tasks.list()? {
            fresh |= tracer.seize(tid)?;
        }
        fresh |= tracer.settle(true)?;
        if !fresh {
            break;
        }
        tracer.in_time()?;
    }
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
