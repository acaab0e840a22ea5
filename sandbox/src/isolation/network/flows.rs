//! Connections that are there already: which may go on, and an end to the others.
//!
//! Looks through the descriptor tables of every task of the sandbox, by `pidfd_getfd`, and shuts down
//! each TCP socket whose peer may not be connected now. Meant for a frozen sandbox, where no descriptor
//! moves and no call is under way; in a running one it finds what is not being hidden.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, Shutdown, SocketType, ipproto, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};

use super::{Shared, lock};
use crate::sys::network as sys;

/// Highest number of a descriptor in the workload, and one more: its limit (`RLIMIT_NOFILE`).
const MAX_DESCRIPTORS: i32 = 4096;

/// What could not be looked at, although nothing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// Descriptors that are on their way through a Unix socket, in no process' table.
    InFlight,
}

/// A connection, and where it was begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    /// The socket (`SO_COOKIE`), which no other ever is.
    pub cookie: u64,
    /// The thread that asked for it.
    pub thread: Pid,
    /// Its number in that thread's table, by then.
    pub number: i32,
}

/// Ends those flows that may not go on and are still where they were begun: most, and at once. The whole
/// search is for the others.
pub(super) fn end_begun(grants: &Shared) {
    let mut begun = std::mem::take(&mut lock(grants).begun);
    begun.retain(|begun| {
        let table = handle(begun.thread).ok().flatten();
        let socket = table.and_then(|table| take(&table, begun.number).ok().flatten());
        // Thread and number may belong to somebody else by now.
        let same = |socket: &OwnedFd| sockopt::socket_cookie(socket) == Ok(begun.cookie);
        let Some(socket) = socket.filter(same) else {
            return false;
        };
        end_if_lost(socket.as_fd(), grants).is_ok()
    });
    lock(grants).begun.extend(begun);
}

/// Ends every flow of this init's sandbox that may not go on.
pub(super) fn end_lost(init: Pid, grants: &Shared, spared: &[u64]) -> io::Result<Left> {
    let mut left = Left::Nothing;
    let mut seen = BTreeSet::new();
    for process in below(init)? {
        let mut tables: Vec<Pid> = Vec::new();
        for thread in numbers(&format!("/proc/{process}/task"))?.unwrap_or_default() {
            let Some(thread) = Pid::from_raw(thread) else {
                continue;
            };
            let shared = tables
                .iter()
                .any(|table| sys::share_descriptors(*table, thread).unwrap_or(false));
            if shared {
                continue;
            }
            tables.push(thread);
            let Some(handle) = handle(thread)? else {
                continue;
            };
            for number in sockets(process, thread)? {
                let Some(socket) = take(&handle, number)? else {
                    continue;
                };
                let Some(inode) = socket_inode(&socket)? else {
                    continue;
                };
                // A socket can be in many tables.
                if spared.contains(&inode) || !seen.insert(inode) {
                    continue;
                }
                if end_if_lost(socket.as_fd(), grants)? == Left::InFlight {
                    left = Left::InFlight;
                }
            }
        }
    }
    Ok(left)
}

/// Shuts one socket down, if it is a connection that may not be.
fn end_if_lost(socket: BorrowedFd<'_>, grants: &Shared) -> io::Result<Left> {
    match sockopt::socket_domain(socket)? {
        AddressFamily::UNIX => return in_flight(socket),
        AddressFamily::INET | AddressFamily::INET6 => {}
        _ => return Ok(Left::Nothing),
    }
    if !is_tcp(socket)? {
        return Ok(Left::Nothing);
    }
    let may_go_on = match sys::tcp_state(socket)? {
        // Not connected, so it leads nowhere, and connecting it is asked about.
        CLOSED => return Ok(Left::Nothing),
        // Whereto cannot be asked yet. It is refused if there is any doubt; the program tries again.
        CONNECTING => false,
        _ => match rustix::net::getpeername(socket).map(|peer| peer.and_then(to_std)) {
            Ok(Some(peer)) => lock(grants).permit(peer),
            Ok(None) => false,
            // Ended by itself a moment ago.
            Err(Errno::NOTCONN) => return Ok(Left::Nothing),
            Err(error) => return Err(error.into()),
        },
    };
    if !may_go_on {
        // Resets the connection and throws away what was written and not sent yet. The kernel can refuse
        // that while a thread waits on the socket; then what was written is the last that leaves.
        if rustix::net::connect_unspec(socket).is_err() {
            match rustix::net::shutdown(socket, Shutdown::Both) {
                Ok(()) | Err(Errno::NOTCONN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(Left::Nothing)
}

const CONNECTING: u8 = 2;
const CLOSED: u8 = 7;

/// Tells whether a socket is one that the supervisor makes.
pub(super) fn is_tcp(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(sockopt::socket_type(socket)? == SocketType::STREAM
        && sockopt::socket_protocol(socket)? == Some(ipproto::TCP))
}

fn to_std(address: rustix::net::SocketAddrAny) -> Option<std::net::SocketAddr> {
    address.try_into().ok()
}

/// Looks whether descriptors wait in a Unix socket to be received: `scm_fds` in fdinfo, Linux 5.6.
fn in_flight(socket: BorrowedFd<'_>) -> io::Result<Left> {
    let info = fs::read_to_string(format!("/proc/thread-self/fdinfo/{}", socket.as_raw_fd()))?;
    let waiting = info.lines().find_map(|line| line.strip_prefix("scm_fds:"));
    Ok(match waiting.map(str::trim) {
        Some("0") => Left::Nothing,
        // What cannot be known is taken for the worse.
        _ => Left::InFlight,
    })
}

/// The numbers that may be sockets in one table.
fn sockets(process: i32, thread: Pid) -> io::Result<Vec<i32>> {
    let folder = format!("/proc/{process}/task/{}/fd", thread.as_raw_nonzero());
    match numbers(&folder) {
        Ok(Some(listed)) => Ok(listed
            .into_iter()
            .filter(|number| {
                fs::read_link(format!("{folder}/{number}"))
                    .ok()
                    .is_none_or(|to| to.as_os_str().as_encoded_bytes().starts_with(b"socket:"))
            })
            .collect()),
        Ok(None) => Ok(Vec::new()),
        // A process can hide its table from a user who is not root (`PR_SET_DUMPABLE`). Taking
        // descriptors out of it cannot be hidden from whoever owns its user namespace.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Ok((0..MAX_DESCRIPTORS).collect())
        }
        Err(error) => Err(error),
    }
}

/// A handle to the table of a thread; `None` when the thread is gone.
pub(super) fn handle(thread: Pid) -> io::Result<Option<OwnedFd>> {
    let opened = sys::open_thread(thread).or_else(|error| match error.raw_os_error() {
        // Before Linux 6.9 only the first thread of a process has one.
        Some(libc::EINVAL) => Ok(rustix::process::pidfd_open(thread, PidfdFlags::empty())?),
        _ => Err(error),
    });
    match opened {
        Ok(handle) => Ok(Some(handle)),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A copy of one descriptor; `None` when there is none of this number.
pub(super) fn take(handle: &OwnedFd, number: i32) -> io::Result<Option<OwnedFd>> {
    match rustix::process::pidfd_getfd(handle, number, PidfdGetfdFlags::empty()) {
        Ok(socket) => Ok(Some(socket)),
        Err(Errno::BADF | Errno::SRCH) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The inode of a socket; `None` if the descriptor is something else.
pub(super) fn socket_inode(fd: &OwnedFd) -> io::Result<Option<u64>> {
    let stat = rustix::fs::fstat(fd)?;
    let is_socket = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_socket();
    Ok(is_socket.then_some(stat.st_ino))
}

/// Every process below this init. There is no other in its process namespace, as orphans become its
/// own children.
fn below(init: Pid) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    let mut look_at = vec![init.as_raw_nonzero().get()];
    while let Some(process) = look_at.pop() {
        for thread in numbers(&format!("/proc/{process}/task"))?.unwrap_or_default() {
            let path = format!("/proc/{process}/task/{thread}/children");
            let children = match fs::read_to_string(path) {
                Ok(children) => children,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
            let children = children
                .split_whitespace()
                .filter_map(|pid| pid.parse::<i32>().ok());
            look_at.extend(children.clone());
            found.extend(children);
        }
    }
    Ok(found)
}

/// Tells whether every task below this init is stopped, dead, or waits to be reaped.
pub(super) fn all_stopped(init: Pid) -> io::Result<bool> {
    for process in below(init)? {
        for thread in numbers(&format!("/proc/{process}/task"))?.unwrap_or_default() {
            let stat = match fs::read_to_string(format!("/proc/{process}/task/{thread}/stat")) {
                Ok(stat) => stat,
                Err(error) if is_gone(&error) => continue,
                Err(error) => return Err(error),
            };
            // The name before it is in parentheses, and can hold some itself.
            let state = stat
                .rsplit_once(')')
                .and_then(|(_, rest)| rest.trim().chars().next());
            if !matches!(state, Some('T' | 't' | 'Z' | 'X')) {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// The names in a folder of procfs that are numbers; `None` when the process is gone.
fn numbers(folder: &str) -> io::Result<Option<Vec<i32>>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut numbers = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) => numbers.extend(
                entry
                    .file_name()
                    .to_str()
                    .and_then(|n| n.parse::<i32>().ok()),
            ),
            Err(error) if is_gone(&error) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(Some(numbers))
}

fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}
