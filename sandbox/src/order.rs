//! What an operator can order of a running session, and what stands of it.
//!
//! Orders only tighten: they are a floor under every later decision. Lifting one leaves what the policy
//! grants, and no more. The record of an order, with who gave it and why, is durable before its effect.

use std::collections::BTreeSet;
use std::fmt;

use policy::Tables;
use serde::{Deserialize, Serialize};

use crate::adjust::Change;
use crate::plan::{FileAccess, Plan, Run};
use crate::status::Status;

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
    /// Take these vaults and trees away, named as in `[data]` or by their place inside.
    Withdraw(BTreeSet<String>),
    /// Lift the order that took these away. What the policy then grants comes back where a lever can
    /// give it back.
    Restore(BTreeSet<String>),
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
    /// There is no such vault or tree under the policy.
    #[error("the policy has no vault and no tree `{0}`")]
    Unknown(String),
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
                let known = |name: &String| {
                    tables.data.contains_key(name)
                        || trees().any(|tree| tree.at.to_str() == Some(name))
                };
                match names.iter().find(|name| !known(name)) {
                    Some(name) => Err(OrderError::Unknown(name.clone())),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
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
    /// Vaults and trees taken away, each with the order in words.
    pub withdrawn: std::collections::BTreeMap<String, String>,
}

impl Orders {
    /// Takes note of an order.
    pub(crate) fn take(&mut self, order: &Order) {
        let words = format!("ordered by uid {}: {}", order.by.uid, order.why);
        match &order.command {
            Command::Risk(_) => {}
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
        plan.data.retain(|name| !self.withdrawn.contains_key(name));
        // A tree takes with it what lies below.
        plan.files.retain(|at, _: &mut FileAccess| {
            let at = std::path::Path::new(at);
            !self.withdrawn.keys().any(|gone| at.starts_with(gone))
        });
        plan
    }

    /// The order behind a change, if one is.
    pub(crate) fn because(&self, change: &Change) -> Option<Vec<String>> {
        let words = match change {
            Change::Stop => self.stopped.as_ref(),
            Change::Freeze(true) => self.frozen.as_ref(),
            Change::Withdraw(name) => self.withdrawn.get(name),
            Change::Detach(at) => self
                .withdrawn
                .iter()
                .find(|(gone, _)| std::path::Path::new(at).starts_with(gone))
                .map(|(_, words)| words),
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
            ..Plan::default()
        };
        let frozen = Plan {
            run: Run::Frozen,
            ..granted.clone()
        };
        let mut orders = Orders::default();
        orders.take(&order(Command::Freeze));
        orders.take(&order(Command::Withdraw(["a".into(), "/x".into()].into())));
        let under = orders.under(granted.clone());
        assert_eq!(under.run, Run::Frozen);
        assert_eq!(under.data, BTreeSet::from(["b".to_owned()]));
        assert_eq!(under.files.into_keys().collect::<Vec<_>>(), ["/xz"]);
        orders.take(&order(Command::Thaw));
        orders.take(&order(Command::Restore(["a".into(), "/x".into()].into())));
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
}
