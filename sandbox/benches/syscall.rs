//! What a system call costs inside a sandbox.
//!
//! `cargo bench -p casemate --bench syscall`. The workload is this program once more, which makes each call
//! many times and tells its median. It runs in turns
//!
//! - as a plain process;
//! - in the same sandbox, but with a filter of one instruction that allows everything: what the kernel
//!   itself asks for having a filter and a Landlock domain at all;
//! - in the sandbox, under the `default` profile;
//! - in a sandbox whose calls `execve` and `connect` are behind levers.
//!
//! What is behind no lever is to cost what it costs under the one instruction. What is behind one is
//! answered by a process outside: beside it stand the figures of others who do the same, as ratios to their
//! own plain process.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

use casemate::event::Event;
use casemate::isolation::child::Ending;
use casemate::isolation::floor::Floor;
use casemate::isolation::nursery::Nursery;
use casemate::isolation::spawner::Failure;
use casemate::isolation::{Backend, Launch};
use casemate::lever::exec::Gate;
use casemate::plan::{self, FileAccess, Plan, Tier};
use policy::Bundle;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The filter that allows everything: `return SECCOMP_RET_ALLOW`.
const ALLOW_ALL: &str = "[[6,0,0,2147418112]]";

/// What is measured, and how often in one batch.
const CALLS: [(&str, u32); 7] = [
    ("getpid", 20_000),
    ("read 4 KiB", 5_000),
    ("write 4 KiB", 5_000),
    ("openat+close", 2_000),
    ("stat", 5_000),
    ("fork+exec+wait", 40),
    ("connect+close", 100),
];
const BATCHES: usize = 9;

/// Ratios that others have to their plain process where a supervisor answers the call: measured on a
/// machine of the same kind, with the version that is named.
const OTHERS: [(&str, &str); 2] = [
    (
        "fork+exec+wait",
        "gVisor (ptrace, 2022) 9.8, sandlock 0.9 2.2, syd 3.59 1.0",
    ),
    (
        "connect+close",
        "openat as the nearest: gVisor 17, syd 3.59 10.8, sandlock 0.9 9.8",
    ),
];

fn main() -> Result<()> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [role, folder, server] = &arguments[..]
        && role == "--calls"
    {
        return calls(Path::new(folder), server);
    }
    // `cargo test --all-targets` runs benches too, with this flag left out.
    let rounds = match arguments.iter().any(|arg| arg == "--bench") {
        true => 9,
        false => 1,
    };
    let server = TcpListener::bind("127.0.0.1:0")?;
    let address = server.local_addr()?.to_string();
    std::thread::spawn(move || server.incoming().for_each(drop));
    let folder = tempfile::tempdir()?;
    let room = Room::make(folder.path(), &address)?;
    let mut times: [BTreeMap<String, Vec<f64>>; 4] = Default::default();
    for _ in 0..rounds {
        for (way, times) in times.iter_mut().enumerate() {
            let output = match way {
                0 => room.plain(&address)?,
                1 => room.inside(&room.allowing, None)?,
                2 => room.inside(&room.floor, None)?,
                _ => room.inside(
                    &room.levers,
                    Some(Gate::new(plan::profile(room.asking.tables())?)),
                )?,
            };
            for line in BufReader::new(output).lines() {
                let line = line?;
                let (name, time) = line.split_once('\t').ok_or(line.clone())?;
                times
                    .entry(name.to_owned())
                    .or_default()
                    .push(time.parse()?);
            }
        }
    }
    println!(
        "{:<16} {:>10} {:>12} {:>10} {:>14} {:>12}   ({rounds} rounds in turns, medians in ns)",
        "", "plain", "one allow", "inside", "to one allow", "to plain"
    );
    let [plain, allowing, inside, levers] = times.map(|way| {
        let medians = way
            .into_iter()
            .map(|(name, mut all)| (name, median(&mut all)));
        medians.collect::<BTreeMap<_, _>>()
    });
    for (name, _) in CALLS {
        let at = |way: &BTreeMap<String, f64>| way.get(name).copied().unwrap_or(f64::NAN);
        let (plain, allowing, inside) = (at(&plain), at(&allowing), at(&inside));
        println!(
            "{name:<16} {plain:>10.0} {allowing:>12.0} {inside:>10.0} {:>14.3} {:>12.2}",
            inside / allowing,
            inside / plain
        );
    }
    println!("\nbehind a lever:");
    for (name, others) in OTHERS {
        let at = |way: &BTreeMap<String, f64>| way.get(name).copied().unwrap_or(f64::NAN);
        let (plain, asked) = (at(&plain), at(&levers));
        println!(
            "{name:<16} {asked:>10.0} ns, {:.2} x plain   ({others})",
            asked / plain
        );
    }
    Ok(())
}

struct Room {
    folder: std::path::PathBuf,
    asking: Bundle,
    limits: casemate::isolation::cgroup::Limits,
    floor: Floor,
    allowing: Floor,
    levers: Floor,
}

impl Room {
    fn make(folder: &Path, address: &str) -> Result<Self> {
        fs::create_dir(folder.join("tree"))?;
        fs::write(folder.join("tree/file"), [b'x'; 4096])?;
        fs::set_permissions(
            folder.join("tree"),
            std::os::unix::fs::PermissionsExt::from_mode(0o777),
        )?;
        fs::set_permissions(
            folder.join("tree/file"),
            std::os::unix::fs::PermissionsExt::from_mode(0o666),
        )?;
        fs::create_dir(folder.join("app"))?;
        fs::copy(std::env::current_exe()?, folder.join("app/bench"))?;
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
        let bundle = |rules: &str, network: &str| {
            let text = format!(
                "{POLICY}{network}\n[rules]\ncedar = '''\npermit (principal, action, resource);\n{rules}'''\n"
            );
            Bundle::parse(&text.replace("ADDRESS", address), "policy.toml")
        };
        let plainly = bundle("", "")?;
        let asking = bundle(
            "forbid (principal, action == Action::\"exec\", resource) when { context.risk >= 20 };",
            &format!("[network]\nconnect = [{address:?}]"),
        )?;
        let floor = |bundle: &Bundle| {
            let files = [("/app", FileAccess::Read), ("/tree", FileAccess::Write)];
            let granted = Plan {
                exec: true,
                files: files.map(|(at, access)| (at.to_owned(), access)).into(),
                connect: bundle.tables().network.connect.iter().cloned().collect(),
                ..Plan::default()
            };
            plan::floor(bundle, &granted, folder, &BTreeMap::new())
        };
        let inside = floor(&plainly)?;
        let allow: casemate::syscall::Program = serde_json::from_str(ALLOW_ALL)?;
        Ok(Self {
            folder: folder.to_owned(),
            limits: plan::limits(plainly.tables(), Tier::Full),
            allowing: Floor {
                filter: allow.clone(),
                silent_filter: allow,
                ..inside.clone()
            },
            floor: inside,
            levers: floor(&asking)?,
            asking,
        })
    }

    fn plain(&self, address: &str) -> Result<File> {
        let output = self.output()?;
        let status = Command::new(self.folder.join("app/bench"))
            .args([
                "--calls".as_ref(),
                self.folder.as_os_str(),
                address.as_ref(),
            ])
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .status()?;
        assert!(status.success());
        Ok(File::open(self.folder.join("output"))?)
    }

    fn inside(&self, floor: &Floor, gate: Option<Gate>) -> Result<File> {
        let output = self.output()?;
        let null = || {
            File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .map(OwnedFd::from)
        };
        let (events, heard) = mpsc::sync_channel(64);
        let endpoints = match gate {
            Some(_) => &self.asking.tables().network.connect[..],
            None => &[],
        };
        let connect: Vec<_> = endpoints
            .iter()
            .map(|endpoint| (endpoint.clone(), true))
            .collect();
        let errors = File::create(self.folder.join("errors"))?;
        let mut instance = Box::new(Nursery::start()?.container()?).launch(Launch {
            floor,
            limits: self.limits,
            stdio: [null()?, output.into(), errors.into()],
            gate,
            serve: &mut |_, _| {
                Err(Failure::at("serving a vault")(
                    std::io::ErrorKind::Unsupported.into(),
                ))
            },
            connect: &connect,
            events,
        })?;
        instance.start()?;
        loop {
            match heard.recv()? {
                Event::Ended(Ending::Code(0)) => break,
                Event::Ended(_) | Event::Failed(_) => {
                    return Err(fs::read_to_string(self.folder.join("errors"))?.into());
                }
                _ => {}
            }
        }
        Ok(File::open(self.folder.join("output"))?)
    }

    fn output(&self) -> Result<File> {
        Ok(File::create(self.folder.join("output"))?)
    }
}

/// The workload: each call in batches, and the median of a batch for one call.
fn calls(folder: &Path, server: &str) -> Result<()> {
    let (work, program) = (folder.join("tree/file"), folder.join("app/true"));
    let file = File::options().read(true).write(true).open(&work)?;
    let mut page = [0u8; 4096];
    for (name, times) in CALLS {
        if name.starts_with("connect") && TcpStream::connect(server).is_err() {
            // Not granted here.
            continue;
        }
        let mut batches = Vec::new();
        for _ in 0..BATCHES {
            let began = Instant::now();
            for _ in 0..times {
                match name {
                    "getpid" => {
                        std::hint::black_box(rustix::process::getppid());
                    }
                    "read 4 KiB" => file.read_exact_at(&mut page, 0)?,
                    "write 4 KiB" => file.write_all_at(&page, 0)?,
                    "openat+close" => drop(File::open(&work)?),
                    "stat" => {
                        std::hint::black_box(fs::metadata(&work)?);
                    }
                    "fork+exec+wait" => {
                        assert!(
                            Command::new(&program)
                                .stdin(Stdio::null())
                                .status()?
                                .success()
                        );
                    }
                    _ => drop(TcpStream::connect(server)?),
                }
            }
            batches.push(began.elapsed().as_nanos() as f64 / f64::from(times));
        }
        println!("{name}\t{}", median(&mut batches));
    }
    Ok(())
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

const POLICY: &str = r#"
version = 1
name = "bench"

[attestation]
accept = ["simulated"]
max-age = "10m"
reference-values = "reference.json"

[workload]
command = ["/app/bench", "--calls", "/", "ADDRESS"]

[isolation]
memory = "256MiB"
pids = 64
cpu = 2.0

[files]
read = [{ from = "app", at = "/app" }]
write = [{ from = "tree", at = "/tree" }]
"#;
