//! Which system calls a workload gets: named profiles, composed of groups.
//!
//! ```text
//! Profile::named("default") ─▶ .allow(..) ─▶ .deny(..) ─▶ .notify(..) ─▶ compile(listener)
//! ```
//!
//! A profile is a list of what is allowed; everything else is denied. With a listener a denied call
//! is put to the supervisor, which counts it and answers [`denied_errno`]; without one the kernel
//! answers that at once. Why each group and condition is as it is: [`super::groups`].

use std::collections::BTreeMap;
use std::fmt;

use super::filter::{Action, ArgTest, CompileError, FilterSpec, SyscallRule};
use super::groups::{self, Group};
use super::program::Program;
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
pub(super) enum Fate {
    /// It is run.
    Allow,
    /// The supervisor does it in the workload's place; harmless where no supervisor can be asked.
    Broker,
    /// The supervisor decides; must not happen where none can be asked.
    Ask,
    /// It is not run.
    Deny,
}

impl Profile {
    /// Returns the profile of this name.
    ///
    /// `default` runs shells, coreutils, interpreters, git, databases and ordinary programs in any
    /// language. `compute` is for a program that reads, calculates and writes: no new processes,
    /// no sockets, no System V or message-queue IPC.
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
        for name in group.allow {
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
            let nr = number(name.as_ref())?;
            if nr.is_some_and(|nr| self.rules.contains_key(&nr)) {
                // Denied and asked calls go to the same listener, so the conditions can go: the
                // supervisor sees the arguments, and applies them itself where it has to.
                self.set(name.as_ref(), Some(Fate::Ask))?;
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
}

/// Returns the error number a denied call fails with.
///
/// `ENOSYS` where a C library or runtime falls back to an older call only on that, which are the
/// calls added since Linux 5.1 and a few before; `EACCES` where memory protection refuses, as the
/// kernel's own does; `EAFNOSUPPORT` for sockets; `EPERM` for everything else.
pub fn denied_errno(nr: u32) -> i32 {
    match syscall_name(nr) {
        None => libc::ENOSYS,
        Some(_) if (FIRST_RECENT..=highest_syscall()).contains(&nr) => libc::ENOSYS,
        Some(name) if groups::FALL_BACK_ON_ENOSYS.contains(&name) => libc::ENOSYS,
        Some("mmap" | "mprotect" | "pkey_mprotect" | "shmat" | "memfd_create") => libc::EACCES,
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
