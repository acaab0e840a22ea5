//! What a machine of its own costs: time to the workload's start, cold and from a template; memory; how
//! fast the channel is. Beside it QEMU as it is boots the same kernel, with an `/init` that says hello over
//! virtio-serial and does nothing else, in turns in one run.
//!
//! `cargo build --profile bench -p casemate-guest-agent && cargo bench -p sandboxctl --bench machine`. Needs
//! QEMU and a kernel in `/boot`; without them it says so, and measures nothing. The plain boot is that of the
//! kernel as the distribution packs it; a second one has it unpacked and the processor that machines get
//! here, which is the least that any start from nothing can take.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use casemate::isolation::microvm::machine::COMMAND_LINE;
use casemate::isolation::microvm::{Image, Machine, kernel, warden};
use guest_agent::vm::host::newest_kernel;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const ROUNDS: usize = 9;
/// Bytes that are sent through the channel, each way.
const SENT: usize = 64 << 20;
/// The whole program that a plain machine runs.
const HELLO: &str = "fn main() { println!(\"hello\"); loop { std::thread::park() } }";
const POLICY: &str = r#"
version = 1
name = "bench"
[workload]
command = ["sh", "-c", "SCRIPT"]
[isolation]
backend = "microvm"
memory = "128MiB"
[rules]
cedar = 'permit (principal, action, resource);'
"#;

fn main() -> Result<()> {
    if !std::env::args().any(|arg| arg == "--bench") {
        println!("skipped: run it with `cargo bench`");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let Some(room) = Room::make(folder.path())? else {
        return Ok(());
    };
    let processor = room.argument("-cpu");
    // All that the processor has, as everybody writes it.
    let plain_processor = processor.split(',').next().unwrap_or_default();
    // Makes the template, and warms caches.
    room.start(true)?;
    let [mut plain, mut least] = [Column::new("plain QEMU"), Column::new("  kernel unpacked")];
    let [mut cold, mut warm] = [Column::new("cold"), Column::new("warm")];
    for _ in 0..ROUNDS {
        plain.add(room.plain(&room.kernel, plain_processor)?);
        if let Some(unpacked) = &room.unpacked {
            least.add(room.plain(unpacked, &processor)?);
        }
        cold.add(room.start(false)?);
        warm.add(room.start(true)?);
    }
    println!("{ROUNDS} rounds in turns, median (least) in ms; memory of QEMU in MiB");
    println!(
        "{:<18} {:>14} {:>18} {:>12} {:>12} {:>12}",
        "", "start", "first word", "resident", "share", "own"
    );
    for column in [&plain, &least, &cold, &warm] {
        column.print();
    }
    let boot = plain.start();
    let [cold, warm] = [cold.start(), warm.start()];
    println!(
        "cold / plain {:.2} (bar 1.25)   warm / cold {:.2} (bar 0.20)",
        cold / boot,
        warm / cold
    );
    let [out, into] = room.throughput()?;
    println!("channel: {out:.0} MiB/s out of the workload, {into:.0} MiB/s into it");
    Ok(())
}

/// One start: when the workload ran, when its first word came, and what QEMU holds then.
struct Start {
    started: Duration,
    spoke: Duration,
    /// Resident, its share of what it shares, its own, in KiB.
    memory: [u64; 3],
}

/// All starts of one kind.
struct Column {
    name: &'static str,
    starts: Vec<Start>,
}

impl Column {
    fn new(name: &'static str) -> Self {
        let starts = Vec::new();
        Self { name, starts }
    }

    fn add(&mut self, start: Start) {
        self.starts.push(start);
    }

    /// The median time to the start in milliseconds.
    fn start(&self) -> f64 {
        middle(self.starts.iter().map(|start| ms(start.started))).0
    }

    fn print(&self) {
        if self.starts.is_empty() {
            return;
        }
        let times = |of: fn(&Start) -> Duration| middle(self.starts.iter().map(|s| ms(of(s))));
        let (started, least) = times(|start| start.started);
        let (spoke, spoke_least) = times(|start| start.spoke);
        let memory = |at: usize| {
            let all = self.starts.iter().map(|s| s.memory[at] as f64 / 1024.0);
            middle(all).0
        };
        println!(
            "{:<18} {started:>6.0} ({least:>5.0}) {spoke:>10.0} ({spoke_least:>5.0}) {:>12.0} {:>12.0} {:>12.0}",
            self.name,
            memory(0),
            memory(1),
            memory(2)
        );
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Median and least.
fn middle(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.as_slice() {
        [] => (f64::NAN, f64::NAN),
        some => (some[some.len() / 2], some[0]),
    }
}

/// What is launched, and where.
struct Room {
    folder: PathBuf,
    agent: PathBuf,
    kernel: PathBuf,
    unpacked: Option<PathBuf>,
    hello: PathBuf,
    machine: Machine,
}

impl Room {
    /// `None` where nothing can be launched.
    fn make(folder: &Path) -> Result<Option<Self>> {
        let agent =
            Path::new(env!("CARGO_BIN_EXE_sandboxctl")).with_file_name("casemate-guest-agent");
        let missing = |what: &str| println!("SKIPPED: there is no {what}");
        let Ok(kernel) = newest_kernel() else {
            missing("kernel in /boot: install linux-image-cloud-amd64");
            return Ok(None);
        };
        if !Path::new(warden::QEMU).exists() {
            missing("QEMU: install qemu-system-x86");
            return Ok(None);
        }
        if !agent.exists() {
            missing("agent: `cargo build --profile bench -p casemate-guest-agent`");
            return Ok(None);
        }
        let unpacked = kernel::unpacked(&fs::read(&kernel)?);
        let unpacked = unpacked.map(|bytes| {
            let path = folder.join("vmlinux");
            fs::write(&path, bytes).map(|()| path)
        });
        let room = Self {
            hello: hello(folder)?,
            folder: folder.to_owned(),
            agent,
            kernel,
            unpacked: unpacked.transpose()?,
            // As large as what the policy's machine gets, roughly.
            machine: Machine::sized(128 << 20, 1.0, 30 << 20),
        };
        Ok(Some(room))
    }

    /// The value of one of the arguments that machines are launched with.
    fn argument(&self, name: &str) -> String {
        let arguments = self.machine.arguments();
        let at = arguments.iter().position(|argument| argument == name);
        at.map_or_else(String::new, |at| arguments[at + 1].clone())
    }

    /// QEMU, and nothing around it, until its first word.
    fn plain(&self, kernel: &Path, processor: &str) -> Result<Start> {
        let mut command = Command::new(warden::QEMU);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        for name in ["-machine", "-accel", "-smp", "-m"] {
            command.args([name, &self.argument(name)]);
        }
        command.args(["-cpu", processor]);
        command
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(&self.hello);
        command.args(["-append", &COMMAND_LINE.replace("ttyS0", "hvc0")]);
        command.args(["-chardev", "stdio,id=hello", "-serial", "null"]);
        command.args([
            "-device",
            "virtio-serial-pci",
            "-device",
            "virtconsole,chardev=hello",
        ]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let began = Instant::now();
        let mut child = command.spawn()?;
        let said = until(child.stdout.take().ok_or("no stdout")?, "hello");
        let started = began.elapsed();
        let memory = memory_of(child.id());
        child.kill()?;
        child.wait()?;
        said?;
        Ok(Start {
            started,
            spoke: started,
            memory: memory?,
        })
    }

    /// `sandboxctl run`, until its workload runs.
    fn start(&self, warm: bool) -> Result<Start> {
        let began = Instant::now();
        let mut child = self.run(warm, "echo hello; read end")?;
        let stdout = child.stdout.take().ok_or("no stdout")?;
        let spoke = thread::spawn(move || {
            let said = until(stdout, "hello").map_err(|error| error.to_string());
            said.map(|()| began.elapsed())
        });
        let mut stderr = BufReader::new(child.stderr.take().ok_or("no stderr")?);
        let mut told = String::new();
        let started = loop {
            told.clear();
            if stderr.read_line(&mut told)? == 0 {
                return Err("it did not start".into());
            }
            if told.contains("\"kind\":\"started\"") {
                break began.elapsed();
            }
        };
        let spoke = spoke.join().map_err(|_| "no word")??;
        let memory = memory_of(machine_of(child.id())?);
        drop(child.stdin.take());
        stderr.read_to_string(&mut told)?;
        child.wait()?;
        Ok(Start {
            started,
            spoke,
            memory: memory?,
        })
    }

    fn run(&self, warm: bool, script: &str) -> Result<Child> {
        let policy = self.folder.join("policy.toml");
        fs::write(&policy, POLICY.replace("SCRIPT", script))?;
        for log in ["log", "log.machine"] {
            let _ = fs::remove_dir_all(self.folder.join(log));
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandboxctl"));
        command
            .args(["run", "--json", "--log"])
            .arg(self.folder.join("log"));
        command.arg("--agent").arg(&self.agent);
        if warm {
            command
                .arg("--warm")
                .arg("--templates")
                .arg(self.folder.join("templates"));
        }
        command.arg(policy);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Ok(command.spawn()?)
    }

    /// MiB per second out of the workload, and into it.
    fn throughput(&self) -> Result<[f64; 2]> {
        let rate = |time: Duration| SENT as f64 / f64::from(1 << 20) / time.as_secs_f64();
        let script = format!("head -c {SENT} /dev/zero");
        let mut child = self.run(true, &script)?;
        drain(&mut child);
        let mut stdout = child.stdout.take().ok_or("no stdout")?;
        let mut piece = vec![0; 64 << 10];
        let mut came = stdout.read(&mut piece)?;
        let began = Instant::now();
        while let read @ 1.. = stdout.read(&mut piece)? {
            came += read;
        }
        let out = rate(began.elapsed());
        child.wait()?;
        if came != SENT {
            return Err(format!("{came} bytes came of {SENT}").into());
        }

        let mut child = self.run(true, "echo hello; cat > /dev/null; echo done")?;
        drain(&mut child);
        let mut stdout = child.stdout.take().ok_or("no stdout")?;
        until(&mut stdout, "hello")?;
        let began = Instant::now();
        let mut stdin = child.stdin.take().ok_or("no stdin")?;
        stdin.write_all(&vec![0; SENT])?;
        drop(stdin);
        until(&mut stdout, "done")?;
        let into = rate(began.elapsed());
        child.wait()?;
        Ok([out, into])
    }
}

/// Builds the plain machine's initial RAM disk.
fn hello(folder: &Path) -> Result<PathBuf> {
    let (source, program) = (folder.join("hello.rs"), folder.join("hello"));
    fs::write(&source, HELLO)?;
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut command = Command::new(rustc);
    command.args(["-O", "-C", "panic=abort", "-C", "strip=symbols"]);
    command.args(["-C", "target-feature=+crt-static", "-o"]);
    if !command.arg(&program).arg(source).status()?.success() {
        return Err("the plain machine's program does not build".into());
    }
    let path = folder.join("hello.cpio");
    Image::new(&program)?.write(&mut fs::File::create(&path)?)?;
    Ok(path)
}

/// Reads until this was said.
fn until(mut from: impl Read, word: &str) -> Result<()> {
    let (mut said, mut piece) = (String::new(), [0; 256]);
    while !said.contains(word) {
        match from.read(&mut piece)? {
            0 => return Err(format!("it ended: {said}").into()),
            read => said += &String::from_utf8_lossy(&piece[..read]),
        }
    }
    Ok(())
}

/// Reads what is not looked at, so that nobody waits for it.
fn drain(child: &mut Child) {
    if let Some(mut stderr) = child.stderr.take() {
        thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
    }
}

/// QEMU below this process.
fn machine_of(supervisor: u32) -> Result<u32> {
    for task in fs::read_dir(format!("/proc/{supervisor}/task"))?.flatten() {
        let children = fs::read_to_string(task.path().join("children"))?;
        for child in children.split_whitespace() {
            let program = fs::read_link(format!("/proc/{child}/exe"));
            if program.is_ok_and(|program| program == Path::new(warden::QEMU)) {
                return Ok(child.parse()?);
            }
        }
    }
    Err("there is no machine".into())
}

fn memory_of(pid: u32) -> Result<[u64; 3]> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let sum = |names: &[&str]| -> u64 {
        let lines = rollup.lines().filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            names.contains(&name).then_some(value)
        });
        let values = lines.filter_map(|value| value.split_whitespace().next()?.parse::<u64>().ok());
        values.sum()
    };
    Ok([
        sum(&["Rss"]),
        sum(&["Pss"]),
        sum(&["Private_Clean", "Private_Dirty"]),
    ])
}
