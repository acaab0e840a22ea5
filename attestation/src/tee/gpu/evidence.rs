//! What a GPU adds to evidence, and how the processor commits to it.

use ring::digest::{Context, SHA256, SHA512};
use serde::{Deserialize, Serialize};

use crate::encoding::{Blob, Few};
use crate::endorsement::MAX_PATH;
use crate::evidence::{EvidenceError, MAX_CERTIFICATE, add, blob};

/// The most GPUs that a guest may have.
pub const MAX_GPUS: usize = 16;
/// The most bytes a GPU's report may have.
pub const MAX_GPU_REPORT: usize = 16 * 1024;

/// A GPU's report and the certificates of the key that signed it, leaf first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct GpuEvidence {
    report: Blob<MAX_GPU_REPORT>,
    certificates: Few<Blob<MAX_CERTIFICATE>, MAX_PATH>,
}

impl GpuEvidence {
    /// Takes a report as the driver gives it: request and response of SPDM's measurements.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`] if it exceeds [`MAX_GPU_REPORT`]; likewise below.
    pub fn new(report: Vec<u8>) -> Result<Self, EvidenceError> {
        Ok(Self {
            report: blob("GPU report", report)?,
            certificates: Few::default(),
        })
    }

    /// Adds a certificate (DER): that of the signing key first, then that of its issuer, and so on.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`] if it exceeds [`MAX_CERTIFICATE`] or is one too many.
    pub fn with_certificate(mut self, der: Vec<u8>) -> Result<Self, EvidenceError> {
        let der = blob("GPU certificate", der)?;
        add(&mut self.certificates, "list of GPU certificates", der)?;
        Ok(self)
    }

    /// The report as the driver gave it.
    #[must_use]
    pub fn report(&self) -> &[u8] {
        self.report.as_slice()
    }

    /// Certificates from the signing key upwards, DER.
    pub fn certificates(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.certificates.iter().map(Blob::as_slice)
    }
}

/// The nonce to ask each GPU's report with: it makes the report answer the challenge.
#[must_use]
pub fn gpu_nonce(report_data: &[u8; 64]) -> [u8; 32] {
    let mut hash = Context::new(&SHA256);
    hash.update(b"casemate gpu nonce v1\0");
    hash.update(report_data);
    let mut nonce = [0; 32];
    nonce.copy_from_slice(hash.finish().as_ref());
    nonce
}

/// The report data to ask the processor's evidence with, so that it commits to these GPUs' reports in
/// this order. Without GPUs it is what was asked for.
#[must_use]
pub fn committed_report_data<'a>(
    report_data: &[u8; 64],
    gpus: impl ExactSizeIterator<Item = &'a GpuEvidence>,
) -> [u8; 64] {
    if gpus.len() == 0 {
        return *report_data;
    }
    let mut hash = Context::new(&SHA512);
    hash.update(b"casemate report data with gpus v1\0");
    hash.update(report_data);
    // Every part has a fixed length or comes after its own.
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX).to_be_bytes();
    hash.update(&number(gpus.len()));
    for gpu in gpus {
        hash.update(&number(gpu.report().len()));
        hash.update(gpu.report());
    }
    let mut committed = [0; 64];
    committed.copy_from_slice(hash.finish().as_ref());
    committed
}
