//! What an agent must not forget, and nobody may put back to an earlier day.
//!
//! ```text
//! [seal] key ──▶ KekProvider ─▶ vault `state/sealed`, one object ─▶ versions, anchors, heads of logs
//! [seal] anchor ─▶ FreshnessAnchor ─▶ its latest commit: an older one is refused
//! ```
//!
//! It is a vault, so that sealing, crash safety and freshness are those of `vault`, and no second ones. The
//! anchor lies outside of the state: a TPM's index, or a file on another file system.
//!
//! | Kept | Used |
//! |---|---|
//! | highest version of each policy | a lower one is refused |
//! | latest commit of vaults with `anchor = "agent:state"` | an older store is refused |
//! | last checkpoint of each run's log | a log that was cut or rewritten keeps the agent from starting |

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use casemate::record::hex;
use policy::Bundle;
use serde::{Deserialize, Serialize};
use vault::anchor::{AnchorError, Anchored, FreshnessAnchor};
use vault::audit::{self, KeyError, LogVerifier, NoteError, VerifyError};
use vault::kek::{KekError, KekProvider, Released, Tpm};
use vault::tpm::{DEVICE, Pcrs};
use vault::{Access, CreateOptions, OpenOptions, Vault, VaultError};

use crate::assembly::LOG_ORIGIN;
use crate::config::Seal;
use crate::key_file::{self, KeyFileError};

/// The vault's folder in the agent's state.
const FOLDER: &str = "sealed";
/// Its one object.
const OBJECT: &str = "state.json";
/// Most logs whose heads are kept: the newest.
const MAX_LOGS: usize = 64;
/// Most bytes of the object.
const MAX_STATE: u64 = 4 << 20;

/// What the agent remembers. Every change is durable, and anchored, when its call returns.
pub struct Sealed {
    inner: Mutex<Inner>,
}

struct Inner {
    vault: Vault,
    state: State,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct State {
    /// Highest version of each policy, by name.
    versions: BTreeMap<String, u64>,
    /// Latest commit of vaults, by id: generation and root.
    anchors: BTreeMap<String, (u64, [u8; 32])>,
    /// By name of the run.
    logs: BTreeMap<String, Head>,
    /// Numbers the logs.
    count: u64,
}

/// How far a log had come when its run was over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Head {
    number: u64,
    key: [u8; 32],
    /// The signed checkpoint.
    note: String,
}

/// Why the sealed state cannot be relied on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// The key's file cannot be used.
    #[error("the key of `[seal]` cannot be read")]
    KeyFile(#[from] KeyFileError),
    /// There is no key.
    #[error("the key of `[seal]` cannot be had")]
    Key(#[from] KekError),
    /// The configuration names a key or an anchor of no known kind.
    #[error("`{0}` is no {1} of a known kind")]
    Kind(String, &'static str),
    /// The vault cannot be opened; a state that was put back is one of the reasons.
    #[error("the sealed state cannot be relied on")]
    Vault(#[from] VaultError),
    /// What is in it makes no sense.
    #[error("the sealed state is damaged")]
    Damaged(#[source] serde_json::Error),
    /// It cannot be read.
    #[error("the sealed state cannot be read")]
    Read(#[source] io::Error),
    /// A log's key or checkpoint makes no sense.
    #[error("what is remembered of log `{0}` makes no sense")]
    Head(String),
    /// A log is not what it was.
    #[error("log `{log}` is not what this agent left: it was changed, or cut")]
    Log {
        /// Name of the run.
        log: String,
        /// What is wrong with it.
        source: VerifyError,
    },
}

/// Why a policy is not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("policy `{name}` has version {found}, but version {seen} was in force here before")]
pub struct OldVersion {
    name: String,
    found: u64,
    seen: u64,
}

impl Sealed {
    /// Opens what an agent with this state remembers, or begins to remember. The logs of its runs are held
    /// against it.
    ///
    /// # Errors
    ///
    /// [`SealError`]: an agent that cannot rely on its memory does not serve.
    pub fn open(seal: &Seal, state: &Path) -> Result<Self, SealError> {
        let kek = provider(seal.key())?;
        let kind = || SealError::Kind(seal.anchor().into(), "anchor");
        let anchor = vault::anchor::named(seal.anchor(), seal.base()).ok_or_else(kind)?;
        let folder = state.join(FOLDER);
        let options = OpenOptions {
            access: Access::ReadWrite,
            anchor: Some(anchor),
            ..OpenOptions::default()
        };
        if !folder.exists() {
            drop(Vault::create(&folder, &*kek, CreateOptions::default())?);
        }
        let mut vault = Vault::open_with(&folder, &*kek, options)?;
        let state_then = match vault.info(OBJECT) {
            Some(info) if info.len <= MAX_STATE => read(&vault)?,
            Some(_) => return Err(SealError::Read(io::ErrorKind::FileTooLarge.into())),
            None => {
                let state = State::default();
                write(&mut vault, &state)?;
                state
            }
        };
        let sealed = Self {
            inner: Mutex::new(Inner {
                vault,
                state: state_then,
            }),
        };
        sealed.hold_against(&state.join("runs"))?;
        Ok(sealed)
    }

    /// Takes note of a policy that is to be run.
    ///
    /// # Errors
    ///
    /// [`OldVersion`] inside, if a higher version was seen; else what keeps it from being remembered.
    pub fn admit(&self, bundle: &Bundle) -> Result<Result<(), OldVersion>, SealError> {
        let (name, found) = (bundle.name().to_owned(), bundle.version());
        let seen = self.lock().state.versions.get(&name).copied();
        match seen {
            Some(seen) if found < seen => Ok(Err(OldVersion { name, found, seen })),
            Some(seen) if found == seen => Ok(Ok(())),
            _ => self
                .change(|state| {
                    state.versions.insert(name, found);
                })
                .map(Ok),
        }
    }

    /// Takes note of how far the log of a run has come, which is over.
    ///
    /// # Errors
    ///
    /// If the log does not verify, or that cannot be remembered.
    pub fn closed(&self, log: &Path, key: [u8; 32]) -> Result<(), SealError> {
        let name = log.file_name().unwrap_or_default().to_string_lossy();
        let name = name.into_owned();
        let verifier = verifier(&name, key)?;
        let verified = audit::verify(log, Some(&verifier), None);
        let verified = verified.map_err(|source| SealError::Log {
            log: name.clone(),
            source,
        })?;
        let note = verified.checkpoint().note().to_owned();
        self.change(|state| {
            state.count += 1;
            let number = state.count;
            state.logs.insert(name, Head { number, key, note });
            while state.logs.len() > MAX_LOGS {
                let oldest = state.logs.iter().min_by_key(|(_, head)| head.number);
                let oldest = oldest.map(|(name, _)| name.clone());
                oldest.map(|name| state.logs.remove(&name));
            }
        })
    }

    /// Every log that is remembered, and there, goes on from where it was.
    fn hold_against(&self, runs: &Path) -> Result<(), SealError> {
        let logs = self.lock().state.logs.clone();
        for (log, head) in logs {
            let folder: PathBuf = runs.join(&log);
            // What an operator has cleared away is missing as a whole.
            if !folder.exists() {
                continue;
            }
            let verifier = verifier(&log, head.key)?;
            let expected = verifier
                .open(head.note.as_bytes())
                .map_err(|_: NoteError| SealError::Head(log.clone()))?;
            audit::verify(&folder, Some(&verifier), Some(&expected))
                .map_err(|source| SealError::Log { log, source })?;
        }
        Ok(())
    }

    /// Changes what is remembered, when that is durable.
    fn change(&self, change: impl FnOnce(&mut State)) -> Result<(), SealError> {
        let mut inner = self.lock();
        let mut state = inner.state.clone();
        change(&mut state);
        write(&mut inner.vault, &state)?;
        inner.state = state;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What is in memory follows what is durable, in one assignment.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FreshnessAnchor for Sealed {
    fn read(&self, vault: &[u8; 16]) -> Result<Option<Anchored>, AnchorError> {
        let inner = self.lock();
        let anchored = inner.state.anchors.get(&hex(vault));
        Ok(anchored.map(|&(generation, root)| Anchored { generation, root }))
    }

    fn advance(
        &self,
        vault: &[u8; 16],
        from: Option<Anchored>,
        to: Anchored,
    ) -> Result<(), AnchorError> {
        if self.read(vault)? != from {
            return Err(AnchorError::Moved);
        }
        let to = (to.generation, to.root);
        let change = |state: &mut State| {
            state.anchors.insert(hex(vault), to);
        };
        self.change(change)
            .map_err(|error| AnchorError::Unreachable(io::Error::other(error)))
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed(..)")
    }
}

/// Where the key comes from: `file:PATH`, `credential:NAME` or `tpm:`.
fn provider(uri: &str) -> Result<Box<dyn KekProvider>, SealError> {
    let kind = || SealError::Kind(uri.into(), "key");
    let file = match uri.split_once(':').ok_or_else(kind)? {
        ("file", path) => PathBuf::from(path),
        // See LoadCredential= in systemd.exec(5).
        ("credential", name) if !name.contains('/') => {
            let folder = std::env::var_os("CREDENTIALS_DIRECTORY").ok_or_else(kind)?;
            Path::new(&folder).join(name)
        }
        ("tpm", "") => return Ok(Box::new(Tpm::open(Path::new(DEVICE), Pcrs::default())?)),
        _ => return Err(kind()),
    };
    let mut key = key_file::read(&file)?;
    let bytes: &mut [u8; 32] = key.as_mut_slice().try_into().map_err(|_| kind())?;
    Ok(Box::new(Released::take(bytes)?))
}

fn verifier(log: &str, key: [u8; 32]) -> Result<LogVerifier, SealError> {
    LogVerifier::new(LOG_ORIGIN, key).map_err(|_: KeyError| SealError::Head(log.into()))
}

fn read(vault: &Vault) -> Result<State, SealError> {
    let mut bytes = Vec::new();
    vault.get(OBJECT, &mut bytes)?;
    serde_json::from_slice(&bytes).map_err(SealError::Damaged)
}

fn write(vault: &mut Vault, state: &State) -> Result<(), SealError> {
    let bytes = serde_json::to_vec(state).map_err(SealError::Damaged)?;
    vault.put(OBJECT, bytes.as_slice().by_ref())?;
    Ok(())
}
