//! The `container` backend: namespaces, a root file system of its own, cgroups.

mod attendants;
mod running;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::Pid;

use super::cgroup::{Cgroup, Limits};
use super::child::{FromInit, ToInit};
use super::floor::Floor;
use super::inject;
use super::namespace::Mappings;
use super::network::broker::Broker;
use super::network::{Grants, Network, resolver};
use super::pool::Refill;
use super::process::other_backend;
use super::spawner::{Failure, Spawner};
use super::trees::Namespaces;
use super::{Backend, Instance, Launch, Place, wire};
use crate::enforcement::{Enforcement, Item, State};
use crate::syscall::notify::Work;
use attendants::Attendants;
use running::Running;

/// By how much the limit of each user's processes is above that of the cgroup.
const CGROUP_FIRST: u64 = 16;

/// Makes a sandbox of namespaces and cgroups.
///
/// It is made early: its spawner enters the cgroups while evidence is still being collected.
#[derive(Debug)]
pub struct Container {
    spawner: Spawner,
    cgroup: Cgroup,
    items: Vec<Item>,
    mappings: Arc<Mutex<Mappings>>,
}

impl Container {
    /// Starts the spawner and makes the cgroups.
    ///
    /// # Errors
    ///
    /// When the spawner cannot be started.
    pub fn prepare() -> Result<Self, Failure> {
        let mut spawner = Spawner::start().map_err(Failure::at("starting the spawner"))?;
        spawner
            .have_mover()
            .map_err(Failure::at("making a socket pair"))?;
        Self::made_by(spawner, Cgroup::create(), Arc::default())
    }

    /// The same for a sandbox that has no mounts of its own, so that nobody has to move them.
    pub(super) fn prepare_without_mounts() -> Result<Self, Failure> {
        let spawner = Spawner::start().map_err(Failure::at("starting the spawner"))?;
        Self::made_by(spawner, Cgroup::create(), Arc::default())
    }

    /// Has a spawner enter the cgroups in which it will make the sandbox.
    pub(super) fn made_by(
        spawner: Spawner,
        (cgroup, items): (Cgroup, Vec<Item>),
        mappings: Arc<Mutex<Mappings>>,
    ) -> Result<Self, Failure> {
        spawner
            .enter(cgroup.placement())
            .map_err(Failure::at("entering the cgroups"))?;
        Ok(Self {
            spawner,
            cgroup,
            items,
            mappings,
        })
    }

    /// Brings the floor into force. Whom the sandbox is for need not be known yet.
    pub(super) fn park(
        mut self,
        floor: &Floor,
        limits: &Limits,
        stdio: [BorrowedFd<'_>; 3],
        serve: &mut dyn FnMut(&str, Place) -> Result<Item, Failure>,
    ) -> Result<Parked, Failure> {
        let mut enforcement = Enforcement::default();
        enforcement.extend(match floor.home {
            Some(_) if !self.cgroup.limits_something() => vec![unlimited(floor)],
            _ => self.items.clone(),
        });
        let mut made = floor.clone();
        if let Some(memory) = limits.memory.filter(|_| !self.cgroup.limits("memory")) {
            // Per process, and all that is left without a cgroup.
            made.limits.push((libc::RLIMIT_DATA, memory));
        }
        if self.cgroup.limits("pids") {
            // The cgroup refuses first, and counts what it refuses.
            for (resource, limit) in &mut made.limits {
                if *resource == libc::RLIMIT_NPROC {
                    *limit += CGROUP_FIRST;
                }
            }
        }
        self.cgroup
            .limit(limits)
            .map_err(Failure::at("setting cgroup limits"))?;
        enforcement.extend(lever_items(&self.cgroup, floor));
        let (control, theirs) = wire::pair().map_err(Failure::at("making a socket pair"))?;
        let (pid, pidfd) = self.launch_spawned(&made, theirs.as_fd(), stdio)?;
        drop(theirs);
        // While the sandbox is being made, and this thread only waits.
        let mut attendants =
            Attendants::start(&control).map_err(Failure::at("starting threads"))?;
        let mut confined = confine(control.as_fd(), serve, &mut enforcement)?;
        if let Some(namespaces) = &confined.namespaces {
            self.spawner.hold_trees(&made, namespaces)?;
        }
        let listens = confined.listener.is_some();
        attendants.listen(confined.listener.take());
        Ok(Parked {
            control,
            confined,
            listens,
            attendants,
            pid,
            pidfd,
            enforcement,
            spawner: self.spawner,
            cgroup: self.cgroup,
        })
    }
}

impl Container {
    fn launch_spawned(
        &self,
        floor: &Floor,
        control: BorrowedFd<'_>,
        stdio: [BorrowedFd<'_>; 3],
    ) -> Result<(Pid, OwnedFd), Failure> {
        // Whoever panicked, what is in it is whole.
        let shared = || self.mappings.lock().unwrap_or_else(PoisonError::into_inner);
        // A copy, so that others launch meanwhile.
        let copied = shared().try_clone();
        let mut mappings = copied.map_err(Failure::at("copying descriptors"))?;
        let spawned = self.spawner.launch(floor, control, stdio, &mut mappings)?;
        let (known, namespaces) = mappings.others(&[]);
        shared().keep(known, namespaces);
        Ok(spawned)
    }
}

impl Backend for Container {
    fn launch(self: Box<Self>, launch: Launch<'_>) -> Result<Box<dyn Instance>, Failure> {
        if launch.floor.home.is_some() {
            return Err(other_backend());
        }
        self.launch_any(launch)
    }
}

impl Container {
    /// Launches, with namespaces or without, as the floor has it.
    pub(super) fn launch_any(self, launch: Launch<'_>) -> Result<Box<dyn Instance>, Failure> {
        let [input, output, error] = &launch.stdio;
        let stdio = [input.as_fd(), output.as_fd(), error.as_fd()];
        let parked = self.park(launch.floor, &launch.limits, stdio, &mut *launch.serve)?;
        parked.wake(launch, None)
    }
}

/// A sandbox in which everything is in force, and no instruction of the workload was executed.
///
/// Dropping it leaves nothing behind.
#[derive(Debug)]
pub(super) struct Parked {
    control: OwnedFd,
    confined: Confined,
    listens: bool,
    attendants: Attendants,
    pid: Pid,
    pidfd: OwnedFd,
    enforcement: Enforcement,
    // Dropped last, in this order: the spawner kills and reaps what is left, then the cgroups are
    // empty and can be removed.
    spawner: Spawner,
    cgroup: Cgroup,
}

impl Parked {
    /// Gives the sandbox to whoever launches: their events, their levers; and their stdio at its start,
    /// where it was made without it, for a pool.
    pub(super) fn wake(
        mut self,
        launch: Launch<'_>,
        refill: Option<Refill>,
    ) -> Result<Box<dyn Instance>, Failure> {
        let Launch {
            floor,
            stdio,
            gate,
            connect,
            events,
            ..
        } = launch;
        let mut enforcement = self.enforcement;
        let Confined {
            namespaces,
            resolver,
            ..
        } = self.confined;
        let spared = inodes(&stdio).map_err(Failure::at("looking at stdin, stdout and stderr"))?;
        let network = match (floor.network, self.listens) {
            (false, _) => None,
            (true, false) => {
                let detail =
                    "no connection is possible: another supervisor answers system calls here";
                enforcement.add(Item::not(2, "network", detail));
                None
            }
            (true, true) => {
                let grants = Arc::new(Mutex::new(Grants::new(connect.iter().cloned())));
                if let Some(socket) = resolver {
                    let alive = self
                        .pidfd
                        .try_clone()
                        .map_err(Failure::at("starting the resolver"))?;
                    let (grants, events) = (Arc::clone(&grants), events.clone());
                    resolver::start(socket, alive, grants, resolver::host(), events)
                        .map_err(Failure::at("starting the resolver"))?;
                }
                enforcement.add(network_item(&self.cgroup));
                Some((grants, spared))
            }
        };
        let broker = network
            .as_ref()
            .map(|(grants, spared)| Broker::new(Arc::clone(grants), *spared));
        let gate = gate.filter(|_| self.listens);
        enforcement.extend(lever_items_of_calls(floor, gate.is_some()));
        let work = Work {
            gate: gate.clone(),
            network: broker,
            events: events.clone(),
        };
        self.attendants.assign(work, events);
        let network = network.map(|(grants, spared)| Network::new(grants, self.pid, spared));
        Ok(Box::new(Running {
            control: self.control,
            stdio: refill.map(|refill| (stdio, refill)),
            namespaces,
            frozen: false,
            halted: None,
            gate,
            pid: self.pid,
            pidfd: self.pidfd,
            enforcement,
            attendants: self.attendants,
            network,
            spawner: self.spawner,
            cgroup: self.cgroup,
        }))
    }
}

/// What a confined sandbox handed over.
#[derive(Debug)]
struct Confined {
    namespaces: Option<Namespaces>,
    listener: Option<OwnedFd>,
    resolver: Option<OwnedFd>,
}

/// Follows the init until everything is in force; gives each vault's place to `serve`.
fn confine(
    control: BorrowedFd<'_>,
    serve: &mut dyn FnMut(&str, Place) -> Result<Item, Failure>,
    enforcement: &mut Enforcement,
) -> Result<Confined, Failure> {
    let mut resolver = None;
    loop {
        let heard = wire::receive(control).map_err(Failure::at("hearing from the sandbox"))?;
        match heard {
            Some((FromInit::Place { name, fuse }, mut descriptors)) => {
                let Some(descriptor) = descriptors.pop() else {
                    return Err(ended());
                };
                let place = if fuse {
                    Place::Fuse(descriptor)
                } else {
                    Place::Memory(descriptor)
                };
                enforcement.add(serve(&name, place)?);
                wire::send(control, &ToInit::Served, &[])
                    .map_err(Failure::at("speaking to the sandbox"))?;
            }
            Some((FromInit::Prepared { items, listens }, mut descriptors)) => {
                enforcement.extend(items);
                let listener = listens.then(|| descriptors.pop()).flatten();
                let namespaces = match descriptors.is_empty() {
                    true => None,
                    false => Some(Namespaces::received(descriptors)?),
                };
                return Ok(Confined {
                    namespaces,
                    listener,
                    resolver,
                });
            }
            Some((FromInit::Resolver, mut descriptors)) => resolver = descriptors.pop(),
            Some((FromInit::Failed(failure), _)) => return Err(failure),
            Some((FromInit::Ended(_), _)) | None => return Err(ended()),
        }
    }
}

fn ended() -> Failure {
    Failure {
        step: "preparing the sandbox".into(),
        error: "its init ended without a word (was it killed for lack of memory?)".into(),
        errno: None,
    }
}

/// What is left without cgroups and without namespaces.
fn unlimited(floor: &Floor) -> Item {
    let processes = match floor.privileged {
        true => "processes are limited together",
        false => "processes are not limited",
    };
    let rest = "private memory is limited for each process, and the CPU not at all";
    Item::not(
        2,
        "cgroup",
        format!("no cgroup can be made by this user: {processes}, {rest}"),
    )
}

/// What the levers that need cgroups can do on this host.
fn lever_items(cgroup: &Cgroup, floor: &Floor) -> Vec<Item> {
    let mut items = Vec::new();
    items.push(if cgroup.freezes() {
        Item::full(2, "freeze", "cgroup freezer")
    } else {
        Item::partly(2, "freeze", "SIGSTOP to every process of the sandbox")
    });
    items.push(if cgroup.limits_something() {
        Item::full(2, "resources", "cgroup limits, changed while it runs")
    } else {
        Item::not(2, "resources", "limits cannot be changed while it runs")
    });
    items.push(match floor.home {
        None => Item::full(
            2,
            "files",
            "granted trees can be taken while it runs, and given back; files open already stay open",
        ),
        Some(_) => Item::not(2, "files", "granted trees cannot be taken while it runs"),
    });
    items
}

/// What the `network` lever can do on this host.
fn network_item(cgroup: &Cgroup) -> Item {
    let what =
        "TCP to granted endpoints, ended when they are taken; names only through the supervisor";
    if cgroup.freezes() {
        Item::full(2, "network", what)
    } else {
        Item::full(2, "network", format!("{what}; paused by SIGSTOP meanwhile"))
    }
}

fn inodes(stdio: &[OwnedFd; 3]) -> io::Result<[u64; 3]> {
    let mut inodes = [0; 3];
    for (inode, fd) in inodes.iter_mut().zip(stdio) {
        *inode = rustix::fs::fstat(fd)?.st_ino;
    }
    Ok(inodes)
}

/// What the levers on system calls can do under this floor.
fn lever_items_of_calls(floor: &Floor, gate: bool) -> Vec<Item> {
    let obstacle = match floor.home {
        None => inject::obstacle(&floor.filter, floor.privileged),
        Some(_) => Some("its tasks have no namespace by which all are found".into()),
    };
    let tighten = match obstacle {
        None => Item::full(
            3,
            "tighten",
            "a further filter and Landlock domain can be put on every task while it runs",
        ),
        Some(obstacle) => Item::not(3, "tighten", obstacle),
    };
    let exec = if gate {
        Item::full(3, "exec", "each start of a program is asked for")
    } else if tighten.state == State::Full {
        Item::full(3, "exec", "can be taken while it runs, for good")
    } else {
        Item::not(3, "exec", "cannot be taken while it runs")
    };
    vec![exec, tighten]
}
