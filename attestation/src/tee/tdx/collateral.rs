//! What Intel says of platforms and of the quoting enclave: TCB info and QE identity.
//!
//! Follows "Intel SGX and Intel TDX: Provisioning Certification Service (PCS) API, version 4",
//! TCB info V3 and enclave identity V2. Both are JSON that is signed as it was written, so the
//! signature is checked over the received bytes and only then are they read.

use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::quote::QeReport;
use crate::encoding::Hex;
use crate::time::UnixTime;

/// The most TCB levels, module identities or advisories that one list may have.
const MAX_LIST: usize = 256;

/// Why collateral says nothing about a quote.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CollateralError {
    /// One of TCB info and QE identity came without the other.
    #[error("the {0} is missing; TCB info and QE identity belong together")]
    Missing(&'static str),
    /// The JSON is not of the documented form.
    #[error("the {what} is not the documented JSON")]
    Json {
        /// Which of the two.
        what: &'static str,
        /// Where it is not.
        source: serde_json::Error,
    },
    /// A value has a form that the specification does not give it.
    #[error("the {what} has a malformed `{field}`")]
    Field {
        /// Which of the two.
        what: &'static str,
        /// The field.
        field: &'static str,
    },
    /// The signature does not verify over the received bytes.
    #[error("the signature on the {0} does not verify")]
    Signature(&'static str),
    /// It is about something else, for example SGX.
    #[error("the {what} is about `{found}`")]
    Kind {
        /// Which of the two.
        what: &'static str,
        /// What it is about instead.
        found: String,
    },
    /// The version is not the supported one.
    #[error("version {version} of the {what} is not supported")]
    Version {
        /// Which of the two.
        what: &'static str,
        /// Its version.
        version: u32,
    },
    /// It was issued in the future.
    #[error("the {what} is not valid before {issued}")]
    NotYetValid {
        /// Which of the two.
        what: &'static str,
        /// When it was issued.
        issued: UnixTime,
    },
    /// It is past its next update.
    #[error("the {what} expired on {next_update}; fetch a newer one")]
    Expired {
        /// Which of the two.
        what: &'static str,
        /// When its successor was due.
        next_update: UnixTime,
    },
    /// It is older than the relying party accepts.
    #[error("the {what} has evaluation number {seen}, at least {required} is required")]
    Evaluation {
        /// Which of the two.
        what: &'static str,
        /// Its `tcbEvaluationDataNumber`.
        seen: u32,
        /// The lowest that is accepted.
        required: u32,
    },
    /// The TCB info is about another family of platforms.
    #[error("the TCB info is about FMSPC `{found}`, the platform has `{expected}`")]
    Fmspc {
        /// FMSPC of the TCB info.
        found: Hex<6>,
        /// FMSPC of the PCK certificate.
        expected: Hex<6>,
    },
    /// The TCB info is about another provisioning certification enclave.
    #[error("the TCB info is about another PCE")]
    PceId,
}

impl CollateralError {
    /// The stable name of this reason.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing(_) => "collateral-missing",
            Self::Json { .. } | Self::Field { .. } => "collateral-malformed",
            Self::Signature(_) => "collateral-signature",
            Self::Kind { .. } => "collateral-kind",
            Self::Version { .. } => "collateral-version",
            Self::NotYetValid { .. } => "collateral-not-yet-valid",
            Self::Expired { .. } => "collateral-expired",
            Self::Evaluation { .. } => "collateral-evaluation",
            Self::Fmspc { .. } => "fmspc-mismatch",
            Self::PceId => "pceid-mismatch",
        }
    }
}

pub(super) const TCB_INFO: &str = "TCB info";
pub(super) const QE_IDENTITY: &str = "QE identity";

/// What Intel says of one status: `tcbStatus`, without those that only follow from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum Status {
    UpToDate,
    #[serde(rename = "SWHardeningNeeded")]
    SwHardeningNeeded,
    ConfigurationNeeded,
    #[serde(rename = "ConfigurationAndSWHardeningNeeded")]
    ConfigurationAndSwHardeningNeeded,
    OutOfDate,
    OutOfDateConfigurationNeeded,
    Revoked,
}

impl Status {
    /// The name used in appraisals.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::UpToDate => "up-to-date",
            Self::SwHardeningNeeded => "sw-hardening-needed",
            Self::ConfigurationNeeded => "configuration-needed",
            Self::ConfigurationAndSwHardeningNeeded => "configuration-and-sw-hardening-needed",
            Self::OutOfDate => "out-of-date",
            Self::OutOfDateConfigurationNeeded => "out-of-date-configuration-needed",
            Self::Revoked => "revoked",
        }
    }
}

/// `tcbInfo`, as far as a verdict depends on it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct TcbInfo {
    id: String,
    version: u32,
    /// How levels are compared; 0 is the only way there is.
    tcb_type: u8,
    issue_date: Date,
    next_update: Date,
    fmspc: Hex<6>,
    pce_id: Hex<2>,
    pub(super) tcb_evaluation_data_number: u32,
    pub(super) tdx_module: ModuleSigner,
    #[serde(default)]
    pub(super) tdx_module_identities: Vec<ModuleIdentity>,
    pub(super) tcb_levels: Vec<PlatformLevel>,
}

/// Who signed the TDX module, and what it must be like.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ModuleSigner {
    pub(super) mrsigner: Hex<48>,
    pub(super) attributes: Hex<8>,
    pub(super) attributes_mask: Hex<8>,
}

#[derive(Debug, Deserialize)]
#[serde(from = "FlatIdentity")]
pub(super) struct ModuleIdentity {
    pub(super) id: String,
    pub(super) signer: ModuleSigner,
    pub(super) tcb_levels: Vec<EnclaveLevel>,
}

/// A [`ModuleIdentity`] as it is written. Serde's own flattening would collect it twice.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct FlatIdentity {
    id: String,
    mrsigner: Hex<48>,
    attributes: Hex<8>,
    attributes_mask: Hex<8>,
    tcb_levels: Vec<EnclaveLevel>,
}

impl From<FlatIdentity> for ModuleIdentity {
    fn from(flat: FlatIdentity) -> Self {
        Self {
            id: flat.id,
            signer: ModuleSigner {
                mrsigner: flat.mrsigner,
                attributes: flat.attributes,
                attributes_mask: flat.attributes_mask,
            },
            tcb_levels: flat.tcb_levels,
        }
    }
}

/// One level of a module or an enclave.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EnclaveLevel {
    pub(super) tcb: EnclaveTcb,
    pub(super) tcb_date: Date,
    pub(super) tcb_status: Status,
    #[serde(default, rename = "advisoryIDs")]
    pub(super) advisories: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct EnclaveTcb {
    pub(super) isvsvn: u16,
}

/// One level of a platform.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PlatformLevel {
    pub(super) tcb: PlatformTcb,
    pub(super) tcb_date: Date,
    pub(super) tcb_status: Status,
    #[serde(default, rename = "advisoryIDs")]
    pub(super) advisories: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct PlatformTcb {
    pub(super) sgxtcbcomponents: [Component; 16],
    pub(super) pcesvn: u16,
    pub(super) tdxtcbcomponents: [Component; 16],
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Component {
    svn: u8,
}

impl PlatformTcb {
    pub(super) fn sgx(&self) -> [u8; 16] {
        self.sgxtcbcomponents.map(|component| component.svn)
    }

    pub(super) fn tdx(&self) -> [u8; 16] {
        self.tdxtcbcomponents.map(|component| component.svn)
    }
}

/// `enclaveIdentity` of the quoting enclave.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct QeIdentity {
    id: String,
    version: u32,
    issue_date: Date,
    next_update: Date,
    pub(super) tcb_evaluation_data_number: u32,
    miscselect: Hex<4>,
    miscselect_mask: Hex<4>,
    attributes: Hex<16>,
    attributes_mask: Hex<16>,
    mrsigner: Hex<32>,
    isvprodid: u16,
    pub(super) tcb_levels: Vec<EnclaveLevel>,
}

/// A date as the service writes it, `2026-03-16T22:06:09Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Date(pub(super) UnixTime);

impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let date: der::DateTime = text
            .parse()
            .map_err(|_| serde::de::Error::custom("not a date as in `2026-03-16T22:06:09Z`"))?;
        Ok(Self(UnixTime(date.unix_duration().as_secs())))
    }
}

/// A document: what was signed, byte for byte, and the signature.
struct Signed<'a> {
    inner: &'a str,
    signature: Hex<64>,
}

impl<'a> Signed<'a> {
    fn of(json: &'a [u8], name: &str, what: &'static str) -> Result<Self, CollateralError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Parts<'a> {
            #[serde(borrow, rename = "tcbInfo", alias = "enclaveIdentity")]
            inner: &'a RawValue,
            signature: Hex<64>,
        }
        let text = std::str::from_utf8(json).ok();
        if let Some(signed) = text.and_then(|text| Self::as_written(text, name)) {
            return Ok(signed);
        }
        let parts: Parts<'a> = parse(json, what)?;
        Ok(Self {
            inner: parts.inner.get(),
            signature: parts.signature,
        })
    }

    /// Finds both ends where Intel's service writes them. What is between is read once, and after
    /// its signature was verified.
    fn as_written(json: &'a str, name: &str) -> Option<Self> {
        let rest = json.strip_prefix("{\"")?.strip_prefix(name)?;
        let (inner, end) = rest.strip_prefix("\":")?.rsplit_once(",\"signature\":\"")?;
        let signature = end.trim_end().strip_suffix("\"}")?;
        Some(Self {
            inner: inner.trim(),
            signature: signature.parse().ok()?,
        })
    }

    fn tcb_info(json: &'a [u8]) -> Result<Self, CollateralError> {
        Self::of(json, "tcbInfo", TCB_INFO)
    }

    fn qe_identity(json: &'a [u8]) -> Result<Self, CollateralError> {
        Self::of(json, "enclaveIdentity", QE_IDENTITY)
    }
}

/// What collateral says of itself, believed by nobody: for a cache to know what it holds, and when to
/// fetch it anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CollateralSummary {
    /// The family of platforms that TCB info is about; QE identity is about all.
    pub fmspc: Option<Hex<6>>,
    /// `tcbEvaluationDataNumber`: greater for what takes more events into account.
    pub evaluation: u32,
    /// When it was issued.
    pub issued: UnixTime,
    /// When its successor is due.
    pub next_update: UnixTime,
    /// How many levels it has, of platforms and modules or of the enclave.
    pub levels: usize,
}

impl CollateralSummary {
    /// Reads TCB info for TDX, without looking at its signature.
    ///
    /// # Errors
    ///
    /// [`CollateralError`] if it is not of the supported form.
    pub fn of_tcb_info(json: &[u8]) -> Result<Self, CollateralError> {
        let info = TcbInfo::of(Signed::tcb_info(json)?.inner)?;
        let modules = info.tdx_module_identities.iter();
        let levels = modules.map(|module| module.tcb_levels.len()).sum::<usize>();
        Ok(Self {
            fmspc: Some(info.fmspc),
            evaluation: info.tcb_evaluation_data_number,
            issued: info.issue_date.0,
            next_update: info.next_update.0,
            levels: levels.saturating_add(info.tcb_levels.len()),
        })
    }

    /// Reads the identity of the TD quoting enclave, without looking at its signature.
    ///
    /// # Errors
    ///
    /// [`CollateralError`] if it is not of the supported form.
    pub fn of_qe_identity(json: &[u8]) -> Result<Self, CollateralError> {
        let identity = QeIdentity::of(Signed::qe_identity(json)?.inner)?;
        Ok(Self {
            fmspc: None,
            evaluation: identity.tcb_evaluation_data_number,
            issued: identity.issue_date.0,
            next_update: identity.next_update.0,
            levels: identity.tcb_levels.len(),
        })
    }
}

/// When the part of collateral with this name is replaced, as it says itself: not authenticated.
pub(crate) fn next_update(json: &[u8], part: &str) -> Option<UnixTime> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Part {
        next_update: Date,
    }
    let parts: std::collections::BTreeMap<&str, &RawValue> = serde_json::from_slice(json).ok()?;
    parts.get("signature")?;
    let part: Part = serde_json::from_str(parts.get(part)?.get()).ok()?;
    Some(part.next_update.0)
}

impl TcbInfo {
    /// Reads TCB info that the holder of `public_key` (uncompressed point) signed.
    pub(super) fn read(json: &[u8], public_key: &[u8]) -> Result<Self, CollateralError> {
        let signed = Signed::tcb_info(json)?;
        is_signed(&signed, public_key, TCB_INFO)?;
        Self::of(signed.inner)
    }

    fn of(inner: &str) -> Result<Self, CollateralError> {
        let info: Self = parse(inner.as_bytes(), TCB_INFO)?;
        if info.id != "TDX" {
            return Err(CollateralError::Kind {
                what: TCB_INFO,
                found: info.id,
            });
        }
        if info.version != 3 {
            return Err(CollateralError::Version {
                what: TCB_INFO,
                version: info.version,
            });
        }
        if info.tcb_type != 0 {
            return Err(CollateralError::Field {
                what: TCB_INFO,
                field: "tcbType",
            });
        }
        let levels = info
            .tdx_module_identities
            .iter()
            .map(|identity| identity.tcb_levels.len());
        let lengths = [info.tcb_levels.len(), info.tdx_module_identities.len()];
        if lengths.into_iter().chain(levels).any(|it| it > MAX_LIST) {
            return Err(CollateralError::Field {
                what: TCB_INFO,
                field: "tcbLevels",
            });
        }
        Ok(info)
    }

    pub(super) fn issued(&self) -> UnixTime {
        self.issue_date.0
    }

    /// Checks that it is about the platforms of this FMSPC and PCE.
    pub(super) fn is_about(&self, fmspc: [u8; 6], pce_id: [u8; 2]) -> Result<(), CollateralError> {
        if self.fmspc.0 != fmspc {
            return Err(CollateralError::Fmspc {
                found: self.fmspc,
                expected: Hex(fmspc),
            });
        }
        if self.pce_id.0 != pce_id {
            return Err(CollateralError::PceId);
        }
        Ok(())
    }

    /// Checks dates and age; gives when it ends.
    pub(super) fn current(
        &self,
        now: UnixTime,
        minimum: Option<u32>,
    ) -> Result<UnixTime, CollateralError> {
        let seen = self.tcb_evaluation_data_number;
        current(TCB_INFO, (self.issue_date, self.next_update), now)?;
        evaluated(TCB_INFO, seen, minimum)?;
        Ok(self.next_update.0)
    }
}

impl QeIdentity {
    /// Reads a QE identity that the holder of `public_key` (uncompressed point) signed.
    pub(super) fn read(json: &[u8], public_key: &[u8]) -> Result<Self, CollateralError> {
        let signed = Signed::qe_identity(json)?;
        is_signed(&signed, public_key, QE_IDENTITY)?;
        Self::of(signed.inner)
    }

    fn of(inner: &str) -> Result<Self, CollateralError> {
        let identity: Self = parse(inner.as_bytes(), QE_IDENTITY)?;
        if identity.id != "TD_QE" {
            return Err(CollateralError::Kind {
                what: QE_IDENTITY,
                found: identity.id,
            });
        }
        if !matches!(identity.version, 2 | 3) {
            return Err(CollateralError::Version {
                what: QE_IDENTITY,
                version: identity.version,
            });
        }
        if identity.tcb_levels.len() > MAX_LIST {
            return Err(CollateralError::Field {
                what: QE_IDENTITY,
                field: "tcbLevels",
            });
        }
        Ok(identity)
    }

    /// Checks dates and age; gives when it ends.
    pub(super) fn current(
        &self,
        now: UnixTime,
        minimum: Option<u32>,
    ) -> Result<UnixTime, CollateralError> {
        let seen = self.tcb_evaluation_data_number;
        current(QE_IDENTITY, (self.issue_date, self.next_update), now)?;
        evaluated(QE_IDENTITY, seen, minimum)?;
        Ok(self.next_update.0)
    }

    /// The name of the field in which the enclave that signed is not the one described.
    pub(super) fn differs_from(&self, qe: QeReport<'_>) -> Option<&'static str> {
        if masked(qe.misc_select(), self.miscselect_mask.0) != self.miscselect.0 {
            return Some("MISCSELECT");
        }
        if masked(qe.attributes(), self.attributes_mask.0) != self.attributes.0 {
            return Some("ATTRIBUTES");
        }
        if qe.mr_signer() != self.mrsigner.0 {
            return Some("MRSIGNER");
        }
        (qe.isv_prod_id() != self.isvprodid).then_some("ISVPRODID")
    }
}

impl ModuleSigner {
    /// The name of the field in which the TDX module is not the one described.
    pub(super) fn differs_from(
        &self,
        mr_signer: [u8; 48],
        attributes: [u8; 8],
    ) -> Option<&'static str> {
        if mr_signer != self.mrsigner.0 {
            return Some("MRSIGNERSEAM");
        }
        (masked(attributes, self.attributes_mask.0) != self.attributes.0)
            .then_some("SEAMATTRIBUTES")
    }
}

fn masked<const N: usize>(mut bytes: [u8; N], mask: [u8; N]) -> [u8; N] {
    for (byte, mask) in bytes.iter_mut().zip(mask) {
        *byte &= mask;
    }
    bytes
}

fn parse<'a, T: Deserialize<'a>>(json: &'a [u8], what: &'static str) -> Result<T, CollateralError> {
    serde_json::from_slice(json).map_err(|source| CollateralError::Json { what, source })
}

fn is_signed(
    signed: &Signed<'_>,
    public_key: &[u8],
    what: &'static str,
) -> Result<(), CollateralError> {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public_key)
        .verify(signed.inner.as_bytes(), &signed.signature.0)
        .map_err(|_| CollateralError::Signature(what))
}

fn current(
    what: &'static str,
    (Date(issued), Date(next_update)): (Date, Date),
    now: UnixTime,
) -> Result<(), CollateralError> {
    if now < issued {
        return Err(CollateralError::NotYetValid { what, issued });
    }
    if now > next_update {
        return Err(CollateralError::Expired { what, next_update });
    }
    Ok(())
}

fn evaluated(what: &'static str, seen: u32, minimum: Option<u32>) -> Result<(), CollateralError> {
    match minimum {
        Some(required) if seen < required => Err(CollateralError::Evaluation {
            what,
            seen,
            required,
        }),
        _ => Ok(()),
    }
}
