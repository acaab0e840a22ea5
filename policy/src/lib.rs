//! The policy decision point: tables and rules and facts, to a decision.
//!
//! ```text
//! policy.toml ─▶ Bundle ─▶ grants        what the tables list: the most there can ever be
//!                  │
//!        Facts ─▶ decide ─▶ Decision     what of it holds now, and because of which rules
//!          ▲
//! signals ─▶ Risk
//! ```
//!
//! Everything here is a pure function of what is passed in: no file, no clock, no network. Time
//! is a [`Duration`](std::time::Duration) since the Unix epoch. What a denied grant means for a
//! running workload is the business of the crate `casemate`.
//!
//! ```
//! use policy::{Bundle, Facts, Grant, Tcb, Tier};
//!
//! let source = include_str!("../examples/clean-room.toml");
//! let bundle = Bundle::parse(source, "clean-room.toml")?;
//!
//! let good = Facts { risk: 0, tier: Tier::Affirming, tcb: Tcb::UpToDate, ..Facts::unknown() };
//! let decision = bundle.decide(&good);
//! assert!(decision.grants(&Grant::read_vault("customers")));
//!
//! let decision = bundle.decide(&Facts { risk: 45, ..good });
//! assert!(!decision.grants(&Grant::read_vault("customers")));
//! assert!(decision.proceed());
//! # Ok::<(), policy::BundleError>(())
//! ```

#![forbid(unsafe_code)]

mod advice;
mod bundle;
mod case;
mod condition;
mod decide;
mod decision;
mod diagnostic;
mod diff;
mod domain;
mod explain;
mod facts;
#[doc(hidden)]
pub mod fuzz;
mod grant;
mod guard;
pub mod learn;
mod lexer;
mod lint;
mod plain;
mod reader;
mod risk;
mod rules;
mod schema;
pub mod seccomp;
mod sensors;
mod settings;
pub mod signature;
mod tables;
mod units;
mod window;

pub use bundle::{Bundle, BundleError};
pub use case::{Cases, CasesError, Covered, Outcome, Report, Wrong};
pub use decision::{Decision, Denial, Permission, Reason, ReasonKind, Verdict};
pub use diagnostic::{Diagnostic, Severity};
pub use diff::{Change, Diff, Flip, Setting};
pub use explain::Explanation;
pub use facts::{Facts, Tcb, Tier};
pub use grant::{Action, Grant, Lever, Resource};
pub use risk::{Risk, RiskModel};
pub use schema::{BUNDLE_SCHEMA, SCHEMA};
pub use sensors::{LooksFor, RiskEntry, SENSORS};
pub use tables::{
    Access, Attestation, BackendName, Data, Endpoint, EndpointError, FileGrant, Files, Isolation,
    Network, Reduced, Rootfs, Syscalls, Tables, TeeName, Workload,
};
pub use window::{Window, WindowError};
