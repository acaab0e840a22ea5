//! Typing into the terminal that the supervisor was started from, which is this process' stdin.

use super::{Vector, vector};
use crate::attempt::Attempt;
use crate::sys;

pub const ALL: &[Vector] = &[
    vector("tiocsti", |_| Attempt::succeeds(push(TIOCSTI))),
    // CVE-2019-10063: the kernel takes the command as 32 bits, a test of 64 would not.
    vector("tiocsti-high-bits", |_| {
        Attempt::succeeds(push(TIOCSTI | 1 << 32))
    }),
    vector("tioclinux", |_| {
        let paste = [3_u8];
        Attempt::reaches(sys::call(
            libc::SYS_ioctl,
            [0, 0x541c, sys::address(&paste), 0, 0, 0],
        ))
    }),
    vector("tioccons", |_| {
        // On no descriptor at all, for it would redirect the console of whoever runs the control.
        Attempt::reaches(sys::call(libc::SYS_ioctl, [usize::MAX, 0x541d, 0, 0, 0, 0]))
    }),
    vector("line-discipline", |_| {
        // N_GSM0710, whose holes were many.
        let discipline = [21_i32];
        Attempt::succeeds(sys::call(
            libc::SYS_ioctl,
            [0, 0x5423, sys::address(&discipline), 0, 0, 0],
        ))
    }),
    vector("controlling-terminal", |_| {
        Attempt::succeeds(sys::open("/dev/tty", libc::O_RDWR))
    }),
];

const TIOCSTI: usize = 0x5412;

/// Makes the terminal one's own, in a new session, and types an `x` into it.
fn push(command: usize) -> std::io::Result<libc::c_long> {
    let _ = sys::call(libc::SYS_setsid, [0; 6]);
    let _ = sys::call(libc::SYS_ioctl, [0, libc::TIOCSCTTY as usize, 0, 0, 0, 0]);
    let key = [b'x'];
    sys::call(libc::SYS_ioctl, [0, command, sys::address(&key), 0, 0, 0])
}
