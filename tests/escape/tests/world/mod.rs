//! What there is outside of the sandboxes, and sessions that run the probe in it.

use std::fs::{self, File};
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use attestation::{SimulatedTee, UnixTime, Verifier};
use casemate::{Outcome, Session, SessionError};
use policy::Bundle;
use tempfile::TempDir;
use vault::audit::{Log, LogKey};

/// A host with things worth reaching.
pub struct World {
    folder: TempDir,
    abstract_socket: String,
    bystander: Child,
    _sockets: (UnixListener, [UnixDatagram; 2], [UnixListener; 2]),
    _leaks: (File, TcpListener),
}

/// What a run of the probe came to.
pub struct Run {
    /// What it wrote to stdout.
    pub output: String,
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
        for name in ["read", "write"] {
            fs::create_dir(path.join(name)).unwrap();
        }
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
        let command: Vec<_> = ["/probe"]
            .iter()
            .chain(arguments)
            .map(|a| format!("{a:?}"))
            .collect();
        let environment = self.environment("/granted".as_ref(), "/kept".as_ref());
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
{isolation}
[files]
read = [{{ from = {probe:?}, at = "/probe" }}, {{ from = "read", at = "/granted" }}]
write = [{{ from = "write", at = "/kept" }}]
{more}
"#,
            command = command.join(", "),
            environment = environment.join(", "),
            probe = PROBE,
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
        let session = Session::builder(bundle)
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
        Run {
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
            ("PROBE_ABSTRACT", self.abstract_socket.clone()),
            ("PROBE_SOCKET", text(self.path().join("socket"))),
            ("PROBE_SECRET", text(self.path().join("secret"))),
            ("PROBE_READ", text(read.to_owned())),
            ("PROBE_WRITE", text(write.to_owned())),
        ]
    }
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

pub const PROBE: &str = env!("CARGO_BIN_EXE_probe");
