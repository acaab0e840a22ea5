//! `casemate-guest-agent`: runs the policies of this machine for callers on a Unix socket; or, as the
//! first process of a machine, the one that the machine was launched for.

#![forbid(unsafe_code)]

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use casemate::error::describe;
use clap::Parser;
use guest_agent::transport::{Closer, Listener, note};
use guest_agent::vm::init;
use guest_agent::{Agent, Config, lockdown};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How long workloads have to end by themselves when the agent is asked to.
const GRACE: Duration = Duration::from_secs(5);

/// Run the policies of this machine for callers on a Unix socket.
#[derive(Parser)]
#[command(name = "casemate-guest-agent", version, max_term_width = 100)]
struct Cli {
    /// The configuration: `socket`, `state`, `policies`, `allow-uids`.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Without a TEE, use a simulated one. Its evidence proves nothing: anybody can forge it. A policy
    /// must accept `simulated` too.
    #[arg(long)]
    dangerously_accept_simulated: bool,
}

fn main() -> ExitCode {
    if init::is_init() {
        init::run();
    }
    match serve(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            note(format_args!("{}", describe(&*error)));
            ExitCode::FAILURE
        }
    }
}

fn serve(cli: &Cli) -> Result<(), Box<dyn Error>> {
    lockdown::confine()?;
    let config = Config::read(&cli.config)?;
    // The lock on the state first: whoever holds it may replace what a dead agent left.
    let agent = Agent::start(config.clone())?;
    let listener = Listener::bind(&config)?;
    let agent = if cli.dangerously_accept_simulated {
        note(format_args!(
            "simulated evidence is accepted: it proves nothing"
        ));
        agent.dangerous().accept_simulated()
    } else {
        agent
    };
    stop_on_signals(agent.clone(), listener.closer())?;
    note(format_args!("listens on `{}`", config.socket().display()));
    listener.serve(Arc::new(agent))?;
    note(format_args!("ends; nothing of its sessions is left"));
    Ok(())
}

/// The first signal asks the workloads to end, and after a while stops them; the second one at once.
fn stop_on_signals(agent: Agent, closer: Closer) -> Result<(), std::io::Error> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let follow = move || {
        for signal in signals.forever() {
            note(format_args!(
                "signal {signal}: takes no more callers, ends its sessions"
            ));
            closer.close();
            agent.stop();
            let agent = agent.clone();
            thread::spawn(move || {
                thread::sleep(GRACE);
                agent.stop();
            });
        }
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(follow)?;
    Ok(())
}
