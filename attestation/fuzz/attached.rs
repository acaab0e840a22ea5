//! One function for each kind of bytes that come beside a processor's report: none may panic,
//! whatever the bytes.

use attestation::gpu::GpuReport;
use attestation::measure::{IdAuthentication, IdBlock, SnpLaunch, Vcpu, Vmm};
use attestation::tdx::EventLog;
use attestation::vtpm::{HclReport, TpmQuote, TpmSignature};

/// A target, by the name that cargo-fuzz knows it by.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: [Target; 5] = [
    ("hcl", hcl),
    ("tpms", tpms),
    ("spdm", spdm),
    ("tpm_log", tpm_log),
    ("launch", launch),
];

/// Azure's HCL report.
pub fn hcl(bytes: &[u8]) {
    if let Ok(report) = HclReport::parse(bytes) {
        assert!(report.runtime_data().len() <= bytes.len());
        let _ = report.hardware_report();
    }
}

/// A TPM's quote, or its signature.
pub fn tpms(bytes: &[u8]) {
    if let Some(quote) = TpmQuote::parse(bytes) {
        assert!(quote.extra_data().len() <= bytes.len());
    }
    let _ = TpmSignature::parse(bytes);
}

/// A GPU's report.
pub fn spdm(bytes: &[u8]) {
    if let Ok(report) = GpuReport::parse(bytes) {
        assert!(report.measurements().len() <= 255);
        let _ = (report.driver_version(), report.vbios_version());
        let _ = (report.board(), report.firmware_id());
    }
}

/// A TPM's event log.
pub fn tpm_log(bytes: &[u8]) {
    if let Ok(log) = EventLog::parse_pcrs(bytes) {
        assert!(log.length() <= bytes.len());
        let _ = log.replay_pcrs();
    }
}

/// Firmware to be measured; an ID block and its authentication.
pub fn launch(bytes: &[u8]) {
    let launch = SnpLaunch {
        firmware: bytes,
        kernel: None,
        vcpus: 2,
        vcpu: Vcpu::new(25, 1, 1),
        vmm: Vmm::Qemu,
        features: 1,
    };
    let _ = launch.measure();
    let block = IdBlock::parse(bytes);
    if let (Ok(authentication), Ok(block)) = (IdAuthentication::parse(bytes), block) {
        let _ = authentication.verify(&block);
    }
}
