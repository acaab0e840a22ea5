//! Children to try things in.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Killed(i32),
}

/// Longest that a vector may take, in seconds: none waits for anything.
const PATIENCE: u32 = 10;

/// Runs `work` in a child, and gives back what it said.
pub fn hear(work: impl FnOnce() -> String) -> (String, Ending) {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return (String::new(), Ending::Code(1));
    }
    // SAFETY: pipe2 has just made both, and nobody else has them.
    let [reader, writer] = ends.map(|end| File::from(unsafe { OwnedFd::from_raw_fd(end) }));
    let Ok(pid) = fork() else {
        return (String::new(), Ending::Code(1));
    };
    if pid == 0 {
        drop(reader);
        // SAFETY: takes an integer.
        unsafe { libc::alarm(PATIENCE) };
        let said = work();
        let wrote = (&writer).write_all(said.as_bytes());
        exit(i32::from(wrote.is_err()));
    }
    drop(writer);
    let mut said = String::new();
    let _ = (&reader).read_to_string(&mut said);
    (said.trim_end().replace('\n', " "), wait(pid))
}

/// Forks. This program has one thread, so the child may go on as it likes.
pub fn fork() -> io::Result<i32> {
    // SAFETY: no other thread can hold a lock that the child would wait for.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(pid)
    }
}

/// Waits for a child to end.
pub fn wait(pid: i32) -> Ending {
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call.
        let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
        if waited >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            break;
        }
    }
    if libc::WIFSIGNALED(status) {
        Ending::Killed(libc::WTERMSIG(status))
    } else {
        Ending::Code(libc::WEXITSTATUS(status))
    }
}

/// Ends this process without running anything that belongs to its parent.
pub fn exit(code: i32) -> ! {
    // SAFETY: never returns and touches no memory.
    unsafe { libc::_exit(code) }
}
