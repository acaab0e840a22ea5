//! From what a program was seen to do to the least bundle that allows it.
//!
//! ```text
//! run, observed ─▶ Observation ─▶ merged over runs ─▶ propose ─▶ policy.toml, with reasons
//! ```
//!
//! What was seen is not what should be: the proposal is for a person to read, and says of each
//! entry when it was seen. Nothing in it is wider than what was seen but for folders, which stand for
//! the files in them when there are many, or when files were made in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bundle::Bundle;
use crate::facts::Facts;
use crate::grant::Grant;
use crate::tables::Endpoint;

/// What was seen of a program in one run, or in several that were merged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Observation {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// The folder in which it ran.
    pub cwd: PathBuf,
    /// How many runs this was seen in.
    pub runs: u32,
    /// The most memory that one of its processes had, in bytes.
    pub memory: u64,
    /// The most processes and threads at a time.
    pub pids: u64,
    /// The longest run, in milliseconds.
    pub millis: u64,
    /// What it did.
    pub seen: Vec<Seen>,
}

/// One thing a program did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// What.
    pub what: What,
    /// In which run first, counted from 1.
    pub run: u32,
    /// When in that run, in milliseconds.
    pub at: u64,
    /// How often, over all runs.
    pub times: u64,
}

/// A kind of thing that programs do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// It read a file, or looked at one.
    Read(PathBuf),
    /// It listed a folder.
    List(PathBuf),
    /// It wrote a file that was there before.
    Write(PathBuf),
    /// It made, removed or renamed something in this folder.
    Change(PathBuf),
    /// It executed a file.
    Exec(PathBuf),
    /// It connected to an address, or sent to it.
    Connect(String),
    /// It was told that this name leads to this address.
    Resolved(String, IpAddr),
    /// It waited for connections at an address.
    Listen(String),
    /// It made a system call.
    Syscall(String),
    /// It was refused something while it was observed.
    Refused(String),
}

/// What a sandbox gives every workload: the caller knows, this crate does not.
pub struct Given<'a> {
    /// Trees that the host's root file system brings, such as `/usr`.
    pub trees: &'a [&'a str],
    /// Each profile of system calls, and those that it allows.
    pub profiles: &'a [(&'a str, BTreeSet<&'a str>)],
    /// Whether an address is one of the public Internet, to which a name may lead. To others it may only
    /// if they are listed, too.
    pub public: fn(IpAddr) -> bool,
}

/// Calls that are made in a workload's place where `[network]` grants what they are for, and that would
/// reach what nothing grants if they were allowed as such.
pub const BROKERED: [&str; 2] = ["connect", "socket"];
/// From how many files on a folder stands for them.
const MANY: usize = 8;
/// The most things that an observation is merged from.
const MOST_SEEN: usize = 1 << 16;

impl Observation {
    /// Adds what another run of the same program showed.
    ///
    /// Command, environment and folder stay those of the first.
    pub fn merge(&mut self, other: &Observation) {
        if self.runs == 0 {
            *self = other.clone();
            return;
        }
        let mut at: BTreeMap<What, usize> = BTreeMap::new();
        for (index, seen) in self.seen.iter().enumerate() {
            at.insert(seen.what.clone(), index);
        }
        for seen in &other.seen {
            match at.get(&seen.what) {
                Some(index) => self.seen[*index].times += seen.times,
                None if self.seen.len() < MOST_SEEN => self.seen.push(Seen {
                    run: self.runs + seen.run,
                    ..seen.clone()
                }),
                None => {}
            }
        }
        self.runs += other.runs;
        self.memory = self.memory.max(other.memory);
        self.pids = self.pids.max(other.pids);
        self.millis = self.millis.max(other.millis);
    }

    /// Proposes the least bundle of this name that allows what was seen.
    pub fn propose(&self, name: &str, given: &Given<'_>) -> String {
        let proposal = Proposal::of(self, given);
        proposal.write(self, name)
    }
}

/// Cases for a proposal, which say what its author should agree with: what was seen is granted while
/// nothing is wrong, and what the rules take away is taken.
pub fn cases(bundle: &Bundle) -> String {
    let facts = |risk| Facts {
        risk,
        ..Facts::unknown()
    };
    let mut out = String::from("# What the proposal promises. Add what it must never grant.\n");
    let risks = bundle.rules().iter().flat_map(|rule| &rule.thresholds);
    let risks = risks.filter_map(|(risk, _)| u8::try_from(*risk).ok());
    let mut before: Option<BTreeSet<Grant>> = None;
    for risk in BTreeSet::from([0])
        .into_iter()
        .chain(risks.collect::<BTreeSet<_>>())
    {
        let now = bundle.decide(&facts(risk)).granted;
        let (name, key, grants) = match &before {
            None => (
                "what was seen is granted".to_owned(),
                "granted",
                now.clone(),
            ),
            Some(before) => (
                format!("what is taken at risk {risk}"),
                "denied",
                before.difference(&now).cloned().collect(),
            ),
        };
        before = Some(now);
        if grants.is_empty() {
            continue;
        }
        let grants: Vec<String> = grants.iter().map(ToString::to_string).collect();
        let _ = write!(
            out,
            "\n[[case]]\nname = {}\nfacts = {{ risk = {risk} }}\nexpect = {{ {key} = {} }}\n",
            quoted(&name),
            list(grants.iter().map(String::as_str)),
        );
    }
    out
}

/// Entries of tables, each with the reason for it.
#[derive(Default)]
struct Proposal {
    read: BTreeMap<PathBuf, String>,
    write: BTreeMap<PathBuf, String>,
    connect: BTreeMap<String, String>,
    /// Names it asked for, and connected to none of their addresses.
    unused: BTreeSet<String>,
    notes: Vec<String>,
    profile: String,
    allow: BTreeMap<String, String>,
}

impl Proposal {
    fn of(observation: &Observation, given: &Given<'_>) -> Self {
        let mut proposal = Proposal::default();
        let seen: BTreeMap<&What, &Seen> = observation
            .seen
            .iter()
            .map(|seen| (&seen.what, seen))
            .collect();
        let mut resolved: BTreeMap<String, BTreeSet<&String>> = BTreeMap::new();
        let mut connected: Vec<Endpoint> = Vec::new();
        for what in seen.keys() {
            match what {
                What::Resolved(name, address) => {
                    resolved
                        .entry(address.to_string())
                        .or_default()
                        .insert(name);
                }
                What::Connect(to) => connected.extend(to.parse::<Endpoint>()),
                _ => {}
            }
        }
        let brought = |path: &Path| {
            let trees = given.trees.iter().chain(&["/proc", "/dev", "/sys"]);
            path == Path::new("/") || trees.into_iter().any(|tree| path.starts_with(tree))
        };
        let scratch = |path: &Path| path.starts_with("/tmp") || path.starts_with("/dev/shm");
        for (what, seen) in &seen {
            match what {
                What::Change(path) | What::Write(path) if scratch(path) => {}
                What::Change(path) => {
                    let why = format!("things were made or removed here, {}", when(seen));
                    proposal.write.insert(path.clone(), why);
                }
                What::Write(path) if !brought(path) => {
                    proposal
                        .write
                        .insert(path.clone(), format!("written, {}", when(seen)));
                }
                What::Write(path) => {
                    let note = format!(
                        "it wrote `{}`, which a sandbox does not allow",
                        path.display()
                    );
                    proposal.notes.push(note);
                }
                What::Read(path) | What::List(path) | What::Exec(path)
                    if scratch(path) && !path.starts_with("/dev") =>
                {
                    let made = seen_in(&observation.seen, path);
                    if !made {
                        let note = format!(
                            "it used `{}`: the sandbox has a `/tmp` of its own, so move it elsewhere",
                            path.display()
                        );
                        proposal.notes.push(note);
                    }
                }
                What::Read(path) | What::List(path) | What::Exec(path) if !brought(path) => {
                    let how = match what {
                        What::Read(_) => "read",
                        What::List(_) => "listed",
                        _ => "executed",
                    };
                    let why = format!("{how}, {}", when(seen));
                    proposal.read.entry(path.clone()).or_insert(why);
                }
                What::Read(_) | What::List(_) | What::Exec(_) => {}
                What::Connect(to) => proposal.connected(to, seen, &resolved, given),
                What::Resolved(name, _) => {
                    let used = |to: &&Endpoint| {
                        resolved
                            .get(&to.host)
                            .is_some_and(|names| names.contains(name))
                    };
                    if !connected.iter().any(|to| used(&to)) {
                        proposal.unused.insert(name.clone());
                    }
                }
                What::Listen(at) => {
                    proposal
                        .notes
                        .push(format!("it listened at `{at}`, which is not granted here"));
                }
                What::Refused(what) => proposal.notes.push(format!(
                    "{what} was refused while it was observed, {}",
                    when(seen)
                )),
                What::Syscall(_) => {}
            }
        }
        proposal.narrow();
        proposal.calls(&seen, given);
        proposal
    }

    /// A connection, by the name that led to its address if there was one.
    fn connected(
        &mut self,
        to: &str,
        seen: &Seen,
        resolved: &BTreeMap<String, BTreeSet<&String>>,
        given: &Given<'_>,
    ) {
        let Ok(endpoint) = to.parse::<Endpoint>() else {
            let note = format!("it connected to `{to}`, which no table grants");
            self.notes.push(note);
            return;
        };
        match resolved.get(&endpoint.host) {
            // The sandbox has a name server of its own.
            _ if endpoint.port == 53 => {}
            None => {
                let why = format!("connected, {}", when(seen));
                self.connect.insert(endpoint.to_string(), why);
            }
            Some(names) => {
                let why = format!("connected as {}, {}", endpoint.host, when(seen));
                let several = match names.len() {
                    1 => "",
                    _ => "; one of several names of that address: keep those it needs",
                };
                if !endpoint.host.parse().is_ok_and(given.public) {
                    let why = "no public address, to which a name may lead only if it is listed"
                        .to_owned();
                    self.connect.insert(endpoint.to_string(), why);
                }
                for name in names {
                    let endpoint = format!("{name}:{}", endpoint.port);
                    self.connect.insert(endpoint, format!("{why}{several}"));
                }
            }
        }
    }

    /// Leaves out what a folder covers, and lets folders stand for many files.
    fn narrow(&mut self) {
        let folders: Vec<PathBuf> = self.write.keys().cloned().collect();
        let covered = |path: &Path, folders: &[PathBuf]| {
            folders
                .iter()
                .any(|folder| path != folder && path.starts_with(folder))
        };
        self.write.retain(|path, _| !covered(path, &folders));
        let folders: Vec<PathBuf> = self.write.keys().cloned().collect();
        self.read
            .retain(|path, _| !covered(path, &folders) && !folders.contains(path));
        let mut in_folder: BTreeMap<PathBuf, usize> = BTreeMap::new();
        for path in self.read.keys() {
            if let Some(folder) = path.parent().filter(|folder| folder.parent().is_some()) {
                *in_folder.entry(folder.to_owned()).or_default() += 1;
            }
        }
        for (folder, files) in in_folder.into_iter().filter(|(_, files)| *files >= MANY) {
            // A folder that is written below cannot be mounted over it.
            if self.write.keys().any(|path| path.starts_with(&folder)) {
                continue;
            }
            self.read
                .insert(folder, format!("{files} files in it were used"));
        }
        let folders: Vec<PathBuf> = self.read.keys().cloned().collect();
        self.read.retain(|path, _| !covered(path, &folders));
    }

    /// Chooses the smallest profile that has all calls, or the one that lacks fewest.
    fn calls(&mut self, seen: &BTreeMap<&What, &Seen>, given: &Given<'_>) {
        let made = seen.iter().filter_map(|(what, seen)| match what {
            What::Syscall(name) => Some((name.as_str(), *seen)),
            _ => None,
        });
        let made: BTreeMap<&str, &Seen> = made.collect();
        let lacking = |profile: &BTreeSet<&str>| {
            let lacks = made.keys().filter(|name| !profile.contains(*name));
            lacks.copied().collect::<Vec<_>>()
        };
        let best = given
            .profiles
            .iter()
            .min_by_key(|(_, calls)| (lacking(calls).len(), calls.len()));
        let Some((name, calls)) = best else { return };
        self.profile = (*name).to_owned();
        let needed = lacking(calls).into_iter();
        for name in needed.filter(|name| !BROKERED.contains(name)) {
            self.allow.insert(name.to_owned(), when(made[name]));
        }
    }

    fn write(&self, observation: &Observation, name: &str) -> String {
        let mut out = String::new();
        let runs = match observation.runs {
            1 => "1 run".to_owned(),
            runs => format!("{runs} runs"),
        };
        let longest = Duration::from_millis(observation.millis);
        let _ = writeln!(
            out,
            "# Proposed from {runs} of an observed program. Read it before it is used: what was seen is not\n\
             # what should be, and what was not seen is not in it.\n\
             version = 1\nname = {}\n\n[workload]\ncommand = {}\nrootfs = \"host\"",
            quoted(name),
            list(observation.command.iter().map(String::as_str)),
        );
        let below = |path: &PathBuf| path.starts_with(&observation.cwd);
        if self.read.keys().chain(self.write.keys()).any(below) && observation.cwd != Path::new("/")
        {
            let _ = writeln!(out, "cwd = {}", quoted(&observation.cwd.to_string_lossy()));
        }
        if !observation.env.is_empty() {
            let _ = writeln!(out, "\n[workload.env]");
            for (key, value) in &observation.env {
                let _ = writeln!(out, "{} = {}", quoted(key), quoted(value));
            }
        }
        // Twice what was seen, in steps that hold small differences between runs.
        let memory = (observation.memory >> 20).max(16).next_power_of_two() * 2;
        let pids = (observation.pids * 2).max(8);
        let time = longest.as_secs().saturating_mul(10).max(60);
        let _ = writeln!(
            out,
            "\n[isolation]\nmemory = \"{memory}MiB\"    # a process had at most {} MiB\n\
             pids = {pids}    # at most {} at a time\ntime = \"{time}s\"    # the longest run took {} ms",
            observation.memory.div_ceil(1 << 20),
            observation.pids,
            observation.millis,
        );
        if !self.read.is_empty() || !self.write.is_empty() {
            let _ = writeln!(out, "\n[files]");
            entries(
                &mut out,
                "read",
                self.read
                    .iter()
                    .map(|(path, why)| (path.to_string_lossy(), why)),
            );
            entries(
                &mut out,
                "write",
                self.write
                    .iter()
                    .map(|(path, why)| (path.to_string_lossy(), why)),
            );
        }
        if !self.connect.is_empty() {
            let _ = writeln!(out, "\n[network]");
            entries(
                &mut out,
                "connect",
                self.connect.iter().map(|(to, why)| (to.into(), why)),
            );
        }
        let _ = writeln!(out, "\n[syscalls]\nprofile = {}", quoted(&self.profile));
        entries(
            &mut out,
            "allow",
            self.allow.iter().map(|(name, why)| (name.into(), why)),
        );
        let unused = self.unused.iter().map(|name| {
            format!("it asked for the name `{name}` and did not connect: asking again is refused, and counts")
        });
        for (at, note) in self.notes.iter().cloned().chain(unused).enumerate() {
            let before = if at == 0 { "\n" } else { "" };
            let _ = writeln!(out, "{before}# {}", printable(&note));
        }
        let _ = write!(
            out,
            "\n[risk]\ndenied-syscall = {{ adds = 20, half-life = \"60s\" }}\n"
        );
        if !self.connect.is_empty() {
            out.push_str("denied-address = { adds = 20, half-life = \"60s\" }\n");
        }
        out.push_str(RULES);
        out
    }
}

const RULES: &str = r#"
[rules]
cedar = """
permit (principal, action, resource);

// A program that tries what it never did before is held, then stopped.
@id("hold")
forbid (principal, action == Action::"proceed", resource) when { context.risk >= 60 };

@id("stop")
forbid (principal, action == Action::"live", resource) when { context.risk >= 80 };
"""
"#;

/// Whether the program itself made something in the folder of this path.
fn seen_in(seen: &[Seen], path: &Path) -> bool {
    seen.iter().any(|seen| match &seen.what {
        What::Change(folder) => path.starts_with(folder),
        What::Write(written) => written == path,
        _ => false,
    })
}

fn when(seen: &Seen) -> String {
    let times = match seen.times {
        1 => "once".to_owned(),
        times => format!("{times} times"),
    };
    format!("{times}, first in run {} after {} ms", seen.run, seen.at)
}

fn entries<'a>(
    out: &mut String,
    key: &str,
    entries: impl Iterator<Item = (std::borrow::Cow<'a, str>, &'a String)>,
) {
    let mut entries = entries.peekable();
    if entries.peek().is_none() {
        return;
    }
    let _ = writeln!(out, "{key} = [");
    for (entry, why) in entries {
        let _ = writeln!(out, "    {},    # {}", quoted(&entry), printable(why));
    }
    let _ = writeln!(out, "]");
}

fn list<'a>(words: impl Iterator<Item = &'a str>) -> String {
    format!("[{}]", words.map(quoted).collect::<Vec<_>>().join(", "))
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

/// Text for a comment: one line, nothing that hides.
fn printable(text: &str) -> String {
    text.chars()
        .map(
            |c| match c.is_control() || crate::diagnostic::is_invisible(c) {
                true => '\u{fffd}',
                false => c,
            },
        )
        .collect()
}

#[cfg(test)]
mod tests;
