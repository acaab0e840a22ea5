//! Machines that were booted once, and go on from there as often as they are wanted.
//!
//! ```text
//! image ─▶ machine ─▶ hello ─▶ stopped ─▶ memory, devices ─┬─▶ clone ◀─ start: seed, clock, files
//!                                          (a template)    └─▶ clone ◀─ start: seed, clock, files
//! ```
//!
//! A template is kept before the guest has heard anything: what is in it is in its image too. It has no
//! key and no random number that is used, and each clone draws its own after it was given a seed.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use casemate::isolation::microvm::machine::descriptor;
use casemate::isolation::microvm::{ChannelError, Incoming, Link, Machine, Origin};
use casemate::record::hex;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::super::{PROTOCOL, ToHost};
use super::VmError;
use super::launch::{Digests, Files, Kept, launch};
use super::machine_log::MachineLog;

/// Templates that are kept at most; those that were not used for longest go first.
const MOST: usize = 4;
/// The files of a template.
const MEMORY: &str = "memory";
const DEVICES: &str = "devices";
/// What a template is called while it is made.
const MAKING: &str = ".making-";
/// Changes with each boot of this host.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// With what a template is made, and where that is recorded.
#[derive(Clone, Copy)]
pub(super) struct Launcher<'l> {
    pub(super) qemu: &'l str,
    pub(super) patience: Duration,
    pub(super) log: &'l MachineLog,
}

/// A machine that waits to be told what to run, as files.
pub(super) struct Template {
    memory: File,
    devices: File,
}

impl Template {
    /// The template of a machine, made now if there is none, from these files.
    pub(super) fn of(
        folder: &Path,
        machine: &Machine,
        digests: Digests,
        files: impl FnOnce() -> Result<Files, VmError>,
        launcher: Launcher<'_>,
    ) -> Result<Self, VmError> {
        let refuse = |path: &Path| {
            let path = path.to_owned();
            move |source| VmError::File { path, source }
        };
        private(folder).map_err(refuse(folder))?;
        let machine = Machine {
            origin: Origin::Template,
            ..machine.clone()
        };
        let Launcher {
            qemu,
            patience,
            log,
        } = launcher;
        let name = name(&machine, digests, qemu)?;
        let at = folder.join(&name);
        if !at.exists() {
            log.record(
                "machine-template",
                json!({ "name": name, "machine": machine }),
            )?;
            let making = Making::begin(folder).map_err(refuse(folder))?;
            let files = files()?;
            if files.digests != digests {
                return Err(VmError::Changed);
            }
            making.fill(&machine, &files, qemu, patience)?;
            making.done(&at).map_err(refuse(&at))?;
            forget(folder, &name);
        }
        let template = Self::open(&at).map_err(refuse(&at))?;
        log.record("machine-clone", json!({ "template": name }))?;
        Ok(template)
    }

    pub(super) fn kept(&self) -> Kept<'_> {
        Kept {
            memory: &self.memory,
            devices: &self.devices,
        }
    }

    fn open(at: &Path) -> io::Result<Self> {
        let template = Self {
            memory: File::open(at.join(MEMORY))?,
            devices: File::open(at.join(DEVICES))?,
        };
        // It was used now.
        File::open(at)?.set_modified(SystemTime::now())?;
        Ok(template)
    }
}

/// What a template is called: after all that decides what it became.
fn name(machine: &Machine, digests: Digests, qemu: &str) -> Result<String, VmError> {
    let program = fs::metadata(qemu)?;
    let decides = json!({
        "protocol": PROTOCOL,
        "kernel": hex(&digests.kernel),
        "image": hex(&digests.image),
        "machine": machine,
        "arguments": machine.arguments(),
        "qemu": [program.dev(), program.ino(), program.len()],
        "qemu-changed": [program.ctime(), program.ctime_nsec()],
        "host": fs::read_to_string(BOOT)?,
    });
    Ok(hex(&Sha256::digest(decides.to_string())))
}

/// Makes the folder if there is none; it has to be nobody else's.
fn private(folder: &Path) -> io::Result<()> {
    let make = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
    make(folder)?;
    let metadata = fs::symlink_metadata(folder)?;
    let own = rustix::process::geteuid().as_raw();
    if metadata.is_dir() && metadata.uid() == own && metadata.mode() & 0o077 == 0 {
        return Ok(());
    }
    let why = "a folder of templates must be nobody else's: its mode has to be 0700";
    Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
}

/// A template that is being made. Dropping it removes it.
struct Making(PathBuf);

impl Making {
    fn begin(folder: &Path) -> io::Result<Self> {
        let at = folder.join(format!("{MAKING}{}", std::process::id()));
        // Of a process that had this number before.
        let _ = fs::remove_dir_all(&at);
        DirBuilder::new().mode(0o700).create(&at)?;
        Ok(Self(at))
    }

    /// Boots the machine, and keeps it once it has said hello.
    fn fill(
        &self,
        machine: &Machine,
        files: &Files,
        qemu: &str,
        patience: Duration,
    ) -> Result<(), VmError> {
        let (memory, devices) = (self.file(MEMORY)?, self.file(DEVICES)?);
        let kept = Kept {
            memory: &memory,
            devices: &devices,
        };
        let mut launched = launch(qemu, machine, Some(files), Some(kept))?;
        let patience = patience.saturating_add(super::talk::BOOT);
        launched.channel.set_read_timeout(Some(patience))?;
        match hello(&launched.channel) {
            Ok(PROTOCOL) => {}
            Ok(other) => return Err(VmError::Version(other)),
            Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(VmError::Hung(patience));
            }
            Err(ChannelError::Gone) => {
                let console = launched.last_words();
                return Err(VmError::Lost { console });
            }
            Err(other) => return Err(other.into()),
        }
        launched.qmp.keep(descriptor::DEVICES)?;
        launched.kill();
        for file in [memory, devices] {
            file.set_permissions(Permissions::from_mode(0o444))?;
        }
        Ok(())
    }

    /// A file that whoever QEMU runs as can open, if it is handed to it: nobody else comes this far.
    fn file(&self, name: &str) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600);
        let file = file.open(self.0.join(name))?;
        file.set_permissions(Permissions::from_mode(0o666))?;
        Ok(file)
    }

    /// Puts it in its place, unless somebody else was faster.
    fn done(self, at: &Path) -> io::Result<()> {
        match fs::rename(&self.0, at) {
            Err(_) if at.exists() => Ok(()),
            renamed => renamed,
        }
    }
}

impl Drop for Making {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The version of the protocol that a guest announces, which is the first thing that it says.
fn hello(mut channel: &std::os::unix::net::UnixStream) -> Result<u32, ChannelError> {
    let link = Link::new(io::sink());
    match link.receive(&mut channel)? {
        Incoming::Message(json) => match serde_json::from_slice(&json) {
            Ok(ToHost::Hello { protocol, .. }) => Ok(protocol),
            _ => Err(ChannelError::Protocol("it does not say hello first")),
        },
        _ => Err(ChannelError::Protocol("it does not say hello first")),
    }
}

/// Removes what was not used for longest, and what was left half made; machines that go on from there
/// are not disturbed.
fn forget(folder: &Path, newest: &str) {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        match name.strip_prefix(MAKING) {
            Some(pid) if !Path::new("/proc").join(pid).exists() => {
                let _ = fs::remove_dir_all(entry.path());
            }
            Some(_) => {}
            None if name == newest => {}
            None => {
                let used = entry.metadata().and_then(|metadata| metadata.modified());
                found.push((used.unwrap_or(SystemTime::UNIX_EPOCH), entry.path()));
            }
        }
    }
    found.sort();
    let surplus = (found.len() + 1).saturating_sub(MOST);
    for (_, path) in found.into_iter().take(surplus) {
        let _ = fs::remove_dir_all(path);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn those_that_were_not_used_for_longest_go_and_so_does_what_a_dead_process_left() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["a", "b", "c", "d", "e"];
        for (age, name) in names.iter().enumerate() {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            let used = SystemTime::UNIX_EPOCH + Duration::from_secs(1000 - age as u64);
            File::open(&path).unwrap().set_modified(used).unwrap();
        }
        let own = format!("{MAKING}{}", std::process::id());
        // No process has this number.
        for making in [&own, &format!("{MAKING}4194304999")] {
            fs::create_dir(folder.path().join(making)).unwrap();
        }
        // The one that was just made is the oldest here, and stays.
        forget(folder.path(), "e");
        let left = fs::read_dir(folder.path()).unwrap().flatten();
        let mut left: Vec<_> = left
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [own.as_str(), "a", "b", "c", "e"]);
    }

    #[test]
    fn templates_are_kept_where_nobody_else_comes() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("templates");
        private(&own).unwrap();
        assert_eq!(fs::metadata(&own).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(&own, Permissions::from_mode(0o755)).unwrap();
        assert!(private(&own).is_err());
        std::os::unix::fs::symlink(&own, folder.path().join("link")).unwrap();
        fs::set_permissions(&own, Permissions::from_mode(0o700)).unwrap();
        assert!(private(&folder.path().join("link")).is_err());
    }
}
