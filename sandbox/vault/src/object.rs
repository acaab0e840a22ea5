//! Reading an object: no byte leaves before its chunk, and the chunk's place, were verified.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use zeroize::Zeroize;

use crate::envelope::Keys;
use crate::error::ReadError;
use crate::extent::{DAMAGED, SealedExtent};
use crate::format::ChunkSize;
use crate::format::index::{Record, Run};
use crate::secret::Plaintext;
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
    spare: Mutex<Vec<Buffers>>,
}

/// Bytes of small chunks that are read from the store in one go.
const AT_ONCE: usize = 64 * 1024;

/// What reading a chunk takes: its ciphertext, and its content where only a part of that is wanted.
struct Buffers {
    sealed: Vec<u8>,
    opened: Plaintext,
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
        let mut buffers = self.buffers();
        let outcome = self.read_chunks(buf, offset, &mut buffers);
        self.give_back(buffers);
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
        let Buffers {
            sealed: mut scratch,
            mut opened,
        } = self.buffers();
        for index in chunks.clone() {
            let len = sealed.chunk_len(index);
            sealed.read_chunk(&cipher, index, &mut scratch, &mut opened[..len])?;
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
        buffers: &mut Buffers,
    ) -> Result<(), ReadError> {
        let Buffers {
            sealed: scratch,
            opened,
        } = buffers;
        let chunk = self.chunk.bytes() as u64;
        // The schedule of the last key used: neighbours are mostly of one extent.
        let mut cipher: Option<(u32, ChunkCipher)> = None;
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let (index, skip) = (at / chunk, (at % chunk) as usize);
            let content = (self.len - index * chunk).min(chunk) as usize;
            let wanted = (content - skip).min(buf.len() - done);
            let Some((number, place, left)) = self.place(index) else {
                buf[done..done + wanted].fill(0);
                done += wanted;
                continue;
            };
            let sealed = self.extents.get(number as usize).ok_or(DAMAGED)?;
            let known = cipher.take().filter(|(of, _)| *of == number);
            let (_, cipher) = match known {
                Some(known) => cipher.insert(known),
                None => cipher.insert((number, sealed.cipher()?)),
            };
            let whole = left.min((buf.len() - done) as u64 / chunk);
            if skip == 0 && whole > 1 && sealed.chunk_len(place + whole - 1) == chunk as usize {
                let (out, chunk) = (&mut buf[done..][..(whole * chunk) as usize], chunk as usize);
                sealed
                    .read_chunks(cipher, place, chunk, scratch, out)
                    .map_err(|(before, e)| e.in_chunk(index + before))?;
                done += out.len();
                continue;
            }
            let out = &mut buf[done..done + wanted];
            done += wanted;
            let stored = sealed.chunk_len(place);
            if skip == 0 && stored <= wanted {
                let (data, rest) = out.split_at_mut(stored);
                sealed
                    .read_chunk(cipher, place, scratch, data)
                    .map_err(|e| e.in_chunk(index))?;
                rest.fill(0);
            } else {
                let read = sealed.read_chunk(cipher, place, scratch, &mut opened[..stored]);
                read.map_err(|e| e.in_chunk(index))?;
                // What the extent does not hold of the chunk is zeros.
                let here = stored.saturating_sub(skip).min(wanted);
                out[..here].copy_from_slice(&opened[skip.min(stored)..][..here]);
                out[here..].fill(0);
                opened[..stored].zeroize();
            }
        }
        Ok(())
    }

    /// The extent that holds a chunk, its place there, and how many go on from there, itself included;
    /// `None` if the chunk was never written.
    fn place(&self, index: u64) -> Option<(u32, u64, u64)> {
        let index = u32::try_from(index).ok()?;
        let after = self.runs.partition_point(|run| run.at <= index);
        let run = self.runs.get(after.checked_sub(1)?)?;
        let place = u64::from(run.from) + u64::from(index.checked_sub(run.at)?);
        (index < run.end()).then(|| (run.extent, place, u64::from(run.end() - index)))
    }

    // Kept for the next read: clearing new ones costs as much as decrypting into them.
    fn buffers(&self) -> Buffers {
        let spare = self
            .spare
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        spare.unwrap_or_else(|| Buffers {
            sealed: vec![0; self.chunk.bytes().max(AT_ONCE)],
            opened: Plaintext::zeros(self.chunk.bytes()),
        })
    }

    fn give_back(&self, buffers: Buffers) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < 4 {
            spare.push(buffers);
        }
    }

    #[cfg(test)]
    pub(crate) fn extents(&self) -> &[Arc<SealedExtent>] {
        &self.extents
    }
}
