//! The service as its callers meet it: the real program, its socket, and sandboxes that really run.

#![allow(clippy::unwrap_used)]

mod service;

use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;

use base64::Engine;
use guest_agent::client;
use rustix::process::Uid;
use serde_json::{Value, json};
use service::{PATIENCE, Service, alive, line, program, rest, send, within};
use vault::audit::{LogVerifier, verify};

/// A user who is nobody in particular.
const NOBODY: u32 = 65534;

#[test]
fn a_run_streams_its_records_and_output_and_ends_with_its_outcome() {
    let service = Service::with_work("echo to out; echo to err >&2; exit 7");
    let lines = rest(service.run(&json!({ "policy": "work" })));
    let kinds: Vec<_> = lines
        .iter()
        .filter_map(|line| line["record"]["kind"].as_str())
        .collect();
    assert_eq!(kinds.first(), Some(&"opened"), "{lines:?}");
    assert_eq!(kinds.last(), Some(&"closed"));
    assert!(kinds.contains(&"prepared") && kinds.contains(&"started"));
    let written = |stream: &str| -> String {
        let pieces = lines
            .iter()
            .filter(|line| line["output"]["stream"] == stream);
        let decoded = pieces.map(|line| {
            let base64 = line["output"]["base64"].as_str().unwrap();
            String::from_utf8(
                base64::engine::general_purpose::STANDARD
                    .decode(base64)
                    .unwrap(),
            )
            .unwrap()
        });
        decoded.collect()
    };
    assert_eq!(
        (written("stdout"), written("stderr")),
        ("to out\n".into(), "to err\n".into())
    );
    let outcome = &lines.last().unwrap()["outcome"];
    assert_eq!(outcome["ending"], json!({ "code": 7 }));
    assert_eq!(outcome["why"], "the workload ended");
    // What was streamed is what the log proves.
    let session = &lines[0]["session"];
    let key: Vec<u8> = (0..32)
        .map(|i| {
            u8::from_str_radix(&session["key"].as_str().unwrap()[2 * i..2 * i + 2], 16).unwrap()
        })
        .collect();
    let key = LogVerifier::new("casemate/run", key.try_into().unwrap()).unwrap();
    let log = verify(
        Path::new(session["log"].as_str().unwrap()),
        Some(&key),
        None,
    )
    .unwrap();
    assert_eq!(usize::try_from(log.size()).unwrap(), kinds.len());
    assert_eq!(service.sessions(), Vec::<Value>::new());
}

#[test]
fn much_output_reaches_a_caller_that_reads() {
    let service = Service::with_work("head -c 3000000 /dev/zero");
    let lines = rest(service.run(&json!({ "policy": "work" })));
    let length = |line: &Value| {
        let base64 = line["output"]["base64"].as_str()?;
        Some(
            base64::engine::general_purpose::STANDARD
                .decode(base64)
                .unwrap()
                .len(),
        )
    };
    assert_eq!(lines.iter().filter_map(length).sum::<usize>(), 3_000_000);
    assert!(lines.last().unwrap()["outcome"].is_object());
}

#[test]
fn sessions_are_asked_and_adjusted_through_the_agent_and_through_their_own_sockets() {
    let service = Service::with_work("while :; do sleep 0.1; done");
    let (_caller, id, _) = service.run_work();
    let run = |socket: &Path| {
        let (_, mut answer) = send(socket, "GET", "sessions?detail=true", &Value::Null);
        line(&mut answer)["sessions"][0]["status"]["plan"]["run"].clone()
    };
    let folder = service.folder.path().join("casemate/sessions");
    let own = fs::read_dir(folder)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let adjust = |socket: &Path, session: &str, order: &str| {
        let order = json!({ "order": order, "why": "a look" });
        line(
            &mut send(
                socket,
                "POST",
                &format!("sessions/{session}/orders"),
                &order,
            )
            .1,
        )
    };
    assert_eq!(run(&own), "running");
    assert_eq!(
        adjust(&service.socket(), &id, "freeze")["adjusted"]["status"]["plan"]["run"],
        "frozen"
    );
    assert_eq!(
        (run(&own), run(&service.socket())),
        (json!("frozen"), json!("frozen"))
    );
    assert_eq!(
        adjust(&own, &id, "thaw")["adjusted"]["status"]["plan"]["run"],
        "running"
    );
    assert_eq!(
        adjust(&own, "another", "freeze")["error"]["code"],
        "no-session"
    );
    let refused = line(&mut send(&own, "POST", "sessions", &json!({ "policy": "work" })).1);
    assert_eq!(refused["error"]["code"], "one-session");
    assert_eq!(
        adjust(&own, &id, "stop")["adjusted"]["status"]["plan"]["run"],
        "stopped"
    );
    within(|| service.sessions().is_empty() && !own.exists());
}

#[test]
fn a_caller_that_goes_away_stops_its_session() {
    let service = Service::with_work("trap '' TERM; while :; do sleep 0.1; done");
    let (caller, id, init) = service.run_work();
    assert_eq!(service.sessions()[0]["id"], id.as_str());
    assert!(alive(init));
    drop(caller);
    within(|| service.sessions().is_empty() && !alive(init));
}

#[test]
fn a_caller_that_does_not_read_is_given_up_and_its_session_stopped() {
    let service = Service::with_work("yes");
    let (caller, _, init) = service.run_work();
    within(|| service.sessions().is_empty() && !alive(init));
    drop(caller);
}

#[test]
fn kill_reaches_the_workload_of_the_session_it_names() {
    let service =
        Service::with_work("trap 'exit 5' USR1; echo ready; while :; do sleep 0.05; done");
    let (mut caller, id, _) = service.run_work();
    let kill = |session: &str, signal: i32| {
        let signal = json!({ "signal": signal });
        service
            .ask("POST", &format!("sessions/{session}/signals"), &signal)
            .1
    };
    assert_eq!(kill("nobody-1-1", 10)["error"]["code"], "no-session");
    assert_eq!(kill(&id, 0)["error"]["code"], "no-signal");
    // The shell has set its trap when it says so.
    while line(&mut caller).get("output").is_none() {}
    assert_eq!(kill(&id, 10)["killed"]["session"], id.as_str());
    assert_eq!(
        rest(caller).last().unwrap()["outcome"]["ending"],
        json!({ "code": 5 })
    );
}

#[test]
fn sigterm_leaves_nothing() {
    // This one does not end when it is asked to.
    let mut service = Service::with_work("trap '' TERM; while :; do sleep 0.1; done");
    let (caller, _, init) = service.run_work();
    let (second, _, second_init) = service.run_work();
    assert_eq!(service.sessions().len(), 2);
    let status = service.terminate();
    assert!(status.success(), "{status}");
    assert!(!alive(init) && !alive(second_init));
    assert!(!service.socket().exists());
    for caller in [caller, second] {
        let last = rest(caller).pop().unwrap();
        assert_eq!(last["outcome"]["why"], "it was asked to end", "{last}");
    }
}

#[test]
fn a_killed_agent_takes_its_sandboxes_along_and_its_socket_is_replaced() {
    let mut service = Service::with_work("while :; do sleep 0.1; done");
    let (_caller, _, init) = service.run_work();
    service.process.kill().unwrap();
    service.process.wait().unwrap();
    within(|| !alive(init));
    assert!(service.socket().exists());
    service.process = program(service.folder.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    within(|| UnixStream::connect(service.socket()).is_ok());
    assert!(service.terminate().success());
}

#[test]
fn a_second_agent_refuses_to_start() {
    let service = Service::start("");
    let second = program(service.folder.path()).output().unwrap();
    assert!(!second.status.success());
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains("another agent runs already"), "{said}");
    // Nor with a state of its own, on the same socket.
    fs::create_dir(service.folder.path().join("elsewhere")).unwrap();
    let config = service.folder.path().join("agent.toml");
    let text = fs::read_to_string(&config)
        .unwrap()
        .replace("\"state\"", "\"elsewhere\"");
    fs::write(&config, text).unwrap();
    let third = program(service.folder.path()).output().unwrap();
    let said = String::from_utf8(third.stderr).unwrap();
    assert!(
        said.contains("listens on") && said.contains("already"),
        "{said}"
    );
    assert_eq!(
        service.sessions(),
        Vec::<Value>::new(),
        "the first one still serves"
    );
}

#[test]
fn what_is_in_the_place_of_the_socket_is_not_removed() {
    let mut service = Service::start("");
    assert!(service.terminate().success());
    fs::write(service.socket(), "precious").unwrap();
    let again = program(service.folder.path()).output().unwrap();
    assert!(!again.status.success());
    assert_eq!(fs::read_to_string(service.socket()).unwrap(), "precious");
}

#[test]
fn requests_that_are_none_are_refused_with_the_reason() {
    let service = Service::with_work("true");
    service.policy("broken", "true");
    let broken = service.folder.path().join("policies/broken.toml");
    fs::write(&broken, "version = 1\nnam = \"x\"\n").unwrap();
    let run = |wanted: Value| {
        let (status, answer) = service.ask("POST", "sessions", &wanted);
        (status, answer["error"].clone())
    };
    let refused = |policy: &str| run(json!({ "policy": policy })).1;
    let (status, unknown) = run(json!({ "policy": "work", "simulated": true }));
    assert_eq!((status, &unknown["code"]), (400, &json!("request")));
    assert_eq!(run(json!({})).1["code"], "request");
    assert_eq!(refused("absent")["code"], "no-policy");
    for (method, path, status) in [
        ("GET", "elsewhere", 404),
        ("PUT", "sessions", 405),
        ("GET", "sessions?detail=maybe", 400),
        ("GET", "sessions/%ff", 400),
        ("GET", "sessions/nobody-1-1", 404),
        ("GET", "health", 200),
    ] {
        assert_eq!(service.ask(method, path, &Value::Null).0, status, "{path}");
    }
    for name in ["", "../work", "a/b", "work.toml", "w\u{0}", &"a".repeat(65)] {
        assert_eq!(refused(name)["code"], "name", "{name:?}");
    }
    let mistakes = refused("broken");
    assert_eq!(mistakes["code"], "policy");
    assert!(
        mistakes["message"]
            .as_str()
            .unwrap()
            .contains("broken.toml:"),
        "{mistakes}"
    );
    // A policy that others can write is not ours to run.
    fs::set_permissions(&broken, Permissions::from_mode(0o666)).unwrap();
    let exposed = refused("broken");
    assert_eq!(exposed["code"], "policy-file", "{exposed}");
    // More than is read, of a body and of a header.
    let long = json!({ "policy": "a".repeat(80 << 10) });
    assert_eq!(run(long).0, 413);
    let mut stream = UnixStream::connect(service.socket()).unwrap();
    let _ = stream.write_all(&[b"GET /", &*vec![b'a'; 80 << 10]].concat());
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
        "{answer}"
    );
    assert!(service.sessions().is_empty());
}

#[test]
fn a_slow_caller_holds_up_nobody_and_is_dropped() {
    let service = Service::start("");
    let slow = |said: &str| {
        let mut slow = UnixStream::connect(service.socket()).unwrap();
        slow.write_all(said.as_bytes()).unwrap();
        slow.set_read_timeout(Some(PATIENCE)).unwrap();
        slow
    };
    let head = slow("GET /casemate/v0/sess");
    let body = slow(
        "POST /casemate/v0/sessions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n\
         content-length: 20\r\n\r\n{",
    );
    assert!(service.sessions().is_empty(), "others are served meanwhile");
    for mut slow in [head, body] {
        let mut answer = String::new();
        slow.read_to_string(&mut answer).unwrap();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 408"),
            "{answer}"
        );
    }
}

#[test]
fn callers_beyond_the_bound_are_told_so() {
    let service = Service::start("");
    let idle: Vec<_> = (0..guest_agent::transport::MAX_CONNECTIONS)
        .map(|_| UnixStream::connect(service.socket()).unwrap())
        .collect();
    let busy = || service.ask("GET", "sessions", &Value::Null);
    let (status, refused) = busy();
    assert_eq!((status, &refused["error"]["code"]), (503, &json!("busy")));
    drop(idle);
    within(|| busy().1["sessions"].is_array());
}

#[test]
fn the_agent_gains_no_privilege_and_keeps_its_files_to_itself() {
    let service = Service::start("");
    let status = fs::read_to_string(format!("/proc/{}/status", service.process.id())).unwrap();
    assert!(
        status
            .lines()
            .any(|line| line.split_whitespace().eq(["NoNewPrivs:", "1"]))
    );
    let limits = fs::read_to_string(format!("/proc/{}/limits", service.process.id())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let limits: Vec<_> = core.split_whitespace().collect();
    assert_eq!(limits[4..6], ["0", "0"]);
    assert_eq!(mode(&service.socket()), 0o600);
    assert_eq!(mode(&service.folder.path().join("state/runs")), 0o700);
}

#[test]
fn an_agent_of_an_ordinary_user_hides_its_memory_from_that_user_and_serves() {
    if !can_become_nobody() {
        return;
    }
    let mut service = Service::start("");
    assert!(service.terminate().success());
    service.policy("work", "echo hello");
    let ours = |path: &Path| std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    ours(service.folder.path());
    fs::remove_dir_all(service.folder.path().join("state")).unwrap();
    fs::create_dir(service.folder.path().join("state")).unwrap();
    ours(&service.folder.path().join("state"));
    let mut agent = program(service.folder.path());
    service.process = agent
        .uid(NOBODY)
        .gid(NOBODY)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    within(|| UnixStream::connect(service.socket()).is_ok());
    // proc(5): files of a process that is not dumpable belong to root.
    let memory = fs::metadata(format!("/proc/{}/mem", service.process.id())).unwrap();
    assert_eq!(memory.uid(), 0);
    let lines = rest(service.run(&json!({ "policy": "work" })));
    assert_eq!(
        lines.last().unwrap()["outcome"]["ending"],
        json!({ "code": 0 }),
        "{lines:?}"
    );
}

#[test]
fn a_detached_session_runs_on_without_its_caller_and_is_told_of_afterwards() {
    let service = Service::start_with("", &["--dangerously-accept-simulated"]);
    service.proven_policy(
        "work",
        "trap 'exit 6' USR1; echo ready; while :; do sleep 0.05; done",
    );
    let wanted = json!({ "policy": "work", "detached": true, "receipt": true });
    let (status, begun) = service.ask("POST", "sessions", &wanted);
    assert_eq!(status, 201, "{begun}");
    let id = begun["session"]["id"].as_str().unwrap();
    let of = |what: &str| format!("sessions/{id}{what}");
    let get = |what: &str| service.ask("GET", &of(what), &Value::Null);
    // One follows at a time; whoever leaves stops nothing.
    let mut events = service.send("GET", &of("/events"), &Value::Null).1;
    while line(&mut events).get("output").is_none() {}
    assert_eq!(get("/events").1["error"]["code"], "followed");
    assert_eq!(get("/receipt").1["error"]["code"], "no-receipt");
    drop(events);
    within(|| {
        let (status, mut again) = service.send("GET", &of("/events"), &Value::Null);
        if status == 200 {
            let signal = json!({ "signal": 10 });
            service.ask("POST", &of("/signals"), &signal);
            while line(&mut again).get("outcome").is_none() {}
        }
        status == 200
    });
    // It is over, and told of.
    assert!(service.sessions().is_empty());
    let ended = get("").1["sessions"][0]["ended"].clone();
    assert_eq!(ended["outcome"]["ending"], json!({ "code": 6 }));
    let audit = get("/audit?from=1&limit=2").1["audit"].clone();
    assert_eq!(audit["records"][0]["index"], 1);
    assert_eq!(audit["next"], 3);
    assert_eq!(audit["key"], begun["session"]["key"]);
    let receipt = serde_json::to_vec(&get("/receipt").1["receipt"]).unwrap();
    casemate::receipt::Receipt::from_json(&receipt).unwrap();
    assert_eq!(get("/leases").1["error"]["code"], "no-session");
}

#[test]
fn the_lease_of_a_vault_is_taken_and_given_back_through_the_agent() {
    let service = Service::start_with("", &["--dangerously-accept-simulated"]);
    service.proven_policy(
        "work",
        "while :; do cat /data/greeting >/dev/null; sleep 0.05; done",
    );
    service.vault("work", "sales", "read");
    let wanted = json!({ "policy": "work", "detached": true });
    let (_, begun) = service.ask("POST", "sessions", &wanted);
    let id = begun["session"]["id"]
        .as_str()
        .unwrap_or_else(|| panic!("{begun}"));
    let leases = || {
        let (_, told) = service.ask("GET", &format!("sessions/{id}/leases"), &Value::Null);
        told["leases"][0].clone()
    };
    within(|| leases()["read"].as_u64().is_some_and(|read| read > 0));
    let hold = |data: &str, held: bool| {
        let body = json!({ "held": held, "why": "a look" });
        service
            .ask("POST", &format!("sessions/{id}/leases/{data}"), &body)
            .1
    };
    assert_eq!(hold("other", false)["error"]["code"], "no-data");
    assert_eq!(hold("sales", false)["leases"][0]["held"], false);
    assert!(leases()["withdrawn"].as_str().unwrap().contains("a look"));
    hold("sales", true);
    within(|| leases()["held"] == true);
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

/// Only root can become somebody else.
fn can_become_nobody() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can become another user");
    }
    root
}

/// What the agent answers to another user's request.
fn as_nobody(
    socket: PathBuf,
    method: &'static str,
    path: String,
    body: Value,
) -> std::io::Result<Value> {
    let call = move || {
        // For this thread only, which ends with it.
        let nobody = Uid::from_raw(NOBODY);
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        let body = (!body.is_null()).then_some(&body);
        let path = format!("/casemate/v0/{path}");
        let (_, mut answer) = client::send(&socket, method, &path, body)?;
        Ok(line(&mut answer))
    };
    thread::spawn(call).join().unwrap()
}

#[test]
fn another_user_is_refused() {
    if !can_become_nobody() {
        return;
    }
    let closed = Service::start("");
    let sessions = |socket| as_nobody(socket, "GET", "sessions".into(), Value::Null);
    let answer = sessions(closed.socket());
    assert_eq!(
        answer.unwrap_err().kind(),
        std::io::ErrorKind::PermissionDenied
    );
    // A socket that is open to some users is not open to others.
    let open = Service::start("allow-uids = [12345]\n");
    assert_eq!(mode(&open.socket()), 0o666);
    let answer = sessions(open.socket());
    assert_eq!(answer.unwrap()["error"]["code"], "caller");
}

#[test]
fn a_user_who_is_allowed_reaches_no_session_of_others() {
    if !can_become_nobody() {
        return;
    }
    let service = Service::start(&format!("allow-uids = [{NOBODY}]\n"));
    service.policy("work", "while :; do sleep 0.1; done");
    let (_caller, id, init) = service.run_work();
    assert_eq!(service.sessions().len(), 1);
    let asked = |method, path: &str, body| {
        as_nobody(service.socket(), method, path.to_owned(), body).unwrap()
    };
    assert_eq!(
        asked("GET", "sessions", Value::Null),
        json!({ "sessions": [] })
    );
    let of = |what: &str| format!("sessions/{id}{what}");
    for (method, path, body) in [
        ("GET", of(""), Value::Null),
        ("DELETE", of(""), Value::Null),
        ("POST", of("/signals"), json!({ "signal": 9 })),
        (
            "POST",
            of("/orders"),
            json!({ "order": "stop", "why": "x" }),
        ),
        ("GET", of("/events"), Value::Null),
        ("GET", of("/audit"), Value::Null),
        ("GET", of("/receipt"), Value::Null),
        ("GET", of("/leases"), Value::Null),
        (
            "POST",
            of("/leases/x"),
            json!({ "held": false, "why": "x" }),
        ),
        ("POST", of("/evidence"), json!({ "payload": "" })),
    ] {
        let answer = asked(method, &path, body);
        assert_eq!(answer["error"]["code"], "no-session", "{method} {path}");
    }
    assert!(alive(init));
}

#[test]
fn a_run_that_asks_for_a_receipt_gets_one_that_holds_or_the_reason_why_not() {
    let service = Service::start_with("", &["--dangerously-accept-simulated"]);
    service.policy("work", "exit 3");
    service.proven_policy("proven", "exit 4");
    let run = |policy: &str| rest(service.run(&json!({ "policy": policy, "receipt": true })));

    let told = run("proven");
    let [.., receipt, outcome] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!(outcome["outcome"]["ending"]["code"], 4, "{outcome}");
    let receipt = serde_json::to_vec(&receipt["receipt"]).unwrap();
    let verifier = attestation::Verifier::builder()
        .dangerous()
        .accept_simulated();
    let now = attestation::UnixTime::from(std::time::SystemTime::now());
    let proven = casemate::receipt::Receipt::from_json(&receipt)
        .and_then(|receipt| receipt.verify(&verifier.build().unwrap(), now))
        .unwrap();
    assert_eq!(proven.statement().ending, Some(json!({ "code": 4 })));

    let told = run("work");
    let [.., none, outcome] = &told[..] else {
        panic!("{told:?}")
    };
    assert_eq!(outcome["outcome"]["ending"]["code"], 3, "{outcome}");
    let why = none["no-receipt"]["why"].as_str().unwrap();
    assert!(why.contains("no evidence"), "{why}");
}
