//! What happens to a request.
//!
//! Each step of an exchange is one function: [`Service::challenge`], [`Service::attest`],
//! [`Service::release`]. They block (signatures, the log), and so run beside the threads that serve
//! connections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use attestation::ear::{EarError, Issuer, TokenKey};
use attestation::{Challenge, Evidence, Nonce, Role, SealedSecret, UnixTime, release_context};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State};
use axum::http::header::{CACHE_CONTROL, COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use broker::{Broker, ReleaseError};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use crate::config::Config;
use crate::journal::{Event, Journal, JournalError};
use crate::jwe::{self, Encrypted};
use crate::jwk::ClientKey;
use crate::sessions::{Guest, Pace, Sessions};
use crate::wire::{self, Attestation, ErrorInformation, MAX_AUTH, MAX_BODY};

/// Name of the cookie that names a session.
const SESSION: &str = "kbs-session-id";

/// A broker that serves.
pub struct Service {
    broker: Broker,
    endorsements: Option<attestation::EndorsementFolder>,
    rules: BTreeMap<String, String>,
    revoked: RwLock<BTreeSet<String>>,
    sessions: Sessions,
    pace: Pace,
    lifetime: u64,
    patience: Duration,
    appraisals: Arc<Semaphore>,
    token_key: TokenKey,
    journal: Journal,
    /// Whether a record could not be written: nothing is released any more then.
    broken: AtomicBool,
}

/// Why a client gets nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The request is not of the form that it should have.
    Form(&'static str),
    /// There is no such session, or nobody attested in it.
    Session,
    /// The evidence is not believed, by the code of the reason.
    Evidence(&'static str),
    /// It is not for this client, or is not there.
    Resource,
    /// Too much is asked at once.
    Busy,
    /// Something is wrong here.
    Broken,
}

impl Service {
    /// Serves what a configuration says, but for what was revoked.
    ///
    /// # Errors
    ///
    /// [`EarError::Key`] when there is no randomness for the key that signs tokens.
    pub fn new(
        config: Config,
        journal: Journal,
        revoked: BTreeSet<String>,
    ) -> Result<Self, EarError> {
        Ok(Self {
            broker: config.broker,
            endorsements: config.endorsements,
            rules: config.rules,
            revoked: RwLock::new(revoked),
            sessions: Sessions::default(),
            pace: Pace::new(config.limits.asks_per_minute),
            lifetime: config.limits.session,
            patience: Duration::from_secs(config.limits.patience),
            appraisals: Arc::new(Semaphore::new(config.limits.appraisals)),
            token_key: token_key()?,
            journal,
            broken: AtomicBool::new(false),
        })
    }

    /// Gives a nonce in a new session: its name, and the nonce.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub fn challenge(
        &self,
        tee: &str,
        client: SocketAddr,
        now: UnixTime,
    ) -> Result<(String, Nonce), Refused> {
        if !self.pace.admits(client.ip(), now) {
            return Err(Refused::Busy);
        }
        let nonce = self.broker.challenge(now).map_err(|_| Refused::Busy)?;
        let mut id = [0; 32];
        getrandom::fill(&mut id).map_err(|_| Refused::Broken)?;
        let id = URL_SAFE_NO_PAD.encode(id);
        let expires = now.plus_seconds(self.lifetime);
        match self
            .sessions
            .begin(id.clone(), tee.to_owned(), nonce, now, expires)
        {
            true => Ok((id, nonce)),
            false => Err(Refused::Busy),
        }
    }

    /// Appraises evidence that answers the session's nonce, once: whatever comes of it, the nonce is spent.
    /// Gives a token (EAR) about the verdict, for others: here it opens nothing.
    ///
    /// # Errors
    ///
    /// [`Refused`]; the reason is in the log.
    pub fn attest(
        &self,
        id: &str,
        body: &[u8],
        client: SocketAddr,
        now: UnixTime,
    ) -> Result<String, Refused> {
        let (nonce, tee) = self.sessions.nonce(id, now).ok_or(Refused::Session)?;
        let attestation: Attestation = serde_json::from_slice(body)
            .map_err(|_| Refused::Form("the request is no attestation"))?;
        let data = &attestation.runtime_data;
        if data["nonce"] != STANDARD.encode(nonce) {
            return Err(Refused::Form(
                "the runtime data has another nonce than the session",
            ));
        }
        let key =
            ClientKey::of(data).map_err(|_| Refused::Form("the runtime data has no usable key"))?;
        let evidence = attestation.tee_evidence.evidence();
        let evidence =
            evidence.map_err(|_| Refused::Form("the evidence is of no form that is known"))?;
        let session = pseudonym(id);
        let not_attested = |code, why: &dyn std::error::Error| {
            self.write(&Event::NotAttested {
                session: &session,
                client: client.to_string(),
                code,
                why: described(why),
            })?;
            Err(Refused::Evidence(code))
        };
        let evidence = match self.completed(evidence, now) {
            Ok(evidence) => evidence,
            Err(error) => return not_attested("endorsements", &error),
        };
        let (report_data, attested) = self.appraise(&evidence, &key, &nonce, data, now);
        let attested = match attested {
            Ok(attested) => attested,
            Err(error) => return not_attested(error.code(), &error),
        };
        let appraisal = attested.appraisal();
        self.write(&Event::Attested {
            session: &session,
            client: client.to_string(),
            tee: format!("{}, said to be {}", appraisal.tee(), tee.escape_default()),
            tier: appraisal.tier().name(),
            evidence: attestation_hex(appraisal.evidence_digest()),
            policy: attested.policy().map(attestation_hex),
            key: key.kind(),
        })?;
        let issuer = Issuer {
            developer: "casemate".to_owned(),
            build: concat!("casemate-broker ", env!("CARGO_PKG_VERSION")).to_owned(),
            lifetime: self.lifetime,
        };
        let token = self.token_key.sign(appraisal, &issuer);
        let token = token.map_err(|_| Refused::Broken)?;
        let guest = Guest {
            attested,
            key,
            report_data,
        };
        match self.sessions.attested(id, guest, now) {
            true => Ok(token),
            false => Err(Refused::Session),
        }
    }

    fn appraise(
        &self,
        evidence: &Evidence,
        key: &ClientKey,
        nonce: &Nonce,
        runtime_data: &serde_json::Value,
        now: UnixTime,
    ) -> ([u8; 64], Result<broker::Attested, ReleaseError>) {
        match key {
            ClientKey::Hpke {
                release_key,
                policy_digest,
                log_key,
            } => {
                let challenge = Challenge {
                    role: Role::Guest,
                    nonce: *nonce,
                    channel: None,
                    policy_digest: *policy_digest,
                    log_key: *log_key,
                    release_key: *release_key,
                };
                let attested = self.broker.attest(evidence, &challenge, now);
                (challenge.report_data(), attested)
            }
            _ => {
                let report_data = wire::report_data(runtime_data);
                let attested = self
                    .broker
                    .attest_bound_to(evidence, nonce, &report_data, now);
                (report_data, attested)
            }
        }
    }

    /// Releases a secret to who attested in a session: recorded first, then encrypted to the key in the
    /// evidence.
    ///
    /// # Errors
    ///
    /// [`Refused`]; the reason is in the log.
    pub fn release(&self, id: &str, resource: &str, now: UnixTime) -> Result<Encrypted, Refused> {
        let guest = self.sessions.guest(id, now).ok_or(Refused::Session)?;
        let session = pseudonym(id);
        let refused = |code| {
            self.write(&Event::Refused {
                session: &session,
                resource,
                code,
            })?;
            Err(Refused::Resource)
        };
        // Held until the secret is on its way: a revocation is in force when it is answered.
        let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
        let secret = match self.broker.secret_for(&guest.attested, resource) {
            Ok(_) if revoked.contains(resource) => return refused("revoked"),
            Ok(_) if now > guest.attested.appraisal().not_after() => return refused("lapsed"),
            Ok(secret) => secret,
            Err(refusal) => return refused(refusal.code()),
        };
        self.write(&Event::Releasing {
            session: &session,
            resource,
        })?;
        let encrypted = match &guest.key {
            ClientKey::Ec { curve, point } => {
                jwe::to_ec(*curve, point, secret).map(Encrypted::Jwe).ok()
            }
            ClientKey::Rsa { modulus, exponent } => jwe::to_rsa(modulus, exponent, secret)
                .map(Encrypted::Jwe)
                .ok(),
            ClientKey::Hpke { release_key, .. } => {
                let context = release_context(resource, &guest.report_data);
                let sealed = SealedSecret::seal(release_key, &context, secret);
                sealed.map(Encrypted::Sealed).ok()
            }
        };
        match encrypted {
            Some(encrypted) => Ok(encrypted),
            None => refused("key"),
        }
    }

    /// Revokes a secret, or takes that back; recorded first.
    ///
    /// # Errors
    ///
    /// [`JournalError`]; nothing has changed then.
    pub fn set_revoked(
        &self,
        resource: &str,
        revoke: bool,
        uid: u32,
        why: &str,
    ) -> Result<(), JournalError> {
        let mut revoked = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
        self.journal.write(&match revoke {
            true => Event::Revoked { resource, uid, why },
            false => Event::Restored { resource, uid, why },
        })?;
        match revoke {
            true => revoked.insert(resource.to_owned()),
            false => revoked.remove(resource),
        };
        Ok(())
    }

    /// Names of the secrets, for whom each is, and whether it is revoked; and how many sessions there are.
    pub fn list(&self, now: UnixTime) -> serde_json::Value {
        let revoked = self.revoked.read().unwrap_or_else(PoisonError::into_inner);
        let resources: Vec<_> = self
            .rules
            .iter()
            .map(|(name, rule)| json!({ "name": name, "for": rule, "revoked": revoked.contains(name) }))
            .collect();
        let (sessions, attested) = self.sessions.count(now);
        json!({ "resources": resources, "sessions": sessions, "attested": attested })
    }

    /// Whether there is a secret of this name.
    pub fn has(&self, resource: &str) -> bool {
        self.rules.contains_key(resource)
    }

    /// The audit log, when nothing is served any more.
    pub fn into_journal(self) -> Journal {
        self.journal
    }

    fn completed(
        &self,
        evidence: Evidence,
        now: UnixTime,
    ) -> Result<Evidence, attestation::FolderError> {
        match &self.endorsements {
            Some(folder) => folder.complete(evidence, now),
            None => Ok(evidence),
        }
    }

    fn write(&self, event: &Event<'_>) -> Result<(), Refused> {
        self.journal.write(event).map_err(|error| {
            self.broken.store(true, Ordering::Relaxed);
            crate::server::note(format_args!("{}", described(&error)));
            Refused::Broken
        })
    }
}

/// The requests that are served.
pub fn router(service: Arc<Service>) -> Router {
    let auth = post(auth).layer(DefaultBodyLimit::max(MAX_AUTH));
    Router::new()
        .route("/kbs/v0/auth", auth)
        .route("/kbs/v0/attest", post(attest))
        .route("/kbs/v0/resource/{repository}/{kind}/{tag}", get(resource))
        .route("/health", get(health))
        .fallback(|| async { Refused::Form("there is nothing of this name").into_response() })
        .layer(middleware::from_fn_with_state(
            Arc::clone(&service),
            in_time,
        ))
        .with_state(service)
}

/// Gives up on a request that is not there, or not answered, in time; nothing is kept in caches.
async fn in_time(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let answer = tokio::time::timeout(service.patience, next.run(request)).await;
    let mut response = answer.unwrap_or_else(|_| StatusCode::REQUEST_TIMEOUT.into_response());
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn health(State(service): State<Arc<Service>>) -> Result<&'static str, Refused> {
    match service.broken.load(Ordering::Relaxed) {
        true => Err(Refused::Broken),
        false => Ok("ok\n"),
    }
}

async fn auth(
    State(service): State<Arc<Service>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    body: Bytes,
) -> Result<Response, Refused> {
    let request: wire::Request = serde_json::from_slice(&body)
        .map_err(|_| Refused::Form("the request is none of this protocol"))?;
    let known = ["0.1.", "0.2.", "0.3.", "0.4."];
    if !known
        .iter()
        .any(|version| request.version.starts_with(version))
    {
        return Err(Refused::Form("the version of the protocol is not known"));
    }
    let (id, nonce) = service.challenge(&request.tee, client, now())?;
    let challenge = wire::Challenge {
        nonce: STANDARD.encode(nonce),
        extra_params: "",
    };
    let cookie = format!("{SESSION}={id}; Path=/kbs/v0; Secure; HttpOnly; SameSite=Strict");
    Ok(([(SET_COOKIE, cookie)], Json(challenge)).into_response())
}

async fn attest(
    State(service): State<Arc<Service>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    request: Request,
) -> Result<Response, Refused> {
    let id = session(request.headers()).ok_or(Refused::Session)?;
    // Before the body is read: as many of them are held at once as may be appraised at once.
    let permit = Arc::clone(&service.appraisals).try_acquire_owned();
    let permit = permit.map_err(|_| Refused::Busy)?;
    let body = match axum::body::to_bytes(request.into_body(), MAX_BODY).await {
        Ok(body) => body,
        Err(_) => return Ok(StatusCode::PAYLOAD_TOO_LARGE.into_response()),
    };
    let task = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        service.attest(&id, &body, client, now())
    });
    let token = task.await.map_err(|_| Refused::Broken)??;
    Ok(Json(json!({ "token": token })).into_response())
}

async fn resource(
    State(service): State<Arc<Service>>,
    Path((repository, kind, tag)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let id = session(&headers).ok_or(Refused::Session)?;
    let name = format!("{repository}/{kind}/{tag}");
    if name.len() > 1024 {
        return Err(Refused::Resource);
    }
    let task = tokio::task::spawn_blocking(move || service.release(&id, &name, now()));
    let encrypted = task.await.map_err(|_| Refused::Broken)??;
    Ok(Json(encrypted).into_response())
}

/// The session that a client names, in whichever of its cookies.
fn session(headers: &HeaderMap) -> Option<String> {
    let cookies = headers.get_all(COOKIE).iter();
    let mut named = cookies
        .filter_map(|cookies| cookies.to_str().ok())
        .flat_map(|cookies| cookies.split(';'))
        .filter_map(|cookie| cookie.trim().strip_prefix(SESSION)?.strip_prefix('='));
    let id = named.next()?;
    // Two sessions at once are none.
    (named.next().is_none() && id.len() == 43).then(|| id.to_owned())
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, kind, detail) = match self {
            Self::Form(detail) => (StatusCode::BAD_REQUEST, "form", detail),
            Self::Session => {
                let detail =
                    "there is no such session, or nobody attested in it: begin with `auth`";
                (StatusCode::UNAUTHORIZED, "session", detail)
            }
            Self::Evidence(code) => (
                StatusCode::UNAUTHORIZED,
                code,
                "the evidence is not believed",
            ),
            // One answer whether it is not for this client or not there.
            Self::Resource => (
                StatusCode::FORBIDDEN,
                "resource",
                "it is not released to this guest",
            ),
            Self::Busy => (
                StatusCode::TOO_MANY_REQUESTS,
                "busy",
                "too much is asked at once: try again later",
            ),
            Self::Broken => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "broken",
                "the broker cannot answer",
            ),
        };
        let information = ErrorInformation {
            kind: format!("casemate:{kind}"),
            detail: detail.to_owned(),
        };
        (status, Json(information)).into_response()
    }
}

/// A key for the tokens of this run; those who rely on them ask again after it.
fn token_key() -> Result<TokenKey, EarError> {
    let random = SystemRandom::new();
    let der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P384_SHA384_FIXED_SIGNING, &random);
    TokenKey::from_pkcs8(der.map_err(|_| EarError::Key)?.as_ref())
}

/// How a session is named in records: who reads them must not be able to go on with it.
fn pseudonym(id: &str) -> String {
    let digest: [u8; 32] = Sha256::digest(id).into();
    let short: [u8; 8] = std::array::from_fn(|at| digest[at]);
    attestation::Hex(short).to_string()
}

fn attestation_hex(bytes: &[u8; 32]) -> String {
    attestation::Hex(*bytes).to_string()
}

/// An error with its causes.
pub fn described(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn now() -> UnixTime {
    UnixTime::from(SystemTime::now())
}
