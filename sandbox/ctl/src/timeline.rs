//! What happened when, in a run: from the records of its verified log, and of nothing else.
//!
//! ```text
//! records ─▶ Run { moments, curve of the risk, lanes } ─▶ text, or one page of HTML (html.rs)
//! ```

mod html;
mod lanes;

use std::time::Duration;

use casemate::adjust::Change;
use serde_json::{Value, json};

use guest_agent::view::clean;
use lanes::Lanes;

/// A run, as its log tells it.
pub struct Run {
    root: String,
    key_pinned: bool,
    unsigned: u64,
    began: Option<Duration>,
    moments: Vec<Moment>,
    risk: Vec<(f64, u8)>,
    lanes: Lanes,
    micros: Vec<u64>,
}

/// One record.
struct Moment {
    seq: u64,
    /// Seconds since the first record.
    at: f64,
    payload: Value,
}

impl Run {
    /// A run of which nothing is known yet, but that its log verified to this root.
    pub fn new(root: String, key_pinned: bool, unsigned: u64) -> Self {
        Self {
            root,
            key_pinned,
            unsigned,
            began: None,
            moments: Vec::new(),
            risk: Vec::new(),
            lanes: Lanes::default(),
            micros: Vec::new(),
        }
    }

    /// Takes the next record.
    pub fn take(&mut self, seq: u64, time: Duration, payload: Value) {
        let began = *self.began.get_or_insert(time);
        let last = self.moments.last().map_or(0.0, |moment| moment.at);
        // A clock that was set back does not turn the picture round; the verifier tells of it.
        let at = time.saturating_sub(began).as_secs_f64().max(last);
        let risk = match kind(&payload) {
            "signal" => payload["risk"].as_u64(),
            "decided" => payload["facts"]["risk"].as_u64(),
            _ => None,
        };
        if let Some(risk) = risk.and_then(|risk| u8::try_from(risk).ok()) {
            self.risk.push((at, risk.min(100)));
        }
        if kind(&payload) == "adjusted" {
            self.micros.extend(payload["micros"].as_u64());
        }
        self.lanes.take(at, &payload);
        self.moments.push(Moment { seq, at, payload });
    }

    fn first(&self, wanted: &str) -> Option<&Value> {
        let mut all = self.moments.iter().map(|moment| &moment.payload);
        all.find(|payload| kind(payload) == wanted)
    }

    fn count(&self, wanted: &str) -> usize {
        self.moments
            .iter()
            .filter(|moment| kind(&moment.payload) == wanted)
            .count()
    }

    fn length(&self) -> f64 {
        self.moments.last().map_or(0.0, |moment| moment.at)
    }

    /// What the run was: policy, command, time, end.
    fn title(&self) -> (String, String) {
        let opened = self.first("opened").unwrap_or(&Value::Null);
        let name = format!("{} v{}", text(&opened["policy"]), opened["version"]);
        let command = opened["command"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str);
        (name, clean(&command.collect::<Vec<_>>().join(" ")))
    }

    /// Why it ended.
    fn ending(&self) -> String {
        self.first("closed").map_or_else(
            || "its end is not in the log".to_owned(),
            |closed| text(&closed["why"]),
        )
    }

    /// Median and greatest time from an order to its being in force, in microseconds.
    fn latency(&self) -> Option<(u64, u64)> {
        let mut micros = self.micros.clone();
        micros.sort_unstable();
        Some((*micros.get(micros.len() / 2)?, *micros.last()?))
    }

    fn proof(&self) -> String {
        let key = if self.key_pinned {
            "with the key that was given"
        } else {
            "with the key stored beside it, which whoever rewrote the log could have replaced too"
        };
        let tail = match self.unsigned {
            0 => String::new(),
            tail => format!("; {tail} records after the last checkpoint are not vouched for"),
        };
        format!(
            "log verified {key}{tail}; {} records, root {}",
            self.moments.len(),
            self.root
        )
    }

    /// The timeline as text.
    pub fn text(&self) -> String {
        let (name, command) = self.title();
        let began = utc(self.began.unwrap_or_default());
        let mut lines = vec![
            format!("{name}: {command}"),
            format!("{began}, {:.3} s; {}", self.length(), clean(&self.ending())),
            self.proof(),
            String::new(),
        ];
        let mut risk = 0;
        for moment in &self.moments {
            if let Some((_, now)) = self.risk.iter().rfind(|(at, _)| *at <= moment.at) {
                risk = *now;
            }
            let Some(what) = words(&moment.payload) else {
                continue;
            };
            let at = format!("+{:.3}s", moment.at);
            let bar = "▮".repeat(usize::from(risk.div_ceil(10)));
            lines.push(format!("{at:>10}  {risk:>3} {bar:<10}  {}", clean(&what)));
            for why in reasons(&moment.payload) {
                lines.push(format!("{:>29}because {}", "", clean(&why)));
            }
        }
        lines.push(String::new());
        lines.join("\n")
    }

    /// The same as JSON.
    pub fn json(&self) -> Value {
        let moments: Vec<Value> = self
            .moments
            .iter()
            .map(|m| json!({ "seq": m.seq, "at": m.at, "words": words(&m.payload), "because": reasons(&m.payload) }))
            .collect();
        json!({ "root": self.root, "key-pinned": self.key_pinned, "unsigned-tail": self.unsigned,
                "began": self.began.unwrap_or_default().as_secs_f64(), "length": self.length(),
                "risk": self.risk, "moments": moments })
    }

    /// One page of HTML that needs nothing else.
    pub fn html(&self) -> String {
        html::page(self)
    }
}

fn kind(record: &Value) -> &str {
    record["kind"].as_str().unwrap_or_default()
}

/// Whether an appraisal rests on the simulator, or does not say.
fn simulated(appraisal: &Value) -> bool {
    appraisal["simulated"] != false
}

fn text(value: &Value) -> String {
    clean(value.as_str().unwrap_or("?"))
}

/// A change in words; one that this version does not know is shown as it is.
fn change(value: &Value) -> String {
    serde_json::from_value::<Change>(value.clone())
        .map_or_else(|_| value.to_string(), |change| change.to_string())
}

/// A record in one line, if it says anything to people.
pub fn words(record: &Value) -> Option<String> {
    let text = |key: &str| text(&record[key]);
    Some(match kind(record) {
        "attested" => format!(
            "evidence {}{} believed: tier {}, tcb {}",
            text("tee"),
            if simulated(&record["appraisal"]) {
                " (proves nothing)"
            } else {
                ""
            },
            self::text(&record["appraisal"]["tier"]),
            self::text(&record["appraisal"]["tcb-status"])
        ),
        "not-attested" => format!("no evidence is believed: {}", text("error")),
        "released" => format!(
            "key of vault {} released, generation {}",
            text("data"),
            record["generation"]
        ),
        "not-released" => format!(
            "key of vault {} not released: {}",
            text("data"),
            text("error")
        ),
        "committed" => format!(
            "vault {} committed, generation {}",
            text("data"),
            record["generation"]
        ),
        "lost" => format!(
            "what was written to vault {} since its last commit is lost: {} changes, {} bytes",
            text("data"),
            record["changes"],
            record["bytes"]
        ),
        "decided" => format!(
            "decided at risk {}: {} granted, {} denied",
            record["facts"]["risk"], record["granted"], record["refused"]
        ),
        "started" => "the workload runs".to_owned(),
        "signal" => {
            let times = match record["count"].as_u64() {
                Some(count @ 2..) => format!(" ×{count}"),
                _ => String::new(),
            };
            let over = if record["holds"] == false {
                " is over"
            } else {
                ""
            };
            format!(
                "signal {}{over}: {}{times}; risk {}",
                text("sensor"),
                text("detail"),
                record["risk"]
            )
        }
        "adjusting" => format!("about to {}", change(&record["change"])),
        "adjusted" => {
            let took = record["micros"].as_u64().unwrap_or_default() as f64 / 1000.0;
            format!("{}: in force after {took:.2} ms", change(&record["change"]))
        }
        "not-adjusted" => format!("{} failed: {}", change(&record["change"]), text("error")),
        "reloading" => format!(
            "about to decide under version {} of the policy",
            record["version"]
        ),
        "not-reloaded" => format!("another policy was refused: {}", text("why")),
        "shadowed" => {
            let count = |key: &str| record[key].as_array().map_or(0, Vec::len);
            format!(
                "version {} of the policy, which is only tried, would grant {} more and {} less",
                record["version"],
                count("gained"),
                count("lost")
            )
        }
        "kill" => {
            let from = record["by"]["uid"]
                .as_u64()
                .map_or_else(String::new, |uid| format!(", asked for by uid {uid}"));
            format!("Unix signal {} passed on{from}", record["signal"])
        }
        "ordered" => {
            let order = serde_json::from_value::<casemate::Command>(record["order"].clone())
                .map_or_else(|_| record["order"].to_string(), |order| order.to_string());
            let by = &record["by"];
            format!(
                "ordered by uid {} (process {}): {order}, because {}",
                by["uid"],
                by["pid"],
                text("why")
            )
        }
        "ended" => match record["ending"]["code"].as_i64() {
            Some(code) => format!("the workload exited with {code}"),
            None => format!(
                "the workload was ended by signal {}",
                record["ending"]["killed"]
            ),
        },
        "closed" => format!("closed: {}", text("why")),
        _ => return None,
    })
}

/// Why, where a record says so: the rules behind a change, or behind what was denied.
fn reasons(record: &Value) -> Vec<String> {
    let strings = |value: &Value| {
        let all = value.as_array().into_iter().flatten();
        all.filter_map(|text| Some(text.as_str()?.to_owned()))
            .collect::<Vec<_>>()
    };
    match kind(record) {
        "adjusting" => strings(&record["because"]),
        "decided" => {
            let denied = record["denied"].as_array().into_iter().flatten();
            let why = |denial: &Value| {
                let rules = strings(&denial["because"]).join("; ");
                format!("{} is denied: {rules}", text(&denial["grant"]))
            };
            denied.map(why).collect()
        }
        _ => Vec::new(),
    }
}

/// A time since the Unix epoch as people read it.
fn utc(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // "Euclidean affine functions and applications to calendar algorithms": years from March on, so that
    // the leap day comes last.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use casemate::lever::tighten::Tightening;
    use casemate::plan::{FileAccess, Tier};

    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, date) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_795_392_000, "2026-11-23 00:00:00 UTC"),
            (4_107_542_399, "2100-02-28 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(utc(Duration::from_secs(seconds)), date);
        }
    }

    #[test]
    fn what_a_log_says_cannot_break_out_of_the_page_or_steer_a_terminal() {
        let mut run = Run::new("00".into(), true, 0);
        let bad = "</script><b onload=x>\u{1b}[31m\u{202e}&\"'";
        let opened = json!({ "kind": "opened", "policy": bad, "version": 1, "digest": bad, "command": [bad] });
        run.take(0, Duration::from_secs(1), opened);
        let signal =
            json!({ "kind": "signal", "sensor": bad, "detail": bad, "count": 1, "risk": 30 });
        run.take(1, Duration::from_secs(2), signal);
        let adjusting = json!({ "kind": "adjusting", "change": { bad: bad }, "because": [bad] });
        run.take(2, Duration::from_secs(3), adjusting);
        let prepared = json!({ "kind": "prepared", "enforcement": [{ "layer": 2, "id": bad, "state": bad, "detail": bad }] });
        run.take(3, Duration::from_secs(3), prepared);
        let launching = json!({ "kind": "launching", "data": [bad] });
        run.take(4, Duration::from_secs(3), launching);
        let (page, text) = (run.html(), run.text());
        assert!(!page.contains("<b onload") && !page.contains("</script>"));
        for output in [&page, &text] {
            assert!(!output.contains('\u{1b}') && !output.contains('\u{202e}'));
        }
    }

    #[test]
    fn every_change_there_is_has_its_place_in_the_picture() {
        let mut run = Run::new("00".into(), true, 0);
        let changes = [
            Change::Withdraw("customers".into()),
            Change::Release("customers".into()),
            Change::Detach("/in".into()),
            Change::ReadOnly("/out".into()),
            Change::Restore {
                at: "/in".into(),
                access: FileAccess::Read,
            },
            Change::Disconnect("db:5432".into()),
            Change::Reconnect("db:5432".into()),
            Change::Exec(false),
            Change::Exec(true),
            Change::Tighten(Tightening::Exec),
            Change::Tighten(Tightening::Calls(["ptrace".to_owned()].into())),
            Change::Limit(Tier::Reduced),
            Change::Freeze(true),
            Change::Freeze(false),
            Change::Stop,
        ];
        run.take(
            0,
            Duration::ZERO,
            json!({ "kind": "launching", "data": ["customers"] }),
        );
        run.take(1, Duration::ZERO, json!({ "kind": "started" }));
        let spans = |run: &Run| {
            run.lanes
                .all()
                .iter()
                .map(|lane| lane.spans.len())
                .sum::<usize>()
        };
        for (seq, change) in (2..).zip(&changes) {
            let before = spans(&run);
            let record = json!({ "kind": "adjusted", "change": change, "micros": 1 });
            run.take(seq, Duration::from_secs(seq), record);
            assert!(spans(&run) > before, "{change} is not drawn");
            assert!(run.text().contains(&change.to_string()), "{change}");
        }
        let names: Vec<_> = run.lanes.all().iter().map(|lane| &*lane.name).collect();
        let lanes = [
            "workload",
            "vault customers",
            "/in",
            "/out",
            "db:5432",
            "programs",
            "system calls",
            "limits",
        ];
        assert_eq!(names, lanes);
    }

    #[test]
    fn a_log_of_garbage_still_gives_a_page() {
        for payload in [
            json!(null),
            json!([]),
            json!({ "kind": "adjusted" }),
            json!({ "kind": "decided", "facts": 7 }),
        ] {
            let mut run = Run::new(String::new(), false, 3);
            run.take(0, Duration::ZERO, payload);
            assert!(run.html().ends_with("</html>\n"));
            run.text();
        }
        assert!(Run::new(String::new(), false, 0).html().contains("<h1>"));
    }
}
