//! What was decided, and because of which rules.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use crate::diff::Change;
use crate::grant::Grant;

/// Which grants hold under the facts that were given, and why.
///
/// A function of bundle and facts: the same two give the same value, byte for byte when
/// serialised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Decision {
    /// What holds.
    pub granted: BTreeSet<Grant>,
    /// What does not, in the order of the grants.
    pub denied: Vec<Denial>,
    /// Which rules permitted what holds, in the order of the grants.
    pub permitted: Vec<Permission>,
}

/// A grant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Denial {
    /// The grant.
    pub grant: Grant,
    /// The rules that stand against it; never empty. Grants denied by the same rules share them.
    #[serde(serialize_with = "slice")]
    pub because: Arc<[Reason]>,
}

/// A grant that holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Permission {
    /// The grant.
    pub grant: Grant,
    /// The `permit` rules that were satisfied; never empty.
    #[serde(serialize_with = "slice")]
    pub because: Arc<[Reason]>,
}

/// Whether one grant holds, and because of which rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whether it holds.
    pub granted: bool,
    /// The rules that decided; never empty.
    pub because: Arc<[Reason]>,
}

/// A rule's part in a decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The rule's `@id`, or `rule 3` for the third one. Empty if no rule is about the grant.
    #[serde(serialize_with = "text")]
    pub rule: Arc<str>,
    /// The line of the policy file on which the rule begins.
    pub line: usize,
    /// The rule in one line.
    #[serde(serialize_with = "text")]
    pub text: Arc<str>,
    /// What it did.
    pub kind: ReasonKind,
}

/// What a rule did to a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ReasonKind {
    /// A `permit` that was satisfied.
    Permitted,
    /// A `forbid` that was satisfied.
    Forbidden,
    /// A `permit` that was not satisfied, and no other was.
    NotPermitted,
    /// A rule that could not be evaluated.
    Errored,
}

impl fmt::Display for ReasonKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ReasonKind::Permitted => "permitted",
            ReasonKind::Forbidden => "forbidden",
            ReasonKind::NotPermitted => "not permitted",
            ReasonKind::Errored => "not evaluated",
        })
    }
}

impl Decision {
    /// Whether a grant holds. What the tables do not list never does.
    pub fn grants(&self, grant: &Grant) -> bool {
        self.granted.contains(grant)
    }

    /// Whether the workload may go on running; else it is frozen.
    pub fn proceed(&self) -> bool {
        self.grants(&Grant::proceed())
    }

    /// Whether the workload may live; else it is stopped.
    pub fn live(&self) -> bool {
        self.grants(&Grant::live())
    }

    /// What another decision, the newer one, grants differently, in the order of the grants.
    pub fn differences(&self, newer: &Decision) -> Vec<(Grant, Change)> {
        let sides = self.granted.symmetric_difference(&newer.granted);
        sides
            .map(|grant| match newer.grants(grant) {
                true => (grant.clone(), Change::Gained),
                false => (grant.clone(), Change::Lost),
            })
            .collect()
    }

    /// The rules that decided about a grant; empty for what the tables do not list.
    pub fn because(&self, grant: &Grant) -> &[Reason] {
        let denied = self
            .denied
            .iter()
            .map(|denial| (&denial.grant, &denial.because));
        let permitted = self
            .permitted
            .iter()
            .map(|permission| (&permission.grant, &permission.because));
        denied
            .chain(permitted)
            .find(|(candidate, _)| *candidate == grant)
            .map_or(&[], |(_, because)| because)
    }
}

fn slice<S: Serializer>(reasons: &Arc<[Reason]>, serializer: S) -> Result<S::Ok, S::Error> {
    reasons.as_ref().serialize(serializer)
}

fn text<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}
