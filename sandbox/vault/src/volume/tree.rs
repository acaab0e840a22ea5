//! The names of a mounted vault, and the nodes that they lead to.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::file::File;
use crate::format::index::{self, DIRECTORY_MODE, Index, Record};

/// The root's number.
pub(crate) const ROOT: u64 = 1;

/// All nodes. A number means one node and is never given again.
pub(super) struct Tree {
    nodes: HashMap<u64, Node>,
    next: u64,
}

pub(super) struct Node {
    pub(super) kind: Kind,
    /// Names that lead here.
    pub(super) links: u32,
    /// References that the kernel holds, by its own count.
    pub(super) lookups: u64,
    pub(super) opens: u64,
    /// A name that led here last, and its directory.
    pub(super) place: (u64, String),
}

pub(super) enum Kind {
    Directory(Directory),
    File(Content),
}

pub(super) struct Directory {
    pub(super) children: BTreeMap<String, u64>,
    pub(super) mode: u16,
    pub(super) modified: u64,
    /// Whether it is more than a part of other names.
    pub(super) kept: bool,
}

/// What is in a file, shared with whoever reads it just now.
#[derive(Clone)]
pub(super) struct Content(Arc<RwLock<File>>);

impl Content {
    pub(super) fn new(record: Record) -> Self {
        Self(Arc::new(RwLock::new(File::new(record))))
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, File> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, File> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tree {
    /// The tree of this index. Numbers other than the root's are `first` and above.
    pub(super) fn new(index: &Index, first: u64) -> Self {
        let mut tree = Self {
            nodes: HashMap::new(),
            next: first.max(ROOT + 1),
        };
        let root = Kind::Directory(Directory::new(DIRECTORY_MODE, 0));
        tree.nodes
            .insert(ROOT, Node::new(root, (ROOT, String::new())));
        for (name, kept) in &index.directories {
            let number = tree.directory(name, kept.modified);
            if let Some(directory) = number.and_then(|number| tree.directory_mut(number)) {
                (directory.mode, directory.modified) = (kept.mode, kept.modified);
                directory.kept = true;
            }
        }
        // Names of one object whose files are the same are one file: hard links.
        let mut known: HashMap<_, u64> = HashMap::new();
        for (name, record) in index.iter() {
            let (path, last) = name.rsplit_once('/').unwrap_or(("", name));
            let Some(parent) = tree.directory(path, record.modified) else {
                continue;
            };
            let files: Vec<_> = record.extents.iter().map(|e| e.file_id).collect();
            let same = (record.object_id, record.version, files);
            match known.get(&same) {
                Some(number) => tree.link(parent, last, *number),
                None => {
                    let content = Content::new(record.clone());
                    let number = tree.add(parent, last, Kind::File(content));
                    known.insert(same, number);
                }
            }
        }
        tree
    }

    /// The directory of this name, made where there is none; `None` below a file.
    fn directory(&mut self, name: &str, modified: u64) -> Option<u64> {
        let mut number = ROOT;
        for part in name.split('/').filter(|part| !part.is_empty()) {
            let directory = self.directory_mut(number)?;
            directory.modified = directory.modified.max(modified);
            number = match directory.children.get(part) {
                Some(child) => *child,
                None => {
                    let made = Directory::new(DIRECTORY_MODE, modified);
                    self.add(number, part, Kind::Directory(made))
                }
            };
        }
        Some(number)
    }

    pub(super) fn get(&self, number: u64) -> Option<&Node> {
        self.nodes.get(&number)
    }

    pub(super) fn get_mut(&mut self, number: u64) -> Option<&mut Node> {
        self.nodes.get_mut(&number)
    }

    pub(super) fn directory_mut(&mut self, number: u64) -> Option<&mut Directory> {
        match &mut self.nodes.get_mut(&number)?.kind {
            Kind::Directory(directory) => Some(directory),
            Kind::File(_) => None,
        }
    }

    /// Adds a node with one name.
    pub(super) fn add(&mut self, parent: u64, name: &str, kind: Kind) -> u64 {
        let number = self.next;
        self.next += 1;
        let place = (parent, name.to_owned());
        self.nodes.insert(number, Node::new(kind, place));
        self.link(parent, name, number);
        number
    }

    /// Gives a node one more name.
    pub(super) fn link(&mut self, parent: u64, name: &str, number: u64) {
        if let Some(node) = self.nodes.get_mut(&number) {
            node.links += 1;
            node.place = (parent, name.to_owned());
        }
        if let Some(directory) = self.directory_mut(parent) {
            directory.children.insert(name.to_owned(), number);
        }
    }

    /// Takes a name away; returns the node it led to.
    pub(super) fn unlink(&mut self, parent: u64, name: &str) -> Option<u64> {
        let directory = self.directory_mut(parent)?;
        let number = directory.children.remove(name)?;
        // It stays, also when it was only a part of the names below it.
        directory.kept = true;
        if let Some(node) = self.nodes.get_mut(&number) {
            node.links = node.links.saturating_sub(1);
        }
        Some(number)
    }

    /// Drops a node that nothing leads to any more and nobody uses; returns its content.
    pub(super) fn reap(&mut self, number: u64) -> Option<Content> {
        let node = self.nodes.get(&number)?;
        if node.links > 0 || node.lookups > 0 || node.opens > 0 || number == ROOT {
            return None;
        }
        match self.nodes.remove(&number)?.kind {
            Kind::File(content) => Some(content),
            Kind::Directory(_) => None,
        }
    }

    /// Whether `inner` is `outer`, or below it.
    pub(super) fn is_within(&self, mut inner: u64, outer: u64) -> bool {
        while inner != outer {
            match self.nodes.get(&inner) {
                Some(node) if inner != ROOT => inner = node.place.0,
                _ => return false,
            }
        }
        true
    }

    /// The name of a node in the vault, as far as it has one.
    pub(super) fn name(&self, mut number: u64) -> String {
        let mut parts = Vec::new();
        while let Some(node) = self.nodes.get(&number).filter(|_| number != ROOT) {
            parts.push(node.place.1.as_str());
            number = node.place.0;
        }
        parts.reverse();
        parts.join("/")
    }

    /// Every node.
    pub(super) fn nodes(&self) -> impl Iterator<Item = (u64, &Node)> {
        self.nodes.iter().map(|(number, node)| (*number, node))
    }

    /// Every file once.
    pub(super) fn files(&self) -> impl Iterator<Item = (u64, &Content)> {
        self.nodes().filter_map(|(number, node)| match &node.kind {
            Kind::File(content) => Some((number, content)),
            Kind::Directory(_) => None,
        })
    }

    pub(super) fn len(&self) -> u64 {
        self.nodes.len() as u64
    }

    /// A number that no node has had.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// What a commit writes.
    pub(super) fn index(&self) -> Index {
        let mut index = Index::new();
        let mut due = vec![(ROOT, String::new())];
        while let Some((number, name)) = due.pop() {
            let Some(Node {
                kind: Kind::Directory(directory),
                ..
            }) = self.nodes.get(&number)
            else {
                continue;
            };
            if number != ROOT && (directory.kept || directory.children.is_empty()) {
                let (mode, modified) = (directory.mode, directory.modified);
                let kept = index::Directory { mode, modified };
                index.directories.insert(name.clone(), kept);
            }
            for (part, child) in &directory.children {
                let below = if name.is_empty() {
                    part.clone()
                } else {
                    format!("{name}/{part}")
                };
                match self.nodes.get(child).map(|node| &node.kind) {
                    Some(Kind::File(content)) => {
                        index.insert(below, content.read().record.clone());
                    }
                    Some(Kind::Directory(_)) => due.push((*child, below)),
                    None => {}
                }
            }
        }
        index
    }
}

impl Node {
    fn new(kind: Kind, place: (u64, String)) -> Self {
        Self {
            kind,
            links: 0,
            lookups: 0,
            opens: 0,
            place,
        }
    }
}

impl Directory {
    pub(super) fn new(mode: u16, modified: u64) -> Self {
        Self {
            children: BTreeMap::new(),
            mode,
            modified,
            kept: false,
        }
    }
}
