//! Reading an object: no byte leaves before its chunk, and the chunk's place, were verified.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, OnceLock, PoisonError};

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use crate::envelope::Keys;
use crate::error::{Part, ReadError};
use crate::format::index::Record;
use crate::format::object::{self, FRONT_LEN, HEADER_LEN, Layout};
use crate::sealed::{TAG_LEN, sha256};
use crate::secret::SecretKey;
use crate::store::{Place, Store, file_name};
use crate::stream::ChunkCipher;
use crate::tree::{self, GROUP, Hash};

/// One immutable version of an object, open for reading.
///
/// Holding one proves that its file has the length and Merkle root that the index names, and that
/// its key is committed to. It stays readable when the object is removed or replaced.
pub struct Object {
    file: File,
    pub(crate) key: SecretKey,
    header: [u8; 32],
    layout: Layout,
    number: u32,
    len: u64,
    roots: Vec<Hash>,
    tags: Vec<OnceLock<Box<[u8]>>>,
    spare: Mutex<Vec<Vec<u8>>>,
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Object")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

const DAMAGED: ReadError = ReadError::damaged(Part::Object);

impl Object {
    /// Opens the extent that this record names.
    pub(crate) fn open(store: &Store, keys: &Keys, record: &Record) -> Result<Self, ReadError> {
        let io = ReadError::io("read an object");
        let extent = &record.extent;
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
            &record.object_id,
            record.version,
        );
        if header[..FRONT_LEN] != front {
            return Err(DAMAGED);
        }
        let dek = keys
            .dek(record)
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
        let (header, number, len) = (sha256(&[&header]), extent.number, record.len);
        let spare = Mutex::default();
        Ok(Self {
            file,
            key,
            header,
            layout,
            number,
            len,
            roots,
            tags,
            spare,
        })
    }

    /// Bytes of content.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is no content.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads from `offset` until `buf` is full or the object ends; returns the bytes read.
    ///
    /// # Errors
    ///
    /// [`ReadError::Tampered`] if any chunk touched is not what was written. `buf` then holds zeros.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, ReadError> {
        let wanted = self.len.saturating_sub(offset).min(buf.len() as u64) as usize;
        let buf = &mut buf[..wanted];
        if buf.is_empty() {
            return Ok(0);
        }
        let mut scratch = self.scratch();
        let outcome = self.read_chunks(buf, offset, &mut scratch);
        self.give_back(scratch);
        if outcome.is_err() {
            buf.zeroize();
        }
        outcome.map(|()| wanted)
    }

    /// Reads these chunks, padding included; returns the bytes of content in them.
    pub(crate) fn verify(&self, chunks: Range<u64>) -> Result<u64, ReadError> {
        let cipher = ChunkCipher::new(&self.key, self.header).ok_or(DAMAGED)?;
        let mut scratch = self.scratch();
        let mut out = Zeroizing::new(vec![0; self.layout.chunk.bytes()]);
        let before = |index: u64| self.len.min(index * self.layout.chunk.bytes() as u64);
        let bytes = before(chunks.end) - before(chunks.start);
        for index in chunks {
            let len = self.layout.chunk_len(index);
            self.read_chunk(&cipher, index, &mut scratch, &mut out[..len])?;
        }
        Ok(bytes)
    }

    fn read_chunks(
        &self,
        buf: &mut [u8],
        offset: u64,
        scratch: &mut [u8],
    ) -> Result<(), ReadError> {
        let chunk = self.layout.chunk.bytes() as u64;
        let cipher = ChunkCipher::new(&self.key, self.header).ok_or(DAMAGED)?;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (index, skip) = (at / chunk, (at % chunk) as usize);
            let len = self.layout.chunk_len(index);
            let rest = &mut buf[done..];
            if skip == 0 && rest.len() >= len {
                self.read_chunk(&cipher, index, scratch, &mut rest[..len])?;
                done += len;
            } else {
                let mut whole = Zeroizing::new(vec![0; len]);
                self.read_chunk(&cipher, index, scratch, &mut whole)?;
                let part = &whole[skip.min(len)..];
                let part = &part[..part.len().min(rest.len())];
                rest[..part.len()].copy_from_slice(part);
                done += part.len();
            }
        }
        Ok(())
    }

    /// Verifies and decrypts one chunk into `out`, which has the chunk's length.
    fn read_chunk(
        &self,
        cipher: &ChunkCipher,
        index: u64,
        scratch: &mut [u8],
        out: &mut [u8],
    ) -> Result<(), ReadError> {
        let tags = self.tags(index / GROUP as u64)?;
        let place = (index % GROUP as u64) as usize * TAG_LEN;
        let tag = tags.get(place..place + TAG_LEN).ok_or(DAMAGED)?;
        let ciphertext = scratch.get_mut(..out.len()).ok_or(DAMAGED)?;
        self.file
            .read_exact_at(ciphertext, self.layout.chunk_at(index))
            .map_err(|e| short_or_io(e, index))?;
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

    // Buffers of ciphertext are kept for the next read: clearing a new one costs as much as
    // decrypting into it.
    fn scratch(&self) -> Vec<u8> {
        let spare = self
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        spare.unwrap_or_else(|| vec![0; self.layout.chunk.bytes()])
    }

    fn give_back(&self, scratch: Vec<u8>) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < 4 {
            spare.push(scratch);
        }
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
