//! The `container` backend: namespaces, a root file system of its own, cgroups.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use policy::Endpoint;
use rustix::process::{Pid, Signal};

use super::cgroup::{Cgroup, Limits, Pressure};
use super::child::{Ending, FromInit, ToInit};
use super::floor::Floor;
use super::inject::{self, Layer, Target};
use super::network::broker::Broker;
use super::network::{Grants, Left, Network, resolver};
use super::spawner::{Failure, Spawner};
use super::trees::Namespaces;
use super::{Backend, Instance, Launch, Place, wire};
use crate::enforcement::{Enforcement, Item, State};
use crate::event::Event;
use crate::lever::exec::Gate;
use crate::lever::tighten::Tightening;
use crate::plan::FileAccess;
use crate::session::Killer;
use crate::syscall::notify;

/// How often it is looked whether descriptors that were on their way have arrived.
const FLOW_ATTEMPTS: u32 = 10;
const FLOW_PAUSE: Duration = Duration::from_millis(1);
/// By how much the limit of each user's processes is above that of the cgroup.
const CGROUP_FIRST: u64 = 16;
/// How long a task may take to stop, where there is no cgroup to freeze.
const STOPPED_DEADLINE: Duration = Duration::from_secs(2);

/// Makes sandboxes of namespaces and cgroups.
///
/// It is made early: its spawner enters the cgroups while evidence is still being collected.
#[derive(Debug)]
pub struct Container {
    spawner: Spawner,
    cgroup: Cgroup,
    items: Vec<Item>,
}

impl Container {
    /// Starts the spawner and makes the cgroups.
    ///
    /// # Errors
    ///
    /// When the spawner cannot be started.
    pub fn prepare() -> Result<Self, Failure> {
        let (cgroup, items) = Cgroup::create();
        let spawner = Spawner::start(cgroup.placement());
        let spawner = spawner.map_err(Failure::at("starting the spawner"))?;
        Ok(Self {
            spawner,
            cgroup,
            items,
        })
    }
}

impl Backend for Container {
    fn launch(mut self: Box<Self>, launch: Launch<'_>) -> Result<Box<dyn Instance>, Failure> {
        let Launch {
            floor,
            limits,
            stdio,
            gate,
            serve,
            connect,
            events,
        } = launch;
        let mut enforcement = Enforcement::default();
        enforcement.extend(self.items.iter().cloned());
        let mut floor = floor.clone();
        if let Some(memory) = limits.memory.filter(|_| !self.cgroup.limits("memory")) {
            // Per process, and all that is left without a cgroup.
            floor.limits.push((libc::RLIMIT_DATA, memory));
        }
        if self.cgroup.limits("pids") {
            // The cgroup refuses first, and counts what it refuses.
            for (resource, limit) in &mut floor.limits {
                if *resource == libc::RLIMIT_NPROC {
                    *limit += CGROUP_FIRST;
                }
            }
        }
        self.cgroup
            .limit(&limits)
            .map_err(Failure::at("setting cgroup limits"))?;
        enforcement.extend(lever_items(&self.cgroup));
        let (control, theirs) = wire::pair().map_err(Failure::at("making a socket pair"))?;
        let [input, output, error] = &stdio;
        let spared = inodes(&stdio).map_err(Failure::at("looking at stdin, stdout and stderr"))?;
        let (pid, pidfd) = self.spawner.launch(
            &floor,
            theirs.as_fd(),
            [input.as_fd(), output.as_fd(), error.as_fd()],
        )?;
        drop((theirs, stdio));
        let Confined {
            namespaces,
            listener,
            resolver,
        } = confine(control.as_fd(), serve, &mut enforcement)?;
        self.spawner.hold_trees(&floor, &namespaces)?;
        let network = match (floor.network, &listener) {
            (false, _) => None,
            (true, None) => {
                let detail =
                    "no connection is possible: another supervisor answers system calls here";
                enforcement.add(Item::not(2, "network", detail));
                None
            }
            (true, Some(_)) => {
                let grants = Arc::new(Mutex::new(Grants::new(connect.iter().cloned())));
                if let Some(socket) = resolver {
                    let alive = pidfd
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
        let gate = gate.filter(|_| listener.is_some());
        enforcement.extend(lever_items_of_calls(&floor, gate.is_some()));
        if let Some(listener) = listener {
            notify::start(listener, gate.clone(), broker, events.clone())
                .map_err(Failure::at("starting the notifier"))?;
        }
        let network = network.map(|(grants, spared)| Network::new(grants, pid, spared));
        Ok(Box::new(Running {
            control,
            namespaces,
            frozen: false,
            gate,
            pid,
            pidfd,
            enforcement,
            events,
            network,
            spawner: self.spawner,
            cgroup: self.cgroup,
        }))
    }
}

/// What a confined sandbox handed over.
struct Confined {
    namespaces: Namespaces,
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
            Some((FromInit::Prepared { items }, descriptors)) => {
                enforcement.extend(items);
                let mut namespaces = descriptors;
                let listener = (namespaces.len() > 3).then(|| namespaces.pop()).flatten();
                return Ok(Confined {
                    namespaces: Namespaces::received(namespaces)?,
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

/// What the levers that need cgroups can do on this host.
fn lever_items(cgroup: &Cgroup) -> Vec<Item> {
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
    items.push(Item::full(
        2,
        "files",
        "granted trees can be taken while it runs, and given back; files open already stay open",
    ));
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
    let tighten = match inject::obstacle(&floor.filter, floor.privileged) {
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

/// A running container.
#[derive(Debug)]
struct Running {
    control: OwnedFd,
    namespaces: Namespaces,
    frozen: bool,
    gate: Option<Gate>,
    pid: Pid,
    pidfd: OwnedFd,
    enforcement: Enforcement,
    events: SyncSender<Event>,
    network: Option<Network>,
    // Dropped last, in this order: the spawner kills and reaps what is left, then the cgroups are
    // empty and can be removed.
    spawner: Spawner,
    cgroup: Cgroup,
}

impl Running {
    fn tell(&self, message: &ToInit) -> Result<(), Failure> {
        // A frozen init hears nothing, and must keep nobody waiting.
        wire::send_now(self.control.as_fd(), message)
            .map_err(Failure::at("speaking to the sandbox"))
    }

    /// Tells the init, unless it has just ended: then nothing is left to signal or to freeze.
    fn tell_if_there(&self, message: &ToInit) -> Result<(), Failure> {
        match self.tell(message) {
            Err(failure) if failure.errno == Some(libc::EPIPE) => Ok(()),
            told => told,
        }
    }
}

impl Running {
    /// Ends what must not go on; the sandbox was just told to freeze.
    fn end_flows_while_frozen(&self) -> io::Result<Left> {
        let Some(network) = &self.network else {
            return Ok(Left::Nothing);
        };
        if !self.cgroup.freezes() {
            let deadline = Instant::now() + STOPPED_DEADLINE;
            while !network.all_stopped()? {
                if Instant::now() > deadline {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                std::thread::yield_now();
            }
        }
        network.end_lost_flows()
    }
}

impl Instance for Running {
    fn enforcement(&self) -> &Enforcement {
        &self.enforcement
    }

    fn pid(&self) -> Pid {
        self.pid
    }

    fn start(&mut self) -> Result<(), Failure> {
        let control = self
            .control
            .try_clone()
            .map_err(Failure::at("watching the sandbox"))?;
        let events = self.events.clone();
        let reader = move || {
            let event = match wire::receive(control.as_fd()) {
                Ok(Some((FromInit::Ended(ending), _))) => Event::Ended(ending),
                Ok(Some((FromInit::Failed(failure), _))) => Event::Failed(failure),
                // Killed from outside: by the kernel for lack of memory, or by a lever.
                _ => Event::Ended(Ending::Killed(libc::SIGKILL)),
            };
            let _ = events.send(event);
        };
        // Ends by itself when the sandbox does.
        std::thread::Builder::new()
            .name("sandbox-control".into())
            .spawn(reader)
            .map_err(Failure::at("watching the sandbox"))?;
        self.tell(&ToInit::Start)
    }

    fn kill(&mut self, signal: i32) -> Result<(), Failure> {
        self.tell_if_there(&ToInit::Kill(signal))
    }

    fn limit(&mut self, limits: &Limits) -> Result<(), Failure> {
        if !self.cgroup.limits_something() {
            return Err(Failure {
                step: "changing limits".into(),
                error: "this host gives no cgroup to do it with".into(),
                errno: None,
            });
        }
        self.cgroup
            .limit(limits)
            .map_err(Failure::at("changing limits"))
    }

    fn freeze(&mut self, frozen: bool) -> Result<(), Failure> {
        // Who is to stop has to run first.
        self.cgroup.give_way(false);
        // Also if it fails half-way: it is thawed by being told so.
        self.frozen |= frozen;
        if self.cgroup.freezes() {
            self.cgroup
                .freeze(frozen)
                .map_err(Failure::at("freezing"))?;
        } else {
            self.tell_if_there(&ToInit::Pause(frozen))?;
        }
        self.frozen = frozen;
        Ok(())
    }

    fn connect(&mut self, endpoint: &Endpoint, granted: bool) -> Result<(), Failure> {
        let failed = || Failure::at("changing the network");
        let Some(network) = &self.network else {
            // Nothing can be connected here, whatever is granted: the gap `network`.
            return Ok(());
        };
        network.set(endpoint, granted).map_err(failed())?;
        // A socket that is given from now on is connected under the grants as they are now.
        if granted || !network.is_used() {
            return Ok(());
        }
        // Most end here; what was moved or comes to light only when nothing moves ends below.
        network.end_begun_flows();
        let was_frozen = self.frozen;
        for _ in 0..FLOW_ATTEMPTS {
            if !was_frozen {
                self.freeze(true)?;
            }
            let left = self.end_flows_while_frozen();
            if !was_frozen {
                self.freeze(false)?;
            }
            match left.map_err(Failure::at("ending connections"))? {
                Left::Nothing => return Ok(()),
                // Give whoever waits for the descriptor the time to receive it.
                Left::InFlight if !was_frozen => std::thread::sleep(FLOW_PAUSE),
                Left::InFlight => break,
            }
        }
        Err(Failure {
            step: "ending connections".into(),
            error: "descriptors are on their way through a Unix socket and are not received".into(),
            errno: None,
        })
    }

    fn exec(&mut self, allowed: bool) -> Result<(), Failure> {
        match (&self.gate, allowed) {
            (Some(gate), _) => {
                gate.set(allowed);
                Ok(())
            }
            (None, false) => self.tighten(&Tightening::Exec.layer()?),
            (None, true) => Err(Failure {
                step: "giving the right to start programs back".into(),
                error: "it was taken for good".into(),
                errno: None,
            }),
        }
    }

    fn exec_returns(&self) -> bool {
        self.gate.is_some()
    }

    fn tighten(&mut self, layer: &Layer) -> Result<(), Failure> {
        let cgroup = self.cgroup.on_v2();
        if self.frozen && cgroup.is_none() && self.cgroup.freezes() {
            return Err(Failure {
                step: "tightening".into(),
                error: "a sandbox that is frozen by cgroup v1 has to be thawed first".into(),
                errno: None,
            });
        }
        let target = Target {
            init: self.pid.as_raw_nonzero().get(),
            cgroup: cgroup.map(Path::to_owned),
            frozen: self.frozen && cgroup.is_some(),
        };
        self.cgroup.give_way(false);
        let inject = || self.spawner.inject(&self.namespaces, target, layer.clone());
        let injected = self
            .cgroup
            .first_in_line(inject)
            .map_err(Failure::at("lifting the CPU limit for a moment"))
            .flatten();
        if injected.is_err() {
            // Those that were found are held already; this holds whoever was not. What comes next is
            // the caller's to decide.
            let _ = self.freeze(true);
        }
        injected
    }

    fn show_tree(&mut self, at: &str, access: Option<FileAccess>) -> Result<(), Failure> {
        self.spawner.show_tree(at, access)
    }

    fn killer(&self) -> Killer {
        let (init, kill) = (self.pidfd.try_clone(), self.cgroup.kill_switch());
        let mut kill = kill;
        Box::new(move || {
            // Either suffices, and nobody is left to tell of an error.
            let _ = init
                .as_ref()
                .map(|init| rustix::process::pidfd_send_signal(init, Signal::KILL));
            let _ = kill.as_mut().map(|file| file.write_all(b"1"));
        })
    }

    fn give_way(&mut self, now: bool) {
        self.cgroup.give_way(now);
    }

    fn pressure(&self) -> Pressure {
        self.cgroup.pressure()
    }

    fn stop(&mut self) -> Result<(), Failure> {
        self.cgroup.give_way(false);
        // The namespace dies with its init; the cgroup catches it in one stroke where there is one.
        let killed = self.cgroup.kill();
        let init = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
        self.cgroup.let_die();
        match (killed, init) {
            (Ok(()), _) | (_, Ok(()) | Err(rustix::io::Errno::SRCH)) => Ok(()),
            (_, Err(error)) => Err(Failure::at("stopping the sandbox")(error.into())),
        }
    }
}
