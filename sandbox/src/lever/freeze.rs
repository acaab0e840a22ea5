//! The `freeze` and `stop` levers: no instruction of the workload is executed for a while, or ever.

use crate::isolation::Instance;
use crate::isolation::spawner::Failure;

/// Freezes the workload, or lets it go on. Reversible.
///
/// # Errors
///
/// When a task does not stop in time.
pub fn set(instance: &mut dyn Instance, frozen: bool) -> Result<(), Failure> {
    instance.freeze(frozen)
}

/// Kills everything in the sandbox. A frozen workload dies too.
///
/// # Errors
///
/// When the kernel refuses.
pub fn stop(instance: &mut dyn Instance) -> Result<(), Failure> {
    instance.stop()
}
