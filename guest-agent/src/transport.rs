//! The Unix socket: who calls is asked of the kernel, and a caller costs a bounded amount.
//!
//! See unix(7), `SO_PEERCRED`. The socket's file has mode 0600; if the configuration allows further
//! users it has mode 0666, and whoever connects is still judged by the kernel's word.

use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use casemate::By;
use casemate::error::describe;
use casemate::order::Command;
use casemate::status::Status;
use rustix::fs::Mode;

use crate::agent::{Agent, AgentError, Caller};
use crate::api::{Listed, MAX_REQUEST, Reply, Request};
use crate::config::Config;
use crate::control::OneSession;
use crate::follow;

/// Most connections at once; a further one is told so and closed.
pub const MAX_CONNECTIONS: usize = 64;
/// How long a caller may take to say what it wants.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// How long a caller may take to read what was sent to it.
pub(crate) const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// How long to wait when the system has no descriptor or thread for a caller.
const PAUSE: Duration = Duration::from_millis(100);

/// The agent's socket.
#[derive(Debug)]
pub struct Listener {
    socket: UnixListener,
    path: PathBuf,
    /// Device and inode of the socket's file: only that one is removed at the end.
    file: (u64, u64),
    allowed: Vec<u32>,
}

/// What callers of a socket reach: an agent with its sessions, or one session.
pub trait Service: Sync {
    /// The agent, where sessions can be started.
    fn agent(&self) -> Option<&Agent>;

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
#[derive(Debug)]
pub struct Closer(UnixListener);

/// Why the agent cannot listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Somebody answers on that socket already.
    #[error("somebody listens on `{}` already", .0.display())]
    Taken(PathBuf),
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
        })
    }

    /// What ends [`Listener::serve`].
    ///
    /// # Errors
    ///
    /// When there is no descriptor left.
    pub fn closer(&self) -> io::Result<Closer> {
        self.socket.try_clone().map(Closer)
    }

    /// Serves callers until it is closed, and then those who are being served.
    pub fn serve(&self, service: &dyn Service) {
        let connections = AtomicUsize::new(0);
        thread::scope(|scope| {
            loop {
                match self.socket.accept() {
                    Ok((stream, _)) => self.receive(stream, service, &connections, scope),
                    // What accept(2) answers on a socket that was shut down.
                    Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
                    Err(error) => {
                        note(format_args!("cannot take a connection: {error}"));
                        thread::sleep(PAUSE);
                    }
                }
            }
        });
    }

    /// Looks who calls, and serves the caller in a thread of its own.
    fn receive<'scope>(
        &self,
        stream: UnixStream,
        service: &'scope dyn Service,
        connections: &'scope AtomicUsize,
        scope: &'scope Scope<'scope, '_>,
    ) {
        let caller = match self.caller(&stream) {
            Ok(caller) => caller,
            Err(why) => {
                note(format_args!("refused: {why}"));
                return refuse(&stream, "caller", "this agent does not serve you");
            }
        };
        let connection = Connection::new(connections);
        if connection.0.load(Ordering::Relaxed) > MAX_CONNECTIONS {
            return refuse(&stream, "busy", "too many callers: try again later");
        }
        let serve = move || {
            let _connection = connection;
            converse(service, caller, &stream);
            // Whoever waits for the end of the answer, or of the caller, learns of it.
            let _ = stream.shutdown(Shutdown::Both);
        };
        if let Err(error) = thread::Builder::new()
            .name("caller".into())
            .spawn_scoped(scope, serve)
        {
            note(format_args!("cannot serve a caller: {error}"));
        }
    }

    fn caller(&self, stream: &UnixStream) -> Result<Caller, String> {
        let credentials =
            rustix::net::sockopt::socket_peercred(stream).map_err(|e| e.to_string())?;
        let caller = Caller {
            uid: credentials.uid.as_raw(),
            pid: credentials.pid.as_raw_nonzero().get(),
        };
        if self.allowed.contains(&caller.uid) {
            Ok(caller)
        } else {
            Err(format!(
                "uid {} (process {}) is not in `allow-uids`",
                caller.uid, caller.pid
            ))
        }
    }
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
        let _ = rustix::net::shutdown(&self.0, rustix::net::Shutdown::Both);
    }
}

/// One of the connections that are counted.
struct Connection<'a>(&'a AtomicUsize);

impl<'a> Connection<'a> {
    fn new(counter: &'a AtomicUsize) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Connection<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
fn converse(service: &dyn Service, caller: Caller, mut stream: &UnixStream) {
    let request = receive_request(stream);
    if let (Ok(line), Some(agent)) = (&request, service.agent())
        && let Ok(Request::Run { policy, receipt }) = Request::parse(line)
    {
        return follow::run(agent, caller, &policy, receipt, stream);
    }
    let elsewhere = request.as_ref().ok();
    let elsewhere = elsewhere.and_then(|line| service.elsewhere(caller, line));
    let line = elsewhere.unwrap_or_else(|| reply(service, caller, request));
    let _ = stream.set_write_timeout(Some(SEND_DEADLINE));
    let _ = stream.write_all(&line);
}

/// Answers a request that came by another way than the socket, for whoever is named there.
pub(crate) fn answer(service: Option<&OneSession>, by: By, request: &[u8]) -> Vec<u8> {
    let caller = Caller {
        uid: by.uid,
        pid: by.pid,
    };
    match service {
        Some(service) => reply(service, caller, Ok(request.to_vec())),
        None => Reply::Sessions(Vec::new()).line(),
    }
}

/// The line that answers a request which starts nothing.
fn reply(service: &dyn Service, caller: Caller, request: Result<Vec<u8>, String>) -> Vec<u8> {
    let request = request.and_then(|line| Request::parse(&line).map_err(|error| error.to_string()));
    let reply = match &request {
        Ok(Request::Run { .. }) => failure(&AgentError::OneSession),
        Ok(Request::Status { detail }) => Reply::Sessions(service.status(caller, *detail)),
        Ok(Request::Kill { session, signal }) => match service.kill(caller, session, *signal) {
            Ok(()) => Reply::Killed {
                session,
                signal: *signal,
            },
            Err(error) => failure(&error),
        },
        Ok(Request::Adjust {
            session,
            order,
            why,
        }) => match service.adjust(caller, session, order.clone(), why) {
            Ok(status) => Reply::Adjusted { session, status },
            Err(error) => failure(&error),
        },
        Err(why) => Reply::Error {
            code: "request",
            message: format!("not a request: {why}"),
            help: Some(r#"one line such as {"run":{"policy":"NAME"}}, at most 64 KiB"#.into()),
        },
    };
    reply.line()
}

/// Reads one line, of bounded length and in bounded time.
fn receive_request(mut stream: &UnixStream) -> Result<Vec<u8>, String> {
    let deadline = Instant::now() + REQUEST_DEADLINE;
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err("it did not come in time".into());
        }
        stream
            .set_read_timeout(Some(left))
            .map_err(|error| error.to_string())?;
        let read = match stream.read(&mut piece) {
            Ok(0) => return Ok(line),
            Ok(read) => &piece[..read],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error.to_string()),
        };
        let end = read.iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&read[..end.unwrap_or(read.len())]);
        if line.len() >= MAX_REQUEST {
            return Err("it is too long".into());
        }
        if end.is_some() {
            return Ok(line);
        }
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
fn refuse(mut stream: &UnixStream, code: &'static str, message: &str) {
    let reply = Reply::Error {
        code,
        message: message.into(),
        help: None,
    };
    let _ = stream.set_nonblocking(true);
    let _ = stream.write_all(&reply.line());
}

/// One line to stderr, where the service manager keeps it. A reader that is gone ends nothing.
pub fn note(what: std::fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "casemate-guest-agent: {what}");
}
