//! What this host can enforce, what that means for Casemate, and how to get the rest.
//!
//! Everything is tried out, in children that end at once, rather than concluded from a version: a
//! container runtime, a sysctl or an LSM may have taken away what the kernel could do.

mod cgroup;
mod confinement;
mod host;
mod namespaces;

use std::fmt;
use std::path::Path;

use crate::sys::probe::Outcome;

/// Looks at the host.
#[derive(Clone, Copy, Debug)]
pub struct Doctor;

impl Doctor {
    /// Tries everything Casemate uses, and returns a finding for each.
    ///
    /// Takes some milliseconds, more if this process is large, since each try forks. Changes
    /// nothing, leaves nothing behind, and does not fail: what cannot be found out is `Unknown`.
    pub fn probe() -> Vec<Finding> {
        let mut findings = vec![host::kernel()];
        findings.extend(namespaces::findings());
        findings.extend(cgroup::findings());
        findings.extend(confinement::findings());
        findings.extend(host::findings());
        findings
    }
}

/// One thing a host has or has not.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// Names the finding for programs; stays the same from release to release.
    pub id: &'static str,
    /// What part of the host it is about.
    pub area: Area,
    /// Whether it is there.
    pub status: Status,
    /// What was seen.
    pub observed: String,
    /// What that means for Casemate.
    pub means: String,
    /// How to get it; always there for [`Status::Missing`].
    pub fix: Option<String>,
}

/// A part of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Area {
    Kernel,
    Namespaces,
    Cgroup,
    Landlock,
    Seccomp,
    Ptrace,
    Bpf,
    Tee,
    Kvm,
    Fuse,
    Limits,
    Mounts,
}

/// Whether something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// All of it.
    Available,
    /// Some of it, or for some users only.
    Partly,
    /// None of it.
    Missing,
    /// It could not be found out.
    Unknown,
}

impl Finding {
    fn available(id: &'static str, area: Area, observed: impl Into<String>, means: &str) -> Self {
        Self {
            id,
            area,
            status: Status::Available,
            observed: observed.into(),
            means: means.to_owned(),
            fix: None,
        }
    }

    fn partly(
        id: &'static str,
        area: Area,
        observed: impl Into<String>,
        means: &str,
        fix: &str,
    ) -> Self {
        Self {
            status: Status::Partly,
            fix: Some(fix.to_owned()),
            ..Self::available(id, area, observed, means)
        }
    }

    fn missing(
        id: &'static str,
        area: Area,
        observed: impl Into<String>,
        means: &str,
        fix: &str,
    ) -> Self {
        Self {
            status: Status::Missing,
            ..Self::partly(id, area, observed, means, fix)
        }
    }

    fn unknown(id: &'static str, area: Area, observed: impl Into<String>, means: &str) -> Self {
        Self {
            status: Status::Unknown,
            ..Self::available(id, area, observed, means)
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            id,
            area,
            status,
            observed,
            means,
            fix,
        } = self;
        let (area, status) = (area.to_string(), status.to_string());
        write!(
            f,
            "{status:<9} {area:<10} {id:<24} {observed}\n{:46}{means}",
            ""
        )?;
        match fix {
            Some(fix) => write!(f, "\n{:46}fix: {fix}", ""),
            None => Ok(()),
        }
    }
}

/// Displays findings one below the other.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a>(pub &'a [Finding]);

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0
            .iter()
            .try_for_each(|finding| writeln!(f, "{finding}"))
    }
}

impl fmt::Display for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kernel => "kernel",
            Self::Namespaces => "namespaces",
            Self::Cgroup => "cgroup",
            Self::Landlock => "landlock",
            Self::Seccomp => "seccomp",
            Self::Ptrace => "ptrace",
            Self::Bpf => "bpf",
            Self::Tee => "tee",
            Self::Kvm => "kvm",
            Self::Fuse => "fuse",
            Self::Limits => "limits",
            Self::Mounts => "mounts",
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Available => "available",
            Self::Partly => "partly",
            Self::Missing => "missing",
            Self::Unknown => "unknown",
        })
    }
}

/// Puts the end of a try into words.
fn told(outcome: Outcome) -> String {
    match outcome {
        Outcome::Done => "works".to_owned(),
        Outcome::Refused(errno) => std::io::Error::from_raw_os_error(errno).to_string(),
        Outcome::Killed(signal) => format!("killed by signal {signal}"),
        Outcome::Unknown => "could not be tried".to_owned(),
    }
}

/// Reads a small file of /proc or /sys, without the line end.
fn read(path: impl AsRef<Path>) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests;
