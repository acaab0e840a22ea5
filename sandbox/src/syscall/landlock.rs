//! The Landlock floor: which paths a workload may read, write and execute, and that it reaches no
//! TCP port, no signal target and no abstract socket outside.
//!
//! Follows "Landlock: unprivileged access control" of the kernel's user-space API guide. A ruleset
//! is prepared first and taken on just before the system call filter, which refuses none of the
//! calls needed for it. Kernels differ in what they can enforce: the rest is reported as gaps, and
//! a kernel that enforces nothing is an error.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
    make_bitflags,
};

use crate::sys;

/// The version from which Landlock asks before a Unix socket is connected to by its path.
pub const UNIX_CONNECT_ABI: u32 = 9;

/// The version from which Landlock asks before a TCP socket is bound or connected.
pub const NETWORK_ABI: u32 = 4;

/// The version from which Landlock keeps signals and abstract sockets inside.
pub const SIGNAL_ABI: u32 = 6;

/// The version of Landlock in this kernel; 0 if it has none.
pub fn abi() -> u32 {
    sys::landlock::abi().unwrap_or(0)
}

/// What may be done beneath a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rights {
    /// List directories.
    pub list: bool,
    /// Read files.
    pub read: bool,
    /// Write, create, rename and remove; connect to Unix sockets; ioctls of devices.
    ///
    /// Never create device files.
    pub write: bool,
    /// Execute files.
    pub exec: bool,
}

impl Rights {
    /// See what there is, and read none of it.
    pub const LIST: Self = Self {
        list: true,
        read: false,
        write: false,
        exec: false,
    };
    /// Read only.
    pub const READ: Self = Self {
        list: true,
        read: true,
        write: false,
        exec: false,
    };
    /// Read and execute: programs and libraries.
    pub const READ_EXEC: Self = Self {
        list: true,
        read: true,
        write: false,
        exec: true,
    };
    /// Read and write: data.
    pub const READ_WRITE: Self = Self {
        list: true,
        read: true,
        write: true,
        exec: false,
    };

    /// Whatever any rule can give.
    pub const ALL: Self = Self {
        list: true,
        read: true,
        write: true,
        exec: true,
    };

    fn access(self) -> BitFlags<AccessFs> {
        let mut access = BitFlags::empty();
        if self.list {
            access |= AccessFs::ReadDir;
        }
        if self.read {
            access |= AccessFs::ReadFile;
        }
        if self.write {
            access |= make_bitflags!(AccessFs::{
                WriteFile | Truncate | Refer | RemoveDir | RemoveFile | MakeDir | MakeReg
                    | MakeSock | MakeFifo | MakeSym | IoctlDev | ResolveUnix
            });
        }
        if self.exec {
            access |= AccessFs::Execute;
        }
        access
    }
}

/// What the workload cannot reach outside of its own Landlock domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Scopes {
    /// Signals to processes outside.
    pub signals: bool,
    /// Abstract Unix sockets made outside.
    pub abstract_unix_sockets: bool,
}

impl Default for Scopes {
    /// Confines both.
    fn default() -> Self {
        Self {
            signals: true,
            abstract_unix_sockets: true,
        }
    }
}

/// What a workload's Landlock domain is to be.
///
/// Everything not listed is denied. No TCP port can be bound or connected to, and on kernels that
/// can tell, no UDP port either: sockets come connected from the supervisor.
#[derive(Clone, Debug)]
pub struct LandlockPlan {
    paths: Vec<(PathBuf, Rights)>,
    scopes: Scopes,
}

impl LandlockPlan {
    /// Plans rights beneath paths, as the sandbox will see them.
    ///
    /// Rights beneath a path add up with those beneath its parents.
    pub fn new<P: Into<PathBuf>>(
        paths: impl IntoIterator<Item = (P, Rights)>,
        scopes: Scopes,
    ) -> Self {
        Self {
            paths: paths
                .into_iter()
                .map(|(path, rights)| (path.into(), rights))
                .collect(),
            scopes,
        }
    }

    /// Makes the ruleset, opening every path; nothing is restricted yet.
    ///
    /// # Errors
    ///
    /// [`LandlockError::Unavailable`] if the kernel enforces nothing at all,
    /// [`LandlockError::Path`] for a path that cannot be opened.
    pub fn build(&self) -> Result<PreparedRuleset, LandlockError> {
        let abi = sys::landlock::abi().map_err(LandlockError::Unavailable)?;
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?;
        let scopes = self.scopes.requested();
        if !scopes.is_empty() {
            ruleset = ruleset.scope(scopes)?;
        }
        let mut created = ruleset.create()?;
        for (path, rights) in &self.paths {
            let access = rights.access();
            if access.is_empty() {
                continue;
            }
            let (file, is_dir) = open(path)?;
            // Rights that only mean something for directories would be refused for a file.
            let access = if is_dir {
                access
            } else {
                access & AccessFs::from_file(NEWEST)
            };
            created = created.add_rule(PathBeneath::new(file, access))?;
        }
        Ok(PreparedRuleset {
            created,
            abi,
            gaps: gaps(abi, self.scopes),
        })
    }
}

impl Scopes {
    fn requested(self) -> BitFlags<Scope> {
        let mut scopes = BitFlags::empty();
        if self.signals {
            scopes |= Scope::Signal;
        }
        if self.abstract_unix_sockets {
            scopes |= Scope::AbstractUnixSocket;
        }
        scopes
    }
}

fn open(path: &Path) -> Result<(File, bool), LandlockError> {
    let failed = |source| LandlockError::Path {
        path: path.to_owned(),
        source,
    };
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
        .open(path)
        .map_err(failed)?;
    let is_dir = file.metadata().map_err(failed)?.is_dir();
    Ok((file, is_dir))
}

/// A ruleset the kernel holds, ready to be taken on.
#[derive(Debug)]
pub struct PreparedRuleset {
    created: RulesetCreated,
    abi: u32,
    gaps: Vec<Gap>,
}

impl PreparedRuleset {
    /// Restricts the calling thread and all it will ever start, for good.
    ///
    /// Sets `no_new_privs` with it. Other threads of the process stay as they are, so this belongs
    /// into a process that has only one.
    ///
    /// # Errors
    ///
    /// [`LandlockError::NotEnforced`] if the kernel took the call and nothing came of it;
    /// [`LandlockError::Ruleset`] if it refused, for instance because 16 domains are nested already.
    pub fn restrict_self(self) -> Result<LandlockEnforcement, LandlockError> {
        let status = self.created.restrict_self()?;
        if status.ruleset == RulesetStatus::NotEnforced || !status.no_new_privs {
            return Err(LandlockError::NotEnforced);
        }
        Ok(LandlockEnforcement {
            abi: self.abi,
            errata: sys::landlock::errata().ok(),
            gaps: self.gaps,
        })
    }

    /// Lists what this kernel will not enforce of the plan.
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }
}

/// What Landlock enforces on a workload.
///
/// Only [`PreparedRuleset::restrict_self`] makes one: holding it proves that the thread is confined.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LandlockEnforcement {
    abi: u32,
    errata: Option<u32>,
    gaps: Vec<Gap>,
}

impl LandlockEnforcement {
    /// Returns the version of Landlock in the kernel.
    pub fn abi(&self) -> u32 {
        self.abi
    }

    /// Returns the bits of the errata fixed in the kernel, if it can tell (Linux 6.15).
    pub fn errata(&self) -> Option<u32> {
        self.errata
    }

    /// Lists what was planned and is not enforced.
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// Tells whether all of the plan is enforced that no other layer enforces as well.
    pub fn is_full(&self) -> bool {
        self.gaps.iter().all(|gap| gap.closed_elsewhere)
    }
}

/// Something a kernel's Landlock is too old to enforce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Gap {
    /// What a workload can do although the plan denies it.
    pub what: &'static str,
    /// The version of Landlock that could deny it.
    pub since_abi: u32,
    /// Whether mounts, network namespace or the system call filter deny it too.
    pub closed_elsewhere: bool,
}

fn gaps(abi: u32, scopes: Scopes) -> Vec<Gap> {
    let gap = |what, since_abi, closed_elsewhere| Gap {
        what,
        since_abi,
        closed_elsewhere,
    };
    let mut all = vec![
        gap("truncate files it may not write", 3, false),
        gap("bind and connect TCP ports", 4, true),
        gap("send ioctls to devices it may only read", 5, false),
        // The filter refuses that on such kernels; see `Profile::without_unix_connect`.
        gap(
            "connect to Unix sockets it may not write",
            UNIX_CONNECT_ABI,
            true,
        ),
        gap("bind and send to UDP ports", 10, true),
    ];
    if scopes.signals {
        all.push(gap("signal processes outside", SIGNAL_ABI, true));
    }
    if scopes.abstract_unix_sockets {
        all.push(gap(
            "connect to abstract sockets made outside",
            SIGNAL_ABI,
            true,
        ));
    }
    all.retain(|gap| gap.since_abi > abi);
    all
}

/// Why Landlock does not confine the workload.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LandlockError {
    /// The kernel has none, or it was left out at boot.
    #[error("this kernel does not enforce Landlock: boot with `landlock` in the `lsm=` list")]
    Unavailable(#[source] io::Error),
    /// A path of the plan cannot be opened.
    #[error("`{}` cannot be made a Landlock rule", .path.display())]
    Path {
        /// The path as the plan has it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused the ruleset.
    #[error("the kernel refuses the Landlock ruleset")]
    Ruleset(#[from] RulesetError),
    /// The calls succeeded, but nothing is enforced.
    #[error("the Landlock ruleset was accepted but is not enforced")]
    NotEnforced,
}

/// The newest version whose rights are handled; older kernels get what they know of it.
const NEWEST: ABI = ABI::V10;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::syscall::memory::{Way, inspect};

    /// Runs `work` in a thread of its own, confined by the plan: Landlock is per thread.
    fn confined<T: Send>(
        plan: &LandlockPlan,
        work: impl FnOnce(LandlockEnforcement) -> T + Send,
    ) -> T {
        std::thread::scope(|scope| {
            let confined = scope.spawn(|| work(plan.build().unwrap().restrict_self().unwrap()));
            confined.join().unwrap()
        })
    }

    #[test]
    fn a_path_can_be_used_as_planned_and_no_further() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["read", "write", "hidden"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            fs::write(dir.path().join(name).join("file"), "text").unwrap();
        }
        let at = |name: &str| dir.path().join(name).join("file");
        // A single file is a fine place for a right, also for rights meant for directories.
        let plan = LandlockPlan::new(
            [
                (dir.path().to_owned(), Rights::LIST),
                (dir.path().join("read"), Rights::READ),
                (dir.path().join("write"), Rights::READ_WRITE),
                ("/dev/null".into(), Rights::READ_WRITE),
            ],
            Scopes::default(),
        );
        confined(&plan, |enforced| {
            assert!(enforced.abi() >= 1);
            assert_eq!(fs::read(at("read")).unwrap(), b"text");
            let hidden = fs::read_dir(dir.path().join("hidden")).unwrap();
            assert_eq!(hidden.count(), 1, "what may be listed is seen");
            fs::write(at("write"), "other").unwrap();
            fs::write("/dev/null", "gone").unwrap();
            fs::rename(at("write"), dir.path().join("write/renamed")).unwrap();
            for denied in [
                fs::write(at("read"), "x"),
                fs::remove_file(at("read")),
                fs::read(at("hidden")).map(drop),
                fs::read("/etc/passwd").map(drop),
                fs::rename(dir.path().join("write/renamed"), at("hidden")),
            ] {
                assert_eq!(denied.unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            }
            assert!(std::process::Command::new("/bin/true").status().is_err());
        });
        assert_eq!(
            fs::read(at("hidden")).unwrap(),
            b"text",
            "another thread stays free"
        );
    }

    #[test]
    fn no_tcp_port_can_be_bound_or_connected() {
        let open = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = open.local_addr().unwrap();
        let plan = LandlockPlan::new([("/usr", Rights::READ_EXEC)], Scopes::default());
        confined(&plan, |enforced| {
            if enforced.abi() < 4 {
                println!("skipped: Landlock confines TCP from ABI 4");
                return;
            }
            let denied = TcpStream::connect(address).unwrap_err();
            assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
            let denied = TcpListener::bind("127.0.0.1:0").unwrap_err();
            assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
        });
    }

    #[test]
    fn no_signal_and_no_abstract_socket_reaches_outside() {
        use std::os::linux::net::SocketAddrExt;
        use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

        let name = format!("casemate-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let _outside = UnixListener::bind_addr(&address).unwrap();
        // Only asks whether a signal could be sent.
        let script = format!("kill -0 {}", std::process::id());
        let signal = || {
            let mut command = std::process::Command::new("/bin/sh");
            let command = command
                .args(["-c", &script])
                .stderr(std::process::Stdio::null());
            command.status().unwrap().success()
        };
        let everything = [(
            "/",
            Rights {
                list: true,
                read: true,
                write: true,
                exec: true,
            },
        )];
        let reaches = |scopes| {
            confined(&LandlockPlan::new(everything, scopes), |enforced| {
                (
                    enforced.abi() < 6,
                    signal(),
                    UnixStream::connect_addr(&address).is_ok(),
                )
            })
        };
        let (too_old, signals, sockets) = reaches(Scopes::default());
        if too_old {
            println!("skipped: Landlock has scopes from ABI 6");
            return;
        }
        assert_eq!((signals, sockets), (false, false));
        let open = Scopes {
            signals: false,
            abstract_unix_sockets: false,
        };
        assert_eq!(
            reaches(open),
            (false, true, true),
            "nothing else may have refused it"
        );
    }

    #[test]
    fn a_process_without_a_right_to_proc_cannot_write_its_own_code() {
        let plan = LandlockPlan::new([("/usr", Rights::READ_EXEC)], Scopes::default());
        assert_eq!(inspect(None).proc_mem, Way::Open);
        assert_eq!(confined(&plan, |_| inspect(None).proc_mem), Way::Closed);
    }

    #[test]
    fn what_the_kernel_cannot_enforce_is_told() {
        let enforced = confined(
            &LandlockPlan::new([("/usr", Rights::READ)], Scopes::default()),
            |enforced| enforced,
        );
        for gap in enforced.gaps() {
            assert!(gap.since_abi > enforced.abi());
        }
        assert_eq!(enforced.is_full(), enforced.abi() >= 5);
        assert_eq!(gaps(1, Scopes::default()).len(), 7);
        assert_eq!(gaps(10, Scopes::default()).len(), 0);
        let unscoped = Scopes {
            signals: false,
            abstract_unix_sockets: false,
        };
        assert_eq!(gaps(5, unscoped).len(), 2);
    }

    #[test]
    fn a_path_that_is_not_there_is_named() {
        let plan = LandlockPlan::new([("/not/there", Rights::READ)], Scopes::default());
        let error = plan.build().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`/not/there` cannot be made a Landlock rule"
        );
    }
}
