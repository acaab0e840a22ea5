//! Tries to get out of the sandbox it runs in, one way after the other.
//!
//! ```text
//! probe all          every vector, each in a process of its own: NAME open|closed DETAIL
//! probe NAME         this vector
//! probe network …    what a granted network leaves to try
//! probe BOMB [WORD]  what a session has to end: fork-bomb, memory-bomb, kill-everyone, linger, home
//! ```
//!
//! A vector is *open* when the attack works. Outside of a sandbox most are, which the test beside this
//! uses as its control: a vector that can never open would prove nothing. For that reason no vector
//! does harm where it is open. Calls that would (`reboot`, `swapon`) get arguments that the kernel
//! looks at only after it decided who may, so that "no" and "not so" can be told apart.

mod attempt;
mod bombs;
mod network;
mod process;
mod setting;
mod sys;
mod vectors;

use std::process::ExitCode;

use attempt::Attempt;
use setting::Setting;
use vectors::Vector;

fn main() -> ExitCode {
    // First of all: whatever is opened later is no leak.
    let setting = Setting::read();
    let mut arguments = std::env::args().skip(1);
    let wanted = arguments.next().unwrap_or_default();
    if let Some(bomb) = bombs::named(&wanted) {
        if !setting.inside {
            eprintln!("probe: `{wanted}` only goes off inside a sandbox (PROBE_INSIDE=1)");
            return ExitCode::FAILURE;
        }
        return bomb();
    }
    if wanted == "network" {
        return network::main(arguments);
    }
    if wanted == "hold" {
        return network::hold(arguments);
    }
    let mut tried = 0;
    for vector in vectors::all().filter(|vector| wanted == "all" || wanted == vector.name) {
        println!("{} {}", vector.name, isolated(vector, &setting));
        tried += 1;
    }
    if tried == 0 {
        eprintln!("probe: there is no vector `{wanted}`");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Tries a vector in a child, which the attempt may end.
fn isolated(vector: &Vector, setting: &Setting) -> Attempt {
    let (line, ending) = process::hear(|| (vector.attempt)(setting).to_string());
    match ending {
        process::Ending::Code(0) => Attempt::parse(&line),
        process::Ending::Code(code) => Attempt::Stuck(format!("exit code {code}")),
        process::Ending::Killed(libc::SIGALRM) => Attempt::Stuck("took too long".into()),
        process::Ending::Killed(signal) => Attempt::Closed(format!("killed by signal {signal}")),
    }
}
