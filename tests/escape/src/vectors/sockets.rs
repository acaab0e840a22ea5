//! Sockets: families that lead outside, and Unix sockets that somebody outside listens on.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};

use libc::c_int;

use super::{Vector, vector};
use crate::attempt::Attempt;
use crate::sys;

pub const ALL: &[Vector] = &[
    vector("inet-stream", |_| {
        socket(libc::AF_INET, libc::SOCK_STREAM, 0)
    }),
    vector("inet-datagram", |_| {
        socket(libc::AF_INET, libc::SOCK_DGRAM, 0)
    }),
    vector("inet-raw", |_| {
        socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)
    }),
    vector("inet-ping", |_| {
        socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP)
    }),
    vector("inet-mptcp", |_| {
        socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)
    }),
    vector("inet-sctp", |_| {
        socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP)
    }),
    vector("inet6", |_| socket(libc::AF_INET6, libc::SOCK_STREAM, 0)),
    // The kernel takes the family as 32 bits; a test of 64 would not.
    vector("inet-high-bits", |_| {
        let family = libc::AF_INET as usize | 1 << 32;
        Attempt::succeeds(sys::call(
            libc::SYS_socket,
            [family, libc::SOCK_STREAM as usize, 0, 0, 0, 0],
        ))
    }),
    vector("netlink-route", |_| {
        socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)
    }),
    vector("netlink-audit", |_| {
        socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT)
    }),
    vector("netlink-netfilter", |_| {
        socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)
    }),
    vector("packet", |_| socket(libc::AF_PACKET, libc::SOCK_RAW, 0)),
    vector("vsock", |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    vector("alg", |_| socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    vector("xdp", |_| socket(libc::AF_XDP, libc::SOCK_RAW, 0)),
    vector("bluetooth", |_| {
        socket(libc::AF_BLUETOOTH, libc::SOCK_RAW, 1)
    }),
    vector("key", |_| socket(libc::AF_KEY, libc::SOCK_RAW, 2)),
    vector("inet-pair", |_| {
        let pair = [0_i32; 2];
        let arguments = [
            libc::AF_INET as usize,
            libc::SOCK_STREAM as usize,
            0,
            sys::address(&pair),
            0,
            0,
        ];
        // Pairs of this family cannot be had, which is not for the filter to say.
        match sys::call(libc::SYS_socketpair, arguments) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                Attempt::Open("reached the kernel".into())
            }
            other => Attempt::succeeds(other),
        }
    }),
    vector("abstract-socket", |setting| {
        let address = SocketAddr::from_abstract_name(&setting.abstract_socket);
        let connected = address.and_then(|address| UnixStream::connect_addr(&address));
        Attempt::succeeds(connected)
    }),
    vector("abstract-socket-made-before", |setting| {
        let name = format!("{}-datagram", setting.abstract_socket);
        let sent = SocketAddr::from_abstract_name(name).and_then(|address| {
            let socket = UnixDatagram::unbound()?;
            socket.send_to_addr(b"out", &address)
        });
        Attempt::succeeds(sent)
    }),
    vector("path-socket", |setting| {
        Attempt::succeeds(UnixStream::connect(&setting.socket))
    }),
    // A socket in a folder that may only be read.
    vector("read-grant-socket", |setting| {
        Attempt::succeeds(UnixStream::connect(setting.read.join("socket")))
    }),
    // Neither an unbound socket nor a pair needs a connection to send there.
    vector("read-grant-datagram", |setting| {
        let there = setting.read.join("datagram");
        let unbound = UnixDatagram::unbound().and_then(|socket| socket.send_to(b"out", &there));
        let pair = UnixDatagram::pair().and_then(|(socket, _)| socket.send_to(b"out", &there));
        Attempt::succeeds(unbound.or(pair))
    }),
    vector("well-known-sockets", |_| {
        let paths = [
            "/run/docker.sock",
            "/var/run/docker.sock",
            "/run/dbus/system_bus_socket",
            "/dev/log",
        ];
        Attempt::any(paths.map(|path| {
            (
                path.to_owned(),
                Attempt::succeeds(UnixStream::connect(path)),
            )
        }))
    }),
    vector("socket-filter", |_| {
        let attached = UnixDatagram::unbound().and_then(|socket| {
            // One instruction: take everything.
            let take = [0x06_u64 | 0xffff << 32];
            let program = [1_u64, sys::address(&take) as u64];
            let (level, option) = (libc::SOL_SOCKET as usize, libc::SO_ATTACH_FILTER as usize);
            let arguments = [
                socket.as_raw_fd() as usize,
                level,
                option,
                sys::address(&program),
                16,
                0,
            ];
            sys::call(libc::SYS_setsockopt, arguments)
        });
        Attempt::succeeds(attached)
    }),
];

fn socket(family: c_int, kind: c_int, protocol: c_int) -> Attempt {
    let made: io::Result<OwnedFd> =
        // SAFETY: takes integers.
        sys::owned(unsafe { libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol) });
    Attempt::succeeds(made)
}
