//! The FUSE protocol, as far as a vault speaks it.
//!
//! Follows `include/uapi/linux/fuse.h` of the Linux kernel, protocol 7.28 to 7.31. Numbers are in
//! the machine's byte order. Parsing is total: what is too short or unknown is answered, not obeyed.

use std::time::Duration;

use crate::volume::{Change, NodeKind, Time};

/// The protocol we speak. Later kernels speak it too.
pub(super) const MAJOR: u32 = 7;
const MINOR: u32 = 31;
/// The first with FUSE_MAX_PAGES (Linux 4.20).
const LEAST_MINOR: u32 = 28;

/// Most bytes of a read: the kernel asks for no more, and no more is answered.
pub(super) const MAX_READ: usize = 1 << 20;

/// Bytes that any request fits in where nothing is written. The kernel demands 8 KiB at least.
pub(super) const REQUEST_LEN: usize = 16 * 1024;

/// Bytes that any request fits in where the largest write is [`MAX_READ`].
pub(super) const WRITE_REQUEST_LEN: usize = MAX_READ + REQUEST_LEN;

const IN_HEADER_LEN: usize = 40;
const OUT_HEADER_LEN: usize = 16;

/// One request of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request<'a> {
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) operation: Operation<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation<'a> {
    Lookup {
        name: &'a [u8],
    },
    GetAttr,
    Open {
        write: bool,
    },
    Read {
        handle: u64,
        offset: u64,
        size: u32,
    },
    StatFs,
    Release {
        handle: u64,
    },
    Init {
        major: u32,
        minor: u32,
        flags: u32,
    },
    OpenDir,
    ReadDir {
        handle: u64,
        offset: u64,
        size: u32,
    },
    ReleaseDir {
        handle: u64,
    },
    Destroy,
    Forget {
        lookups: u64,
    },
    /// Pairs of a node and a count, 16 bytes each.
    ForgetMany {
        pairs: &'a [u8],
    },
    /// Wants no answer: interrupt.
    Silent,
    SetAttr(SetAttr),
    ReadLink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    MakeNode {
        name: &'a [u8],
        mode: u32,
    },
    MakeDir {
        name: &'a [u8],
        mode: u32,
    },
    Create {
        name: &'a [u8],
        mode: u32,
    },
    Unlink {
        name: &'a [u8],
    },
    RemoveDir {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        to: u64,
        to_name: &'a [u8],
        flags: u32,
    },
    Link {
        node: u64,
        name: &'a [u8],
    },
    Write {
        offset: u64,
        data: &'a [u8],
    },
    Sync,
    Allocate {
        offset: u64,
        len: u64,
        mode: u32,
    },
    /// Would change something in a way that no vault does.
    Change,
    /// Anything else: the kernel does without.
    Unknown,
}

/// What SETATTR carries; which of it is meant, says `valid`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SetAttr {
    valid: u32,
    size: u64,
    modified: u64,
    mode: u32,
    owner: (u32, u32),
}

impl SetAttr {
    fn parse(body: &[u8]) -> Option<Self> {
        let (seconds, nanos) = (u64_at(body, 40)?, u32_at(body, 60)?);
        Some(Self {
            valid: u32_at(body, 0)?,
            size: u64_at(body, 16)?,
            modified: seconds
                .saturating_mul(1_000_000_000)
                .saturating_add(nanos.into()),
            mode: u32_at(body, 68)?,
            owner: (u32_at(body, 76)?, u32_at(body, 80)?),
        })
    }

    pub(super) fn change(&self) -> Change {
        let has = |bit: u32| self.valid & bit != 0;
        let modified = match (has(MTIME), has(MTIME_NOW)) {
            (_, true) => Some(Time::Now),
            (true, false) => Some(Time::At(self.modified)),
            (false, false) => None,
        };
        Change {
            mode: has(MODE).then_some((self.mode & 0o7777) as u16),
            len: has(SIZE).then_some(self.size),
            modified,
        }
    }

    /// Whether it gives the file to somebody other than this owner.
    pub(super) fn gives_away(&self, owner: (u32, u32)) -> bool {
        (self.valid & UID != 0 && self.owner.0 != owner.0)
            || (self.valid & GID != 0 && self.owner.1 != owner.1)
    }
}

// FATTR_* of the protocol.
const MODE: u32 = 1;
const UID: u32 = 1 << 1;
const GID: u32 = 1 << 2;
const SIZE: u32 = 1 << 3;
const MTIME: u32 = 1 << 5;
const MTIME_NOW: u32 = 1 << 8;

/// Parses a request; `None` if it has not even a header, so that nobody could be answered.
pub(super) fn parse(bytes: &[u8]) -> Option<Request<'_>> {
    let body = bytes.get(IN_HEADER_LEN..)?;
    let (unique, node) = (u64_at(bytes, 8)?, u64_at(bytes, 16)?);
    let operation = operation(u32_at(bytes, 4)?, body).unwrap_or(Operation::Unknown);
    Some(Request {
        unique,
        node,
        operation,
    })
}

fn operation(opcode: u32, body: &[u8]) -> Option<Operation<'_>> {
    Some(match opcode {
        1 => Operation::Lookup {
            name: body.strip_suffix(&[0])?,
        },
        2 => Operation::Forget {
            lookups: u64_at(body, 0)?,
        },
        42 => Operation::ForgetMany {
            pairs: body.get(8..)?,
        },
        // INTERRUPT
        36 => Operation::Silent,
        3 => Operation::GetAttr,
        // O_ACCMODE of the flags: anything but O_RDONLY writes.
        14 => Operation::Open {
            write: u32_at(body, 0)? & 3 != 0,
        },
        15 => Operation::Read {
            handle: u64_at(body, 0)?,
            offset: u64_at(body, 8)?,
            size: u32_at(body, 16)?,
        },
        17 => Operation::StatFs,
        18 => Operation::Release {
            handle: u64_at(body, 0)?,
        },
        26 => Operation::Init {
            major: u32_at(body, 0)?,
            minor: u32_at(body, 4)?,
            flags: u32_at(body, 12).unwrap_or(0),
        },
        27 => Operation::OpenDir,
        28 => Operation::ReadDir {
            handle: u64_at(body, 0)?,
            offset: u64_at(body, 8)?,
            size: u32_at(body, 16)?,
        },
        29 => Operation::ReleaseDir {
            handle: u64_at(body, 0)?,
        },
        38 => Operation::Destroy,
        4 => Operation::SetAttr(SetAttr::parse(body)?),
        5 => Operation::ReadLink,
        6 => {
            let (name, target) = two_names(body)?;
            Operation::Symlink { name, target }
        }
        8 => Operation::MakeNode {
            mode: u32_at(body, 0)?,
            name: body.get(16..)?.strip_suffix(&[0])?,
        },
        9 => Operation::MakeDir {
            mode: u32_at(body, 0)?,
            name: body.get(8..)?.strip_suffix(&[0])?,
        },
        10 => Operation::Unlink {
            name: body.strip_suffix(&[0])?,
        },
        11 => Operation::RemoveDir {
            name: body.strip_suffix(&[0])?,
        },
        12 => rename(u64_at(body, 0)?, 0, body.get(8..)?)?,
        45 => rename(u64_at(body, 0)?, u32_at(body, 8)?, body.get(16..)?)?,
        13 => Operation::Link {
            node: u64_at(body, 0)?,
            name: body.get(8..)?.strip_suffix(&[0])?,
        },
        16 => {
            let size = u32_at(body, 16)? as usize;
            Operation::Write {
                offset: u64_at(body, 8)?,
                data: body.get(40..)?.get(..size)?,
            }
        }
        // FSYNC, FSYNCDIR
        20 | 30 => Operation::Sync,
        35 => Operation::Create {
            mode: u32_at(body, 4)?,
            name: body.get(16..)?.strip_suffix(&[0])?,
        },
        43 => Operation::Allocate {
            offset: u64_at(body, 8)?,
            len: u64_at(body, 16)?,
            mode: u32_at(body, 24)?,
        },
        // SETXATTR, REMOVEXATTR, COPY_FILE_RANGE, TMPFILE
        21 | 24 | 47 | 51 => Operation::Change,
        _ => Operation::Unknown,
    })
}

fn rename(to: u64, flags: u32, names: &[u8]) -> Option<Operation<'_>> {
    let (name, to_name) = two_names(names)?;
    Some(Operation::Rename {
        name,
        to,
        to_name,
        flags,
    })
}

/// Two strings, each with its zero.
fn two_names(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let bytes = bytes.strip_suffix(&[0])?;
    let zero = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..zero], &bytes[zero + 1..]))
}

/// The nodes of a BATCH_FORGET, each with how many references are given up.
pub(super) fn forgotten(pairs: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    let pairs = pairs.chunks_exact(16);
    pairs.filter_map(|pair| Some((u64_at(pair, 0)?, u64_at(pair, 8)?)))
}

/// What the kernel is told about a file or directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attr {
    pub(super) node: u64,
    pub(super) size: u64,
    /// Nanoseconds since the Unix epoch.
    pub(super) modified: u64,
    pub(super) changed: u64,
    /// Kind and permissions, as in stat(2).
    pub(super) mode: u32,
    pub(super) links: u32,
    pub(super) owner: (u32, u32),
}

impl Attr {
    fn write(&self, out: &mut Out) {
        let cut = |time: u64| (time / 1_000_000_000, (time % 1_000_000_000) as u32);
        let ((seconds, nanos), (changed, changed_nanos)) = (cut(self.modified), cut(self.changed));
        out.u64(self.node)
            .u64(self.size)
            .u64(self.size.div_ceil(512));
        out.u64(seconds).u64(seconds).u64(changed);
        out.u32(nanos).u32(nanos).u32(changed_nanos);
        out.u32(self.mode)
            .u32(self.links)
            .u32(self.owner.0)
            .u32(self.owner.1)
            .u32(0)
            .u32(4096)
            .u32(0);
    }
}

/// The answer to INIT; `None` if the kernel is too old. A kernel with a later major version asks
/// again in ours.
pub(super) fn init(major: u32, minor: u32, flags: u32, writes: bool) -> Option<Out> {
    /// ASYNC_READ, BIG_WRITES, PARALLEL_DIROPS, MAX_PAGES.
    const FLAGS: u32 = 1 | 1 << 5 | 1 << 18 | 1 << 22;
    let mut out = Out::default();
    if major > MAJOR {
        out.u32(MAJOR).u32(MINOR).bytes(&[0; 56]);
        return Some(out);
    }
    if major < MAJOR || minor < LEAST_MINOR {
        return None;
    }
    out.u32(MAJOR)
        .u32(minor.min(MINOR))
        // The kernel keeps to what the mount has, which may become more: see `super::mount`.
        .u32(MAX_READ as u32)
        .u32(flags & FLAGS);
    // max_background, congestion_threshold, max_write (or the least allowed), time_gran, max_pages
    out.u16(64)
        .u16(48)
        .u32(if writes { MAX_READ as u32 } else { 4096 })
        .u32(1)
        .u16((MAX_READ / 4096) as u16)
        .u16(0)
        .bytes(&[0; 32]);
    Some(out)
}

/// The answer to LOOKUP.
pub(super) fn entry(attr: &Attr, valid: Duration) -> Out {
    let mut out = Out::default();
    out.u64(attr.node)
        .u64(0)
        .u64(valid.as_secs())
        .u64(valid.as_secs());
    out.u32(valid.subsec_nanos()).u32(valid.subsec_nanos());
    attr.write(&mut out);
    out
}

/// The answer to GETATTR.
pub(super) fn attributes(attr: &Attr, valid: Duration) -> Out {
    let mut out = Out::default();
    out.u64(valid.as_secs()).u32(valid.subsec_nanos()).u32(0);
    attr.write(&mut out);
    out
}

/// The answer to OPEN and OPENDIR. No flags; see the top of [`super`].
pub(super) fn opened(handle: u64) -> Out {
    let mut out = Out::default();
    out.u64(handle).u32(0).u32(0);
    out
}

/// The answer to OPEN of a file that only the kernel's own callers change: what it cached is good.
pub(super) fn opened_as_cached() -> Out {
    const KEEP_CACHE: u32 = 1 << 1;
    let mut out = Out::default();
    out.u64(0).u32(KEEP_CACHE).u32(0);
    out
}

/// The answer to CREATE.
pub(super) fn created(attr: &Attr, valid: Duration) -> Out {
    let mut out = entry(attr, valid);
    out.bytes(opened_as_cached().as_slice());
    out
}

/// The answer to READLINK.
pub(super) fn link_target(target: &[u8]) -> Out {
    let mut out = Out::default();
    out.bytes(target);
    out
}

/// The answer to WRITE.
pub(super) fn written(len: usize) -> Out {
    let mut out = Out::default();
    out.u32(len as u32).u32(0);
    out
}

/// The answer to STATFS.
pub(super) fn statistics(bytes: u64, left: u64, files: u64) -> Out {
    let left = left / 4096;
    let mut out = Out::default();
    out.u64(bytes.div_ceil(4096))
        .u64(left)
        .u64(left)
        .u64(files)
        .u64(left);
    out.u32(4096).u32(255).u32(4096).u32(0).bytes(&[0; 24]);
    out
}

/// Adds a directory entry; `false` if `room` does not hold it. `next` is the offset to go on from.
pub(super) fn add_entry(
    out: &mut Out,
    room: usize,
    node: u64,
    next: u64,
    kind: NodeKind,
    name: &[u8],
) -> bool {
    let len = (24 + name.len()).next_multiple_of(8);
    if out.0.len() + len > room {
        return false;
    }
    // DT_DIR, DT_REG, DT_LNK
    let kind = match kind {
        NodeKind::Directory => 4,
        NodeKind::File => 8,
        NodeKind::Link => 10,
    };
    out.u64(node)
        .u64(next)
        .u32(name.len() as u32)
        .u32(kind)
        .bytes(name);
    out.0.resize(out.0.len().next_multiple_of(8), 0);
    true
}

/// Has the kernel drop what it cached of a node: attributes and pages, mapped ones too.
pub(super) fn forget_node(node: u64) -> (i32, Out) {
    let mut out = Out::default();
    out.u64(node).u64(0).u64(0);
    (2, out)
}

/// Has the kernel drop a name it looked up.
pub(super) fn forget_entry(parent: u64, name: &[u8]) -> (i32, Out) {
    let mut out = Out::default();
    out.u64(parent)
        .u32(name.len() as u32)
        .u32(0)
        .bytes(name)
        .bytes(&[0]);
    (3, out)
}

/// The header of an answer: `error` is zero or a negative errno, or the code of a notification (then
/// `unique` is zero).
pub(super) fn header(unique: u64, error: i32, body: usize) -> [u8; OUT_HEADER_LEN] {
    let mut header = [0; OUT_HEADER_LEN];
    header[..4].copy_from_slice(&((OUT_HEADER_LEN + body) as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&error.to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}

/// The body of an answer.
#[derive(Default)]
pub(super) struct Out(Vec<u8>);

impl Out {
    pub(super) fn as_slice(&self) -> &[u8] {
        &self.0
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_ne_bytes())
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u32::from_ne_bytes)
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u64::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parsing_is_total(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), code in 0u32..60) {
            if let Some(field) = bytes.get_mut(4..8) {
                field.copy_from_slice(&code.to_ne_bytes());
            }
            prop_assert_eq!(parse(&bytes).is_some(), bytes.len() >= IN_HEADER_LEN);
        }
    }

    #[test]
    fn answers_have_the_lengths_that_the_kernel_checks() {
        let attr = Attr {
            node: 1,
            size: 0,
            modified: 0,
            changed: 0,
            mode: 0o040_555,
            links: 2,
            owner: (0, 0),
        };
        assert_eq!(entry(&attr, Duration::ZERO).0.len(), 128);
        assert_eq!(attributes(&attr, Duration::ZERO).0.len(), 104);
        assert_eq!(opened(1).0.len(), 16);
        assert_eq!(created(&attr, Duration::ZERO).0.len(), 144);
        assert_eq!(written(1).0.len(), 8);
        assert_eq!(statistics(1, 0, 1).0.len(), 80);
        assert_eq!(init(7, 40, 0, true).map(|out| out.0.len()), Some(64));
        assert_eq!(init(8, 0, 0, false).map(|out| out.0.len()), Some(64));
        assert!(init(7, 27, 0, true).is_none() && init(6, 99, 0, true).is_none());
    }
}
