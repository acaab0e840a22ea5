//! What the test tells the probe of the world outside, by environment variables.

use std::env;
use std::path::PathBuf;

/// What there is to be reached.
#[derive(Debug)]
pub struct Setting {
    /// `PROBE_INSIDE`: whether this is a sandbox, so that its init may be attacked.
    pub inside: bool,
    /// `PROBE_HOST_PID`: a process of the host under the supervisor's user.
    pub host_pid: i32,
    /// `PROBE_ABSTRACT`: name of a listening abstract Unix socket of the host.
    pub abstract_socket: String,
    /// `PROBE_SOCKET`: path of a listening Unix socket of the host, in no granted folder.
    pub socket: PathBuf,
    /// `PROBE_SECRET`: a file of the host beside the granted folders.
    pub secret: PathBuf,
    /// `PROBE_READ`: a folder granted for reading, with a `file`.
    pub read: PathBuf,
    /// `PROBE_WRITE`: a folder granted for writing, with links `absolute` and `relative` to the secret.
    pub write: PathBuf,
    /// Descriptors beside stdin, stdout and stderr that were there at the start.
    pub inherited: Vec<i32>,
}

impl Setting {
    /// Reads the environment, and counts the descriptors.
    pub fn read() -> Self {
        let text = |name| env::var(name).unwrap_or_default();
        // SAFETY: takes integers, and fails for numbers that are no descriptor.
        let is_open = |number: &i32| unsafe { libc::fcntl(*number, libc::F_GETFD) } >= 0;
        Self {
            inherited: (3..4096).filter(is_open).collect(),
            inside: text("PROBE_INSIDE") == "1",
            host_pid: text("PROBE_HOST_PID").parse().unwrap_or(i32::MAX),
            abstract_socket: text("PROBE_ABSTRACT"),
            socket: text("PROBE_SOCKET").into(),
            secret: text("PROBE_SECRET").into(),
            read: text("PROBE_READ").into(),
            write: text("PROBE_WRITE").into(),
        }
    }

    /// The process that stands for the supervisor: the sandbox's init, or outside one to practise on.
    pub fn keeper(&self) -> i32 {
        if self.inside { 1 } else { self.host_pid }
    }
}
