//! Many sandboxes, random signals, and supervisors that are killed at random moments. What the workload
//! itself could do, and when, is held against what its log says that it was denied.
//!
//! A small part of it runs with the other tests. All of it:
//! `CASEMATE_CHAOS_SIGNALS=10000 CASEMATE_CHAOS_SANDBOXES=20 cargo test --test chaos -- --nocapture`.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use casemate::adjust::Change;
use casemate::order::EXEC;
use casemate::record::hex;
use casemate::{By, Command as Ordered, Order, Session};
use common::{Local, ORIGIN, Policy, Room, cgroups_of, in_session, tee, verifier, wait_until};
use policy::Facts;
use sha2::{Digest, Sha256};
use vault::audit::{Entry, Log, LogKey};

const SELF: &str = "no_workload_keeps_what_was_denied_and_nothing_is_left_of_killed_supervisors";
const WORKLOAD: &str = "the_workload_of_chaos";
/// In the environment of a supervisor: room, key of the vault, folder of the log, who can be connected
/// to.
const ROOM: &str = "CASEMATE_CHAOS_ROOM";
const KEY: &str = "CASEMATE_CHAOS_KEY";
const LOG: &str = "CASEMATE_CHAOS_LOG";
const SERVER: &str = "CASEMATE_CHAOS_SERVER";
/// In that of the test: how many signals, how many sandboxes, and which randomness.
const SIGNALS: &str = "CASEMATE_CHAOS_SIGNALS";
const SANDBOXES: &str = "CASEMATE_CHAOS_SANDBOXES";
const SEED: &str = "CASEMATE_CHAOS_SEED";
/// Seed of the key of the logs, which are opened again after the crash.
const LOG_KEY: [u8; 32] = [9; 32];

const RISK: &str = "operator = { adds = 25, half-life = \"30ms\" }\n\
                    denied-syscall = { adds = 4, half-life = \"30ms\" }";
const RULES: &str = r#"
forbid (principal, action == Action::"write", resource == Path::"/out") when { context.risk >= 20 };
forbid (principal, action == Action::"read", resource == Path::"/out") when { context.risk >= 35 };
forbid (principal, action == Action::"connect", resource) when { context.risk >= 30 };
forbid (principal, action == Action::"exec", resource) when { context.risk >= 45 };
forbid (principal, action == Action::"read", resource is Vault) when { context.risk >= 35 };
forbid (principal, action == Action::"proceed", resource) when { context.risk >= 60 };
"#;

/// What the workload tries, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Try {
    Data,
    OpenData,
    Read,
    Write,
    Connect,
    Flow,
    Start,
}

const TRIES: [Try; 7] = [
    Try::Data,
    Try::OpenData,
    Try::Read,
    Try::Write,
    Try::Connect,
    Try::Flow,
    Try::Start,
];

fn policy(server: &str) -> Policy {
    let command = ["/chaos", "--exact", WORKLOAD, "--ignored", "--nocapture"];
    let mut policy = Policy::command(&command)
        .with_data()
        .connecting(&[server])
        .with_rules(RISK, RULES);
    policy.files = "read = [{ from = \"chaos\", at = \"/chaos\" }]\n\
                    write = [{ from = \"out\", at = \"/out\" }, { from = \"told\", at = \"/told\" }]"
        .into();
    policy.environment = format!("{WORKLOAD} = \"{server}\"");
    policy
}

#[test]
fn no_workload_keeps_what_was_denied_and_nothing_is_left_of_killed_supervisors() {
    if let Ok(room) = std::env::var(ROOM) {
        let var = |name| std::env::var(name).unwrap();
        let room = Room::at(Path::new(&room), &var(KEY));
        return supervise(&room, Path::new(&var(LOG)), &var(SERVER));
    }
    let number = |name, otherwise| std::env::var(name).map_or(otherwise, |n| n.parse().unwrap());
    let (signals, sandboxes) = (number(SIGNALS, 60), number(SANDBOXES, 2));
    let seed: u64 = number(SEED, 1);
    let began = Instant::now();
    // Once, before anything is forked: a child that inherits it open for writing keeps it from being run.
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("chaos");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let (server, before) = (server(), mounts());
    let threads: Vec<_> = (0..sandboxes)
        .map(|slot| {
            let (program, server) = (program.clone(), server.clone());
            std::thread::spawn(move || {
                let mut random = Random(seed.wrapping_mul(1_000_003) + slot + 1);
                let mut sum = Sum::default();
                while sum.signals < signals / sandboxes {
                    let Some(room) = Room::new() else { return sum };
                    let most = signals / sandboxes - sum.signals;
                    sum.add(&life(&room, &program, &server, &mut random, most));
                }
                sum
            })
        })
        .collect();
    let mut sum = Sum::default();
    for thread in threads {
        sum.add(&thread.join().unwrap());
    }
    let left: Vec<_> = mounts()
        .into_iter()
        .filter(|mount| !before.contains(mount))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    println!(
        "seed {seed}, {sandboxes} sandboxes at a time, {:?}: {sum:?}",
        began.elapsed()
    );
}

/// Somebody who can be connected to, and what leads there: the newest connections are kept and left
/// alone.
fn server() -> String {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let mut kept = std::collections::VecDeque::new();
        for flow in server.incoming() {
            kept.push_back(flow);
            if kept.len() > 256 {
                kept.pop_front();
            }
        }
    });
    address
}

/// Mounts of ours that this machine has, of whoever's.
fn mounts() -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = mounts.lines().filter(|line| line.contains("casemate"));
    ours.map(str::to_owned).collect()
}

/// What was seen.
#[derive(Debug, Default)]
struct Sum {
    signals: u64,
    lives: u64,
    decisions: u64,
    changes: u64,
    /// Changes that were under way when the supervisor was killed.
    cut: u64,
    /// Things the workload could do, of each kind.
    deeds: [u64; TRIES.len()],
}

impl Sum {
    fn add(&mut self, other: &Self) {
        self.signals += other.signals;
        self.lives += other.lives;
        self.decisions += other.decisions;
        self.changes += other.changes;
        self.cut += other.cut;
        for (deeds, others) in self.deeds.iter_mut().zip(other.deeds) {
            *deeds += others;
        }
    }
}

/// One supervisor, from its start to its violent end, and what it left.
fn life(room: &Room, program: &Path, server: &str, random: &mut Random, most: u64) -> Sum {
    fs::hard_link(program, room.path().join("chaos")).unwrap();
    let told = room.path().join("told");
    fs::create_dir(&told).unwrap();
    fs::write(room.out().join("file"), "here").unwrap();
    let log = room.new_log();
    let mut supervisor = start(room, &log, server);
    let pid = i32::try_from(supervisor.id()).unwrap();
    let deeds = told.join("deeds");
    wait_until("the workload to do something", || {
        let ended = supervisor.try_wait().unwrap();
        let why = || fs::read_to_string(room.path().join("said")).unwrap();
        assert!(ended.is_none(), "the supervisor ended by itself: {}", why());
        fs::metadata(&deeds).is_ok_and(|file| file.len() > 0)
    });
    let wanted = (1 + random.below(50)).min(most);
    let mut commands = supervisor.stdin.take().unwrap();
    for _ in 0..wanted {
        commands
            .write_all(&[b"oooowwtr"[random.below(8) as usize]])
            .unwrap();
        random.pause(15_000);
    }
    random.pause(3_000);
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    wait_until("every process of the sandbox to be gone", || {
        in_session(pid).is_empty()
    });
    if !cgroups_of(pid).is_empty() {
        drop(casemate::isolation::cgroup::Cgroup::create());
        assert_eq!(cgroups_of(pid), Vec::<String>::new());
    }
    let mut sum = judge(&entries(&log), &fs::read(&deeds).unwrap(), server);
    (sum.signals, sum.lives) = (wanted, 1);
    sum
}

/// The records of a log that was cut off, opened again and verified.
fn entries(log: &Path) -> Vec<Entry> {
    let key = || LogKey::from_seed(&LOG_KEY).unwrap();
    let pinned = key().verifier(ORIGIN).unwrap();
    Log::open(log, key()).unwrap().close().unwrap();
    let verified = vault::audit::verify(log, Some(&pinned), None).unwrap();
    verified.records().map(Result::unwrap).collect()
}

/// Holds what the workload did against what the log says that it could not do.
fn judge(entries: &[Entry], deeds: &[u8], server: &str) -> Sum {
    let mut sum = Sum::default();
    let bundle = policy(server).bundle();
    let changes = |kind: &'static str| {
        let of_kind = entries
            .iter()
            .filter(move |entry| entry.record.kind == kind);
        of_kind.map(|entry| {
            let change = serde_json::from_value(entry.record.payload["change"].clone()).unwrap();
            (entry.record.mono_ns, entry.seq, change)
        })
    };
    let ordered: Vec<(u64, u64, Change)> = changes("adjusting").collect();
    // From when to when could it not do what.
    let mut denied: Vec<(u64, u64, Vec<Try>)> = Vec::new();
    for (from, seq, change) in changes("adjusted") {
        sum.changes += 1;
        let given = |wanted: fn(&Change) -> bool| {
            let mut later = ordered.iter().filter(|(_, later, _)| *later > seq);
            later
                .find(|(_, _, change)| wanted(change))
                .map_or(u64::MAX, |(at, _, _)| *at)
        };
        let restored = || given(|change| matches!(change, Change::Restore { .. }));
        match change {
            Change::Withdraw(_) => denied.push((
                from,
                given(|change| matches!(change, Change::Release(_))),
                vec![Try::Data, Try::OpenData],
            )),
            Change::Detach(_) => denied.push((from, restored(), vec![Try::Read, Try::Write])),
            Change::ReadOnly(_) => denied.push((from, restored(), vec![Try::Write])),
            Change::Disconnect(_) => denied.push((
                from,
                given(|change| matches!(change, Change::Reconnect(_))),
                vec![Try::Connect, Try::Flow],
            )),
            Change::Exec(false) => denied.push((
                from,
                given(|change| *change == Change::Exec(true)),
                vec![Try::Start],
            )),
            Change::Freeze(true) => denied.push((
                from,
                given(|change| *change == Change::Freeze(false)),
                TRIES.to_vec(),
            )),
            _ => {}
        }
    }
    sum.cut = ordered.len() as u64 - sum.changes.min(ordered.len() as u64);
    for deed in deeds.chunks_exact(16) {
        let number = |part: &[u8]| u64::from_ne_bytes(part.try_into().unwrap());
        let (word, end) = (number(&deed[..8]), number(&deed[8..]));
        let (at, number) = (word >> 3, (word & 7) as usize);
        let what = TRIES[number];
        sum.deeds[number] += 1;
        let kept = denied
            .iter()
            .find(|(from, to, tries)| *from < at && end < *to && tries.contains(&what));
        assert!(
            kept.is_none(),
            "{what:?} succeeded from {at} to {end} though denied: {kept:?}"
        );
    }
    for entry in entries
        .iter()
        .filter(|entry| entry.record.kind == "decided")
    {
        let facts: Facts = serde_json::from_value(entry.record.payload["facts"].clone()).unwrap();
        let decision = serde_json::to_vec(&bundle.decide(&facts)).unwrap();
        assert_eq!(
            entry.record.payload["digest"],
            hex(&Sha256::digest(decision))
        );
        sum.decisions += 1;
    }
    sum
}

/// This program once more, as the supervisor, in a session of its own that its sandbox inherits.
fn start(room: &Room, log: &Path, server: &str) -> Child {
    Command::new("setsid")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", SELF, "--nocapture"])
        .env(ROOM, room.path())
        .env(KEY, hex(&room.key))
        .env(LOG, log)
        .env(SERVER, server)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(File::create(room.path().join("said")).unwrap())
        .spawn()
        .unwrap()
}

/// Runs the workload and signals as it is told, until killed.
fn supervise(room: &Room, log: &Path, server: &str) {
    let null = || {
        OwnedFd::from(
            File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .unwrap(),
        )
    };
    let session = Session::builder(policy(server).bundle())
        .base(room.path())
        .attested_by(Box::new(tee().build().unwrap()), verifier())
        .keys_from(Local::new(verifier(), "customers", &room.key))
        .stdio(null(), null(), null())
        .logged_to(Log::create(log, ORIGIN, LogKey::from_seed(&LOG_KEY).unwrap()).unwrap())
        .unwrap();
    let handle = session.handle();
    let names = ["/out", server, EXEC].map(str::to_owned);
    std::thread::spawn(move || {
        let order = |command| {
            let by = By { uid: 0, pid: 1 };
            let why = "chaos".into();
            let answer = handle.order(Order { command, by, why });
            answer.unwrap();
        };
        let mut command = [0];
        while std::io::stdin().read_exact(&mut command).is_ok() {
            match command[0] {
                b'o' => handle.operator("chaos"),
                b't' => order(Ordered::Withdraw(names.clone().into())),
                b'r' => order(Ordered::Restore(names.clone().into())),
                _ => handle.kill(libc::SIGWINCH),
            }
        }
    });
    panic!("nothing was to end this: {:?}", session.run());
}

#[test]
#[ignore = "run inside the sandboxes of the test above"]
fn the_workload_of_chaos() {
    let Ok(server) = std::env::var(WORKLOAD) else {
        return;
    };
    let mut told = File::options()
        .create(true)
        .append(true)
        .open("/told/deeds")
        .unwrap();
    let reads = |file: &File| matches!(file.read_at(&mut [0; 16], 0), Ok(1..));
    let waits = |mut flow: &TcpStream| matches!(flow.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock);
    let (mut open, mut flow) = (None, None);
    for round in 0u64.. {
        for (number, what) in TRIES.iter().enumerate() {
            let began = since_boot();
            let done = match what {
                Try::Data => match File::open("/data/customers.csv") {
                    Ok(file) => {
                        let read = reads(&file);
                        open = Some(file);
                        read
                    }
                    Err(_) => false,
                },
                Try::OpenData => open.as_ref().is_some_and(reads),
                Try::Read => File::open("/out/file").is_ok_and(|file| reads(&file)),
                Try::Write => File::options().write(true).open("/out/file").is_ok(),
                // Not each time: a port that was used rests for a minute.
                Try::Connect if flow.is_some() && round % 256 != 0 => false,
                Try::Connect => {
                    let connected = TcpStream::connect(&server).ok();
                    flow = connected.filter(|flow| flow.set_nonblocking(true).is_ok());
                    flow.is_some()
                }
                Try::Flow => {
                    let waits = flow.as_ref().is_some_and(waits);
                    flow = flow.filter(|_| waits);
                    waits
                }
                Try::Start => starts(),
            };
            if done {
                let mut deed = [0; 16];
                deed[..8].copy_from_slice(&(began << 3 | number as u64).to_ne_bytes());
                deed[8..].copy_from_slice(&since_boot().to_ne_bytes());
                told.write_all(&deed).unwrap();
            }
        }
        if round % 64 == 0 {
            // SAFETY: an operation that there is not: refused before the kernel looks at any of it.
            unsafe { libc::syscall(libc::SYS_prctl, 0x7000_0000, 0, 0, 0, 0) };
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Whether a program could be started, if there were it.
fn starts() -> bool {
    let none = [std::ptr::null()];
    // SAFETY: the path ends with a nought, the lists with a null pointer; nothing is executed, so this
    // returns.
    unsafe { libc::execve(c"/nowhere".as_ptr(), none.as_ptr(), none.as_ptr()) };
    std::io::Error::last_os_error().kind() == ErrorKind::NotFound
}

/// Nanoseconds since the machine was booted: what the records have too.
fn since_boot() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` outlives the call.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Numbers that look random, the same ones for the same seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }

    /// Lets up to so many microseconds pass.
    fn pause(&mut self, most: u64) {
        std::thread::sleep(Duration::from_micros(self.below(most)));
    }
}
