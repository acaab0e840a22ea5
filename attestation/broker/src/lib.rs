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
//! ```
//! use attestation::{
//!     Attester, Challenge, ReleaseKey, Role, SimulatedTee, UnixTime, Verifier, release_context,
//! };
//! use broker::{Broker, ReleasePolicy};
//! use zeroize::Zeroizing;
//!
//! let now = UnixTime(1_790_000_000);
//! let mut tee = SimulatedTee::new(now)?;
//! let verifier = Verifier::builder()
//!     .reference_values(tee.reference_values())
//!     .dangerous()
//!     .accept_simulated()
//!     .build()?;
//! let secret = Zeroizing::new(b"a vault's key".to_vec());
//! let broker = Broker::builder(verifier)
//!     .resource("vault", secret, ReleasePolicy::default())
//!     .build();
//!
//! // In the guest:
//! let key = ReleaseKey::generate()?;
//! let challenge = Challenge {
//!     role: Role::Guest,
//!     nonce: broker.challenge(now)?,
//!     channel: None,
//!     policy_digest: [0; 32],
//!     log_key: [0; 32],
//!     release_key: key.public(),
//! };
//! let evidence = tee.attest(&challenge.report_data())?;
//!
//! let release = broker.release(&evidence, &challenge, "vault", now)?;
//!
//! // In the guest again:
//! let context = release_context("vault", &challenge.report_data());
//! assert_eq!(&key.open(&release.sealed, &context)?[..], b"a vault's key");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Everything needed for a record of what was decided is in the [`Release`] or the
//! [`ReleaseError`]; writing it down is the caller's, and comes before the secret is sent.

#![forbid(unsafe_code)]

mod broker;
pub mod key_file;
mod nonces;
mod policy;
mod release;

pub use broker::{Broker, BrokerBuilder, ChallengeError};
pub use policy::{DangerousReleasePolicy, ReleasePolicy};
pub use release::{Attested, Refusal, Release, ReleaseError, SpentNonce, Standing, Unwelcome};
