//! What a guest's launch digest has to be, computed from what it is launched with.
//!
//! ```text
//! firmware ▶ sections that its metadata name (zero pages, secrets, CPUID, kernel hashes)
//!          ▶ one VMSA for each vCPU ▶ launch digest ▶ reference value
//! ```
//!
//! For SEV-SNP only. The MRTD of TDX depends on how the host adds pages and its RTMR0 on tables that
//! the host makes up; these come from a guest that was looked at, with its event log.
//!
//! ```text
//! page.rs      the digest, extended page by page
//! firmware.rs  OVMF: its footer table and metadata
//! hashes.rs    the table of digests of kernel, initial RAM disk and command line
//! vmsa.rs      initial state of a vCPU
//! snp.rs       all of them in order, and what differs if the digest does
//! id_block.rs  ID block and ID authentication information
//! ```

mod firmware;
mod hashes;
mod id_block;
mod page;
mod snp;
mod vmsa;

pub use firmware::FirmwareError;
pub use hashes::KernelHashes;
pub use id_block::{IdAuthentication, IdBlock, IdBlockError};
pub use snp::{MeasureError, SnpLaunch};
pub use vmsa::{Vcpu, Vmm};
