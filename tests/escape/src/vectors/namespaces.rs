//! Making namespaces, entering those of others, mounting.

use std::ffi::CStr;
use std::io;
use std::os::fd::AsRawFd;

use libc::{c_int, c_long};

use super::{Vector, vector};
use crate::attempt::Attempt;
use crate::process::{self, exit};
use crate::setting::Setting;
use crate::sys;

pub const ALL: &[Vector] = &[
    vector("unshare-user", |_| unshare(libc::CLONE_NEWUSER)),
    vector("unshare-mount", |_| unshare(libc::CLONE_NEWNS)),
    vector("unshare-net", |_| unshare(libc::CLONE_NEWNET)),
    vector("clone-user", |_| born(clone(libc::CLONE_NEWUSER))),
    vector("clone-mount", |_| born(clone(libc::CLONE_NEWNS))),
    vector("clone3-user", |_| born(clone3(libc::CLONE_NEWUSER as u64))),
    vector("clone3", |_| born(clone3(0))),
    vector("setns", |_| {
        Attempt::reaches(sys::call(libc::SYS_setns, [usize::MAX, 0, 0, 0, 0, 0]))
    }),
    vector("setns-of-init", |setting| {
        let kinds = ["mnt", "net", "pid", "user", "ipc", "uts", "cgroup"];
        Attempt::any(kinds.map(|kind| {
            let path = format!("/proc/{}/ns/{kind}", setting.keeper());
            let opened = sys::open(&path, libc::O_RDONLY);
            let entered = opened.and_then(|namespace| {
                // One's own user namespace cannot be entered: reading the name is the leak then.
                let descriptor = namespace.as_raw_fd() as usize;
                sys::call(libc::SYS_setns, [descriptor, 0, 0, 0, 0, 0])
            });
            (path, Attempt::succeeds(entered))
        }))
    }),
    vector("setns-by-pidfd", |setting| {
        let pidfd = sys::call(
            libc::SYS_pidfd_open,
            [setting.keeper() as usize, 0, 0, 0, 0, 0],
        );
        let entered = pidfd.and_then(|pidfd| {
            sys::call(
                libc::SYS_setns,
                [pidfd as usize, libc::CLONE_NEWUTS as usize, 0, 0, 0, 0],
            )
        });
        Attempt::succeeds(entered)
    }),
    vector("mount-tmpfs", |_| {
        Attempt::succeeds(mount(c"casemate-escape", c"tmpfs", 0))
    }),
    vector("mount-proc", |_| {
        Attempt::succeeds(mount(c"casemate-escape", c"proc", 0))
    }),
    // Where `release_agent` is, and other cgroups.
    vector("mount-cgroup", |_| {
        Attempt::any([
            (
                "v2".into(),
                Attempt::succeeds(mount(c"casemate-escape", c"cgroup2", 0)),
            ),
            (
                "v1".into(),
                Attempt::succeeds(mount(c"casemate-escape", c"cgroup", 0)),
            ),
        ])
    }),
    vector("mount-bind", |_| {
        Attempt::succeeds(mount(c"/", c"", libc::MS_BIND))
    }),
    vector("fsopen", |_| {
        Attempt::succeeds(sys::call(
            libc::SYS_fsopen,
            [sys::address(c"tmpfs"), 0, 0, 0, 0, 0],
        ))
    }),
    vector("fspick", |_| {
        let here = libc::AT_FDCWD as usize;
        Attempt::succeeds(sys::call(
            libc::SYS_fspick,
            [here, sys::address(c"/"), 0, 0, 0, 0],
        ))
    }),
    vector("open-tree", |_| {
        let here = libc::AT_FDCWD as usize;
        Attempt::succeeds(sys::call(
            libc::SYS_open_tree,
            [here, sys::address(c"/"), 1, 0, 0, 0],
        ))
    }),
    vector("move-mount", |_| {
        let nothing = sys::address(c"");
        Attempt::reaches(sys::call(
            libc::SYS_move_mount,
            [usize::MAX, nothing, usize::MAX, nothing, 0, 0],
        ))
    }),
    vector("mount-setattr", |_| {
        let nowhere = sys::address(c"/casemate-escape");
        Attempt::reaches(sys::call(
            libc::SYS_mount_setattr,
            [usize::MAX, nowhere, 0, 0, 0, 0],
        ))
    }),
    vector("umount", |_| {
        Attempt::reaches(sys::call(
            libc::SYS_umount2,
            [sys::address(c"/casemate-escape"), 0, 0, 0, 0, 0],
        ))
    }),
    vector("pivot-root", |_| {
        let nowhere = sys::address(c"/casemate-escape");
        Attempt::reaches(sys::call(
            libc::SYS_pivot_root,
            [nowhere, nowhere, 0, 0, 0, 0],
        ))
    }),
    vector("chroot", |_| {
        Attempt::succeeds(sys::call(
            libc::SYS_chroot,
            [sys::address(c"/"), 0, 0, 0, 0, 0],
        ))
    }),
    vector("sethostname", |_| {
        // Longer than a name may be, which is looked at second.
        Attempt::reaches(sys::call(
            libc::SYS_sethostname,
            [sys::address(c"x"), 1 << 20, 0, 0, 0, 0],
        ))
    }),
    vector("setdomainname", |_| {
        Attempt::reaches(sys::call(
            libc::SYS_setdomainname,
            [sys::address(c"x"), 1 << 20, 0, 0, 0, 0],
        ))
    }),
    vector("namespace-ioctl", |_: &Setting| {
        const NS_GET_PARENT: usize = 0xb702;
        const NS_GET_USERNS: usize = 0xb701;
        let asked = sys::open("/proc/self/ns/pid", libc::O_RDONLY).and_then(|own| {
            let ask = |what| {
                sys::call(
                    libc::SYS_ioctl,
                    [own.as_raw_fd() as usize, what, 0, 0, 0, 0],
                )
            };
            ask(NS_GET_PARENT).or_else(|_| ask(NS_GET_USERNS))
        });
        Attempt::succeeds(asked)
    }),
];

fn unshare(kinds: c_int) -> Attempt {
    Attempt::succeeds(sys::call(
        libc::SYS_unshare,
        [kinds as usize, 0, 0, 0, 0, 0],
    ))
}

fn clone(kinds: c_int) -> io::Result<c_long> {
    sys::call(
        libc::SYS_clone,
        [(kinds | libc::SIGCHLD) as usize, 0, 0, 0, 0, 0],
    )
}

fn clone3(flags: u64) -> io::Result<c_long> {
    // `struct clone_args`: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls.
    let arguments = [flags, 0, 0, 0, libc::SIGCHLD as u64, 0, 0, 0];
    sys::call(
        libc::SYS_clone3,
        [
            sys::address(&arguments),
            size_of_val(&arguments),
            0,
            0,
            0,
            0,
        ],
    )
}

/// Ends the child, judges what the parent got.
fn born(result: io::Result<c_long>) -> Attempt {
    match result {
        Ok(0) => exit(0),
        Ok(pid) => {
            process::wait(pid as i32);
            Attempt::Open("a child was born".into())
        }
        error => Attempt::succeeds(error),
    }
}

/// Mounts something on a folder of its own, where it disturbs nobody, also where that is allowed.
fn mount(source: &CStr, kind: &CStr, flags: libc::c_ulong) -> io::Result<()> {
    let folder = apart()?;
    let place = sys::text(&folder)?;
    // SAFETY: three strings that end with a zero byte, and no data.
    let mounted = sys::check(c_long::from(unsafe {
        libc::mount(
            source.as_ptr(),
            place.as_ptr(),
            kind.as_ptr(),
            flags,
            std::ptr::null(),
        )
    }));
    if mounted.is_ok() {
        let _ = sys::call(
            libc::SYS_umount2,
            [sys::address(&*place), libc::MNT_DETACH as usize, 0, 0, 0, 0],
        );
    }
    let _ = std::fs::remove_dir(&folder);
    mounted.map(drop)
}

/// Goes into a mount namespace of its own if that can be had, and makes a folder to mount on.
fn apart() -> io::Result<String> {
    if sys::call(
        libc::SYS_unshare,
        [libc::CLONE_NEWNS as usize, 0, 0, 0, 0, 0],
    )
    .is_ok()
    {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        // SAFETY: one string that ends with a zero byte; the rest is not used for a change.
        sys::check(c_long::from(unsafe {
            libc::mount(
                std::ptr::null(),
                c"/".as_ptr(),
                std::ptr::null(),
                private,
                std::ptr::null(),
            )
        }))?;
    }
    let folder = format!("/tmp/casemate-escape-{}", std::process::id());
    std::fs::create_dir(&folder)?;
    Ok(folder)
}
