//! Rules about one system call: what happens to it, and on what its arguments decide.

use std::fmt;

/// What happens to a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Action {
    /// The kernel runs it.
    Allow,
    /// The kernel runs it and writes a line to the audit log.
    Log,
    /// The supervisor is asked, and answers in the kernel's place.
    Notify,
    /// It fails with this error number, 0 to 4095, without being run.
    Errno(u16),
    /// The caller gets `SIGSYS`.
    Trap,
    /// Every thread of the caller is killed.
    Kill,
}

impl Action {
    /// Returns the verdict as the kernel reads it, `SECCOMP_RET_*`.
    pub fn verdict(self) -> u32 {
        match self {
            Self::Allow => libc::SECCOMP_RET_ALLOW,
            Self::Log => libc::SECCOMP_RET_LOG,
            Self::Notify => libc::SECCOMP_RET_USER_NOTIF,
            Self::Errno(errno) => libc::SECCOMP_RET_ERRNO | u32::from(errno),
            Self::Trap => libc::SECCOMP_RET_TRAP,
            Self::Kill => libc::SECCOMP_RET_KILL_PROCESS,
        }
    }

    /// Names a verdict, if it is one that [`Action::verdict`] gives.
    pub fn from_verdict(verdict: u32) -> Option<Self> {
        Some(match verdict & libc::SECCOMP_RET_ACTION_FULL {
            libc::SECCOMP_RET_ALLOW => Self::Allow,
            libc::SECCOMP_RET_LOG => Self::Log,
            libc::SECCOMP_RET_USER_NOTIF => Self::Notify,
            libc::SECCOMP_RET_ERRNO => {
                Self::Errno((verdict & libc::SECCOMP_RET_DATA).try_into().ok()?)
            }
            libc::SECCOMP_RET_TRAP => Self::Trap,
            libc::SECCOMP_RET_KILL_PROCESS => Self::Kill,
            _ => return None,
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow => f.write_str("allow"),
            Self::Log => f.write_str("log"),
            Self::Notify => f.write_str("notify"),
            Self::Errno(errno) => write!(f, "errno {errno}"),
            Self::Trap => f.write_str("trap"),
            Self::Kill => f.write_str("kill"),
        }
    }
}

/// A question about one argument register, 0 to 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ArgTest {
    /// The lower 32 bits, masked, are this value. The upper half is ignored.
    ///
    /// Right for whatever the kernel takes as `int` or `unsigned int`, such as an ioctl command:
    /// compared with 64 bits, `TIOCSTI + 0x1_0000_0000` would be another command to the filter
    /// and the same one to the kernel.
    Low {
        /// Which argument.
        index: u8,
        /// Which bits count.
        mask: u32,
        /// What those bits have to be.
        value: u32,
    },
    /// All 64 bits, masked, are this value. Right for what the kernel takes as `unsigned long`.
    Full {
        /// Which argument.
        index: u8,
        /// Which bits count.
        mask: u64,
        /// What those bits have to be.
        value: u64,
    },
    /// The lower 32 bits, unsigned, are in this range, ends included. The upper half is ignored.
    LowBetween {
        /// Which argument.
        index: u8,
        /// The least that passes.
        min: u32,
        /// The most that passes.
        max: u32,
    },
    /// All 64 bits, unsigned, are in this range, ends included.
    Between {
        /// Which argument.
        index: u8,
        /// The least that passes.
        min: u64,
        /// The most that passes.
        max: u64,
    },
}

impl ArgTest {
    /// Asks whether a 32-bit argument is exactly `value`.
    pub const fn low_is(index: u8, value: u32) -> Self {
        Self::Low {
            index,
            mask: u32::MAX,
            value,
        }
    }

    /// Asks whether a 32-bit argument has none of the bits of `mask`.
    pub const fn low_without(index: u8, mask: u32) -> Self {
        Self::Low {
            index,
            mask,
            value: 0,
        }
    }

    /// Asks whether a 32-bit argument is from `min` to `max`, ends included.
    pub const fn low_between(index: u8, min: u32, max: u32) -> Self {
        Self::LowBetween { index, min, max }
    }

    /// Asks whether a 32-bit argument has all of the bits of `mask`.
    pub const fn low_with(index: u8, mask: u32) -> Self {
        Self::Low {
            index,
            mask,
            value: mask,
        }
    }

    /// Asks whether a 64-bit argument has none of the bits of `mask`.
    pub const fn full_without(index: u8, mask: u64) -> Self {
        Self::Full {
            index,
            mask,
            value: 0,
        }
    }

    /// Answers the question for one call; what the compiled filter has to agree with.
    pub fn holds(&self, args: &[u64; 6]) -> bool {
        let arg = |index: u8| args.get(usize::from(index)).copied();
        match *self {
            Self::Low { index, mask, value } => {
                arg(index).is_some_and(|arg| (arg as u32) & mask == value)
            }
            Self::Full { index, mask, value } => arg(index).is_some_and(|arg| arg & mask == value),
            Self::LowBetween { index, min, max } => {
                arg(index).is_some_and(|arg| (min..=max).contains(&(arg as u32)))
            }
            Self::Between { index, min, max } => {
                arg(index).is_some_and(|arg| (min..=max).contains(&arg))
            }
        }
    }

    pub(super) fn index(&self) -> u8 {
        let (Self::Low { index, .. }
        | Self::Full { index, .. }
        | Self::LowBetween { index, .. }
        | Self::Between { index, .. }) = self;
        *index
    }

    pub(super) fn can_hold(&self) -> bool {
        match *self {
            Self::Low { mask, value, .. } => value & !mask == 0,
            Self::Full { mask, value, .. } => value & !mask == 0,
            Self::LowBetween { min, max, .. } => min <= max,
            Self::Between { min, max, .. } => min <= max,
        }
    }
}

/// What happens to one system call, depending on its arguments.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SyscallRule {
    /// Alternatives in order: the first whose tests all hold decides.
    pub conditional: Vec<(Vec<ArgTest>, Action)>,
    /// What happens if no alternative holds.
    pub otherwise: Action,
}

impl SyscallRule {
    /// Treats every call alike, whatever its arguments.
    pub fn always(action: Action) -> Self {
        Self {
            conditional: Vec::new(),
            otherwise: action,
        }
    }

    /// Decides one call; what the compiled filter has to agree with.
    pub fn decide(&self, args: &[u64; 6]) -> Action {
        self.conditional
            .iter()
            .find(|(tests, _)| tests.iter().all(|test| test.holds(args)))
            .map_or(self.otherwise, |(_, action)| *action)
    }

    /// Lists every action the rule can come to.
    pub fn actions(&self) -> impl Iterator<Item = Action> {
        let conditional = self.conditional.iter().map(|(_, action)| *action);
        conditional.chain([self.otherwise])
    }

    /// Drops the alternatives that change nothing, so that equal rules become equal ranges.
    pub(super) fn simplified(&self) -> Self {
        let mut rule = self.clone();
        if let Some(end) = rule.conditional.iter().position(|(t, _)| t.is_empty()) {
            rule.otherwise = rule.conditional[end].1;
            rule.conditional.truncate(end);
        }
        while rule
            .conditional
            .last()
            .is_some_and(|(_, action)| *action == rule.otherwise)
        {
            rule.conditional.pop();
        }
        rule
    }
}
