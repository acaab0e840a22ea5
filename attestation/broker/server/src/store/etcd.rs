//! A store that replicas share: etcd.
//!
//! Speaks etcd's v3 API over its own HTTP gateway (etcd documentation, "gRPC gateway"): the same
//! transactions, leases and watches as over gRPC, without a second HTTP stack and a protocol compiler
//! in this build. Reads and swaps are transactions, so linearizable. Each attempt has about a second;
//! then the next endpoint is asked, for an election may be under way.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use attestation::UnixTime;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use ureq::tls::{Certificate, ClientCert, PrivateKey, RootCerts, TlsConfig};
use zeroize::Zeroizing;

use super::{Changes, Entry, Expected, Listing, MAX_VALUE, Store, StoreError, Swap};

/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(1);
/// Fewest attempts before the store counts as out of reach.
const ATTEMPTS: usize = 3;
/// Most bytes of an answer: a listing.
const MAX_ANSWER: u64 = 64 << 20;
/// Most bytes of one line of a watch.
const MAX_LINE: u64 = 4 << 20;
/// Seconds for which one lease is given to everything that is put in that time.
const SHARED: u64 = 60;

/// A store in etcd.
pub struct Etcd {
    agent: ureq::Agent,
    endpoints: Vec<String>,
    /// The endpoint that answered last.
    preferred: AtomicUsize,
    prefix: String,
    /// By lifetime: a lease of etcd's, and until when it is given out.
    leases: Mutex<BTreeMap<u64, (String, UnixTime)>>,
}

/// How etcd is to be believed, and believes us.
pub(super) struct Trust<'a> {
    pub(super) ca: &'a Path,
    pub(super) own: Option<(&'a Path, &'a Path)>,
}

/// What an attempt came to.
enum Failed {
    /// Another endpoint may do.
    Elsewhere(String),
    /// It answered that it will not.
    Refused(String),
}

impl Etcd {
    /// Takes endpoints (HOST:PORT) and the prefix of all keys. Nobody is asked yet.
    pub(super) fn new(
        endpoints: &[&str],
        prefix: &str,
        trust: Option<&Trust<'_>>,
    ) -> Result<Self, String> {
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None);
        let scheme = match trust {
            None => "http",
            Some(trust) => {
                let tls = TlsConfig::builder()
                    .root_certs(RootCerts::new_with_certs(&certificates(trust.ca)?))
                    .client_cert(trust.own.map(identity).transpose()?)
                    .build();
                config = config.https_only(true).tls_config(tls);
                "https"
            }
        };
        let endpoints = endpoints
            .iter()
            .map(|endpoint| format!("{scheme}://{endpoint}/v3"));
        Ok(Self {
            agent: config.build().into(),
            endpoints: endpoints.collect(),
            preferred: AtomicUsize::new(0),
            prefix: format!("{prefix}/"),
            leases: Mutex::default(),
        })
    }

    /// Asks one endpoint after the other.
    fn ask(&self, path: &str, body: &Value) -> Result<Value, StoreError> {
        self.tried(|endpoint| {
            let mut response = self.sent(endpoint, path, body, ATTEMPT)?;
            let status = response.status().as_u16();
            let body = response
                .body_mut()
                .with_config()
                .limit(MAX_ANSWER)
                .read_to_vec();
            let body = body.map_err(|error| Failed::Elsewhere(error.to_string()))?;
            understood(status, &body)
        })
    }

    fn tried<T>(&self, attempt: impl Fn(&str) -> Result<T, Failed>) -> Result<T, StoreError> {
        let mut last = String::new();
        let first = self.preferred.load(Ordering::Relaxed);
        for at in first..first + ATTEMPTS.max(self.endpoints.len()) {
            let at = at % self.endpoints.len();
            match attempt(&self.endpoints[at]) {
                Ok(answer) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(Failed::Elsewhere(why)) => last = why,
                Err(Failed::Refused(why)) => return Err(StoreError::Strange(why)),
            }
        }
        Err(StoreError::Unreachable(last))
    }

    fn sent(
        &self,
        endpoint: &str,
        path: &str,
        body: &Value,
        patience: Duration,
    ) -> Result<ureq::http::Response<ureq::Body>, Failed> {
        self.agent
            .post(format!("{endpoint}/{path}"))
            .content_type("application/json")
            .config()
            .timeout_global(Some(patience))
            .build()
            .send(body.to_string())
            .map_err(|error| Failed::Elsewhere(error.to_string()))
    }

    fn key(&self, key: &str) -> String {
        STANDARD.encode(format!("{}{key}", self.prefix))
    }

    /// A range request for everything under a prefix.
    fn under(&self, prefix: &str) -> Value {
        let first = format!("{}{prefix}", self.prefix).into_bytes();
        let mut last = first.clone();
        // Keys are plain text, so the last byte of a prefix has a successor.
        if let Some(byte) = last.last_mut() {
            *byte = byte.saturating_add(1);
        }
        json!({ "key": STANDARD.encode(first), "range_end": STANDARD.encode(last) })
    }

    /// A lease of etcd's that outlives these many seconds. Many entries share one, so that a nonce does
    /// not cost two requests; when a value ends to the second is for whoever reads it to see.
    fn lease(&self, lifetime: u64, now: UnixTime) -> Result<String, StoreError> {
        let mut leases = self.leases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((lease, until)) = leases.get(&lifetime)
            && now < *until
            && until.minus_seconds(SHARED) <= now
        {
            return Ok(lease.clone());
        }
        let seconds = lifetime.saturating_add(2 * SHARED);
        let answer = self.ask("lease/grant", &json!({ "TTL": seconds.to_string() }))?;
        let lease = answer["ID"]
            .as_str()
            .ok_or_else(|| strange("a lease has no name"))?;
        leases.insert(lifetime, (lease.to_owned(), now.plus_seconds(SHARED)));
        Ok(lease.to_owned())
    }

    fn entry(&self, held: &Value) -> Result<(String, Entry), StoreError> {
        let bytes = |name: &str| STANDARD.decode(held[name].as_str().unwrap_or_default());
        let key = bytes("key")
            .ok()
            .and_then(|key| String::from_utf8(key).ok());
        let key = key
            .as_deref()
            .and_then(|key| key.strip_prefix(&self.prefix));
        let (Some(key), Ok(value)) = (key, bytes("value")) else {
            return Err(strange("a key or a value cannot be read"));
        };
        let entry = Entry {
            value,
            version: number(&held["mod_revision"])?,
        };
        Ok((key.to_owned(), entry))
    }
}

impl Store for Etcd {
    fn read(&self, keys: &[&str], _: UnixTime) -> Result<Vec<Option<Entry>>, StoreError> {
        let range = |key: &&str| json!({ "request_range": { "key": self.key(key) } });
        let ranges: Vec<_> = keys.iter().map(range).collect();
        let answer = self.ask("kv/txn", &json!({ "success": ranges }))?;
        let responses = answer["responses"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        if responses.len() != keys.len() {
            return Err(strange("it answers less than was asked"));
        }
        let entry = |(key, response): (&&str, &Value)| {
            let Some(held) = response["response_range"]["kvs"].get(0) else {
                return Ok(None);
            };
            let (name, entry) = self.entry(held)?;
            match name == *key {
                true => Ok(Some(entry)),
                false => Err(strange("it answers something else than was asked")),
            }
        };
        keys.iter().zip(responses).map(entry).collect()
    }

    fn list(&self, prefix: &str, _: UnixTime) -> Result<Listing, StoreError> {
        let answer = self.ask("kv/range", &self.under(prefix))?;
        let entries = answer["kvs"].as_array().map_or(&[][..], Vec::as_slice);
        let entries: Result<BTreeMap<_, _>, _> =
            entries.iter().map(|held| self.entry(held)).collect();
        Ok(Listing {
            entries: entries?,
            revision: number(&answer["header"]["revision"])?,
        })
    }

    fn swap(&self, swap: &Swap<'_>, now: UnixTime) -> Result<Option<u64>, StoreError> {
        if swap.value.is_some_and(|value| value.len() > MAX_VALUE) {
            return Err(StoreError::Strange("a value is too large".into()));
        }
        let key = self.key(swap.key);
        let compare = match swap.expected {
            Expected::Anything => json!([]),
            Expected::Absent => {
                json!([{ "key": key, "target": "CREATE", "create_revision": "0" }])
            }
            Expected::Version(version) => {
                json!([{ "key": key, "target": "MOD", "mod_revision": version.to_string() }])
            }
        };
        let then = match swap.value {
            None => json!({ "request_delete_range": { "key": key } }),
            Some(value) => {
                let lease = match swap.lifetime {
                    Some(lifetime) => self.lease(lifetime, now)?,
                    None => "0".to_owned(),
                };
                json!({ "request_put": { "key": key, "value": STANDARD.encode(value), "lease": lease } })
            }
        };
        let answer = self.ask("kv/txn", &json!({ "compare": compare, "success": [then] }));
        if answer.is_err() {
            // A lease may be what is wrong: the next one is a new one.
            self.leases
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clear();
        }
        // An attempt that was not answered may have swapped; then the next one finds that somebody has,
        // and this says `false`: of all who try one wins at most.
        let answer = answer?;
        match answer["succeeded"] == true {
            true => number(&answer["header"]["revision"]).map(Some),
            false => Ok(None),
        }
    }

    fn changes(&self, prefix: &str, after: u64, patience: Duration) -> Result<Changes, StoreError> {
        let mut create = self.under(prefix);
        create["start_revision"] = json!(after.saturating_add(1).to_string());
        let body = json!({ "create_request": create });
        self.tried(|endpoint| {
            let mut response = self.sent(endpoint, "watch", &body, ATTEMPT + patience)?;
            let status = response.status().as_u16();
            let mut lines = BufReader::new(response.body_mut().as_reader());
            if status != 200 {
                let mut body = Vec::new();
                let _ = lines.take(MAX_LINE).read_to_end(&mut body);
                return understood(status, &body).map(|_| Changes::Forgotten);
            }
            let mut watched = false;
            loop {
                let mut line = Vec::new();
                match lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                    Ok(0) => return Err(Failed::Elsewhere("it ended the watch".into())),
                    Ok(_) => {}
                    // Nothing came in the time that there was.
                    Err(_) if watched => {
                        let (keys, revision) = (Vec::new(), after);
                        return Ok(Changes::Since { keys, revision });
                    }
                    Err(error) => return Err(Failed::Elsewhere(error.to_string())),
                }
                let told = understood(200, &line)?;
                let told = &told["result"];
                if told["compact_revision"].is_string() {
                    return Ok(Changes::Forgotten);
                }
                if told["canceled"] == true {
                    return Err(Failed::Refused("it cancelled the watch".into()));
                }
                watched |= told["created"] == true;
                let events = told["events"].as_array().map_or(&[][..], Vec::as_slice);
                if events.is_empty() {
                    continue;
                }
                let mut keys = Vec::new();
                let mut revision = after;
                for event in events {
                    let refused = |error: StoreError| Failed::Refused(error.to_string());
                    let (key, entry) = self.entry(&event["kv"]).map_err(refused)?;
                    keys.push(key);
                    revision = revision.max(entry.version);
                }
                return Ok(Changes::Since { keys, revision });
            }
        })
    }
}

/// Reads bytes as an answer, a line of a watch, and an entry.
pub(crate) fn fuzz(bytes: &[u8]) {
    let Ok(etcd) = Etcd::new(&["localhost:1"], "x", None) else {
        return;
    };
    for status in [200, 400, 503] {
        if let Ok(answer) = understood(status, bytes) {
            let _ = etcd.entry(&answer["result"]["events"][0]["kv"]);
            let _ = number(&answer["result"]["header"]["revision"]);
        }
    }
}

/// The JSON of an answer, if it is one.
fn understood(status: u16, body: &[u8]) -> Result<Value, Failed> {
    let answer: Value = serde_json::from_slice(body).unwrap_or_default();
    let why = || {
        let why = answer["error"].as_str().unwrap_or("no reason given");
        format!("{status}: {}", why.chars().take(200).collect::<String>())
    };
    match status {
        200 if answer.is_object() => Ok(answer),
        200 => Err(Failed::Elsewhere("it answers no JSON".into())),
        500.. => Err(Failed::Elsewhere(why())),
        _ => Err(Failed::Refused(why())),
    }
}

/// A number, which the gateway writes as text.
fn number(value: &Value) -> Result<u64, StoreError> {
    let number = value.as_str().and_then(|text| text.parse().ok());
    number.ok_or_else(|| strange("a number cannot be read"))
}

fn strange(why: &str) -> StoreError {
    StoreError::Strange(why.to_owned())
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("`{}`: {why}", path.display());
    let pem = std::fs::read(path).map_err(|error| wrong(&error))?;
    let certificates: Vec<_> = ureq::tls::parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(ureq::tls::PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    match certificates.is_empty() {
        true => Err(wrong(&"there is no certificate in it")),
        false => Ok(certificates),
    }
}

fn identity((certificate, key): (&Path, &Path)) -> Result<ClientCert, String> {
    let chain = certificates(certificate)?;
    let wrong = |why: &dyn std::fmt::Display| format!("`{}`: {why}", key.display());
    let pem = Zeroizing::new(std::fs::read(key).map_err(|error| wrong(&error))?);
    let key = PrivateKey::from_pem(&pem).map_err(|error| wrong(&error))?;
    Ok(ClientCert::new_with_certs(&chain, key))
}

#[cfg(test)]
#[path = "../../tests/play/etcd.rs"]
mod play;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Instant, SystemTime};

    use super::super::contract;
    use super::*;

    fn at(uri: &str) -> super::super::AnyStore {
        super::super::at(uri, Path::new("/")).unwrap()
    }

    #[test]
    fn an_etcd_is_a_store_and_what_it_said_holds_after_it_was_killed() {
        let Some(mut etcd) = play::Etcd::start() else {
            return;
        };
        let store = at(&etcd.uri());
        contract::holds(&*store, "first/");
        // Two stores on one etcd are one store.
        contract::holds(&*at(&etcd.uri()), "second/");
        let now = UnixTime::from(SystemTime::now());
        let put = Swap {
            lifetime: Some(300),
            ..contract::put("kept", Expected::Absent, b"1")
        };
        let version = store.swap(&put, now).unwrap();
        etcd.restart();
        let kept = store.read(&["kept"], now).unwrap().remove(0);
        assert_eq!(kept.map(|entry| entry.version), version);
        assert_eq!(store.swap(&put, now).unwrap(), None);
    }

    #[test]
    fn an_etcd_that_does_not_answer_is_an_error_within_seconds() {
        let Some(etcd) = play::Etcd::start() else {
            return;
        };
        let store = at(&etcd.uri());
        let now = UnixTime::from(SystemTime::now());
        assert_eq!(store.read(&["a"], now).unwrap(), [None]);
        etcd.pause();
        let began = Instant::now();
        let put = contract::put("a", Expected::Absent, b"1");
        assert!(matches!(
            store.read(&["a"], now),
            Err(StoreError::Unreachable(_))
        ));
        assert!(matches!(
            store.swap(&put, now),
            Err(StoreError::Unreachable(_))
        ));
        let watched = store.changes("a", 1, Duration::ZERO);
        assert!(matches!(watched, Err(StoreError::Unreachable(_))));
        // Three questions of three attempts each; only a hang takes as long as this.
        assert!(began.elapsed() < Duration::from_secs(120));
        etcd.go_on();
        // It may need a moment to find that it is its own leader.
        while store.read(&["a"], now).is_err() {
            assert!(began.elapsed() < Duration::from_secs(180));
        }
    }

    #[test]
    fn answers_that_are_not_etcds_are_errors() {
        let etcd = Etcd::new(&["127.0.0.1:1"], "x", None).unwrap();
        for held in [
            json!({}),
            json!({ "key": "?", "value": "", "mod_revision": "1" }),
            json!({ "key": STANDARD.encode("y/a"), "value": "", "mod_revision": "1" }),
            json!({ "key": STANDARD.encode("x/a"), "value": "", "mod_revision": 1 }),
        ] {
            assert!(etcd.entry(&held).is_err(), "{held}");
        }
        for (status, body) in [
            (200, "[]"),
            (200, ""),
            (503, "{}"),
            (400, r#"{"error":"no"}"#),
        ] {
            assert!(understood(status, body.as_bytes()).is_err(), "{body}");
        }
    }
}
