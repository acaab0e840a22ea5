//! How long it takes from a signal to its being enforced, as the running workload itself finds out.
//!
//! `cargo bench -p casemate --bench adjust`. The workload is this program once more, in a sandbox, which
//! does what a lever can take away, over and over, and tells the time at which it first fails. An
//! operator's signal raises the risk, a rule takes the grant away, the risk fades, the grant comes back,
//! and again. The time runs from the signal to that first failure, with the decision and the durable
//! record in between. What is frozen or stopped cannot tell: there the last time counts that it wrote
//! down.
//!
//! Printed beside it: the lever alone, once its record was durable (as the log has it); what it rests on
//! in bare system calls, without policy, record and sandbox; and one bare durable write of the same disk,
//! which no record can beat. After `--`, words choose levers, and a number says how many rounds.

#[path = "adjust/floor.rs"]
mod floor;

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant, SystemTime};

use attestation::{
    Challenge, Evidence, Nonce, SealedSecret, SimulatedTee, UnixTime, Verifier, VerifierBuilder,
};
use broker::{Broker, ReleasePolicy};
use casemate::adjust::Change;
use casemate::lever::tighten::Tightening;
use casemate::plan::Tier;
use casemate::record::Record;
use casemate::release::{KeyBroker, Refusal};
use casemate::{Handle, Session};
use policy::Bundle;
use rustix::fs::{Access, access};
use vault::audit::{Log, LogKey};
use vault::kek::Released;
use vault::{CreateOptions, Vault};
use zeroize::Zeroizing;

use floor::Floor;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// A lever: its name, what its rule forbids, what of the log tells that it was pulled, how the workload
/// finds out, and what it rests on.
struct Lever {
    name: &'static str,
    /// Empty where no rule decides about it and it is ordered, for good.
    forbid: &'static str,
    pulled: fn(&Change) -> bool,
    /// Likewise, that it was given back.
    given_back: fn(&Change) -> bool,
    /// Does it once. `None` when the workload cannot tell of its failing.
    probe: Option<fn(&mut Option<File>) -> bool>,
    floor: (&'static str, Floor),
}

impl Lever {
    /// Whether what it takes comes back, so that one run does for all rounds.
    fn returns(&self) -> bool {
        !self.forbid.is_empty() && self.name != "stop"
    }
}

/// Whether what is open works. What does not is opened anew the next time, when its failing was told.
fn reopened(
    open: &mut Option<File>,
    works: impl FnOnce(&File) -> bool,
    again: impl FnOnce() -> Option<File>,
) -> bool {
    match open.take() {
        None => *open = again(),
        Some(file) if works(&file) => *open = Some(file),
        Some(_) => {}
    }
    open.is_some()
}

/// How long the workload waits before it asks again, where it does not ask all the time.
const PAUSE: Duration = Duration::from_micros(50);

/// What is taken for good.
const NEVER: fn(&Change) -> bool = |_| false;

/// Starting a program whose name is longer than any: refused before or after the kernel has read it. To look
/// for a program takes credentials, which are freed in softirqs.
const STARTS: fn(&mut Option<File>) -> bool = |_| {
    let error = std::process::Command::new(NO_NAME).exec();
    error.kind() == ErrorKind::InvalidFilename
};
/// `PATH_MAX` bytes without the 0 at the end.
const NO_NAME: &str = match std::str::from_utf8(&[b'/'; 4096]) {
    Ok(name) => name,
    Err(_) => "",
};

const LEVERS: [Lever; 9] = [
    Lever {
        name: "data",
        forbid: r#"action == Action::"read", resource is Vault"#,
        pulled: |change| matches!(change, Change::Withdraw(_)),
        given_back: |change| matches!(change, Change::Release(_)),
        // On a descriptor that is open; a new one once that fails.
        probe: Some(|open| {
            let read = |file: &File| matches!(file.read_at(&mut [0; 64], 0), Ok(1..));
            reopened(open, read, || File::open("/data/customers.csv").ok())
        }),
        floor: ("a write(2)", floor::one_write),
    },
    Lever {
        name: "files detach",
        forbid: r#"action, resource == Path::"/tree""#,
        pulled: |change| matches!(change, Change::Detach(_)),
        given_back: |change| matches!(change, Change::Restore { .. }),
        // Looked up, not opened: files that are closed by the thousand are freed in softirqs, which
        // everybody waits for.
        probe: Some(|_| access("/tree/file", Access::READ_OK).is_ok()),
        floor: ("umount2(2)", floor::detach),
    },
    Lever {
        name: "files read-only",
        forbid: r#"action == Action::"write", resource == Path::"/tree""#,
        pulled: |change| matches!(change, Change::ReadOnly(_)),
        given_back: |change| matches!(change, Change::Restore { .. }),
        probe: Some(|_| access("/tree/file", Access::WRITE_OK).is_ok()),
        floor: ("mount(2), remounting", floor::read_only),
    },
    Lever {
        name: "network",
        forbid: r#"action == Action::"connect", resource"#,
        pulled: |change| matches!(change, Change::Disconnect(_)),
        given_back: |change| matches!(change, Change::Reconnect(_)),
        // On a connection that is open; a new one once that fails.
        probe: Some(|open| {
            let open_still = |mut flow: &File| matches!(flow.read(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock);
            reopened(open, open_still, || {
                let server = std::fs::read_to_string("/tree/server").ok()?;
                let flow = TcpStream::connect(server).ok()?;
                flow.set_nonblocking(true).ok()?;
                Some(OwnedFd::from(flow).into())
            })
        }),
        floor: ("shutdown(2)", floor::shut),
    },
    Lever {
        name: "exec",
        forbid: r#"action == Action::"exec", resource"#,
        pulled: |change| *change == Change::Exec(false),
        given_back: |change| *change == Change::Exec(true),
        probe: Some(STARTS),
        floor: ("a store to memory", floor::store),
    },
    Lever {
        name: "tighten",
        forbid: "",
        pulled: |change| matches!(change, Change::Tighten(_)),
        given_back: NEVER,
        probe: Some(STARTS),
        floor: ("landlock_restrict_self(2), seccomp(2)", floor::confine),
    },
    Lever {
        name: "resources",
        forbid: r#"action == Action::"use", resource"#,
        pulled: |change| matches!(change, Change::Limit(_)),
        given_back: |change| *change == Change::Limit(Tier::Full),
        // The reduced tier has no room for another thread.
        probe: Some(|_| {
            let thread = std::thread::Builder::new().stack_size(64 << 10);
            // Likewise with threads that ended.
            std::thread::sleep(PAUSE);
            thread
                .spawn(|| {})
                .is_ok_and(|thread| thread.join().is_ok())
        }),
        floor: ("a write(2) to a cgroup", floor::limit),
    },
    Lever {
        name: "freeze",
        forbid: r#"action == Action::"proceed", resource"#,
        pulled: |change| matches!(change, Change::Freeze(true)),
        given_back: |change| *change == Change::Freeze(false),
        probe: None,
        floor: ("kill(2) until it stopped", floor::stop),
    },
    Lever {
        name: "stop",
        forbid: r#"action == Action::"live", resource"#,
        pulled: |change| matches!(change, Change::Stop),
        given_back: NEVER,
        probe: None,
        floor: ("kill(2) until it is dead", floor::kill),
    },
];

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [probe, name] = &arguments[..]
        && probe == "--probe"
    {
        return work(name);
    }
    // `cargo test --all-targets` runs benches too, with this flag left out: then a few rounds suffice.
    let number = arguments.iter().find_map(|word| word.parse().ok());
    let rounds = match arguments.iter().any(|arg| arg == "--bench") {
        true => number.unwrap_or(1000),
        false => 3,
    };
    let chosen = |lever: &&Lever| {
        let mut words = arguments
            .iter()
            .filter(|arg| !arg.starts_with('-') && arg.parse::<u32>().is_err())
            .peekable();
        words.peek().is_none() || words.any(|word| lever.name.contains(word.as_str()))
    };
    let room = Room::new()?;
    print(
        "one durable write",
        &mut durable_writes(room.folder.path(), rounds)?,
    );
    for loaded in [false, true] {
        println!(
            "\n{}",
            if loaded {
                "one core busy with something else"
            } else {
                "idle"
            }
        );
        let over = Arc::new(AtomicBool::new(false));
        let load = loaded.then(|| {
            let over = Arc::clone(&over);
            std::thread::spawn(move || while !over.load(Ordering::Relaxed) {})
        });
        for lever in LEVERS.iter().filter(chosen) {
            match measure(&room, lever, rounds) {
                Ok((mut whole, mut alone)) => {
                    print(lever.name, &mut whole);
                    print("  the lever alone", &mut alone);
                    let (what, floor) = lever.floor;
                    match floor(rounds) {
                        Ok(mut times) => print(&format!("  {what}"), &mut times),
                        Err(error) => println!("  {what}: not measured here: {error}"),
                    }
                }
                Err(error) => println!("{:<20} not measured here: {error}", lever.name),
            }
        }
        over.store(true, Ordering::Relaxed);
        load.map(std::thread::JoinHandle::join);
    }
    Ok(())
}

/// The workload: does what the lever takes away, and tells when that begins and ends to fail.
fn work(name: &str) -> Result<()> {
    let lever = LEVERS
        .iter()
        .find(|lever| lever.name == name)
        .ok_or("no such lever")?;
    let Some(probe) = lever.probe else {
        let clock = File::options().write(true).open("/clock/now")?;
        println!("true {}", monotonic());
        loop {
            clock.write_all_at(&monotonic().to_ne_bytes(), 0)?;
        }
    };
    let (mut open, mut before) = (None, None);
    let mut output = std::io::stdout().lock();
    loop {
        let works = probe(&mut open);
        if before.replace(works) != Some(works) {
            writeln!(output, "{works} {}", monotonic())?;
            output.flush()?;
        }
        if !works {
            // What fails is asked for now and then: a name that is not there, looked up as fast as can be,
            // leaves the kernel so much to clean up that everybody waits for that.
            std::thread::sleep(PAUSE);
        }
    }
}

/// Nanoseconds of the one clock that both sides read.
fn monotonic() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// What is left of a sandbox, namespaces above all, is gone by then.
const REST: Duration = Duration::from_millis(20);
/// What a sandbox' start leaves is less.
const A_MOMENT: Duration = Duration::from_millis(5);

/// Only a hang takes so long.
const LONG: Duration = Duration::from_secs(10);

/// What the runs share: folders, a vault, this program where a sandbox can have it.
struct Room {
    folder: tempfile::TempDir,
    key: [u8; 32],
}

impl Room {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = folder.path();
        for name in ["work", "clock", "logs"] {
            std::fs::create_dir(path.join(name))?;
        }
        std::fs::write(path.join("work/file"), "here")?;
        std::fs::write(path.join("clock/now"), [0; 8])?;
        let server = TcpListener::bind("127.0.0.1:0")?;
        std::fs::write(path.join("work/server"), server.local_addr()?.to_string())?;
        std::thread::spawn(move || {
            // The newest connection is kept, and waits.
            let mut _kept = None;
            for flow in server.incoming() {
                _kept = Some(flow);
            }
        });
        std::fs::copy(std::env::current_exe()?, path.join("probe"))?;
        let key = [7; 32];
        let kek = Released::take(&mut key.clone())?;
        let mut vault = Vault::create(
            &path.join("customers.vault"),
            &kek,
            CreateOptions::default(),
        )?;
        vault.put("customers.csv", &[b'x'; 4096][..])?;
        Ok(Self { folder, key })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn policy(&self, lever: &Lever) -> Result<Bundle> {
        let Lever { name, forbid, .. } = lever;
        let data = if *name == "data" {
            "customers = { vault = \"customers.vault\", at = \"/data\", access = \"read\", \
             key = \"file:customers.key\" }"
        } else {
            ""
        };
        let connect = match *name {
            "network" => format!("{:?}", std::fs::read_to_string(self.path("work/server"))?),
            _ => String::new(),
        };
        let rule = match *forbid {
            "" => String::new(),
            _ => format!("forbid (principal, {forbid}) when {{ context.risk >= 20 }};"),
        };
        let text = format!(
            "version = 1\nname = \"bench\"\n[attestation]\naccept = [\"simulated\"]\nmax-age = \"10m\"\n\
             reference-values = \"reference.json\"\n\
             [workload]\ncommand = [\"/probe\", \"--probe\", \"{name}\"]\n\
             [isolation]\nmemory = \"256MiB\"\npids = 16\ncpu = 1.0\n\
             [isolation.reduced]\npids = 1\n\
             [files]\nread = [{{ from = \"probe\", at = \"/probe\" }}]\n\
             write = [{{ from = \"work\", at = \"/tree\" }}, {{ from = \"clock\", at = \"/clock\" }}]\n\
             [network]\nconnect = [{connect}]\n[data]\n{data}\n[risk]\nfalls-after = \"20ms\"\n\
             operator = {{ adds = 30, half-life = \"10ms\" }}\n\
             [rules]\ncedar = '''\npermit (principal, action, resource);\n{rule}\n'''\n"
        );
        Ok(Bundle::parse(&text, "bench")?)
    }
}

/// A run: how to signal it, what it recorded, what it printed.
struct Run {
    handle: Handle,
    records: Receiver<Record>,
    output: Receiver<(bool, u64)>,
    thread: std::thread::JoinHandle<std::result::Result<(), String>>,
}

impl Run {
    fn start(room: &Room, lever: &Lever) -> Result<Self> {
        let tee = SimulatedTee::new(SystemTime::now().into())?;
        let verifier = || -> Result<Verifier> {
            let values = tee.reference_values();
            let verifier = VerifierBuilder::reference_values(Verifier::builder(), values);
            Ok(verifier.dangerous().accept_simulated().build()?)
        };
        let (ours, theirs) = verifier().and_then(|ours| Ok((ours, verifier()?)))?;
        let key = Zeroizing::new(room.key.to_vec());
        let broker = Broker::builder(theirs)
            .resource("customers", key, ReleasePolicy::default())
            .build();
        let logs = room.path("logs");
        let log = logs.join(std::fs::read_dir(&logs)?.count().to_string());
        let log = Log::create(&log, "bench", LogKey::generate()?)?;
        let null = || File::options().read(true).write(true).open("/dev/null");
        let (output, stdout) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (told, records) = mpsc::channel();
        let session = Session::builder(room.policy(lever)?)
            .base(room.folder.path())
            .attested_by(Box::new(tee), ours)
            .keys_from(Here(broker))
            .stdio(OwnedFd::from(null()?), stdout, null()?.into())
            .watched_by(move |record, _| {
                let _ = told.send(record.clone());
            })
            .logged_to(log)?;
        let (said, heard) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(File::from(output))
                .lines()
                .map_while(|line| line.ok())
            {
                let state = line
                    .split_once(' ')
                    .and_then(|(state, at)| Some((state == "true", at.parse().ok()?)));
                let _ = state.map(|state| said.send(state));
            }
        });
        Ok(Self {
            handle: session.handle(),
            records,
            output: heard,
            thread: std::thread::spawn(move || {
                session.run().map(drop).map_err(|error| error.to_string())
            }),
        })
    }

    /// Waits until what the lever takes away works, or fails, after this time: when that was. `None` when
    /// it never did: on a busy machine the workload may not have run while the lever was pulled.
    fn until(&mut self, works: bool, after: u64, within: Duration) -> Result<Option<u64>> {
        loop {
            match self.output.recv_timeout(within) {
                Ok((state, at)) if state == works && at >= after => return Ok(Some(at)),
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Timeout) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until a change was made, and for how long that took after its record was durable.
    fn made(&self, wanted: impl Fn(&Change) -> bool) -> Result<Duration> {
        loop {
            match self.records.recv_timeout(LONG)? {
                Record::Adjusted { change, micros } if wanted(&change) => {
                    return Ok(Duration::from_micros(micros));
                }
                Record::NotAdjusted { error, .. } => return Err(error.into()),
                _ => {}
            }
        }
    }

    fn end(self) -> Result<()> {
        self.handle.kill(15);
        self.handle.kill(15);
        Ok(self.thread.join().map_err(|_| "the session panicked")??)
    }
}

/// Times from signal to enforced, and of the lever alone.
fn measure(room: &Room, lever: &Lever, rounds: u32) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let (mut whole, mut alone) = (Vec::new(), Vec::new());
    let took = |from: u64, to: u64| Duration::from_nanos(to.saturating_sub(from));
    let last_wrote = || -> Result<u64> {
        let mut bytes = [0; 8];
        File::open(room.path("clock/now"))?.read_exact_at(&mut bytes, 0)?;
        Ok(u64::from_ne_bytes(bytes))
    };
    if !lever.returns() {
        for _ in 0..rounds {
            // The kernel goes on for a while to clean up after the sandbox before.
            std::thread::sleep(REST);
            let mut run = Run::start(room, lever)?;
            run.until(true, 0, LONG)?;
            // And after its start.
            std::thread::sleep(A_MOMENT);
            let signalled = monotonic();
            match lever.forbid {
                "" => drop(run.handle.tighten(Tightening::Exec, "bench")?),
                _ => run.handle.operator("bench"),
            }
            alone.push(run.made(lever.pulled)?);
            if lever.probe.is_some() {
                let failed = run.until(false, signalled, LONG)?.ok_or("it still works")?;
                whole.push(took(signalled, failed));
                run.end()?;
            } else {
                let ended = run.thread.join().map_err(|_| "the session panicked")?;
                ended?;
                whole.push(took(signalled, last_wrote()?));
            }
        }
        return Ok((whole, alone));
    }
    let mut run = Run::start(room, lever)?;
    run.until(true, 0, LONG)?;
    while whole.len() < rounds as usize {
        let signalled = monotonic();
        run.handle.operator("bench");
        let failed = match lever.probe {
            Some(_) => run.until(false, signalled, Duration::from_millis(300))?,
            None => None,
        };
        let made = run.made(lever.pulled)?;
        let enforced = match lever.probe {
            Some(_) => failed,
            None => Some(last_wrote()?),
        };
        run.made(lever.given_back)?;
        let Some(enforced) = enforced else {
            continue; // Nothing is known of this time.
        };
        alone.push(made);
        whole.push(took(signalled, enforced));
        if lever.probe.is_some() {
            run.until(true, enforced, LONG)?;
        }
    }
    run.end()?;
    Ok((whole, alone))
}

/// A broker in this process.
struct Here(Broker);

impl KeyBroker for Here {
    fn challenge(&mut self, _: &str, now: UnixTime) -> std::result::Result<Nonce, Refusal> {
        self.0.challenge(now).map_err(|error| refusal(&error))
    }

    fn release(
        &mut self,
        evidence: &Evidence,
        challenge: &Challenge,
        resource: &str,
        now: UnixTime,
    ) -> std::result::Result<SealedSecret, Refusal> {
        let released = self.0.release(evidence, challenge, resource, now);
        released
            .map(|released| released.sealed)
            .map_err(|error| refusal(&error))
    }
}

fn refusal(error: &dyn std::error::Error) -> Refusal {
    Refusal {
        code: "refused".into(),
        message: casemate::error::describe(error),
    }
}

/// Times of bare writes of a record's size, each made durable.
fn durable_writes(folder: &Path, rounds: u32) -> Result<Vec<Duration>> {
    let file = File::create(folder.join("floor"))?;
    file.write_all_at(&[0; 1 << 20], 0)?;
    file.sync_all()?;
    (0..rounds)
        .map(|round| {
            let began = Instant::now();
            file.write_all_at(&[1; 4096], u64::from(round) % 256 * 4096)?;
            file.sync_data()?;
            Ok(began.elapsed())
        })
        .collect()
}

fn print(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    println!(
        "{what:<40} p50 {:.3} ms  p90 {:.3} ms  p99 {:.3} ms  ({} times)",
        at(50),
        at(90),
        at(99),
        times.len()
    );
}
