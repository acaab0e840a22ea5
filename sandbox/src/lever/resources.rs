//! The `resources` lever: limits of another tier, in force at once. Reversible.

use policy::Tables;

use crate::isolation::Instance;
use crate::isolation::spawner::Failure;
use crate::plan::{self, Tier};

/// Puts the limits of a tier in force on the running sandbox.
///
/// # Errors
///
/// When the host has no cgroup to do it with, or refuses.
pub fn limit(instance: &mut dyn Instance, tables: &Tables, tier: Tier) -> Result<(), Failure> {
    instance.limit(&plan::limits(tables, tier))
}
