//! What there is outside of the sandboxes, and sessions that run the probe in it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use attestation::{SimulatedTee, UnixTime, Verifier};
use casemate::enforcement::State;
use casemate::record::Record;
use casemate::{Outcome, Session, SessionError};
use policy::Bundle;
use tempfile::TempDir;
use vault::audit::{Log, LogKey};

/// A host with things worth reaching.
pub struct World {
    folder: TempDir,
    abstract_socket: String,
    bystander: Child,
    segment: Segment,
    _sockets: (UnixListener, [UnixDatagram; 2], [UnixListener; 2]),
    _leaks: (File, TcpListener),
}

/// What a run of the probe came to.
pub struct Run {
    /// What it wrote to stdout.
    pub output: String,
    /// What of the floor was not wholly in force: what the record of the launch says.
    #[allow(dead_code)] // Not every test asks.
    pub gaps: BTreeSet<String>,
    /// How the session ended.
    pub result: Result<Outcome, SessionError>,
    /// The terminal that was its stdin, as the test holds it.
    pub terminal: Terminal,
}

/// Both ends of a pseudo-terminal.
pub struct Terminal {
    _master: OwnedFd,
    slave: OwnedFd,
}

impl World {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("casemate-escape-")
            .tempdir()
            .unwrap();
        let path = folder.path();
        // Nothing here is kept from a sandbox by its being another user's.
        open_to_all(path, 0o755);
        for (name, mode) in [("read", 0o755), ("write", 0o777)] {
            fs::create_dir(path.join(name)).unwrap();
            open_to_all(&path.join(name), mode);
        }
        fs::copy(PROBE, path.join("probe")).unwrap();
        open_to_all(&path.join("probe"), 0o755);
        fs::write(path.join("secret"), "of the host").unwrap();
        fs::write(path.join("read/file"), "granted").unwrap();
        std::os::unix::fs::symlink(path.join("secret"), path.join("write/absolute")).unwrap();
        std::os::unix::fs::symlink("../secret", path.join("write/relative")).unwrap();
        let abstract_socket = path.file_name().unwrap().to_str().unwrap().to_owned();
        let address = SocketAddr::from_abstract_name(&abstract_socket).unwrap();
        let datagrams =
            SocketAddr::from_abstract_name(format!("{abstract_socket}-datagram")).unwrap();
        let sockets = (
            UnixListener::bind_addr(&address).unwrap(),
            [
                UnixDatagram::bind_addr(&datagrams).unwrap(),
                UnixDatagram::bind(path.join("read/datagram")).unwrap(),
            ],
            ["socket", "read/socket"].map(|name| UnixListener::bind(path.join(name)).unwrap()),
        );
        // What a careless program leaves open for its children.
        let leaks = (
            File::open("/").unwrap(),
            TcpListener::bind("127.0.0.1:0").unwrap(),
        );
        for descriptor in [leaks.0.as_raw_fd(), leaks.1.as_raw_fd()] {
            // SAFETY: takes integers; the descriptor is open.
            assert_eq!(unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) }, 0);
        }
        let mut sleep = Command::new("sleep");
        let bystander = sleep
            .arg("300")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self {
            abstract_socket,
            bystander,
            segment: Segment::make(),
            _sockets: sockets,
            _leaks: leaks,
            folder,
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Whether the process that a workload under the same user may want to kill still lives.
    pub fn bystander_lives(&mut self) -> bool {
        self.bystander.try_wait().unwrap().is_none()
    }

    /// Runs the probe in a sandbox, with these limits and other lines for the policy.
    pub fn inside(&self, isolation: &str, more: &str, arguments: &[&str]) -> Run {
        let places = ["/probe", "/granted", "/kept"].map(PathBuf::from);
        self.run_in("container", &places, isolation, more, arguments)
    }

    /// The same in a sandbox without namespaces: what is granted is where it is.
    #[allow(dead_code)] // Not every test does.
    pub fn inside_process(&self, isolation: &str, more: &str, arguments: &[&str]) -> Run {
        let places = ["probe", "read", "write"].map(|name| self.path().join(name));
        self.run_in("process", &places, isolation, more, arguments)
    }

    fn run_in(
        &self,
        backend: &str,
        [probe, read, write]: &[PathBuf; 3],
        isolation: &str,
        more: &str,
        arguments: &[&str],
    ) -> Run {
        let command: Vec<_> = [probe.to_str().unwrap()]
            .iter()
            .chain(arguments)
            .map(|a| format!("{a:?}"))
            .collect();
        let mut environment = self.environment(read, write);
        if backend == "process" {
            environment.push(("PROBE_SHARED", "1".to_owned()));
        }
        let environment: Vec<_> = environment
            .iter()
            .map(|(k, v)| format!("{k} = {v:?}"))
            .collect();
        let source = format!(
            r#"
version = 1
name = "escape"
[attestation]
accept = ["simulated"]
[workload]
command = [{command}]
env = {{ PROBE_INSIDE = "1", {environment} }}
[isolation]
backend = {backend:?}
{isolation}
[files]
read = [{{ from = "probe", at = {probe:?} }}, {{ from = "read", at = {read:?} }}]
write = [{{ from = "write", at = {write:?} }}]
{more}
"#,
            command = command.join(", "),
            environment = environment.join(", "),
        );
        let rules = "[rules]\ncedar = \"permit (principal, action, resource);\"\n";
        let rules = if more.contains("[rules]") { "" } else { rules };
        let source = source + rules;
        let bundle = Bundle::parse(&source, "escape.toml")
            .unwrap_or_else(|error| panic!("{error}\n{source}"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let tee = SimulatedTee::new(UnixTime(now.as_secs())).unwrap();
        let verifier = Verifier::builder().reference_values(tee.reference_values());
        let verifier = verifier.dangerous().accept_simulated().build().unwrap();
        // A folder of its own: the log's must not exist yet.
        let run = tempfile::tempdir_in(self.path()).unwrap();
        let log = Log::create(
            &run.path().join("log"),
            "casemate/run",
            LogKey::generate().unwrap(),
        )
        .unwrap();
        let output = run.path().join("output");
        let written = File::create(&output).unwrap();
        let terminal = Terminal::open();
        let gaps = Arc::new(Mutex::new(BTreeSet::new()));
        let noted = Arc::clone(&gaps);
        let watcher = move |record: &Record, _| {
            if let Record::Prepared { enforcement, .. } = record {
                let open = enforcement.iter().filter(|item| item.state != State::Full);
                noted
                    .lock()
                    .unwrap()
                    .extend(open.map(|item| item.id.clone()));
            }
        };
        let session = Session::builder(bundle)
            .watched_by(watcher)
            .base(self.path())
            .attested_by(Box::new(tee), verifier)
            .stdio(
                terminal.end(),
                written.try_clone().unwrap().into(),
                written.into(),
            )
            .logged_to(log)
            .unwrap();
        let result = session.run();
        let gaps = gaps.lock().unwrap().clone();
        Run {
            gaps,
            output: fs::read_to_string(&output).unwrap(),
            result,
            terminal,
        }
    }

    /// Runs all of the probe as an ordinary child.
    pub fn outside(&self) -> String {
        let terminal = Terminal::open();
        let output = Command::new(PROBE)
            .arg("all")
            .envs(self.environment(&self.path().join("read"), &self.path().join("write")))
            .stdin(terminal.end())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs all of the probe through another tool. `command` is the tool with its arguments, and sees the
    /// granted folders at these places.
    #[allow(dead_code)] // Not every test compares.
    pub fn through(&self, command: &mut Command, read: &Path, write: &Path) -> String {
        let terminal = Terminal::open();
        let output = command
            .env("PROBE_INSIDE", "1")
            .envs(self.environment(read, write))
            .stdin(terminal.end())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    }

    pub fn environment(&self, read: &Path, write: &Path) -> Vec<(&'static str, String)> {
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        vec![
            ("PROBE_HOST_PID", self.bystander.id().to_string()),
            ("PROBE_SEGMENT", self.segment.name.to_string()),
            ("PROBE_ABSTRACT", self.abstract_socket.clone()),
            ("PROBE_SOCKET", text(self.path().join("socket"))),
            ("PROBE_SECRET", text(self.path().join("secret"))),
            ("PROBE_READ", text(read.to_owned())),
            ("PROBE_WRITE", text(write.to_owned())),
        ]
    }
}

/// System V shared memory that everybody may read, by this name.
struct Segment {
    name: i32,
    id: i32,
}

impl Segment {
    fn make() -> Self {
        loop {
            let mut name = [0; 4];
            getrandom(&mut name);
            let name = i32::from_ne_bytes(name) & i32::MAX | 1;
            let flags = libc::IPC_CREAT | libc::IPC_EXCL | 0o444;
            // SAFETY: takes integers.
            let id = unsafe { libc::shmget(name, 4096, flags) };
            if id >= 0 {
                return Self { name, id };
            }
            let error = io::Error::last_os_error();
            assert_eq!(error.kind(), io::ErrorKind::AlreadyExists, "{error}");
        }
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        // SAFETY: removing takes no third argument.
        unsafe { libc::shmctl(self.id, libc::IPC_RMID, std::ptr::null_mut()) };
    }
}

fn getrandom(bytes: &mut [u8]) {
    // SAFETY: the kernel writes as many bytes as there are.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    assert_eq!(got, bytes.len() as isize);
}

fn open_to_all(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = self.bystander.kill();
        let _ = self.bystander.wait();
    }
}

impl Terminal {
    fn open() -> Self {
        let (mut master, mut slave) = (-1, -1);
        let null = std::ptr::null_mut();
        // SAFETY: both numbers have room; name, settings and size may be left out.
        let opened = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                null,
                null.cast(),
                null.cast(),
            )
        };
        assert_eq!(opened, 0, "{}", io::Error::last_os_error());
        // SAFETY: openpty has just made both, and nobody else has them.
        let [master, slave] = [master, slave].map(|end| unsafe { OwnedFd::from_raw_fd(end) });
        for end in [&master, &slave] {
            // SAFETY: takes integers; the descriptor is open.
            let set = unsafe { libc::fcntl(end.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
            assert_eq!(set, 0);
        }
        Self {
            _master: master,
            slave,
        }
    }

    fn end(&self) -> OwnedFd {
        self.slave.try_clone().unwrap()
    }

    /// How many bytes somebody has typed.
    pub fn typed(&self) -> i32 {
        let mut waiting = 0;
        let slave = self.slave.as_raw_fd();
        // SAFETY: all three outlive the calls. Without line editing what was typed counts at once.
        unsafe {
            let mut settings = std::mem::zeroed();
            assert_eq!(libc::tcgetattr(slave, &raw mut settings), 0);
            settings.c_lflag &= !libc::ICANON;
            assert_eq!(
                libc::tcsetattr(slave, libc::TCSANOW, &raw const settings),
                0
            );
            assert_eq!(libc::ioctl(slave, libc::FIONREAD, &raw mut waiting), 0);
        }
        waiting
    }
}

/// Reads `NAME verdict DETAIL`, and passes over what else was printed.
#[allow(dead_code)] // Not every test reads them.
pub fn verdicts(output: &str) -> BTreeMap<String, String> {
    let split = |line: &str| {
        let (name, verdict) = line.split_once(' ')?;
        let judged = ["open", "closed", "stuck"];
        let judged = judged.iter().any(|word| verdict.starts_with(word));
        judged.then(|| (name.to_owned(), verdict.to_owned()))
    };
    output.lines().filter_map(split).collect()
}

/// Command lines of the host's processes with this word in them.
#[allow(dead_code)] // Not every test looks.
pub fn left_behind(marker: &str) -> Vec<String> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|process| fs::read(process.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(marker))
        .collect()
}

/// Whether this process may do what root may: `CAP_SYS_ADMIN`.
#[allow(dead_code)] // Not every test asks.
pub fn capable() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap();
    u64::from_str_radix(effective.trim(), 16).unwrap() & 1 << 21 != 0
}

pub const PROBE: &str = env!("CARGO_BIN_EXE_probe");
