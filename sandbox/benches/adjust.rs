//! How long it takes from a signal to its being enforced on the running workload.
//!
//! `cargo bench -p casemate --bench adjust`. An operator's signal raises the risk, a rule takes the full
//! tier of resources away, the risk fades, the tier comes back, and again. The time runs from the
//! signal to the moment at which the new limits are in force, with the decision and the durable record
//! before it. Printed beside it: one bare durable write of the same disk, which no record can beat.
//! Needs a cgroup (root); without one it says so.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant, SystemTime};

use attestation::{SimulatedTee, Verifier};
use casemate::Session;
use casemate::adjust::Change;
use casemate::event::Clock;
use casemate::plan::Tier;
use casemate::record::Record;
use policy::Bundle;
use vault::audit::{Log, LogKey};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const POLICY: &str = r#"
version = 1
name = "bench"
[attestation]
accept = ["simulated"]
max-age = "10m"
[workload]
command = ["sh", "-c", "while :; do :; done"]
[isolation]
memory = "64MiB"
pids = 16
cpu = 1.0
[risk]
falls-after = "1ms"
operator = { adds = 30, half-life = "10ms" }
[rules]
cedar = """
permit (principal, action, resource);
forbid (principal, action == Action::"use", resource) when { context.risk >= 20 };
"""
"#;

fn main() -> Result<()> {
    // `cargo test --all-targets` runs benches too, with this flag left out: then a few rounds suffice.
    let rounds = if std::env::args().any(|arg| arg == "--bench") {
        300
    } else {
        3
    };
    let folder = tempfile::tempdir()?;
    let log = Log::create(&folder.path().join("log"), "bench", LogKey::generate()?)?;
    let tee = SimulatedTee::new(SystemTime::now().into())?;
    let verifier = Verifier::builder()
        .reference_values(tee.reference_values())
        .dangerous()
        .accept_simulated();
    let null = || File::options().read(true).write(true).open("/dev/null");
    let (told, seen) = mpsc::channel();
    let session = Session::builder(Bundle::parse(POLICY, "bench")?)
        .attested_by(Box::new(tee), verifier.build()?)
        .stdio(null()?.into(), null()?.into(), null()?.into())
        .watched_by(move |record, at| {
            let _ = told.send((record.clone(), at));
        })
        .logged_to(log)?;
    let handle = session.handle();
    let clock = Clock::start();
    let running = std::thread::spawn(move || session.run().map_err(|error| error.to_string()));
    let reached = |wanted: &dyn Fn(&Record) -> bool| {
        seen.iter()
            .find(|(record, _)| wanted(record))
            .map(|(_, at)| at)
    };
    let limited = |tier| move |record: &Record| matches!(record, Record::Adjusted { change: Change::Limit(to), .. } if *to == tier);
    reached(&|record| matches!(record, Record::Started));
    let mut times = Vec::new();
    for _ in 0..rounds {
        let signalled = clock.now();
        handle.operator("bench");
        let Some(at) = reached(&limited(Tier::Reduced)) else {
            break;
        };
        times.push(at.saturating_sub(signalled));
        if reached(&limited(Tier::Full)).is_none() {
            break;
        }
    }
    handle.kill(15);
    handle.kill(15);
    let ended = running.join().map_err(|_| "the session panicked")?;
    if times.is_empty() {
        println!("no cgroup here, so no limits can be changed: {ended:?}");
        return Ok(());
    }
    print("signal to enforced", &mut times);
    print(
        "one durable write",
        &mut durable_writes(folder.path(), rounds)?,
    );
    Ok(())
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
        "{what:<20} p50 {:.2} ms  p90 {:.2} ms  p99 {:.2} ms",
        at(50),
        at(90),
        at(99)
    );
}
