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
//! The first line is in `session/start.rs`, the rest is here. What is about to be done is a durable
//! record before it is done, and what came of it is another. On any error the workload is stopped: a
//! sandbox that cannot be adjusted is not left open.

mod adjusting;
mod answer;
mod attested;
mod builder;
mod courier;
mod journal;
mod outcome;
mod reload;
mod start;
mod tally;
mod watch;
mod watchdog;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use policy::{Bundle, Decision, Grant};
use vault::Vault;

use crate::adjust::{self, Change};
use crate::error::SessionError;
use crate::event::{Clock, Event};
use crate::isolation::child::Ending;
use crate::isolation::{Backend, Instance};
use crate::lever::data::Vaults;
use crate::order::{Answer, By, Command, Order, Orders};
use crate::plan::{FileAccess, Plan, Run};
use crate::receipt::Basis;
use crate::record::{Record, rule};
use crate::release::Identity;
use crate::sys::process::{First, Prompt};
use attested::Attested;
use courier::Courier;
use journal::Journal;
use reload::Shadow;
use watch::{Around, Watch};
use watchdog::Watchdog;

pub use attested::Endorsements;
pub use builder::{Handle, SessionBuilder};
pub use courier::Witness;
pub use outcome::{Outcome, Why};
pub use watchdog::Killer;

/// Most events taken together before the policy decides again.
const BATCH: usize = 1024;
/// Most rules that are named as the reason of one change.
const MAX_REASONS: usize = 8;
/// Shortest wait, so that no rounding of times makes the loop spin.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
/// By how much the session has to have slept longer than it was awake, to come before others, and how
/// much of it counts.
const LEAST_RESTED: Duration = Duration::from_millis(1);
const MOST_RESTED: Duration = Duration::from_millis(50);
/// How long a stopped sandbox may take to be gone.
const STOP_DEADLINE: Duration = Duration::from_secs(5);

/// A workload, its policy, and everything that watches over it.
pub struct Session {
    bundle: Bundle,
    base: PathBuf,
    identity: Arc<Identity>,
    courier: Courier,
    backend: Option<Box<dyn Backend>>,
    stdio: Option<[OwnedFd; 3]>,
    journal: Journal,
    clock: Clock,

    attested: Attested,
    basis: Basis,
    watch: Watch,
    shadow: Option<Shadow>,
    gaps: BTreeSet<String>,
    /// How the levers stand.
    plan: Plan,
    /// What the sandbox was launched with, less what could not be given back: no plan goes beyond it.
    ceiling: Plan,
    /// A vault opened anew that is not shown yet.
    arrived: Option<(String, Arc<Vault>)>,
    withdrawn: BTreeSet<String>,
    orders: Orders,
    asked: Vec<SyncSender<Answer>>,
    deadline: Option<Duration>,
    /// When the facts were looked at of which the last decision was made.
    looked: Duration,
    asked_to_end: bool,
    started: bool,
    /// When it last woke, and by how much it has slept longer than it was awake.
    woke: Instant,
    rested: Duration,
    /// It comes before others: after it has slept, until it has nothing left to do.
    first: Option<First>,

    /// Gone before the instance that it would kill.
    watchdog: Option<Watchdog>,

    // Dropped in this order: nobody waits for events any more, then the sandbox goes, then its data.
    events: Receiver<Event>,
    sender: SyncSender<Event>,
    instance: Option<Box<dyn Instance>>,
    vaults: Vaults,
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
        let prompt = Prompt::begin();
        let result = self.follow();
        self.first = None;
        drop(prompt);
        let withdrawn = std::mem::take(&mut self.withdrawn);
        self.watchdog = None;
        // The sandbox is gone before the log says so, and before what it wrote last is committed.
        self.instance = None;
        let kept = self.close_data(result.is_ok());
        self.close_asked();
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
        kept?;
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
        self.ceiling = self.plan.clone();
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
                // What it did last is still worth a record, and may cost it what it wrote; there is
                // nothing else left to adjust.
                self.looked = self.clock.now();
                self.look(&events, self.looked)?;
                self.note_signals()?;
                let ending = ending?;
                self.journal.note(Record::Ended { ending })?;
                let (decision, changes) = self.decided(self.looked, Change::withdraws)?;
                self.make(changes, &decision)?;
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

    /// Waits until something happens, or the mere passing of time may change a decision. The workload
    /// stands back from then on, until the sandbox is in line.
    fn wait(&mut self) -> Result<Vec<Event>, SessionError> {
        self.journal.settle()?;
        let now = self.clock.now();
        // What changed since the last look, while a lever was slow, has not been decided upon either.
        let evidence = self.attested.next_change(&self.bundle, self.looked);
        let wake = [evidence, self.watch.next_change(self.looked), self.deadline];
        let wake = wake.into_iter().flatten().min();
        let mut events = Vec::new();
        let slept_from = Instant::now();
        self.rested = self.rested.saturating_sub(slept_from - self.woke);
        self.first.get_or_insert_with(|| First::begin(0));
        let first = match wake {
            Some(wake) => self
                .events
                .recv_timeout(wake.saturating_sub(now).max(SHORTEST_WAIT)),
            None => self
                .events
                .recv()
                .map_err(|_| RecvTimeoutError::Disconnected),
        };
        self.woke = Instant::now();
        self.rested = (self.rested + (self.woke - slept_from)).min(MOST_RESTED);
        // Half of one processor at most: a storm of events must not take it from everybody.
        if self.rested < LEAST_RESTED {
            self.first = None;
        }
        self.instance()?.give_way(true);
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
        let done = self.bring_into_line(events);
        self.instance()?.give_way(false);
        done
    }

    fn bring_into_line(&mut self, mut events: Vec<Event>) -> Result<Option<Why>, SessionError> {
        let now = self.clock.now();
        self.hear(&mut events)?;
        let mut asked = false;
        for event in &events {
            if let Event::Kill { signal, by } = event {
                asked |= self.pass_on(*signal, *by)?;
            }
        }
        for event in &events {
            match event {
                Event::Order(order, _) => self.tighten(order)?,
                Event::Reload(newer) => {
                    self.first = None;
                    self.reload(newer.clone())?;
                }
                _ => {}
            }
        }
        // Who waits for the end does not wait for evidence.
        if self.attested.is_due(now) && !asked {
            self.first = None;
            self.attest()?;
        }
        if let Some(record) = self.attested.reconsider(&self.bundle, now) {
            self.journal.note(record)?;
        }
        self.hear_of_keys()?;
        // One time for both: what is seen now does not fade before it is decided upon.
        let now = self.clock.now();
        self.looked = now;
        self.look(&events, now)?;
        let (decision, mut changes) = self.decided(now, |_| true)?;
        let why = if changes.contains(&Change::Stop) {
            Some(match self.orders.because(&Change::Stop) {
                Some(ordered) => Why::Ordered(ordered),
                None => Why::Policy(reasons(&decision, &Grant::live())),
            })
        } else if self.deadline.is_some_and(|deadline| now >= deadline) {
            Some(Why::Time)
        } else {
            asked.then_some(Why::Asked)
        };
        if why.is_some() {
            // What is taken away now is in no commit; the rest goes with the sandbox.
            changes.retain(Change::withdraws);
        }
        self.make(changes, &decision)?;
        if why.is_some() {
            return Ok(why);
        }
        self.drop_unwanted()?;
        self.answer()?;
        Ok(None)
    }

    /// Decides under the facts of this time, and tells which changes of this kind that asks for. Recorded
    /// when there are any.
    fn decided(
        &mut self,
        now: Duration,
        kind: fn(&Change) -> bool,
    ) -> Result<(Decision, Vec<Change>), SessionError> {
        let facts = self.facts(now);
        let decision = self.bundle.decide(&facts);
        self.note_shadow(&facts, &decision)?;
        let wanted = self.orders.under(self.ceiling.narrowed(&decision));
        let mut changes = adjust::between(&self.plan, &wanted);
        changes.retain(|change| kind(change) && !self.must_wait(change));
        if !changes.is_empty() {
            self.note_signals()?;
            self.journal.note(Record::decided(facts, &decision))?;
        }
        Ok((decision, changes))
    }

    /// Takes for good what an order says to take, once.
    fn tighten(&mut self, order: &Order) -> Result<(), SessionError> {
        match &order.command {
            Command::Tighten(what) if !self.plan.tightened.contains(what) => {
                self.apply(Change::Tighten(what.clone()), vec![order.words()])
            }
            _ => Ok(()),
        }
    }

    /// Sensors ─▶ signals ─▶ risk.
    fn look(&mut self, events: &[Event], now: Duration) -> Result<(), SessionError> {
        let attested = &self.attested;
        let around = Around {
            vaults: &self.vaults,
            instance: self.instance.as_deref(),
        };
        let signals = self
            .watch
            .look(events, attested, &around, &self.gaps, &self.bundle, now);
        signals
            .into_iter()
            .try_for_each(|signal| self.journal.note(signal))
    }

    /// Signals that were only counted so far become records.
    fn note_signals(&mut self) -> Result<(), SessionError> {
        let records = self.watch.counted(self.clock.now());
        records
            .into_iter()
            .try_for_each(|record| self.journal.note(record))
    }

    /// Takes the data away, stops the sandbox, and waits until it is gone. Vaults that may still be written
    /// to stay until then: what was written to them is committed.
    fn end(&mut self, why: Why) -> Result<Outcome, SessionError> {
        let because = match &why {
            Why::Policy(rules) | Why::Ordered(rules) => rules.clone(),
            other => vec![other.to_string()],
        };
        let ending = if self.close_down(&because, false)? {
            self.answer()?;
            self.await_end()?
        } else {
            None
        };
        let ending = ending.unwrap_or(Ending::Killed(libc::SIGKILL));
        Ok(Outcome { ending, why })
    }

    /// Passes a Unix signal on. True when the sandbox has to be stopped instead: it is frozen and
    /// would not notice, or this is the second time that its end is asked for.
    fn pass_on(&mut self, signal: i32, by: Option<By>) -> Result<bool, SessionError> {
        let ends = [libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGHUP].contains(&signal);
        if ends && (self.asked_to_end || self.plan.run == Run::Frozen) {
            return Ok(true);
        }
        self.asked_to_end |= ends;
        self.journal.announce(Record::Kill { signal, by })?;
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
        // Losing one of the two takes both.
        Change::Withdraw(name) if decision.grants(&Grant::read_vault(name)) => {
            Grant::write_vault(name)
        }
        Change::Withdraw(name) | Change::Release(name) => Grant::read_vault(name),
        Change::Detach(at) => Grant::read_path(at),
        Change::Restore {
            at,
            access: FileAccess::Read,
        } => Grant::read_path(at),
        Change::Restore { at, .. } => Grant::write_path(at),
        Change::ReadOnly(at) => Grant::write_path(at),
        Change::Disconnect(endpoint) | Change::Reconnect(endpoint) => match endpoint.parse() {
            Ok(endpoint) => Grant::connect(endpoint),
            Err(_) => return Vec::new(),
        },
        Change::Exec(_) => Grant::exec(),
        Change::Limit(_) => Grant::full_tier(),
        Change::Stop => Grant::live(),
        Change::Freeze(false) => return vec!["nothing denies it any more".into()],
        Change::Freeze(_) if decision.proceed() => {
            return vec!["a grant was lost that no lever can take back".into()];
        }
        Change::Freeze(_) => Grant::proceed(),
        // Asked for, and never decided.
        Change::Tighten(_) => return Vec::new(),
    };
    match reasons(decision, &grant) {
        // What a newer policy does not list, no rule of it is about.
        none if none.is_empty() => vec!["the policy in force does not list it".into()],
        rules => rules,
    }
}

fn reasons(decision: &Decision, grant: &Grant) -> Vec<String> {
    decision
        .because(grant)
        .iter()
        .take(MAX_REASONS)
        .map(rule)
        .collect()
}
