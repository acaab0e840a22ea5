//! The files `manifest.a` and `manifest.b`: the newest commit, and the one before it.
//!
//! ```text
//! "CSMMANIF" | format u16 | suite u8 | 0 (5) | vault id 16 | generation u64 | box of 3976 + 80 bytes
//! box: previous root 32 | header epoch u64 | key epoch u64 | policy epoch u64 | audit size u64
//!      audit root 32 | writer fence u64 | time u64 | object count u64 | segment count u16 | segments | 0…
//! segment: id 16 | file length u64 | SHA-256 of the file 32
//! ```
//!
//! An even generation goes to `a`, an odd one to `b`. The SHA-256 of all 4096 bytes is the vault's
//! root.

use super::{Id, Malformed, Reader, SUITE, Writer};
use crate::sealed::OVERHEAD;

/// Bytes of a manifest file.
pub(crate) const LEN: usize = 4096;

/// Most index segments a manifest lists; version 1 writes one.
pub(crate) const MAX_SEGMENTS: usize = 64;

/// Bytes before the box; they are its context.
pub(crate) const FRONT_LEN: usize = 40;

const MAGIC: &[u8; 8] = b"CSMMANIF";
const BODY_LEN: usize = LEN - FRONT_LEN - OVERHEAD;

/// Names the file for this generation.
pub(crate) fn file(generation: u64) -> &'static str {
    FILES[usize::from(generation % 2 == 1)]
}

/// Both files.
pub(crate) const FILES: [&str; 2] = ["manifest.a", "manifest.b"];

/// One commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) generation: u64,
    pub(crate) previous: [u8; 32],
    pub(crate) header_epoch: u64,
    pub(crate) key_epoch: u64,
    pub(crate) policy_epoch: u64,
    pub(crate) audit_size: u64,
    pub(crate) audit_root: [u8; 32],
    pub(crate) writer_fence: u64,
    /// Nanoseconds since the Unix epoch.
    pub(crate) time: u64,
    pub(crate) objects: u64,
    pub(crate) segments: Vec<Segment>,
}

/// Where a part of the index is, and what it must hash to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) id: Id,
    pub(crate) len: u64,
    pub(crate) digest: [u8; 32],
}

/// The bytes in front of the box.
pub(crate) fn front(vault_id: &Id, generation: u64) -> Vec<u8> {
    let mut front = Writer::magic(MAGIC);
    front
        .u8(SUITE)
        .bytes(&[0; 5])
        .bytes(vault_id)
        .u64(generation);
    front.finish()
}

/// Reads the bytes in front of the box, of this vault; returns the generation.
pub(crate) fn parse_front(file: &[u8], vault_id: &Id) -> Result<u64, Malformed> {
    if file.len() != LEN {
        return Err(Malformed::Field);
    }
    let mut front = Reader::new(file);
    front.magic(MAGIC)?;
    front.expect(&[SUITE])?;
    front.expect(&[0; 5])?;
    front.expect(vault_id)?;
    front.u64()
}

impl Manifest {
    /// The content of the box.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(&self.previous)
            .u64(self.header_epoch)
            .u64(self.key_epoch);
        out.u64(self.policy_epoch)
            .u64(self.audit_size)
            .bytes(&self.audit_root);
        out.u64(self.writer_fence).u64(self.time).u64(self.objects);
        out.u16(self.segments.len() as u16);
        for segment in &self.segments {
            out.bytes(&segment.id)
                .u64(segment.len)
                .bytes(&segment.digest);
        }
        out.pad_to(BODY_LEN);
        out.finish()
    }

    /// Parses the content of the box.
    pub(crate) fn parse(generation: u64, body: &[u8]) -> Result<Self, Malformed> {
        let mut body = Reader::new(body);
        let (previous, header_epoch, key_epoch) = (body.array()?, body.u64()?, body.u64()?);
        let (policy_epoch, audit_size, audit_root) = (body.u64()?, body.u64()?, body.array()?);
        let (writer_fence, time, objects) = (body.u64()?, body.u64()?, body.u64()?);
        let count = usize::from(body.u16()?);
        if count == 0 || count > MAX_SEGMENTS {
            return Err(Malformed::Field);
        }
        let segments = (0..count)
            .map(|_| {
                Ok(Segment {
                    id: body.array()?,
                    len: body.u64()?,
                    digest: body.array()?,
                })
            })
            .collect::<Result<_, _>>()?;
        body.only_zeros()?;
        Ok(Self {
            generation,
            previous,
            header_epoch,
            key_epoch,
            policy_epoch,
            audit_size,
            audit_root,
            writer_fence,
            time,
            objects,
            segments,
        })
    }
}
