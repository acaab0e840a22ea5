//! The files `index/<id>`: the records of all objects, sealed as one segment.
//!
//! ```text
//! "CSMINDEX" | format u16 | suite u8 | kind u8 (1 = snapshot) | 0 (4) | vault id 16 | segment id 16
//! generation u64 | body length u64 | box
//! body:   record count u32 | records | 0… up to the padded length
//! record: name length u16 | name | object id 16 | version u64 | length u64 | modified u64
//!         key epoch u64 | wrapped DEK 60 | label length u16 | labels | extent count u32 | extents
//! extent: file id 16 | extent number u32 | chunk log2 u8 | suite u8 | 0 (2) | offset u64 | length u64
//!         stored length u64 | Merkle root 32
//! ```

use std::collections::BTreeMap;

use super::{ChunkSize, Id, MAX_CHUNKS, Malformed, Reader, SUITE, Writer, chunks};
use crate::name;
use crate::tree::Hash;

/// Most bytes of a segment's file.
pub(crate) const MAX_LEN: u64 = 1 << 30;

/// Bytes before the box; they are its context.
pub(crate) const FRONT_LEN: usize = 64;

/// Bytes of a wrapped DEK: nonce 12 | ciphertext 32 | tag 16.
pub(crate) const WRAPPED_LEN: usize = 60;

const MAGIC: &[u8; 8] = b"CSMINDEX";
const SNAPSHOT: u8 = 1;
/// A record with an empty name, no labels and no extents.
const MIN_RECORD: usize = 2 + 16 + 8 * 4 + WRAPPED_LEN + 2 + 4;

/// All objects of a vault, by name.
pub(crate) type Index = BTreeMap<String, Record>;

/// One version of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) object_id: Id,
    pub(crate) version: u64,
    pub(crate) len: u64,
    /// Nanoseconds since the Unix epoch.
    pub(crate) modified: u64,
    pub(crate) key_epoch: u64,
    pub(crate) wrapped_dek: [u8; WRAPPED_LEN],
    pub(crate) extent: Extent,
}

/// A stretch of an object, in a file of its own. Version 1 has one for each object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) file_id: Id,
    pub(crate) number: u32,
    pub(crate) chunk: ChunkSize,
    /// Bytes stored, padding included.
    pub(crate) stored: u64,
    pub(crate) root: Hash,
}

/// The bytes in front of the box.
pub(crate) fn front(vault_id: &Id, segment: &Id, generation: u64, body_len: usize) -> Vec<u8> {
    let mut front = Writer::magic(MAGIC);
    front
        .u8(SUITE)
        .u8(SNAPSHOT)
        .bytes(&[0; 4])
        .bytes(vault_id)
        .bytes(segment);
    front.u64(generation).u64(body_len as u64);
    front.finish()
}

/// Writes the body of a snapshot segment.
pub(crate) fn encode(index: &Index) -> Result<Vec<u8>, Malformed> {
    let mut out = Writer::default();
    out.u32(u32::try_from(index.len()).map_err(|_| Malformed::Field)?);
    for (name, record) in index {
        out.u16(name.len() as u16)
            .bytes(name.as_bytes())
            .bytes(&record.object_id);
        out.u64(record.version)
            .u64(record.len)
            .u64(record.modified)
            .u64(record.key_epoch);
        out.bytes(&record.wrapped_dek).u16(0).u32(1);
        let extent = &record.extent;
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
    // How many objects there are shows in the length only roughly.
    let padded = super::Padding::Padme.padded(out.as_slice().len() as u64);
    out.pad_to(
        padded
            .and_then(|len| usize::try_from(len).ok())
            .ok_or(Malformed::Field)?,
    );
    Ok(out.finish())
}

/// Parses the body of a snapshot segment.
pub(crate) fn parse(body: &[u8]) -> Result<Index, Malformed> {
    let mut body = Reader::new(body);
    let count = body.u32()? as usize;
    if count > body.len() / MIN_RECORD {
        return Err(Malformed::Field);
    }
    let mut index = Index::new();
    for _ in 0..count {
        let (name, record) = record(&mut body)?;
        // Written in order, each name once: there is one encoding of an index.
        if index
            .last_key_value()
            .is_some_and(|(last, _)| *last >= name)
        {
            return Err(Malformed::Field);
        }
        index.insert(name, record);
    }
    body.only_zeros()?;
    Ok(index)
}

fn record(body: &mut Reader<'_>) -> Result<(String, Record), Malformed> {
    let name_len = usize::from(body.u16()?);
    let name = std::str::from_utf8(body.take(name_len)?).map_err(|_| Malformed::Field)?;
    name::check(name).map_err(|_| Malformed::Field)?;
    let (object_id, version, len, modified) =
        (body.array()?, body.u64()?, body.u64()?, body.u64()?);
    let (key_epoch, wrapped_dek) = (body.u64()?, body.array()?);
    let (labels, extents) = (body.u16()?, body.u32()?);
    if (labels, extents) != (0, 1) {
        return Err(Malformed::Field);
    }
    let extent = extent(body, len)?;
    let record = Record {
        object_id,
        version,
        len,
        modified,
        key_epoch,
        wrapped_dek,
        extent,
    };
    Ok((name.to_owned(), record))
}

fn extent(body: &mut Reader<'_>, object_len: u64) -> Result<Extent, Malformed> {
    let (file_id, number) = (body.array()?, body.u32()?);
    let chunk = ChunkSize::from_log2(body.u8()?)?;
    body.expect(&[SUITE, 0, 0])?;
    let (offset, len, stored) = (body.u64()?, body.u64()?, body.u64()?);
    let root = body.array()?;
    if offset != 0 || len != object_len || stored < len || chunks(stored, chunk) > MAX_CHUNKS {
        return Err(Malformed::Field);
    }
    Ok(Extent {
        file_id,
        number,
        chunk,
        stored,
        root,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_record() -> impl Strategy<Value = (String, Record)> {
        let ids = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u8; 32]>());
        let numbers = (
            any::<u64>(),
            0u64..1 << 30,
            any::<u64>(),
            any::<u32>(),
            0u64..1000,
        );
        ("[a-zé]{1,9}(/[a-z ]{1,9}){0,3}", ids, numbers).prop_map(|(name, ids, n)| {
            let (object_id, file_id, root) = ids;
            let (version, len, modified, number, more) = n;
            let chunk = ChunkSize::KiB16;
            let extent = Extent {
                file_id,
                number,
                chunk,
                stored: len + more,
                root,
            };
            let wrapped_dek = [number as u8; WRAPPED_LEN];
            let key_epoch = 1;
            (
                name,
                Record {
                    object_id,
                    version,
                    len,
                    modified,
                    key_epoch,
                    wrapped_dek,
                    extent,
                },
            )
        })
    }

    proptest! {
        #[test]
        fn an_index_comes_back_as_written(records in proptest::collection::vec(any_record(), 0..20)) {
            let index: Index = records.into_iter().collect();
            prop_assert_eq!(parse(&encode(&index).unwrap()).unwrap(), index);
        }

        #[test]
        fn parsing_is_total(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = parse(&bytes);
        }
    }

    #[test]
    fn a_count_beyond_the_bytes_is_refused_before_it_is_believed() {
        assert_eq!(parse(&u32::MAX.to_le_bytes()), Err(Malformed::Field));
    }
}
