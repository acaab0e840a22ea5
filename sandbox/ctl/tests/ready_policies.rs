//! The ready policies run, with the programs and the attempts they were written for.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};

use casemate::enforcement::PROTECTIONS;

/// A ready policy in a folder of its own, changed as said.
fn ready(name: &str, folder: &Path, change: impl Fn(String) -> String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/policies");
    let text = fs::read_to_string(path.join(name)).unwrap();
    fs::write(folder.join("policy.toml"), change(text)).unwrap();
}

/// Runs it, and gives what it printed and its exit code.
fn run(folder: &Path) -> (String, Option<i32>) {
    let output = Command::new(env!("CARGO_BIN_EXE_sandboxctl"))
        .args(["run", "policy.toml", "--log", "log", "--quiet"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    (out, output.status.code())
}

/// The payloads of this kind in the verified log, one a line.
fn records(folder: &Path, kind: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sandboxctl"))
        .args(["audit", "show", "log", "--kind", kind])
        .current_dir(folder)
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

const MODEL_CODE: &str = r##"
import os, socket, subprocess, sys

granted, other = sys.argv[1:]

def call(port):
    try:
        with socket.create_connection(("127.0.0.1", int(port))) as there:
            there.sendall(b"hello\n")
            return there.recv(6).decode().strip()
    except OSError as error:
        return type(error).__name__

def refused(attempt):
    try:
        attempt()
        return "not refused"
    except OSError as error:
        return "refused"

with open("result.txt", "w") as result:
    result.write("42\n")
with open("tool.sh", "w") as tool:
    tool.write("#!/bin/sh\necho executed\n")
os.chmod("tool.sh", 0o755)
print("run what was written:", refused(lambda: subprocess.run(["/scratch/tool.sh"], check=True)))
print("change the task:", refused(lambda: open("/task/main.py", "a")))
print("granted:", call(granted))
print("other:", call(other))
# Whoever tried elsewhere has no network any more; how soon is another test's business.
while call(granted) == "world":
    pass
print("granted: no more")
"##;

#[test]
fn code_of_a_model_has_its_task_and_the_network_it_was_granted_until_it_tries_another() {
    if Command::new("python3").arg("--version").output().is_err() {
        assert!(std::env::var_os("CI").is_none(), "there is no python3");
        println!("skipped: there is no python3");
        return;
    }
    // Not in /tmp, which a sandbox replaces by its own.
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let at = folder.path();
    fs::create_dir(at.join("task")).unwrap();
    fs::create_dir(at.join("work")).unwrap();
    fs::write(at.join("task/main.py"), MODEL_CODE).unwrap();
    let bound = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (granted, other) = (bound(), bound());
    let port = |server: &TcpListener| server.local_addr().unwrap().port();
    ready("code-interpreter.toml", at, |text| {
        // The package index is not asked in a test: a server of this test stands for it.
        let granted_too = format!("connect = [\"127.0.0.1:{}\", ", port(&granted));
        let arguments = format!("main.py\", \"{}\", \"{}\"]", port(&granted), port(&other));
        text.replace("connect = [", &granted_too)
            .replace("main.py\"]", &arguments)
            // On a busy machine everything waits for the CPU; with that, this would be held for a person.
            .replace(
                "resource-pressure = { adds = 20 }",
                "resource-pressure = { adds = 1 }",
            )
    });
    let (answering, ended) = (granted.try_clone().unwrap(), granted.local_addr().unwrap());
    let index = std::thread::spawn(move || {
        let mut line = [0; 6];
        loop {
            let (mut stream, _) = answering.accept().unwrap();
            match stream.read_exact(&mut line) {
                Ok(()) if &line == b"enough" => return,
                // One that was ended meanwhile.
                Ok(()) => drop(stream.write_all(b"world\n")),
                Err(_) => {}
            }
        }
    });
    let (out, code) = run(at);
    std::net::TcpStream::connect(ended)
        .unwrap()
        .write_all(b"enough")
        .unwrap();
    index.join().unwrap();
    assert_eq!(
        out,
        "run what was written: refused\nchange the task: refused\n\
         granted: world\nother: PermissionError\ngranted: no more\n"
    );
    assert_eq!(code, Some(0));
    assert_eq!(
        fs::read_to_string(at.join("work/result.txt")).unwrap(),
        "42\n"
    );
    other.set_nonblocking(true).unwrap();
    assert_eq!(other.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    let taken = records(at, "adjusted");
    assert!(taken.contains("pypi.org:443"), "{taken}");

    // Whatever a launch reports has a name that rules can ask for.
    let prepared = records(at, "prepared");
    let names: Vec<&str> = prepared
        .split("\"id\":\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next())
        .collect();
    assert!(names.len() > 10, "{prepared}");
    for name in names {
        assert!(PROTECTIONS.contains(&name), "{name}");
    }
}

#[test]
fn a_job_of_a_stranger_builds_and_changes_nothing_but_its_artefacts() {
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let at = folder.path();
    for name in ["checkout", "ci", "cache", "out"] {
        fs::create_dir(at.join(name)).unwrap();
    }
    fs::write(at.join("checkout/source"), "stranger's\n").unwrap();
    fs::write(at.join("cache/library"), "cached\n").unwrap();
    fs::write(
        at.join("ci/job.sh"),
        "cat source /cache/library > /out/artefact\n\
         for place in /src /ci /cache; do (echo x > $place/changed) 2>/dev/null && echo changed; done\n\
         (echo 'echo executed' > /out/tool; chmod +x /out/tool; /out/tool) 2>/dev/null || echo not executed\n\
         set | grep -c SECRET; cat /var/tmp/* 2>/dev/null; exit 3\n",
    )
    .unwrap();
    ready("untrusted-ci.toml", at, |text| text);
    let (out, code) = run(at);
    assert_eq!((out.as_str(), code), ("not executed\n0\n", Some(3)));
    let artefact = fs::read_to_string(at.join("out/artefact")).unwrap();
    assert_eq!(artefact, "stranger's\ncached\n");
}
