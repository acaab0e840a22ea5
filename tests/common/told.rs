//! What a run left behind: its outcome, its records, its output, its log.

use std::path::PathBuf;

use casemate::record::Record;
use casemate::{Outcome, SessionError};
use vault::audit::{Entry, KeySource, LogVerifier};

/// A run that is over.
#[derive(Debug)]
pub struct Told {
    pub result: Result<Outcome, SessionError>,
    pub records: Vec<Record>,
    pub stdout: String,
    pub stderr: String,
    pub log: PathBuf,
    pub pinned: LogVerifier,
}

impl Told {
    pub fn outcome(&self) -> &Outcome {
        self.result
            .as_ref()
            .unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }

    /// Why it failed, with the causes.
    pub fn error(&self) -> String {
        match &self.result {
            Ok(outcome) => panic!("it did not fail: {outcome:?}"),
            Err(error) => casemate::error::describe(error),
        }
    }

    /// Kinds of the records, in order.
    pub fn kinds(&self) -> Vec<&'static str> {
        self.records.iter().map(Record::kind).collect()
    }

    /// Where the first record stands of which this is true.
    pub fn at(&self, what: &str, wanted: impl Fn(&Record) -> bool) -> usize {
        let found = self.records.iter().position(wanted);
        found.unwrap_or_else(|| panic!("no record of {what} in {:#?}", self.records))
    }

    /// How many records say that this sensor saw something. What a host cannot enforce is seen on some
    /// hosts and not on others: ask for the sensor that matters.
    pub fn signals(&self, wanted: &str) -> usize {
        let seen = |r: &&Record| matches!(r, Record::Signal { sensor, .. } if *sensor == wanted);
        self.records.iter().filter(seen).count()
    }

    /// The records as the verified log has them.
    pub fn entries(&self) -> Vec<Entry> {
        let verified = vault::audit::verify(&self.log, Some(&self.pinned), None).unwrap();
        assert_eq!(verified.key_source(), KeySource::Pinned);
        assert_eq!(
            verified.unsigned_tail(),
            0,
            "records after the last checkpoint"
        );
        verified.records().map(Result::unwrap).collect()
    }

    /// Every change that was made, or was tried, was announced before, once, with a reason.
    pub fn assert_announced(&self) {
        let mut announced = Vec::new();
        for record in &self.records {
            match record {
                Record::Adjusting { change, because } => {
                    assert!(!because.is_empty(), "{change}: no reason");
                    announced.push(change);
                }
                Record::Adjusted { change, .. } | Record::NotAdjusted { change, .. } => {
                    let known = announced.iter().position(|other| *other == change);
                    let known = known.unwrap_or_else(|| panic!("{change} was not announced"));
                    announced.remove(known);
                }
                _ => {}
            }
        }
    }

    /// The log verifies, and says what was seen, in this order, from opened to closed.
    pub fn assert_logged(&self) {
        let entries = self.entries();
        let logged: Vec<_> = entries
            .iter()
            .map(|entry| entry.record.payload.clone())
            .collect();
        let seen: Vec<_> = self
            .records
            .iter()
            .map(|r| serde_json::to_value(r).unwrap())
            .collect();
        assert_eq!(logged, seen);
        let kinds = self.kinds();
        assert_eq!(
            (kinds.first(), kinds.last()),
            (Some(&"opened"), Some(&"closed"))
        );
        assert!(
            entries
                .iter()
                .zip(kinds)
                .all(|(entry, kind)| entry.record.kind == kind)
        );
    }
}
