//! A disk that remembers what was asked of it, fails when told to, and can show what a power cut
//! would have left.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::super::disk::{Disk, OsDisk, Slab};

/// How an operation fails. What follows it would work again, which must help nobody.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fault {
    Full,
    Broken,
    /// Half of the bytes are written first.
    Short,
}

impl Fault {
    fn error(self) -> io::Error {
        let errno = match self {
            Fault::Full => rustix::io::Errno::NOSPC,
            Fault::Broken | Fault::Short => rustix::io::Errno::IO,
        };
        errno.into()
    }
}

/// The disk. It writes real files but spares the real syncs.
#[derive(Clone, Default)]
pub(super) struct Faulty(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    ops: Vec<Op>,
    names: HashMap<PathBuf, usize>,
    inodes: usize,
    fault: Option<(usize, Fault)>,
}

#[derive(Clone)]
enum Op {
    Dir(PathBuf),
    /// A name comes to stand for a file, new or renamed; the old name goes.
    Name {
        path: PathBuf,
        inode: usize,
        from: Option<PathBuf>,
    },
    Remove(PathBuf),
    Bytes {
        inode: usize,
        offset: u64,
        bytes: Vec<u8>,
    },
    SyncFile(usize),
    SyncDir(PathBuf),
}

impl Faulty {
    pub(super) fn failing(at: usize, fault: Fault) -> Faulty {
        let disk = Faulty::default();
        disk.0.lock().unwrap().fault = Some((at, fault));
        disk
    }

    /// How many operations were asked for.
    pub(super) fn ops(&self) -> usize {
        self.0.lock().unwrap().ops.len()
    }

    /// How often a file of this name was made or renamed to it.
    pub(super) fn named(&self, name: &str) -> usize {
        let ops = &self.0.lock().unwrap().ops;
        ops.iter()
            .filter(|op| matches!(op, Op::Name { path, .. } if path.ends_with(name)))
            .count()
    }

    fn step(&self, op: impl FnOnce(&mut State) -> Op) -> io::Result<()> {
        let mut state = self.0.lock().unwrap();
        let op = op(&mut state);
        state.ops.push(op);
        match state.fault {
            Some((at, fault)) if state.ops.len() == at => Err(fault.error()),
            _ => Ok(()),
        }
    }

    fn is_short_now(&self) -> bool {
        let state = self.0.lock().unwrap();
        matches!(state.fault, Some((at, Fault::Short)) if at == state.ops.len() + 1)
    }

    /// Puts into `to` what a power cut after the first `count` operations may leave of `from`.
    ///
    /// Synced is synced. Of all other writes each page or sector survives or not, and of the names changed
    /// in each directory any first part, as `seed` will have it.
    pub(super) fn power_cut(&self, count: usize, mut seed: u64, from: &Path, to: &Path) {
        let mut chance = move |of: usize| {
            seed = seed
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (seed >> 33) as usize % of
        };
        // What a disk writes whole, if it writes it: pages, or sectors.
        let whole = [4096, 512][count % 2];
        let ops = self.0.lock().unwrap().ops[..count].to_vec();
        let mut files: BTreeMap<usize, Vec<(Op, bool)>> = BTreeMap::new();
        let mut dirs: BTreeMap<PathBuf, Vec<(Op, bool)>> = BTreeMap::new();
        let durable = |ops: Option<&mut Vec<(Op, bool)>>| {
            ops.into_iter()
                .flatten()
                .for_each(|(_, durable)| *durable = true);
        };
        for op in ops {
            match &op {
                Op::SyncFile(inode) => durable(files.get_mut(inode)),
                Op::SyncDir(path) => durable(dirs.get_mut(path)),
                Op::Bytes { inode, .. } => files.entry(*inode).or_default().push((op, false)),
                Op::Dir(path) | Op::Remove(path) | Op::Name { path, .. } => {
                    let parent = path.parent().unwrap().to_owned();
                    dirs.entry(parent).or_default().push((op, false));
                }
            }
        }
        let mut names: BTreeMap<PathBuf, Option<usize>> = BTreeMap::new();
        for (_, ops) in dirs {
            let synced = ops.iter().take_while(|(_, durable)| *durable).count();
            let kept = synced + chance(ops.len() - synced + 1);
            for (op, _) in ops.into_iter().take(kept) {
                match op {
                    Op::Dir(path) => drop(names.insert(path, None)),
                    Op::Remove(path) => drop(names.remove(&path)),
                    Op::Name { path, inode, from } => {
                        from.map(|from| names.remove(&from));
                        names.insert(path, Some(inode));
                    }
                    _ => unreachable!(),
                }
            }
        }
        // Sorted, so a directory comes before what is in it; what is in a lost one is lost.
        for (path, inode) in names {
            let target = to.join(path.strip_prefix(from).unwrap());
            if !target.parent().unwrap().is_dir() {
                continue;
            }
            let Some(inode) = inode else {
                std::fs::create_dir_all(target).unwrap();
                continue;
            };
            let mut content = Vec::new();
            for (op, durable) in files.get(&inode).into_iter().flatten() {
                let Op::Bytes { offset, bytes, .. } = op else {
                    unreachable!()
                };
                for (place, bytes) in bytes.chunks(whole).enumerate() {
                    let at = *offset as usize + place * whole;
                    if *durable || chance(2) == 0 {
                        content.resize(content.len().max(at + bytes.len()), 0);
                        content[at..at + bytes.len()].copy_from_slice(bytes);
                    }
                }
            }
            std::fs::write(target, content).unwrap();
        }
    }
}

impl Disk for Faulty {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        if !path.is_dir() {
            self.step(|_| Op::Dir(path.to_owned()))?;
        }
        OsDisk::default().create_dir(path)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.step(|state| {
            state.inodes += 1;
            let inode = state.inodes;
            state.names.insert(path.to_owned(), inode);
            Op::Name {
                path: path.to_owned(),
                inode,
                from: None,
            }
        })?;
        let some = if self.is_short_now() {
            &bytes[..bytes.len() / 2]
        } else {
            bytes
        };
        OsDisk::default().write(path, some)?;
        self.step(|state| Op::Bytes {
            inode: state.names[path],
            offset: 0,
            bytes: some.to_vec(),
        })
    }

    fn sync(&self, _root: &Path, paths: &[PathBuf]) -> io::Result<()> {
        paths.iter().try_for_each(|path| {
            self.step(|state| match state.names.get(path) {
                Some(inode) => Op::SyncFile(*inode),
                None => Op::SyncDir(path.clone()),
            })
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(|state| {
            let inode = state.names.remove(from).unwrap();
            state.names.insert(to.to_owned(), inode);
            Op::Name {
                path: to.to_owned(),
                inode,
                from: Some(from.to_owned()),
            }
        })?;
        OsDisk::default().rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step(|state| {
            state.names.remove(path);
            Op::Remove(path.to_owned())
        })?;
        OsDisk::default().remove(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        OsDisk::default().remove_dir(path)?;
        self.step(|_| Op::Remove(path.to_owned()))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn Slab>> {
        let inode = self.0.lock().unwrap().names[path];
        let inner = OsDisk::default().open(path)?;
        Ok(Box::new(FaultySlab {
            disk: self.clone(),
            inode,
            inner,
        }))
    }
}

struct FaultySlab {
    disk: Faulty,
    inode: usize,
    inner: Box<dyn Slab>,
}

impl Slab for FaultySlab {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let some = if self.disk.is_short_now() {
            &bytes[..bytes.len() / 2]
        } else {
            bytes
        };
        self.inner.write_at(some, offset)?;
        self.disk.step(|_| Op::Bytes {
            inode: self.inode,
            offset,
            bytes: some.to_vec(),
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.step(|_| Op::SyncFile(self.inode))
    }

    fn is_at(&self, path: &Path, size: u64) -> io::Result<bool> {
        self.inner.is_at(path, size)
    }
}
