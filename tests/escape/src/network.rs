//! What a workload tries with a network that it was granted one address of: `probe network ALLOWED DENIED`.
//!
//! Each line is a vector, as the others; `allowed` alone has to be open.

use std::io::{self, Read, Write};
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use libc::{c_int, c_void};

use crate::attempt::{Attempt, name};
use crate::sys;

/// Rounds of the race between a connection and a change of its address.
const ROUNDS: u64 = 10_000;
const LIMIT: Duration = Duration::from_secs(10);

/// Tries everything, one line each.
pub fn main(arguments: impl Iterator<Item = String>) -> ExitCode {
    let ports: Vec<u16> = arguments.filter_map(|text| text.parse().ok()).collect();
    let [allowed, denied] = ports[..] else {
        eprintln!("probe: network ALLOWED DENIED, two ports of 127.0.0.1");
        return ExitCode::FAILURE;
    };
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let to = |address: SocketAddr| Attempt::succeeds(TcpStream::connect_timeout(&address, LIMIT));
    let mapped = Ipv4Addr::LOCALHOST.to_ipv6_mapped();
    let vectors: [(&str, Attempt); 19] = [
        ("allowed", echo(local(allowed))),
        ("allowed-mapped", echo((mapped, allowed).into())),
        ("other-port", to(local(denied))),
        (
            "other-address",
            to((Ipv4Addr::new(127, 0, 0, 2), allowed).into()),
        ),
        (
            "blocking",
            Attempt::succeeds(TcpStream::connect(local(denied))),
        ),
        ("inet6", to((Ipv6Addr::LOCALHOST, denied).into())),
        ("mapped", to((mapped, denied).into())),
        ("nowhere", to((Ipv4Addr::UNSPECIFIED, allowed).into())),
        (
            "connected-again",
            connected_again(local(allowed), local(denied)),
        ),
        ("fast-open", fast_open(local(denied))),
        ("datagram", datagram(local(denied))),
        ("sent-unconnected", sent_unconnected(local(denied))),
        (
            "bind",
            tcp().and_then_attempt(|socket| call_with(libc::SYS_bind, socket, local(0))),
        ),
        ("listen", tcp().and_then_attempt(listen)),
        (
            "source-route",
            tcp().and_then_attempt(|s| option(s, libc::IPPROTO_IP, libc::IP_OPTIONS)),
        ),
        (
            "device",
            tcp().and_then_attempt(|s| option(s, libc::SOL_SOCKET, libc::SO_BINDTODEVICE)),
        ),
        ("interfaces", tcp().and_then_attempt(interfaces)),
        (
            "multipath",
            Attempt::succeeds(socket(libc::SOCK_STREAM, libc::IPPROTO_MPTCP)),
        ),
        (
            "raw",
            Attempt::succeeds(socket(libc::SOCK_RAW, libc::IPPROTO_TCP)),
        ),
    ];
    for (name, attempt) in vectors {
        println!("{name} {attempt}");
    }
    println!("race {}", race(allowed, denied));
    ExitCode::SUCCESS
}

trait Then {
    fn and_then_attempt(self, next: impl FnOnce(&OwnedFd) -> io::Result<()>) -> Attempt;
}

impl Then for io::Result<OwnedFd> {
    fn and_then_attempt(self, next: impl FnOnce(&OwnedFd) -> io::Result<()>) -> Attempt {
        match self {
            Ok(socket) => Attempt::succeeds(next(&socket)),
            Err(error) => Attempt::Stuck(format!("no socket: {}", name(&error))),
        }
    }
}

/// Connects, says something, and hears it again.
fn echo(to: SocketAddr) -> Attempt {
    let answer = TcpStream::connect(to).and_then(|mut stream| {
        stream.write_all(b"hello")?;
        let mut answer = [0; 5];
        stream.read_exact(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    });
    match answer {
        Ok(text) if text == "hello" => Attempt::Open(text),
        Ok(text) => Attempt::Stuck(text),
        Err(error) => Attempt::Closed(name(&error)),
    }
}

fn socket(kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes integers.
    sys::owned(unsafe { libc::socket(libc::AF_INET, kind | libc::SOCK_CLOEXEC, protocol) })
}

fn tcp() -> io::Result<OwnedFd> {
    socket(libc::SOCK_STREAM, 0)
}

fn in_memory(address: SocketAddr) -> libc::sockaddr_in {
    let SocketAddr::V4(address) = address else {
        unreachable!("addresses of these vectors are IPv4")
    };
    as_c(address)
}

fn as_c(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(address.ip().octets()),
        },
        sin_zero: [0; 8],
    }
}

/// `connect` or `bind`, as they are.
fn call_with(number: libc::c_long, socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    let address = in_memory(address);
    let length = size_of::<libc::sockaddr_in>();
    let arguments = [
        socket.as_raw_fd() as usize,
        sys::address(&address),
        length,
        0,
        0,
        0,
    ];
    sys::call(number, arguments).map(drop)
}

/// Ends its connection and uses the socket for another one.
fn connected_again(allowed: SocketAddr, denied: SocketAddr) -> Attempt {
    tcp().and_then_attempt(|socket| {
        call_with(libc::SYS_connect, socket, allowed)?;
        let nowhere = [0u16; 8];
        let arguments = [
            socket.as_raw_fd() as usize,
            sys::address(&nowhere),
            16,
            0,
            0,
            0,
        ];
        sys::call(libc::SYS_connect, arguments)?;
        call_with(libc::SYS_connect, socket, denied)
    })
}

/// Sending that connects.
fn fast_open(to: SocketAddr) -> Attempt {
    let address = in_memory(to);
    let bytes = *b"out";
    let by_address = tcp().and_then_attempt(|socket| {
        let arguments = [
            socket.as_raw_fd() as usize,
            sys::address(&bytes),
            bytes.len(),
            libc::MSG_FASTOPEN as usize,
            sys::address(&address),
            size_of::<libc::sockaddr_in>(),
        ];
        sys::call(libc::SYS_sendto, arguments).map(drop)
    });
    let by_header = |number, flag: c_int| {
        tcp().and_then_attempt(|socket| send_header(socket, &address, number, flag))
    };
    let by_option = tcp().and_then_attempt(|socket| {
        option(socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT)?;
        call_with(libc::SYS_connect, socket, to)
    });
    Attempt::any([
        ("sendto".into(), by_address),
        (
            "sendmsg".into(),
            by_header(libc::SYS_sendmsg, libc::MSG_FASTOPEN),
        ),
        (
            "sendmmsg".into(),
            by_header(libc::SYS_sendmmsg, libc::MSG_FASTOPEN),
        ),
        ("flags of a header".into(), by_header(libc::SYS_sendmmsg, 0)),
        ("option".into(), by_option),
    ])
}

fn send_header(
    socket: &OwnedFd,
    address: &libc::sockaddr_in,
    number: libc::c_long,
    flag: c_int,
) -> io::Result<()> {
    let mut bytes = *b"out";
    let mut vector = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all fields are integers and pointers, for which zero is a value.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_name = std::ptr::from_ref(address).cast_mut().cast::<c_void>();
    message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
    message.msg_hdr.msg_iov = &raw mut vector;
    message.msg_hdr.msg_iovlen = 1;
    message.msg_hdr.msg_flags = libc::MSG_FASTOPEN;
    let flags = (flag | libc::MSG_NOSIGNAL) as usize;
    let (first, second) = (socket.as_raw_fd() as usize, sys::address(&message));
    let arguments = match number {
        libc::SYS_sendmsg => [first, second, flags, 0, 0, 0],
        _ => [first, second, 1, flags, 0, 0],
    };
    sys::call(number, arguments).map(drop)
}

/// A datagram to the host; the test looks whether it arrived. It never says that it did not.
fn datagram(to: SocketAddr) -> Attempt {
    let sent = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.send_to(b"out", to)?;
        let _ = socket.connect(to);
        socket.send(b"out")
    });
    match sent {
        Ok(_) => Attempt::Closed("went to the sandbox's own network".into()),
        Err(error) => Attempt::Closed(name(&error)),
    }
}

/// An address beside the bytes, on a socket that is not connected.
fn sent_unconnected(to: SocketAddr) -> Attempt {
    let address = in_memory(to);
    tcp().and_then_attempt(|socket| send_header(socket, &address, libc::SYS_sendmsg, 0))
}

fn listen(socket: &OwnedFd) -> io::Result<()> {
    // SAFETY: takes integers.
    sys::check(i64::from(unsafe { libc::listen(socket.as_raw_fd(), 1) })).map(drop)
}

/// Sets an option to a few plausible bytes.
fn option(socket: &OwnedFd, level: c_int, option: c_int) -> io::Result<()> {
    // As an option of IP: a loose route over one address. As a number: not zero. As a device: "\x83".
    let bytes = [131_u8, 7, 4, 127, 0, 0, 2, 0];
    let arguments = [
        socket.as_raw_fd() as usize,
        level as usize,
        option as usize,
        sys::address(&bytes),
        bytes.len(),
        0,
    ];
    sys::call(libc::SYS_setsockopt, arguments).map(drop)
}

fn interfaces(socket: &OwnedFd) -> io::Result<()> {
    let room = [0u64; 128];
    let request = [size_of_val(&room) as u64, sys::address(&room) as u64];
    let command = libc::SIOCGIFCONF as usize;
    let arguments = [
        socket.as_raw_fd() as usize,
        command,
        sys::address(&request),
        0,
        0,
        0,
    ];
    sys::call(libc::SYS_ioctl, arguments).map(drop)
}

/// One thread connects to what another keeps changing.
fn race(allowed: u16, denied: u16) -> Attempt {
    // A `sockaddr_in` whose port changes: family and port in one word, so that no half of it is seen.
    let address = [AtomicU64::new(0), AtomicU64::new(0)];
    let word = |port: u16| {
        let c = as_c(SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        // SAFETY: `sockaddr_in` is 16 bytes without padding.
        let words: [u64; 2] = unsafe { std::mem::transmute(c) };
        words[0]
    };
    let over = AtomicU16::new(0);
    let (mut connected, mut leaked) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while over.load(Ordering::Relaxed) == 0 {
                address[0].store(word(denied), Ordering::Relaxed);
                address[0].store(word(allowed), Ordering::Relaxed);
            }
        });
        for _ in 0..ROUNDS {
            let Ok(socket) = tcp() else { continue };
            // Closing resets, so that no port of the host waits for two minutes.
            let linger = [1i32, 0];
            let arguments = [
                socket.as_raw_fd() as usize,
                libc::SOL_SOCKET as usize,
                libc::SO_LINGER as usize,
                sys::address(&linger),
                8,
                0,
            ];
            let _ = sys::call(libc::SYS_setsockopt, arguments);
            let arguments = [
                socket.as_raw_fd() as usize,
                sys::address(&address),
                16,
                0,
                0,
                0,
            ];
            if sys::call(libc::SYS_connect, arguments).is_ok() {
                connected += 1;
                let peer = TcpStream::from(socket).peer_addr();
                leaked += u32::from(peer.is_ok_and(|peer| peer.port() == denied));
            }
        }
        over.store(1, Ordering::Relaxed);
    });
    match leaked {
        0 => Attempt::Closed(format!(
            "{connected} of {ROUNDS} to the granted address, none elsewhere"
        )),
        _ => Attempt::Open(format!("{leaked} of {ROUNDS}")),
    }
}

/// Holds a connection to this port in a way that is hard to see, makes a call that costs it the grant, and
/// tells whether the connection is over: `probe hold HOW PORT`.
pub fn hold(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let how = arguments.next().unwrap_or_default();
    let port: u16 = arguments.next().and_then(|p| p.parse().ok()).unwrap_or(0);
    let Ok(stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
        println!("no connection");
        return ExitCode::FAILURE;
    };
    let over = match how.as_str() {
        "hidden" => {
            let unused = [libc::PR_SET_DUMPABLE as usize, 0, 0, 0, 0, 0];
            let _ = sys::call(libc::SYS_prctl, unused);
            lose_grant();
            ends(stream)
        }
        "own-table" => in_own_table(stream),
        "closed" => while_closed(stream),
        "in-flight" => in_flight(stream),
        _ => false,
    };
    println!("{}", if over { "over" } else { "goes on" });
    ExitCode::SUCCESS
}

/// A refused call, which the policy of this test weighs.
fn lose_grant() {
    let arguments = [libc::CLONE_NEWUSER as usize, 0, 0, 0, 0, 0];
    let _ = sys::call(libc::SYS_unshare, arguments);
}

/// Reads until the connection is over. The peer says one byte, and waits.
fn ends(mut stream: TcpStream) -> bool {
    while let Ok(1..) = stream.read(&mut [0; 16]) {}
    true
}

/// In the table of a thread, where the table of its process does not have it.
fn in_own_table(stream: TcpStream) -> bool {
    let (number, own) = (stream.as_raw_fd(), std::sync::Barrier::new(2));
    std::thread::scope(|scope| {
        let holder = scope.spawn(|| {
            // CLOSE_RANGE_UNSHARE, on a number that is not in use.
            let unshared = sys::call(libc::SYS_close_range, [4000, 4000, 2, 0, 0, 0]);
            own.wait();
            own.wait();
            // The number means the connection still in this table.
            let byte = 0u8;
            let arguments = [number as usize, sys::address(&byte), 1, 0, 0, 0];
            let read = || sys::call(libc::SYS_read, arguments);
            let last = std::iter::repeat_with(read).find(|read| !matches!(read, Ok(1..)));
            unshared.is_ok() && last.is_some_and(|read| !is_bad(&read))
        });
        own.wait();
        drop(stream);
        lose_grant();
        own.wait();
        holder.join().unwrap_or(false)
    })
}

fn is_bad(read: &io::Result<i64>) -> bool {
    matches!(read, Err(error) if error.raw_os_error() == Some(libc::EBADF))
}

/// In a call that goes on, while the descriptor is in no table any more.
fn while_closed(stream: TcpStream) -> bool {
    let number = stream.as_raw_fd();
    let room = vec![0u8; 1 << 20];
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let flags = libc::MSG_WAITALL as usize;
            let arguments = [
                number as usize,
                sys::address(&room[..]),
                room.len(),
                flags,
                0,
                0,
            ];
            sys::call(libc::SYS_recvfrom, arguments)
        });
        // One byte of the peer says that the call is under way, if it was taken.
        while waiting(number) {
            std::thread::yield_now();
        }
        drop(stream);
        lose_grant();
        let read = reader.join();
        matches!(read, Ok(result) if !matches!(result, Ok(1_048_576)))
    })
}

/// Whether the peer's one byte has not come yet, or still waits to be read.
fn waiting(number: c_int) -> bool {
    let (info, length) = ([0u8; 136], 136u32);
    let arguments = [
        number as usize,
        libc::IPPROTO_TCP as usize,
        libc::TCP_INFO as usize,
        sys::address(&info),
        sys::address(&length),
        0,
    ];
    let _ = sys::call(libc::SYS_getsockopt, arguments);
    let queued = 0i32;
    let asked = [
        number as usize,
        libc::FIONREAD as usize,
        sys::address(&queued),
        0,
        0,
        0,
    ];
    let _ = sys::call(libc::SYS_ioctl, asked);
    info[RECEIVED..RECEIVED + 8] == [0; 8] || queued != 0
}

/// Where `tcpi_bytes_received` stands.
const RECEIVED: usize = 128;

/// In no table: on its way through a Unix socket, and received only when the grant is lost.
fn in_flight(stream: TcpStream) -> bool {
    let Ok((here, there)) = std::os::unix::net::UnixStream::pair() else {
        return false;
    };
    // `struct cmsghdr` with one descriptor: length, level, kind, number.
    let number = stream.as_raw_fd().cast_unsigned();
    let control: [u64; 3] = [
        20,
        libc::SOL_SOCKET as u64 | (libc::SCM_RIGHTS as u64) << 32,
        u64::from(number),
    ];
    let mut byte = [1u8];
    let mut vector = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    // SAFETY: all fields are integers and pointers, for which zero is a value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_ptr().cast_mut().cast();
    message.msg_controllen = 20;
    let arguments = [
        here.as_raw_fd() as usize,
        sys::address(&message),
        0,
        0,
        0,
        0,
    ];
    if sys::call(libc::SYS_sendmsg, arguments).is_err() {
        return false;
    }
    drop(stream);
    println!("sent");
    lose_grant();
    // Long enough for any supervisor to look; this one stops the sandbox meanwhile.
    std::thread::sleep(LIMIT);
    drop(there);
    false
}
