//! What callers can ask of sessions that run, and what they are answered.
//!
//! [`crate::http`] is how it is asked and answered over a socket; a session in a machine is asked the same,
//! as lines of JSON over its channel.
//!
//! ```text
//! {"status":{}}                          ▶ sessions; with {"detail":true} also how each of them is
//! {"kill":{"session":ID,"signal":15}}    ▶ killed
//! {"adjust":{"session":ID,"order":{"risk":30},"why":TEXT}}    ▶ adjusted, when that is in force
//!     order: {"risk":N}, "freeze", "thaw", "stop", {"withdraw":[NAME, …]}, {"restore":[NAME, …]},
//!            {"tighten":"exec"}, {"tighten":{"calls":[NAME, …]}}
//! anything else                          ▶ error
//! ```

use std::path::PathBuf;

use casemate::isolation::child::Ending;
use casemate::order::Command;
use casemate::receipt::Receipt;
use casemate::record::Record;
use casemate::status::Status;
use serde::{Deserialize, Serialize};

/// Most bytes of a request.
pub const MAX_REQUEST: usize = 64 << 10;

/// What a caller asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// List the caller's sessions.
    Status {
        /// Ask each of them how it is, too.
        #[serde(default)]
        detail: bool,
    },
    /// Order something of a session. It only tightens what the policy grants.
    Adjust {
        /// Which session.
        session: String,
        /// What is ordered.
        order: Command,
        /// The reason, which is recorded with who asks.
        why: String,
    },
    /// Pass a Unix signal on to a session's workload. The second one that asks for an end stops it.
    Kill {
        /// Which session.
        session: String,
        /// Number of the signal.
        signal: i32,
    },
}

/// What a caller asks for with a new session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Wanted {
    /// Name of the policy: its file without `.toml`.
    pub policy: String,
    /// Give a receipt at the end, too.
    #[serde(default)]
    pub receipt: bool,
    /// Let it run on when the caller is gone.
    #[serde(default)]
    pub detached: bool,
}

/// One line of an answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply<'a> {
    /// The session exists, and begins.
    Session {
        /// Its name.
        id: &'a str,
        /// Folder of its audit log.
        log: String,
        /// Public key of its audit log (Ed25519), hexadecimal.
        key: String,
    },
    /// So many lines are not here, because nobody took them in time. The records among them are in the log.
    Missed(u64),
    /// What the workload wrote.
    Output {
        /// Where it wrote it.
        stream: Stream,
        /// The bytes, in Base64.
        base64: String,
    },
    /// What proves the run to others.
    Receipt(Box<Receipt>),
    /// Why nothing does.
    NoReceipt {
        /// The reason in words.
        why: String,
    },
    /// How the session ended. Nothing of it is left.
    Outcome {
        /// How the workload ended.
        ending: Ending,
        /// Why.
        why: String,
        /// The rules that stopped it, if the policy did.
        because: &'a [String],
    },
    /// The caller's sessions.
    Sessions(Vec<Listed>),
    /// What was ordered is recorded and in force.
    Adjusted {
        /// Of which session.
        session: &'a str,
        /// How it is now.
        status: Box<Status>,
    },
    /// The signal was passed on.
    Killed {
        /// To which session.
        session: &'a str,
        /// Number of the signal.
        signal: i32,
    },
    /// The request was refused, or the session failed. Nothing of it is left.
    Error {
        /// Stable name of the reason.
        code: &'static str,
        /// The reason in words.
        message: String,
        /// What to do about it.
        #[serde(skip_serializing_if = "Option::is_none")]
        help: Option<String>,
    },
    /// A record, which is in the session's log already.
    #[serde(untagged)]
    Record {
        /// Seconds since the Unix epoch.
        at: f64,
        /// What was recorded.
        record: &'a Record,
    },
}

/// One of the workload's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A session that runs.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// Its name, for `kill`.
    pub id: String,
    /// Name of its policy.
    pub policy: String,
    /// Who asked for it.
    pub uid: u32,
    /// When, in seconds since the Unix epoch.
    pub since: u64,
    /// Folder of its audit log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<PathBuf>,
    /// How it is, if that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Box<Status>>,
}

/// A vault of a session, and how its lease stands.
#[derive(Clone, Debug, Serialize)]
pub struct Leased {
    /// Entry of the `[data]` table.
    pub data: String,
    /// Whether the workload can read it now.
    pub held: bool,
    /// Bytes that it has read of it.
    pub read: u64,
    /// The order that took it away, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<String>,
}

/// Evidence that an application asked for.
#[derive(Debug, Serialize)]
pub struct Vouched {
    /// Who asked, as the agent found: [`crate::evidence`] says how that is bound.
    pub caller: Asker,
    /// What the application gave to be bound, hexadecimal.
    pub payload: String,
    /// What the evidence is bound to.
    pub challenge: attestation::Challenge,
    /// The evidence.
    pub evidence: attestation::Evidence,
}

/// Who asks for evidence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Asker {
    /// The session that it is given in the name of.
    pub session: String,
    /// Whether the caller is inside that session's sandbox; otherwise it is the user.
    pub inside: bool,
    /// User id of the caller.
    pub uid: u32,
}

impl Request {
    /// Reads a request.
    ///
    /// # Errors
    ///
    /// What is wrong with it, in words.
    pub fn parse(line: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(line)
    }
}

impl Reply<'_> {
    /// The line of this answer, with its end.
    #[must_use]
    pub fn line(&self) -> Vec<u8> {
        // A record that is in the log was encoded before; nothing else here can fail.
        let mut line = serde_json::to_vec(self).unwrap_or_else(|_| UNENCODED.to_vec());
        line.push(b'\n');
        line
    }
}

/// Stands for an answer that has no JSON form.
const UNENCODED: &[u8] = br#"{"error":{"code":"encode","message":"an answer cannot be encoded"}}"#;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_documented() {
        assert_eq!(
            Request::parse(br#"{"status":{}}"#).unwrap(),
            Request::Status { detail: false }
        );
        let adjust = br#"{"adjust":{"session":"a","order":{"withdraw":["x"]},"why":"doubt"}}"#;
        assert_eq!(
            Request::parse(adjust).unwrap(),
            Request::Adjust {
                session: "a".into(),
                order: Command::Withdraw(["x".to_owned()].into()),
                why: "doubt".into(),
            }
        );
        let kill = Request::parse(br#"{"kill":{"session":"a-1-1","signal":15}}"#).unwrap();
        assert_eq!(
            kill,
            Request::Kill {
                session: "a-1-1".into(),
                signal: 15
            }
        );
    }

    #[test]
    fn what_is_not_understood_is_not_half_understood() {
        for line in [
            r#"{"run":{"policy":"a"}}"#,
            r#"{"status":{},"kill":{"session":"a","signal":9}}"#,
            r#"{"status":{"all":true}}"#,
            r#"{"status":{}} {"status":{}}"#,
            r#"{"kill":{"session":"a","signal":1e9}}"#,
            r#"{"adjust":{"session":"a","order":"grant","why":"x"}}"#,
            r#"{"adjust":{"session":"a","order":{"risk":1000},"why":"x"}}"#,
            r#"{"adjust":{"session":"a","order":"freeze"}}"#,
            r#""status""#,
            "",
        ] {
            assert!(Request::parse(line.as_bytes()).is_err(), "{line}");
        }
        assert!(
            Request::parse(&[b'['; MAX_REQUEST]).is_err(),
            "nor does depth overflow the stack"
        );
    }

    #[test]
    fn each_answer_is_one_line() {
        let lines = [
            Reply::Record {
                at: 1.5,
                record: &Record::Started,
            }
            .line(),
            Reply::Error {
                code: "a",
                message: "two\nlines".into(),
                help: None,
            }
            .line(),
        ];
        assert_eq!(
            lines[0],
            b"{\"at\":1.5,\"record\":{\"kind\":\"started\"}}\n"
        );
        assert!(
            lines
                .iter()
                .all(|line| line.iter().filter(|byte| **byte == b'\n').count() == 1)
        );
    }
}
