//! Gaining privilege, and what is left of it.

use std::fs;

use super::{Vector, vector};
use crate::attempt::Attempt;
use crate::sys;

pub const ALL: &[Vector] = &[
    vector("capabilities", |_| {
        let none = "0000000000000000";
        let wanted = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"].map(|set| (set, none));
        if fs::metadata("/proc/self/status").is_err() || fs::read("/proc/self/status").is_err() {
            return without_status();
        }
        status(
            wanted
                .into_iter()
                .chain([("NoNewPrivs", "1"), ("Seccomp", "2")]),
        )
    }),
    vector("raise-capabilities", |_| {
        // Version 3, this process; CAP_SYS_ADMIN, effective and permitted.
        let (header, wanted) = ([0x2008_0522_u32, 0], [1_u32 << 21, 1 << 21, 0, 0, 0, 0]);
        let (header, wanted) = (sys::address(&header), sys::address(&wanted));
        Attempt::succeeds(sys::call(libc::SYS_capset, [header, wanted, 0, 0, 0, 0]))
    }),
    vector("securebits", |_| {
        let set = |bits| {
            sys::call(
                libc::SYS_prctl,
                [libc::PR_SET_SECUREBITS as usize, bits, 0, 0, 0, 0],
            )
        };
        Attempt::succeeds(set(0))
    }),
    vector("become-root", |_| {
        let ids = [
            sys::call(libc::SYS_setresuid, [0; 6]),
            sys::call(libc::SYS_setresgid, [0; 6]),
        ];
        Attempt::any(
            ["user", "group"]
                .map(str::to_owned)
                .into_iter()
                .zip(ids.map(Attempt::succeeds)),
        )
    }),
    vector("setgroups", |_| {
        let group = [0_u32];
        Attempt::succeeds(sys::call(
            libc::SYS_setgroups,
            [1, sys::address(&group), 0, 0, 0, 0],
        ))
    }),
    // A set-user-ID program would run as its owner.
    vector("setuid-honoured", |_| {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let honours = mounts.lines().find(|line| {
            let options = line.split(' ').nth(5).unwrap_or_default();
            !options.split(',').any(|option| option == "nosuid")
        });
        // Without the list of mounts, whether it is honoured anywhere.
        let asked = [libc::PR_GET_NO_NEW_PRIVS as usize, 0, 0, 0, 0, 0];
        if mounts.is_empty() && sys::call(libc::SYS_prctl, asked).is_ok_and(|on| on == 1) {
            return Attempt::Closed("no_new_privs".into());
        }
        match honours {
            Some(mount) => Attempt::Open(mount.to_owned()),
            None => Attempt::Closed(format!("nosuid on {} mounts", mounts.lines().count())),
        }
    }),
    vector("other-user-namespace", |_| {
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let count = map.split_whitespace().nth(2).unwrap_or_default().to_owned();
        if map.is_empty() {
            Attempt::Open("nothing tells of another".into())
        } else if count == "1" {
            Attempt::Closed("one user exists".into())
        } else {
            Attempt::Open(format!("{count} users exist"))
        }
    }),
    vector("mm-options", |_| {
        const PR_SET_MM: usize = 35;
        const PR_SET_MM_MAP_SIZE: usize = 15;
        let size = [0_u32];
        let asked = [PR_SET_MM, PR_SET_MM_MAP_SIZE, sys::address(&size), 0, 0, 0];
        Attempt::succeeds(sys::call(libc::SYS_prctl, asked))
    }),
    vector("core-dump", |_| {
        let raised = [u64::MAX, u64::MAX];
        let core = libc::RLIMIT_CORE as usize;
        let old = [1_u64; 2];
        let read = sys::call(libc::SYS_prlimit64, [0, core, 0, sys::address(&old), 0, 0]);
        let raise = sys::call(
            libc::SYS_prlimit64,
            [0, core, sys::address(&raised), 0, 0, 0],
        );
        // SAFETY: `old` is as the kernel left it; the compiler did not see the write.
        let [soft, hard] = unsafe { std::ptr::from_ref(&old).read_volatile() };
        match (read, raise) {
            (Ok(_), Err(_)) if (soft, hard) == (0, 0) => Attempt::Closed("limit 0".into()),
            (_, raise) => Attempt::Open(format!("limit {soft} of {hard}, raising it: {raise:?}")),
        }
    }),
];

/// The same where `/proc` cannot be read: no capability now, and no way to one.
fn without_status() -> Attempt {
    let (header, sets) = ([0x2008_0522_u32, 0], [u32::MAX; 6]);
    let asked = [sys::address(&header), sys::address(&sets), 0, 0, 0, 0];
    let got = sys::call(libc::SYS_capget, asked);
    // SAFETY: `sets` is as the kernel left it; the compiler did not see the write.
    let sets = unsafe { std::ptr::from_ref(&sets).read_volatile() };
    let asked = [libc::PR_GET_NO_NEW_PRIVS as usize, 0, 0, 0, 0, 0];
    let closed = sys::call(libc::SYS_prctl, asked);
    match (got, sets, closed) {
        (Ok(_), [0, 0, 0, 0, 0, 0], Ok(1)) => Attempt::Closed("none, no_new_privs".into()),
        other => Attempt::Open(format!("{other:?}")),
    }
}

/// Is closed if `/proc/self/status` says all of this.
fn status<'a>(wanted: impl Iterator<Item = (&'a str, &'a str)>) -> Attempt {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or("missing").trim().to_owned()
    };
    let wrong = wanted.map(|(name, wanted)| (name, wanted, value(name)));
    match wrong.into_iter().find(|(_, wanted, value)| wanted != value) {
        Some((name, _, value)) => Attempt::Open(format!("{name} is {value}")),
        None => Attempt::Closed("none, no_new_privs, filtered".into()),
    }
}
