//! An etcd of its own for a test: the real program, in a folder that goes with it.

#![allow(dead_code, clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Only a hang takes so long.
const DEADLINE: Duration = Duration::from_secs(60);

/// A running etcd.
pub struct Etcd {
    folder: tempfile::TempDir,
    process: Option<Child>,
    within: Vec<String>,
    address: String,
}

impl Etcd {
    /// Starts one on loopback. `None` where there is no etcd, which is told; in CI there is one.
    pub fn start() -> Option<Self> {
        // The port that was just given back.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        Self::start_at(&[], &format!("127.0.0.1:{port}"))
    }

    /// Starts one by way of another command, at this address.
    pub fn start_at(within: &[&str], address: &str) -> Option<Self> {
        if Command::new("etcd").arg("--version").output().is_err() {
            assert!(
                std::env::var_os("CI").is_none(),
                "there is no `etcd`: install etcd-server"
            );
            eprintln!("SKIPPED: there is no `etcd` here (Debian: etcd-server)");
            return None;
        }
        let mut etcd = Self {
            folder: tempfile::tempdir().unwrap(),
            process: None,
            within: within.iter().map(|&word| word.to_owned()).collect(),
            address: address.to_owned(),
        };
        etcd.begin();
        etcd.await_health();
        Some(etcd)
    }

    fn begin(&mut self) {
        let url = format!("http://{}", self.address);
        let words = [
            "etcd",
            "--data-dir",
            self.folder.path().to_str().unwrap(),
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
            // It is alone: nobody asks for this one.
            "--listen-peer-urls",
            "http://127.0.0.1:0",
            "--initial-advertise-peer-urls",
            "http://127.0.0.1:1",
            "--initial-cluster",
            "default=http://127.0.0.1:1",
        ]
        .map(str::to_owned);
        let words: Vec<_> = self.within.iter().chain(&words).collect();
        let process = Command::new(words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.process = Some(process.unwrap());
    }

    fn await_health(&self) {
        if !self.within.is_empty() {
            // Not to be reached from here; whoever needs it waits for it.
            return;
        }
        let deadline = Instant::now() + DEADLINE;
        while !self.is_healthy() {
            assert!(Instant::now() < deadline, "etcd does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_healthy(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(&self.address) else {
            return false;
        };
        let mut told = String::new();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let asked = stream.write_all(b"GET /health HTTP/1.0\r\n\r\n");
        asked.is_ok() && stream.read_to_string(&mut told).is_ok() && told.contains("\"true\"")
    }

    /// What a broker is told to keep its store in it.
    pub fn uri(&self) -> String {
        format!("etcd://{}/test?dangerously-plain", self.address)
    }

    /// Lets it answer nobody, and hold every connection.
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
        self.await_health();
    }

    /// Kills it, and starts it again with what it had made durable.
    pub fn restart(&mut self) {
        self.kill();
        self.begin();
        self.await_health();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.process.as_ref().unwrap()), signal).unwrap();
    }

    fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
