//! The network of a sandbox: none, and TCP connections that the supervisor makes in its place.
//!
//! ```text
//! workload                    supervisor                                   host's network
//!   socket(TCP)  ─ notified ─▶ makes it here ──▶ ADDFD                       unconnected socket
//!   connect      ─ notified ─▶ copies the address once, asks `Grants`, ────▶ connects that very socket
//!   read, write  ───────────────────────────────────────────────────────────▶ at native speed
//!   UDP to 127.0.0.1:53 ─ own, empty network ─▶ `resolver`: granted names only
//! a grant is lost ─▶ `Grants` is changed, so no connection begins any more; then `flows` ends those that are
//! ```
//!
//! The workload's own network namespace has a loopback interface and nothing else. TCP sockets, and they
//! alone, are the supervisor's: made in the host's network and handed over *unconnected*, so that a
//! program may register them with epoll, set options and share them before it connects, as programs do.
//! (To put a connected socket in the place of another at `connect` would lose all of that.)
//!
//! # What a program could do with such a socket, and why it cannot
//!
//! | Attempt | What stops it |
//! |---|---|
//! | `connect` elsewhere | notified; the supervisor connects to the address *it* copied. Landlock refuses TCP connections to the workload itself, also through ways around the filter (from ABI 4) |
//! | change the address meanwhile | it is copied once, parsed, and written anew; never `CONTINUE` |
//! | change what the descriptor means meanwhile | whatever it means when the supervisor takes its copy is what is connected, and that only to a granted address |
//! | `sendto`, `sendmsg`, `sendmmsg` with an address | TCP does not look at it, except with `MSG_FASTOPEN`, which the filter refuses (in the headers of `sendmmsg` the kernel does not take it) |
//! | `bind`, `listen` | Landlock refuses binding TCP sockets (without it the filter refuses `bind`); `listen`, which binds a socket that is not, is notified, and done for Unix sockets alone |
//! | source routes (`IP_OPTIONS`, `IPV6_RTHDR`), another device, `TCP_FASTOPEN_CONNECT`, repair, ULP, multicast, filters | `setsockopt` is a list of harmless options; as control messages TCP does not take them |
//! | reading or setting up the host's interfaces (`ioctl`) | commands on sockets are a list of harmless ones |
//! | `io_uring` | not in any profile; allowing it by name together with `connect` is refused at launch |
//! | UDP, raw, SCTP, MPTCP, packet, netlink, vsock | not brokered: UDP is in the sandbox's own network, the others do not exist |
//! | keep a connection past its grant in a child, a duplicate, a thread with a descriptor table of its own | `flows` looks through every table while nothing runs |
//! | …on its way through a Unix socket | `flows` sees that something is on its way, and fails until nothing is; a change that fails stops the sandbox |
//! | …in a call that never ends | freezing ends every call first, `connect` that is waited for too |
//!
//! No duplicate is kept in the supervisor: the peer would not hear that the workload has closed its end.
//! So there is no list of flows either, which could be wrong: a flow may go on if its peer may be
//! connected now.
//!
//! If the supervisor dies, the listener dies with it: `socket` and `connect` fail with `ENOSYS`, and the
//! sandbox is killed.
//!
//! A cgroup-BPF program on the sandbox's cgroup would see none of this: a socket belongs to the cgroup of
//! who made it. The second wall behind the filter is Landlock's.

pub mod broker;
mod flows;
mod grants;
pub(crate) mod message;
pub mod resolver;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Pid;

use crate::sys::network as sys;
pub use flows::Left;
pub use grants::{Grants, is_public};

/// Where the resolver hears, inside.
pub const RESOLVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 53);

/// The grants, as broker, resolver and lever share them. Whoever begins a connection holds the lock from
/// asking to beginning, so that after a change none can begin under the grants before it.
pub type Shared = Arc<Mutex<Grants>>;

fn lock(grants: &Shared) -> MutexGuard<'_, Grants> {
    grants.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sets the sandbox's own network up, as its init, and returns the socket that the resolver is to serve.
///
/// # Errors
///
/// When the kernel refuses.
pub fn set_up_inside() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    sys::bring_loopback_up(socket.as_fd())?;
    rustix::net::bind(&socket, &RESOLVER)?;
    Ok(socket)
}

/// The network of a running sandbox, as its supervisor holds it.
#[derive(Debug)]
pub struct Network {
    grants: Shared,
    init: Pid,
    /// Inodes of the workload's stdin, stdout and stderr, which were given by whoever launched it.
    spared: [u64; 3],
}

impl Network {
    /// The network of the sandbox of this init.
    pub fn new(grants: Shared, init: Pid, spared: [u64; 3]) -> Self {
        Self {
            grants,
            init,
            spared,
        }
    }

    /// Grants an endpoint of the policy, or takes it back. From the moment this returns no connection to
    /// it begins unless it is granted.
    ///
    /// # Errors
    ///
    /// `NotFound` if the policy does not have it.
    pub fn set(&self, endpoint: &policy::Endpoint, granted: bool) -> io::Result<()> {
        if lock(&self.grants).set(endpoint, granted) {
            Ok(())
        } else {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    /// Tells whether the workload can have a flow at all: whether it was ever given a socket.
    pub fn is_used(&self) -> bool {
        lock(&self.grants).used
    }

    /// Ends at once the flows to what is not granted now that are still where they were begun, as most
    /// are.
    pub fn end_begun_flows(&self) {
        flows::end_begun(&self.grants);
    }

    /// Ends every flow to what is not granted now. Only when the sandbox is frozen is none overlooked.
    ///
    /// # Errors
    ///
    /// When a process or a descriptor cannot be looked at.
    pub fn end_lost_flows(&self) -> io::Result<Left> {
        flows::end_lost(self.init, &self.grants, &self.spared)
    }

    /// Tells whether every task of the sandbox is stopped or gone.
    ///
    /// # Errors
    ///
    /// When a process cannot be looked at.
    pub fn all_stopped(&self) -> io::Result<bool> {
        flows::all_stopped(self.init)
    }
}
