//! Reading an object: no byte leaves before its chunk, and the chunk's place, were verified.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use zeroize::{Zeroize, Zeroizing};

use crate::envelope::Keys;
use crate::error::ReadError;
use crate::extent::{DAMAGED, SealedExtent};
use crate::format::ChunkSize;
use crate::format::index::{Record, Run};
use crate::store::Store;
use crate::stream::ChunkCipher;

/// One immutable version of an object, open for reading.
///
/// Holding one proves that its files have the lengths and Merkle roots that the index names, and that
/// their keys are committed to. It stays readable when the object is removed or replaced.
pub struct Object {
    extents: Vec<Arc<SealedExtent>>,
    runs: Vec<Run>,
    chunk: ChunkSize,
    len: u64,
    spare: Mutex<Vec<Vec<u8>>>,
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Object")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Object {
    /// Opens what this record names.
    pub(crate) fn open(store: &Store, keys: &Keys, record: &Record) -> Result<Self, ReadError> {
        Self::open_after(None, store, keys, record)
    }

    /// Opens what this record names; what an earlier version of the object has open already is shared.
    pub(crate) fn open_after(
        before: Option<&Self>,
        store: &Store,
        keys: &Keys,
        record: &Record,
    ) -> Result<Self, ReadError> {
        let opened = record.extents.iter().map(|extent| {
            let before = before.into_iter().flat_map(|object| &object.extents);
            let mut known = before.filter(|known| known.file_id() == extent.file_id);
            match known.next() {
                Some(known) => Ok(Arc::clone(known)),
                None => SealedExtent::open(store, keys, &record.object_id, extent).map(Arc::new),
            }
        });
        Ok(Self {
            extents: opened.collect::<Result<_, _>>()?,
            runs: record.runs.clone(),
            chunk: record.chunk,
            len: record.len,
            spare: Mutex::default(),
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

    /// Reads these chunks of an extent, padding included; returns the bytes of content in them.
    pub(crate) fn verify(&self, extent: usize, chunks: Range<u64>) -> Result<u64, ReadError> {
        let Some(sealed) = self.extents.get(extent) else {
            return Ok(0);
        };
        let cipher = sealed.cipher()?;
        let mut scratch = self.scratch();
        let mut out = Zeroizing::new(vec![0; self.chunk.bytes()]);
        for index in chunks.clone() {
            let len = sealed.chunk_len(index);
            sealed.read_chunk(&cipher, index, &mut scratch, &mut out[..len])?;
        }
        let before = |chunk: u64| self.len.min(chunk * self.chunk.bytes() as u64);
        let shown = self.runs.iter().filter(|run| run.extent as usize == extent);
        Ok(shown
            .map(|run| {
                let (from, at) = (u64::from(run.from), u64::from(run.at));
                let first = chunks.start.max(from);
                let end = chunks.end.min(from + u64::from(run.count)).max(first);
                before(at + end - from) - before(at + first - from)
            })
            .sum())
    }

    fn read_chunks(
        &self,
        buf: &mut [u8],
        offset: u64,
        scratch: &mut [u8],
    ) -> Result<(), ReadError> {
        let chunk = self.chunk.bytes() as u64;
        // The schedule of the last key used: neighbours are mostly of one extent.
        let mut cipher: Option<(u32, ChunkCipher)> = None;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (index, skip) = (at / chunk, (at % chunk) as usize);
            let content = (self.len - index * chunk).min(chunk) as usize;
            let wanted = (content - skip).min(buf.len() - done);
            let out = &mut buf[done..done + wanted];
            done += wanted;
            let Some((number, place)) = self.place(index) else {
                out.fill(0);
                continue;
            };
            let sealed = self.extents.get(number as usize).ok_or(DAMAGED)?;
            let known = cipher.take().filter(|(of, _)| *of == number);
            let (_, cipher) = match known {
                Some(known) => cipher.insert(known),
                None => cipher.insert((number, sealed.cipher()?)),
            };
            let stored = sealed.chunk_len(place);
            if skip == 0 && stored <= wanted {
                let (data, rest) = out.split_at_mut(stored);
                sealed
                    .read_chunk(cipher, place, scratch, data)
                    .map_err(|e| e.in_chunk(index))?;
                rest.fill(0);
            } else {
                let mut whole = Zeroizing::new(vec![0; stored.max(skip + wanted)]);
                sealed
                    .read_chunk(cipher, place, scratch, &mut whole[..stored])
                    .map_err(|e| e.in_chunk(index))?;
                out.copy_from_slice(&whole[skip..skip + wanted]);
            }
        }
        Ok(())
    }

    /// The extent that holds a chunk, and its place there; `None` if the chunk was never written.
    fn place(&self, index: u64) -> Option<(u32, u64)> {
        let index = u32::try_from(index).ok()?;
        let after = self.runs.partition_point(|run| run.at <= index);
        let run = self.runs.get(after.checked_sub(1)?)?;
        (index < run.end()).then(|| (run.extent, u64::from(run.from) + u64::from(index - run.at)))
    }

    // Buffers of ciphertext are kept for the next read: clearing a new one costs as much as
    // decrypting into it.
    fn scratch(&self) -> Vec<u8> {
        let spare = self
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        spare.unwrap_or_else(|| vec![0; self.chunk.bytes()])
    }

    fn give_back(&self, scratch: Vec<u8>) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < 4 {
            spare.push(scratch);
        }
    }

    #[cfg(test)]
    pub(crate) fn extents(&self) -> &[Arc<SealedExtent>] {
        &self.extents
    }
}
