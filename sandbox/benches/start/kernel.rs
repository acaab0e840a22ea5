//! The kernel's calls as they are.

use std::io;

/// clone3(2), into a cgroup of v2 if there is one.
pub fn fork(flags: u64, cgroup: i32) -> io::Result<i32> {
    let mut arguments = [0u64; 11];
    arguments[0] = flags;
    arguments[4] = libc::SIGCHLD as u64;
    if cgroup >= 0 {
        arguments[0] |= 0x2_0000_0000;
        arguments[10] = cgroup as u64;
    }
    Ok(call(libc::SYS_clone3, [arguments.as_ptr() as u64, 88, 0, 0, 0])? as i32)
}

pub fn wait(pid: i32) -> io::Result<i32> {
    let mut status = 0;
    // SAFETY: the status outlives the call.
    check(unsafe { libc::waitpid(pid, &raw mut status, 0) }.into())?;
    Ok(if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        255
    })
}

pub fn pipe() -> io::Result<(i32, i32)> {
    let mut ends = [0i32; 2];
    // SAFETY: two numbers fit in.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) }.into())?;
    Ok((ends[0], ends[1]))
}

pub fn open(path: &std::ffi::CStr, flags: i32) -> io::Result<i32> {
    // SAFETY: a string that ends with a zero byte.
    check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o644) }.into())
        .map(|fd| fd as i32)
}

pub fn close(fd: i32) {
    // SAFETY: an integer.
    unsafe { libc::close(fd) };
}

pub fn read(fd: i32) -> io::Result<()> {
    let mut byte = 0u8;
    // SAFETY: room for the one byte that is asked for.
    check(unsafe { libc::read(fd, (&raw mut byte).cast(), 1) } as i64).map(drop)
}

pub fn write(fd: i32, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: the bytes outlive the call.
    check(unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) } as i64).map(drop)
}

pub fn exit(code: i32) -> ! {
    // SAFETY: never returns.
    unsafe { libc::_exit(code) }
}

pub fn call(number: i64, [a, b, c, d, e]: [u64; 5]) -> io::Result<i64> {
    // SAFETY: callers pass integers, and pointers to what outlives the call.
    check(unsafe { libc::syscall(number, a, b, c, d, e) })
}

pub fn check(result: i64) -> io::Result<i64> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
