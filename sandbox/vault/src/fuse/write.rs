//! Serving a volume: what the kernel asks of it, under its lease.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::wire::{self, Attr, Operation, Out, Request};
use super::{COMMIT_EVERY, Files, Inner, ROOT, Shown, errno, send};
use crate::error::VaultError;
use crate::lease::{LeaseError, Rights};
use crate::volume::{Entry, New, NodeKind, Stat, Volume, VolumeError};

/// RENAME_NOREPLACE of renameat2(2), the one flag that is known here.
const NO_REPLACE: u32 = 1;

/// The kind of a file in its mode.
const KIND: u32 = 0o170_000;
const REGULAR: u32 = 0o100_000;

impl Inner {
    /// Answers everything but reads.
    pub(super) fn reply_of_volume(
        &self,
        shown: &Arc<Shown>,
        volume: &Arc<Volume>,
        request: &Request<'_>,
    ) -> Result<Out, Errno> {
        let (node, lease) = (request.node, &shown.lease);
        let entry = |stat: &Stat| wire::entry(&self.attr(stat), shown.valid());
        let read = |act: &dyn Fn() -> Result<Out, VolumeError>| {
            self.told(shown, volume, node, lease.hold(|rights| rights.list, act))
        };
        let write = |act: &dyn Fn() -> Result<Out, VolumeError>| {
            let done = lease.hold(|rights| rights.write, act);
            if matches!(done, Ok(Ok(_))) {
                lease.count_write(match request.operation {
                    Operation::Write { data, .. } => data.len(),
                    _ => 0,
                });
            }
            self.told(shown, volume, node, done)
        };
        let made = |name: &[u8], new: New<'_>| volume.make(node, name, new);
        match request.operation {
            Operation::Lookup { name } => read(&|| Ok(entry(&volume.lookup(node, name)?))),
            // The root stays visible: without it nobody could even leave it.
            Operation::GetAttr if node == ROOT => {
                let stat = volume.stat(node).map_err(|e| e.errno())?;
                Ok(wire::attributes(&self.attr(&stat), shown.valid()))
            }
            Operation::GetAttr => read(&|| {
                let stat = volume.stat(node)?;
                Ok(wire::attributes(&self.attr(&stat), shown.valid()))
            }),
            Operation::SetAttr(set) if set.gives_away(self.owner) => Err(Errno::PERM),
            Operation::SetAttr(set) => write(&|| {
                let stat = volume.change(node, set.change())?;
                Ok(wire::attributes(&self.attr(&stat), shown.valid()))
            }),
            Operation::ReadLink => read(&|| Ok(wire::link_target(&volume.read_link(node)?))),
            Operation::Symlink { name, target } => {
                write(&|| Ok(entry(&made(name, New::Link { target })?)))
            }
            Operation::MakeNode { mode, .. } if mode & KIND != REGULAR => Err(Errno::PERM),
            Operation::MakeNode { name, mode } => {
                let mode = (mode & 0o7777) as u16;
                write(&|| Ok(entry(&made(name, New::File { mode })?)))
            }
            Operation::MakeDir { name, mode } => {
                let mode = (mode & 0o7777) as u16;
                write(&|| Ok(entry(&made(name, New::Directory { mode })?)))
            }
            Operation::Create { name, mode } => {
                let mode = (mode & 0o7777) as u16;
                write(&|| {
                    let stat = made(name, New::File { mode })?;
                    volume.open(stat.node)?;
                    lease.count_open();
                    Ok(wire::created(&self.attr(&stat), shown.valid()))
                })
            }
            Operation::Unlink { name } => write(&|| {
                volume.remove(node, name, false)?;
                Ok(Out::default())
            }),
            Operation::RemoveDir { name } => write(&|| {
                volume.remove(node, name, true)?;
                Ok(Out::default())
            }),
            Operation::Rename { flags, .. } if flags & !NO_REPLACE != 0 => Err(Errno::INVAL),
            Operation::Rename {
                name,
                to,
                to_name,
                flags,
            } => write(&|| {
                volume.rename((node, name), (to, to_name), flags & NO_REPLACE != 0)?;
                Ok(Out::default())
            }),
            Operation::Link { node: old, name } => {
                write(&|| Ok(entry(&volume.link(old, node, name)?)))
            }
            Operation::Open { write } => {
                let right = |rights: Rights| rights.read && (rights.write || !write);
                let opened = lease.hold(right, || volume.open(node));
                self.told(shown, volume, node, opened)?;
                lease.count_open();
                Ok(wire::opened_as_cached())
            }
            Operation::Release { .. } => {
                volume.release(node);
                Ok(Out::default())
            }
            Operation::Write { offset, data } => write(&|| {
                volume.write(node, data, offset)?;
                Ok(wire::written(data.len()))
            }),
            Operation::Sync => write(&|| {
                volume.commit()?;
                Ok(Out::default())
            }),
            // Anything but a longer file: the caller writes zeros, or does without.
            Operation::Allocate { mode, .. } if mode != 0 => Err(Errno::OPNOTSUPP),
            Operation::Allocate { offset, len, .. } => write(&|| {
                let end = offset.checked_add(len).ok_or(Errno::FBIG)?;
                volume.allocate(node, end)?;
                Ok(Out::default())
            }),
            Operation::OpenDir => {
                let entries = lease.hold(|rights| rights.list, || volume.entries(node));
                let entries = self.told(shown, volume, node, entries)?;
                let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
                let mut listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
                listings.insert(handle, entries.into());
                Ok(wire::opened(handle))
            }
            Operation::ReadDir {
                handle,
                offset,
                size,
            } => read(&|| {
                let mut listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
                if offset == 0 {
                    // From the beginning, perhaps once more: as it is now.
                    listings.insert(handle, volume.entries(node)?.into());
                }
                let entries = listings.get(&handle).ok_or(Errno::BADF)?;
                Ok(list(entries, offset, size))
            }),
            Operation::ReleaseDir { handle } => {
                let mut listings = self.listings.lock().unwrap_or_else(PoisonError::into_inner);
                listings.remove(&handle);
                Ok(Out::default())
            }
            Operation::StatFs => read(&|| {
                let (bytes, left, files) = volume.room()?;
                Ok(wire::statistics(bytes, left, files))
            }),
            Operation::Change => Err(Errno::OPNOTSUPP),
            // A second INIT is no part of the protocol.
            Operation::Init { .. } => Err(Errno::IO),
            _ => Err(Errno::NOSYS),
        }
    }

    /// Reads and answers in one, so that no data is on its way once the lease has ended.
    pub(super) fn read_of_volume(
        &self,
        device: &OwnedFd,
        unique: u64,
        shown: &Arc<Shown>,
        (node, offset, size): (u64, u64, usize),
        data: &mut [u8],
    ) -> Result<(), Errno> {
        let Files::Volume(volume) = &shown.files else {
            return send(device, unique, -Errno::BADF.raw_os_error(), &[]);
        };
        let size = size.min(data.len());
        let data = &mut data[..size];
        let read = shown.lease.hold(
            |rights| rights.read,
            || {
                let read = volume.read(node, data, offset)?;
                shown.lease.count_read(read);
                Ok(send(device, unique, 0, &data[..read]))
            },
        );
        match self.told(shown, volume, node, read) {
            Ok(sent) => sent,
            Err(errno) => send(device, unique, -errno.raw_os_error(), &[]),
        }
    }

    /// Takes back references that the kernel has given up.
    pub(super) fn forget(&self, request: &Request<'_>) {
        let shown = self.shown();
        let Files::Volume(volume) = &shown.files else {
            return;
        };
        match request.operation {
            Operation::Forget { lookups } => volume.forget(request.node, lookups),
            Operation::ForgetMany { pairs } => {
                for (node, lookups) in wire::forgotten(pairs) {
                    volume.forget(node, lookups);
                }
            }
            _ => {}
        }
    }

    /// Commits every few seconds what nobody asks to have committed.
    pub(super) fn commit_now_and_then(&self, shown: &Shown) {
        let Files::Volume(volume) = &shown.files else {
            return;
        };
        let step = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        while !self.stopping.load(Ordering::Acquire) && !shown.lease.has_ended() {
            // A second at most, so that a lease that ended leaves no thread behind for long.
            let mut waited = Duration::ZERO;
            while waited < COMMIT_EVERY && !shown.lease.has_ended() {
                match poll(&mut [PollFd::new(&self.wake, PollFlags::IN)], Some(&step)) {
                    Ok(0) | Err(Errno::INTR) => waited += Duration::from_secs(1),
                    _ => return,
                }
            }
            // What fails now is tried again, and told to whoever asks with fsync(2).
            let _ = shown.lease.hold(|rights| rights.write, || volume.commit());
        }
    }

    /// What the kernel is told of an outcome, and whoever watches for damage.
    fn told<T>(
        &self,
        shown: &Arc<Shown>,
        volume: &Volume,
        node: u64,
        outcome: Result<Result<T, VolumeError>, LeaseError>,
    ) -> Result<T, Errno> {
        match outcome {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => {
                let number = error.errno();
                let damage = match error {
                    VolumeError::Read(error) => Some(error),
                    VolumeError::Vault(VaultError::Tampered { what, object }) => {
                        Some(crate::ReadError::Tampered { what, object })
                    }
                    _ => None,
                };
                if let Some(damage) = damage {
                    let outcome: Result<(), _> = Err(LeaseError::Read(damage));
                    self.pass_on_damage(&shown.lease, &volume.name(node), &outcome);
                }
                Err(number)
            }
            Err(error) => Err(errno(&error)),
        }
    }

    fn attr(&self, stat: &Stat) -> Attr {
        let kind = match stat.kind {
            NodeKind::Directory => 0o040_000,
            NodeKind::File => REGULAR,
            NodeKind::Link => 0o120_000,
        };
        Attr {
            node: stat.node,
            size: stat.len,
            modified: stat.modified,
            changed: stat.changed,
            mode: kind | u32::from(stat.mode),
            links: stat.links,
            owner: self.owner,
        }
    }
}

/// As many entries from this offset on as there is room for.
fn list(entries: &[Entry], offset: u64, size: u32) -> Out {
    let room = (size as usize).min(wire::MAX_READ);
    let mut out = Out::default();
    for ((name, node, kind), next) in entries.iter().zip(1u64..).skip(offset as usize) {
        if !wire::add_entry(&mut out, room, *node, next, *kind, name.as_bytes()) {
            break;
        }
    }
    out
}
