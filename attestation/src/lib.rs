//! From hardware evidence to an appraisal that a policy can weigh.
//!
//! The names are those of RFC 9334 (RATS):
//!
//! ```text
//! Challenge ─▶ Attester ─▶ Evidence ─▶ Verifier ─▶ Appraisal
//!                             │           ▲
//!                       endorsements   trust anchors, CRLs, reference values, the time
//! ```
//!
//! - A [`Challenge`] is everything evidence is bound to: a nonce, the channel, the policy, the key of
//!   the audit log, the key that secrets are released to.
//! - An [`Attester`] gives [`Evidence`] of an SEV-SNP or a TDX guest; [`detect`] finds the one of
//!   this machine; where there is none, [`SimulatedTee`] and [`SimulatedTdx`] stand in.
//! - A [`Verifier`] appraises evidence. It is a pure function: no clock, no network, no state. An
//!   error means that the evidence is not to be believed; an [`Appraisal`] of a low [`TrustTier`] is
//!   believed but unwelcome.
//! - With the feature `release`, a `ReleaseKey` opens what a broker sealed to it.
//!
//! What an appraisal permits is decided in `policy`; secrets are handed out by `broker`.
//!
//! ```
//! use attestation::{Attester, Challenge, Role, SimulatedTee, TrustTier, UnixTime, Verifier};
//!
//! let now = UnixTime(1_790_000_000);
//! let challenge = Challenge {
//!     role: Role::Guest,
//!     nonce: [7; 32],
//!     channel: None,
//!     policy_digest: [0; 32],
//!     log_key: [0; 32],
//!     release_key: [0; 32],
//! };
//! let mut tee = SimulatedTee::new(now)?;
//! let evidence = tee.attest(&challenge.report_data())?;
//!
//! // Nobody believes a simulator by accident.
//! let verifier = Verifier::builder().reference_values(tee.reference_values()).build()?;
//! let refusal = verifier.appraise(&evidence, &challenge, now).unwrap_err();
//! assert_eq!(refusal.code(), "unknown-root");
//!
//! let verifier = Verifier::builder()
//!     .reference_values(tee.reference_values())
//!     .dangerous()
//!     .accept_simulated()
//!     .build()?;
//! let appraisal = verifier.appraise(&evidence, &challenge, now)?;
//! assert_eq!(appraisal.tier(), TrustTier::Affirming);
//! assert!(appraisal.is_simulated());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

mod appraisal;
mod attached;
mod attester;
mod challenge;
pub mod ear;
mod encoding;
mod endorsement;
mod eventlog;
mod evidence;
pub mod measure;
pub mod note;
mod platform;
mod reference;
#[cfg(feature = "release")]
mod release_key;
pub mod selftest;
mod tee;
mod time;
mod tsm;
mod verifier;

pub use appraisal::{
    Appraisal, Check, Claims, Outcome, SnpClaims, TcbStatus, TdxClaims, TrustTier,
};
pub use attester::{AttestError, Attester, detect};
pub use challenge::{Challenge, Nonce, Role};
pub use encoding::{Hex, HexError};
pub use endorsement::{
    EndorsedAttester, EndorsementFolder, EndorsementName, FolderError, FolderState, PathError,
    X509Error, certificates_from_pem,
};
pub use evidence::{
    ApplicationEvent, Endorsements, Evidence, EvidenceError, MAX_APPLICATION_EVENTS,
    MAX_CERTIFICATE, MAX_COLLATERAL, MAX_CRL, MAX_CRLS, MAX_EVIDENCE, MAX_REPORT, Tee,
};
pub use platform::Platform;
pub use reference::{
    GpuReferenceValues, MAX_REFERENCE_VALUES, ReferenceError, ReferenceValues, SnpReferenceValues,
    TdxReferenceValues, VtpmReferenceValues,
};
#[cfg(feature = "release")]
pub use release_key::{MAX_SECRET, ReleaseKey, SealError, SealedSecret, release_context};
pub use tee::simulated::{
    DEFAULT_MEASUREMENT, DEFAULT_TCB, QuoteForm, SimulatedTdx, SimulatedTdxBuilder, SimulatedTee,
    SimulatedTeeBuilder, simulated_crl,
};
pub use tee::{gpu, snp, tdx, vtpm};
pub use time::UnixTime;
pub use tsm::{TSM_ROOT, TsmError, TsmReport, TsmReports};
pub use verifier::{
    AppraiseError, BuildError, DangerousVerifierBuilder, Verifier, VerifierBuilder,
};
