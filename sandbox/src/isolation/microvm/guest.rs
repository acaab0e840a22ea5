//! What process 1 of a guest does before anything else: a root that can be left, file systems, loopback,
//! the clock, the port.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::net::{AddressFamily, SocketType};
use rustix::time::{ClockId, Timespec};

use super::super::spawner::Failure;
use super::machine::PORT;
use crate::sys::network::bring_loopback_up;

/// No clock of a guest shows an earlier time than this (2026-01-01): what is older than this program is
/// wrong.
const EARLIEST: u64 = 1_767_225_600;
/// How often, and how long apart, the port is looked for.
const TRIES: usize = 500;
const PAUSE: Duration = Duration::from_millis(10);

/// Makes the machine fit to run sandboxes in.
///
/// The initial RAM disk's own root cannot be left by pivot_root(2), so the root becomes a mount upon it.
/// Nothing is mounted on `/tmp` and `/run`: what a policy grants may lie there, and all of it is memory.
///
/// # Errors
///
/// [`Failure`] names the step.
pub fn prepare() -> Result<(), Failure> {
    let at = |step: &'static str| move |errno: rustix::io::Errno| Failure::at(step)(errno.into());
    let none = MountFlags::empty();
    let moved = || {
        rustix::mount::mount_bind("/", "/run")?;
        rustix::process::chdir("/run")?;
        rustix::mount::mount_move(".", "/")?;
        rustix::process::chroot(".")?;
        rustix::process::chdir("/")
    };
    moved().map_err(at("mounting the root"))?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE)
        .map_err(at("mounting the root"))?;
    let quiet = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    for (kind, place, flags) in [
        ("proc", "/proc", quiet),
        ("sysfs", "/sys", quiet),
        ("devtmpfs", "/dev", MountFlags::NOSUID | MountFlags::NOEXEC),
        ("cgroup2", "/sys/fs/cgroup", quiet),
    ] {
        rustix::mount::mount(kind, place, kind, flags, None)
            .map_err(|errno| Failure::at(format!("mounting `{place}`"))(errno.into()))?;
    }
    // What the kernel has of a TEE is seen through configfs; without one there is none to see.
    let _ = rustix::mount::mount("configfs", "/sys/kernel/config", "configfs", none, None);
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None);
    let socket = socket.map_err(at("bringing loopback up"))?;
    bring_loopback_up(socket.as_fd()).map_err(Failure::at("bringing loopback up"))
}

/// Mounts a file system in memory, whose files can be given to the user of a sandbox: those of the initial
/// RAM disk cannot.
///
/// # Errors
///
/// What mkdir(2) and mount(2) answer.
pub fn memory_at(place: &Path) -> io::Result<()> {
    fs::create_dir(place)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    // All of the machine's memory: it is this session's, and has a limit.
    let all = Some(c"size=100%");
    Ok(rustix::mount::mount("tmpfs", place, "tmpfs", flags, all)?)
}

/// Shows a file or folder in another place, where nothing was before.
///
/// # Errors
///
/// `AlreadyExists`, and what mount(2) answers.
pub fn show(from: &Path, at: &Path) -> io::Result<()> {
    if let Some(above) = at.parent() {
        fs::create_dir_all(above)?;
    }
    match fs::symlink_metadata(from)?.is_dir() {
        true => fs::create_dir(at)?,
        false => drop(File::create_new(at)?),
    }
    Ok(rustix::mount::mount_bind(from, at)?)
}

/// Shows a file or folder in place of what is there.
///
/// # Errors
///
/// What mount(2) answers.
pub fn cover(from: &Path, at: &Path) -> io::Result<()> {
    Ok(rustix::mount::mount_bind(from, at)?)
}

/// Opens the port to the host.
///
/// # Errors
///
/// [`Failure`] when the machine has none.
pub fn port() -> Result<File, Failure> {
    for _ in 0..TRIES {
        if let Some(device) = find_port() {
            let file = OpenOptions::new().read(true).write(true).open(device);
            return file.map_err(Failure::at("opening the port to the host"));
        }
        thread::sleep(PAUSE);
    }
    Err(Failure::at("looking for the port to the host")(
        io::ErrorKind::NotFound.into(),
    ))
}

fn find_port() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let named = |path: &Path| fs::read_to_string(path.join("name")).is_ok_and(|n| n.trim() == PORT);
    let port = ports
        .flatten()
        .map(|entry| entry.path())
        .find(|path| named(path))?;
    Some(Path::new("/dev").join(port.file_name()?))
}

/// Takes the host's clock, unless it is wrong beyond doubt.
///
/// A host can turn this clock. What rests on time alone is therefore decided by brokers, by their own.
///
/// # Errors
///
/// [`Failure`] when it is before this program was written, or cannot be set.
pub fn set_clock(now: u64) -> Result<(), Failure> {
    let step = "setting the clock";
    if now < EARLIEST {
        return Err(Failure {
            step: step.into(),
            error: format!("the host says that it is {now} seconds after 1970"),
            errno: None,
        });
    }
    let now = Timespec {
        tv_sec: i64::try_from(now).unwrap_or(i64::MAX),
        tv_nsec: 0,
    };
    rustix::time::clock_settime(ClockId::Realtime, now)
        .map_err(|errno| Failure::at(step)(errno.into()))
}

/// Ends the machine. Nothing of it is left.
pub fn power_off() -> ! {
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    // Without the right or the means; the kernel panics when process 1 ends, and the machine with it.
    std::process::exit(1)
}
