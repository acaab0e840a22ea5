//! The real program, its socket, and policies of its own.

// Not every test that is built with it uses all of it.
#![allow(dead_code)]

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use guest_agent::client;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use vault::kek::Released;
use vault::{CreateOptions, Vault};

/// How long anything may take before it counts as never.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// A running agent with policies of its own.
pub struct Service {
    pub folder: tempfile::TempDir,
    pub process: Child,
}

impl Service {
    /// Starts an agent and waits until it listens.
    pub fn start(further: &str) -> Self {
        Self::start_with(further, &[])
    }

    pub fn start_with(further: &str, arguments: &[&str]) -> Self {
        Self::begun(further, arguments, |_| {})
    }

    /// Starts an agent in a folder that something is put into first.
    pub fn prepared(further: &str, prepare: impl FnOnce(&Path)) -> Self {
        Self::begun(further, &[], prepare)
    }

    fn begun(further: &str, arguments: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Others get as far as the socket, which is where they have to be refused.
        mode(folder.path(), 0o755);
        for name in ["state", "policies"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let config =
            format!("socket = \"a.sock\"\nstate = \"state\"\npolicies = \"policies\"\n{further}");
        fs::write(folder.path().join("agent.toml"), config).unwrap();
        prepare(folder.path());
        let process = program(folder.path())
            .args(arguments)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let service = Self { folder, process };
        within(|| UnixStream::connect(service.socket()).is_ok());
        service
    }

    /// Kills the agent, which has no time for anything.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts an agent in the place of this one, which is killed if it still runs.
    pub fn restart(&mut self) {
        self.kill();
        self.process = program(self.folder.path())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        within(|| UnixStream::connect(self.socket()).is_ok());
    }

    /// A service with one policy, called `work`, that runs this shell script.
    pub fn with_work(script: &str) -> Self {
        let service = Self::start("");
        service.policy("work", script);
        service
    }

    pub fn policy(&self, name: &str, script: &str) {
        let policy = format!(
            "version = 1\nname = \"{name}\"\n\n[workload]\ncommand = [\"sh\", \"-c\", {script:?}]\n\
             rootfs = \"host\"\n\n[rules]\ncedar = \"permit (principal, action, resource);\"\n"
        );
        fs::write(
            self.folder.path().join(format!("policies/{name}.toml")),
            policy,
        )
        .unwrap();
    }

    /// A policy that runs this shell script on simulated evidence.
    pub fn proven_policy(&self, name: &str, script: &str) {
        self.policy(name, script);
        let path = self.folder.path().join(format!("policies/{name}.toml"));
        let policy = fs::read_to_string(&path).unwrap();
        let accepts = "[attestation]\naccept = [\"simulated\"]\n\n[workload]";
        fs::write(&path, policy.replace("[workload]", accepts)).unwrap();
    }

    /// Gives a policy a vault of this name, with a greeting in it, at `/data`.
    pub fn vault(&self, policy: &str, name: &str, access: &str) {
        let policies = self.folder.path().join("policies");
        let key = policies.join(format!("{name}.key"));
        fs::write(&key, "09".repeat(32)).unwrap();
        mode(&key, 0o600);
        let kek = Released::take(&mut [9; 32]).unwrap();
        let vault = policies.join(format!("{name}.vault"));
        let mut vault = Vault::create(&vault, &kek, CreateOptions::default()).unwrap();
        vault.put("greeting", &b"hello"[..]).unwrap();
        let reference =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/clean-room/reference.json");
        fs::copy(reference, policies.join("reference.json")).unwrap();
        let path = policies.join(format!("{policy}.toml"));
        let text = fs::read_to_string(&path).unwrap();
        let text = text.replace(
            "accept = [\"simulated\"]",
            "accept = [\"simulated\"]\nreference-values = \"reference.json\"",
        );
        let data = format!(
            "[data]\n{name} = {{ vault = \"{name}.vault\", at = \"/data\", access = \"{access}\", \
             key = \"file:{name}.key\" }}\n\n[rules]"
        );
        fs::write(path, text.replace("[rules]", &data)).unwrap();
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("a.sock")
    }

    /// Sends one request; gives the status and what is to be read.
    pub fn send(&self, method: &str, path: &str, body: &Value) -> (u16, BufReader<UnixStream>) {
        send(&self.socket(), method, path, body)
    }

    /// Sends one request, and gives the whole answer.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let (status, mut answer) = self.send(method, path, body);
        (status, line(&mut answer))
    }

    /// Begins a session, and follows it.
    pub fn run(&self, wanted: &Value) -> BufReader<UnixStream> {
        self.send("POST", "sessions", wanted).1
    }

    /// Starts `work` and reads until its workload runs; gives the session's id and its init.
    pub fn run_work(&self) -> (BufReader<UnixStream>, String, i64) {
        let mut caller = self.run(&json!({ "policy": "work" }));
        let session = line(&mut caller);
        let id = session["session"]["id"]
            .as_str()
            .unwrap_or_else(|| panic!("{session}"))
            .to_owned();
        let mut init = 0;
        loop {
            let line = line(&mut caller);
            match line["record"]["kind"].as_str() {
                Some("prepared") => init = line["record"]["pid"].as_i64().unwrap(),
                Some("started") => return (caller, id, init),
                _ => assert!(line["error"].is_null(), "{line}"),
            }
        }
    }

    pub fn sessions(&self) -> Vec<Value> {
        let (_, reply) = self.ask("GET", "sessions", &Value::Null);
        reply["sessions"]
            .as_array()
            .unwrap_or_else(|| panic!("{reply}"))
            .clone()
    }

    /// Asks the agent to end, and waits until it has.
    pub fn terminate(&mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.process), Signal::TERM).unwrap();
        within(|| self.process.try_wait().unwrap().is_some());
        self.process.wait().unwrap()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_casemate-guest-agent"));
    command
        .arg("--config")
        .arg(folder.join("agent.toml"))
        .env("XDG_RUNTIME_DIR", folder);
    command
}

pub fn send(socket: &Path, method: &str, path: &str, body: &Value) -> (u16, BufReader<UnixStream>) {
    let body = (!body.is_null()).then_some(body);
    let path = format!("/casemate/v0/{path}");
    let (status, answer) = client::send(socket, method, &path, body).unwrap();
    answer.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
    (status, answer)
}

pub fn line(caller: &mut BufReader<UnixStream>) -> Value {
    let mut text = String::new();
    caller.read_line(&mut text).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

/// All further lines up to the end of the answer.
pub fn rest(caller: BufReader<UnixStream>) -> Vec<Value> {
    caller
        .lines()
        .map(|line| serde_json::from_str(&line.unwrap()).unwrap())
        .collect()
}

pub fn within(mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "it never came to hold");
        thread::sleep(Duration::from_millis(10));
    }
}

pub fn alive(process: i64) -> bool {
    Path::new("/proc").join(process.to_string()).exists()
}

pub fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}
