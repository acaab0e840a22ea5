//! Intel TDX.
//!
//! ```text
//! quote.rs       the quote, as fields
//! pck.rs         what the platform's certificate says
//! chain.rs       PCK ◀ PCK CA ◀ root ▶ TCB signing, dates, revocation
//! collateral.rs  TCB info and QE identity
//! status.rs      from their levels to one status
//! verifier.rs    authenticity first, then one check per claim (checks.rs)
//! events.rs      what the RTMRs were extended with
//! attester.rs    evidence from the kernel
//! qgs.rs         a quote from the host's service
//! registers.rs   the RTMRs as the kernel shows them
//! ```

mod attester;
mod chain;
mod checks;
mod collateral;
mod events;
mod pck;
mod qgs;
mod quote;
mod registers;
mod status;
#[cfg(test)]
mod tests;
mod verifier;

pub use crate::eventlog::{Event, EventLog, EventLogError, MAX_EVENT_LOG, Registers};
pub use attester::TdxAttester;
pub use chain::{CertificateKind, ChainError};
pub use collateral::{CollateralError, CollateralSummary};
pub use qgs::{QgsError, TD_REPORT_LENGTH, quote_from_qgs};
pub use quote::{Quote, QuoteError, ServiceTd, TdReport};
pub use registers::{TDX_MEASUREMENTS, rtmrs_at};

pub(crate) use chain::Anchor;
pub(crate) use collateral::next_update;
pub(crate) use events::check_events;
pub(crate) use pck::SGX_EXTENSIONS;
#[cfg(test)]
pub(crate) use tests::quote_for_tests;
pub(crate) use verifier::{Inputs, appraise, platform};
