//! Hours of the week, in UTC.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

const MINUTES: u64 = 24 * 60;
const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// Hours of some days of the week, in UTC: `08:00-18:00`, `mon-fri 08:00-18:00`, `sat,sun 22:00-04:00`.
///
/// The first minute is within, the last is not. Hours that end before they begin end on the next day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Minutes of the day.
    from: u64,
    to: u64,
    /// Bit 0 is Monday.
    days: u8,
}

/// Why a text names no window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct WindowError(&'static str);

impl Window {
    /// Whether a time since the Unix epoch is within.
    pub fn contains(&self, time: Duration) -> bool {
        let minutes = time.as_secs() / 60;
        let (day, minute) = (minutes / MINUTES, minutes % MINUTES);
        if self.from < self.to {
            return self.on(day) && (self.from..self.to).contains(&minute);
        }
        // Over midnight: what began yesterday, or begins today.
        (minute < self.to && self.on(day + 6)) || (minute >= self.from && self.on(day))
    }

    /// When it is next entered or left, after a time since the Unix epoch. `None` if it never is.
    pub fn next_edge(&self, time: Duration) -> Option<Duration> {
        let now = self.contains(time);
        let day = time.as_secs() / 60 / MINUTES;
        let edges = (day..=day.checked_add(8)?)
            .flat_map(|day| [self.from, self.to].map(|minute| (day, minute)));
        edges
            .filter_map(|(day, minute)| {
                let minutes = day.checked_mul(MINUTES)?.checked_add(minute)?;
                Some(Duration::from_secs(minutes.checked_mul(60)?))
            })
            .filter(|edge| *edge > time && self.contains(*edge) != now)
            .min()
    }

    /// Whether it begins on a day, counted from 1970-01-01, which was a Thursday. A week more is the
    /// same day.
    fn on(&self, day: u64) -> bool {
        self.days >> ((day + 3) % 7) & 1 == 1
    }
}

impl FromStr for Window {
    type Err = WindowError;

    fn from_str(text: &str) -> Result<Self, WindowError> {
        let (days, hours) = match text.split_once(' ') {
            Some((days, hours)) => (parse_days(days)?, hours),
            None => (0x7f, text),
        };
        let (from, to) = hours
            .split_once('-')
            .ok_or(WindowError("it has no beginning and end"))?;
        let (from, to) = (minute(from, 23)?, minute(to, 24)?);
        if from == to {
            return Err(WindowError("it ends when it begins"));
        }
        Ok(Self { from, to, days })
    }
}

fn parse_days(text: &str) -> Result<u8, WindowError> {
    let day = |name: &str| {
        let known = DAYS.iter().position(|day| *day == name);
        known.ok_or(WindowError("its days are not of `mon` to `sun`"))
    };
    let mut days = 0;
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (day(first)?, day(last)?),
            None => (day(part)?, day(part)?),
        };
        let length = (last + 7 - first) % 7;
        for offset in 0..=length {
            days |= 1 << ((first + offset) % 7);
        }
    }
    Ok(days)
}

/// Minutes of the day of `08:30`, at most the full hour `last`.
fn minute(text: &str, last: u64) -> Result<u64, WindowError> {
    const FORM: WindowError = WindowError("its hours are not of the form `08:00`");
    let (hours, minutes) = text.split_once(':').ok_or(FORM)?;
    let number =
        |digits: &str| match digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit()) {
            true => digits.parse::<u64>().map_err(|_| FORM),
            false => Err(FORM),
        };
    let (hours, minutes) = (number(hours)?, number(minutes)?);
    let fits = minutes < 60 && (hours <= 23 || (hours == last && minutes == 0));
    match fits {
        true => Ok(hours * 60 + minutes),
        false => Err(FORM),
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.days != 0x7f {
            let names = DAYS
                .iter()
                .enumerate()
                .filter(|(n, _)| self.days >> n & 1 == 1);
            let names: Vec<&str> = names.map(|(_, name)| *name).collect();
            write!(f, "{} ", names.join(","))?;
        }
        let clock = |minute: u64| format!("{:02}:{:02}", minute / 60, minute % 60);
        write!(f, "{}-{}", clock(self.from), clock(self.to))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// 2026-11-23 is a Monday.
    const MONDAY: u64 = 1_795_392_000;

    fn at(day: u64, hour: u64, minute: u64) -> Duration {
        Duration::from_secs(MONDAY + day * 86_400 + hour * 3600 + minute * 60)
    }

    #[test]
    fn the_first_minute_is_within_and_the_last_is_not() {
        let window: Window = "08:00-18:00".parse().unwrap();
        for (time, within) in [
            ((0, 7, 59), false),
            ((0, 8, 0), true),
            ((6, 17, 59), true),
            ((6, 18, 0), false),
        ] {
            assert_eq!(
                window.contains(at(time.0, time.1, time.2)),
                within,
                "{time:?}"
            );
        }
        assert_eq!(window.next_edge(at(0, 9, 30)), Some(at(0, 18, 0)));
        assert_eq!(window.next_edge(at(0, 18, 0)), Some(at(1, 8, 0)));
    }

    #[test]
    fn hours_over_midnight_belong_to_the_day_on_which_they_begin() {
        let window: Window = "fri 22:00-04:00".parse().unwrap();
        for (time, within) in [
            ((4, 21, 59), false),
            ((4, 22, 0), true),
            ((5, 3, 59), true),
            ((5, 4, 0), false),
            ((4, 3, 0), false),
            ((5, 22, 0), false),
        ] {
            assert_eq!(
                window.contains(at(time.0, time.1, time.2)),
                within,
                "{time:?}"
            );
        }
        assert_eq!(window.next_edge(at(5, 4, 0)), Some(at(11, 22, 0)));
    }

    #[test]
    fn days_are_ranges_and_lists() {
        let window: Window = "fri-mon,wed 00:00-24:00".parse().unwrap();
        assert_eq!(window.to_string(), "mon,wed,fri,sat,sun 00:00-24:00");
        assert!(window.contains(at(2, 23, 59)) && !window.contains(at(3, 0, 0)));
        let always: Window = "00:00-24:00".parse().unwrap();
        assert_eq!(always.next_edge(at(0, 1, 0)), None);
        assert_eq!(always.next_edge(Duration::MAX), None);
    }

    #[test]
    fn what_is_not_spelled_like_that_is_refused() {
        for bad in [
            "",
            "8:00-18:00",
            "08:00",
            "08:00-08:00",
            "24:00-08:00",
            "08:00-24:01",
            "08:60-09:00",
            "mo 08:00-18:00",
            "mon  08:00-18:00",
            "+8:00-18:00",
            "08:00-18:00-20:00",
        ] {
            assert!(bad.parse::<Window>().is_err(), "{bad}");
        }
    }
}
