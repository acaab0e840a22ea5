//! NVIDIA GPUs in confidential-computing mode (Hopper), which evidence of a processor commits to.
//!
//! ```text
//! challenge ▶ report data ─┬▶ nonce of each GPU ▶ its report ─┐
//!                          └──────────────────────────────────┴▶ report data of the processor
//! ```
//!
//! A GPU is believed if its report is signed under NVIDIA's root and answers the challenge; it is
//! this guest's GPU if the processor's report data commit to that very report. What a GPU's
//! measurements should be is said in NVIDIA's reference integrity manifests (RIM), which are not
//! part of the evidence: without reference values they stay `unknown`.
//!
//! ```text
//! evidence.rs   report and certificates
//! spdm.rs       the report, as fields
//! verifier.rs   authenticity
//! checks.rs     one check per claim
//! ```

mod checks;
mod evidence;
mod spdm;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
mod verifier;

pub use evidence::{GpuEvidence, MAX_GPU_REPORT, MAX_GPUS, committed_report_data, gpu_nonce};
pub use spdm::{GpuReport, GpuReportError};
pub use verifier::{GpuClaims, GpuError};

pub(crate) use checks::check;
pub(crate) use verifier::{Inputs, ROOTS, verify};
