//! What a session writes into its audit log, and shows while it runs: one vocabulary for both.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use policy::{Decision, Facts, Reason, ReasonKind};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::adjust::Change;
use crate::enforcement::Item;
use crate::isolation::child::Ending;
use crate::order::{By, Command};
use crate::sensor::{Kind, Signal};

/// One thing that a session did, decided or noticed.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Record {
    /// The session began.
    Opened {
        /// Version of this crate.
        casemate: &'static str,
        /// Name of the policy bundle.
        policy: String,
        /// Version of the policy bundle.
        version: u64,
        /// SHA-256 of the policy bundle, hexadecimal.
        digest: String,
        /// Program and arguments.
        command: Vec<String>,
    },
    /// Evidence was believed.
    Attested {
        /// Which TEE.
        tee: String,
        /// SHA-256 of what the TEE signed of the evidence, hexadecimal.
        evidence: String,
        /// SHA-256 of the evidence with all that vouches for it, as JSON, hexadecimal: what a receipt
        /// carries.
        bundle: String,
        /// The verdict.
        appraisal: serde_json::Value,
    },
    /// There was no evidence, or none that could be believed.
    NotAttested {
        /// Stable name of the reason.
        code: String,
        /// The reason in words.
        error: String,
    },
    /// The key of a vault is about to be asked for, with evidence bound to the broker's challenge.
    Releasing {
        /// Entry of the `[data]` table.
        data: String,
    },
    /// The key of a vault was released to this session, and the vault opened.
    Released {
        /// Entry of the `[data]` table.
        data: String,
        /// Id of the vault, hexadecimal.
        vault: String,
        /// Root of the vault, hexadecimal: which state of the data was opened.
        root: String,
        /// How often the vault was changed before.
        generation: u64,
    },
    /// The key of a vault was not released, or the vault did not open.
    NotReleased {
        /// Entry of the `[data]` table.
        data: String,
        /// The reason in words.
        error: String,
    },
    /// What the workload wrote to a vault is in it.
    Committed {
        /// Entry of the `[data]` table.
        data: String,
        /// Root of the vault now, hexadecimal.
        root: String,
        /// How often the vault was changed by now.
        generation: u64,
    },
    /// What the workload wrote to a vault after the last commit is lost: the vault was withdrawn, or
    /// could not be written to.
    Lost {
        /// Entry of the `[data]` table.
        data: String,
        /// Operations that changed something.
        changes: u64,
        /// Bytes written to files.
        bytes: u64,
    },
    /// The policy decided. A decision follows from these facts and the bundle alone.
    Decided {
        /// What was known.
        facts: Facts,
        /// How many grants of the tables hold.
        granted: usize,
        /// How many do not.
        refused: usize,
        /// The grants that do not, each with the rules that deny it; as many as have room.
        denied: Vec<Denied>,
        /// SHA-256 of the whole decision, hexadecimal: a replay must arrive at the same.
        digest: String,
    },
    /// The sandbox is about to be made.
    Launching {
        /// SHA-256 of the floor that is to be in force, hexadecimal.
        floor: String,
        /// Vaults that will be shown.
        data: BTreeSet<String>,
    },
    /// The floor is in force; the workload has not run yet.
    Prepared {
        /// What was enforced, and what was not.
        enforcement: Vec<Item>,
        /// Process id of the sandbox's init on the host.
        pid: i32,
    },
    /// The workload's program is executed.
    Started,
    /// A sensor reported.
    Signal {
        /// Name of the sensor.
        sensor: &'static str,
        /// What it saw.
        detail: String,
        /// How often, when the same was seen several times at once.
        count: u32,
        /// Whether a lasting condition began (true) or ended (false).
        #[serde(skip_serializing_if = "Option::is_none")]
        holds: Option<bool>,
        /// Risk score after it.
        risk: u8,
    },
    /// A lever is about to be moved.
    Adjusting {
        /// What is about to change.
        change: Change,
        /// The rules that ask for it.
        because: Vec<String>,
    },
    /// A lever was moved, and the change is in force.
    Adjusted {
        /// What changed.
        change: Change,
        /// Microseconds from the order to its being in force.
        micros: u64,
    },
    /// A lever could not be moved. The sandbox is stopped.
    NotAdjusted {
        /// What should have changed.
        change: Change,
        /// The reason in words.
        error: String,
    },
    /// Another bundle is about to be in force, and all that follows was decided under it.
    Reloading {
        /// Its version.
        version: u64,
        /// Its SHA-256, hexadecimal.
        digest: String,
    },
    /// A bundle that was to be taken into force was refused; the one in force stays.
    NotReloaded {
        /// The reason in words.
        why: String,
    },
    /// The bundle that is decided beside the one in force would grant otherwise than before. Nothing
    /// of it is enforced.
    Shadowed {
        /// Its version.
        version: u64,
        /// Its SHA-256, hexadecimal.
        digest: String,
        /// What was known.
        facts: Facts,
        /// What it would grant and the one in force does not.
        gained: Vec<String>,
        /// What it would not grant and the one in force does.
        lost: Vec<String>,
    },
    /// A Unix signal was passed on to the workload.
    Kill {
        /// Number of the signal.
        signal: i32,
        /// Who asked for it, if it is known.
        #[serde(skip_serializing_if = "Option::is_none")]
        by: Option<By>,
    },
    /// An operator ordered something, which is about to take effect.
    Ordered {
        /// What.
        order: Command,
        /// Who, as the kernel says.
        by: By,
        /// The reason, in the operator's words.
        why: String,
    },
    /// The workload ended.
    Ended {
        /// How.
        ending: Ending,
    },
    /// The session is over; nothing of the sandbox is left.
    Closed {
        /// Why it ended.
        why: String,
        /// Bytes the workload read of each vault.
        read: BTreeMap<String, u64>,
        /// Vaults withdrawn while it ran.
        withdrawn: BTreeSet<String>,
    },
}

/// A grant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Denied {
    /// The grant, as the policy names it.
    pub grant: String,
    /// The rules that deny it.
    pub because: Vec<String>,
}

/// Most bytes of denied grants and their rules in one record, so that it stays within its limit of size.
/// Replaying the decision gives the rest.
const MAX_DENIED: usize = 8 << 10;
/// Most characters of one rule's text. The policy file has the rest.
const MAX_RULE: usize = 400;

impl Record {
    /// The record of a decision.
    pub fn decided(facts: Facts, decision: &Decision) -> Self {
        let mut room = MAX_DENIED;
        let denied = decision
            .denied
            .iter()
            .map(|denial| Denied {
                grant: denial.grant.to_string(),
                because: denial.because.iter().take(3).map(rule).collect(),
            })
            .take_while(|denied| {
                let size =
                    denied.grant.len() + denied.because.iter().map(String::len).sum::<usize>();
                let fits = size <= room;
                room = room.saturating_sub(size);
                fits
            });
        Self::Decided {
            facts,
            granted: decision.granted.len(),
            refused: decision.denied.len(),
            denied: denied.collect(),
            digest: decision_digest(decision),
        }
    }

    /// The record of a sensor's report, made `count` times at once.
    pub fn signal(signal: Signal, count: u32, risk: u8) -> Self {
        let holds = match signal.kind {
            Kind::Happened | Kind::Adds(_) | Kind::Share(_) | Kind::Relieves(_) => None,
            Kind::Began => Some(true),
            Kind::Ended => Some(false),
        };
        Self::Signal {
            sensor: signal.sensor,
            detail: signal.detail,
            count,
            holds,
            risk,
        }
    }

    /// The name under which the record stands in the log.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Opened { .. } => "opened",
            Self::Attested { .. } => "attested",
            Self::NotAttested { .. } => "not-attested",
            Self::Releasing { .. } => "releasing",
            Self::Released { .. } => "released",
            Self::NotReleased { .. } => "not-released",
            Self::Committed { .. } => "committed",
            Self::Lost { .. } => "lost",
            Self::Decided { .. } => "decided",
            Self::Launching { .. } => "launching",
            Self::Prepared { .. } => "prepared",
            Self::Started => "started",
            Self::Signal { .. } => "signal",
            Self::Adjusting { .. } => "adjusting",
            Self::Adjusted { .. } => "adjusted",
            Self::NotAdjusted { .. } => "not-adjusted",
            Self::Reloading { .. } => "reloading",
            Self::NotReloaded { .. } => "not-reloaded",
            Self::Shadowed { .. } => "shadowed",
            Self::Kill { .. } => "kill",
            Self::Ordered { .. } => "ordered",
            Self::Ended { .. } => "ended",
            Self::Closed { .. } => "closed",
        }
    }
}

/// A rule as people look it up: its line in the policy file, and what stands there.
pub fn rule(reason: &Reason) -> String {
    match reason.kind {
        ReasonKind::NotPermitted => "no rule permits it".to_owned(),
        ReasonKind::Errored => {
            format!(
                "line {}: its evaluation failed: {}",
                reason.line,
                beginning(&reason.text)
            )
        }
        _ => format!("line {}: {}", reason.line, beginning(&reason.text)),
    }
}

/// As much of a rule's text as a record has room for.
fn beginning(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(MAX_RULE) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// SHA-256 of a decision as it is serialised: what its record has of it, and what a replay compares.
pub fn decision_digest(decision: &Decision) -> String {
    hex(&Sha256::digest(
        serde_json::to_vec(decision).unwrap_or_default(),
    ))
}

/// Bytes as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use policy::Bundle;
    use vault::audit::MAX_PAYLOAD;

    use super::*;

    #[test]
    fn a_decision_that_denies_much_for_long_reasons_still_fits_a_record() {
        let files: Vec<_> = (0..1000).map(|i| format!("'/files/{i}'")).collect();
        let condition = vec!["context.risk >= 20"; 100].join(" || ");
        let source = format!(
            "version = 1\nname = 'many'\n[workload]\ncommand = ['true']\n\
             [files]\nread = [{}]\n[rules]\ncedar = '''\npermit (principal, action, resource);\n\
             forbid (principal, action == Action::\"read\", resource) when {{ {condition} }};\n'''\n",
            files.join(", "),
        );
        let bundle = Bundle::parse(&source, "many.toml").unwrap();
        let facts = Facts {
            risk: 50,
            ..Facts::unknown()
        };
        let record = Record::decided(facts.clone(), &bundle.decide(&facts));
        assert!(serde_json::to_vec(&record).unwrap().len() < MAX_PAYLOAD);
        let Record::Decided { denied, .. } = record else {
            unreachable!()
        };
        assert!(!denied.is_empty());
    }
}
