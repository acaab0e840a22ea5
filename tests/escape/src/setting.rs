//! What the test tells the probe of the world outside, by environment variables.

use std::env;
use std::path::PathBuf;

/// What there is to be reached.
#[derive(Debug)]
pub struct Setting {
    /// `PROBE_INSIDE`: whether this is a sandbox, so that its init may be attacked.
    pub inside: bool,
    /// Where inside process numbers are the host's (`PROBE_SHARED`): the parent at the start, which keeps
    /// this sandbox.
    pub shared: Option<i32>,
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
    /// `PROBE_SEGMENT`: the name of a segment of System V shared memory of the host that everybody may read.
    pub segment: i32,
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
            // SAFETY: takes nothing.
            shared: (text("PROBE_SHARED") == "1").then(|| unsafe { libc::getppid() }),
            host_pid: text("PROBE_HOST_PID").parse().unwrap_or(i32::MAX),
            abstract_socket: text("PROBE_ABSTRACT"),
            segment: text("PROBE_SEGMENT").parse().unwrap_or(i32::MAX),
            socket: text("PROBE_SOCKET").into(),
            secret: text("PROBE_SECRET").into(),
            read: text("PROBE_READ").into(),
            write: text("PROBE_WRITE").into(),
        }
    }

    /// The process that stands for the supervisor: the sandbox's init, or outside one to practise on.
    pub fn keeper(&self) -> i32 {
        let inside = self.shared.unwrap_or(1);
        if self.inside { inside } else { self.host_pid }
    }
}
