//! Layer 3: which system calls a workload gets, and what else of the kernel it may touch.
//!
//! ```text
//! Profile ─▶ FilterSpec ─▶ Program ─▶ loaded last, just before exec
//! LandlockPlan ─▶ PreparedRuleset ─▶ restricted just before the filter
//! memory::protect                ─▶ no memory is ever writable and executable
//! ```
//!
//! All of it is floor: in force from exec on, inherited by every child, never loosened. What a
//! filter hands to the supervisor (`Action::Notify`) is answered by the notifier.

mod assembler;
pub mod filter;
mod groups;
pub mod landlock;
pub mod memory;
pub mod notify;
pub mod profile;
pub mod program;
pub mod rule;
pub mod table;

pub use filter::{CompileError, FilterSpec};
pub use profile::{Fate, Profile, ProfileError, denied_errno};
pub use program::{Program, SeccompData};
pub use rule::{Action, ArgTest, SyscallRule};
pub use table::{syscall_name, syscall_number};
