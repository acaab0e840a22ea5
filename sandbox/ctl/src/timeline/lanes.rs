//! What held from when to when: one lane for each thing that can be taken.

use serde_json::Value;

use super::{kind, simulated, text};

/// Lanes, in the order in which they are drawn.
#[derive(Default)]
pub struct Lanes(Vec<Lane>);

/// One thing, and its states one after the other.
pub struct Lane {
    pub name: String,
    pub spans: Vec<Span>,
}

/// A state that held for a while.
pub struct Span {
    pub from: f64,
    /// None until it ends.
    pub to: Option<f64>,
    pub state: State,
    pub word: String,
}

/// How good a state is for the workload.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// All that the tables list.
    Full,
    /// Less than that, or waiting.
    Less,
    /// Nothing.
    Gone,
}

impl State {
    /// Name of its style.
    pub fn class(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Less => "less",
            Self::Gone => "gone",
        }
    }
}

const TRUST: &str = "evidence";
const RUN: &str = "workload";
const LIMITS: &str = "limits";
const EXEC: &str = "programs";
const CALLS: &str = "system calls";

impl Lanes {
    /// Every lane.
    pub fn all(&self) -> &[Lane] {
        &self.0
    }

    /// Takes the next record.
    pub fn take(&mut self, at: f64, record: &Value) {
        match kind(record) {
            "attested" => {
                let appraisal = &record["appraisal"];
                let tier = text(&appraisal["tier"]);
                match (tier.as_str(), simulated(appraisal)) {
                    ("affirming", false) => self.set(TRUST, at, State::Full, &tier),
                    ("warning", false) => self.set(TRUST, at, State::Less, &tier),
                    (_, true) => {
                        let word = format!("{tier}, but simulated: proves nothing");
                        self.set(TRUST, at, State::Less, &word);
                    }
                    _ => self.set(TRUST, at, State::Gone, &tier),
                }
            }
            // Evidence that was believed before goes on to age.
            "not-attested" if !self.0.iter().any(|lane| lane.name == TRUST) => {
                self.set(TRUST, at, State::Gone, "none");
            }
            "not-attested" => self.set(TRUST, at, State::Less, "not renewed"),
            "launching" => {
                self.set(RUN, at, State::Less, "is prepared");
                for name in record["data"].as_array().into_iter().flatten() {
                    self.set(&vault(&text(name)), at, State::Full, "granted");
                }
            }
            "started" => self.set(RUN, at, State::Full, "runs"),
            "ended" => self.set(RUN, at, State::Gone, "has ended"),
            "adjusted" => self.adjusted(at, &record["change"]),
            "closed" => self.close(at),
            _ => {}
        }
    }

    fn adjusted(&mut self, at: f64, change: &Value) {
        if change == "stop" {
            return self.set(RUN, at, State::Gone, "is stopped");
        }
        let Some((what, value)) = change.as_object().and_then(|change| change.iter().next()) else {
            return;
        };
        match (what.as_str(), value) {
            ("freeze", Value::Bool(true)) => self.set(RUN, at, State::Less, "is frozen"),
            ("freeze", Value::Bool(false)) => self.set(RUN, at, State::Full, "runs"),
            ("withdraw", name) => self.set(&vault(&text(name)), at, State::Gone, "withdrawn"),
            ("release", name) => self.set(&vault(&text(name)), at, State::Full, "granted"),
            ("detach", tree) => self.taken(&text(tree), at, State::Gone, "taken away"),
            ("read-only", tree) => self.taken(&text(tree), at, State::Less, "read-only"),
            ("restore", tree) => {
                let (name, access) = (text(&tree["at"]), text(&tree["access"]));
                let whole = access == "write" || !self.was(&name, &["write", "read-only"]);
                let state = if whole { State::Full } else { State::Less };
                self.taken(&name, at, state, &access);
            }
            ("disconnect", endpoint) => self.taken(&text(endpoint), at, State::Gone, "ended"),
            ("reconnect", endpoint) => self.taken(&text(endpoint), at, State::Full, "granted"),
            ("exec", Value::Bool(false)) => self.taken(EXEC, at, State::Gone, "refused"),
            ("exec", Value::Bool(true)) => self.taken(EXEC, at, State::Full, "granted"),
            ("tighten", Value::String(_)) => {
                self.taken(EXEC, at, State::Gone, "taken for good");
            }
            ("tighten", what) => {
                let calls = what["calls"].as_array().into_iter().flatten();
                let calls: Vec<_> = calls.map(text).collect();
                let word = format!("without {}, for good", calls.join(", "));
                self.taken(CALLS, at, State::Less, &word);
            }
            ("limit", tier) => {
                let tier = text(tier);
                let state = if tier == "full" {
                    State::Full
                } else {
                    State::Less
                };
                self.taken(LIMITS, at, state, &tier);
            }
            _ => {}
        }
    }

    /// Whether a lane was ever in one of these states.
    fn was(&self, name: &str, words: &[&str]) -> bool {
        let lane = self.0.iter().find(|lane| lane.name == name);
        lane.is_some_and(|lane| {
            let mut spans = lane.spans.iter();
            spans.any(|span| words.contains(&&*span.word))
        })
    }

    /// Sets the state of something that was there in full before, from the start on.
    fn taken(&mut self, name: &str, at: f64, state: State, word: &str) {
        let started = self.0.iter().find(|lane| lane.name == RUN);
        let started = started
            .and_then(|lane| lane.spans.first())
            .map(|span| span.from);
        if let Some(started) = started
            && !self.0.iter().any(|lane| lane.name == name)
        {
            self.set(name, started, State::Full, "granted");
        }
        self.set(name, at, state, word);
    }

    fn set(&mut self, name: &str, at: f64, state: State, word: &str) {
        let index = self
            .0
            .iter()
            .position(|lane| lane.name == name)
            .unwrap_or_else(|| {
                let lane = Lane {
                    name: name.to_owned(),
                    spans: Vec::new(),
                };
                self.0.push(lane);
                self.0.len() - 1
            });
        let spans = &mut self.0[index].spans;
        if let Some(last) = spans.last_mut().filter(|span| span.to.is_none()) {
            if last.state == state && last.word == word {
                return;
            }
            last.to = Some(at);
        }
        spans.push(Span {
            from: at,
            to: None,
            state,
            word: word.to_owned(),
        });
    }

    fn close(&mut self, at: f64) {
        for span in self.0.iter_mut().filter_map(|lane| lane.spans.last_mut()) {
            span.to.get_or_insert(at);
        }
    }
}

fn vault(name: &str) -> String {
    format!("vault {name}")
}
