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

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::program::{
    AND, ARCH_OFFSET, Instruction, JA, JEQ, JGE, JGT, LD_ABS, NR_OFFSET, Program, RET, SeccompData,
};
use super::table::highest_syscall;

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

    fn index(&self) -> u8 {
        let (Self::Low { index, .. }
        | Self::Full { index, .. }
        | Self::LowBetween { index, .. }
        | Self::Between { index, .. }) = self;
        *index
    }

    fn can_hold(&self) -> bool {
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
    fn simplified(&self) -> Self {
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
        Assembler::default().finish(&self.segments())
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

/// Consecutive numbers under one rule, up to where the next segment begins.
#[derive(Clone, Debug)]
struct Segment {
    first: u32,
    rule: SyscallRule,
}

/// A stretch of numbers under one rule with a few single numbers of another.
///
/// Each exception costs one comparison; as segments of their own they would cost two.
struct Run<'a> {
    first: u32,
    rule: &'a SyscallRule,
    exceptions: Vec<(u32, &'a SyscallRule)>,
}

fn runs(segments: &[Segment]) -> Vec<Run<'_>> {
    let mut runs: Vec<Run<'_>> = Vec::new();
    let mut rest = segments;
    while let [head, ..] = rest {
        let mut run = Run {
            first: head.first,
            rule: &head.rule,
            exceptions: Vec::new(),
        };
        rest = &rest[1..];
        while let [single, back, ..] = rest
            && back.rule == *run.rule
            && back.first == single.first + 1
            && run.exceptions.len() < MAX_EXCEPTIONS
        {
            run.exceptions.push((single.first, &single.rule));
            rest = &rest[2..];
        }
        runs.push(run);
    }
    runs
}

/// Where an instruction is, counted from the end of the program.
type Position = usize;

/// Writes the program backwards, so that everything jumped to is already in place.
#[derive(Default)]
struct Assembler {
    reversed: Vec<Instruction>,
    verdicts: HashMap<Action, Position>,
    blocks: HashMap<SyscallRule, Position>,
}

impl Assembler {
    fn finish(mut self, segments: &[Segment]) -> Result<Program, CompileError> {
        let runs = runs(segments);
        let tree = self.tree(&runs);
        self.goto(tree);
        self.push(LD_ABS, NR_OFFSET);
        let dispatch = self.here();
        let kill = self.verdict(Action::Kill);
        // The jump to the dispatch must fall through: `kill` may just have been written after it.
        self.branch(JEQ, NATIVE_ARCH, dispatch, kill);
        self.push(LD_ABS, ARCH_OFFSET);
        self.reversed.reverse();
        Program::new(self.reversed)
    }

    fn tree(&mut self, runs: &[Run<'_>]) -> Position {
        match runs {
            [] => self.verdict(Action::Kill),
            [run] => self.run(run),
            _ => {
                let (left, right) = runs.split_at(runs.len() / 2);
                let from = right[0].first;
                let right = self.tree(right);
                let left = self.tree(left);
                self.branch(JGE, from, right, left)
            }
        }
    }

    fn run(&mut self, run: &Run<'_>) -> Position {
        let mut next = self.rule(run.rule);
        for (nr, rule) in run.exceptions.iter().rev() {
            let exception = self.rule(rule);
            next = self.branch(JEQ, *nr, exception, next);
        }
        next
    }

    fn rule(&mut self, rule: &SyscallRule) -> Position {
        if rule.conditional.is_empty() {
            return self.verdict(rule.otherwise);
        }
        if let Some(block) = self.blocks.get(rule) {
            return *block;
        }
        let mut next = self.verdict(rule.otherwise);
        for (tests, action) in rule.conditional.iter().rev() {
            let mut pass = self.verdict(*action);
            for test in tests.iter().rev() {
                pass = self.test(test, pass, next);
            }
            next = pass;
        }
        self.blocks.insert(rule.clone(), next);
        next
    }

    fn test(&mut self, test: &ArgTest, pass: Position, fail: Position) -> Position {
        match *test {
            ArgTest::Low { index, mask, value } => {
                self.masked(Half::Low, index, mask, value, pass, fail)
            }
            ArgTest::Full { index, mask, value } => {
                let (mask_low, mask_high) = halves(mask);
                let (value_low, value_high) = halves(value);
                let low = self.masked(Half::Low, index, mask_low, value_low, pass, fail);
                self.masked(Half::High, index, mask_high, value_high, low, fail)
            }
            ArgTest::LowBetween { index, min, max } => {
                let below = self.branch(JGT, max, fail, pass);
                self.branch(JGE, min, below, fail);
                self.load(Half::Low, index)
            }
            ArgTest::Between { index, min, max } => {
                let below = self.at_most(index, max, pass, fail);
                self.at_least(index, min, below, fail)
            }
        }
    }

    fn masked(
        &mut self,
        half: Half,
        index: u8,
        mask: u32,
        value: u32,
        pass: Position,
        fail: Position,
    ) -> Position {
        if mask == 0 {
            return pass;
        }
        self.branch(JEQ, value, pass, fail);
        if mask != u32::MAX {
            self.push(AND, mask);
        }
        self.load(half, index)
    }

    fn at_least(&mut self, index: u8, min: u64, pass: Position, fail: Position) -> Position {
        if min == 0 {
            return pass;
        }
        let (low, high) = halves(min);
        self.branch(JGE, low, pass, fail);
        let same_high = self.load(Half::Low, index);
        let not_above = self.branch(JEQ, high, same_high, fail);
        self.branch(JGT, high, pass, not_above);
        self.load(Half::High, index)
    }

    fn at_most(&mut self, index: u8, max: u64, pass: Position, fail: Position) -> Position {
        if max == u64::MAX {
            return pass;
        }
        let (low, high) = halves(max);
        self.branch(JGT, low, fail, pass);
        let same_high = self.load(Half::Low, index);
        let not_above = self.branch(JEQ, high, same_high, pass);
        self.branch(JGT, high, fail, not_above);
        self.load(Half::High, index)
    }

    fn load(&mut self, half: Half, index: u8) -> Position {
        let offset = match half {
            Half::Low => 0,
            Half::High => 4,
        };
        self.push(LD_ABS, ARGS_OFFSET + 8 * u32::from(index) + offset)
    }

    fn verdict(&mut self, action: Action) -> Position {
        match self.verdicts.get(&action) {
            Some(position) => *position,
            None => {
                let position = self.push(RET, action.verdict());
                self.verdicts.insert(action, position);
                position
            }
        }
    }

    /// Compares, and goes one way or the other; farther than 255 instructions by way of a stone.
    fn branch(&mut self, code: u16, k: u32, yes: Position, no: Position) -> Position {
        // A stone is written before the comparison and so makes the other way one longer: the one
        // that is too far either way goes first, then both are looked at again.
        let (mut yes, mut no) = (yes, no);
        while let Some(far) = [yes, no]
            .into_iter()
            .find(|way| self.distance(*way) > MAX_SKIP)
        {
            let stone = self.stone(far);
            yes = if yes == far { stone } else { yes };
            no = if no == far { stone } else { no };
        }
        let (jt, jf) = (self.distance(yes) as u8, self.distance(no) as u8);
        self.reversed.push(Instruction { code, jt, jf, k });
        self.here()
    }

    /// Copies a verdict, or writes a jump, to have a target near by.
    fn stone(&mut self, far: Position) -> Position {
        let target = self.reversed[far];
        if target.code == RET {
            let position = self.push(RET, target.k);
            if let Some(action) = Action::from_verdict(target.k) {
                self.verdicts.insert(action, position);
            }
            return position;
        }
        self.push(JA, self.distance(far) as u32)
    }

    /// Makes `target` what runs next, which it is already if it was written last.
    fn goto(&mut self, target: Position) {
        if self.distance(target) > 0 {
            self.push(JA, self.distance(target) as u32);
        }
    }

    fn push(&mut self, code: u16, k: u32) -> Position {
        self.reversed.push(Instruction {
            code,
            jt: 0,
            jf: 0,
            k,
        });
        self.here()
    }

    /// The instruction written last.
    fn here(&self) -> Position {
        self.reversed.len() - 1
    }

    /// How many instructions the next one written has to skip to get there.
    fn distance(&self, target: Position) -> usize {
        self.here() - target
    }
}

#[derive(Clone, Copy)]
enum Half {
    Low,
    High,
}

fn halves(value: u64) -> (u32, u32) {
    (value as u32, (value >> 32) as u32)
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
const ARGS_OFFSET: u32 = 16;
const MAX_SKIP: usize = 255;
/// Exceptions are tried one after the other, so a run has only a few.
const MAX_EXCEPTIONS: usize = 3;

#[cfg(test)]
mod tests;
