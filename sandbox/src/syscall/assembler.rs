//! Laying rules out as instructions: ranges as a balanced tree, argument checks behind it.

use std::collections::HashMap;

use super::filter::{CompileError, NATIVE_ARCH};
use super::program::{
    AND, ARCH_OFFSET, Instruction, JA, JEQ, JGE, JGT, LD_ABS, NR_OFFSET, Program, RET,
};
use super::rule::{Action, ArgTest, SyscallRule};

/// Lays out segments that cover all numbers, in their order, behind the check of the architecture.
pub(super) fn assemble(segments: &[Segment]) -> Result<Program, CompileError> {
    Assembler::default().finish(segments)
}

/// Consecutive numbers under one rule, up to where the next segment begins.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    pub first: u32,
    pub rule: SyscallRule,
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

const ARGS_OFFSET: u32 = 16;
const MAX_SKIP: usize = 255;
/// Exceptions are tried one after the other, so a run has only a few.
const MAX_EXCEPTIONS: usize = 3;
