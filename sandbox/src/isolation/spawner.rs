//! The spawner: a small process that makes sandboxes, so that the program using the SDK never forks.
//!
//! Forking a program costs in proportion to its memory and copies its secrets; the spawner is this
//! same program executed anew under the name [`NAME`], which has neither. It lives as long as its
//! supervisor and no longer: when the supervisor's socket closes, whatever the cause, it kills the
//! sandbox, removes its cgroups, and ends. So does its child that moves granted trees; see [`trees`].
//!
//! Each sandbox has a spawner of its own, which is in that sandbox's cgroups. Executing the program
//! takes longer than all else at a start, so a spawner can also fork another one
//! ([`Spawner::ask_for_another`]): who starts many sandboxes keeps one for that ([`super::nursery`]).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::cgroup::Placement;
use super::floor::Floor;
use super::inject::{Halted, Layer, Target};
use super::namespace::{Mapping, Mappings};
use super::process::descendants;
use super::trees::{self, Namespaces, Wish};
use super::{child, namespace, process, rootfs, wire};
use crate::plan::FileAccess;
use crate::sys::process::{self as sys, First, Forked, Service};

/// How long the spawner may take to change a running sandbox.
pub const ANSWER_DEADLINE: Duration = Duration::from_secs(2);

/// Within which most answers come.
const SOON: Duration = Duration::from_micros(600);

/// Name (`argv[0]`) under which a program is its own spawner.
pub const NAME: &str = "casemate-spawner";

/// What the supervisor asks of the spawner.
#[derive(Serialize, Deserialize)]
enum Request {
    /// Fork another spawner. Descriptors: its socket, and one on which trees are asked for.
    Another,
    /// Fork who moves trees. Descriptor: a socket, on which they are asked for.
    Mover,
    /// Enter these cgroups, so that what is spawned later is born in them.
    Enter(Placement),
    /// Make a sandbox. Descriptors: control socket, stdin, stdout, stderr, and a user namespace for each
    /// of these mappings.
    Launch(Box<Floor>, Vec<Mapping>),
    /// Stop every task; not answered. Descriptors: the namespaces.
    Halt(Target),
    /// Put a layer on the tasks that were stopped, and let them go.
    Inject(Box<Layer>),
    /// Kill what is left and end; the supervisor removes the cgroups.
    End,
}

/// What the spawner answers.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The init, or the other spawner, exists; the pidfd comes along, after the user namespaces that were
    /// made for these mappings.
    Spawned {
        /// Its process id, as the supervisor sees it.
        pid: i32,
        made: Vec<Mapping>,
    },
    /// What was asked for is in force.
    Done,
    /// What was asked for could not be done.
    Failed(Failure),
}

/// A step of making a sandbox that failed, with the words for the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which step.
    pub step: String,
    /// What the kernel said.
    pub error: String,
    /// `errno`, when there was one.
    pub errno: Option<i32>,
}

impl Failure {
    /// Names the step at which an error happened.
    pub fn at(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |error| Self {
            step: step.into(),
            errno: error.raw_os_error(),
            error: error.to_string(),
        }
    }
}

/// The supervisor's ends of a spawner that was asked for.
#[derive(Debug)]
pub struct Asked {
    socket: OwnedFd,
    trees: OwnedFd,
}

/// The supervisor's end of a spawner.
#[derive(Debug)]
pub struct Spawner {
    socket: OwnedFd,
    /// Our child, whoever made it.
    process: OwnedFd,
    /// To whom moves granted trees, if there is somebody.
    trees: Option<OwnedFd>,
    /// One of the two did not answer in time, and none is asked again.
    hangs: bool,
}

impl Spawner {
    /// Starts a spawner: this program once more, under another name.
    ///
    /// # Errors
    ///
    /// When the program cannot be executed again (its file was removed, or `/proc` is not mounted).
    pub fn start() -> io::Result<Self> {
        let (ours, theirs) = wire::pair()?;
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0(NAME)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A group of its own: Ctrl-C at the terminal reaches the supervisor, which decides.
            .process_group(0);
        let child = command.spawn()?;
        let pid = Pid::from_child(&child);
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|errno| {
            // Its socket closes, and it ends.
            io::Error::from(errno)
        })?;
        Ok(Self {
            socket: ours,
            process,
            trees: None,
            hangs: false,
        })
    }

    /// Asks for another spawner, for another sandbox: a small process copied, instead of a program
    /// executed. It will not depend on this one. Ask for one at a time.
    ///
    /// # Errors
    ///
    /// When this one has ended.
    pub fn ask_for_another(&self) -> Result<Asked, Failure> {
        let pair = || wire::pair().map_err(Failure::at("making a socket pair"));
        let ((socket, its), (trees, movers)) = (pair()?, pair()?);
        let descriptors = [its.as_fd(), movers.as_fd()];
        wire::send(self.socket.as_fd(), &Request::Another, &descriptors)
            .map_err(Failure::at("asking the spawner"))?;
        Ok(Asked { socket, trees })
    }

    /// Takes the one that was asked for.
    ///
    /// # Errors
    ///
    /// When this one has ended, or could not fork.
    pub fn take_another(&self, asked: Asked) -> Result<Self, Failure> {
        let (_, process) = self.hear_of_process(&mut Mappings::default())?;
        Ok(Self {
            socket: asked.socket,
            process,
            trees: Some(asked.trees),
            hangs: false,
        })
    }

    /// Has the spawner fork who moves granted trees, which has to be before it enters the sandbox's cgroups.
    /// One that another spawner forked has it already.
    ///
    /// # Errors
    ///
    /// When the spawner has ended.
    pub fn have_mover(&mut self) -> io::Result<()> {
        let (ours, theirs) = wire::pair()?;
        wire::send(self.socket.as_fd(), &Request::Mover, &[theirs.as_fd()])?;
        self.trees = Some(ours);
        Ok(())
    }

    /// Moves the spawner into the sandbox's cgroups; does not wait until that is done.
    ///
    /// # Errors
    ///
    /// When the spawner has ended.
    pub fn enter(&self, placement: &Placement) -> io::Result<()> {
        let enter = Request::Enter(placement.clone());
        wire::send(self.socket.as_fd(), &enter, &[])
    }

    /// Makes a sandbox, whose init speaks on `control` from then on. What it needs of `mappings` is found
    /// there, or added.
    ///
    /// # Errors
    ///
    /// [`Failure`] names the step.
    pub fn launch(
        &self,
        floor: &Floor,
        control: BorrowedFd<'_>,
        stdio: [BorrowedFd<'_>; 3],
        mappings: &mut Mappings,
    ) -> Result<(Pid, OwnedFd), Failure> {
        let [input, output, error] = stdio;
        let mut made = Mappings::default();
        let spawned = {
            let (known, namespaces) = mappings.known();
            let request = Request::Launch(Box::new(floor.clone()), known);
            let mut descriptors = vec![control, input, output, error];
            descriptors.extend(namespaces);
            wire::send(self.socket.as_fd(), &request, &descriptors)
                .map_err(Failure::at("asking the spawner"))?;
            self.hear_of_process(&mut made)?
        };
        let (new, namespaces) = made.others(&[]);
        mappings.keep(new, namespaces);
        Ok(spawned)
    }

    /// Hears of a process that was asked for, and of the mappings that were made for it.
    fn hear_of_process(&self, mappings: &mut Mappings) -> Result<(Pid, OwnedFd), Failure> {
        let answer =
            wire::receive(self.socket.as_fd()).map_err(Failure::at("hearing from the spawner"))?;
        match answer {
            Some((Answer::Spawned { pid, made }, mut descriptors)) => {
                match (Pid::from_raw(pid), descriptors.pop()) {
                    (Some(pid), Some(pidfd)) => {
                        mappings.keep(made, descriptors);
                        Ok((pid, pidfd))
                    }
                    _ => Err(ended()),
                }
            }
            Some((Answer::Failed(failure), _)) => Err(failure),
            Some((Answer::Done, _)) | None => Err(ended()),
        }
    }
}

impl Spawner {
    /// Gets ready to move the granted trees of a sandbox that has just been made.
    ///
    /// # Errors
    ///
    /// When its namespaces cannot be entered.
    pub fn hold_trees(&mut self, floor: &Floor, namespaces: &Namespaces) -> Result<(), Failure> {
        let wish = Wish::Begin(trees::granted(floor));
        self.ask_for_trees(&wish, &namespaces.descriptors())
    }

    /// Lets a granted tree of the running sandbox be seen with this access, or not at all. Returns when
    /// it is in force.
    ///
    /// # Errors
    ///
    /// [`Failure`] when there is no such mount, the kernel refuses, or nothing is heard within
    /// [`ANSWER_DEADLINE`]: a file system on the way may hang. After that nothing more is asked.
    pub fn show_tree(&mut self, at: &str, access: Option<FileAccess>) -> Result<(), Failure> {
        self.ask_for_trees(&Wish::Show(at.to_owned(), access), &[])
    }

    fn ask_for_trees(
        &mut self,
        wish: &Wish,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), Failure> {
        let socket = self.trees.as_ref().ok_or_else(ended)?.as_fd();
        let heard = asked(&mut self.hangs, socket, wish, descriptors, || ())?;
        heard.unwrap_or_else(|| Err(ended()))
    }

    /// Has every task of the running sandbox but its init stop, to put a layer on it next. Does not wait.
    ///
    /// # Errors
    ///
    /// When the spawner cannot be asked. That a task does not stop is told by what comes next.
    pub fn halt(&mut self, namespaces: &Namespaces, target: Target) -> Result<(), Failure> {
        let descriptors = namespaces.descriptors();
        ask(
            self.hangs,
            self.socket.as_fd(),
            &Request::Halt(target),
            &descriptors,
        )
    }

    /// Puts a layer on every task that was stopped. Returns when all have it. When that takes long, `slow` is
    /// called once meanwhile.
    ///
    /// # Errors
    ///
    /// [`Failure`] when one task does not have it; the sandbox is frozen then, or its tasks stopped. Or
    /// when nothing is heard in time, as above.
    pub fn inject(&mut self, layer: Layer, slow: impl FnOnce()) -> Result<(), Failure> {
        let request = Request::Inject(Box::new(layer));
        match asked(&mut self.hangs, self.socket.as_fd(), &request, &[], slow)? {
            Some(Answer::Done) => Ok(()),
            Some(Answer::Failed(failure)) => Err(failure),
            Some(Answer::Spawned { .. }) | None => Err(ended()),
        }
    }
}

fn ask(
    hangs: bool,
    socket: BorrowedFd<'_>,
    request: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), Failure> {
    if hangs {
        let error = io::ErrorKind::TimedOut.into();
        return Err(Failure::at("asking the spawner")(error));
    }
    wire::send(socket, request, descriptors).map_err(Failure::at("asking the spawner"))
}

/// What is answered in time; `None` when whoever was asked has ended. When no answer comes soon, `slow` is
/// called meanwhile.
fn asked<A: DeserializeOwned>(
    hangs: &mut bool,
    socket: BorrowedFd<'_>,
    request: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
    slow: impl FnOnce(),
) -> Result<Option<A>, Failure> {
    ask(*hangs, socket, request, descriptors)?;
    let in_time = match wire::wait(socket, SOON) {
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            slow();
            wire::wait(socket, ANSWER_DEADLINE)
        }
        other => other,
    };
    let heard = in_time
        .and_then(|()| wire::receive(socket))
        .map_err(Failure::at("hearing from the spawner"));
    // An answer that comes later would be taken for that to another question.
    *hangs = heard.is_err();
    Ok(heard?.map(|(answer, _)| answer))
}

fn ended() -> Failure {
    Failure {
        step: "hearing from the spawner".into(),
        error: "the spawner ended unexpectedly".into(),
        errno: None,
    }
}

impl Drop for Spawner {
    /// Ends the spawner, and with it whatever sandbox is left, and waits until both are gone.
    fn drop(&mut self) {
        if self.hangs {
            // The sandbox's init is tied to it and goes with it.
            let _ = rustix::process::pidfd_send_signal(&self.process, Signal::KILL);
        } else if wire::send(self.socket.as_fd(), &Request::End, &[]).is_err() {
            let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
        }
        reap(&self.process);
    }
}

/// Runs the spawner on the socket at descriptor 0. The return value is its exit code.
pub fn main() -> i32 {
    serve().map_or(1, |()| 0)
}

fn serve() -> io::Result<()> {
    // Whoever reads this process' memory or descriptors could start programs in its name.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    let _ = rustix::thread::set_name(c"casemate-spawn");
    // Only its supervisor ends it, by closing the socket; then it has time to clean up.
    crate::sys::signal::block_all()?;
    // What takes something from the workload does not queue behind it.
    let usual = sys::come_first();
    // Nothing that the supervisor's program left open may reach a sandbox.
    sys::close_from(1)?;
    let mut socket = supervisor_socket()?;
    let mut placement = Placement::default();
    let mut sandbox: Option<OwnedFd> = None;
    let mut mover: Option<OwnedFd> = None;
    let mut home: Option<String> = None;
    let mut halted: Option<Result<Halted, Failure>> = None;
    // Since a sandbox was made.
    let mut outside: Option<First> = None;
    loop {
        let mut watched = vec![PollFd::new(&socket, PollFlags::IN)];
        if let Some(init) = &sandbox {
            watched.push(PollFd::new(init, PollFlags::IN));
        }
        match rustix::event::poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let asked = !watched[0].revents().is_empty();
        let init_ended = watched.get(1).is_some_and(|w| !w.revents().is_empty());
        drop(watched);
        if init_ended && let Some(init) = sandbox.take() {
            reap(&init);
            if home.is_some() {
                // What it left behind has become this process'.
                let _ = descendants::end();
            }
        }
        if !asked {
            continue;
        }
        // A socket that fails is a supervisor that is gone.
        match wire::receive::<Request>(socket.as_fd()).unwrap_or(None) {
            Some((Request::Another, descriptors)) => match another(descriptors) {
                Ok(Other::It { own, movers }) => {
                    (socket, placement) = (own, Placement::default());
                    (sandbox, outside, halted) = (None, None, None);
                    // Now, while nobody waits for it.
                    mover = move_trees(movers).ok();
                }
                Ok(Other::Made(answer, pidfd)) => {
                    wire::send(socket.as_fd(), &answer, &[pidfd.as_fd()])?;
                }
                Err(failure) => wire::send(socket.as_fd(), &Answer::Failed(failure), &[])?,
            },
            Some((Request::Mover, descriptors)) => {
                let Ok([movers]) = <[OwnedFd; 1]>::try_from(descriptors) else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                // Without it the sandbox is not made: who asks for trees finds nobody.
                mover = move_trees(movers).ok();
            }
            Some((Request::Enter(wanted), _)) => {
                wanted.enter();
                placement = wanted;
            }
            Some((Request::Launch(floor, known), mut descriptors)) => {
                let mut mappings = Mappings::default();
                let namespaces = descriptors.split_off(descriptors.len().min(4));
                mappings.keep(known.clone(), namespaces);
                home.clone_from(&floor.home);
                if outside.take().is_some() {
                    placement.enter();
                }
                match spawn(
                    &floor,
                    &placement,
                    usual.as_ref(),
                    descriptors,
                    &mut mappings,
                ) {
                    Ok((pid, pidfd)) => {
                        let (made, namespaces) = mappings.others(&known);
                        let answer = Answer::Spawned {
                            pid: pid.as_raw_nonzero().get(),
                            made,
                        };
                        let mut descriptors: Vec<_> = namespaces.iter().map(AsFd::as_fd).collect();
                        descriptors.push(pidfd.as_fd());
                        wire::send(socket.as_fd(), &answer, &descriptors)?;
                        sandbox = Some(pidfd);
                        // What is left to do is to take something from the sandbox: not beside those that
                        // it is taken from, but before them.
                        placement.leave_cpu();
                        outside = Some(First::begin(0));
                    }
                    Err(failure) => {
                        wire::send(socket.as_fd(), &Answer::Failed(failure), &[])?;
                    }
                }
            }
            Some((Request::Halt(target), descriptors)) => {
                let namespaces = Namespaces::received(descriptors);
                halted = Some(namespaces.and_then(|all| Halted::begin(&all, target)));
            }
            Some((Request::Inject(layer), _)) => {
                let injected = match halted.take() {
                    Some(halted) => halted.and_then(|halted| halted.inject(&layer)),
                    None => Err(Failure {
                        step: "tightening".into(),
                        error: "no task was stopped".into(),
                        errno: None,
                    }),
                };
                let answer = injected.map_or_else(Answer::Failed, |()| Answer::Done);
                wire::send(socket.as_fd(), &answer, &[])?;
            }
            last => {
                for child in [sandbox, mover].into_iter().flatten() {
                    let _ = rustix::process::pidfd_send_signal(&child, Signal::KILL);
                    reap(&child);
                }
                if let Some(home) = home {
                    let _ = descendants::end();
                    process::remove_home(&home);
                }
                if last.is_none() {
                    placement.leave();
                    placement.remove();
                }
                return Ok(());
            }
        }
    }
}

/// The side of [`another`] that returned.
enum Other {
    /// The other spawner, with its own socket, and that of who will move trees.
    It { own: OwnedFd, movers: OwnedFd },
    /// The one that was asked, and what it answers.
    Made(Answer, OwnedFd),
}

/// Forks another spawner, as a child of the supervisor, who waits for it as for this one.
fn another(descriptors: Vec<OwnedFd>) -> Result<Other, Failure> {
    let Ok([own, movers]) = <[OwnedFd; 2]>::try_from(descriptors) else {
        return Err(missing());
    };
    match sys::fork_sibling().map_err(Failure::at("forking the spawner"))? {
        Forked::Child => {
            // A group of its own, as the first.
            let _ = rustix::process::setpgid(None, None);
            Ok(Other::It { own, movers })
        }
        Forked::Parent { pid, pidfd } => {
            let pid = pid.as_raw_nonzero().get();
            let made = Vec::new();
            Ok(Other::Made(Answer::Spawned { pid, made }, pidfd))
        }
    }
}

fn missing() -> Failure {
    Failure {
        step: "taking the request".into(),
        error: "descriptors are missing".into(),
        errno: None,
    }
}

/// Takes the socket from descriptor 0 and puts `/dev/null` in its place and in that of stdout and
/// stderr: what the spawner has to say goes over the socket.
fn supervisor_socket() -> io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let null = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    // Not itself one of the numbers it is put at, which would close it again.
    let null = rustix::io::fcntl_dupfd_cloexec(null, 3)?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(socket)
}

fn reap(child: &OwnedFd) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    while let Err(rustix::io::Errno::INTR) =
        waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED)
    {}
}

/// Makes the process that moves trees. It ends with its supervisor, and with this process.
fn move_trees(socket: OwnedFd) -> io::Result<OwnedFd> {
    match sys::fork_into(0, None)? {
        Forked::Child => {
            let died = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            let kept = sys::close_all_but(socket.as_raw_fd());
            let _first = First::begin(0);
            let served = died
                .map_err(io::Error::from)
                .and(kept)
                .and_then(|()| trees::serve(socket.as_fd()));
            sys::exit_now(served.map_or(1, |()| 0))
        }
        Forked::Parent { pidfd, .. } => Ok(pidfd),
    }
}

/// Makes the init of a sandbox in its namespaces and maps its user; the init goes on in
/// [`child::init`].
fn spawn(
    floor: &Floor,
    placement: &Placement,
    usual: Option<&Service>,
    descriptors: Vec<OwnedFd>,
    mappings: &mut Mappings,
) -> Result<(Pid, OwnedFd), Failure> {
    let Ok([control, input, output, error]) = <[OwnedFd; 4]>::try_from(descriptors) else {
        return Err(missing());
    };
    let shares = floor.home.is_some();
    if shares {
        descendants::gather().map_err(Failure::at("becoming the parent of what is left behind"))?;
        process::make_home(floor)?;
    }
    // Root opens the granted trees here, where it may still map their owner to the sandbox's user.
    let prepared = if floor.privileged && !shares {
        rootfs::prepare_owned(floor, mappings)?
    } else {
        rootfs::Prepared::default()
    };
    let (wait_mapped, mapped) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(into("making a pipe"))?;
    let cgroup = placement
        .birthplace()
        .map_err(Failure::at("opening the cgroup"))?;
    let namespaces = if shares { 0 } else { namespace::ALL };
    let forked = sys::fork_into(namespaces, cgroup.as_ref().map(AsFd::as_fd))
        .map_err(Failure::at("making the namespaces"))?;
    match forked {
        Forked::Child => {
            drop(mapped);
            child::init(
                floor,
                usual,
                prepared,
                wait_mapped,
                control,
                [input, output, error],
            )
        }
        Forked::Parent { pid, pidfd } => {
            let made = if floor.privileged && !shares {
                namespace::map_user(pid, floor)
            } else {
                Ok(())
            };
            let made = made.and_then(|()| {
                rustix::io::write(&mapped, &[1])
                    .map(drop)
                    .map_err(into("starting the init"))
            });
            if let Err(failure) = made {
                let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
                reap(&pidfd);
                return Err(failure);
            }
            Ok((pid, pidfd))
        }
    }
}

fn into(step: &'static str) -> impl FnOnce(rustix::io::Errno) -> Failure {
    move |errno| Failure::at(step)(errno.into())
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} failed: {}", self.step, self.error)
    }
}

impl std::error::Error for Failure {}
