//! Sessions: from a nonce, by way of evidence, to whom secrets are encrypted to.
//!
//! ```text
//! asked ── a swap: of all who attest at once, one ──▶ spent ── evidence believed ──▶ attested
//! ```
//!
//! They are in the [`crate::store`], under a digest of the name that only their client knows: whoever reads the
//! store cannot go on with one. With a store that is shared, a session goes on at any replica.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use attestation::{Hex, Nonce, UnixTime};
use broker::{SpentNonce, Standing};
use serde::{Deserialize, Serialize};

use crate::jwk::ClientKey;
use crate::store::{AnyStore, Entry, Expected, StoreError, Swap};
use crate::tls::Channel;

/// Most sessions at once that were begun here.
pub const MAX_SESSIONS: usize = 65_536;
/// Most addresses that are counted at once; when there are more, newcomers wait for the next minute.
const MAX_ADDRESSES: usize = 16_384;
/// Most characters of what a client says its TEE is.
const MAX_TEE: usize = 64;
/// By how many seconds the clocks of replicas may differ.
const SKEW: u64 = 5;

/// A guest that attested in a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Guest {
    /// What of its attestation decides.
    pub standing: Standing,
    /// The key in its evidence.
    pub key: ClientKey,
    /// What its evidence was bound to.
    pub report_data: Hex<64>,
    /// When it attested.
    pub at: UnixTime,
    /// Which reference values it was appraised by.
    pub reference: u64,
    /// The one connection that it is served over, if its evidence is bound to one.
    #[serde(default)]
    pub channel: Option<Hex<32>>,
}

/// A session, as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Kept {
    /// Kind of TEE that the client says it has.
    tee: String,
    nonce: Hex<32>,
    began: UnixTime,
    nonce_expires: UnixTime,
    expires: UnixTime,
    /// The connection over which the nonce was given.
    #[serde(default)]
    channel: Option<Hex<32>>,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    Asked,
    Spent,
    Attested(Box<Guest>),
}

/// A session that there is.
#[derive(Clone, Debug)]
pub struct Session {
    key: String,
    version: u64,
    kept: Kept,
}

/// All sessions.
pub struct Sessions {
    store: AnyStore,
    lifetime: u64,
    nonce_lifetime: u64,
    /// When each session that was begun here ends, so that nobody fills the store.
    begun: Mutex<std::collections::VecDeque<UnixTime>>,
}

/// Why a session does not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// There are too many.
    #[error("there are too many sessions")]
    Busy,
    /// Its nonce was spent before.
    #[error("the nonce was spent before; ask for a new challenge")]
    NonceUnknown,
    /// Its nonce has expired.
    #[error("the nonce expired; ask for a new challenge")]
    NonceExpired,
    /// It is over, or somebody else has changed it.
    #[error("the session is over")]
    Over,
    /// Nothing is known.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Sessions {
    /// Sessions of this many seconds, with nonces of that many, in a store.
    pub fn new(store: AnyStore, lifetime: u64, nonce_lifetime: u64) -> Self {
        Self {
            store,
            lifetime,
            nonce_lifetime,
            begun: Mutex::default(),
        }
    }

    /// Begins a session.
    ///
    /// # Errors
    ///
    /// [`SessionError::Busy`] when there are too many, [`SessionError::Store`] when it cannot be kept.
    pub fn begin(
        &self,
        name: &str,
        tee: &str,
        nonce: Nonce,
        channel: Option<Channel>,
        now: UnixTime,
    ) -> Result<(), SessionError> {
        let expires = now.plus_seconds(self.lifetime);
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        while begun.front().is_some_and(|end| *end <= now) {
            begun.pop_front();
        }
        if begun.len() >= MAX_SESSIONS {
            return Err(SessionError::Busy);
        }
        begun.push_back(expires);
        drop(begun);
        let kept = Kept {
            tee: tee.chars().take(MAX_TEE).collect(),
            nonce: Hex(nonce),
            began: now,
            nonce_expires: now.plus_seconds(self.nonce_lifetime),
            expires,
            channel: channel.map(|channel| Hex(channel.0)),
            state: State::Asked,
        };
        match self.put(&key(name), Expected::Absent, &kept, now) {
            Ok(Some(_)) => Ok(()),
            Ok(None) => Err(SessionError::Over),
            Err(StoreError::Full) => Err(SessionError::Busy),
            Err(error) => Err(error.into()),
        }
    }

    /// Spends the nonce of a session. Of all who try, on whichever replica, one succeeds.
    ///
    /// # Errors
    ///
    /// [`SessionError`]; the nonce is good for nothing then, or nothing is known.
    pub fn spend(&self, session: &mut Session, now: UnixTime) -> Result<SpentNonce, SessionError> {
        if session.kept.state != State::Asked {
            return Err(SessionError::NonceUnknown);
        }
        session.kept.state = State::Spent;
        let expected = Expected::Version(session.version);
        let version = self.put(&session.key, expected, &session.kept, now)?;
        session.version = version.ok_or(SessionError::NonceUnknown)?;
        // A clock that was set back must not lengthen a nonce's life beyond its lifetime either.
        let late = now >= session.kept.nonce_expires;
        if late || now.plus_seconds(SKEW) < session.kept.began {
            return Err(SessionError::NonceExpired);
        }
        Ok(SpentNonce::by_swap(session.kept.nonce.0))
    }

    /// Notes who attested in a session whose nonce was spent for it.
    ///
    /// # Errors
    ///
    /// [`SessionError::Over`] if it is over by now.
    pub fn attested(
        &self,
        session: Session,
        guest: Guest,
        now: UnixTime,
    ) -> Result<(), SessionError> {
        let mut kept = session.kept;
        kept.state = State::Attested(Box::new(guest));
        let expected = Expected::Version(session.version);
        if now >= kept.expires {
            return Err(SessionError::Over);
        }
        match self.put(&session.key, expected, &kept, now)? {
            Some(_) => Ok(()),
            None => Err(SessionError::Over),
        }
    }

    fn put(
        &self,
        key: &str,
        expected: Expected,
        kept: &Kept,
        now: UnixTime,
    ) -> Result<Option<u64>, StoreError> {
        let value =
            serde_json::to_vec(kept).map_err(|error| StoreError::Strange(error.to_string()))?;
        let swap = Swap {
            key,
            expected,
            value: Some(&value),
            lifetime: Some(kept.expires.0.saturating_sub(now.0).max(1)),
        };
        self.store.swap(&swap, now)
    }
}

impl Session {
    /// A session as it is kept, unless it is over.
    pub fn read(key: String, entry: &Entry, now: UnixTime) -> Option<Self> {
        let kept: Kept = serde_json::from_slice(&entry.value).ok()?;
        (now < kept.expires).then_some(Self {
            key,
            version: entry.version,
            kept,
        })
    }

    /// The nonce that evidence in it has to answer.
    pub fn nonce(&self) -> &Nonce {
        &self.kept.nonce.0
    }

    /// Kind of TEE that its client says it has.
    pub fn tee(&self) -> &str {
        &self.kept.tee
    }

    /// The connection over which the nonce was given.
    pub fn channel(&self) -> Option<Channel> {
        self.kept.channel.map(|channel| Channel(channel.0))
    }

    /// When it ends.
    pub fn expires(&self) -> UnixTime {
        self.kept.expires
    }

    /// Who attested in it.
    pub fn guest(&self) -> Option<&Guest> {
        match &self.kept.state {
            State::Attested(guest) => Some(guest),
            _ => None,
        }
    }
}

/// Where a session is kept.
pub fn key(name: &str) -> String {
    use sha2::{Digest, Sha256};
    format!("session/{}", Hex::<32>(Sha256::digest(name).into()))
}

/// How often each address asks for a nonce, by the minute.
#[derive(Debug)]
pub struct Pace {
    most: u32,
    counted: Mutex<(u64, HashMap<IpAddr, u32>)>,
}

impl Pace {
    /// Lets each address ask this often in a minute.
    pub fn new(most: u32) -> Self {
        Self {
            most,
            counted: Mutex::default(),
        }
    }

    /// Counts a request; `false` when it is one too many.
    pub fn admits(&self, address: IpAddr, now: UnixTime) -> bool {
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let minute = now.0 / 60;
        if counted.0 != minute {
            *counted = (minute, HashMap::new());
        }
        let full = counted.1.len() >= MAX_ADDRESSES;
        match counted.1.get_mut(&address) {
            Some(count) if *count >= self.most => false,
            Some(count) => {
                *count += 1;
                true
            }
            None if full => false,
            None => {
                counted.1.insert(address, 1);
                true
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::embedded::Embedded;

    fn sessions(folder: &tempfile::TempDir) -> Sessions {
        let store = Embedded::open(&folder.path().join("store")).unwrap();
        Sessions::new(Arc::new(store), 20, 10)
    }

    fn of(sessions: &Sessions, name: &str, now: u64) -> Option<Session> {
        let key = key(name);
        let entry = sessions
            .store
            .read(&[&key], UnixTime(now))
            .unwrap()
            .remove(0)?;
        Session::read(key, &entry, UnixTime(now))
    }

    #[test]
    fn a_session_is_over_in_the_second_in_which_it_expires_and_its_nonce_in_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = sessions(&folder);
        for (name, at, good) in [("a", 109, true), ("b", 110, false), ("c", 94, false)] {
            sessions
                .begin(name, "snp", [1; 32], None, UnixTime(100))
                .unwrap();
            let mut session = of(&sessions, name, at).unwrap();
            assert_eq!(
                sessions.spend(&mut session, UnixTime(at)).is_ok(),
                good,
                "{name}"
            );
            // Spent, whatever came of it.
            let mut again = of(&sessions, name, at).unwrap();
            let again = sessions.spend(&mut again, UnixTime(at));
            assert!(matches!(again, Err(SessionError::NonceUnknown)), "{name}");
        }
        assert!(of(&sessions, "a", 119).is_some());
        assert!(of(&sessions, "a", 120).is_none());
        assert!(of(&sessions, "x", 100).is_none());
    }

    #[test]
    fn of_two_replicas_that_read_one_session_one_spends_its_nonce() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = sessions(&folder);
        sessions
            .begin("a", "snp", [1; 32], None, UnixTime(100))
            .unwrap();
        let one = of(&sessions, "a", 101).unwrap();
        let (mut one, mut other) = (one.clone(), one);
        assert!(sessions.spend(&mut one, UnixTime(101)).is_ok());
        let late = sessions.spend(&mut other, UnixTime(101));
        assert!(matches!(late, Err(SessionError::NonceUnknown)));
    }

    #[test]
    fn a_spent_nonce_stays_spent_when_the_broker_starts_again() {
        let folder = tempfile::tempdir().unwrap();
        let before = sessions(&folder);
        before
            .begin("a", "snp", [1; 32], None, UnixTime(100))
            .unwrap();
        before
            .begin("b", "snp", [2; 32], None, UnixTime(100))
            .unwrap();
        let mut session = of(&before, "a", 101).unwrap();
        before.spend(&mut session, UnixTime(101)).unwrap();
        drop(before);
        let after = sessions(&folder);
        let mut spent = of(&after, "a", 102).unwrap();
        let refused = after.spend(&mut spent, UnixTime(102));
        assert!(matches!(refused, Err(SessionError::NonceUnknown)));
        let mut unspent = of(&after, "b", 102).unwrap();
        assert!(after.spend(&mut unspent, UnixTime(102)).is_ok());
    }

    #[test]
    fn an_address_that_asks_too_often_waits_for_the_next_minute() {
        let pace = Pace::new(2);
        let (one, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        assert!(pace.admits(one, UnixTime(0)) && pace.admits(one, UnixTime(59)));
        assert!(!pace.admits(one, UnixTime(59)));
        assert!(pace.admits(other, UnixTime(59)));
        assert!(pace.admits(one, UnixTime(60)));
    }
}
