//! How a running session is, for whoever watches over it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::lever::tighten::Tightening;
use crate::order::Orders;
use crate::plan::{FileAccess, Run, Tier};
use crate::record::Record;

/// Version of this shape: it grows when a field changes its meaning or goes.
pub const VERSION: u32 = 1;

/// How a session is at one moment.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Status {
    /// [`VERSION`].
    pub version: u32,
    /// Name of the policy bundle.
    pub policy: String,
    /// Version of the policy bundle.
    pub policy_version: u64,
    /// When this was so, in seconds since the Unix epoch.
    pub at: f64,
    /// Whether the workload was started.
    pub started: bool,
    /// Process id of the sandbox's init on the host, once there is one.
    pub init: Option<i32>,
    /// The position of each lever.
    pub plan: Position,
    /// The risk score, 0..=100.
    pub risk: u8,
    /// What each sensor adds to it now. The score falls later than their sum.
    pub parts: BTreeMap<String, u8>,
    /// The newest evidence that was believed.
    pub evidence: Option<Held>,
    /// Protections that are not wholly in force.
    pub gaps: BTreeSet<String>,
    /// Orders of operators that stand.
    pub orders: Orders,
    /// Bytes the workload read of each vault.
    pub read: BTreeMap<String, u64>,
    /// The newest records about signals, decisions, orders and changes, oldest first.
    pub recent: Vec<Recent>,
}

/// The position of each lever.
#[derive(Clone, Debug, Serialize)]
pub struct Position {
    /// Whether the workload may run.
    pub run: Run,
    /// Which limits are in force.
    pub tier: Tier,
    /// Vaults that it can read.
    pub data: BTreeSet<String>,
    /// Trees that it sees, by their place inside.
    pub files: BTreeMap<String, FileAccess>,
    /// Endpoints that it may connect to, as the policy has them.
    pub connect: BTreeSet<String>,
    /// Whether it may start programs.
    pub exec: bool,
    /// What was taken from it for good.
    pub tightened: BTreeSet<Tightening>,
}

/// The evidence that a session rests on.
#[derive(Clone, Debug, Serialize)]
pub struct Held {
    /// Which TEE.
    pub tee: String,
    /// Its tier (AR4SI).
    pub tier: String,
    /// The state of its TCB.
    pub tcb: String,
    /// Whether it proves nothing.
    pub simulated: bool,
    /// Its age in seconds.
    pub age: u64,
}

/// A record, which is in the session's log already.
#[derive(Clone, Debug, Serialize)]
pub struct Recent {
    /// Seconds since the Unix epoch.
    pub at: f64,
    /// What was recorded.
    pub record: Record,
}
