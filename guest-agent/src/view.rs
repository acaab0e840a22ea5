//! What a run shows while it runs: layer by layer what is in force, each decision with its reason.
//!
//! Under `sandboxctl run` all of it goes to stderr; stdout is the workload's.

use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use casemate::enforcement::{Item, State};
use casemate::isolation::child::Ending;
use casemate::record::{Record, hex};
use serde::{Deserialize, Serialize};
use serde_json::json;

/// How a run is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Look {
    /// Each record as one line of JSON, instead of text.
    pub json: bool,
    /// Nothing at all.
    pub quiet: bool,
    /// Text with colours.
    pub colour: bool,
}

/// Shows a session's records as they come.
#[derive(Clone)]
pub struct View(Arc<Mutex<Inner>>);

struct Inner {
    out: Box<dyn Write + Send>,
    look: Look,
    began: Option<Duration>,
    /// Whether it was said how an address is granted.
    address_explained: bool,
    log: PathBuf,
    key: [u8; 32],
}

impl View {
    /// A view that writes there what is to be seen.
    pub fn new(out: impl Write + Send + 'static, look: Look, log: PathBuf, key: [u8; 32]) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            out: Box::new(out),
            look,
            began: None,
            address_explained: false,
            log,
            key,
        })))
    }

    /// Shows one record.
    pub fn show(&mut self, record: &Record, at: Duration) {
        let Ok(mut inner) = self.0.lock() else { return };
        if inner.look.quiet {
            return;
        }
        if inner.look.json {
            let line = json!({ "at": at.as_secs_f64(), "record": record });
            inner.say(&line.to_string());
            return;
        }
        let began = *inner.began.get_or_insert(at);
        let at = at.saturating_sub(began);
        for line in inner.lines(record, at) {
            inner.say(&line);
        }
        if let Record::Signal {
            sensor: "denied-address",
            detail,
            ..
        } = record
            && !std::mem::replace(&mut inner.address_explained, true)
        {
            let how = format!("  to allow it: {}", clean(&grant_of(detail)));
            let line = inner.event(at, "", &how);
            inner.say(&line);
        }
    }

    /// Tells what is missing for people, and stops nothing.
    pub fn warn(&self, text: &str) {
        let Ok(mut inner) = self.0.lock() else { return };
        if inner.look.quiet {
            return;
        }
        if inner.look.json {
            inner.say(&json!({ "warning": text }).to_string());
        } else {
            let line = inner.line("note", &inner.warn(text));
            inner.say(&line);
        }
    }

    /// Tells how it ended, and where the log is.
    pub fn close(&self, ok: bool) {
        let Ok(mut inner) = self.0.lock() else { return };
        if inner.look.quiet {
            return;
        }
        let log = inner.log.display().to_string();
        let key = hex(&inner.key);
        if inner.look.json {
            let line = json!({ "log": inner.log, "key": key, "ok": ok });
            inner.say(&line.to_string());
            return;
        }
        let lines = [
            inner.line("log", &log),
            inner.line(
                "verify",
                &format!("sandboxctl audit verify {log} --key {key}"),
            ),
        ];
        lines.iter().for_each(|line| inner.say(line));
    }
}

/// The line of the policy that grants what was refused: an address with its port, or a name.
fn grant_of(detail: &str) -> String {
    // `203.0.113.9:443 (api.example.com)`: the name is what the workload asked for.
    let (address, name) = match detail.split_once(" (") {
        Some((address, name)) => (address, Some(name.trim_end_matches(')'))),
        None => (detail, None),
    };
    let port = address.rsplit_once(':').map_or("PORT", |(_, port)| port);
    let endpoint = match name {
        // The name is granted, and leads to an address that no name may lead to by itself.
        Some(_) if port == "0" => address.trim_end_matches('0').to_owned() + "PORT",
        Some(name) => format!("{name}:{port}"),
        None if address.contains(':') => address.to_owned(),
        None => format!("{address}:{port}"),
    };
    format!("[network] connect = [\"{endpoint}\"]")
}

impl Inner {
    /// One line. A reader that is gone does not end the session.
    fn say(&mut self, line: &str) {
        let _ = self.out.write_all(format!("{line}\n").as_bytes());
    }

    fn lines(&self, record: &Record, at: Duration) -> Vec<String> {
        match record {
            Record::Opened {
                policy,
                version,
                digest,
                command,
                ..
            } => vec![
                self.line(
                    "policy",
                    &format!("{policy} v{version}, sha256 {}…", &digest[..16]),
                ),
                self.line("workload", &clean(&command.join(" "))),
            ],
            Record::Attested { tee, appraisal, .. } => vec![self.attested(tee, appraisal)],
            Record::NotAttested { code, error } => {
                vec![self.line(
                    "layer 1",
                    &self.bad(&format!("no appraisal ({code}): {error}")),
                )]
            }
            Record::Released {
                data,
                root,
                generation,
                ..
            } => vec![self.line(
                "layer 1",
                &format!(
                    "key of `{data}` released; vault root {}…, generation {generation}",
                    &root[..16]
                ),
            )],
            Record::NotReleased { data, error } => {
                vec![self.line(
                    "layer 1",
                    &self.bad(&format!("key of `{data}` not released: {error}")),
                )]
            }
            Record::Committed {
                data,
                root,
                generation,
            } => vec![self.line(
                "layer 4",
                &format!(
                    "`{data}` committed; vault root {}…, generation {generation}",
                    &root[..16]
                ),
            )],
            Record::Lost {
                data,
                changes,
                bytes,
            } => {
                let lost = format!("`{data}`: {changes} changes, {bytes} bytes written, were lost");
                vec![self.line("layer 4", &self.bad(&lost))]
            }
            Record::Decided {
                facts,
                granted,
                refused,
                denied,
                ..
            } => {
                let mut lines = vec![self.event(
                    at,
                    "decide",
                    &format!("risk {}: {granted} granted, {refused} denied", facts.risk),
                )];
                for denial in denied {
                    let why = denial.because.first().map_or("", String::as_str);
                    lines.push(self.event(
                        at,
                        "",
                        &format!("  {} denied: {}", denial.grant, clean(why)),
                    ));
                }
                lines
            }
            Record::Prepared { enforcement, .. } => {
                enforcement.iter().map(|i| self.item(i)).collect()
            }
            Record::Started => vec![self.event(at, "start", "the workload runs")],
            Record::Signal {
                sensor,
                detail,
                count,
                holds,
                risk,
            } => {
                let times = if *count > 1 {
                    format!(" ×{count}")
                } else {
                    String::new()
                };
                let over = if *holds == Some(false) {
                    " is over"
                } else {
                    ""
                };
                let text = format!("{sensor}{over}: {}{times}; risk {risk}", clean(detail));
                vec![self.event(at, "signal", &self.warn(&text))]
            }
            Record::Adjusting { .. } => Vec::new(),
            Record::Adjusted { change, micros } => {
                let took = format!("{:.1} ms", *micros as f64 / 1000.0);
                vec![self.event(
                    at,
                    "adjust",
                    &self.bad(&format!("{change}: in force after {took}")),
                )]
            }
            Record::NotAdjusted { change, error } => {
                vec![self.event(
                    at,
                    "adjust",
                    &self.bad(&format!("{change} failed: {error}")),
                )]
            }
            Record::Reloading { version, .. } => {
                vec![self.event(at, "policy", &format!("version {version} is in force"))]
            }
            Record::NotReloaded { why } => {
                let why = format!("not reloaded: {}", clean(why));
                vec![self.event(at, "policy", &self.warn(&why))]
            }
            Record::Shadowed { gained, lost, .. } => {
                let plus = gained.iter().map(|grant| format!("+{grant}"));
                let minus = lost.iter().map(|grant| format!("-{grant}"));
                let all: Vec<String> = plus.chain(minus).take(6).collect();
                let text = match all.as_slice() {
                    [] => "would decide the same".to_owned(),
                    some => format!("would decide otherwise: {}", clean(&some.join(", "))),
                };
                vec![self.event(at, "shadow", &text)]
            }
            Record::Kill { signal, by } => {
                let from = by.map_or_else(String::new, |by| format!(", from uid {}", by.uid));
                vec![self.event(at, "signal", &format!("passed on: {signal}{from}"))]
            }
            Record::Ordered { order, by, why } => {
                let text = format!("{order}, by uid {}: {}", by.uid, clean(why));
                vec![self.event(at, "order", &self.warn(&text))]
            }
            Record::Ended { ending } => vec![self.event(
                at,
                "end",
                &match ending {
                    Ending::Code(code) => format!("the workload exited with {code}"),
                    Ending::Killed(signal) => format!("the workload was ended by signal {signal}"),
                },
            )],
            Record::Closed { why, read, .. } => {
                let read: Vec<_> = read
                    .iter()
                    .map(|(name, bytes)| format!("{bytes} bytes of `{name}`"))
                    .collect();
                let read = if read.is_empty() {
                    String::new()
                } else {
                    format!("; it read {}", read.join(", "))
                };
                vec![self.event(at, "close", &format!("{why}{read}"))]
            }
            _ => Vec::new(),
        }
    }

    fn attested(&self, tee: &str, appraisal: &serde_json::Value) -> String {
        let text = |name: &str| appraisal[name].as_str().unwrap_or("?").to_owned();
        let simulated = appraisal["simulated"].as_bool().unwrap_or(true);
        let checks = appraisal["checks"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        let count = |outcome: &str| checks.iter().filter(|c| c["outcome"] == outcome).count();
        let (passed, failed) = (count("pass"), count("fail"));
        let kind = if simulated {
            self.warn("simulated (proves nothing)")
        } else {
            tee.to_owned()
        };
        self.line(
            "layer 1",
            &format!(
                "evidence {kind}: {passed} checks passed, {failed} failed, {} not asked for; tier {}, \
                 tcb {}",
                checks.len() - passed - failed,
                text("tier"),
                text("tcb-status"),
            ),
        )
    }

    fn item(&self, item: &Item) -> String {
        let state = match item.state {
            State::Full => "full  ".to_owned(),
            State::Partly => self.warn("partly"),
            State::Not => self.bad("not   "),
        };
        self.line(
            &format!("layer {}", item.layer),
            &format!("{state} {:<18} {}", item.id, clean(&item.detail)),
        )
    }

    fn line(&self, label: &str, text: &str) -> String {
        format!("{} {text}", self.dim(&format!("{label:>9}")))
    }

    fn event(&self, at: Duration, label: &str, text: &str) -> String {
        let at = if label.is_empty() {
            String::new()
        } else {
            format!("+{:.3}s", at.as_secs_f64())
        };
        format!("{} {label:<7} {text}", self.dim(&format!("{at:>9}")))
    }

    fn dim(&self, text: &str) -> String {
        self.paint("2", text)
    }

    fn warn(&self, text: &str) -> String {
        self.paint("33", text)
    }

    fn bad(&self, text: &str) -> String {
        self.paint("31", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.look.colour {
            format!("\u{1b}[{code}m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Text from elsewhere without what could steer a terminal.
pub fn clean(text: &str) -> String {
    vault::audit::Escaped(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_address_is_shown_with_the_line_that_grants_it() {
        for (detail, line) in [
            ("203.0.113.9:443", "203.0.113.9:443"),
            ("[2001:db8::1]:443", "[2001:db8::1]:443"),
            ("203.0.113.9:443 (api.example.com)", "api.example.com:443"),
            ("10.0.0.1:0 (api.example.com)", "10.0.0.1:PORT"),
            ("api.example.com", "api.example.com:PORT"),
        ] {
            assert_eq!(
                grant_of(detail),
                format!("[network] connect = [\"{line}\"]")
            );
        }
    }
}
