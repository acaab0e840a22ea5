//! Keys from brokers elsewhere are used under a lease, for as long as a session runs.
//!
//! ```text
//! released ─▶ asked ─▶ so many seconds ─▶ asked again well before ─▶ …
//!               ├─ attest again ─▶ fresh evidence ─▶ …
//!               ├─ revoked, refused ─▶ the data is withdrawn
//!               └─ no word until the lease ends ─▶ withdrawn ─▶ word again ─▶ restored, with a new release
//! ```
//!
//! A question hangs at the broker until there is something to say, so that a revocation is here at once.
//! A lease counts from the moment of asking, by a clock that runs while the machine is paused: whoever
//! holds an answer back makes it shorter. What is withdrawn is withdrawn as by an operator's order: the
//! record is durable before it, and says why.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use casemate::error::describe;
use casemate::event::Clock;
use casemate::release::Refusal;
use casemate::{By, Command, Handle, Order, Session, Witness};

use crate::remote_broker::{Leased, Remote, RemoteBroker};
use crate::transport::note;

/// How long a key may be used before the broker was asked for how long.
const FIRST: Duration = Duration::from_secs(30);
/// How much longer than asked a broker may keep its answer back.
const SLACK: Duration = Duration::from_secs(5);
/// Shortest time between two questions that were not answered.
const PAUSE: Duration = Duration::from_millis(500);

/// The keys of a session that were, or will be, released elsewhere.
#[derive(Default)]
pub struct Leases(Vec<(String, Arc<Remote>, Arc<Held>)>);

/// What was released last for one `[data]` entry.
#[derive(Default)]
pub(crate) struct Held {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// In which session with the broker, and when by the time since boot.
    released: Option<(String, Duration)>,
    over: bool,
}

/// Keeps leases until it is dropped.
#[must_use]
pub struct Keeping(Vec<Arc<Held>>);

/// One entry's lease.
struct Keeper {
    data: String,
    remote: Arc<Remote>,
    held: Arc<Held>,
    handle: Handle,
    witness: Witness,
    clock: Clock,
}

/// How following a lease came to its end.
enum Ended {
    /// Nobody is interested any more, or there is a newer release to follow.
    Over,
    /// The broker wants the data not to be used.
    Taken(String),
    /// There was no word in time.
    Lapsed(String),
}

impl Leases {
    /// Those of these brokers, by `[data]` entry.
    pub(crate) fn of(brokers: &BTreeMap<String, RemoteBroker>) -> Self {
        let lease = |(data, broker): (&String, &RemoteBroker)| {
            let (remote, held) = broker.kept();
            (data.clone(), remote, held)
        };
        Self(brokers.iter().map(lease).collect())
    }

    /// Keeps the leases of a session's keys, from the first release to the end of what is returned.
    ///
    /// # Errors
    ///
    /// When no thread can be started.
    pub fn keep(self, session: &Session) -> std::io::Result<Keeping> {
        let mut keeping = Keeping(Vec::new());
        for (data, remote, held) in self.0 {
            keeping.0.push(Arc::clone(&held));
            let keeper = Keeper {
                data,
                remote,
                held,
                handle: session.handle(),
                witness: session.witness(),
                clock: Clock::start(),
            };
            std::thread::Builder::new()
                .name("lease".into())
                .spawn(move || keeper.keep())?;
        }
        Ok(keeping)
    }
}

impl Drop for Keeping {
    fn drop(&mut self) {
        for held in &self.0 {
            held.lock().over = true;
            held.changed.notify_all();
        }
    }
}

impl Held {
    /// Notes that the key was released in this session with the broker.
    pub(crate) fn released(&self, session: String) {
        self.lock().released = Some((session, Clock::start().since_boot()));
        self.changed.notify_all();
    }

    /// Waits for a release. `None` when nobody is interested any more.
    fn next(&self) -> Option<(String, Duration)> {
        let mut state = self.lock();
        loop {
            if state.over {
                return None;
            }
            if let Some(released) = state.released.take() {
                return Some(released);
            }
            let waited = self.changed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits, but not beyond a release or the end.
    fn pause(&self, time: Duration) {
        let state = self.lock();
        let waits = |state: &mut State| !state.over && state.released.is_none();
        drop(self.changed.wait_timeout_while(state, time, waits));
    }

    /// Whether there is something else to do than to follow the release before.
    fn is_superseded(&self) -> bool {
        let state = self.lock();
        state.over || state.released.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Keeper {
    fn keep(&self) {
        while let Some((session, at)) = self.held.next() {
            match self.follow(session, at) {
                Ended::Over => {}
                // What the broker allows again, an operator may restore: then there is a new release.
                Ended::Taken(why) => self.order(Command::Withdraw, &why),
                Ended::Lapsed(why) => {
                    self.order(Command::Withdraw, &why);
                    if self.is_welcome_again() {
                        self.order(Command::Restore, "the broker can be reached again");
                    }
                }
            }
        }
    }

    /// Asks for as long as the lease goes on.
    fn follow(&self, mut session: String, at: Duration) -> Ended {
        let mut until = at + FIRST;
        let (mut full, mut wait) = (Duration::ZERO, Duration::ZERO);
        let mut last = "the broker has not answered".to_owned();
        while !self.held.is_superseded() {
            let asked = self.clock.since_boot();
            let left = until.saturating_sub(asked);
            if left.is_zero() {
                return Ended::Lapsed(format!("no word from the broker in time: {last}"));
            }
            let again = match self.remote.lease(&session, wait, left.min(wait + SLACK)) {
                Ok(Leased::For(time)) => {
                    (until, full) = (asked + time, full.max(time));
                    wait = time / 3;
                    // The session with the broker nears its end: a new one before that.
                    time < full / 2
                }
                Ok(Leased::Attest) => true,
                Ok(Leased::Revoked) => {
                    return Ended::Taken("the broker has revoked the key".to_owned());
                }
                Ok(Leased::Unknown) => {
                    note(format_args!("{}: its broker gives no leases", self.data));
                    return Ended::Over;
                }
                Err(refusal) => {
                    last = refusal.message;
                    self.held.pause(PAUSE.min(left));
                    false
                }
            };
            if again {
                match self.attest_again() {
                    Ok(newer) => (session, wait) = (newer, Duration::ZERO),
                    Err(refusal) if passes(&refusal) => {
                        last = refusal.message;
                        self.held.pause(PAUSE.min(left));
                    }
                    Err(refusal) => {
                        let why = format!(
                            "the broker does not believe it any more: {}",
                            refusal.message
                        );
                        return Ended::Taken(why);
                    }
                }
            }
        }
        Ended::Over
    }

    /// Proves to the broker once more who asks; gives the session in which it was believed.
    fn attest_again(&self) -> Result<String, Refusal> {
        let begun = self.remote.auth()?;
        let answer = self.witness.answer(begun.nonce, begun.line.channel());
        let (challenge, evidence) = answer.map_err(|error| Refusal {
            code: "no-evidence".into(),
            message: describe(&error),
        })?;
        self.remote.attest(&begun, &evidence, &challenge)?;
        Ok(begun.session)
    }

    /// Tries to be given a lease again, until that is so or nobody is interested any more.
    fn is_welcome_again(&self) -> bool {
        while !self.held.is_superseded() {
            let leased = self
                .attest_again()
                .and_then(|session| self.remote.lease(&session, Duration::ZERO, SLACK));
            match leased {
                Ok(Leased::For(time)) if !time.is_zero() => return true,
                Ok(Leased::Revoked) => return false,
                Err(refusal) if !passes(&refusal) => return false,
                _ => self.held.pause(2 * PAUSE),
            }
        }
        false
    }

    fn order(&self, command: impl FnOnce(BTreeSet<String>) -> Command, why: &str) {
        let order = Order {
            command: command([self.data.clone()].into()),
            by: By {
                uid: rustix::process::getuid().as_raw(),
                pid: rustix::process::getpid().as_raw_nonzero().get(),
            },
            why: why.to_owned(),
        };
        // A session that is over has nothing to withdraw.
        if let Err(error) = self.handle.order(order) {
            note(format_args!("{}: {}", self.data, describe(&error)));
        }
    }
}

/// Whether a refusal says nothing about who asks: it may be another one in a moment.
fn passes(refusal: &Refusal) -> bool {
    [
        "unreachable",
        "unavailable",
        "busy",
        "no-evidence",
        "answer",
    ]
    .contains(&&*refusal.code)
        || refusal.code.starts_with("http-5")
        || refusal.code == "http-408"
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_that_is_about_the_guest_does_not_pass() {
        let refusal = |code: &str| Refusal {
            code: code.into(),
            message: String::new(),
        };
        assert!(
            ["unreachable", "unavailable", "busy", "http-502"]
                .iter()
                .all(|code| passes(&refusal(code)))
        );
        assert!(
            ["binding", "resource", "unknown-root", "http-403"]
                .iter()
                .all(|code| !passes(&refusal(code)))
        );
    }

    #[test]
    fn a_release_wakes_who_waits_and_the_end_lets_nobody_wait() {
        let held = Held::default();
        held.released("a".into());
        assert!(held.is_superseded());
        assert_eq!(held.next().unwrap().0, "a");
        assert!(!held.is_superseded());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| held.next().map(|released| released.0));
            held.released("b".into());
            assert_eq!(waiting.join().unwrap().as_deref(), Some("b"));
        });
        let held = Arc::new(held);
        drop(Keeping(vec![Arc::clone(&held)]));
        assert!(held.next().is_none());
    }
}
