//! What `sandboxctl attest bundle` puts beside a processor's report: a virtual TPM, a GPU.

use std::collections::BTreeMap;
use std::path::PathBuf;

use attestation::gpu::GpuEvidence;
use attestation::vtpm::{HclReport, TpmSignature, VtpmEvidence};
use attestation::{Evidence, Hex, certificates_from_pem};
use clap::Args;

use super::read;
use crate::failure::Failure;

#[derive(Args)]
pub(super) struct Attached {
    /// Azure's HCL report (NV index 0x01400001), whose runtime data vouch for the TPM's key. For
    /// SEV-SNP the same file is the report, too.
    #[arg(long, value_name = "FILE", requires = "tpm_quote")]
    hcl: Option<PathBuf>,
    /// Quote of the virtual TPM (TPMS_ATTEST).
    #[arg(long, value_name = "FILE", requires = "tpm_signature")]
    tpm_quote: Option<PathBuf>,
    /// Signature on it: a TPMT_SIGNATURE, or 256 bytes of RSASSA-PKCS1-v1_5 with SHA-256.
    #[arg(long, value_name = "FILE", requires = "tpm_quote")]
    tpm_signature: Option<PathBuf>,
    /// Quoted PCRs of the SHA-256 bank (JSON: numbers to 64 hexadecimal digits).
    #[arg(long, value_name = "FILE", requires = "tpm_quote")]
    tpm_pcrs: Option<PathBuf>,
    /// Event log of the virtual TPM.
    #[arg(long, value_name = "FILE", requires = "tpm_quote")]
    tpm_event_log: Option<PathBuf>,
    /// Certificate of the TPM's attestation key (DER), then those above it. May be repeated.
    #[arg(long, value_name = "FILE", requires = "tpm_quote")]
    ak_certificate: Vec<PathBuf>,
    /// Report of a GPU, as NVIDIA's driver gives it.
    #[arg(long, value_name = "FILE", requires = "gpu_certificates")]
    gpu_report: Option<PathBuf>,
    /// Certificates of its key (PEM), that of the key first.
    #[arg(long, value_name = "FILE", requires = "gpu_report")]
    gpu_certificates: Option<PathBuf>,
}

impl Attached {
    /// The processor's own report in what was given as report.
    pub(super) fn hardware_report(&self, report: Vec<u8>) -> Result<Vec<u8>, Failure> {
        if !report.starts_with(b"HCLA") {
            return Ok(report);
        }
        let hcl = HclReport::parse(&report)?;
        if hcl.tee() == attestation::Tee::Tdx {
            return Err(Failure::new("an HCL report of TDX holds no quote").hint(
                "give the quote as report, and this file with `--hcl`; Azure makes the quote \
                     of the TDREPORT at http://169.254.169.254/acc/tdquote",
            ));
        }
        Ok(hcl.hardware_report().to_vec())
    }

    pub(super) fn add_to(&self, evidence: Evidence) -> Result<Evidence, Failure> {
        let evidence = match (&self.tpm_quote, &self.tpm_signature) {
            (Some(quote), Some(signature)) => {
                evidence.with_vtpm(self.vtpm(read(quote)?, read(signature)?)?)
            }
            _ => evidence,
        };
        let (Some(report), Some(certificates)) = (&self.gpu_report, &self.gpu_certificates) else {
            return Ok(evidence);
        };
        let mut gpu = GpuEvidence::new(read(report)?)?;
        let chain = certificates_from_pem(&read(certificates)?)
            .ok_or_else(|| Failure::new("the certificates of the GPU are not PEM"))?;
        for der in chain {
            gpu = gpu.with_certificate(der)?;
        }
        Ok(evidence.with_gpu(gpu)?)
    }

    fn vtpm(&self, quote: Vec<u8>, signature: Vec<u8>) -> Result<VtpmEvidence, Failure> {
        let signature = if TpmSignature::parse(&signature).is_some() {
            signature
        } else {
            TpmSignature::from_rsassa_sha256(&signature)
        };
        let pcrs: BTreeMap<u8, Hex<32>> = match &self.tpm_pcrs {
            Some(path) => serde_json::from_slice(&read(path)?)?,
            None => BTreeMap::new(),
        };
        let mut vtpm = VtpmEvidence::new(quote, signature, pcrs)?;
        if let Some(path) = &self.hcl {
            let hcl = read(path)?;
            vtpm = vtpm.with_runtime_data(HclReport::parse(&hcl)?.runtime_data().to_vec())?;
        }
        if let Some(path) = &self.tpm_event_log {
            vtpm = vtpm.with_event_log(read(path)?)?;
        }
        for path in &self.ak_certificate {
            vtpm = vtpm.with_ak_certificate(read(path)?)?;
        }
        Ok(vtpm)
    }
}

/// The bytes of hexadecimal digits, however many.
pub(super) fn digits(text: &str) -> Result<Vec<u8>, Failure> {
    let wrong = || {
        Failure::new(format!(
            "`{text}` is not an even number of hexadecimal digits"
        ))
    };
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else {
        return Err(wrong());
    };
    pairs
        .iter()
        .map(|pair| {
            let digits = std::str::from_utf8(pair).map_err(|_| wrong())?;
            u8::from_str_radix(digits, 16).map_err(|_| wrong())
        })
        .collect()
}
