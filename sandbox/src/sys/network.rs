//! Sockets and memory of another process, and the loopback interface of a new network namespace.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::Pid;

use super::check;

/// Copies memory of the process of a thread, as much of `into` as can be read there.
///
/// See process_vm_readv(2). It may fault pages in, and so wait for a file system: never from a thread
/// that shares its descriptors with the server of one.
///
/// # Errors
///
/// `EFAULT` when nothing is mapped there, `ESRCH` when the thread is gone, `EPERM` when it may not be
/// looked at.
pub fn read_memory(thread: Pid, address: u64, into: &mut [u8]) -> io::Result<usize> {
    let local = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let remote = libc::iovec {
        iov_base: std::ptr::without_provenance_mut(usize::try_from(address).unwrap_or(0)),
        iov_len: into.len(),
    };
    // SAFETY: the kernel writes at most `iov_len` bytes into the exclusively borrowed slice; the remote
    // address is an integer to us and is checked by the kernel against the other address space.
    let copied = check(unsafe {
        libc::process_vm_readv(
            thread.as_raw_nonzero().get(),
            &raw const local,
            1,
            &raw const remote,
            1,
            0,
        )
    } as libc::c_long)?;
    Ok(usize::try_from(copied).unwrap_or(0))
}

/// Opens a handle to one thread, whose descriptor table can be its own (`PIDFD_THREAD`, Linux 6.9).
///
/// # Errors
///
/// `EINVAL` on a kernel without it, unless the thread leads its process; `ESRCH` when it is gone.
pub fn open_thread(thread: Pid) -> io::Result<OwnedFd> {
    // SAFETY: both arguments are integers; success is a new descriptor that nobody else owns.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_open,
            thread.as_raw_nonzero().get(),
            libc::O_EXCL,
        )
    })?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: see above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Tells whether two threads use one descriptor table. See kcmp(2).
///
/// # Errors
///
/// `ENOSYS` on a kernel without it, `EPERM` when one may not be looked at, `ESRCH` when one is gone.
pub fn share_descriptors(one: Pid, other: Pid) -> io::Result<bool> {
    const KCMP_FILES: libc::c_int = 2;
    let unused: libc::c_ulong = 0;
    // SAFETY: all arguments are integers.
    let order = check(unsafe {
        libc::syscall(
            libc::SYS_kcmp,
            one.as_raw_nonzero().get(),
            other.as_raw_nonzero().get(),
            KCMP_FILES,
            unused,
            unused,
        )
    })?;
    Ok(order == 0)
}

/// Reads the state of a TCP socket: a number of the kernel's `include/net/tcp_states.h`, the first byte
/// of `TCP_INFO`.
///
/// # Errors
///
/// What getsockopt(2) answers.
pub fn tcp_state(socket: BorrowedFd<'_>) -> io::Result<u8> {
    let mut state = 0u8;
    let mut length: libc::socklen_t = 1;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of the live local.
    check(libc::c_long::from(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut state).cast(),
            &raw mut length,
        )
    }))?;
    Ok(state)
}

/// Brings the loopback interface of this network namespace up.
///
/// # Errors
///
/// `EPERM` without `CAP_NET_ADMIN` over the namespace.
pub fn bring_loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: all of `ifreq` is integers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the request is a live `ifreq`, which is what this command reads.
    check(libc::c_long::from(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    }))
    .map(drop)
}

/// Opens a handle to the process that made the connection at the other end of a Unix socket
/// (`SO_PEERPIDFD`, Linux 6.5).
///
/// # Errors
///
/// `ENOPROTOOPT` on a kernel without it; `ESRCH` or `EINVAL` when that process is gone.
pub fn peer_process(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut number: libc::c_int = -1;
    let mut length = libc::socklen_t::try_from(size_of_val(&number)).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, the size of the integer that is pointed to.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_PEERPIDFD,
            (&raw mut number).cast(),
            &raw mut length,
        )
    } as libc::c_long)?;
    // SAFETY: success is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Listens on a port of this machine for other machines. See vsock(7).
///
/// # Errors
///
/// `EAFNOSUPPORT` or `ENODEV` where there is no such device, `EADDRINUSE`.
pub fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(
        AddressFamily::VSOCK,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let family = u16::try_from(libc::AF_VSOCK).map_err(io::Error::other)?;
    // SAFETY: all zeroes is a value of this structure of integers.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    address.svm_family = family;
    address.svm_cid = libc::VMADDR_CID_ANY;
    address.svm_port = port;
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    let address = (&raw const address).cast();
    // SAFETY: the kernel reads `length` bytes, the size of the structure that is pointed to.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), address, length) };
    check(bound.into())?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Takes a connection of another machine; gives it with the context id of that machine.
///
/// # Errors
///
/// `EAGAIN` when there is none.
pub fn accept_vsock(socket: BorrowedFd<'_>) -> io::Result<(OwnedFd, u32)> {
    // SAFETY: all zeroes is a value of this structure of integers.
    let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` bytes, the size of the structure that is pointed to.
    let fd = check(unsafe {
        libc::accept4(
            socket.as_raw_fd(),
            (&raw mut address).cast(),
            &raw mut length,
            libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
        )
    } as libc::c_long)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: success is a new descriptor that nobody else owns.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, address.svm_cid))
}

/// How many connections may wait to be taken.
const BACKLOG: i32 = 64;
/// As in `asm-generic/socket.h`.
const SO_PEERPIDFD: libc::c_int = 77;
