//! The `container` backend: namespaces, a root file system of its own, cgroups.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::SyncSender;

use rustix::process::{Pid, Signal};

use super::cgroup::{Cgroup, Limits};
use super::child::{Ending, FromInit, ToInit};
use super::spawner::{Failure, Spawner};
use super::trees::Namespaces;
use super::{Backend, Instance, Launch, Place, wire};
use crate::enforcement::{Enforcement, Item};
use crate::event::Event;
use crate::plan::FileAccess;
use crate::session::Killer;
use crate::syscall::notify;

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
        let spawner = Spawner::start().map_err(Failure::at("starting the spawner"))?;
        spawner
            .enter(cgroup.placement())
            .map_err(Failure::at("entering the cgroups"))?;
        Ok(Self {
            spawner,
            cgroup,
            items,
        })
    }
}

impl Backend for Container {
    fn launch(self: Box<Self>, launch: Launch<'_>) -> Result<Box<dyn Instance>, Failure> {
        let Launch {
            floor,
            limits,
            stdio,
            serve,
            events,
        } = launch;
        let mut enforcement = Enforcement::default();
        enforcement.extend(self.items.iter().cloned());
        let mut floor = floor.clone();
        if let Some(memory) = limits.memory.filter(|_| !self.cgroup.limits("memory")) {
            // Per process, and all that is left without a cgroup.
            floor.limits.push((libc::RLIMIT_DATA, memory));
        }
        self.cgroup
            .limit(&limits)
            .map_err(Failure::at("setting cgroup limits"))?;
        enforcement.extend(lever_items(&self.cgroup));
        let (control, theirs) = wire::pair().map_err(Failure::at("making a socket pair"))?;
        let [input, output, error] = &stdio;
        let (pid, pidfd) = self.spawner.launch(
            &floor,
            theirs.as_fd(),
            [input.as_fd(), output.as_fd(), error.as_fd()],
        )?;
        drop((theirs, stdio));
        let (namespaces, listener) = confine(control.as_fd(), serve, &mut enforcement)?;
        if let Some(listener) = listener {
            notify::start(listener, events.clone())
                .map_err(Failure::at("starting the notifier"))?;
        }
        Ok(Box::new(Running {
            control,
            namespaces,
            pid,
            pidfd,
            enforcement,
            events,
            spawner: self.spawner,
            cgroup: self.cgroup,
        }))
    }
}

/// Follows the init until everything is in force; gives each vault's place to `serve`.
fn confine(
    control: BorrowedFd<'_>,
    serve: &mut dyn FnMut(&str, Place) -> Result<Item, Failure>,
    enforcement: &mut Enforcement,
) -> Result<(Namespaces, Option<OwnedFd>), Failure> {
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
                let mut descriptors = descriptors.into_iter();
                let (Some(user), Some(mounts)) = (descriptors.next(), descriptors.next()) else {
                    return Err(ended());
                };
                return Ok((Namespaces { user, mounts }, descriptors.next()));
            }
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
        "granted trees can be taken while it runs, and given back; files and folders open already stay open",
    ));
    items
}

/// A running container.
#[derive(Debug)]
struct Running {
    control: OwnedFd,
    namespaces: Namespaces,
    pid: Pid,
    pidfd: OwnedFd,
    enforcement: Enforcement,
    events: SyncSender<Event>,
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
        if self.cgroup.freezes() {
            self.cgroup.freeze(frozen).map_err(Failure::at("freezing"))
        } else {
            self.tell_if_there(&ToInit::Pause(frozen))
        }
    }

    fn show_tree(&mut self, at: &str, access: Option<FileAccess>) -> Result<(), Failure> {
        self.spawner.show_tree(&self.namespaces, at, access)
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

    fn stop(&mut self) -> Result<(), Failure> {
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
