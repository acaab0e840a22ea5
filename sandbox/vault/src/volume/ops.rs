//! What a file system is asked to do, named after the system calls.

use std::sync::atomic::Ordering;

use super::file::{File, WriteError};
use super::tree::{Content, Directory, Kind, Node, ROOT};
use super::{Errno, State, Volume, VolumeError, commit};
use crate::envelope::random_id;
use crate::format::ChunkSize;
use crate::format::index::Record;
use crate::name;

/// What stat(2) tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stat {
    pub(crate) node: u64,
    pub(crate) kind: NodeKind,
    pub(crate) len: u64,
    pub(crate) mode: u16,
    pub(crate) links: u32,
    /// Nanoseconds since the Unix epoch.
    pub(crate) modified: u64,
    pub(crate) changed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NodeKind {
    Directory,
    File,
    Link,
}

/// What chmod(2), truncate(2) and utimensat(2) change; `None` is left as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) mode: Option<u16>,
    pub(crate) len: Option<u64>,
    pub(crate) modified: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Time {
    Now,
    /// Nanoseconds since the Unix epoch.
    At(u64),
}

/// What may be new.
#[derive(Clone, Copy, Debug)]
pub(crate) enum New<'a> {
    File { mode: u16 },
    Directory { mode: u16 },
    Link { target: &'a [u8] },
}

/// An entry of a directory.
pub(crate) type Entry = (String, u64, NodeKind);

impl Volume {
    /// Finds a name; the kernel then holds a reference, until [`Volume::forget`].
    pub(crate) fn lookup(&self, parent: u64, name: &[u8]) -> Result<Stat, VolumeError> {
        let mut state = self.state();
        state.shared()?;
        let child = state.child(parent, name)?.ok_or(Errno::NOENT)?;
        Ok(state.referred(child)?)
    }

    /// Gives references up.
    pub(crate) fn forget(&self, node: u64, lookups: u64) {
        let mut state = self.state();
        if let Some(node) = state.tree.get_mut(node) {
            node.lookups = node.lookups.saturating_sub(lookups);
        }
        self.reap(&mut state, node);
    }

    pub(crate) fn stat(&self, node: u64) -> Result<Stat, VolumeError> {
        let state = self.state();
        // The root stays visible: without it nobody could even leave it.
        if node != ROOT {
            state.shared()?;
        }
        Ok(state.stat(node)?)
    }

    pub(crate) fn change(&self, node: u64, change: Change) -> Result<Stat, VolumeError> {
        let now = self.now();
        let mut state = self.state();
        let shared = state.shared()?;
        let time = |time| match time {
            Time::Now => now,
            Time::At(at) => at,
        };
        if let Some(directory) = state.tree.directory_mut(node) {
            if change.len.is_some() {
                return Err(Errno::ISDIR.into());
            }
            directory.kept = true;
            directory.mode = change.mode.unwrap_or(directory.mode);
            directory.modified = change.modified.map_or(directory.modified, time);
        } else {
            let content = state.content(node)?;
            let mut file = content.write();
            if let Some(len) = change.len {
                file.open(&shared)?;
                self.counted(&mut file, |file| file.set_len(len, now))?;
            }
            file.touch(now);
            let record = &mut file.record;
            record.mode = change.mode.unwrap_or(record.mode);
            record.modified = change.modified.map_or(record.modified, time);
        }
        self.changed();
        Ok(state.stat(node)?)
    }

    /// Makes something new under a name that is free; the kernel then holds a reference.
    pub(crate) fn make(&self, parent: u64, name: &[u8], new: New<'_>) -> Result<Stat, VolumeError> {
        let now = self.now();
        let mut state = self.state();
        let shared = state.shared()?;
        let name = state.free_name(parent, name)?;
        let kind = match new {
            New::Directory { mode } => {
                let mut directory = Directory::new(mode & 0o7777, now);
                directory.kept = true;
                Kind::Directory(directory)
            }
            New::File { mode } => Kind::File(content(shared.chunk, mode, false, now)?),
            New::Link { target } => {
                let content = content(shared.chunk, 0o777, true, now)?;
                self.counted(&mut content.write(), |file| file.write(target, 0, now))?;
                Kind::File(content)
            }
        };
        let node = state.tree.add(parent, &name, kind);
        state.touch(parent, now);
        self.changed();
        Ok(state.referred(node)?)
    }

    /// Gives a file one more name.
    pub(crate) fn link(&self, node: u64, parent: u64, name: &[u8]) -> Result<Stat, VolumeError> {
        let now = self.now();
        let mut state = self.state();
        state.shared()?;
        let content = state.content(node).map_err(|_| Errno::PERM)?;
        if state.tree.get(node).is_none_or(|node| node.links == 0) {
            return Err(Errno::NOENT.into());
        }
        let name = state.free_name(parent, name)?;
        state.tree.link(parent, &name, node);
        content.write().touched = now;
        state.touch(parent, now);
        self.changed();
        Ok(state.referred(node)?)
    }

    pub(crate) fn read_link(&self, node: u64) -> Result<Vec<u8>, VolumeError> {
        let (content, shared) = {
            let state = self.state();
            (state.content(node)?, state.shared()?)
        };
        let mut file = content.write();
        if !file.record.is_link {
            return Err(Errno::INVAL.into());
        }
        file.open(&shared)?;
        let mut target = vec![0; usize::try_from(file.len()).map_err(|_| Errno::IO)?];
        file.read(&mut target, 0)?;
        file.close();
        Ok(target)
    }

    /// Removes a name, of a directory that is empty or of a file; whoever has the file open keeps it.
    pub(crate) fn remove(
        &self,
        parent: u64,
        name: &[u8],
        directory: bool,
    ) -> Result<(), VolumeError> {
        let now = self.now();
        let mut state = self.state();
        state.shared()?;
        let node = state.child(parent, name)?.ok_or(Errno::NOENT)?;
        match (&state.node(node)?.kind, directory) {
            (Kind::Directory(_), false) => return Err(Errno::ISDIR.into()),
            (Kind::File(_), true) => return Err(Errno::NOTDIR.into()),
            (Kind::Directory(directory), true) if !directory.children.is_empty() => {
                return Err(Errno::NOTEMPTY.into());
            }
            _ => {}
        }
        self.unlink(&mut state, parent, &part(name)?, now);
        self.changed();
        Ok(())
    }

    /// Moves a name, in the place of what is there unless `no_replace`.
    pub(crate) fn rename(
        &self,
        (parent, name): (u64, &[u8]),
        (to_parent, to_name): (u64, &[u8]),
        no_replace: bool,
    ) -> Result<(), VolumeError> {
        let now = self.now();
        let mut state = self.state();
        state.shared()?;
        let node = state.child(parent, name)?.ok_or(Errno::NOENT)?;
        let (name, to_name) = (part(name)?, part(to_name)?);
        let is_directory = matches!(state.node(node)?.kind, Kind::Directory(_));
        if is_directory && state.tree.is_within(to_parent, node) {
            return Err(Errno::INVAL.into());
        }
        match state.child(to_parent, to_name.as_bytes())? {
            Some(_) if no_replace => return Err(Errno::EXIST.into()),
            Some(there) if there == node => return Ok(()),
            Some(there) => {
                match (&state.node(there)?.kind, is_directory) {
                    (Kind::Directory(_), false) => return Err(Errno::ISDIR.into()),
                    (Kind::File(_), true) => return Err(Errno::NOTDIR.into()),
                    (Kind::Directory(there), true) if !there.children.is_empty() => {
                        return Err(Errno::NOTEMPTY.into());
                    }
                    _ => {}
                }
                state.fits(to_parent, &to_name)?;
                self.unlink(&mut state, to_parent, &to_name, now);
            }
            None => state.fits(to_parent, &to_name)?,
        }
        state.tree.unlink(parent, &name);
        state.tree.link(to_parent, &to_name, node);
        state.touch(parent, now);
        state.touch(to_parent, now);
        self.changed();
        Ok(())
    }

    /// Opens a file, until [`Volume::release`].
    pub(crate) fn open(&self, node: u64) -> Result<(), VolumeError> {
        let (content, shared) = {
            let mut state = self.state();
            let opened = (state.content(node)?, state.shared()?);
            state.tree.get_mut(node).ok_or(Errno::NOENT)?.opens += 1;
            opened
        };
        let opened = content.write().open(&shared);
        if opened.is_err() {
            self.release(node);
        }
        Ok(opened?)
    }

    pub(crate) fn release(&self, node: u64) {
        let mut state = self.state();
        let Some(found) = state.tree.get_mut(node) else {
            return;
        };
        found.opens = found.opens.saturating_sub(1);
        if let (0, Kind::File(content)) = (found.opens, &found.kind) {
            content.write().close();
        }
        self.reap(&mut state, node);
    }

    pub(crate) fn read(
        &self,
        node: u64,
        buf: &mut [u8],
        offset: u64,
    ) -> Result<usize, VolumeError> {
        let (content, shared) = {
            let state = self.state();
            (state.content(node)?, state.shared()?)
        };
        {
            let file = content.read();
            if file.is_open() {
                return Ok(file.read(buf, offset)?);
            }
        }
        let mut file = content.write();
        file.open(&shared)?;
        Ok(file.read(buf, offset)?)
    }

    pub(crate) fn write(&self, node: u64, data: &[u8], offset: u64) -> Result<(), VolumeError> {
        let now = self.now();
        let (content, shared) = {
            let state = self.state();
            (state.content(node)?, state.shared()?)
        };
        {
            let mut file = content.write();
            file.open(&shared)?;
            self.counted(&mut file, |file| file.write(data, offset, now))?;
        }
        self.bytes.fetch_add(data.len() as u64, Ordering::AcqRel);
        self.changed();
        self.keep_within_limits()
    }

    /// Has a file be at least this long, as posix_fallocate(3) asks.
    pub(crate) fn allocate(&self, node: u64, end: u64) -> Result<(), VolumeError> {
        let len = self.stat(node)?.len;
        if end > len {
            let change = Change {
                len: Some(end),
                ..Change::default()
            };
            self.change(node, change)?;
        }
        Ok(())
    }

    /// What is in a directory now, `.` and `..` included.
    pub(crate) fn entries(&self, node: u64) -> Result<Vec<Entry>, VolumeError> {
        let state = self.state();
        state.shared()?;
        let found = state.node(node)?;
        let Kind::Directory(directory) = &found.kind else {
            return Err(Errno::NOTDIR.into());
        };
        let parent = if node == ROOT { ROOT } else { found.place.0 };
        let dots = [(".", node), ("..", parent)];
        let dots = dots.map(|(name, node)| (name.to_owned(), node, NodeKind::Directory));
        let children = directory.children.iter().map(|(name, child)| {
            let kind = state.stat(*child).map_or(NodeKind::File, |stat| stat.kind);
            (name.clone(), *child, kind)
        });
        Ok(dots.into_iter().chain(children).collect())
    }

    /// Bytes in all, bytes left, and nodes.
    pub(crate) fn room(&self) -> Result<(u64, u64, u64), VolumeError> {
        let state = self.state();
        let room = state.shared()?.store.room();
        let (all, left) = room.map_err(VolumeError::Refused)?;
        Ok((all, left, state.tree.len()))
    }

    /// Nodes that the kernel refers to, each with a name it may have cached and that name's directory.
    pub(crate) fn known(&self) -> Vec<(u64, u64, String)> {
        let state = self.state();
        let known = state.tree.nodes();
        let known = known.filter(|(number, node)| node.lookups > 0 || *number == ROOT);
        known
            .map(|(number, node)| (number, node.place.0, node.place.1.clone()))
            .collect()
    }

    /// The name of a node in the vault, for messages.
    pub(crate) fn name(&self, node: u64) -> String {
        self.state().tree.name(node)
    }

    fn unlink(&self, state: &mut State, parent: u64, name: &str, now: u64) {
        let Some(node) = state.tree.unlink(parent, name) else {
            return;
        };
        if let Ok(content) = state.content(node) {
            content.write().touched = now;
        }
        state.touch(parent, now);
        self.reap(state, node);
    }

    fn reap(&self, state: &mut State, node: u64) {
        let Some(content) = state.tree.reap(node) else {
            return;
        };
        let mut file = content.write();
        self.unsealed.fetch_sub(file.unsealed(), Ordering::AcqRel);
        file.forget();
        if let Some(shared) = &state.shared {
            commit::discard(shared, std::mem::take(&mut file.fresh));
        }
    }

    /// Changes a file, and counts what of it is not sealed.
    fn counted(
        &self,
        file: &mut File,
        act: impl FnOnce(&mut File) -> Result<(), WriteError>,
    ) -> Result<(), VolumeError> {
        let before = file.unsealed();
        let outcome = act(file);
        let after = file.unsealed();
        self.unsealed
            .fetch_add(after.saturating_sub(before), Ordering::AcqRel);
        self.unsealed
            .fetch_sub(before.saturating_sub(after), Ordering::AcqRel);
        outcome.map_err(|error| match error {
            WriteError::TooLarge => Errno::FBIG.into(),
            WriteError::Read(error) => VolumeError::Read(error),
        })
    }
}

impl State {
    fn node(&self, number: u64) -> Result<&Node, Errno> {
        self.tree.get(number).ok_or(Errno::NOENT)
    }

    fn child(&self, parent: u64, name: &[u8]) -> Result<Option<u64>, Errno> {
        let Kind::Directory(directory) = &self.node(parent)?.kind else {
            return Err(Errno::NOTDIR);
        };
        let name = std::str::from_utf8(name).ok();
        Ok(name.and_then(|name| directory.children.get(name)).copied())
    }

    /// A name that can be given in this directory, and is not.
    fn free_name(&self, parent: u64, name: &[u8]) -> Result<String, Errno> {
        if self.child(parent, name)?.is_some() {
            return Err(Errno::EXIST);
        }
        // A directory that was removed takes nothing in.
        if parent != ROOT && self.node(parent)?.links == 0 {
            return Err(Errno::NOENT);
        }
        let name = part(name)?;
        self.fits(parent, &name)?;
        Ok(name)
    }

    /// Whether a name in this directory is short enough for the vault.
    fn fits(&self, parent: u64, name: &str) -> Result<(), Errno> {
        let whole = self.tree.name(parent).len() + 1 + name.len();
        if whole > name::MAX_LEN {
            return Err(Errno::NAMETOOLONG);
        }
        Ok(())
    }

    fn stat(&self, number: u64) -> Result<Stat, Errno> {
        let node = self.node(number)?;
        Ok(match &node.kind {
            Kind::Directory(directory) => Stat {
                node: number,
                kind: NodeKind::Directory,
                len: 0,
                mode: directory.mode,
                links: 2,
                modified: directory.modified,
                changed: directory.modified,
            },
            Kind::File(content) => {
                let file = content.read();
                Stat {
                    node: number,
                    kind: if file.record.is_link {
                        NodeKind::Link
                    } else {
                        NodeKind::File
                    },
                    len: file.len(),
                    mode: file.record.mode,
                    links: node.links,
                    modified: file.record.modified,
                    changed: file.touched,
                }
            }
        })
    }

    /// A node that the kernel is told of, and so refers to.
    fn referred(&mut self, number: u64) -> Result<Stat, Errno> {
        let stat = self.stat(number)?;
        self.tree.get_mut(number).ok_or(Errno::NOENT)?.lookups += 1;
        Ok(stat)
    }

    fn touch(&mut self, directory: u64, now: u64) {
        if let Some(directory) = self.tree.directory_mut(directory) {
            directory.modified = now;
        }
    }
}

/// A name that a vault can keep.
fn part(name: &[u8]) -> Result<String, Errno> {
    let text = std::str::from_utf8(name).map_err(|_| Errno::ILSEQ)?;
    match name::check(text) {
        Err(_) if text.len() > 255 => Err(Errno::NAMETOOLONG),
        Err(_) => Err(Errno::INVAL),
        Ok(()) if text.contains('/') => Err(Errno::INVAL),
        Ok(()) => Ok(text.to_owned()),
    }
}

/// A file with nothing in it.
fn content(chunk: ChunkSize, mode: u16, is_link: bool, now: u64) -> Result<Content, VolumeError> {
    let content = Content::new(Record {
        object_id: random_id()?,
        version: 0,
        len: 0,
        modified: now,
        mode: mode & 0o7777,
        is_link,
        chunk,
        extents: Vec::new(),
        runs: Vec::new(),
    });
    content.write().changed = true;
    Ok(content)
}
