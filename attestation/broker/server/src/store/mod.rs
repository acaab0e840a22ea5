//! What a broker keeps beyond a request: sessions with their nonces, and what was revoked.
//!
//! One [`Store`] in a file of its own ([`embedded`]), or one that any number of replicas share
//! ([`etcd`]). What is read is never older than the question, and a value is only ever changed by
//! comparing and swapping: of all who try one swap, on whichever replica, one succeeds. A store that
//! cannot be reached gives errors, and nothing is released on an error.

pub mod embedded;
pub mod etcd;
mod uri;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use attestation::UnixTime;

pub use uri::{UriError, at};

/// Most bytes of a value.
pub const MAX_VALUE: usize = 1 << 20;

/// Where a broker keeps what has to outlive a request.
pub trait Store: Send + Sync {
    /// The entries of these keys, all as of one moment after the call.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing is known about them then.
    fn read(&self, keys: &[&str], now: UnixTime) -> Result<Vec<Option<Entry>>, StoreError>;

    /// Everything under a prefix, and the revision as of which it is that.
    ///
    /// # Errors
    ///
    /// [`StoreError`].
    fn list(&self, prefix: &str, now: UnixTime) -> Result<Listing, StoreError>;

    /// Puts something in place of what is expected there, and gives its version (if nothing is to be there,
    /// that of the change); `None` if something else is there.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; it may have happened or not, so nothing may rest on it.
    fn swap(&self, swap: &Swap<'_>, now: UnixTime) -> Result<Option<u64>, StoreError>;

    /// What has changed under a prefix since a revision, without a gap; waits for it, but no longer than
    /// about `patience`.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing is known then, and the same question can be asked again.
    fn changes(&self, prefix: &str, after: u64, patience: Duration) -> Result<Changes, StoreError>;
}

/// A value, and which one of its key's it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The value.
    pub value: Vec<u8>,
    /// Tells it from every value that was or will be there.
    pub version: u64,
}

/// Everything under a prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// By key.
    pub entries: BTreeMap<String, Entry>,
    /// The revision as of which it is that: what comes after it, [`Store::changes`] tells.
    pub revision: u64,
}

/// What is to be there, in place of what.
#[derive(Clone, Copy, Debug)]
pub struct Swap<'a> {
    /// Where.
    pub key: &'a str,
    /// What has to be there.
    pub expected: Expected,
    /// What is to be there; nothing, if `None`.
    pub value: Option<&'a [u8]>,
    /// For how many seconds; for good, if `None`.
    pub lifetime: Option<u64>,
}

/// What has to be there for a swap to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Absent,
    /// This very value.
    Version(u64),
    /// Whatever it is.
    Anything,
}

/// What has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changes {
    /// These keys, in order; with the revision to go on from.
    Since {
        /// Keys whose value has changed or is gone.
        keys: Vec<String>,
        /// What to ask for next.
        revision: u64,
    },
    /// The store does not remember that far back: list everything again.
    Forgotten,
}

/// Why a store gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It cannot be reached, or does not answer in time.
    #[error("the store cannot be reached: {0}")]
    Unreachable(String),
    /// It answers what it should not.
    #[error("the store answers strangely: {0}")]
    Strange(String),
    /// It holds as much as it may.
    #[error("the store is full until something in it expires")]
    Full,
    /// The file cannot be read or written.
    #[error("the store `{path}` cannot be used: {why}")]
    File {
        /// The file.
        path: String,
        /// Why.
        why: String,
    },
}

/// A store of whichever kind.
pub type AnyStore = Arc<dyn Store>;

/// What every kind of store has to do; each runs it in its own tests.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod contract {
    use super::*;

    pub(crate) fn put<'a>(key: &'a str, expected: Expected, value: &'a [u8]) -> Swap<'a> {
        Swap {
            key,
            expected,
            value: Some(value),
            lifetime: None,
        }
    }

    /// Runs everything against a store that is empty under `base`.
    pub(crate) fn holds(store: &dyn Store, base: &str) {
        let now = UnixTime::from(std::time::SystemTime::now());
        let key = |name: &str| format!("{base}{name}");
        let read = |name: &str| store.read(&[&key(name)], now).unwrap().remove(0);
        let swap = |swap: Swap<'_>| store.swap(&swap, now).unwrap().is_some();

        // Of a swap's two expectations the one that is true counts.
        let a = key("a");
        assert_eq!(read("a"), None);
        assert!(!swap(put(&a, Expected::Version(1), b"x")));
        let version = store.swap(&put(&a, Expected::Absent, b"1"), now).unwrap();
        assert!(!swap(put(&a, Expected::Absent, b"2")));
        let first = read("a").unwrap();
        assert_eq!(version, Some(first.version));
        assert_eq!(first.value, b"1");
        assert!(swap(put(&a, Expected::Version(first.version), b"2")));
        assert!(!swap(put(&a, Expected::Version(first.version), b"3")));
        // The same value again is another one.
        assert!(swap(put(&a, Expected::Anything, b"1")));
        assert_ne!(read("a").unwrap().version, first.version);

        // Of many who take one value, one gets it.
        let version = read("a").unwrap().version;
        let winners: usize = std::thread::scope(|scope| {
            let take = || {
                let gone = Swap {
                    key: &a,
                    expected: Expected::Version(version),
                    value: None,
                    lifetime: None,
                };
                usize::from(swap(gone))
            };
            let tries: Vec<_> = (0..8).map(|_| scope.spawn(take)).collect();
            tries.into_iter().map(|one| one.join().unwrap()).sum()
        });
        assert_eq!((winners, read("a")), (1, None));

        // A watch misses nothing between the listing and the question, and waits for what is to come.
        let before = store.list(&key("w/"), now).unwrap();
        assert!(before.entries.is_empty());
        let (w1, w2) = (key("w/1"), key("w/2"));
        for key in [&w1, &key("x"), &w2] {
            assert!(swap(put(key, Expected::Absent, b"1")));
        }
        let mut revision = before.revision;
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let patience = Duration::from_secs(10);
            let Changes::Since {
                keys,
                revision: next,
            } = store.changes(&key("w/"), revision, patience).unwrap()
            else {
                panic!("nothing is forgotten so soon");
            };
            seen.extend(keys);
            revision = next;
        }
        assert_eq!(seen, [w1.clone(), w2]);
        let none = store
            .changes(&key("w/"), revision, Duration::from_millis(1))
            .unwrap();
        assert!(matches!(none, Changes::Since { keys, .. } if keys.is_empty()));
        let told = std::thread::scope(|scope| {
            let ask = || {
                store
                    .changes(&key("w/"), revision, Duration::from_secs(10))
                    .unwrap()
            };
            let waiting = scope.spawn(ask);
            let gone = Swap {
                key: &w1,
                expected: Expected::Anything,
                value: None,
                lifetime: None,
            };
            assert!(swap(gone));
            waiting.join().unwrap()
        });
        assert!(matches!(told, Changes::Since { keys, .. } if keys == [w1]));
        assert_eq!(store.list(&key("w/"), now).unwrap().entries.len(), 1);
    }
}
