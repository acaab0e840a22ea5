//! The entries of tables that are no grants, compared.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::Path;

use crate::bundle::Bundle;
use crate::diff::Setting;
use crate::tables::{FileGrant, Isolation, Reduced, Syscalls, Tables};

/// The settings in which two bundles differ, in the order of the tables.
pub(crate) fn compare(old: &Bundle, new: &Bundle) -> Vec<Setting> {
    let mut settings = Settings(Vec::new());
    settings.note("name", &old.name(), &new.name(), false);
    let (old, new) = (old.tables(), new.tables());
    settings.attestation_and_workload(old, new);
    settings.isolation(&old.isolation, &new.isolation);
    settings.places(old, new);
    settings.syscalls(&old.syscalls, &new.syscalls);
    let (was, is) = (old.risk_falls_after, new.risk_falls_after);
    settings.note("risk.falls-after", &was, &is, false);
    settings.each("risk", &old.risk, &new.risk);
    settings.0
}

struct Settings(Vec<Setting>);

impl Settings {
    /// Notes a setting if it differs.
    fn note<T: PartialEq + Debug>(&mut self, place: &str, old: &T, new: &T, narrows: bool) {
        if old != new {
            self.0.push(Setting {
                place: place.to_owned(),
                old: format!("{old:?}"),
                new: format!("{new:?}"),
                narrows,
            });
        }
    }

    /// Notes the entries of a table that differ; which facts come of them is not followed.
    fn each<T: PartialEq + Debug>(
        &mut self,
        table: &str,
        old: &BTreeMap<String, T>,
        new: &BTreeMap<String, T>,
    ) {
        for (key, entry) in old {
            self.note(
                &format!("{table}.{key}"),
                &Some(entry),
                &new.get(key),
                false,
            );
        }
        for (key, entry) in new.iter().filter(|(key, _)| !old.contains_key(*key)) {
            self.note(&format!("{table}.{key}"), &None, &Some(entry), false);
        }
    }

    fn attestation_and_workload(&mut self, old: &Tables, new: &Tables) {
        let (a, b) = (&old.attestation, &new.attestation);
        self.note("attestation.accept", &a.accept, &b.accept, false);
        self.note("attestation.max-age", &a.max_age, &b.max_age, false);
        let (old_folder, new_folder) = (&a.endorsements, &b.endorsements);
        self.note("attestation.endorsements", old_folder, new_folder, false);
        let (a, b) = (&a.reference_values, &b.reference_values);
        self.note("attestation.reference-values", a, b, false);
        let (a, b) = (&old.workload, &new.workload);
        self.note("workload.command", &a.command, &b.command, false);
        self.note("workload.rootfs", &a.rootfs, &b.rootfs, false);
        self.note("workload.env", &a.env, &b.env, false);
        self.note("workload.cwd", &a.cwd, &b.cwd, false);
    }

    fn isolation(&mut self, old: &Isolation, new: &Isolation) {
        self.note("isolation.backend", &old.backend, &new.backend, false);
        let less = new.memory <= old.memory;
        self.note("isolation.memory", &old.memory, &new.memory, less);
        self.note("isolation.pids", &old.pids, &new.pids, new.pids <= old.pids);
        self.note("isolation.cpu", &old.cpu, &new.cpu, new.cpu <= old.cpu);
        let less = match (old.time, new.time) {
            (Some(old), Some(new)) => new <= old,
            (old, _) => old.is_none(),
        };
        self.note("isolation.time", &old.time, &new.time, less);
        // What the reduced tier leaves out stays as in the full one.
        let reduced = |isolation: &Isolation| {
            let Reduced { memory, pids, cpu } = isolation.reduced.clone().unwrap_or_default();
            (
                memory.unwrap_or(isolation.memory),
                pids.unwrap_or(isolation.pids),
                cpu.unwrap_or(isolation.cpu),
            )
        };
        let (was, is) = (reduced(old), reduced(new));
        let less = is.0 <= was.0 && is.1 <= was.1 && is.2 <= was.2;
        self.note("isolation.reduced", &old.reduced, &new.reduced, less);
    }

    /// Host paths and vaults behind grants that both bundles have.
    fn places(&mut self, old: &Tables, new: &Tables) {
        let behind = |tables: &Tables| -> BTreeMap<_, _> {
            let files = tables.files.read.iter().chain(&tables.files.write);
            files
                .map(|FileGrant { from, at }| (at.clone(), from.clone()))
                .collect()
        };
        let after = behind(new);
        for (at, from) in behind(old) {
            if let Some(now) = after.get(&at) {
                self.note(&format!("files `{}`", shown(&at)), &from, now, false);
            }
        }
        for (name, was) in &old.data {
            if let Some(is) = new.data.get(name) {
                let place = |key| format!("data.{name}.{key}");
                self.note(&place("vault"), &was.vault, &is.vault, false);
                self.note(&place("at"), &was.at, &is.at, false);
                self.note(&place("key"), &was.key, &is.key, false);
                self.note(
                    &place("anchor"),
                    &was.anchor,
                    &is.anchor,
                    was.anchor.is_none(),
                );
            }
        }
    }

    fn syscalls(&mut self, old: &Syscalls, new: &Syscalls) {
        self.note("syscalls.profile", &old.profile, &new.profile, false);
        let within = |some: &[String], more: &[String]| some.iter().all(|one| more.contains(one));
        let less = within(&new.allow, &old.allow);
        self.note("syscalls.allow", &old.allow, &new.allow, less);
        let less = within(&old.deny, &new.deny);
        self.note("syscalls.deny", &old.deny, &new.deny, less);
    }
}

/// A path as messages show it.
fn shown(path: &Path) -> String {
    path.display().to_string()
}
