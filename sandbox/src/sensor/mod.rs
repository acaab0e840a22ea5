//! Sensors: what they see becomes a [`Signal`], and the policy's `[risk]` table says what it weighs.
//!
//! One file per sensor, named as in the table.

pub mod damaged_data;
pub mod denied_address;
pub mod denied_syscall;
pub mod enforcement_gap;
pub mod external;
pub mod lease_use;
pub mod new_exec;
pub mod operator;
pub mod resource_pressure;
pub mod stale_evidence;
pub mod time_window;
pub mod worse_evidence;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use policy::{LooksFor, RiskEntry};
use vault::LeaseUse;

use crate::event::Event;
use crate::isolation::cgroup::Pressure;

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
    /// It happened, and adds so many points instead of those of the policy.
    Adds(u8),
    /// It happened, and adds this share of the policy's points, in percent.
    Share(u8),
    /// So many of the points that it added before are taken back.
    Relieves(u8),
    /// It is true from now on.
    Began,
    /// It is no longer true.
    Ended,
}

/// What a sensor is given to look at.
#[derive(Clone, Copy)]
pub struct Look<'a> {
    /// The time, since the Unix epoch.
    pub now: Duration,
    /// What happened just now, if this look is because of that.
    pub happened: Option<&'a Event>,
    /// What can be asked of the running sandbox.
    pub sandbox: &'a dyn Sandbox,
    /// In which way the newest appraisal is worse than the best one of this session.
    pub worse: Option<&'a str>,
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

/// What a sensor can ask of the running sandbox; it costs something, so only what the policy weighs is
/// asked.
pub trait Sandbox {
    /// What was read of each vault.
    fn usage(&self) -> BTreeMap<String, LeaseUse>;

    /// What it met of its limits.
    fn pressure(&self) -> Pressure;
}

/// Something that notices.
pub trait Sensor: Send {
    /// Looks, and reports if there is something new to say.
    fn sense(&mut self, look: &Look<'_>) -> Option<Signal>;

    /// When to look again, if nothing happens before. Without one, only what happens is looked at.
    fn next_look(&self, _now: Duration) -> Option<Duration> {
        None
    }
}

/// How often a sensor looks that has nothing to be woken by.
const INTERVAL: Duration = Duration::from_secs(1);

/// Names of the sensors there are: those that the policy language knows.
pub const NAMES: [&str; 12] = [
    "damaged-data",
    "denied-address",
    "denied-syscall",
    "operator",
    "stale-evidence",
    "worse-evidence",
    "enforcement-gap",
    "lease-use",
    "resource-pressure",
    "new-exec",
    "time-window",
    "external",
];

/// Every sensor there is, under the `[risk]` table of a policy. A new one is a file beside this, a line
/// here, and its name above. Those that cost something are made only if the policy weighs them.
pub fn all(risk: &BTreeMap<String, RiskEntry>) -> Vec<Box<dyn Sensor>> {
    let mut sensors: Vec<Box<dyn Sensor>> = vec![
        Box::new(damaged_data::DamagedData),
        Box::new(denied_address::DeniedAddress),
        Box::new(denied_syscall::DeniedSyscall),
        Box::new(operator::Operator),
        Box::new(stale_evidence::StaleEvidence::default()),
        Box::new(worse_evidence::WorseEvidence::default()),
        Box::new(enforcement_gap::EnforcementGap::default()),
        Box::new(new_exec::NewExec),
        Box::new(external::External),
    ];
    for entry in risk.values() {
        match &entry.looks_for {
            LooksFor::Use {
                volume,
                rate,
                objects,
            } => sensors.push(Box::new(lease_use::UseOfLeases::new(
                *volume, *rate, *objects,
            ))),
            LooksFor::Stall(share) => {
                sensors.push(Box::new(resource_pressure::ResourcePressure::new(*share)));
            }
            LooksFor::Outside(window) => {
                sensors.push(Box::new(time_window::TimeWindow::new(*window)));
            }
            _ => {}
        }
    }
    sensors
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// A sandbox of which a test says how it is.
    #[derive(Default)]
    pub(super) struct Said {
        pub(super) usage: RefCell<BTreeMap<String, LeaseUse>>,
        pub(super) pressure: RefCell<Pressure>,
    }

    impl Sandbox for Said {
        fn usage(&self) -> BTreeMap<String, LeaseUse> {
            self.usage.borrow().clone()
        }

        fn pressure(&self) -> Pressure {
            self.pressure.borrow().clone()
        }
    }

    impl Said {
        /// A look at it because time has passed.
        pub(super) fn look<'a>(&'a self, now: Duration, gaps: &'a BTreeSet<String>) -> Look<'a> {
            Look {
                now,
                happened: None,
                sandbox: self,
                worse: None,
                evidence_age: None,
                max_age: None,
                expired: false,
                gaps,
            }
        }
    }

    #[test]
    fn the_sensors_that_can_be_weighed_are_those_that_there_are() {
        assert_eq!(BTreeSet::from(NAMES), BTreeSet::from(policy::SENSORS));
    }
}
