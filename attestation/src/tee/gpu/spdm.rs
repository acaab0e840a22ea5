//! A GPU's report, as bytes and as fields.
//!
//! Follows "Security Protocol and Data Model (SPDM) Specification", version 1.1, GET_MEASUREMENTS
//! and MEASUREMENTS messages, and NVIDIA's Attestation SDK for the opaque data:
//!
//! ```text
//! request   0x11 0xe0 attributes operation | nonce 32 | slot 1
//! response  0x11 0x60 param param | blocks 1 | length 3 | blocks | nonce 32
//!           | length 2, opaque data: { type 2, length 2, value } | signature 96
//! block     index 1 | 1 | length 2 | kind 1 | length 2 | digest 48
//! ```
//!
//! Numbers are little endian; the signature is r ‖ s, big endian, over everything before it.

use crate::encoding::Hex;

const SIGNATURE: usize = 96;
/// The driver hands reports out in buffers that may be longer.
const MAX_PADDING: usize = 64;

/// Types of opaque data.
const DRIVER_VERSION: u16 = 3;
const VBIOS_VERSION: u16 = 6;
const BOARD: u16 = 14;
const FIRMWARE_ID: u16 = 20;

/// Why bytes are not a GPU's report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuReportError {
    /// The report ends within a field.
    #[error("the GPU report ends within `{0}`")]
    Truncated(&'static str),
    /// A message is not the one that is expected.
    #[error("`{0}` of the GPU report is not as it must be")]
    Field(&'static str),
    /// The device was not asked to sign, or not for all its measurements.
    #[error("the GPU was not asked for signed measurements of everything")]
    Request,
    /// A measurement occurs twice.
    #[error("measurement {0} occurs twice")]
    Duplicate(u8),
    /// A measurement is not a SHA-384 digest.
    #[error("measurement {0} is no SHA-384 digest")]
    Measurement(u8),
    /// Something other than zeroes follows the report.
    #[error("{0} bytes follow the GPU report")]
    Trailing(usize),
}

impl GpuReportError {
    /// The stable name of this reason.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Truncated(_) => "gpu-report-truncated",
            Self::Field(_) => "gpu-report-malformed",
            Self::Request => "gpu-report-request",
            Self::Duplicate(_) => "gpu-report-duplicate",
            Self::Measurement(_) => "gpu-report-measurement",
            Self::Trailing(_) => "gpu-report-trailing",
        }
    }
}

/// A report, before its signature was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GpuReport<'a> {
    pub(super) signed: &'a [u8],
    pub(super) signature: &'a [u8],
    nonce: [u8; 32],
    /// Index and digest, in the order of the report.
    measurements: Vec<(u8, Hex<48>)>,
    opaque: Vec<(u16, &'a [u8])>,
}

impl<'a> GpuReport<'a> {
    /// Reads a report; zeroes may follow it.
    ///
    /// # Errors
    ///
    /// [`GpuReportError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, GpuReportError> {
        let mut cursor = Cursor(bytes);
        let [version, code, attributes, operation] = cursor.array("request")?;
        if (version, code) != (0x11, 0xe0) {
            return Err(GpuReportError::Field("request"));
        }
        // Sign; all measurements.
        if attributes & 1 == 0 || operation != 0xff {
            return Err(GpuReportError::Request);
        }
        let nonce = cursor.array("nonce")?;
        cursor.take(1, "slot")?;

        let [version, code, _, _] = cursor.array("response")?;
        if (version, code) != (0x11, 0x60) {
            return Err(GpuReportError::Field("response"));
        }
        let [count] = cursor.array("number of blocks")?;
        let [low, middle, high] = cursor.array("length of blocks")?;
        let length = usize::try_from(u32::from_le_bytes([low, middle, high, 0]))
            .map_err(|_| GpuReportError::Field("length of blocks"))?;
        let measurements = measurements(cursor.take(length, "blocks")?, count)?;
        cursor.take(32, "nonce of the response")?;
        let length = usize::from(u16::from_le_bytes(cursor.array("length of opaque data")?));
        let opaque = opaque(cursor.take(length, "opaque data")?)?;
        let signed = bytes
            .get(..bytes.len().saturating_sub(cursor.0.len()))
            .unwrap_or_default();
        let signature = cursor.take(SIGNATURE, "signature")?;
        if cursor.0.len() > MAX_PADDING || cursor.0.iter().any(|byte| *byte != 0) {
            return Err(GpuReportError::Trailing(cursor.0.len()));
        }
        Ok(Self {
            signed,
            signature,
            nonce,
            measurements,
            opaque,
        })
    }

    /// What the report was asked for with.
    #[must_use]
    pub fn nonce(&self) -> &[u8; 32] {
        &self.nonce
    }

    /// Index and digest of each measurement.
    #[must_use]
    pub fn measurements(&self) -> &[(u8, Hex<48>)] {
        &self.measurements
    }

    /// Version of the driver, for example `550.90.07`.
    #[must_use]
    pub fn driver_version(&self) -> Option<String> {
        let text = self.opaque(DRIVER_VERSION)?;
        let end = text
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(text.len());
        let text = text.get(..end).unwrap_or_default();
        text.is_ascii()
            .then(|| String::from_utf8_lossy(text).into_owned())
    }

    /// Version of the VBIOS, for example `96.00.9f.00.01`.
    #[must_use]
    pub fn vbios_version(&self) -> Option<String> {
        // Two numbers of four bytes: the first gives four digits, the second the last.
        let bytes: [u8; 8] = self.opaque(VBIOS_VERSION)?.try_into().ok()?;
        let [d, c, b, a, e, ..] = bytes;
        Some(format!("{a:02x}.{b:02x}.{c:02x}.{d:02x}.{e:02x}"))
    }

    /// Identity of the board.
    #[must_use]
    pub fn board(&self) -> Option<u32> {
        let bytes = self.opaque(BOARD)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    }

    /// Digest of the firmware whose key signed, as its certificate has to state it too.
    #[must_use]
    pub fn firmware_id(&self) -> Option<Hex<48>> {
        self.opaque(FIRMWARE_ID)?.try_into().ok().map(Hex)
    }

    fn opaque(&self, kind: u16) -> Option<&'a [u8]> {
        let mut found = self.opaque.iter().filter(|(other, _)| *other == kind);
        found.next().map(|(_, value)| *value)
    }
}

fn measurements(blocks: &[u8], count: u8) -> Result<Vec<(u8, Hex<48>)>, GpuReportError> {
    const WHAT: &str = "blocks";
    let mut cursor = Cursor(blocks);
    let mut found: Vec<(u8, Hex<48>)> = Vec::new();
    for _ in 0..count {
        let [index, specification] = cursor.array(WHAT)?;
        let length = usize::from(u16::from_le_bytes(cursor.array(WHAT)?));
        let mut measurement = Cursor(cursor.take(length, WHAT)?);
        if specification != 1 {
            return Err(GpuReportError::Field(WHAT));
        }
        // Kind (of what was measured; a raw value has bit 7), length, value.
        let [kind] = measurement.array(WHAT)?;
        let length = usize::from(u16::from_le_bytes(measurement.array(WHAT)?));
        let value = measurement.take(length, WHAT)?;
        let digest = value.try_into().ok().filter(|_| kind & 0x80 == 0);
        let digest = digest.ok_or(GpuReportError::Measurement(index))?;
        if !measurement.0.is_empty() {
            return Err(GpuReportError::Field(WHAT));
        }
        if found.iter().any(|(other, _)| *other == index) {
            return Err(GpuReportError::Duplicate(index));
        }
        found.push((index, Hex(digest)));
    }
    if !cursor.0.is_empty() {
        return Err(GpuReportError::Field(WHAT));
    }
    Ok(found)
}

fn opaque(bytes: &[u8]) -> Result<Vec<(u16, &[u8])>, GpuReportError> {
    const WHAT: &str = "opaque data";
    let mut cursor = Cursor(bytes);
    let mut fields: Vec<(u16, &[u8])> = Vec::new();
    while !cursor.0.is_empty() {
        let kind = u16::from_le_bytes(cursor.array(WHAT)?);
        let length = usize::from(u16::from_le_bytes(cursor.array(WHAT)?));
        let value = cursor.take(length, WHAT)?;
        if fields.iter().any(|(other, _)| *other == kind) {
            return Err(GpuReportError::Field(WHAT));
        }
        fields.push((kind, value));
    }
    Ok(fields)
}

/// What is left to be read.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], GpuReportError> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(GpuReportError::Truncated(what))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GpuReportError> {
        let bytes = self.take(N, what)?;
        bytes.try_into().map_err(|_| GpuReportError::Field(what))
    }
}
