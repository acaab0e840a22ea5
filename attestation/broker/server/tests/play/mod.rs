//! A broker in a folder of its own, clients that reach it over TLS, and guests that they speak for.

// Each file of tests uses a part of it.
#![allow(dead_code)]

pub mod etcd;

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use attestation::{
    Attester as _, Challenge, Nonce, ReleaseKey, Role, SimulatedTee, SimulatedTeeBuilder, UnixTime,
};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, UnboundKey};
use aws_lc_rs::agreement::{self, ECDH_P256, PrivateKey, UnparsedPublicKey};
use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};
use aws_lc_rs::rsa::{
    KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey,
};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use broker_server::wire::report_data;
use rustix::process::{Pid, Signal, kill_process};
use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use vault::audit::{LogKey, verify};

/// Only a hang takes so long.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// What every resource of a [`Play`] holds.
pub const SECRET: &[u8] = b"the secret";
/// The policy that `default/key/limited` is for.
pub const POLICY: [u8; 32] = [3; 32];

/// A running broker.
pub struct Play {
    folder: tempfile::TempDir,
    process: Option<Child>,
    port: u16,
    root: CertificateDer<'static>,
    simulated: bool,
    store: Option<String>,
}

impl Play {
    /// Starts a broker that believes simulated evidence, with these further tables.
    pub fn start(further: &str) -> Self {
        Self::new(further, true, None)
    }

    /// Starts one with a folder of endorsements, which is empty.
    pub fn with_endorsements() -> Self {
        Self::new(
            "[attestation]\nendorsements = \"endorsements\"\n",
            true,
            None,
        )
    }

    /// Starts one that does not.
    pub fn strict() -> Self {
        Self::new("", false, None)
    }

    /// Starts one of several that share a store.
    pub fn replica(store: &str, further: &str) -> Self {
        Self::new(further, true, Some(store.to_owned()))
    }

    fn new(further: &str, simulated: bool, store: Option<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        };
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        write("tls.pem", certificate.pem().as_bytes());
        write("tls.key", key.serialize_pem().as_bytes());
        write("secret", SECRET);
        let reference = SimulatedTee::new(now()).unwrap().reference_values();
        write("reference.json", &serde_json::to_vec(&reference).unwrap());
        let policy = attestation::Hex(POLICY);
        fs::create_dir(folder.path().join("endorsements")).unwrap();
        // A table is there once.
        let (endorsements, further) = match further.strip_prefix("[attestation]\n") {
            Some(endorsements) => (endorsements, ""),
            None => ("", further),
        };
        let config = format!(
            "listen = \"127.0.0.1:0\"\nlog = \"log\"\nlog-key = \"log.key\"\nadmin = \"admin\"\n\
             [tls]\ncertificate = \"tls.pem\"\nkey = \"tls.key\"\n\
             [attestation]\nreference-values = \"reference.json\"\n{endorsements}\
             [resources.\"default/key/open\"]\nfile = \"secret\"\npolicies = \"any\"\n\
             [resources.\"default/key/limited\"]\nfile = \"secret\"\npolicies = [\"{policy}\"]\n\
             [resources.\"default/key/near\"]\nfile = \"secret\"\npolicies = \"any\"\nover-channel = true\n{further}"
        );
        write("broker.toml", config.as_bytes());
        let root = certificate.der().clone();
        let mut play = Self {
            folder,
            process: None,
            port: 0,
            root,
            simulated,
            store,
        };
        play.begin();
        play
    }

    fn begin(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_casemate-broker"));
        command
            .args(["serve", "broker.toml"])
            .current_dir(self.folder.path());
        if self.simulated {
            command.arg("--dangerously-accept-simulated");
        }
        if let Some(store) = &self.store {
            command.args(["--store", store]);
        }
        let mut process = command
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut said = Vec::new();
        let port = lines.by_ref().map_while(Result::ok).find_map(|line| {
            said.push(line.clone());
            line.split_once("listens on 127.0.0.1:")?.1.parse().ok()
        });
        // What else it says is read, so that it never waits for a reader.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        self.process = Some(process);
        self.port = port.unwrap_or_else(|| panic!("it does not listen: {said:?}"));
    }

    /// Asks the broker to end, and waits for it; it must end well.
    fn terminate(&mut self) {
        let mut process = self.process.take().unwrap();
        kill_process(Pid::from_child(&process), Signal::TERM).unwrap();
        assert!(process.wait().unwrap().success());
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Starts it again after [`Play::kill`].
    pub fn begin_again(&mut self) {
        self.begin();
    }

    /// How much memory it has, in KiB.
    pub fn memory(&self) -> u64 {
        let process = self.process.as_ref().unwrap().id();
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.unwrap().parse().unwrap()
    }

    /// A file in its folder.
    pub fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    pub fn restart(&mut self) {
        self.terminate();
        self.begin();
    }

    /// Ends the broker; gives the records of its log, which verifies.
    pub fn end(&mut self) -> Vec<Value> {
        self.terminate();
        let key = LogKey::load(&self.folder.path().join("log.key")).unwrap();
        let key = key.verifier("casemate/broker").unwrap();
        let verified = verify(&self.folder.path().join("log"), Some(&key), None).unwrap();
        verified
            .records()
            .map(|entry| entry.unwrap().record.payload)
            .collect()
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Asks as the operator.
    pub fn admin(&self, arguments: &[&str]) -> Result<Value, String> {
        let output = Command::new(env!("CARGO_BIN_EXE_casemate-broker"))
            .arg(arguments[0])
            .args(["--admin", "admin"])
            .args(&arguments[1..])
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
            false => Err(String::from_utf8(output.stderr).unwrap()),
        }
    }

    /// A client that believes this broker's certificate alone.
    pub fn client(&self) -> Client {
        let root = Certificate::from_der(&self.root).to_owned();
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .timeout_global(Some(DEADLINE))
            .tls_config(
                TlsConfig::builder()
                    .root_certs(RootCerts::Specific(Arc::new(vec![root])))
                    .build(),
            )
            .build();
        Client {
            agent: agent.into(),
            base: format!("https://{}", self.address()),
        }
    }

    /// How much processor time it has taken.
    pub fn processor_time(&self) -> Duration {
        let process = self.process.as_ref().unwrap().id();
        let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
        // After the name, which may hold anything: `utime` and `stime` are the 14th and 15th field of all.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks = fields.split(' ').skip(11).take(2);
        let ticks: u64 = ticks.map(|field| field.parse::<u64>().unwrap()).sum();
        // See time(7), `USER_HZ`: a hundred to the second.
        Duration::from_millis(ticks * 10)
    }

    /// The TLS of a client that believes this broker's certificate alone, and resumes nothing.
    pub fn client_config(&self) -> Arc<ClientConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        Arc::new(config)
    }

    /// Its own TLS.
    pub fn server_config(&self) -> Arc<rustls::ServerConfig> {
        broker_server::tls::server(&self.path("tls.pem"), &self.path("tls.key")).unwrap()
    }

    /// A bare connection over TLS, with its handshake done; reading gives up only when all hangs.
    pub fn tls(&self) -> Tls {
        self.tls_with(&self.client_config())
    }

    /// The same, with a configuration that was made before.
    pub fn tls_with(&self, config: &Arc<ClientConfig>) -> Tls {
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let mut connection = rustls::ClientConnection::new(Arc::clone(config), name).unwrap();
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut stream).unwrap();
        }
        rustls::StreamOwned::new(connection, stream)
    }

    /// Guests that wait for news about `default/key/open`, as many as that, each over a connection of its own
    /// that was of use before; the broker has looked at all of their leases.
    pub fn waiting(&self, many: usize) -> Vec<Tls> {
        let (client, config) = (self.client(), self.client_config());
        let asked = client.auth();
        let told = client.attest(&asked, &Guest::with_ec().attestation(&asked));
        assert_eq!(told.0, 200, "{told:?}");
        let looked = || {
            let (_, text) = client.text("metrics").unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix(LEASED));
            line.unwrap().parse::<usize>().unwrap()
        };
        let before = looked();
        let line = "GET /casemate/v0/lease/default/key/open?wait";
        let streams: Vec<_> = (0..many)
            .map(|_| {
                let mut stream = self.tls_with(&config);
                send(&mut stream, &format!("{line}=0"), &asked.session, "");
                assert_eq!(receive(&mut stream).0, 200);
                send(&mut stream, &format!("{line}=100000"), &asked.session, "");
                stream
            })
            .collect();
        while looked() < before + 2 * many {
            std::thread::yield_now();
        }
        streams
    }
}

/// How looks at leases are counted.
const LEASED: &str = "casemate_broker_leased_total ";

/// A connection of a client.
pub type Tls = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// What names a connection (RFC 9266).
pub fn channel(stream: &Tls) -> [u8; 32] {
    let label = b"EXPORTER-Channel-Binding";
    let exported = stream
        .conn
        .export_keying_material([0; 32], label, Some(&[]));
    exported.unwrap()
}

/// Begins a session over a connection.
pub fn auth_over(stream: &mut Tls) -> Asked {
    let body = r#"{"version":"0.4.0","tee":"snp","extra-params":""}"#;
    send(stream, "POST /kbs/v0/auth", "", body);
    let (status, header, told) = receive(stream);
    assert_eq!(status, 200, "{told}");
    let cookie = "set-cookie: kbs-session-id=";
    let session = header.lines().find_map(|line| line.strip_prefix(cookie));
    Asked {
        session: session.unwrap().split(';').next().unwrap().to_owned(),
        nonce: told["nonce"].as_str().unwrap().to_owned(),
    }
}

/// Sends one request over HTTP/1.1.
pub fn send(stream: &mut Tls, line: &str, session: &str, body: &str) {
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\nhost: x\r\ncookie: kbs-session-id={session}\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).unwrap();
}

/// Reads its answer: status, header, body.
pub fn receive(stream: &mut Tls) -> (u16, String, Value) {
    let mut told = Vec::new();
    let mut piece = [0; 8192];
    loop {
        let read = stream.read(&mut piece).unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&told));
        told.extend_from_slice(&piece[..read]);
        let Some(head) = told.windows(4).position(|four| four == b"\r\n\r\n") else {
            continue;
        };
        let text = std::str::from_utf8(&told[..head]).unwrap();
        let length = text
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.unwrap().parse().unwrap();
        if let Some(body) = told.get(head + 4..head + 4 + length) {
            let status = text[9..12].parse().unwrap();
            let body = serde_json::from_slice(body).unwrap_or_default();
            return (status, text.to_owned(), body);
        }
    }
}

impl Drop for Play {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a session began with.
#[derive(Clone)]
pub struct Asked {
    pub session: String,
    pub nonce: String,
}

pub struct Client {
    agent: ureq::Agent,
    base: String,
}

impl Client {
    pub fn auth(&self) -> Asked {
        let body = r#"{"version":"0.4.0","tee":"snp","extra-params":""}"#;
        let url = format!("{}/kbs/v0/auth", self.base);
        let mut response = self.agent.post(url).send(body).unwrap();
        assert_eq!(response.status(), 200);
        let cookie = response.headers()["set-cookie"].to_str().unwrap();
        let session = cookie.strip_prefix("kbs-session-id=").unwrap();
        let session = session.split(';').next().unwrap().to_owned();
        let told: Value =
            serde_json::from_slice(&response.body_mut().read_to_vec().unwrap()).unwrap();
        let nonce = told["nonce"].as_str().unwrap().to_owned();
        Asked { session, nonce }
    }

    pub fn attest(&self, asked: &Asked, attestation: &Value) -> (u16, Value) {
        self.post("attest", Some(asked), attestation.to_string().as_bytes())
            .unwrap()
    }

    pub fn resource(&self, asked: &Asked, name: &str) -> (u16, Value) {
        let request = self
            .agent
            .get(format!("{}/kbs/v0/resource/{name}", self.base))
            .header("cookie", format!("kbs-session-id={}", asked.session));
        told(request.call().unwrap())
    }

    /// Asks how long a secret may be used, waiting so many seconds for that to change.
    pub fn lease(&self, asked: &Asked, name: &str, wait: u64) -> (u16, Value) {
        let request = self
            .agent
            .get(format!(
                "{}/casemate/v0/lease/{name}?wait={wait}",
                self.base
            ))
            .header("cookie", format!("kbs-session-id={}", asked.session));
        told(request.call().unwrap())
    }

    /// Asks for a resource with a token, and with no session or somebody's.
    pub fn with_token(&self, token: &str, asked: Option<&Asked>, name: &str) -> (u16, Value) {
        let mut request = self
            .agent
            .get(format!("{}/kbs/v0/resource/{name}", self.base))
            .header("authorization", format!("Bearer {token}"));
        if let Some(asked) = asked {
            request = request.header("cookie", format!("kbs-session-id={}", asked.session));
        }
        told(request.call().unwrap())
    }

    /// Posts something; an error when the broker closes the connection over it.
    pub fn post(&self, path: &str, asked: Option<&Asked>, body: &[u8]) -> Result<(u16, Value), ()> {
        let mut request = self.agent.post(format!("{}/kbs/v0/{path}", self.base));
        if let Some(asked) = asked {
            request = request.header("cookie", format!("kbs-session-id={}", asked.session));
        }
        request.send(body).map(told).map_err(|_| ())
    }

    pub fn is_healthy(&self) -> bool {
        self.text("health").is_some_and(|(status, _)| status == 200)
    }

    /// What is answered to a question that needs no session.
    pub fn text(&self, path: &str) -> Option<(u16, String)> {
        let mut answer = self
            .agent
            .get(format!("{}/{path}", self.base))
            .call()
            .ok()?;
        let text = answer.body_mut().read_to_string().ok()?;
        Some((answer.status().as_u16(), text))
    }
}

fn told(mut response: ureq::http::Response<ureq::Body>) -> (u16, Value) {
    let body = response.body_mut().read_to_vec().unwrap_or_default();
    (
        response.status().as_u16(),
        serde_json::from_slice(&body).unwrap_or_default(),
    )
}

/// A guest with a key of its own.
pub enum Guest {
    Ec(PrivateKey),
    Rsa(PrivateDecryptingKey),
}

impl Guest {
    pub fn with_ec() -> Self {
        Self::Ec(PrivateKey::generate(&ECDH_P256).unwrap())
    }

    pub fn with_rsa() -> Self {
        Self::Rsa(PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap())
    }

    fn jwk(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match self {
            Self::Ec(own) => {
                let point = own.compute_public_key().unwrap();
                let (x, y) = point.as_ref()[1..].split_at(32);
                json!({ "kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": text(x), "y": text(y) })
            }
            Self::Rsa(own) => {
                let public: PublicKeyX509Der<'_> = own.public_key().as_der().unwrap();
                let (rest, exponent) = public.as_ref().split_at(public.as_ref().len() - 3);
                let modulus = &rest[rest.len() - 2 - 256..rest.len() - 2];
                json!({ "kty": "RSA", "alg": "RSA-OAEP-256", "n": text(modulus), "e": text(exponent) })
            }
        }
    }

    /// Answers a challenge with good evidence.
    pub fn attestation(&self, asked: &Asked) -> Value {
        self.attestation_by(asked, &mut tee())
    }

    /// Answers a challenge with evidence of this TEE.
    pub fn attestation_by(&self, asked: &Asked, tee: &mut Tee) -> Value {
        self.attestation_with(asked, &mut tee.take().build().unwrap())
    }

    /// Answers a challenge with evidence of a TEE that was made before.
    pub fn attestation_with(&self, asked: &Asked, tee: &mut SimulatedTee) -> Value {
        self.attested(
            json!({ "nonce": asked.nonce, "tee-pubkey": self.jwk() }),
            tee,
        )
    }

    /// Answers a challenge with good evidence for one connection.
    pub fn attestation_over(&self, asked: &Asked, stream: &Tls) -> Value {
        let channel = attestation::Hex(channel(stream)).to_string();
        let key = self.jwk();
        let data = json!({ "nonce": asked.nonce, "tee-pubkey": key, "tls-exporter": channel });
        self.attested(data, &mut tee().take().build().unwrap())
    }

    fn attested(&self, data: Value, tee: &mut SimulatedTee) -> Value {
        let evidence = tee.attest(&report_data(&data)).unwrap();
        json!({
            "init-data": null,
            "runtime-data": data,
            "tee-evidence": { "primary_evidence": evidence, "additional_evidence": "" },
        })
    }

    /// Reads a JWE.
    pub fn open(&self, jwe: &Value) -> Vec<u8> {
        let header: Value = serde_json::from_slice(&decoded(&jwe["protected"])).unwrap();
        let encrypted = decoded(&jwe["encrypted_key"]);
        let key = match self {
            Self::Ec(own) => {
                let point = [
                    vec![4],
                    decoded(&header["epk"]["x"]),
                    decoded(&header["epk"]["y"]),
                ]
                .concat();
                let peer = UnparsedPublicKey::new(&ECDH_P256, point);
                let wrapping = agreement::agree(own, peer, (), |shared| {
                    let info = [
                        b"\0\0\0\x0eECDH-ES+A256KW".as_slice(),
                        &[0; 8],
                        b"\0\0\x01\0",
                    ]
                    .concat();
                    Ok(Sha256::digest([b"\0\0\0\x01", shared, &info].concat()).to_vec())
                });
                let mut out = [0; 32];
                let wrapper = AesKek::new(&AES_256, &wrapping.unwrap()).unwrap();
                wrapper.unwrap(&encrypted, &mut out).unwrap().to_vec()
            }
            Self::Rsa(own) => {
                let own = OaepPrivateDecryptingKey::new(own.clone()).unwrap();
                let mut out = vec![0; own.min_output_size()];
                own.decrypt(&OAEP_SHA256_MGF1SHA256, &encrypted, &mut out, None)
                    .unwrap()
                    .to_vec()
            }
        };
        let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
        let nonce =
            aws_lc_rs::aead::Nonce::try_assume_unique_for_key(&decoded(&jwe["iv"])).unwrap();
        let mut text = [decoded(&jwe["ciphertext"]), decoded(&jwe["tag"])].concat();
        let aad = Aad::from(jwe["protected"].as_str().unwrap().as_bytes());
        cipher
            .open_in_place(nonce, aad, &mut text)
            .unwrap()
            .to_vec()
    }
}

/// What a sandbox sends: its challenge, and evidence that answers it.
pub fn casemate(
    asked: &Asked,
    key: &ReleaseKey,
    policy: [u8; 32],
    tee: &mut Tee,
) -> (Challenge, Value) {
    casemate_over(asked, key, policy, tee, None)
}

/// The same for one connection.
pub fn casemate_over(
    asked: &Asked,
    key: &ReleaseKey,
    policy: [u8; 32],
    tee: &mut Tee,
    channel: Option<[u8; 32]>,
) -> (Challenge, Value) {
    let nonce: Nonce = STANDARD.decode(&asked.nonce).unwrap().try_into().unwrap();
    let challenge = Challenge {
        role: Role::Guest,
        nonce,
        channel,
        policy_digest: policy,
        log_key: [4; 32],
        release_key: key.public(),
    };
    let evidence = tee
        .take()
        .build()
        .unwrap()
        .attest(&challenge.report_data())
        .unwrap();
    let mut attestation = json!({
        "runtime-data": {
            "nonce": asked.nonce,
            "tee-pubkey": {
                "kty": "OKP", "crv": "X25519", "alg": broker_server::jwk::HPKE,
                "x": URL_SAFE_NO_PAD.encode(key.public()),
            },
            "policy-digest": attestation::Hex(policy).to_string(),
            "log-key": attestation::Hex([4; 32]).to_string(),
        },
        "tee-evidence": { "primary_evidence": evidence, "additional_evidence": "" },
    });
    if let Some(channel) = channel {
        attestation["runtime-data"]["tls-exporter"] = attestation::Hex(channel).to_string().into();
    }
    (challenge, attestation)
}

/// A simulated TEE, as it is to be; gives evidence once.
pub struct Tee(Option<SimulatedTeeBuilder>);

pub fn tee() -> Tee {
    Tee(Some(SimulatedTee::builder(now())))
}

impl Tee {
    fn take(&mut self) -> SimulatedTeeBuilder {
        self.0.take().unwrap()
    }

    /// Its evidence is changed after it was signed.
    pub fn tamper(self) -> Self {
        Self(
            self.0
                .map(|tee| tee.tamper_report(|report| report[0x90] ^= 1)),
        )
    }

    /// The host can read the guest's memory.
    pub fn debug(self) -> Self {
        Self(self.0.map(|tee| tee.debug(true)))
    }

    /// The guest is none that is known.
    pub fn unknown(self) -> Self {
        Self(self.0.map(|tee| tee.measurement([0x77; 48])))
    }
}

pub fn decoded(text: &Value) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text.as_str().unwrap()).unwrap()
}

fn now() -> UnixTime {
    UnixTime::from(SystemTime::now())
}
