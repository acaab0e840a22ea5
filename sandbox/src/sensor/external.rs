//! `external`: a tool outside reports something, such as an intrusion detection system or a SIEM. Adds
//! what the policy says, or less if the report itself says that it is less; fades by its half-life.
//!
//! Reports are lines of JSON on a Unix socket, each with the claims of a security event token ("Security
//! Event Token (SET)", RFC 8417; "OpenID Continuous Access Evaluation Profile 1.0"):
//!
//! ```text
//! {"token":"…"}                                                      first, if the policy names a token
//! {"iss":"falco","jti":"17","events":{"https://schemas.openid.net/secevent/caep/event-type/
//!  risk-level-change":{"current_level":"HIGH","risk_reason":"shell in a container"}}}
//!   ▶ {"accepted":true} or {"error":"…"}
//! ```
//!
//! The words of a report go into the log, shortened. Of one issuer the same `jti` counts once.

mod listener;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use super::{Kind, Look, Sensor, Signal};
use crate::event::Event;

pub use listener::{Admission, ListenError, Listener};

/// Most bytes of one report, its end of line included.
pub const MAX_REPORT: usize = 16 << 10;
/// Most events that one report may tell of.
const MAX_EVENTS: usize = 16;
/// Most characters of a word that is taken from a report.
const MAX_WORD: usize = 160;
/// Reports that are remembered in order not to count them twice.
const REMEMBERED: usize = 256;

/// What a tool reported, shortened to what is recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Who says so.
    pub issuer: String,
    /// What, in one line.
    pub what: String,
    /// How much of the policy's points it is worth, in percent.
    pub share: u8,
}

/// Passes reports on.
#[derive(Debug)]
pub struct External;

impl Sensor for External {
    fn sense(&mut self, look: &Look<'_>) -> Option<Signal> {
        let Some(Event::Report(report)) = look.happened else {
            return None;
        };
        let kind = match report.share {
            100 => Kind::Happened,
            share => Kind::Share(share),
        };
        Some(Signal {
            sensor: "external",
            kind,
            detail: format!("{}: {}", report.issuer, report.what),
        })
    }
}

/// The claims of a report; others are passed over, as RFC 8417 asks.
#[derive(Deserialize)]
struct Claims {
    iss: String,
    #[serde(default)]
    jti: Option<String>,
    events: BTreeMap<String, Claimed>,
}

#[derive(Deserialize)]
struct Claimed {
    #[serde(default)]
    current_level: Option<String>,
    #[serde(default)]
    risk_reason: Option<String>,
    #[serde(default)]
    reason_admin: Option<serde_json::Value>,
}

/// Why a line is no report.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// It is not of the documented form.
    #[error("not a security event: {0}")]
    Form(String),
    /// It tells of nothing, or of too much.
    #[error("a security event tells of 1 to {MAX_EVENTS} events")]
    Events,
}

impl Report {
    /// Reads a line; gives the report and what tells it from others, if it has that.
    ///
    /// # Errors
    ///
    /// [`ReportError`] says what is wrong with the line.
    pub fn parse(line: &[u8]) -> Result<(Self, Option<String>), ReportError> {
        let claims: Claims =
            serde_json::from_slice(line).map_err(|error| ReportError::Form(error.to_string()))?;
        if !(1..=MAX_EVENTS).contains(&claims.events.len()) {
            return Err(ReportError::Events);
        }
        let mut share = 0;
        let mut what = Vec::new();
        for (kind, event) in &claims.events {
            let level = event.current_level.as_deref().map(str::to_ascii_uppercase);
            // What is not known to be less counts in full.
            let worth = match level.as_deref() {
                Some("LOW") => 10,
                Some("MEDIUM") => 50,
                _ => 100,
            };
            share = share.max(worth);
            let name = kind.rsplit('/').next().unwrap_or(kind);
            let reason = match (&event.risk_reason, &event.reason_admin) {
                (Some(reason), _) => Some(reason.clone()),
                (None, Some(serde_json::Value::String(reason))) => Some(reason.clone()),
                // In several languages: the first.
                (None, Some(serde_json::Value::Object(all))) => all
                    .values()
                    .find_map(|text| Some(text.as_str()?.to_owned())),
                _ => None,
            };
            let words = [Some(name.to_owned()), level, reason];
            let words: Vec<_> = words.iter().flatten().map(|word| short(word)).collect();
            what.push(words.join(" "));
        }
        let issuer = short(&claims.iss);
        let id = claims.jti.map(|jti| format!("{issuer} {}", short(&jti)));
        let what = short(&what.join("; "));
        Ok((
            Self {
                issuer,
                what,
                share,
            },
            id,
        ))
    }
}

fn short(text: &str) -> String {
    let plain = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    plain.take(MAX_WORD).collect()
}

/// Reports that were counted already: the newest of them.
#[derive(Debug, Default)]
struct Counted(Mutex<VecDeque<String>>);

impl Counted {
    /// Whether this one is new, which it is once.
    fn is_new(&self, id: &str) -> bool {
        let mut counted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.iter().any(|known| known == id) {
            return false;
        }
        if counted.len() == REMEMBERED {
            counted.pop_front();
        }
        counted.push_back(id.to_owned());
        true
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const RISK: &str = "https://schemas.openid.net/secevent/caep/event-type/risk-level-change";

    fn share(event: &str) -> u8 {
        let line = format!("{{\"iss\":\"t\",\"events\":{{\"{RISK}\":{event}}}}}");
        Report::parse(line.as_bytes()).unwrap().0.share
    }

    #[test]
    fn a_level_that_is_known_to_be_less_counts_less_and_any_other_in_full() {
        assert_eq!(share("{\"current_level\":\"LOW\"}"), 10);
        assert_eq!(share("{\"current_level\":\"medium\"}"), 50);
        for event in [
            "{\"current_level\":\"HIGH\"}",
            "{\"current_level\":\"?\"}",
            "{}",
        ] {
            assert_eq!(share(event), 100, "{event}");
        }
    }

    #[test]
    fn what_is_recorded_of_a_report_is_one_short_line() {
        let long = "x".repeat(5000);
        let line = format!(
            "{{\"iss\":\"fal\\nco\",\"jti\":\"1\",\"iat\":5,\"events\":{{\"{RISK}\":{{\"risk_reason\":\"{long}\"}},\"a/session-revoked\":{{\"reason_admin\":{{\"en\":\"gone\"}}}}}}}}"
        );
        let (report, id) = Report::parse(line.as_bytes()).unwrap();
        assert_eq!(report.issuer, "fal co");
        assert!(
            report.what.starts_with("session-revoked gone; ")
                || report.what.contains("risk-level-change")
        );
        assert!(report.what.chars().count() <= MAX_WORD);
        assert_eq!(id.unwrap(), "fal co 1");
    }

    #[test]
    fn what_is_no_report_is_refused() {
        for line in [
            "",
            "{}",
            "[]",
            "{\"iss\":\"a\"}",
            "{\"iss\":\"a\",\"events\":{}}",
            "{\"iss\":1,\"events\":{\"a\":{}}}",
            "{\"iss\":\"a\",\"events\":{\"a\":7}}",
        ] {
            assert!(Report::parse(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn the_same_report_counts_once_and_what_is_remembered_is_bounded() {
        let counted = Counted::default();
        assert!(counted.is_new("a 1") && !counted.is_new("a 1"));
        (0..10_000).for_each(|n| assert!(counted.is_new(&format!("b {n}"))));
        assert_eq!(counted.0.lock().unwrap().len(), REMEMBERED);
    }

    proptest::proptest! {
        #[test]
        fn no_line_makes_the_reader_panic(line in ".{0,200}") {
            let _ = Report::parse(line.as_bytes());
        }
    }
}
