//! The clean room through the agent, with its key from two brokers that share an etcd, each in a network of
//! its own: one broker is killed, the network is slow and is cut, the key is revoked, the agent is restarted.
//!
//! ```text
//!  guest ──┐            ┌── one ──┐
//!  (agent) ├── bridge ──┼── two   ├── etcd        each a network namespace
//!          └────────────┴─────────┘
//! ```

#![allow(clippy::unwrap_used)]

#[path = "../attestation/broker/server/tests/play/etcd.rs"]
mod etcd;

mod common;

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use etcd::Etcd;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sha2::{Digest, Sha256};
use vault::audit::{LogKey, LogVerifier, verify};

const DATA: &str = "name,region\nAda,north\nGrace,south\n";
/// Only a hang takes so long.
const DEADLINE: Duration = Duration::from_secs(120);
/// Seconds that the key may be used without word from a broker.
const LEASE: u64 = 10;
const RESOURCE: &str = "default/key/customers";

/// Networks of their own, joined by a bridge.
struct Networks {
    prefix: String,
    names: Vec<&'static str>,
}

impl Networks {
    /// `None` where nobody may make any, which is told; in CI as root they can be made.
    fn new(names: &[&'static str]) -> Option<Self> {
        let mut networks = Self {
            prefix: format!("cm{}", std::process::id()),
            names: Vec::new(),
        };
        let root = rustix::process::geteuid().is_root();
        if !root || !networks.ip(&["netns", "add", &networks.name("hub")]) {
            let must = root && std::env::var_os("CI").is_some();
            assert!(!must, "no network namespaces: `ip netns` is needed");
            eprintln!("SKIPPED: only root, with `ip` of iproute2, can make networks");
            return None;
        }
        networks.names.push("hub");
        let hub = networks.name("hub");
        let all = |commands: &[&[&str]]| commands.iter().all(|words| networks.ip(words));
        assert!(all(&[
            &["-n", &hub, "link", "add", "bridge", "type", "bridge"],
            &["-n", &hub, "link", "set", "bridge", "up"],
        ]));
        for (at, &name) in names.iter().enumerate() {
            let own = networks.name(name);
            assert!(networks.ip(&["netns", "add", &own]));
            networks.names.push(name);
            let address = format!("{}/24", address(at));
            let all = |commands: &[&[&str]]| commands.iter().all(|words| networks.ip(words));
            assert!(all(&[
                &[
                    "-n", &hub, "link", "add", name, "type", "veth", "peer", "name", "net",
                    "netns", &own
                ],
                &["-n", &hub, "link", "set", name, "master", "bridge", "up"],
                &["-n", &own, "link", "set", "lo", "up"],
                &["-n", &own, "address", "add", &address, "dev", "net"],
                &["-n", &own, "link", "set", "net", "up"],
            ]));
        }
        Some(networks)
    }

    fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn ip(&self, words: &[&str]) -> bool {
        let output = Command::new("ip").args(words).output();
        output.is_ok_and(|output| output.status.success())
    }

    /// Joins a network to the others, or cuts it off.
    fn join(&self, name: &str, joined: bool) {
        let state = if joined { "up" } else { "down" };
        assert!(self.ip(&["-n", &self.name("hub"), "link", "set", name, state]));
    }

    /// Makes the way from and to a network slow, with room for a few packets: the rest of a burst is lost.
    /// `false` where this kernel cannot (`tc`, tbf).
    fn slow(&self, name: &str, slow: bool) -> bool {
        let (hub, own) = (self.name("hub"), self.name(name));
        let verb = if slow { "add" } else { "delete" };
        let tbf = "tbf rate 256kbit burst 2000 limit 6000";
        [(&hub, name), (&own, "net")]
            .iter()
            .all(|(network, device)| {
                let words = ["-n", network, "qdisc", verb, "dev", device, "root"];
                let tbf = tbf.split(' ').filter(|_| slow);
                let output = Command::new("tc").args(words).args(tbf).output();
                output.is_ok_and(|output| output.status.success())
            })
    }

    /// What runs a program in a network.
    fn within(&self, name: &str) -> [String; 2] {
        let path = format!("--net=/run/netns/{}", self.name(name));
        ["nsenter".to_owned(), path]
    }

    fn command(&self, name: &str, program: &Path) -> Command {
        let [enter, network] = self.within(name);
        let mut command = Command::new(enter);
        command.arg(network).arg(program).stdin(Stdio::null());
        command
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for name in &self.names {
            self.ip(&["netns", "delete", &self.name(name)]);
        }
    }
}

fn address(at: usize) -> String {
    format!("10.77.0.{}", at + 1)
}

/// Who takes part; each with a folder and a process, etcd with its own.
struct Play {
    folder: tempfile::TempDir,
    processes: BTreeMap<&'static str, Child>,
    _etcd: Etcd,
    networks: Networks,
}

impl Play {
    fn new() -> Option<Self> {
        common::Room::new()?;
        let networks = Networks::new(&["etcd", "one", "two", "guest"])?;
        let [enter, network] = networks.within("etcd");
        let etcd = Etcd::start_at(&[&enter, &network], &format!("{}:2379", address(0)))?;
        let folder = tempfile::tempdir().unwrap();
        let mut play = Self {
            folder,
            processes: BTreeMap::new(),
            _etcd: etcd,
            networks,
        };
        for name in [
            "one",
            "two",
            "guest",
            "guest/state",
            "guest/policies",
            "guest/policies/out",
        ] {
            fs::create_dir(play.path(name)).unwrap();
        }
        let reference =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/clean-room/reference.json");
        let key = rcgen::KeyPair::generate().unwrap();
        let names = vec![address(1), address(2)];
        let certificate = rcgen::CertificateParams::new(names).unwrap();
        let certificate = certificate.self_signed(&key).unwrap().pem();
        play.write("guest/policies/broker.pem", &certificate);
        fs::copy(&reference, play.path("guest/policies/reference.json")).unwrap();
        play.write("guest/policies/customers.csv", DATA);
        for arguments in [
            &["create", "customers.vault"][..],
            &["put", "customers.vault", "customers.csv", "customers.csv"],
        ] {
            let mut vault = common::sandboxctl();
            vault
                .arg("vault")
                .args(arguments)
                .args(["--key-file", "../../one/customers.key"]);
            let output = vault
                .current_dir(play.path("guest/policies"))
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
        }
        fs::copy(
            play.path("one/customers.key"),
            play.path("two/customers.key"),
        )
        .unwrap();
        let policy = play.policy();
        play.write("guest/policies/clean-room.toml", &policy);
        let digest: String = Sha256::digest(&policy)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        for (at, name) in [(1, "one"), (2, "two")] {
            fs::copy(&reference, play.path(name).join("reference.json")).unwrap();
            play.write(&format!("{name}/tls.pem"), &certificate);
            play.write(&format!("{name}/tls.key"), &key.serialize_pem());
            let config = format!(
                "listen = \"{}:8443\"\nlog = \"log\"\nlog-key = \"log.key\"\nadmin = \"admin\"\n\
                 store = \"etcd://{}:2379/casemate?dangerously-plain\"\n\
                 [tls]\ncertificate = \"tls.pem\"\nkey = \"tls.key\"\n\
                 [attestation]\nreference-values = \"reference.json\"\n\
                 [limits]\nsession = 40\nlease = {LEASE}\n\
                 [resources.\"{RESOURCE}\"]\nkey-file = \"customers.key\"\npolicies = [\"{digest}\"]\n",
                address(at),
                address(0),
            );
            play.write(&format!("{name}/broker.toml"), &config);
            play.broker(name);
        }
        play.write(
            "guest/agent.toml",
            "socket = \"agent.sock\"\nstate = \"state\"\npolicies = \"policies\"\n",
        );
        play.agent();
        Some(play)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(0o600)).unwrap();
    }

    fn policy(&self) -> String {
        let script = "while :; do if cat /data/customers.csv > /out/copy 2>/dev/null; then echo read; else echo lost; fi; sleep 0.2; done";
        format!(
            "version = 1\nname = \"clean-room\"\n\
             [attestation]\naccept = [\"simulated\"]\nreference-values = \"reference.json\"\n\
             [workload]\ncommand = [\"sh\", \"-c\", \"{script}\"]\n\
             [files]\nwrite = [{{ from = \"out\", at = \"/out\" }}]\n\
             [data]\ncustomers = {{ vault = \"customers.vault\", at = \"/data\", access = \"read\", \
             key = \"kbs+https://{}:8443,{}:8443/{RESOURCE}?ca=broker.pem\" }}\n\
             [rules]\ncedar = 'permit (principal, action, resource);'\n",
            address(1),
            address(2),
        )
    }

    /// Starts one of the brokers, and waits until it listens.
    fn broker(&mut self, name: &'static str) {
        let program = PathBuf::from(common::casemate_broker().get_program());
        let arguments = ["serve", "broker.toml", "--dangerously-accept-simulated"];
        self.begin(name, name, &program, &arguments, "listens on");
    }

    fn agent(&mut self) {
        let arguments = ["--config", "agent.toml", "--dangerously-accept-simulated"];
        self.begin(
            "agent",
            "guest",
            &common::guest_agent(),
            &arguments,
            "listens on",
        );
    }

    fn begin(
        &mut self,
        name: &'static str,
        network: &str,
        program: &Path,
        arguments: &[&str],
        ready: &str,
    ) {
        let mut process = self
            .networks
            .command(network, program)
            .args(arguments)
            .current_dir(self.path(network))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let mut said = Vec::new();
        let listens = lines.by_ref().any(|line| {
            said.push(line);
            said.last().is_some_and(|line| line.contains(ready))
        });
        assert!(listens, "{name}: {said:?}");
        std::thread::spawn(move || lines.for_each(drop));
        self.processes.insert(name, process);
    }

    fn kill(&mut self, name: &str) {
        let mut process = self.processes.remove(name).unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Tells a broker something, as its operator.
    fn operator(&self, broker: &str, what: &str) {
        let output = common::casemate_broker()
            .args([what, "--admin", "admin", RESOURCE, "--why", "it leaked"])
            .current_dir(self.path(broker))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// Has the agent run the clean room.
    fn run(&self) -> Run {
        let mut stream = UnixStream::connect(self.path("guest/agent.sock")).unwrap();
        // In HTTP/1.0 what is told comes as it is, until the end of the connection.
        let wanted = "{\"policy\":\"clean-room\"}";
        let head = "POST /casemate/v0/sessions HTTP/1.0\r\ncontent-type: application/json";
        let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{wanted}", wanted.len());
        stream.write_all(request.as_bytes()).unwrap();
        let (sender, lines) = channel();
        let read = BufReader::new(stream.try_clone().unwrap());
        std::thread::spawn(move || {
            let lines = read.lines().map_while(Result::ok);
            let lines = lines.filter_map(|line| serde_json::from_str(&line).ok());
            lines.for_each(|line: Value| drop(sender.send(line)));
        });
        Run {
            _stream: stream,
            lines,
            seen: Vec::new(),
        }
    }

    /// The records of a broker that has ended, or was killed.
    fn records(&self, broker: &str) -> Vec<Value> {
        let key = LogKey::load(&self.path(broker).join("log.key")).unwrap();
        let key = key.verifier("casemate/broker").unwrap();
        let verified = verify(&self.path(broker).join("log"), Some(&key), None).unwrap();
        verified
            .records()
            .map(|entry| entry.unwrap().record.payload)
            .collect()
    }
}

impl Drop for Play {
    fn drop(&mut self) {
        for process in self.processes.values_mut() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A run, line by line.
struct Run {
    _stream: UnixStream,
    lines: Receiver<Value>,
    seen: Vec<Value>,
}

impl Run {
    /// Waits for a line.
    fn until(&mut self, what: &str, mut wanted: impl FnMut(&Value) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else {
                let last: Vec<_> = self.seen.iter().rev().take(12).collect();
                panic!("never {what}; last: {last:?}");
            };
            self.seen.push(line.clone());
            if wanted(&line) {
                return;
            }
            assert!(
                line["error"].is_null() && line["outcome"].is_null(),
                "before {what}: {line}"
            );
        }
    }

    fn until_output(&mut self, word: &str) {
        self.until(word, |line| output(line).contains(word));
    }

    fn until_ordered(&mut self, why: &str) {
        self.until(why, |line| {
            line["record"]["kind"] == "ordered"
                && line["record"]["why"].as_str().unwrap().contains(why)
        });
    }
}

impl Run {
    /// The agent was killed: nothing of the sandbox is left, and what was told of it is in its log.
    fn is_over_and_its_log_verifies(&mut self) {
        self.seen.extend(self.lines.iter());
        let records: Vec<_> = self.seen.iter().map(|line| &line["record"]).collect();
        let kind = |kind: &str| records.iter().find(|record| record["kind"] == kind);
        let init = kind("prepared").unwrap()["pid"].to_string();
        let deadline = Instant::now() + DEADLINE;
        while Path::new("/proc").join(&init).exists() {
            assert!(Instant::now() < deadline, "the sandbox outlives its agent");
            std::thread::sleep(Duration::from_millis(10));
        }
        let session = &self.seen[0]["session"];
        let key = session["key"].as_str().unwrap();
        let key: Vec<u8> = (0..32)
            .map(|at| u8::from_str_radix(&key[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        let key = LogVerifier::new("casemate/run", key.try_into().unwrap()).unwrap();
        let log = Path::new(session["log"].as_str().unwrap());
        let log = verify(log, Some(&key), None).unwrap();
        let told = records.iter().filter(|record| record.is_object()).count() as u64;
        assert!(
            log.size() + log.unsigned_tail() >= told,
            "{told} records were told of, {} are there",
            log.size() + log.unsigned_tail()
        );
    }
}

/// What the workload wrote.
fn output(line: &Value) -> String {
    let bytes = STANDARD.decode(line["output"]["base64"].as_str().unwrap_or_default());
    String::from_utf8(bytes.unwrap()).unwrap()
}

#[test]
fn the_clean_room_keeps_its_data_while_a_broker_is_there_and_not_for_longer() {
    let Some(mut play) = Play::new() else { return };
    let mut run = play.run();
    run.until_output("read");
    assert_eq!(
        fs::read_to_string(play.path("guest/policies/out/copy")).unwrap(),
        DATA
    );

    // One of two is killed: the lease goes on with the other, for longer than one lasts.
    play.kill("one");
    let began = Instant::now();
    run.until("a lease later", |line| {
        assert!(
            line["record"]["kind"] != "ordered" && !output(line).contains("lost"),
            "{line}"
        );
        began.elapsed() > Duration::from_secs(LEASE + 2)
    });

    // The network is slow, and loses what comes at once. If a lease ends over it, it is given again.
    if play.networks.slow("guest", true) {
        let began = Instant::now();
        run.until("a lease over a slow network", |_| {
            began.elapsed() > Duration::from_secs(LEASE + 2)
        });
        assert!(play.networks.slow("guest", false));
    } else {
        eprintln!("SKIPPED: this kernel cannot make a network slow (tc, tbf)");
    }
    run.until_output("read");

    // The network is cut: what it has it may use until the lease ends, and not beyond.
    play.networks.join("guest", false);
    let cut = Instant::now();
    run.until_ordered("no word from the broker in time");
    let later = cut.elapsed();
    assert!(
        later < Duration::from_secs(LEASE) + DEADLINE / 4,
        "{later:?}"
    );
    run.until_output("lost");
    // It is there again, and is slow: what is released now is released on fresh evidence.
    play.networks.join("guest", true);
    run.until_ordered("can be reached again");
    run.until_output("read");

    // Without etcd nothing is renewed either; with it, all goes on.
    play.networks.join("etcd", false);
    run.until_ordered("no word from the broker in time");
    run.until_output("lost");
    play.networks.join("etcd", true);
    run.until_ordered("can be reached again");
    run.until_output("read");

    // What is revoked at the one that was away is taken from the guest, which asks the other.
    play.broker("one");
    play.operator("one", "revoke");
    run.until_ordered("revoked");
    run.until_output("lost");

    // The agent is gone with its sandboxes, and every record is there; the next one gets no key until the
    // operator says so.
    play.operator("two", "restore");
    let mut leased = play.run();
    leased.until_output("read");
    play.operator("one", "revoke");
    play.kill("agent");
    leased.is_over_and_its_log_verifies();
    play.agent();
    let mut refused = play.run();
    refused.until("refused", |line| line["error"]["message"].is_string());
    let why = refused.seen.last().unwrap()["error"]["message"].to_string();
    assert!(why.contains("not released to this guest"), "{why}");
    play.operator("two", "restore");
    let mut again = play.run();
    again.until_output("read");

    // No record is lost, and for each nonce there is one attestation, whichever broker was asked.
    for name in ["agent", "one", "two"] {
        let process = play.processes.remove(name);
        let mut process = process.unwrap();
        kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
        assert!(process.wait().unwrap().success(), "{name}");
    }
    let records = [play.records("one"), play.records("two")].concat();
    let of = |kind: &str| {
        let all = records.iter().filter(|record| record["kind"] == kind);
        let mut sessions: Vec<_> = all.map(|record| record["session"].to_string()).collect();
        sessions.sort_unstable();
        sessions
    };
    let (attested, releasing) = (of("attested"), of("releasing"));
    let mut once = attested.clone();
    once.dedup();
    assert_eq!(once, attested, "no nonce was good twice");
    assert!(
        releasing.iter().all(|session| attested.contains(session)),
        "{records:?}"
    );
    let told = run.seen.iter().chain(&again.seen);
    let released = told
        .filter(|line| line["record"]["kind"] == "released")
        .count();
    // At the start, after each time without word, and after the restart.
    assert!(
        released >= 4 && releasing.len() >= released,
        "{released} {releasing:?}"
    );
}
