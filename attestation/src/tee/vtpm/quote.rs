//! A TPM's quote and signature, as bytes and as fields.
//!
//! Follows "Trusted Platform Module Library, Part 2: Structures": TPMS_ATTEST, TPMS_QUOTE_INFO,
//! TPML_PCR_SELECTION, TPMT_SIGNATURE. All numbers are big endian.

/// TPM_GENERATED_VALUE: begins everything that a TPM made itself, and nothing else that it signs.
const GENERATED: u32 = 0xff54_4347;
/// TPM_ST_ATTEST_QUOTE.
const QUOTE: u16 = 0x8018;
const RSASSA: u16 = 0x0014;
const RSAPSS: u16 = 0x0016;
const ECDSA: u16 = 0x0018;
/// TPM_ALG_SHA256.
pub(super) const SHA256: u16 = 0x000b;
const SHA384: u16 = 0x000c;

/// The hash of a signature scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HashAlgorithm {
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
}

/// Why bytes are not a quote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// A length or field is not as the specification says.
    Field(&'static str),
    /// The TPM did not make these bytes itself.
    Magic,
    /// The bytes attest something else.
    Kind(u16),
}

/// A quote, before its signature was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TpmQuote<'a> {
    /// Name of the key that signed, qualified by its parents.
    pub(super) signer: &'a [u8],
    /// What the caller asked the TPM to bind the quote to.
    pub(super) extra_data: &'a [u8],
    pub(super) clock: u64,
    pub(super) reset_count: u32,
    pub(super) restart_count: u32,
    pub(super) firmware_version: u64,
    /// Banks of PCRs: hash algorithm, and the numbers.
    pub(super) selected: Vec<(u16, Vec<u8>)>,
    pub(super) pcr_digest: &'a [u8],
}

impl<'a> TpmQuote<'a> {
    /// Reads a TPMS_ATTEST that is a quote; `None` if it is anything else.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        Self::read(bytes).ok()
    }

    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut cursor = Cursor(bytes);
        if cursor.u32("magic")? != GENERATED {
            return Err(Malformed::Magic);
        }
        let kind = cursor.u16("type")?;
        if kind != QUOTE {
            return Err(Malformed::Kind(kind));
        }
        let signer = cursor.sized("qualifiedSigner")?;
        let extra_data = cursor.sized("extraData")?;
        let clock = cursor.u64("clockInfo")?;
        let reset_count = cursor.u32("clockInfo")?;
        let restart_count = cursor.u32("clockInfo")?;
        cursor.take(1, "clockInfo")?;
        let firmware_version = cursor.u64("firmwareVersion")?;
        let selected = selection(&mut cursor)?;
        let pcr_digest = cursor.sized("pcrDigest")?;
        cursor.end("pcrDigest")?;
        Ok(Self {
            signer,
            extra_data,
            clock,
            reset_count,
            restart_count,
            firmware_version,
            selected,
            pcr_digest,
        })
    }

    /// What the quote is bound to.
    #[must_use]
    pub fn extra_data(&self) -> &'a [u8] {
        self.extra_data
    }
}

fn selection(cursor: &mut Cursor<'_>) -> Result<Vec<(u16, Vec<u8>)>, Malformed> {
    const WHAT: &str = "pcrSelect";
    /// A TPM has five banks at most.
    const MAX_BANKS: u32 = 8;
    let count = cursor.u32(WHAT)?;
    if count > MAX_BANKS {
        return Err(Malformed::Field(WHAT));
    }
    let mut selected = Vec::new();
    for _ in 0..count {
        let hash = cursor.u16(WHAT)?;
        let [length] = cursor.array(WHAT)?;
        if length > 4 {
            return Err(Malformed::Field(WHAT));
        }
        let bits = cursor.take(usize::from(length), WHAT)?;
        let is_on = |number: &u8| {
            let byte = bits.get(usize::from(number / 8));
            byte.is_some_and(|byte| byte >> (number % 8) & 1 == 1)
        };
        selected.push((hash, (0..32).filter(is_on).collect()));
    }
    Ok(selected)
}

/// A signature as a TPM gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TpmSignature<'a> {
    /// RSASSA-PKCS1-v1_5.
    RsaSsa {
        /// Its hash.
        hash: HashAlgorithm,
        /// The signature, big endian.
        signature: &'a [u8],
    },
    /// RSASSA-PSS.
    RsaPss {
        /// Its hash.
        hash: HashAlgorithm,
        /// The signature, big endian.
        signature: &'a [u8],
    },
    /// ECDSA.
    Ecdsa {
        /// Its hash.
        hash: HashAlgorithm,
        /// r, big endian.
        r: &'a [u8],
        /// s, big endian.
        s: &'a [u8],
    },
}

impl<'a> TpmSignature<'a> {
    /// Reads a TPMT_SIGNATURE; `None` if it is malformed or of another scheme.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        Self::read(bytes).ok()?
    }

    /// `Ok(None)` for a scheme or hash that is not supported.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Option<Self>, Malformed> {
        const WHAT: &str = "TPMT_SIGNATURE";
        let mut cursor = Cursor(bytes);
        let scheme = cursor.u16(WHAT)?;
        let hash = match cursor.u16(WHAT)? {
            SHA256 => HashAlgorithm::Sha256,
            SHA384 => HashAlgorithm::Sha384,
            _ => return Ok(None),
        };
        let signature = match scheme {
            RSASSA => Self::RsaSsa {
                hash,
                signature: cursor.sized(WHAT)?,
            },
            RSAPSS => Self::RsaPss {
                hash,
                signature: cursor.sized(WHAT)?,
            },
            ECDSA => Self::Ecdsa {
                hash,
                r: cursor.sized(WHAT)?,
                s: cursor.sized(WHAT)?,
            },
            _ => return Ok(None),
        };
        cursor.end(WHAT)?;
        Ok(Some(signature))
    }

    /// Writes a bare RSASSA-PKCS1-v1_5 signature with SHA-256, as tools for Azure hand it out, as a
    /// TPMT_SIGNATURE.
    #[must_use]
    pub fn from_rsassa_sha256(signature: &[u8]) -> Vec<u8> {
        let length = u16::try_from(signature.len()).unwrap_or(u16::MAX);
        let mut bytes = Vec::new();
        for number in [RSASSA, SHA256, length] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(signature);
        bytes
    }

    pub(super) fn hash(&self) -> HashAlgorithm {
        let (Self::RsaSsa { hash, .. } | Self::RsaPss { hash, .. } | Self::Ecdsa { hash, .. }) =
            self;
        *hash
    }
}

/// What is left to be read.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(Malformed::Field(what))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        let bytes = self.take(N, what)?;
        bytes.try_into().map_err(|_| Malformed::Field(what))
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        self.array(what).map(u16::from_be_bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_be_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_be_bytes)
    }

    /// A TPM2B: bytes after their length.
    fn sized(&mut self, what: &'static str) -> Result<&'a [u8], Malformed> {
        let length = self.u16(what)?;
        self.take(usize::from(length), what)
    }

    fn end(&self, what: &'static str) -> Result<(), Malformed> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(Malformed::Field(what))
        }
    }
}
