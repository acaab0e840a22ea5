//! Several system calls in one turn: machine code that stopped tasks execute in our stead.
//!
//! ```text
//! first:  seccomp(filter, over all threads)
//! others: fd = landlock_create_ruleset(attributes)
//!         landlock_restrict_self(fd)
//!         close(fd)
//! end:    int3                      ◀── or from the first call that fails
//!         attributes, header of the filter, filter
//! ```
//!
//! It lies on a page of the process' own code, which is given back as it was: everybody who could execute
//! that page, or look at it, has stopped. Turns between two processes cost more than all of these calls.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::Layer;
use crate::syscall::Program;

/// A page of code: the processor's, and the kernel's smallest unit of memory.
const PAGE: u64 = 4096;

/// One of the calls of a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Filter = 1,
    Ruleset,
    Restrict,
    Close,
}

impl Step {
    const ALL: [Self; 4] = [Self::Filter, Self::Ruleset, Self::Restrict, Self::Close];

    /// The one that a task had come to, by what stands in its registers.
    pub fn numbered(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|step| *step as u64 == number)
    }

    pub fn doing(self) -> &'static str {
        match self {
            Self::Filter => "loading a filter",
            Self::Ruleset => "making a Landlock ruleset",
            Self::Restrict => "restricting files",
            Self::Close => "closing the ruleset",
        }
    }
}

/// The calls that put a layer on a process, where its tasks can execute them.
pub(super) struct Script {
    page: Borrowed,
    pub operands: Operands,
    /// Where the first thread of the process begins.
    pub first: u64,
    /// Where a thread begins that has the filter.
    pub others: u64,
    /// Where both end.
    pub end: u64,
}

impl Script {
    /// Puts the calls on the page of a process' code that holds this address. `None` when they take more,
    /// or where that page cannot be written: it may belong to others as well.
    pub fn put(layer: &Layer, process: i32, code: u64) -> Option<Self> {
        let page = code & !(PAGE - 1);
        // Where the operands lie is known once the instructions are.
        let length = Assembly::of(layer, Operands { at: 0 }).bytes.len() as u64;
        let operands = Operands { at: page + length };
        let Assembly {
            mut bytes,
            others,
            end,
        } = Assembly::of(layer, operands);
        bytes.extend(operands.bytes(layer.lost_rights, &layer.filter));
        if bytes.len() as u64 > PAGE {
            return None;
        }
        Some(Self {
            page: Borrowed::take(process, page, &bytes)?,
            operands,
            first: page,
            others: page + others,
            end: page + end,
        })
    }

    /// An instruction of it that makes a system call.
    pub fn call(&self) -> u64 {
        self.others - CALL_TO_NEXT
    }

    /// Gives the page back as it was.
    ///
    /// # Errors
    ///
    /// When that cannot be done, though the process is there.
    pub fn take_away(self) -> io::Result<()> {
        self.page.give_back()
    }
}

/// What the calls point to: the attributes of the ruleset, the header of the filter, the filter.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// Where that lies in the memory of the process.
    pub at: u64,
}

impl Operands {
    const HEADER: u64 = 8;
    const PROGRAM: u64 = 24;

    /// How many bytes it takes.
    pub fn length(filter: &Program) -> u64 {
        Self::PROGRAM + 8 * filter.instructions().len() as u64
    }

    pub fn attributes(self) -> u64 {
        self.at
    }

    pub fn filter(self) -> u64 {
        self.at + Self::HEADER
    }

    /// `struct landlock_ruleset_attr` of 8 bytes, `struct sock_fprog` of 16, `struct sock_filter` of 8 each.
    pub fn bytes(self, lost_rights: u64, filter: &Program) -> Vec<u8> {
        let instructions = filter.instructions();
        let mut bytes = Vec::with_capacity(Self::length(filter) as usize);
        bytes.extend(lost_rights.to_ne_bytes());
        bytes.extend((instructions.len() as u64).to_ne_bytes());
        bytes.extend((self.at + Self::PROGRAM).to_ne_bytes());
        for one in instructions {
            bytes.extend(one.code.to_ne_bytes());
            bytes.extend([one.jt, one.jf]);
            bytes.extend(one.k.to_ne_bytes());
        }
        bytes
    }
}

/// A page of a process' code with something else on it.
struct Borrowed {
    /// The process' memory, also when the task that it was opened by is gone.
    memory: File,
    page: u64,
    before: Vec<u8>,
}

impl Borrowed {
    /// `None` where that cannot be done; the page is as it was then.
    fn take(process: i32, page: u64, bytes: &[u8]) -> Option<Self> {
        let place = format!("/proc/{process}/mem");
        let memory = File::options().read(true).write(true).open(place).ok()?;
        let mut before = vec![0; bytes.len()];
        memory.read_exact_at(&mut before, page).ok()?;
        let borrowed = Self {
            memory,
            page,
            before,
        };
        // A page at a time is written whole or not at all. The kernel makes a copy of it for this process,
        // and refuses where it would have to write to what others see.
        borrowed.memory.write_all_at(bytes, page).ok()?;
        Some(borrowed)
    }

    fn give_back(self) -> io::Result<()> {
        match self.memory.write_all_at(&self.before, self.page) {
            // Nobody has this memory any more.
            Err(error) if error.kind() == io::ErrorKind::WriteZero => Ok(()),
            other => other,
        }
    }
}

/// Instructions, and where among them something begins.
struct Assembly {
    bytes: Vec<u8>,
    others: u64,
    end: u64,
}

impl Assembly {
    fn of(layer: &Layer, operands: Operands) -> Self {
        let mut bytes = Vec::with_capacity(512);
        let mut failures = Vec::new();
        let mut call =
            |bytes: &mut Vec<u8>, step: Step, nr: libc::c_long, arguments: &[Argument]| {
                for (load, argument) in LOADS.iter().zip(arguments) {
                    match argument {
                        Argument::Is(value) => {
                            bytes.extend(load.value);
                            bytes.extend(value.to_le_bytes());
                        }
                        Argument::Ruleset => bytes.extend(load.kept),
                    }
                }
                bytes.extend(MOV_EBX);
                bytes.extend((step as u32).to_le_bytes());
                bytes.extend(MOV_EAX);
                bytes.extend((nr as u32).to_le_bytes());
                bytes.extend(SYSCALL_TEST_JS);
                failures.push(bytes.len());
                bytes.extend([0; 4]);
            };
        let is = Argument::Is;
        let mode = is(u64::from(libc::SECCOMP_SET_MODE_FILTER));
        let filter = [mode, is(TOGETHER), is(operands.filter())];
        call(&mut bytes, Step::Filter, libc::SYS_seccomp, &filter);
        let others = bytes.len() as u64;
        if layer.lost_rights != 0 {
            let create = [
                is(operands.attributes()),
                is(size_of::<u64>() as u64),
                is(0),
            ];
            let nr = libc::SYS_landlock_create_ruleset;
            call(&mut bytes, Step::Ruleset, nr, &create);
            bytes.extend(KEEP);
            let nr = libc::SYS_landlock_restrict_self;
            call(&mut bytes, Step::Restrict, nr, &[Argument::Ruleset, is(0)]);
            let nr = libc::SYS_close;
            call(&mut bytes, Step::Close, nr, &[Argument::Ruleset]);
        }
        let end = bytes.len();
        bytes.push(INT3);
        for at in failures {
            let distance = (end - (at + 4)) as u32;
            bytes[at..at + 4].copy_from_slice(&distance.to_le_bytes());
        }
        Self {
            bytes,
            others,
            end: end as u64,
        }
    }
}

/// Over all threads of the process, or none of them.
pub(super) const TOGETHER: u64 =
    libc::SECCOMP_FILTER_FLAG_TSYNC | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;

/// An argument of a call.
#[derive(Clone, Copy)]
enum Argument {
    Is(u64),
    /// The ruleset's descriptor, which was kept.
    Ruleset,
}

/// How an argument comes into its register: a number of 8 bytes that follows, or what was kept.
struct Load {
    value: [u8; 2],
    kept: [u8; 3],
}

/// `mov rdi|rsi|rdx, imm64` and `mov rdi|rsi|rdx, r12`. No call here takes more.
const LOADS: [Load; 3] = [
    Load {
        value: [0x48, 0xbf],
        kept: [0x4c, 0x89, 0xe7],
    },
    Load {
        value: [0x48, 0xbe],
        kept: [0x4c, 0x89, 0xe6],
    },
    Load {
        value: [0x48, 0xba],
        kept: [0x4c, 0x89, 0xe2],
    },
];
/// `mov r12, rax`: system calls leave that register as it is.
const KEEP: [u8; 3] = [0x49, 0x89, 0xc4];
/// `mov ebx, imm32`: which call it is.
const MOV_EBX: [u8; 1] = [0xbb];
/// `mov eax, imm32`.
const MOV_EAX: [u8; 1] = [0xb8];
/// `syscall`, `test rax, rax`, `js rel32`.
const SYSCALL_TEST_JS: [u8; 7] = [0x0f, 0x05, 0x48, 0x85, 0xc0, 0x0f, 0x88];
/// From a `syscall` to what follows its `js rel32`.
const CALL_TO_NEXT: u64 = SYSCALL_TEST_JS.len() as u64 + 4;
/// `int3`.
const INT3: u8 = 0xcc;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::syscall::{Action, FilterSpec, SyscallRule};

    fn layer(refused: impl Iterator<Item = u32>) -> Layer {
        let mut spec = FilterSpec::new(Action::Allow);
        let rule = |nr| SyscallRule::always(Action::Errno(1 + (nr / 2 % 3) as u16));
        spec.rules.extend(refused.map(|nr| (nr, rule(nr))));
        Layer {
            lost_rights: 1,
            filter: spec.compile().unwrap(),
            probe: None,
        }
    }

    #[test]
    fn what_takes_more_than_a_page_is_not_put_on_one() {
        let long = layer((0..400).map(|nr| 2 * nr));
        assert!(Operands::length(&long.filter) > PAGE);
        let here = std::process::id().cast_signed();
        let code = Assembly::of as *const () as u64;
        assert!(Script::put(&long, here, code).is_none());
    }

    #[test]
    fn the_operands_follow_the_last_instruction() {
        let layer = layer(0..3);
        let assembly = Assembly::of(&layer, Operands { at: 0 });
        assert_eq!(assembly.bytes.len() as u64, assembly.end + 1);
        assert_eq!(assembly.bytes[assembly.end as usize], INT3);
        // Nothing is lost: only the filter, and no thread has anything to do by itself.
        let less = Layer {
            lost_rights: 0,
            ..layer
        };
        let assembly = Assembly::of(&less, Operands { at: 0 });
        assert_eq!(assembly.others, assembly.end);
    }
}
