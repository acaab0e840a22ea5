//! What a start costs: a static `true`, from nothing to nothing, as a ratio to plain fork+exec+wait of
//! the same program, measured in turns in one run.
//!
//! `cargo bench -p casemate --bench start`. Beside the sandbox (every namespace, cgroup limits, root file
//! system, no capabilities, Landlock, filter with a listener) stand the same steps in bare system calls
//! ([`bare`]), which nothing that does these steps can beat; other tools as far as they are installed
//! ([`peers`]); and a whole session, with evidence, key release, vault and log. Then the same from a
//! process that holds 1 GiB; a thousand sandboxes by two workers; and what is held before and after. Read
//! the ratios: noise is large on small machines.

#[path = "start/bare.rs"]
mod bare;
#[path = "start/held.rs"]
mod held;
#[path = "start/kernel.rs"]
mod kernel;
#[path = "start/peers.rs"]
mod peers;
#[path = "start/table.rs"]
mod table;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use attestation::{SimulatedTee, UnixTime, Verifier};
use casemate::Session;
use casemate::event::Event;
use casemate::isolation::cgroup::Limits;
use casemate::isolation::child::Ending;
use casemate::isolation::container::Container;
use casemate::isolation::floor::Floor;
use casemate::isolation::nursery::Nursery;
use casemate::isolation::pool::Pool;
use casemate::isolation::{Backend, Launch};
use casemate::plan::{self, Plan, Tier};
use guest_agent::local_broker::LocalBroker;
use policy::Bundle;
use vault::audit::{Log, LogKey};
use vault::kek::Released;
use zeroize::Zeroizing;

use bare::Bare;
use held::Held;
use table::{Steps, Table};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const KEY: [u8; 32] = [7; 32];

fn main() -> Result<()> {
    // `cargo test --all-targets` runs benches too, with this flag left out: then one round is enough.
    let measuring = std::env::args().any(|arg| arg == "--bench");
    let rounds = if measuring { 31 } else { 1 };
    let folder = tempfile::tempdir()?;
    let room = Room::make(folder.path())?;
    let mut peers = match measuring {
        true => peers::all(folder.path())?,
        false => Vec::new(),
    };
    let before = Held::now()?;
    in_turns(&room, &mut peers, rounds)?;
    if measuring {
        let memory = vec![1u8; 1 << 30];
        println!(
            "\nfrom a process that holds {} MiB:",
            std::hint::black_box(&memory).len() >> 20
        );
        in_turns(&room, &mut [], rounds)?;
        drop(memory);
        throughput(&room)?;
    }
    let after = Held::now()?;
    println!("\nheld before: {before}\nheld after:  {after}");
    Ok(())
}

/// Runs each way to start the program, one after the other, so many times.
fn in_turns(room: &Room, peers: &mut [peers::Peer], rounds: u32) -> Result<()> {
    let command = beside("sandboxctl");
    let nursery = Nursery::start()?;
    let pool = Pool::start(Nursery::start()?, room.floor.clone(), room.limits, 1)?;
    let mut steps = Steps::default();
    let mut table = Table::default();
    for round in 0..rounds {
        table.add("fork+exec", || room.plain())?;
        table.add("floor: bare system calls", || room.bare.start())?;
        let began = Instant::now();
        room.launch(nursery.container()?, Some(&mut steps), began)?;
        table.push("casemate, cold", began.elapsed());
        let began = Instant::now();
        room.launch(Container::prepare()?, None, began)?;
        table.push("casemate, first in its process", began.elapsed());
        pool.wait_until_full()?;
        let began = Instant::now();
        let ended = room.launch(pool.backend(), None, began)?;
        table.push("casemate, pool, until its end is known", ended);
        table.push("casemate, pool, until nothing is left", began.elapsed());
        for peer in &mut *peers {
            table.add(peer.name, || peer.start())?;
        }
        if !peers.is_empty() || rounds == 1 {
            table.add("session: evidence, keys, vault, log", || room.library())?;
            if let Some(command) = &command {
                table.add("sandboxctl run", || room.command(command, round))?;
            }
        }
    }
    table.print(rounds);
    steps.print();
    if command.is_none() && !peers.is_empty() {
        println!(
            "no `sandboxctl` of this profile: `cargo build --profile bench -p sandboxctl` adds it"
        );
    }
    Ok(())
}

/// A thousand sandboxes in a row by two threads.
fn throughput(room: &Room) -> Result<()> {
    const STARTS: usize = 1000;
    let (nursery, begun) = (Nursery::start()?, AtomicUsize::new(0));
    let began = Instant::now();
    let work = || -> std::result::Result<(), String> {
        while begun.fetch_add(1, Ordering::Relaxed) < STARTS {
            let container = nursery.container().map_err(|e| e.to_string())?;
            room.launch(container, None, Instant::now())
                .map_err(|e| e.to_string())?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers = [scope.spawn(work), scope.spawn(work)];
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().map_err(|_| "a worker panicked".to_owned())?)
    })?;
    let seconds = began.elapsed().as_secs_f64();
    println!(
        "\n{STARTS} sandboxes, 2 workers: {:.0} per second",
        STARTS as f64 / seconds
    );
    Ok(())
}

/// A program of the same build as this bench.
fn beside(name: &str) -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.parent()?.parent()?.join(name);
    path.exists().then_some(path)
}

struct Room {
    folder: PathBuf,
    bundle: Bundle,
    /// What the sandbox without a session around it gets: the same but for the vault.
    floor: Floor,
    limits: Limits,
    bare: Bare,
    sessions: AtomicU32,
}

impl Room {
    fn make(folder: &Path) -> Result<Self> {
        fs::create_dir(folder.join("app"))?;
        let source = folder.join("true.c");
        fs::write(&source, "int main(void) { return 0; }\n")?;
        let built = Command::new("cc")
            .args(["-static", "-O2", "-o"])
            .args([&folder.join("app/true"), &source])
            .status()?;
        assert!(
            built.success(),
            "a C compiler is needed for the static `true`"
        );
        vault::Vault::create(
            &folder.join("data.vault"),
            &Released::take(&mut KEY.clone())?,
            Default::default(),
        )?
        .put("object", &b"data"[..])?;
        let digits: String = KEY.iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(folder.join("data.key"), digits)?;
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(folder.join("data.key"), fs::Permissions::from_mode(0o600))?;
        let reference = SimulatedTee::new(now())?.reference_values();
        fs::write(folder.join("reference.json"), reference.to_json())?;
        fs::write(folder.join("policy.toml"), POLICY)?;
        let bundle = Bundle::parse(POLICY, "policy.toml")?;
        let granted = Plan {
            exec: true,
            files: [("/app".to_owned(), plan::FileAccess::Read)].into(),
            ..Plan::default()
        };
        let floor = plan::floor(&bundle, &granted, folder, &Default::default())?;
        let limits = plan::limits(bundle.tables(), Tier::Full);
        Ok(Self {
            folder: folder.to_owned(),
            bundle,
            bare: Bare::of(&floor, &limits)?,
            floor,
            limits,
            sessions: AtomicU32::new(0),
        })
    }

    /// Starts the program in a sandbox. Returns the time until its end was known; afterwards nothing is
    /// left of it.
    fn launch(
        &self,
        backend: impl Backend,
        steps: Option<&mut Steps>,
        began: Instant,
    ) -> Result<Duration> {
        let prepared = began.elapsed();
        let (events, heard) = mpsc::sync_channel(8);
        let null = || File::options().read(true).write(true).open("/dev/null");
        let mut instance = Box::new(backend).launch(Launch {
            floor: &self.floor,
            limits: self.limits,
            stdio: [null()?.into(), null()?.into(), null()?.into()],
            gate: None,
            serve: &mut |_, _| Err(unserved()),
            connect: &[],
            events,
        })?;
        let launched = began.elapsed();
        instance.start()?;
        match heard.recv()? {
            Event::Ended(Ending::Code(0)) => {}
            other => return Err(format!("the program ended otherwise: {other:?}").into()),
        }
        let ended = began.elapsed();
        drop(instance);
        if let Some(steps) = steps {
            steps.push([prepared, launched, ended, began.elapsed()]);
        }
        Ok(ended)
    }

    fn plain(&self) -> Result<()> {
        assert!(
            Command::new(self.folder.join("app/true"))
                .status()?
                .success()
        );
        Ok(())
    }

    fn library(&self) -> Result<()> {
        let number = self.sessions.fetch_add(1, Ordering::Relaxed);
        let log = Log::create(
            &self.folder.join(format!("log-{number}")),
            "bench",
            LogKey::generate()?,
        )?;
        let tee = SimulatedTee::new(now())?;
        let verifier = || {
            let builder = Verifier::builder().reference_values(tee.reference_values());
            builder.dangerous().accept_simulated().build()
        };
        let keys = [("data".to_owned(), Zeroizing::new(KEY.to_vec()))].into();
        let broker = LocalBroker::new(verifier()?, keys, self.bundle.digest());
        let null = || File::options().read(true).write(true).open("/dev/null");
        let verifier = verifier()?;
        let outcome = Session::builder(self.bundle.clone())
            .base(&self.folder)
            .attested_by(Box::new(tee), verifier)
            .keys_from(broker)
            .stdio(null()?.into(), null()?.into(), null()?.into())
            .logged_to(log)?
            .run()?;
        assert_eq!(outcome.ending, Ending::Code(0));
        Ok(())
    }

    fn command(&self, sandboxctl: &Path, round: u32) -> Result<()> {
        let status = Command::new(sandboxctl)
            .args(["run", "--quiet", "--dangerously-accept-simulated", "--log"])
            .arg(self.folder.join(format!("log-command-{round}")))
            .arg(self.folder.join("policy.toml"))
            .stdin(Stdio::null())
            .status()?;
        assert!(status.success());
        Ok(())
    }
}

fn unserved() -> casemate::isolation::spawner::Failure {
    casemate::isolation::spawner::Failure {
        step: "serving a vault".into(),
        error: "there is none".into(),
        errno: None,
    }
}

fn now() -> UnixTime {
    SystemTime::now().into()
}

const POLICY: &str = r#"
version = 1
name = "bench"

[attestation]
accept = ["simulated"]
max-age = "10m"
reference-values = "reference.json"

[workload]
command = ["/app/true"]

[isolation]
memory = "64MiB"
pids = 16

[files]
read = [{ from = "app", at = "/app" }]

[data]
data = { vault = "data.vault", at = "/data", access = "read", key = "file:data.key" }

[rules]
cedar = """
permit (principal, action, resource);
forbid (principal, action == Action::"live", resource) when { context.risk >= 80 };
"""
"#;
