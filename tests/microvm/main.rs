//! The same policy in a virtual machine: the whole demonstration, what the host sees of it, and how it ends
//! when something is killed.
//!
//! Needs QEMU and a kernel in `/boot`, as Debian's packages `qemu-system-x86` and
//! `linux-image-cloud-amd64` have them. Without KVM the machines are emulated, and take some seconds.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
mod ended;
mod warm;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use common::rooms::{DATA, Rooms};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const QEMU: &str = "/usr/bin/qemu-system-x86_64";

/// Whether machines can be launched here; CI must be able to.
fn machines() -> bool {
    let kernels = fs::read_dir("/boot").into_iter().flatten().flatten();
    let kernel = kernels
        .map(|entry| entry.file_name())
        .any(|name| name.to_string_lossy().starts_with("vmlinuz-"));
    let there = kernel && Path::new(QEMU).exists();
    assert!(
        there || std::env::var_os("CI").is_none(),
        "install qemu-system-x86 and linux-image-cloud-amd64"
    );
    if !there {
        println!("skipped: there is no {QEMU}, or no kernel in /boot");
    }
    there
}

/// A folder with a policy for a machine.
struct Place(tempfile::TempDir);

impl Place {
    /// `None` where there are no machines.
    fn new(script: &str, tables: &str) -> Option<Self> {
        if !machines() {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("out")).unwrap();
        let script = serde_json::to_string(script).unwrap();
        let policy = format!(
            "version = 1\nname = \"machine\"\n[workload]\ncommand = [\"sh\", \"-c\", {script}]\n\
             [isolation]\nbackend = \"microvm\"\nmemory = \"128MiB\"\n{tables}\n\
             [files]\nwrite = [{{ from = \"out\", at = \"/out\" }}]\n\
             [rules]\ncedar = 'permit (principal, action, resource);'\n"
        );
        fs::write(folder.path().join("policy.toml"), policy).unwrap();
        Some(Self(folder))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, further: &[&str]) -> Command {
        let mut command = common::sandboxctl();
        if !further.contains(&"--agent") {
            command.arg("run").arg("--agent").arg(common::guest_agent());
        } else {
            command.arg("run");
        }
        command
            .args(["policy.toml", "--json", "--log", "log"])
            .args(further)
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, further: &[&str]) -> Output {
        self.command(further).output().unwrap()
    }

    /// A run whose workload is about to start, or has.
    fn started(&self, further: &[&str]) -> Started {
        Started::of(self.command(further))
    }

    /// What the host recorded of the machine; the log verifies.
    fn records(&self) -> Vec<Value> {
        let log = self.path("log.machine");
        let verified = vault::audit::verify(&log, None, None).unwrap();
        assert_eq!(verified.unsigned_tail(), 0, "it was closed");
        let records = verified.records();
        records
            .map(|entry| serde_json::to_value(entry.unwrap().record.payload).unwrap())
            .collect()
    }

    /// The session's log, as far as it came, verifies.
    fn session_log_verifies(&self) {
        let verified = vault::audit::verify(&self.path("log"), None, None).unwrap();
        assert!(verified.size() + verified.unsigned_tail() > 5);
    }
}

struct Started {
    child: Child,
    stderr: BufReader<ChildStderr>,
    told: String,
    qemu: Pid,
}

impl Started {
    fn of(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut told = String::new();
        while !told.contains("\"kind\":\"started\"") {
            let read = stderr.read_line(&mut told).unwrap();
            assert!(read > 0, "it did not start: {told}");
        }
        let qemu = machine_of(child.id());
        Self {
            child,
            stderr,
            told,
            qemu,
        }
    }

    /// Waits for the end; gives the exit code and all that was told. Nothing of the machine is left.
    fn end(mut self) -> (Option<i32>, String) {
        self.stderr.read_to_string(&mut self.told).unwrap();
        let status = self.child.wait().unwrap();
        common::wait_until("the machine's end", || !is_machine(self.qemu));
        (status.code(), self.told)
    }
}

fn is_machine(pid: Pid) -> bool {
    let program = fs::read_link(format!("/proc/{}/exe", pid.as_raw_nonzero()));
    program.is_ok_and(|program| program == Path::new(QEMU))
}

/// The machine that this process launched.
fn machine_of(supervisor: u32) -> Pid {
    let children = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter_map(|entry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            let status = fs::read_to_string(entry.path().join("status")).ok()?;
            let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
            (parent.trim() == supervisor.to_string() && is_machine(pid)).then_some(pid)
        });
    children.last().expect("a machine")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_clean_room_does_the_same_in_a_machine_and_its_receipt_is_proof() {
    if !machines() {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let room = tempfile::tempdir().unwrap();
    let output = Command::new(root.join("examples/clean-room/run.sh"))
        .args(["--backend", "microvm", "--agent"])
        .arg(common::guest_agent())
        .env("SANDBOXCTL", common::sandboxctl().get_program())
        .env("CLEAN_ROOM_DIR", room.path().join("run"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let shown = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{shown}");
    for told in [
        "machine ",
        "analysis: the data is gone, also from the open descriptor",
        "log verified",
        "proven, as of ",
        "the policy stopped the analysis, and the log proves it",
    ] {
        assert!(shown.contains(told), "{told}: {shown}");
    }
    let result = fs::read_to_string(room.path().join("run/out/spend-by-region.csv")).unwrap();
    assert_eq!(result.lines().count(), 5);
}

#[test]
fn a_key_comes_from_a_broker_outside_and_the_host_sees_neither_it_nor_the_data() {
    if !machines() {
        return;
    }
    let Some(mut rooms) = Rooms::new() else {
        return;
    };
    let agent = common::guest_agent();
    let further = [
        "--backend",
        "microvm",
        "--receipt",
        "receipt.json",
        "--record-channel",
        "crossed",
        "--agent",
        agent.to_str().unwrap(),
    ];
    // The result is not the data: what a workload writes to `/out` is for the host to have.
    let script = "wc -l < /data/customers.csv > /out/copy";
    rooms.write("guest/policy.toml", &rooms.policy(script));
    rooms.end_broker();
    let digest = rooms.policy_digest();
    rooms.serve(&digest);
    let told = rooms.run("log", &further);
    assert!(told.status.success(), "{}", text(&told.stderr));
    let result = fs::read_to_string(rooms.path("guest/out/copy")).unwrap();
    assert_eq!(result.trim(), "3");

    let proof = rooms.proof();
    assert_eq!(proof["statement"]["data"][0]["read"], DATA.len());
    rooms.end_broker();
    let records = rooms.records();
    assert!(records.iter().any(|record| record["kind"] == "releasing"));

    // Everything that passed through the host's hands.
    let crossed = fs::read(rooms.path("guest/crossed")).unwrap();
    let key = fs::read_to_string(rooms.path("owner/customers.key")).unwrap();
    let seen = |secret: &[u8]| crossed.windows(secret.len()).any(|window| window == secret);
    assert!(
        seen(b"machine-") || seen(b"released"),
        "it is the channel that was recorded"
    );
    for line in DATA.lines() {
        assert!(!seen(line.as_bytes()), "the host saw `{line}`");
    }
    let secrets = key.lines().map(str::trim).filter(|line| line.len() >= 32);
    for secret in secrets {
        assert!(!seen(secret.as_bytes()), "the host saw the key");
        let raw: Vec<u8> = secret
            .as_bytes()
            .chunks(2)
            .filter_map(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok())
            .collect();
        assert!(raw.len() < 32 || !seen(&raw), "the host saw the key");
    }
}

#[test]
fn output_and_exit_code_come_out_and_results_are_kept() {
    let script = "cat; echo told >&2; echo kept > /out/result; mkdir /out/sub; exit 7";
    let Some(place) = Place::new(script, "") else {
        return;
    };
    let mut child = place.command(&[]).stdin(Stdio::piped()).spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"from outside")
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "from outside");
    assert!(text(&output.stderr).contains("told\n"));
    assert_eq!(
        fs::read_to_string(place.path("out/result")).unwrap(),
        "kept\n"
    );
    assert!(place.path("out/sub").is_dir());
    place.session_log_verifies();
    let records = place.records();
    assert_eq!(records.last().unwrap()["why"], "the session ended");
}

#[test]
fn a_time_limit_and_a_signal_reach_the_workload() {
    let Some(place) = Place::new("sleep 600", "time = \"1s\"") else {
        return;
    };
    // Without trees that cross, the sandbox is made before the host is heard.
    let policy = fs::read_to_string(place.path("policy.toml")).unwrap();
    let (before, after) = policy.split_once("[files]").unwrap();
    let rules = after.find("[rules]").unwrap();
    let policy = format!("{before}{}", &after[rules..]);
    fs::write(place.path("policy.toml"), policy).unwrap();
    let output = place.run(&[]);
    assert_eq!(output.status.code(), Some(124), "{}", text(&output.stderr));

    let script = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done";
    let Some(place) = Place::new(script, "") else {
        return;
    };
    let mut started = place.started(&[]);
    // Before that the trap may not be set.
    let mut ready = String::new();
    let mut stdout = BufReader::new(started.child.stdout.take().unwrap());
    stdout.read_line(&mut ready).unwrap();
    assert_eq!(ready, "ready\n");
    kill_process(Pid::from_child(&started.child), Signal::TERM).unwrap();
    let (code, told) = started.end();
    assert_eq!(code, Some(3), "{told}");
}

#[test]
fn orders_reach_the_session_inside_and_a_pause_stops_all_of_it() {
    let Some(place) = Place::new("sleep 600", "") else {
        return;
    };
    let sockets = tempfile::tempdir().unwrap();
    let mut command = place.command(&[]);
    command.env("XDG_RUNTIME_DIR", sockets.path());
    let started = Started::of(command);
    let ask = |arguments: &[&str]| {
        let mut command = common::sandboxctl();
        command
            .args(arguments)
            .env("XDG_RUNTIME_DIR", sockets.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let supervisor = Pid::from_child(&started.child);
    let state = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", started.child.id())).unwrap();
        stat.rsplit(") ").next().unwrap().chars().next().unwrap()
    };
    // Whoever continues it is heard by the machine too.
    kill_process(supervisor, Signal::TSTP).unwrap();
    common::wait_until("the pause", || state() == 'T');
    kill_process(supervisor, Signal::CONT).unwrap();

    let shown = ask(&["status"]);
    let id = shown.split_whitespace().next().unwrap().to_owned();
    assert!(id.starts_with("machine-"), "{shown}");
    ask(&["adjust", &id, "--why", "a story", "--freeze"]);
    let shown = ask(&["status", &id]);
    assert!(shown.contains("frozen"), "{shown}");
    ask(&["adjust", &id, "--why", "a story", "--stop"]);
    let (_, told) = started.end();
    assert!(told.contains("\"why\":\"a story\""), "{told}");
    let kinds = fs::read_dir(sockets.path().join("casemate/sessions")).unwrap();
    assert_eq!(kinds.count(), 0, "its socket is gone with it");
    place.session_log_verifies();
}

#[test]
fn what_a_machine_does_not_have_yet_is_refused_before_it_is_launched() {
    let Some(place) = Place::new("true", "[network]\nconnect = [\"192.0.2.1:443\"]") else {
        return;
    };
    let output = place.run(&[]);
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{told}");
    assert!(
        told.contains("`[network] connect` is not available"),
        "{told}"
    );
}

#[test]
fn two_builds_of_an_image_are_the_same_bytes() {
    let Some(place) = Place::new("true", "") else {
        return;
    };
    let build = |name: &str| {
        let mut command = common::sandboxctl();
        command
            .args(["image", "build", "policy.toml", "--output", name, "--agent"])
            .arg(common::guest_agent())
            .current_dir(place.0.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        (text(&output.stdout), fs::read(place.path(name)).unwrap())
    };
    let one = build("one");
    // Another time of the same source.
    fs::copy(place.path("policy.toml"), place.path("again")).unwrap();
    fs::rename(place.path("again"), place.path("policy.toml")).unwrap();
    let other = build("other");
    assert!(one == other);
}

#[test]
fn no_way_out_of_the_sandbox_is_open_in_a_machine_either() {
    let Some(place) = Place::new("true", "") else {
        return;
    };
    let root = place.0.path();
    for folder in ["read", "write"] {
        fs::create_dir(root.join(folder)).unwrap();
    }
    fs::write(root.join("read/file"), "granted").unwrap();
    let policy = format!(
        "version = 1\nname = \"escape\"\n[workload]\ncommand = [\"/probe\", \"all\"]\n\
         env = {{ PROBE_INSIDE = \"1\", PROBE_READ = \"/granted\", PROBE_WRITE = \"/kept\", \
         PROBE_SECRET = \"/policy/policy.toml\", PROBE_SOCKET = \"/run/log\", PROBE_HOST_PID = \"2\" }}\n\
         [isolation]\nbackend = \"microvm\"\nmemory = \"256MiB\"\ncpu = 2.0\n\
         [files]\nread = [{{ from = {:?}, at = \"/probe\" }}, {{ from = \"read\", at = \"/granted\" }}]\n\
         write = [{{ from = \"write\", at = \"/kept\" }}]\n\
         [rules]\ncedar = 'permit (principal, action, resource);'\n",
        common::probe()
    );
    fs::write(place.path("policy.toml"), policy).unwrap();
    let probe = common::probe();
    let output = place.run(&["--with", probe.to_str().unwrap()]);
    let (shown, told) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{shown}{told}");
    let verdicts: Vec<&str> = shown.lines().collect();
    assert!(verdicts.len() > 100, "the probe ended early: {shown}");
    let open = verdicts
        .iter()
        .filter(|line| line.split(' ').nth(1) != Some("closed"));
    let open: Vec<_> = open.collect();
    assert!(open.is_empty(), "{open:#?}");
}

#[test]
fn a_confidential_machine_is_refused_where_the_hardware_is_not() {
    let Some(place) = Place::new("true", "") else {
        return;
    };
    if Path::new("/dev/sev").exists() {
        println!("skipped: this host may have the hardware");
        return;
    }
    for (tee, told) in [
        ("sev-snp", "launches no sev-snp guests"),
        ("tdx", "launches no tdx guests"),
    ] {
        let output = place.run(&["--tee", tee, "--firmware", "/bin/true"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{said}");
        assert!(said.contains(told), "{said}");
        fs::remove_dir_all(place.path("log.machine")).unwrap();
    }
}

#[test]
fn a_machine_has_cgroups_of_version_2_alone_and_they_limit_and_kill() {
    let Some(place) = Place::new("true", "") else {
        return;
    };
    let probe = common::probe();
    let script = "/probe memory-bomb; echo ended $?; exec /probe fork-bomb";
    let policy = format!(
        "version = 1\nname = \"version-2\"\n[workload]\ncommand = [\"sh\", \"-c\", {script:?}]\n\
         env = {{ PROBE_INSIDE = \"1\" }}\n\
         [isolation]\nbackend = \"microvm\"\nmemory = \"64MiB\"\npids = 24\n\
         [files]\nread = [{{ from = {probe:?}, at = \"/probe\" }}]\n\
         [rules]\ncedar = 'permit (principal, action, resource);'\n"
    );
    fs::write(place.path("policy.toml"), policy).unwrap();
    let output = place.run(&["--with", probe.to_str().unwrap()]);
    let (shown, told) = (text(&output.stdout), text(&output.stderr));
    // Killed for lack of memory; then refused another process.
    assert!(shown.contains("ended 137"), "{shown}{told}");
    assert!(shown.contains("EAGAIN"), "{shown}{told}");
    let verified = vault::audit::verify(&place.path("log"), None, None).unwrap();
    let enforced = verified
        .records()
        .map(|entry| serde_json::to_value(entry.unwrap().record.payload).unwrap())
        .find(|payload| !payload["enforcement"].is_null())
        .unwrap();
    let item = |id: &str| {
        let items = enforced["enforcement"].as_array().unwrap();
        let item = items.iter().find(|item| item["id"] == id).unwrap();
        (item["state"].clone(), item["detail"].clone())
    };
    assert_eq!(item("cgroup"), ("full".into(), "v2".into()));
    assert_eq!(item("freeze").0, "full");
    assert_eq!(item("resources").0, "full");
}
