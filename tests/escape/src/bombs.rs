//! What a session has to survive, and to end.

use std::process::ExitCode;

use crate::process;

/// Finds what goes by this name.
pub fn named(name: &str) -> Option<fn() -> ExitCode> {
    Some(match name {
        "fork-bomb" => fork_bomb,
        "memory-bomb" => memory_bomb,
        "kill-everyone" => kill_everyone,
        "linger" => linger,
        "home" => home,
        _ => return None,
    })
}

/// Forks until that is refused, says how often it went well, and leaves all of it running.
fn fork_bomb() -> ExitCode {
    let mut forked = 0;
    while forked < 10_000 {
        match process::fork() {
            Ok(0) => sleep_for_ever(),
            Ok(_) => forked += 1,
            Err(error) => {
                println!("forked {forked} {}", crate::attempt::name(&error));
                return ExitCode::SUCCESS;
            }
        }
    }
    println!("forked {forked} without-end");
    ExitCode::FAILURE
}

/// Writes to ever more memory, up to 4 GiB.
fn memory_bomb() -> ExitCode {
    println!("started");
    let mut held = Vec::new();
    for _ in 0..4096 {
        held.push(vec![1_u8; 1 << 20]);
    }
    println!("survived {}", held.len());
    ExitCode::FAILURE
}

/// Kills every process it can name.
fn kill_everyone() -> ExitCode {
    // SAFETY: takes integers. The caller of this program made sure that it is in a sandbox.
    let everyone = unsafe { libc::kill(-1, libc::SIGKILL) };
    for pid in 1..1000 {
        // SAFETY: as above.
        if pid != unsafe { libc::getpid() } && unsafe { libc::kill(pid, libc::SIGKILL) } == 0 {
            println!("killed {pid}");
        }
    }
    println!("survived {everyone}");
    ExitCode::SUCCESS
}

/// Leaves a daemon behind: another session, another parent, deaf to polite signals.
fn linger() -> ExitCode {
    match process::fork() {
        Ok(0) => {
            // SAFETY: takes nothing.
            unsafe { libc::setsid() };
            if process::fork().is_ok_and(|pid| pid > 0) {
                process::exit(0);
            }
            for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT] {
                // SAFETY: ignoring needs no handler.
                unsafe { libc::signal(signal, libc::SIG_IGN) };
            }
            sleep_for_ever()
        }
        Ok(pid) => {
            process::wait(pid);
            println!("left");
            ExitCode::SUCCESS
        }
        Err(_) => ExitCode::FAILURE,
    }
}

/// Writes to the folder that is its own, leaves that there, and says where it is.
fn home() -> ExitCode {
    let home = std::env::var("HOME").unwrap_or_default();
    let left = std::fs::create_dir(format!("{home}/folder"))
        .and_then(|()| std::fs::write(format!("{home}/folder/file"), "left"));
    println!("{home}");
    match left {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn sleep_for_ever() -> ! {
    loop {
        // SAFETY: takes nothing.
        unsafe { libc::pause() };
    }
}
