//! What runs inside the confidential VM: policy files become sessions, and callers become clients.
//!
//! ```text
//!  policy file ─▶ Assembly ─▶ casemate::Session            the library: also under `sandboxctl run`
//!                                  ▲
//!  caller ─▶ transport ─▶ api ─▶ agent ─▶ its records, line by line        the service
//! ```
//!
//! [`assembly`] turns a policy file on this machine into a session that only has to be run. The binary
//! `casemate-guest-agent` does so for callers on a Unix socket: [`transport`] knows who they are,
//! [`api`] what they can ask, [`agent`] what they may.
//!
//! Each session also has a socket of its own, for its own user and root: [`control`].
//!
//! What a session does is decided in `casemate` and `policy`. HTTP with an OpenAPI description, and
//! vsock, come later, as further transports to the same [`agent`].

#![forbid(unsafe_code)]

pub mod agent;
pub mod api;
pub mod assembly;
pub mod brokers;
pub mod config;
pub mod control;
pub mod endorsements;
mod follow;
pub mod leases;
mod line;
pub mod local_broker;
pub mod lockdown;
mod outbox;
pub mod remote_broker;
pub mod transport;
pub mod view;
pub mod vm;

pub use agent::Agent;
pub use assembly::{Assembled, Assembly, AssemblyError};
pub use broker::key_file;
pub use config::Config;
pub use local_broker::LocalBroker;
