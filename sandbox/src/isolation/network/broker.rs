//! What the notifier does in the workload's place: sockets, connections, and listening on Unix sockets.
//!
//! Follows connect(2), tcp(7) and seccomp_unotify(2). An address is copied once and parsed; the call is
//! known to wait still after that; and what is connected is what was parsed. A connection that takes its
//! time is waited for by a thread of its own, so that the notifier never waits.
//!
//! A caller that waits can be interrupted: by a Unix signal, and by being frozen or traced, which would
//! otherwise wait for its connection. The kernel then makes the call again, and it is the same connection
//! that is waited for. What was done already and could not be said is said then.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, sockopt};
use rustix::process::Pid;

use super::flows::Begun;
use super::{Shared, flows, lock};
use crate::event::{DeniedAddress, Event, Wanted};
use crate::sys::network as sys;
use crate::sys::seccomp::{self, Answer, Notification};
use crate::syscall::table::syscall_name;

/// Most connections that are waited for at once.
const MAX_WAITING: usize = 128;
/// Most answers that are kept for a call that is made again.
const MAX_UNSAID: usize = 64;
/// How often a waiting connection is looked at for whether anybody still waits.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Longest socket address: `struct sockaddr_storage`.
const MAX_ADDRESS: usize = 128;

/// Answers the calls of a sandbox whose network is brokered.
#[derive(Debug)]
pub struct Broker {
    grants: Shared,
    spared: [u64; 3],
    waiting: Waiting,
    /// By socket (`SO_COOKIE`): the answers of calls that were interrupted before they were answered.
    unsaid: RefCell<VecDeque<(u64, Answer)>>,
}

/// Who waits for a connection: calls, by socket (`SO_COOKIE`).
type Waiting = Arc<Mutex<BTreeMap<u64, Vec<u64>>>>;

/// What became of a call.
#[derive(Debug)]
pub enum Brokered {
    /// It was answered, or will be.
    Answered,
    /// It has to be told, and then refused with `EACCES`.
    Denied(Event),
    /// It is not for the broker: refuse it.
    Not,
}

impl Broker {
    /// A broker under these grants. Sockets of these inodes are the launcher's, and not connected.
    pub fn new(grants: Shared, spared: [u64; 3]) -> Self {
        Self {
            grants,
            spared,
            waiting: Waiting::default(),
            unsaid: RefCell::default(),
        }
    }

    /// Answers one call, if it is the broker's.
    pub fn answer(&self, listener: &Arc<OwnedFd>, call: &Notification) -> Brokered {
        let done = match syscall_name(call.data.nr) {
            Some("socket") => self.socket(listener, call),
            Some("connect") => self.connect(listener, call),
            Some("listen") => self.listen(listener, call),
            _ => return Brokered::Not,
        };
        match done {
            Done::Answer(answer) => {
                // A caller that is gone in the meantime needs no answer.
                let _ = seccomp::respond(listener.as_fd(), call.id, answer);
                Brokered::Answered
            }
            Done::Denied(event) => Brokered::Denied(event),
            Done::Later => Brokered::Answered,
            Done::Not => Brokered::Not,
        }
    }

    /// Makes a TCP socket in the host's network and puts it into the caller's table.
    fn socket(&self, listener: &Arc<OwnedFd>, call: &Notification) -> Done {
        let [domain, kind, protocol, ..] = call.data.args.map(|argument| argument as i32);
        let domain = match domain {
            libc::AF_INET => AddressFamily::INET,
            libc::AF_INET6 => AddressFamily::INET6,
            _ => return Done::Not,
        };
        if kind & 0xf != libc::SOCK_STREAM || !matches!(protocol, 0 | libc::IPPROTO_TCP) {
            return Done::Not;
        }
        if kind & !(0xf | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC) != 0 {
            return Done::Answer(Answer::Errno(libc::EINVAL));
        }
        let mut flags = SocketFlags::CLOEXEC;
        flags.set(SocketFlags::NONBLOCK, kind & libc::SOCK_NONBLOCK != 0);
        let made = rustix::net::socket_with(domain, SocketType::STREAM, flags, Some(ipproto::TCP));
        let socket = match made {
            Ok(socket) => {
                lock(&self.grants).used = true;
                socket
            }
            // Our own table is full, which the caller knows as the system's.
            Err(Errno::MFILE) => return Done::Answer(Answer::Errno(libc::ENFILE)),
            Err(error) => return Done::Answer(Answer::Errno(error.raw_os_error())),
        };
        let close_on_exec = kind & libc::SOCK_CLOEXEC != 0;
        let added =
            seccomp::respond_with_fd(listener.as_fd(), call.id, socket.as_fd(), close_on_exec);
        match added {
            Ok(_) => Done::Later,
            Err(error) => {
                Done::Answer(Answer::Errno(error.raw_os_error().unwrap_or(libc::ENOBUFS)))
            }
        }
    }

    fn connect(&self, listener: &Arc<OwnedFd>, call: &Notification) -> Done {
        match self.try_connect(listener, call) {
            Ok(done) => done,
            Err(errno) => Done::Answer(Answer::Errno(errno)),
        }
    }

    fn try_connect(&self, listener: &Arc<OwnedFd>, call: &Notification) -> Result<Done, i32> {
        let [_, address, ..] = call.data.args;
        let length = call.data.args[2] as i32;
        let mut bytes = [0u8; MAX_ADDRESS];
        let length = usize::try_from(length).map_err(|_| libc::EINVAL)?;
        let bytes = bytes.get_mut(..length).ok_or(libc::EINVAL)?;
        if bytes.len() < 2 {
            return Err(libc::EINVAL);
        }
        let caller = Pid::from_raw(call.pid.cast_signed()).ok_or(libc::EPERM)?;
        let read = sys::read_memory(caller, address, bytes).map_err(number_of)?;
        if read != bytes.len() {
            return Err(libc::EFAULT);
        }
        let socket = taken(caller, call)?;
        // Only now is it certain that what was read and taken is the caller's.
        if !seccomp::id_is_valid(listener.as_fd(), call.id) {
            return Ok(Done::Later);
        }
        let inode = flows::socket_inode(&socket).map_err(number_of)?;
        let Some(inode) = inode else {
            return Err(libc::ENOTSOCK);
        };
        if self.spared.contains(&inode) {
            return Err(libc::EACCES);
        }
        match sockopt::socket_domain(&socket).map_err(Errno::raw_os_error)? {
            AddressFamily::INET | AddressFamily::INET6 => {}
            // A path would be looked up in the supervisor's files.
            _ => return Err(libc::EACCES),
        }
        let to = match parse_address(bytes)? {
            Some(to) => to,
            None => {
                return Ok(finished(rustix::net::connect_unspec(&socket)));
            }
        };
        if flows::is_tcp(socket.as_fd()).map_err(number_of)? {
            let begun = Begun {
                cookie: sockopt::socket_cookie(&socket).map_err(Errno::raw_os_error)?,
                thread: caller,
                number: call.data.args[0] as i32,
            };
            return self.connect_tcp(listener, call, socket, begun, to);
        }
        // Of the sandbox's own network: nothing to wait for, and nothing to reach but the resolver.
        Ok(finished(rustix::net::connect(&socket, &to)))
    }

    fn connect_tcp(
        &self,
        listener: &Arc<OwnedFd>,
        call: &Notification,
        socket: OwnedFd,
        begun: Begun,
        to: SocketAddr,
    ) -> Result<Done, i32> {
        let flags = rustix::fs::fcntl_getfl(&socket).map_err(Errno::raw_os_error)?;
        let waits = !flags.contains(OFlags::NONBLOCK);
        let began = {
            // Held until the connection has begun: see `Shared`.
            let mut grants = lock(&self.grants);
            if !grants.permit(to) {
                let name = grants.name_of(to.ip()).map(str::to_owned);
                let event = Event::DeniedAddress(DeniedAddress {
                    wanted: Wanted::Address {
                        address: SocketAddr::new(to.ip().to_canonical(), to.port()),
                        name,
                    },
                    pid: call.pid,
                });
                return Ok(Done::Denied(event));
            }
            if waits {
                rustix::fs::fcntl_setfl(&socket, flags | OFlags::NONBLOCK)
                    .map_err(Errno::raw_os_error)?;
            }
            grants.begin(begun);
            let began = rustix::net::connect(&socket, &to);
            if waits {
                rustix::fs::fcntl_setfl(&socket, flags).map_err(Errno::raw_os_error)?;
            }
            began
        };
        let cookie = begun.cookie;
        let answer = match began {
            Err(Errno::INPROGRESS | Errno::ALREADY) if waits => {
                return self.wait(listener, call.id, socket, cookie);
            }
            Err(error @ (Errno::ALREADY | Errno::ISCONN)) => {
                let mut unsaid = self.unsaid.borrow_mut();
                let same = unsaid.iter().position(|(socket, _)| *socket == cookie);
                same.and_then(|at| unsaid.remove(at))
                    .map_or(Answer::Errno(error.raw_os_error()), |(_, answer)| answer)
            }
            Err(error) => Answer::Errno(error.raw_os_error()),
            Ok(()) => Answer::Value(0),
        };
        if seccomp::respond(listener.as_fd(), call.id, answer).is_err() {
            let mut unsaid = self.unsaid.borrow_mut();
            unsaid.truncate(MAX_UNSAID - 1);
            unsaid.push_front((cookie, answer));
        }
        Ok(Done::Later)
    }

    /// Has a call answered when its connection is made or has failed.
    fn wait(
        &self,
        listener: &Arc<OwnedFd>,
        id: u64,
        socket: OwnedFd,
        cookie: u64,
    ) -> Result<Done, i32> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(calls) = waiting.get_mut(&cookie) {
            calls.push(id);
            return Ok(Done::Later);
        }
        if waiting.len() >= MAX_WAITING {
            return Err(libc::EAGAIN);
        }
        let (listener, shared) = (Arc::clone(listener), Arc::clone(&self.waiting));
        std::thread::Builder::new()
            .name("sandbox-connect".into())
            .spawn(move || wait(&listener, &shared, &socket, cookie))
            .map_err(|_| libc::EAGAIN)?;
        // The thread looks at it under the lock that is held here.
        waiting.insert(cookie, vec![id]);
        Ok(Done::Later)
    }

    /// Lets a Unix socket listen. Others would get an address of the host by it.
    fn listen(&self, listener: &Arc<OwnedFd>, call: &Notification) -> Done {
        let Some(caller) = Pid::from_raw(call.pid.cast_signed()) else {
            return Done::Not;
        };
        let socket = match taken(caller, call) {
            Ok(socket) => socket,
            Err(errno) => return Done::Answer(Answer::Errno(errno)),
        };
        if !seccomp::id_is_valid(listener.as_fd(), call.id) {
            return Done::Later;
        }
        match sockopt::socket_domain(&socket) {
            Ok(AddressFamily::UNIX) => {
                finished(rustix::net::listen(&socket, call.data.args[1] as i32))
            }
            Ok(_) => Done::Not,
            Err(error) => Done::Answer(Answer::Errno(error.raw_os_error())),
        }
    }
}

enum Done {
    Answer(Answer),
    Denied(Event),
    /// Answered already, or by somebody else, or not at all: the caller is gone.
    Later,
    Not,
}

fn finished(result: Result<(), Errno>) -> Done {
    Done::Answer(match result {
        Ok(()) => Answer::Value(0),
        Err(error) => Answer::Errno(error.raw_os_error()),
    })
}

/// A copy of the descriptor that the call names first.
fn taken(caller: Pid, call: &Notification) -> Result<OwnedFd, i32> {
    let handle = flows::handle(caller).map_err(number_of)?;
    let handle = handle.ok_or(libc::ESRCH)?;
    let socket = flows::take(&handle, call.data.args[0] as i32).map_err(number_of)?;
    socket.ok_or(libc::EBADF)
}

fn number_of(error: std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EPERM)
}

/// Waits until a connection is made or has failed, or nobody waits for it any more, and answers.
fn wait(listener: &OwnedFd, waiting: &Waiting, socket: &OwnedFd, cookie: u64) {
    let limit = sockopt::socket_timeout(socket, sockopt::Timeout::Send)
        .ok()
        .flatten();
    let deadline = limit.map(|limit| Instant::now() + limit);
    loop {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        let pause = left.map_or(LOOK_EVERY, |left| left.min(LOOK_EVERY));
        let pause = rustix::event::Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(pause.subsec_nanos()),
        };
        let mut watched = [PollFd::new(socket, PollFlags::OUT)];
        let ready = matches!(rustix::event::poll(&mut watched, Some(&pause)), Ok(1..));
        let timed_out = left.is_some_and(|left| left.is_zero());
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(calls) = waiting.get_mut(&cookie) else {
            return;
        };
        calls.retain(|id| seccomp::id_is_valid(listener.as_fd(), *id));
        if !ready && !timed_out && !calls.is_empty() {
            continue;
        }
        if !calls.is_empty() {
            let answer = if ready {
                outcome(socket)
            } else {
                Answer::Errno(libc::EINPROGRESS)
            };
            for id in &*calls {
                let _ = seccomp::respond(listener.as_fd(), *id, answer);
            }
        }
        waiting.remove(&cookie);
        return;
    }
}

/// What became of a connection that is no longer being made.
fn outcome(socket: &OwnedFd) -> Answer {
    match sockopt::socket_error(socket) {
        // Also one that was made and ended again at once was made.
        Ok(Ok(())) if rustix::net::getpeername(socket).is_ok() => Answer::Value(0),
        Ok(Ok(())) => Answer::Errno(libc::ECONNABORTED),
        Ok(Err(error)) | Err(error) => Answer::Errno(error.raw_os_error()),
    }
}

/// Reads a `sockaddr`; `None` for `AF_UNSPEC`, which takes a connection back. See ip(7), ipv6(7).
///
/// # Errors
///
/// The number that connect(2) fails with.
fn parse_address(bytes: &[u8]) -> Result<Option<SocketAddr>, i32> {
    let (family, rest) = bytes.split_first_chunk::<2>().ok_or(libc::EINVAL)?;
    let port = || {
        let port = rest.first_chunk::<2>().ok_or(libc::EINVAL)?;
        Ok::<_, i32>(u16::from_be_bytes(*port))
    };
    match i32::from(u16::from_ne_bytes(*family)) {
        libc::AF_UNSPEC => Ok(None),
        libc::AF_INET => {
            if bytes.len() < size_of::<libc::sockaddr_in>() {
                return Err(libc::EINVAL);
            }
            let octets: [u8; 4] = bytes[4..8].try_into().map_err(|_| libc::EINVAL)?;
            let ip = Ipv4Addr::from(octets);
            Ok(Some(SocketAddr::new(IpAddr::V4(ip), port()?)))
        }
        libc::AF_INET6 => {
            // Without the scope, as RFC 2133 had it, too.
            if bytes.len() < 24 {
                return Err(libc::EINVAL);
            }
            let octets: [u8; 16] = bytes[8..24].try_into().map_err(|_| libc::EINVAL)?;
            let ip = Ipv6Addr::from(octets);
            Ok(Some(SocketAddr::new(IpAddr::V6(ip), port()?)))
        }
        _ => Err(libc::EAFNOSUPPORT),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_address_is_read_as_the_kernel_reads_it() {
        let mut v4 = [0u8; 16];
        v4[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        v4[2..8].copy_from_slice(&[1, 187, 10, 0, 0, 5]);
        let parsed = parse_address(&v4).unwrap().unwrap();
        assert_eq!(parsed, "10.0.0.5:443".parse().unwrap());
        assert_eq!(parse_address(&v4[..15]), Err(libc::EINVAL));
        let mut v6 = [0u8; 28];
        v6[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
        v6[2..4].copy_from_slice(&[0, 80]);
        v6[23] = 1;
        let parsed = parse_address(&v6).unwrap().unwrap();
        assert_eq!(parsed, "[::1]:80".parse().unwrap());
        assert_eq!(parse_address(&[0, 0]), Ok(None));
        assert_eq!(
            parse_address(&[libc::AF_UNIX as u8, 0, b'/']),
            Err(libc::EAFNOSUPPORT)
        );
    }

    proptest! {
        #[test]
        fn no_address_is_too_odd_to_be_refused(bytes in proptest::collection::vec(any::<u8>(), 0..128)) {
            let _ = parse_address(&bytes);
        }
    }
}
