//! A compiled seccomp filter: classic BPF, and what can be done with it without a kernel.
//!
//! Follows "Seccomp BPF (SECure COMPuting with filters)" of the kernel's user-space API guide and
//! the instruction set of "Linux Socket Filtering aka Berkeley Packet Filter". [`Program::evaluate`]
//! decides as the kernel would, so a policy can be tested against its filter call by call;
//! [`Program`] displays as its disassembly. Where programs come from: [`super::filter`].

use std::fmt;

use super::filter::CompileError;
use super::rule::Action;
use super::table::syscall_name;

/// The most instructions the kernel accepts in one filter (`BPF_MAXINSNS`).
pub const MAX_INSTRUCTIONS: usize = 4096;

/// One instruction of classic BPF, laid out as `struct sock_filter`: 8 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(from = "(u16, u8, u8, u32)", into = "(u16, u8, u8, u32)")]
pub struct Instruction {
    /// The operation.
    pub code: u16,
    /// How many instructions to skip if the comparison holds.
    pub jt: u8,
    /// How many instructions to skip if it does not.
    pub jf: u8,
    /// The constant, offset or distance the operation works with.
    pub k: u32,
}

impl From<(u16, u8, u8, u32)> for Instruction {
    fn from((code, jt, jf, k): (u16, u8, u8, u32)) -> Self {
        Self { code, jt, jf, k }
    }
}

impl From<Instruction> for (u16, u8, u8, u32) {
    fn from(Instruction { code, jt, jf, k }: Instruction) -> Self {
        (code, jt, jf, k)
    }
}

/// What a filter is shown of a system call, laid out as `struct seccomp_data`: 64 bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeccompData {
    /// The number of the system call, in the numbering of `arch`.
    pub nr: u32,
    /// The calling convention, an `AUDIT_ARCH_*` constant.
    pub arch: u32,
    /// The address of the instruction that made the call.
    pub instruction_pointer: u64,
    /// The six argument registers, whether the call uses them or not.
    pub args: [u64; 6],
}

impl SeccompData {
    /// Describes a call of this architecture with the given arguments.
    pub fn new(nr: u32, args: [u64; 6]) -> Self {
        Self {
            nr,
            arch: super::filter::NATIVE_ARCH,
            instruction_pointer: 0,
            args,
        }
    }

    /// Reads the aligned 32-bit word at a byte offset, as `BPF_LD | BPF_W | BPF_ABS` does.
    fn word(&self, offset: u32) -> Option<u32> {
        if !offset.is_multiple_of(4) {
            return None;
        }
        let half = |value: u64, high: bool| (if high { value >> 32 } else { value }) as u32;
        Some(match offset {
            NR_OFFSET => self.nr,
            ARCH_OFFSET => self.arch,
            8 | 12 => half(self.instruction_pointer, offset == 12),
            16..64 => {
                let index = usize::try_from((offset - 16) / 8).ok()?;
                half(*self.args.get(index)?, offset % 8 == 4)
            }
            _ => return None,
        })
    }
}

/// A seccomp filter the kernel will accept.
///
/// Holding one proves that it has between 1 and [`MAX_INSTRUCTIONS`] instructions, that every jump
/// lands inside it, and that it ends in a verdict.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "Vec<Instruction>")]
pub struct Program(Vec<Instruction>);

impl TryFrom<Vec<Instruction>> for Program {
    type Error = CompileError;

    fn try_from(instructions: Vec<Instruction>) -> Result<Self, CompileError> {
        Self::new(instructions)
    }
}

impl Program {
    /// Accepts instructions that form a complete program.
    ///
    /// # Errors
    ///
    /// [`CompileError::TooLong`] over [`MAX_INSTRUCTIONS`], [`CompileError::Malformed`] if an
    /// instruction is not one a filter may use, or leads out of the program.
    pub(super) fn new(instructions: Vec<Instruction>) -> Result<Self, CompileError> {
        if instructions.len() > MAX_INSTRUCTIONS {
            return Err(CompileError::TooLong {
                instructions: instructions.len(),
            });
        }
        let lands = |at: usize, skip: u32| {
            usize::try_from(skip).is_ok_and(|skip| skip < instructions.len() - at - 1)
        };
        for (at, one) in instructions.iter().enumerate() {
            let sound = match one.code {
                RET => true,
                LD_ABS => one.k < 64 && one.k.is_multiple_of(4) && lands(at, 0),
                AND => lands(at, 0),
                JA => lands(at, one.k),
                JEQ | JGT | JGE | JSET => lands(at, one.jt.into()) && lands(at, one.jf.into()),
                _ => false,
            };
            if !sound {
                return Err(CompileError::Malformed { at });
            }
        }
        match instructions.last() {
            Some(last) if last.code == RET => Ok(Self(instructions)),
            _ => Err(CompileError::Malformed {
                at: instructions.len().saturating_sub(1),
            }),
        }
    }

    /// Returns the instructions, in the order the kernel takes them.
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }

    /// Decides one call as the kernel would, and returns the filter's 32-bit verdict.
    ///
    /// [`Action::from_verdict`] gives the verdict its name.
    pub fn evaluate(&self, data: &SeccompData) -> u32 {
        run(&self.0, data).unwrap_or(libc::SECCOMP_RET_KILL_PROCESS)
    }

    /// Tells whether the kernel allows a call without running the filter again.
    ///
    /// It finds out when the filter is loaded, by running it once per number; a number for which
    /// the filter looks at anything but number and architecture is not remembered.
    pub fn is_cached(&self, nr: u32) -> bool {
        let mut looks_further = false;
        let verdict = walk(&self.0, &SeccompData::new(nr, [0; 6]), |one| {
            looks_further |= one.code == LD_ABS && one.k > ARCH_OFFSET;
        });
        verdict == Some(libc::SECCOMP_RET_ALLOW) && !looks_further
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let compares_nr = compares_nr(&self.0);
        for (at, one) in self.0.iter().enumerate() {
            write!(f, "{at:4}  ")?;
            disassemble(f, at, *one)?;
            match syscall_name(one.k) {
                Some(name) if compares_nr[at] => writeln!(f, "    ; {name}")?,
                _ => writeln!(f)?,
            }
        }
        Ok(())
    }
}

/// Runs instructions to their verdict; `None` if they lead nowhere.
pub(super) fn run(program: &[Instruction], data: &SeccompData) -> Option<u32> {
    walk(program, data, |_| ())
}

fn walk(
    program: &[Instruction],
    data: &SeccompData,
    mut visit: impl FnMut(&Instruction),
) -> Option<u32> {
    let (mut at, mut accumulator) = (0usize, 0u32);
    // Every jump goes forward, so this ends after at most one visit per instruction.
    loop {
        let one = program.get(at)?;
        visit(one);
        let mut skip = 0;
        let mut branch = |holds: bool| skip = u32::from(if holds { one.jt } else { one.jf });
        match one.code {
            RET => return Some(one.k),
            LD_ABS => accumulator = data.word(one.k)?,
            AND => accumulator &= one.k,
            JEQ => branch(accumulator == one.k),
            JGT => branch(accumulator > one.k),
            JGE => branch(accumulator >= one.k),
            JSET => branch(accumulator & one.k != 0),
            JA => skip = one.k,
            _ => return None,
        }
        at = at
            .checked_add(1)?
            .checked_add(usize::try_from(skip).ok()?)?;
    }
}

/// Marks the comparisons that are made with the number of the call, whose constants have names.
fn compares_nr(program: &[Instruction]) -> Vec<bool> {
    let mut holds_nr = vec![false; program.len()];
    // Jumps only go forward, so everything that leads to an instruction was seen before it.
    for (at, one) in program.iter().enumerate() {
        let skips: &[u32] = match one.code {
            LD_ABS if one.k == NR_OFFSET => &[0],
            JA if holds_nr[at] => &[one.k],
            JEQ | JGT | JGE if holds_nr[at] => &[one.jt.into(), one.jf.into()],
            _ => &[],
        };
        for skip in skips {
            holds_nr[at + 1 + *skip as usize] = true;
        }
    }
    let compares =
        |(at, one): (usize, &Instruction)| matches!(one.code, JEQ | JGT | JGE) && holds_nr[at];
    program.iter().enumerate().map(compares).collect()
}

fn disassemble(f: &mut fmt::Formatter<'_>, at: usize, one: Instruction) -> fmt::Result {
    let target = |skip: u32| at + 1 + skip as usize;
    match one.code {
        RET => match Action::from_verdict(one.k) {
            Some(action) => write!(f, "return {action}"),
            None => write!(f, "return {:#x}", one.k),
        },
        LD_ABS => match one.k {
            NR_OFFSET => write!(f, "load nr"),
            ARCH_OFFSET => write!(f, "load arch"),
            16..64 => {
                let half = if one.k.is_multiple_of(8) {
                    "low"
                } else {
                    "high"
                };
                write!(f, "load args[{}].{half}", (one.k - 16) / 8)
            }
            other => write!(f, "load data[{other}]"),
        },
        AND => write!(f, "and {:#x}", one.k),
        JA => write!(f, "goto {}", target(one.k)),
        JEQ | JGT | JGE | JSET => {
            let operator = match one.code {
                JEQ => "==",
                JGT => ">",
                JGE => ">=",
                _ => "&",
            };
            let (yes, no) = (target(one.jt.into()), target(one.jf.into()));
            write!(f, "if {operator} {:#x} goto {yes} else {no}", one.k)
        }
        other => write!(f, "unknown {other:#x} {:#x}", one.k),
    }
}

/// Where `struct seccomp_data` keeps the number of the call.
pub(super) const NR_OFFSET: u32 = 0;
/// Where it keeps the calling convention.
pub(super) const ARCH_OFFSET: u32 = 4;

pub(super) const LD_ABS: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
pub(super) const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
pub(super) const JA: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;
pub(super) const JEQ: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
pub(super) const JGT: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
pub(super) const JGE: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
pub(super) const JSET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
pub(super) const RET: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn op(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
        Instruction { code, jt, jf, k }
    }

    #[test]
    fn a_program_that_leads_out_of_itself_is_refused() {
        for bad in [
            vec![],
            vec![op(LD_ABS, 0, 0, 0)],
            vec![op(JEQ, 1, 0, 0), op(RET, 0, 0, 0)],
            vec![op(JA, 0, 0, u32::MAX), op(RET, 0, 0, 0)],
            vec![op(LD_ABS, 0, 0, 64), op(RET, 0, 0, 0)],
            vec![op(LD_ABS, 0, 0, 2), op(RET, 0, 0, 0)],
            vec![op(0xffff, 0, 0, 0), op(RET, 0, 0, 0)],
        ] {
            assert!(
                matches!(
                    Program::new(bad.clone()),
                    Err(CompileError::Malformed { .. })
                ),
                "{bad:?}"
            );
        }
        let long = vec![op(RET, 0, 0, 0); MAX_INSTRUCTIONS + 1];
        assert!(matches!(
            Program::new(long),
            Err(CompileError::TooLong { .. })
        ));
    }

    #[test]
    fn a_program_displays_as_what_it_does() {
        let mut spec = crate::syscall::FilterSpec::new(Action::Notify);
        let close = crate::syscall::syscall_number("close").unwrap();
        spec.rules.insert(
            close,
            crate::syscall::SyscallRule {
                conditional: vec![(
                    vec![crate::syscall::ArgTest::low_is(0, 2)],
                    Action::Errno(1),
                )],
                otherwise: Action::Allow,
            },
        );
        let text = spec.compile().unwrap().to_string();
        for part in [
            "load arch",
            "return kill",
            "load nr",
            "; close",
            "load args[0].low",
            "return errno 1",
            "return notify",
            "return allow",
            "return errno 38",
        ] {
            assert!(text.contains(part), "no `{part}` in\n{text}");
        }
        assert!(
            !text.contains("; open"),
            "an argument is no system call\n{text}"
        );
    }

    #[test]
    fn every_word_of_the_data_is_read_from_where_the_kernel_puts_it() {
        let data = SeccompData {
            nr: 1,
            arch: 2,
            instruction_pointer: 4 << 32 | 3,
            args: std::array::from_fn(|i| (6 + 2 * i as u64) << 32 | (5 + 2 * i as u64)),
        };
        let words: Vec<_> = (0..64).step_by(4).map(|at| data.word(at)).collect();
        assert_eq!(words, (1..=16).map(Some).collect::<Vec<_>>());
        assert_eq!(data.word(64), None);
        assert_eq!(data.word(1), None);
    }
}
