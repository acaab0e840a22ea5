//! Evidence from `/dev/sev-guest`, for kernels without configfs-tsm (before Linux 6.7).
//!
//! Follows "The Definitive SEV Guest API Documentation" of the Linux kernel. The system calls are
//! those of the `sev` crate; what they give is taken as bytes, which our own parser reads.

use std::path::Path;

use sev::firmware::guest::Firmware;
use sev::firmware::host::{CertTableEntry, CertType};

use super::report::{Report, SigningKey};
use super::table::CertificateTable;
use crate::attester::{AttestError, Attester};
use crate::evidence::{Evidence, EvidenceError, Tee};

const DEVICE: &str = "/dev/sev-guest";

/// Gives SEV-SNP evidence of the guest it runs in, through the device.
pub struct DeviceAttester(Firmware);

impl DeviceAttester {
    /// Opens the device; `None` if this machine has none.
    ///
    /// # Errors
    ///
    /// [`AttestError::Device`] if it cannot be opened.
    pub fn open() -> Result<Option<Self>, AttestError> {
        if !Path::new(DEVICE).exists() {
            return Ok(None);
        }
        let firmware = Firmware::open().map_err(|error| AttestError::Device(error.into()))?;
        Ok(Some(Self(firmware)))
    }
}

impl Attester for DeviceAttester {
    fn tee(&self) -> Tee {
        Tee::SevSnp
    }

    fn attest(&mut self, report_data: &[u8; 64]) -> Result<Evidence, AttestError> {
        let (report, table) = self
            .0
            .get_ext_report(None, Some(*report_data), Some(0))
            .map_err(|error| AttestError::Device(Box::new(error)))?;
        Ok(evidence(report, &table.unwrap_or_default())?)
    }
}

/// Evidence of a report and of what the host handed out with it.
fn evidence(report: Vec<u8>, entries: &[CertTableEntry]) -> Result<Evidence, EvidenceError> {
    const TWICE: EvidenceError = EvidenceError::CertificateTable("a GUID occurs twice");
    let malformed = |_| EvidenceError::CertificateTable("it came with no report");
    let by_vlek = Report::parse(&report).map_err(malformed)?.signing_key() == SigningKey::Vlek;
    let mut table = CertificateTable::default();
    for entry in entries {
        let place = match entry.cert_type {
            CertType::ARK => &mut table.ark,
            CertType::ASK => &mut table.ask,
            CertType::VCEK => &mut table.vcek,
            CertType::VLEK => &mut table.vlek,
            _ => continue,
        };
        if place.replace(entry.data.as_slice()).is_some() {
            return Err(TWICE);
        }
    }
    let endorsements = table.endorsements(by_vlek)?;
    Evidence::new(Tee::SevSnp, report, endorsements)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::{SimulatedTee, UnixTime};

    #[test]
    fn certificates_of_the_host_go_with_the_report_each_once() {
        let mut tee = SimulatedTee::new(UnixTime(1_790_000_000)).unwrap();
        let report = tee.attest(&[0; 64]).unwrap().report().to_vec();
        let entry = |cert_type, byte| CertTableEntry {
            cert_type,
            data: vec![byte; 3],
        };
        let mut entries = vec![
            entry(CertType::VCEK, 1),
            entry(CertType::ASK, 2),
            entry(CertType::ARK, 3),
            entry(CertType::CRL, 4),
        ];
        let whole = evidence(report.clone(), &entries).unwrap();
        let endorsements = whole.endorsements();
        assert_eq!(endorsements.vek(), Some(&[1; 3][..]));
        assert_eq!(endorsements.intermediate(), Some(&[2; 3][..]));
        assert_eq!(endorsements.root(), Some(&[3; 3][..]));
        entries.push(entry(CertType::ARK, 5));
        assert!(evidence(report.clone(), &entries).is_err());
        assert!(evidence(report[1..].to_vec(), &[]).is_err());
        assert!(
            evidence(report, &[])
                .unwrap()
                .endorsements()
                .vek()
                .is_none()
        );
    }

    #[test]
    fn a_machine_without_the_device_has_no_attester() {
        if !Path::new(DEVICE).exists() {
            assert!(DeviceAttester::open().unwrap().is_none());
        }
    }
}
