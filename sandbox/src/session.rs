//! One run of one workload under one policy: the main path of the whole project.
//!
//! ```text
//! evidence ─▶ appraisal ─▶ facts ─▶ decision ─▶ plan ─▶ keys ─▶ launch ─▶ start
//!                            ▲                                             │
//!                            └── signals ◀── sensors ◀── events ◀──────────┤
//!                                                                          ▼
//!                     decision ─▶ plan ─▶ changes ─▶ levers ─▶ … ─▶ stop, close
//! ```
//!
//! What is about to be done is a durable record before it is done, and what came of it is another. On
//! any error the workload is stopped: a sandbox
//! that cannot be adjusted is not left open.

mod attested;
mod builder;
mod journal;
mod watch;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use attestation::UnixTime;
use policy::{Bundle, Decision, Facts, Grant};
use sha2::{Digest, Sha256};

use crate::adjust::{self, Change};
use crate::error::{SessionError, describe};
use crate::event::{Clock, Event};
use crate::facts;
use crate::isolation::child::Ending;
use crate::isolation::{Backend, Instance, Launch};
use crate::lever::{self, data::Vaults};
use crate::plan::{self, Plan, Run};
use crate::record::{Record, hex, rule};
use crate::release::{self, Identity, KeyBroker};
use attested::Attested;
use journal::Journal;
use watch::Watch;

pub use builder::{Handle, SessionBuilder};

/// Most events taken together before the policy decides again.
const BATCH: usize = 1024;
/// Most rules that are named as the reason of one change.
const MAX_REASONS: usize = 8;
/// Shortest wait, so that no rounding of times makes the loop spin.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
/// How long a stopped sandbox may take to be gone.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// A workload, its policy, and everything that watches over it.
pub struct Session {
    bundle: Bundle,
    base: PathBuf,
    identity: Identity,
    broker: Option<Box<dyn KeyBroker>>,
    backend: Option<Box<dyn Backend>>,
    stdio: Option<[OwnedFd; 3]>,
    journal: Journal,
    clock: Clock,

    attested: Attested,
    watch: Watch,
    gaps: BTreeSet<String>,
    plan: Plan,
    withdrawn: BTreeSet<String>,
    deadline: Option<Duration>,
    asked_to_end: bool,
    started: bool,

    // Dropped in this order: nobody waits for events any more, then the sandbox goes, then its data.
    events: Receiver<Event>,
    sender: SyncSender<Event>,
    instance: Option<Box<dyn Instance>>,
    vaults: Vaults,
}

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
}

impl Session {
    /// Begins to describe a session under a bundle.
    pub fn builder(bundle: Bundle) -> SessionBuilder {
        SessionBuilder::new(bundle)
    }

    /// Runs the workload from evidence to end. Nothing of the sandbox is left when this returns.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; the workload was not started, or is stopped.
    pub fn run(mut self) -> Result<Outcome, SessionError> {
        let result = self.follow();
        let withdrawn = std::mem::take(&mut self.withdrawn);
        // The sandbox is gone before the log says so.
        self.instance = None;
        let why = match &result {
            Ok(outcome) => outcome.why.to_string(),
            Err(error) => format!("error: {error}"),
        };
        let read = self
            .vaults
            .usage()
            .into_iter()
            .map(|(name, usage)| (name, usage.bytes))
            .collect();
        let closed = self.journal.announce(Record::Closed {
            why,
            read,
            withdrawn,
        });
        let outcome = result?;
        closed?;
        self.journal.close()?;
        Ok(outcome)
    }

    /// The main path.
    fn follow(&mut self) -> Result<Outcome, SessionError> {
        self.open()?;
        self.attest()?;
        let decision = self.decide()?;
        self.plan = Plan::under(&decision);
        self.open_vaults()?;
        self.launch()?;
        // What could not be enforced is a fact: the policy decides again before the first instruction.
        if let Some(why) = self.step(Vec::new())? {
            return self.end(why);
        }
        self.journal.announce(Record::Started)?;
        self.started = true;
        self.instance()?.start()?;
        loop {
            let events = self.wait()?;
            let ended = events.iter().find_map(|event| match event {
                Event::Ended(ending) => Some(Ok(*ending)),
                Event::Failed(failure) => Some(Err(failure.clone())),
                _ => None,
            });
            if let Some(ending) = ended {
                // What it did last is still worth a record; there is nothing left to adjust.
                self.look(&events)?;
                let ending = ending?;
                self.journal.note(Record::Ended { ending })?;
                let why = if self.asked_to_end {
                    Why::Asked
                } else {
                    Why::Ended
                };
                return Ok(Outcome { ending, why });
            }
            if let Some(why) = self.step(events)? {
                return self.end(why);
            }
        }
    }

    fn open(&mut self) -> Result<(), SessionError> {
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
    fn attest(&mut self) -> Result<(), SessionError> {
        let challenge = self.identity.challenge(builder::nonce()?);
        let record = self
            .attested
            .renew(&challenge, &self.bundle, self.clock.now());
        self.journal.note(record)
    }

    /// Facts ─▶ decision.
    fn decide(&mut self) -> Result<Decision, SessionError> {
        let facts = self.facts();
        let decision = self.bundle.decide(&facts);
        self.journal.note(Record::decided(facts, &decision))?;
        if decision.live() {
            return Ok(decision);
        }
        Err(SessionError::NotGranted(reasons(&decision, &Grant::live())))
    }

    fn facts(&self) -> Facts {
        let now = self.clock.now();
        let (appraisal, age) = (self.attested.appraisal(), self.attested.age(now));
        facts::gather(appraisal, age, self.watch.risk(now), &self.gaps)
    }

    /// Keys for the vaults that the plan shows, and the vaults opened with them.
    fn open_vaults(&mut self) -> Result<(), SessionError> {
        let paths = release::vault_paths(&self.bundle, &self.base);
        for name in &self.plan.data.clone() {
            let path = &paths[name];
            self.journal
                .announce(Record::Releasing { data: name.clone() })?;
            let broker = self.broker.as_deref_mut().ok_or(SessionError::NoBroker)?;
            let now = UnixTime(self.clock.now().as_secs());
            let opened = release::open_vault(
                name,
                path,
                &self.identity,
                &mut *self.attested.attester,
                broker,
                now,
            );
            match opened {
                Ok(vault) => {
                    self.journal.note(Record::Released {
                        data: name.clone(),
                        vault: hex(&vault.id()),
                        root: hex(&vault.root()),
                        generation: vault.generation(),
                    })?;
                    self.vaults.insert(name.clone(), vault);
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
    fn launch(&mut self) -> Result<(), SessionError> {
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
        let vaults = &mut self.vaults;
        let instance = backend.launch(Launch {
            floor: &floor,
            limits,
            stdio,
            serve: &mut |name, place| vaults.show(name, place),
            events: self.sender.clone(),
        })?;
        let mut enforcement = instance.enforcement().clone();
        enforcement.extend(self.vaults.freshness());
        enforcement.extend(watch::missing_sensors(&self.bundle));
        self.gaps = enforcement.gaps();
        let record = Record::Prepared {
            enforcement: enforcement.items().to_vec(),
            pid: instance.pid().as_raw_nonzero().get(),
        };
        self.instance = Some(instance);
        self.journal.note(record)?;
        if self.plan.run == Run::Frozen {
            self.apply(
                &Change::Freeze(true),
                vec!["not granted from the start: proceed".into()],
            )?;
        }
        Ok(())
    }

    /// Waits until something happens, or the mere passing of time may change a decision.
    fn wait(&mut self) -> Result<Vec<Event>, SessionError> {
        self.journal.settle()?;
        let now = self.clock.now();
        let evidence = self.attested.next_change(&self.bundle, now);
        let wake = [evidence, self.watch.next_change(now), self.deadline];
        let wake = wake.into_iter().flatten().min();
        let mut events = Vec::new();
        let first = match wake {
            Some(wake) => self
                .events
                .recv_timeout(wake.saturating_sub(now).max(SHORTEST_WAIT)),
            None => self
                .events
                .recv()
                .map_err(|_| RecvTimeoutError::Disconnected),
        };
        match first {
            Ok(event) => events.push(event),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(SessionError::Lost),
        }
        events.extend(self.events.try_iter().take(BATCH));
        Ok(events)
    }

    /// Looks, decides, and brings the running sandbox into line. `Some` when it has to end.
    fn step(&mut self, events: Vec<Event>) -> Result<Option<Why>, SessionError> {
        let now = self.clock.now();
        for event in &events {
            if let Event::Kill(signal) = event
                && self.pass_on(*signal)?
            {
                return Ok(Some(Why::Asked));
            }
        }
        if self.attested.is_due(now) {
            self.attest()?;
        }
        self.look(&events)?;
        if self.deadline.is_some_and(|deadline| now >= deadline) {
            return Ok(Some(Why::Time));
        }
        let facts = self.facts();
        let decision = self.bundle.decide(&facts);
        let wanted = self.plan.narrowed(&decision);
        let changes = adjust::between(&self.plan, &wanted);
        if changes.is_empty() {
            return Ok(None);
        }
        self.journal.note(Record::decided(facts, &decision))?;
        for change in changes {
            if change == Change::Stop {
                return Ok(Some(Why::Policy(reasons(&decision, &Grant::live()))));
            }
            self.apply(&change, because(&change, &decision))?;
        }
        self.plan = wanted;
        Ok(None)
    }

    /// Sensors ─▶ signals ─▶ risk.
    fn look(&mut self, events: &[Event]) -> Result<(), SessionError> {
        let (attested, now) = (&self.attested, self.clock.now());
        let signals = self
            .watch
            .look(events, attested, &self.gaps, &self.bundle, now);
        signals
            .into_iter()
            .try_for_each(|signal| self.journal.note(signal))
    }

    /// One change: the record, the effect, the record of the effect.
    fn apply(&mut self, change: &Change, because: Vec<String>) -> Result<(), SessionError> {
        self.journal.announce(Record::Adjusting {
            change: change.clone(),
            because,
        })?;
        let ordered = Instant::now();
        let instance = self.instance.as_deref_mut().ok_or(SessionError::Lost)?;
        match lever::pull(change, instance, &mut self.vaults, self.bundle.tables()) {
            Ok(()) => {
                if let Change::Withdraw(name) = change {
                    self.withdrawn.insert(name.clone());
                    self.plan.data.remove(name);
                }
                let micros = u64::try_from(ordered.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.journal.note(Record::Adjusted {
                    change: change.clone(),
                    micros,
                })
            }
            Err(failure) => {
                let error = failure.to_string();
                self.journal.note(Record::NotAdjusted {
                    change: change.clone(),
                    error,
                })?;
                Err(failure.into())
            }
        }
    }

    /// Takes the data away, stops the sandbox, and waits until it is gone.
    fn end(&mut self, why: Why) -> Result<Outcome, SessionError> {
        let because = match &why {
            Why::Policy(rules) => rules.clone(),
            other => vec![other.to_string()],
        };
        for name in std::mem::take(&mut self.plan.data) {
            self.apply(&Change::Withdraw(name), because.clone())?;
        }
        self.apply(&Change::Stop, because)?;
        self.plan.run = Run::Stopped;
        self.journal.settle()?;
        let deadline = Instant::now() + STOP_DEADLINE;
        while self.started {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(Event::Ended(ending)) => {
                    self.journal.note(Record::Ended { ending })?;
                    return Ok(Outcome { ending, why });
                }
                Ok(_) => {}
                Err(_) => break,
            }
        }
        // Dropping the instance waits for the sandbox itself.
        Ok(Outcome {
            ending: Ending::Killed(libc::SIGKILL),
            why,
        })
    }

    /// Passes a Unix signal on. True when the sandbox has to be stopped instead: it is frozen and
    /// would not notice, or this is the second time that its end is asked for.
    fn pass_on(&mut self, signal: i32) -> Result<bool, SessionError> {
        let ends = [libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGHUP].contains(&signal);
        if ends && (self.asked_to_end || self.plan.run == Run::Frozen) {
            return Ok(true);
        }
        self.asked_to_end |= ends;
        self.journal.announce(Record::Kill { signal })?;
        // A sandbox that is gone needs no signal, and will be heard of.
        let _ = self.instance()?.kill(signal);
        Ok(false)
    }

    fn instance(&mut self) -> Result<&mut dyn Instance, SessionError> {
        Ok(&mut **self.instance.as_mut().ok_or(SessionError::Lost)?)
    }
}

/// The rules behind a change.
fn because(change: &Change, decision: &Decision) -> Vec<String> {
    let grant = match change {
        Change::Withdraw(name) => Grant::read_vault(name),
        Change::Detach(at) => Grant::read_path(at),
        Change::ReadOnly(at) => Grant::write_path(at),
        Change::Limit(_) => Grant::full_tier(),
        Change::Stop => Grant::live(),
        Change::Freeze(_) if decision.proceed() => {
            return vec!["a grant was lost that no lever can take back".into()];
        }
        Change::Freeze(_) => Grant::proceed(),
    };
    reasons(decision, &grant)
}

fn reasons(decision: &Decision, grant: &Grant) -> Vec<String> {
    decision
        .because(grant)
        .iter()
        .take(MAX_REASONS)
        .map(rule)
        .collect()
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ended => "the workload ended",
            Self::Policy(_) => "the policy stopped it",
            Self::Time => "the time limit was reached",
            Self::Asked => "it was asked to end",
        })
    }
}
