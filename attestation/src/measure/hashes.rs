//! Digests of what the host loads beside the firmware, as the firmware finds them in memory.
//!
//! Follows QEMU's "SEV hash table" and OVMF's `QemuKernelLoaderFs` blob verifier.

use ring::digest::{SHA256, digest};

use crate::encoding::Hex;

use super::page::PAGE;

const TABLE: [u8; 16] = *b"\x06\xd6\x38\x94\x22\x4f\xc9\x4c\xb4\x79\xa7\x93\xd4\x11\xfd\x21";
const COMMAND_LINE: [u8; 16] = *b"\xd8\x2d\xd0\x97\x20\xbd\x94\x4c\xaa\x78\xe7\x71\x4d\x36\xab\x2a";
const INITRD: [u8; 16] = *b"\x31\xf7\xba\x44\x2f\x3a\xd7\x4b\x9a\xf1\x41\xe2\x91\x69\x78\x1d";
const KERNEL: [u8; 16] = *b"\x37\x94\xe7\x4d\xd2\xab\x7f\x42\xb8\x35\xd5\xb1\x72\xd2\x04\x5b";

/// SHA-256 of kernel, initial RAM disk and command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelHashes {
    pub(super) kernel: Hex<32>,
    pub(super) initrd: Hex<32>,
    pub(super) command_line: Hex<32>,
}

impl KernelHashes {
    /// Digests what the host is told to load; what is not given counts as empty.
    #[must_use]
    pub fn of(kernel: &[u8], initrd: Option<&[u8]>, command_line: Option<&str>) -> Self {
        // The command line is passed with the NUL at its end.
        let command_line = [command_line.unwrap_or_default().as_bytes(), b"\0"].concat();
        Self {
            kernel: sha256(kernel),
            initrd: sha256(initrd.unwrap_or_default()),
            command_line: sha256(&command_line),
        }
    }

    /// The page that holds the table, which begins at this offset into it.
    pub(super) fn page(&self, offset: usize) -> Option<[u8; PAGE]> {
        let entry =
            |guid: [u8; 16], hash: &Hex<32>| [&guid[..], &50_u16.to_le_bytes(), &hash.0].concat();
        let table = [
            &TABLE[..],
            &168_u16.to_le_bytes(),
            &entry(COMMAND_LINE, &self.command_line),
            &entry(INITRD, &self.initrd),
            &entry(KERNEL, &self.kernel),
        ]
        .concat();
        let mut page = [0; PAGE];
        let place = page.get_mut(offset..)?.get_mut(..table.len())?;
        place.copy_from_slice(&table);
        Some(page)
    }
}

pub(super) fn sha256(bytes: &[u8]) -> Hex<32> {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    Hex(hash)
}
