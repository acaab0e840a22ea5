//! What a log says of a run, in short.

use std::collections::{BTreeMap, BTreeSet};

use attestation::UnixTime;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use vault::audit::Entry;

use crate::record::hex;

/// What a log says of a run: made from its records alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Statement {
    /// Name of the log.
    pub log: String,
    /// Version of Casemate that ran it.
    pub casemate: String,
    /// When it began, in seconds since 1970.
    pub began: UnixTime,
    /// When it was over, and nothing of the sandbox left.
    pub ended: UnixTime,
    /// The policy, and those that took its place while it ran.
    pub policies: Vec<Named>,
    /// What ran.
    pub workload: Workload,
    /// Vaults whose keys were released to it.
    pub data: Vec<Data>,
    /// Vaults withdrawn while it ran.
    pub withdrawn: BTreeSet<String>,
    /// What the policy decided, in order.
    pub decisions: Vec<Decided>,
    /// Levers that were moved, in order.
    pub adjustments: Vec<Adjustment>,
    /// What operators ordered, in order.
    pub orders: Vec<Ordered>,
    /// Reports of sensors.
    pub signals: u64,
    /// How the workload ended, if it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ending: Option<Value>,
    /// Why the session ended.
    pub why: String,
}

/// A policy by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// Its SHA-256, hexadecimal.
    pub digest: String,
}

/// What ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Program and arguments.
    pub command: Vec<String>,
    /// SHA-256 of the floor that it ran on, hexadecimal; empty if no sandbox was made.
    pub floor: String,
    /// SHA-256 over both: of the JSON `{"command": […], "floor": "…"}`, hexadecimal.
    pub digest: String,
}

/// A vault whose key was released, each time that it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Entry of the `[data]` table.
    pub name: String,
    /// Id of the vault, hexadecimal.
    pub vault: String,
    /// Which state of it was opened, hexadecimal.
    pub root: String,
    /// How often the vault was changed before.
    pub generation: u64,
    /// Bytes that the workload read of it in all.
    pub read: u64,
}

/// A decision of the policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decided {
    /// Number of its record.
    pub record: u64,
    /// Risk that was known.
    pub risk: u64,
    /// How many grants of the tables held.
    pub granted: u64,
    /// How many did not.
    pub refused: u64,
    /// SHA-256 of the whole decision, hexadecimal.
    pub digest: String,
}

/// A lever that was moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Adjustment {
    /// Number of the record that announced it.
    pub record: u64,
    /// What changed.
    pub change: Value,
    /// The rules that asked for it.
    pub because: Vec<String>,
    /// Whether it came into force.
    pub in_force: bool,
}

/// An operator's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ordered {
    /// Number of its record.
    pub record: u64,
    /// What was ordered.
    pub order: Value,
    /// By whom, as the kernel said.
    pub by: Value,
    /// The reason given.
    pub why: String,
}

/// Why a log tells of no run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StatementError {
    /// Its first record is not that of a beginning.
    #[error("it does not begin with the record that opens a session")]
    NoBeginning,
    /// Its last record is not that of an end.
    #[error("it does not end with the record that closes a session")]
    NoEnd,
    /// A record is out of order, or lacks what its kind has.
    #[error("record {0} is not as the log of a session has it")]
    Record(u64),
}

impl Statement {
    /// Reads a log of this name from its first record to its last.
    ///
    /// # Errors
    ///
    /// [`StatementError`] if it is not that of one whole session.
    pub fn of(log: &str, records: &[Entry]) -> Result<Self, StatementError> {
        let (Some(first), Some(last)) = (records.first(), records.last()) else {
            return Err(StatementError::NoBeginning);
        };
        if first.record.kind != "opened" {
            return Err(StatementError::NoBeginning);
        }
        if last.record.kind != "closed" {
            return Err(StatementError::NoEnd);
        }
        let opened: Opened = payload(first)?;
        let closed: Closed = payload(last)?;
        let mut reading = Reading {
            name: opened.policy.clone(),
            policies: vec![Named {
                name: opened.policy,
                version: opened.version,
                digest: opened.digest,
            }],
            ..Reading::default()
        };
        records[1..records.len() - 1]
            .iter()
            .try_for_each(|entry| reading.see(entry))?;
        for data in &mut reading.data {
            data.read = closed.read.get(&data.name).copied().unwrap_or(0);
        }
        Ok(Self {
            log: log.to_owned(),
            casemate: opened.casemate,
            began: UnixTime(first.record.time.as_secs()),
            ended: UnixTime(last.record.time.as_secs()),
            policies: reading.policies,
            workload: Workload::new(opened.command, reading.floor),
            data: reading.data,
            withdrawn: closed.withdrawn,
            decisions: reading.decisions,
            adjustments: reading.adjustments,
            orders: reading.orders,
            signals: reading.signals,
            ending: reading.ending,
            why: closed.why,
        })
    }
}

impl Workload {
    fn new(command: Vec<String>, floor: String) -> Self {
        let both = serde_json::json!({ "command": command, "floor": floor });
        let digest = hex(&Sha256::digest(both.to_string()));
        Self {
            command,
            floor,
            digest,
        }
    }
}

/// What was read so far between the first record and the last.
#[derive(Default)]
struct Reading {
    name: String,
    policies: Vec<Named>,
    floor: String,
    data: Vec<Data>,
    decisions: Vec<Decided>,
    adjustments: Vec<Adjustment>,
    orders: Vec<Ordered>,
    signals: u64,
    ending: Option<Value>,
}

impl Reading {
    fn see(&mut self, entry: &Entry) -> Result<(), StatementError> {
        let out_of_order = Err(StatementError::Record(entry.seq));
        let record = entry.seq;
        match &*entry.record.kind {
            "opened" | "closed" => return out_of_order,
            "reloading" => {
                let Reloading { version, digest } = payload(entry)?;
                let name = self.name.clone();
                self.policies.push(Named {
                    name,
                    version,
                    digest,
                });
            }
            "launching" => {
                if !self.floor.is_empty() {
                    return out_of_order;
                }
                self.floor = payload::<Launching>(entry)?.floor;
            }
            "released" => {
                let released: Released = payload(entry)?;
                self.data.push(Data {
                    name: released.data,
                    vault: released.vault,
                    root: released.root,
                    generation: released.generation,
                    read: 0,
                });
            }
            "decided" => {
                let decided: DecidedRecord = payload(entry)?;
                self.decisions.push(Decided {
                    record,
                    risk: decided.facts.risk,
                    granted: decided.granted,
                    refused: decided.refused,
                    digest: decided.digest,
                });
            }
            "adjusting" => {
                let Adjusting { change, because } = payload(entry)?;
                self.adjustments.push(Adjustment {
                    record,
                    change,
                    because,
                    in_force: false,
                });
            }
            "adjusted" => {
                let change = payload::<Adjusted>(entry)?.change;
                let mut announced = self.adjustments.iter_mut().rev();
                match announced.find(|adjustment| adjustment.change == change) {
                    Some(adjustment) => adjustment.in_force = true,
                    None => return out_of_order,
                }
            }
            "ordered" => {
                let ordered: OrderedRecord = payload(entry)?;
                self.orders.push(Ordered {
                    record,
                    order: ordered.order,
                    by: ordered.by,
                    why: ordered.why,
                });
            }
            "signal" => {
                let count = payload::<Signal>(entry)?.count;
                self.signals = self.signals.saturating_add(count);
            }
            "ended" => self.ending = Some(payload::<Ended>(entry)?.ending),
            _ => {}
        }
        Ok(())
    }
}

// What is read of each kind of record; `crate::record::Record` is how they are written.

#[derive(Deserialize)]
struct Opened {
    casemate: String,
    policy: String,
    version: u64,
    digest: String,
    command: Vec<String>,
}

#[derive(Deserialize)]
struct Reloading {
    version: u64,
    digest: String,
}

#[derive(Deserialize)]
struct Launching {
    floor: String,
}

#[derive(Deserialize)]
struct Released {
    data: String,
    vault: String,
    root: String,
    generation: u64,
}

#[derive(Deserialize)]
struct DecidedRecord {
    facts: Known,
    granted: u64,
    refused: u64,
    digest: String,
}

#[derive(Deserialize)]
struct Known {
    risk: u64,
}

#[derive(Deserialize)]
struct Adjusting {
    change: Value,
    because: Vec<String>,
}

#[derive(Deserialize)]
struct Adjusted {
    change: Value,
}

#[derive(Deserialize)]
struct OrderedRecord {
    order: Value,
    by: Value,
    why: String,
}

#[derive(Deserialize)]
struct Signal {
    count: u64,
}

#[derive(Deserialize)]
struct Ended {
    ending: Value,
}

#[derive(Deserialize)]
struct Closed {
    why: String,
    read: BTreeMap<String, u64>,
    withdrawn: BTreeSet<String>,
}

fn payload<T: DeserializeOwned>(entry: &Entry) -> Result<T, StatementError> {
    serde_json::from_value(entry.record.payload.clone())
        .map_err(|_| StatementError::Record(entry.seq))
}
