//! `resource-pressure`: the workload runs into its limits. Processes killed for lack of memory, forks
//! refused, and tasks that wait for a resource for a large share of the time (pressure stall
//! information, where the kernel has it switched on). What was killed or refused fades; so does stalling,
//! which is told once as it begins.
//!
//! Follows "Control Group v2" and "PSI - Pressure Stall Information" of the kernel's documentation. The
//! counters are looked at once a second, and at the end.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{INTERVAL, Kind, Look, Sensor, Signal};
use crate::event::Event;
use crate::isolation::cgroup::Pressure;

/// Compares the counters of the cgroup with what they were.
#[derive(Debug)]
pub struct ResourcePressure {
    share: u8,
    looked: Duration,
    last: Pressure,
    stalled: BTreeSet<&'static str>,
}

impl ResourcePressure {
    /// A sensor to which stalling from this share of the time on, in percent, is pressure.
    pub fn new(share: u8) -> Self {
        Self {
            share,
            looked: Duration::ZERO,
            last: Pressure::default(),
            stalled: BTreeSet::new(),
        }
    }
}

impl Sensor for ResourcePressure {
    fn sense(&mut self, look: &Look<'_>) -> Option<Signal> {
        // What killed it is asked while the cgroup is still there.
        let ended = matches!(look.happened, Some(Event::Ended(_)));
        let due = look.happened.is_none() && look.now.saturating_sub(self.looked) >= INTERVAL;
        if !ended && !due {
            return None;
        }
        self.looked = look.now;
        let pressure = look.sandbox.pressure();
        let mut seen = Vec::new();
        let more = |new: Option<u64>, old: Option<u64>| match new {
            Some(new) if new > old.unwrap_or(0) => Some(new - old.unwrap_or(0)),
            _ => None,
        };
        if let Some(killed) = more(pressure.killed, self.last.killed) {
            seen.push(format!("{killed} killed for lack of memory"));
        }
        if let Some(refused) = more(pressure.forks_refused, self.last.forks_refused) {
            seen.push(format!("{refused} forks refused"));
        }
        for (resource, share) in &pressure.stalled {
            if *share < self.share {
                self.stalled.remove(resource);
            } else if self.stalled.insert(resource) {
                seen.push(format!("{share}% of the time waits for {resource}"));
            }
        }
        self.last = pressure;
        (!seen.is_empty()).then(|| Signal {
            sensor: "resource-pressure",
            kind: Kind::Happened,
            detail: seen.join("; "),
        })
    }

    fn next_look(&self, now: Duration) -> Option<Duration> {
        Some(now + INTERVAL)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::Said;
    use super::*;

    #[test]
    fn what_was_killed_refused_or_stalled_is_told_once() {
        let mut sensor = ResourcePressure::new(20);
        let (said, gaps) = (Said::default(), BTreeSet::new());
        let mut after = |seconds: u64, killed, forks_refused, cpu| {
            *said.pressure.borrow_mut() = Pressure {
                killed,
                forks_refused,
                stalled: [("cpu", cpu)].into(),
            };
            let look = said.look(Duration::from_secs(100 + seconds), &gaps);
            sensor.sense(&look).map(|signal| signal.detail)
        };
        assert_eq!(after(0, Some(0), None, 5), None);
        assert_eq!(
            after(1, Some(2), Some(1), 5).unwrap(),
            "2 killed for lack of memory; 1 forks refused"
        );
        assert_eq!(
            after(2, Some(2), Some(1), 20).unwrap(),
            "20% of the time waits for cpu"
        );
        assert_eq!(after(3, Some(2), Some(1), 90), None);
        assert_eq!(after(4, None, None, 10), None);
        assert_eq!(
            after(5, None, None, 30).unwrap(),
            "30% of the time waits for cpu"
        );
    }
}
