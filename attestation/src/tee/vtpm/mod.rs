//! A virtual TPM that the processor's evidence vouches for: confidential VMs of Azure and GCP.
//!
//! ```text
//! Azure: report data = SHA-256(runtime data) ▶ attestation key ▶ quote ▶ challenge, PCRs
//! GCP:   report data = challenge;  certificate of the attestation key ▶ quote ▶ challenge, PCRs
//! ```
//!
//! On Azure the paravisor (HCL) runs in the guest's most privileged level, keeps the TPM, and has the
//! processor sign a digest of the attestation key once per boot; only the quote is fresh. On GCP the
//! host keeps the TPM, so a certificate of Google vouches for the key and nothing ties it to the
//! processor.
//!
//! ```text
//! evidence.rs   quote, signature, PCRs, runtime data, certificates, event log
//! hcl.rs        Azure's HCL report and its runtime data
//! quote.rs      TPMS_ATTEST and TPMT_SIGNATURE
//! key.rs        the attestation key, and how it verifies
//! verifier.rs   authenticity
//! checks.rs     one check per claim
//! ```

mod checks;
mod evidence;
mod hcl;
mod key;
mod quote;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod verifier;

pub use evidence::{MAX_TPM_QUOTE, MAX_VTPM_CERTIFICATES, VtpmEvidence};
pub use hcl::{HclError, HclReport, MAX_RUNTIME_DATA};
pub use quote::{TpmQuote, TpmSignature};
pub use verifier::{VtpmClaims, VtpmError};

pub(crate) use checks::check;
pub(crate) use verifier::{Inputs, runtime_data_binding, verify};
