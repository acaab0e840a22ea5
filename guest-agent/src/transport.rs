//! The sockets: who calls is asked of the kernel, and a caller costs a bounded amount.
//!
//! See unix(7), `SO_PEERCRED` and `SO_PEERPIDFD` ([`casemate::peer`]). The socket's file has mode 0600; if
//! the configuration allows further users it has mode 0666, and whoever connects is still judged by the
//! kernel's word. Over vsock other machines call, of which nothing more is known than which ones: each of the
//! allowed ones is a user of its own kind ([`MACHINES`]), and its context id stands for a process. One request for each connection: what the kernel says of a caller is said of that request.

mod timely;

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use casemate::By;
use casemate::error::describe;
use casemate::order::Command;
use casemate::peer::{MachinePort, Peer};
use casemate::status::Status;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::fs::Mode;
use tokio::io::Interest;
use tokio::sync::{Notify, Semaphore};

use crate::agent::{Agent, AgentError, Caller, Number};
use crate::api::{Listed, Reply, Request};
use crate::config::Config;
use crate::control::OneSession;
use crate::http;
use timely::Timely;

/// Most connections at once; a further one is told so and closed.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a caller may take to say what it wants: the header, and then the body.
pub(crate) const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// How long a caller may keep what is sent to it waiting.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// How long to wait when the system has no descriptor or thread for a caller.
const PAUSE: Duration = Duration::from_millis(100);
/// Most bytes of a header.
const MAX_HEADER: usize = 16 << 10;
/// Most lines of a header.
const MAX_LINES: usize = 64;

/// The user whose sessions are those of other machines.
pub const MACHINES: u32 = u32::MAX;

/// The agent's socket.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket's file: only that one is removed at the end.
    file: (u64, u64),
    allowed: Vec<u32>,
    machines: Option<Machines>,
    closed: Arc<Notify>,
}

/// The port for other machines, and those that may call.
#[derive(Debug)]
struct Machines {
    port: Arc<MachinePort>,
    allowed: BTreeSet<u32>,
}

/// Who made a connection.
#[derive(Clone)]
pub(crate) enum Who {
    /// A process of this machine.
    Process(Arc<Peer>),
    /// Another machine, by its context id.
    Machine(u32),
}

impl Who {
    /// Whether it is still the same.
    pub fn is_there(&self) -> bool {
        match self {
            Self::Process(peer) => peer.is_there(),
            // A machine that is gone has no connection any more.
            Self::Machine(_) => true,
        }
    }

    /// As the agent knows it.
    fn caller(&self, service: &dyn Service) -> Caller {
        match self {
            Self::Process(peer) => {
                let By { uid, pid } = peer.by();
                let inside = service.sandbox_of(peer);
                Caller { uid, pid, inside }
            }
            Self::Machine(cid) => Caller {
                uid: MACHINES,
                pid: i32::try_from(*cid).unwrap_or(i32::MAX),
                inside: None,
            },
        }
    }
}

/// What callers of a socket reach: an agent with its sessions, or one session.
pub trait Service: Send + Sync {
    /// The agent, where sessions can be started.
    fn agent(&self) -> Option<&Agent>;

    /// The session in whose sandbox a caller is, as [`Agent::sandbox_of`].
    fn sandbox_of(&self, peer: &Peer) -> Option<Number> {
        let _ = peer;
        None
    }

    /// Answers a request as it came, in place of everything below: what is behind is elsewhere.
    fn elsewhere(&self, caller: Caller, request: &[u8]) -> Option<Vec<u8>> {
        let _ = (caller, request);
        None
    }

    /// As [`Agent::status`].
    fn status(&self, caller: Caller, detail: bool) -> Vec<Listed>;

    /// As [`Agent::kill`].
    ///
    /// # Errors
    ///
    /// The same.
    fn kill(&self, caller: Caller, session: &str, signal: i32) -> Result<(), AgentError>;

    /// As [`Agent::adjust`].
    ///
    /// # Errors
    ///
    /// The same.
    fn adjust(
        &self,
        caller: Caller,
        session: &str,
        command: Command,
        why: &str,
    ) -> Result<Box<Status>, AgentError>;
}

impl Service for Agent {
    fn agent(&self) -> Option<&Agent> {
        Some(self)
    }

    fn sandbox_of(&self, peer: &Peer) -> Option<Number> {
        Agent::sandbox_of(self, peer)
    }

    fn status(&self, caller: Caller, detail: bool) -> Vec<Listed> {
        Agent::status(self, caller, detail)
    }

    fn kill(&self, caller: Caller, session: &str, signal: i32) -> Result<(), AgentError> {
        Agent::kill(self, caller, session, signal)
    }

    fn adjust(
        &self,
        caller: Caller,
        session: &str,
        command: Command,
        why: &str,
    ) -> Result<Box<Status>, AgentError> {
        Agent::adjust(self, caller, session, command, why)
    }
}

/// Ends [`Listener::serve`] from another thread.
#[derive(Clone, Debug)]
pub struct Closer(Arc<Notify>);

/// Why the agent cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Somebody answers on that socket already.
    #[error("somebody listens on `{}` already", .0.display())]
    Taken(PathBuf),
    /// Other machines cannot call.
    #[error("cannot listen on port {port} for other machines: `[vsock]` needs the device")]
    Machines {
        /// The port.
        port: u32,
        /// Why.
        source: io::Error,
    },
    /// Something else than a socket is in its place.
    #[error("`{}` is no socket, and is left alone", .0.display())]
    NoSocket(PathBuf),
    /// The system does not let us.
    #[error("cannot listen on `{}`", path.display())]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Listener {
    /// Makes the socket. One that a dead agent left behind is replaced, one that lives is not.
    ///
    /// Called while there is one thread only, because the file's mode comes by way of umask(2).
    ///
    /// # Errors
    ///
    /// [`ListenError::Taken`] and [`ListenError::NoSocket`] leave what is there as it is.
    pub fn bind(config: &Config) -> Result<Self, ListenError> {
        let path = config.socket();
        let failed = |source| ListenError::Socket {
            path: path.into(),
            source,
        };
        make_way(path)?;
        let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
        let socket = UnixListener::bind(path);
        rustix::process::umask(umask);
        let socket = socket.map_err(failed)?;
        let own = rustix::process::geteuid().as_raw();
        let mut allowed = vec![own, 0];
        allowed.extend(config.allow_uids());
        if config
            .allow_uids()
            .iter()
            .any(|uid| ![own, 0].contains(uid))
        {
            fs::set_permissions(path, Permissions::from_mode(0o666)).map_err(failed)?;
        }
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        let file = (metadata.dev(), metadata.ino());
        Ok(Self {
            socket,
            path: path.into(),
            file,
            allowed,
            machines: Machines::listen(config)?,
            closed: Arc::default(),
        })
    }

    /// Makes a socket in a folder that nobody else can enter, for this user and root.
    ///
    /// # Errors
    ///
    /// As [`Listener::bind`].
    pub(crate) fn private(path: &Path) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Socket {
            path: path.into(),
            source,
        };
        make_way(path)?;
        let socket = UnixListener::bind(path).map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed)?;
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        Ok(Self {
            socket,
            path: path.into(),
            file: (metadata.dev(), metadata.ino()),
            allowed: vec![rustix::process::geteuid().as_raw(), 0],
            machines: None,
            closed: Arc::default(),
        })
    }

    /// What ends [`Listener::serve`].
    #[must_use]
    pub fn closer(&self) -> Closer {
        Closer(Arc::clone(&self.closed))
    }

    /// Serves callers until it is closed, and then those who are being served.
    ///
    /// # Errors
    ///
    /// When the system has nothing to wait for callers with.
    pub fn serve(&self, service: Arc<dyn Service>) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            // Whoever follows a session keeps a thread, and whoever orders something another one.
            .max_blocking_threads(2 * MAX_CONNECTIONS)
            .thread_name("caller")
            .build()?;
        runtime.block_on(self.accept(service))
    }

    async fn accept(&self, service: Arc<dyn Service>) -> io::Result<()> {
        let socket = self.socket.try_clone()?;
        socket.set_nonblocking(true)?;
        let socket = tokio::net::UnixListener::from_std(socket)?;
        let router = http::router(Arc::clone(&service));
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let machines = match &self.machines {
            Some(machines) => Some(machines.watched()?),
            None => None,
        };
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted.map(|(stream, _)| (stream, None)),
                accepted = of_machine(machines.as_ref()) => accepted,
                () = self.closed.notified() => break,
            };
            let (stream, machine) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    note(format_args!("cannot take a connection: {error}"));
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let who = match self.who(&stream, machine) {
                Ok(who) => who,
                Err(why) => {
                    note(format_args!("refused: {why}"));
                    refuse(&stream, "caller", "this agent does not serve you");
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
                refuse(&stream, "busy", "too many callers: try again later");
                continue;
            };
            let (service, router) = (Arc::clone(&service), router.clone());
            tokio::spawn(async move {
                let _place = place;
                // What goes wrong with one connection is that caller's business.
                let _ = converse(service, router, who, stream).await;
            });
        }
        drop(socket);
        let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
        let _ = room.acquire_many(all).await;
        Ok(())
    }

    fn who(&self, stream: &tokio::net::UnixStream, machine: Option<u32>) -> Result<Who, String> {
        if let Some(cid) = machine {
            let allowed = self.machines.as_ref().map(|it| it.allowed.contains(&cid));
            return match allowed {
                Some(true) => Ok(Who::Machine(cid)),
                _ => Err(format!("machine {cid} is not in `allow-cids`")),
            };
        }
        let peer = Peer::of(stream).map_err(|error| describe(&error))?;
        let By { uid, pid } = peer.by();
        match self.allowed.contains(&uid) {
            true => Ok(Who::Process(Arc::new(peer))),
            false => Err(format!("uid {uid} (process {pid}) is not in `allow-uids`")),
        }
    }
}

impl Machines {
    fn listen(config: &Config) -> Result<Option<Self>, ListenError> {
        let Some(vsock) = config.vsock() else {
            return Ok(None);
        };
        let port = MachinePort::listen(vsock.port).map_err(|source| ListenError::Machines {
            port: vsock.port,
            source,
        })?;
        Ok(Some(Self {
            port: Arc::new(port),
            allowed: vsock.allow_cids.clone(),
        }))
    }

    fn watched(&self) -> io::Result<Watched> {
        let same = self.port.as_fd().try_clone_to_owned()?;
        Ok((Arc::clone(&self.port), awaited(same)?))
    }
}

/// The port for other machines, and the same descriptor as the runtime waits for it.
type Watched = (Arc<MachinePort>, tokio::net::UnixStream);

/// Takes a connection of another machine; waits for ever where there is no port for them.
async fn of_machine(
    machines: Option<&Watched>,
) -> io::Result<(tokio::net::UnixStream, Option<u32>)> {
    let Some((port, watched)) = machines else {
        return std::future::pending().await;
    };
    let accepted = watched.async_io(Interest::READABLE, || port.accept());
    let (stream, cid) = accepted.await?;
    Ok((awaited(stream)?, Some(cid)))
}

/// A socket of another family, to be waited for, read and written, which is the same for all of them. It is
/// never asked for an address or credentials.
fn awaited(socket: OwnedFd) -> io::Result<tokio::net::UnixStream> {
    tokio::net::UnixStream::from_std(UnixStream::from(socket))
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Unless somebody put another one in its place.
        if fs::symlink_metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Closer {
    /// Takes no more callers.
    pub fn close(&self) {
        self.0.notify_one();
    }
}

/// Removes a socket that nobody listens on any more.
fn make_way(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Socket {
        path: path.into(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NoSocket(path.into()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Ok(_) => Err(ListenError::Taken(path.into())),
        Err(error) => Err(failed(error)),
    }
}

/// One request and its answer.
async fn converse(
    service: Arc<dyn Service>,
    router: Router,
    who: Who,
    stream: tokio::net::UnixStream,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let looked_up = who.clone();
    let caller = tokio::task::spawn_blocking(move || looked_up.caller(&*service)).await?;
    let router = router.layer(Extension(caller)).layer(Extension(who));
    let stream = Timely::new(stream, SEND_DEADLINE);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_DEADLINE)
        .max_headers(MAX_LINES)
        .max_buf_size(MAX_HEADER)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    Ok(connection.await?)
}

/// Answers a request that came by another way than the socket, for whoever is named there.
pub(crate) fn answer(service: Option<&OneSession>, by: By, request: &[u8]) -> Vec<u8> {
    let caller = Caller {
        uid: by.uid,
        pid: by.pid,
        inside: None,
    };
    match (service, Request::parse(request)) {
        (Some(service), Ok(request)) => reply(service, caller, &request),
        (None, Ok(_)) => Reply::Sessions(Vec::new()).line(),
        (_, Err(error)) => not_understood(&error.to_string()).line(),
    }
}

/// The line that answers a request.
pub(crate) fn reply(service: &dyn Service, caller: Caller, request: &Request) -> Vec<u8> {
    if let Ok(line) = serde_json::to_vec(request)
        && let Some(answer) = service.elsewhere(caller, &line)
    {
        return answer;
    }
    let reply = match request {
        Request::Status { detail } => Reply::Sessions(service.status(caller, *detail)),
        Request::Kill { session, signal } => match service.kill(caller, session, *signal) {
            Ok(()) => Reply::Killed {
                session,
                signal: *signal,
            },
            Err(error) => failure(&error),
        },
        Request::Adjust {
            session,
            order,
            why,
        } => match service.adjust(caller, session, order.clone(), why) {
            Ok(status) => Reply::Adjusted { session, status },
            Err(error) => failure(&error),
        },
    };
    reply.line()
}

/// What is answered to something else than a request.
pub(crate) fn not_understood(why: &str) -> Reply<'static> {
    Reply::Error {
        code: "request",
        message: format!("not a request: {why}"),
        help: Some("docs/agent-openapi.json describes them".into()),
    }
}

pub(crate) fn failure(error: &AgentError) -> Reply<'static> {
    Reply::Error {
        code: error.code(),
        message: describe(error),
        help: error.hint(),
    }
}

/// Answers a caller that is not served. The answer fits into the socket's buffer, so nobody waits.
fn refuse(stream: &tokio::net::UnixStream, code: &'static str, message: &str) {
    let reply = Reply::Error {
        code,
        message: message.into(),
        help: None,
    };
    let body = reply.line();
    let status = http::status_of(code);
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream.try_write(&[head.as_bytes(), &body].concat());
}

/// One line to stderr, where the service manager keeps it. A reader that is gone ends nothing.
pub fn note(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "casemate-guest-agent: {what}");
}
