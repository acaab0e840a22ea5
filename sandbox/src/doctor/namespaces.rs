//! Namespaces, by making each, as this user and as an ordinary one.

use super::{Area, Finding, read, told};
use crate::sys::probe::{self, As, Outcome};

pub(super) fn findings() -> Vec<Finding> {
    let mut findings = vec![user()];
    findings.extend(KINDS.iter().map(|kind| other(*kind)));
    findings.push(proc_mount());
    findings
}

const KINDS: &[(&str, &str, i32)] = &[
    ("mount-namespace", "mount", libc::CLONE_NEWNS),
    ("pid-namespace", "pid", libc::CLONE_NEWPID),
    ("net-namespace", "net", libc::CLONE_NEWNET),
    ("ipc-namespace", "ipc", libc::CLONE_NEWIPC),
    ("uts-namespace", "uts", libc::CLONE_NEWUTS),
    ("cgroup-namespace", "cgroup", libc::CLONE_NEWCGROUP),
    ("time-namespace", "time", CLONE_NEWTIME),
];

fn user() -> Finding {
    let (own, ordinary) = (
        probe::usable_user_namespace(As::Self_),
        probe::usable_user_namespace(As::Nobody),
    );
    let (id, area) = ("user-namespace", Area::Namespaces);
    let observed = format!(
        "here: {}; ordinary user: {}{}",
        told(own),
        told(ordinary),
        sysctls()
    );
    match (own, ordinary) {
        (Outcome::Done, Outcome::Done) => {
            Finding::available(id, area, observed, "sandboxes start without root")
        }
        (Outcome::Done, _) => Finding::partly(
            id,
            area,
            observed,
            "sandboxes start as root only",
            user_fix(),
        ),
        _ => Finding::missing(
            id,
            area,
            observed,
            "the container backend needs root; without it only the process backend is left",
            user_fix(),
        ),
    }
}

fn user_fix() -> &'static str {
    if read(APPARMOR).as_deref() == Some("1") {
        "give the program an AppArmor profile with `userns,`, or `sysctl -w kernel.apparmor_restrict_unprivileged_userns=0`"
    } else if read(DEBIAN).as_deref() == Some("0") {
        "`sysctl -w kernel.unprivileged_userns_clone=1`"
    } else if read(MAXIMUM).as_deref() == Some("0") {
        "`sysctl -w user.max_user_namespaces=15000`"
    } else {
        "inside a container: start it with a seccomp profile that allows `unshare` and `clone` of new user namespaces; else build the kernel with CONFIG_USER_NS"
    }
}

fn sysctls() -> String {
    [
        ("user.max_user_namespaces", MAXIMUM),
        ("kernel.apparmor_restrict_unprivileged_userns", APPARMOR),
        ("kernel.unprivileged_userns_clone", DEBIAN),
    ]
    .into_iter()
    .filter_map(|(name, path)| Some(format!("; {name} = {}", read(path)?)))
    .collect()
}

fn other((id, name, flag): (&'static str, &str, i32)) -> Finding {
    let own = match probe::namespaces(flag, As::Self_) {
        Outcome::Refused(libc::EPERM) => probe::namespaces(libc::CLONE_NEWUSER | flag, As::Self_),
        outcome => outcome,
    };
    let ordinary = probe::namespaces(libc::CLONE_NEWUSER | flag, As::Nobody);
    let observed = format!("here: {}; ordinary user: {}", told(own), told(ordinary));
    let area = Area::Namespaces;
    match (own, ordinary) {
        (Outcome::Done, Outcome::Done) => Finding::available(
            id,
            area,
            observed,
            &format!("a sandbox has its own {name} namespace"),
        ),
        (Outcome::Done, _) => Finding::partly(
            id,
            area,
            observed,
            &format!("a sandbox has its own {name} namespace when started as root"),
            user_fix(),
        ),
        (Outcome::Refused(libc::EINVAL), _) => Finding::missing(
            id,
            area,
            observed,
            &format!("a sandbox shares the {name} namespace of the host"),
            "use a kernel built with this kind of namespace",
        ),
        _ => Finding::missing(
            id,
            area,
            observed,
            &format!("a sandbox shares the {name} namespace of the host"),
            user_fix(),
        ),
    }
}

fn proc_mount() -> Finding {
    let own = match probe::proc_mount(0, As::Self_) {
        Outcome::Refused(libc::EPERM) => probe::proc_mount(libc::CLONE_NEWUSER, As::Self_),
        outcome => outcome,
    };
    let ordinary = probe::proc_mount(libc::CLONE_NEWUSER, As::Nobody);
    let (id, area) = ("proc-mount", Area::Mounts);
    let observed = format!(
        "subset=pid here: {}; ordinary user: {}",
        told(own),
        told(ordinary)
    );
    let masked = "start the outer container with an unmasked /proc (docker: `--security-opt systempaths=unconfined`)";
    match (own, ordinary) {
        (Outcome::Done, Outcome::Done) => Finding::available(
            id,
            area,
            observed,
            "a sandbox sees its own processes in /proc, and nothing else of it",
        ),
        (Outcome::Done, _) => Finding::partly(
            id,
            area,
            observed,
            "a sandbox started by an ordinary user has no /proc",
            masked,
        ),
        _ => Finding::missing(id, area, observed, "a sandbox has no /proc", masked),
    }
}

const MAXIMUM: &str = "/proc/sys/user/max_user_namespaces";
const APPARMOR: &str = "/proc/sys/kernel/apparmor_restrict_unprivileged_userns";
const DEBIAN: &str = "/proc/sys/kernel/unprivileged_userns_clone";
const CLONE_NEWTIME: i32 = 0x80;
