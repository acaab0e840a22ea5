//! What OVMF says about itself to whoever launches it.
//!
//! Follows OVMF's reset vector: a table of entries, each before its GUID and length, that ends 32
//! bytes before the end of the file, and the SEV metadata that one of the entries points at.

/// 4 GiB: where the firmware ends.
const END: u64 = 0x1_0000_0000;
/// Firmware is never larger.
const MAX_FIRMWARE: usize = 64 * 1024 * 1024;
const MAX_SECTIONS: u32 = 64;
/// Sections describe the guest's first megabytes; more would only make us hash for long.
const MAX_SECTION: u32 = 256 * 1024 * 1024;

type Guid = [u8; 16];
const FOOTER: Guid = *b"\xde\x82\xb5\x96\xb2\x1f\xf7\x45\xba\xea\xa3\x66\xc5\x5a\x08\x2d";
const HASH_TABLE: Guid = *b"\x1f\x37\x55\x72\x3b\x3a\x04\x4b\x92\x7b\x1d\xa6\xef\xa8\xd4\x54";
const RESET_BLOCK: Guid = *b"\xde\x71\xf7\x00\x7e\x1a\xcb\x4f\x89\x0e\x68\xc7\x7e\x2f\xb4\x4e";
const METADATA: Guid = *b"\x66\x65\x88\xdc\x4a\x98\x98\x47\xa7\x5e\x55\x85\xa7\xbf\x67\xcc";

/// Why firmware cannot be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FirmwareError {
    /// The firmware is empty, no whole number of pages, or larger than any.
    #[error("firmware of {0} bytes is not a whole number of pages up to 64 MiB")]
    Length(usize),
    /// The table at the end of the firmware is not as OVMF writes it.
    #[error("the firmware does not end with OVMF's table of GUIDs")]
    Footer,
    /// The firmware does not say where a second vCPU starts.
    #[error("the firmware does not say where further vCPUs start")]
    ResetBlock,
    /// The firmware was not built for SEV-SNP.
    #[error("the firmware has no SEV metadata, so it is not for SEV-SNP")]
    NoMetadata,
    /// The metadata are not as OVMF writes them.
    #[error("the SEV metadata of the firmware are malformed")]
    Metadata,
    /// The metadata name a kind of section that is not known.
    #[error("the SEV metadata of the firmware have a section of unknown type {0:#x}")]
    Section(u32),
    /// A kernel is to be loaded and the firmware does not check it.
    #[error(
        "the firmware does not measure a kernel that the host loads; build it for that or leave the kernel out"
    )]
    NoKernelHashes,
}

/// What a section of the guest's memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Zeroes,
    Secrets,
    Cpuid,
    KernelHashes,
}

/// A section of the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) address: u64,
    pub(super) length: u32,
    pub(super) purpose: Purpose,
}

/// Firmware, as far as launching needs it.
#[derive(Clone, Debug)]
pub(super) struct Firmware<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) sections: Vec<Section>,
    /// Where the table of kernel hashes goes.
    pub(super) hash_table: Option<u64>,
    reset: Option<u32>,
}

impl<'a> Firmware<'a> {
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, FirmwareError> {
        if bytes.is_empty()
            || bytes.len() > MAX_FIRMWARE
            || !bytes.len().is_multiple_of(super::page::PAGE)
        {
            return Err(FirmwareError::Length(bytes.len()));
        }
        let table = Table::of(bytes).ok_or(FirmwareError::Footer)?;
        let word = |guid| table.entry(guid).and_then(|entry| number(entry, 0));
        let from_end = word(&METADATA).ok_or(FirmwareError::NoMetadata)?;
        let metadata = usize::try_from(from_end)
            .ok()
            .and_then(|from_end| bytes.len().checked_sub(from_end))
            .and_then(|start| bytes.get(start..))
            .ok_or(FirmwareError::Metadata)?;
        Ok(Self {
            bytes,
            sections: sections(metadata)?,
            hash_table: word(&HASH_TABLE).filter(|it| *it != 0).map(u64::from),
            reset: word(&RESET_BLOCK),
        })
    }

    /// Where it is loaded to: right below 4 GiB.
    pub(super) fn address(&self) -> u64 {
        END.saturating_sub(u64::try_from(self.bytes.len()).unwrap_or(END))
    }

    /// Where vCPUs but the first start.
    pub(super) fn reset(&self) -> Result<u32, FirmwareError> {
        self.reset.ok_or(FirmwareError::ResetBlock)
    }
}

fn sections(metadata: &[u8]) -> Result<Vec<Section>, FirmwareError> {
    const WRONG: FirmwareError = FirmwareError::Metadata;
    const HEADER: usize = 16;
    let length = number(metadata, 4).ok_or(WRONG)?;
    let count = number(metadata, 12).filter(|count| *count <= MAX_SECTIONS);
    let count = count.ok_or(WRONG)?;
    let is_ours = metadata.starts_with(b"ASEV") && number(metadata, 8) == Some(1);
    // Header and items of three numbers each.
    let expected = count
        .checked_mul(12)
        .and_then(|items| items.checked_add(16));
    if !is_ours || expected.is_none_or(|expected| length < expected) {
        return Err(WRONG);
    }
    (0..usize::try_from(count).map_err(|_| WRONG)?)
        .map(|index| {
            let at = index.saturating_mul(12).saturating_add(HEADER);
            let field = |offset| number(metadata, at.saturating_add(offset)).ok_or(WRONG);
            let purpose = match field(8)? {
                // Zeroed memory; the calling area of an SVSM, zero as well.
                1 | 4 => Purpose::Zeroes,
                2 => Purpose::Secrets,
                3 => Purpose::Cpuid,
                0x10 => Purpose::KernelHashes,
                other => return Err(FirmwareError::Section(other)),
            };
            let section = Section {
                address: u64::from(field(0)?),
                length: field(4)?,
                purpose,
            };
            if section.length > MAX_SECTION {
                return Err(WRONG);
            }
            Ok(section)
        })
        .collect()
}

/// The entries before the footer.
struct Table<'a>(&'a [u8]);

impl<'a> Table<'a> {
    fn of(bytes: &'a [u8]) -> Option<Self> {
        // The reset vector takes the last 32 bytes.
        let before = bytes.get(..bytes.len().checked_sub(32)?)?;
        let (rest, length) = last_entry(before, &FOOTER)?;
        // The length is that of the whole table, with the footer's 18 bytes.
        let entries = length.checked_sub(18)?;
        Some(Self(rest.get(rest.len().checked_sub(entries)?..)?))
    }

    /// What comes before the GUID of an entry.
    fn entry(&self, wanted: &Guid) -> Option<&'a [u8]> {
        let mut rest = self.0;
        while rest.len() >= 18 {
            let (_, guid) = rest.split_last_chunk::<16>()?;
            let (data, length) = last_entry(rest, guid)?;
            let data_length = length.checked_sub(18)?;
            let start = data.len().checked_sub(data_length)?;
            if guid == wanted {
                return data.get(start..);
            }
            rest = data.get(..start)?;
        }
        None
    }
}

/// What comes before the length and the GUID at the end, and the length.
fn last_entry<'a>(bytes: &'a [u8], expected: &Guid) -> Option<(&'a [u8], usize)> {
    let (rest, guid) = bytes.split_last_chunk::<16>()?;
    let (rest, length) = rest.split_last_chunk::<2>()?;
    (guid == expected).then(|| (rest, usize::from(u16::from_le_bytes(*length))))
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*bytes))
}
