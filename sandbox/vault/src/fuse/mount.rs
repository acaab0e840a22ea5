//! Mounting for [`serve`](super::serve) and [`serve_volume`](super::serve_volume), where nobody else did.
//!
//! With CAP_SYS_ADMIN the mount is made by mount(2), else by the `fusermount3` of the host, which is
//! set-user-ID and passes the descriptor back as fusermount3(1) has it.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::wire;

/// The type that mountinfo shows.
const KIND: &str = "fuse.casemate";

/// What is mounted, as this process sees it.
const OURS: &str = "/proc/self/mountinfo";

/// Why nothing was mounted or unmounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The place is not there, or is no directory.
    #[error("`{}` cannot be mounted on", .0.display())]
    Place(PathBuf, #[source] io::Error),
    /// Neither mount(2) nor fusermount3 did it.
    #[error(
        "could not mount: as an ordinary user, install `fuse3` for fusermount3, and see that /dev/fuse may be opened"
    )]
    Mount(#[source] io::Error),
    /// Somebody uses it.
    #[error("`{}` is in use", .0.display())]
    Busy(PathBuf),
    /// It could not be unmounted.
    #[error("could not unmount")]
    Unmount(#[source] io::Error),
}

/// A mounted directory, unmounted when dropped, whoever uses it.
#[derive(Debug)]
pub struct Mount {
    at: PathBuf,
    mounted: bool,
}

impl Mount {
    /// Mounts a directory; returns the descriptor to serve it through.
    ///
    /// What a server that died has left there is unmounted first. Permissions are checked by the kernel,
    /// and with `shared` other users may come in too, as far as these let them.
    ///
    /// # Errors
    ///
    /// [`MountError::Place`] or [`MountError::Mount`].
    pub fn new(at: &Path, read_only: bool, shared: bool) -> Result<(Self, OwnedFd), MountError> {
        let place = |error| MountError::Place(at.to_owned(), error);
        clean(at)?;
        let at = fs::canonicalize(at).map_err(place)?;
        if !fs::metadata(&at).map_err(place)?.is_dir() {
            return Err(place(io::ErrorKind::NotADirectory.into()));
        }
        let device = match mount(&at, read_only, shared) {
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::PERM | Errno::ACCESS)
                ) =>
            {
                mount_as_user(&at, read_only, shared)
            }
            mounted => mounted,
        };
        let mount = Self { at, mounted: true };
        match device {
            Ok(device) => {
                read_ahead(OURS, &mount.at, KIND);
                Ok((mount, device))
            }
            Err(error) => {
                std::mem::forget(mount);
                Err(MountError::Mount(error))
            }
        }
    }

    /// Unmounts, if nobody uses it.
    ///
    /// # Errors
    ///
    /// [`MountError::Busy`], or [`MountError::Unmount`].
    pub fn unmount(&mut self) -> Result<(), MountError> {
        if self.mounted {
            unmount(&self.at, false)?;
            self.mounted = false;
        }
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            // What is gone already needs no unmounting.
            let _ = unmount(&self.at, true);
        }
    }
}

/// Unmounts what a server that died has left at this place.
fn clean(at: &Path) -> Result<(), MountError> {
    let Err(error) = fs::metadata(at) else {
        return Ok(());
    };
    if Errno::from_io_error(&error) == Some(Errno::NOTCONN) && is_ours(at) {
        return unmount(at, true);
    }
    Err(MountError::Place(at.to_owned(), error))
}

/// Whether a file system of ours is mounted here, which nobody may be serving any more.
fn is_ours(at: &Path) -> bool {
    // Its parent can be looked up, and it itself cannot.
    let parent = at.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = fs::canonicalize(parent.unwrap_or(Path::new(".")));
    let (Ok(parent), Some(name)) = (parent, at.file_name()) else {
        return false;
    };
    let at = parent.join(name);
    number_of(OURS, &at, KIND).is_some()
}

/// The device number, as text, of the file system of this kind that is mounted here according to a
/// mountinfo.
fn number_of(mountinfo: &str, at: &Path, kind: &str) -> Option<String> {
    let mounts = fs::read_to_string(mountinfo).ok()?;
    let mut ours = mounts.lines().filter(|line| {
        let place = line.split(' ').nth(4).map(unescaped);
        let found = line.split(" - ").nth(1);
        let found = found.and_then(|rest| rest.split(' ').next());
        place.is_some_and(|place| place == at.as_os_str().as_bytes()) && found == Some(kind)
    });
    // The last one is on top.
    let number = ours.next_back()?.split(' ').nth(2)?;
    Some(number.to_owned())
}

/// Has the kernel read further ahead than its 128 KiB where a file is read in order: the larger a request,
/// the less it costs a byte. `kind` is the type of the file system that is mounted at `at`, as seen by the
/// process of this mountinfo. Takes root of the host; whoever is not reads more slowly.
pub fn read_ahead(mountinfo: &str, at: &Path, kind: &str) {
    if let Some(number) = number_of(mountinfo, at, kind) {
        let file = format!("/sys/class/bdi/{number}/read_ahead_kb");
        let _ = fs::write(file, (wire::MAX_READ >> 10).to_string());
    }
}

/// A path as mountinfo writes it: `\040` for a space, and so on.
fn unescaped(field: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (first, byte) {
            (b'\\', Some(byte)) => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

fn mount(at: &Path, read_only: bool, shared: bool) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions{}",
        device.as_raw_fd(),
        user.as_raw(),
        group.as_raw(),
        if shared { ",allow_other" } else { "" }
    );
    let data = CString::new(data).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut flags = MountFlags::NODEV | MountFlags::NOSUID;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    rustix::mount::mount("casemate", at, KIND, flags, data.as_c_str())?;
    Ok(device.into())
}

fn mount_as_user(at: &Path, read_only: bool, shared: bool) -> io::Result<OwnedFd> {
    let (ours, theirs) = UnixStream::pair()?;
    fcntl_setfd(&theirs, FdFlags::empty())?;
    let options = format!(
        "fsname=casemate,subtype=casemate,nodev,nosuid,default_permissions{}{}",
        if read_only { ",ro" } else { "" },
        if shared { ",allow_other" } else { "" }
    );
    let done = Command::new("fusermount3")
        .args(["-o", &options, "--"])
        .arg(at)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .output()?;
    drop(theirs);
    if !done.status.success() {
        let said = String::from_utf8_lossy(&done.stderr);
        return Err(io::Error::other(said.trim().to_owned()));
    }
    received(&ours)
}

/// The descriptor that fusermount3 sent.
fn received(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let mut buffers = [io::IoSliceMut::new(&mut byte)];
    recvmsg(
        socket.as_fd(),
        &mut buffers,
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let first = descriptors.next().and_then(|mut all| all.next());
    first.ok_or_else(|| io::Error::other("fusermount3 sent no descriptor"))
}

fn unmount(at: &Path, whoever_uses_it: bool) -> Result<(), MountError> {
    let flags = if whoever_uses_it {
        UnmountFlags::DETACH
    } else {
        UnmountFlags::empty()
    };
    match rustix::mount::unmount(at, flags) {
        Ok(()) => Ok(()),
        // Not mounted: somebody was quicker.
        Err(Errno::INVAL) => Ok(()),
        Err(Errno::BUSY) => Err(MountError::Busy(at.to_owned())),
        Err(Errno::PERM) => unmount_as_user(at, whoever_uses_it),
        Err(error) => Err(MountError::Unmount(error.into())),
    }
}

fn unmount_as_user(at: &Path, whoever_uses_it: bool) -> Result<(), MountError> {
    let how: &[&str] = if whoever_uses_it {
        &["-u", "-z"]
    } else {
        &["-u"]
    };
    let done = Command::new("fusermount3")
        .args(how)
        .arg("--")
        .arg(at)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(MountError::Unmount)?;
    let said = String::from_utf8_lossy(&done.stderr);
    match done.status.success() {
        true => Ok(()),
        false if said.contains("busy") => Err(MountError::Busy(at.to_owned())),
        false => Err(MountError::Unmount(io::Error::other(
            said.trim().to_owned(),
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_with_spaces_are_found_in_mountinfo() {
        assert_eq!(unescaped(r"/a\040b\134"), b"/a b\\");
        assert_eq!(unescaped(r"/a\9"), br"/a\9");
    }
}
