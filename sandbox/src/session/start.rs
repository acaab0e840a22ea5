//! The first half of a session: from evidence to a sandbox that waits for the word to start.

use std::time::Duration;

use attestation::UnixTime;
use policy::{Decision, Facts, Grant};
use sha2::{Digest, Sha256};

use super::watchdog::Watchdog;
use super::{Session, adjusting, builder, reasons};
use crate::adjust::Change;
use crate::error::{SessionError, describe};
use crate::facts;
use crate::isolation::Launch;
use crate::isolation::spawner::Failure;
use crate::lever::exec::Gate;
use crate::plan::{self, Run};
use crate::record::{Record, hex};
use crate::release;

impl Session {
    /// The session begins to count, and says under which policy.
    pub(super) fn open(&mut self) -> Result<(), SessionError> {
        let tables = self.bundle.tables();
        let record = Record::Opened {
            casemate: env!("CARGO_PKG_VERSION"),
            policy: self.bundle.name().to_owned(),
            version: self.bundle.version(),
            digest: hex(&self.bundle.digest()),
            command: tables.workload.command.clone(),
        };
        self.deadline = tables.isolation.time.map(|limit| self.clock.now() + limit);
        self.journal.note(record)
    }

    /// Evidence ─▶ appraisal.
    pub(super) fn attest(&mut self) -> Result<(), SessionError> {
        let challenge = self.identity.challenge(builder::nonce()?);
        let record = self
            .attested
            .renew(&challenge, &self.bundle, self.clock.now());
        if let Some((evidence, challenge)) = self.attested.held() {
            self.basis.believed(evidence, challenge);
        }
        self.journal.note(record)
    }

    /// Facts ─▶ decision.
    pub(super) fn decide(&mut self) -> Result<Decision, SessionError> {
        let facts = self.facts(self.clock.now());
        let decision = self.bundle.decide(&facts);
        self.journal
            .note(Record::decided(facts.clone(), &decision))?;
        self.note_shadow(&facts, &decision)?;
        if decision.live() {
            return Ok(decision);
        }
        Err(SessionError::NotGranted(reasons(&decision, &Grant::live())))
    }

    pub(super) fn facts(&self, now: Duration) -> Facts {
        let (appraisal, age) = (self.attested.appraisal(), self.attested.age(now));
        facts::gather(appraisal, age, self.watch.risk(now), &self.gaps)
    }

    /// Keys for the vaults that the plan shows, and the vaults opened with them.
    pub(super) fn open_vaults(&mut self) -> Result<(), SessionError> {
        let paths = release::vault_paths(&self.bundle, &self.base);
        for name in &self.plan.data.clone() {
            self.journal
                .announce(Record::Releasing { data: name.clone() })?;
            let now = UnixTime(self.clock.now().as_secs());
            let access = release::access(&self.bundle, name);
            let opened = self.courier.open(name, &paths[name], access, now);
            match opened.ok_or(SessionError::NoBroker)? {
                Ok(vault) => {
                    self.journal.note(adjusting::released(name, &vault))?;
                    self.vaults.insert(name.clone(), vault)?;
                }
                Err(error) => {
                    self.journal.note(Record::NotReleased {
                        data: name.clone(),
                        error: describe(&error),
                    })?;
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Plan ─▶ launch ─▶ enforcement. The workload exists then, and waits.
    pub(super) fn launch(&mut self) -> Result<(), SessionError> {
        let sizes = self.vaults.sizes();
        let floor = plan::floor(&self.bundle, &self.plan, &self.base, &sizes)?;
        let limits = plan::limits(self.bundle.tables(), self.plan.tier);
        self.journal.announce(Record::Launching {
            floor: hex(&Sha256::digest(serde_json::to_vec(&floor)?)),
            data: self.plan.data.clone(),
        })?;
        let (Some(backend), Some(stdio)) = (self.backend.take(), self.stdio.take()) else {
            return Err(SessionError::Lost);
        };
        let endpoints = &self.bundle.tables().network.connect;
        let granted = |endpoint| (Clone::clone(endpoint), self.plan.connect.contains(endpoint));
        let connect: Vec<_> = endpoints.iter().map(granted).collect();
        let gate = match self.bundle.may_change(&Grant::exec()) {
            true => Some(Gate::new(plan::profile(self.bundle.tables())?)),
            false => None,
        };
        let vaults = &mut self.vaults;
        let instance = backend.launch(Launch {
            floor: &floor,
            limits,
            stdio,
            gate,
            serve: &mut |name, place| vaults.show(name, place),
            connect: &connect,
            events: self.sender.clone(),
        })?;
        let mounts = format!("/proc/{}/mountinfo", instance.pid().as_raw_nonzero());
        for data in self.bundle.tables().data.values() {
            vault::fuse::read_ahead(&mounts, &data.at, "fuse");
        }
        let mut enforcement = instance.enforcement().clone();
        plan::known_gaps(&self.bundle, &enforcement)?;
        enforcement.extend(self.vaults.freshness());
        let sensors = self
            .watch
            .begin(&self.bundle, &self.base, &*instance, &self.sender);
        enforcement.extend(sensors);
        self.gaps = enforcement.gaps();
        let record = Record::Prepared {
            enforcement: enforcement.items().to_vec(),
            pid: instance.pid().as_raw_nonzero().get(),
        };
        let watchdog = Watchdog::start(instance.killer());
        self.watchdog = Some(watchdog.map_err(Failure::at("starting the watchdog"))?);
        self.instance = Some(instance);
        self.journal.note(record)?;
        if self.plan.run == Run::Frozen {
            // Not in force yet, so that following the change is what brings the plan there.
            self.plan.run = Run::Running;
            self.apply(
                Change::Freeze(true),
                vec!["not granted from the start: proceed".into()],
            )?;
        }
        Ok(())
    }
}
