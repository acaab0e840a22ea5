//! How a session ends.

use crate::isolation::child::Ending;

/// How a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// How the workload ended.
    pub ending: Ending,
    /// Why.
    pub why: Why,
}

/// Why a session ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The workload ended by itself.
    Ended,
    /// The policy stopped it: these rules denied `live`.
    Policy(Vec<String>),
    /// It ran into the policy's time limit.
    Time,
    /// Somebody asked for it.
    Asked,
    /// An operator ordered it stopped: who, and why.
    Ordered(Vec<String>),
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ended => "the workload ended",
            Self::Policy(_) => "the policy stopped it",
            Self::Time => "the time limit was reached",
            Self::Asked => "it was asked to end",
            Self::Ordered(_) => "an operator stopped it",
        })
    }
}
