//! The `files` lever: a granted tree is taken away, or can only be read any more, while the workload
//! runs.
//!
//! Each grant is a mount of its own, and a helper of the spawner changes it from inside the sandbox's
//! mount namespace. It takes effect at the next lookup of a path, from wherever it starts: a domain of
//! Landlock from the start on (`isolation/child.rs`) wants a way up to the sandbox's root, and a tree
//! that was detached has none, so working folders and folders held open lead nowhere. A *file* that is
//! open stays open, and mapped. What was taken does not come back in the same session.

use crate::isolation::Instance;
use crate::isolation::spawner::Failure;

/// Takes a granted tree away.
///
/// # Errors
///
/// When its mount cannot be found or detached.
pub fn detach(instance: &mut dyn Instance, at: &str) -> Result<(), Failure> {
    instance.detach(at)
}

/// Makes a granted tree read-only.
///
/// # Errors
///
/// When its mount cannot be found or replaced.
pub fn make_read_only(instance: &mut dyn Instance, at: &str) -> Result<(), Failure> {
    instance.make_read_only(at)
}
