//! The host's side of a run: makes the image, launches the machine, keeps its log, and ends it.
//!
//! ```text
//! policy ─▶ image ─▶ kernel, image, arguments digested ─▶ launching ─▶ QEMU ─▶ hello ─▶ start, files
//!                                                                         ◀─ log, stdio, keys, ways ─▶
//!          closed ◀─ QEMU gone ◀─ bye ◀─ ended, or lost, or hung
//! ```
//!
//! The host has a log of its own, beside that of the session: what it launched, when it heard of the guest,
//! and how that ended. On any error the machine is ended: nothing of it is left.

mod expected;
mod image;
mod launch;
mod machine_log;
mod talk;
mod template;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use attestation::UnixTime;
use casemate::By;
use casemate::error::describe;
use casemate::isolation::microvm::image::ArchiveError;
use casemate::isolation::microvm::qmp::QmpError;
use casemate::isolation::microvm::{ChannelError, ImageError, Machine, Origin};
use casemate::isolation::spawner::Failure;
use vault::audit::{KeyError, LogError};

use super::{Ended, Seed, Start, places};
use crate::view::Look;
use crate::{Assembly, AssemblyError};
use launch::{Digests, Files};
use template::{Launcher, Template};

pub use expected::{Kind, measurement};
pub use image::{Inputs, image_of, newest_kernel};

/// Events that may wait; a guest that has more to say waits too.
const WAITING: usize = 256;

/// How a machine is made, besides its policy.
#[derive(Clone, Debug)]
pub struct Options {
    /// The program that becomes `/init`.
    pub agent: PathBuf,
    /// The kernel; otherwise the newest one of this host's distribution that is made for machines.
    pub kernel: Option<PathBuf>,
    /// Further programs and folders of this host.
    pub with: Vec<PathBuf>,
    /// How long a guest may be silent before it is given up.
    pub patience: Duration,
    /// The hardware that is to hide the machine's memory from this host; none by default.
    pub tee: Option<Kind>,
    /// Its firmware.
    pub firmware: Option<PathBuf>,
    /// A folder of templates to start from: made now if there is none of this machine yet.
    pub templates: Option<PathBuf>,
    /// A file for every byte that crosses the channel, which is what a curious host sees.
    pub recorded: Option<PathBuf>,
}

/// What is to be run, and where what comes of it goes.
#[derive(Debug)]
pub struct Run<'r> {
    /// The policy, read; it accepts simulated evidence if `accept_simulated` says so.
    pub assembly: Assembly,
    /// How the machine is made.
    pub options: &'r Options,
    /// Folder for the session's log, which does not exist yet; the host's own is beside it.
    pub log: &'r Path,
    /// How the run is shown, on stderr.
    pub look: Look,
    /// Whether a simulated TEE is accepted.
    pub accept_simulated: bool,
    /// Where the receipt goes, if one is wanted.
    pub receipt: Option<&'r mut File>,
}

/// Why a machine did not run its session to the end. It is gone.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmError {
    /// The policy cannot be run here at all.
    #[error(transparent)]
    Assembly(#[from] AssemblyError),
    /// The policy asks for what a machine does not have.
    #[error(transparent)]
    Place(#[from] places::PlaceError),
    /// The image cannot be made.
    #[error("the guest's image cannot be made")]
    Image(#[from] ImageError),
    /// A file that the machine needs is not there.
    #[error("there is no {what}: {how}")]
    Missing {
        /// What.
        what: &'static str,
        /// How to get it.
        how: &'static str,
    },
    /// A file cannot be used.
    #[error("cannot use `{}`", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// This host has not the hardware.
    #[error("{0}")]
    NotHere(String),
    /// A template would not be that of its name.
    #[error("the kernel or a program changed while the machine's template was made: try again")]
    Changed,
    /// What a TEE hides cannot be kept.
    #[error(
        "a confidential machine cannot start from a template: its memory is not to be kept, and what goes \
         on from elsewhere is not measured"
    )]
    NotKept,
    /// What the hardware would measure cannot be said.
    #[error("the launch measurement cannot be computed")]
    Measure(#[from] attestation::measure::MeasureError),
    /// The machine cannot be launched.
    #[error("the machine cannot be launched: {0}")]
    Launch(#[from] Failure),
    /// Its control does not work.
    #[error("the machine cannot be controlled")]
    Control(#[from] QmpError),
    /// The host's own log takes no record. What is not recorded is not done.
    #[error("the log of the machine cannot be written")]
    Log(#[from] LogError),
    /// There is no key for that log.
    #[error("the log of the machine has no key")]
    LogKey(#[from] KeyError),
    /// The system refuses something else.
    #[error("the machine cannot be run")]
    Io(#[from] io::Error),
    /// The channel failed, or was abused.
    #[error("the machine was ended, because its channel failed")]
    Channel(#[from] ChannelError),
    /// What came back cannot be kept.
    #[error("what the workload wrote cannot be kept")]
    Results(#[from] ArchiveError),
    /// The guest speaks another version.
    #[error("the guest's agent speaks version {0} of the protocol: build both from one source")]
    Version(u32),
    /// The machine ended by itself, without a word.
    #[error("the machine ended without saying why: QEMU, or the agent inside, was killed{console}")]
    Lost {
        /// What its console showed last, as an appendix.
        console: String,
    },
    /// The guest does not answer.
    #[error("the guest did not answer for {} s, so its machine was ended", .0.as_secs())]
    Hung(Duration),
    /// It was asked to end, and did not.
    #[error("the machine did not end when it was asked to, so it was killed")]
    Killed,
    /// The log of the session cannot be kept here.
    #[error("the log cannot be kept here, so the machine was ended: {0}")]
    Keep(String),
}

/// How a run in a machine ended.
#[derive(Debug)]
pub struct Closed {
    /// What the session came to.
    pub ended: Ended,
    /// The public key of its log, if it came as far as having one.
    pub key: Option<[u8; 32]>,
}

/// Hands a running machine Unix signals.
#[derive(Clone, Debug)]
pub struct Signals(SyncSender<talk::Event>);

impl Signals {
    /// Passes one on to the workload.
    pub fn kill(&self, signal: i32, by: Option<By>) {
        let _ = self.0.send(talk::Event::Signal(signal, by));
    }
}

/// Runs a policy in a machine of its own. `signals` is given what hands on Unix signals, before the machine
/// is launched.
///
/// # Errors
///
/// [`VmError`]; nothing of the machine is left.
pub fn run(run: Run<'_>, signals: impl FnOnce(Signals)) -> Result<Closed, VmError> {
    let (sender, events) = std::sync::mpsc::sync_channel(WAITING);
    signals(Signals(sender.clone()));
    let mut log = machine_log::MachineLog::create(run.log)?;
    let result = follow(run, &mut log, sender, &events);
    let why = match &result {
        Ok(Closed {
            ended: Ended::Outcome { .. },
            ..
        }) => "the session ended".to_owned(),
        Ok(Closed {
            ended: Ended::Failed(why),
            ..
        }) => format!("the session failed: {why}"),
        Err(error) => format!("error: {}", describe(error)),
    };
    // The machine is gone before the log says so.
    let closed = log.close(&why);
    let closed_run = result?;
    closed?;
    Ok(closed_run)
}

fn follow(
    mut run: Run<'_>,
    log: &mut machine_log::MachineLog,
    sender: SyncSender<talk::Event>,
    events: &Receiver<talk::Event>,
) -> Result<Closed, VmError> {
    let bundle = run.assembly.bundle().clone();
    let carried = places::carried(&bundle)?;
    let broker = run.assembly.broker()?;
    let inputs = Inputs {
        assembly: &run.assembly,
        options: run.options,
    };
    let image = image_of(&inputs)?;
    let kernel = match &run.options.kernel {
        Some(kernel) => kernel.clone(),
        None => newest_kernel()?,
    };
    if run.options.tee.is_some() && run.options.templates.is_some() {
        return Err(VmError::NotKept);
    }
    let confidential = run.options.tee.map(|kind| kind.guest_of(&bundle));
    if let Some(confidential) = &confidential {
        confidential.possible_here().map_err(VmError::NotHere)?;
    }
    // What is measured is the kernel as it was packed; and a template is booted once only.
    let unpack = confidential.is_none() && run.options.templates.is_none();
    let prepare = || Files::prepare(&image, &kernel, run.options.firmware.as_deref(), unpack);
    let (files, digests) = match run.options.templates {
        Some(_) => (None, Digests::of(&image, &kernel)?),
        None => {
            let files = prepare()?;
            let digests = files.digests;
            (Some(files), digests)
        }
    };
    let isolation = &bundle.tables().isolation;
    let mut machine = Machine::sized(isolation.memory, isolation.cpu, digests.image_size);
    machine.confidential = confidential;
    if run.options.templates.is_some() {
        machine.origin = Origin::Clone;
    }
    let expected = match &files {
        Some(files) => files.expected(&machine)?,
        None => None,
    };
    let qemu = launch::qemu()?;
    log.opened(&bundle, &machine, digests, expected)?;
    let template = match &run.options.templates {
        Some(folder) => {
            let launcher = Launcher {
                qemu,
                patience: run.options.patience,
                log,
            };
            let template = Template::of(folder, &machine, digests, prepare, launcher)?;
            Some(template)
        }
        None => None,
    };
    let kept = template.as_ref().map(Template::kept);
    let launched = launch::launch(qemu, &machine, files.as_ref(), kept)?;
    log.launched(&launched.confined)?;
    if !run.look.json && !run.look.quiet {
        show(&launched.confined, &machine, digests);
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let talk = talk::Talk {
        bundle: &bundle,
        base: run.assembly.base(),
        carried: &carried,
        broker,
        options: run.options,
        log,
        session_log: run.log,
        receipt: run.receipt.take(),
        origin: machine.origin,
        start: Start {
            seed: Seed::draw()?,
            now: now.as_secs(),
            accept_simulated: run.accept_simulated,
            look: run.look,
            receipt: false,
        },
    };
    talk.follow(launched, sender, events)
}

/// What the machine is, and what confines it, for people.
fn show(confined: &[casemate::enforcement::Item], machine: &Machine, digests: Digests) {
    use casemate::enforcement::State;
    use casemate::isolation::microvm::Accelerator;
    let how = match machine.accelerator {
        Accelerator::Kvm => "KVM",
        Accelerator::Tcg => "TCG: no KVM here, so slow",
    };
    let hex = casemate::record::hex;
    let mut text = format!(
        "  machine {} MiB, {} vCPU, {how}; image {}…\n",
        machine.memory,
        machine.vcpus,
        &hex(&digests.image)[..16]
    );
    for item in confined {
        let state = match item.state {
            State::Full => "full",
            State::Partly => "partly",
            State::Not => "not",
        };
        text += &format!(
            "  layer {} {state:<6} {:<18} {}\n",
            item.layer, item.id, item.detail
        );
    }
    let _ = io::stderr().write_all(text.as_bytes());
}

/// The time now, as attestation counts it.
fn now() -> UnixTime {
    UnixTime::from(SystemTime::now())
}
