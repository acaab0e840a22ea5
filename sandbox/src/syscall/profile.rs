//! Which system calls a workload gets: named profiles, composed of groups.
//!
//! ```text
//! Profile::named("default") ─▶ .allow(..) ─▶ .deny(..) ─▶ .notify(..) ─▶ compile(listener)
//! ```
//!
//! A profile is a list of what is allowed; everything else is denied. With a listener a denied call
//! is put to the supervisor, which counts it and answers [`denied_errno`]; without one the kernel
//! answers that at once. The groups, and the reason for each condition,
//! are in `groups.rs`.

use std::collections::BTreeMap;
use std::fmt;

use super::filter::{CompileError, FilterSpec};
use super::groups::{self, Group};
use super::program::Program;
use super::rule::{Action, ArgTest, SyscallRule};
use super::table::{highest_syscall, is_syscall_name, syscall_name, syscall_number, syscalls};

/// A list of system calls a workload may make, and on what conditions.
///
/// Holding one proves that every name in it is a system call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    name: String,
    rules: BTreeMap<u32, Rule>,
}

/// When a call is allowed, and what becomes of it otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    when: Vec<(Vec<ArgTest>, Fate)>,
    otherwise: Fate,
}

/// What becomes of a call in the profile's terms, before it is known whether there is a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is run.
    Allow,
    /// The supervisor does it in the workload's place; harmless where no supervisor can be asked.
    Broker,
    /// The supervisor decides; must not happen where none can be asked.
    Ask,
    /// It is not run.
    Deny,
    /// It is not run, and nobody is told: harmless programs try it, and do without.
    Refuse,
}

impl Profile {
    /// Name of the one profile under which memory that was written can be executed.
    pub const COMPILERS: &str = "jit";

    /// Returns the profile of this name.
    ///
    /// `default` runs shells, coreutils, interpreters, git, databases and ordinary programs in any
    /// language. `compute` is for a program that reads, calculates and writes: no new processes,
    /// no sockets, no System V or message-queue IPC. `jit` is `default` for programs that compile while
    /// they run (V8, the JVM): private memory can be written and executed.
    ///
    /// # Errors
    ///
    /// [`ProfileError::UnknownProfile`] for any other name.
    pub fn named(name: &str) -> Result<Self, ProfileError> {
        let Some((name, groups)) = groups::PROFILES.iter().find(|(known, _)| *known == name) else {
            let known = groups::PROFILES.iter().map(|(known, _)| *known);
            return Err(ProfileError::UnknownProfile {
                name: name.to_owned(),
                known: known.collect::<Vec<_>>().join("`, `"),
            });
        };
        let mut profile = Self {
            name: (*name).to_owned(),
            rules: BTreeMap::new(),
        };
        for group in *groups {
            profile.include(group);
        }
        Ok(profile)
    }

    /// Lists the names [`Profile::named`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        groups::PROFILES.iter().map(|(name, _)| *name)
    }

    fn include(&mut self, group: &Group) {
        let mut add = |name: &str, rule: Rule| {
            // Not every architecture has every call: `open` and `fork` are history on new ones.
            if let Some(nr) = syscall_number(name) {
                self.rules.insert(nr, rule);
            }
        };
        for name in group.allow.split_whitespace() {
            add(name, Rule::always(Fate::Allow));
        }
        for conditional in group.conditional {
            let when = conditional.when.iter();
            add(
                conditional.name,
                Rule {
                    when: when.map(|(tests, fate)| (tests.to_vec(), *fate)).collect(),
                    otherwise: conditional.otherwise,
                },
            );
        }
    }

    /// Allows calls by name, whatever their arguments: also lifts the conditions of the profile.
    ///
    /// # Errors
    ///
    /// [`ProfileError::UnknownSyscall`] for a name no architecture has, and
    /// [`ProfileError::NotToBeAllowed`] for `clone3`, whose flags no filter can see.
    pub fn allow<S: AsRef<str>>(
        mut self,
        names: impl IntoIterator<Item = S>,
    ) -> Result<Self, ProfileError> {
        for name in names {
            if name.as_ref() == "clone3" {
                return Err(ProfileError::NotToBeAllowed);
            }
            self.set(name.as_ref(), Some(Fate::Allow))?;
        }
        Ok(self)
    }

    /// Denies calls by name, whatever their arguments.
    ///
    /// # Errors
    ///
    /// [`ProfileError::UnknownSyscall`] for a name no architecture has.
    pub fn deny<S: AsRef<str>>(
        mut self,
        names: impl IntoIterator<Item = S>,
    ) -> Result<Self, ProfileError> {
        for name in names {
            self.set(name.as_ref(), None)?;
        }
        Ok(self)
    }

    /// Puts calls that the profile allows behind the supervisor, as a lever needs it.
    ///
    /// A call the profile denies stays denied. One that was allowed on conditions is asked about
    /// where they hold, and denied where they do not.
    ///
    /// # Errors
    ///
    /// [`ProfileError::UnknownSyscall`] for a name no architecture has.
    pub fn notify<S: AsRef<str>>(
        mut self,
        names: impl IntoIterator<Item = S>,
    ) -> Result<Self, ProfileError> {
        for name in names {
            let rule = number(name.as_ref())?.and_then(|nr| self.rules.get_mut(&nr));
            for fate in rule.into_iter().flat_map(Rule::fates_mut) {
                if *fate != Fate::Deny {
                    *fate = Fate::Ask;
                }
            }
        }
        Ok(self)
    }

    /// Denies every `mprotect` that makes memory executable, for kernels without `PR_SET_MDWE`.
    ///
    /// The profile itself only denies memory that is writable and executable at once. Making it one
    /// after the other is what `PR_SET_MDWE` refuses; a filter has no memory of what was mapped, so
    /// it has to refuse both halves. Compilers that generate code at run time then do not work.
    pub fn without_exec_gain(mut self) -> Self {
        for name in ["mprotect", "pkey_mprotect"] {
            if let Some(rule) = syscall_number(name).and_then(|nr| self.rules.get_mut(&nr)) {
                *rule = Rule {
                    when: vec![(vec![groups::NOT_EXECUTABLE], Fate::Allow)],
                    otherwise: Fate::Deny,
                };
            }
        }
        self
    }

    /// Runs what a supervisor would broker: for sandboxes in which nobody brokers and no socket but a
    /// Unix one can exist, so that an address leads nowhere outside.
    pub fn without_broker(mut self) -> Self {
        let allow = |fate: &mut Fate| {
            if *fate == Fate::Broker {
                *fate = Fate::Allow;
            }
        };
        for rule in self.rules.values_mut() {
            rule.when.iter_mut().for_each(|(_, fate)| allow(fate));
            allow(&mut rule.otherwise);
        }
        self
    }

    /// Refuses whatever could reach a Unix socket by its path: for kernels on which Landlock does not
    /// ask about that (before ABI 9), where a socket in a folder that may only be read could be
    /// connected to. Pairs and streams already connected work; what is allowed by name afterwards is
    /// allowed.
    pub fn without_unix_connect(mut self) -> Self {
        let unix = ArgTest::low_is(0, libc::AF_UNIX as u32);
        // A datagram needs no connection to reach a path.
        let kind = |value: i32| ArgTest::Low {
            index: 1,
            mask: 0xf,
            value: value as u32,
        };
        let sockets = Rule {
            when: vec![
                (vec![unix, kind(libc::SOCK_STREAM)], Fate::Allow),
                (vec![unix, kind(libc::SOCK_SEQPACKET)], Fate::Allow),
                (vec![unix], Fate::Refuse),
            ],
            otherwise: Fate::Deny,
        };
        for name in ["socket", "socketpair"] {
            if let Some(rule) = syscall_number(name).and_then(|nr| self.rules.get_mut(&nr)) {
                *rule = Rule {
                    when: sockets.when.clone(),
                    otherwise: sockets.otherwise,
                };
            }
        }
        if let Some(rule) = syscall_number("connect").and_then(|nr| self.rules.get_mut(&nr)) {
            *rule = Rule::always(Fate::Refuse);
        }
        self
    }

    /// Refuses what only a namespace of its own keeps apart: System V IPC and message queues, which are the
    /// host's then; changes of mode, owner and attributes by path, which Landlock does not ask about and
    /// which would reach every file of the same user (what is open can be changed as before); and limits and
    /// priorities of any process but the caller.
    #[must_use]
    pub fn without_namespaces(mut self) -> Self {
        for name in groups::SHARED.split_whitespace() {
            self.replace(name, Rule::always(Fate::Deny));
        }
        let only = |tests: &[ArgTest]| Rule {
            when: vec![(tests.to_vec(), Fate::Allow)],
            otherwise: Fate::Deny,
        };
        // Without a path it is the times of what is open.
        self.replace("utimensat", only(&[ArgTest::full_without(1, u64::MAX)]));
        for name in groups::OF_A_PROCESS {
            self.replace(name, only(&[ArgTest::low_is(0, 0)]));
        }
        for (name, process) in [("setpriority", libc::PRIO_PROCESS), ("ioprio_set", 1)] {
            let tests = [ArgTest::low_is(0, process), ArgTest::low_is(1, 0)];
            self.replace(name, only(&tests));
        }
        self
    }

    /// Puts another rule in the place of the one that a call has, if it has one.
    fn replace(&mut self, name: &str, with: Rule) {
        if let Some(rule) = syscall_number(name).and_then(|nr| self.rules.get_mut(&nr)) {
            *rule = with;
        }
    }

    /// Puts TCP sockets and their connections behind the supervisor, and lets UDP sockets exist in the
    /// sandbox's own network. What could use such a socket otherwise is refused, also where the profile
    /// or its list of further calls would allow it: see [`crate::isolation::network`].
    ///
    /// `binds` says that something else (Landlock) refuses to bind TCP sockets.
    pub fn with_network(mut self, binds: bool) -> Self {
        for conditional in groups::NETWORK {
            let Some(nr) = syscall_number(conditional.name) else {
                continue;
            };
            let mut rule = Rule {
                when: conditional
                    .when
                    .iter()
                    .map(|(tests, fate)| (tests.to_vec(), *fate))
                    .collect(),
                otherwise: conditional.otherwise,
            };
            // What was allowed of other sockets and devices stays so.
            if conditional.keeps_others
                && let Some(before) = self.rules.remove(&nr)
            {
                rule.when.extend(before.when);
                rule.otherwise = before.otherwise;
            }
            self.rules.insert(nr, rule);
        }
        if !binds && let Some(nr) = syscall_number("bind") {
            self.rules.insert(nr, Rule::always(Fate::Refuse));
        }
        self
    }

    fn set(&mut self, name: &str, fate: Option<Fate>) -> Result<(), ProfileError> {
        if let Some(nr) = number(name)? {
            match fate {
                Some(fate) => self.rules.insert(nr, Rule::always(fate)),
                None => self.rules.remove(&nr),
            };
        }
        Ok(())
    }

    /// Returns the name the profile was made from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells whether some call with this number gets through without being asked about.
    pub fn allows(&self, nr: u32) -> bool {
        self.rules
            .get(&nr)
            .is_some_and(|rule| rule.fates().any(|fate| fate == Fate::Allow))
    }

    /// Decides one call, as a supervisor needs it that is told of asked and denied calls alike.
    pub fn fate(&self, nr: u32, args: &[u64; 6]) -> Fate {
        let Some(rule) = self.rules.get(&nr) else {
            return Fate::Deny;
        };
        rule.when
            .iter()
            .find(|(tests, _)| tests.iter().all(|test| test.holds(args)))
            .map_or(rule.otherwise, |(_, fate)| *fate)
    }

    /// Lists the names of the calls that get through, at least on conditions.
    pub fn allowed(&self) -> impl Iterator<Item = &'static str> {
        let allowed = self.rules.keys().filter(|nr| self.allows(**nr));
        allowed.filter_map(|nr| syscall_name(*nr))
    }

    /// Writes the profile out as rules for every known system call.
    ///
    /// With a listener, what the profile denies is notified, except `clone3`: every process start
    /// of a C library tries it first and falls back, which is no event worth a round trip.
    ///
    /// # Errors
    ///
    /// [`ProfileError::NeedsListener`] if a call is to be asked about and there is nobody to ask.
    pub fn spec(&self, listener: bool) -> Result<FilterSpec, ProfileError> {
        let mut spec = FilterSpec::new(Action::Errno(errno(libc::ENOSYS)));
        for (nr, name) in syscalls() {
            let denied = if listener && !NEVER_NOTIFIED.contains(&name) {
                Action::Notify
            } else {
                Action::Errno(errno(denied_errno(nr)))
            };
            let action = |fate| match fate {
                Fate::Allow => Ok(Action::Allow),
                Fate::Deny => Ok(denied),
                Fate::Refuse => Ok(Action::Errno(errno(libc::EACCES))),
                Fate::Broker if !listener => Ok(Action::Allow),
                Fate::Ask if !listener => Err(ProfileError::NeedsListener { name }),
                Fate::Broker | Fate::Ask => Ok(Action::Notify),
            };
            let rule = match self.rules.get(&nr) {
                None => SyscallRule::always(denied),
                Some(rule) => SyscallRule {
                    conditional: rule
                        .when
                        .iter()
                        .map(|(tests, fate)| Ok((tests.clone(), action(*fate)?)))
                        .collect::<Result<_, ProfileError>>()?,
                    otherwise: action(rule.otherwise)?,
                },
            };
            spec.rules.insert(nr, rule);
        }
        Ok(spec)
    }

    /// Compiles the profile to a filter, with or without a supervisor listening.
    ///
    /// # Errors
    ///
    /// [`ProfileError::NeedsListener`] if a call is to be asked about and there is nobody to ask;
    /// [`ProfileError::Compile`] if the kernel would not take the filter.
    pub fn compile(&self, listener: bool) -> Result<Program, ProfileError> {
        self.spec(listener)?
            .compile()
            .map_err(ProfileError::Compile)
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} system calls)", self.name, self.allowed().count())
    }
}

impl Rule {
    fn always(fate: Fate) -> Self {
        Self {
            when: Vec::new(),
            otherwise: fate,
        }
    }

    fn fates(&self) -> impl Iterator<Item = Fate> {
        let when = self.when.iter().map(|(_, fate)| *fate);
        when.chain([self.otherwise])
    }

    fn fates_mut(&mut self) -> impl Iterator<Item = &mut Fate> {
        let when = self.when.iter_mut().map(|(_, fate)| fate);
        when.chain([&mut self.otherwise])
    }
}

/// Returns the error number a denied call fails with.
///
/// `ENOSYS` where a C library or runtime falls back to an older call only on that, which are the
/// calls added since Linux 5.1 and a few before; `EACCES` where executable memory or an executable
/// descriptor is refused, as the kernel's own protections do (on `ENOSYS`, `fexecve` would try again
/// through `/proc`); `EAFNOSUPPORT` for sockets; `EPERM` for everything else.
pub fn denied_errno(nr: u32) -> i32 {
    match syscall_name(nr) {
        None => libc::ENOSYS,
        Some(_) if (FIRST_RECENT..=highest_syscall()).contains(&nr) => libc::ENOSYS,
        Some(name) if groups::FALL_BACK_ON_ENOSYS.contains(&name) => libc::ENOSYS,
        Some("mmap" | "mprotect" | "pkey_mprotect" | "shmat" | "memfd_create" | "execveat") => {
            libc::EACCES
        }
        Some("socket" | "socketpair") => libc::EAFNOSUPPORT,
        Some(_) => libc::EPERM,
    }
}

/// Why a profile does not come about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// There is no profile of this name.
    #[error("there is no system call profile `{name}`: use `{known}`")]
    UnknownProfile {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// No architecture has a system call of this name.
    #[error("`{name}` is not a system call{}", hint(.similar))]
    UnknownSyscall {
        /// The name given.
        name: String,
        /// The name that was probably meant.
        similar: Option<&'static str>,
    },
    /// The flags of `clone3` are behind a pointer, so allowing it allows new namespaces.
    #[error(
        "`clone3` cannot be allowed: a filter cannot see its flags; programs fall back to `clone`"
    )]
    NotToBeAllowed,
    /// A call is to be decided by a supervisor, and there is none.
    #[error("`{name}` is to be decided by the supervisor, but this sandbox has no listener")]
    NeedsListener {
        /// The call.
        name: &'static str,
    },
    /// The rules do not make a filter.
    #[error("the profile cannot be compiled")]
    Compile(#[source] CompileError),
}

fn hint(similar: &Option<&'static str>) -> String {
    similar.map_or_else(String::new, |name| format!(": did you mean `{name}`?"))
}

/// Looks a name up; `None` for a call that only other architectures have.
fn number(name: &str) -> Result<Option<u32>, ProfileError> {
    if is_syscall_name(name) {
        return Ok(syscall_number(name));
    }
    let close = syscalls()
        .map(|(_, known)| (edits(name, known), known))
        .min();
    Err(ProfileError::UnknownSyscall {
        name: name.to_owned(),
        similar: close.and_then(|(edits, known)| (edits <= name.len() / 3).then_some(known)),
    })
}

/// Counts the insertions, deletions and replacements between two names (Levenshtein).
fn edits(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, b) in other.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

fn errno(errno: i32) -> u16 {
    errno.unsigned_abs() as u16
}

/// Tried by every C library at every process start.
const NEVER_NOTIFIED: &[&str] = &["clone3"];
/// From Linux 5.1 on all architectures share numbers, and callers expect calls to be missing.
const FIRST_RECENT: u32 = 424;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn default() -> Profile {
        Profile::named("default").unwrap()
    }

    #[test]
    fn every_name_in_a_group_is_a_system_call() {
        for group in groups::PROFILES
            .iter()
            .flat_map(|(_, groups)| groups.iter())
        {
            let conditional = group.conditional.iter().map(|conditional| conditional.name);
            for name in group.allow.split_whitespace().chain(conditional) {
                assert!(is_syscall_name(name), "{name}");
            }
        }
    }

    #[test]
    fn no_profile_lets_through_what_reaches_beyond_the_sandbox() {
        for name in Profile::names() {
            let profile = Profile::named(name).unwrap();
            for denied in [
                "acct",
                "add_key",
                "adjtimex",
                "bpf",
                "chroot",
                "clock_adjtime",
                "clock_settime",
                "clone3",
                "delete_module",
                "fanotify_init",
                "finit_module",
                "fsconfig",
                "fsmount",
                "fsopen",
                "fspick",
                "init_module",
                "io_uring_enter",
                "io_uring_register",
                "io_uring_setup",
                "ioperm",
                "iopl",
                "kcmp",
                "kexec_file_load",
                "kexec_load",
                "keyctl",
                "lookup_dcookie",
                "mbind",
                "migrate_pages",
                "modify_ldt",
                "mount",
                "mount_setattr",
                "move_mount",
                "move_pages",
                "name_to_handle_at",
                "nfsservctl",
                "open_by_handle_at",
                "open_tree",
                "open_tree_attr",
                "perf_event_open",
                "pidfd_getfd",
                "pivot_root",
                "process_madvise",
                "process_vm_readv",
                "process_vm_writev",
                "ptrace",
                "quotactl",
                "quotactl_fd",
                "reboot",
                "remap_file_pages",
                "request_key",
                "set_mempolicy",
                "setdomainname",
                "sethostname",
                "setns",
                "settimeofday",
                "swapoff",
                "swapon",
                "syslog",
                "umount2",
                "unshare",
                "userfaultfd",
                "vhangup",
            ] {
                if let Some(nr) = syscall_number(denied) {
                    assert!(!profile.allows(nr), "{name} allows {denied}");
                }
            }
        }
    }

    #[test]
    fn what_is_denied_is_put_to_the_listener_if_there_is_one() {
        let nr = |name| syscall_number(name).unwrap();
        let (asked, alone) = (
            default().spec(true).unwrap(),
            default().spec(false).unwrap(),
        );
        let always = |spec: &FilterSpec, name| spec.rules[&nr(name)].otherwise;
        assert_eq!(always(&asked, "unshare"), Action::Notify);
        assert_eq!(always(&alone, "unshare"), Action::Errno(libc::EPERM as u16));
        assert_eq!(
            always(&alone, "io_uring_setup"),
            Action::Errno(libc::ENOSYS as u16)
        );
        // Sockets are brokered; without a broker there are none but Unix sockets.
        assert_eq!(always(&asked, "socket"), Action::Notify);
        assert_eq!(
            always(&alone, "socket"),
            Action::Errno(libc::EAFNOSUPPORT as u16)
        );
        assert_eq!(always(&asked, "connect"), Action::Notify);
        assert_eq!(always(&alone, "connect"), Action::Allow);
        for spec in [asked, alone] {
            assert_eq!(always(&spec, "clone3"), Action::Errno(libc::ENOSYS as u16));
        }
    }

    #[test]
    fn lists_go_on_top_of_the_profile() {
        let nr = |name| syscall_number(name).unwrap();
        let profile = default()
            .allow(["memfd_create"])
            .unwrap()
            .deny(["mq_open"])
            .unwrap();
        let spec = profile.spec(false).unwrap();
        assert_eq!(
            spec.rules[&nr("memfd_create")],
            SyscallRule::always(Action::Allow)
        );
        assert!(!profile.allows(nr("mq_open")));

        let profile = default().notify(["execve", "ptrace"]).unwrap();
        assert!(matches!(
            profile.compile(false),
            Err(ProfileError::NeedsListener { name: "execve" })
        ));
        let spec = profile.spec(true).unwrap();
        assert_eq!(
            spec.rules[&nr("execve")],
            SyscallRule::always(Action::Notify)
        );
    }

    #[test]
    fn a_name_nobody_knows_is_refused_with_the_one_that_was_meant() {
        let told = |result: Result<Profile, ProfileError>| result.unwrap_err().to_string();
        assert_eq!(
            told(default().allow(["opennat"])),
            "`opennat` is not a system call: did you mean `openat`?"
        );
        assert_eq!(
            told(default().deny(["xyzzy"])),
            "`xyzzy` is not a system call"
        );
        assert_eq!(
            told(Profile::named("docker")),
            "there is no system call profile `docker`: use `default`, `compute`, `network-client`, `jit`"
        );
        assert!(told(default().allow(["clone3"])).starts_with("`clone3` cannot be allowed"));
        // A call of another architecture is a name, only not one of ours.
        assert!(default().allow(["open"]).is_ok());
    }

    #[test]
    fn a_profile_for_compilers_lets_private_memory_be_written_and_executed_and_no_other() {
        let spec = Profile::named(Profile::COMPILERS)
            .unwrap()
            .spec(false)
            .unwrap();
        let decide =
            |name, arguments| spec.rules[&syscall_number(name).unwrap()].decide(&arguments);
        let all = (libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC) as u64;
        let (private, shared) = (libc::MAP_PRIVATE as u64, libc::MAP_SHARED as u64);
        assert_eq!(decide("mmap", [0, 4096, all, private, 3, 0]), Action::Allow);
        assert_eq!(decide("mprotect", [0, 4096, all, 0, 0, 0]), Action::Allow);
        assert_ne!(decide("mmap", [0, 4096, all, shared, 3, 0]), Action::Allow);
        assert_ne!(
            decide("mmap", [0, 4096, libc::PROT_EXEC as u64, shared, 3, 0]),
            Action::Allow
        );
        let jit = Profile::named(Profile::COMPILERS).unwrap();
        assert!(!jit.allows(syscall_number("memfd_create").unwrap()));
    }

    #[test]
    fn a_profile_for_computing_starts_threads_and_no_processes() {
        let spec = Profile::named("compute").unwrap().spec(false).unwrap();
        let clone = &spec.rules[&syscall_number("clone").unwrap()];
        let thread = (libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND) as u64;
        assert_eq!(clone.decide(&[thread, 0, 0, 0, 0, 0]), Action::Allow);
        let fork = libc::SIGCHLD as u64;
        assert_ne!(clone.decide(&[fork, 0, 0, 0, 0, 0]), Action::Allow);
        let namespace = thread | libc::CLONE_NEWUSER as u64;
        assert_ne!(clone.decide(&[namespace, 0, 0, 0, 0, 0]), Action::Allow);
    }
}
