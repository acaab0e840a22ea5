//! Why something was done to a workload, from its log alone: record ◀ rules ◀ decision ◀ facts ◀ signals.

use serde::Serialize;
use serde_json::Value;
use vault::audit::Entry;

/// What led to one adjustment, and what came of it. Everything in it is a record of the log.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Explanation {
    /// Number of the record that announced the adjustment.
    pub ordered: u64,
    /// What was to be changed.
    pub change: Value,
    /// The rules that asked for it, or the failure that led to it.
    pub because: Vec<String>,
    /// Number of the record of the decision it follows from.
    pub decided: Option<u64>,
    /// The facts of that decision.
    pub facts: Value,
    /// What was signalled since the decision before, and lasting conditions that still held: number and
    /// payload of each record.
    pub signals: Vec<(u64, Value)>,
    /// What came of it: number, kind (`adjusted`, `not-adjusted`) and payload. `None` when the log ends
    /// before.
    pub outcome: Option<(u64, String, Value)>,
}

/// Explains the adjustment that record `seq` announces or tells the outcome of. `None` when that record
/// is about no adjustment.
pub fn explain(entries: &[Entry], seq: u64) -> Option<Explanation> {
    let asked = entries.iter().find(|entry| entry.seq == seq)?;
    let change = asked.record.payload.get("change")?;
    let about = |entry: &&Entry| entry.record.payload.get("change") == Some(change);
    let kind = |entry: &Entry, wanted: &str| entry.record.kind == wanted;
    let ordered = entries
        .iter()
        .rev()
        .filter(|entry| entry.seq <= seq)
        .find(|entry| kind(entry, "adjusting") && about(entry))?;
    let mut decisions = entries
        .iter()
        .rev()
        .filter(|entry| entry.seq < ordered.seq && kind(entry, "decided"));
    let decided = decisions.next();
    let (until, since) = (
        decided.map_or(ordered.seq, |entry| entry.seq),
        decisions.next().map_or(0, |entry| entry.seq),
    );
    let outcome = entries
        .iter()
        .filter(|entry| entry.seq > ordered.seq)
        .take_while(|entry| !(kind(entry, "adjusting") && about(entry)))
        .find(|entry| (kind(entry, "adjusted") || kind(entry, "not-adjusted")) && about(entry));
    let because = ordered.record.payload["because"].as_array();
    let because = because.into_iter().flatten().filter_map(Value::as_str);
    Some(Explanation {
        ordered: ordered.seq,
        change: change.clone(),
        because: because.map(str::to_owned).collect(),
        decided: decided.map(|entry| entry.seq),
        facts: decided.map_or(Value::Null, |entry| entry.record.payload["facts"].clone()),
        signals: signals(entries, since, until),
        outcome: outcome.map(|entry| {
            let record = &entry.record;
            (entry.seq, record.kind.to_string(), record.payload.clone())
        }),
    })
}

/// Signals between two decisions, and conditions from before that still held at the later one.
fn signals(entries: &[Entry], since: u64, until: u64) -> Vec<(u64, Value)> {
    let before = entries.iter().filter(|entry| entry.seq < until);
    let all: Vec<_> = before
        .filter(|entry| entry.record.kind == "signal")
        .collect();
    let holds = |entry: &Entry| entry.record.payload.get("holds").and_then(Value::as_bool);
    let ended = |began: &Entry| {
        let sensor = &began.record.payload["sensor"];
        let mut later = all.iter().filter(|entry| entry.seq > began.seq);
        later.any(|entry| entry.record.payload["sensor"] == *sensor && holds(entry) == Some(false))
    };
    all.iter()
        .filter(|entry| entry.seq > since || (holds(entry) == Some(true) && !ended(entry)))
        .map(|entry| (entry.seq, entry.record.payload.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::json;
    use vault::audit::{Log, LogKey, Record};

    use super::*;

    #[test]
    fn an_adjustment_leads_back_to_its_rules_facts_and_signals() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("log");
        let writer = Log::create(&log, "t/t", LogKey::generate().expect("a key")).expect("a log");
        let change = json!({"detach": "/out"});
        for (kind, payload) in [
            ("signal", json!({"sensor": "stale-evidence", "holds": true})),
            (
                "signal",
                json!({"sensor": "enforcement-gap", "holds": true}),
            ),
            (
                "signal",
                json!({"sensor": "enforcement-gap", "holds": false}),
            ),
            ("decided", json!({"facts": {"risk": 0}})),
            ("signal", json!({"sensor": "operator", "count": 1})),
            ("decided", json!({"facts": {"risk": 30}})),
            (
                "adjusting",
                json!({"change": change, "because": ["line 7"]}),
            ),
            ("adjusted", json!({"change": change, "micros": 80})),
            ("signal", json!({"sensor": "operator", "count": 9})),
        ] {
            let record = Record::new(kind, Duration::ZERO, 0, payload);
            writer.append(&record).expect("a record");
        }
        writer.close().expect("a checkpoint");
        let verified = vault::audit::verify(&log, None, None).expect("a log");
        let entries: Vec<_> = verified.records().map_while(Result::ok).collect();
        let first = entries[0].seq;
        let told = explain(&entries, first + 7).expect("an explanation");
        assert_eq!(told, explain(&entries, first + 6).expect("the same"));
        assert_eq!((told.ordered, told.decided), (first + 6, Some(first + 5)));
        assert_eq!(told.because, ["line 7"]);
        assert_eq!(told.facts, json!({"risk": 30}));
        let signals: Vec<_> = told.signals.iter().map(|(seq, _)| *seq - first).collect();
        assert_eq!(signals, [0, 4]);
        assert_eq!(told.outcome.expect("an outcome").1, "adjusted");
        assert_eq!(explain(&entries, first + 4), None);
    }
}
