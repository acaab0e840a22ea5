//! Executing what no path rule names, and what the workload has written.

use std::ffi::CString;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::{Vector, vector};
use crate::attempt::Attempt;
use crate::process;
use crate::sys;

pub const ALL: &[Vector] = &[
    vector("memfd-execve", |_| {
        let flags = [libc::MFD_EXEC, 0];
        Attempt::any(flags.map(|flags| (format!("flags {flags}"), run_memfd(flags))))
    }),
    vector("memfd-sealed-execve", |_| run_memfd(libc::MFD_NOEXEC_SEAL)),
    vector("execveat-descriptor", |_| {
        judged("execveat", || {
            sys::open(TRUE, libc::O_PATH).and_then(|program| execute_descriptor(&program))
        })
    }),
    vector("exec-from-grant", |setting| run_copy(&setting.write)),
    vector("exec-from-tmp", |_| run_copy(Path::new("/tmp"))),
    vector("exec-from-shm", |_| run_copy(Path::new("/dev/shm"))),
    vector("exec-nameless-file", |_| {
        judged("execve", || {
            let file = sys::open("/tmp", libc::O_WRONLY | libc::O_TMPFILE)?;
            execute_written(file)
        })
    }),
    vector("exec-by-loader", |setting| {
        let Some(loader) = LOADERS.into_iter().find(|path| Path::new(path).exists()) else {
            return Attempt::Closed("no loader here".into());
        };
        let copy = setting.write.join(format!("loaded-{}", std::process::id()));
        let attempt = judged("loading", || {
            copy_of_true(&copy)?;
            // The loader complains where the verdicts go.
            sys::call(libc::SYS_close, [2, 0, 0, 0, 0, 0])?;
            execute(loader, &[loader, &copy.to_string_lossy()])
        });
        let _ = fs::remove_file(&copy);
        attempt
    }),
];

const TRUE: &str = "/usr/bin/true";
const LOADERS: [&str; 2] = ["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];

fn run_memfd(flags: u32) -> Attempt {
    judged("execve", || {
        let name = sys::address(c"casemate-escape");
        let made = sys::call(libc::SYS_memfd_create, [name, flags as usize, 0, 0, 0, 0])?;
        execute_written(sys::owned(made)?)
    })
}

/// Copies a program into the folder, and runs the copy.
fn run_copy(folder: &Path) -> Attempt {
    let copy = folder.join(format!("copy-{}", std::process::id()));
    let attempt = judged("execve", || {
        copy_of_true(&copy)?;
        let path = copy.to_string_lossy();
        execute(&path, &[&path])
    });
    let _ = fs::remove_file(&copy);
    attempt
}

/// Runs an attack that ends in a program which ends with 0; what goes wrong before is the verdict.
fn judged(what: &str, attack: impl FnOnce() -> io::Result<()>) -> Attempt {
    let (refused, ending) = process::hear(|| match attack() {
        Ok(()) => String::new(),
        Err(error) => crate::attempt::name(&error),
    });
    match ending {
        process::Ending::Code(0) if refused.is_empty() => Attempt::Open("the program ran".into()),
        _ => Attempt::Closed(format!("{what}: {refused} {ending:?}")),
    }
}

fn copy_of_true(copy: &Path) -> io::Result<()> {
    let program = fs::read(TRUE)?;
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(copy)?;
    file.write_all(&program)?;
    file.set_permissions(fs::Permissions::from_mode(0o755))
}

/// Fills a file, and executes it by its descriptor, in each way there is.
fn execute_written(file: OwnedFd) -> io::Result<()> {
    let mut file = fs::File::from(file);
    file.write_all(&fs::read(TRUE)?)?;
    // A sealed file refuses this.
    let _ = file.set_permissions(fs::Permissions::from_mode(0o755));
    // A file open for writing cannot be executed: keep a descriptor that only names it.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let named = match sys::open(&path, libc::O_PATH) {
        Ok(named) => named,
        Err(_) => return execute_descriptor(&OwnedFd::from(file)),
    };
    drop(file);
    let by_path = format!("/proc/self/fd/{}", named.as_raw_fd());
    execute(&by_path, &["true"]).or_else(|first| execute_descriptor(&named).map_err(|_| first))
}

fn execute_descriptor(program: &OwnedFd) -> io::Result<()> {
    let (nothing, arguments) = (sys::address(c""), [sys::address(c"true"), 0]);
    let (arguments, empty) = (sys::address(&arguments), libc::AT_EMPTY_PATH as usize);
    let descriptor = program.as_raw_fd() as usize;
    sys::call(
        libc::SYS_execveat,
        [descriptor, nothing, arguments, 0, empty, 0],
    )
    .map(drop)
}

/// Executes a path; returns only with the reason why that was not possible.
fn execute(path: &str, arguments: &[&str]) -> io::Result<()> {
    let path = sys::text(path)?;
    let arguments: Vec<_> = arguments
        .iter()
        .filter_map(|a| CString::new(*a).ok())
        .collect();
    let pointers: Vec<_> = arguments
        .iter()
        .map(|a| a.as_ptr())
        .chain([std::ptr::null()])
        .collect();
    // SAFETY: the array ends with a null pointer and, like the strings, outlives the call; no
    // environment is allowed on Linux.
    unsafe { libc::execve(path.as_ptr(), pointers.as_ptr(), std::ptr::null()) };
    Err(io::Error::last_os_error())
}
