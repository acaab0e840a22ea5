//! The kinds of TEE, a folder each.
//!
//! A new one is a folder here with the same file names, a variant of [`crate::Tee`], and a line in
//! the two `match`es of `verifier.rs` and `attester.rs`. What comes with a TEE, a virtual TPM or GPUs,
//! is a folder here and a line in `attached.rs`.

pub(crate) mod checklist;
pub mod gpu;
pub mod simulated;
pub mod snp;
pub mod tdx;
pub mod vtpm;
