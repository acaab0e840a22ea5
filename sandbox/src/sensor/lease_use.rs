//! `lease-use`: the workload reads more of its vaults than is usual for it: more bytes, faster, or more
//! different objects, as the policy says. Each time is a signal, which fades.
//!
//! The counters of the leases are looked at once a second; a read pays nothing for it.

use std::time::Duration;

use super::{INTERVAL, Kind, Look, Sensor, Signal};

/// Compares what was read with what the policy expects.
#[derive(Debug)]
pub struct UseOfLeases {
    volume: Option<u64>,
    rate: Option<u64>,
    objects: Option<u64>,
    /// When the counters were last looked at, and what they said.
    last: Option<(Duration, u64, u64)>,
}

impl UseOfLeases {
    /// A sensor that signals after each `volume` bytes, above `rate` bytes in a second, and when more
    /// than `objects` different objects are opened.
    pub fn new(volume: Option<u64>, rate: Option<u64>, objects: Option<u64>) -> Self {
        Self {
            volume,
            rate,
            objects,
            last: None,
        }
    }
}

impl Sensor for UseOfLeases {
    fn sense(&mut self, look: &Look<'_>) -> Option<Signal> {
        let passed = look
            .now
            .saturating_sub(self.last.map_or(Duration::ZERO, |last| last.0));
        if look.happened.is_some() || passed < INTERVAL {
            return None;
        }
        let usage = look.sandbox.usage();
        let bytes = usage.values().map(|usage| usage.bytes).sum::<u64>();
        let objects = usage.values().map(|usage| usage.objects).sum::<u64>();
        let looked_before = self.last.is_some();
        let (_, bytes_before, objects_before) = self
            .last
            .replace((look.now, bytes, objects))
            .unwrap_or_default();
        let read = bytes.saturating_sub(bytes_before);
        let mut seen = Vec::new();
        if let Some(volume) = self.volume
            && bytes / volume > bytes_before / volume
        {
            seen.push(format!("{bytes} bytes read so far"));
        }
        // Less than a millisecond does not come here: the interval has passed.
        let in_a_second = u128::from(read) * 1000 / passed.as_millis().max(1);
        if let Some(rate) = self.rate
            && looked_before
            && in_a_second > u128::from(rate)
        {
            seen.push(format!("{in_a_second} bytes in a second"));
        }
        if let Some(most) = self.objects
            && objects > objects_before.max(most)
        {
            let new = objects - objects_before.max(most);
            seen.push(format!(
                "{new} objects for the first time, {objects} in all"
            ));
        }
        (!seen.is_empty()).then(|| Signal {
            sensor: "lease-use",
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
    use std::collections::BTreeSet;

    use vault::LeaseUse;

    use super::super::tests::Said;
    use super::*;

    #[test]
    fn volume_rate_and_new_objects_are_noticed_once_each() {
        let mut sensor = UseOfLeases::new(Some(1000), Some(300), Some(2));
        let (said, gaps) = (Said::default(), BTreeSet::new());
        let mut after = |seconds: u64, bytes: u64, objects: u64| {
            let usage = LeaseUse {
                bytes,
                objects,
                ..LeaseUse::default()
            };
            said.usage.borrow_mut().insert("a".into(), usage);
            let look = said.look(Duration::from_secs(100 + seconds), &gaps);
            sensor.sense(&look).map(|signal| signal.detail)
        };
        assert_eq!(after(0, 10, 1), None);
        assert_eq!(after(1, 200, 2), None);
        assert_eq!(after(2, 600, 2).unwrap(), "400 bytes in a second");
        assert_eq!(
            after(3, 700, 4).unwrap(),
            "2 objects for the first time, 4 in all"
        );
        assert_eq!(after(13, 1100, 4).unwrap(), "1100 bytes read so far");
        assert_eq!(after(14, 1100, 4), None, "once each");
    }

    #[test]
    fn it_looks_once_a_second_however_much_happens() {
        let mut sensor = UseOfLeases::new(Some(1), None, None);
        let (said, gaps) = (Said::default(), BTreeSet::new());
        let now = Duration::from_secs(100);
        sensor.sense(&said.look(now, &gaps));
        let usage = LeaseUse {
            bytes: 9,
            ..LeaseUse::default()
        };
        said.usage.borrow_mut().insert("a".into(), usage);
        assert!(
            sensor
                .sense(&said.look(now + INTERVAL / 2, &gaps))
                .is_none()
        );
        assert!(sensor.sense(&said.look(now + INTERVAL, &gaps)).is_some());
    }
}
