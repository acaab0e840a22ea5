//! A container from its start to its end.

use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use policy::Endpoint;
use rustix::process::{Pid, Signal};

use super::attendants::Attendants;
use crate::enforcement::Enforcement;
use crate::isolation::cgroup::{Cgroup, Limits, Pressure};
use crate::isolation::child::ToInit;
use crate::isolation::inject::{Layer, Target};
use crate::isolation::network::{Left, Network};
use crate::isolation::pool::Refill;
use crate::isolation::spawner::{Failure, Spawner};
use crate::isolation::trees::Namespaces;
use crate::isolation::{Instance, wire};
use crate::lever::exec::Gate;
use crate::lever::tighten::Tightening;
use crate::plan::FileAccess;
use crate::session::Killer;

/// How often it is looked whether descriptors that were on their way have arrived.
const FLOW_ATTEMPTS: u32 = 10;
const FLOW_PAUSE: Duration = Duration::from_millis(1);
/// How long a task may take to stop, where there is no cgroup to freeze.
const STOPPED_DEADLINE: Duration = Duration::from_secs(2);

/// A running container.
#[derive(Debug)]
pub(super) struct Running {
    pub control: OwnedFd,
    /// What the workload gets at its start, if it has not got it yet; and the pool that waits for that.
    pub stdio: Option<([OwnedFd; 3], Refill)>,
    /// `None` where it lives in the host's.
    pub namespaces: Option<Namespaces>,
    pub frozen: bool,
    /// What came of stopping every task, while they are to be tightened next.
    pub halted: Option<Result<(), Failure>>,
    pub gate: Option<Gate>,
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub enforcement: Enforcement,
    pub attendants: Attendants,
    pub network: Option<Network>,
    // Dropped last, in this order: the spawner kills and reaps what is left, then the cgroups are
    // empty and can be removed.
    pub spawner: Spawner,
    pub cgroup: Cgroup,
}

impl Running {
    fn tell(&self, message: &ToInit) -> Result<(), Failure> {
        // A frozen init hears nothing, and must keep nobody waiting.
        wire::send_now(self.control.as_fd(), message)
            .map_err(Failure::at("speaking to the sandbox"))
    }

    /// Has every task stop, to be tightened.
    fn halt_tasks(&mut self) -> Result<(), Failure> {
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
        let namespaces = self.namespaces.as_ref().ok_or_else(|| Failure {
            step: "tightening".into(),
            error: "the backend `process` cannot find all tasks of the workload".into(),
            errno: None,
        })?;
        // Who is to stop has to run first.
        self.cgroup.give_way(false);
        self.spawner.halt(namespaces, target)
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
        let stdio = self.stdio.take();
        let descriptors = stdio
            .iter()
            .flat_map(|(stdio, _)| stdio.iter().map(AsFd::as_fd));
        let descriptors: Vec<_> = descriptors.collect();
        self.attendants
            .begin()
            .map_err(Failure::at("starting the notifier"))?;
        wire::send(self.control.as_fd(), &ToInit::Start, &descriptors)
            .map_err(Failure::at("speaking to the sandbox"))
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

    fn halt(&mut self) {
        if self.halted.is_none() {
            self.halted = Some(self.halt_tasks());
        }
    }

    fn tighten(&mut self, layer: &Layer) -> Result<(), Failure> {
        self.halt();
        let halted = self.halted.take().unwrap_or(Ok(()));
        let (cgroup, mut lifted) = (&self.cgroup, None);
        let slow = || lifted = Some(cgroup.lift_cpu());
        let injected = halted.and_then(|()| self.spawner.inject(layer.clone(), slow));
        let limited = lifted.map_or(Ok(()), |before| self.cgroup.limit_cpu(before?));
        let limited = limited.map_err(Failure::at("lifting the CPU limit for a moment"));
        let injected = injected.and(limited);
        if injected.is_err() {
            // Those that were found are held already; this holds whoever was not. What comes next is
            // the caller's to decide.
            let _ = self.freeze(true);
        }
        injected
    }

    fn show_tree(&mut self, at: &str, access: Option<FileAccess>) -> Result<(), Failure> {
        if self.namespaces.is_none() {
            return Err(Failure {
                step: format!("taking or giving `{at}`"),
                error: "the backend `process` has no mounts to do it with".into(),
                errno: None,
            });
        }
        self.spawner.show_tree(at, access)
    }

    fn has_mounts(&self) -> bool {
        self.namespaces.is_some()
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
