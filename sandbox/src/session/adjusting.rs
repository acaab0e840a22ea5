//! Moving levers: each change recorded, made, and recorded again; and what follows when one fails.
//!
//! ```text
//! takes away:  record ─▶ effect ─▶ record ─▶ in line
//!                           └ fails ─▶ data withdrawn ─▶ frozen ─▶ stopped, each step recorded
//! gives a tree or a vault back:
//!              record ─▶ effect ─▶ record ─▶ in line
//!                           └ fails ─▶ taken again, for the rest of the session
//! ```
//!
//! A key that has to be released again is asked for beside the loop, and given when it has arrived and
//! the policy still grants it.

use std::sync::Arc;
use std::time::Instant;

use attestation::UnixTime;
use policy::Decision;
use vault::Vault;
use vault::volume::Uncommitted;

use super::watchdog::{Watchdog, Watched};
use super::{Session, because};
use crate::adjust::Change;
use crate::error::{SessionError, describe};
use crate::isolation::Instance;
use crate::isolation::child::Ending;
use crate::isolation::spawner::Failure;
use crate::lever;
use crate::lever::tighten::Tightening;
use crate::record::{Record, hex};
use crate::release;

impl Session {
    /// Brings the sandbox into line, one change after the other.
    pub(super) fn make(
        &mut self,
        changes: Vec<Change>,
        decision: &Decision,
    ) -> Result<(), SessionError> {
        for change in changes {
            let ordered = self.orders.because(&change);
            let because = ordered.unwrap_or_else(|| because(&change, decision));
            match change {
                Change::Release(name) => self.give_data_back(name, because)?,
                Change::Restore { .. } => self.give_back(change, because)?,
                change => self.apply(change, because)?,
            }
        }
        Ok(())
    }

    /// A change that must succeed: if it does not, the sandbox is closed down, step by step.
    pub(super) fn apply(
        &mut self,
        change: Change,
        because: Vec<String>,
    ) -> Result<(), SessionError> {
        let Some(failure) = self.attempt(&change, because)? else {
            return Ok(());
        };
        if self.close_down(&[format!("could not {change}")], true)? {
            self.await_end()?;
        }
        Err(failure.into())
    }

    /// Withdraws the data, and stops the workload; each step is tried, whatever came of the one before.
    /// False when it could not be stopped: then it goes when the session ends, with its spawner.
    ///
    /// After a failure it is frozen too, and loses what it wrote and is not committed. Else vaults that may
    /// be written to are not withdrawn: nobody uses them once the workload is gone.
    pub(super) fn close_down(
        &mut self,
        because: &[String],
        after_failure: bool,
    ) -> Result<bool, SessionError> {
        let data = self.plan.data.iter();
        let data = data.filter(|name| after_failure || !self.vaults.is_writable(name));
        let data = data.cloned().map(Change::Withdraw);
        let freeze = after_failure.then_some(Change::Freeze(true));
        let steps: Vec<_> = data.chain(freeze).collect();
        for step in steps {
            // Recorded there. What comes next is meant for the case that it failed.
            let _failure = self.attempt(&step, because.to_vec())?;
        }
        let stopped = self.attempt(&Change::Stop, because.to_vec())?.is_none();
        self.journal.settle()?;
        Ok(stopped)
    }

    /// Lets go of the vaults that a workload that is gone could write to, and commits what it wrote; after
    /// an error, what is not committed is lost.
    pub(super) fn close_data(&mut self, commit: bool) -> Result<(), SessionError> {
        for (data, committed) in self.vaults.close(commit) {
            let record = match committed {
                Ok((generation, root)) => Record::Committed {
                    data,
                    root: hex(&root),
                    generation,
                },
                Err(lost) => lost_of(data, lost),
            };
            self.journal.note(record)?;
        }
        Ok(())
    }

    /// Waits until a stopped workload has ended. `None` when nothing is heard of it in time, or it was
    /// never started: then the sandbox goes with the instance.
    pub(super) fn await_end(&mut self) -> Result<Option<Ending>, SessionError> {
        let deadline = Instant::now() + super::STOP_DEADLINE;
        while self.started {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(crate::event::Event::Ended(ending)) => {
                    self.journal.note(Record::Ended { ending })?;
                    return Ok(Some(ending));
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        Ok(None)
    }

    /// The record, the effect, the record of the effect. An error is the journal's; a lever that failed
    /// is told in the answer.
    fn attempt(
        &mut self,
        change: &Change,
        because: Vec<String>,
    ) -> Result<Option<Failure>, SessionError> {
        let _in_time = self.watched()?;
        if let Some(instance) = self.instance.as_deref_mut() {
            lever::prepare(change, instance);
        }
        self.journal.announce(Record::Adjusting {
            change: change.clone(),
            because,
        })?;
        let ordered = Instant::now();
        let instance = self.instance.as_deref_mut().ok_or(SessionError::Lost)?;
        let pulled = lever::pull(change, instance, &mut self.vaults, self.bundle.tables());
        self.conclude(change, ordered, pulled)
    }

    /// The record of the effect, or of there being none.
    fn conclude(
        &mut self,
        change: &Change,
        ordered: Instant,
        made: Result<(), Failure>,
    ) -> Result<Option<Failure>, SessionError> {
        for (data, lost) in self.vaults.take_lost() {
            self.journal.note(lost_of(data, lost))?;
        }
        if let Err(failure) = made {
            self.journal.note(Record::NotAdjusted {
                change: change.clone(),
                error: failure.to_string(),
            })?;
            return Ok(Some(failure));
        }
        let returns = |instance: &dyn Instance| instance.exec_returns();
        match change {
            Change::Withdraw(name) => drop(self.withdrawn.insert(name.clone())),
            Change::Exec(false) if self.instance.as_deref().is_some_and(returns) => {}
            Change::Exec(false) | Change::Tighten(Tightening::Exec) => self.ceiling.exec = false,
            _ => {}
        }
        self.plan.follow(change);
        self.journal.note(Record::Adjusted {
            change: change.clone(),
            micros: u64::try_from(ordered.elapsed().as_micros()).unwrap_or(u64::MAX),
        })?;
        Ok(None)
    }

    /// A tree given back. If that fails, it is taken again and stays away.
    fn give_back(&mut self, change: Change, because: Vec<String>) -> Result<(), SessionError> {
        let Some(failure) = self.attempt(&change, because)? else {
            return Ok(());
        };
        let Change::Restore { at, .. } = change else {
            return Err(failure.into());
        };
        self.ceiling.files.remove(&at);
        self.apply(
            Change::Detach(at.clone()),
            vec![format!("could not give {at} back")],
        )
    }

    /// Has the sandbox killed unless the answer is dropped in time.
    fn watched(&self) -> Result<Option<Watched>, SessionError> {
        let watched = self.watchdog.as_ref().map(Watchdog::watch).transpose();
        Ok(watched.map_err(Failure::at("setting the watchdog"))?)
    }

    /// A vault given back: asked for first, and shown once its key is there.
    fn give_data_back(&mut self, name: String, because: Vec<String>) -> Result<(), SessionError> {
        let change = Change::Release(name.clone());
        if let Some((_, vault)) = self.arrived.take_if(|(arrived, _)| *arrived == name) {
            let _in_time = self.watched()?;
            self.journal.settle()?;
            let ordered = Instant::now();
            let given = self.vaults.give_back(&name, vault);
            if self.conclude(&change, ordered, given)?.is_some() {
                self.ceiling.data.remove(&name);
            }
            return Ok(());
        }
        self.journal.note(Record::Adjusting { change, because })?;
        self.journal
            .announce(Record::Releasing { data: name.clone() })?;
        let path = &release::vault_paths(&self.bundle, &self.base)[&name];
        let now = UnixTime(self.clock.now().as_secs());
        let access = release::access(&self.bundle, &name);
        let events = self.sender.clone();
        let sent = self.courier.send(&name, path, access, now, events);
        match sent {
            Ok(()) => Ok(()),
            Err(error) => self.not_released(name, error.to_string()),
        }
    }

    /// Whether this change has to wait: a key is on its way, and one is asked for at a time.
    pub(super) fn must_wait(&self, change: &Change) -> bool {
        match change {
            Change::Release(name) => {
                let here = |(arrived, _): &(String, Arc<Vault>)| arrived == name;
                !self.arrived.as_ref().is_some_and(here) && !self.courier.is_here()
            }
            _ => false,
        }
    }

    /// Takes the answer of whoever releases keys, if it has come.
    pub(super) fn hear_of_keys(&mut self) -> Result<(), SessionError> {
        match self.courier.answer() {
            None => Ok(()),
            Some((name, Ok(vault))) => {
                self.journal.note(released(&name, &vault))?;
                self.arrived = Some((name, vault));
                Ok(())
            }
            Some((name, Err(error))) => self.not_released(name, describe(&error)),
        }
    }

    /// Lets go of a vault that came when the policy no longer granted it.
    pub(super) fn drop_unwanted(&mut self) -> Result<(), SessionError> {
        match self.arrived.take() {
            None => Ok(()),
            Some((name, _)) => self.journal.note(Record::NotAdjusted {
                change: Change::Release(name),
                error: "it is no longer granted".into(),
            }),
        }
    }

    fn not_released(&mut self, name: String, error: String) -> Result<(), SessionError> {
        // A relying party that said no is not asked again in this session.
        self.ceiling.data.remove(&name);
        self.journal.note(Record::NotReleased {
            data: name.clone(),
            error: error.clone(),
        })?;
        self.journal.note(Record::NotAdjusted {
            change: Change::Release(name),
            error,
        })
    }
}

fn lost_of(data: String, lost: Uncommitted) -> Record {
    Record::Lost {
        data,
        changes: lost.changes,
        bytes: lost.bytes,
    }
}

/// The record of a key that was released, and of the state of the vault that it opened.
pub(super) fn released(name: &str, vault: &Vault) -> Record {
    Record::Released {
        data: name.to_owned(),
        vault: hex(&vault.id()),
        root: hex(&vault.root()),
        generation: vault.generation(),
    }
}
