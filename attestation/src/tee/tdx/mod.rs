//! Intel TDX.
//!
//! ```text
//! quote.rs       the quote, as fields
//! pck.rs         what the platform's certificate says
//! chain.rs       PCK ◀ PCK CA ◀ root ▶ TCB signing, dates, revocation
//! collateral.rs  TCB info and QE identity
//! status.rs      from their levels to one status
//! verifier.rs    authenticity first, then one check per claim (checks.rs)
//! attester.rs    evidence from the kernel
//! eventlog.rs    what the RTMRs were extended with
//! ```

mod attester;
mod chain;
mod checks;
mod collateral;
mod eventlog;
mod pck;
mod quote;
mod status;
#[cfg(test)]
mod tests;
mod verifier;

pub use attester::TdxAttester;
pub use chain::{CertificateKind, ChainError};
pub use collateral::{CollateralError, CollateralSummary};
pub use eventlog::{Event, EventLog, EventLogError, MAX_EVENT_LOG, Registers};
pub use quote::{Quote, QuoteError, ServiceTd, TdReport};

pub(crate) use chain::INTEL_ROOT;
#[cfg(test)]
pub(crate) use tests::quote_for_tests;
pub(crate) use verifier::{Inputs, appraise};
