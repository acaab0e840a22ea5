//! Layer 2: where a workload runs.
//!
//! A [`Backend`] takes a [`Floor`], brings it into force, and gives back an [`Instance`] that says what
//! was enforced before the workload's first instruction. One file per backend; what they share has a
//! file of its own.

pub mod cgroup;
pub mod child;
pub mod container;
pub mod floor;
pub mod inject;
pub mod microvm;
pub mod namespace;
pub mod network;
pub mod nursery;
pub mod pool;
pub mod process;
pub mod rootfs;
pub mod spawner;
pub mod trees;
mod wire;

use std::os::fd::OwnedFd;
use std::sync::mpsc::SyncSender;

use rustix::process::Pid;

use crate::enforcement::{Enforcement, Item};
use crate::event::Event;
use crate::lever::exec::Gate;
use crate::plan::FileAccess;
use crate::session::Killer;
use cgroup::{Limits, Pressure};
use floor::Floor;
use inject::Layer;
use spawner::Failure;

/// A place where workloads run.
pub trait Backend: Send {
    /// Brings the floor into force. The workload exists then, but has not executed an instruction of
    /// its program.
    ///
    /// # Errors
    ///
    /// [`Failure`] names the step; nothing is left behind.
    fn launch(self: Box<Self>, launch: Launch<'_>) -> Result<Box<dyn Instance>, Failure>;
}

impl Backend for Box<dyn Backend> {
    fn launch(self: Box<Self>, launch: Launch<'_>) -> Result<Box<dyn Instance>, Failure> {
        (*self).launch(launch)
    }
}

/// What a launch needs.
pub struct Launch<'a> {
    /// What is in force from exec on.
    pub floor: &'a Floor,
    /// Limits at the start.
    pub limits: Limits,
    /// stdin, stdout and stderr of the workload.
    pub stdio: [OwnedFd; 3],
    /// Where starts of programs are asked for, if the floor's filter asks.
    pub gate: Option<Gate>,
    /// Takes each vault's place as it is mounted and serves it.
    pub serve: &'a mut dyn FnMut(&str, Place) -> Result<Item, Failure>,
    /// Endpoints of the policy's `[network]`, and whether each may be connected at the start.
    pub connect: &'a [(policy::Endpoint, bool)],
    /// Where what happens inside is reported.
    pub events: SyncSender<Event>,
}

/// Where a vault appears in a sandbox.
#[derive(Debug)]
pub enum Place {
    /// A mounted FUSE file system that waits to be served.
    Fuse(OwnedFd),
    /// A folder in memory that waits to be filled; the workload sees it read-only.
    Memory(OwnedFd),
}

/// A sandbox that exists. Dropping it leaves nothing behind.
pub trait Instance: Send {
    /// What is in force.
    fn enforcement(&self) -> &Enforcement;

    /// Process id of the sandbox's init on the host.
    fn pid(&self) -> Pid;

    /// Lets the workload execute its program.
    ///
    /// # Errors
    ///
    /// When the sandbox is gone.
    fn start(&mut self) -> Result<(), Failure>;

    /// Sends a Unix signal to the workload.
    ///
    /// # Errors
    ///
    /// When the sandbox is gone.
    fn kill(&mut self, signal: i32) -> Result<(), Failure>;

    /// Changes the limits at once.
    ///
    /// # Errors
    ///
    /// When the host gives nothing to do it with, or refuses.
    fn limit(&mut self, limits: &Limits) -> Result<(), Failure>;

    /// Freezes the workload, or lets it go on.
    ///
    /// # Errors
    ///
    /// When a task does not stop in time.
    fn freeze(&mut self, frozen: bool) -> Result<(), Failure>;

    /// Lets the granted tree at this path inside be seen with this access, or not at all.
    ///
    /// # Errors
    ///
    /// When there is no such mount, or the kernel refuses. The tree is then as it was, or gone.
    fn show_tree(&mut self, at: &str, access: Option<FileAccess>) -> Result<(), Failure>;

    /// Something that kills the sandbox from another thread, while a lever hangs in this one.
    fn killer(&self) -> Killer;

    /// Lets an endpoint of the policy be connected, or ends all connections to it and refuses new ones.
    ///
    /// # Errors
    ///
    /// When this sandbox has no such endpoint, or connections may be left.
    fn connect(&mut self, endpoint: &policy::Endpoint, granted: bool) -> Result<(), Failure> {
        let _ = (endpoint, granted);
        Err(cannot("changing the network"))
    }

    /// Lets the workload start programs, or no more.
    ///
    /// # Errors
    ///
    /// When it cannot be told to, or the right is gone for good. Frozen then, as by
    /// [`tighten`](Instance::tighten).
    fn exec(&mut self, allowed: bool) -> Result<(), Failure> {
        Err(cannot(if allowed {
            "giving the right to start programs back"
        } else {
            "taking the right to start programs"
        }))
    }

    /// Whether the right to start programs can be given back once it was taken.
    fn exec_returns(&self) -> bool {
        false
    }

    /// Stops every task, to [`tighten`](Instance::tighten) the sandbox next; what stands against that is told
    /// there. Does not wait for it. Nothing lets them go but that, and the end.
    fn halt(&mut self) {}

    /// Puts a further layer on every task that there is, for good. Returns when all have it.
    ///
    /// # Errors
    ///
    /// When one task does not have it. None of them executes an instruction then, until the sandbox is
    /// thawed or stopped.
    fn tighten(&mut self, layer: &Layer) -> Result<(), Failure> {
        let _ = layer;
        Err(cannot("tightening the running workload"))
    }

    /// Lets the workload stand back on the CPU while something is taken from it, or no more.
    fn give_way(&mut self, now: bool) {
        let _ = now;
    }

    /// Whether the workload has mounts of its own, so that what happens on them is the workload's doing.
    fn has_mounts(&self) -> bool {
        true
    }

    /// What the sandbox met of its limits so far.
    fn pressure(&self) -> Pressure {
        Pressure::default()
    }

    /// Kills everything in the sandbox.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    fn stop(&mut self) -> Result<(), Failure>;
}

fn cannot(step: &str) -> Failure {
    Failure {
        step: step.into(),
        error: "this backend cannot do it".into(),
        errno: None,
    }
}
