//! Calls into parts of the kernel that a workload has no business with.

use super::{Vector, vector};
use crate::attempt::Attempt;
use crate::sys;

pub const ALL: &[Vector] = &[
    vector("io-uring", |_| {
        let parameters = [0_u8; 256];
        Attempt::reaches(sys::call(
            libc::SYS_io_uring_setup,
            [1, sys::address(&parameters), 0, 0, 0, 0],
        ))
    }),
    vector("io-uring-register", |_| {
        Attempt::reaches(sys::call(
            libc::SYS_io_uring_register,
            [usize::MAX, 0, 0, 0, 0, 0],
        ))
    }),
    vector("aio", |_| {
        let context = [0_u64; 1];
        Attempt::reaches(sys::call(
            libc::SYS_io_setup,
            [1, sys::address(&context), 0, 0, 0, 0],
        ))
    }),
    vector("userfaultfd", |_| {
        const USER_MODE_ONLY: usize = 1;
        Attempt::reaches(sys::call(
            libc::SYS_userfaultfd,
            [USER_MODE_ONLY, 0, 0, 0, 0, 0],
        ))
    }),
    vector("add-key", |_| {
        let (kind, name) = (sys::address(c"user"), sys::address(c"casemate-escape"));
        // The keyring of this thread, which goes with it.
        Attempt::reaches(sys::call(
            libc::SYS_add_key,
            [kind, name, name, 1, -1_isize as usize, 0],
        ))
    }),
    vector("request-key", |_| {
        let (kind, name) = (sys::address(c"user"), sys::address(c"casemate-escape"));
        Attempt::reaches(sys::call(libc::SYS_request_key, [kind, name, 0, 0, 0, 0]))
    }),
    vector("keyctl", |_| {
        // KEYCTL_GET_KEYRING_ID of the user's keyring.
        Attempt::reaches(sys::call(
            libc::SYS_keyctl,
            [0, -4_isize as usize, 0, 0, 0, 0],
        ))
    }),
    vector("bpf", |_| {
        Attempt::reaches(sys::call(libc::SYS_bpf, [0; 6]))
    }),
    vector("perf-event-open", |_| {
        Attempt::reaches(sys::call(libc::SYS_perf_event_open, [0; 6]))
    }),
    vector("fanotify-init", |_| {
        Attempt::reaches(sys::call(libc::SYS_fanotify_init, [0; 6]))
    }),
    vector("name-to-handle-at", |_| {
        Attempt::reaches(sys::call(libc::SYS_name_to_handle_at, [0; 6]))
    }),
    vector("open-by-handle-at", |_| {
        // `struct file_handle` of eight bytes, type 1: inode 2, the root of many file systems.
        let handle = [8_u32, 1, 2, 0];
        let here = libc::AT_FDCWD as usize;
        Attempt::reaches(sys::call(
            libc::SYS_open_by_handle_at,
            [here, sys::address(&handle), 0, 0, 0, 0],
        ))
    }),
    vector("quotactl", |_| {
        Attempt::reaches(sys::call(libc::SYS_quotactl, [usize::MAX, 0, 0, 0, 0, 0]))
    }),
    vector("acct", |_| Attempt::reaches(nowhere(libc::SYS_acct))),
    vector("swapon", |_| Attempt::reaches(nowhere(libc::SYS_swapon))),
    vector("swapoff", |_| Attempt::reaches(nowhere(libc::SYS_swapoff))),
    // Without the magic numbers.
    vector("reboot", |_| {
        Attempt::reaches(sys::call(libc::SYS_reboot, [0; 6]))
    }),
    vector("settimeofday", |_| {
        Attempt::reaches(sys::call(libc::SYS_settimeofday, [1, 0, 0, 0, 0, 0]))
    }),
    vector("clock-settime", |_| {
        Attempt::reaches(sys::call(libc::SYS_clock_settime, [0, 1, 0, 0, 0, 0]))
    }),
    vector("clock-adjtime", |_| {
        Attempt::reaches(sys::call(libc::SYS_clock_adjtime, [0, 1, 0, 0, 0, 0]))
    }),
    vector("adjtimex", |_| {
        Attempt::reaches(sys::call(libc::SYS_adjtimex, [1, 0, 0, 0, 0, 0]))
    }),
    vector("kexec-load", |_| {
        Attempt::reaches(sys::call(libc::SYS_kexec_load, [0, 1, 0, 0, 0, 0]))
    }),
    vector("kexec-file-load", |_| {
        let none = usize::MAX;
        Attempt::reaches(sys::call(
            libc::SYS_kexec_file_load,
            [none, none, 0, 0, 0, 0],
        ))
    }),
    vector("init-module", |_| {
        Attempt::reaches(sys::call(libc::SYS_init_module, [0; 6]))
    }),
    vector("finit-module", |_| {
        Attempt::reaches(sys::call(
            libc::SYS_finit_module,
            [usize::MAX, sys::address(c""), 0, 0, 0, 0],
        ))
    }),
    vector("delete-module", |_| {
        Attempt::reaches(nowhere(libc::SYS_delete_module))
    }),
    vector("lookup-dcookie", |_| {
        Attempt::reaches(sys::call(libc::SYS_lookup_dcookie, [0; 6]))
    }),
    vector("syslog", |_| {
        Attempt::reaches(sys::call(libc::SYS_syslog, [10, 0, 0, 0, 0, 0]))
    }),
    vector("vhangup", |setting| {
        // Would hang up the terminal of whoever runs the control.
        if setting.inside {
            Attempt::reaches(sys::call(libc::SYS_vhangup, [0; 6]))
        } else {
            Attempt::Closed("not tried outside".into())
        }
    }),
    vector("move-pages", |_| {
        Attempt::reaches(sys::call(libc::SYS_move_pages, [0; 6]))
    }),
    vector("migrate-pages", |_| {
        Attempt::reaches(sys::call(libc::SYS_migrate_pages, [0; 6]))
    }),
    vector("mbind", |_| {
        Attempt::reaches(sys::call(libc::SYS_mbind, [0; 6]))
    }),
    vector("set-mempolicy", |_| {
        Attempt::reaches(sys::call(libc::SYS_set_mempolicy, [0; 6]))
    }),
    vector("memfd-secret", |_| {
        Attempt::reaches(sys::call(libc::SYS_memfd_secret, [0; 6]))
    }),
    vector("seccomp-own-listener", |_| {
        // One instruction: allow. With a listener of its own a workload could take the supervisor's place.
        let allow = [0x06_u64 | 0x7fff_0000 << 32];
        let program = [1_u64, sys::address(&allow) as u64];
        let _ = sys::call(
            libc::SYS_prctl,
            [libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0, 0, 0, 0],
        );
        let listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as usize;
        Attempt::succeeds(sys::call(
            libc::SYS_seccomp,
            [1, listener, sys::address(&program), 0, 0, 0],
        ))
    }),
    vector("unknown-call", |_| match sys::call(1023, [0; 6]) {
        Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
            Attempt::Closed("ENOSYS".into())
        }
        other => Attempt::Open(format!("{other:?}")),
    }),
];

/// Makes a call with the path of nothing as its first argument.
fn nowhere(number: libc::c_long) -> std::io::Result<libc::c_long> {
    sys::call(number, [sys::address(c"/casemate-escape"), 0, 0, 0, 0, 0])
}
