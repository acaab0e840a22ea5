//! What a process is given before it runs: everything that is in force from exec on.
//!
//! A [`Floor`] is plain data. The supervisor computes it from the plan, the spawner and the sandbox's
//! init carry it out. Nothing in it is ever loosened.

use serde::{Deserialize, Serialize};

use crate::syscall::landlock::Rights;
use crate::syscall::program::Program;

/// User and group id that the workload has inside its user namespace.
pub const INSIDE_ID: u32 = 1000;

/// The whole floor of one sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Floor {
    /// User id on the host that [`INSIDE_ID`] stands for.
    pub host_uid: u32,
    /// Group id on the host that [`INSIDE_ID`] stands for.
    pub host_gid: u32,
    /// Whether the supervisor is root, and can give the sandbox a user of its own.
    pub privileged: bool,
    /// Host name inside.
    pub hostname: String,
    /// What the root file system is made of.
    pub rootfs: Rootfs,
    /// Folder of the host that is the workload's own where it has no namespaces and no root file system, and
    /// lives in the host's (the backend `process`). `rootfs` has nothing then.
    pub home: Option<String>,
    /// What the workload may touch, as Landlock sees it: paths inside.
    pub landlock: Vec<(String, Rights)>,
    /// Resource limits: number of the resource (`RLIMIT_*`), value.
    pub limits: Vec<(u32, u64)>,
    /// Whether the filter lets the workload connect to Unix sockets by their path.
    pub unix_connect: bool,
    /// Whether the workload may execute what it wrote to its own memory, as just-in-time compilers do.
    pub compiles: bool,
    /// Whether the workload's network is brokered, and so has a resolver.
    pub network: bool,
    /// The system call filter, whose refusals are reported by a listener.
    pub filter: Program,
    /// The same filter without reports, for where another listener is in force already.
    pub silent_filter: Program,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment, `NAME=value`.
    pub environment: Vec<String>,
    /// Working directory inside.
    pub directory: String,
}

/// The parts of a root file system: an empty tmpfs into which everything else is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rootfs {
    /// Trees of the host that appear inside, in the order in which they are mounted.
    pub binds: Vec<Bind>,
    /// Symbolic links: where, to what.
    pub links: Vec<(String, String)>,
    /// Small files made for the sandbox: where, content.
    pub files: Vec<(String, String)>,
    /// Places for vaults.
    pub data: Vec<DataMount>,
    /// Size of the writable, empty `/tmp` in bytes.
    pub scratch: u64,
}

/// A tree of the host that appears inside the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Absolute path on the host.
    pub from: String,
    /// Absolute path inside.
    pub at: String,
    /// Whether writing is possible.
    pub writable: bool,
    /// Whether programs in it can be executed.
    pub executable: bool,
    /// Whether a missing source is passed over (parts of the host's own file system).
    pub optional: bool,
    /// Whether it is a device file.
    pub device: bool,
    /// Whether the owner of the files should appear as the workload's user: granted trees, not
    /// the system's.
    pub owned: bool,
}

/// A place where a vault appears.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataMount {
    /// Name of the entry in the policy's `[data]` table.
    pub name: String,
    /// Absolute path inside.
    pub at: String,
    /// Upper bound of the plaintext in bytes, for the fallback that keeps it in memory.
    pub size: u64,
    /// Whether the workload writes to it; then there is no fallback.
    pub writable: bool,
}
