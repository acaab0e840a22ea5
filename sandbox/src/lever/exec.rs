//! The `exec` lever: whether the workload may start programs.
//!
//! Where a rule may take the right back, each start of a program is put to the supervisor. It answers
//! from a switch and looks at nothing that a pointer leads to, so that letting the kernel go on
//! (`Continue`) decides nothing that could be changed behind its back. It takes effect at the next
//! start; one that was let go on is under way. Reversible.
//!
//! Where nobody listens (another filter in the chain has the one listener there is), the right is taken
//! by [`tighten`](super::tighten), for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::isolation::Instance;
use crate::isolation::spawner::Failure;
use crate::syscall::profile::{Fate, Profile};
use crate::syscall::{SeccompData, syscall_name};

/// The calls that start programs.
pub const CALLS: [&str; 2] = ["execve", "execveat"];

/// Lets programs be started, or no more.
///
/// # Errors
///
/// When the right is to be given back and was taken for good, or could not be taken.
pub fn set(instance: &mut dyn Instance, allowed: bool) -> Result<(), Failure> {
    instance.exec(allowed)
}

/// What stands between the workload and its next program. Clones are the same gate.
#[derive(Clone, Debug)]
pub struct Gate {
    profile: Arc<Profile>,
    open: Arc<AtomicBool>,
}

impl Gate {
    /// An open gate, before which stand the starts of programs that the profile allows.
    pub fn new(profile: Profile) -> Self {
        Self {
            profile: Arc::new(profile),
            open: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Opens or closes it.
    pub fn set(&self, open: bool) {
        self.open.store(open, Ordering::SeqCst);
    }

    /// Whether a notified call is the start of a program, of a kind that the profile allows, while the
    /// gate is open.
    pub fn lets(&self, call: &SeccompData) -> bool {
        syscall_name(call.nr).is_some_and(|name| CALLS.contains(&name))
            && self.profile.fate(call.nr, &call.args) == Fate::Allow
            && self.open.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::syscall::syscall_number;

    #[test]
    fn only_what_the_profile_allows_goes_through_and_only_while_the_gate_is_open() {
        let call = |name, args| SeccompData::new(syscall_number(name).unwrap(), args);
        let execve = call("execve", [1, 2, 3, 0, 0, 0]);
        let by_descriptor = call("execveat", [3, 2, 3, 0, libc::AT_EMPTY_PATH as u64, 0]);
        let gate = Gate::new(Profile::named("default").unwrap());
        assert!(gate.lets(&execve));
        assert!(gate.lets(&call("execveat", [3, 2, 3, 0, 0, 0])));
        assert!(!gate.lets(&by_descriptor));
        for other in ["unshare", "socket", "openat", "ptrace"] {
            assert!(!gate.lets(&call(other, [0; 6])), "{other}");
        }
        gate.set(false);
        assert!(!gate.lets(&execve));
        gate.clone().set(true);
        assert!(gate.lets(&execve));
        let denied = Profile::named("default").unwrap().deny(["execve"]).unwrap();
        assert!(!Gate::new(denied).lets(&execve));
    }
}
