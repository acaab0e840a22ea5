//! What an operator can order of a running session, and what stands of it.
//!
//! Orders only tighten: they are a floor under every later decision. Lifting one leaves what the policy
//! grants, and no more. The record of an order, with who gave it and why, is durable before its effect.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use policy::Tables;
use serde::{Deserialize, Serialize};

use crate::adjust::Change;
use crate::lever::tighten::Tightening;
use crate::plan::{FileAccess, Plan, Run};
use crate::status::Status;
use crate::syscall::table::is_syscall_name;

/// What names the right to start programs in an order.
pub const EXEC: &str = "exec";
/// Most characters of a reason.
pub const MAX_WHY: usize = 512;

/// Who asks, as the kernel says of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    /// User id.
    pub uid: u32,
    /// Process id when the connection was made.
    pub pid: i32,
}

/// What is ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Command {
    /// Raise the risk by so many points, or take back as many of those that operators added before.
    Risk(i8),
    /// Freeze the workload.
    Freeze,
    /// Lift the order to freeze: it goes on, if the policy grants that.
    Thaw,
    /// Stop the workload.
    Stop,
    /// Take these away: vaults as `[data]` names them, trees by their place inside, endpoints as
    /// `[network]` has them, and `exec`, the right to start programs.
    Withdraw(BTreeSet<String>),
    /// Lift the order that took these away. What the policy then grants comes back where a lever can
    /// give it back.
    Restore(BTreeSet<String>),
    /// Take this from every task for good. A second time does nothing.
    Tighten(Tightening),
}

/// An order, with who gives it and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// What is ordered.
    pub command: Command,
    /// Who orders it.
    pub by: By,
    /// The reason, in the operator's words.
    pub why: String,
}

/// How the session is after an order or a question, or why the order was refused.
pub type Answer = Result<Box<Status>, OrderError>;

/// Why an order was not followed. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OrderError {
    /// Points of risk are from 1 to 100, either way.
    #[error("risk can be changed by 1 to 100 points")]
    Points,
    /// There is no such vault, tree or endpoint under the policy.
    #[error("the policy has no vault, no tree and no endpoint `{0}`")]
    Unknown(String),
    /// Only system calls that there are can be taken, and not none.
    #[error("there is no system call `{0}` to take")]
    Call(String),
    /// An order needs a reason of a bearable length.
    #[error("an order needs a reason of 1 to {MAX_WHY} characters")]
    Reason,
    /// The session is over, or does not answer.
    #[error("the session is over")]
    Over,
}

impl Order {
    /// Checks an order against the policy's tables.
    ///
    /// # Errors
    ///
    /// [`OrderError`] says what cannot be followed.
    pub fn check(&self, tables: &Tables) -> Result<(), OrderError> {
        if self.why.trim().is_empty() || self.why.chars().count() > MAX_WHY {
            return Err(OrderError::Reason);
        }
        match &self.command {
            Command::Risk(points) if !(1..=100).contains(&points.unsigned_abs()) => {
                Err(OrderError::Points)
            }
            Command::Withdraw(names) | Command::Restore(names) => {
                let trees = || tables.files.read.iter().chain(&tables.files.write);
                let endpoints = &tables.network.connect;
                let known = |name: &String| {
                    name == EXEC
                        || tables.data.contains_key(name)
                        || trees().any(|tree| tree.at.to_str() == Some(name))
                        || endpoints.iter().any(|known| known.to_string() == *name)
                };
                match names.iter().find(|name| !known(name)) {
                    Some(name) => Err(OrderError::Unknown(name.clone())),
                    None => Ok(()),
                }
            }
            Command::Tighten(Tightening::Calls(names)) if names.is_empty() => {
                Err(OrderError::Call(String::new()))
            }
            Command::Tighten(Tightening::Calls(names)) => {
                match names.iter().find(|name| !is_syscall_name(name)) {
                    Some(name) => Err(OrderError::Call(name.clone())),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// The order in words.
    pub(crate) fn words(&self) -> String {
        format!("ordered by uid {}: {}", self.by.uid, self.why)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |names: &BTreeSet<String>| names.iter().cloned().collect::<Vec<_>>().join(", ");
        match self {
            Self::Risk(points) => write!(f, "risk {points:+}"),
            Self::Freeze => f.write_str("freeze"),
            Self::Thaw => f.write_str("thaw"),
            Self::Stop => f.write_str("stop"),
            Self::Withdraw(all) => write!(f, "withdraw {}", names(all)),
            Self::Restore(all) => write!(f, "restore {}", names(all)),
            Self::Tighten(what) => write!(f, "take {what} for good"),
        }
    }
}

/// The orders that stand: a floor under every decision.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Orders {
    /// The order to freeze, in words.
    pub frozen: Option<String>,
    /// The order to stop, in words.
    pub stopped: Option<String>,
    /// What was taken away, each with the order in words.
    pub withdrawn: BTreeMap<String, String>,
}

impl Orders {
    /// Takes note of an order.
    pub(crate) fn take(&mut self, order: &Order) {
        let words = order.words();
        match &order.command {
            // The first weighs, the second is done once: neither stands.
            Command::Risk(_) | Command::Tighten(_) => {}
            Command::Freeze => self.frozen = Some(words),
            Command::Thaw => self.frozen = None,
            Command::Stop => self.stopped = Some(words),
            Command::Withdraw(names) => {
                let new = names.iter().map(|name| (name.clone(), words.clone()));
                self.withdrawn.extend(new);
            }
            Command::Restore(names) => self.withdrawn.retain(|name, _| !names.contains(name)),
        }
    }

    /// The plan with everything taken from it that was ordered to be.
    pub(crate) fn under(&self, mut plan: Plan) -> Plan {
        if self.stopped.is_some() {
            plan.run = Run::Stopped;
        } else if self.frozen.is_some() {
            plan.run = plan.run.max(Run::Frozen);
        }
        let gone = |name: &str| self.withdrawn.contains_key(name);
        plan.data.retain(|name| !gone(name));
        plan.files
            .retain(|at, _: &mut FileAccess| self.tree(at).is_none());
        plan.connect.retain(|endpoint| !gone(&endpoint.to_string()));
        plan.exec &= !gone(EXEC);
        plan
    }

    /// The order that took this tree, or one that it lies in: a tree takes with it what lies below.
    fn tree(&self, at: &str) -> Option<&String> {
        let mut gone = self.withdrawn.iter();
        gone.find(|(gone, _)| Path::new(at).starts_with(gone))
            .map(|(_, words)| words)
    }

    /// The order behind a change, if one is.
    pub(crate) fn because(&self, change: &Change) -> Option<Vec<String>> {
        let words = match change {
            Change::Stop => self.stopped.as_ref(),
            Change::Freeze(true) => self.frozen.as_ref(),
            Change::Withdraw(name) | Change::Disconnect(name) => self.withdrawn.get(name),
            Change::Exec(false) => self.withdrawn.get(EXEC),
            Change::Detach(at) => self.tree(at),
            _ => None,
        };
        words.map(|words| vec![words.clone()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(command: Command) -> Order {
        let by = By { uid: 0, pid: 1 };
        Order {
            command,
            by,
            why: "doubt".into(),
        }
    }

    #[test]
    fn orders_only_take_away_and_lifting_one_leaves_what_the_policy_grants() {
        let granted = Plan {
            data: BTreeSet::from(["a".to_owned(), "b".to_owned()]),
            files: [
                ("/x".to_owned(), FileAccess::Read),
                ("/x/y".to_owned(), FileAccess::Write),
                ("/xz".to_owned(), FileAccess::Read),
            ]
            .into(),
            connect: ["a:1", "b:2"]
                .map(|e| e.parse().expect("an endpoint"))
                .into(),
            exec: true,
            ..Plan::default()
        };
        let frozen = Plan {
            run: Run::Frozen,
            ..granted.clone()
        };
        let mut orders = Orders::default();
        orders.take(&order(Command::Freeze));
        let gone = BTreeSet::from(["a", "/x", "b:2", EXEC].map(str::to_owned));
        orders.take(&order(Command::Withdraw(gone.clone())));
        let under = orders.under(granted.clone());
        assert_eq!(under.run, Run::Frozen);
        assert_eq!(under.data, BTreeSet::from(["b".to_owned()]));
        assert_eq!(under.files.into_keys().collect::<Vec<_>>(), ["/xz"]);
        assert_eq!(
            under.connect,
            BTreeSet::from(["a:1".parse().expect("an endpoint")])
        );
        assert!(!under.exec);
        for change in [Change::Exec(false), Change::Disconnect("b:2".into())] {
            assert!(orders.because(&change).is_some(), "{change}");
        }
        orders.take(&order(Command::Thaw));
        orders.take(&order(Command::Restore(gone)));
        assert_eq!(orders.under(granted.clone()), granted);
        assert_eq!(
            orders.under(frozen.clone()),
            frozen,
            "the policy still freezes"
        );
        orders.take(&order(Command::Stop));
        orders.take(&order(Command::Thaw));
        assert_eq!(orders.under(granted).run, Run::Stopped);
    }

    #[test]
    fn an_order_names_what_there_is() {
        let text = "version = 1\nname = \"p\"\n[workload]\ncommand = [\"true\"]\n\
                    [files]\nread = [\"/srv\"]\n[network]\nconnect = [\"db.example:5432\"]\n\
                    [rules]\ncedar = \"permit (principal, action, resource);\"\n";
        let bundle = policy::Bundle::parse(text, "p.toml").expect("a policy");
        let said = |command| order(command).check(bundle.tables());
        let withdraw = |name: &str| Command::Withdraw([name.to_owned()].into());
        for name in ["/srv", "db.example:5432", EXEC] {
            assert_eq!(said(withdraw(name)), Ok(()), "{name}");
        }
        for name in ["/srv/in", "db.example", "db.example:5433", "", "programs"] {
            assert_eq!(said(withdraw(name)), Err(OrderError::Unknown(name.into())));
        }
        let calls = |names: &[&str]| {
            let names = names.iter().map(|&name| name.to_owned());
            said(Command::Tighten(Tightening::Calls(names.collect())))
        };
        assert_eq!(said(Command::Tighten(Tightening::Exec)), Ok(()));
        assert_eq!(calls(&["socket", "kill"]), Ok(()));
        assert_eq!(calls(&[]), Err(OrderError::Call(String::new())));
        assert_eq!(
            calls(&["kill", "opennat"]),
            Err(OrderError::Call("opennat".into()))
        );
    }
}
