//! From a decision to a plan: the floor, in force from exec on, and the position of each lever.

mod shared;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use policy::{Access, Action, BackendName, Bundle, Decision, Endpoint, Grant, Resource, Tables};
use serde::{Deserialize, Serialize};

use crate::enforcement::Enforcement;
use crate::isolation::cgroup::Limits;
use crate::isolation::floor::{Bind, DataMount, Floor, Rootfs};
use crate::isolation::namespace;
use crate::isolation::network;
use crate::isolation::process;
use crate::isolation::rootfs::{HostEntry, host_entry};
use crate::lever::exec;
use crate::lever::tighten::Tightening;
use crate::syscall::landlock::{self, Rights};
use crate::syscall::profile::Fate;
use crate::syscall::table::syscall_number;
use crate::syscall::{Profile, ProfileError};

/// Whether the workload may run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Run {
    /// It runs.
    #[default]
    Running,
    /// It exists, but no instruction of it is executed.
    Frozen,
    /// It does not exist any more.
    Stopped,
}

/// Which limits are in force.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Those of `[isolation]`.
    #[default]
    Full,
    /// Those of `[isolation.reduced]`.
    Reduced,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full",
            Self::Reduced => "reduced",
        })
    }
}

/// What the workload may do with a granted tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileAccess {
    /// Read it.
    Read,
    /// Read and write it.
    Write,
}

impl fmt::Display for FileAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// The position of every lever, and what was granted that no lever can take back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Whether the workload may run.
    pub run: Run,
    /// Which limits are in force.
    pub tier: Tier,
    /// Vaults that the workload can read, and write to where that is asked for.
    pub data: BTreeSet<String>,
    /// Trees of the host that the workload sees, by their place inside.
    pub files: BTreeMap<String, FileAccess>,
    /// Whom the workload may connect to.
    pub connect: BTreeSet<Endpoint>,
    /// Whether the workload may start programs.
    pub exec: bool,
    /// What was taken for good.
    pub tightened: BTreeSet<Tightening>,
    /// Grants built into the floor. Losing one freezes the workload, as there is no lever for it.
    pub fixed: BTreeSet<Grant>,
}

impl Plan {
    /// What a decision means before launch.
    pub fn under(decision: &Decision) -> Self {
        let mut plan = Self {
            run: match (decision.live(), decision.proceed()) {
                (false, _) => Run::Stopped,
                (true, false) => Run::Frozen,
                (true, true) => Run::Running,
            },
            tier: if decision.grants(&Grant::full_tier()) {
                Tier::Full
            } else {
                Tier::Reduced
            },
            ..Self::default()
        };
        for grant in &decision.granted {
            match (grant.action, &grant.resource) {
                // A vault to be written to is shown while both may be done: what could not be committed
                // any more would only pile up.
                (Action::Read, Resource::Vault(name)) => {
                    let write = Grant::write_vault(name);
                    if !decision.denied.iter().any(|denied| denied.grant == write) {
                        plan.data.insert(name.clone());
                    }
                }
                (Action::Write, Resource::Vault(_)) => {}
                (Action::Read, Resource::Path(at)) => {
                    let at = at.to_string_lossy().into_owned();
                    let write = Grant {
                        action: Action::Write,
                        resource: grant.resource.clone(),
                    };
                    let write = decision.grants(&write);
                    let access = if write {
                        FileAccess::Write
                    } else {
                        FileAccess::Read
                    };
                    plan.files.insert(at, access);
                }
                (Action::Connect, Resource::Endpoint(endpoint)) => {
                    plan.connect.insert(endpoint.clone());
                }
                // Comes with the right to read, above; alone it gives nothing.
                (Action::Write, Resource::Path(_)) => {}
                (Action::Exec, _) => plan.exec = true,
                (Action::Use | Action::Proceed | Action::Live, _) => {}
                _ => {
                    plan.fixed.insert(grant.clone());
                }
            }
        }
        plan
    }

    /// What a decision means for a sandbox that was launched under this plan: nothing that it was not
    /// launched with is given, and a grant without a lever that is lost freezes.
    pub fn narrowed(&self, decision: &Decision) -> Self {
        let mut wanted = Self::under(decision);
        if !self.fixed.is_subset(&wanted.fixed) {
            wanted.run = wanted.run.max(Run::Frozen);
        }
        wanted.fixed.clone_from(&self.fixed);
        wanted.exec &= self.exec;
        wanted
            .connect
            .retain(|endpoint| self.connect.contains(endpoint));
        let lost: Vec<_> = self
            .files
            .keys()
            .filter(|at| !wanted.files.contains_key(*at))
            .collect();
        let below_lost = |at: &str| lost.iter().any(|lost| Path::new(at).starts_with(lost));
        wanted.files = self
            .files
            .iter()
            .filter(|(at, _)| !below_lost(at))
            .filter_map(|(at, had)| Some((at.clone(), *wanted.files.get(at)?.min(had))))
            .collect();
        wanted.data = wanted.data.intersection(&self.data).cloned().collect();
        wanted
    }
}

/// Limits of a tier, as the policy's tables have them.
pub fn limits(tables: &Tables, tier: Tier) -> Limits {
    let isolation = &tables.isolation;
    let full = Limits {
        memory: Some(isolation.memory),
        pids: Some(isolation.pids),
        cpu: Some(isolation.cpu),
    };
    match (tier, &isolation.reduced) {
        (Tier::Full, _) => full,
        (Tier::Reduced, Some(reduced)) => Limits {
            memory: reduced.memory.or(full.memory),
            pids: reduced.pids.or(full.pids),
            cpu: reduced.cpu.or(full.cpu),
        },
        (Tier::Reduced, None) => Limits {
            cpu: full.cpu.map(|cores| cores / 10.0),
            ..full
        },
    }
}

/// Parts of the host's own file system that make `rootfs = "host"`.
pub(crate) const HOST_TREES: [&str; 7] = [
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32",
];
/// Parts of the host's `/etc` that programs need and that tell nothing of the host's secrets.
pub(crate) const HOST_ETC: [&str; 12] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/protocols",
    "/etc/services",
    "/etc/mime.types",
    "/etc/ca-certificates",
    "/etc/ssl/certs",
    "/etc/terminfo",
];
/// Files of `/etc` that a sandbox makes itself; `resolv.conf` only with a network.
pub(crate) const OWN_ETC: [&str; 4] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/hosts",
    "/etc/resolv.conf",
];
/// Folders of a root file system that are always made new.
const OWN_FOLDERS: [&str; 5] = ["proc", "sys", "dev", "tmp", "run"];
pub(crate) const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// Size of `/tmp` and of `/dev/shm` in bytes, unless the memory limit is smaller.
const SCRATCH: u64 = 64 << 20;
/// Most descriptors of one process: enough for any program, too few to exhaust the host.
const MAX_FILES: u64 = 4096;

/// Why no floor could be made from a bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The policy asks for what this version cannot enforce.
    #[error("{0}")]
    Unsupported(String),
    /// A path of the policy is not there.
    #[error("cannot use `{path}` from the policy's `{table}` table")]
    Path {
        /// Which table names it.
        table: &'static str,
        /// The path on the host.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The `[syscalls]` table has a mistake.
    #[error(transparent)]
    Profile(#[from] ProfileError),
}

/// Makes the floor for a bundle under a decision. Relative paths are resolved against `base`, the
/// folder of the policy file; `vault_sizes` bounds the plaintext of each vault in bytes.
///
/// # Errors
///
/// [`PlanError`] when something the policy names is not there or cannot be enforced.
pub fn floor(
    bundle: &Bundle,
    plan: &Plan,
    base: &Path,
    vault_sizes: &BTreeMap<String, u64>,
) -> Result<Floor, PlanError> {
    let tables = bundle.tables();
    enforceable(plan)?;
    let uid = rustix::process::getuid();
    let shares = tables.isolation.backend == BackendName::Process;
    let of_its_own = match (uid.is_root(), shares) {
        (false, _) => None,
        (true, true) => namespace::any_sandbox_uid(),
        (true, false) => namespace::sandbox_uid(),
    };
    let privileged = of_its_own.is_some();
    let (host_uid, host_gid) = match of_its_own {
        Some(id) => (id, id),
        None => (uid.as_raw(), rustix::process::getgid().as_raw()),
    };
    let (mut rootfs, mut rights) = match shares {
        true => (Rootfs::default(), shared::rights(tables)?),
        false => {
            let rootfs = base_rootfs(tables, base)?;
            let rights = base_rights(&rootfs);
            (rootfs, rights)
        }
    };
    let mut granted = Vec::new();
    let mut grant = |file: &policy::FileGrant, writable: bool, table| -> Result<(), PlanError> {
        let from = base.join(&file.from);
        if shares {
            shared::in_place(&from, &file.at)?;
        }
        let from = from.canonicalize().map_err(|source| PlanError::Path {
            table,
            path: from,
            source,
        })?;
        let bind = Bind {
            from: text(&from)?,
            at: text(&file.at)?,
            writable,
            executable: !writable,
            optional: false,
            device: false,
            owned: true,
        };
        granted.push(bind);
        Ok(())
    };
    let access = |file: &policy::FileGrant| plan.files.get(&*file.at.to_string_lossy());
    for (file, table) in tables
        .files
        .read
        .iter()
        .map(|file| (file, "files.read"))
        .chain(tables.files.write.iter().map(|file| (file, "files.write")))
    {
        if let Some(access) = access(file) {
            grant(file, *access == FileAccess::Write, table)?;
        }
    }
    no_execution_of_writable(&mut granted);
    let root_trees = match shares {
        true => shared::executed(),
        false => rootfs.binds.clone(),
    };
    let root_trees = root_trees
        .iter()
        .filter(|bind| bind.executable && !bind.device);
    if let Some((written, tree)) = written_root(&granted, root_trees) {
        return Err(PlanError::Unsupported(format!(
            "`{written}` is granted for writing, and `{tree}` of the root file system, from which \
             programs are executed, is the same place: what the workload writes it could execute"
        )));
    }
    for bind in granted {
        let may = match (bind.writable, bind.executable) {
            (true, _) => Rights::READ_WRITE,
            (false, true) => Rights::READ_EXEC,
            (false, false) => Rights::READ,
        };
        rights.push((bind.at.clone(), may));
        if !shares {
            rootfs.binds.push(bind);
        }
    }
    let home = shares.then(process::home);
    if let Some(home) = &home {
        rights.push((home.clone(), Rights::READ_WRITE));
    }
    for (name, data) in tables
        .data
        .iter()
        .filter(|(name, _)| plan.data.contains(*name))
    {
        let at = text(&data.at)?;
        let writable = data.access == Access::ReadWrite;
        let may = match writable {
            true => Rights::READ_WRITE,
            false => Rights::READ,
        };
        rights.push((at.clone(), may));
        let size = vault_sizes.get(name).copied().unwrap_or(0);
        // Room for the last page of each file and for folders.
        rootfs.data.push(DataMount {
            name: name.clone(),
            at,
            size: size + size / 8 + (1 << 20),
            writable,
        });
    }
    // What lies deeper is mounted later, whatever the order in the policy.
    rootfs
        .binds
        .sort_by_key(|bind| bind.at.matches('/').count());
    rootfs.scratch = SCRATCH.min(tables.isolation.memory);

    // Without a listener nobody brokers, and the network is as empty as without grants.
    let (silent, profile) = (profile(tables)?, filtered(tables)?);
    let network = !tables.network.connect.is_empty();
    // A right that a rule may take is asked for each time; where nobody listens, it is not.
    let asking = match bundle.may_change(&Grant::exec()) {
        true => profile.clone().notify(exec::CALLS)?,
        false => profile.clone(),
    };
    Ok(Floor {
        host_uid,
        host_gid,
        privileged,
        hostname: "casemate".into(),
        rootfs,
        landlock: rights,
        // The processes of an ordinary user are counted together, the sandbox's or not.
        limits: resource_limits(tables, !shares || privileged),
        unix_connect: reaches_unix_paths(&profile),
        compiles: profile.name() == Profile::COMPILERS,
        network,
        filter: asking.compile(true)?,
        silent_filter: silent.compile(false)?,
        command: tables.workload.command.clone(),
        environment: environment(tables, home.as_deref().unwrap_or("/tmp")),
        home,
        directory: text(&tables.workload.cwd)?,
    })
}

/// Refuses tables that take namespaces, for the backend that has none.
pub(crate) fn shareable(tables: &Tables) -> Result<(), PlanError> {
    shared::rights(tables).map(drop)
}

/// Refuses a plan that grants what cannot be enforced.
pub(crate) fn enforceable(plan: &Plan) -> Result<(), PlanError> {
    if !plan.exec {
        return Err(PlanError::Unsupported(
            "the policy does not grant `exec` from the start: the workload's own program could not be \
             executed"
                .into(),
        ));
    }
    Ok(())
}

/// Refuses rules about gaps that cannot be: a `forbid` about one would silently never hold.
pub(crate) fn known_gaps(bundle: &Bundle, enforcement: &Enforcement) -> Result<(), PlanError> {
    let strange = bundle.unknown_gaps(&enforcement.protections());
    strange.first().map_or(Ok(()), |strange| {
        let why = format!("{} (line {} of the policy)", strange.message, strange.line);
        Err(PlanError::Unsupported(why))
    })
}

/// The profile that the sandbox gets: with connections behind the supervisor, if the policy has any.
pub(crate) fn filtered(tables: &Tables) -> Result<Profile, PlanError> {
    match tables.network.connect.is_empty() {
        true => profile(tables),
        false => Ok(with_network(allowed(tables)?)?.deny(&tables.syscalls.deny)?),
    }
}

/// The system calls that the policy's table allows.
///
/// # Errors
///
/// [`PlanError::Profile`] when the table has a mistake.
pub fn profile(tables: &Tables) -> Result<Profile, PlanError> {
    Ok(allowed(tables)?.deny(&tables.syscalls.deny)?)
}

/// The profile with what the table adds to it, and without what it denies.
fn allowed(tables: &Tables) -> Result<Profile, PlanError> {
    let mut profile = Profile::named(&tables.syscalls.profile)?.without_broker();
    if landlock::abi() < landlock::UNIX_CONNECT_ABI {
        profile = profile.without_unix_connect();
    }
    if tables.isolation.backend == BackendName::Process {
        profile = profile.without_namespaces();
    }
    Ok(profile.allow(&tables.syscalls.allow)?)
}

/// Puts connections behind the supervisor.
fn with_network(profile: Profile) -> Result<Profile, PlanError> {
    let allows = |name| syscall_number(name).is_some_and(|nr| profile.allows(nr));
    if !allows("getpeername") {
        return Err(PlanError::Unsupported(format!(
            "the profile `{}` has no sockets, and `[network] connect` needs them: use \
             `profile = \"default\"`",
            profile.name()
        )));
    }
    if allows("io_uring_setup") {
        return Err(PlanError::Unsupported(
            "`io_uring` connects without being asked about: `[syscalls] allow` of `io_uring_setup` and \
             `[network] connect` cannot both be"
                .into(),
        ));
    }
    Ok(profile.with_network(landlock::abi() >= landlock::NETWORK_ABI))
}

/// Whether the profile lets a Unix socket be reached by its path, by connecting or by a datagram.
fn reaches_unix_paths(profile: &Profile) -> bool {
    let datagram = [libc::AF_UNIX as u64, libc::SOCK_DGRAM as u64, 0, 0, 0, 0];
    let allowed = |name, arguments: &[u64; 6]| {
        syscall_number(name).is_some_and(|nr| profile.fate(nr, arguments) == Fate::Allow)
    };
    allowed("connect", &[0; 6]) || allowed("socket", &datagram) || allowed("socketpair", &datagram)
}

/// A tree granted for writing that is part of the root file system, or holds a part of it.
fn written_root<'a>(
    granted: &'a [Bind],
    root: impl Iterator<Item = &'a Bind>,
) -> Option<(&'a str, &'a str)> {
    let mut trees =
        root.filter_map(|tree| Some((tree, Path::new(&tree.from).canonicalize().ok()?)));
    trees.find_map(|(tree, place)| {
        let written = granted.iter().filter(|bind| bind.writable).find(|bind| {
            let from = Path::new(&bind.from);
            from.starts_with(&place) || place.starts_with(from)
        })?;
        Some((written.from.as_str(), tree.from.as_str()))
    })
}

/// Takes execution from trees that can be written through another grant: what the workload writes, it
/// never executes.
fn no_execution_of_writable(granted: &mut [Bind]) {
    let writable: Vec<PathBuf> = granted
        .iter()
        .filter(|bind| bind.writable)
        .map(|bind| bind.from.clone().into())
        .collect();
    for bind in granted {
        let from = Path::new(&bind.from);
        bind.executable &= !writable
            .iter()
            .any(|w| w.starts_with(from) || from.starts_with(w));
    }
}

fn base_rootfs(tables: &Tables, base: &Path) -> Result<Rootfs, PlanError> {
    let mut rootfs = Rootfs::default();
    let system = |from: &str, at: &str, owned| Bind {
        from: from.into(),
        at: at.into(),
        writable: false,
        executable: true,
        optional: true,
        device: false,
        owned,
    };
    let mut tree = |from: &str, at: &str, owned| match host_entry(from) {
        Some(HostEntry::Link(target)) => rootfs.links.push((at.into(), target)),
        Some(HostEntry::Tree) => rootfs.binds.push(system(from, at, owned)),
        None => {}
    };
    match &tables.workload.rootfs {
        policy::Rootfs::Path(folder) => {
            let table = "workload.rootfs";
            let folder = base.join(folder);
            let failed = |source| PlanError::Path {
                table,
                path: folder.clone(),
                source,
            };
            for entry in std::fs::read_dir(&folder).map_err(failed)? {
                let path = entry.map_err(failed)?.path();
                let Some(name) = path.file_name().and_then(|n| n.to_str()) else {
                    continue;
                };
                if !OWN_FOLDERS.contains(&name) {
                    tree(&text(&path)?, &format!("/{name}"), true);
                }
            }
        }
        _ => {
            for path in HOST_TREES {
                tree(path, path, false);
            }
            for path in HOST_ETC {
                if Path::new(path).exists() {
                    rootfs.binds.push(system(path, path, false));
                }
            }
            if !tables.network.connect.is_empty() {
                let content = format!("nameserver {}\n", network::RESOLVER.ip());
                rootfs.files.push(("/etc/resolv.conf".into(), content));
            }
            for (path, content) in [
                ("/etc/passwd", "workload:x:1000:1000::/tmp:/bin/sh\n"),
                ("/etc/group", "workload:x:1000:\n"),
                (
                    "/etc/hosts",
                    "127.0.0.1 localhost casemate\n::1 localhost\n",
                ),
            ] {
                rootfs.files.push((path.into(), content.into()));
            }
        }
    }
    for device in DEVICES {
        let path = format!("/dev/{device}");
        rootfs.binds.push(Bind {
            from: path.clone(),
            at: path,
            writable: true,
            executable: false,
            optional: false,
            device: true,
            owned: false,
        });
    }
    for (at, target) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        rootfs.links.push((at.into(), target.into()));
    }
    Ok(rootfs)
}

/// What the workload may touch of the base: the second wall behind the mounts.
fn base_rights(rootfs: &Rootfs) -> Vec<(String, Rights)> {
    let mut rights: Vec<_> = [
        // Everything that can be seen was mounted for the workload; what it may read of it is below.
        ("/", Rights::LIST),
        ("/etc", Rights::READ),
        ("/proc", Rights::READ),
        ("/tmp", Rights::READ_WRITE),
        ("/dev", Rights::READ),
        ("/dev/shm", Rights::READ_WRITE),
    ]
    .map(|(path, may)| (path.to_owned(), may))
    .into();
    rights.extend(rootfs.binds.iter().map(|bind| {
        (
            bind.at.clone(),
            if bind.device {
                Rights::READ_WRITE
            } else {
                Rights::READ_EXEC
            },
        )
    }));
    rights
}

fn resource_limits(tables: &Tables, own_user: bool) -> Vec<(u32, u64)> {
    // Counted per user and user namespace: a bound on processes where no cgroup gives one.
    let processes = (libc::RLIMIT_NPROC, tables.isolation.pids + 2);
    let mut limits = vec![
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_NOFILE, MAX_FILES),
        (libc::RLIMIT_MSGQUEUE, 0),
        (libc::RLIMIT_MEMLOCK, 1 << 20),
        (libc::RLIMIT_NICE, 0),
        (libc::RLIMIT_RTPRIO, 0),
    ];
    limits.extend(own_user.then_some(processes));
    limits
}

fn environment(tables: &Tables, home: &str) -> Vec<String> {
    let mut variables = BTreeMap::from([
        ("HOME".to_owned(), home.to_owned()),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
        ("PATH".to_owned(), "/usr/local/bin:/usr/bin:/bin".to_owned()),
        ("TMPDIR".to_owned(), home.to_owned()),
    ]);
    variables.extend(tables.workload.env.clone());
    variables
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect()
}

fn text(path: &Path) -> Result<String, PlanError> {
    path.to_str().map(str::to_owned).ok_or_else(|| {
        PlanError::Unsupported(format!("the path `{}` is not valid UTF-8", path.display()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_takes_what_lies_below_it_along_and_gains_nothing() {
        let now = Plan {
            files: [
                ("/a", FileAccess::Write),
                ("/a/b", FileAccess::Read),
                ("/c", FileAccess::Read),
            ]
            .map(|(at, access)| (at.to_owned(), access))
            .into(),
            connect: ["a:1".parse().expect("an endpoint")].into(),
            ..Plan::default()
        };
        let source = r#"
version = 1
name = "t"
[workload]
command = ["true"]
[files]
read = [{ from = "x", at = "/a/b" }]
write = [{ from = "y", at = "/a" }, { from = "z", at = "/c" }]
[network]
connect = ["a:1", "b:2"]
[rules]
cedar = """
permit (principal, action, resource);
forbid (principal, action == Action::"read", resource == Path::"/a");
"""
"#;
        let bundle = Bundle::parse(source, "t").expect("a policy");
        let narrowed = now.narrowed(&bundle.decide(&policy::Facts::unknown()));
        assert_eq!(narrowed.files, [("/c".to_owned(), FileAccess::Read)].into());
        // Neither endpoint is denied; one was not granted when it was launched.
        assert_eq!(narrowed.connect, now.connect);
    }

    #[test]
    fn a_place_that_programs_of_the_root_come_from_cannot_be_granted_for_writing() {
        let place = tempfile::tempdir().expect("a folder");
        let bind = |from: &Path, writable: bool| Bind {
            from: from.display().to_string(),
            at: "/x".into(),
            writable,
            executable: !writable,
            optional: false,
            device: false,
            owned: true,
        };
        for name in ["usr/local", "other"] {
            std::fs::create_dir_all(place.path().join(name)).expect("a folder");
        }
        let root = [bind(&place.path().join("usr"), false)];
        for (written, refused) in [
            ("usr/local", true),
            ("usr", true),
            ("", true),
            ("other", false),
        ] {
            let written = place.path().join(written).canonicalize().expect("a folder");
            let granted = [bind(&written, true)];
            assert_eq!(
                written_root(&granted, root.iter()).is_some(),
                refused,
                "{written:?}"
            );
        }
    }

    #[test]
    fn a_profile_that_reaches_unix_paths_is_known_as_one() {
        let profile = || {
            Profile::named("default")
                .expect("a profile")
                .without_broker()
                .without_unix_connect()
        };
        assert!(!reaches_unix_paths(&profile()));
        for name in ["connect", "socket", "socketpair"] {
            assert!(
                reaches_unix_paths(&profile().allow([name]).expect("a name")),
                "{name}"
            );
        }
    }

    #[test]
    fn nothing_that_can_be_written_through_another_grant_can_be_executed() {
        let bind = |from: &str, writable: bool| Bind {
            from: from.into(),
            at: from.into(),
            writable,
            executable: !writable,
            optional: false,
            device: false,
            owned: true,
        };
        let mut granted = [
            bind("/srv/app", false),
            bind("/srv/app/out", true),
            bind("/srv/application", false),
            bind("/srv/app/out/bin", false),
        ];
        no_execution_of_writable(&mut granted);
        let executable: Vec<_> = granted
            .iter()
            .filter(|b| b.executable)
            .map(|b| b.from.as_str())
            .collect();
        assert_eq!(executable, ["/srv/application"]);
    }
}
