//! The process that becomes QEMU: this program once more, which gives up all that QEMU does not need.
//!
//! ```text
//! supervisor ─▶ warden: dies with the supervisor, unprivileged, own namespaces, Landlock ─▶ QEMU (seccomp)
//! ```
//!
//! A guest that breaks out of QEMU finds an empty network, no file it could write, and nobody to signal.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};

use super::super::spawner::Failure;
use super::super::wire;
use super::machine::path;
use crate::enforcement::Item;
use crate::sys::process;
use crate::syscall::landlock::{LandlockPlan, Rights, Scopes};

/// Name (`argv[0]`) under which a program is its own warden.
pub const NAME: &str = "casemate-warden";
/// Programs of QEMU, by what they are called.
pub const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Whom root's machines run as: nobody.
const NOBODY: u32 = 65_534;
/// Where QEMU finds itself, its libraries and its ROMs.
const READ: [&str; 6] = [
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/proc",
    "/sys/devices/system",
];
const DEVICES: [&str; 4] = ["/dev/null", "/dev/urandom", "/dev/kvm", "/dev/sev"];

#[derive(Serialize, Deserialize)]
struct Launch {
    program: String,
    arguments: Vec<String>,
    /// Numbers that the descriptors beside this have in the program.
    numbers: Vec<i32>,
    /// Those of files on disks, and whether it writes to them.
    reopened: Vec<(i32, bool)>,
}

#[derive(Serialize, Deserialize)]
enum Answer {
    /// All is given up; the program is executed next.
    Confined(Vec<Item>),
    Failed(Failure),
}

/// Starts a program with these descriptors under these numbers, and with nothing else of ours. Files on
/// disks that it opens once more by their descriptor, in `/proc/self/fd`, are in `reopened` with whether it
/// writes to them. Gives the process, and what confines it.
///
/// # Errors
///
/// [`Failure`] names the step; nothing is left behind.
pub fn start(
    program: &str,
    arguments: &[String],
    descriptors: &[(i32, BorrowedFd<'_>)],
    reopened: &[(i32, bool)],
    stderr: OwnedFd,
) -> Result<(Child, Vec<Item>), Failure> {
    let (ours, theirs) = wire::pair().map_err(Failure::at("starting the warden"))?;
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0(NAME)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::from(stderr))
        .process_group(0);
    let mut child = command
        .spawn()
        .map_err(Failure::at("starting the warden"))?;
    drop(command);
    let launch = Launch {
        program: program.to_owned(),
        arguments: arguments.to_vec(),
        numbers: descriptors.iter().map(|(number, _)| *number).collect(),
        reopened: reopened.to_vec(),
    };
    let sent: Vec<_> = descriptors
        .iter()
        .map(|(_, descriptor)| *descriptor)
        .collect();
    let heard = wire::send(ours.as_fd(), &launch, &sent)
        .and_then(|()| wire::receive(ours.as_fd()))
        .map_err(Failure::at("hearing from the warden"));
    let result = match heard {
        Ok(Some((Answer::Confined(items), _))) => Ok(items),
        Ok(Some((Answer::Failed(failure), _))) => Err(failure),
        Ok(None) => Err(Failure {
            step: "hearing from the warden".into(),
            error: "it ended unexpectedly".into(),
            errno: None,
        }),
        Err(failure) => Err(failure),
    };
    match result {
        Ok(items) => Ok((child, items)),
        Err(failure) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(failure)
        }
    }
}

/// Main program of the warden, before the program's runtime begins. Returns only on failure.
pub fn main() -> i32 {
    // Descriptor 0 is the socket, by the way this was started.
    let socket = process::adopt(0);
    if rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).is_err() {
        return 1;
    }
    let Ok(Some((launch, descriptors))) = wire::receive::<Launch>(socket.as_fd()) else {
        // The supervisor was gone before it could be tied to.
        return 1;
    };
    let answer = |answer: &Answer| wire::send(socket.as_fd(), answer, &[]);
    match confine(&launch, descriptors) {
        Ok(items) => {
            if answer(&Answer::Confined(items)).is_err() {
                return 1;
            }
        }
        Err(failure) => {
            let _ = answer(&Answer::Failed(failure));
            return 1;
        }
    }
    // The socket closes on exec; stdin of the program is nothing.
    let null = std::fs::File::open("/dev/null");
    if null.is_ok_and(|null| rustix::stdio::dup2_stdin(&null).is_ok()) {
        // Descriptor 0 now belongs to the program.
        std::mem::forget(socket);
    } else {
        return 1;
    }
    let strings = |texts: &[String]| -> Option<Vec<CString>> {
        texts
            .iter()
            .map(|text| CString::new(text.as_str()).ok())
            .collect()
    };
    let program = CString::new(launch.program.as_str()).ok();
    let arguments = [std::slice::from_ref(&launch.program), &launch.arguments].concat();
    if let (Some(program), Some(arguments)) = (program, strings(&arguments)) {
        let error = process::execute(&program, &arguments, &[]);
        eprintln!("cannot execute `{}`: {error}", launch.program);
    }
    1
}

fn confine(launch: &Launch, descriptors: Vec<OwnedFd>) -> Result<Vec<Item>, Failure> {
    place(&launch.numbers, descriptors).map_err(Failure::at("placing descriptors"))?;
    let mut items = Vec::new();
    let kvm = std::fs::metadata("/dev/kvm")
        .map(|metadata| metadata.gid())
        .ok();
    if rustix::process::geteuid().is_root() {
        // The group of /dev/kvm is all that is kept of root's rights.
        let group = kvm.filter(|group| *group != 0).unwrap_or(NOBODY);
        match process::become_user(NOBODY, group, true) {
            Ok(()) => items.push(Item::full(2, "vmm-user", "QEMU is nobody")),
            // In a user namespace that has no other user.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                items.push(Item::not(2, "vmm-user", "there is no user here but root"));
            }
            Err(error) => return Err(Failure::at("giving up root")(error)),
        }
        // Changing the user unties a process from its parent.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|errno| Failure::at("tying QEMU to its supervisor")(errno.into()))?;
    }
    let namespaces =
        (libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) as u32
            as process::NamespaceFlags;
    items.push(match process::unshare(namespaces) {
        Ok(()) => Item::full(2, "vmm-namespaces", "QEMU has no network and no capability"),
        Err(error) => Item::not(
            2,
            "vmm-namespaces",
            format!("this host forbids them: {error}"),
        ),
    });
    process::drop_capabilities().map_err(Failure::at("dropping capabilities"))?;
    rustix::thread::set_no_new_privs(true)
        .map_err(|errno| Failure::at("giving up privileges")(errno.into()))?;
    process::set_limit(libc::RLIMIT_CORE, 0).map_err(Failure::at("forbidding core files"))?;
    items.push(landlock(&launch.reopened));
    Ok(items)
}

/// Lets nothing be read but what QEMU is made of and given, and nothing be written but what it is given
/// to write.
fn landlock(reopened: &[(i32, bool)]) -> Item {
    let there = |path: &&str| std::path::Path::new(path).exists();
    let read = READ
        .iter()
        .filter(|p| there(p))
        .map(|path| (*path, Rights::READ_EXEC));
    let devices = DEVICES
        .iter()
        .filter(|p| there(p))
        .map(|path| (*path, Rights::READ_WRITE));
    let given = reopened.iter().map(|(number, writes)| {
        let rights = if *writes {
            Rights::READ_WRITE
        } else {
            Rights::READ
        };
        (path(*number), rights)
    });
    let own = read.chain(devices);
    let own = own.map(|(path, rights)| (path.to_owned(), rights));
    let plan = LandlockPlan::new(own.chain(given), Scopes::default());
    match plan.build().and_then(|ruleset| ruleset.restrict_self()) {
        Ok(enforced) => Item::full(
            2,
            "vmm-landlock",
            format!("QEMU reads its own files only (ABI {})", enforced.abi()),
        ),
        Err(error) => Item::not(2, "vmm-landlock", crate::error::describe(&error)),
    }
}

/// Gives each descriptor its number, and lets no other be there after exec.
fn place(numbers: &[i32], descriptors: Vec<OwnedFd>) -> io::Result<()> {
    if numbers.len() != descriptors.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    process::close_from_on_exec(3)?;
    // Out of the way first: none may be where another one belongs.
    let high = numbers.iter().max().map_or(64, |most| most + 64);
    for (number, descriptor) in numbers.iter().zip(descriptors) {
        let aside = rustix::io::fcntl_dupfd_cloexec(&descriptor, high)?;
        drop(descriptor);
        let mut placed = process::adopt(*number);
        rustix::io::dup2(&aside, &mut placed)?;
        fcntl_setfd(&placed, FdFlags::empty())?;
        // It stays open for the program.
        std::mem::forget(placed);
    }
    Ok(())
}
