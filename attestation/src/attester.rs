//! Who gives evidence.

use crate::evidence::{Evidence, EvidenceError, Tee};
use crate::tee::snp::SnpAttester;
use crate::tee::tdx::TdxAttester;
use crate::tsm::{TsmError, TsmReports};

/// Gives evidence about the environment it runs in.
pub trait Attester: Send {
    /// The kind of evidence it gives.
    fn tee(&self) -> Tee;

    /// Gives evidence bound to `report_data`; see [`crate::Challenge::report_data`].
    ///
    /// # Errors
    ///
    /// [`AttestError`]; none of them is evidence of anything.
    fn attest(&mut self, report_data: &[u8; 64]) -> Result<Evidence, AttestError>;
}

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttestError {
    /// This machine has no TEE that the kernel can ask for a report.
    #[error(
        "no TEE here: `/sys/kernel/config/tsm/report` is missing; run in a confidential VM with Linux 6.7 or later and configfs mounted"
    )]
    NoTee,
    /// The kernel asks a TEE that is not supported.
    #[error("TEE provider `{0}` is not supported")]
    Provider(String),
    /// The kernel gave no report.
    #[error("the kernel gave no report")]
    Tsm(#[from] TsmError),
    /// The device of the TEE cannot be used.
    #[cfg(feature = "sev-guest")]
    #[error("`/dev/sev-guest` gives no report")]
    Device(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The report or its certificates are not of the expected form.
    #[error("the report does not make evidence")]
    Evidence(#[from] EvidenceError),
    /// The folder of endorsements cannot be used.
    #[error("the folder of endorsements cannot be used")]
    Endorsements(#[source] crate::endorsement::FolderError),
    /// The simulated TEE failed.
    #[error("the simulated TEE {0}")]
    Simulated(&'static str),
}

/// Finds the TEE that this machine is a guest of: through configfs-tsm, or else, with feature
/// `sev-guest`, through `/dev/sev-guest`.
///
/// # Errors
///
/// [`AttestError::NoTee`] on a machine that is not a confidential VM,
/// [`AttestError::Provider`] or [`AttestError::Tsm`] on one that is of no use.
pub fn detect() -> Result<Box<dyn Attester>, AttestError> {
    detect_at(TsmReports::of_this_machine())
}

fn detect_at(reports: TsmReports) -> Result<Box<dyn Attester>, AttestError> {
    if !reports.is_present() {
        #[cfg(feature = "sev-guest")]
        if let Some(attester) = crate::tee::snp::DeviceAttester::open()? {
            return Ok(Box::new(attester));
        }
        return Err(AttestError::NoTee);
    }
    reports.remove_stale();
    let provider = reports.provider()?;
    match provider.as_str() {
        "sev_guest" => Ok(Box::new(SnpAttester::new(reports))),
        "tdx_guest" => Ok(Box::new(TdxAttester::new(reports))),
        _ => Err(AttestError::Provider(provider)),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_configfs_reports_has_no_tee() {
        let nowhere = TsmReports::at("/nonexistent/tsm/report".into());
        assert!(matches!(detect_at(nowhere), Err(AttestError::NoTee)));
    }
}
