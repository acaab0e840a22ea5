//! Releases keys to attested guests, and to nobody else.
//!
//! ```text
//! challenge ─▶ (guest attests) ─▶ appraise ─▶ decide ─▶ seal to the key in the evidence
//! ```
//!
//! A [`Broker`] holds secrets by name. It hands out nonces; a guest answers one with evidence of the
//! whole [`attestation::Challenge`], which names the key that the secret is then sealed to. The
//! nonce is spent before anything else is looked at, so of two attempts on one nonce one at most is
//! appraised.
//!
//! Everything needed for a record of what was decided is in the [`Release`] or the
//! [`ReleaseError`]; writing it down is the caller's, and comes before the secret is sent.

#![forbid(unsafe_code)]

mod broker;
mod nonces;
mod policy;
mod release;

pub use broker::{Broker, BrokerBuilder, ChallengeError};
pub use policy::{DangerousReleasePolicy, ReleasePolicy};
pub use release::{Release, ReleaseError, Unwelcome};
