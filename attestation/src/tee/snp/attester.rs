//! Evidence from the kernel's `sev_guest` driver.

use super::report::{Report, SigningKey};
use super::table::certificate_table;
use crate::attester::{AttestError, Attester};
use crate::evidence::{Endorsements, Evidence, EvidenceError, Tee};
use crate::tsm::TsmReports;

/// Gives SEV-SNP evidence of the guest it runs in.
#[derive(Debug)]
pub struct SnpAttester {
    reports: TsmReports,
    endorsements: Endorsements,
}

impl SnpAttester {
    /// Over a tree of report requests.
    #[must_use]
    pub fn new(reports: TsmReports) -> Self {
        Self {
            reports,
            endorsements: Endorsements::default(),
        }
    }

    /// Adds certificates for hosts that hand out none; those of the host come first.
    #[must_use]
    pub fn with_endorsements(mut self, endorsements: Endorsements) -> Self {
        self.endorsements = endorsements;
        self
    }
}

impl Attester for SnpAttester {
    fn tee(&self) -> Tee {
        Tee::SevSnp
    }

    fn attest(&mut self, report_data: &[u8; 64]) -> Result<Evidence, AttestError> {
        let answer = self.reports.report(report_data)?;
        if answer.provider != "sev_guest" {
            return Err(AttestError::Provider(answer.provider));
        }
        let malformed = |_| EvidenceError::CertificateTable("it came with no report");
        let report = Report::parse(&answer.outblob).map_err(malformed)?;
        let by_vlek = report.signing_key() == SigningKey::Vlek;
        let endorsements = certificate_table(&answer.auxblob)?.endorsements(by_vlek)?;
        Ok(Evidence::new(
            Tee::SevSnp,
            answer.outblob,
            endorsements.or(&self.endorsements),
        )?)
    }
}
