//! The socket of one running session: how it is, and what operators order of it.
//!
//! ```text
//! $XDG_RUNTIME_DIR/casemate/sessions/PID-N.sock     or /run/casemate/sessions for root,
//!                                                   or casemate-UID/sessions below the temporary folder
//! ```
//!
//! The folder is its owner's alone (0700), and the kernel says who connects: the user that the session
//! runs as, and root. Requests and answers are those of [`crate::http`] that are about a session that runs.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use casemate::Handle;
use casemate::order::{Command, Order};
use casemate::status::Status;
use serde_json::Value;

use crate::agent::{Agent, AgentError, Caller};
use crate::api::{Listed, Request};
use crate::client;
use crate::transport::{Closer, ListenError, Listener, Service, note};

/// Most sockets of one process.
const MAX_NUMBER: u32 = 1000;

/// The socket of a session that runs. Dropping it removes the socket.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    closer: Closer,
}

/// Why a session has no socket, or cannot be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// The folder of the sockets cannot be made or read.
    #[error("cannot use the folder `{}`", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder belongs to somebody else, or others can enter it.
    #[error("`{}` is open to others (mode {mode:o}, owner {owner}): remove it", path.display())]
    Exposed {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Its owner.
        owner: u32,
    },
    /// The socket cannot be made.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// There is no thread for it.
    #[error("cannot serve the session's socket")]
    Serve(#[source] io::Error),
    /// The session cannot be reached.
    #[error("cannot ask `{}`", path.display())]
    Ask {
        /// Its socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What was asked was refused.
    #[error("{0}")]
    Refused(String),
}

impl Control {
    /// Makes the socket of a session and begins to serve it.
    ///
    /// # Errors
    ///
    /// [`ControlError`]; the session itself can run without.
    pub fn open(listed: Listed, handle: Handle) -> Result<Self, ControlError> {
        Self::serving(OneSession { listed, handle })
    }

    /// The same for whatever answers in a session's place.
    pub(crate) fn serving(session: impl Service + 'static) -> Result<Self, ControlError> {
        let folder = folder()?;
        // A name that is taken belongs to another session of this process, or of a dead one.
        let path = (1..=MAX_NUMBER)
            .map(|number| folder.join(format!("{}-{number}.sock", std::process::id())))
            .find(|path| !path.exists())
            .ok_or(ListenError::Taken(folder))?;
        let listener = Listener::private(&path)?;
        let closer = listener.closer();
        let serve = move || {
            if let Err(error) = listener.serve(Arc::new(session)) {
                note(format_args!("a session's socket is not served: {error}"));
            }
        };
        std::thread::Builder::new()
            .name("control".into())
            .spawn(serve)
            .map_err(ControlError::Serve)?;
        Ok(Self { path, closer })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.closer.close();
        // The thread that serves may still have a caller; the socket goes now.
        let _ = fs::remove_file(&self.path);
    }
}

/// One session, reached through its own socket.
#[derive(Clone, Debug)]
pub(crate) struct OneSession {
    listed: Listed,
    handle: Handle,
}

impl OneSession {
    pub(crate) fn new(listed: Listed, handle: Handle) -> Self {
        Self { listed, handle }
    }

    fn this(&self, session: &str) -> Result<(), AgentError> {
        match session == self.listed.id {
            true => Ok(()),
            false => Err(AgentError::NoSession(session.into())),
        }
    }
}

impl Service for OneSession {
    fn agent(&self) -> Option<&Agent> {
        None
    }

    fn status(&self, _caller: Caller, detail: bool) -> Vec<Listed> {
        let mut listed = self.listed.clone();
        if detail {
            listed.status = self.handle.status().ok();
        }
        vec![listed]
    }

    fn kill(&self, caller: Caller, session: &str, signal: i32) -> Result<(), AgentError> {
        self.this(session)?;
        if !(1..=64).contains(&signal) {
            return Err(AgentError::NoSignal(signal));
        }
        self.handle.kill_by(signal, caller.by());
        Ok(())
    }

    fn adjust(
        &self,
        caller: Caller,
        session: &str,
        command: Command,
        why: &str,
    ) -> Result<Box<Status>, AgentError> {
        self.this(session)?;
        Ok(self.handle.order(Order {
            command,
            by: caller.by(),
            why: why.to_owned(),
        })?)
    }
}

/// A session that answered.
#[derive(Clone, Debug)]
pub struct Found {
    /// Its socket.
    pub socket: PathBuf,
    /// What it said of itself: [`Listed`], as JSON.
    pub listed: Value,
}

impl Found {
    /// Its name.
    #[must_use]
    pub fn id(&self) -> &str {
        self.listed["id"].as_str().unwrap_or_default()
    }
}

/// The sessions of this user that run, by name. Sockets that nobody listens on any more are removed.
///
/// # Errors
///
/// [`ControlError::Folder`] and [`ControlError::Exposed`]. A session that does not answer is left out.
pub fn sessions(detail: bool) -> Result<Vec<Found>, ControlError> {
    let folder = folder()?;
    let unreadable = |source| ControlError::Folder {
        path: folder.clone(),
        source,
    };
    let mut found = Vec::new();
    for entry in fs::read_dir(&folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        if !fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
            continue;
        }
        match ask(&path, &Request::Status { detail }) {
            Ok(answer) => found.extend(listed(&path, &answer)),
            Err(ControlError::Ask { source, .. })
                if source.kind() == io::ErrorKind::ConnectionRefused =>
            {
                // Its supervisor is dead: nobody can listen there again, as names hold a process id
                // and are taken only when they are free.
                let _ = fs::remove_file(&path);
            }
            Err(_) => {}
        }
    }
    found.sort_by(|a, b| a.id().cmp(b.id()));
    Ok(found)
}

/// The sessions in an answer to `status`.
#[must_use]
pub fn listed(socket: &Path, answer: &Value) -> Vec<Found> {
    let sessions = answer["sessions"].as_array().cloned().unwrap_or_default();
    let found = |listed| Found {
        socket: socket.into(),
        listed,
    };
    sessions.into_iter().map(found).collect()
}

/// Asks one thing of a socket; gives the answer.
///
/// # Errors
///
/// [`ControlError::Ask`] if nobody answers, [`ControlError::Refused`] with the reason in words.
pub fn ask(socket: &Path, request: &Request) -> Result<Value, ControlError> {
    let failed = |source| ControlError::Ask {
        path: socket.into(),
        source,
    };
    let answer = client::ask(socket, request).map_err(failed)?;
    match answer["error"]["message"].as_str() {
        Some(message) => Err(ControlError::Refused(message.to_owned())),
        None => Ok(answer),
    }
}

/// The folder of this user's sockets, made if it is not there.
fn folder() -> Result<PathBuf, ControlError> {
    let own = rustix::process::geteuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR");
    let above = above(runtime, own);
    let folder = above.join("sessions");
    let unusable = |source| ControlError::Folder {
        path: folder.clone(),
        source,
    };
    let mut builder = fs::DirBuilder::new();
    builder
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(unusable)?;
    // Below a folder that all can write to, somebody else may have been first with either name.
    for path in [&above, &folder] {
        let metadata = fs::symlink_metadata(path).map_err(unusable)?;
        let (mode, owner) = (metadata.mode() & 0o7777, metadata.uid());
        let entered = path == &folder && mode & 0o077 != 0;
        if !metadata.is_dir() || owner != own || mode & 0o022 != 0 || entered {
            return Err(ControlError::Exposed {
                path: path.clone(),
                mode,
                owner,
            });
        }
    }
    Ok(folder)
}

fn above(runtime: Option<OsString>, own: u32) -> PathBuf {
    match runtime.map(PathBuf::from).filter(|path| path.is_absolute()) {
        Some(path) => path.join("casemate"),
        None if own == 0 => "/run/casemate".into(),
        None => std::env::temp_dir().join(format!("casemate-{own}")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_a_folder_of_its_own() {
        let above = |runtime: Option<&str>, own| above(runtime.map(Into::into), own);
        assert_eq!(
            above(Some("/run/user/7"), 7),
            Path::new("/run/user/7/casemate")
        );
        assert_eq!(above(Some("relative"), 0), Path::new("/run/casemate"));
        assert_eq!(above(None, 0), Path::new("/run/casemate"));
        assert_ne!(above(None, 7), above(None, 8));
    }
}
