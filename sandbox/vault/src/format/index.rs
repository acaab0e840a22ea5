//! The files `index/<id>`: the records of all objects, sealed as one segment.
//!
//! ```text
//! "CSMINDEX" | format u16 | suite u8 | kind u8 (1 = snapshot) | 0 (4) | vault id 16 | segment id 16
//! generation u64 | body length u64 | box
//! body:   record count u32 | records | 0… up to the padded length
//!
//! format 1, objects of one extent that covers them:
//! record: name length u16 | name | object id 16 | version u64 | length u64 | modified u64
//!         key epoch u64 | wrapped DEK 60 | label length u16 | labels | extent count u32 | extents
//! extent: file id 16 | extent number u32 | chunk log2 u8 | suite u8 | 0 (2) | offset u64 | length u64
//!         stored length u64 | Merkle root 32
//!
//! format 2, what a mounted vault needs:
//! record: name length u16 | name | kind u8 | 0 | mode u16 | modified u64 | of a file or a link: object
//! object: object id 16 | version u64 | length u64 | chunk log2 u8 | 0 (3) | extent count u32
//!         run count u32 | extents | runs
//! extent: file id 16 | extent number u32 | suite u8 | 0 (3) | version u64 | key epoch u64
//!         wrapped DEK 60 | stored length u64 | Merkle root 32
//! run:    first chunk u32 | chunks u32 | extent u32, counted from 0 | first chunk in the extent u32
//! ```
//!
//! A segment is written in format 1 where that can say it all.

use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};

use super::{ChunkSize, Id, MAX_CHUNKS, Malformed, Reader, SUITE, Writer, chunks};
use crate::name;
use crate::tree::Hash;

/// The latest format of a segment that is read and written.
pub(crate) const FORMAT: u16 = 2;

/// Most bytes of a segment's file.
pub(crate) const MAX_LEN: u64 = 1 << 30;

/// Bytes before the box; they are its context.
pub(crate) const FRONT_LEN: usize = 64;

/// Bytes of a wrapped DEK: nonce 12 | ciphertext 32 | tag 16.
pub(crate) const WRAPPED_LEN: usize = 60;

/// Most extents of one object.
pub(crate) const MAX_EXTENTS: usize = 64;

/// Permissions of a file that none were given for.
pub(crate) const FILE_MODE: u16 = 0o644;

/// Permissions of a directory that none were given for.
pub(crate) const DIRECTORY_MODE: u16 = 0o755;

const MAGIC: &[u8; 8] = b"CSMINDEX";
const SNAPSHOT: u8 = 1;
/// A record of format 1 with an empty name, no labels and no extents.
const MIN_RECORD: usize = 2 + 16 + 8 * 4 + WRAPPED_LEN + 2 + 4;
/// A record of format 2 for a directory with an empty name.
const MIN_RECORD_2: usize = 2 + 1 + 1 + 2 + 8;
const EXTENT_LEN: usize = 16 + 4 + 1 + 3 + 8 + 8 + WRAPPED_LEN + 8 + 32;
const RUN_LEN: usize = 16;

const KIND_FILE: u8 = 1;
const KIND_DIRECTORY: u8 = 2;
const KIND_LINK: u8 = 3;

/// All objects of a vault, by name, and the directories that are more than a part of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    records: BTreeMap<String, Record>,
    pub(crate) directories: BTreeMap<String, Directory>,
}

/// A directory with something to remember: permissions, or that it is there although it is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    pub(crate) mode: u16,
    pub(crate) modified: u64,
}

/// One version of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) object_id: Id,
    pub(crate) version: u64,
    pub(crate) len: u64,
    /// Nanoseconds since the Unix epoch.
    pub(crate) modified: u64,
    /// Permissions, as in chmod(2).
    pub(crate) mode: u16,
    /// Whether it is a symbolic link, whose target is the content.
    pub(crate) is_link: bool,
    pub(crate) chunk: ChunkSize,
    pub(crate) extents: Vec<Extent>,
    /// Where the chunks are, in ascending order. A chunk in no run holds zeros.
    pub(crate) runs: Vec<Run>,
}

/// Chunks of an object that were sealed together, in a file of their own, under their own DEK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) file_id: Id,
    pub(crate) number: u32,
    pub(crate) chunk: ChunkSize,
    /// Bytes stored, padding included.
    pub(crate) stored: u64,
    pub(crate) root: Hash,
    /// The object's version that it was sealed for.
    pub(crate) version: u64,
    pub(crate) key_epoch: u64,
    pub(crate) wrapped_dek: [u8; WRAPPED_LEN],
}

/// The object's chunks `at..at + count` are the extent's chunks from `from` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) at: u32,
    pub(crate) count: u32,
    pub(crate) extent: u32,
    pub(crate) from: u32,
}

impl Run {
    /// The chunk after the last.
    pub(crate) fn end(&self) -> u32 {
        self.at.saturating_add(self.count)
    }
}

impl Index {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The file of every extent of every object.
    pub(crate) fn files(&self) -> impl Iterator<Item = Id> {
        self.records
            .values()
            .flat_map(|record| record.extents.iter().map(|extent| extent.file_id))
    }

    /// Objects and directories.
    fn entries(&self) -> usize {
        self.records.len() + self.directories.len()
    }
}

impl Deref for Index {
    type Target = BTreeMap<String, Record>;

    fn deref(&self) -> &Self::Target {
        &self.records
    }
}

impl DerefMut for Index {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.records
    }
}

impl FromIterator<(String, Record)> for Index {
    fn from_iter<I: IntoIterator<Item = (String, Record)>>(records: I) -> Self {
        Self {
            records: records.into_iter().collect(),
            directories: BTreeMap::new(),
        }
    }
}

impl Record {
    /// The object that this one extent holds from its first byte to its last.
    pub(crate) fn whole(object_id: Id, len: u64, modified: u64, extent: Extent) -> Self {
        Self {
            object_id,
            version: extent.version,
            len,
            modified,
            mode: FILE_MODE,
            is_link: false,
            chunk: extent.chunk,
            runs: whole(len, extent.chunk),
            extents: vec![extent],
        }
    }

    /// Whether any of it is sealed under keys older than this epoch's.
    pub(crate) fn is_due(&self, epoch: u64) -> bool {
        self.extents.iter().any(|extent| extent.key_epoch < epoch)
    }

    /// Its one extent, if format 1 can say all that there is to say.
    fn plain(&self) -> Option<&Extent> {
        let [extent] = &self.extents[..] else {
            return None;
        };
        let plain = self.mode == FILE_MODE
            && !self.is_link
            && (extent.number, extent.version) == (0, self.version)
            && extent.stored >= self.len
            && self.runs == whole(self.len, self.chunk);
        plain.then_some(extent)
    }
}

/// The runs of an object that one extent covers.
pub(crate) fn whole(len: u64, chunk: ChunkSize) -> Vec<Run> {
    let count = len.div_ceil(chunk.bytes() as u64);
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let run = Run {
        at: 0,
        count,
        extent: 0,
        from: 0,
    };
    if count == 0 { Vec::new() } else { vec![run] }
}

/// The least format that can hold this index.
pub(crate) fn format(index: &Index) -> u16 {
    let plain = index.directories.is_empty() && index.values().all(|r| r.plain().is_some());
    if plain { 1 } else { FORMAT }
}

/// The bytes in front of the box.
pub(crate) fn front(
    format: u16,
    vault_id: &Id,
    segment: &Id,
    generation: u64,
    body_len: usize,
) -> Vec<u8> {
    let mut front = Writer::default();
    front
        .bytes(MAGIC)
        .u16(format)
        .u8(SUITE)
        .u8(SNAPSHOT)
        .bytes(&[0; 4])
        .bytes(vault_id)
        .bytes(segment);
    front.u64(generation).u64(body_len as u64);
    front.finish()
}

/// The format that the bytes in front of the box name.
pub(crate) fn format_of(front: &[u8]) -> Result<u16, Malformed> {
    let mut front = Reader::new(front);
    if front.array::<8>().ok().as_ref() != Some(MAGIC) {
        return Err(Malformed::Magic);
    }
    match front.u16()? {
        0 => Err(Malformed::Field),
        known @ 1..=FORMAT => Ok(known),
        newer => Err(Malformed::Newer(newer)),
    }
}

/// Writes the body of a snapshot segment, in the format that [`format`] names.
pub(crate) fn encode(index: &Index) -> Result<Vec<u8>, Malformed> {
    let mut out = Writer::default();
    out.u32(u32::try_from(index.entries()).map_err(|_| Malformed::Field)?);
    if format(index) == 1 {
        for (name, record) in index.iter() {
            let extent = record.plain().ok_or(Malformed::Field)?;
            encode_plain(&mut out, name, record, extent);
        }
    } else {
        // Both in one order: there is one encoding of an index.
        let mut directories = index.directories.iter().peekable();
        for (name, record) in index.iter() {
            while let Some((name, directory)) = directories.next_if(|(other, _)| *other < name) {
                encode_directory(&mut out, name, directory);
            }
            encode_object(&mut out, name, record)?;
        }
        directories.for_each(|(name, directory)| encode_directory(&mut out, name, directory));
    }
    // How many objects there are shows in the length only roughly.
    let padded = super::Padding::Padme.padded(out.as_slice().len() as u64);
    out.pad_to(
        padded
            .and_then(|len| usize::try_from(len).ok())
            .ok_or(Malformed::Field)?,
    );
    Ok(out.finish())
}

fn encode_plain(out: &mut Writer, name: &str, record: &Record, extent: &Extent) {
    out.u16(name.len() as u16)
        .bytes(name.as_bytes())
        .bytes(&record.object_id);
    out.u64(record.version)
        .u64(record.len)
        .u64(record.modified)
        .u64(extent.key_epoch);
    out.bytes(&extent.wrapped_dek).u16(0).u32(1);
    out.bytes(&extent.file_id)
        .u32(extent.number)
        .u8(extent.chunk.log2())
        .u8(SUITE);
    out.bytes(&[0; 2])
        .u64(0)
        .u64(record.len)
        .u64(extent.stored)
        .bytes(&extent.root);
}

fn encode_entry(out: &mut Writer, name: &str, kind: u8, mode: u16, modified: u64) {
    out.u16(name.len() as u16)
        .bytes(name.as_bytes())
        .u8(kind)
        .u8(0)
        .u16(mode)
        .u64(modified);
}

fn encode_directory(out: &mut Writer, name: &str, directory: &Directory) {
    encode_entry(
        out,
        name,
        KIND_DIRECTORY,
        directory.mode,
        directory.modified,
    );
}

fn encode_object(out: &mut Writer, name: &str, record: &Record) -> Result<(), Malformed> {
    if record.extents.len() > MAX_EXTENTS {
        return Err(Malformed::Field);
    }
    let kind = if record.is_link { KIND_LINK } else { KIND_FILE };
    encode_entry(out, name, kind, record.mode, record.modified);
    out.bytes(&record.object_id)
        .u64(record.version)
        .u64(record.len)
        .u8(record.chunk.log2())
        .bytes(&[0; 3]);
    out.u32(record.extents.len() as u32)
        .u32(u32::try_from(record.runs.len()).map_err(|_| Malformed::Field)?);
    for extent in &record.extents {
        out.bytes(&extent.file_id)
            .u32(extent.number)
            .u8(SUITE)
            .bytes(&[0; 3]);
        out.u64(extent.version)
            .u64(extent.key_epoch)
            .bytes(&extent.wrapped_dek)
            .u64(extent.stored)
            .bytes(&extent.root);
    }
    for run in &record.runs {
        out.u32(run.at).u32(run.count).u32(run.extent).u32(run.from);
    }
    Ok(())
}

/// Parses the body of a snapshot segment of this format.
pub(crate) fn parse(format: u16, body: &[u8]) -> Result<Index, Malformed> {
    let mut body = Reader::new(body);
    let count = body.u32()? as usize;
    let least = if format == 1 {
        MIN_RECORD
    } else {
        MIN_RECORD_2
    };
    if count > body.len() / least {
        return Err(Malformed::Field);
    }
    let mut index = Index::new();
    let mut last = String::new();
    for _ in 0..count {
        let name = parse_name(&mut body)?;
        // Written in order, each name once: there is one encoding of an index.
        if last >= name {
            return Err(Malformed::Field);
        }
        last.clone_from(&name);
        match entry(format, &mut body)? {
            Entry::Object(record) => drop(index.records.insert(name, record)),
            Entry::Directory(directory) => drop(index.directories.insert(name, directory)),
        }
    }
    body.only_zeros()?;
    Ok(index)
}

enum Entry {
    Object(Record),
    Directory(Directory),
}

fn parse_name(body: &mut Reader<'_>) -> Result<String, Malformed> {
    let len = usize::from(body.u16()?);
    let name = std::str::from_utf8(body.take(len)?).map_err(|_| Malformed::Field)?;
    name::check(name).map_err(|_| Malformed::Field)?;
    Ok(name.to_owned())
}

fn entry(format: u16, body: &mut Reader<'_>) -> Result<Entry, Malformed> {
    if format == 1 {
        return plain(body).map(Entry::Object);
    }
    let kind = body.u8()?;
    body.expect(&[0])?;
    let (mode, modified) = (body.u16()?, body.u64()?);
    if mode > 0o7777 {
        return Err(Malformed::Field);
    }
    match kind {
        KIND_DIRECTORY => Ok(Entry::Directory(Directory { mode, modified })),
        KIND_FILE | KIND_LINK => object(body, mode, modified, kind == KIND_LINK).map(Entry::Object),
        _ => Err(Malformed::Field),
    }
}

fn plain(body: &mut Reader<'_>) -> Result<Record, Malformed> {
    let (object_id, version, len, modified) =
        (body.array()?, body.u64()?, body.u64()?, body.u64()?);
    let (key_epoch, wrapped_dek) = (body.u64()?, body.array()?);
    let (labels, extents) = (body.u16()?, body.u32()?);
    if (labels, extents) != (0, 1) {
        return Err(Malformed::Field);
    }
    let (file_id, number) = (body.array()?, body.u32()?);
    let chunk = ChunkSize::from_log2(body.u8()?)?;
    body.expect(&[SUITE, 0, 0])?;
    let (offset, covered, stored) = (body.u64()?, body.u64()?, body.u64()?);
    let root = body.array()?;
    if offset != 0 || covered != len || stored < len || chunks(stored, chunk) > MAX_CHUNKS {
        return Err(Malformed::Field);
    }
    let extent = Extent {
        file_id,
        number,
        chunk,
        stored,
        root,
        version,
        key_epoch,
        wrapped_dek,
    };
    Ok(Record::whole(object_id, len, modified, extent))
}

fn object(
    body: &mut Reader<'_>,
    mode: u16,
    modified: u64,
    is_link: bool,
) -> Result<Record, Malformed> {
    let (object_id, version, len) = (body.array()?, body.u64()?, body.u64()?);
    let chunk = ChunkSize::from_log2(body.u8()?)?;
    body.expect(&[0; 3])?;
    let (extent_count, run_count) = (body.u32()? as usize, body.u32()? as usize);
    let of_chunks = len.div_ceil(chunk.bytes() as u64);
    if extent_count > MAX_EXTENTS || run_count > body.len() / RUN_LEN || of_chunks > MAX_CHUNKS {
        return Err(Malformed::Field);
    }
    let mut extents = Vec::with_capacity(extent_count.min(body.len() / EXTENT_LEN));
    for _ in 0..extent_count {
        extents.push(extent(body, chunk)?);
    }
    let mut runs = Vec::with_capacity(run_count);
    let mut free = 0;
    for _ in 0..run_count {
        let run = run(body, &extents)?;
        if run.at < free || u64::from(run.end()) > of_chunks {
            return Err(Malformed::Field);
        }
        free = run.end();
        runs.push(run);
    }
    Ok(Record {
        object_id,
        version,
        len,
        modified,
        mode,
        is_link,
        chunk,
        extents,
        runs,
    })
}

fn extent(body: &mut Reader<'_>, chunk: ChunkSize) -> Result<Extent, Malformed> {
    let (file_id, number) = (body.array()?, body.u32()?);
    body.expect(&[SUITE, 0, 0, 0])?;
    let (version, key_epoch, wrapped_dek) = (body.u64()?, body.u64()?, body.array()?);
    let (stored, root) = (body.u64()?, body.array()?);
    if chunks(stored, chunk) > MAX_CHUNKS {
        return Err(Malformed::Field);
    }
    Ok(Extent {
        file_id,
        number,
        chunk,
        stored,
        root,
        version,
        key_epoch,
        wrapped_dek,
    })
}

fn run(body: &mut Reader<'_>, extents: &[Extent]) -> Result<Run, Malformed> {
    let (at, count, extent, from) = (body.u32()?, body.u32()?, body.u32()?, body.u32()?);
    let of = extents.get(extent as usize).ok_or(Malformed::Field)?;
    let end = u64::from(from) + u64::from(count);
    if count == 0 || at.checked_add(count).is_none() || end > chunks(of.stored, of.chunk) {
        return Err(Malformed::Field);
    }
    Ok(Run {
        at,
        count,
        extent,
        from,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_extent() -> impl Strategy<Value = Extent> {
        let ids = (any::<[u8; 16]>(), any::<[u8; 32]>());
        let numbers = (any::<u64>(), 0u64..1 << 30, any::<u32>());
        (ids, numbers).prop_map(|((file_id, root), (version, stored, number))| Extent {
            file_id,
            number,
            chunk: ChunkSize::KiB16,
            stored,
            root,
            version,
            key_epoch: 1,
            wrapped_dek: [number as u8; WRAPPED_LEN],
        })
    }

    fn any_name() -> impl Strategy<Value = String> {
        "[a-zé]{1,9}(/[a-z ]{1,9}){0,3}"
    }

    fn any_plain() -> impl Strategy<Value = (String, Record)> {
        let object = (any::<[u8; 16]>(), 0u64..1 << 30, any::<u64>(), 0u64..1000);
        (any_name(), any_extent(), object).prop_map(|(name, extent, (id, len, modified, more))| {
            let stored = len + more;
            (
                name,
                Record::whole(
                    id,
                    len,
                    modified,
                    Extent {
                        number: 0,
                        stored,
                        ..extent
                    },
                ),
            )
        })
    }

    /// Objects of several extents, links, permissions.
    fn any_object() -> impl Strategy<Value = (String, Record)> {
        let extents = proptest::collection::vec(any_extent(), 0..4);
        let runs = proptest::collection::vec((0u32..3, 1u32..9, any::<u32>()), 0..9);
        let rest = (
            any::<[u8; 16]>(),
            any::<u64>(),
            0u16..0o10000,
            any::<bool>(),
        );
        (any_name(), extents, runs, rest).prop_map(|(name, extents, shape, rest)| {
            let (object_id, version, mode, is_link) = rest;
            let (mut runs, mut free) = (Vec::new(), 0);
            for (gap, count, which) in shape {
                let Some(of) = extents.get(which as usize % extents.len().max(1)) else {
                    break;
                };
                let count = count.min(chunks(of.stored, of.chunk) as u32);
                let extent = which % extents.len() as u32;
                runs.push(Run {
                    at: free + gap,
                    count,
                    extent,
                    from: 0,
                });
                free += gap + count;
            }
            let chunk = ChunkSize::KiB16;
            let len = u64::from(free) * chunk.bytes() as u64 + u64::from(mode);
            let modified = version;
            (
                name,
                Record {
                    object_id,
                    version,
                    len,
                    modified,
                    mode,
                    is_link,
                    chunk,
                    extents,
                    runs,
                },
            )
        })
    }

    proptest! {
        #[test]
        fn an_index_comes_back_as_written(records in proptest::collection::vec(any_plain(), 0..20)) {
            let index: Index = records.into_iter().collect();
            prop_assert_eq!(format(&index), 1);
            prop_assert_eq!(parse(1, &encode(&index).unwrap()).unwrap(), index);
        }

        #[test]
        fn an_index_with_all_there_is_comes_back_as_written(
            records in proptest::collection::vec(prop_oneof![any_object(), any_plain()], 0..20),
            directories in proptest::collection::btree_map(any_name(), (0u16..0o10000, any::<u64>()), 1..9),
        ) {
            let mut index: Index = records.into_iter().collect();
            let directories = directories.into_iter().filter(|(name, _)| !index.contains_key(name));
            index.directories = directories
                .map(|(name, (mode, modified))| (name, Directory { mode, modified }))
                .collect();
            let format = format(&index);
            prop_assert_eq!(parse(format, &encode(&index).unwrap()).unwrap(), index);
        }

        #[test]
        fn parsing_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = (parse(1, &bytes), parse(2, &bytes));
        }
    }

    #[test]
    fn a_count_beyond_the_bytes_is_refused_before_it_is_believed() {
        assert_eq!(parse(1, &u32::MAX.to_le_bytes()), Err(Malformed::Field));
        assert_eq!(parse(2, &u32::MAX.to_le_bytes()), Err(Malformed::Field));
    }

    #[test]
    fn runs_that_overlap_or_leave_their_extent_are_refused() {
        let extent = Extent {
            file_id: [1; 16],
            number: 0,
            chunk: ChunkSize::KiB4,
            stored: 4096 * 3,
            root: [2; 32],
            version: 1,
            key_epoch: 1,
            wrapped_dek: [3; WRAPPED_LEN],
        };
        let run = |at, count, extent, from| Run {
            at,
            count,
            extent,
            from,
        };
        let parsed = |runs: &[Run]| {
            let mut record = Record::whole([4; 16], 4096 * 5, 7, extent.clone());
            record.runs = runs.to_vec();
            let index: Index = [("a".to_owned(), record)].into_iter().collect();
            parse(2, &encode(&index).unwrap()).is_ok()
        };
        assert!(parsed(&[run(0, 2, 0, 1), run(3, 2, 0, 0)]));
        for bad in [
            &[run(0, 2, 0, 1), run(1, 1, 0, 0)][..],
            &[run(3, 1, 0, 0), run(0, 1, 0, 0)],
            &[run(0, 2, 0, 2)],
            &[run(0, 1, 1, 0)],
            &[run(0, 0, 0, 0)],
            &[run(4, 2, 0, 0)],
            &[run(u32::MAX, 1, 0, 0)],
        ] {
            assert!(!parsed(bad), "{bad:?}");
        }
    }
}
