//! The directories and files that a lease's names make.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use super::wire::Attr;
use crate::vault::ObjectInfo;
use crate::volume::NodeKind;

/// The root's number in the protocol.
pub(super) const ROOT: u64 = 1;

/// All nodes, in the order of the names. A number means one node for as long as the file system is
/// mounted, over all leases that it is served under; only the root's is always the same.
pub(super) struct Tree {
    nodes: Vec<Node>,
    /// What is added to the place of a node other than the root, to make its number.
    base: u64,
    bytes: u64,
}

pub(super) struct Node {
    pub(super) parent: u64,
    pub(super) name: String,
    modified: u64,
    pub(super) kind: Kind,
    /// Whether the kernel was ever told of it, and so may have cached it.
    known: AtomicBool,
}

pub(super) enum Kind {
    Directory {
        children: BTreeMap<String, u64>,
    },
    File {
        object: String,
        len: u64,
        executable: bool,
        is_link: bool,
    },
}

impl Node {
    /// Nothing is written here, and who may read is a matter of the lease.
    fn mode(&self) -> u32 {
        match self.kind {
            Kind::Directory { .. } => 0o040_555,
            Kind::File { is_link: true, .. } => 0o120_777,
            Kind::File {
                executable: true, ..
            } => 0o100_555,
            Kind::File { .. } => 0o100_444,
        }
    }

    pub(super) fn kind(&self) -> NodeKind {
        match self.kind {
            Kind::Directory { .. } => NodeKind::Directory,
            Kind::File { is_link: true, .. } => NodeKind::Link,
            Kind::File { .. } => NodeKind::File,
        }
    }
}

impl Tree {
    pub(super) fn new(objects: Vec<ObjectInfo>, directories: &[String]) -> Self {
        Self::numbered_from(ROOT, objects, directories)
    }

    /// The tree of a later lease: none of its nodes has a number that a node of this one has.
    pub(super) fn next(&self, objects: Vec<ObjectInfo>, directories: &[String]) -> Self {
        Self::numbered_from(self.base + self.len(), objects, directories)
    }

    fn numbered_from(base: u64, objects: Vec<ObjectInfo>, directories: &[String]) -> Self {
        let mut tree = Self {
            nodes: Vec::with_capacity(objects.len() + 1),
            base,
            bytes: 0,
        };
        tree.add(
            ROOT,
            "",
            0,
            Kind::Directory {
                children: BTreeMap::new(),
            },
        );
        for name in directories {
            tree.directory(name);
        }
        for object in objects {
            tree.bytes = tree.bytes.saturating_add(object.len);
            let (path, name) = object.name.rsplit_once('/').unwrap_or(("", &object.name));
            let parent = tree.directory(path);
            let file = Kind::File {
                object: object.name.clone(),
                len: object.len,
                executable: object.mode & 0o111 != 0,
                is_link: object.is_link,
            };
            tree.add(parent, name, object.modified, file);
            tree.touch(parent, object.modified);
        }
        tree
    }

    /// The directory of this name, made where there is none.
    fn directory(&mut self, name: &str) -> u64 {
        let mut parent = ROOT;
        for part in name.split('/').filter(|part| !part.is_empty()) {
            let made = || Kind::Directory {
                children: BTreeMap::new(),
            };
            let known = self.child(parent, part.as_bytes());
            parent = known.unwrap_or_else(|| self.add(parent, part, 0, made()));
        }
        parent
    }

    pub(super) fn get(&self, number: u64) -> Option<&Node> {
        self.nodes.get(self.place(number)?)
    }

    fn place(&self, number: u64) -> Option<usize> {
        if number == ROOT {
            return Some(0);
        }
        let place = number.checked_sub(self.base)?;
        usize::try_from(place).ok().filter(|place| *place > 0)
    }

    /// The number of a directory's child.
    pub(super) fn child(&self, directory: u64, name: &[u8]) -> Option<u64> {
        let Kind::Directory { children } = &self.get(directory)?.kind else {
            return None;
        };
        children.get(std::str::from_utf8(name).ok()?).copied()
    }

    pub(super) fn attr(&self, number: u64, owner: (u32, u32)) -> Option<Attr> {
        let node = self.get(number)?;
        node.known.store(true, Ordering::Relaxed);
        let (size, links) = match &node.kind {
            Kind::Directory { .. } => (0, 2),
            Kind::File { len, .. } => (*len, 1),
        };
        Some(Attr {
            node: number,
            size,
            modified: node.modified,
            changed: node.modified,
            mode: node.mode(),
            links,
            owner,
        })
    }

    /// The nodes that the kernel may have cached, with their numbers.
    pub(super) fn known(&self) -> impl Iterator<Item = (u64, &Node)> {
        std::iter::once(ROOT)
            .chain(self.base + 1..)
            .zip(&self.nodes)
            .filter(|(_, node)| node.known.load(Ordering::Relaxed))
    }

    pub(super) fn len(&self) -> u64 {
        self.nodes.len() as u64
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    fn add(&mut self, parent: u64, name: &str, modified: u64, kind: Kind) -> u64 {
        let (name, known) = (name.to_owned(), AtomicBool::new(false));
        let number = match self.len() {
            0 => ROOT,
            place => self.base + place,
        };
        if let Some(Kind::Directory { children }) = self.kind_mut(parent) {
            children.insert(name.clone(), number);
        }
        self.nodes.push(Node {
            parent,
            name,
            modified,
            kind,
            known,
        });
        number
    }

    /// A directory is as young as the youngest file below it.
    fn touch(&mut self, mut directory: u64, modified: u64) {
        loop {
            let place = self.place(directory);
            let Some(node) = place.and_then(|place| self.nodes.get_mut(place)) else {
                return;
            };
            node.modified = node.modified.max(modified);
            if directory == ROOT {
                return;
            }
            directory = node.parent;
        }
    }

    fn kind_mut(&mut self, number: u64) -> Option<&mut Kind> {
        let place = self.place(number)?;
        self.nodes.get_mut(place).map(|node| &mut node.kind)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_become_directories_and_files() {
        let info = |name: &str, modified| ObjectInfo {
            name: name.to_owned(),
            len: 3,
            modified,
            version: 1,
            mode: 0o644,
            is_link: false,
        };
        let tree = Tree::new(vec![info("a/b/c", 7), info("a/b/d", 9), info("e", 1)], &[]);
        let a = tree.child(ROOT, b"a").unwrap();
        let b = tree.child(a, b"b").unwrap();
        let c = tree.child(b, b"c").unwrap();
        assert!(
            matches!(&tree.get(c).unwrap().kind, Kind::File { object, .. } if object == "a/b/c")
        );
        assert_eq!(tree.child(ROOT, b"b"), None);
        assert_eq!(tree.attr(a, (0, 0)).unwrap().modified, 9);
        assert_eq!((tree.len(), tree.bytes()), (6, 9));
        assert_eq!(tree.get(0).map(|n| &n.name), None);
    }
}
