//! The socket on which tools report: who connects is asked of the kernel, and costs a bounded amount.
//!
//! One thread serves all connections. Whoever reports faster than [`PER_SECOND`] waits in the socket's own
//! buffer, so that nothing is lost and nothing grows.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use sha2::{Digest, Sha256};

use super::{Counted, MAX_REPORT, Report};
use crate::event::Event;

/// Reports that are taken in one second, after as many at once.
const PER_SECOND: u32 = 50;
/// Most connections at once; a further one is closed.
const MAX_CONNECTIONS: usize = 16;
/// Most bytes of a token file.
const MAX_TOKEN: usize = 4096;

/// Who may report.
#[derive(Clone, Default)]
pub struct Admission {
    /// Users, beside our own and root.
    pub uids: Vec<u32>,
    /// SHA-256 of the token that each connection has to begin with.
    token: Option<[u8; 32]>,
}

impl std::fmt::Debug for Admission {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Admission")
            .field("uids", &self.uids)
            .field("token", &self.token.map(|_| ".."))
            .finish()
    }
}

/// Why reports cannot be listened for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ListenError {
    /// Something else is in the socket's place, or somebody answers on it.
    #[error("`{}` is taken", .0.display())]
    Taken(PathBuf),
    /// The file of the token cannot be used.
    #[error("cannot read a token of 16 to {MAX_TOKEN} bytes from `{}`", .0.display())]
    Token(PathBuf),
    /// The system does not let us.
    #[error("cannot listen on `{}`", path.display())]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Admission {
    /// These users, with the token of this file if there is one. White space around it does not count.
    ///
    /// # Errors
    ///
    /// [`ListenError::Token`] if the file cannot be read, or holds too little to be a secret.
    pub fn new(uids: Vec<u32>, token: Option<&Path>) -> Result<Self, ListenError> {
        let Some(path) = token else {
            return Ok(Self { uids, token: None });
        };
        let unusable = || ListenError::Token(path.into());
        let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(MAX_TOKEN + 1));
        let file = fs::File::open(path).map_err(|_| unusable())?;
        file.take(MAX_TOKEN as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|_| unusable())?;
        let secret = bytes.trim_ascii();
        if !(16..=MAX_TOKEN).contains(&secret.len()) {
            return Err(unusable());
        }
        let token = Some(Sha256::digest(secret).into());
        Ok(Self { uids, token })
    }

    fn admits(&self, stream: &UnixStream) -> bool {
        let own = rustix::process::geteuid().as_raw();
        rustix::net::sockopt::socket_peercred(stream).is_ok_and(|peer| {
            let uid = peer.uid.as_raw();
            [own, 0].contains(&uid) || self.uids.contains(&uid)
        })
    }

    /// Whether a line is the token. Digests are compared, so that time tells nothing of the token.
    fn is_token(&self, line: &[u8]) -> bool {
        #[derive(serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Token {
            token: String,
        }
        let Ok(given) = serde_json::from_slice::<Token>(line) else {
            return false;
        };
        let given: [u8; 32] = Sha256::digest(given.token.as_bytes()).into();
        self.token == Some(given)
    }
}

/// A socket on which tools report, and the thread that serves it. Dropping it removes the socket.
#[derive(Debug)]
pub struct Listener {
    path: PathBuf,
    /// Device and inode of the socket's file: only that one is removed.
    file: (u64, u64),
    /// Closing it is the word to end.
    _waker: io::PipeWriter,
}

impl Listener {
    /// Makes the socket and begins to serve it. One that nobody listens on any more is replaced.
    ///
    /// # Errors
    ///
    /// [`ListenError`] says why there is none.
    pub fn start(
        path: &Path,
        admission: Admission,
        events: SyncSender<Event>,
    ) -> Result<Self, ListenError> {
        let failed = |source| ListenError::Socket {
            path: path.into(),
            source,
        };
        make_way(path)?;
        let socket = UnixListener::bind(path).map_err(failed)?;
        // Whoever connects is judged by the kernel's word; without further users nobody else can.
        let mode = if admission.uids.is_empty() {
            0o600
        } else {
            0o666
        };
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        let (stop, waker) = io::pipe().map_err(failed)?;
        let serving = Serving {
            admission,
            events,
            counted: Counted::default(),
            left: PER_SECOND,
            since: Instant::now(),
        };
        std::thread::Builder::new()
            .name("reports".into())
            .spawn(move || serving.serve(&socket, &stop))
            .map_err(failed)?;
        Ok(Self {
            path: path.into(),
            file: (metadata.dev(), metadata.ino()),
            _waker: waker,
        })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.file);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket that nobody listens on any more.
fn make_way(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Socket {
        path: path.into(),
        source,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => Err(ListenError::Taken(path.into())),
        Ok(_) => match UnixStream::connect(path) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                fs::remove_file(path).map_err(failed)
            }
            _ => Err(ListenError::Taken(path.into())),
        },
    }
}

/// One that reports.
struct Connection {
    stream: UnixStream,
    read: Vec<u8>,
    admitted: bool,
}

struct Serving {
    admission: Admission,
    events: SyncSender<Event>,
    counted: Counted,
    left: u32,
    since: Instant,
}

impl Serving {
    fn serve(mut self, socket: &UnixListener, stop: &io::PipeReader) {
        let mut connections: Vec<Connection> = Vec::new();
        loop {
            let wait = self.refill();
            let mut watched = vec![
                PollFd::new(stop, PollFlags::IN),
                PollFd::new(socket, PollFlags::IN),
            ];
            // Who has to wait is not even read.
            if wait.is_none() {
                watched.extend(
                    connections
                        .iter()
                        .map(|c| PollFd::new(&c.stream, PollFlags::IN)),
                );
            }
            let timeout = wait.and_then(|wait| Timespec::try_from(wait).ok());
            match rustix::event::poll(&mut watched, timeout.as_ref()) {
                Err(rustix::io::Errno::INTR) => continue,
                Ok(_) if watched[0].revents().is_empty() => {}
                _ => return,
            }
            let called = !watched[1].revents().is_empty();
            let mut ready: Vec<bool> = watched[2..]
                .iter()
                .map(|w| !w.revents().is_empty())
                .collect();
            ready.resize(connections.len(), false);
            let mut ready = ready.into_iter();
            connections.retain_mut(|connection| {
                ready.next() != Some(true) || self.hear(connection).is_ok()
            });
            if called && let Ok((stream, _)) = socket.accept() {
                let room = connections.len() < MAX_CONNECTIONS;
                if room && self.admission.admits(&stream) && stream.set_nonblocking(true).is_ok() {
                    connections.push(Connection {
                        stream,
                        read: Vec::new(),
                        admitted: self.admission.token.is_none(),
                    });
                }
            }
        }
    }

    /// Gives new room each second; how long to wait, if there is none.
    fn refill(&mut self) -> Option<Duration> {
        const SECOND: Duration = Duration::from_secs(1);
        let passed = self.since.elapsed();
        if passed >= SECOND {
            self.left = PER_SECOND;
            self.since = Instant::now();
        }
        (self.left == 0).then(|| SECOND.saturating_sub(passed))
    }

    /// Reads what has come, and takes its lines. An error closes the connection.
    fn hear(&mut self, connection: &mut Connection) -> io::Result<()> {
        let mut piece = [0; 4096];
        match connection.stream.read(&mut piece) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => connection.read.extend_from_slice(&piece[..read]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
        while let Some(end) = connection.read.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = connection.read.drain(..=end).collect();
            let answer = self.take(connection, &line[..end]);
            let accepted = answer.is_ok();
            let answer = match answer {
                Ok(()) => serde_json::json!({ "accepted": true }),
                Err(error) => serde_json::json!({ "error": error }),
            };
            // Who does not read the answers does not get them.
            let _ = (&connection.stream).write_all(format!("{answer}\n").as_bytes());
            if !accepted && !connection.admitted {
                return Err(io::ErrorKind::PermissionDenied.into());
            }
        }
        match connection.read.len() {
            0..MAX_REPORT => Ok(()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn take(&mut self, connection: &mut Connection, line: &[u8]) -> Result<(), String> {
        // Refused lines cost as much as good ones.
        self.left = self.left.saturating_sub(1);
        if !connection.admitted {
            connection.admitted = self.admission.is_token(line);
            return match connection.admitted {
                true => Ok(()),
                false => Err("the token comes first".into()),
            };
        }
        let (report, id) = Report::parse(line).map_err(|error| error.to_string())?;
        if id.is_none_or(|id| self.counted.is_new(&id)) {
            self.events
                .send(Event::Report(report))
                .map_err(|_| "the session is over".to_owned())?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::sync::mpsc;

    use super::*;

    fn start(token: Option<&str>) -> (tempfile::TempDir, Listener, mpsc::Receiver<Event>) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        if let Some(token) = token {
            fs::write(&file, token).unwrap();
        }
        let admission = Admission::new(Vec::new(), token.map(|_| file.as_path())).unwrap();
        let (sender, events) = mpsc::sync_channel(1024);
        let listener = Listener::start(&folder.path().join("s"), admission, sender).unwrap();
        (folder, listener, events)
    }

    fn say(stream: &UnixStream, line: &str) -> String {
        let mut writer = stream;
        writer.write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        answer
    }

    const REPORT: &str = "{\"iss\":\"t\",\"jti\":\"1\",\"events\":{\"x\":{}}}";

    #[test]
    fn a_report_reaches_the_session_once_and_garbage_does_not() {
        let (folder, listener, events) = start(None);
        let stream = UnixStream::connect(folder.path().join("s")).unwrap();
        assert!(say(&stream, "garbage").contains("error"));
        assert!(say(&stream, REPORT).contains("accepted"));
        assert!(say(&stream, REPORT).contains("accepted"));
        assert!(say(&stream, &REPORT.replace('1', "2")).contains("accepted"));
        assert_eq!(events.try_iter().count(), 2);
        drop(listener);
        assert!(!folder.path().join("s").exists());
    }

    #[test]
    fn without_the_token_nothing_is_heard() {
        let secret = "a secret of some length";
        let (folder, _listener, events) = start(Some(secret));
        let connect = || UnixStream::connect(folder.path().join("s")).unwrap();
        assert!(say(&connect(), REPORT).contains("error"));
        assert!(say(&connect(), "{\"token\":\"another secret of some length\"}").contains("error"));
        let stream = connect();
        assert!(say(&stream, &format!("{{\"token\":\"{secret}\"}}")).contains("accepted"));
        assert!(say(&stream, REPORT).contains("accepted"));
        assert_eq!(events.try_iter().count(), 1);
    }

    #[test]
    fn a_token_that_anybody_guesses_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "short\n").unwrap();
        assert!(Admission::new(Vec::new(), Some(&path)).is_err());
    }

    #[test]
    fn a_line_without_end_closes_the_connection() {
        let (folder, _listener, events) = start(None);
        let mut stream = UnixStream::connect(folder.path().join("s")).unwrap();
        let _ = stream.write_all(&vec![b'x'; 2 * MAX_REPORT]);
        let mut rest = Vec::new();
        // Closed with bytes unread is a reset.
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty());
        assert_eq!(events.try_iter().count(), 0);
    }
}
