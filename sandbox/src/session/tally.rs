//! Signals on their way into the log: the first at once, then at most once a second for each sensor.
//!
//! A workload chooses how often it does what a sensor sees, and with which arguments. What it does must
//! cost the log and the memory of the session no more than a little for each second: so signals are
//! counted here, a few kinds of each sensor by name and the others together. None is lost: a decision
//! that follows from signals has them before it in the log.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::record::Record;
use crate::sensor::{Kind, Signal};

/// Shortest time between two records of one sensor that lead to no decision.
const PAUSE: Duration = Duration::from_secs(1);
/// Most signals of one sensor that are told apart in one go.
const MAX_KINDS: usize = 8;

/// What was signalled and is not recorded yet.
#[derive(Debug, Default)]
pub(super) struct Tally(BTreeMap<&'static str, Counted>);

#[derive(Debug, Default)]
struct Counted {
    signals: Vec<(Signal, u32)>,
    others: u32,
    risk: u8,
    recorded: Option<Duration>,
}

impl Tally {
    /// Counts a signal. The beginning and the end of a lasting condition are never counted together.
    pub(super) fn add(&mut self, signal: Signal, risk: u8) {
        let counted = self.0.entry(signal.sensor).or_default();
        counted.risk = risk;
        let lasting = matches!(signal.kind, Kind::Began | Kind::Ended);
        let room = lasting || counted.signals.len() < MAX_KINDS;
        let known = counted
            .signals
            .iter_mut()
            .find(|(known, _)| *known == signal);
        match known {
            Some((_, count)) if !lasting => *count = count.saturating_add(1),
            _ if room => counted.signals.push((signal, 1)),
            _ => counted.others = counted.others.saturating_add(1),
        }
    }

    /// When something that was counted has to be recorded.
    pub(super) fn due(&self) -> Option<Duration> {
        let waiting = self
            .0
            .values()
            .filter(|counted| !counted.signals.is_empty());
        waiting
            .map(|counted| counted.recorded.map_or(Duration::ZERO, |at| at + PAUSE))
            .min()
    }

    /// The records of what is due; or of everything, before a decision.
    pub(super) fn take(&mut self, now: Duration, everything: bool) -> Vec<Record> {
        let mut records = Vec::new();
        for (sensor, counted) in &mut self.0 {
            let due = counted.recorded.is_none_or(|at| now >= at + PAUSE);
            if counted.signals.is_empty() || !(due || everything) {
                continue;
            }
            counted.recorded = Some(now);
            let signals = counted.signals.drain(..);
            let risk = counted.risk;
            records.extend(signals.map(|(signal, count)| Record::signal(signal, count, risk)));
            if counted.others > 0 {
                let others = Signal {
                    sensor,
                    kind: Kind::Happened,
                    detail: "others".into(),
                };
                records.push(Record::signal(
                    others,
                    std::mem::take(&mut counted.others),
                    risk,
                ));
            }
        }
        records
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signal(detail: &str) -> Signal {
        Signal {
            sensor: "denied-syscall",
            kind: Kind::Happened,
            detail: detail.into(),
        }
    }

    fn counts(records: &[Record]) -> u32 {
        let count = |record: &Record| match record {
            Record::Signal { count, .. } => *count,
            _ => 0,
        };
        records.iter().map(count).sum()
    }

    #[test]
    fn a_storm_costs_a_few_records_a_second_and_none_of_it_is_lost() {
        let mut tally = Tally::default();
        let (mut records, mut sent) = (Vec::new(), 0);
        for millisecond in 0..3000 {
            for call in 0..100 {
                tally.add(signal(&format!("ioctl ({call}, {millisecond})")), 100);
                sent += 1;
            }
            records.extend(tally.take(Duration::from_millis(millisecond), false));
        }
        assert!(records.len() <= 3 * (MAX_KINDS + 1), "{}", records.len());
        records.extend(tally.take(Duration::from_secs(3), true));
        assert_eq!(counts(&records), sent);
        assert_eq!(tally.due(), None);
    }

    #[test]
    fn the_first_signal_is_recorded_at_once_and_the_next_when_its_time_has_come() {
        let mut tally = Tally::default();
        tally.add(signal("socket"), 10);
        assert_eq!(tally.take(Duration::from_secs(5), false).len(), 1);
        tally.add(signal("socket"), 20);
        assert_eq!(tally.take(Duration::from_secs(5), false).len(), 0);
        assert_eq!(tally.due(), Some(Duration::from_secs(6)));
        assert_eq!(tally.take(Duration::from_secs(6), false).len(), 1);
    }
}
