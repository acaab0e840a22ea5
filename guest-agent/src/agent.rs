//! Which sessions there are, who may start and reach them, and how all of them end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use casemate::error::describe;
use casemate::order::{By, Command, Order, OrderError};
use casemate::receipt::Basis;
use casemate::record::{Record, hex};
use casemate::status::Status;
use casemate::{Handle, Outcome, Session, SessionError};
use rustix::fs::FlockOperation;

use crate::api::Listed;
use crate::assembly::{Assembled, Assembly, AssemblyError};
use crate::config::{self, Config, ConfigError};
use crate::control::Control;
use crate::leases::Keeping;
use crate::transport::note;

/// Most sessions at once.
pub const MAX_SESSIONS: usize = 16;
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
}

impl Caller {
    /// As records name it.
    pub(crate) fn by(self) -> By {
        By {
            uid: self.uid,
            pid: self.pid,
        }
    }
}

/// The agent: its policies, and the sessions that run under them.
#[derive(Debug)]
pub struct Agent {
    config: Config,
    accept_simulated: bool,
    sessions: Mutex<Sessions>,
    /// Held as long as this agent lives: no second one serves from the same state.
    _lock: File,
}

#[derive(Debug, Default)]
struct Sessions {
    running: BTreeMap<String, Running>,
    started: u64,
    stopping: bool,
}

#[derive(Debug)]
struct Running {
    listed: Listed,
    /// None until the session is assembled.
    handle: Option<Handle>,
}

/// A session that was admitted, and runs as soon as it is told to.
#[must_use]
pub struct Admitted<'a> {
    session: Session,
    log: PathBuf,
    key: [u8; 32],
    place: Place<'a>,
    _control: Option<Control>,
    _keeping: Keeping,
}

/// A session's place among those that run; given back when dropped.
struct Place<'a> {
    agent: &'a Agent,
    id: String,
}

/// Why the agent did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The name is none that a policy here could have.
    #[error("a policy's name has 1 to 64 of the characters a-z, A-Z, 0-9, `-` and `_`")]
    Name,
    /// There is no such policy.
    #[error("there is no policy `{0}`")]
    NoPolicy(String),
    /// As many sessions run as may.
    #[error("{MAX_SESSIONS} sessions run already: try again when one has ended")]
    Full,
    /// The agent is about to end.
    #[error("the agent is stopping")]
    Stopping,
    /// There is no such session, or it is somebody else's.
    #[error("there is no session `{0}` of yours")]
    NoSession(String),
    /// What was ordered cannot be followed.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// This socket is that of one session.
    #[error("sessions cannot be started here: ask the agent, or use `sandboxctl run`")]
    OneSession,
    /// The number is no Unix signal.
    #[error("there is no signal {0}")]
    NoSignal(i32),
    /// The policy's file cannot be trusted.
    #[error(transparent)]
    PolicyFile(#[from] ConfigError),
    /// The policy cannot be made into a session.
    #[error(transparent)]
    Assembly(#[from] AssemblyError),
    /// The session cannot be prepared.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl AgentError {
    /// Stable name of the reason.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::NoPolicy(_) => "no-policy",
            Self::Full => "full",
            Self::Stopping => "stopping",
            Self::NoSession(_) => "no-session",
            Self::NoSignal(_) => "no-signal",
            Self::Order(_) => "order",
            Self::OneSession => "one-session",
            Self::PolicyFile(_) => "policy-file",
            Self::Assembly(error) => error.code(),
            Self::Session(_) => "session",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Assembly(error) => error.hint(),
            _ => None,
        }
    }
}

/// Why an agent cannot begin.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// What it keeps cannot be kept.
    #[error("cannot use the state folder `{}`", path.display())]
    State {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another agent uses the same state.
    #[error("another agent runs already with the state folder `{}`", .0.display())]
    Running(PathBuf),
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
        Ok(Self {
            config,
            accept_simulated: false,
            sessions: Mutex::default(),
            _lock: lock,
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
    pub fn admit(
        &self,
        caller: Caller,
        policy: &str,
        stdio: [OwnedFd; 3],
        watcher: impl FnMut(&Record, Duration) + Send + 'static,
    ) -> Result<Admitted<'_>, AgentError> {
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
        let assembly = Assembly::read(&path)?;
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
        let session = session
            .stdio(input, output, error)
            .watched_by(watcher)
            .logged_to(log)?;
        let keeping = leases.keep(&session).map_err(SessionError::Stdio)?;
        let mut sessions = self.sessions();
        if sessions.stopping {
            return Err(AgentError::Stopping);
        }
        let mut listed = None;
        if let Some(running) = sessions.running.get_mut(&place.id) {
            running.handle = Some(session.handle());
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
        let visible = sessions
            .running
            .values()
            .filter(|running| may_reach(caller, running));
        let visible: Vec<_> = visible
            .map(|running| (running.listed.clone(), running.handle.clone()))
            .collect();
        // Not under the lock: a session may make us wait.
        drop(sessions);
        let asked = visible.into_iter().map(|(mut listed, handle)| {
            let handle = handle.filter(|_| detail);
            listed.status = handle.and_then(|handle| handle.status().ok());
            listed
        });
        asked.collect()
    }

    /// Orders something of one of the caller's sessions; returns when it is in force.
    ///
    /// # Errors
    ///
    /// [`AgentError::NoSession`], also when it is somebody else's; [`AgentError::Order`].
    pub fn adjust(
        &self,
        caller: Caller,
        session: &str,
        command: Command,
        why: &str,
    ) -> Result<Box<Status>, AgentError> {
        Ok(self.handle(caller, session)?.order(Order {
            command,
            by: caller.by(),
            why: why.to_owned(),
        })?)
    }

    fn handle(&self, caller: Caller, session: &str) -> Result<Handle, AgentError> {
        let sessions = self.sessions();
        let running = sessions
            .running
            .get(session)
            .filter(|running| may_reach(caller, running));
        let handle = running.and_then(|running| running.handle.clone());
        handle.ok_or_else(|| AgentError::NoSession(session.into()))
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
        self.handle(caller, session)?.kill_by(signal, caller.by());
        Ok(())
    }

    /// Admits no more sessions, and asks those that run to end. Asked a second time, they are stopped.
    pub fn stop(&self) {
        let mut sessions = self.sessions();
        sessions.stopping = true;
        let handles: Vec<_> = sessions
            .running
            .values()
            .filter_map(|r| r.handle.clone())
            .collect();
        drop(sessions);
        handles.iter().for_each(|handle| handle.kill(TERM));
    }

    fn place(&self, caller: Caller, policy: &str) -> Result<Place<'_>, AgentError> {
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
        sessions.running.insert(
            id.clone(),
            Running {
                listed,
                handle: None,
            },
        );
        Ok(Place { agent: self, id })
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

impl Admitted<'_> {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.place.id
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

    /// Runs the session to its end. Nothing of the sandbox is left when this returns.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; the workload was not started, or is stopped.
    pub fn run(self) -> Result<Outcome, SessionError> {
        let outcome = self.session.run();
        drop(self.place);
        outcome
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

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.agent.sessions().running.remove(&self.id);
    }
}

/// A session belongs to whoever asked for it; root and the agent's own user reach all of them.
fn may_reach(caller: Caller, running: &Running) -> bool {
    [running.listed.uid, 0, rustix::process::geteuid().as_raw()].contains(&caller.uid)
}
