//! Why the agent did not begin, or did not do what it was asked to.

use std::io;
use std::path::PathBuf;

use attestation::AttestError;
use casemate::SessionError;
use casemate::order::OrderError;
use vault::audit::{KeyError, VerifyError};

use super::MAX_SESSIONS;
use crate::assembly::AssemblyError;
use crate::config::ConfigError;
use crate::sealed::{OldVersion, SealError};

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
    /// Who asks is inside a sandbox, and may only look at it.
    #[error("a workload cannot order anything of the agent")]
    Inside,
    /// Somebody follows the session already.
    #[error("session `{0}` is followed already: one at a time can")]
    Followed(String),
    /// The session was begun for whoever began it.
    #[error("session `{0}` is not detached: whoever began it follows it")]
    Attached(String),
    /// The session is not over, or no receipt was asked for.
    #[error(
        "there is no receipt of session `{0}`: it is given at the end, to who asked for it at the start"
    )]
    NoReceipt(String),
    /// The session has no such data.
    #[error("session `{0}` has no data `{1}`")]
    NoData(String, String),
    /// No evidence can be had.
    #[error("no evidence can be had")]
    Evidence(#[from] AttestError),
    /// The session's log cannot be shown.
    #[error("the log of the session does not verify")]
    Log(#[from] VerifyError),
    /// The session's log has no key that can be used.
    #[error("the key of the session's log cannot be used")]
    LogKey(#[from] KeyError),
    /// The number is no Unix signal.
    #[error("there is no signal {0}")]
    NoSignal(i32),
    /// The policy's file cannot be trusted.
    #[error(transparent)]
    PolicyFile(#[from] ConfigError),
    /// A higher version of the policy was in force.
    #[error(transparent)]
    OldVersion(#[from] OldVersion),
    /// What must not be forgotten cannot be remembered.
    #[error(transparent)]
    Seal(#[from] SealError),
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
            Self::Inside => "inside",
            Self::Followed(_) => "followed",
            Self::Attached(_) => "attached",
            Self::NoReceipt(_) => "no-receipt",
            Self::NoData(..) => "no-data",
            Self::Evidence(_) => "no-evidence",
            Self::Log(_) | Self::LogKey(_) => "log",
            Self::PolicyFile(_) => "policy-file",
            Self::OldVersion(_) => "old-version",
            Self::Seal(_) => "seal",
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
    /// What was remembered cannot be relied on.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Another agent uses the same state.
    #[error("another agent runs already with the state folder `{}`", .0.display())]
    Running(PathBuf),
}
