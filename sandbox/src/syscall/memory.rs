//! Keeping memory either writable or executable, and knowing which ways round that are open.
//!
//! | way to run bytes one wrote | what closes it |
//! |---|---|
//! | `mprotect` to executable, or a mapping that is both | `PR_SET_MDWE` (Linux 6.3), else the filter |
//! | two views of one file, one writable and one executable | filter: no executable `MAP_SHARED` |
//! | an anonymous file, written and then executed or mapped | filter: no `memfd_create`, sealed or not |
//! | `/proc/self/mem`, which writes to read-only pages too | `/proc` mounted read-only, or Landlock |
//! | `READ_IMPLIES_EXEC`, `SHM_EXEC` | filter |
//!
//! `PR_SET_MDWE` alone closes the first of them only.

use std::fs::OpenOptions;
use std::io;

use super::program::{Program, SeccompData};
use super::rule::Action;
use super::table::syscall_number;
use crate::sys;

/// What stands against running memory the process has written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MemoryProtection {
    /// Written memory cannot become executable by `mprotect` or `mmap`.
    pub exec_gain: Way,
    /// No file can be mapped writable and executable at two places.
    pub double_mapping: Way,
    /// No anonymous file can be executed, nor mapped executable.
    pub memfd_exec: Way,
    /// The process cannot write its own code through `/proc/self/mem`.
    pub proc_mem: Way,
    /// Neither `personality` nor `shmat` makes mappings executable unasked.
    pub implied_exec: Way,
}

/// Whether one way round is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The kernel refuses it from now on.
    Closed,
    /// The process could still go it.
    Open,
}

impl MemoryProtection {
    /// Tells whether every way that is known is closed.
    pub fn is_full(&self) -> bool {
        self.open().next().is_none()
    }

    /// Names the ways that are still open.
    pub fn open(&self) -> impl Iterator<Item = &'static str> {
        [
            (self.exec_gain, "exec-gain"),
            (self.double_mapping, "double-mapping"),
            (self.memfd_exec, "memfd-exec"),
            (self.proc_mem, "proc-mem"),
            (self.implied_exec, "implied-exec"),
        ]
        .into_iter()
        .filter_map(|(way, name)| (way == Way::Open).then_some(name))
    }
}

/// Takes on what memory protection the kernel offers this process, and tells what holds then.
///
/// To be called in the workload's process once its mounts and Landlock are in place, and before
/// `filter`, the program that will be loaded next, is: what that will refuse is read off it, and
/// not tried. A kernel without `PR_SET_MDWE` is no error, the way is reported as open, unless the
/// filter closes it (see [`Profile::without_exec_gain`](super::Profile::without_exec_gain)).
///
/// # Errors
///
/// If the kernel has `PR_SET_MDWE` and refuses it for another reason than not knowing it.
pub fn protect(filter: Option<&Program>) -> io::Result<MemoryProtection> {
    match sys::memory::refuse_exec_gain() {
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => Err(error),
        _ => Ok(inspect(filter)),
    }
}

/// Tells what holds for this process now, and will once `filter` is loaded; changes nothing.
pub fn inspect(filter: Option<&Program>) -> MemoryProtection {
    let refuses = |name, args| filter.is_some_and(|filter| refused(filter, name, args));
    let (read, write, exec) = (
        libc::PROT_READ as u64,
        libc::PROT_WRITE as u64,
        libc::PROT_EXEC as u64,
    );
    let map = |prot: u64, flags: i32| refuses("mmap", [0, 4096, prot, flags as u64, u64::MAX, 0]);
    let mdwe = sys::memory::exec_gain_is_refused().unwrap_or(false);
    let gain_by_filter = map(read | write | exec, libc::MAP_PRIVATE)
        && refuses("mprotect", [0, 4096, read | exec, 0, 0, 0])
        && refuses("pkey_mprotect", [0, 4096, read | exec, 0, 0, 0]);
    MemoryProtection {
        exec_gain: closed_if(mdwe || gain_by_filter),
        double_mapping: closed_if(map(read | exec, libc::MAP_SHARED)),
        memfd_exec: closed_if(
            // The seal keeps it from `execve`, not from `mmap`.
            refuses(
                "memfd_create",
                [0, libc::MFD_NOEXEC_SEAL.into(), 0, 0, 0, 0],
            ) && refuses("memfd_create", [0; 6])
                && refuses("execveat", [3, 0, 0, 0, libc::AT_EMPTY_PATH as u64, 0]),
        ),
        proc_mem: closed_if(!own_memory_is_a_writable_file()),
        implied_exec: closed_if(
            refuses("personality", [READ_IMPLIES_EXEC, 0, 0, 0, 0, 0])
                && refuses("shmat", [0, 0, SHM_EXEC, 0, 0, 0]),
        ),
    }
}

fn refused(filter: &Program, name: &str, args: [u64; 6]) -> bool {
    // A notified call is as good as refused: a supervisor never continues what a profile denies.
    syscall_number(name).is_some_and(|nr| {
        let verdict = filter.evaluate(&SeccompData::new(nr, args));
        !matches!(
            Action::from_verdict(verdict),
            Some(Action::Allow | Action::Log)
        )
    })
}

fn own_memory_is_a_writable_file() -> bool {
    OpenOptions::new()
        .write(true)
        .open("/proc/self/mem")
        .is_ok()
}

fn closed_if(closed: bool) -> Way {
    if closed { Way::Closed } else { Way::Open }
}

const READ_IMPLIES_EXEC: u64 = 0x0040_0000;
const SHM_EXEC: u64 = 0o100_000;
