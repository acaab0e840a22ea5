//! The floor of a start: the steps that `casemate` takes, in bare system calls, with nothing between
//! them. Nobody asks, answers, reports or checks; what is needed is laid out beforehand.
//!
//! ```text
//! this process ─fork▶ helper (enters v1 cgroups) ─clone3▶ init (mounts) ─fork▶ workload (confines itself, execs)
//! ```
//!
//! Three processes, as there: one that is in the cgroups before the sandbox is born, the init of the
//! sandbox, and the workload.

use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use casemate::isolation::cgroup::Limits;
use casemate::isolation::floor::Floor;
use casemate::syscall::landlock::Rights;

use crate::Result;
use crate::kernel::{call, check, close, exit, fork, open, pipe, read, wait, write};

/// Everything about a floor, as system calls want it.
pub struct Bare {
    links: Vec<(CString, CString)>,
    folders: Vec<CString>,
    files: Vec<(CString, Vec<u8>)>,
    /// Source, place inside, attributes.
    binds: Vec<(CString, CString, u64)>,
    landlock: Vec<(CString, u64)>,
    limits: Vec<(u32, libc::rlimit64)>,
    filter: Vec<libc::sock_filter>,
    program: CString,
    environment: Vec<CString>,
    map: CString,
    scratch: CString,
    hostname: CString,
    /// Cgroup folders to be made, with what is written to which file.
    v1: Vec<(PathBuf, Vec<(&'static str, String)>)>,
    v2: Option<PathBuf>,
    privileged: bool,
}

const RDONLY: u64 = 1;
const NOSUID: u64 = 2;
const NODEV: u64 = 4;
const NOEXEC: u64 = 8;

impl Bare {
    pub fn of(floor: &Floor, limits: &Limits) -> Result<Self> {
        let text = |s: &str| CString::new(s);
        let mut folders = Vec::new();
        let mut files = Vec::new();
        let mut binds = Vec::new();
        let above = |at: &str, folders: &mut Vec<CString>| -> Result<()> {
            let mut all: Vec<_> = Path::new(at.trim_start_matches('/'))
                .ancestors()
                .skip(1)
                .collect();
            all.pop();
            for folder in all.into_iter().rev() {
                let folder = text(folder.to_str().ok_or("a path")?)?;
                if !folders.contains(&folder) {
                    folders.push(folder);
                }
            }
            Ok(())
        };
        for bind in &floor.rootfs.binds {
            let Ok(source) = fs::metadata(&bind.from) else {
                continue;
            };
            above(&bind.at, &mut folders)?;
            let at = text(bind.at.trim_start_matches('/'))?;
            if source.is_dir() {
                folders.push(at.clone());
            } else {
                files.push((at.clone(), Vec::new()));
            }
            let mut attributes = NOSUID;
            attributes |= if bind.writable || bind.device {
                0
            } else {
                RDONLY
            };
            attributes |= if bind.device { 0 } else { NODEV };
            attributes |= if bind.executable { 0 } else { NOEXEC };
            binds.push((text(&bind.from)?, at, attributes));
        }
        for (at, content) in &floor.rootfs.files {
            above(at, &mut folders)?;
            files.push((
                text(at.trim_start_matches('/'))?,
                content.as_bytes().to_vec(),
            ));
        }
        for (at, _) in &floor.rootfs.links {
            above(at, &mut folders)?;
        }
        for folder in ["tmp", "dev", "dev/shm", "proc"] {
            let folder = text(folder)?;
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
        let seen = |path: &str| {
            floor
                .rootfs
                .binds
                .iter()
                .any(|b| path == b.at && Path::new(&b.from).exists())
                || ["/", "/etc", "/proc", "/tmp", "/dev", "/dev/shm"].contains(&path)
        };
        let landlock = floor.landlock.iter().filter(|(path, _)| seen(path));
        let landlock = landlock.map(|(path, rights)| {
            let folder = Path::new(path).is_dir() || !Path::new(path).exists();
            Ok((
                text(path)?,
                access(*rights) & if folder { u64::MAX } else { ON_FILES },
            ))
        });
        let (v1, v2) = cgroups(limits)?;
        Ok(Self {
            links: floor
                .rootfs
                .links
                .iter()
                .map(|(at, to)| Ok((text(at.trim_start_matches('/'))?, text(to)?)))
                .collect::<Result<_>>()?,
            folders,
            files,
            binds,
            landlock: landlock.collect::<Result<_>>()?,
            limits: floor
                .limits
                .iter()
                .map(|(r, v)| {
                    (
                        *r,
                        libc::rlimit64 {
                            rlim_cur: *v,
                            rlim_max: *v,
                        },
                    )
                })
                .collect(),
            filter: floor
                .filter
                .instructions()
                .iter()
                .map(|i| libc::sock_filter {
                    code: i.code,
                    jt: i.jt,
                    jf: i.jf,
                    k: i.k,
                })
                .collect(),
            program: text(&floor.command[0])?,
            environment: floor
                .environment
                .iter()
                .map(|v| text(v))
                .collect::<std::result::Result<_, _>>()?,
            map: text(&format!("1000 {} 1\n", floor.host_uid))?,
            scratch: text(&floor.rootfs.scratch.to_string())?,
            hostname: text(&floor.hostname)?,
            v1,
            v2,
            privileged: floor.privileged,
        })
    }

    /// Starts the program, waits for its end, and cleans up.
    pub fn start(&self) -> Result<()> {
        for (folder, files) in &self.v1 {
            fs::create_dir(folder)?;
            for (file, value) in files {
                let _ = fs::write(folder.join(file), value);
            }
        }
        if let Some(folder) = &self.v2 {
            fs::create_dir(folder)?;
        }
        let helper = fork(0, -1)?;
        if helper == 0 {
            let code = self
                .helper()
                .map_or_else(|error| error.raw_os_error().unwrap_or(1), |()| 0);
            exit(code);
        }
        let code = wait(helper)?;
        for folder in self.v1.iter().map(|(folder, _)| folder).chain(&self.v2) {
            fs::remove_dir(folder)?;
        }
        if code != 0 {
            return Err(io::Error::from_raw_os_error(code).into());
        }
        Ok(())
    }

    fn helper(&self) -> io::Result<()> {
        for (folder, _) in &self.v1 {
            fs::write(folder.join("tasks"), "0")?;
        }
        let born = match &self.v2 {
            Some(folder) => open(
                &CString::new(folder.to_str().unwrap_or_default())?,
                libc::O_PATH,
            )?,
            None => -1,
        };
        let (wait_mapped, mapped) = pipe()?;
        let namespaces = libc::CLONE_NEWUSER
            | libc::CLONE_NEWNS
            | libc::CLONE_NEWPID
            | libc::CLONE_NEWNET
            | libc::CLONE_NEWIPC
            | libc::CLONE_NEWUTS;
        let init = fork(namespaces as u32 as u64, born)?;
        if init == 0 {
            exit(
                self.init(wait_mapped)
                    .unwrap_or_else(|error| error.raw_os_error().unwrap_or(1)),
            );
        }
        if self.privileged {
            for file in ["uid_map", "gid_map"] {
                fs::write(format!("/proc/{init}/{file}"), self.map.as_bytes())?;
            }
        }
        write(mapped, b"1")?;
        match wait(init)? {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    fn init(&self, wait_mapped: i32) -> io::Result<i32> {
        let kill = libc::SIGKILL as u64;
        call(
            libc::SYS_prctl,
            [libc::PR_SET_PDEATHSIG as u64, kill, 0, 0, 0],
        )?;
        if !self.privileged {
            fs::write("/proc/self/setgroups", "deny")?;
            for file in ["uid_map", "gid_map"] {
                fs::write(format!("/proc/self/{file}"), self.map.as_bytes())?;
            }
        }
        read(wait_mapped)?;
        if self.privileged {
            call(libc::SYS_setgroups, [0, 0, 0, 0, 0])?;
        }
        call(libc::SYS_setresgid, [1000, 1000, 1000, 0, 0])?;
        call(libc::SYS_setresuid, [1000, 1000, 1000, 0, 0])?;
        call(
            libc::SYS_prctl,
            [libc::PR_SET_PDEATHSIG as u64, kill, 0, 0, 0],
        )?;
        call(
            libc::SYS_unshare,
            [libc::CLONE_NEWCGROUP as u64, 0, 0, 0, 0],
        )?;
        call(
            libc::SYS_sethostname,
            [
                self.hostname.as_ptr() as u64,
                self.hostname.as_bytes().len() as u64,
                0,
                0,
                0,
            ],
        )?;
        self.root()?;
        let workload = fork(libc::CLONE_FILES as u64, -1)?;
        if workload == 0 {
            exit(
                self.workload()
                    .map_or_else(|error| error.raw_os_error().unwrap_or(1), |()| 0),
            );
        }
        call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as u64, 0, 0, 0, 0])?;
        drop_capabilities()?;
        wait(workload)
    }

    fn root(&self) -> io::Result<()> {
        let at = libc::AT_FDCWD as u64;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        let nothing = std::ptr::null();
        // SAFETY: constant strings, and no data.
        let changed = unsafe {
            libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                nothing,
                private,
                nothing.cast(),
            )
        };
        check(changed.into())?;
        let mut trees = Vec::with_capacity(self.binds.len());
        for (from, _, attributes) in &self.binds {
            // OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC, AT_RECURSIVE
            let flags = 1 | libc::O_CLOEXEC as u64 | libc::AT_RECURSIVE as u64;
            let tree = call(libc::SYS_open_tree, [at, from.as_ptr() as u64, flags, 0, 0])?;
            set(tree, *attributes, libc::AT_RECURSIVE)?;
            trees.push(tree);
        }
        let root = self.tmpfs(c"0755", c"16777216", NOSUID | NODEV)?;
        attach(root, at, c"/tmp")?;
        call(libc::SYS_fchdir, [root as u64, 0, 0, 0, 0])?;
        for folder in &self.folders {
            call(libc::SYS_mkdir, [folder.as_ptr() as u64, 0o755, 0, 0, 0])?;
        }
        for (place, target) in &self.links {
            call(
                libc::SYS_symlink,
                [target.as_ptr() as u64, place.as_ptr() as u64, 0, 0, 0],
            )?;
        }
        for (file, content) in &self.files {
            let made = open(file, libc::O_WRONLY | libc::O_CREAT)?;
            if !content.is_empty() {
                write(made, content)?;
            }
            close(made);
        }
        for ((_, place, _), tree) in self.binds.iter().zip(trees) {
            attach(tree, at, place)?;
            close(tree as i32);
        }
        for place in [c"tmp", c"dev/shm"] {
            attach(
                self.tmpfs(c"1777", &self.scratch, NOSUID | NODEV | NOEXEC)?,
                at,
                place,
            )?;
        }
        let proc = filesystem(
            c"proc",
            &[(c"hidepid", c"invisible"), (c"subset", c"pid")],
            RDONLY | NOSUID | NODEV | NOEXEC,
        )?;
        attach(proc, at, c"proc")?;
        call(
            libc::SYS_pivot_root,
            [c".".as_ptr() as u64, c".".as_ptr() as u64, 0, 0, 0],
        )?;
        call(
            libc::SYS_umount2,
            [c".".as_ptr() as u64, libc::MNT_DETACH as u64, 0, 0, 0],
        )?;
        call(libc::SYS_chdir, [c"/".as_ptr() as u64, 0, 0, 0, 0])?;
        let root = open(c"/", libc::O_PATH)?;
        set(root.into(), RDONLY, 0)
    }

    fn tmpfs(
        &self,
        mode: &std::ffi::CStr,
        size: &std::ffi::CStr,
        attributes: u64,
    ) -> io::Result<i64> {
        filesystem(c"tmpfs", &[(c"mode", mode), (c"size", size)], attributes)
    }

    fn workload(&self) -> io::Result<()> {
        call(libc::SYS_setsid, [0; 5])?;
        for (resource, limit) in &self.limits {
            call(
                libc::SYS_prlimit64,
                [
                    0,
                    u64::from(*resource),
                    std::ptr::from_ref(limit) as u64,
                    0,
                    0,
                ],
            )?;
        }
        call(libc::SYS_umask, [0o022, 0, 0, 0, 0])?;
        drop_capabilities()?;
        call(
            libc::SYS_prctl,
            [libc::PR_SET_NO_NEW_PRIVS as u64, 1, 0, 0, 0],
        )?;
        domain(&self.landlock)?;
        domain(&[(c"/".to_owned(), FILES)])?;
        call(libc::SYS_prctl, [PR_SET_MDWE, 1, 0, 0, 0])?;
        let program = libc::sock_fprog {
            len: self.filter.len() as u16,
            filter: self.filter.as_ptr().cast_mut(),
        };
        let flags =
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
        call(
            libc::SYS_seccomp,
            [
                libc::SECCOMP_SET_MODE_FILTER.into(),
                flags,
                std::ptr::from_ref(&program) as u64,
                0,
                0,
            ],
        )?;
        call(
            libc::SYS_close_range,
            [3, u32::MAX.into(), libc::CLOSE_RANGE_CLOEXEC.into(), 0, 0],
        )?;
        let environment: Vec<_> = self
            .environment
            .iter()
            .map(|v| v.as_ptr())
            .chain([std::ptr::null()])
            .collect();
        let arguments = [self.program.as_ptr(), std::ptr::null()];
        // SAFETY: both arrays end with a null pointer.
        unsafe {
            libc::execve(
                self.program.as_ptr(),
                arguments.as_ptr(),
                environment.as_ptr(),
            )
        };
        Err(io::Error::last_os_error())
    }
}

/// Which cgroups the limits need on this host, and what is written where.
type Cgroups = (Vec<(PathBuf, Vec<(&'static str, String)>)>, Option<PathBuf>);

fn cgroups(limits: &Limits) -> Result<Cgroups> {
    let name = format!("bare-{}", std::process::id());
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let (memory, pids, cpu) = (
        limits.memory.unwrap_or(64 << 20),
        limits.pids.unwrap_or(16) + 3,
        (limits.cpu.unwrap_or(1.0) * 1e5) as u64,
    );
    let mut v1 = Vec::new();
    for (controller, files) in [
        (
            "memory",
            vec![
                ("memory.limit_in_bytes", memory.to_string()),
                ("memory.memsw.limit_in_bytes", memory.to_string()),
            ],
        ),
        ("pids", vec![("pids.max", pids.to_string())]),
        (
            "cpu",
            vec![
                ("cpu.cfs_period_us", "100000".into()),
                ("cpu.cfs_quota_us", cpu.to_string()),
            ],
        ),
    ] {
        let line = own
            .lines()
            .find_map(|line| line.split_once(&format!(":{controller}:")));
        let Some((_, path)) = line else { continue };
        let parent = Path::new("/sys/fs/cgroup")
            .join(controller)
            .join(path.trim_start_matches('/'));
        if rustix::fs::access(&parent, rustix::fs::Access::WRITE_OK).is_ok() {
            v1.push((parent.join(&name), files));
        }
    }
    let unified = [
        Path::new("/sys/fs/cgroup/unified"),
        Path::new("/sys/fs/cgroup"),
    ];
    let unified = unified.into_iter().find(|top| {
        top.join("cgroup.procs").exists()
            && rustix::fs::access(*top, rustix::fs::Access::WRITE_OK).is_ok()
    });
    Ok((v1, unified.map(|top| top.join(name))))
}

fn access(rights: Rights) -> u64 {
    let mut bits = 0;
    bits |= if rights.exec { 1 } else { 0 };
    bits |= if rights.read { 4 } else { 0 };
    bits |= if rights.list { 8 } else { 0 };
    // Write, remove, make (no device files), refer, truncate, ioctl.
    bits | if rights.write {
        2 | (0x1ff0 & !(0x40 | 0x800)) | 0x2000 | 0x4000 | 0x8000
    } else {
        0
    }
}

const FILES: u64 = 0xffff;
const ON_FILES: u64 = 1 | 2 | 4 | 0x4000 | 0x8000;
const PR_SET_MDWE: u64 = 65;

fn domain(rules: &[(CString, u64)]) -> io::Result<()> {
    // Files, TCP bind and connect, signals and abstract sockets.
    let ruleset: [u64; 3] = [FILES, 3, 3];
    let domain = call(
        libc::SYS_landlock_create_ruleset,
        [ruleset.as_ptr() as u64, 24, 0, 0, 0],
    )?;
    for (path, access) in rules {
        let parent = open(path, libc::O_PATH)?;
        let rule = Rule {
            access: *access,
            parent,
        };
        call(
            libc::SYS_landlock_add_rule,
            [domain as u64, 1, std::ptr::from_ref(&rule) as u64, 0, 0],
        )?;
        close(parent);
    }
    call(
        libc::SYS_landlock_restrict_self,
        [domain as u64, 0, 0, 0, 0],
    )?;
    close(domain as i32);
    Ok(())
}

#[repr(C, packed)]
struct Rule {
    access: u64,
    parent: i32,
}

fn drop_capabilities() -> io::Result<()> {
    for capability in 0..64 {
        if call(
            libc::SYS_prctl,
            [libc::PR_CAPBSET_DROP as u64, capability, 0, 0, 0],
        )
        .is_err()
        {
            break;
        }
    }
    call(
        libc::SYS_prctl,
        [
            libc::PR_CAP_AMBIENT as u64,
            libc::PR_CAP_AMBIENT_CLEAR_ALL as u64,
            0,
            0,
            0,
        ],
    )?;
    call(
        libc::SYS_prctl,
        [libc::PR_SET_SECUREBITS as u64, 0b1110_1111, 0, 0, 0],
    )?;
    let header = [0x2008_0522u32, 0];
    let none = [0u32; 6];
    call(
        libc::SYS_capset,
        [header.as_ptr() as u64, none.as_ptr() as u64, 0, 0, 0],
    )
    .map(drop)
}

fn filesystem(
    kind: &std::ffi::CStr,
    options: &[(&std::ffi::CStr, &std::ffi::CStr)],
    attributes: u64,
) -> io::Result<i64> {
    let fs = call(libc::SYS_fsopen, [kind.as_ptr() as u64, 1, 0, 0, 0])?;
    for (key, value) in options {
        call(
            libc::SYS_fsconfig,
            [fs as u64, 1, key.as_ptr() as u64, value.as_ptr() as u64, 0],
        )?;
    }
    call(libc::SYS_fsconfig, [fs as u64, 6, 0, 0, 0])?;
    let tree = call(libc::SYS_fsmount, [fs as u64, 1, attributes, 0, 0]);
    close(fs as i32);
    tree
}

fn attach(tree: i64, at: u64, place: &std::ffi::CStr) -> io::Result<()> {
    // MOVE_MOUNT_F_EMPTY_PATH
    call(
        libc::SYS_move_mount,
        [
            tree as u64,
            c"".as_ptr() as u64,
            at,
            place.as_ptr() as u64,
            4,
        ],
    )
    .map(drop)
}

fn set(tree: i64, attributes: u64, flags: i32) -> io::Result<()> {
    let wanted: [u64; 4] = [attributes, 0, 0, 0];
    let flags = (libc::AT_EMPTY_PATH | flags) as u64;
    call(
        libc::SYS_mount_setattr,
        [
            tree as u64,
            c"".as_ptr() as u64,
            flags,
            wanted.as_ptr() as u64,
            32,
        ],
    )
    .map(drop)
}
