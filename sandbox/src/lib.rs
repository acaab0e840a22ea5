//! Confidential sandboxes: four layers, one policy that keeps deciding, and a log that proves it.
//!
//! ```text
//!  layer 1  attestation   evidence is appraised, keys are released to what it proves
//!  layer 2  isolation     namespaces, root file system, cgroups
//!  layer 3  syscall       seccomp, Landlock, memory protection
//!  layer 4  vault         data under a lease, and the audit log
//!
//!  policy ─▶ plan ─▶ launch ─▶ events ─▶ signals ─▶ policy ─▶ … a running sandbox is adjusted
//! ```
//!
//! [`Session`] is the way in, and [`session`] reads like the picture. Verification, policies, vaults
//! and the log are crates of their own that know nothing of each other; only this one translates
//! ([`facts`] in, [`plan`] out, [`release`] for keys, [`record`] for the log).

#![deny(unsafe_code)]

pub mod adjust;
pub mod doctor;
pub mod enforcement;
pub mod error;
pub mod event;
pub mod explain;
pub mod facts;
pub mod isolation;
pub mod lever;
pub mod observe;
pub mod order;
pub mod peer;
pub mod plan;
pub mod receipt;
pub mod record;
pub mod refusal;
pub mod release;
pub mod sensor;
pub mod session;
pub mod status;
#[allow(unsafe_code)]
mod sys;
pub mod syscall;

pub use error::SessionError;
pub use order::{By, Command, Order};
pub use session::{Endorsements, Handle, Outcome, Session, SessionBuilder, Why, Witness};
