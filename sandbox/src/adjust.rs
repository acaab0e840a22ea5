//! From the plan in force to the plan that is wanted: the changes, worst first.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::lever::tighten::Tightening;
use crate::plan::{FileAccess, Plan, Run, Tier};

/// One thing that a lever does to the running sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Take this vault away; open descriptors read nothing more.
    Withdraw(String),
    /// Have the key of this vault released anew and show it again; descriptors opened before it was
    /// withdrawn stay useless.
    Release(String),
    /// Take this granted tree away; files open already stay open.
    Detach(String),
    /// Let this granted tree only be read any more; files open already stay as they are.
    ReadOnly(String),
    /// Refuse connections to this endpoint, and end those that there are.
    Disconnect(String),
    /// Let this endpoint be connected again.
    Reconnect(String),
    /// Give this granted tree back, with this access; descriptors open already stay as they are.
    Restore {
        /// Where it is inside.
        at: String,
        /// What the workload may do with it from then on.
        access: FileAccess,
    },
    /// Let programs be started, or no more.
    Exec(bool),
    /// Take this from every task, for good.
    Tighten(Tightening),
    /// Put the limits of this tier in force.
    Limit(Tier),
    /// Freeze the workload, or let it go on.
    Freeze(bool),
    /// Kill everything in the sandbox.
    Stop,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Withdraw(name) => write!(f, "withdraw vault {name}"),
            Self::Release(name) => write!(f, "give vault {name} back"),
            Self::Detach(at) => write!(f, "take {at} away"),
            Self::ReadOnly(at) => write!(f, "make {at} read-only"),
            Self::Disconnect(endpoint) => write!(f, "end connections to {endpoint}"),
            Self::Reconnect(endpoint) => write!(f, "let {endpoint} be connected again"),
            Self::Restore { at, access } => write!(f, "give {at} back, to {access}"),
            Self::Exec(true) => f.write_str("let programs be started again"),
            Self::Exec(false) => f.write_str("let no program be started"),
            Self::Tighten(what) => write!(f, "take {what} for good"),
            Self::Limit(tier) => write!(f, "put limits of the {tier} tier in force"),
            Self::Freeze(true) => f.write_str("freeze the workload"),
            Self::Freeze(false) => f.write_str("let the workload go on"),
            Self::Stop => f.write_str("stop the workload"),
        }
    }
}

impl Plan {
    /// The plan in force once this change is.
    pub fn follow(&mut self, change: &Change) {
        match change {
            Change::Withdraw(name) => {
                self.data.remove(name);
            }
            Change::Release(name) => {
                self.data.insert(name.clone());
            }
            Change::Detach(at) => {
                self.files.remove(at);
            }
            Change::ReadOnly(at) => {
                self.files.insert(at.clone(), FileAccess::Read);
            }
            Change::Restore { at, access } => {
                self.files.insert(at.clone(), *access);
            }
            Change::Disconnect(endpoint) => {
                self.connect.retain(|known| known.to_string() != *endpoint);
            }
            Change::Reconnect(endpoint) => self.connect.extend(endpoint.parse()),
            Change::Exec(allowed) => self.exec = *allowed,
            Change::Tighten(what) => {
                self.exec &= *what != Tightening::Exec;
                self.tightened.insert(what.clone());
            }
            Change::Limit(tier) => self.tier = *tier,
            Change::Freeze(true) => self.run = Run::Frozen,
            Change::Freeze(false) => self.run = Run::Running,
            Change::Stop => self.run = Run::Stopped,
        }
    }
}

impl Change {
    /// Whether it takes a vault away.
    pub(crate) fn withdraws(&self) -> bool {
        matches!(self, Self::Withdraw(_))
    }
}

/// The changes that lead from one plan to another, in the order in which they are made.
///
/// What takes away comes before what gives back, and a stop makes all else needless except taking
/// the data away.
pub fn between(now: &Plan, wanted: &Plan) -> Vec<Change> {
    let mut changes: Vec<_> = now
        .data
        .difference(&wanted.data)
        .cloned()
        .map(Change::Withdraw)
        .collect();
    if wanted.run == Run::Stopped {
        if now.run != Run::Stopped {
            changes.push(Change::Stop);
        }
        return changes;
    }
    let difference = |from: &Plan, to: &Plan, change: fn(String) -> Change| -> Vec<Change> {
        let endpoints = from.connect.difference(&to.connect);
        endpoints.map(|e| change(e.to_string())).collect()
    };
    changes.extend(difference(now, wanted, Change::Disconnect));
    let (taken, given) = files(now, wanted);
    changes.extend(taken);
    if now.exec && !wanted.exec {
        changes.push(Change::Exec(false));
    }
    let frozen = |plan: &Plan| plan.run == Run::Frozen;
    if !frozen(now) && frozen(wanted) {
        changes.push(Change::Freeze(true));
    }
    if now.tier != wanted.tier {
        changes.push(Change::Limit(wanted.tier));
    }
    if !now.exec && wanted.exec {
        changes.push(Change::Exec(true));
    }
    changes.extend(given);
    let released = wanted.data.difference(&now.data).cloned();
    changes.extend(released.map(Change::Release));
    changes.extend(difference(wanted, now, Change::Reconnect));
    if frozen(now) && !frozen(wanted) {
        changes.push(Change::Freeze(false));
    }
    changes
}

/// Trees taken, from the deepest up, and trees given back, from the top down.
///
/// A tree takes with it what is mounted below it: so a granted tree that lies in one that changes is
/// taken out first, and put back in last.
fn files(now: &Plan, wanted: &Plan) -> (Vec<Change>, Vec<Change>) {
    let changing: Vec<_> = now
        .files
        .keys()
        .filter(|at| now.files.get(*at) != wanted.files.get(*at))
        .collect();
    let carried = |at: &str| {
        let above = |outer: &&&String| **outer != at && Path::new(at).starts_with(outer);
        changing.iter().any(|outer| above(&outer))
    };
    let taken = now
        .files
        .iter()
        .rev()
        .filter_map(|(at, had)| match wanted.files.get(at) {
            None => Some(Change::Detach(at.clone())),
            Some(_) if carried(at) => Some(Change::Detach(at.clone())),
            Some(FileAccess::Read) if *had == FileAccess::Write => {
                Some(Change::ReadOnly(at.clone()))
            }
            Some(_) => None,
        });
    let given = wanted.files.iter().filter_map(|(at, access)| {
        let had = now.files.get(at).filter(|_| !carried(at));
        (had < Some(access)).then(|| Change::Restore {
            at: at.clone(),
            access: *access,
        })
    });
    (taken.collect(), given.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(run: Run, tier: Tier, data: &[&str]) -> Plan {
        Plan {
            run,
            tier,
            data: data.iter().map(|s| (*s).to_owned()).collect(),
            ..Plan::default()
        }
    }

    #[test]
    fn nothing_changes_between_equal_plans() {
        let same = plan(Run::Running, Tier::Full, &["a"]);
        assert_eq!(between(&same, &same), []);
    }

    #[test]
    fn data_is_withdrawn_before_the_workload_is_stopped() {
        let now = plan(Run::Running, Tier::Full, &["a", "b"]);
        let wanted = plan(Run::Stopped, Tier::Reduced, &["b"]);
        assert_eq!(
            between(&now, &wanted),
            [Change::Withdraw("a".into()), Change::Stop]
        );
    }

    #[test]
    fn limits_change_while_the_workload_is_still_frozen() {
        let now = plan(Run::Frozen, Tier::Full, &[]);
        let wanted = plan(Run::Running, Tier::Reduced, &[]);
        assert_eq!(
            between(&now, &wanted),
            [Change::Limit(Tier::Reduced), Change::Freeze(false)]
        );
    }

    #[test]
    fn a_tree_that_may_no_longer_be_written_stays_readable_and_a_lost_one_goes() {
        let files = |all: &[(&str, FileAccess)]| Plan {
            files: all
                .iter()
                .map(|(at, access)| ((*at).to_owned(), *access))
                .collect(),
            ..Plan::default()
        };
        let now = files(&[
            ("/a", FileAccess::Read),
            ("/b", FileAccess::Write),
            ("/c", FileAccess::Write),
        ]);
        let wanted = files(&[("/b", FileAccess::Read), ("/c", FileAccess::Write)]);
        let changes = between(&now, &wanted);
        assert_eq!(
            changes,
            [Change::ReadOnly("/b".into()), Change::Detach("/a".into())]
        );
    }

    #[test]
    fn what_may_be_connected_is_taken_first_and_comes_back_last() {
        let connecting = |endpoints: &[&str], run| Plan {
            run,
            connect: endpoints
                .iter()
                .map(|e| e.parse().expect("an endpoint"))
                .collect(),
            ..Plan::default()
        };
        let now = connecting(&["a.example:1", "b.example:2"], Run::Frozen);
        let wanted = connecting(&["b.example:2", "c.example:3"], Run::Running);
        assert_eq!(
            between(&now, &wanted),
            [
                Change::Disconnect("a.example:1".into()),
                Change::Reconnect("c.example:3".into()),
                Change::Freeze(false),
            ]
        );
    }

    #[test]
    fn programs_are_refused_before_a_freeze_and_allowed_before_a_thaw() {
        let with = |exec, run| Plan {
            exec,
            ..plan(run, Tier::Full, &[])
        };
        let (runs, frozen) = (with(true, Run::Running), with(false, Run::Frozen));
        assert_eq!(
            between(&runs, &frozen),
            [Change::Exec(false), Change::Freeze(true)]
        );
        assert_eq!(
            between(&frozen, &runs),
            [Change::Exec(true), Change::Freeze(false)]
        );
    }

    #[test]
    fn a_tree_inside_one_that_changes_is_out_while_it_changes() {
        let files = |all: &[(&str, FileAccess)]| Plan {
            files: all
                .iter()
                .map(|(at, access)| ((*at).to_owned(), *access))
                .collect(),
            ..Plan::default()
        };
        use FileAccess::{Read, Write};
        let restore = |at: &str, access| Change::Restore {
            at: at.into(),
            access,
        };
        let full = files(&[("/a", Write), ("/a/b", Write), ("/ab", Read)]);
        let less = files(&[("/a", Read), ("/a/b", Write), ("/ab", Read)]);
        let detach = Change::Detach("/a/b".into());
        assert_eq!(
            between(&full, &less),
            [
                detach.clone(),
                Change::ReadOnly("/a".into()),
                restore("/a/b", Write)
            ]
        );
        assert_eq!(
            between(&less, &full),
            [detach, restore("/a", Write), restore("/a/b", Write)]
        );
        let none = files(&[]);
        assert_eq!(
            between(&none, &full),
            [
                restore("/a", Write),
                restore("/a/b", Write),
                restore("/ab", Read)
            ]
        );
    }

    #[test]
    fn a_stopped_sandbox_is_not_stopped_again() {
        let stopped = plan(Run::Stopped, Tier::Full, &[]);
        assert_eq!(between(&stopped, &stopped), []);
    }
}
