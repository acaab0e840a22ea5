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

/// Does what a change takes and is no part of its effect, while its record is on the way to the disk: nothing is
/// taken yet, and what does not work out is told by [`pull`].
pub fn prepare(change: &Change, instance: &mut dyn Instance) {
    let tightens = match change {
        Change::Exec(allowed) => !allowed && !instance.exec_returns(),
        Change::Tighten(what) => what.is_known(),
        _ => false,
    };
    if tightens {
        instance.halt();
    }
}

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
