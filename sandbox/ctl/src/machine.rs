//! `sandboxctl run` with the backend `microvm`: the same policy in a virtual machine.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use ::policy::{BackendName, Bundle};
use casemate::By;
use casemate::isolation::child::Ending;
use clap::Args;
use guest_agent::Assembly;
use guest_agent::view::{Look, View};
use guest_agent::vm::host::{self, Closed, Kind, Options, VmError};
use guest_agent::vm::{Ended, Reason};

use crate::failure::{Failure, describe};

/// The agent's program, beside this one.
const AGENT: &str = "casemate-guest-agent";

/// How a machine is made.
#[derive(Args, Clone)]
pub struct Machine {
    /// With `microvm`: the kernel that is booted. [default: the newest one in /boot, preferring those
    /// that are made for machines (`-cloud-`)]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// With `microvm`: the agent, which becomes the first process. [default: casemate-guest-agent beside
    /// this program]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// With `microvm`: a further program of this host (with its libraries), or a folder, that the
    /// workload needs; the shell and the utilities of POSIX are there.
    #[arg(long, value_name = "PATH")]
    with: Vec<PathBuf>,
    /// With `microvm`: seconds that the guest may be silent before its machine is ended.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    patience: u64,
    /// With `microvm`: the hardware that hides the machine's memory from this host, `sev-snp` or `tdx`.
    /// [default: none]
    #[arg(long, value_name = "TEE", value_parser = kind)]
    tee: Option<Kind>,
    /// With `microvm`: firmware of a confidential machine, OVMF built for it.
    #[arg(long, value_name = "FILE")]
    firmware: Option<PathBuf>,
    /// With `microvm`: start from a template, a machine that was booted once with the same kernel and image
    /// and waits to be told what to run; it is made now if there is none. Not with `--tee`.
    #[arg(long)]
    warm: bool,
    /// With `--warm`: folder of the templates, which nobody else may read. [default: below
    /// $XDG_CACHE_HOME/casemate]
    #[arg(long, value_name = "DIR", requires = "warm")]
    templates: Option<PathBuf>,
    /// With `microvm`: write every byte that crosses between host and guest into this file.
    #[arg(long, value_name = "FILE", hide = true)]
    record_channel: Option<PathBuf>,
}

impl Machine {
    /// What the machine is made of on this host.
    pub fn options(&self) -> Result<Options, Failure> {
        let agent = match &self.agent {
            Some(agent) => agent.clone(),
            None => std::env::current_exe()?.with_file_name(AGENT),
        };
        if !agent.is_file() {
            let message = format!("there is no agent at `{}`", agent.display());
            return Err(Failure::new(message).hint(
                "build it with `cargo build -p casemate-guest-agent`, or name it with --agent",
            ));
        }
        Ok(Options {
            agent,
            kernel: self.kernel.clone(),
            with: self.with.clone(),
            patience: Duration::from_secs(self.patience.max(1)),
            tee: self.tee,
            firmware: self.firmware.clone(),
            templates: self.warm.then(|| self.templates()).transpose()?,
            recorded: self.record_channel.clone(),
        })
    }
}

impl Machine {
    fn templates(&self) -> Result<PathBuf, Failure> {
        if let Some(folder) = &self.templates {
            return Ok(folder.clone());
        }
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let cache = cache.or_else(home).ok_or_else(|| {
            Failure::new("there is no place for templates").hint("give one with --templates DIR")
        })?;
        Ok(cache.join("casemate/templates"))
    }
}

fn kind(text: &str) -> Result<Kind, String> {
    match text {
        "sev-snp" => Ok(Kind::SevSnp),
        "tdx" => Ok(Kind::Tdx),
        _ => Err("known are sev-snp, tdx".to_owned()),
    }
}

/// Whether a policy is run in a machine: as it says itself, or as was asked for.
pub fn is_asked_for(backend: Option<&str>, bundle: &Bundle) -> bool {
    match backend {
        Some(backend) => backend == BackendName::Microvm.as_str(),
        None => bundle.tables().isolation.backend == BackendName::Microvm,
    }
}

/// A run in a machine.
pub struct InMachine<'m> {
    pub machine: &'m Machine,
    pub assembly: Assembly,
    pub log: &'m Path,
    pub look: Look,
    pub accept_simulated: bool,
    pub receipt: Option<&'m mut File>,
}

impl InMachine<'_> {
    /// Runs it. `pass` is given what passes a Unix signal on.
    pub fn run(
        self,
        pass: impl FnOnce(Box<dyn Fn(i32, Option<By>) + Send>) -> Result<(), Failure>,
    ) -> Result<ExitCode, Failure> {
        let options = self.machine.options()?;
        let mut passed = Ok(());
        let result = host::run(
            host::Run {
                assembly: self.assembly,
                options: &options,
                log: self.log,
                look: self.look,
                accept_simulated: self.accept_simulated,
                receipt: self.receipt,
            },
            |signals| passed = pass(Box::new(move |signal, by| signals.kill(signal, by))),
        );
        passed?;
        let Closed { ended, key } = result.map_err(explain)?;
        if let Some(key) = key {
            let ok = matches!(ended, Ended::Outcome { .. });
            View::new(std::io::stderr(), self.look, self.log.to_owned(), key).close(ok);
        }
        match ended {
            Ended::Failed(why) => Err(Failure::new(why)),
            Ended::Outcome {
                no_receipt: Some(why),
                ..
            } => Err(Failure::new(format!("the run has no receipt: {why}"))
                .hint("the workload has ended all the same; its log says how")),
            Ended::Outcome { ending, why, .. } => Ok(exit_code(ending, why)),
        }
    }
}

fn exit_code(ending: Ending, why: Reason) -> ExitCode {
    match (why, ending) {
        (Reason::Policy, _) => ExitCode::from(crate::run::STOPPED_BY_POLICY),
        (Reason::Time, _) => ExitCode::from(crate::run::STOPPED_BY_TIME),
        (_, Ending::Code(code)) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        (_, Ending::Killed(signal)) => ExitCode::from(u8::try_from(128 + signal).unwrap_or(255)),
    }
}

fn explain(error: VmError) -> Failure {
    let failure = Failure::new(describe(&error));
    match &error {
        VmError::Hung(_) => failure.hint("--patience gives a slow host more time"),
        VmError::Keep(_) => failure.hint("is the disk full? nothing runs without a log; --log DIR moves it"),
        VmError::Lost { .. } => failure.hint(
            "the log of the machine, `LOG.machine`, says what was launched; that of the session, how far it came",
        ),
        _ => failure,
    }
}
