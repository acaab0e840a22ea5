//! Why a session did not do what it was asked to.

use crate::isolation::spawner::Failure;
use crate::plan::PlanError;
use crate::release::ReleaseError;

/// Why a session failed. Nothing was started, or everything is stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The builder was not told something it needs.
    #[error("the session was not told `{0}`")]
    Incomplete(&'static str),
    /// The policy names a backend that this version does not have.
    #[error(
        "the backend `{0}` is not available here: use `container`, or `sandboxctl run` for `microvm`"
    )]
    Backend(&'static str),
    /// The rules deny `live` from the start.
    #[error("the policy does not grant `live`: {}", join(.0))]
    NotGranted(Vec<String>),
    /// The policy has vaults, but nobody releases keys.
    #[error("the policy has vaults, but there is no broker to release their keys")]
    NoBroker,
    /// A vault could not be opened.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// The policy cannot be made into a plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The sandbox could not be made, started or adjusted.
    #[error("{0}")]
    Launch(#[from] Failure),
    /// The audit log took no record. What is not recorded is not done.
    #[error("the audit log cannot be written")]
    Log(#[from] vault::audit::LogError),
    /// A record could not be encoded.
    #[error("a record cannot be encoded")]
    Encode(#[from] serde_json::Error),
    /// stdin, stdout or stderr cannot be used.
    #[error("stdin, stdout or stderr cannot be used")]
    Stdio(#[source] std::io::Error),
    /// The system gave no random bytes.
    #[error("the system gives no random bytes")]
    Random,
    /// The sandbox is gone without having said how.
    #[error("the sandbox was lost")]
    Lost,
}

/// An error with its causes, in one line.
pub fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        // Some errors repeat their cause in their own words.
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        next = cause.source();
    }
    text
}

fn join(reasons: &[String]) -> String {
    match reasons {
        [] => "no rule permits it".to_owned(),
        some => some.join("; "),
    }
}
