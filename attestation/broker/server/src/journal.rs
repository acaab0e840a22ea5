//! The broker's audit log: who attested, what was released to whom, what was refused and why.
//!
//! A record is durable before what it tells of happens. What the operator revoked is in the store; a store
//! that is begun anew takes it from the log.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use vault::audit::{self, KeyError, Log, LogError, LogKey, Record, VerifyError};

/// Name of the log in its checkpoints.
pub const ORIGIN: &str = "casemate/broker";

/// Something that the broker did, or would not do.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Event<'a> {
    /// It began to serve.
    Serving {
        /// Version of this crate.
        casemate: &'static str,
        /// SHA-256 of the configuration, hexadecimal.
        config: &'a str,
    },
    /// Evidence was believed.
    Attested {
        /// The session, by a digest of its name.
        session: &'a str,
        /// Address of the client.
        client: String,
        /// Which TEE.
        tee: String,
        /// The tier of the verdict.
        tier: &'static str,
        /// SHA-256 of what the TEE signed, hexadecimal.
        evidence: String,
        /// SHA-256 of the policy bundle that it is bound to, hexadecimal.
        policy: Option<String>,
        /// Kind of key that secrets are encrypted to.
        key: &'static str,
    },
    /// Evidence was not believed.
    NotAttested {
        /// The session, by a digest of its name.
        session: &'a str,
        /// Address of the client.
        client: String,
        /// Stable name of the reason.
        code: &'a str,
        /// The reason in words.
        why: String,
    },
    /// A secret is about to be sent, encrypted to the key in the evidence.
    Releasing {
        /// The session, by a digest of its name.
        session: &'a str,
        /// Name of the secret.
        resource: &'a str,
    },
    /// A secret was asked for and is not sent.
    Refused {
        /// The session, by a digest of its name.
        session: &'a str,
        /// What was asked for.
        resource: &'a str,
        /// Stable name of the reason.
        code: &'a str,
    },
    /// The operator is about to revoke a secret: it is released to nobody any more.
    Revoked {
        /// Name of the secret.
        resource: &'a str,
        /// Who, as the kernel says.
        uid: u32,
        /// The reason given.
        why: &'a str,
    },
    /// The operator is about to take that back.
    Restored {
        /// Name of the secret.
        resource: &'a str,
        /// Who, as the kernel says.
        uid: u32,
        /// The reason given.
        why: &'a str,
    },
    /// The operator is about to register reference values, or to take that back.
    Reference {
        /// SHA-256 of them, hexadecimal; those of the configuration, if `None`.
        digest: Option<String>,
        /// Who, as the kernel says.
        uid: u32,
        /// The reason given.
        why: &'a str,
    },
    /// It serves no more.
    Closed,
}

/// An open log.
pub struct Journal {
    log: Log,
    began: Instant,
}

/// Why there is no log to write.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// Its key cannot be read or made.
    #[error("the key of the audit log cannot be used")]
    Key(#[from] KeyError),
    /// It cannot be written.
    #[error("the audit log cannot be written")]
    Log(#[from] LogError),
    /// What it holds is not to be believed.
    #[error("the audit log does not verify")]
    Verify(#[from] VerifyError),
    /// A record cannot be encoded.
    #[error("a record cannot be encoded")]
    Encode(#[from] serde_json::Error),
}

impl Event<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Self::Serving { .. } => "serving",
            Self::Attested { .. } => "attested",
            Self::NotAttested { .. } => "not-attested",
            Self::Releasing { .. } => "releasing",
            Self::Refused { .. } => "refused",
            Self::Revoked { .. } => "revoked",
            Self::Restored { .. } => "restored",
            Self::Reference { .. } => "reference",
            Self::Closed => "closed",
        }
    }
}

impl Journal {
    /// Opens the log in a folder, or begins it there, with the key in a file beside it. Gives what is
    /// revoked, too.
    ///
    /// # Errors
    ///
    /// [`JournalError`]; a log that does not verify is not gone on with.
    pub fn open(folder: &Path, key: &Path) -> Result<(Self, BTreeSet<String>), JournalError> {
        let mut revoked = BTreeSet::new();
        let log = if folder.join("checkpoint").exists() {
            let key = LogKey::load(key)?;
            let verifier = key.verifier(ORIGIN)?;
            // Opened first: what a crash left is under a checkpoint then.
            let log = Log::open(folder, key)?;
            for entry in audit::verify(folder, Some(&verifier), None)?.records() {
                let record = entry?.record;
                let resource = record.payload["resource"].as_str().unwrap_or_default();
                match &*record.kind {
                    "revoked" => {
                        revoked.insert(resource.to_owned());
                    }
                    "restored" => {
                        revoked.remove(resource);
                    }
                    _ => {}
                }
            }
            log
        } else {
            // A key without a log: there was one, and it is gone.
            let new = LogKey::generate()?;
            new.save(key)?;
            Log::create(folder, ORIGIN, new)?
        };
        let began = Instant::now();
        Ok((Self { log, began }, revoked))
    }

    /// Writes an event, and returns when it is durable.
    ///
    /// # Errors
    ///
    /// [`JournalError::Log`]; what it tells of must not happen then.
    pub fn write(&self, event: &Event<'_>) -> Result<(), JournalError> {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mono = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let payload = serde_json::to_value(event)?;
        self.log
            .append(&Record::new(event.kind(), now, mono, payload))?;
        Ok(())
    }

    /// The log's public key.
    pub fn public_key(&self) -> [u8; 32] {
        self.log.public_key()
    }

    /// Signs the last checkpoint.
    ///
    /// # Errors
    ///
    /// [`JournalError::Log`].
    pub fn close(self) -> Result<(), JournalError> {
        self.log.close()?;
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_revoked_stays_revoked_when_the_broker_starts_again() {
        let folder = tempfile::tempdir().unwrap();
        let (log, key) = (folder.path().join("log"), folder.path().join("log.key"));
        let (journal, revoked) = Journal::open(&log, &key).unwrap();
        assert!(revoked.is_empty());
        for (resource, kind) in [("a", true), ("b", true), ("b", false)] {
            let (uid, why) = (0, "doubt");
            let event = match kind {
                true => Event::Revoked { resource, uid, why },
                false => Event::Restored { resource, uid, why },
            };
            journal.write(&event).unwrap();
        }
        // As a crash leaves it: not closed.
        std::mem::forget(journal);
        let copy = folder.path().join("copy");
        let copied = std::process::Command::new("cp")
            .arg("-r")
            .arg(&log)
            .arg(&copy)
            .status();
        assert!(copied.unwrap().success());
        let (_journal, revoked) = Journal::open(&copy, &key).unwrap();
        assert_eq!(revoked, BTreeSet::from(["a".to_owned()]));
    }

    #[test]
    fn a_log_that_is_gone_is_not_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let (log, key) = (folder.path().join("log"), folder.path().join("log.key"));
        Journal::open(&log, &key).unwrap().0.close().unwrap();
        std::fs::remove_dir_all(&log).unwrap();
        assert!(matches!(
            Journal::open(&log, &key),
            Err(JournalError::Key(_))
        ));
    }
}
