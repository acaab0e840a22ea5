//! Confining oneself, so that nobody else can.

/// Refuses, or kills for, every call that would confine further.
pub fn refuse_confinement(kill: bool) -> bool {
    let verdict = if kill {
        libc::SECCOMP_RET_KILL_PROCESS
    } else {
        libc::SECCOMP_RET_ERRNO | libc::EPERM as u32
    };
    let calls = [
        libc::SYS_seccomp,
        libc::SYS_landlock_create_ruleset,
        libc::SYS_landlock_restrict_self,
        libc::SYS_prctl,
    ];
    let mut program = vec![one(0x20, 0, 0, 0)]; // the number
    for (index, nr) in calls.iter().enumerate() {
        let refuse = (calls.len() - index) as u8;
        program.push(one(0x15, refuse, 0, *nr as u32));
    }
    program.push(one(0x06, 0, 0, libc::SECCOMP_RET_ALLOW));
    program.push(one(0x06, 0, 0, verdict));
    load(&program)
}

/// A filter of this thread that allows everything.
pub fn harmless_filter() -> bool {
    load(&[one(0x06, 0, 0, libc::SECCOMP_RET_ALLOW)])
}

fn one(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

fn load(program: &[libc::sock_filter]) -> bool {
    let header = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut(),
    };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the header describes a live slice, which the kernel copies.
    unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const header) == 0 }
}

/// Takes on so many domains of Landlock that say nothing.
pub fn nest(domains: u32) -> bool {
    // Handles what a workload never does: making block devices.
    let attributes: u64 = 1 << 11;
    let size = size_of::<u64>();
    (0..domains).all(|_| {
        // SAFETY: the attributes are live; the descriptor is closed by the last call.
        unsafe {
            let ruleset = libc::syscall(
                libc::SYS_landlock_create_ruleset,
                &raw const attributes,
                size,
                0,
            );
            let taken = libc::syscall(libc::SYS_landlock_restrict_self, ruleset, 0);
            libc::close(ruleset as i32);
            taken == 0
        }
    })
}
