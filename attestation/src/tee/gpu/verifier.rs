//! From a GPU's report to claims that are believed.

use std::collections::BTreeMap;

use ring::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use serde::Serialize;

use crate::encoding::Hex;
use crate::endorsement::{EC_P384, Path, PathError, RootKey};
use crate::time::UnixTime;

use super::evidence::GpuEvidence;
use super::spdm::{GpuReport, GpuReportError};

/// NVIDIA Device Identity CA, on P-384.
pub(crate) const ROOTS: &[RootKey] = &[RootKey {
    name: "NVIDIA Device Identity CA",
    public_key: b"\x04\x0e\x4c\x14\xa3\x3b\xf8\xa5\x62\x66\x58\xdb\x41\x29\x60\x7e\x4c\xbf\x45\x19\xc4\x41\x27\x16\xf4\xd0\xd9\x17\xc4\x97\x80\x05\xbd\xea\xbe\xae\xfd\x57\xbc\x66\x08\x2d\x71\x8a\x4f\x8b\x60\x52\xe1\x51\x6e\xe8\xa7\xc4\x22\xb8\x4d\xe8\x57\x07\x1b\xb5\x8f\xd3\x95\xbe\xa0\xcf\xa1\xc6\x3e\xe7\xc8\x0d\x6b\xd6\x39\x01\xd9\x1c\xbb\xd1\x87\xd3\x85\x7d\xc1\x6b\x5c\xce\xaf\x23\x8f\xf8\xc2\x7d\xbd",
}];

/// TCG DICE TcbInfo (2.23.133.5.4.1): what runs on the device that has the key.
pub(super) const TCB_INFO: &[u8] = b"\x67\x81\x05\x05\x04\x01";
/// SHA-384, as the algorithm of a firmware digest there, and the length of its OCTET STRING.
pub(super) const FWID_SHA384: &[u8] = b"\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x04\x30";

/// Why a GPU's report cannot be believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// The report cannot be read.
    #[error("the report of GPU {index} cannot be used")]
    Report {
        /// Its position in the evidence, from 0.
        index: usize,
        /// Why not.
        source: GpuReportError,
    },
    /// The certificates do not lead to NVIDIA's root.
    #[error("the key of GPU {index} is not certified")]
    Path {
        /// Its position.
        index: usize,
        /// Why not.
        source: PathError,
    },
    /// The certificate is about a key of the wrong kind.
    #[error("the certificate of GPU {0} is about a key of the wrong kind")]
    Key(usize),
    /// The signature does not verify.
    #[error("the signature of GPU {0} does not verify")]
    Signature(usize),
    /// The certificate is about other firmware than the report.
    #[error("the certificate of GPU {0} is about other firmware than its report")]
    FirmwareId(usize),
    /// The report answers another challenge.
    #[error("the report of GPU {0} is bound to a different challenge")]
    Nonce(usize),
    /// One GPU occurs twice.
    #[error("GPU {0} occurs twice")]
    Duplicate(usize),
    /// The processor's evidence does not commit to these reports.
    #[error("the processor does not vouch for these GPUs, or is bound to a different challenge")]
    Uncommitted,
}

impl GpuError {
    /// The stable name of this reason.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Report { source, .. } => source.code(),
            Self::Path { source, .. } => source.code(),
            Self::Key(_) => "gpu-key",
            Self::Signature(_) => "gpu-signature",
            Self::FirmwareId(_) => "gpu-firmware-id",
            Self::Nonce(_) => "gpu-nonce",
            Self::Duplicate(_) => "gpu-duplicate",
            Self::Uncommitted => "gpu-uncommitted",
        }
    }
}

/// What a GPU says, authenticated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub struct GpuClaims {
    /// Serial number of the device's certificate, in hexadecimal.
    pub device: String,
    /// What the certificate names the device.
    pub model: String,
    /// Version of the driver.
    pub driver_version: Option<String>,
    /// Version of the VBIOS.
    pub vbios_version: Option<String>,
    /// Identity of the board.
    pub board: Option<u32>,
    /// Digest of the firmware that signed.
    pub firmware_id: Option<Hex<48>>,
    /// Measurements by index.
    pub measurements: BTreeMap<u8, Hex<48>>,
}

/// What reports are verified with.
pub(crate) struct Inputs<'a> {
    /// What the challenge asks for.
    pub(crate) report_data: &'a [u8; 64],
    pub(crate) roots: &'a [RootKey],
    pub(crate) crls: &'a [&'a [u8]],
    pub(crate) now: UnixTime,
}

/// What came of them.
pub(crate) struct Verified {
    pub(crate) claims: GpuClaims,
    pub(super) revocation_checked: bool,
    /// The earliest end of the certificates.
    pub(crate) not_after: UnixTime,
}

/// Verifies reports in order. That the processor commits to them is for the caller to see to.
pub(crate) fn verify<'a>(
    inputs: &Inputs<'_>,
    gpus: impl Iterator<Item = &'a GpuEvidence>,
) -> Result<Vec<Verified>, GpuError> {
    let nonce = super::evidence::gpu_nonce(inputs.report_data);
    let mut verified: Vec<Verified> = Vec::new();
    for (index, gpu) in gpus.enumerate() {
        let one = verify_one(inputs, &nonce, index, gpu)?;
        let same = |other: &Verified| other.claims.device == one.claims.device;
        if verified.iter().any(same) {
            return Err(GpuError::Duplicate(index));
        }
        verified.push(one);
    }
    Ok(verified)
}

pub(super) fn verify_one(
    inputs: &Inputs<'_>,
    nonce: &[u8; 32],
    index: usize,
    gpu: &GpuEvidence,
) -> Result<Verified, GpuError> {
    let report =
        GpuReport::parse(gpu.report()).map_err(|source| GpuError::Report { index, source })?;
    let path = Path::verify(gpu.certificates(), inputs.roots, inputs.crls, inputs.now)
        .map_err(|source| GpuError::Path { index, source })?;
    if path.leaf.key_algorithm != EC_P384 {
        return Err(GpuError::Key(index));
    }
    UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, path.leaf.public_key)
        .verify(report.signed, report.signature)
        .map_err(|_| GpuError::Signature(index))?;

    let certified = path.leaf.extension(TCB_INFO).and_then(firmware_id);
    if report.firmware_id() != certified || certified.is_none() {
        return Err(GpuError::FirmwareId(index));
    }
    if report.nonce() != nonce {
        return Err(GpuError::Nonce(index));
    }
    Ok(Verified {
        claims: GpuClaims {
            device: path
                .leaf
                .serial
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            model: path.leaf.common_name.to_owned(),
            driver_version: report.driver_version(),
            vbios_version: report.vbios_version(),
            board: report.board(),
            firmware_id: report.firmware_id(),
            measurements: report.measurements().iter().copied().collect(),
        },
        revocation_checked: path.revocation_checked,
        not_after: path.not_after,
    })
}

/// The only SHA-384 digest of firmware in a DICE TcbInfo.
fn firmware_id(tcb_info: &[u8]) -> Option<Hex<48>> {
    let length = FWID_SHA384.len();
    let mut places = tcb_info
        .windows(length)
        .enumerate()
        .filter(|(_, bytes)| *bytes == FWID_SHA384);
    let (at, _) = places.next()?;
    let start = at.checked_add(length)?;
    let digest = tcb_info.get(start..)?.first_chunk::<48>()?;
    places.next().is_none().then_some(Hex(*digest))
}
