//! The launch digest, extended page by page.
//!
//! Follows "SEV Secure Nested Paging Firmware ABI Specification", SNP_LAUNCH_UPDATE, PAGE_INFO
//! structure.

use ring::digest::{Context, SHA384, digest};

use crate::encoding::Hex;

pub(super) const PAGE: usize = 4096;
/// Where the digest has every VMSA, whichever vCPU it belongs to.
const VMSA_ADDRESS: u64 = 0xffff_ffff_f000;

/// PAGE_TYPE.
#[derive(Clone, Copy)]
enum Kind {
    Normal = 1,
    Vmsa = 2,
    Zero = 3,
    Secrets = 5,
    Cpuid = 6,
}

/// A launch digest under way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct LaunchDigest(pub(super) Hex<48>);

impl LaunchDigest {
    pub(super) fn new() -> Self {
        Self(Hex([0; 48]))
    }

    /// Adds bytes that are loaded from this address on; the last page is filled with zeroes.
    pub(super) fn load(&mut self, address: u64, bytes: &[u8]) {
        for (address, chunk) in (address..).step_by(PAGE).zip(bytes.chunks(PAGE)) {
            let mut page = [0; PAGE];
            page.iter_mut()
                .zip(chunk)
                .for_each(|(to, from)| *to = *from);
            self.extend(Kind::Normal, address, &contents(&page));
        }
    }

    pub(super) fn vmsa(&mut self, contents: &[u8; 48]) {
        self.extend(Kind::Vmsa, VMSA_ADDRESS, contents);
    }

    pub(super) fn zeroes(&mut self, address: u64, length: u32) {
        let end = address.saturating_add(u64::from(length));
        for address in (address..end).step_by(PAGE) {
            self.extend(Kind::Zero, address, &[0; 48]);
        }
    }

    pub(super) fn secrets(&mut self, address: u64) {
        self.extend(Kind::Secrets, address, &[0; 48]);
    }

    pub(super) fn cpuid(&mut self, address: u64) {
        self.extend(Kind::Cpuid, address, &[0; 48]);
    }

    fn extend(&mut self, kind: Kind, address: u64, contents: &[u8; 48]) {
        const LENGTH: u16 = 0x70;
        let mut info = Context::new(&SHA384);
        info.update(&self.0.0);
        info.update(contents);
        info.update(&LENGTH.to_le_bytes());
        // Kind; not of a migration agent; no permissions for VMPL 3, 2, 1; reserved.
        info.update(&[kind as u8, 0, 0, 0, 0, 0]);
        info.update(&address.to_le_bytes());
        self.0.0.copy_from_slice(info.finish().as_ref());
    }
}

/// The digest of a page.
pub(super) fn contents(page: &[u8]) -> [u8; 48] {
    let mut contents = [0; 48];
    contents.copy_from_slice(digest(&SHA384, page).as_ref());
    contents
}
