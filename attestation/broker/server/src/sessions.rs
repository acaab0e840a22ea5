//! Sessions: from a nonce, by way of evidence, to whom secrets are encrypted to.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use attestation::{Nonce, UnixTime};
use broker::Attested;

use crate::jwk::ClientKey;

/// Most sessions at once.
pub const MAX_SESSIONS: usize = 65_536;
/// Most addresses that are counted at once; when there are more, newcomers wait for the next minute.
const MAX_ADDRESSES: usize = 16_384;

/// A guest that attested in a session.
#[derive(Debug)]
pub struct Guest {
    /// What its evidence was found to be.
    pub attested: Attested,
    /// The key in its evidence.
    pub key: ClientKey,
    /// What its evidence was bound to.
    pub report_data: [u8; 64],
}

/// All sessions, by the secret name that only their clients know.
#[derive(Debug, Default)]
pub struct Sessions(Mutex<HashMap<String, Session>>);

#[derive(Debug)]
struct Session {
    expires: UnixTime,
    /// Kind of TEE that the client says it has.
    tee: String,
    nonce: Nonce,
    guest: Option<Arc<Guest>>,
}

impl Sessions {
    /// Begins a session; `false` when there are too many.
    pub fn begin(
        &self,
        id: String,
        tee: String,
        nonce: Nonce,
        now: UnixTime,
        expires: UnixTime,
    ) -> bool {
        let mut sessions = self.lock();
        if sessions.len() >= MAX_SESSIONS {
            sessions.retain(|_, session| now < session.expires);
        }
        if sessions.len() >= MAX_SESSIONS {
            return false;
        }
        let session = Session {
            expires,
            tee,
            nonce,
            guest: None,
        };
        sessions.insert(id, session);
        true
    }

    /// The nonce that evidence in this session has to answer, if there is such a session.
    pub fn nonce(&self, id: &str, now: UnixTime) -> Option<(Nonce, String)> {
        let sessions = self.lock();
        let session = sessions.get(id).filter(|session| now < session.expires)?;
        Some((session.nonce, session.tee.clone()))
    }

    /// Notes who attested in a session; `false` if it is over by now.
    pub fn attested(&self, id: &str, guest: Guest, now: UnixTime) -> bool {
        let mut sessions = self.lock();
        let session = sessions.get_mut(id).filter(|session| now < session.expires);
        match session {
            Some(session) => {
                session.guest = Some(Arc::new(guest));
                true
            }
            None => false,
        }
    }

    /// Who attested in a session.
    pub fn guest(&self, id: &str, now: UnixTime) -> Option<Arc<Guest>> {
        let sessions = self.lock();
        let session = sessions.get(id).filter(|session| now < session.expires)?;
        session.guest.clone()
    }

    /// How many sessions there are, and in how many of them somebody attested.
    pub fn count(&self, now: UnixTime) -> (usize, usize) {
        let sessions = self.lock();
        let alive = sessions.values().filter(|session| now < session.expires);
        alive.fold((0, 0), |(all, attested), session| {
            (all + 1, attested + usize::from(session.guest.is_some()))
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        // Every change is one insertion or one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    use super::*;

    #[test]
    fn a_session_is_over_in_the_second_in_which_it_expires() {
        let sessions = Sessions::default();
        assert!(sessions.begin("a".into(), "snp".into(), [1; 32], UnixTime(0), UnixTime(10)));
        assert!(sessions.nonce("a", UnixTime(9)).is_some());
        assert!(sessions.nonce("a", UnixTime(10)).is_none());
        assert!(sessions.nonce("b", UnixTime(0)).is_none());
        assert_eq!(sessions.count(UnixTime(9)), (1, 0));
        assert_eq!(sessions.count(UnixTime(10)), (0, 0));
    }

    #[test]
    fn too_many_sessions_are_refused_until_some_are_over() {
        let sessions = Sessions::default();
        let begin = |id: usize, now| {
            sessions.begin(
                id.to_string(),
                String::new(),
                [0; 32],
                UnixTime(now),
                UnixTime(now + 10),
            )
        };
        assert!((0..MAX_SESSIONS).all(|id| begin(id, 0)));
        assert!(!begin(MAX_SESSIONS, 9));
        assert!(begin(MAX_SESSIONS, 10));
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
