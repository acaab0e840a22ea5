//! A session in a virtual machine: what its two ends say to each other.
//!
//! ```text
//!  host: sandboxctl run                         guest: /init
//!  policy ─▶ image ─▶ machine ─── hello ◀──────  mounts, port, policy (measured)   ◀ template
//!                               start, files ─▶  seed, clock ─▶ session
//!  log folder ◀──────────────── log, acknowledged before the effect it announces
//!  broker, or a way to one ◀─── evidence ─▶ sealed keys
//!  terminal ◀────────────────── stdio, signals, orders
//! ```
//!
//! [`host`] keeps the machine, [`init`] is process 1 in it. The host can withhold anything, and then the
//! session ends; it sees ciphertext, sealed keys and records. What it may change is in [`ToGuest`], and
//! nothing there decides: orders only tighten.

pub mod host;
pub mod init;
mod keys;
mod log;
mod places;
mod ways;

use std::{fmt, io};

use casemate::isolation::child::Ending;
use casemate::isolation::microvm::StreamId;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::view::Look;

/// Version of this protocol; both ends come from one build, and say so.
pub const PROTOCOL: u32 = 2;
/// Where the policy and what it names by relative paths lie in the guest.
pub const POLICY_FOLDER: &str = "/policy";
/// The policy's file there.
pub const POLICY_FILE: &str = "/policy/policy.toml";
/// Most bytes of files that cross at the start, or come back at the end.
pub const MAX_FILES: u64 = 8 << 30;

/// The byte streams of a run.
pub mod stream {
    use super::StreamId;

    /// To the workload.
    pub const STDIN: StreamId = 1;
    /// From the workload.
    pub const STDOUT: StreamId = 2;
    /// From the workload.
    pub const STDERR: StreamId = 3;
    /// What the run shows.
    pub const VIEW: StreamId = 4;
    /// Files that are not in the measured image: vaults, reference values, writable trees.
    pub const FILES: StreamId = 5;
    /// The receipt.
    pub const RECEIPT: StreamId = 6;
    /// What became of the writable trees.
    pub const RESULTS: StreamId = 7;
    /// The first of the connections to brokers.
    pub const FIRST_WAY: StreamId = 64;
}

/// What the host says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToGuest {
    /// Run the policy of the image.
    Start(Start),
    /// Pass a Unix signal on to the workload.
    Kill {
        /// Its number.
        signal: i32,
        /// Who sent it, if somebody did.
        by: Option<casemate::By>,
    },
    /// A request of [`crate::api`], of somebody who reached the session's socket on the host.
    Ask {
        /// Names the answer.
        number: u64,
        /// Who asks, in the host's terms.
        by: casemate::By,
        /// The request.
        line: String,
    },
    /// The nonce of a broker on the host's side, or why there is none.
    Challenged(u64, Result<attestation::Nonce, Refused>),
    /// A key, sealed to this session by that broker, or why it is not released.
    Released(u64, Result<attestation::SealedSecret, Refused>),
    /// The log is durable up to this piece, or why it is not.
    Kept(u64, Result<(), String>),
    /// Is anybody there?
    Ping(u64),
    /// Everything has arrived: power off.
    Bye,
}

/// What the guest says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ToHost {
    /// The agent is there.
    Hello {
        /// [`PROTOCOL`].
        protocol: u32,
        /// Nanoseconds since the machine began.
        booted: u64,
    },
    /// The session's log begins; its public key, hexadecimal.
    Log(String),
    /// The answer to [`ToGuest::Ask`].
    Answer(u64, String),
    /// A broker on the host's side is asked for a nonce.
    Challenge(u64, String),
    /// It is given evidence, and asked for the key of this `[data]` entry.
    Release(u64, Box<KeyRequest>),
    /// Connect a stream to this broker, which the policy names.
    Dial(StreamId, String),
    /// The answer to [`ToGuest::Ping`].
    Pong(u64),
    /// The session is over, and all its streams are ended.
    Ended(Ended),
}

/// How a run begins.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Start {
    /// What no other machine that goes on from the same template is told.
    pub seed: Seed,
    /// The host's clock, in seconds since the Unix epoch. The guest has no other.
    pub now: u64,
    /// Whether a simulated TEE may stand in for one.
    pub accept_simulated: bool,
    /// How the run is shown.
    pub look: Look,
    /// Whether a receipt is asked for.
    pub receipt: bool,
}

/// What the guest's random number generator is given beside its own sources.
///
/// The host knows it, as does whoever reads the channel: it makes two clones of a template differ, and is
/// mixed in only.
#[derive(Clone, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct Seed([u8; 32]);

impl Seed {
    /// Draws one.
    ///
    /// # Errors
    ///
    /// What getrandom(2) answers.
    pub fn draw() -> io::Result<Self> {
        let mut seed = [0; 32];
        let mut left = &mut seed[..];
        while !left.is_empty() {
            let drawn = rustix::rand::getrandom(&mut *left, rustix::rand::GetRandomFlags::empty())?;
            left = &mut left[drawn..];
        }
        Ok(Self(seed))
    }

    fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

/// What a broker is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct KeyRequest {
    /// Entry of the `[data]` table.
    pub resource: String,
    /// The evidence.
    pub evidence: attestation::Evidence,
    /// The challenge that it answers.
    pub challenge: attestation::Challenge,
}

/// Why a broker gave nothing.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// Stable name of the reason.
    pub code: String,
    /// The reason in words.
    pub message: String,
}

/// How a session in a machine ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ended {
    /// The workload ended, or was stopped.
    Outcome {
        /// How it ended.
        ending: Ending,
        /// Why: one of `ended`, `policy`, `time`, `asked`, `ordered`.
        why: Reason,
        /// Why there is no receipt, if one was asked for.
        no_receipt: Option<String>,
    },
    /// The session failed; the workload was not started, or is stopped.
    Failed(String),
}

/// Why a workload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// By itself.
    Ended,
    /// The policy stopped it.
    Policy,
    /// Its time was over.
    Time,
    /// Somebody asked for it.
    Asked,
    /// An operator ordered it.
    Ordered,
}

impl From<&casemate::Why> for Reason {
    fn from(why: &casemate::Why) -> Self {
        use casemate::Why;
        match why {
            Why::Ended => Self::Ended,
            Why::Policy(_) => Self::Policy,
            Why::Time => Self::Time,
            Why::Asked => Self::Asked,
            Why::Ordered(_) => Self::Ordered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_no_words_for_a_decision_an_event_or_a_looser_policy() {
        let said = |json: &str| serde_json::from_str::<ToGuest>(json);
        assert!(said("{\"ping\":1}").is_ok());
        for forged in [
            "{\"decided\":{\"granted\":[\"live\"]}}",
            "{\"record\":{\"kind\":\"attested\"}}",
            "{\"event\":{\"signal\":\"operator\"}}",
            "{\"reload\":\"version = 9\"}",
            "{\"apply\":{\"restore\":\"/data\"}}",
            "{\"start\":{\"seed\":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0],\"now\":1,\"accept-simulated\":true,\"look\":{\"json\":true,\"quiet\":false,             \"colour\":false},\"receipt\":false,\"policy\":\"version = 9\"}}",
        ] {
            assert!(said(forged).is_err(), "{forged}");
        }
    }
}
