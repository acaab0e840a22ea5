//! Sensors and the risk that their signals add up to.

use std::collections::BTreeSet;
use std::time::Duration;

use policy::{Bundle, Risk, RiskModel};

use super::attested::Attested;
use super::tally::Tally;
use crate::enforcement::Item;
use crate::event::Event;
use crate::record::Record;
use crate::sensor::{self, Kind, Look, Sensor};

/// What looks, and what it adds up to.
pub(super) struct Watch {
    sensors: Vec<Box<dyn Sensor>>,
    risk: Risk,
    tally: Tally,
}

impl Watch {
    pub(super) fn new(bundle: &Bundle) -> Self {
        Self {
            sensors: sensor::all(),
            risk: Risk::new(RiskModel::from(bundle)),
            tally: Tally::default(),
        }
    }

    /// Weighs by another bundle from now on; what was signalled stays.
    pub(super) fn adopt(&mut self, bundle: &Bundle) {
        self.risk.adopt(RiskModel::from(bundle));
    }

    pub(super) fn risk(&self, now: Duration) -> u8 {
        self.risk.score(now)
    }

    /// When the risk next falls by itself, or a signal that was counted has to be recorded.
    pub(super) fn next_change(&self, now: Duration) -> Option<Duration> {
        let times = [self.risk.next_change(now), self.tally.due()];
        times.into_iter().flatten().min()
    }

    /// Records of signals that were counted and are not recorded yet; needed before a decision.
    pub(super) fn counted(&mut self, now: Duration) -> Vec<Record> {
        self.tally.take(now, true)
    }

    /// Shows the sensors what happened, and how things are. Gives the records that are due.
    pub(super) fn look(
        &mut self,
        events: &[Event],
        attested: &Attested,
        gaps: &BTreeSet<String>,
        bundle: &Bundle,
        now: Duration,
    ) -> Vec<Record> {
        for happened in events.iter().map(Some).chain([None]) {
            let look = Look {
                happened,
                evidence_age: attested.age(now),
                max_age: bundle.tables().attestation.max_age,
                expired: attested.is_expired(now),
                gaps,
            };
            for signal in self
                .sensors
                .iter_mut()
                .filter_map(|sensor| sensor.sense(&look))
            {
                match signal.kind {
                    Kind::Happened => self.risk.signal(signal.sensor, now),
                    Kind::Began => self.risk.hold(signal.sensor, now),
                    Kind::Ended => self.risk.release(signal.sensor, now),
                }
                self.tally.add(signal, self.risk.score(now));
            }
        }
        self.tally.take(now, false)
    }
}

/// Sensors that the policy weighs and this version does not have: gaps, since they never report.
pub(super) fn missing_sensors(bundle: &Bundle) -> impl Iterator<Item = Item> {
    let names = bundle
        .tables()
        .risk
        .keys()
        .filter(|name| !sensor::NAMES.contains(&name.as_str()));
    names.map(|name| {
        let detail = format!("{name}: this version has no such sensor; it never adds to the risk");
        Item::not(3, "sensor", detail)
    })
}
