//! Another bundle while the workload runs: taken into force as a whole, or not at all.
//!
//! Rules, risk, limits and the age of evidence can change; entries of tables can go, and what they
//! granted is taken back by its lever. What is built into the floor cannot change: a bundle that wants
//! that is refused with the reason, and the one in force stays.

use std::collections::BTreeSet;
use std::sync::Arc;

use policy::{Bundle, Data, Decision, Facts, Grant, LooksFor, Tables};

use super::Session;
use crate::adjust::Change;
use crate::error::SessionError;
use crate::plan;
use crate::record::{Record, hex};

/// A bundle that is decided beside the one in force, and what it was last seen to decide otherwise.
pub(super) struct Shadow {
    bundle: Bundle,
    told: Option<(BTreeSet<Grant>, BTreeSet<Grant>)>,
}

impl Shadow {
    pub(super) fn of(bundle: Bundle) -> Self {
        Self { bundle, told: None }
    }

    /// The record of what this bundle would decide otherwise, if that is news.
    pub(super) fn look(&mut self, facts: &Facts, decision: &Decision) -> Option<Record> {
        let other = self.bundle.decide(facts);
        let gained: BTreeSet<Grant> = &other.granted - &decision.granted;
        let lost: BTreeSet<Grant> = &decision.granted - &other.granted;
        let news = (gained, lost);
        if self.told.as_ref() == Some(&news) {
            return None;
        }
        let names = |grants: &BTreeSet<Grant>| grants.iter().map(ToString::to_string).collect();
        let record = Record::Shadowed {
            version: self.bundle.version(),
            digest: hex(&self.bundle.digest()),
            facts: facts.clone(),
            gained: names(&news.0),
            lost: names(&news.1),
        };
        self.told = Some(news);
        Some(record)
    }
}

impl Session {
    /// Decides under the shadow bundle too, and records what it would do otherwise. Nothing is enforced.
    pub(super) fn note_shadow(
        &mut self,
        facts: &Facts,
        decision: &Decision,
    ) -> Result<(), SessionError> {
        let shadow = self.shadow.as_mut();
        match shadow.and_then(|shadow| shadow.look(facts, decision)) {
            Some(record) => self.journal.note(record),
            None => Ok(()),
        }
    }

    /// Takes another bundle into force, or records why not.
    pub(super) fn reload(&mut self, newer: Result<Bundle, String>) -> Result<(), SessionError> {
        let newer = newer.and_then(|newer| match refusal(&self.bundle, &newer) {
            None => Ok(newer),
            Some(why) => Err(why),
        });
        let enforcement = self.instance()?.enforcement().clone();
        let newer = newer.and_then(|newer| {
            let known = plan::known_gaps(&newer, &enforcement);
            known.map(|()| newer).map_err(|error| error.to_string())
        });
        let newer = match newer {
            Ok(newer) => newer,
            Err(why) => return self.journal.note(Record::NotReloaded { why }),
        };
        self.journal.announce(Record::Reloading {
            version: newer.version(),
            digest: hex(&newer.digest()),
        })?;
        let limits = |tables: &Tables| {
            let isolation = &tables.isolation;
            let Some(reduced) = &isolation.reduced else {
                return (isolation.memory, isolation.pids, isolation.cpu, None);
            };
            let reduced = Some(reduced.clone());
            (isolation.memory, isolation.pids, isolation.cpu, reduced)
        };
        let moved = limits(self.bundle.tables()) != limits(newer.tables());
        self.watch.adopt(&newer);
        self.basis.reloaded(&newer);
        self.identity = Arc::new(self.identity.under(newer.digest()));
        self.courier.adopt(Arc::clone(&self.identity));
        self.bundle = newer;
        if moved {
            let because = vec!["the policy was reloaded with other limits".to_owned()];
            self.apply(Change::Limit(self.plan.tier), because)?;
        }
        // Evidence names the policy: what was believed before is about another one, and if there is no
        // new one, nothing is known.
        self.attested.forget();
        self.attest()
    }
}

/// The first sensor that is asked to look for something else, begins, or ends.
fn looks_elsewhere<'a>(now: &'a Tables, newer: &'a Tables) -> Option<&'a str> {
    let looks = |tables: &'a Tables, sensor: &str| match tables.risk.get(sensor) {
        Some(entry) => entry.looks_for.clone(),
        None => LooksFor::Default,
    };
    let sensors = now.risk.keys().chain(newer.risk.keys());
    sensors
        .map(String::as_str)
        .find(|sensor| looks(now, sensor) != looks(newer, sensor))
}

/// Why a bundle cannot follow another in a running session.
fn refusal(now: &Bundle, newer: &Bundle) -> Option<String> {
    if now.name() != newer.name() {
        return Some(format!(
            "it is called `{}`, not `{}`",
            newer.name(),
            now.name()
        ));
    }
    if newer.version() <= now.version() {
        return Some(format!(
            "its version {} is not above version {}, which is in force",
            newer.version(),
            now.version()
        ));
    }
    let (a, b) = (now.tables(), newer.tables());
    let floor = [
        ("workload", a.workload == b.workload),
        (
            "isolation.backend",
            a.isolation.backend == b.isolation.backend,
        ),
        ("isolation.time", a.isolation.time == b.isolation.time),
        ("syscalls", a.syscalls == b.syscalls),
        (
            "attestation.reference-values",
            a.attestation.reference_values == b.attestation.reference_values,
        ),
        (
            "attestation.endorsements",
            a.attestation.endorsements == b.attestation.endorsements,
        ),
    ];
    if let Some((name, _)) = floor.iter().find(|(_, same)| !same) {
        return Some(format!(
            "`{name}` differs, and is built into the running sandbox"
        ));
    }
    if let Some(sensor) = looks_elsewhere(a, b) {
        return Some(format!(
            "`risk.{sensor}` looks for something else, and a running sensor goes on as it began"
        ));
    }
    let known: BTreeSet<&Grant> = now.grants().iter().collect();
    if let Some(grant) = newer.grants().iter().find(|grant| !known.contains(grant)) {
        return Some(format!(
            "`{grant}` was not in the tables when the sandbox was made"
        ));
    }
    let behind = |tables: &Tables| -> Vec<_> {
        let files = tables.files.read.iter().chain(&tables.files.write);
        files
            .map(|file| (file.at.clone(), file.from.clone()))
            .collect()
    };
    let (before, after) = (behind(a), behind(b));
    if let Some((at, _)) = after.iter().find(|place| !before.contains(place)) {
        return Some(format!(
            "`{}` comes from another place of the host",
            at.display()
        ));
    }
    let moved = b.data.iter().find(|(name, entry)| {
        a.data.get(*name).is_none_or(|was| {
            let place = |data: &Data| (data.vault.clone(), data.at.clone());
            let trust = |data: &Data| (data.key.clone(), data.anchor.clone());
            (place(was), trust(was)) != (place(entry), trust(entry))
        })
    });
    moved.map(|(name, _)| {
        format!("`data.{name}` is another vault, elsewhere, or has another key or anchor")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const OLD: &str = r#"
version = 2
name = "p"
[workload]
command = ["true"]
[attestation]
accept = ["sev-snp", "tdx"]
max-age = "10m"
endorsements = "revoked"
[isolation]
memory = "64MiB"
cpu = 2
[network]
connect = ["a.example:443", "b.example:443"]
[files]
read = ["/srv/in"]
write = ["/srv/out"]
[data]
one = { vault = "one.vault", at = "/one", key = "file:1", anchor = "file:a" }
[risk]
operator = { adds = 10 }
resource-pressure = { adds = 1, stall = 30 }
[rules]
cedar = "permit (principal, action, resource);"
"#;

    fn bundle(from: &str, to: &str) -> Bundle {
        let text = OLD.replace("version = 2", "version = 3").replace(from, to);
        Bundle::parse(&text, "p.toml").unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn levers_may_move_and_the_floor_may_not() {
        let old = Bundle::parse(OLD, "p.toml").unwrap();
        for (from, to) in [
            (
                "permit (principal",
                "permit (principal == Workload::\\\"p\\\"",
            ),
            ("adds = 10", "adds = 20"),
            ("64MiB", "32MiB"),
            ("read = [\"/srv/in\"]", "read = []"),
            ("one = {", "#"),
            ("adds = 10", "adds = 10, cap = 20, half-life = \"1m\""),
            ("operator =", "worse-evidence ="),
            ("[risk]", "[risk]\nfalls-after = \"1m\""),
            ("\"a.example:443\", ", ""),
            ("max-age = \"10m\"", "max-age = \"5m\""),
            ("cpu = 2", "cpu = 1"),
            ("\"sev-snp\", ", ""),
        ] {
            assert_eq!(refusal(&old, &bundle(from, to)), None, "{to}");
        }
        for (from, to, why) in [
            ("version = 3", "version = 2", "not above version 2"),
            ("name = \"p\"", "name = \"q\"", "called `q`"),
            ("[\"true\"]", "[\"false\"]", "`workload` differs"),
            (
                "memory = \"64MiB\"",
                "time = \"1m\"",
                "`isolation.time` differs",
            ),
            (
                "[risk]",
                "[syscalls]\nprofile = \"compute\"\n[risk]",
                "`syscalls` differs",
            ),
            (
                "\"/srv/in\"",
                "\"/srv/in\", \"/srv/more\"",
                "`read /srv/more` was not",
            ),
            (
                "\"/srv/in\"",
                "{ from = \"/etc\", at = \"/srv/in\" }",
                "another place",
            ),
            ("one.vault", "two.vault", "`data.one`"),
            ("file:1", "file:2", "`data.one`"),
            ("\"file:a\"", "\"file:b\"", "another key or anchor"),
            (
                "[risk]",
                "[risk]\ntime-window = { adds = 1, outside = \"08:00-18:00\" }",
                "`risk.time-window`",
            ),
            ("stall = 30", "stall = 40", "`risk.resource-pressure`"),
            ("resource-pressure", "#", "`risk.resource-pressure`"),
            (
                "\"a.example:443\"",
                "\"c.example:443\"",
                "`connect c.example:443` was not",
            ),
            (
                "\"revoked\"",
                "\"listed\"",
                "`attestation.endorsements` differs",
            ),
        ] {
            let refused = refusal(&old, &bundle(from, to)).unwrap();
            assert!(refused.contains(why), "{refused}");
        }
    }
}
