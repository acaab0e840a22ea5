//! `time-window`: it is outside of the hours that the policy names. Holds as long as that is true, by the
//! session's own clock, which setting the wall clock back does not turn back.

use std::time::Duration;

use policy::Window;

use super::{Edge, Look, Sensor, Signal};

/// Notices the hours.
#[derive(Debug)]
pub struct TimeWindow {
    window: Window,
    outside: Edge,
}

impl TimeWindow {
    /// A sensor for the time outside of these hours.
    pub fn new(window: Window) -> Self {
        Self {
            window,
            outside: Edge::default(),
        }
    }
}

impl Sensor for TimeWindow {
    fn sense(&mut self, look: &Look<'_>) -> Option<Signal> {
        let kind = self.outside.turn(!self.window.contains(look.now))?;
        let minutes = look.now.as_secs() / 60 % (24 * 60);
        Some(Signal {
            sensor: "time-window",
            kind,
            detail: format!(
                "{:02}:{:02} UTC; the hours are {}",
                minutes / 60,
                minutes % 60,
                self.window
            ),
        })
    }

    fn next_look(&self, now: Duration) -> Option<Duration> {
        self.window.next_edge(now)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::Kind;
    use super::super::tests::Said;
    use super::*;

    #[test]
    fn the_hours_end_and_begin_and_are_waited_for() {
        let mut sensor = TimeWindow::new("08:00-18:00".parse().unwrap());
        let (said, gaps) = (Said::default(), BTreeSet::new());
        let mut now = Duration::from_secs(17 * 3600);
        let mut kinds = Vec::new();
        for _ in 0..3 {
            kinds.push(
                sensor
                    .sense(&said.look(now, &gaps))
                    .map(|signal| signal.kind),
            );
            now = sensor.next_look(now).unwrap();
        }
        assert_eq!(kinds, [None, Some(Kind::Began), Some(Kind::Ended)]);
    }
}
