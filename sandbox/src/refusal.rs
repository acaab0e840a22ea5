//! What would keep a policy from being run, known without running it.
//!
//! A launch refuses all of this too, one thing after the other. Here it is told at once, to who writes
//! the policy.

use std::collections::BTreeMap;
use std::path::Path;

use policy::{BackendName, Bundle, Facts, Rootfs};

use crate::error::describe;
use crate::plan::{self, Plan, PlanError};

/// One thing that would keep a policy from being run.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The entry of the policy, as it is written there; empty if it is no single one.
    pub entry: String,
    /// Why it cannot be.
    pub why: String,
}

impl Refusal {
    fn of(entry: impl Into<String>, why: impl ToString) -> Self {
        Self {
            entry: entry.into(),
            why: why.to_string(),
        }
    }
}

/// What no host can run.
pub fn anywhere(bundle: &Bundle) -> Vec<Refusal> {
    let tables = bundle.tables();
    let mut refusals = Vec::new();
    if tables.isolation.backend == BackendName::Process
        && let Err(error) = plan::shareable(tables)
    {
        refusals.push(Refusal::of(tables.isolation.backend.as_str(), error));
    }
    if let Err(error) = plan::enforceable(&Plan::under(&bundle.decide(&Facts::best()))) {
        refusals.push(Refusal::of("", error));
    }
    refusals.extend(calls(bundle));
    refusals
}

/// Mistakes in the table of system calls, each name by itself.
fn calls(bundle: &Bundle) -> Vec<Refusal> {
    let tables = bundle.tables();
    let mut alone = tables.clone();
    (alone.syscalls.allow, alone.syscalls.deny) = (Vec::new(), Vec::new());
    if let Err(error) = plan::profile(&alone) {
        return vec![Refusal::of(&tables.syscalls.profile, describe(&error))];
    }
    let mut refusals = Vec::new();
    for name in tables.syscalls.allow.iter().chain(&tables.syscalls.deny) {
        alone.syscalls.allow = vec![name.clone()];
        if let Err(error) = plan::profile(&alone) {
            let denied = !tables.syscalls.allow.contains(name);
            alone.syscalls.allow.clear();
            alone.syscalls.deny = vec![name.clone()];
            if !denied || plan::profile(&alone).is_err() {
                refusals.push(Refusal::of(name, describe(&error)));
            }
            alone.syscalls.deny.clear();
        }
    }
    if refusals.is_empty()
        && let Err(error) = plan::filtered(tables)
    {
        let first = tables.network.connect.first();
        let entry = first.map(ToString::to_string).unwrap_or_default();
        refusals.push(Refusal::of(entry, describe(&error)));
    }
    refusals
}

/// What this host cannot run, with relative paths below `base`, the folder of the policy file: paths that
/// are not there, and what only they can show to be refused.
pub fn here(bundle: &Bundle, base: &Path) -> Vec<Refusal> {
    let tables = bundle.tables();
    let files = tables.files.read.iter().chain(&tables.files.write);
    let mut paths: Vec<&Path> = files.map(|file| &*file.from).collect();
    if let Rootfs::Path(folder) = &tables.workload.rootfs {
        paths.push(folder);
    }
    let (attestation, data) = (&tables.attestation, tables.data.values());
    paths.extend(attestation.reference_values.as_deref());
    paths.extend(attestation.endorsements.as_deref());
    for data in data {
        let key = data
            .key
            .as_deref()
            .and_then(|key| key.strip_prefix("file:"));
        paths.push(&data.vault);
        paths.extend(key.map(Path::new));
    }
    let missing = |path: &Path| match base.join(path).metadata() {
        Ok(_) => None,
        Err(error) => {
            let why = format!("this is not on this host: {error}");
            Some(Refusal::of(path.to_string_lossy(), why))
        }
    };
    let mut refusals: Vec<Refusal> = paths.into_iter().filter_map(missing).collect();
    if refusals.is_empty() && anywhere(bundle).is_empty() {
        let plan = Plan::under(&bundle.decide(&Facts::best()));
        match plan::floor(bundle, &plan, base, &BTreeMap::new()) {
            Err(error @ PlanError::Unsupported(_)) => refusals.push(Refusal::of("", error)),
            Err(error) => refusals.push(Refusal::of("", describe(&error))),
            Ok(_) => {}
        }
    }
    refusals
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn bundle(tables: &str, rules: &str) -> Bundle {
        let text = format!(
            "version = 1\nname = \"p\"\n[workload]\ncommand = [\"true\"]\n{tables}\n[rules]\ncedar = '''{rules}'''\n"
        );
        Bundle::parse(&text, "p.toml").unwrap_or_else(|error| panic!("{error}"))
    }

    const ALL: &str = "permit (principal, action, resource);";

    #[test]
    fn what_is_not_enforced_is_refused_before_it_is_run() {
        assert_eq!(
            anywhere(&bundle("[isolation]\nmemory = \"64MiB\"", ALL)),
            []
        );
        for (tables, rules, entry, why) in [
            (
                "[isolation]\nbackend = \"process\"\n[network]\nconnect = [\"a.example:443\"]",
                ALL,
                "process",
                "has no namespaces",
            ),
            (
                "",
                "permit (principal, action == Action::\"live\", resource);",
                "",
                "`exec`",
            ),
            (
                "[syscalls]\nprofile = \"defualt\"",
                ALL,
                "defualt",
                "`default`",
            ),
            (
                "[syscalls]\nallow = [\"getpid\", \"sokcet\"]",
                ALL,
                "sokcet",
                "not a system call",
            ),
            (
                "[syscalls]\nallow = [\"clone3\"]",
                ALL,
                "clone3",
                "cannot be allowed",
            ),
            (
                "[syscalls]\ndeny = [\"sokcet\"]",
                ALL,
                "sokcet",
                "not a system call",
            ),
            (
                "[syscalls]\nprofile = \"compute\"\n[network]\nconnect = [\"a.example:443\"]",
                ALL,
                "a.example:443",
                "has no sockets",
            ),
        ] {
            let refusals = anywhere(&bundle(tables, rules));
            assert_eq!(refusals.len(), 1, "{tables}: {refusals:?}");
            assert!(refusals[0].why.contains(why), "{tables}: {refusals:?}");
            assert_eq!(refusals[0].entry, entry, "{tables}");
        }
        // What can be denied and never allowed.
        assert_eq!(
            anywhere(&bundle("[syscalls]\ndeny = [\"clone3\"]", ALL)),
            []
        );
        let written = "[data]\nd = { vault = \"d.vault\", at = \"/d\", access = \"read-write\" }";
        assert_eq!(anywhere(&bundle(written, ALL)), []);
    }

    #[test]
    fn what_is_not_there_is_told_all_at_once() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        std::fs::create_dir(folder.path().join("in")).unwrap();
        let tables = "[files]\nread = [{ from = \"in\", at = \"/in\" }, { from = \"gone\", at = \"/gone\" }]\n\
            [data]\nd = { vault = \"d.vault\", at = \"/d\", key = \"file:d.key\" }\n\
            [attestation]\nreference-values = \"reference.json\"";
        let told = here(&bundle(tables, ALL), folder.path());
        let entries: Vec<&str> = told.iter().map(|one| one.entry.as_str()).collect();
        assert_eq!(entries, ["gone", "reference.json", "d.vault", "d.key"]);
        let written = "[files]\nwrite = [{ from = \"/usr\", at = \"/u\" }]";
        let told = here(&bundle(written, ALL), folder.path());
        assert!(told[0].why.contains("root file system"), "{told:?}");
        let fine = "[files]\nread = [{ from = \"in\", at = \"/in\" }]";
        assert_eq!(here(&bundle(fine, ALL), folder.path()), []);
    }
}
