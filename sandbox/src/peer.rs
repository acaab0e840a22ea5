//! Who is at the other end of a socket, and whether that is inside a sandbox.
//!
//! ```text
//! SO_PEERCRED ─▶ user, process id        what a process id means can change: the process ends, another
//! SO_PEERPIDFD ─▶ that very process      one is given its number. So everything that is looked up by
//!    └─ has it ended since? ─▶ refused   number counts only if the process was there before and after
//! ```
//!
//! See unix(7). Without `SO_PEERPIDFD` (before Linux 6.5) the handle is opened by number.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use crate::order::By;
use crate::sys::network as sys;

/// Most processes between one and the init of its sandbox.
const MAX_DEPTH: usize = 4096;

/// A process that has connected to a socket of ours, and was there when this was made.
#[derive(Debug)]
pub struct Peer {
    by: By,
    process: OwnedFd,
}

/// Why nobody is answered on a connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// The kernel does not say who connected.
    #[error("the kernel does not say who connected")]
    Unknown(#[source] io::Error),
    /// Who connected has ended: whoever speaks now is somebody else.
    #[error("process {0}, which connected, has ended")]
    Gone(i32),
}

impl Peer {
    /// Asks the kernel who connected.
    ///
    /// # Errors
    ///
    /// [`PeerError::Gone`], also when another process has that number by now.
    pub fn of(socket: impl AsFd) -> Result<Self, PeerError> {
        let credentials = rustix::net::sockopt::socket_peercred(&socket);
        let credentials = credentials.map_err(|error| PeerError::Unknown(error.into()))?;
        let by = By {
            uid: credentials.uid.as_raw(),
            pid: credentials.pid.as_raw_nonzero().get(),
        };
        let process = match sys::peer_process(socket.as_fd()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                rustix::process::pidfd_open(credentials.pid, PidfdFlags::empty())
                    .map_err(io::Error::from)
            }
            other => other,
        };
        let process = process.map_err(|_| PeerError::Gone(by.pid))?;
        let peer = Self { by, process };
        peer.is_there()
            .then_some(peer)
            .ok_or(PeerError::Gone(by.pid))
    }

    /// User and process id, as records name them.
    #[must_use]
    pub fn by(&self) -> By {
        self.by
    }

    /// Whether the process is still there, and so its number still its own.
    #[must_use]
    pub fn is_there(&self) -> bool {
        let mut ended = [PollFd::new(&self.process, PollFlags::IN)];
        matches!(
            rustix::event::poll(&mut ended, Some(&Timespec::default())),
            Ok(0)
        )
    }

    /// Whether the process is in the sandbox of this init: in its process namespace, below its cgroup, or
    /// descended from it.
    ///
    /// Any of the three is enough. A workload can make namespaces and cgroups below its own, but it cannot
    /// leave its cgroup, and the init of a namespace inherits every orphan of it.
    #[must_use]
    pub fn is_within(&self, init: i32) -> bool {
        let pid = self.by.pid;
        shares_namespace(pid, init) || is_below_cgroup(pid, init) || descends(pid, init)
    }
}

/// A port of this machine that other machines connect to: the one that a virtual machine runs on, or others
/// on it. What is known of them is the context id, see vsock(7).
#[derive(Debug)]
pub struct MachinePort(OwnedFd);

impl MachinePort {
    /// Listens on a port.
    ///
    /// # Errors
    ///
    /// When there is no vsock device, or the port is taken.
    pub fn listen(port: u32) -> io::Result<Self> {
        sys::listen_vsock(port).map(Self)
    }

    /// Takes a connection, with the context id of who connected. It does not block.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::WouldBlock`] when there is none.
    pub fn accept(&self) -> io::Result<(OwnedFd, u32)> {
        sys::accept_vsock(self.0.as_fd())
    }
}

impl AsFd for MachinePort {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn shares_namespace(pid: i32, init: i32) -> bool {
    let namespace = |who: &str| fs::read_link(format!("/proc/{who}/ns/pid")).ok();
    let inits = namespace(&init.to_string());
    // A sandbox without a namespace of its own shares that of everybody.
    inits.is_some() && inits != namespace("self") && inits == namespace(&pid.to_string())
}

/// Whether one of the cgroups of a process is that of the init, or below it, and not one that this process
/// is in as well.
fn is_below_cgroup(pid: i32, init: i32) -> bool {
    let groups = |who: &str| fs::read_to_string(format!("/proc/{who}/cgroup")).unwrap_or_default();
    let (theirs, inits, own) = (
        groups(&pid.to_string()),
        groups(&init.to_string()),
        groups("self"),
    );
    let inits = inits.lines().filter_map(split);
    let mut sandbox = inits.filter(|(hierarchy, path)| {
        let is_ours = |(h, p): (&str, &str)| h == *hierarchy && is_below(p, path);
        !own.lines().filter_map(split).any(is_ours)
    });
    sandbox.any(|(hierarchy, path)| {
        let mut theirs = theirs.lines().filter_map(split);
        theirs.any(|(h, p)| h == hierarchy && is_below(p, path))
    })
}

/// Hierarchy and path of a line of `/proc/PID/cgroup`, see cgroups(7).
fn split(line: &str) -> Option<(&str, &str)> {
    let (number, rest) = line.split_once(':')?;
    Some((number, rest.split_once(':')?.1))
}

fn is_below(path: &str, above: &str) -> bool {
    Path::new(path).starts_with(above)
}

fn descends(pid: i32, init: i32) -> bool {
    let mut pid = pid;
    for _ in 0..MAX_DEPTH {
        if pid == init {
            return true;
        }
        match parent(pid) {
            Some(parent) if parent > 1 => pid = parent,
            _ => return false,
        }
    }
    // Nobody who has a reason for that many.
    true
}

fn parent(pid: i32) -> Option<i32> {
    Pid::from_raw(pid)?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold brackets and spaces; what follows the last one does not.
    let rest = stat.rsplit_once(')')?.1;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_pair_of_our_own_is_ourselves_and_within_what_we_are_within() {
        let (one, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&one).unwrap();
        let own = rustix::process::getpid().as_raw_nonzero().get();
        assert_eq!(peer.by().pid, own);
        assert!(peer.is_there() && peer.is_within(own));
        assert!(descends(own, parent(own).unwrap_or(own)) || parent(own) == Some(0));
        assert!(!descends(own, i32::MAX) && !is_below_cgroup(own, i32::MAX));
    }

    #[test]
    fn a_cgroup_is_compared_part_by_part() {
        assert!(is_below("/a/b", "/a") && is_below("/a", "/a"));
        assert!(!is_below("/ab", "/a"));
        assert_eq!(split("1:name=systemd:/x:y"), Some(("1", "/x:y")));
        assert_eq!(split("0::/x"), Some(("0", "/x")));
    }
}
