//! The report that Azure's paravisor (HCL) keeps in NV index 0x01400001 of its TPM.
//!
//! Follows "Azure confidential VMs guest attestation design", HCL report:
//!
//! ```text
//!    0  "HCLA"  header, 32 bytes
//!   32  report of the processor, 1184 bytes: SNP report, or TDREPORT (1024 bytes) and zeroes
//! 1216  u32 size, u32 version, u32 report type, u32 hash type, u32 length, runtime data (JSON)
//! ```
//!
//! Nothing but the processor's report is signed; its report data are the digest of the runtime data.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::evidence::Tee;

use super::key::AttestationKey;

/// The most bytes that runtime data may have.
pub const MAX_RUNTIME_DATA: usize = 16 * 1024;

const HEADER: usize = 32;
const HARDWARE: usize = 1184;
const RUNTIME_HEADER: usize = 20;

/// Why bytes are not an HCL report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HclError {
    /// The report ends too early.
    #[error("the HCL report ends within its {0}")]
    Truncated(&'static str),
    /// The report does not begin with `HCLA`.
    #[error("the HCL report does not begin with `HCLA`")]
    Signature,
    /// The report is about neither SEV-SNP nor TDX.
    #[error("report type {0} is neither SEV-SNP (2) nor TDX (4)")]
    ReportType(u32),
    /// The runtime data are hashed with something other than SHA-256.
    #[error("hash type {0} is not SHA-256 (1)")]
    HashType(u32),
}

/// Azure's HCL report, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HclReport<'a> {
    tee: Tee,
    hardware: &'a [u8],
    runtime_data: &'a [u8],
}

impl<'a> HclReport<'a> {
    /// Takes a report apart; anything may follow it.
    ///
    /// # Errors
    ///
    /// [`HclError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, HclError> {
        let (header, rest) = bytes
            .split_at_checked(HEADER)
            .ok_or(HclError::Truncated("header"))?;
        if !header.starts_with(b"HCLA") {
            return Err(HclError::Signature);
        }
        let (hardware, rest) = rest
            .split_at_checked(HARDWARE)
            .ok_or(HclError::Truncated("hardware report"))?;
        let (runtime, rest) = rest
            .split_first_chunk::<RUNTIME_HEADER>()
            .ok_or(HclError::Truncated("runtime data header"))?;
        let field = |index: usize| {
            let (fields, _) = runtime.as_chunks::<4>();
            fields.get(index).map_or(0, |it| u32::from_le_bytes(*it))
        };
        let tee = match field(2) {
            2 => Tee::SevSnp,
            4 => Tee::Tdx,
            other => return Err(HclError::ReportType(other)),
        };
        if field(3) != 1 {
            return Err(HclError::HashType(field(3)));
        }
        let runtime_data = usize::try_from(field(4))
            .ok()
            .and_then(|length| rest.get(..length))
            .ok_or(HclError::Truncated("runtime data"))?;
        Ok(Self {
            tee,
            hardware,
            runtime_data,
        })
    }

    /// Which TEE it is about.
    #[must_use]
    pub fn tee(&self) -> Tee {
        self.tee
    }

    /// What the processor gave: an SEV-SNP report, or the TDREPORT that a quote is made of.
    #[must_use]
    pub fn hardware_report(&self) -> &'a [u8] {
        match self.tee {
            Tee::Tdx => self.hardware.get(..1024).unwrap_or_default(),
            _ => self.hardware,
        }
    }

    /// The runtime data, whose digest the processor's report is bound to.
    #[must_use]
    pub fn runtime_data(&self) -> &'a [u8] {
        self.runtime_data
    }
}

/// What the paravisor says about itself and its TPM.
pub(super) struct RuntimeData {
    pub(super) key: AttestationKey,
    pub(super) secure_boot: Option<bool>,
    pub(super) console: Option<bool>,
    pub(super) vm: Option<String>,
}

#[derive(Deserialize)]
struct Json {
    keys: Vec<Jwk>,
    #[serde(default, rename = "vm-configuration")]
    configuration: Option<Configuration>,
}

#[derive(Deserialize)]
struct Jwk {
    #[serde(default)]
    kid: String,
    #[serde(default)]
    kty: String,
    #[serde(default)]
    n: String,
    #[serde(default)]
    e: String,
}

#[derive(Deserialize)]
struct Configuration {
    #[serde(default, rename = "secure-boot")]
    secure_boot: Option<bool>,
    #[serde(default, rename = "console-enabled")]
    console: Option<bool>,
    #[serde(default, rename = "vmUniqueId")]
    vm: Option<String>,
}

impl RuntimeData {
    /// Reads the JSON; `Err` says what is wrong.
    pub(super) fn read(json: &[u8]) -> Result<Self, &'static str> {
        /// Name of the attestation key among the keys.
        const AK: &str = "HCLAkPub";
        let Json {
            keys,
            configuration,
        } = serde_json::from_slice(json).map_err(|_| "not JSON of the documented form")?;
        let mut named = keys.iter().filter(|key| key.kid == AK);
        let (Some(key), None) = (named.next(), named.next()) else {
            return Err("not exactly one key `HCLAkPub`");
        };
        let number = |text: &str| {
            URL_SAFE_NO_PAD
                .decode(text)
                .map_err(|_| "`HCLAkPub` is no RSA key")
        };
        if key.kty != "RSA" {
            return Err("`HCLAkPub` is no RSA key");
        }
        let key = AttestationKey::rsa(&number(&key.n)?, &number(&key.e)?);
        let configuration = configuration.unwrap_or(Configuration {
            secure_boot: None,
            console: None,
            vm: None,
        });
        Ok(Self {
            key,
            secure_boot: configuration.secure_boot,
            console: configuration.console,
            vm: configuration.vm,
        })
    }
}
