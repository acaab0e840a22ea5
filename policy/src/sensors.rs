//! The entries of `[risk]`: which sensors there are, what their signals weigh, and what each is asked to
//! look for.

use std::path::PathBuf;
use std::time::Duration;

use crate::window::Window;

/// One entry of `[risk]`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RiskEntry {
    /// Points a signal adds, 0..=100.
    pub adds: u8,
    /// The time in which points fade to half. Without one they hold as long as the cause is true.
    pub half_life: Option<Duration>,
    /// The most this sensor contributes, 0..=100. Default 100.
    pub cap: u8,
    /// What it goes on contributing once it was heard of, at most `cap`. Default 0.
    pub floor: u8,
    /// What the sensor looks for.
    pub looks_for: LooksFor,
}

impl RiskEntry {
    /// An entry that adds so many points, with the defaults for all else.
    pub fn adding(points: u8) -> Self {
        Self {
            adds: points,
            half_life: None,
            cap: 100,
            floor: 0,
            looks_for: LooksFor::Default,
        }
    }
}

/// What a sensor is asked to look for, beyond its name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LooksFor {
    /// Whatever its name says.
    #[default]
    Default,
    /// `lease-use`: reading more, or faster, or of more objects than this.
    Use {
        /// Bytes after which, each time, there is a signal.
        volume: Option<u64>,
        /// Bytes in a second.
        rate: Option<u64>,
        /// Objects that may be opened; each further one is a signal.
        objects: Option<u64>,
    },
    /// `resource-pressure`: tasks that wait for a resource for this share of the time, in percent.
    Stall(u8),
    /// `new-exec`: programs, as paths inside, that may be executed beside the workload's own.
    Known(Vec<PathBuf>),
    /// `time-window`: the time outside of these hours.
    Outside(Window),
    /// `external`: who may report, and where.
    Reports {
        /// The Unix socket, as written.
        socket: PathBuf,
        /// Users who may connect, beside the supervisor's and root.
        uids: Vec<u32>,
        /// File of a token that each of them has to begin with, as written.
        token: Option<PathBuf>,
    },
}

/// The sensors a bundle can give a weight to. One that does not exist would never report, so that a rule
/// about the risk it adds would never hold.
pub const SENSORS: [&str; 12] = [
    "damaged-data",
    "denied-syscall",
    "denied-address",
    "stale-evidence",
    "worse-evidence",
    "enforcement-gap",
    "lease-use",
    "resource-pressure",
    "new-exec",
    "time-window",
    "operator",
    "external",
];
