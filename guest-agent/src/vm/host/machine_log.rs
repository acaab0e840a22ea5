//! What the host records of a machine: what it launched, what it heard, and how that ended.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use attestation::Hex;
use casemate::enforcement::Item;
use casemate::isolation::microvm::Machine;
use casemate::record::hex;
use policy::Bundle;
use serde_json::{Value, json};
use vault::audit::{Log, LogKey, Record};

use super::VmError;
use super::launch::Digests;

/// Name of the log in its checkpoints.
const ORIGIN: &str = "casemate/machine";

/// The host's log of one machine: `LOG.machine`, beside that of the session.
pub(super) struct MachineLog {
    log: Option<Log>,
    began: Instant,
}

impl MachineLog {
    pub(super) fn create(session: &Path) -> Result<Self, VmError> {
        let log = Log::create(&beside(session), ORIGIN, LogKey::generate()?)?;
        Ok(Self {
            log: Some(log),
            began: Instant::now(),
        })
    }

    /// What is about to be launched, from what.
    pub(super) fn opened(
        &self,
        bundle: &Bundle,
        machine: &Machine,
        digests: Digests,
        expected: Option<Hex<48>>,
    ) -> Result<(), VmError> {
        self.record(
            "machine-launching",
            json!({
                "policy": bundle.name(),
                "policy-digest": hex(&bundle.digest()),
                "kernel": hex(&digests.kernel),
                "image": hex(&digests.image),
                "machine": machine,
                "expected-measurement": expected.map(|digest| digest.to_string()),
            }),
        )
    }

    /// What confines QEMU.
    pub(super) fn launched(&self, confined: &[Item]) -> Result<(), VmError> {
        self.record("machine-confined", json!({ "enforcement": confined }))
    }

    /// Something that was heard or done; durable when this returns.
    pub(super) fn record(&self, kind: &'static str, payload: Value) -> Result<(), VmError> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let since = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if let Some(log) = &self.log {
            log.append(&Record::new(kind, now, since, payload))?;
        }
        Ok(())
    }

    /// The machine is gone.
    pub(super) fn close(&mut self, why: &str) -> Result<(), VmError> {
        let recorded = self.record("machine-closed", json!({ "why": why }));
        if let Some(log) = self.log.take() {
            log.close()?;
        }
        recorded
    }
}

fn beside(session: &Path) -> PathBuf {
    let mut name = OsString::from(session);
    name.push(".machine");
    name.into()
}
