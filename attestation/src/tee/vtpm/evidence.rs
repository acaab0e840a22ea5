//! What a virtual TPM adds to evidence.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::encoding::{Blob, Few, Hex};
use crate::endorsement::MAX_PATH;
use crate::eventlog::MAX_EVENT_LOG;
use crate::evidence::{EvidenceError, MAX_CERTIFICATE, add, blob};

use super::hcl::MAX_RUNTIME_DATA;

/// The most bytes a TPM's quote, or the signature on it, may have.
pub const MAX_TPM_QUOTE: usize = 2 * 1024;
/// The most certificates that may come with an attestation key.
pub const MAX_VTPM_CERTIFICATES: usize = MAX_PATH;

/// A TPM quote with what is needed to check it.
///
/// ```json
/// {
///   "quote": "<base64 TPMS_ATTEST>", "signature": "<base64 TPMT_SIGNATURE>",
///   "pcrs": { "0": "<64 hexadecimal digits>" },
///   "runtime-data": "<base64>", "ak-certificates": ["<base64 DER>"], "event-log": "<base64>"
/// }
/// ```
///
/// The last three are optional; one of the first two of them has to vouch for the attestation key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VtpmEvidence {
    quote: Blob<MAX_TPM_QUOTE>,
    signature: Blob<MAX_TPM_QUOTE>,
    pcrs: BTreeMap<u8, Hex<32>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    runtime_data: Option<Blob<MAX_RUNTIME_DATA>>,
    #[serde(default, skip_serializing_if = "Few::is_empty")]
    ak_certificates: Few<Blob<MAX_CERTIFICATE>, MAX_VTPM_CERTIFICATES>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event_log: Option<Blob<MAX_EVENT_LOG>>,
}

impl VtpmEvidence {
    /// Puts a quote (TPMS_ATTEST), its signature (TPMT_SIGNATURE) and the quoted PCRs of the SHA-256
    /// bank together.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`] if one exceeds [`MAX_TPM_QUOTE`]; likewise below.
    pub fn new(
        quote: Vec<u8>,
        signature: Vec<u8>,
        pcrs: BTreeMap<u8, Hex<32>>,
    ) -> Result<Self, EvidenceError> {
        Ok(Self {
            quote: blob("TPM quote", quote)?,
            signature: blob("TPM signature", signature)?,
            pcrs,
            runtime_data: None,
            ak_certificates: Few::default(),
            event_log: None,
        })
    }

    /// Adds Azure's runtime data, byte for byte as in the HCL report; see [`super::HclReport`].
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`] if it exceeds [`MAX_RUNTIME_DATA`].
    pub fn with_runtime_data(mut self, json: Vec<u8>) -> Result<Self, EvidenceError> {
        self.runtime_data = Some(blob("runtime data", json)?);
        Ok(self)
    }

    /// Adds a certificate (DER): that of the attestation key first, then that of its issuer, and so
    /// on.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`] if it exceeds [`MAX_CERTIFICATE`] or is one too many.
    pub fn with_ak_certificate(mut self, der: Vec<u8>) -> Result<Self, EvidenceError> {
        let der = blob("AK certificate", der)?;
        add(&mut self.ak_certificates, "list of AK certificates", der)?;
        Ok(self)
    }

    /// Adds the log of what firmware and boot loader extended the PCRs with.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`] if it exceeds [`MAX_EVENT_LOG`].
    pub fn with_event_log(mut self, log: Vec<u8>) -> Result<Self, EvidenceError> {
        self.event_log = Some(blob("event log", log)?);
        Ok(self)
    }

    /// The quote as the TPM gave it.
    #[must_use]
    pub fn quote(&self) -> &[u8] {
        self.quote.as_slice()
    }

    /// The signature on it.
    #[must_use]
    pub fn signature(&self) -> &[u8] {
        self.signature.as_slice()
    }

    /// PCRs of the SHA-256 bank, by number.
    #[must_use]
    pub fn pcrs(&self) -> &BTreeMap<u8, Hex<32>> {
        &self.pcrs
    }

    /// Azure's runtime data.
    #[must_use]
    pub fn runtime_data(&self) -> Option<&[u8]> {
        self.runtime_data.as_ref().map(Blob::as_slice)
    }

    /// Certificates from the attestation key upwards, DER.
    pub fn ak_certificates(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.ak_certificates.iter().map(Blob::as_slice)
    }

    /// The event log.
    #[must_use]
    pub fn event_log(&self) -> Option<&[u8]> {
        self.event_log.as_ref().map(Blob::as_slice)
    }
}
