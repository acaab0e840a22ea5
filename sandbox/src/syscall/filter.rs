//! From rules about system calls to a seccomp program.
//!
//! ```text
//! architecture ─▶ number ─▶ tree over ranges of numbers ─▶ verdict
//!  not ours: kill  x32: kill                            └─▶ argument checks ─▶ verdict
//! ```
//!
//! Numbers with the same verdict are merged into ranges and found by a balanced tree, because the
//! kernel runs the filter once per number when it is loaded, to fill its cache of calls that are
//! always allowed. Arguments are looked at only after the number is known, for the same cache: a
//! program that loads an argument first is cacheable for no call at all.
//!
//! Which calls a workload gets is decided in [`super::profile`].

use std::collections::BTreeMap;

use super::assembler::{Segment, assemble};
use super::program::{Program, SeccompData};
use super::rule::{Action, SyscallRule};
use super::table::highest_syscall;

/// What happens to every system call: the meaning of a filter, before it is a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterSpec {
    /// The rules, by number.
    pub rules: BTreeMap<u32, SyscallRule>,
    /// What happens to numbers up to the highest known one that have no rule.
    pub default: Action,
}

impl FilterSpec {
    /// Starts with no rules.
    pub fn new(default: Action) -> Self {
        Self {
            rules: BTreeMap::new(),
            default,
        }
    }

    /// Decides one call from the rules alone.
    ///
    /// This is the definition; [`FilterSpec::compile`] is an implementation of it. Calls of another
    /// architecture (also of the 32-bit entry of this one) and of the x32 convention are killed.
    /// Numbers nobody knew when this was built fail as on a kernel that has not got them.
    pub fn decide(&self, data: &SeccompData) -> Action {
        if data.arch != NATIVE_ARCH || data.nr >= NR_SPACE {
            return Action::Kill;
        }
        if data.nr > self.highest() {
            return Action::Errno(ENOSYS);
        }
        match self.rules.get(&data.nr) {
            Some(rule) => rule.decide(&data.args),
            None => self.default,
        }
    }

    /// Tells whether some call would be put to the supervisor.
    pub fn notifies(&self) -> bool {
        let rules = self.rules.values().flat_map(SyscallRule::actions);
        rules
            .chain([self.default])
            .any(|action| action == Action::Notify)
    }

    /// Lays the rules out as a program.
    ///
    /// # Errors
    ///
    /// [`CompileError::Argument`] and [`CompileError::Unsatisfiable`] name the rule at fault,
    /// [`CompileError::Errno`] an error number the kernel would clip, and
    /// [`CompileError::TooLong`] says that the kernel would not take the result.
    pub fn compile(&self) -> Result<Program, CompileError> {
        self.check()?;
        assemble(&self.segments())
    }

    fn highest(&self) -> u32 {
        let ruled = self.rules.keys().next_back().copied().unwrap_or(0);
        highest_syscall().max(ruled)
    }

    fn check(&self) -> Result<(), CompileError> {
        let bad_errno = |action: Action| match action {
            Action::Errno(errno) if errno > MAX_ERRNO => Err(CompileError::Errno { errno }),
            _ => Ok(()),
        };
        bad_errno(self.default)?;
        for (&nr, rule) in &self.rules {
            if nr >= NR_SPACE {
                return Err(CompileError::Number { nr });
            }
            rule.actions().try_for_each(bad_errno)?;
            for test in rule.conditional.iter().flat_map(|(tests, _)| tests) {
                if test.index() > 5 {
                    return Err(CompileError::Argument {
                        nr,
                        index: test.index(),
                    });
                }
                if !test.can_hold() {
                    return Err(CompileError::Unsatisfiable {
                        nr,
                        index: test.index(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Cuts the space of numbers into the longest ranges under one rule.
    fn segments(&self) -> Vec<Segment> {
        let highest = self.highest();
        let mut segments: Vec<Segment> = Vec::new();
        let mut push = |first: u32, rule: SyscallRule| {
            if segments.last().is_none_or(|last| last.rule != rule) {
                segments.push(Segment { first, rule });
            }
        };
        for nr in 0..=highest {
            push(
                nr,
                match self.rules.get(&nr) {
                    Some(rule) => rule.simplified(),
                    None => SyscallRule::always(self.default),
                },
            );
        }
        push(highest + 1, SyscallRule::always(Action::Errno(ENOSYS)));
        push(NR_SPACE, SyscallRule::always(Action::Kill));
        segments
    }
}

/// Why rules cannot become a filter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// A call has six arguments, 0 to 5.
    #[error("system call {nr} has no argument {index}: arguments are 0 to 5")]
    Argument {
        /// The call the rule is for.
        nr: u32,
        /// The argument asked about.
        index: u8,
    },
    /// No value passes the test, so the alternative would silently never apply.
    #[error("no value of argument {index} of system call {nr} can pass this test")]
    Unsatisfiable {
        /// The call the rule is for.
        nr: u32,
        /// The argument asked about.
        index: u8,
    },
    /// The kernel clips larger error numbers to 4095.
    #[error("error number {errno} is too large: use at most 4095")]
    Errno {
        /// The number given.
        errno: u16,
    },
    /// The number belongs to another calling convention, which is killed as a whole.
    #[error("{nr:#x} is not the number of a native system call")]
    Number {
        /// The number given.
        nr: u32,
    },
    /// The kernel takes at most 4096 instructions.
    #[error(
        "the filter has {instructions} instructions, the kernel takes 4096: use fewer argument checks"
    )]
    TooLong {
        /// How many there would be.
        instructions: usize,
    },
    /// An instruction is unknown or jumps out of the program.
    #[error("instruction {at} of the filter is malformed")]
    Malformed {
        /// Where, counted from 0.
        at: usize,
    },
}

/// The calling convention of this build, as the kernel names it (`AUDIT_ARCH_*`).
#[cfg(target_arch = "x86_64")]
pub const NATIVE_ARCH: u32 = 0xc000_003e;
/// The calling convention of this build, as the kernel names it (`AUDIT_ARCH_*`).
#[cfg(target_arch = "aarch64")]
pub const NATIVE_ARCH: u32 = 0xc000_00b7;

/// No native number is this large. From here on are the calls of the x32 convention, which shares
/// its architecture with x86-64 and sets this bit, and negative numbers.
const NR_SPACE: u32 = 0x4000_0000;
const ENOSYS: u16 = libc::ENOSYS as u16;
const MAX_ERRNO: u16 = 4095;

#[cfg(test)]
mod tests;
