//! The operator's Unix socket.
//!
//! One request for each connection, as one line of JSON; the answer is one line too.
//!
//! ```text
//! {"list":{}}                                   ▶ resources, for whom each is, and sessions
//! {"revoke":{"resource":NAME,"why":TEXT}}       ▶ revoked, when nothing of it is released any more
//! {"restore":{"resource":NAME,"why":TEXT}}      ▶ restored
//! {"reference":{"values":TEXT,"why":TEXT}}      ▶ registered; without values, those of the configuration
//! anything else                                 ▶ error
//! ```
//!
//! See unix(7), `SO_PEERCRED`: only root and the broker's own user are heard.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use attestation::UnixTime;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::service::{Service, described};

/// Most bytes of a request.
const MAX_REQUEST: u64 = 3 << 20;
/// How long a caller may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Most callers at once.
const MAX_CALLERS: usize = 8;

/// What the operator asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Ask {
    /// What there is.
    List {},
    /// Release a secret to nobody any more. It stays so when the broker starts again.
    Revoke {
        /// Name of the secret.
        resource: String,
        /// The reason, which is recorded with who asks.
        why: String,
    },
    /// Believe evidence by these reference values from now on, at every replica.
    Reference {
        /// Them, as their file has them; those of the configuration, if there are none.
        values: Option<String>,
        /// The reason, which is recorded with who asks.
        why: String,
    },
    /// Take that back.
    Restore {
        /// Name of the secret.
        resource: String,
        /// The reason, which is recorded with who asks.
        why: String,
    },
}

/// Listens where only the broker's own user and root get to.
///
/// # Errors
///
/// What the system answers; something else than a socket in its place is left alone.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers callers for as long as this runs.
pub async fn serve(listener: UnixListener, service: Arc<Service>) {
    let room = Arc::new(Semaphore::new(MAX_CALLERS));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let _place = place;
            let _ = tokio::time::timeout(DEADLINE, answer(stream, service)).await;
        });
    }
}

async fn answer(stream: UnixStream, service: Arc<Service>) -> io::Result<()> {
    let uid = stream.peer_cred()?.uid();
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    BufReader::new(read.take(MAX_REQUEST))
        .read_line(&mut line)
        .await?;
    let own = rustix::process::geteuid().as_raw();
    let reply = if [0, own].contains(&uid) {
        let task = tokio::task::spawn_blocking(move || reply(&line, uid, &service));
        task.await.map_err(io::Error::other)?
    } else {
        error("this socket is for the broker's own user")
    };
    write.write_all(format!("{reply}\n").as_bytes()).await
}

fn reply(line: &str, uid: u32, service: &Service) -> Value {
    let now = UnixTime::from(SystemTime::now());
    let (resource, why, revoke) = match serde_json::from_str(line) {
        Ok(Ask::List {}) => {
            let list = service.list(now);
            return list.unwrap_or_else(|failed| error(&described(&failed)));
        }
        Ok(Ask::Reference { values, why }) => {
            let values = values.as_ref().map(String::as_bytes);
            return match service.set_reference(values, uid, &why, now) {
                Ok(()) => json!({ "registered": values.is_some() }),
                Err(failed) => error(&described(&failed)),
            };
        }
        Ok(Ask::Revoke { resource, why }) => (resource, why, true),
        Ok(Ask::Restore { resource, why }) => (resource, why, false),
        Err(_) => {
            return error("the request is none of `list`, `revoke`, `restore` and `reference`");
        }
    };
    if !service.has(&resource) {
        return error("there is no resource of this name");
    }
    match service.set_revoked(&resource, revoke, uid, &why, now) {
        Ok(()) if revoke => json!({ "revoked": resource }),
        Ok(()) => json!({ "restored": resource }),
        Err(failed) => error(&described(&failed)),
    }
}

fn error(why: &str) -> Value {
    json!({ "error": why })
}
