//! What happens in and around a running sandbox, as the session hears of it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

use policy::Bundle;

use crate::isolation::child::Ending;
use crate::isolation::spawner::Failure;
use crate::order::{Answer, By, Order};
use crate::sensor::external::Report;

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The workload made a system call that its profile does not have; it was refused.
    Denied(Denied),
    /// The workload wanted to reach an address, or to resolve a name, that is not granted now.
    DeniedAddress(DeniedAddress),
    /// A read of a vault came upon damage; it failed, and gave no byte.
    Damaged {
        /// Entry of the `[data]` table.
        data: String,
        /// Which object, and which part of it.
        what: String,
    },
    /// Whoever releases keys has answered.
    Answered,
    /// The workload ended.
    Ended(Ending),
    /// The workload's program could not be executed.
    Failed(Failure),
    /// The workload executed a program that it had not executed before.
    Exec {
        /// The program, as the host sees it.
        path: String,
        /// Process that executed it, as the host counts.
        pid: i32,
    },
    /// A tool outside reports something.
    Report(Report),
    /// Somebody asks that a Unix signal be passed on to the workload.
    Kill {
        /// Number of the signal.
        signal: i32,
        /// Who asks, if it is known.
        by: Option<By>,
    },
    /// An operator raises the risk by what the policy's table says, for this reason.
    Operator(String),
    /// An operator orders something, and waits for the answer.
    Order(Order, SyncSender<Answer>),
    /// Somebody asks how the session is, and waits for the answer.
    Ask(SyncSender<Answer>),
    /// Another bundle is to be taken into force; or could not be read, for this reason.
    Reload(Result<Bundle, String>),
}

/// A system call that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    /// Name of the system call.
    pub name: String,
    /// What of its arguments says what was wanted, such as the socket family.
    pub detail: String,
    /// Process that made it, as the host counts.
    pub pid: u32,
}

/// An address that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeniedAddress {
    /// What the workload wanted to reach.
    pub wanted: Wanted,
    /// Thread that wanted it, as the host counts; 0 where that is not known.
    pub pid: u32,
}

/// What a workload wanted to reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// An address and a port (0 if none was named yet).
    Address {
        /// The address.
        address: SocketAddr,
        /// The name that led to it, if one did.
        name: Option<String>,
    },
    /// A name, before it had an address.
    Name(String),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address {
                address,
                name: Some(name),
            } => write!(f, "{address} ({name})"),
            Self::Address {
                address,
                name: None,
            } => write!(f, "{address}"),
            Self::Name(name) => write!(f, "{name}"),
        }
    }
}

/// A clock for a session: time since the Unix epoch.
///
/// It starts from the wall clock and then runs by `CLOCK_BOOTTIME`, so that setting the wall clock
/// back makes no evidence younger, and a paused machine makes it older.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Duration,
    booted: Duration,
}

impl Clock {
    /// Reads both clocks once.
    pub fn start() -> Self {
        let started = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            started,
            booted: since_boot(),
        }
    }

    /// Time since the machine was booted, suspension included.
    pub fn since_boot(&self) -> Duration {
        since_boot()
    }

    /// The time now.
    pub fn now(&self) -> Duration {
        self.started + since_boot().saturating_sub(self.booted)
    }
}

fn since_boot() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}
