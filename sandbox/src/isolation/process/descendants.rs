//! Every process below this one, where no pid namespace holds them together.
//!
//! Whoever calls this is a subreaper (`PR_SET_CHILD_SUBREAPER`, prctl(2)): a process whose parent ends
//! becomes its child, so that nothing leaves the tree below it. `/proc` lists that tree, not at one moment;
//! so all of it is stopped first, over and over until nothing is found that is not. What is stopped forks
//! no more, and what forks meanwhile comes to the limit of processes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};

/// How long stopping, or ending, all of them may take.
const DEADLINE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_micros(200);

/// One process, which keeps its name when its number is given to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    pid: i32,
    started: u64,
}

/// What `/proc/PID/stat` says of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: i32,
    state: u8,
    started: u64,
}

/// Makes this process the parent of all below it that lose theirs.
///
/// # Errors
///
/// What prctl(2) answers.
pub fn gather() -> io::Result<()> {
    // Whichever id: what is asked is only whether there is one.
    let own = rustix::process::getpid();
    Ok(rustix::process::set_child_subreaper(Some(own))?)
}

/// Stops every process below this one. Returns when each is stopped.
///
/// # Errors
///
/// `TimedOut` when one does not stop, or there are always more.
pub fn stop() -> io::Result<()> {
    let end = Instant::now() + DEADLINE;
    let mut told = BTreeSet::new();
    loop {
        let mut settled = true;
        for (process, state) in below()? {
            if told.insert(process) {
                send(process, Signal::STOP);
                settled = false;
            }
            settled &= matches!(state, b'T' | b't' | b'Z' | b'X');
        }
        if settled {
            return Ok(());
        }
        if Instant::now() > end {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(PAUSE);
    }
}

/// Lets every process below this one go on.
///
/// # Errors
///
/// When they cannot be listed.
pub fn go_on() -> io::Result<()> {
    for (process, _) in below()? {
        send(process, Signal::CONT);
    }
    Ok(())
}

/// Ends every process below this one, and waits until none is left.
///
/// # Errors
///
/// `TimedOut` when one is left.
pub fn end() -> io::Result<()> {
    let end = Instant::now() + DEADLINE;
    // Whoever cannot be stopped in time can still be killed.
    let _ = stop();
    loop {
        for (process, _) in below()? {
            send(process, Signal::KILL);
        }
        loop {
            match rustix::process::wait(WaitOptions::NOHANG) {
                Err(Errno::CHILD) => return Ok(()),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        if Instant::now() > end {
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(PAUSE);
    }
}

/// Sends a signal to this very process, or to nobody.
fn send(process: Process, signal: Signal) {
    let Some(pid) = Pid::from_raw(process.pid) else {
        return;
    };
    let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    // Opened between two looks that saw the same process, so it is that.
    if look(process.pid).is_some_and(|stat| stat.started == process.started) {
        let _ = rustix::process::pidfd_send_signal(pidfd, signal);
    }
}

/// All below this process, with their states.
fn below() -> io::Result<Vec<(Process, u8)>> {
    let mut children: BTreeMap<i32, Vec<(Process, u8)>> = BTreeMap::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let pid = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        let Some(pid) = pid else { continue };
        if let Some(stat) = look(pid) {
            let process = Process {
                pid,
                started: stat.started,
            };
            let siblings = children.entry(stat.parent).or_default();
            siblings.push((process, stat.state));
        }
    }
    let mut found: Vec<(Process, u8)> = Vec::new();
    let mut next = children.remove(&rustix::process::getpid().as_raw_nonzero().get());
    while let Some(generation) = next.take() {
        let grandchildren = generation
            .iter()
            .filter_map(|(process, _)| children.remove(&process.pid))
            .flatten();
        let grandchildren: Vec<_> = grandchildren.collect();
        found.extend(generation);
        next = (!grandchildren.is_empty()).then_some(grandchildren);
    }
    Ok(found)
}

fn look(pid: i32) -> Option<Stat> {
    parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// See proc_pid_stat(5). The name, in parentheses, may have anything in it.
fn parse(stat: &[u8]) -> Option<Stat> {
    let name_ends = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(&stat[name_ends + 1..]).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let parent = fields.next()?.parse().ok()?;
    // The state is field 3, its parent 4, the start 22.
    let started = fields.nth(17)?.parse().ok()?;
    Some(Stat {
        parent,
        state,
        started,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let tail = " S 7 8 8 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9\n";
        for name in ["sh", "a) R 1", ") S 1 1 1 (", "\u{fffd}"] {
            let line = format!("12 ({name}){tail}");
            let stat = parse(line.as_bytes());
            assert_eq!(
                stat,
                Some(Stat {
                    parent: 7,
                    state: b'S',
                    started: 4242
                }),
                "{name}"
            );
        }
        let mut strange = b"12 (\xff\xfe)".to_vec();
        strange.extend(tail.as_bytes());
        assert_eq!(parse(&strange).map(|stat| stat.parent), Some(7));
        for garbage in ["", ")", "1 (x)", "1 (x) S", "1 (x) S 2 3", "1 (x) S y"] {
            assert_eq!(parse(garbage.as_bytes()), None, "{garbage}");
        }
    }

    #[test]
    fn this_process_is_seen_as_it_is() {
        let own = look(std::process::id() as i32).expect("/proc");
        assert_eq!(
            own.parent,
            rustix::process::getppid().map_or(0, |p| p.as_raw_nonzero().get())
        );
    }
}
