//! Writing an extent: a stream of plaintext becomes one object file.
//!
//! ```text
//! nonce of chunk i: 0 (4) | (i << 1 | last) u64      AAD: SHA-256(header) 32 | i u64 | last u8
//! ```
//!
//! `K_enc` belongs to one extent of one immutable version, so nonces are counted, never drawn.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Mutex, PoisonError};
use std::thread;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::commit::Shared;
use crate::error::VaultError;
use crate::format::index::{Extent, WRAPPED_LEN};
use crate::format::object::{self, FRONT_LEN, HEADER_LEN, Layout};
use crate::format::{ChunkSize, Id, MAX_CHUNKS, Padding};
use crate::sealed::{TAG_LEN, sha256};
use crate::secret::{Plaintext, SecretKey};
use crate::store::{Place, file_name};
use crate::tree;

/// Plaintext is read and sealed in stretches of about this many bytes.
const BATCH: usize = 512 * 1024;

/// The AEAD context of one extent.
///
/// The key schedule lives in ordinary memory and is wiped on drop: make one for an operation, not
/// for an object's life.
pub(crate) struct ChunkCipher {
    aead: LessSafeKey,
    header: [u8; 32],
}

impl ChunkCipher {
    /// `header` is the SHA-256 of the extent's header.
    pub(crate) fn new(key: &SecretKey, header: [u8; 32]) -> Option<Self> {
        let aead = UnboundKey::new(&AES_256_GCM, key.expose())
            .ok()
            .map(LessSafeKey::new)?;
        Some(Self { aead, header })
    }

    /// Seals a chunk in place and returns its tag.
    fn seal(&self, index: u64, last: bool, chunk: &mut [u8]) -> Option<[u8; TAG_LEN]> {
        let aad = self.aad(index, last);
        let tag = self
            .aead
            .seal_in_place_separate_tag(nonce(index, last), aad, chunk)
            .ok()?;
        tag.as_ref().try_into().ok()
    }

    /// Opens a chunk into `out`, of the same length; on `false`, `out` is zeros.
    pub(crate) fn open(
        &self,
        index: u64,
        last: bool,
        ciphertext: &[u8],
        tag: &[u8],
        out: &mut [u8],
    ) -> bool {
        let (nonce, aad) = (nonce(index, last), self.aad(index, last));
        let opened = self
            .aead
            .open_separate_gather(nonce, aad, ciphertext, tag, out)
            .is_ok();
        if !opened {
            out.fill(0);
        }
        opened
    }

    fn aad(&self, index: u64, last: bool) -> Aad<[u8; 41]> {
        let mut aad = [0; 41];
        aad[..32].copy_from_slice(&self.header);
        aad[32..40].copy_from_slice(&index.to_le_bytes());
        aad[40] = u8::from(last);
        Aad::from(aad)
    }
}

/// What an extent shall be.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) chunk: ChunkSize,
    pub(crate) padding: Padding,
    pub(crate) file_id: Id,
    pub(crate) object_id: Id,
    pub(crate) version: u64,
    pub(crate) key_epoch: u64,
    /// 0 for an extent that is a whole object, and padded with zeros.
    pub(crate) number: u32,
}

/// Seals a stream into a new object file and makes it durable; returns the extent and the length of
/// the plaintext. The file counts only once the index names it.
pub(crate) fn write(
    shared: &Shared,
    plan: &Plan,
    source: impl Read,
) -> Result<(Extent, u64), VaultError> {
    let io = VaultError::io("write an object");
    let begun = Begun::new(shared, plan)?;
    let mut source = Padded::new(source, plan.padding);
    let mut tags = Vec::new();
    let mut offset = HEADER_LEN as u64;
    let chunk = plan.chunk.bytes();
    let mut buffer = Plaintext::zeros(BATCH.max(chunk * 2));
    let mut filled = 0;
    loop {
        filled += source.fill(&mut buffer[filled..])?;
        let ended = filled < buffer.len();
        // Whether a full buffer ends the stream is known only after the next read, so its last
        // chunk waits.
        let ready = if ended { filled } else { filled - chunk };
        seal_all(&begun.cipher, &mut buffer[..ready], chunk, ended, &mut tags)?;
        let written = shared.store.write_at(&begun.file, &buffer[..ready], offset);
        written.map_err(&io)?;
        offset += ready as u64;
        if ended {
            break;
        }
        buffer.copy_within(ready..filled, 0);
        filled -= ready;
    }
    let stored = offset - HEADER_LEN as u64;
    let (extent, file) = begun.end(shared, plan, stored, &tags)?;
    shared.store.sync(&file).map_err(&io)?;
    shared.store.sync_dir(Place::Objects).map_err(&io)?;
    Ok((extent, source.len))
}

/// Seals `len` bytes, which `fill` gives from any place on, into a new object file: on several cores, if
/// they are many. The caller makes it durable before the index names it.
pub(crate) fn write_volatile(
    shared: &Shared,
    plan: &Plan,
    len: u64,
    fill: impl Fn(&mut [u8], u64) -> Result<(), VaultError> + Sync,
) -> Result<Extent, VaultError> {
    let stored = plan.padding.padded(len).ok_or(VaultError::TooLarge)?;
    let (chunk, layout) = (
        plan.chunk.bytes(),
        Layout {
            chunk: plan.chunk,
            stored,
        },
    );
    if layout.chunks() > MAX_CHUNKS {
        return Err(VaultError::TooLarge);
    }
    let begun = Begun::new(shared, plan)?;
    let mut tags = vec![0; layout.chunks() as usize * TAG_LEN];
    let batch = (BATCH / chunk).max(1);
    let pieces = tags.chunks_mut(batch * TAG_LEN);
    let threads = match pieces.len() {
        0..FEW => 1,
        _ => thread::available_parallelism().map_or(1, |cores| cores.get().min(MOST_THREADS)),
    };
    let pieces = Mutex::new(pieces.zip(0u64..));
    let work = || {
        let mut buffer = Plaintext::zeros(batch * chunk);
        loop {
            let next = pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((tags, piece)) = next else {
                return Ok(());
            };
            let first = piece * batch as u64;
            let at = first * chunk as u64;
            let bytes = (stored - at).min(buffer.len() as u64) as usize;
            let content = len.saturating_sub(at).min(bytes as u64) as usize;
            let buffer = &mut buffer[..bytes];
            fill(&mut buffer[..content], at)?;
            buffer[content..].fill(0);
            for (index, tag) in (first..).zip(tags.chunks_mut(TAG_LEN)) {
                let from = (index - first) as usize * chunk;
                let until = bytes.min(from + chunk);
                let last = index + 1 == layout.chunks();
                let sealed = begun.cipher.seal(index, last, &mut buffer[from..until]);
                tag.copy_from_slice(&sealed.ok_or(VaultError::Crypto)?);
            }
            let written = shared
                .store
                .write_at(&begun.file, buffer, HEADER_LEN as u64 + at);
            written.map_err(VaultError::io("write an object"))?;
        }
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mine = work();
        // One that panicked has sealed nothing that counts.
        let theirs = others.into_iter();
        let theirs = theirs.map(|other| other.join().unwrap_or(Err(VaultError::Crypto)));
        theirs.fold(mine, Result::and)
    })?;
    begun
        .end(shared, plan, stored, &tags)
        .map(|(extent, _)| extent)
}

/// Batches that one thread seals by itself.
const FEW: usize = 4;
/// Most threads that seal one extent.
const MOST_THREADS: usize = 4;

/// An object file that has its header.
struct Begun {
    file: File,
    cipher: ChunkCipher,
    wrapped_dek: [u8; WRAPPED_LEN],
}

impl Begun {
    fn new(shared: &Shared, plan: &Plan) -> Result<Self, VaultError> {
        let Shared { store, keys, .. } = shared;
        let (dek, wrapped_dek) = keys.new_dek(&plan.object_id, plan.version, plan.key_epoch)?;
        let front = object::front(
            plan.chunk,
            plan.number,
            &plan.file_id,
            &plan.object_id,
            plan.version,
        );
        let derived = keys.extent(&dek, &front).ok_or(VaultError::Crypto)?;
        let mut header = [0; HEADER_LEN];
        header[..FRONT_LEN].copy_from_slice(&front);
        header[FRONT_LEN..].copy_from_slice(derived.commitment());
        let key = derived
            .into_key(&keys.arena)
            .map_err(VaultError::io("protect memory for keys"))?;
        let cipher = ChunkCipher::new(&key, sha256(&[&header])).ok_or(VaultError::Crypto)?;
        let io = VaultError::io("write an object");
        let name = file_name(&plan.file_id);
        let file = store.create_file(Place::Objects, &name).map_err(&io)?;
        store.write_at(&file, &header, 0).map_err(&io)?;
        Ok(Self {
            file,
            cipher,
            wrapped_dek,
        })
    }

    /// Writes what follows the chunks.
    fn end(
        self,
        shared: &Shared,
        plan: &Plan,
        stored: u64,
        tags: &[u8],
    ) -> Result<(Extent, File), VaultError> {
        let layout = Layout {
            chunk: plan.chunk,
            stored,
        };
        let roots = tree::group_roots(plan.number, tags);
        let (store, tags_at) = (&shared.store, HEADER_LEN as u64 + stored);
        let written = store.write_at(&self.file, tags, tags_at);
        written
            .and_then(|()| store.write_at(&self.file, roots.as_flattened(), layout.roots_at()))
            .map_err(VaultError::io("write an object"))?;
        let extent = Extent {
            file_id: plan.file_id,
            number: plan.number,
            chunk: plan.chunk,
            stored,
            root: tree::root(&roots),
            version: plan.version,
            key_epoch: plan.key_epoch,
            wrapped_dek: self.wrapped_dek,
        };
        Ok((extent, self.file))
    }
}

/// Seals the chunks of `bytes` in place; with `ended`, the last one is the extent's last.
fn seal_all(
    cipher: &ChunkCipher,
    bytes: &mut [u8],
    chunk: usize,
    ended: bool,
    tags: &mut Vec<u8>,
) -> Result<(), VaultError> {
    let mut seal = |bytes: &mut [u8], last| {
        let index = (tags.len() / TAG_LEN) as u64;
        if index >= MAX_CHUNKS {
            return Err(VaultError::TooLarge);
        }
        tags.extend(cipher.seal(index, last, bytes).ok_or(VaultError::Crypto)?);
        Ok(())
    };
    let len = bytes.len();
    let mut done = 0;
    for piece in bytes.chunks_mut(chunk) {
        done += piece.len();
        seal(piece, ended && done == len)?;
    }
    // An empty extent has one empty chunk, so that it has a tag.
    if len == 0 && ended && tags.is_empty() {
        tags.extend(cipher.seal(0, true, &mut []).ok_or(VaultError::Crypto)?);
    }
    Ok(())
}

fn nonce(index: u64, last: bool) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&(index << 1 | u64::from(last)).to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// A stream that goes on with zeros up to its padded length.
struct Padded<R> {
    source: R,
    padding: Padding,
    len: u64,
    zeros: Option<u64>,
}

impl<R: Read> Padded<R> {
    fn new(source: R, padding: Padding) -> Self {
        Self {
            source,
            padding,
            len: 0,
            zeros: None,
        }
    }

    /// Fills the buffer; less than all of it only at the end.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, VaultError> {
        let mut filled = 0;
        while self.zeros.is_none() && filled < buffer.len() {
            match self.source.read(&mut buffer[filled..]) {
                Ok(0) => {
                    let padded = self.padding.padded(self.len).ok_or(VaultError::TooLarge)?;
                    self.zeros = Some(padded - self.len);
                }
                // A reader may claim more than it was given room for: believe no such claim.
                Ok(read) => {
                    let read = read.min(buffer.len() - filled);
                    filled += read;
                    self.len += read as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(VaultError::Transfer(e)),
            }
        }
        if let Some(zeros) = &mut self.zeros {
            let room = (buffer.len() - filled) as u64;
            let now = room.min(*zeros);
            buffer[filled..filled + now as usize].fill(0);
            filled += now as usize;
            *zeros -= now;
        }
        Ok(filled)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::Arena;

    #[test]
    fn no_key_seals_more_chunks_than_it_may() {
        let key = SecretKey::random(&Arena::default()).unwrap();
        let cipher = ChunkCipher::new(&key, [0; 32]).unwrap();
        let seal = |sealed: u64| {
            // Zeros that nobody looks at take up no memory.
            let mut tags = vec![0; sealed as usize * TAG_LEN];
            seal_all(&cipher, &mut [7], 4096, true, &mut tags)
        };
        assert!(seal(10).is_ok());
        assert!(matches!(seal(MAX_CHUNKS), Err(VaultError::TooLarge)));
    }
}
