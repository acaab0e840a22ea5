//! `sandboxctl run`: a policy's workload under all four layers.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use ::policy::{Bundle, TeeName};
use attestation::{AttestError, Attester, Evidence, ReferenceValues, SimulatedTee, Tee, UnixTime, Verifier};
use casemate::isolation::child::Ending;
use casemate::{Outcome, Session, SessionError, Why};
use clap::Args;
use ::vault::audit::{Log, LogKey};

use crate::broker::{Local, read_key};
use crate::failure::{Failure, describe};
use crate::view::View;

/// Exit code when the policy stopped the workload.
const STOPPED_BY_POLICY: u8 = 122;
/// Exit code when the time limit did, as timeout(1) has it.
const STOPPED_BY_TIME: u8 = 124;
/// Exit code when this command failed.
const FAILED: u8 = 125;

#[derive(Args)]
pub struct Run {
    /// The policy file.
    policy: PathBuf,
    /// Folder for the audit log of this run; it must not exist yet. [default: a new one below
    /// $XDG_STATE_HOME/casemate/runs]
    #[arg(long, value_name = "DIR")]
    log: Option<PathBuf>,
    /// Print each record as one line of JSON on stderr, instead of text.
    #[arg(long)]
    json: bool,
    /// Print nothing but errors.
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
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
        let bundle = crate::policy::load(&self.policy)?;
        let base = self.policy.canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned));
        let base = base.unwrap_or_else(|| PathBuf::from("."));
        let keys = keys(&bundle, &base)?;
        let reference = reference_values(&bundle, &base)?;
        let attester = self.attester(&bundle)?;
        let folder = self.log_folder(&bundle)?;
        let key = LogKey::generate()?;
        let log = Log::create(&folder, "casemate/run", key).map_err(|error| {
            Failure::caused(format!("cannot make the audit log `{}`", folder.display()), &error)
                .hint("choose another place with --log DIR; nothing runs without a log")
        })?;
        let view = View::new(self.json, self.quiet, folder.clone(), log.public_key());
        let mut shown = view.clone();
        let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
        let stdout = std::io::stdout().as_fd().try_clone_to_owned()?;
        let stderr = std::io::stderr().as_fd().try_clone_to_owned()?;
        let session = Session::builder(bundle)
            .base(&base)
            .attested_by(attester, self.verifier(reference.clone())?)
            .keys_from(Local::new(self.verifier(reference)?, keys))
            .stdio(stdin, stdout, stderr)
            .watched_by(move |record, at| shown.show(record, at))
            .logged_to(log)?;
        pass_signals(&session)?;
        let result = session.run();
        view.close(&result);
        match result {
            Ok(outcome) => Ok(exit_code(&outcome)),
            Err(error) => Err(explain(error)),
        }
    }

    fn verifier(&self, reference: ReferenceValues) -> Result<Verifier, Failure> {
        let builder = Verifier::builder().reference_values(reference);
        let builder = if self.dangerously_accept_simulated {
            builder.dangerous().accept_simulated()
        } else {
            builder
        };
        Ok(builder.build()?)
    }

    /// The TEE of this machine; else the simulated one, if both the user and the policy want it.
    fn attester(&self, bundle: &Bundle) -> Result<Box<dyn Attester>, Failure> {
        let accepted = &bundle.tables().attestation.accept;
        let missing = match attestation::detect() {
            Ok(attester) => return Ok(attester),
            Err(error) => error,
        };
        let simulated = accepted.contains(&TeeName::Simulated);
        if accepted.is_empty() {
            return Ok(Box::new(NoTee(Some(missing))));
        }
        match (self.dangerously_accept_simulated, simulated) {
            (true, true) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Ok(Box::new(SimulatedTee::new(UnixTime(now.as_secs()))?))
            }
            (true, false) => Err(Failure::caused("no evidence can be collected", &missing).hint(
                "the policy does not accept `simulated`: it takes both the flag and \
                 `[attestation] accept = [\"simulated\"]`",
            )),
            (false, _) => Err(Failure::caused("no evidence can be collected", &missing).hint(
                "run in a confidential VM (SEV-SNP); to try things out without one, use \
                 --dangerously-accept-simulated with a policy that accepts `simulated`",
            )),
        }
    }

    fn log_folder(&self, bundle: &Bundle) -> Result<PathBuf, Failure> {
        if let Some(folder) = &self.log {
            return Ok(folder.clone());
        }
        let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).or_else(|| {
            std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"))
        });
        let state = state.ok_or_else(|| {
            Failure::new("there is no place for the audit log").hint("give one with --log DIR")
        })?;
        let runs = state.join("casemate/runs");
        fs::create_dir_all(&runs).map_err(|error| {
            Failure::caused(format!("cannot make `{}`", runs.display()), &error)
                .hint("give another place with --log DIR")
        })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(runs.join(format!("{}-{}-{}", bundle.name(), now.as_secs(), std::process::id())))
    }
}

/// A machine without a TEE, under a policy that asks for no evidence.
struct NoTee(Option<AttestError>);

impl Attester for NoTee {
    fn tee(&self) -> Tee {
        Tee::SevSnp
    }

    fn attest(&mut self, _: &[u8; 64]) -> Result<Evidence, AttestError> {
        Err(self.0.take().map_or_else(|| attestation::detect().err(), Some).unwrap_or(AttestError::NoTee))
    }
}

/// The key of each vault, where the policy says it is.
fn keys(
    bundle: &Bundle,
    base: &Path,
) -> Result<BTreeMap<String, zeroize::Zeroizing<Vec<u8>>>, Failure> {
    let mut keys = BTreeMap::new();
    for (name, data) in &bundle.tables().data {
        let Some(uri) = &data.key else {
            return Err(Failure::new(format!("the policy's `[data] {name}` names no key"))
                .hint(format!("add `key = \"file:{name}.key\"`")));
        };
        let Some(path) = uri.strip_prefix("file:") else {
            return Err(Failure::new(format!("the key `{uri}` of `[data] {name}` is of an unknown kind"))
                .hint("this version takes `file:PATH`"));
        };
        keys.insert(name.clone(), read_key(&base.join(path))?);
    }
    Ok(keys)
}

fn reference_values(bundle: &Bundle, base: &Path) -> Result<ReferenceValues, Failure> {
    let Some(path) = &bundle.tables().attestation.reference_values else {
        return Ok(ReferenceValues::default());
    };
    let path = base.join(path);
    let failed = |error: &dyn std::error::Error| {
        Failure::caused(format!("cannot use the reference values `{}`", path.display()), error)
    };
    let json = fs::read(&path).map_err(|error| failed(&error))?;
    ReferenceValues::from_json(&json).map_err(|error| failed(&error))
}

/// Passes the Unix signals that reach this process on to the workload.
fn pass_signals(session: &Session) -> Result<(), Failure> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
    let handle = session.handle();
    let mut signals = signal_hook::iterator::Signals::new([
        SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2,
    ])?;
    std::thread::spawn(move || signals.forever().for_each(|signal| handle.kill(signal)));
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
        SessionError::Launch(launch) if launch.step == "making the namespaces" => {
            failure.hint("this host forbids namespaces to this user: `sandboxctl doctor` tells how to get them")
        }
        SessionError::Log(_) => failure.hint("is the disk full? nothing runs without a log; --log DIR moves it"),
        SessionError::NotGranted(_) => {
            failure.hint("`sandboxctl policy explain` shows which facts would change the answer")
        }
        _ => failure,
    }
}

