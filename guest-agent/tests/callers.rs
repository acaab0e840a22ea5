//! Who speaks for whom: a caller is a process, in a sandbox or not, and evidence names it.

#![allow(clippy::unwrap_used)]

mod service;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use attestation::{Challenge, Evidence, Role, UnixTime, Verifier};
use guest_agent::api::Asker;
use guest_agent::evidence;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use service::{Service, within};

const LOOP: &str = "while :; do sleep 0.1; done";

/// Begins a session that runs until it is stopped; gives its name and its init.
fn begin(service: &Service, policy: &str) -> (String, i64) {
    let wanted = json!({ "policy": policy, "detached": true });
    let (status, begun) = service.ask("POST", "sessions", &wanted);
    assert_eq!(status, 201, "{begun}");
    let id = begun["session"]["id"].as_str().unwrap().to_owned();
    let mut init = 0;
    within(|| {
        let status = status_of(service, &id);
        init = status["init"].as_i64().unwrap_or_default();
        status["started"] == true
    });
    (id, init)
}

fn status_of(service: &Service, session: &str) -> Value {
    let (_, told) = service.ask("GET", &format!("sessions/{session}"), &Value::Null);
    told["sessions"][0]["status"].clone()
}

/// A process of its own that asks the agent, and asks it whatever it is told to on its standard input.
struct Other {
    process: Child,
    answers: BufReader<ChildStdout>,
}

/// Reads lines `METHOD PATH BODY`, and prints each answer as a line.
const ASKS: &str = r#"
import json, socket, sys
print("here", flush=True)
for line in sys.stdin:
    method, path, body = line.rstrip("\n").split(" ", 2)
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(sys.argv[1])
        s.sendall((f"{method} /casemate/v0/{path} HTTP/1.0\r\ncontent-type: application/json\r\n"
                   f"content-length: {len(body)}\r\n\r\n{body}").encode())
        answer = b""
        while piece := s.recv(65536):
            answer += piece
    print(json.dumps(json.loads(answer.split(b"\r\n\r\n", 1)[1])), flush=True)
"#;

impl Other {
    /// Starts it by this command line, which python3 is added to.
    fn start(service: &Service, before: &[&str]) -> Self {
        let all: Vec<&str> = before
            .iter()
            .copied()
            .chain(["python3", "-c", ASKS])
            .collect();
        let mut process = Command::new(all[0])
            .args(&all[1..])
            .arg(service.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        let mut other = Self { process, answers };
        assert_eq!(other.line(), "here");
        other
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn ask(&mut self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let input = self.process.stdin.as_mut().unwrap();
        writeln!(input, "{method} {path} {body}").unwrap();
        serde_json::from_str(&self.line()).unwrap()
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Only root can put a process into a sandbox that is not its own.
fn can_enter() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can put another process into a sandbox");
    }
    root
}

/// Whatever a caller in the sandbox of one session asks about another, and orders of its own.
fn reaches_its_own_session_only(service: &Service, other: &mut Other, own: &str, others: &str) {
    let code = |answer: Value| answer["error"]["code"].as_str().map(str::to_owned);
    for (method, path, body) in [
        ("GET", "", Value::Null),
        ("DELETE", "", Value::Null),
        ("POST", "/evidence", json!({ "payload": "00" })),
        ("POST", "/orders", json!({ "order": "stop", "why": "x" })),
        ("POST", "/signals", json!({ "signal": 9 })),
        ("GET", "/events", Value::Null),
        ("GET", "/audit", Value::Null),
        ("GET", "/leases", Value::Null),
    ] {
        let answer = other.ask(method, &format!("sessions/{others}{path}"), &body);
        assert_eq!(
            code(answer).as_deref(),
            Some("no-session"),
            "{method} {path}"
        );
    }
    let listed = other.ask("GET", "sessions", &Value::Null);
    assert_eq!(listed["sessions"].as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed["sessions"][0]["id"], own);
    // It may look at itself, and have evidence; it may not lift what was ordered, nor begin anything.
    for (method, path, body) in [
        ("DELETE", format!("sessions/{own}"), Value::Null),
        (
            "POST",
            format!("sessions/{own}/orders"),
            json!({ "order": "thaw", "why": "x" }),
        ),
        (
            "POST",
            format!("sessions/{own}/signals"),
            json!({ "signal": 9 }),
        ),
        ("POST", "sessions".into(), json!({ "policy": "work" })),
    ] {
        let answer = other.ask(method, &path, &body);
        assert_eq!(code(answer).as_deref(), Some("inside"), "{method} {path}");
    }
    let vouched = other.ask(
        "POST",
        &format!("sessions/{own}/evidence"),
        &json!({ "payload": "00ff" }),
    );
    let asker = &vouched["vouched"]["caller"];
    assert_eq!(
        (&asker["session"], &asker["inside"]),
        (&json!(own), &json!(true)),
        "{vouched}"
    );
    assert_eq!(status_of(service, own)["plan"]["run"], "running");
}

fn two_sandboxes() -> (Service, (String, i64), (String, i64)) {
    let service = Service::start_with("", &["--dangerously-accept-simulated"]);
    service.proven_policy("work", LOOP);
    let (one, two) = (begin(&service, "work"), begin(&service, "work"));
    (service, one, two)
}

#[test]
fn a_caller_in_the_process_namespace_of_a_sandbox_speaks_for_that_sandbox_only() {
    if !can_enter() {
        return;
    }
    let (service, (one, init), (two, _)) = two_sandboxes();
    let init = init.to_string();
    let mut inside = Other::start(&service, &["nsenter", "--target", &init, "--pid"]);
    reaches_its_own_session_only(&service, &mut inside, &one, &two);
}

#[test]
fn a_caller_in_the_cgroup_of_a_sandbox_speaks_for_that_sandbox_only() {
    if !can_enter() {
        return;
    }
    let (service, (one, init), (two, _)) = two_sandboxes();
    let of = |who: &str| fs::read_to_string(format!("/proc/{who}/cgroup")).unwrap();
    let (own, inits) = (of("self"), of(&init.to_string()));
    let group = inits
        .lines()
        .zip(own.lines())
        .find(|(inits, own)| inits != own);
    let folder = group.and_then(|(line, _)| cgroup_folder(line));
    let Some(folder) = folder else {
        eprintln!("skipped: sandboxes have no cgroup of their own here");
        return;
    };
    let mut inside = Other::start(&service, &["env"]);
    let pid = inside.process.id().to_string();
    fs::write(folder.join("cgroup.procs"), pid).unwrap();
    reaches_its_own_session_only(&service, &mut inside, &one, &two);
}

/// Where the cgroup of a line of `/proc/PID/cgroup` is mounted.
fn cgroup_folder(line: &str) -> Option<std::path::PathBuf> {
    let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
    let name = controllers.strip_prefix("name=").unwrap_or(controllers);
    let roots = [
        "/sys/fs/cgroup".into(),
        format!("/sys/fs/cgroup/{name}"),
        "/sys/fs/cgroup/unified".into(),
    ];
    let mut folders = roots
        .iter()
        .map(|root: &String| Path::new(root).join(path.trim_start_matches('/')));
    folders.find(|folder| path != "/" && folder.join("cgroup.procs").exists())
}

#[test]
fn a_caller_that_descends_from_a_sandbox_is_in_it_and_one_beside_it_is_not() {
    let (service, (one, _), (two, _)) = two_sandboxes();
    // Nobody here is inside: all of them are the user's.
    let mut beside = Other::start(&service, &["env"]);
    for session in [&one, &two] {
        let path = format!("sessions/{session}");
        assert_eq!(
            beside.ask("GET", &path, &Value::Null)["sessions"][0]["id"],
            **session
        );
    }
    let path = format!("sessions/{one}/evidence");
    let vouched = beside.ask("POST", &path, &json!({ "payload": "" }));
    assert_eq!(vouched["vouched"]["caller"]["inside"], false, "{vouched}");
}

/// Connects, leaves the connection to a child of its own, and ends; the child waits, and then asks.
const LEAVES: &str = r#"
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
own = os.getpid()
if os.fork():
    print(own, flush=True)
    os._exit(0)
sys.stdin.readline()
s.sendall(b"GET /casemate/v0/sessions HTTP/1.0\r\n\r\n")
answer = b""
try:
    while piece := s.recv(65536):
        answer += piece
except OSError:
    pass
print(answer.replace(b"\r\n", b" ").replace(b"\n", b" ").decode(), flush=True)
"#;

#[test]
fn whoever_has_the_number_of_a_caller_that_has_ended_is_not_that_caller() {
    let service = Service::with_work(LOOP);
    begin(&service, "work");
    let agent = Pid::from_child(&service.process);
    for reused in [false, true] {
        // The agent finds the connection when its maker is gone.
        kill_process(agent, Signal::STOP).unwrap();
        let mut leaving = Command::new("python3")
            .args(["-c", LEAVES])
            .arg(service.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut told = BufReader::new(leaving.stdout.take().unwrap());
        let mut word = leaving.stdin.take().unwrap();
        let mut line = String::new();
        told.read_line(&mut line).unwrap();
        let number: i32 = line.trim().parse().unwrap();
        leaving.wait().unwrap();
        let heir = reused.then(|| with_number(number));
        kill_process(agent, Signal::CONT).unwrap();
        writeln!(word).unwrap();
        line.clear();
        told.read_line(&mut line).unwrap();
        assert!(!line.contains("\"sessions\""), "{reused}: {line}");
        assert!(line.trim().is_empty() || line.contains(" 403 "), "{line}");
        if let Some(None) = heir {
            eprintln!("skipped the second half: process numbers cannot be chosen here");
        }
    }
    assert_eq!(service.sessions().len(), 1, "others are served");
}

/// A process that is given this number, which somebody else had before.
struct Heir(Child);

impl Drop for Heir {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn with_number(number: i32) -> Option<Heir> {
    for _ in 0..200 {
        let last = (number - 1).to_string();
        fs::write("/proc/sys/kernel/ns_last_pid", last).ok()?;
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let heir = Heir(child);
        if i32::try_from(heir.0.id()) == Ok(number) {
            return Some(heir);
        }
    }
    None
}

/// Connects to a port of this machine as another one, or tells that it is taken.
const BINDS: &str = r#"
import socket, sys
with socket.socket(socket.AF_VSOCK) as s:
    try:
        s.bind((socket.VMADDR_CID_ANY, int(sys.argv[1])))
        print("free")
    except OSError:
        print("taken")
"#;

#[test]
fn other_machines_have_a_port_where_there_is_a_device_and_the_agent_says_so_where_there_is_none() {
    let port = (std::process::id() + 20_000).to_string();
    let vsock = format!("[vsock]\nport = {port}\nallow-cids = [2]\n");
    if casemate::peer::MachinePort::listen(port.parse().unwrap()).is_err() {
        let mut without = Service::start("");
        assert!(without.terminate().success());
        let config = without.folder.path().join("agent.toml");
        let text = fs::read_to_string(&config).unwrap() + &vsock;
        fs::write(config, text).unwrap();
        let told = service::program(without.folder.path()).output().unwrap();
        let said = String::from_utf8(told.stderr).unwrap();
        assert!(
            !told.status.success() && said.contains("needs the device"),
            "{said}"
        );
        return;
    }
    let mut service = Service::start(&vsock);
    let taken = || {
        let told = Command::new("python3").args(["-c", BINDS, &port]).output();
        String::from_utf8(told.unwrap().stdout).unwrap().trim() == "taken"
    };
    assert!(taken());
    assert!(
        service.sessions().is_empty(),
        "its own socket is served too"
    );
    assert!(service.terminate().success());
    assert!(!taken());
}

#[test]
fn no_caller_chooses_label_role_or_name_of_its_evidence() {
    let (service, (one, _), (two, _)) = two_sandboxes();
    let vouch = |session: &str, body: Value| {
        service.ask("POST", &format!("sessions/{session}/evidence"), &body)
    };
    let payload = "ab".repeat(64);
    let (status, told) = vouch(&one, json!({ "payload": payload }));
    assert_eq!(status, 200, "{told}");
    let vouched = &told["vouched"];
    let challenge: Challenge = serde_json::from_value(vouched["challenge"].clone()).unwrap();
    let evidence: Evidence = serde_json::from_value(vouched["evidence"].clone()).unwrap();
    let verifier = Verifier::builder()
        .dangerous()
        .accept_simulated()
        .build()
        .unwrap();
    let now = UnixTime::from(std::time::SystemTime::now());
    verifier.appraise(&evidence, &challenge, now).unwrap();

    // The challenge is what the agent makes of caller and payload.
    let asker = |session: &str, inside| Asker {
        session: session.to_owned(),
        inside,
        uid: rustix::process::getuid().as_raw(),
    };
    let bytes = [0xab; 64];
    assert_eq!(challenge.role, Role::Application);
    assert_eq!(
        challenge.nonce,
        evidence::nonce(&asker(&one, false), &bytes)
    );
    for forged in [
        Challenge {
            role: Role::Guest,
            ..challenge.clone()
        },
        Challenge {
            role: Role::Broker,
            ..challenge.clone()
        },
        Challenge {
            nonce: evidence::nonce(&asker(&two, false), &bytes),
            ..challenge.clone()
        },
        Challenge {
            nonce: evidence::nonce(&asker(&one, true), &bytes),
            ..challenge.clone()
        },
    ] {
        let refused = verifier.appraise(&evidence, &forged, now).unwrap_err();
        assert_eq!(refused.code(), "binding");
    }
    // 64 bytes of the caller's choice are not the report data; nor can it say anything else.
    assert!(!serde_json::to_string(&evidence).unwrap().contains(&payload));
    for body in [
        json!({ "payload": payload, "role": "guest" }),
        json!({ "payload": payload, "nonce": "00".repeat(32) }),
        json!({ "payload": payload, "report-data": "00".repeat(64) }),
        json!({ "payload": payload, "uid": 0 }),
        json!({ "payload": format!("{payload}00") }),
        json!({ "nonce": "00".repeat(32) }),
    ] {
        assert_eq!(vouch(&one, body.clone()).0, 400, "{body}");
    }
}
