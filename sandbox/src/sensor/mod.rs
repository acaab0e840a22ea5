//! Sensors: what they see becomes a [`Signal`], and the policy's `[risk]` table says what it weighs.
//!
//! One file per sensor, named as in the table.

pub mod damaged_data;
pub mod denied_address;
pub mod denied_syscall;
pub mod enforcement_gap;
pub mod operator;
pub mod stale_evidence;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::event::Event;

/// What a sensor reports to the policy. (A Unix signal is a `Kill`.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signal {
    /// Name of the sensor: an entry of `[risk]`.
    pub sensor: &'static str,
    /// Whether it happened once, or is true from now on, or no longer.
    pub kind: Kind,
    /// What was seen, in one line.
    pub detail: String,
}

/// How long what a sensor saw is true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It happened; its weight fades.
    Happened,
    /// It is true from now on.
    Began,
    /// It is no longer true.
    Ended,
}

/// What a sensor is given to look at.
#[derive(Clone, Copy, Debug)]
pub struct Look<'a> {
    /// What happened just now, if this look is because of that.
    pub happened: Option<&'a Event>,
    /// Age of the newest evidence that was believed.
    pub evidence_age: Option<Duration>,
    /// Age at which evidence is stale.
    pub max_age: Option<Duration>,
    /// Whether something that the newest evidence rests on (a certificate, a revocation list) is past
    /// its end.
    pub expired: bool,
    /// Protections that are not wholly in force.
    pub gaps: &'a BTreeSet<String>,
}

/// Something that notices.
pub trait Sensor: Send {
    /// Looks, and reports if there is something new to say.
    fn sense(&mut self, look: &Look<'_>) -> Option<Signal>;
}

/// Names of the sensors there are. What else the policy language knows is reported as a gap.
pub const NAMES: [&str; 6] = [
    "damaged-data",
    "denied-address",
    "denied-syscall",
    "operator",
    "stale-evidence",
    "enforcement-gap",
];

/// Every sensor there is. A new one is a file beside this, a line here, and its name above.
pub fn all() -> Vec<Box<dyn Sensor>> {
    vec![
        Box::new(damaged_data::DamagedData),
        Box::new(denied_address::DeniedAddress),
        Box::new(denied_syscall::DeniedSyscall),
        Box::new(operator::Operator),
        Box::new(stale_evidence::StaleEvidence::default()),
        Box::new(enforcement_gap::EnforcementGap::default()),
    ]
}

/// Turns a condition into its beginning and its end.
#[derive(Debug, Default)]
struct Edge(bool);

impl Edge {
    fn turn(&mut self, holds: bool) -> Option<Kind> {
        if self.0 == holds {
            return None;
        }
        self.0 = holds;
        Some(if holds { Kind::Began } else { Kind::Ended })
    }
}
