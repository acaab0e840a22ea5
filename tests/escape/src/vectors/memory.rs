//! Running bytes that this process wrote: each vector ends by calling them.

use std::ffi::CStr;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use libc::{c_int, c_long, c_void};

use super::{Vector, vector};
use crate::attempt::Attempt;
use crate::setting::Setting;
use crate::sys;

pub const ALL: &[Vector] = &[
    vector("map-write-exec", |_| runs(write_exec_mapping())),
    vector("protect-exec", |_| runs(made_executable())),
    vector("memfd-double-map", |_| {
        runs(double_mapping(libc::MAP_SHARED, memfd))
    }),
    vector("memfd-private-exec", |_| {
        runs(double_mapping(libc::MAP_PRIVATE, memfd))
    }),
    vector("tmp-file-map-exec", |_| {
        runs(double_mapping(libc::MAP_PRIVATE, || scratch("/tmp")))
    }),
    vector("shm-file-map-exec", |_| {
        runs(double_mapping(libc::MAP_PRIVATE, || scratch("/dev/shm")))
    }),
    vector("granted-file-map-exec", |setting| {
        let folder = setting.write.clone();
        runs(double_mapping(libc::MAP_PRIVATE, || {
            scratch(&folder.to_string_lossy())
        }))
    }),
    vector("proc-self-mem", |_| runs(overwritten("/proc/self/mem"))),
    vector("proc-task-mem", |_| {
        runs(overwritten("/proc/thread-self/mem"))
    }),
    // A segment that somebody outside made for everybody, by its name.
    vector("shared-memory-of-host", |setting| {
        let made = sys::call(libc::SYS_shmget, [setting.segment as usize, 1, 0, 0, 0, 0]);
        let read = made.and_then(|made| {
            let only = libc::SHM_RDONLY as usize;
            sys::call(libc::SYS_shmat, [made as usize, 0, only, 0, 0, 0])
        });
        Attempt::succeeds(read.map(drop))
    }),
    vector("shmat-exec", |_| runs(shared_segment())),
    vector("read-implies-exec", |_| {
        const READ_IMPLIES_EXEC: usize = 0x0040_0000;
        Attempt::succeeds(sys::call(
            libc::SYS_personality,
            [READ_IMPLIES_EXEC, 0, 0, 0, 0, 0],
        ))
    }),
    vector("no-randomisation", |_| {
        const ADDR_NO_RANDOMIZE: usize = 0x0004_0000;
        Attempt::succeeds(sys::call(
            libc::SYS_personality,
            [ADDR_NO_RANDOMIZE, 0, 0, 0, 0, 0],
        ))
    }),
    vector("remap-file-pages", |_: &Setting| {
        Attempt::reaches(sys::call(libc::SYS_remap_file_pages, [0; 6]))
    }),
];

/// Returns 42.
#[cfg(target_arch = "x86_64")]
const CODE: [u8; 6] = [0xb8, 42, 0, 0, 0, 0xc3]; // mov eax, 42; ret
/// Returns 42.
#[cfg(target_arch = "aarch64")]
const CODE: [u8; 8] = [0x40, 0x05, 0x80, 0x52, 0xc0, 0x03, 0x5f, 0xd6]; // mov w0, #42; ret

const PAGE: usize = 4096;
const READ_WRITE: c_int = libc::PROT_READ | libc::PROT_WRITE;
const READ_EXEC: c_int = libc::PROT_READ | libc::PROT_EXEC;

/// Calls the code at an address; whoever got so far without permission dies of it.
fn runs(code: io::Result<usize>) -> Attempt {
    match code {
        Ok(address) => {
            // SAFETY: executable code of ours lies there if the attack worked; else this child ends.
            let code: extern "C" fn() -> c_int = unsafe { std::mem::transmute(address) };
            match code() {
                42 => Attempt::Open("ran code that it wrote".into()),
                other => Attempt::Stuck(format!("the code returned {other}")),
            }
        }
        Err(error) => Attempt::succeeds::<()>(Err(error)),
    }
}

fn write_exec_mapping() -> io::Result<usize> {
    let at = map(
        READ_WRITE | libc::PROT_EXEC,
        libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        -1,
    )?;
    put(at);
    Ok(at)
}

fn made_executable() -> io::Result<usize> {
    let at = map(READ_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)?;
    put(at);
    sys::call(libc::SYS_mprotect, [at, PAGE, READ_EXEC as usize, 0, 0, 0])?;
    Ok(at)
}

/// Writes a file, and maps it executable.
fn double_mapping(kind: c_int, file: impl FnOnce() -> io::Result<fs::File>) -> io::Result<usize> {
    let mut file = file()?;
    file.write_all(&CODE)?;
    file.set_len(PAGE as u64)?;
    map(READ_EXEC, kind, file.as_raw_fd())
}

/// An anonymous file, with or without the seal against execution.
fn memfd() -> io::Result<fs::File> {
    let create = |flags: u32| {
        let name: &CStr = c"casemate-escape";
        sys::call(
            libc::SYS_memfd_create,
            [sys::address(name), flags as usize, 0, 0, 0, 0],
        )
    };
    let made = create(libc::MFD_EXEC)
        .or_else(|_| create(0))
        .or_else(|_| create(libc::MFD_NOEXEC_SEAL));
    Ok(sys::owned(made?)?.into())
}

/// A file without a name in this folder.
fn scratch(folder: &str) -> io::Result<fs::File> {
    Ok(sys::open(folder, libc::O_RDWR | libc::O_TMPFILE)?.into())
}

/// Writes over the code of a function, which is not writable, through the file of the memory.
fn overwritten(memory: &str) -> io::Result<usize> {
    #[inline(never)]
    extern "C" fn victim() -> c_int {
        std::hint::black_box(1)
    }
    let at = victim as extern "C" fn() -> c_int as usize;
    let memory = fs::OpenOptions::new().write(true).open(memory)?;
    memory.write_all_at(&CODE, at as u64)?;
    Ok(at)
}

fn shared_segment() -> io::Result<usize> {
    const SHM_EXEC: usize = 0o100_000;
    let made = sys::call(
        libc::SYS_shmget,
        [0, PAGE, 0o700 | libc::IPC_CREAT as usize, 0, 0, 0],
    )?;
    let attach = |flags| sys::call(libc::SYS_shmat, [made as usize, 0, flags, 0, 0, 0]);
    let attached = attach(SHM_EXEC).or_else(|error| {
        // The other way: attach it as data, and make that executable.
        let at = attach(0).map_err(|_| error)?;
        sys::call(
            libc::SYS_mprotect,
            [at as usize, PAGE, READ_EXEC as usize, 0, 0, 0],
        )
        .map(|_| at)
    });
    // It goes with its last user.
    sys::call(
        libc::SYS_shmctl,
        [made as usize, libc::IPC_RMID as usize, 0, 0, 0, 0],
    )?;
    let at = attached? as usize;
    put(at);
    Ok(at)
}

fn map(protection: c_int, flags: c_int, file: c_int) -> io::Result<usize> {
    // SAFETY: a new mapping where the kernel likes; nothing of ours is replaced.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, file, 0) };
    if at == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(at as usize)
    }
}

fn put(at: usize) {
    let target = at as *mut c_void;
    // SAFETY: the caller mapped a page there. If it is not writable this child ends, as it should.
    unsafe { libc::memcpy(target, CODE.as_ptr().cast(), CODE.len()) };
}

const _: () = assert!(size_of::<c_long>() == size_of::<usize>());
