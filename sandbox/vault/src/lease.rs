//! The right of one subject to read part of a vault, until it ends.
//!
//! A lease is checked at every operation. When it is revoked, the keys it held are zeroed and its
//! view of the index is dropped, so what is left of it can do nothing.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use crate::commit::Shared;
use crate::error::{Part, ReadError};
use crate::format::index::{Index, Record};
use crate::object::Object;
use crate::store::Lock;
use crate::vault::{ObjectInfo, info};

/// What a lease grants, to whom, and for how long.
#[derive(Clone, Debug)]
pub struct LeaseTerms {
    /// Whom it is granted to, as the audit log shall name it.
    pub subject: String,
    /// The object of this name, and all below it; empty for the whole vault.
    pub prefix: String,
    /// What may be done.
    pub rights: Rights,
    /// When it ends by itself; `None` if only revocation ends it.
    pub expires: Option<Expiry>,
}

/// What may be done under a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rights {
    /// Names, lengths and times may be seen.
    pub list: bool,
    /// Content may be read.
    pub read: bool,
    /// Everything may be changed, where the lease is one of a [`Volume`](crate::volume::Volume).
    pub write: bool,
}

impl Rights {
    /// Names and content.
    pub const READ: Self = Self {
        list: true,
        read: true,
        write: false,
    };

    /// Names and content, and to change both.
    pub const WRITE: Self = Self {
        write: true,
        ..Self::READ
    };
}

/// A point in time, and the clock that tells when it has come.
///
/// Use a clock that neither the workload nor the host can set back, such as CLOCK_BOOTTIME.
#[derive(Clone)]
pub struct Expiry {
    /// The end, on the clock's scale.
    pub at: Duration,
    /// Tells the time.
    pub clock: Arc<dyn Fn() -> Duration + Send + Sync>,
}

impl Expiry {
    /// Time left; zero once it has come.
    pub fn left(&self) -> Duration {
        self.at.saturating_sub((self.clock)())
    }
}

impl fmt::Debug for Expiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expiry")
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

/// Why nothing was read under a lease.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// It was revoked.
    #[error("the lease was revoked")]
    Revoked,
    /// Its time has come.
    #[error("the lease has expired")]
    Expired,
    /// It does not grant this.
    #[error("the lease does not grant this")]
    NotGranted,
    /// No such object, or none that the lease lets be seen.
    #[error("no object of that name under this lease")]
    NotFound,
    /// The object could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// What was done under a lease so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeaseUse {
    /// How often an object was opened.
    pub opens: u64,
    /// Different objects among them.
    pub objects: u64,
    /// Reads that yielded data.
    pub reads: u64,
    /// Bytes they yielded.
    pub bytes: u64,
    /// Operations that changed something.
    pub writes: u64,
    /// Bytes that were written to files.
    pub written: u64,
    /// Operations refused, because of the terms or because the lease had ended.
    pub refused: u64,
}

/// An object under a lease that is not what was written: damage to the disk, or an attack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// Its name.
    pub object: String,
    /// The part that a read came upon first.
    pub what: Part,
}

/// Most damaged objects that one lease tells of. By then the store is lost, and that is known.
const MAX_DAMAGED: usize = 1024;

/// A lease. Dropping it ends it, as revoking does.
pub struct Lease {
    core: Arc<Core>,
}

/// An object opened under a lease. Useless without the lease, and closed when dropped.
pub struct LeasedObject {
    core: Arc<Core>,
    name: Box<str>,
    id: u64,
    len: u64,
}

struct Core {
    terms: LeaseTerms,
    /// Readers share it for as long as they hold data; ending the lease takes it alone.
    held: RwLock<Option<Held>>,
    ended: AtomicBool,
    expired: AtomicBool,
    next_id: AtomicU64,
    opens: AtomicU64,
    /// Objects that were opened at least once: no more than the index has.
    opened: Mutex<HashSet<Box<str>>>,
    reads: AtomicU64,
    bytes: AtomicU64,
    writes: AtomicU64,
    written: AtomicU64,
    refused: AtomicU64,
    at_end: Mutex<Vec<Box<dyn Fn() + Send>>>,
    damage: Mutex<Watch>,
}

type OnDamage = dyn Fn(&Damage) + Send + Sync;

/// Who is told of damage, and what has been told.
#[derive(Default)]
struct Watch {
    told: Vec<Arc<OnDamage>>,
    objects: HashSet<Box<str>>,
}

/// What a lease loses when it ends.
struct Held {
    shared: Arc<Shared>,
    index: Arc<Index>,
    open: Mutex<HashMap<u64, Arc<Object>>>,
    /// Keeps the files of the index from being removed; a volume's lease reads through the volume.
    _lock: Option<Lock>,
}

impl Held {
    fn get(&self, id: u64) -> Option<Arc<Object>> {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }
}

impl Lease {
    pub(crate) fn new(
        shared: Arc<Shared>,
        index: Arc<Index>,
        lock: Option<Lock>,
        terms: LeaseTerms,
    ) -> Self {
        let held = Held {
            shared,
            index,
            open: Mutex::default(),
            _lock: lock,
        };
        let core = Core {
            terms,
            held: RwLock::new(Some(held)),
            ended: AtomicBool::new(false),
            expired: AtomicBool::new(false),
            next_id: AtomicU64::new(1),
            opens: AtomicU64::new(0),
            opened: Mutex::default(),
            reads: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            written: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            at_end: Mutex::default(),
            damage: Mutex::default(),
        };
        Self {
            core: Arc::new(core),
        }
    }

    /// The terms it was granted under.
    pub fn terms(&self) -> &LeaseTerms {
        &self.core.terms
    }

    /// Lists the objects under this lease, by name.
    ///
    /// # Errors
    ///
    /// [`LeaseError::NotGranted`] without the right to list, or the lease has ended.
    pub fn list(&self) -> Result<Vec<ObjectInfo>, LeaseError> {
        self.core.during(|held| {
            self.core.grants(self.core.terms.rights.list)?;
            let all = held.index.iter();
            Ok(all
                .filter(|(n, _)| self.core.covers(n))
                .map(|(n, r)| info(n, r))
                .collect())
        })
    }

    /// Opens an object for reading.
    ///
    /// # Errors
    ///
    /// [`LeaseError::NotFound`] for a name outside the prefix too: what is there is not told.
    pub fn open(&self, name: &str) -> Result<LeasedObject, LeaseError> {
        let opened = self.open_untold(name);
        self.tell_if_damaged(name, &opened);
        opened
    }

    /// Opens an object; damage is left to the caller to tell.
    pub(crate) fn open_untold(&self, name: &str) -> Result<LeasedObject, LeaseError> {
        self.core.during(|held| {
            self.core.grants(self.core.terms.rights.read)?;
            let record: Option<&Record> = held.index.get(name).filter(|_| self.core.covers(name));
            let record = record.ok_or(LeaseError::NotFound)?;
            let object = Object::open(&held.shared.store, &held.shared.keys, record)
                .map_err(|e| e.of(name))?;
            let id = self.core.next_id.fetch_add(1, Ordering::Relaxed);
            let len = object.len();
            held.open
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(id, Arc::new(object));
            self.core.opens.fetch_add(1, Ordering::Relaxed);
            let mut opened = self
                .core
                .opened
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            if !opened.contains(name) {
                opened.insert(name.into());
            }
            drop(opened);
            Ok(LeasedObject {
                core: Arc::clone(&self.core),
                name: name.into(),
                id,
                len,
            })
        })
    }

    /// Reads from `offset` until `buf` is full or the object ends; returns the bytes read.
    ///
    /// # Errors
    ///
    /// [`LeaseError::Revoked`] or [`LeaseError::Expired`] once the lease has ended, also for objects
    /// opened before; [`LeaseError::NotFound`] for an object of another lease. `buf` then holds no
    /// data of the vault.
    pub fn read_at(
        &self,
        object: &LeasedObject,
        buf: &mut [u8],
        offset: u64,
    ) -> Result<usize, LeaseError> {
        let read = self.read_and(object, buf, offset, |data| data.len());
        self.tell_if_damaged(&object.name, &read);
        read
    }

    /// Reads, and hands the data on before the lease can end: once [`Lease::revoke`] has returned,
    /// no `deliver` is running or will run. Damage is left to the caller to tell.
    pub(crate) fn read_and<T>(
        &self,
        object: &LeasedObject,
        buf: &mut [u8],
        offset: u64,
        deliver: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, LeaseError> {
        self.core.during(|held| {
            let ours = Arc::ptr_eq(&object.core, &self.core);
            let open = held
                .get(object.id)
                .filter(|_| ours)
                .ok_or(LeaseError::NotFound)?;
            let read = open.read_at(buf, offset).map_err(|e| e.of(&object.name))?;
            self.core.reads.fetch_add(1, Ordering::Relaxed);
            self.core.bytes.fetch_add(read as u64, Ordering::Relaxed);
            Ok(deliver(&buf[..read]))
        })
    }

    /// Does something that needs a right, while the lease holds: once [`Lease::revoke`] has returned,
    /// nothing of it is running or will run.
    #[cfg_attr(not(feature = "fuse"), allow(dead_code))]
    pub(crate) fn hold<T>(
        &self,
        right: impl FnOnce(Rights) -> bool,
        act: impl FnOnce() -> T,
    ) -> Result<T, LeaseError> {
        self.core.during(|_| {
            self.core.grants(right(self.core.terms.rights))?;
            Ok(act())
        })
    }

    /// Counts a read of a volume.
    #[cfg_attr(not(feature = "fuse"), allow(dead_code))]
    pub(crate) fn count_read(&self, bytes: usize) {
        self.core.reads.fetch_add(1, Ordering::Relaxed);
        self.core.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a change of a volume.
    #[cfg_attr(not(feature = "fuse"), allow(dead_code))]
    pub(crate) fn count_write(&self, bytes: usize) {
        self.core.writes.fetch_add(1, Ordering::Relaxed);
        self.core.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts a file of a volume that was opened.
    #[cfg_attr(not(feature = "fuse"), allow(dead_code))]
    pub(crate) fn count_open(&self) {
        self.core.opens.fetch_add(1, Ordering::Relaxed);
    }

    /// Directories that are more than a part of names, under this lease.
    #[cfg_attr(not(feature = "fuse"), allow(dead_code))]
    pub(crate) fn directories(&self) -> Result<Vec<String>, LeaseError> {
        self.core.during(|held| {
            self.core.grants(self.core.terms.rights.list)?;
            let all = held.index.directories.keys();
            Ok(all.filter(|n| self.core.covers(n)).cloned().collect())
        })
    }

    /// Ends the lease. When this returns, its keys are zeroed, no read is under way, none will
    /// succeed, and what serves the lease has been told.
    pub fn revoke(&self) {
        self.core.end();
    }

    /// Whether the lease has ended, by revocation or by time.
    pub fn has_ended(&self) -> bool {
        self.core.ended.load(Ordering::Acquire) || self.core.is_past()
    }

    /// What was done so far.
    pub fn usage(&self) -> LeaseUse {
        LeaseUse {
            opens: self.core.opens.load(Ordering::Relaxed),
            objects: self
                .core
                .opened
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .len() as u64,
            reads: self.core.reads.load(Ordering::Relaxed),
            bytes: self.core.bytes.load(Ordering::Relaxed),
            writes: self.core.writes.load(Ordering::Relaxed),
            written: self.core.written.load(Ordering::Relaxed),
            refused: self.core.refused.load(Ordering::Relaxed),
        }
    }

    /// Has `told` called once for each object that a read under this lease finds tampered with or
    /// damaged, up to 1024 of them. The end of a lease is no damage.
    ///
    /// It is called after the read has failed, in the thread that read, or for a served lease in a
    /// thread of the server, with none of the lease's locks held: it may use the lease, and revoke
    /// it. It must not wait for whoever shuts the server down, who waits for it, and should not own
    /// the lease, which would then never be dropped. Damage met before this call is told when it is
    /// met again, unless somebody was told.
    pub fn on_damage(&self, told: impl Fn(&Damage) + Send + Sync + 'static) {
        self.core.watch().told.push(Arc::new(told));
    }

    /// The damage in this outcome, if it is of an object that nobody was told of; from now on
    /// somebody was, so [`Lease::tell`] it.
    pub(crate) fn new_damage<T>(
        &self,
        object: &str,
        outcome: &Result<T, LeaseError>,
    ) -> Option<Damage> {
        let Err(LeaseError::Read(ReadError::Tampered { what, .. })) = outcome else {
            return None;
        };
        let mut watch = self.core.watch();
        let room = !watch.told.is_empty() && watch.objects.len() < MAX_DAMAGED;
        (room && watch.objects.insert(object.into())).then(|| Damage {
            object: object.to_owned(),
            what: *what,
        })
    }

    /// Tells of damage. The lease must not be held by a read of this thread.
    pub(crate) fn tell(&self, damage: &Damage) {
        let told = self.core.watch().told.clone();
        for told in told {
            told(damage);
        }
    }

    fn tell_if_damaged<T>(&self, object: &str, outcome: &Result<T, LeaseError>) {
        if let Some(damage) = self.new_damage(object, outcome) {
            self.tell(&damage);
        }
    }

    /// Has `told` called once the lease is revoked, in the thread that revokes; at once if it was.
    #[cfg_attr(not(feature = "fuse"), allow(dead_code))]
    pub(crate) fn at_end(&self, told: impl Fn() + Send + 'static) {
        let mut at_end = self
            .core
            .at_end
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if self.core.ended.load(Ordering::Acquire) {
            drop(at_end);
            told();
        } else {
            at_end.push(Box::new(told));
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.core.end();
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ended = self.has_ended();
        f.debug_struct("Lease")
            .field("ended", &ended)
            .finish_non_exhaustive()
    }
}

impl LeasedObject {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of content.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no content.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for LeasedObject {
    fn drop(&mut self) {
        let held = self
            .core
            .held
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = held.as_ref() {
            held.open
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&self.id);
        }
    }
}

impl fmt::Debug for LeasedObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeasedObject")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Core {
    /// Does something while the lease holds, and keeps it from ending meanwhile.
    fn during<T>(&self, act: impl FnOnce(&Held) -> Result<T, LeaseError>) -> Result<T, LeaseError> {
        let outcome = self.check().and_then(|()| {
            let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
            // Looked at again under the lock: it may have ended while waiting for it.
            match held.as_ref() {
                Some(held) if !self.ended.load(Ordering::Acquire) => act(held),
                _ => Err(self.reason()),
            }
        });
        use LeaseError::{Expired, NotFound, NotGranted, Revoked};
        if matches!(outcome, Err(Revoked | Expired | NotFound | NotGranted)) {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        outcome
    }

    fn check(&self) -> Result<(), LeaseError> {
        if self.ended.load(Ordering::Acquire) {
            return Err(self.reason());
        }
        if self.is_past() {
            // Whoever notices first drops the keys. What serves the lease is told by its own watch:
            // this thread may be the one that the kernel waits for.
            self.expired.store(true, Ordering::Release);
            self.drop_keys();
            return Err(LeaseError::Expired);
        }
        Ok(())
    }

    fn reason(&self) -> LeaseError {
        if self.expired.load(Ordering::Acquire) {
            LeaseError::Expired
        } else {
            LeaseError::Revoked
        }
    }

    fn is_past(&self) -> bool {
        // Once past, always past: a clock set back brings nothing back.
        self.expired.load(Ordering::Acquire)
            || self
                .terms
                .expires
                .as_ref()
                .is_some_and(|expiry| expiry.left().is_zero())
    }

    fn grants(&self, right: bool) -> Result<(), LeaseError> {
        if right {
            Ok(())
        } else {
            Err(LeaseError::NotGranted)
        }
    }

    fn covers(&self, name: &str) -> bool {
        let prefix = self.terms.prefix.trim_end_matches('/');
        let rest = name.strip_prefix(prefix);
        prefix.is_empty() || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    fn watch(&self) -> std::sync::MutexGuard<'_, Watch> {
        self.damage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.drop_keys();
        // Under the lock, so that a second caller returns no sooner than the first.
        let mut at_end = self.at_end.lock().unwrap_or_else(PoisonError::into_inner);
        for tell in at_end.drain(..) {
            tell();
        }
    }

    fn drop_keys(&self) {
        let mut held = self.held.write().unwrap_or_else(PoisonError::into_inner);
        // Objects zero their keys as they are dropped. Nobody else has one: readers share the lock
        // for as long as they do.
        *held = None;
    }
}
