//! One file of an object, open for reading.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use subtle::ConstantTimeEq;

use crate::envelope::Keys;
use crate::error::{Part, ReadError};
use crate::format::Id;
use crate::format::index::Extent;
use crate::format::object::{self, FRONT_LEN, HEADER_LEN, Layout};
use crate::sealed::{TAG_LEN, sha256};
use crate::secret::SecretKey;
use crate::store::{Place, Store, file_name};
use crate::stream::ChunkCipher;
use crate::tree::{self, GROUP, Hash};

pub(crate) const DAMAGED: ReadError = ReadError::damaged(Part::Object);

/// Chunks that were sealed together: immutable, and open for reading.
///
/// Holding one proves that its file has the length and Merkle root that the index names, and that its
/// key is committed to.
pub(crate) struct SealedExtent {
    file: File,
    file_id: Id,
    pub(crate) key: SecretKey,
    header: [u8; 32],
    layout: Layout,
    number: u32,
    roots: Vec<Hash>,
    tags: Vec<OnceLock<Box<[u8]>>>,
}

impl SealedExtent {
    pub(crate) fn open(
        store: &Store,
        keys: &Keys,
        object: &Id,
        extent: &Extent,
    ) -> Result<Self, ReadError> {
        let io = ReadError::io("read an object");
        let file = match store.open_file(Place::Objects, &file_name(&extent.file_id)) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(DAMAGED),
            Err(e) => return Err(io(e)),
        };
        let layout = Layout {
            chunk: extent.chunk,
            stored: extent.stored,
        };
        if file.metadata().map_err(&io)?.len() != layout.file_len() {
            return Err(DAMAGED);
        }

        let mut header = [0; HEADER_LEN];
        file.read_exact_at(&mut header, 0).map_err(&io)?;
        let front = object::front(
            extent.chunk,
            extent.number,
            &extent.file_id,
            object,
            extent.version,
        );
        if header[..FRONT_LEN] != front {
            return Err(DAMAGED);
        }
        let dek = keys
            .dek(object, extent)
            .map_err(ReadError::io("protect memory for keys"))?;
        let dek = dek.ok_or(ReadError::damaged(Part::Index))?;
        let derived = keys.extent(&dek, &front).ok_or(DAMAGED)?;
        if !bool::from(derived.commitment().ct_eq(&header[FRONT_LEN..])) {
            return Err(DAMAGED);
        }

        // The file is as long as the layout says, so this allocates no more than it holds.
        let mut roots = vec![[0; 32]; layout.groups() as usize];
        file.read_exact_at(roots.as_flattened_mut(), layout.roots_at())
            .map_err(&io)?;
        if tree::root(&roots) != extent.root {
            return Err(DAMAGED);
        }
        let key = derived
            .into_key(&keys.arena)
            .map_err(ReadError::io("protect memory for keys"))?;
        let tags = std::iter::repeat_with(OnceLock::new)
            .take(roots.len())
            .collect();
        Ok(Self {
            file,
            file_id: extent.file_id,
            key,
            header: sha256(&[&header]),
            layout,
            number: extent.number,
            roots,
            tags,
        })
    }

    pub(crate) fn file_id(&self) -> Id {
        self.file_id
    }

    /// Bytes of plaintext, padding included, in this chunk.
    pub(crate) fn chunk_len(&self, index: u64) -> usize {
        self.layout.chunk_len(index)
    }

    /// What opens the chunks. For an operation, not to be kept: see [`ChunkCipher`].
    pub(crate) fn cipher(&self) -> Result<ChunkCipher, ReadError> {
        ChunkCipher::new(&self.key, self.header).ok_or(DAMAGED)
    }

    /// Verifies and decrypts one chunk into `out`, which has the chunk's length.
    pub(crate) fn read_chunk(
        &self,
        cipher: &ChunkCipher,
        index: u64,
        scratch: &mut [u8],
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        let ciphertext = scratch.get_mut(..out.len()).ok_or(DAMAGED)?;
        self.file
            .read_exact_at(ciphertext, self.layout.chunk_at(index))
            .map_err(|e| short_or_io(e, index))?;
        self.open_chunk(cipher, index, ciphertext, out)
    }

    /// Verifies and decrypts chunks from `first` on, all as long as `chunk`, read as many at once as
    /// there is room for in `scratch`. What fails is told with how many were read before.
    pub(crate) fn read_chunks(
        &self,
        cipher: &ChunkCipher,
        first: u64,
        chunk: usize,
        scratch: &mut [u8],
        out: &mut [u8],
    ) -> Result<(), (u64, ReadError)> {
        let batch = (scratch.len() / chunk).max(1) * chunk;
        let mut index = first;
        for out in out.chunks_mut(batch) {
            let ciphertext = scratch.get_mut(..out.len()).ok_or((0, DAMAGED))?;
            let at = self.layout.chunk_at(index);
            let read = self.file.read_exact_at(ciphertext, at).is_ok();
            for (place, out) in out.chunks_mut(chunk).enumerate() {
                // What could not be read as one tells which chunk it was when read one by one.
                let opened = if read {
                    let ciphertext = &scratch[place * chunk..][..out.len()];
                    self.open_chunk(cipher, index, ciphertext, out)
                } else {
                    self.read_chunk(cipher, index, scratch, out)
                };
                opened.map_err(|e| (index - first, e))?;
                index += 1;
            }
        }
        Ok(())
    }

    fn open_chunk(
        &self,
        cipher: &ChunkCipher,
        index: u64,
        ciphertext: &[u8],
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        let tags = self.tags(index / GROUP as u64)?;
        let place = (index % GROUP as u64) as usize * TAG_LEN;
        let tag = tags.get(place..place + TAG_LEN).ok_or(DAMAGED)?;
        let last = index + 1 == self.layout.chunks();
        if cipher.open(index, last, ciphertext, tag, out) {
            Ok(())
        } else {
            Err(ReadError::damaged(Part::Chunk(index)))
        }
    }

    /// The tags of a group, verified against its root.
    fn tags(&self, group: u64) -> Result<&[u8], ReadError> {
        let cell = self.tags.get(group as usize).ok_or(DAMAGED)?;
        if let Some(tags) = cell.get() {
            return Ok(tags);
        }
        let (at, count) = self.layout.tags_at(group);
        let mut tags = vec![0; count * TAG_LEN];
        let first = group * GROUP as u64;
        self.file
            .read_exact_at(&mut tags, at)
            .map_err(|e| short_or_io(e, first))?;
        if self.roots.get(group as usize) != Some(&tree::group_root(first, self.number, &tags)) {
            return Err(DAMAGED);
        }
        Ok(cell.get_or_init(|| tags.into_boxed_slice()))
    }
}

/// A file that became shorter since it was opened was tampered with.
fn short_or_io(error: std::io::Error, index: u64) -> ReadError {
    if error.kind() == std::io::ErrorKind::UnexpectedEof {
        ReadError::damaged(Part::Chunk(index))
    } else {
        ReadError::io("read an object")(error)
    }
}
