//! A lease as a file system: of a vault, read-only, or of a volume, to be written to.
//!
//! ```text
//! sandbox init: open /dev/fuse ▸ mount(2) with fd=N ▸ pass the descriptor on ▸ close its own copy
//! supervisor:   serve(descriptor, lease, owner) ▸ workers answer ▸ lease.revoke() ▸ nothing is left
//! ```
//!
//! The descriptor is mounted already, by the process that owns the mount namespace; here it is only
//! served. The protocol loop is ours because this side must be able to stop: closing the last
//! descriptor ends the connection, and every later access fails with `ENOTCONN`, mounted or not.
//!
//! **What the kernel may cache.** Pages: yes, or mmap(2) would not work (a file opened with
//! FOPEN_DIRECT_IO cannot be mapped shared), and small reads would all come here. So reading a page
//! twice does not ask twice. Therefore the end of a lease invalidates every node that the kernel was
//! ever told of: it drops the pages, unmaps them from every process, and the next access asks again
//! and gets `EACCES` (`SIGBUS` through a mapping). FOPEN_KEEP_CACHE is not used: each open starts
//! empty (but of a volume, which changes through this mount only). Names and attributes are cached for a second at most, and are invalidated too.
//!
//! **The server must not map what it serves**, nor let its own pages be faulted in from the mount: it
//! would wait for its own answer with its memory map locked. Workloads are other processes.

mod listeners;
mod mount;
mod tree;
mod wire;
mod write;

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use zeroize::Zeroize;

use self::listeners::Listeners;
pub use self::mount::{Mount, MountError, read_ahead};
use self::tree::{Kind, ROOT, Tree};
use self::wire::{Operation, Out, Request};
use crate::lease::{Damage, Lease, LeaseError, LeasedObject};
use crate::secret::Plaintext;
use crate::volume::{Entry, NodeKind, Volume};

/// How long the kernel may rely on a name or an attribute.
const VALID: Duration = Duration::from_secs(1);

/// How long the kernel's first request may take: it waits in the descriptor since the mount.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// Threads that answer. Decryption is parallel, the descriptor is shared: FUSE_DEV_IOC_CLONE works
/// only within the user namespace that mounted.
const WORKERS: usize = 2;

/// The same for a volume: some may be waiting for the disk.
const WRITING_WORKERS: usize = 4;

/// How long a change waits for a commit that nobody asks for.
const COMMIT_EVERY: Duration = Duration::from_secs(5);

/// Why a descriptor cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// It is not a mounted /dev/fuse.
    #[error("the descriptor is no mounted /dev/fuse; mount it first, with its number as `fd=`")]
    NotMounted(#[source] io::Error),
    /// The kernel speaks an older protocol.
    #[error("the kernel's FUSE protocol {major}.{minor} is too old; 7.28 (Linux 4.20) is needed")]
    Protocol {
        /// Its major version.
        major: u32,
        /// Its minor version.
        minor: u32,
    },
    /// The lease does not let names be listed, or has ended.
    #[error("the lease cannot be served")]
    Lease(#[from] LeaseError),
    /// The lease that is served has not ended, so no other takes its place.
    #[error("the lease that is being served has not ended")]
    Held,
    /// No descriptor or thread was to be had.
    #[error("could not start serving")]
    Io(#[source] io::Error),
}

/// Serves a lease over a mounted /dev/fuse descriptor, which is best the last one of its kind: while
/// a copy is open elsewhere, [`FuseServer::shutdown`] leaves callers waiting instead of failing.
///
/// All files belong to `owner` (user id, group id), as seen from the mount's user namespace.
///
/// # Errors
///
/// [`ServeError::NotMounted`] if the kernel does not begin to talk within five seconds.
pub fn serve(
    device: OwnedFd,
    lease: Arc<Lease>,
    owner: (u32, u32),
) -> Result<FuseServer, ServeError> {
    let tree = Tree::new(lease.list()?, &lease.directories()?);
    let files = Files::Tree(tree);
    start(device, Shown { lease, files }, owner)
}

/// Serves a volume under a lease of it, as [`serve`] does a vault's.
///
/// What was written is committed when fsync(2) asks for it, and every few seconds. When the lease ends,
/// the volume is closed, and what was not committed is lost: [`Volume::uncommitted`] tells what it was.
/// Stopping the service commits nothing.
///
/// # Errors
///
/// As for [`serve`].
pub fn serve_volume(
    device: OwnedFd,
    volume: Arc<Volume>,
    lease: Arc<Lease>,
    owner: (u32, u32),
) -> Result<FuseServer, ServeError> {
    let files = Files::Volume(volume);
    start(device, Shown { lease, files }, owner)
}

fn start(device: OwnedFd, shown: Shown, owner: (u32, u32)) -> Result<FuseServer, ServeError> {
    let writes = matches!(shown.files, Files::Volume(_));
    fcntl_setfd(&device, FdFlags::CLOEXEC).map_err(|e| ServeError::Io(e.into()))?;
    let flags = fcntl_getfl(&device).map_err(|e| ServeError::Io(e.into()))?;
    fcntl_setfl(&device, flags | OFlags::NONBLOCK).map_err(|e| ServeError::Io(e.into()))?;
    handshake(&device, writes)?;

    let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
    let wake = wake.map_err(|e| ServeError::Io(e.into()))?;
    let device = Arc::new(device);
    let (damaged, damage) = channel::<Met>();
    let inner = Arc::new(Inner {
        device: Mutex::new(Some(Arc::clone(&device))),
        wake,
        listeners: Listeners::default(),
        stopping: AtomicBool::new(false),
        shown: RwLock::new(Arc::new(shown)),
        owner,
        files: Mutex::default(),
        listings: Mutex::default(),
        next_handle: AtomicU64::new(1),
        damaged: Mutex::new(Some(damaged)),
        workers: Mutex::default(),
    });
    let mut server = FuseServer {
        inner: Arc::clone(&inner),
        threads: Vec::new(),
    };
    let workers = if writes { WRITING_WORKERS } else { WORKERS };
    for number in 0..workers {
        let (inner, device) = (Arc::clone(&inner), Arc::clone(&device));
        server.spawn(format!("vault-fuse-{number}"), move || inner.work(&device))?;
    }
    // A thread of its own: whoever is told may revoke the lease, which no worker could wait for.
    server.spawn("vault-fuse-damage".to_owned(), move || {
        for (lease, damage) in damage {
            lease.tell(&damage);
        }
    })?;
    server.follow(&inner.shown())?;
    Ok(server)
}

/// A lease being served. Dropping it stops the service, as [`FuseServer::shutdown`] does.
pub struct FuseServer {
    inner: Arc<Inner>,
    threads: Vec<JoinHandle<()>>,
}

impl FuseServer {
    /// Has the kernel drop all it has cached: pages, mapped ones too, attributes, names.
    ///
    /// The end of the lease does this by itself, before [`Lease::revoke`] returns. If the kernel
    /// refuses, the service is stopped instead: nothing stays readable.
    pub fn invalidate(&self) {
        self.inner.invalidate(&self.inner.shown());
    }

    /// Serves another lease at the same place, after the one before it has ended.
    ///
    /// What was opened under the ended lease stays as it is: no descriptor, mapping or working folder
    /// reads a byte again. Whoever wants to read looks the name up anew, and sees what the new lease
    /// shows, which may be another state of the vault.
    ///
    /// # Errors
    ///
    /// [`ServeError::Lease`] if the new lease does not let names be listed or has ended;
    /// [`ServeError::Held`] if the old one has not; [`ServeError::Io`] if the service has stopped.
    pub fn renew(&mut self, lease: Arc<Lease>) -> Result<(), ServeError> {
        self.replace(|before| {
            let (objects, directories) = (lease.list()?, lease.directories()?);
            let files = match &before.files {
                Files::Tree(tree) => Files::Tree(tree.next(objects, &directories)),
                Files::Volume(_) => return Err(ServeError::Held),
            };
            Ok(Shown { lease, files })
        })
    }

    /// Serves another volume at the same place, after the lease of the one before it has ended. It was
    /// made by [`Volume::after`].
    ///
    /// # Errors
    ///
    /// As for [`FuseServer::renew`].
    pub fn renew_volume(
        &mut self,
        volume: Arc<Volume>,
        lease: Arc<Lease>,
    ) -> Result<(), ServeError> {
        self.replace(|_| {
            let files = Files::Volume(volume);
            Ok(Shown { lease, files })
        })
    }

    fn replace(
        &mut self,
        next: impl FnOnce(&Shown) -> Result<Shown, ServeError>,
    ) -> Result<(), ServeError> {
        let before = self.inner.shown();
        if !before.lease.has_ended() {
            return Err(ServeError::Held);
        }
        if !self.is_serving() {
            return Err(ServeError::Io(io::ErrorKind::NotConnected.into()));
        }
        // One that ended by its time may not have been taken back from the kernel yet.
        before.lease.revoke();
        let shown = Arc::new(next(&before)?);
        self.follow(&shown)?;
        *self
            .inner
            .shown
            .write()
            .unwrap_or_else(PoisonError::into_inner) = shown;
        Ok(())
    }

    /// Has the end of a lease heard of: by time, and by revocation.
    fn follow(&mut self, shown: &Arc<Shown>) -> Result<(), ServeError> {
        let lease = &shown.lease;
        if lease.terms().expires.is_some() {
            let (inner, lease) = (Arc::clone(&self.inner), Arc::clone(lease));
            self.spawn("vault-fuse-clock".to_owned(), move || inner.watch(&lease))?;
        }
        if let Files::Volume(_) = &shown.files {
            let (inner, shown) = (Arc::clone(&self.inner), Arc::clone(shown));
            self.spawn("vault-fuse-commit".to_owned(), move || {
                inner.commit_now_and_then(&shown)
            })?;
        }
        let (told, what) = (Arc::downgrade(&self.inner), Arc::downgrade(shown));
        lease.at_end(move || {
            if let (Some(inner), Some(shown)) = (told.upgrade(), what.upgrade()) {
                if let Files::Volume(volume) = &shown.files {
                    volume.close();
                }
                inner.invalidate(&shown);
            }
        });
        Ok(())
    }

    /// The threads that answer requests; see gettid(2). One of them may hold what a revocation waits for,
    /// while the scheduler has given its processor to somebody else.
    pub fn workers(&self) -> Vec<i32> {
        let workers = self.inner.workers.lock();
        workers.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether requests are still answered: not after a shutdown, and not once it is unmounted.
    pub fn is_serving(&self) -> bool {
        !self.inner.stopping.load(Ordering::Acquire)
    }

    /// Drops what the kernel cached, stops answering, and closes the descriptor. Whatever is still
    /// mounted or open fails with `ENOTCONN` from now on.
    pub fn shutdown(self) {}

    fn spawn(
        &mut self,
        name: String,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), ServeError> {
        let thread = std::thread::Builder::new().name(name).spawn(run);
        self.threads.push(thread.map_err(ServeError::Io)?);
        Ok(())
    }
}

impl Drop for FuseServer {
    fn drop(&mut self) {
        if self.is_serving() {
            self.invalidate();
        }
        self.inner.stop();
        let this = std::thread::current().id();
        // Whoever is told of damage may stop the service from the thread that tells it.
        for thread in self.threads.drain(..).filter(|t| t.thread().id() != this) {
            // A thread that panicked has stopped too.
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for FuseServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let serving = self.is_serving();
        f.debug_struct("FuseServer")
            .field("serving", &serving)
            .finish_non_exhaustive()
    }
}

struct Inner {
    /// Taken when the service stops; the last worker that still uses it closes it.
    device: Mutex<Option<Arc<OwnedFd>>>,
    wake: OwnedFd,
    listeners: Listeners,
    stopping: AtomicBool,
    /// Replaced only when its lease has ended.
    shown: RwLock<Arc<Shown>>,
    owner: (u32, u32),
    files: Mutex<HashMap<u64, Arc<Opened>>>,
    /// Directories of a volume that are being read, as they were when somebody began to.
    listings: Mutex<HashMap<u64, Arc<[Entry]>>>,
    next_handle: AtomicU64,
    /// Takes each damaged object once, so it holds few. Closed when the service stops.
    damaged: Mutex<Option<Sender<Met>>>,
    workers: Mutex<Vec<i32>>,
}

/// Damage, and the lease under which it was met.
type Met = (Arc<Lease>, Damage);

/// A lease, and what it shows.
struct Shown {
    lease: Arc<Lease>,
    files: Files,
}

enum Files {
    /// Of a vault as it was when it was leased.
    Tree(Tree),
    Volume(Arc<Volume>),
}

/// An open file: it reads under the lease it was opened under, and under no later one.
struct Opened {
    shown: Arc<Shown>,
    object: LeasedObject,
}

/// What a worker is asked with and answers with: wiped before it sleeps, and when it ends. After each
/// request that would take a good part of the time that the cipher takes.
struct Buffers {
    request: Plaintext,
    data: Plaintext,
    /// How much of each may hold content.
    used: (usize, usize),
}

impl Buffers {
    fn new(request: usize) -> Self {
        Self {
            request: Plaintext::zeros(request),
            data: Plaintext::zeros(wire::MAX_READ),
            used: (0, 0),
        }
    }

    fn wipe(&mut self) {
        let (asked, given) = std::mem::take(&mut self.used);
        self.request[..asked].zeroize();
        self.data[..given].zeroize();
    }
}

/// What a worker does after a request.
#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    Stop,
}

impl Shown {
    fn read_dir(&self, tree: &Tree, number: u64, offset: u64, size: u32) -> Result<Out, Errno> {
        self.alive()?;
        let node = tree.get(number).ok_or(Errno::NOENT)?;
        let Kind::Directory { children } = &node.kind else {
            return Err(Errno::NOTDIR);
        };
        let room = (size as usize).min(wire::MAX_READ);
        let dots = [(".", number), ("..", node.parent)];
        let entries = dots
            .into_iter()
            .chain(children.iter().map(|(n, c)| (n.as_str(), *c)));
        let mut out = Out::default();
        for ((name, child), at) in entries.zip(1u64..).skip(offset as usize) {
            let kind = tree.get(child).map_or(NodeKind::File, tree::Node::kind);
            if !wire::add_entry(&mut out, room, child, at, kind, name.as_bytes()) {
                break;
            }
        }
        Ok(out)
    }

    /// The nodes that the kernel may have cached, each with its parent and name.
    fn known(&self) -> Vec<(u64, u64, String)> {
        match &self.files {
            Files::Tree(tree) => tree
                .known()
                .map(|(number, node)| (number, node.parent, node.name.clone()))
                .collect(),
            Files::Volume(volume) => volume.known(),
        }
    }

    fn alive(&self) -> Result<(), Errno> {
        if self.lease.has_ended() {
            Err(Errno::ACCESS)
        } else {
            Ok(())
        }
    }

    /// How long an answer given now holds: never beyond the lease.
    fn valid(&self) -> Duration {
        if self.lease.has_ended() {
            return Duration::ZERO;
        }
        self.lease
            .terms()
            .expires
            .as_ref()
            .map_or(VALID, |expiry| expiry.left().min(VALID))
    }
}

impl Inner {
    fn shown(&self) -> Arc<Shown> {
        Arc::clone(&self.shown.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Answers requests until the service stops or the file system is unmounted.
    fn work(&self, device: &OwnedFd) {
        let own = rustix::thread::gettid().as_raw_nonzero().get();
        let workers = || self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        workers().push(own);
        self.answer_all(device);
        // Somebody else may be given that number.
        workers().retain(|worker| *worker != own);
    }

    fn answer_all(&self, device: &OwnedFd) {
        let writes = matches!(self.shown().files, Files::Volume(_));
        let len = if writes {
            wire::WRITE_REQUEST_LEN
        } else {
            wire::REQUEST_LEN
        };
        let mut buffers = Buffers::new(len);
        let Ok(waiting) = self.waiting_room(device) else {
            return self.stop();
        };
        let mut listening = self.listeners.listen(|| ());
        while listening && !self.stopping.load(Ordering::Acquire) {
            match rustix::io::read(device, &mut buffers.request[..]) {
                Ok(len) => {
                    self.listeners.took_one();
                    if self.answer_one(device, &mut buffers, len) == Next::Stop {
                        break;
                    }
                    listening = self.listeners.listen(|| buffers.wipe());
                }
                Err(Errno::AGAIN) if self.listeners.are_awake() => std::thread::yield_now(),
                Err(Errno::AGAIN) => {
                    buffers.wipe();
                    wait(&waiting);
                }
                // The request was interrupted before we had it.
                Err(Errno::INTR | Errno::NOENT) => {}
                // ENODEV: unmounted. Anything else: the connection cannot be relied on.
                Err(_) => break,
            }
        }
        self.stop();
    }

    /// What a worker waits at: a request wakes one of them, the end of the service all.
    fn waiting_room(&self, device: &OwnedFd) -> Result<OwnedFd, Errno> {
        let room = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let one = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
        epoll::add(&room, device, epoll::EventData::new_u64(0), one)?;
        let all = epoll::EventFlags::IN;
        epoll::add(&room, &self.wake, epoll::EventData::new_u64(1), all)?;
        Ok(room)
    }

    /// Ends the lease when its time has come, also while nobody asks for anything.
    fn watch(&self, lease: &Lease) {
        while !self.stopping.load(Ordering::Acquire) {
            if lease.has_ended() {
                lease.revoke();
                return;
            }
            let left = lease
                .terms()
                .expires
                .as_ref()
                .map_or(VALID, |expiry| expiry.left());
            // Not longer than a second: the clock is the caller's and may jump.
            let left = left.min(VALID).max(Duration::from_millis(1));
            let left = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            let _ = poll(&mut [PollFd::new(&self.wake, PollFlags::IN)], Some(&left));
        }
    }

    fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        // The counter is never read, so everybody who waits wakes up, now and later.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        self.listeners.stop();
        self.device
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        self.damaged
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
    }

    fn pass_on_damage<T>(&self, lease: &Arc<Lease>, object: &str, outcome: &Result<T, LeaseError>) {
        if let Some(damage) = lease.new_damage(object, outcome) {
            let damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
            let damage = (Arc::clone(lease), damage);
            // A service that stops meanwhile has nobody left to tell.
            let _ = damaged.as_ref().map(|damaged| damaged.send(damage));
        }
    }

    /// Must not be called by a worker: the kernel may wait for an answer before it returns.
    fn invalidate(&self, shown: &Shown) {
        let device = self
            .device
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let Some(device) = device else { return };
        for (number, parent, name) in shown.known() {
            if number != ROOT {
                let (code, name) = wire::forget_entry(parent, name.as_bytes());
                // A name that stays is harmless: its node is invalidated next.
                let _ = send(&device, 0, code, name.as_slice());
            }
            let (code, forget) = wire::forget_node(number);
            match send(&device, 0, code, forget.as_slice()) {
                // NOENT: the kernel has forgotten it already. NODEV: unmounted.
                Ok(()) | Err(Errno::NOENT | Errno::NODEV) => {}
                Err(_) => return self.stop(),
            }
        }
    }

    fn answer_one(&self, device: &OwnedFd, buffers: &mut Buffers, len: usize) -> Next {
        let Some(parsed) = wire::parse(&buffers.request[..len]) else {
            return Next::Stop;
        };
        let (asked, given) = &mut buffers.used;
        *asked = len.max(*asked);
        if let Operation::Read { size, .. } = parsed.operation {
            *given = (size as usize).min(wire::MAX_READ).max(*given);
        }
        self.answer(device, parsed, &mut buffers.data)
    }

    fn answer(&self, device: &OwnedFd, request: Request<'_>, data: &mut [u8]) -> Next {
        let unique = request.unique;
        let sent = match request.operation {
            Operation::Silent => return Next::GoOn,
            Operation::Forget { .. } | Operation::ForgetMany { .. } => {
                self.forget(&request);
                return Next::GoOn;
            }
            Operation::Destroy => {
                let _ = send(device, unique, 0, &[]);
                return Next::Stop;
            }
            Operation::Read {
                handle,
                offset,
                size,
            } => match &self.shown() {
                shown if matches!(shown.files, Files::Volume(_)) => {
                    let read = (request.node, offset, size as usize);
                    self.read_of_volume(device, unique, shown, read, data)
                }
                _ => self.read(device, unique, handle, offset, size, data),
            },
            _ => match self.reply(&request) {
                Ok(out) => send(device, unique, 0, out.as_slice()),
                Err(errno) => send(device, unique, -errno.raw_os_error(), &[]),
            },
        };
        match sent {
            // NOENT: whoever asked was interrupted and does not wait any more.
            Ok(()) | Err(Errno::NOENT) => Next::GoOn,
            Err(_) => Next::Stop,
        }
    }

    /// Answers everything that carries no content.
    fn reply(&self, request: &Request<'_>) -> Result<Out, Errno> {
        let (node, shown) = (request.node, self.shown());
        let tree = match &shown.files {
            Files::Tree(tree) => tree,
            Files::Volume(volume) => return self.reply_of_volume(&shown, volume, request),
        };
        match request.operation {
            Operation::Lookup { name } => {
                shown.alive()?;
                let child = tree.child(node, name).ok_or(Errno::NOENT)?;
                let attr = tree.attr(child, self.owner).ok_or(Errno::NOENT)?;
                Ok(wire::entry(&attr, shown.valid()))
            }
            Operation::GetAttr => {
                // The root stays visible: without it nobody could even leave it.
                if node != ROOT {
                    shown.alive()?;
                }
                let attr = tree.attr(node, self.owner).ok_or(Errno::NOENT)?;
                Ok(wire::attributes(&attr, shown.valid()))
            }
            Operation::Open { write: true }
            | Operation::Change
            | Operation::SetAttr(_)
            | Operation::Symlink { .. }
            | Operation::MakeNode { .. }
            | Operation::MakeDir { .. }
            | Operation::Create { .. }
            | Operation::Unlink { .. }
            | Operation::RemoveDir { .. }
            | Operation::Rename { .. }
            | Operation::Link { .. }
            | Operation::Write { .. }
            | Operation::Allocate { .. } => Err(Errno::ROFS),
            Operation::Sync => Ok(Out::default()),
            Operation::ReadLink => self.read_link(&shown, tree, node),
            Operation::Open { write: false } => self.open(Arc::clone(&shown), node),
            Operation::OpenDir => shown.alive().map(|()| wire::opened(0)),
            Operation::ReadDir { offset, size, .. } => shown.read_dir(tree, node, offset, size),
            Operation::StatFs => Ok(wire::statistics(tree.bytes(), 0, tree.len())),
            Operation::Release { handle } => {
                self.files
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .remove(&handle);
                Ok(Out::default())
            }
            Operation::ReleaseDir { .. } => Ok(Out::default()),
            // A second INIT is no part of the protocol.
            Operation::Init { .. } => Err(Errno::IO),
            _ => Err(Errno::NOSYS),
        }
    }

    fn read_link(&self, shown: &Shown, tree: &Tree, node: u64) -> Result<Out, Errno> {
        let node = tree.get(node).ok_or(Errno::NOENT)?;
        let Kind::File {
            object,
            len,
            is_link: true,
            ..
        } = &node.kind
        else {
            return Err(Errno::INVAL);
        };
        // As long as the kernel takes a target to be.
        let mut target = vec![0; (*len).min(4096) as usize];
        let read = shown.lease.open_untold(object);
        let read = read.and_then(|link| shown.lease.read_and(&link, &mut target, 0, |_| ()));
        self.pass_on_damage(&shown.lease, object, &read);
        read.map_err(|e| errno(&e))?;
        Ok(wire::link_target(&target))
    }

    fn open(&self, shown: Arc<Shown>, node: u64) -> Result<Out, Errno> {
        let Files::Tree(tree) = &shown.files else {
            return Err(Errno::NOENT);
        };
        let node = tree.get(node).ok_or(Errno::NOENT)?;
        let Kind::File { object, .. } = &node.kind else {
            return Err(Errno::ISDIR);
        };
        let opened = shown.lease.open_untold(object);
        self.pass_on_damage(&shown.lease, object, &opened);
        let object = opened.map_err(|e| errno(&e))?;
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.insert(handle, Arc::new(Opened { shown, object }));
        Ok(wire::opened(handle))
    }

    /// Reads and answers in one, so that no data is on its way once the lease has ended.
    fn read(
        &self,
        device: &OwnedFd,
        unique: u64,
        handle: u64,
        offset: u64,
        size: u32,
        data: &mut [u8],
    ) -> Result<(), Errno> {
        let file = self
            .files
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&handle)
            .cloned();
        let Some(file) = file else {
            return send(device, unique, -Errno::BADF.raw_os_error(), &[]);
        };
        let size = (size as usize).min(data.len());
        let data = &mut data[..size];
        let lease = &file.shown.lease;
        let read = lease.read_and(&file.object, data, offset, |data| {
            send(device, unique, 0, data)
        });
        self.pass_on_damage(lease, file.object.name(), &read);
        match read {
            Ok(sent) => sent,
            Err(e) => send(device, unique, -errno(&e).raw_os_error(), &[]),
        }
    }
}

/// Waits for the kernel's INIT and answers it.
fn handshake(device: &OwnedFd, writes: bool) -> Result<(), ServeError> {
    let mut buffer = vec![0; wire::REQUEST_LEN];
    let not_mounted = |e: Errno| ServeError::NotMounted(e.into());
    loop {
        let len = match rustix::io::read(device, &mut buffer[..]) {
            Ok(len) => len,
            Err(Errno::AGAIN) => {
                let timeout = Timespec {
                    tv_sec: HANDSHAKE.as_secs() as i64,
                    tv_nsec: 0,
                };
                match poll(&mut [PollFd::new(device, PollFlags::IN)], Some(&timeout)) {
                    Ok(0) => return Err(not_mounted(Errno::TIMEDOUT)),
                    Ok(_) | Err(Errno::INTR) => continue,
                    Err(e) => return Err(not_mounted(e)),
                }
            }
            Err(Errno::INTR) => continue,
            Err(e) => return Err(not_mounted(e)),
        };
        let Some(request) = wire::parse(&buffer[..len]) else {
            return Err(not_mounted(Errno::PROTO));
        };
        let Operation::Init {
            major,
            minor,
            flags,
        } = request.operation
        else {
            return Err(not_mounted(Errno::PROTO));
        };
        let Some(out) = wire::init(major, minor, flags, writes) else {
            let _ = send(device, request.unique, -Errno::PROTO.raw_os_error(), &[]);
            return Err(ServeError::Protocol { major, minor });
        };
        send(device, request.unique, 0, out.as_slice()).map_err(not_mounted)?;
        if major == wire::MAJOR {
            return Ok(());
        }
    }
}

fn wait(room: &OwnedFd) {
    let mut events = [const { MaybeUninit::uninit() }; 2];
    // Why it woke up shows when it reads.
    let _ = epoll::wait(room, &mut events[..], None);
}

/// Sends an answer or a notification, whole: the kernel takes it in one call.
fn send(device: &OwnedFd, unique: u64, error: i32, body: &[u8]) -> Result<(), Errno> {
    let header = wire::header(unique, error, body.len());
    rustix::io::writev(device, &[IoSlice::new(&header), IoSlice::new(body)]).map(|_| ())
}

fn errno(error: &LeaseError) -> Errno {
    match error {
        LeaseError::NotFound => Errno::NOENT,
        LeaseError::Read(_) => Errno::IO,
        _ => Errno::ACCESS,
    }
}

/// Reads bytes as the kernel's request.
pub(crate) fn fuzz(bytes: &[u8]) {
    let _ = wire::parse(bytes);
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod write_tests;
