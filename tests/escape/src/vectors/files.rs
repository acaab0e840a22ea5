//! Files of the host, device files, and descriptors that should not be there.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use super::{Vector, vector};
use crate::attempt::Attempt;
use crate::setting::Setting;
use crate::sys;

pub const ALL: &[Vector] = &[
    vector(
        "leaked-descriptors",
        |setting| match &setting.inherited[..] {
            [] => Attempt::Closed("0, 1, 2".into()),
            leaked => Attempt::Open(format!("{leaked:?}")),
        },
    ),
    vector("working-directory", |_| {
        let here = std::env::current_dir().unwrap_or_default();
        if here.starts_with("/") {
            Attempt::Closed(format!("{}", here.display()))
        } else {
            Attempt::Open(format!("{}", here.display()))
        }
    }),
    vector("secret-by-path", |setting| {
        secret(setting, [setting.secret.clone()])
    }),
    vector("secret-above", |setting| {
        let tail = setting.secret.strip_prefix("/").unwrap_or(&setting.secret);
        let folders = [
            &setting.read,
            &setting.write,
            Path::new("/"),
            Path::new("/tmp"),
        ];
        let up = |folder: &Path| folder.join("../".repeat(20)).join(tail);
        let beside = setting
            .read
            .join("..")
            .join(setting.secret.file_name().unwrap_or_default());
        secret(setting, folders.map(up).into_iter().chain([beside]))
    }),
    vector("secret-above-descriptor", |setting| {
        let folder = sys::open(&setting.write, libc::O_RDONLY | libc::O_DIRECTORY);
        let name = setting.secret.file_name().unwrap_or_default();
        let opened = folder.and_then(|folder| {
            sys::open_at(
                folder.as_raw_fd(),
                Path::new("..").join(name),
                libc::O_RDONLY,
            )
        });
        Attempt::succeeds(opened)
    }),
    vector("secret-by-proc", |setting| {
        let links = [
            "/proc/self/root",
            "/proc/self/cwd",
            "/proc/thread-self/root",
            "/proc/self/fd/0/..",
        ];
        let tail = setting.secret.strip_prefix("/").unwrap_or(&setting.secret);
        secret(setting, links.map(|link| Path::new(link).join(tail)))
    }),
    // Links that lie in the granted folder, made outside.
    vector("secret-by-link", |setting| {
        secret(
            setting,
            ["absolute", "relative"].map(|link| setting.write.join(link)),
        )
    }),
    vector("shadow-by-own-link", |setting| {
        let link = setting.write.join(format!("shadow-{}", std::process::id()));
        let read = std::os::unix::fs::symlink("/etc/shadow", &link).and_then(|()| fs::read(&link));
        let _ = fs::remove_file(&link);
        Attempt::succeeds(read.map(|bytes| bytes.len()))
    }),
    vector("shadow", |_| {
        Attempt::succeeds(fs::read("/etc/shadow").map(|bytes| bytes.len()))
    }),
    vector("link-out-of-grant", |setting| {
        let link = setting.write.join(format!("link-{}", std::process::id()));
        let made = fs::hard_link(setting.read.join("file"), &link);
        let _ = fs::remove_file(&link);
        Attempt::succeeds(made)
    }),
    vector("rename-out-of-grant", |setting| {
        let (from, to) = (setting.read.join("file"), setting.write.join("moved"));
        let moved = fs::rename(&from, &to);
        if moved.is_ok() {
            let _ = fs::rename(&to, &from);
        }
        Attempt::succeeds(moved)
    }),
    // What Landlock does not ask about: the mode of a file that is not granted, set to what it is.
    vector("attributes-of-secret", |setting| {
        let file = sys::text(&setting.secret);
        let set = file.and_then(|file| {
            // SAFETY: `file` is a string that ends with a zero byte and outlives the call.
            sys::check(unsafe { libc::chmod(file.as_ptr(), 0o644) }.into())
        });
        Attempt::succeeds(set)
    }),
    vector("write-read-grant", |setting| {
        let file = setting.read.join("file");
        Attempt::any([
            (
                "open".into(),
                Attempt::succeeds(sys::open(&file, libc::O_WRONLY)),
            ),
            ("create".into(), created(&setting.read)),
            ("mode".into(), Attempt::succeeds(set_mode(&file))),
        ])
    }),
    vector("write-system", |_| {
        let folders = ["/usr", "/usr/bin", "/etc", "/", "/dev", "/proc", "/lib"];
        Attempt::any(folders.map(|folder| (folder.to_owned(), created(Path::new(folder)))))
    }),
    vector("write-system-file", |_| {
        let files = [
            "/usr/bin/true",
            "/etc/passwd",
            "/etc/ld.so.cache",
            "/etc/nsswitch.conf",
        ];
        Attempt::any(files.map(|file| {
            // Without truncating: where it can be opened it stays as it is.
            (
                file.to_owned(),
                Attempt::succeeds(sys::open(file, libc::O_WRONLY)),
            )
        }))
    }),
    vector("kernel-settings", |_| {
        writable(&[
            "/proc/sys/kernel/core_pattern",
            "/proc/sys/kernel/modprobe",
            "/proc/sys/fs/binfmt_misc/register",
            "/proc/sys/vm/overcommit_memory",
            "/proc/sysrq-trigger",
            "/sys/kernel/uevent_helper",
            "/sys/power/state",
        ])
    }),
    vector("proc-sys", |_| {
        Attempt::succeeds(fs::read_dir("/proc/sys").map(drop))
    }),
    vector("sys", |_| match fs::read_dir("/sys").map(Iterator::count) {
        Ok(0) => Attempt::Closed("empty".into()),
        other => Attempt::succeeds(other),
    }),
    vector("kernel-secrets", |_| {
        let files = [
            "/proc/kallsyms",
            "/proc/kcore",
            "/proc/keys",
            "/proc/timer_list",
            "/proc/kmsg",
            "/proc/config.gz",
            "/proc/modules",
            "/proc/mounts-host",
            "/proc/cmdline",
        ];
        Attempt::any(files.map(|file| {
            (
                file.to_owned(),
                Attempt::succeeds(sys::open(file, libc::O_RDONLY)),
            )
        }))
    }),
    vector("cgroup-join", |_| {
        let entered = cgroups().into_iter().map(|file| {
            (
                file.display().to_string(),
                Attempt::succeeds(sys::open(&file, libc::O_WRONLY)),
            )
        });
        Attempt::any(entered)
    }),
    vector("device-node-character", |setting| {
        node(setting, libc::S_IFCHR, libc::makedev(1, 1))
    }),
    vector("device-node-block", |setting| {
        node(setting, libc::S_IFBLK, libc::makedev(254, 0))
    }),
    vector("device-memory", |_| {
        devices(&["/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg"])
    }),
    vector("device-disk", |_| {
        devices(&[
            "/dev/vda",
            "/dev/sda",
            "/dev/nvme0n1",
            "/dev/xvda",
            "/dev/loop0",
            "/dev/loop-control",
        ])
    }),
    vector("device-others", |_| {
        devices(&[
            "/dev/kvm",
            "/dev/fuse",
            "/dev/net/tun",
            "/dev/vhost-vsock",
            "/dev/userfaultfd",
            "/dev/sev-guest",
            "/dev/tdx_guest",
            "/dev/console",
            "/dev/ptmx",
            "/dev/pts/ptmx",
        ])
    }),
];

/// Tries to read the host's secret at several places, one of which would be it.
fn secret(setting: &Setting, places: impl IntoIterator<Item = PathBuf>) -> Attempt {
    // Outside it has to be the very file; inside every file at such a place is one too many.
    let read = |place: PathBuf| {
        let attempt = Attempt::succeeds(fs::read(&place).map(|bytes| bytes.len()));
        (place.display().to_string(), attempt)
    };
    if setting.secret.as_os_str().is_empty() {
        return Attempt::Stuck("PROBE_SECRET is not set".into());
    }
    Attempt::any(places.into_iter().map(read))
}

fn created(folder: &Path) -> Attempt {
    let file = folder.join(format!("casemate-escape-{}", std::process::id()));
    let created = sys::open(&file, libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL);
    if created.is_ok() {
        let _ = fs::remove_file(&file);
    }
    Attempt::succeeds(created)
}

fn set_mode(file: &Path) -> io::Result<()> {
    let permissions = fs::metadata(file)?.permissions();
    fs::set_permissions(file, permissions)
}

fn writable(files: &[&str]) -> Attempt {
    let open = |file: &&str| {
        (
            (*file).to_owned(),
            Attempt::succeeds(sys::open(file, libc::O_WRONLY)),
        )
    };
    Attempt::any(files.iter().map(open))
}

fn devices(files: &[&str]) -> Attempt {
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    let open = |file: &&str| {
        (
            (*file).to_owned(),
            Attempt::succeeds(sys::open(file, flags)),
        )
    };
    Attempt::any(files.iter().map(open))
}

fn node(setting: &Setting, kind: u32, device: u64) -> Attempt {
    Attempt::any([setting.write.clone(), "/tmp".into()].map(|folder| {
        let path = folder.join(format!("node-{}", std::process::id()));
        let made = sys::text(&path).and_then(|path| {
            // SAFETY: `path` is a string that ends with a zero byte and outlives the call.
            sys::check(unsafe { libc::mknod(path.as_ptr(), kind | 0o600, device) }.into())
        });
        let _ = fs::remove_file(&path);
        (folder.display().to_string(), Attempt::succeeds(made))
    }))
}

/// The files through which a process enters another cgroup.
fn cgroups() -> Vec<PathBuf> {
    let base = Path::new("/sys/fs/cgroup");
    let mut files = vec![base.join("cgroup.procs")];
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        files.push(entry.path().join("cgroup.procs"));
    }
    files
}
