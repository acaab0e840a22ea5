//! Sensors and the risk that their signals add up to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use policy::{Bundle, LooksFor, Risk, RiskModel};
use vault::LeaseUse;

use super::attested::Attested;
use super::tally::Tally;
use crate::enforcement::Item;
use crate::error::describe;
use crate::event::Event;
use crate::isolation::Instance;
use crate::isolation::cgroup::Pressure;
use crate::lever::data::Vaults;
use crate::record::Record;
use crate::sensor::external::{Admission, Listener};
use crate::sensor::{self, Kind, Look, Sandbox, Sensor, new_exec};

/// What looks, and what it adds up to.
pub(super) struct Watch {
    sensors: Vec<Box<dyn Sensor>>,
    risk: Risk,
    tally: Tally,
    // Threads that hear what the kernel and other tools report. They end when these are dropped.
    reports: Option<Listener>,
    programs: Option<new_exec::Watcher>,
}

/// The sandbox as sensors see it.
pub(super) struct Around<'a> {
    pub(super) vaults: &'a Vaults,
    pub(super) instance: Option<&'a dyn Instance>,
}

impl Sandbox for Around<'_> {
    fn usage(&self) -> BTreeMap<String, LeaseUse> {
        self.vaults.usage()
    }

    fn pressure(&self) -> Pressure {
        self.instance.map(Instance::pressure).unwrap_or_default()
    }
}

impl Watch {
    pub(super) fn new(bundle: &Bundle) -> Self {
        Self {
            sensors: sensor::all(&bundle.tables().risk),
            risk: Risk::new(RiskModel::from(bundle)),
            tally: Tally::default(),
            reports: None,
            programs: None,
        }
    }

    /// Starts what has to listen or to watch, before the workload is started; says what of the sensors
    /// that the policy weighs cannot be had.
    pub(super) fn begin(
        &mut self,
        bundle: &Bundle,
        base: &Path,
        instance: &dyn Instance,
        events: &SyncSender<Event>,
    ) -> Vec<Item> {
        let mut items: Vec<Item> = Vec::new();
        for (name, entry) in &bundle.tables().risk {
            match &entry.looks_for {
                LooksFor::Reports {
                    socket,
                    uids,
                    token,
                } => {
                    let token = token.as_ref().map(|token| base.join(token));
                    let listener = Admission::new(uids.clone(), token.as_deref())
                        .and_then(|who| Listener::start(&base.join(socket), who, events.clone()));
                    match listener {
                        Ok(listener) => self.reports = Some(listener),
                        Err(error) => items.push(blind(name, &describe(&error))),
                    }
                }
                LooksFor::Known(_) if !instance.has_mounts() => {
                    items.push(blind(name, "the workload shares the host's mounts"));
                }
                LooksFor::Known(known) => {
                    let init = instance.pid().as_raw_nonzero().get();
                    match new_exec::Watcher::start(init, known, events.clone()) {
                        Ok(watcher) => self.programs = Some(watcher),
                        Err(error) => {
                            let why = format!("the kernel tells only root of executions ({error})");
                            items.push(blind(name, &why));
                        }
                    }
                }
                LooksFor::Stall(_) => items.extend(unseen_pressure(name, &instance.pressure())),
                _ => {}
            }
        }
        items
    }

    /// Weighs by another bundle from now on; what was signalled stays.
    pub(super) fn adopt(&mut self, bundle: &Bundle) {
        self.risk.adopt(RiskModel::from(bundle));
    }

    pub(super) fn risk(&self, now: Duration) -> u8 {
        self.risk.score(now)
    }

    /// What each sensor adds to the risk.
    pub(super) fn parts(&self, now: Duration) -> BTreeMap<String, u8> {
        self.risk.contributions(now).into_iter().collect()
    }

    /// When the risk next falls by itself, a sensor wants to look, or a signal that was counted has to
    /// be recorded.
    pub(super) fn next_change(&self, now: Duration) -> Option<Duration> {
        let looks = self
            .sensors
            .iter()
            .filter_map(|sensor| sensor.next_look(now));
        let times = [self.risk.next_change(now), self.tally.due()];
        looks.chain(times.into_iter().flatten()).min()
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
        around: &Around<'_>,
        gaps: &BTreeSet<String>,
        bundle: &Bundle,
        now: Duration,
    ) -> Vec<Record> {
        for happened in events.iter().map(Some).chain([None]) {
            let look = Look {
                now,
                happened,
                sandbox: around,
                worse: attested.worse(),
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
                    Kind::Adds(points) => self.risk.add(signal.sensor, points, now),
                    Kind::Share(percent) => {
                        let points = share_of(bundle, signal.sensor, percent);
                        self.risk.add(signal.sensor, points, now);
                    }
                    Kind::Relieves(points) => self.risk.relieve(signal.sensor, points, now),
                    Kind::Began => self.risk.hold(signal.sensor, now),
                    Kind::Ended => self.risk.release(signal.sensor, now),
                }
                self.tally.add(signal, self.risk.score(now));
            }
        }
        self.tally.take(now, false)
    }
}

/// So many percent of what the policy lets a sensor add, rounded up: what is worth something is never
/// worth nothing.
fn share_of(bundle: &Bundle, sensor: &str, percent: u8) -> u8 {
    let adds = bundle
        .tables()
        .risk
        .get(sensor)
        .map_or(0, |entry| entry.adds);
    let points = (u32::from(adds) * u32::from(percent)).div_ceil(100);
    u8::try_from(points).unwrap_or(100)
}

/// A sensor that is weighed and cannot see on this host.
fn blind(sensor: &str, why: &str) -> Item {
    Item::not(
        3,
        "sensor",
        format!("{sensor}: {why}; it never adds to the risk"),
    )
}

/// What of the pressure on a sandbox this host does not count.
fn unseen_pressure(sensor: &str, pressure: &Pressure) -> Option<Item> {
    let unseen = [
        (pressure.killed.is_none(), "kills for lack of memory"),
        (pressure.forks_refused.is_none(), "refused forks"),
        (
            pressure.stalled.is_empty(),
            "stalls (PSI: boot with `psi=1`)",
        ),
    ];
    let unseen: Vec<_> = unseen
        .iter()
        .filter(|(not, _)| *not)
        .map(|(_, what)| *what)
        .collect();
    let detail = format!("{sensor}: this host does not count {}", unseen.join(", "));
    match unseen.len() {
        0 => None,
        3 => Some(Item::not(3, "sensor", detail)),
        _ => Some(Item::partly(3, "sensor", detail)),
    }
}
