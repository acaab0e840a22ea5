//! The files `objects/<id>`: one extent of one object version each.
//!
//! ```text
//! "CSMOBJCT" | format u16 | suite u8 | chunk log2 u8 | extent number u32 | file id 16 | object id 16
//! version u64 | 0 (8) | K_com 32 | ciphertext of all chunks | tags, 16 each | group roots, 32 each
//! ```

use super::{ChunkSize, Id, SUITE, Writer, chunks};
use crate::sealed::{COMMITMENT_LEN, TAG_LEN};
use crate::tree::GROUP;

/// Bytes before the commitment; they are the context of the derivation.
pub(crate) const FRONT_LEN: usize = 64;

/// Bytes before the first chunk.
pub(crate) const HEADER_LEN: usize = FRONT_LEN + COMMITMENT_LEN;

const MAGIC: &[u8; 8] = b"CSMOBJCT";

/// The bytes that the file of this extent must begin with.
pub(crate) fn front(
    chunk: ChunkSize,
    number: u32,
    file_id: &Id,
    object_id: &Id,
    version: u64,
) -> [u8; FRONT_LEN] {
    let mut front = Writer::magic(MAGIC);
    front
        .u8(SUITE)
        .u8(chunk.log2())
        .u32(number)
        .bytes(file_id)
        .bytes(object_id)
        .u64(version);
    front.pad_to(FRONT_LEN);
    let mut out = [0; FRONT_LEN];
    out.copy_from_slice(front.as_slice());
    out
}

/// Where the parts of an object file are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) chunk: ChunkSize,
    pub(crate) stored: u64,
}

impl Layout {
    pub(crate) fn chunks(self) -> u64 {
        chunks(self.stored, self.chunk)
    }

    pub(crate) fn groups(self) -> u64 {
        self.chunks().div_ceil(GROUP as u64)
    }

    /// Where the ciphertext of this chunk begins.
    pub(crate) fn chunk_at(self, index: u64) -> u64 {
        HEADER_LEN as u64 + index * self.chunk.bytes() as u64
    }

    /// Bytes of plaintext, padding included, in this chunk.
    pub(crate) fn chunk_len(self, index: u64) -> usize {
        let start = index * self.chunk.bytes() as u64;
        self.stored
            .saturating_sub(start)
            .min(self.chunk.bytes() as u64) as usize
    }

    /// Where the tags of this group begin, and how many there are.
    pub(crate) fn tags_at(self, group: u64) -> (u64, usize) {
        let first = group * GROUP as u64;
        let count = self.chunks().saturating_sub(first).min(GROUP as u64) as usize;
        (
            HEADER_LEN as u64 + self.stored + first * TAG_LEN as u64,
            count,
        )
    }

    /// Where the group roots begin.
    pub(crate) fn roots_at(self) -> u64 {
        HEADER_LEN as u64 + self.stored + self.chunks() * TAG_LEN as u64
    }

    /// The exact length of the file.
    pub(crate) fn file_len(self) -> u64 {
        self.roots_at() + self.groups() * 32
    }
}
