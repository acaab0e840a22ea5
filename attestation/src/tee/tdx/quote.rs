//! The TDX quote, as bytes and as fields.
//!
//! Follows "Intel TDX DCAP: Quote Generation Library and Quote Verification Library", appendix on
//! the quote format, versions 4 and 5, and "Intel TDX Module ABI Specification", TDREPORT_STRUCT.
//!
//! ```text
//! header ▏ [v5: body type, size] ▏ TD report ▏ length ▏ signature ▏ attestation key ▏ type 6 ▏ length
//!          ▏ QE report ▏ its signature ▏ length ▏ authentication data ▏ type 5 ▏ length ▏ PEM chain
//! ```
//!
//! Parsing looks at lengths and types only. Whether a quote is believed: `super::verifier`.

/// Bytes of a quote's header.
const HEADER_LENGTH: usize = 48;
/// Bytes of the report that the quoting enclave gives about itself.
pub(crate) const QE_REPORT_LENGTH: usize = 384;
/// `TEE_TYPE` of TDX; SGX has 0.
const TDX: u32 = 0x81;
/// The vendor of the only quoting enclave that Intel's collateral is about.
const INTEL_QE: &[u8; 16] = b"\x93\x9a\x72\x33\xf7\x9c\x4c\xa9\x94\x0a\x0d\xb3\x95\x7f\x06\x07";

/// Why bytes are not a TDX quote that can be verified offline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuoteError {
    /// The bytes end before the quote does, or a length inside of it says so.
    #[error("the quote ends within its {0}")]
    Truncated(&'static str),
    /// A part is shorter than the length stated for it.
    #[error("the quote has {extra} bytes too many in its {part}")]
    Length {
        /// The part with bytes that mean nothing.
        part: &'static str,
        /// How many.
        extra: usize,
    },
    /// The version is not 4 or 5.
    #[error("quote version {0} is not supported")]
    Version(u16),
    /// The attestation key is not ECDSA on P-256.
    #[error("attestation key type {0} is not supported")]
    KeyType(u16),
    /// The quote is of another kind of TEE, for example SGX.
    #[error("TEE type {0:#x} is not TDX")]
    TeeType(u32),
    /// The quoting enclave is not Intel's.
    #[error("the quoting enclave is not Intel's")]
    Vendor,
    /// The body is of an unknown type, or not as long as its type is.
    #[error("quote body of type {kind} with {length} bytes is not supported")]
    Body {
        /// Its type.
        kind: u16,
        /// Its stated length.
        length: u32,
    },
    /// The quote does not bring the certificates of its key.
    #[error("certification data of type {0} is not supported; the quote must bring its PCK chain")]
    Certification(u16),
    /// Something other than zeroes follows the quote.
    #[error("{0} bytes that are not all zero follow the quote")]
    Trailing(usize),
}

impl QuoteError {
    /// The stable name of this reason.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::Truncated(_) => "quote-truncated",
            Self::Length { .. } => "quote-length",
            Self::Version(_) => "quote-version",
            Self::KeyType(_) => "quote-key-type",
            Self::TeeType(_) => "quote-tee-type",
            Self::Vendor => "quote-vendor",
            Self::Body { .. } => "quote-body",
            Self::Certification(_) => "quote-certification",
            Self::Trailing(_) => "quote-trailing",
        }
    }
}

/// A quote of version 4 or 5 about a TD; every slice is part of the received bytes.
///
/// Holding one proves nothing about who made it.
#[derive(Clone)]
pub struct Quote<'a> {
    version: u16,
    report: TdReport<'a>,
    padding: usize,
    /// Header, descriptor and body.
    pub(super) signed: &'a [u8],
    /// r and s, big endian.
    pub(super) signature: &'a [u8; 64],
    /// x and y, big endian.
    pub(super) attestation_key: &'a [u8; 64],
    pub(super) qe_report: QeReport<'a>,
    pub(super) qe_signature: &'a [u8; 64],
    pub(super) qe_authentication: &'a [u8],
    /// PEM: PCK, PCK CA, root.
    pub(super) certificates: &'a [u8],
}

impl<'a> Quote<'a> {
    /// Reads a quote; zeroes may follow it, as in the fixed buffers that some hosts hand out.
    ///
    /// # Errors
    ///
    /// [`QuoteError`] says which part is not as it must be.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, QuoteError> {
        let mut cursor = Cursor(bytes);
        let header = cursor.array::<HEADER_LENGTH>("header")?;
        let version = header_fields(header)?;
        let (report, body_end) = body(version, bytes, &mut cursor)?;
        let signed = bytes.get(..body_end).unwrap_or_default();
        let length = cursor.u32("signature data")?;
        let mut data = Cursor(cursor.take(length, "signature data")?);
        if cursor.0.iter().any(|byte| *byte != 0) {
            return Err(QuoteError::Trailing(cursor.0.len()));
        }

        let signature = data.array("signature")?;
        let attestation_key = data.array("attestation key")?;
        let mut qe = data.certification(6)?;
        data.end("signature data")?;
        let qe_report = QeReport(qe.array("QE report")?);
        let qe_signature = qe.array("QE report signature")?;
        let length = qe.u16("QE authentication data")?;
        let qe_authentication = qe.take(length.into(), "QE authentication data")?;
        let certificates = qe.certification(5)?.0;
        qe.end("QE certification data")?;
        Ok(Self {
            version,
            report,
            padding: cursor.0.len(),
            signed,
            signature,
            attestation_key,
            qe_report,
            qe_signature,
            qe_authentication,
            certificates,
        })
    }

    /// Version of the quote's format: 4 or 5.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.version
    }

    /// The TD report in the quote.
    #[must_use]
    pub fn report(&self) -> TdReport<'a> {
        self.report
    }

    /// How many zeroes follow the quote; they are not signed.
    #[must_use]
    pub fn padding(&self) -> usize {
        self.padding
    }
}

impl std::fmt::Debug for Quote<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let signed = self.signed.len();
        write!(f, "Quote(version {}, {signed} signed bytes)", self.version)
    }
}

/// The version, once the other fields of the header are as they must be.
fn header_fields(header: &[u8; HEADER_LENGTH]) -> Result<u16, QuoteError> {
    let mut fields = Cursor(header);
    let version = fields.u16("header")?;
    if !matches!(version, 4 | 5) {
        return Err(QuoteError::Version(version));
    }
    let key_type = fields.u16("header")?;
    if key_type != 2 {
        return Err(QuoteError::KeyType(key_type));
    }
    let tee_type = fields.u32("header")?;
    if tee_type != TDX {
        return Err(QuoteError::TeeType(tee_type));
    }
    // SVNs of QE and PCE; reserved from version 4 on. The certificate and the QE report tell.
    fields.take(4, "header")?;
    if fields.array::<16>("header")? != INTEL_QE {
        return Err(QuoteError::Vendor);
    }
    Ok(version)
}

/// The body, and where in `bytes` it ends.
fn body<'a>(
    version: u16,
    bytes: &[u8],
    cursor: &mut Cursor<'a>,
) -> Result<(TdReport<'a>, usize), QuoteError> {
    // Version 4 has no descriptor, and is always about TDX 1.0 as the TEE type says.
    let (kind, length) = match version {
        4 => (2, TdReport::LENGTH_1_0),
        _ => (cursor.u16("body")?, cursor.u32("body")?),
    };
    let known = match kind {
        2 => TdReport::LENGTH_1_0,
        3 => TdReport::LENGTH_1_5,
        4 => TdReport::LENGTH_1_5_EX,
        _ => return Err(QuoteError::Body { kind, length }),
    };
    if length != known {
        return Err(QuoteError::Body { kind, length });
    }
    let report = TdReport(cursor.take(length, "body")?);
    Ok((report, bytes.len().saturating_sub(cursor.0.len())))
}

/// A TD report of TDX 1.0, 1.5 or 1.5 with the extension for service TDs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TdReport<'a>(&'a [u8]);

/// What a TD report says of the service TD that migrates it, from TDX 1.5 with extension on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceTd {
    /// SERVTD_HASH of the service TD that the TD was built with.
    pub initial_hash: [u8; 48],
    /// SERVTD_HASH of the service TD bound to it now.
    pub current_hash: [u8; 48],
}

impl TdReport<'_> {
    const LENGTH_1_0: u32 = 584;
    const LENGTH_1_5: u32 = 648;
    const LENGTH_1_5_EX: u32 = 885;

    /// TEE_TCB_SVN: versions of the TDX module and its loader when the TD was built.
    #[must_use]
    pub fn tee_tcb_svn(&self) -> [u8; 16] {
        self.array(0)
    }

    /// MRSEAM: SHA-384 of the TDX module.
    #[must_use]
    pub fn mr_seam(&self) -> [u8; 48] {
        self.array(16)
    }

    /// MRSIGNERSEAM: digest of the key that signed the TDX module; zeroes for Intel's.
    #[must_use]
    pub fn mr_signer_seam(&self) -> [u8; 48] {
        self.array(64)
    }

    /// SEAMATTRIBUTES, in the order of the bytes.
    #[must_use]
    pub fn seam_attributes(&self) -> [u8; 8] {
        self.array(112)
    }

    /// TDATTRIBUTES.
    #[must_use]
    pub fn td_attributes(&self) -> u64 {
        u64::from_le_bytes(self.array(120))
    }

    /// XFAM: what of the processor's extended state the TD may use.
    #[must_use]
    pub fn xfam(&self) -> u64 {
        u64::from_le_bytes(self.array(128))
    }

    /// MRTD: SHA-384 of what was built into the TD.
    #[must_use]
    pub fn mr_td(&self) -> [u8; 48] {
        self.array(136)
    }

    /// MRCONFIGID: what the host stated about configuration.
    #[must_use]
    pub fn mr_config_id(&self) -> [u8; 48] {
        self.array(184)
    }

    /// MROWNER: what the host stated about the owner.
    #[must_use]
    pub fn mr_owner(&self) -> [u8; 48] {
        self.array(232)
    }

    /// MROWNERCONFIG: what the host stated about the owner's configuration.
    #[must_use]
    pub fn mr_owner_config(&self) -> [u8; 48] {
        self.array(280)
    }

    /// RTMR0 to RTMR3: registers that the TD extends at run time.
    #[must_use]
    pub fn rtmrs(&self) -> [[u8; 48]; 4] {
        [328, 376, 424, 472].map(|offset| self.array(offset))
    }

    /// REPORTDATA: what the report is bound to.
    #[must_use]
    pub fn report_data(&self) -> [u8; 64] {
        self.array(520)
    }

    /// TEE_TCB_SVN_2: the versions in force now; from TDX 1.5 on.
    #[must_use]
    pub fn tee_tcb_svn_2(&self) -> Option<[u8; 16]> {
        self.is_at_least(Self::LENGTH_1_5).then(|| self.array(584))
    }

    /// MRSERVICETD: digest of the service TDs bound to it; from TDX 1.5 on.
    #[must_use]
    pub fn mr_service_td(&self) -> Option<[u8; 48]> {
        self.is_at_least(Self::LENGTH_1_5).then(|| self.array(600))
    }

    /// The service TD; from TDX 1.5 with extension on.
    #[must_use]
    pub fn service_td(&self) -> Option<ServiceTd> {
        self.is_at_least(Self::LENGTH_1_5_EX).then(|| ServiceTd {
            initial_hash: self.array(729),
            current_hash: self.array(829),
        })
    }

    fn is_at_least(&self, length: u32) -> bool {
        usize::try_from(length).is_ok_and(|length| self.0.len() >= length)
    }

    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        array(self.0, offset)
    }
}

impl std::fmt::Debug for TdReport<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TdReport({} bytes)", self.0.len())
    }
}

/// The report of the quoting enclave: an SGX REPORT.
#[derive(Clone, Copy)]
pub(crate) struct QeReport<'a>(pub(crate) &'a [u8; QE_REPORT_LENGTH]);

impl QeReport<'_> {
    pub(crate) fn misc_select(&self) -> [u8; 4] {
        array(self.0, 16)
    }

    pub(crate) fn attributes(&self) -> [u8; 16] {
        array(self.0, 48)
    }

    pub(crate) fn mr_signer(&self) -> [u8; 32] {
        array(self.0, 128)
    }

    pub(crate) fn isv_prod_id(&self) -> u16 {
        u16::from_le_bytes(array(self.0, 256))
    }

    pub(crate) fn isv_svn(&self) -> u16 {
        u16::from_le_bytes(array(self.0, 258))
    }

    pub(crate) fn report_data(&self) -> [u8; 64] {
        array(self.0, 320)
    }
}

/// `N` bytes from `offset`. Callers have checked that there are so many; zeroes stand in if not.
fn array<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes
        .get(offset..)
        .and_then(|rest| rest.first_chunk())
        .copied()
        .unwrap_or([0; N])
}

/// What is left to be read.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn array<const N: usize>(&mut self, part: &'static str) -> Result<&'a [u8; N], QuoteError> {
        let (array, rest) = self
            .0
            .split_first_chunk()
            .ok_or(QuoteError::Truncated(part))?;
        self.0 = rest;
        Ok(array)
    }

    fn take(&mut self, length: u32, part: &'static str) -> Result<&'a [u8], QuoteError> {
        let truncated = QuoteError::Truncated(part);
        let length = usize::try_from(length).map_err(|_| truncated)?;
        let (taken, rest) = self.0.split_at_checked(length).ok_or(truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u16(&mut self, part: &'static str) -> Result<u16, QuoteError> {
        self.array(part).map(|bytes| u16::from_le_bytes(*bytes))
    }

    fn u32(&mut self, part: &'static str) -> Result<u32, QuoteError> {
        self.array(part).map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// The content of certification data that must be of type `expected`.
    fn certification(&mut self, expected: u16) -> Result<Self, QuoteError> {
        let kind = self.u16("certification data")?;
        if kind != expected {
            return Err(QuoteError::Certification(kind));
        }
        let length = self.u32("certification data")?;
        self.take(length, "certification data").map(Self)
    }

    fn end(&self, part: &'static str) -> Result<(), QuoteError> {
        match self.0.len() {
            0 => Ok(()),
            extra => Err(QuoteError::Length { part, extra }),
        }
    }
}
