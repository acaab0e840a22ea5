//! What process 1 of a guest does before anything else: a root that can be left, file systems, loopback,
//! the clock, the port.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
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

/// Where programs look for the machine's generation, and those that there are.
const GENERATION: &str = "/dev/sysgenid";
const BOOTED: u32 = 1;
const AWAKE: u32 = 2;

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
    generation(BOOTED).map_err(Failure::at("telling the machine's generation"))?;
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

/// Makes a machine that goes on from a template another one than its siblings: what any program of it draws
/// from the kernel from here on depends on this seed too, beside what the processor adds by itself.
///
/// No randomness may have been used for a secret before.
///
/// # Errors
///
/// [`Failure`]; then nothing may be drawn.
pub fn reseed(seed: &[u8; 32]) -> Result<(), Failure> {
    let step = "seeding the random number generator";
    let mixed = OpenOptions::new()
        .write(true)
        .open("/dev/urandom")
        .and_then(|mut pool| {
            pool.write_all(seed)?;
            crate::sys::random::reseed(&pool)
        });
    mixed.map_err(Failure::at(step))?;
    // Only now: whoever sees another generation seeds itself from the kernel.
    generation(AWAKE).map_err(Failure::at(step))
}

/// Says which generation of the machine this is, in the way of the kernel's proposed "SysGenID" driver:
/// generators of random numbers in programs look there whether they must be seeded anew.
fn generation(number: u32) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o644);
    let file = options.open(GENERATION)?;
    file.write_all_at(&number.to_ne_bytes(), 0)
}

/// Ends the machine. Nothing of it is left.
pub fn power_off() -> ! {
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    // Without the right or the means; the kernel panics when process 1 ends, and the machine with it.
    std::process::exit(1)
}
