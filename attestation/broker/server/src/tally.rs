//! What a broker counts, for whoever watches over it: text for Prometheus ("Exposition formats").

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};

/// Counters since the broker began to serve.
#[derive(Debug, Default)]
pub struct Tally {
    challenged: AtomicU64,
    attested: AtomicU64,
    not_attested: AtomicU64,
    released: AtomicU64,
    refused: AtomicU64,
    leased: AtomicU64,
    busy: AtomicU64,
    unavailable: AtomicU64,
    /// Whether the last thing that was counted is that the store did not answer.
    out_of_reach: AtomicBool,
}

impl Tally {
    /// Name, meaning and value of each counter.
    fn all(&self) -> [(&'static str, &'static str, &AtomicU64); 8] {
        [
            (
                "challenged",
                "nonces that were handed out",
                &self.challenged,
            ),
            (
                "attested",
                "guests whose evidence was believed",
                &self.attested,
            ),
            (
                "not_attested",
                "evidence that was not believed",
                &self.not_attested,
            ),
            ("released", "secrets that were released", &self.released),
            (
                "refused",
                "secrets that were asked for and not released",
                &self.refused,
            ),
            ("leased", "looks at leases that go on", &self.leased),
            ("busy", "requests for which there was no room", &self.busy),
            (
                "unavailable",
                "times that the store gave no answer",
                &self.unavailable,
            ),
        ]
    }

    /// As text for Prometheus.
    pub fn text(&self) -> String {
        let all = self.all().into_iter().map(|(name, help, value)| {
            let value = value.load(Ordering::Relaxed);
            let name = format!("casemate_broker_{name}_total");
            format!("# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}\n")
        });
        all.collect()
    }

    /// As an object.
    pub fn json(&self) -> Value {
        let all = self.all().into_iter();
        all.map(|(name, _, value)| (name.to_owned(), json!(value.load(Ordering::Relaxed))))
            .collect()
    }

    pub(crate) fn challenged(&self) {
        self.count(&self.challenged);
    }

    pub(crate) fn attested(&self) {
        self.count(&self.attested);
    }

    pub(crate) fn not_attested(&self) {
        self.count(&self.not_attested);
    }

    pub(crate) fn released(&self) {
        self.count(&self.released);
    }

    pub(crate) fn refused(&self) {
        self.count(&self.refused);
    }

    pub(crate) fn leased(&self) {
        self.count(&self.leased);
    }

    pub(crate) fn busy(&self) {
        self.count(&self.busy);
    }

    /// Counts that the store did not answer; whether that is news.
    pub(crate) fn unavailable(&self) -> bool {
        self.unavailable.fetch_add(1, Ordering::Relaxed);
        !self.out_of_reach.swap(true, Ordering::Relaxed)
    }

    fn count(&self, counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
        self.out_of_reach.store(false, Ordering::Relaxed);
    }
}
