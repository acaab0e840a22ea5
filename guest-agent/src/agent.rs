//! Which sessions there are, who may start and reach them, and how all of them end.

mod error;

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use casemate::error::describe;
use casemate::order::{By, Command, Order};
use casemate::peer::Peer;
use casemate::receipt::Basis;
use casemate::record::{Record, hex};
use casemate::status::Status;
use casemate::{Handle, Outcome, Session, SessionError, Witness};
use rustix::fs::FlockOperation;
use serde_json::{Value, json};
use vault::audit::{self, LogVerifier};

use crate::api::Listed;
use crate::assembly::{Assembled, Assembly, LOG_ORIGIN};
use crate::config::{self, Config, ConfigError};
use crate::control::Control;
use crate::leases::Keeping;
use crate::outbox::Outbox;
use crate::sealed::Sealed;
use crate::transport::note;

pub use error::{AgentError, StartError};

/// Most sessions at once.
pub const MAX_SESSIONS: usize = 16;
/// Most detached sessions that are told of after their end.
const MAX_ENDED: usize = 32;
/// Most characters of a policy's name.
const MAX_NAME: usize = 64;
/// The Unix signal that asks a workload to end.
const TERM: i32 = 15;
/// Numbers of the Unix signals that can be passed on.
const SIGNALS: std::ops::RangeInclusive<i32> = 1..=64;

/// Who asks, as the kernel says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// User id.
    pub uid: u32,
    /// Process id when the connection was made.
    pub pid: i32,
    /// The session in whose sandbox it is.
    pub inside: Option<Number>,
}

/// A session of this agent, numbered as they began.
pub type Number = u64;

impl Caller {
    /// As records name it.
    pub(crate) fn by(self) -> By {
        By {
            uid: self.uid,
            pid: self.pid,
        }
    }
}

/// The agent: its policies, and the sessions that run under them. A clone is the same agent.
#[derive(Clone, Debug)]
pub struct Agent {
    config: Config,
    accept_simulated: bool,
    sessions: Arc<Mutex<Sessions>>,
    /// What it must not forget, if that is configured.
    sealed: Option<Arc<Sealed>>,
    /// Held as long as this agent lives: no second one serves from the same state.
    _lock: Arc<File>,
}

#[derive(Debug, Default)]
struct Sessions {
    running: BTreeMap<String, Running>,
    /// Detached ones that are over, the oldest first.
    ended: VecDeque<Ended>,
    started: Number,
    stopping: bool,
}

#[derive(Debug)]
struct Running {
    number: Number,
    listed: Listed,
    /// The init of its sandbox; 0 until there is one.
    init: Arc<AtomicI32>,
    /// None until the session is assembled.
    reached: Option<Reached>,
}

/// A session that somebody may reach.
#[derive(Clone)]
pub(crate) struct Reached {
    pub handle: Handle,
    pub witness: Witness,
    pub outbox: Arc<Outbox>,
    pub key: [u8; 32],
}

/// A detached session that is over.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    number: Number,
    pub listed: Listed,
    pub key: [u8; 32],
    pub outbox: Arc<Outbox>,
    /// The line that says how it ended, and that with its receipt.
    pub last: Vec<u8>,
    pub receipt: Option<Vec<u8>>,
}

/// A session that was admitted, and runs as soon as it is told to.
#[must_use]
pub struct Admitted {
    session: Session,
    log: PathBuf,
    key: [u8; 32],
    place: Place,
    _control: Option<Control>,
    _keeping: Keeping,
}

/// A session's place among those that run; given back when dropped.
pub(crate) struct Place {
    agent: Agent,
    id: String,
    init: Arc<AtomicI32>,
}

impl Agent {
    /// Begins, as the only agent with this configuration's state.
    ///
    /// # Errors
    ///
    /// [`StartError::Running`] if there is another one.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let state = config.state();
        let failed = |path: PathBuf| move |source| StartError::State { path, source };
        let runs = state.join("runs");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&runs)
            .map_err(failed(runs.clone()))?;
        let path = state.join("agent.lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        let lock = lock.map_err(failed(path.clone()))?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StartError::Running(state.into())),
            Err(error) => return Err(failed(path)(error.into())),
        }
        let sealed = match config.seal() {
            Some(seal) => Some(Arc::new(Sealed::open(seal, config.state())?)),
            None => None,
        };
        Ok(Self {
            config,
            accept_simulated: false,
            sessions: Arc::default(),
            sealed,
            _lock: Arc::new(lock),
        })
    }

    /// Reaches settings that weaken what sessions prove.
    #[must_use]
    pub fn dangerous(self) -> DangerousAgent {
        DangerousAgent(self)
    }

    /// Admits a session under a policy, for a caller. It goes on where it is told to run.
    ///
    /// # Errors
    ///
    /// [`AgentError`]; nothing was started, and nothing is left.
    pub(crate) fn admit(
        &self,
        caller: Caller,
        policy: &str,
        stdio: [OwnedFd; 3],
        mut watcher: impl FnMut(&Record, Duration) + Send + 'static,
        outbox: Arc<Outbox>,
    ) -> Result<Admitted, AgentError> {
        if caller.inside.is_some() {
            return Err(AgentError::Inside);
        }
        let known = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if policy.is_empty() || policy.len() > MAX_NAME || !policy.bytes().all(known) {
            return Err(AgentError::Name);
        }
        let place = self.place(caller, policy)?;
        let path = self.config.policies().join(format!("{policy}.toml"));
        match config::only_ours(&path) {
            Err(ConfigError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(AgentError::NoPolicy(policy.into()));
            }
            other => other?,
        }
        let mut assembly = Assembly::read(&path)?;
        if let Some(sealed) = &self.sealed {
            sealed.admit(assembly.bundle())??;
            assembly = assembly.anchored_here(Arc::clone(sealed));
        }
        let assembly = if self.accept_simulated {
            assembly.dangerous().accept_simulated()
        } else {
            assembly
        };
        let folder = self.config.state().join("runs").join(&place.id);
        let Assembled {
            session,
            log,
            leases,
        } = assembly.logged_to(&folder)?;
        let key = log.public_key();
        let [input, output, error] = stdio;
        let init = Arc::clone(&place.init);
        let watched = move |record: &Record, at| {
            if let Record::Prepared { pid, .. } = record {
                init.store(*pid, Ordering::Release);
            }
            watcher(record, at);
        };
        let session = session
            .stdio(input, output, error)
            .watched_by(watched)
            .logged_to(log)?;
        let keeping = leases.keep(&session).map_err(SessionError::Stdio)?;
        let mut sessions = self.sessions();
        if sessions.stopping {
            return Err(AgentError::Stopping);
        }
        let mut listed = None;
        if let Some(running) = sessions.running.get_mut(&place.id) {
            running.reached = Some(Reached {
                handle: session.handle(),
                witness: session.witness(),
                outbox,
                key,
            });
            listed = Some(running.listed.clone());
        }
        drop(sessions);
        // Callers have the agent's socket; this one is for its own user and root.
        let control = listed.and_then(|listed| {
            Control::open(listed, session.handle())
                .map_err(|error| note(format_args!("{}: {}", place.id, describe(&error))))
                .ok()
        });
        Ok(Admitted {
            session,
            log: folder,
            key,
            place,
            _control: control,
            _keeping: keeping,
        })
    }

    /// The sessions that a caller may see; each is asked how it is, if that is wanted.
    #[must_use]
    pub fn status(&self, caller: Caller, detail: bool) -> Vec<Listed> {
        let sessions = self.sessions();
        let visible = sessions.running.values();
        let visible =
            visible.filter(|running| may_reach(caller, running.number, running.listed.uid));
        let visible: Vec<_> = visible
            .map(|running| (running.listed.clone(), running.reached.clone()))
            .collect();
        // Not under the lock: a session may make us wait.
        drop(sessions);
        let asked = visible.into_iter().map(|(mut listed, reached)| {
            let reached = reached.filter(|_| detail);
            listed.status = reached.and_then(|reached| reached.handle.status().ok());
            listed
        });
        asked.collect()
    }

    /// Orders something of one of the caller's sessions; returns when it is in force.
    ///
    /// # Errors
    ///
    /// [`AgentError::NoSession`], also when it is somebody else's; [`AgentError::Order`];
    /// [`AgentError::Inside`].
    pub fn adjust(
        &self,
        caller: Caller,
        session: &str,
        command: Command,
        why: &str,
    ) -> Result<Box<Status>, AgentError> {
        Ok(self.commanded(caller, session)?.order(Order {
            command,
            by: caller.by(),
            why: why.to_owned(),
        })?)
    }

    /// The session of this name, if this caller may look at it.
    pub(crate) fn reach(
        &self,
        caller: Caller,
        session: &str,
    ) -> Result<(Listed, Reached), AgentError> {
        let sessions = self.sessions();
        let running = sessions.running.get(session);
        let running = running.filter(|it| may_reach(caller, it.number, it.listed.uid));
        let reached = running.and_then(|it| Some((it.listed.clone(), it.reached.clone()?)));
        reached.ok_or_else(|| AgentError::NoSession(session.into()))
    }

    /// The detached session of this name that is over, if this caller may look at it.
    pub(crate) fn ended(&self, caller: Caller, session: &str) -> Option<Ended> {
        let sessions = self.sessions();
        let mut ended = sessions.ended.iter();
        let ended = ended.find(|ended| ended.listed.id == session);
        let ended = ended.filter(|it| may_reach(caller, it.number, it.listed.uid));
        ended.cloned()
    }

    /// Some records of a session's log, as far as it is signed for.
    pub(crate) fn records(
        &self,
        log: &Path,
        key: [u8; 32],
        from: u64,
        limit: usize,
    ) -> Result<Value, AgentError> {
        let verifier = LogVerifier::new(LOG_ORIGIN, key)?;
        let verified = audit::verify(log, Some(&verifier), None)?;
        let mut records = Vec::new();
        let first = usize::try_from(from).unwrap_or(usize::MAX);
        for entry in verified.records().skip(first).take(limit) {
            let entry = entry?;
            records.push(json!({
                "index": entry.seq,
                "at": entry.record.time.as_secs_f64(),
                "record": entry.record.payload,
            }));
        }
        Ok(json!({ "audit": {
            "key": hex(&key),
            "checkpoint": verified.checkpoint().note(),
            "next": from.min(verified.size()) + records.len() as u64,
            "records": records,
        } }))
    }

    /// Takes note of how far the log of a run has come, which is over.
    pub(crate) fn closed(&self, log: &Path, key: [u8; 32]) {
        let Some(sealed) = &self.sealed else { return };
        if let Err(error) = sealed.closed(log, key) {
            note(format_args!("{}: {}", log.display(), describe(&error)));
        }
    }

    /// The session in whose sandbox a process is.
    #[must_use]
    pub fn sandbox_of(&self, peer: &Peer) -> Option<Number> {
        let sessions = self.sessions();
        let inits = sessions.running.values();
        let inits: Vec<_> = inits
            .map(|running| (running.number, running.init.load(Ordering::Acquire)))
            .filter(|(_, init)| *init != 0)
            .collect();
        drop(sessions);
        let mut inits = inits.into_iter();
        inits
            .find(|(_, init)| peer.is_within(*init))
            .map(|(number, _)| number)
    }

    fn commanded(&self, caller: Caller, session: &str) -> Result<Handle, AgentError> {
        let (_, reached) = self.reach(caller, session)?;
        match caller.inside {
            Some(_) => Err(AgentError::Inside),
            None => Ok(reached.handle),
        }
    }

    /// Passes a Unix signal on to the workload of one of the caller's sessions.
    ///
    /// # Errors
    ///
    /// [`AgentError::NoSession`], also when it is somebody else's; [`AgentError::NoSignal`].
    pub fn kill(&self, caller: Caller, session: &str, signal: i32) -> Result<(), AgentError> {
        if !SIGNALS.contains(&signal) {
            return Err(AgentError::NoSignal(signal));
        }
        self.commanded(caller, session)?
            .kill_by(signal, caller.by());
        Ok(())
    }

    /// Admits no more sessions, and asks those that run to end. Asked a second time, they are stopped.
    pub fn stop(&self) {
        let mut sessions = self.sessions();
        sessions.stopping = true;
        let handles: Vec<_> = sessions
            .running
            .values()
            .filter_map(|running| Some(running.reached.as_ref()?.handle.clone()))
            .collect();
        drop(sessions);
        handles.iter().for_each(|handle| handle.kill(TERM));
    }

    fn place(&self, caller: Caller, policy: &str) -> Result<Place, AgentError> {
        let mut sessions = self.sessions();
        if sessions.stopping {
            return Err(AgentError::Stopping);
        }
        if sessions.running.len() >= MAX_SESSIONS {
            return Err(AgentError::Full);
        }
        sessions.started += 1;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let since = now.as_secs();
        let id = format!(
            "{policy}-{since}-{}-{}",
            std::process::id(),
            sessions.started
        );
        let listed = Listed {
            id: id.clone(),
            policy: policy.into(),
            uid: caller.uid,
            since,
            log: Some(self.config.state().join("runs").join(&id)),
            status: None,
        };
        let (number, init) = (sessions.started, Arc::default());
        let running = Running {
            number,
            listed,
            init: Arc::clone(&init),
            reached: None,
        };
        sessions.running.insert(id.clone(), running);
        let agent = self.clone();
        Ok(Place { agent, id, init })
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        // Every change is complete when the lock is given back, also in a panic.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An agent about to be weakened; each use is one to be reviewed.
#[derive(Debug)]
pub struct DangerousAgent(Agent);

impl DangerousAgent {
    /// Uses a simulated TEE where there is none, for policies that accept `simulated`.
    ///
    /// Its evidence proves nothing: anybody can forge it.
    #[must_use]
    pub fn accept_simulated(self) -> Agent {
        Agent {
            accept_simulated: true,
            ..self.0
        }
    }
}

impl Admitted {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.place.id
    }

    /// Public key of its log.
    #[must_use]
    pub fn log_key(&self) -> [u8; 32] {
        self.key
    }

    /// Folder of its log.
    #[must_use]
    pub fn log(&self) -> &std::path::Path {
        &self.log
    }

    /// Public key of its log, hexadecimal.
    #[must_use]
    pub fn key(&self) -> String {
        hex(&self.key)
    }

    /// What its receipt will rest on besides the log.
    #[must_use]
    pub fn basis(&self) -> Basis {
        self.session.basis()
    }

    /// Stops the session from another thread.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper(self.session.handle())
    }

    /// Runs the session to its end. Nothing of the sandbox is left when this returns, but its place.
    pub(crate) fn run(self) -> (Result<Outcome, SessionError>, Place) {
        (self.session.run(), self.place)
    }
}

/// Stops one session, wherever it is.
#[derive(Clone, Debug)]
pub struct Stopper(Handle);

impl Stopper {
    /// Stops the session without waiting for its workload.
    pub fn stop(&self) {
        // The second request for an end is the one that does not ask the workload.
        self.0.kill(TERM);
        self.0.kill(TERM);
    }
}

impl Place {
    /// Ends with these words, which are kept of a detached session for a while.
    pub fn give_back(self, last: &[u8], receipt: Option<&[u8]>) {
        let mut sessions = self.agent.sessions();
        let Some(running) = sessions.running.remove(&self.id) else {
            return;
        };
        if let Some(reached) = running.reached.filter(|it| it.outbox.is_detached()) {
            while sessions.ended.len() >= MAX_ENDED {
                sessions.ended.pop_front();
            }
            sessions.ended.push_back(Ended {
                number: running.number,
                listed: running.listed,
                key: reached.key,
                outbox: reached.outbox,
                last: last.to_owned(),
                receipt: receipt.map(<[u8]>::to_owned),
            });
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.agent.sessions().running.remove(&self.id);
    }
}

/// A session belongs to whoever asked for it; root and the agent's own user reach all of them. What is in
/// a sandbox reaches its own session and no other, whoever's it is.
fn may_reach(caller: Caller, number: Number, uid: u32) -> bool {
    match caller.inside {
        Some(inside) => inside == number,
        None => [uid, 0, rustix::process::geteuid().as_raw()].contains(&caller.uid),
    }
}

impl std::fmt::Debug for Reached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reached")
            .field("handle", &self.handle)
            .finish_non_exhaustive()
    }
}
