//! Levers: what can be moved from outside while the workload runs, one file each.

pub mod data;
pub mod exec;
pub mod files;
pub mod freeze;
pub mod network;
pub mod resources;
pub mod tighten;

use policy::Tables;

use crate::adjust::Change;
use crate::isolation::Instance;
use crate::isolation::spawner::Failure;
use crate::plan::FileAccess;
use data::Vaults;

/// Carries out one change. Returns when it is in force.
///
/// # Errors
///
/// [`Failure`] when it could not be brought into force; the caller then stops the sandbox.
pub fn pull(
    change: &Change,
    instance: &mut dyn Instance,
    vaults: &mut Vaults,
    tables: &Tables,
) -> Result<(), Failure> {
    match change {
        Change::Withdraw(name) => vaults.withdraw(name),
        // Its key comes from elsewhere first: see `Vaults::give_back`.
        Change::Release(name) => Err(Failure {
            step: format!("giving vault `{name}` back"),
            error: "its key was not released".into(),
            errno: None,
        }),
        Change::Detach(at) => files::show(instance, at, None),
        Change::ReadOnly(at) => files::show(instance, at, Some(FileAccess::Read)),
        Change::Restore { at, access } => files::show(instance, at, Some(*access)),
        Change::Disconnect(endpoint) => network::set(instance, endpoint, false),
        Change::Reconnect(endpoint) => network::set(instance, endpoint, true),
        Change::Exec(allowed) => exec::set(instance, *allowed),
        Change::Tighten(what) => tighten::tighten(instance, what),
        Change::Limit(tier) => resources::limit(instance, tables, *tier),
        Change::Freeze(frozen) => freeze::set(instance, *frozen),
        Change::Stop => freeze::stop(instance),
    }
}
