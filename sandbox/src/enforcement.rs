//! What was really enforced, layer by layer: returned by launching, never assumed.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// How much of one protection is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// All of it.
    Full,
    /// Some of it; the detail says what is missing.
    Partly,
    /// None of it.
    Not,
}

/// Every protection there is with the built-in backends, by the name that `context.gaps` has for it when it is not wholly in force.
pub const PROTECTIONS: [&str; 18] = [
    "namespaces",
    "rootfs",
    "file-owner",
    "proc",
    "capabilities",
    "cgroup",
    "freeze",
    "resources",
    "files",
    "network",
    "landlock",
    "seccomp",
    "memory-protection",
    "exec",
    "tighten",
    "sensor",
    "data",
    "freshness",
];

/// One protection and how much of it is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Layer it belongs to: 2 isolation, 3 system calls, 4 data.
    pub layer: u8,
    /// Stable name, which a policy sees in `context.gaps` when the state is not full.
    pub id: String,
    /// How much is in force.
    pub state: State,
    /// What was done, or what is missing and why.
    pub detail: String,
}

impl Item {
    /// A protection that is wholly in force.
    pub fn full(layer: u8, id: &str, detail: impl Into<String>) -> Self {
        Self {
            layer,
            id: id.into(),
            state: State::Full,
            detail: detail.into(),
        }
    }

    /// A protection of which something is missing.
    pub fn partly(layer: u8, id: &str, detail: impl Into<String>) -> Self {
        Self {
            layer,
            id: id.into(),
            state: State::Partly,
            detail: detail.into(),
        }
    }

    /// A protection that this host does not give.
    pub fn not(layer: u8, id: &str, detail: impl Into<String>) -> Self {
        Self {
            layer,
            id: id.into(),
            state: State::Not,
            detail: detail.into(),
        }
    }
}

/// Everything a launch enforced, and what it could not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Enforcement {
    items: Vec<Item>,
}

impl Enforcement {
    /// Names that a gap can have: those of the built-in backends, and of what is reported here.
    pub fn protections(&self) -> Vec<&str> {
        let reported = self.items.iter().map(|item| item.id.as_str());
        PROTECTIONS.into_iter().chain(reported).collect()
    }

    /// Adds what one step enforced.
    pub fn add(&mut self, item: Item) {
        self.items.push(item);
    }

    /// Adds what several steps enforced.
    pub fn extend(&mut self, items: impl IntoIterator<Item = Item>) {
        self.items.extend(items);
    }

    /// All protections, in the order in which they came into force.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// Names of the protections that are not wholly in force: the policy's `context.gaps`.
    pub fn gaps(&self) -> BTreeSet<String> {
        self.items
            .iter()
            .filter(|i| i.state != State::Full)
            .map(|i| i.id.clone())
            .collect()
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Full => "full",
            Self::Partly => "partly",
            Self::Not => "not",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_not_wholly_enforced_is_a_gap() {
        let mut enforcement = Enforcement::default();
        enforcement.add(Item::full(2, "rootfs", ""));
        enforcement.add(Item::partly(3, "landlock", "ABI 2"));
        enforcement.add(Item::not(2, "cgroup", "not writable"));
        let gaps: Vec<_> = enforcement.gaps().into_iter().collect();
        assert_eq!(gaps, ["cgroup", "landlock"]);
    }
}
