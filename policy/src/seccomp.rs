//! From a seccomp profile of the OCI world to a `[syscalls]` table.
//!
//! Reads the `seccomp` object of the "OCI Runtime Specification" (Linux, Seccomp) and Docker's
//! extension of it (`includes`, `excludes`). A table says which calls are allowed on top of a profile
//! and which are not; it has no conditions of its own. So a call that is allowed on conditions keeps
//! those of the profile, if that has it, and is left out otherwise, which is told.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// The profile that the table stands on.
pub struct Base<'a> {
    /// Its name.
    pub name: &'a str,
    /// The calls it allows, with or without conditions.
    pub allowed: BTreeSet<&'a str>,
    /// Whether a name is a system call here.
    pub known: &'a dyn Fn(&str) -> bool,
    /// Whether it is not to be allowed by name: because it cannot be, or because that would reach what
    /// nothing grants.
    pub withheld: &'a dyn Fn(&str) -> bool,
}

/// A `[syscalls]` table, and what was lost on the way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Imported {
    /// The profile it stands on.
    pub profile: String,
    /// Calls allowed on top.
    pub allow: BTreeSet<String>,
    /// Calls of the profile that are denied.
    pub deny: BTreeSet<String>,
    /// Calls that are allowed on conditions which a table cannot say: they are not allowed.
    pub conditional: BTreeSet<String>,
    /// Calls that are not to be allowed by name.
    pub withheld: BTreeSet<String>,
    /// Names that are no system calls here.
    pub unknown: BTreeSet<String>,
}

/// Why a seccomp profile cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// It is longer than [`MAX_LEN`].
    #[error("the seccomp profile is longer than {MAX_LEN} bytes")]
    Long,
    /// It is no JSON of that form.
    #[error("this is not a seccomp profile as OCI runtimes read it")]
    Form(#[from] serde_json::Error),
    /// It has an action that is not known.
    #[error("unknown seccomp action `{0}`")]
    Action(String),
}

/// The longest profile that is read, in bytes.
pub const MAX_LEN: usize = 1 << 20;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    names: Vec<String>,
    action: String,
    #[serde(default)]
    args: Option<Vec<serde_json::Value>>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

/// Under what circumstances Docker uses an entry.
#[derive(Default, Deserialize)]
struct Filter {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
}

/// Reads a seccomp profile into a table on top of this one.
///
/// The workload has no capabilities: entries for those who have some are not for it.
///
/// # Errors
///
/// [`ImportError`]. An action that is neither allowing nor refusing counts as refusing.
pub fn import(json: &str, base: &Base<'_>) -> Result<Imported, ImportError> {
    if json.len() > MAX_LEN {
        return Err(ImportError::Long);
    }
    let profile: Profile = serde_json::from_str(json)?;
    let mut allowed = BTreeSet::new();
    let mut conditional = BTreeSet::new();
    let mut refused = BTreeSet::new();
    let all_allowed = allows(&profile.default_action)?;
    for entry in &profile.syscalls {
        let allows = allows(&entry.action)?;
        let some = |list: Option<&Vec<String>>| list.is_some_and(|list| !list.is_empty());
        let includes = entry.includes.as_ref();
        let excludes = entry.excludes.as_ref();
        let for_capable = some(includes.and_then(|filter| filter.caps.as_ref()));
        let here = |filter: Option<&Filter>, unless: bool| {
            let arches = filter.and_then(|filter| filter.arches.as_ref());
            arches
                .filter(|arches| !arches.is_empty())
                .map_or(unless, |arches| {
                    let names: &[&str] = match std::env::consts::ARCH {
                        "x86_64" => &["amd64", "x32"],
                        "aarch64" => &["arm64"],
                        other => &[other],
                    };
                    arches.iter().any(|arch| names.contains(&arch.as_str()))
                })
        };
        if for_capable || !here(includes, true) || here(excludes, false) {
            continue;
        }
        let has_args = entry.args.as_ref().is_some_and(|args| !args.is_empty());
        for name in &entry.names {
            match (allows, has_args) {
                (true, false) => allowed.insert(name.clone()),
                (true, true) => conditional.insert(name.clone()),
                // Where all is allowed, refusing some arguments is refusing the call.
                (false, _) => refused.insert(name.clone()),
            };
        }
    }
    let every = allowed.union(&conditional).chain(&refused);
    let unknown: BTreeSet<String> = every.filter(|name| !(base.known)(name)).cloned().collect();
    let of_base = |name: &String| base.allowed.contains(name.as_str());
    let allow = allowed
        .iter()
        .filter(|name| !of_base(name) && !unknown.contains(*name) && !refused.contains(*name));
    let (withheld, allow): (Vec<&String>, Vec<&String>) =
        allow.partition(|name| (base.withheld)(name));
    let may = |name: &str| match all_allowed {
        true => !refused.contains(name),
        false => allowed.contains(name) || conditional.contains(name),
    };
    let deny = base.allowed.iter().filter(|name| !may(name));
    Ok(Imported {
        profile: base.name.to_owned(),
        allow: allow.into_iter().cloned().collect(),
        withheld: withheld.into_iter().cloned().collect(),
        deny: deny.map(|name| (*name).to_owned()).collect(),
        conditional: conditional
            .iter()
            .filter(|name| !of_base(name) && !allowed.contains(*name) && !unknown.contains(*name))
            .cloned()
            .collect(),
        unknown,
    })
}

fn allows(action: &str) -> Result<bool, ImportError> {
    match action {
        "SCMP_ACT_ALLOW" | "SCMP_ACT_LOG" => Ok(true),
        "SCMP_ACT_ERRNO"
        | "SCMP_ACT_KILL"
        | "SCMP_ACT_KILL_PROCESS"
        | "SCMP_ACT_KILL_THREAD"
        | "SCMP_ACT_TRAP"
        | "SCMP_ACT_TRACE"
        | "SCMP_ACT_NOTIFY" => Ok(false),
        other => Err(ImportError::Action(other.to_owned())),
    }
}

impl Imported {
    /// The table, as a policy file has it.
    pub fn table(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "[syscalls]\nprofile = \"{}\"", self.profile);
        for (key, names) in [("allow", &self.allow), ("deny", &self.deny)] {
            if names.is_empty() {
                continue;
            }
            let _ = writeln!(out, "{key} = [");
            for name in names {
                let _ = writeln!(out, "    \"{name}\",");
            }
            let _ = writeln!(out, "]");
        }
        for (what, names) in [
            (
                "allowed there on conditions, and not here",
                &self.conditional,
            ),
            (
                "not to be allowed by name (connections: `[network] connect`)",
                &self.withheld,
            ),
            ("no system calls here", &self.unknown),
        ] {
            if !names.is_empty() {
                let plain = |name: &String| name.escape_debug().to_string();
                let names: Vec<String> = names.iter().map(plain).collect();
                let _ = writeln!(out, "# {what}: {}", names.join(", "));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const KNOWN: [&str; 7] = [
        "read",
        "write",
        "clone",
        "mount",
        "ptrace",
        "bpf",
        "personality",
    ];

    fn imported(json: &str) -> Result<Imported, ImportError> {
        let known = |name: &str| KNOWN.contains(&name);
        let base = Base {
            name: "default",
            allowed: BTreeSet::from(["read", "write", "clone", "personality"]),
            known: &known,
            withheld: &|name| name == "mount",
        };
        import(json, &base)
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn an_allow_list_becomes_what_differs_from_the_profile() {
        let table = imported(
            r#"{ "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": [
                { "names": ["read", "ptrace", "mount", "nosuch"], "action": "SCMP_ACT_ALLOW" },
                { "names": ["personality"], "action": "SCMP_ACT_ALLOW",
                  "args": [{ "index": 0, "value": 0, "op": "SCMP_CMP_EQ" }] },
                { "names": ["bpf"], "action": "SCMP_ACT_ALLOW", "args": [{ "index": 0, "value": 1, "op": "SCMP_CMP_EQ" }] },
                { "names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": { "caps": ["CAP_SYS_ADMIN"] } },
                { "names": ["clone"], "action": "SCMP_ACT_ALLOW", "includes": { "arches": ["s390x"] } }
            ] }"#,
        )
        .unwrap();
        assert_eq!(table.allow, set(&["ptrace"]));
        assert_eq!(table.deny, set(&["clone", "write"]));
        assert_eq!(table.withheld, set(&["mount"]));
        assert_eq!(table.conditional, set(&["bpf"]));
        assert_eq!(table.unknown, set(&["nosuch"]));
        let text = format!(
            "version = 1\nname = \"p\"\n[workload]\ncommand = [\"true\"]\n{}[rules]\ncedar = \"permit (principal, action, resource);\"",
            table.table()
        );
        crate::Bundle::parse(&text, "p.toml").unwrap();
    }

    #[test]
    fn a_deny_list_takes_from_the_profile() {
        let table = imported(
            r#"{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                { "names": ["clone", "mount"], "action": "SCMP_ACT_KILL" } ] }"#,
        )
        .unwrap();
        assert_eq!((table.allow, table.deny), (set(&[]), set(&["clone"])));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        for bad in [
            "",
            "[]",
            "{}",
            r#"{ "defaultAction": "SCMP_ACT_MAYBE" }"#,
            r#"{ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{ "names": ["read"], "action": "YES" }] }"#,
            r#"{ "defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{ "names": "read", "action": "SCMP_ACT_ALLOW" }] }"#,
        ] {
            assert!(imported(bad).is_err(), "{bad}");
        }
        assert!(matches!(
            imported(&" ".repeat(MAX_LEN + 1)),
            Err(ImportError::Long)
        ));
    }
}
