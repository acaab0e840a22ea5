//! What a whole start costs: a static `true` under every layer, as a ratio to plain fork+exec+wait of
//! the same program, measured in turns in one run.
//!
//! `cargo bench -p casemate --bench start`. Prints medians and ratios for the library (evidence, key
//! release, vault, launch, run, log and clean-up; everything from nothing) and, when a built
//! `sandboxctl` lies beside, for the command. Read the ratios: noise is large on small machines.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use attestation::{SimulatedTee, UnixTime, Verifier};
use casemate::Session;
use casemate::isolation::child::Ending;
use guest_agent::local_broker::LocalBroker;
use policy::Bundle;
use vault::audit::{Log, LogKey};
use vault::kek::Released;
use zeroize::Zeroizing;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const KEY: [u8; 32] = [7; 32];

fn main() -> Result<()> {
    // `cargo test --all-targets` runs benches too, with this flag left out: then one round is enough.
    let rounds = if std::env::args().any(|arg| arg == "--bench") {
        31
    } else {
        1
    };
    let folder = tempfile::tempdir()?;
    let room = Room::make(folder.path())?;
    let command = beside("sandboxctl");
    let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for round in 0..rounds {
        times
            .entry("1 fork+exec")
            .or_default()
            .push(timed(|| room.plain())?);
        times
            .entry("2 library")
            .or_default()
            .push(timed(|| room.library(round))?);
        if let Some(command) = &command {
            times
                .entry("3 sandboxctl run")
                .or_default()
                .push(timed(|| room.command(command, round))?);
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e6
    };
    let floor = times.get_mut("1 fork+exec").map_or(1.0, median);
    println!(
        "{:<18} {:>10} {:>8}   ({rounds} rounds in turns)",
        "", "median µs", "ratio"
    );
    for (name, times) in &mut times {
        let median = median(times);
        println!("{:<18} {median:>10.0} {:>8.2}", &name[2..], median / floor);
    }
    if command.is_none() {
        println!(
            "no `sandboxctl` of this profile: `cargo build --profile bench -p sandboxctl` adds it"
        );
    }
    Ok(())
}

fn timed(run: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let began = Instant::now();
    run()?;
    Ok(began.elapsed())
}

/// A program of the same build as this bench.
fn beside(name: &str) -> Option<PathBuf> {
    let path = std::env::current_exe().ok()?.parent()?.parent()?.join(name);
    path.exists().then_some(path)
}

struct Room {
    folder: PathBuf,
    bundle: Bundle,
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
        Ok(Self {
            folder: folder.to_owned(),
            bundle,
        })
    }

    fn plain(&self) -> Result<()> {
        assert!(
            Command::new(self.folder.join("app/true"))
                .status()?
                .success()
        );
        Ok(())
    }

    fn library(&self, round: u32) -> Result<()> {
        let log = Log::create(
            &self.folder.join(format!("log-{round}")),
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
