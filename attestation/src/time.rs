//! Time as appraisal uses it: passed in, in whole seconds, never read from a clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Seconds since 1970-01-01T00:00:00Z, without leap seconds.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixTime(pub u64);

impl UnixTime {
    /// The time this many seconds later; stays at the end of time instead of wrapping.
    #[must_use]
    pub fn plus_seconds(self, seconds: u64) -> Self {
        Self(self.0.saturating_add(seconds))
    }

    /// The time this many seconds earlier; stays at the epoch instead of wrapping.
    #[must_use]
    pub fn minus_seconds(self, seconds: u64) -> Self {
        Self(self.0.saturating_sub(seconds))
    }
}

impl From<SystemTime> for UnixTime {
    /// Rounds down to the second. A clock set before 1970 reads as the epoch, at which every
    /// certificate in use is not yet valid.
    fn from(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self(since.as_secs())
    }
}

impl std::fmt::Display for UnixTime {
    /// Writes `2026-02-27T12:34:56Z`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Ok(date) = der::DateTime::from_unix_duration(Duration::from_secs(self.0)) else {
            return write!(f, "{} s after 1970-01-01T00:00:00Z", self.0);
        };
        write!(f, "{date}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_reads_as_utc() {
        assert_eq!(UnixTime(1_234_567_890).to_string(), "2009-02-13T23:31:30Z");
        assert!(
            UnixTime(u64::MAX)
                .to_string()
                .ends_with("1970-01-01T00:00:00Z")
        );
    }

    #[test]
    fn a_clock_before_the_epoch_reads_as_the_epoch() {
        let before = UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(UnixTime::from(before), UnixTime(0));
    }
}
