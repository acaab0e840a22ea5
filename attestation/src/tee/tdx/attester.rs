//! Evidence from the kernel's `tdx_guest` driver.

use super::quote::Quote;
use crate::attester::{AttestError, Attester};
use crate::evidence::{Endorsements, Evidence, Tee};
use crate::tsm::{TsmError, TsmReports};

/// Gives TDX evidence of the guest it runs in.
///
/// The kernel has the host's quoting service make the quote. Collateral is not part of it: without
/// what [`TdxAttester::with_endorsements`] adds, the verifier cannot tell the TCB's status.
#[derive(Debug)]
pub struct TdxAttester {
    reports: TsmReports,
    endorsements: Endorsements,
}

impl TdxAttester {
    /// Over a tree of report requests.
    #[must_use]
    pub fn new(reports: TsmReports) -> Self {
        Self {
            reports,
            endorsements: Endorsements::default(),
        }
    }

    /// Adds Intel's collateral to all evidence.
    #[must_use]
    pub fn with_endorsements(mut self, endorsements: Endorsements) -> Self {
        self.endorsements = endorsements;
        self
    }
}

impl Attester for TdxAttester {
    fn tee(&self) -> Tee {
        Tee::Tdx
    }

    fn attest(&mut self, report_data: &[u8; 64]) -> Result<Evidence, AttestError> {
        let answer = self.reports.report(report_data)?;
        if answer.provider != "tdx_guest" {
            return Err(AttestError::Provider(answer.provider));
        }
        let mut quote = answer.outblob;
        // The host's buffer is larger than the quote. Zeroes say nothing, so they do not travel.
        let padding = Quote::parse(&quote)
            .map_err(|_| TsmError::Malformed("outblob"))?
            .padding();
        quote.truncate(quote.len().saturating_sub(padding));
        Ok(Evidence::new(Tee::Tdx, quote, self.endorsements.clone())?)
    }
}
