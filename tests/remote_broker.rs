//! The clean room with its key somewhere else: a broker of its own, reached over TLS, that releases the
//! key to this policy in an attested guest; and a receipt that proves the run to its owner.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sha2::{Digest, Sha256};
use vault::audit::{LogKey, verify};

const DATA: &str = "name,region\nAda,north\nGrace,south\n";

/// What the data owner has: the vault's key, and a broker that keeps it. And what the guest's side has:
/// the vault, and a policy.
struct Rooms {
    folder: tempfile::TempDir,
    broker: Option<Child>,
    port: u16,
}

impl Rooms {
    /// `None` on a host that lets nobody make namespaces.
    fn new() -> Option<Self> {
        common::Room::new()?;
        let folder = tempfile::tempdir().unwrap();
        for name in ["owner", "guest", "guest/out"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        let mut rooms = Self {
            folder,
            broker: None,
            port: 0,
        };
        let reference =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/clean-room/reference.json");
        for side in ["owner", "guest"] {
            fs::copy(&reference, rooms.path(side).join("reference.json")).unwrap();
        }
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let certificate = parameters.self_signed(&key).unwrap().pem();
        rooms.write("owner/tls.key", &key.serialize_pem());
        rooms.write("owner/tls.pem", &certificate);
        rooms.write("guest/broker.pem", &certificate);
        rooms.write("guest/customers.csv", DATA);
        let vault = |arguments: &[&str]| {
            let mut command = common::sandboxctl();
            command
                .args(["vault"])
                .args(arguments)
                .args(["--key-file", "../owner/customers.key"]);
            rooms.succeeds(command.current_dir(rooms.path("guest")));
        };
        vault(&["create", "customers.vault"]);
        vault(&["put", "customers.vault", "customers.csv", "customers.csv"]);
        // A first start, so that there is a port to put into the policy.
        rooms.serve(&"00".repeat(32));
        rooms.write(
            "guest/policy.toml",
            &rooms.policy("cat /data/customers.csv > /out/copy"),
        );
        rooms.end_broker();
        rooms.serve(&rooms.policy_digest());
        Some(rooms)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(0o600)).unwrap();
    }

    fn policy(&self, script: &str) -> String {
        format!(
            "version = 1\nname = \"clean-room\"\n\
             [attestation]\naccept = [\"simulated\"]\nreference-values = \"reference.json\"\n\
             [workload]\ncommand = [\"sh\", \"-c\", \"{script}\"]\n\
             [files]\nwrite = [{{ from = \"out\", at = \"/out\" }}]\n\
             [data]\ncustomers = {{ vault = \"customers.vault\", at = \"/data\", access = \"read\", \
             key = \"kbs+https://127.0.0.1:{}/default/key/customers?ca=broker.pem\" }}\n\
             [rules]\ncedar = 'permit (principal, action, resource);'\n",
            self.port
        )
    }

    fn policy_digest(&self) -> String {
        let digest = Sha256::digest(fs::read(self.path("guest/policy.toml")).unwrap());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Starts the broker, for one policy; on the port that it had before, if it had one.
    fn serve(&mut self, policy: &str) {
        let port = self.port;
        self.write(
            "owner/broker.toml",
            &format!(
                "listen = \"127.0.0.1:{port}\"\nlog = \"log\"\nlog-key = \"log.key\"\nadmin = \"admin\"\n\
                 [tls]\ncertificate = \"tls.pem\"\nkey = \"tls.key\"\n\
                 [attestation]\nreference-values = \"reference.json\"\n\
                 [resources.\"default/key/customers\"]\nkey-file = \"customers.key\"\npolicies = [\"{policy}\"]\n"
            ),
        );
        let mut broker = common::casemate_broker()
            .args(["serve", "broker.toml", "--dangerously-accept-simulated"])
            .current_dir(self.path("owner"))
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(broker.stderr.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let port = lines.find_map(|line| line.split_once("listens on 127.0.0.1:")?.1.parse().ok());
        std::thread::spawn(move || lines.for_each(drop));
        self.broker = Some(broker);
        self.port = port.expect("the broker listens");
    }

    fn end_broker(&mut self) {
        if let Some(mut broker) = self.broker.take() {
            kill_process(Pid::from_child(&broker), Signal::TERM).unwrap();
            assert!(broker.wait().unwrap().success());
        }
    }

    fn run(&self, log: &str, further: &[&str]) -> Output {
        common::sandboxctl()
            .args([
                "run",
                "policy.toml",
                "--dangerously-accept-simulated",
                "--json",
                "--log",
                log,
            ])
            .args(further)
            .current_dir(self.path("guest"))
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn succeeds(&self, command: &mut Command) -> String {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Records of the broker, which has come to its end.
    fn records(&self) -> Vec<Value> {
        let key = LogKey::load(&self.path("owner/log.key")).unwrap();
        let key = key.verifier("casemate/broker").unwrap();
        let verified = verify(&self.path("owner/log"), Some(&key), None).unwrap();
        verified
            .records()
            .map(|entry| entry.unwrap().record.payload)
            .collect()
    }

    /// Nothing was started, and why is told.
    fn refused(&self, told: &Output, why: &str) {
        let text = String::from_utf8_lossy(&told.stderr);
        assert_eq!(told.status.code(), Some(125), "{text}");
        assert!(
            text.contains(why) && !text.contains("\"launching\""),
            "{text}"
        );
        assert!(!self.path("guest/out/copy").exists());
    }
}

impl Drop for Rooms {
    fn drop(&mut self) {
        if let Some(mut broker) = self.broker.take() {
            let _ = broker.kill();
            let _ = broker.wait();
        }
    }
}

#[test]
fn the_clean_room_runs_with_a_key_from_a_broker_elsewhere_and_its_owner_has_the_proof() {
    let Some(mut rooms) = Rooms::new() else {
        return;
    };
    let told = rooms.run("log", &["--receipt", "receipt.json"]);
    let text = String::from_utf8_lossy(&told.stderr);
    assert!(told.status.success(), "{text}");
    assert_eq!(
        fs::read_to_string(rooms.path("guest/out/copy")).unwrap(),
        DATA
    );

    // The owner of the data looks at both: what the broker recorded, and what the run can prove.
    let proof = rooms.succeeds(
        common::sandboxctl()
            .args([
                "receipt",
                "verify",
                "../guest/receipt.json",
                "--dangerously-accept-simulated",
            ])
            .args([
                "--reference",
                "reference.json",
                "--policy",
                "../guest/policy.toml",
                "--json",
            ])
            .current_dir(rooms.path("owner")),
    );
    let proof: Value = serde_json::from_str(&proof).unwrap();
    assert_eq!(proof["statement"]["data"][0]["read"], DATA.len());
    rooms.end_broker();
    let records = rooms.records();
    let of = |kind: &str| {
        let position = records.iter().position(|record| record["kind"] == kind);
        position.unwrap_or_else(|| panic!("{kind} is not in {records:?}"))
    };
    let attested = &records[of("attested")];
    assert_eq!(attested["policy"], rooms.policy_digest());
    assert_eq!(
        attested["policy"],
        proof["statement"]["policies"][0]["digest"]
    );
    assert!(of("attested") < of("releasing"));
    assert_eq!(records[of("releasing")]["session"], attested["session"]);
}

#[test]
fn another_policy_gets_no_key_and_nothing_runs() {
    let Some(rooms) = Rooms::new() else { return };
    rooms.write(
        "guest/policy.toml",
        &rooms.policy("cat /data/customers.csv > /out/copy; true"),
    );
    rooms.refused(&rooms.run("log", &[]), "it is not released to this guest");
}

#[test]
fn a_revoked_key_and_a_broker_that_is_gone_let_nothing_run() {
    let Some(mut rooms) = Rooms::new() else {
        return;
    };
    let revoke = [
        "revoke",
        "--admin",
        "admin",
        "default/key/customers",
        "--why",
        "it leaked",
    ];
    rooms.succeeds(
        common::casemate_broker()
            .args(revoke)
            .current_dir(rooms.path("owner")),
    );
    rooms.refused(&rooms.run("log", &[]), "it is not released to this guest");
    rooms.end_broker();
    rooms.refused(&rooms.run("other", &[]), "the broker cannot be reached");
}

#[test]
fn a_broker_with_another_certificate_is_not_asked() {
    let Some(rooms) = Rooms::new() else { return };
    let key = rcgen::KeyPair::generate().unwrap();
    let parameters = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let other = parameters.self_signed(&key).unwrap().pem();
    rooms.write("guest/broker.pem", &other);
    rooms.refused(&rooms.run("log", &[]), "the broker cannot be reached");
}
