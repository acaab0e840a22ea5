//! Writers that are killed at every system call: what is left is the old state or the new one, and
//! nothing that was acknowledged is lost.
//!
//! ptrace(2) stops a child at each call that any of its threads makes. Before the n-th of them it is
//! killed, for every n until it gets through.

#![allow(clippy::unwrap_used, unsafe_code)]

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;
use vault::audit::{Log, LogKey, Record, verify};
use vault::kek::Released;
use vault::{Access, ChunkSize, CreateOptions, Padding, Vault};

/// Which child is meant, and the folder it works in.
const CHILD: &str = "CASEMATE_TEST_KILLED_AT_A_CALL";

/// More calls than a child makes; one that makes more goes around in circles.
const MOST_CALLS: usize = 5000;

#[test]
fn a_vault_whose_writer_is_killed_at_any_system_call_has_one_of_its_states() {
    let home = home();
    let dir = home.path().join("v");
    let prepared = home.path().join("prepared");
    let mut vault = Vault::create(&prepared, &kek(), small()).unwrap();
    vault.put("kept", &bytes(1)[..]).unwrap();
    vault.put("a", &bytes(2)[..]).unwrap();
    drop(vault);
    let mut seen = [0; 4];
    at_every_call("vault", &dir, &prepared, |acknowledged, case| {
        let vault = Vault::open(&dir, &kek(), Access::ReadOnly);
        let vault = vault.unwrap_or_else(|e| panic!("{case}: {e:?}"));
        assert_eq!(get(&vault, "kept"), Some(bytes(1)), "{case}");
        let (a, b, c) = (get(&vault, "a"), get(&vault, "b"), get(&vault, "c"));
        let state = match (a, b, c) {
            (Some(a), None, None) if a == bytes(2) => 0,
            (Some(a), Some(b), None) if a == bytes(2) && b == bytes(3) => 1,
            (Some(a), Some(b), None) if a == bytes(4) && b == bytes(3) => 2,
            (Some(a), None, Some(c)) if a == bytes(4) && c == bytes(3) => 3,
            other => panic!("{case}: no state of its history: {other:?}"),
        };
        assert!(state >= acknowledged, "{case}: acknowledged and lost");
        assert!(state <= acknowledged + 1, "{case}: never asked for");
        seen[state] += 1;
        drop(vault);
        // The next writer cleans up and goes on.
        let mut vault = Vault::open(&dir, &kek(), Access::ReadWrite).unwrap();
        assert_eq!(vault.verify(|_| ()).unwrap().orphans, 0, "{case}");
        vault.put("later", &bytes(5)[..]).unwrap();
    });
    assert!(seen.iter().all(|seen| *seen > 2), "{seen:?}");
}

#[test]
fn a_log_whose_writer_is_killed_at_any_system_call_keeps_what_it_acknowledged() {
    let home = home();
    let dir = home.path().join("l");
    let prepared = home.path().join("prepared");
    let log = Log::create(&prepared, "example.org/killed", log_key()).unwrap();
    log.append(&record(0)).unwrap();
    log.close().unwrap();
    let verifier = log_key().verifier("example.org/killed").unwrap();
    let mut most = 0;
    at_every_call("log", &dir, &prepared, |acknowledged, case| {
        let log = Log::open(&dir, log_key()).unwrap_or_else(|e| panic!("{case}: {e:?}"));
        assert!(log.size() > acknowledged as u64, "{case}: lost");
        let next = log.size();
        assert_eq!(log.append(&record(next)).unwrap().index, next, "{case}");
        log.close().unwrap();
        let verified = verify(&dir, Some(&verifier), None);
        let verified = verified.unwrap_or_else(|e| panic!("{case}: {e:?}"));
        for entry in verified.records().map(Result::unwrap) {
            let cut = entry.record.kind == vault::audit::RECOVERED && entry.seq == next - 1;
            let kept = entry.record == record(entry.seq);
            assert!(kept || cut, "{case}: {}", entry.seq);
            assert!(kept || entry.seq > acknowledged as u64, "{case}: cut");
        }
        most = most.max(acknowledged);
    });
    assert_eq!(most as u64, 2 * MANY + 2, "the child did not get through");
}

#[test]
#[ignore = "the child of the tests above"]
fn the_writer_that_is_killed() {
    let Some(told) = std::env::var_os(CHILD) else {
        return;
    };
    let told = told.into_string().unwrap();
    let (story, dir) = told.split_once(':').unwrap();
    let dir = PathBuf::from(dir);
    match story {
        "vault" => {
            let mut vault = Vault::open(&dir, &kek(), Access::ReadWrite).unwrap();
            begin();
            vault.put("b", &bytes(3)[..]).unwrap();
            acknowledge(1);
            vault.put("a", &bytes(4)[..]).unwrap();
            acknowledge(2);
            vault.rename("b", "c").unwrap();
            acknowledge(3);
        }
        _ => {
            let log = Log::open(&dir, log_key()).unwrap();
            begin();
            log.append(&record(1)).unwrap();
            acknowledge(1);
            // More than is left in the first segment: the log goes on in another one.
            for first in [2, 2 + MANY] {
                let records: Vec<_> = (first..first + MANY).map(record).collect();
                log.append_all(&records).unwrap();
                acknowledge(first + MANY - 1);
            }
            log.checkpoint().unwrap();
            log.append(&record(2 * MANY + 2)).unwrap();
            acknowledge(2 * MANY + 2);
            log.close().unwrap();
        }
    }
}

/// Records that go into a log at once, so big that a segment does not hold twice as many.
const MANY: u64 = 13;

fn record(n: u64) -> Record {
    let big = (2..2 * MANY + 2).contains(&n);
    let pad = "x".repeat(if big { 15_000 } else { 10 });
    let time = Duration::from_secs(1_700_000_000 + n);
    Record::new("decision", time, n, json!({ "n": n, "pad": pad }))
}

fn log_key() -> LogKey {
    LogKey::from_seed(&[1; 32]).unwrap()
}

fn kek() -> Released {
    Released::take(&mut [7; 32]).unwrap()
}

fn small() -> CreateOptions {
    CreateOptions {
        chunk: ChunkSize::KiB4,
        padding: Padding::Padme,
    }
}

fn bytes(seed: u8) -> Vec<u8> {
    (0..9000).map(|at| seed ^ (at % 251) as u8).collect()
}

fn get(vault: &Vault, name: &str) -> Option<Vec<u8>> {
    vault.info(name)?;
    let mut out = Vec::new();
    vault.get(name, &mut out).unwrap();
    Some(out)
}

/// Where syncs cost little, if there is such a place: what they are good for is tested elsewhere.
fn home() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// The call that says that the story begins: nothing else here makes it.
fn begin() {
    rustix::process::getpriority_process(None).unwrap();
}

/// Tells, in one call, how far it is.
fn acknowledge(how_far: u64) {
    let line = format!("acknowledged {how_far}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Kills the child of this story at one call after the other, and has looked at what each death left
/// together with what the child had acknowledged.
fn at_every_call(story: &str, dir: &Path, prepared: &Path, mut look: impl FnMut(usize, &str)) {
    for at in 0..MOST_CALLS {
        let _ = std::fs::remove_dir_all(dir);
        copy(prepared, dir);
        let Some((said, through)) = killed_at(story, dir, at) else {
            eprintln!("skipped: no process may be traced here");
            return;
        };
        let lines = said.lines().filter_map(|line| {
            let (_, how_far) = line.split_once("acknowledged ")?;
            how_far.parse().ok()
        });
        let case = format!("killed at call {at}");
        look(lines.max().unwrap_or(0), &case);
        if through {
            assert!(at > 40, "only {at} calls");
            return;
        }
    }
    panic!("the child never got through");
}

/// Runs the child up to this call: what it said, and whether it got through. `None` if it cannot be
/// traced.
fn killed_at(story: &str, dir: &Path, at: usize) -> Option<(String, bool)> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "the_writer_that_is_killed"])
        .args(["--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{story}:{}", dir.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // So that its threads can be waited for, and nobody else's.
        .process_group(0);
    // SAFETY: between fork and exec, ptrace(2) is one system call that allocates nothing.
    unsafe {
        command.pre_exec(|| ptrace(libc::PTRACE_TRACEME, 0, 0).map(drop));
    }
    let mut child = command.spawn().ok()?;
    let pid = child.id() as i32;
    let through = trace(pid, at);
    let mut said = String::new();
    child.stderr.take()?.read_to_string(&mut said).unwrap();
    Some((said, through))
}

/// Lets the child make this many calls after its story began, and kills it; `true` if it ended before.
fn trace(pid: i32, at: usize) -> bool {
    const OPTIONS: i32 =
        libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
    // Stopped by its exec.
    wait(pid).unwrap();
    ptrace(libc::PTRACE_SETOPTIONS, pid, OPTIONS as usize).unwrap();
    ptrace(libc::PTRACE_SYSCALL, pid, 0).unwrap();
    let (mut calls, mut begun, mut killed) = (0, false, false);
    while let Some((thread, status)) = wait(-pid) {
        if !libc::WIFSTOPPED(status) {
            let succeeded = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
            assert!(killed || thread != pid || succeeded, "the child failed");
            continue;
        }
        let signal = libc::WSTOPSIG(status);
        if signal == libc::SIGTRAP | 0x80 {
            let entering = entering(thread);
            calls += usize::from(begun && entering.is_some());
            begun = begun || entering == Some(libc::SYS_getpriority as u64);
            if calls > at && !killed {
                // SAFETY: sends a signal, and touches no memory.
                unsafe { libc::kill(pid, libc::SIGKILL) };
                killed = true;
            }
        }
        // What new threads and clones stop with is ptrace's own, and not for the child to have.
        let ours = [libc::SIGTRAP | 0x80, libc::SIGTRAP, libc::SIGSTOP].contains(&signal);
        let pass_on = if ours { 0 } else { signal as usize };
        // It may be gone: it was killed.
        let _ = ptrace(libc::PTRACE_SYSCALL, thread, pass_on);
    }
    !killed
}

/// The call that this thread is about to make; `None` if it has made it.
fn entering(thread: i32) -> Option<u64> {
    // `struct ptrace_syscall_info`: kind u8 … number u64 at 24.
    let mut info = [0u64; 11];
    let size = size_of_val(&info);
    // SAFETY: the kernel writes at most `size` bytes to `info`, which outlives the call.
    let read = unsafe {
        libc::ptrace(
            libc::PTRACE_GET_SYSCALL_INFO,
            thread,
            size,
            info.as_mut_ptr(),
        )
    };
    let entering = info[0].to_ne_bytes()[0] == 1;
    (read > 0 && entering).then_some(info[3])
}

fn ptrace(request: u32, thread: i32, data: usize) -> std::io::Result<i64> {
    // SAFETY: for the requests made here, `data` is a number and the kernel touches no memory of ours.
    let done = unsafe { libc::ptrace(request, thread, 0usize, data) };
    match done {
        -1 => Err(std::io::Error::last_os_error()),
        done => Ok(done),
    }
}

/// The next of these processes or threads that stopped or ended; `None` if there are none left.
fn wait(which: i32) -> Option<(i32, i32)> {
    let mut status = 0;
    loop {
        // SAFETY: the kernel writes an integer to `status`, which outlives the call.
        let found = unsafe { libc::waitpid(which, &mut status, libc::__WALL) };
        match found {
            -1 if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
            -1 => return None,
            found => return Some((found, status)),
        }
    }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}
