//! A policy in a folder of its own, and `sandboxctl` used on it by real processes.

#![allow(dead_code)] // Not every test needs all of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;

/// Only a hang takes so long.
const DEADLINE: Duration = Duration::from_secs(60);

/// Whether a record is of this kind.
pub fn is(record: &Value, kind: &str) -> bool {
    record["kind"] == kind
}

/// A folder with a policy, a place for results, and one for sockets.
pub struct Play {
    folder: tempfile::TempDir,
    risk: String,
    rules: String,
}

impl Play {
    /// A play with these lines of `[risk]` and these rules, or `None` with a printed reason on a host that
    /// forbids namespaces.
    pub fn new(risk: &str, rules: &str) -> Option<Self> {
        let probe = Command::new("unshare")
            .args([
                "--user",
                "--map-root-user",
                "--mount",
                "--pid",
                "--net",
                "--fork",
                "true",
            ])
            .output()
            .unwrap();
        if !probe.status.success() {
            let reason = String::from_utf8_lossy(&probe.stderr).into_owned();
            assert!(
                std::env::var_os("CI").is_none(),
                "no namespaces here: {reason}"
            );
            println!("skipped: this host forbids namespaces: {reason}");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        for name in ["out", "run", "endorsements"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        Some(Self {
            folder,
            risk: risk.to_owned(),
            rules: rules.to_owned(),
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The sockets of sessions that are there.
    pub fn sockets(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path("run/casemate/sessions")).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandboxctl"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("XDG_RUNTIME_DIR", self.path("run"));
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Runs a command that succeeds; gives what it prints.
    pub fn does(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts a shell script as the workload; its stdin is a pipe.
    pub fn start(&self, script: &str) -> Running {
        let Self { risk, rules, .. } = self;
        let script = serde_json::to_string(script).unwrap();
        let policy = format!(
            "version = 1\nname = \"play\"\n[attestation]\naccept = [\"simulated\"]\nendorsements = \"endorsements\"\n\
             [workload]\ncommand = [\"sh\", \"-c\", {script}]\n[isolation]\nmemory = \"128MiB\"\npids = 8\ntime = \"5m\"\n\
             [files]\nwrite = [{{ from = \"out\", at = \"/out\" }}]\n[risk]\nfalls-after = \"50ms\"\n{risk}\n\
             [rules]\ncedar = '''\npermit (principal, action, resource);\n{rules}\n'''\n"
        );
        fs::write(self.path("policy.toml"), policy).unwrap();
        let mut child = self
            .command(&[
                "run",
                "policy.toml",
                "--log",
                "log",
                "--json",
                "--dangerously-accept-simulated",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let heard = Heard::default();
        let (stderr, hearing) = (child.stderr.take().unwrap(), heard.clone());
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                hearing.0.0.lock().unwrap().push(line);
                hearing.0.1.notify_all();
            }
        });
        Running {
            child,
            heard,
            reader: Some(reader),
        }
    }

    /// Waits until a file is there.
    pub fn wait_for_file(&self, name: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !Path::exists(&self.path(name)) {
            assert!(Instant::now() < deadline, "waited in vain for {name}");
            std::thread::yield_now();
        }
    }
}

/// Lines on stderr so far.
#[derive(Clone, Default)]
struct Heard(Arc<(Mutex<Vec<String>>, Condvar)>);

/// A run under way. Dropping it kills it.
pub struct Running {
    child: Child,
    heard: Heard,
    reader: Option<std::thread::JoinHandle<()>>,
}

/// A run that is over.
#[derive(Debug)]
pub struct Told {
    pub code: Option<i32>,
    pub lines: Vec<String>,
    pub records: Vec<Value>,
}

fn record(line: &str) -> Option<Value> {
    let value: Value = serde_json::from_str(line).ok()?;
    value.get("record").cloned()
}

impl Running {
    /// Waits until such a record was written, and gives it.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let there = |lines: &Vec<String>| {
            lines
                .iter()
                .filter_map(|line| record(line))
                .find(|record| wanted(record))
        };
        let lines = self.heard.0.0.lock().unwrap();
        let (lines, _) = self
            .heard
            .0
            .1
            .wait_timeout_while(lines, DEADLINE, |lines| there(lines).is_none())
            .unwrap();
        there(&lines).unwrap_or_else(|| panic!("waited in vain for {what}: {lines:#?}"))
    }

    /// Its name in `status`.
    pub fn id(&self) -> String {
        format!("play-{}", self.child.id())
    }

    /// Sends the supervisor a Unix signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Kills the supervisor.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Closes stdin and waits for the end.
    pub fn finish(&mut self) -> Told {
        drop(self.child.stdin.take());
        self.wait_until_over()
    }

    /// Waits for the end.
    pub fn wait_until_over(&mut self) -> Told {
        let stdin = self.child.stdin.take();
        let status = self.child.wait().unwrap();
        drop(stdin);
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        let lines = std::mem::take(&mut *self.heard.0.0.lock().unwrap());
        let records = lines.iter().filter_map(|line| record(line)).collect();
        Told {
            code: status.code(),
            lines,
            records,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Told {
    /// Where such a record is.
    pub fn at(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> usize {
        let at = self.records.iter().position(wanted);
        at.unwrap_or_else(|| panic!("no record of {what}: {:#?}", self.lines))
    }
}
