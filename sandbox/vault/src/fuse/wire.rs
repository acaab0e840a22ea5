//! The FUSE protocol, as far as a read-only file system speaks it.
//!
//! Follows `include/uapi/linux/fuse.h` of the Linux kernel, protocol 7.28 to 7.31. Numbers are in
//! the machine's byte order. Parsing is total: what is too short or unknown is answered, not obeyed.

use std::time::Duration;

/// The protocol we speak. Later kernels speak it too.
pub(super) const MAJOR: u32 = 7;
const MINOR: u32 = 31;
/// The first with FUSE_MAX_PAGES (Linux 4.20).
const LEAST_MINOR: u32 = 28;

/// Most bytes of a read: the kernel asks for no more, and no more is answered.
pub(super) const MAX_READ: usize = 1 << 20;

/// Bytes that any request fits in, since nothing is written. The kernel demands 8 KiB at least.
pub(super) const REQUEST_LEN: usize = 16 * 1024;

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
        readahead: u32,
        flags: u32,
    },
    OpenDir,
    ReadDir {
        offset: u64,
        size: u32,
    },
    ReleaseDir,
    Destroy,
    /// Wants no answer: forget, interrupt.
    Silent,
    /// Would change something.
    Change,
    /// Anything else: the kernel does without.
    Unknown,
}

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
        // FORGET, INTERRUPT, BATCH_FORGET
        2 | 36 | 42 => Operation::Silent,
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
            readahead: u32_at(body, 8).unwrap_or(0),
            flags: u32_at(body, 12).unwrap_or(0),
        },
        27 => Operation::OpenDir,
        28 => Operation::ReadDir {
            offset: u64_at(body, 8)?,
            size: u32_at(body, 16)?,
        },
        29 => Operation::ReleaseDir,
        38 => Operation::Destroy,
        // SETATTR, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, WRITE, SETXATTR, REMOVEXATTR,
        // CREATE, FALLOCATE, RENAME2, COPY_FILE_RANGE, TMPFILE
        4 | 6 | 8..=13 | 16 | 21 | 24 | 35 | 43 | 45 | 47 | 51 => Operation::Change,
        _ => Operation::Unknown,
    })
}

/// What the kernel is told about a file or directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attr {
    pub(super) node: u64,
    pub(super) size: u64,
    /// Nanoseconds since the Unix epoch.
    pub(super) modified: u64,
    pub(super) directory: bool,
    pub(super) owner: (u32, u32),
}

impl Attr {
    fn write(&self, out: &mut Out) {
        const DIRECTORY: u32 = 0o040_555;
        const FILE: u32 = 0o100_444;
        let (mode, links) = if self.directory {
            (DIRECTORY, 2)
        } else {
            (FILE, 1)
        };
        let (seconds, nanos) = (self.modified / 1_000_000_000, self.modified % 1_000_000_000);
        out.u64(self.node)
            .u64(self.size)
            .u64(self.size.div_ceil(512));
        out.u64(seconds).u64(seconds).u64(seconds);
        out.u32(nanos as u32).u32(nanos as u32).u32(nanos as u32);
        out.u32(mode)
            .u32(links)
            .u32(self.owner.0)
            .u32(self.owner.1)
            .u32(0)
            .u32(4096)
            .u32(0);
    }
}

/// The answer to INIT; `None` if the kernel is too old. A kernel with a later major version asks
/// again in ours.
pub(super) fn init(major: u32, minor: u32, readahead: u32, flags: u32) -> Option<Out> {
    /// ASYNC_READ, PARALLEL_DIROPS, MAX_PAGES.
    const FLAGS: u32 = 1 | 1 << 18 | 1 << 22;
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
        .u32(readahead.min(MAX_READ as u32))
        .u32(flags & FLAGS);
    // max_background, congestion_threshold, max_write (the least allowed), time_gran, max_pages
    out.u16(16)
        .u16(12)
        .u32(4096)
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

/// The answer to STATFS.
pub(super) fn statistics(bytes: u64, files: u64) -> Out {
    let mut out = Out::default();
    out.u64(bytes.div_ceil(4096))
        .u64(0)
        .u64(0)
        .u64(files)
        .u64(0);
    out.u32(4096).u32(255).u32(4096).u32(0).bytes(&[0; 24]);
    out
}

/// Adds a directory entry; `false` if `room` does not hold it. `next` is the offset to go on from.
pub(super) fn add_entry(
    out: &mut Out,
    room: usize,
    node: u64,
    next: u64,
    directory: bool,
    name: &[u8],
) -> bool {
    let len = (24 + name.len()).next_multiple_of(8);
    if out.0.len() + len > room {
        return false;
    }
    // DT_DIR, DT_REG
    let kind = if directory { 4 } else { 8 };
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
            directory: true,
            owner: (0, 0),
        };
        assert_eq!(entry(&attr, Duration::ZERO).0.len(), 128);
        assert_eq!(attributes(&attr, Duration::ZERO).0.len(), 104);
        assert_eq!(opened(1).0.len(), 16);
        assert_eq!(statistics(1, 1).0.len(), 80);
        assert_eq!(init(7, 40, 0, 0).map(|out| out.0.len()), Some(64));
        assert_eq!(init(8, 0, 0, 0).map(|out| out.0.len()), Some(64));
        assert!(init(7, 27, 0, 0).is_none() && init(6, 99, 0, 0).is_none());
    }
}
