//! Other doors into the kernel than the one that the filter was written for, and other parts of the
//! processor. x86-64 only.

use std::arch::asm;
use std::io;

use libc::c_long;

use super::{Vector, vector};
use crate::attempt::Attempt;
use crate::sys;

pub const ALL: &[Vector] = &[
    vector("int80", |_| {
        let got: i64;
        // SAFETY: entry of 32-bit programs; call 64 there is `getppid`, which takes no argument. The
        // kernel may clear r8 to r11.
        unsafe {
            asm!("int 0x80", inlateout("rax") 64_i64 => got,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        Attempt::reaches(result(got))
    }),
    vector("x32", |_| {
        Attempt::succeeds(sys::call(0x4000_0000 + libc::SYS_getppid, [0; 6]))
    }),
    // 0x4000_0000 + 520 is x32's own `execve`.
    vector("x32-execve", |_| {
        Attempt::reaches(sys::call(0x4000_0000 + 520, [1, 1, 1, 0, 0, 0]))
    }),
    vector("vsyscall", |_| {
        // SAFETY: vsyscall(2): the kernel runs `time` for a call to this address, or kills.
        let time: extern "C" fn(usize) -> c_long =
            unsafe { std::mem::transmute(0xffff_ffff_ff60_0400_usize) };
        let by_page = time(0);
        let by_call = sys::call(libc::SYS_time, [0; 6]);
        // What is allowed as a call is no way out as a page.
        match (by_page >= 0, by_call) {
            (true, Err(error)) => Attempt::Open(format!("the call is refused: {error}")),
            (works, _) => Attempt::Closed(format!("as the call: {works}")),
        }
    }),
    vector("modify-ldt", |_| {
        Attempt::reaches(sys::call(libc::SYS_modify_ldt, [0; 6]))
    }),
    vector("iopl", |_| {
        Attempt::reaches(sys::call(libc::SYS_iopl, [3, 0, 0, 0, 0, 0]))
    }),
    vector("ioperm", |_| {
        Attempt::reaches(sys::call(libc::SYS_ioperm, [0x80, 1, 1, 0, 0, 0]))
    }),
    // Old numbers that no library uses any more.
    vector("uselib", |_| {
        Attempt::reaches(sys::call(libc::SYS_uselib, [1; 6]))
    }),
    vector("sysfs", |_| {
        Attempt::reaches(sys::call(libc::SYS_sysfs, [3, 0, 0, 0, 0, 0]))
    }),
];

fn result(value: i64) -> io::Result<i64> {
    if value < 0 {
        Err(io::Error::from_raw_os_error(-value as i32))
    } else {
        Ok(value)
    }
}
