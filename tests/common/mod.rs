//! What the stories share: a room to run in, and a run that is watched.
//!
//! ```text
//! Room { vault, key, reference values } ─▶ Setup ─▶ Running ─▶ Told { result, records, output }
//! ```
//!
//! Nothing is mocked: real namespaces, a real vault, a real broker in this process, a real log that is
//! verified after each run. Only the TEE is simulated. Nothing sleeps to let time pass: one waits for
//! a record or for a line of output, until a deadline that only a hang reaches.

#![allow(dead_code, clippy::unwrap_used)]

pub mod rooms;
pub mod sqlite;
mod told;
mod traces;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use attestation::{
    Attester, Challenge, Evidence, Nonce, ReferenceValues, SealedSecret, SimulatedTee,
    SimulatedTeeBuilder, UnixTime, Verifier, VerifierBuilder,
};
use broker::{Broker, ReleasePolicy};
use casemate::record::Record;
use casemate::release::{KeyBroker, Refusal};
use casemate::{Handle, Outcome, Session, SessionError};
use policy::Bundle;
use vault::anchor::FreshnessAnchor;
use vault::audit::{Log, LogKey, LogVerifier};
use vault::kek::Released;
use vault::{CreateOptions, Vault};
use zeroize::Zeroizing;

pub use told::Told;
#[allow(unused_imports)] // Not every story looks for traces.
pub use traces::{Traces, cgroups, cgroups_of, in_session, processes};

/// Name of the log in the checkpoints of these stories.
pub const ORIGIN: &str = "casemate/story";
/// Only a hang takes so long.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// What the vault of a [`Room`] holds, as `customers.csv`.
pub const DATA: &str = "name,region\nAda,north\nGrace,south\n";

/// The time now, as attestation counts it.
pub fn now() -> UnixTime {
    UnixTime(
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs(),
    )
}

/// A well-behaved simulated TEE, to be changed.
pub fn tee() -> SimulatedTeeBuilder {
    SimulatedTee::builder(now())
}

/// Reference values of the guest and platform that [`tee`] simulates.
pub fn reference() -> ReferenceValues {
    SimulatedTee::new(now()).unwrap().reference_values()
}

/// A verifier that affirms [`tee`].
pub fn verifier() -> Verifier {
    VerifierBuilder::reference_values(Verifier::builder(), reference())
        .dangerous()
        .accept_simulated()
        .build()
        .unwrap()
}

/// A folder with a vault, its key, and a place for results.
pub struct Room {
    folder: PathBuf,
    pub key: [u8; 32],
    _temporary: Option<tempfile::TempDir>,
}

impl Room {
    /// A room, or `None` with a printed reason on a host that forbids namespaces.
    pub fn new() -> Option<Self> {
        if let Err(reason) = namespaces() {
            assert!(
                std::env::var_os("CI").is_none(),
                "no namespaces here: {reason}"
            );
            println!("skipped: this host forbids namespaces: {reason}");
            return None;
        }
        let temporary = tempfile::Builder::new().prefix("story-").tempdir().unwrap();
        let mut key = [0; 32];
        rustix::rand::getrandom(&mut key, rustix::rand::GetRandomFlags::empty()).unwrap();
        fs::create_dir(temporary.path().join("out")).unwrap();
        let folder = temporary.path().to_owned();
        let room = Self {
            folder,
            key,
            _temporary: Some(temporary),
        };
        let mut vault =
            Vault::create(&room.vault(), &room.kek(), CreateOptions::default()).unwrap();
        vault.put("customers.csv", DATA.as_bytes()).unwrap();
        Some(room)
    }

    /// The room of another process.
    pub fn at(folder: &Path, key: &str) -> Self {
        let mut bytes = [0; 32];
        for (byte, digits) in bytes.iter_mut().zip(key.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(digits).unwrap(), 16).unwrap();
        }
        Self {
            folder: folder.to_owned(),
            key: bytes,
            _temporary: None,
        }
    }

    pub fn path(&self) -> &Path {
        &self.folder
    }

    /// Folder of the vault.
    pub fn vault(&self) -> PathBuf {
        self.path().join("customers.vault")
    }

    /// What the workload sees as `/out`.
    pub fn out(&self) -> PathBuf {
        self.path().join("out")
    }

    /// A folder for a log that is not there yet.
    pub fn new_log(&self) -> PathBuf {
        let taken = fs::read_dir(self.path()).unwrap().count();
        self.path().join(format!("log-{taken}"))
    }

    pub fn kek(&self) -> Released {
        Released::take(&mut self.key.clone()).unwrap()
    }

    /// A run of this policy with a good TEE, a good verifier and a broker that has the key.
    pub fn setup(&self, policy: &Policy) -> Setup<'_> {
        Setup {
            room: self,
            bundle: policy.bundle(),
            tee: Box::new(tee().build().unwrap()),
            verifier: verifier(),
            broker: Some(Local::new(verifier(), "customers", &self.key)),
            anchor: None,
            watcher: Box::new(|_| {}),
        }
    }

    /// Runs a shell script without data under the default rules, from start to end.
    pub fn run(&self, script: &str) -> Told {
        self.setup(&Policy::shell(script)).run()
    }
}

/// A policy text, assembled.
#[derive(Clone, Debug)]
pub struct Policy {
    pub command: Vec<String>,
    pub max_age: String,
    /// Line of `[isolation]`.
    pub time: String,
    /// Lines of `[files]`.
    pub files: String,
    /// Lines of `[workload.env]`.
    pub environment: String,
    /// Whether the vault is listed.
    pub data: Option<&'static str>,
    /// Endpoints of `[network]`.
    pub connect: Vec<String>,
    /// Lines of `[risk]`.
    pub risk: String,
    pub rules: String,
}

impl Policy {
    /// A shell script without data; everything is permitted.
    pub fn shell(script: &str) -> Self {
        Self::command(&["sh", "-c", script])
    }

    /// A command without data; everything is permitted.
    pub fn command(command: &[&str]) -> Self {
        Self {
            command: command.iter().map(|&word| word.to_owned()).collect(),
            max_age: "10m".into(),
            time: "60s".into(),
            files: "write = [{ from = \"out\", at = \"/out\" }]".into(),
            environment: String::new(),
            data: None,
            connect: Vec::new(),
            risk: String::new(),
            rules: "permit (principal, action, resource);".into(),
        }
    }

    /// Shows the vault as `/data`.
    pub fn with_data(mut self) -> Self {
        self.data = Some("read");
        self
    }

    /// Shows the vault as `/data`, to be written to.
    pub fn with_writable_data(mut self) -> Self {
        self.data = Some("read-write");
        self
    }

    /// Grants these endpoints.
    pub fn connecting(mut self, endpoints: &[&str]) -> Self {
        self.connect = endpoints.iter().map(|&e| e.to_owned()).collect();
        self
    }

    /// Sets the lines of `[risk]` and adds rules.
    pub fn with_rules(mut self, risk: &str, rules: &str) -> Self {
        self.risk = risk.into();
        self.rules = format!("{}\n{rules}", self.rules);
        self
    }

    /// The text of the policy file.
    pub fn text(&self) -> String {
        let Self {
            max_age,
            time,
            files,
            environment,
            risk,
            rules,
            ..
        } = self;
        let command = serde_json::to_string(&self.command).unwrap();
        let connect = serde_json::to_string(&self.connect).unwrap();
        let data = self.data.map_or_else(String::new, |access| {
            format!(
                "customers = {{ vault = \"customers.vault\", at = \"/data\", access = \"{access}\", \
                 key = \"file:customers.key\" }}"
            )
        });
        format!(
            "version = 1\nname = \"story\"\n\
             [attestation]\naccept = [\"simulated\"]\nmax-age = \"{max_age}\"\n\
             reference-values = \"reference.json\"\n\
             [workload]\ncommand = {command}\n[workload.env]\n{environment}\n\
             [isolation]\nmemory = \"256MiB\"\npids = 32\ncpu = 2.0\ntime = \"{time}\"\n\
             [files]\n{files}\n[network]\nconnect = {connect}\n\
             [data]\n{data}\n[risk]\n{risk}\n[rules]\ncedar = '''\n{rules}\n'''\n"
        )
    }

    pub fn bundle(&self) -> Bundle {
        Bundle::parse(&self.text(), "story.toml").unwrap_or_else(|error| panic!("{error}"))
    }
}

/// The relying party in this process: what it releases is decided by a real broker.
pub struct Local(pub Broker);

impl Local {
    pub fn new(verifier: Verifier, resource: &str, key: &[u8]) -> Self {
        let key = Zeroizing::new(key.to_vec());
        Self(
            Broker::builder(verifier)
                .resource(resource, key, ReleasePolicy::default())
                .build(),
        )
    }
}

impl KeyBroker for Local {
    fn challenge(&mut self, _: &str, now: UnixTime) -> Result<Nonce, Refusal> {
        self.0.challenge(now).map_err(|error| Refusal {
            code: "challenge".into(),
            message: error.to_string(),
        })
    }

    fn release(
        &mut self,
        evidence: &Evidence,
        challenge: &Challenge,
        resource: &str,
        now: UnixTime,
    ) -> Result<SealedSecret, Refusal> {
        self.0
            .release(evidence, challenge, resource, now)
            .map(|release| release.sealed)
            .map_err(|error| Refusal {
                code: error.code().into(),
                message: casemate::error::describe(&error),
            })
    }
}

/// A run that has not begun: change a field, then run.
pub struct Setup<'r> {
    room: &'r Room,
    pub bundle: Bundle,
    pub tee: Box<dyn Attester>,
    pub verifier: Verifier,
    pub broker: Option<Local>,
    /// What remembers the room's vault.
    pub anchor: Option<Arc<dyn FreshnessAnchor>>,
    /// Told of each record by the session's own thread.
    pub watcher: Box<dyn FnMut(&Record) + Send>,
}

impl Setup<'_> {
    /// Runs to the end with empty stdin.
    pub fn run(self) -> Told {
        self.start().finish()
    }

    /// Starts to run; stdin is a pipe.
    pub fn start(self) -> Running {
        let log = self.room.new_log();
        let key = LogKey::generate().unwrap();
        let pinned = key.verifier(ORIGIN).unwrap();
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let ((input, ours), (output, stdout), (error, stderr)) = (pipe(), pipe(), pipe());
        let heard = Heard::default();
        let mut watching = heard.clone();
        let mut watcher = self.watcher;
        let mut builder = Session::builder(self.bundle)
            .base(self.room.path())
            .attested_by(self.tee, self.verifier)
            .stdio(input, stdout, stderr)
            .watched_by(move |record, _| {
                watcher(record);
                watching.record(record);
            });
        if let Some(broker) = self.broker {
            builder = builder.keys_from(broker);
        }
        if let Some(anchor) = self.anchor {
            builder = builder.anchored_by("customers", anchor);
        }
        let session = builder
            .logged_to(Log::create(&log, ORIGIN, key).unwrap())
            .unwrap();
        let handle = session.handle();
        let readers = [heard.read(output, false), heard.read(error, true)];
        let failed = heard.clone();
        let thread = std::thread::spawn(move || {
            let result = session.run();
            failed.change(|inner| inner.over = true);
            result
        });
        Running {
            handle,
            stdin: Some(ours.into()),
            heard,
            readers,
            thread,
            log,
            pinned,
        }
    }
}

/// A run under way.
pub struct Running {
    pub handle: Handle,
    pub stdin: Option<File>,
    heard: Heard,
    readers: [JoinHandle<()>; 2],
    thread: JoinHandle<Result<Outcome, SessionError>>,
    log: PathBuf,
    pinned: LogVerifier,
}

impl Running {
    /// Waits until stdout of the workload contains this text.
    pub fn wait_for_output(&self, text: &str) {
        self.wait_for_output_within(text, DEADLINE);
    }

    /// Likewise, of a workload that has much to do before.
    pub fn wait_for_output_within(&self, text: &str, deadline: Duration) {
        self.heard.wait_within(text, deadline, |inner| {
            String::from_utf8_lossy(&inner.stdout).contains(text)
        });
    }

    /// Has an operator raise the risk, again and again, until stdout of the workload contains this text.
    /// After that the risk only fades.
    pub fn doubt_until_output(&self, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            self.handle.operator("doubt");
            let inner = self.heard.0.0.lock().unwrap();
            let there = |inner: &Inner| String::from_utf8_lossy(&inner.stdout).contains(text);
            let pause = Duration::from_millis(20);
            let waited = self
                .heard
                .0
                .1
                .wait_timeout_while(inner, pause, |i| !there(i));
            let (inner, _) = waited.unwrap();
            if there(&inner) {
                return;
            }
            assert!(
                Instant::now() < deadline && !inner.over,
                "waited in vain for {text}: {:#?}",
                inner.records
            );
        }
    }

    /// Waits until such a record was written.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Record) -> bool) {
        self.heard
            .wait(what, |inner| inner.records.iter().any(&wanted));
    }

    /// Waits until as many such records were written.
    pub fn wait_for_records(&self, count: usize, wanted: impl Fn(&Record) -> bool) {
        let what = format!("{count} records");
        self.heard.wait(&what, |inner| {
            inner.records.iter().filter(|r| wanted(r)).count() >= count
        });
    }

    /// Process id of the sandbox's init.
    pub fn init(&self) -> i32 {
        self.heard.wait("the init", |inner| inner.traces.is_some());
        self.heard.0.0.lock().unwrap().traces.as_ref().unwrap().init
    }

    /// Closes stdin and waits until the run is over.
    pub fn finish(mut self) -> Told {
        self.stdin = None;
        self.wait_until_over()
    }

    /// Waits until the run is over, and checks what always holds: the log verifies and says what was
    /// seen, and nothing of the sandbox is left.
    pub fn wait_until_over(self) -> Told {
        self.heard.wait("the end of the run", |inner| inner.over);
        let result = self.thread.join().unwrap();
        for reader in self.readers {
            reader.join().unwrap();
        }
        let inner = std::mem::take(&mut *self.heard.0.0.lock().unwrap());
        if let Some(traces) = inner.traces {
            traces.assert_gone();
        }
        let told = Told {
            result,
            records: inner.records,
            stdout: String::from_utf8(inner.stdout).unwrap(),
            stderr: String::from_utf8(inner.stderr).unwrap(),
            log: self.log,
            pinned: self.pinned,
        };
        told.assert_logged();
        told.assert_announced();
        told
    }
}

/// What was heard of a run so far.
#[derive(Clone, Default)]
struct Heard(Arc<(Mutex<Inner>, Condvar)>);

#[derive(Default)]
struct Inner {
    records: Vec<Record>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    traces: Option<Traces>,
    over: bool,
}

impl Heard {
    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.0.0.lock().unwrap());
        self.0.1.notify_all();
    }

    fn record(&mut self, record: &Record) {
        let traces = match record {
            Record::Prepared { pid, .. } => Some(Traces::of(*pid)),
            _ => None,
        };
        self.change(|inner| {
            inner.records.push(record.clone());
            inner.traces = inner.traces.take().or(traces);
        });
    }

    fn read(&self, pipe: OwnedFd, error: bool) -> JoinHandle<()> {
        let heard = self.clone();
        let mut pipe = File::from(pipe);
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(read @ 1..) = pipe.read(&mut chunk) {
                heard.change(|inner| {
                    let sink = if error {
                        &mut inner.stderr
                    } else {
                        &mut inner.stdout
                    };
                    sink.extend_from_slice(&chunk[..read]);
                });
            }
        })
    }

    fn wait(&self, what: &str, there: impl Fn(&Inner) -> bool) {
        self.wait_within(what, DEADLINE, there);
    }

    fn wait_within(&self, what: &str, deadline: Duration, there: impl Fn(&Inner) -> bool) {
        let inner = self.0.0.lock().unwrap();
        let (inner, _) = self
            .0
            .1
            .wait_timeout_while(inner, deadline, |inner| !there(inner) && !inner.over)
            .unwrap();
        assert!(
            there(&inner),
            "waited in vain for {what}; records {:#?}, stdout {:?}, stderr {:?}",
            inner.records,
            String::from_utf8_lossy(&inner.stdout),
            String::from_utf8_lossy(&inner.stderr),
        );
    }
}

/// Whether this user can have a sandbox at all: what unshare(1) says.
fn namespaces() -> &'static Result<(), String> {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    ANSWER.get_or_init(|| {
        let tried = Command::new("unshare")
            .args(["--user", "--mount", "--pid", "--fork", "true"])
            .output();
        match tried {
            Ok(tried) if tried.status.success() => Ok(()),
            Ok(tried) => Err(String::from_utf8_lossy(&tried.stderr).trim().to_owned()),
            // Without unshare(1) the run itself will tell.
            Err(_) => Ok(()),
        }
    })
}

/// Waits until a condition holds, and fails when only a hang can still explain that it does not.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

/// Every file below a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path))
        } else {
            found.push(path)
        }
    }
    found.sort();
    found
}

/// Copies a folder.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry
            .map(|entry| (entry.path(), entry.file_name()))
            .unwrap();
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

/// The program `sandboxctl`: the one that `CASEMATE_SANDBOXCTL` names, or the one beside this test's
/// own program if it is newer than every source, or built now.
pub fn sandboxctl() -> Command {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let named = || std::env::var_os("CASEMATE_SANDBOXCTL").map(PathBuf::from);
    Command::new(BUILT.get_or_init(|| named().unwrap_or_else(|| built("sandboxctl", "sandboxctl"))))
}

/// The program `casemate-broker`, found or built likewise.
pub fn casemate_broker() -> Command {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    Command::new(BUILT.get_or_init(|| built("casemate-broker-server", "casemate-broker")))
}

/// The program `casemate-guest-agent`, found or built likewise.
pub fn guest_agent() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let built = || built("casemate-guest-agent", "casemate-guest-agent");
    BUILT.get_or_init(built).clone()
}

/// The program that attacks from inside a sandbox, likewise.
pub fn probe() -> PathBuf {
    built("casemate-escape", "probe")
}

fn built(package: &str, program: &str) -> PathBuf {
    // target/<profile>/deps/<test>
    let test = std::env::current_exe().unwrap();
    let profile = test.ancestors().nth(2).unwrap();
    let program = profile.join(program);
    if !is_newer_than_sources(&program) {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "-p", package, "--target-dir"]);
        cargo
            .arg(profile.parent().unwrap())
            .current_dir(env!("CARGO_MANIFEST_DIR"));
        if profile.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(
            cargo.status().unwrap().success(),
            "{package} does not build"
        );
    }
    program
}

/// Whether a program was built after the last change of any source of this workspace.
fn is_newer_than_sources(program: &Path) -> bool {
    let changed = |path: &Path| {
        fs::metadata(path)
            .and_then(|metadata| metadata.modified())
            .ok()
    };
    let Some(built) = changed(program) else {
        return false;
    };
    [
        "attestation",
        "policy",
        "sandbox",
        "guest-agent",
        "Cargo.lock",
    ]
    .iter()
    .all(|name| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let sources = if path.is_dir() {
            files(&path)
        } else {
            vec![path]
        };
        sources
            .iter()
            .all(|source| changed(source).is_some_and(|at| at <= built))
    })
}

/// How often each kind of record was written.
pub fn kinds(records: &[Record]) -> BTreeMap<&'static str, usize> {
    let mut kinds = BTreeMap::new();
    for record in records {
        *kinds.entry(record.kind()).or_default() += 1;
    }
    kinds
}
