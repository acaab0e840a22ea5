//! The kernel's calls, one per safe function: the only place in this crate with `unsafe`.

pub mod landlock;
pub mod memory;
pub mod probe;
pub mod seccomp;
