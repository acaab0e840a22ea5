//! The clean room of two parties: who owns the data and runs a broker, and who runs the code.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use sha2::{Digest, Sha256};
use vault::audit::{LogKey, verify};

/// What the vault holds, as `customers.csv`.
pub const DATA: &str = "name,region\nAda,north\nGrace,south\n";

/// What the data owner has: the vault's key, and a broker that keeps it. And what the guest's side has:
/// the vault, and a policy.
pub struct Rooms {
    folder: tempfile::TempDir,
    broker: Option<Child>,
    port: u16,
}

impl Rooms {
    /// `None` on a host that lets nobody make namespaces.
    pub fn new() -> Option<Self> {
        super::Room::new()?;
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
            let mut command = super::sandboxctl();
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

    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(0o600)).unwrap();
    }

    pub fn policy(&self, script: &str) -> String {
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

    pub fn policy_digest(&self) -> String {
        let digest = Sha256::digest(fs::read(self.path("guest/policy.toml")).unwrap());
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Starts the broker, for one policy; on the port that it had before, if it had one.
    pub fn serve(&mut self, policy: &str) {
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
        let mut broker = super::casemate_broker()
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

    pub fn end_broker(&mut self) {
        if let Some(mut broker) = self.broker.take() {
            kill_process(Pid::from_child(&broker), Signal::TERM).unwrap();
            assert!(broker.wait().unwrap().success());
        }
    }

    pub fn run(&self, log: &str, further: &[&str]) -> Output {
        super::sandboxctl()
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

    pub fn succeeds(&self, command: &mut Command) -> String {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Records of the broker, which has come to its end.
    pub fn records(&self) -> Vec<Value> {
        let key = LogKey::load(&self.path("owner/log.key")).unwrap();
        let key = key.verifier("casemate/broker").unwrap();
        let verified = verify(&self.path("owner/log"), Some(&key), None).unwrap();
        verified
            .records()
            .map(|entry| entry.unwrap().record.payload)
            .collect()
    }

    /// Nothing was started, and why is told.
    pub fn refused(&self, told: &Output, why: &str) {
        let text = String::from_utf8_lossy(&told.stderr);
        assert_eq!(told.status.code(), Some(125), "{text}");
        assert!(
            text.contains(why) && !text.contains("\"launching\""),
            "{text}"
        );
        assert!(!self.path("guest/out/copy").exists());
    }

    /// What the owner of the data is shown of the run, by its receipt.
    pub fn proof(&self) -> Value {
        let verify = [
            "receipt",
            "verify",
            "../guest/receipt.json",
            "--dangerously-accept-simulated",
            "--reference",
            "reference.json",
            "--policy",
            "../guest/policy.toml",
            "--json",
        ];
        let mut command = super::sandboxctl();
        command.args(verify).current_dir(self.path("owner"));
        serde_json::from_str(&self.succeeds(&mut command)).unwrap()
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
