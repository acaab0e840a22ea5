//! The kinds of TEE, a folder each.
//!
//! A new one is a folder here with the same file names, a variant of [`crate::Tee`], and a line in
//! the two `match`es of `verifier.rs` and `attester.rs`.

mod checklist;
pub mod simulated;
pub mod snp;
pub mod tdx;
