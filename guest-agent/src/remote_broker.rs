//! The relying party's broker, over the network.
//!
//! ```text
//! key = "kbs+https://broker.example:8443/default/key/sales?ca=broker-ca.pem"
//! ```
//!
//! Speaks the KBS protocol with the session's release key: evidence is bound to the broker's nonce, to
//! that key, to the policy bundle, to the log and to the connection (`line.rs`), and what comes back opens
//! with that key only. So the
//! network learns nothing and can change nothing; that it is the right broker is for TLS to say, by the
//! roots of Mozilla's programme or, with `ca`, by that file's alone (beside the policy). Several `HOST:PORT`,
//! with commas between them, are replicas: the next one is asked when one is not there.
//!
//! What was released is used under a lease: [`crate::leases`].

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use attestation::{Challenge, Evidence, Nonce, SealedSecret, UnixTime};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use casemate::release::{KeyBroker, Refusal};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};

use crate::leases::Held;
use crate::line::{Line, Lines};

/// How a key's address begins.
pub const SCHEME: &str = "kbs+https://";
/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection may take: then the next replica is asked.
const CONNECT: Duration = Duration::from_secs(3);
/// Most bytes of an answer: a sealed secret, in Base64.
const MAX_ANSWER: u64 = 256 << 10;
/// Most bytes of a file of certificates.
const MAX_CA: u64 = 256 << 10;
/// Name of the cookie that names a session.
const SESSION: &str = "kbs-session-id";

/// One key of a broker elsewhere, for a session.
pub struct RemoteBroker {
    remote: Arc<Remote>,
    begun: Option<Begun>,
    held: Arc<Held>,
}

/// One key of a broker elsewhere: the exchange with it.
pub struct Remote {
    lines: Lines,
    /// For what is asked outside an exchange.
    waiting: Line,
    /// Replicas that share their sessions.
    bases: Vec<String>,
    /// The one that answered last.
    preferred: AtomicUsize,
    resource: String,
}

/// An exchange that has begun: it goes on over the connection over which it began.
pub(crate) struct Begun {
    pub(crate) session: String,
    pub(crate) nonce: Nonce,
    pub(crate) line: Line,
    base: String,
}

/// What a broker says about the use of a key that it released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leased {
    /// It may be used for so long, from the moment of asking.
    For(Duration),
    /// It may not be used any more.
    Revoked,
    /// It may, by whoever attests again.
    Attest,
    /// The broker knows no leases: what it has released it has released.
    Unknown,
}

/// Why an address of a key cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It is not of the documented form.
    #[error("it is not `{SCHEME}HOST:PORT,…/REPO/TYPE/TAG`, with `?ca=FILE` if need be")]
    Form,
    /// The certificates that are to be believed cannot be read.
    #[error("the certificates of `ca` cannot be used: {0}")]
    Ca(String),
}

impl RemoteBroker {
    /// Takes the address of a key; a relative `ca` starts at `folder`.
    ///
    /// # Errors
    ///
    /// [`AddressError`]; nobody was asked yet.
    pub fn at(uri: &str, folder: &Path) -> Result<Self, AddressError> {
        Self::reached(uri, folder, &BTreeMap::new())
    }

    /// The same, for a machine with no network but these ways: where to connect instead of to a
    /// `HOST:PORT`. TLS still asks for that host's certificate.
    ///
    /// # Errors
    ///
    /// [`AddressError`]; nobody was asked yet.
    pub fn reached(
        uri: &str,
        folder: &Path,
        ways: &BTreeMap<String, SocketAddr>,
    ) -> Result<Self, AddressError> {
        let rest = uri.strip_prefix(SCHEME).ok_or(AddressError::Form)?;
        let (rest, ca) = match rest.split_once('?') {
            Some((rest, query)) => {
                let ca = query.strip_prefix("ca=").filter(|ca| !ca.is_empty());
                (rest, Some(ca.ok_or(AddressError::Form)?))
            }
            None => (rest, None),
        };
        let (host, resource) = rest.split_once('/').ok_or(AddressError::Form)?;
        let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let plain = |part: &str| {
            !part.is_empty() && ![".", ".."].contains(&part) && part.bytes().all(known)
        };
        let plain_host = |byte: u8| known(byte) || b":[]".contains(&byte);
        let hosts: Vec<_> = host.split(',').collect();
        if hosts
            .iter()
            .any(|host| host.is_empty() || !host.bytes().all(plain_host))
            || resource.split('/').count() != 3
            || !resource.split('/').all(plain)
        {
            return Err(AddressError::Form);
        }
        let mut roots = RootCertStore::empty();
        match ca {
            Some(ca) => trust(&folder.join(ca), &mut roots)?,
            None => roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| AddressError::Ca(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .https_only(true)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(TIMEOUT))
            .timeout_connect(Some(CONNECT))
            .build();
        let lines = Lines {
            config,
            tls: Arc::new(tls),
            ways: ways.clone(),
        };
        let remote = Remote {
            waiting: lines.line(),
            lines,
            bases: hosts.iter().map(|host| format!("https://{host}")).collect(),
            preferred: AtomicUsize::new(0),
            resource: resource.to_owned(),
        };
        Ok(Self {
            remote: Arc::new(remote),
            begun: None,
            held: Arc::default(),
        })
    }

    /// The exchange, and what was released in it: for who keeps the lease.
    pub(crate) fn kept(&self) -> (Arc<Remote>, Arc<Held>) {
        (Arc::clone(&self.remote), Arc::clone(&self.held))
    }
}

impl Remote {
    /// Begins a session.
    pub(crate) fn auth(&self) -> Result<Begun, Refusal> {
        let request = json!({ "version": "0.4.0", "tee": "casemate", "extra-params": "" });
        // Each exchange has a connection of its own.
        let line = self.lines.line();
        let mut began_at = String::new();
        let mut response = self.asked(|base| {
            base.clone_into(&mut began_at);
            sent(&line, base, "auth", None, &request)
        })?;
        let cookies = response.headers().get_all("set-cookie").iter();
        let mut named = cookies
            .filter_map(|cookie| {
                cookie
                    .to_str()
                    .ok()?
                    .split(';')
                    .next()?
                    .strip_prefix(SESSION)?
                    .strip_prefix('=')
            })
            .map(str::to_owned);
        let session = named.next().filter(|session| session.len() <= 256);
        let answer = json_of(&mut response)?;
        let nonce = answer["nonce"]
            .as_str()
            .and_then(|nonce| STANDARD.decode(nonce).ok());
        let nonce: Option<Nonce> = nonce.and_then(|nonce| nonce.try_into().ok());
        match session.zip(nonce) {
            Some((session, nonce)) => Ok(Begun {
                session,
                nonce,
                line,
                base: began_at,
            }),
            None => Err(strange("it gave no nonce of 32 bytes, or no session")),
        }
    }

    /// Answers the nonce of an exchange with evidence.
    pub(crate) fn attest(
        &self,
        begun: &Begun,
        evidence: &Evidence,
        challenge: &Challenge,
    ) -> Result<(), Refusal> {
        let hex = casemate::record::hex;
        let mut attestation = json!({
            "runtime-data": {
                "nonce": STANDARD.encode(challenge.nonce),
                "tee-pubkey": {
                    "kty": "OKP",
                    "crv": "X25519",
                    "alg": "HPKE-Base-X25519-SHA256-ChaCha20Poly1305",
                    "x": URL_SAFE_NO_PAD.encode(challenge.release_key),
                },
                "policy-digest": hex(&challenge.policy_digest),
                "log-key": hex(&challenge.log_key),
            },
            "tee-evidence": {
                "primary_evidence": evidence,
                "additional_evidence": "",
            },
        });
        if let Some(channel) = &challenge.channel {
            attestation["runtime-data"]["tls-exporter"] = hex(channel).into();
        }
        let session = Some(begun.session.as_str());
        let sent = sent(&begun.line, &begun.base, "attest", session, &attestation);
        // To its end, so that the connection can go on.
        json_of(&mut accepted(sent.map_err(|error| unreachable(&error))?)?).map(drop)
    }

    /// The key, sealed to who attested in an exchange.
    fn released(&self, begun: &Begun) -> Result<SealedSecret, Refusal> {
        let path = format!("kbs/v0/resource/{}", self.resource);
        let got = got(&begun.line, &begun.base, &path, &begun.session, TIMEOUT);
        let answer = json_of(&mut accepted(got.map_err(|error| unreachable(&error))?)?)?;
        serde_json::from_value(answer).map_err(|_| strange("it gave no sealed secret"))
    }

    /// For how long the key may be used by who attested in a session. The broker keeps its answer back for
    /// `wait`, unless something changes; no answer within `patience` is none.
    pub(crate) fn lease(
        &self,
        session: &str,
        wait: Duration,
        patience: Duration,
    ) -> Result<Leased, Refusal> {
        let path = format!(
            "casemate/v0/lease/{}?wait={}",
            self.resource,
            wait.as_secs()
        );
        let asked = self.asked(|base| got(&self.waiting, base, &path, session, patience));
        let mut response = match asked {
            Err(refusal) if refusal.code == "http-404" => return Ok(Leased::Unknown),
            other => other?,
        };
        let answer = json_of(&mut response)?;
        match (answer["seconds"].as_u64(), answer["ended"].as_str()) {
            (Some(seconds), None) => Ok(Leased::For(Duration::from_secs(seconds))),
            (None, Some("attest")) => Ok(Leased::Attest),
            // What is not understood is not taken for leave to go on.
            _ => Ok(Leased::Revoked),
        }
    }

    /// Asks one replica after the other, until one is there. What a request was to do once is done once
    /// also if it is made twice: a nonce is spent at all of them.
    fn asked(
        &self,
        mut ask: impl FnMut(&str) -> Result<Response, ureq::Error>,
    ) -> Result<Response, Refusal> {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut last = None;
        for at in (first..).take(self.bases.len()) {
            let at = at % self.bases.len();
            match ask(&self.bases[at]) {
                Ok(response) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return accepted(response);
                }
                Err(error) => last = Some(unreachable(&error)),
            }
        }
        Err(last.unwrap_or_else(|| strange("there is none")))
    }
}

impl KeyBroker for RemoteBroker {
    fn name_of(&self, _: &str) -> String {
        self.remote.resource.clone()
    }

    fn challenge(&mut self, _: &str, _: UnixTime) -> Result<Nonce, Refusal> {
        // What a broker remembers of an earlier exchange is of no use: evidence is always fresh.
        self.begun = None;
        let begun = self.begun.insert(self.remote.auth()?);
        Ok(begun.nonce)
    }

    fn channel(&self, _: &str) -> Option<[u8; 32]> {
        self.begun.as_ref()?.line.channel()
    }

    fn release(
        &mut self,
        evidence: &Evidence,
        challenge: &Challenge,
        _: &str,
        _: UnixTime,
    ) -> Result<SealedSecret, Refusal> {
        let begun = self.begun.take();
        let begun = begun.ok_or_else(|| strange("it was not asked for a nonce before"))?;
        self.remote.attest(&begun, evidence, challenge)?;
        let sealed = self.remote.released(&begun)?;
        self.held.released(begun.session);
        Ok(sealed)
    }
}

/// Believes the certificates in a file.
fn trust(path: &Path, roots: &mut RootCertStore) -> Result<(), AddressError> {
    let wrong =
        |why: &dyn std::fmt::Display| AddressError::Ca(format!("`{}`: {why}", path.display()));
    let pem = crate::assembly::read_bounded(path, MAX_CA).map_err(|error| wrong(&error))?;
    let certificates = attestation::certificates_from_pem(&pem);
    let certificates = certificates.ok_or_else(|| wrong(&"it is no PEM"))?;
    for der in certificates {
        roots.add(der.into()).map_err(|error| wrong(&error))?;
    }
    match roots.is_empty() {
        true => Err(wrong(&"there are none in it")),
        false => Ok(()),
    }
}

/// Posts to one replica.
fn sent(
    line: &Line,
    base: &str,
    path: &str,
    session: Option<&str>,
    body: &Value,
) -> Result<Response, ureq::Error> {
    let mut request = line
        .agent
        .post(format!("{base}/kbs/v0/{path}"))
        .content_type("application/json");
    if let Some(session) = session {
        request = request.header("cookie", format!("{SESSION}={session}"));
    }
    request.send(&body.to_string())
}

/// Asks one replica for something.
fn got(
    line: &Line,
    base: &str,
    path: &str,
    session: &str,
    patience: Duration,
) -> Result<Response, ureq::Error> {
    line.agent
        .get(format!("{base}/{path}"))
        .header("cookie", format!("{SESSION}={session}"))
        .config()
        .timeout_global(Some(patience))
        .build()
        .call()
}

type Response = ureq::http::Response<ureq::Body>;

fn accepted(mut response: Response) -> Result<Response, Refusal> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    // What a broker says is shown to an operator, so it must be short, and text.
    let answer = json_of(&mut response).unwrap_or_default();
    let said = |field: &str| {
        let text: String = answer[field]
            .as_str()
            .unwrap_or_default()
            .chars()
            .take(200)
            .collect();
        text.escape_debug().to_string()
    };
    let code = said("type");
    Err(Refusal {
        code: match code.strip_prefix("casemate:") {
            Some(code) => code.to_owned(),
            None => format!("http-{}", status.as_u16()),
        },
        message: match said("detail") {
            empty if empty.is_empty() => format!("the broker answers {status}"),
            detail => detail,
        },
    })
}

fn json_of(response: &mut Response) -> Result<Value, Refusal> {
    let body = response
        .body_mut()
        .with_config()
        .limit(MAX_ANSWER)
        .read_to_vec();
    let body = body.map_err(|error| unreachable(&error))?;
    serde_json::from_slice(&body).map_err(|_| strange("its answer is not JSON"))
}

fn unreachable(error: &ureq::Error) -> Refusal {
    Refusal {
        code: "unreachable".into(),
        message: format!(
            "the broker cannot be reached: {}",
            casemate::error::describe(error)
        ),
    }
}

fn strange(why: &str) -> Refusal {
    Refusal {
        code: "protocol".into(),
        message: format!("the broker does not follow the protocol: {why}"),
    }
}

impl std::fmt::Debug for RemoteBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteBroker")
            .field("bases", &self.remote.bases)
            .field("resource", &self.remote.resource)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_a_host_and_a_resource_and_nothing_else() {
        let at = |uri: &str| RemoteBroker::at(uri, Path::new("/"));
        let broker = at("kbs+https://broker.example:8443/default/key/sales").unwrap();
        assert_eq!(broker.remote.bases, ["https://broker.example:8443"]);
        assert_eq!(broker.name_of("sales"), "default/key/sales");
        for uri in [
            "kbs+http://broker.example/default/key/sales",
            "kbs+https://broker.example/default/key",
            "kbs+https://broker.example/default/key/sales/more",
            "kbs+https://broker.example/default/../sales",
            "kbs+https:///default/key/sales",
            "kbs+https://a:1,/default/key/sales",
            "kbs+https://user@broker.example/default/key/sales",
            "kbs+https://broker.example/default/key/sales?insecure=1",
            "kbs+https://broker.example/default/key/sales#x",
        ] {
            assert!(matches!(at(uri), Err(AddressError::Form)), "{uri}");
        }
        let missing = at("kbs+https://broker.example/default/key/sales?ca=missing.pem");
        assert!(matches!(missing, Err(AddressError::Ca(_))));
    }

    #[test]
    fn a_broker_that_cannot_be_reached_is_a_refusal() {
        // A port that nobody listens on: the one that was just given back.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let uri = format!("kbs+https://127.0.0.1:{port}/default/key/sales");
        let mut broker = RemoteBroker::at(&uri, Path::new("/")).unwrap();
        let refusal = broker.challenge("sales", UnixTime(0)).unwrap_err();
        assert_eq!(refusal.code, "unreachable");
    }
}
