//! The file `vault`: who this vault is, and the slots that hold its root key.
//!
//! ```text
//! "CSMVAULT" | format u16 | suite u8 | chunk log2 u8 | padding u8 | 0 (3) | vault id 16
//! header epoch u64 | slot count u16 | 0 (6) | slots | SHA-256 of all before 32 | HMAC 32
//! slot: id 16 | kind u8 | wrap u8 | parameter length u16 | epoch u64 | parameters | sealed root key 112
//! ```

use super::{ChunkSize, Id, Malformed, Padding, Reader, SUITE, Writer};
use crate::sealed::{OVERHEAD, sha256};

/// Name of the header's file.
pub(crate) const FILE: &str = "vault";

/// Name of the next header, until it takes the place of the other.
pub(crate) const NEXT_FILE: &str = "vault.new";

/// Most bytes of a header: more is refused unread.
pub(crate) const MAX_LEN: usize = 64 * 1024;

/// Most slots in a header.
pub(crate) const MAX_SLOTS: usize = 16;

/// Most bytes of a slot's parameters.
pub(crate) const MAX_PARAMETERS: usize = 1024;

/// Bytes of a sealed root key.
pub(crate) const SEALED_KEY_LEN: usize = 32 + OVERHEAD;

const MAGIC: &[u8; 8] = b"CSMVAULT";
const CHECKSUM_LEN: usize = 32;
const MAC_LEN: usize = 32;
/// The box of [`crate::sealed`].
const WRAP: u8 = 1;

/// The header, parsed and free of accidental damage; believed only after its MAC was checked.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    pub(crate) vault_id: Id,
    pub(crate) chunk: ChunkSize,
    pub(crate) padding: Padding,
    pub(crate) epoch: u64,
    pub(crate) slots: Vec<Slot>,
}

/// One way to the root key.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    pub(crate) id: Id,
    pub(crate) kind: u8,
    pub(crate) epoch: u64,
    pub(crate) parameters: Vec<u8>,
    pub(crate) sealed_key: [u8; SEALED_KEY_LEN],
}

impl Slot {
    /// What the sealed root key is bound to.
    pub(crate) fn context(&self, vault_id: &Id) -> Vec<u8> {
        context(vault_id, &self.id, self.kind, self.epoch, &self.parameters)
    }
}

/// What a sealed root key is bound to: vault id | slot id | epoch | kind | wrap | parameters.
pub(crate) fn context(vault: &Id, slot: &Id, kind: u8, epoch: u64, parameters: &[u8]) -> Vec<u8> {
    let mut context = Writer::default();
    context
        .bytes(vault)
        .bytes(slot)
        .u64(epoch)
        .u8(kind)
        .u8(WRAP)
        .bytes(parameters);
    context.finish()
}

impl Header {
    /// Everything that the MAC covers.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Writer::magic(MAGIC);
        out.u8(SUITE)
            .u8(self.chunk.log2())
            .u8(self.padding.to_byte())
            .bytes(&[0; 3]);
        out.bytes(&self.vault_id).u64(self.epoch);
        out.u16(self.slots.len() as u16).bytes(&[0; 6]);
        for slot in &self.slots {
            out.bytes(&slot.id)
                .u8(slot.kind)
                .u8(WRAP)
                .u16(slot.parameters.len() as u16);
            out.u64(slot.epoch)
                .bytes(&slot.parameters)
                .bytes(&slot.sealed_key);
        }
        let checksum = sha256(&[out.as_slice()]);
        out.bytes(&checksum);
        out.finish()
    }

    /// Parses the file; returns the header, the bytes its MAC covers, and the MAC.
    pub(crate) fn parse(file: &[u8]) -> Result<(Self, &[u8], &[u8; MAC_LEN]), Malformed> {
        let mut front = Reader::new(file);
        front.magic(MAGIC)?;
        let (covered, mac) = file.split_last_chunk::<MAC_LEN>().ok_or(Malformed::Field)?;
        let (body, checksum) = covered
            .split_last_chunk::<CHECKSUM_LEN>()
            .ok_or(Malformed::Field)?;
        if sha256(&[body]) != *checksum {
            return Err(Malformed::Field);
        }
        let mut body = Reader::new(body);
        body.magic(MAGIC)?;
        body.expect(&[SUITE])?;
        let chunk = ChunkSize::from_log2(body.u8()?)?;
        let padding = Padding::from_byte(body.u8()?)?;
        body.expect(&[0; 3])?;
        let vault_id = body.array()?;
        let epoch = body.u64()?;
        let count = usize::from(body.u16()?);
        body.expect(&[0; 6])?;
        if count == 0 || count > MAX_SLOTS {
            return Err(Malformed::Field);
        }
        let slots = (0..count)
            .map(|_| slot(&mut body))
            .collect::<Result<_, _>>()?;
        if !body.is_empty() {
            return Err(Malformed::Field);
        }
        Ok((
            Self {
                vault_id,
                chunk,
                padding,
                epoch,
                slots,
            },
            covered,
            mac,
        ))
    }
}

fn slot(body: &mut Reader<'_>) -> Result<Slot, Malformed> {
    let id = body.array()?;
    let kind = body.u8()?;
    body.expect(&[WRAP])?;
    let len = usize::from(body.u16()?);
    if len > MAX_PARAMETERS {
        return Err(Malformed::Field);
    }
    let epoch = body.u64()?;
    let parameters = body.take(len)?.to_vec();
    Ok(Slot {
        id,
        kind,
        epoch,
        parameters,
        sealed_key: body.array()?,
    })
}
