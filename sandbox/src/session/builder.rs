//! Describing a session before it runs.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use attestation::{Attester, Nonce, ReleaseKey, Verifier};
use policy::{BackendName, Bundle};
use vault::anchor::FreshnessAnchor;
use vault::audit::Log;

use super::Session;
use super::attested::{Attested, Endorsements};
use super::courier::{Courier, SharedAttester, Witness};
use super::journal::Journal;
use super::reload::Shadow;
use super::watch::Watch;
use crate::error::SessionError;
use crate::event::{Clock, Event};
use crate::isolation::Backend;
use crate::isolation::container::Container;
use crate::isolation::process::Process;
use crate::lever::data::Vaults;
use crate::lever::tighten::Tightening;
use crate::order::{Answer, By, Command, Order, OrderError, Orders};
use crate::plan::Plan;
use crate::receipt::Basis;
use crate::record::Record;
use crate::release::{Identity, KeyBroker};

/// Events that may wait for the session; whoever has more to report waits too.
const WAITING_EVENTS: usize = 1024;

/// How long a session may take to answer whoever asks.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// Shows each record, with its time since the Unix epoch.
pub(super) type Watcher = Box<dyn FnMut(&Record, Duration) + Send>;

/// Everything a session needs, gathered step by step.
pub struct SessionBuilder {
    bundle: Bundle,
    base: PathBuf,
    attester: Option<Box<dyn Attester>>,
    verifier: Option<Verifier>,
    broker: Option<Box<dyn KeyBroker>>,
    anchors: BTreeMap<String, Arc<dyn FreshnessAnchor>>,
    backend: Option<Box<dyn Backend>>,
    stdio: Option<[OwnedFd; 3]>,
    watcher: Watcher,
    endorsements: Option<Box<dyn Endorsements>>,
    shadow: Option<Bundle>,
}

impl SessionBuilder {
    pub(super) fn new(bundle: Bundle) -> Self {
        Self {
            bundle,
            base: PathBuf::from("."),
            attester: None,
            verifier: None,
            broker: None,
            anchors: BTreeMap::new(),
            backend: None,
            stdio: None,
            watcher: Box::new(|_, _| {}),
            endorsements: None,
            shadow: None,
        }
    }

    /// Sets the folder against which relative paths of the policy are resolved: that of its file.
    #[must_use]
    pub fn base(mut self, folder: impl Into<PathBuf>) -> Self {
        self.base = folder.into();
        self
    }

    /// Sets who collects evidence, and who appraises it here.
    #[must_use]
    pub fn attested_by(mut self, attester: Box<dyn Attester>, verifier: Verifier) -> Self {
        self.attester = Some(attester);
        self.verifier = Some(verifier);
        self
    }

    /// Sets where endorsements come from while the session runs. What is new has the evidence appraised
    /// again.
    #[must_use]
    pub fn endorsed_by(mut self, endorsements: impl Endorsements + 'static) -> Self {
        self.endorsements = Some(Box::new(endorsements));
        self
    }

    /// Sets who releases the keys of the policy's vaults.
    #[must_use]
    pub fn keys_from(mut self, broker: impl KeyBroker + 'static) -> Self {
        self.broker = Some(Box::new(broker));
        self
    }

    /// Sets what remembers the latest commit of a vault, by the name of its `[data]` entry. Without it,
    /// that the vault was not put back to an earlier day is a gap (`freshness`).
    #[must_use]
    pub fn anchored_by(
        mut self,
        data: impl Into<String>,
        anchor: Arc<dyn FreshnessAnchor>,
    ) -> Self {
        self.anchors.insert(data.into(), anchor);
        self
    }

    /// Sets where the workload runs, instead of the backend that the policy names.
    #[must_use]
    pub fn on(mut self, backend: impl Backend + 'static) -> Self {
        self.backend = Some(Box::new(backend));
        self
    }

    /// Sets stdin, stdout and stderr of the workload. Without it stdin is empty, and both outputs are
    /// those of this process.
    #[must_use]
    pub fn stdio(mut self, input: OwnedFd, output: OwnedFd, error: OwnedFd) -> Self {
        self.stdio = Some([input, output, error]);
        self
    }

    /// Sets a bundle that is decided beside the one in force: what it would grant otherwise is recorded,
    /// and not enforced.
    #[must_use]
    pub fn shadowed_by(mut self, candidate: Bundle) -> Self {
        self.shadow = Some(candidate);
        self
    }

    /// Sets who sees each record, right after it is durable.
    #[must_use]
    pub fn watched_by(mut self, watcher: impl FnMut(&Record, Duration) + Send + 'static) -> Self {
        self.watcher = Box::new(watcher);
        self
    }

    /// Makes the session. Everything it does goes into `log`, whose key its evidence is bound to.
    ///
    /// # Errors
    ///
    /// [`SessionError::Incomplete`] without an attester; [`SessionError::Launch`] when the backend
    /// cannot be prepared.
    pub fn logged_to(self, log: Log) -> Result<Session, SessionError> {
        let (Some(attester), Some(verifier)) = (self.attester, self.verifier) else {
            return Err(SessionError::Incomplete("attested_by"));
        };
        let tables = self.bundle.tables();
        let backend = match (self.backend, tables.isolation.backend) {
            (Some(backend), _) => backend,
            (None, BackendName::Container) => Box::new(Container::prepare()?) as Box<dyn Backend>,
            (None, BackendName::Process) => Box::new(Process::prepare()?),
            (None, other) => return Err(SessionError::Backend(other.as_str())),
        };
        let stdio = match self.stdio {
            Some(stdio) => stdio,
            None => own_stdio().map_err(SessionError::Stdio)?,
        };
        let (sender, events) = mpsc::sync_channel(WAITING_EVENTS);
        let identity = Arc::new(Identity {
            policy_digest: self.bundle.digest(),
            log_key: log.public_key(),
            release_key: Arc::new(ReleaseKey::generate().map_err(|_| SessionError::Random)?),
        });
        let attester: SharedAttester = Arc::new(Mutex::new(attester));
        let courier = Courier::new(
            self.broker,
            self.anchors,
            Arc::clone(&identity),
            Arc::clone(&attester),
        );
        let clock = Clock::start();
        let vaults = Vaults::new(sender.clone());
        Ok(Session {
            watch: Watch::new(&self.bundle),
            basis: Basis::new(&self.bundle, log.origin()),
            shadow: self.shadow.map(Shadow::of),
            bundle: self.bundle,
            base: self.base,
            identity,
            attested: Attested::new(attester, verifier, self.endorsements),
            courier,
            backend: Some(backend),
            stdio: Some(stdio),
            journal: Journal::new(log, self.watcher, clock),
            clock,
            deadline: None,
            looked: Duration::ZERO,
            gaps: Default::default(),
            plan: Plan::default(),
            ceiling: Plan::default(),
            arrived: None,
            withdrawn: Default::default(),
            orders: Orders::default(),
            asked: Vec::new(),
            asked_to_end: false,
            woke: Instant::now(),
            rested: super::MOST_RESTED,
            first: None,
            started: false,
            events,
            sender,
            watchdog: None,
            instance: None,
            vaults,
        })
    }
}

/// Reaches a session from elsewhere: from a signal handler's thread, or an operator's tool.
#[derive(Clone, Debug)]
pub struct Handle {
    sender: SyncSender<Event>,
}

impl Handle {
    /// Passes a Unix signal on to the workload. The second one that asks for an end stops it.
    pub fn kill(&self, signal: i32) {
        // A session that is over hears nothing, and needs to hear nothing.
        let _ = self.sender.send(Event::Kill { signal, by: None });
    }

    /// The same, for somebody whom the record names.
    pub fn kill_by(&self, signal: i32, by: By) {
        let by = Some(by);
        let _ = self.sender.send(Event::Kill { signal, by });
    }

    /// Orders something of the session, and waits until that is in force.
    ///
    /// # Errors
    ///
    /// [`OrderError`] says why nothing has changed.
    pub fn order(&self, order: Order) -> Answer {
        self.ask(|answer| Event::Order(order, answer))
    }

    /// Asks how the session is.
    ///
    /// # Errors
    ///
    /// [`OrderError::Over`] when it is over, or does not answer within ten seconds.
    pub fn status(&self) -> Answer {
        self.ask(Event::Ask)
    }

    fn ask(&self, event: impl FnOnce(SyncSender<Answer>) -> Event) -> Answer {
        let (sender, answer) = mpsc::sync_channel(1);
        self.sender
            .send(event(sender))
            .map_err(|_| OrderError::Over)?;
        answer
            .recv_timeout(ANSWER_DEADLINE)
            .map_err(|_| OrderError::Over)?
    }

    /// Takes another bundle into force, of the same name and a higher version: rules, risk, limits, and
    /// entries of tables that go. What is built into the floor cannot change; such a bundle is refused.
    /// Either is a record: `reloading` before it is in force, `not-reloaded` with the reason.
    pub fn reload(&self, newer: Bundle) {
        let _ = self.sender.send(Event::Reload(Ok(newer)));
    }

    /// Records that a bundle which was to be taken into force could not even be read. The one in force
    /// stays.
    pub fn not_reloaded(&self, why: impl Into<String>) {
        let _ = self.sender.send(Event::Reload(Err(why.into())));
    }

    /// Raises the risk by the policy's weight for `operator`, for this reason.
    pub fn operator(&self, why: impl Into<String>) {
        let _ = self.sender.send(Event::Operator(why.into()));
    }

    /// Takes something from every task of the workload for good, in the name of this process, and waits
    /// until none has it any more. A second time does nothing.
    ///
    /// # Errors
    ///
    /// [`OrderError`]; `Over` also when it could not be taken, and the workload was stopped therefore.
    pub fn tighten(&self, what: Tightening, why: impl Into<String>) -> Answer {
        let by = By {
            uid: rustix::process::getuid().as_raw(),
            pid: rustix::process::getpid().as_raw_nonzero().get(),
        };
        self.order(Order {
            command: Command::Tighten(what),
            by,
            why: why.into(),
        })
    }
}

impl Session {
    /// What a receipt of this session will rest on besides its log; to be kept beyond its end.
    pub fn basis(&self) -> Basis {
        self.basis.clone()
    }

    /// Who gives evidence in its name while it runs.
    pub fn witness(&self) -> Witness {
        self.courier.witness()
    }

    /// A handle to this session, which can be used from any thread while it runs.
    pub fn handle(&self) -> Handle {
        Handle {
            sender: self.sender.clone(),
        }
    }
}

/// A nonce for evidence that this process itself appraises.
pub(super) fn nonce() -> Result<Nonce, SessionError> {
    let mut nonce = Nonce::default();
    let flags = rustix::rand::GetRandomFlags::empty();
    match rustix::rand::getrandom(&mut nonce, flags) {
        Ok(32) => Ok(nonce),
        _ => Err(SessionError::Random),
    }
}

fn own_stdio() -> std::io::Result<[OwnedFd; 3]> {
    use std::os::fd::AsFd;
    let input = File::open("/dev/null")?;
    Ok([
        input.into(),
        std::io::stdout().as_fd().try_clone_to_owned()?,
        std::io::stderr().as_fd().try_clone_to_owned()?,
    ])
}
