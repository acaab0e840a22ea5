//! `sandboxctl run`: a policy's workload under all four layers.

use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use ::policy::Bundle;
use ::policy::signature::{self, PolicyVerifier};
use ::vault::VaultError;
use ::vault::audit::LogError;
use casemate::isolation::child::Ending;
use casemate::release::ReleaseError;
use casemate::{By, Outcome, Session, SessionError, Why};
use clap::Args;
use guest_agent::api::Listed;
use guest_agent::assembly::new_log_folder;
use guest_agent::control::Control;
use guest_agent::view::{Look, View};
use guest_agent::{Assembled, Assembly, AssemblyError, lockdown};

use crate::failure::{Failure, describe};
use crate::machine::{self, InMachine, Machine};
use crate::receipt::{Place, is_signed};

/// Exit code when the policy stopped the workload.
pub const STOPPED_BY_POLICY: u8 = 122;
/// Exit code when the time limit did, as timeout(1) has it.
pub const STOPPED_BY_TIME: u8 = 124;
/// Exit code when this command failed.
const FAILED: u8 = 125;

#[derive(Args, Clone)]
pub struct Run {
    /// The policy file.
    policy: PathBuf,
    /// Folder for the audit log of this run; it must not exist yet. [default: a new one below
    /// $XDG_STATE_HOME/casemate/runs]
    #[arg(long, value_name = "DIR")]
    log: Option<PathBuf>,
    /// File for the receipt of this run, which proves it to others; it must not exist yet. In JSON, or, if
    /// its name ends in `.cose`, signed. See `receipt verify`.
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
    /// Print each record as one line of JSON on stderr, instead of text.
    #[arg(long)]
    json: bool,
    /// Decide under this policy too, and record what it would grant otherwise. It is not enforced.
    #[arg(long, value_name = "FILE")]
    shadow: Option<PathBuf>,
    /// On SIGHUP read the policy file again and take it into force, if its version is higher and it
    /// changes nothing that is built into the running sandbox. Without this a SIGHUP is passed on.
    #[arg(long)]
    reload_on_hangup: bool,
    /// Run the policy only if this key vouches for it in `POLICY.note` (see `policy sign`); holds for
    /// reloads too.
    #[arg(long, value_name = "KEY")]
    signed_by: Option<PolicyVerifier>,
    /// Print nothing but errors.
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
    /// Run it on this backend, whatever the policy says: `container`, or `microvm` for a virtual machine
    /// of its own.
    #[arg(long, value_name = "NAME", value_parser = ["container", "microvm"])]
    backend: Option<String>,
    #[command(flatten)]
    machine: Machine,
    /// Without a TEE, use a simulated one. Its evidence proves nothing: anybody can forge it. The
    /// policy must accept `simulated` too.
    #[arg(long)]
    dangerously_accept_simulated: bool,
}

impl Run {
    pub fn run(self) -> Result<ExitCode, Failure> {
        self.follow().map_err(|failure| failure.code(FAILED))
    }

    fn follow(&self) -> Result<ExitCode, Failure> {
        // Before keys are read: what this process holds is nobody else's to look at.
        lockdown::hide_memory()?;
        let mut receipt = self.receipt.as_deref().map(Place::take).transpose()?;
        let assembly = Assembly::read(&self.policy).map_err(not_assembled)?;
        let assembly = if self.dangerously_accept_simulated {
            assembly.dangerous().accept_simulated()
        } else {
            assembly
        };
        self.vouched(assembly.bundle())?;
        let folder = self.log_folder(assembly.bundle())?;
        if machine::is_asked_for(self.backend.as_deref(), assembly.bundle()) {
            if self.shadow.is_some() || self.reload_on_hangup {
                return Err(Failure::new(
                    "--shadow and --reload-on-hangup are not available with the backend `microvm` yet",
                ));
            }
            if self.receipt.as_deref().is_some_and(is_signed) {
                if let Some(place) = receipt.take() {
                    place.abandon();
                }
                return Err(Failure::new(
                    "a signed receipt is not available with the backend `microvm` yet: ask for one in JSON",
                ));
            }
            let in_machine = InMachine {
                machine: &self.machine,
                assembly,
                log: &folder,
                look: self.look(),
                accept_simulated: self.dangerously_accept_simulated,
                receipt: receipt.as_mut().map(Place::file),
            };
            let result = in_machine.run(pass_to);
            if let (Err(_), Some(place)) = (&result, receipt) {
                place.abandon();
            }
            return result;
        }
        let policy_name = assembly.bundle().name().to_owned();
        let Assembled {
            session,
            log,
            leases,
        } = assembly.logged_to(&folder).map_err(not_assembled)?;
        let view = View::new(
            std::io::stderr(),
            self.look(),
            folder.clone(),
            log.public_key(),
        );
        let mut shown = view.clone();
        let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
        let stdout = std::io::stdout().as_fd().try_clone_to_owned()?;
        let stderr = std::io::stderr().as_fd().try_clone_to_owned()?;
        let session = match &self.shadow {
            Some(candidate) => session.shadowed_by(crate::policy::load(candidate)?),
            None => session,
        };
        let session = session
            .stdio(stdin, stdout, stderr)
            .watched_by(move |record, at| shown.show(record, at))
            .logged_to(log)?;
        self.pass_signals(&session)?;
        let listed = Listed {
            id: format!("{policy_name}-{}", std::process::id()),
            policy: policy_name,
            uid: rustix::process::getuid().as_raw(),
            since: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
                .as_secs(),
            log: folder.canonicalize().ok(),
            status: None,
        };
        let control = Control::open(listed, session.handle());
        if let Err(error) = &control {
            view.warn(&format!(
                "`sandboxctl status` and `adjust` cannot reach it: {}",
                describe(error)
            ));
        }
        let basis = session.basis();
        let keeping = leases.keep(&session)?;
        let result = session.run();
        drop(keeping);
        drop(control);
        view.close(result.is_ok());
        let kept = receipt.map_or(Ok(()), |place| place.fill(&folder, &basis));
        match result {
            Ok(_) if kept.is_err() => Err(kept.err().unwrap_or_else(|| Failure::new("no receipt"))),
            Ok(outcome) => Ok(exit_code(&outcome)),
            Err(error) => Err(explain(error)),
        }
    }

    fn look(&self) -> Look {
        let terminal = std::io::stderr().is_terminal();
        Look {
            json: self.json,
            quiet: self.quiet,
            colour: terminal && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    /// Checks the signature, if one is asked for.
    fn vouched(&self, bundle: &Bundle) -> Result<(), Failure> {
        let Some(key) = &self.signed_by else {
            return Ok(());
        };
        let note = crate::policy::note_beside(&self.policy);
        let note = std::fs::read_to_string(&note).map_err(|error| {
            Failure::caused(format!("cannot read `{}`", note.display()), &error)
                .hint("`sandboxctl policy sign` makes it")
        })?;
        signature::verify(bundle, &note, std::slice::from_ref(key), 1, 0)?;
        Ok(())
    }

    /// Passes the Unix signals that reach this process on to the workload; the kernel says who sent them.
    fn pass_signals(&self, session: &Session) -> Result<(), Failure> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
        use signal_hook::iterator::{SignalsInfo, exfiltrator::WithOrigin};
        let handle = session.handle();
        let all = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2];
        let mut signals = SignalsInfo::<WithOrigin>::new(all)?;
        let run = self.clone();
        let pass = move || {
            for origin in &mut signals {
                if origin.signal == SIGHUP && run.reload_on_hangup {
                    let newer = crate::policy::load(&run.policy);
                    match newer.and_then(|newer| run.vouched(&newer).map(|()| newer)) {
                        Ok(newer) => handle.reload(newer),
                        Err(failure) => handle.not_reloaded(failure.to_string()),
                    }
                    continue;
                }
                match origin.process {
                    Some(process) => handle.kill_by(
                        origin.signal,
                        By {
                            uid: process.uid,
                            pid: process.pid,
                        },
                    ),
                    // From the terminal, or the kernel.
                    None => handle.kill(origin.signal),
                }
            }
        };
        std::thread::spawn(pass);
        Ok(())
    }

    fn log_folder(&self, bundle: &Bundle) -> Result<PathBuf, Failure> {
        if let Some(folder) = &self.log {
            return Ok(folder.clone());
        }
        let state = std::env::var_os("XDG_STATE_HOME")
            .map(PathBuf::from)
            .or_else(|| {
                std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"))
            });
        let state = state.ok_or_else(|| {
            Failure::new("there is no place for the audit log").hint("give one with --log DIR")
        })?;
        new_log_folder(&state.join("casemate/runs"), bundle).map_err(not_assembled)
    }
}

/// Passes the Unix signals that reach this process on to a machine.
fn pass_to(pass: Box<dyn Fn(i32, Option<By>) + Send>) -> Result<(), Failure> {
    use signal_hook::consts::{
        SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP, SIGUSR1, SIGUSR2,
    };
    use signal_hook::iterator::{SignalsInfo, exfiltrator::WithOrigin};
    let all = [
        SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGTSTP, SIGCONT,
    ];
    let mut signals = SignalsInfo::<WithOrigin>::new(all)?;
    std::thread::spawn(move || {
        for origin in &mut signals {
            let by = origin.process.map(|process| By {
                uid: process.uid,
                pid: process.pid,
            });
            pass(origin.signal, by);
        }
    });
    Ok(())
}

fn exit_code(outcome: &Outcome) -> ExitCode {
    match (&outcome.why, outcome.ending) {
        (Why::Policy(_), _) => ExitCode::from(STOPPED_BY_POLICY),
        (Why::Time, _) => ExitCode::from(STOPPED_BY_TIME),
        (_, Ending::Code(code)) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        (_, Ending::Killed(signal)) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(255)),
    }
}

/// What a user can do about a policy that cannot be run here.
fn not_assembled(error: AssemblyError) -> Failure {
    let hint = match &error {
        AssemblyError::LogFolder { .. } => Some("give another place with --log DIR".to_owned()),
        AssemblyError::Log { .. } => {
            Some("choose another place with --log DIR; nothing runs without a log".to_owned())
        }
        other => other.hint(),
    };
    let failure = Failure::from(error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// What a user can do about a session that failed.
fn explain(error: SessionError) -> Failure {
    let failure = Failure::new(describe(&error));
    match &error {
        SessionError::Launch(launch) if launch.step.starts_with("executing") => {
            let code = if launch.errno == Some(2) { 127 } else { 126 };
            failure
                .hint("the program must exist inside the sandbox: see `[workload]` and `[files]` of the policy")
                .code(code)
        }
        SessionError::Launch(launch) if launch.step == "making the namespaces" => failure.hint(
            "this host forbids namespaces to this user: `sandboxctl doctor` tells how to get them",
        ),
        SessionError::Release(ReleaseError::Vault { source: VaultError::WrongKek, .. }) => failure
            .hint("the key file of the policy's `[data]` entry belongs to another vault"),
        SessionError::Release(ReleaseError::Vault { source: VaultError::NotAVault, .. }) => failure
            .hint("see `vault` of the policy's `[data]` entry; `sandboxctl vault create` makes one"),
        SessionError::Release(ReleaseError::Refused { .. }) => failure.hint(
            "the broker's appraisal asks for more: see `[attestation] reference-values` of the policy",
        ),
        SessionError::Log(LogError::Full { .. }) => {
            failure.hint("is the disk full? nothing runs without a log; --log DIR moves it")
        }
        SessionError::Log(_) => failure.hint("nothing runs without a log; --log DIR moves it"),
        SessionError::NotGranted(_) => {
            failure.hint("`sandboxctl policy explain` shows which facts would change the answer")
        }
        _ => failure,
    }
}
