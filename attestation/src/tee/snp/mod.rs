//! AMD SEV-SNP.
//!
//! ```text
//! report.rs     the 1184 bytes, as fields
//! platform.rs   processor generations and their TCB versions
//! chain.rs      VEK ◀ ASK | ASVK ◀ ARK, dates, revocation
//! tcb_table.rs  what firmware versions are worth
//! verifier.rs   authenticity first, then one check per claim
//! table.rs      the certificate table that comes with a report
//! attester.rs   evidence from the kernel
//! device.rs     the same from `/dev/sev-guest`, with feature `sev-guest`
//! ```

mod attester;
mod chain;
mod checks;
#[cfg(feature = "sev-guest")]
mod device;
mod platform;
pub(crate) mod report;
mod table;
mod tcb_table;
mod vek;
mod verifier;

pub use attester::SnpAttester;
pub use chain::{CertificateKind, ChainError};
#[cfg(feature = "sev-guest")]
pub use device::DeviceAttester;
pub use platform::{Product, TcbVersion};
pub use report::{PlatformFlag, PolicyFlag, REPORT_LENGTH, Report, ReportError, SigningKey};
pub use table::{CertificateTable, certificate_table};
pub use tcb_table::{MAX_TCB_TABLE, TcbTable, TcbTableError};

pub(crate) use chain::{Anchor, amd_anchors, is_certificate};
#[cfg(test)]
mod tests;

pub(crate) use verifier::{Inputs, appraise};
