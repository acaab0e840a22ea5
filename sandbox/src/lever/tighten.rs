//! The `tighten` lever: something is taken from every task of the running workload, for good.
//!
//! Each task is stopped and made to take on a filter, and a domain of Landlock, of its own; see
//! [`inject`](crate::isolation::inject). No call of theirs is in the way of it, none can be: what was
//! taken stays taken if the supervisor ends, and costs nothing while the workload runs.

use std::collections::BTreeSet;
use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use super::exec;
use crate::isolation::Instance;
use crate::isolation::inject::Layer;
use crate::isolation::spawner::Failure;
use crate::syscall::{
    Action, CompileError, FilterSpec, SyscallRule, denied_errno, syscall_number, table,
};

/// What is taken.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tightening {
    /// Starting programs.
    Exec,
    /// System calls, by name.
    Calls(BTreeSet<String>),
}

impl fmt::Display for Tightening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exec => f.write_str("the right to start programs"),
            Self::Calls(names) => {
                let names: Vec<_> = names.iter().map(String::as_str).collect();
                write!(f, "the system calls {}", names.join(" "))
            }
        }
    }
}

/// Takes something from every task. Returns when none has it any more.
///
/// # Errors
///
/// When one task could not be reached, or a name is not that of a system call. In the first case none
/// executes an instruction until the sandbox is thawed or stopped.
pub fn tighten(instance: &mut dyn Instance, what: &Tightening) -> Result<(), Failure> {
    instance.tighten(&what.layer()?)
}

impl Tightening {
    /// Whether all that it names is there to be taken.
    pub fn is_known(&self) -> bool {
        match self {
            Self::Exec => true,
            Self::Calls(names) => names.iter().all(|name| table::is_syscall_name(name)),
        }
    }

    /// What the tasks have to take on for it.
    ///
    /// # Errors
    ///
    /// When a name is not that of a system call.
    pub fn layer(&self) -> Result<Layer, Failure> {
        let mut lost_rights = 0;
        let mut probe = None;
        let mut lost = BTreeSet::new();
        match self {
            Self::Exec => {
                lost_rights = LANDLOCK_ACCESS_FS_EXECUTE;
                lost.extend(exec::CALLS.iter().filter_map(|name| syscall_number(name)));
                // With null pointers it fails in any case: the number tells by what.
                probe = syscall_number("execve").map(|nr| (nr, denied_errno(nr)));
            }
            Self::Calls(names) => {
                for name in names {
                    if !table::is_syscall_name(name) {
                        return Err(failed(io::Error::other(format!(
                            "`{name}` is not a system call"
                        ))));
                    }
                    lost.extend(syscall_number(name));
                }
            }
        }
        Ok(Layer {
            lost_rights,
            filter: without(&lost).map_err(|error| failed(io::Error::other(error)))?,
            probe,
        })
    }
}

/// A filter that refuses these calls and no other.
fn without(lost: &BTreeSet<u32>) -> Result<crate::syscall::Program, CompileError> {
    let mut spec = FilterSpec::new(Action::Allow);
    for &nr in lost {
        let errno = u16::try_from(denied_errno(nr)).unwrap_or(libc::EPERM as u16);
        spec.rules
            .insert(nr, SyscallRule::always(Action::Errno(errno)));
    }
    spec.compile()
}

fn failed(error: io::Error) -> Failure {
    Failure::at("tightening")(error)
}

/// See landlock(7).
const LANDLOCK_ACCESS_FS_EXECUTE: u64 = 1;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::syscall::SeccompData;

    #[test]
    fn a_layer_refuses_what_is_taken_and_nothing_else() {
        let taken = |what: Tightening| {
            let filter = what.layer().unwrap().filter;
            let refused: Vec<_> = table::syscalls()
                .filter(|(nr, _)| {
                    filter.evaluate(&SeccompData::new(*nr, [0; 6])) != libc::SECCOMP_RET_ALLOW
                })
                .map(|(_, name)| name)
                .collect();
            refused
        };
        assert_eq!(taken(Tightening::Exec), exec::CALLS);
        let names = ["kill", "socket"].map(str::to_owned);
        assert_eq!(taken(Tightening::Calls(names.into())), ["socket", "kill"]);
    }

    #[test]
    fn a_name_that_no_system_call_has_is_refused() {
        let names = ["opennat".to_owned()];
        let failure = Tightening::Calls(names.into()).layer().unwrap_err();
        assert!(failure.error.contains("`opennat`"), "{failure}");
    }
}
