//! What a process that holds keys gives up before it reads one.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// Hides this process' memory from other processes of the same user, and from core dumps.
///
/// See `PR_SET_DUMPABLE` in prctl(2): `/proc/PID/mem` and ptrace(2) are closed to them then.
///
/// # Errors
///
/// What prctl(2) answers.
pub fn hide_memory() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(
        DumpableBehavior::NotDumpable,
    )?)
}

/// Confines a service: memory hidden, no core files, and no gain of privilege by whatever it or its
/// sandboxes execute. Called before there are further threads, which then inherit it.
///
/// # Errors
///
/// What the kernel answers; a service that cannot be confined should not serve.
pub fn confine() -> io::Result<()> {
    hide_memory()?;
    rustix::process::setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    Ok(rustix::thread::set_no_new_privs(true)?)
}
