//! The `files` lever: a granted tree is taken away, can only be read any more, or is given back, while
//! the workload runs.
//!
//! Each grant is a mount of its own, and a helper of the spawner changes it from inside the sandbox's
//! mount namespace. It takes effect at the next lookup of a path from the root; what a process has open
//! already, its working folder among it, still leads where it led. What comes back is the mount that
//! was granted, held open meanwhile by the spawner.

use crate::isolation::Instance;
use crate::isolation::spawner::Failure;
use crate::plan::FileAccess;

/// Lets a granted tree be seen with this access, or not at all.
///
/// # Errors
///
/// When its mount cannot be found, taken out or put back. It is then as it was, or gone.
pub fn show(
    instance: &mut dyn Instance,
    at: &str,
    access: Option<FileAccess>,
) -> Result<(), Failure> {
    instance.show_tree(at, access)
}
