//! The broker over the network: what a relying party runs.
//!
//! ```text
//!  TLS ─▶ POST /kbs/v0/auth ─▶ nonce, session
//!         POST /kbs/v0/attest ─▶ evidence, bound to nonce and key ─▶ appraised once
//!         GET  /kbs/v0/resource/REPO/TYPE/TAG ─▶ rule ─▶ record ─▶ secret, encrypted to that key
//! ```
//!
//! The protocol is that of Trustee's key broker service ("KBS attestation protocol"). What is different
//! is what is decided: a nonce is good for one attestation, refused or not; a secret that names no policy
//! goes to nobody; and whoever is refused does not learn whether there is such a secret. A client that
//! brings an X25519 key ([`jwk`]) binds its policy bundle and its log into the evidence too, which is
//! what `casemate` sandboxes do.
//!
//! - [`config`] is checked whole before anything listens; [`http`] is what can be asked, [`service`] what
//!   happens then; [`server`] keeps what a client may cost bounded.
//! - [`sessions`] and what was revoked are in a [`store`], which replicas may share; [`believing`] is what
//!   evidence is appraised by.
//! - [`journal`] is the audit log: nothing is released before the record of it is durable.
//! - [`admin`] is for the operator, on a Unix socket.

#![forbid(unsafe_code)]

pub mod admin;
pub mod believing;
pub mod coco;
pub mod config;
#[doc(hidden)]
pub mod fuzz;
pub mod http;
pub mod journal;
pub mod jwe;
pub mod jwk;
pub mod server;
pub mod service;
pub mod sessions;
pub mod store;
pub mod tally;
pub mod tls;
pub mod wire;
