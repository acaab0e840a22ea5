//! Why a policy could not be made into a session, and what to do about it.

use std::io;
use std::path::PathBuf;

use attestation::{AttestError, BuildError, FolderError, ReferenceError};
use policy::BundleError;
use vault::audit::{KeyError, LogError};

use crate::key_file::KeyFileError;
use crate::remote_broker::AddressError;

/// Why a policy file could not be made into a session. Nothing was started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AssemblyError {
    /// The policy file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Policy {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The policy has mistakes. The text shows each place in the file.
    #[error("the policy has mistakes\n{0}")]
    Bundle(#[from] BundleError),
    /// A vault's key is not named.
    #[error("the policy's `[data] {data}` names no key")]
    NoKey {
        /// Entry of the `[data]` table.
        data: String,
    },
    /// A vault's key is to come from where this version cannot get it.
    #[error("the key `{uri}` of `[data] {data}` is of an unknown kind")]
    KeyKind {
        /// Entry of the `[data]` table.
        data: String,
        /// What the policy says.
        uri: String,
    },
    /// The broker that has a vault's key cannot be addressed.
    #[error("the key of `[data] {data}` has no usable address")]
    KeyAddress {
        /// Entry of the `[data]` table.
        data: String,
        /// Why.
        source: AddressError,
    },
    /// What remembers a vault is of a kind that this version does not know.
    #[error("the anchor `{uri}` of `[data] {data}` is of an unknown kind")]
    AnchorKind {
        /// Entry of the `[data]` table.
        data: String,
        /// What the policy says.
        uri: String,
    },
    /// A key file cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
    /// The file of reference values cannot be read.
    #[error("cannot use the reference values `{}`", path.display())]
    ReferenceFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file of reference values holds something else.
    #[error("cannot use the reference values `{}`", path.display())]
    ReferenceValues {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ReferenceError,
    },
    /// The folder of endorsements cannot be used.
    #[error("the policy's `[attestation] endorsements` cannot be used")]
    Endorsements(#[from] FolderError),
    /// The policy asks for evidence, and this machine has no TEE that gives any.
    #[error("no evidence can be collected")]
    NoEvidence(#[source] AttestError),
    /// Simulated evidence was allowed by the user, but not by the policy.
    #[error("no evidence can be collected")]
    SimulatedUnwelcome(#[source] AttestError),
    /// The simulated TEE cannot be made.
    #[error(transparent)]
    Simulated(AttestError),
    /// The verifier cannot be made.
    #[error(transparent)]
    Verifier(#[from] BuildError),
    /// The key of the log cannot be made.
    #[error("the log's key cannot be made")]
    LogKey(#[source] KeyError),
    /// The folder in which logs are kept cannot be made.
    #[error("cannot make `{}`", path.display())]
    LogFolder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The log cannot be made.
    #[error("cannot make the audit log `{}`", path.display())]
    Log {
        /// Its folder.
        path: PathBuf,
        /// Why.
        source: LogError,
    },
}

impl AssemblyError {
    /// Stable name of the reason.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Policy { .. } => "policy-file",
            Self::Bundle(_) => "policy",
            Self::NoKey { .. } | Self::KeyKind { .. } | Self::KeyAddress { .. } | Self::Key(_) => {
                "key"
            }
            Self::AnchorKind { .. } => "anchor",
            Self::ReferenceFile { .. } | Self::ReferenceValues { .. } => "reference-values",
            Self::Endorsements(_) => "endorsements",
            Self::NoEvidence(_) | Self::SimulatedUnwelcome(_) | Self::Simulated(_) => "no-evidence",
            Self::Verifier(_) => "verifier",
            Self::LogKey(_) | Self::LogFolder { .. } | Self::Log { .. } => "log",
        }
    }

    /// What a user can do about it.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoKey { data } => Some(format!("add `key = \"file:{data}.key\"`")),
            Self::KeyKind { .. } => Some(
                "this version takes `file:PATH` and `kbs+https://HOST:PORT/REPO/TYPE/TAG`".into(),
            ),
            Self::AnchorKind { .. } => {
                Some("this version takes `file:PATH`, and `tpm:0xINDEX` from 0x01800000 on".into())
            }
            Self::Key(error) => error.hint(),
            Self::NoEvidence(_) => Some(
                "run in a confidential VM (SEV-SNP or TDX); to try things out without one, use \
                 --dangerously-accept-simulated with a policy that accepts `simulated`"
                    .into(),
            ),
            Self::SimulatedUnwelcome(_) => Some(
                "the policy does not accept `simulated`: it takes both the flag and \
                 `[attestation] accept = [\"simulated\"]`"
                    .into(),
            ),
            Self::LogFolder { .. } | Self::Log { .. } => {
                Some("choose another place for it; nothing runs without a log".into())
            }
            _ => None,
        }
    }
}
