//! Nonces that were handed out and not yet spent.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use attestation::{Nonce, UnixTime};

/// A bounded table of unspent nonces and when each expires.
pub(crate) struct Nonces {
    unspent: Mutex<HashMap<Nonce, UnixTime>>,
    seconds: u64,
    capacity: usize,
}

/// Why a nonce does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Never handed out, already spent, or so long expired that it was forgotten.
    Unknown,
    Expired,
}

impl Nonces {
    pub(crate) fn new(seconds: u64, capacity: usize) -> Self {
        let unspent = Mutex::new(HashMap::new());
        Self {
            unspent,
            seconds,
            capacity,
        }
    }

    /// Takes a fresh nonce in; `false` if the table is full of unexpired ones.
    ///
    /// A full table refuses newcomers and keeps what it promised: those who already hold a nonce
    /// can still use it.
    pub(crate) fn insert(&self, nonce: Nonce, now: UnixTime) -> bool {
        let mut unspent = self.lock();
        if unspent.len() >= self.capacity {
            unspent.retain(|_, expires| now < *expires);
        }
        if unspent.len() >= self.capacity {
            return false;
        }
        unspent.insert(nonce, now.plus_seconds(self.seconds));
        true
    }

    /// Spends a nonce. Of all who try at once, one succeeds.
    pub(crate) fn spend(&self, nonce: &Nonce, now: UnixTime) -> Result<(), Refused> {
        let expires = self.lock().remove(nonce).ok_or(Refused::Unknown)?;
        // A clock that was set back must not lengthen a nonce's life beyond its lifetime either.
        let issued = expires.minus_seconds(self.seconds);
        if now < issued || now >= expires {
            return Err(Refused::Expired);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Nonce, UnixTime>> {
        // No panic can leave the map half changed.
        self.unspent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_good_until_the_second_before_it_expires() {
        let nonces = Nonces::new(10, 4);
        for (later, expected) in [(0, Ok(())), (9, Ok(())), (10, Err(Refused::Expired))] {
            nonces.insert([1; 32], UnixTime(100));
            assert_eq!(nonces.spend(&[1; 32], UnixTime(100 + later)), expected);
        }
        nonces.insert([1; 32], UnixTime(100));
        assert_eq!(nonces.spend(&[1; 32], UnixTime(99)), Err(Refused::Expired));
        assert_eq!(nonces.spend(&[1; 32], UnixTime(100)), Err(Refused::Unknown));
    }

    #[test]
    fn a_full_table_refuses_newcomers_until_something_expires() {
        let nonces = Nonces::new(10, 2);
        assert!(nonces.insert([1; 32], UnixTime(0)));
        assert!(nonces.insert([2; 32], UnixTime(5)));
        assert!(!nonces.insert([3; 32], UnixTime(9)));
        assert!(nonces.insert([3; 32], UnixTime(10)));
        assert_eq!(nonces.spend(&[1; 32], UnixTime(10)), Err(Refused::Unknown));
        assert_eq!(nonces.spend(&[2; 32], UnixTime(10)), Ok(()));
        assert_eq!(nonces.spend(&[3; 32], UnixTime(10)), Ok(()));
    }

    #[test]
    fn of_many_who_spend_one_nonce_at_once_exactly_one_succeeds() {
        let nonces = Nonces::new(10, 4);
        nonces.insert([1; 32], UnixTime(0));
        let winners: usize = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| nonces.spend(&[1; 32], UnixTime(1)).is_ok()))
                .collect();
            tries
                .into_iter()
                .filter_map(|handle| handle.join().ok())
                .filter(|won| *won)
                .count()
        });
        assert_eq!(winners, 1);
    }
}
