//! What can be asked over HTTP, and how it is answered: `docs/agent-openapi.json`.
//!
//! Answers are those of [`crate::api`]. What follows a session is told line by line.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, LOCATION};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use casemate::order::Command;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::agent::{Agent, AgentError, Caller};
use crate::api::{self, Asker, Leased, MAX_REQUEST, Reply, Vouched, Wanted};
use crate::evidence;
use crate::follow::{self, Following};
use crate::outbox;
use crate::transport::{REQUEST_DEADLINE, Service, Who, failure, not_understood, reply};

/// Where everything begins.
pub const BASE: &str = "/casemate/v0";
/// Most records in one answer.
const MAX_RECORDS: usize = 1000;
/// The largest number that every reader of JSON has (RFC 8259, section 6).
const MAX_INDEX: u64 = (1 << 53) - 1;
/// What is recorded as the reason of a `DELETE`.
const DELETED: &str = "asked to stop it";

/// The service that is asked.
type Asked = State<Arc<dyn Service>>;

/// The requests that are served.
pub fn router(service: Arc<dyn Service>) -> Router {
    Router::new()
        .route("/casemate/v0/health", get(health))
        .route("/casemate/v0/sessions", get(sessions).post(begin))
        .route("/casemate/v0/sessions/{session}", get(session).delete(stop))
        .route("/casemate/v0/sessions/{session}/orders", post(order))
        .route("/casemate/v0/sessions/{session}/signals", post(kill))
        .route("/casemate/v0/sessions/{session}/events", get(events))
        .route("/casemate/v0/sessions/{session}/audit", get(audit))
        .route("/casemate/v0/sessions/{session}/receipt", get(receipt))
        .route("/casemate/v0/sessions/{session}/leases", get(leases))
        .route("/casemate/v0/sessions/{session}/leases/{data}", post(lease))
        .route("/casemate/v0/sessions/{session}/evidence", post(vouch))
        .fallback(|| async { refusal("path", "there is nothing of this name") })
        .method_not_allowed_fallback(|| async { refusal("method", "that cannot be done with it") })
        .layer(middleware::from_fn(of_who_is_there))
        .with_state(service)
}

/// Answers only whoever made the connection: a process id can be another's by now.
async fn of_who_is_there(Extension(who): Extension<Who>, request: Request, next: Next) -> Response {
    if !who.is_there() {
        return refusal("caller", "whoever connected has ended");
    }
    let mut response = next.run(request).await;
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn health() -> Response {
    answer(&json!({ "health": "serves" }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Detail {
    #[serde(default)]
    detail: bool,
}

async fn sessions(
    State(service): Asked,
    Extension(caller): Extension<Caller>,
    Params(Detail { detail }): Params<Detail>,
) -> Response {
    ask(service, caller, api::Request::Status { detail }).await
}

async fn begin(
    State(service): Asked,
    Extension(caller): Extension<Caller>,
    Json(wanted): Json<Wanted>,
) -> Response {
    let detached = wanted.detached;
    let begun = on_agent(service, move |agent| follow::begin(agent, caller, wanted)).await;
    let begun = match begun {
        Ok(begun) => begun,
        Err(error) => return failed(&error),
    };
    let location = [(LOCATION, format!("{BASE}/sessions/{}", begun.id))];
    if detached {
        return (StatusCode::CREATED, location, respond(begun.line)).into_response();
    }
    match follow::follow(begun.outbox, Some(begun.stopper)) {
        Some(following) => (
            StatusCode::CREATED,
            location,
            lines(following, Some(begun.line)),
        )
            .into_response(),
        // Nobody else knows of it yet.
        None => failed(&AgentError::Followed(begun.id)),
    }
}

async fn session(
    State(service): Asked,
    Extension(caller): Extension<Caller>,
    Named(id): Named<String>,
) -> Response {
    if let Some(ended) = service.agent().and_then(|agent| agent.ended(caller, &id)) {
        let mut listed = serde_json::to_value(&ended.listed).unwrap_or_default();
        listed["ended"] = serde_json::from_slice(&ended.last).unwrap_or_default();
        return answer(&json!({ "sessions": [listed] }));
    }
    let asked = id.clone();
    let all = blocking(move || reply(&*service, caller, &api::Request::Status { detail: true }));
    let all: Value = match all.await {
        Ok(line) => serde_json::from_slice(&line).unwrap_or_default(),
        Err(broken) => return broken,
    };
    let sessions = all["sessions"].as_array().into_iter().flatten();
    match sessions.into_iter().find(|one| one["id"] == *asked) {
        Some(one) => answer(&json!({ "sessions": [one] })),
        None => failed(&AgentError::NoSession(id)),
    }
}

async fn stop(
    State(service): Asked,
    Extension(caller): Extension<Caller>,
    Named(session): Named<String>,
) -> Response {
    let (order, why) = (Command::Stop, DELETED.to_owned());
    let request = api::Request::Adjust {
        session,
        order,
        why,
    };
    ask(service, caller, request).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ordered {
    order: Command,
    why: String,
}

async fn order(
    State(service): Asked,
    Extension(caller): Extension<Caller>,
    Named(session): Named<String>,
    Json(Ordered { order, why }): Json<Ordered>,
) -> Response {
    let request = api::Request::Adjust {
        session,
        order,
        why,
    };
    ask(service, caller, request).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Signalled {
    signal: i32,
}

async fn kill(
    State(service): Asked,
    Extension(caller): Extension<Caller>,
    Named(session): Named<String>,
    Json(Signalled { signal }): Json<Signalled>,
) -> Response {
    ask(service, caller, api::Request::Kill { session, signal }).await
}

async fn events(
    State(service): Asked,
    Extension(caller): Extension<Caller>,
    Named(session): Named<String>,
) -> Response {
    let outbox = on_agent(service, move |agent| {
        let outbox = match agent.ended(caller, &session) {
            Some(ended) => ended.outbox,
            None => agent.reach(caller, &session)?.1.outbox,
        };
        match outbox.is_detached() {
            true => Ok((session, outbox)),
            false => Err(AgentError::Attached(session)),
        }
    });
    match outbox.await {
        Ok((session, outbox)) => match follow::follow(outbox, None) {
            Some(following) => lines(following, None),
            None => failed(&AgentError::Followed(session)),
        },
        Err(error) => failed(&error),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tail {
    #[serde(default)]
    from: u64,
    #[serde(default = "most")]
    limit: usize,
}

fn most() -> usize {
    MAX_RECORDS
}

async fn audit(
    State(service): Asked,
    Extension(caller): Extension<Caller>,
    Named(session): Named<String>,
    Params(Tail { from, limit }): Params<Tail>,
) -> Response {
    if limit > MAX_RECORDS || from > MAX_INDEX {
        let why = "at most 1000 records at once, and none beyond what JSON can number";
        return respond(not_understood(why).line());
    }
    let told = on_agent(service, move |agent| {
        let (listed, key) = match agent.ended(caller, &session) {
            Some(ended) => (ended.listed, ended.key),
            None => {
                let (listed, reached) = agent.reach(caller, &session)?;
                (listed, reached.key)
            }
        };
        let none = || AgentError::NoSession(session.clone());
        let log = listed.log.ok_or_else(none)?;
        agent.records(&log, key, from, limit)
    });
    told.await
        .map_or_else(|error| failed(&error), |told| answer(&told))
}

async fn receipt(
    State(service): Asked,
    Extension(caller): Extension<Caller>,
    Named(session): Named<String>,
) -> Response {
    let receipt = on_agent(service, move |agent| {
        let Some(ended) = agent.ended(caller, &session) else {
            agent.reach(caller, &session)?;
            return Err(AgentError::NoReceipt(session));
        };
        ended.receipt.ok_or(AgentError::NoReceipt(session))
    });
    receipt.await.map_or_else(|error| failed(&error), respond)
}

async fn leases(
    State(service): Asked,
    Extension(caller): Extension<Caller>,
    Named(session): Named<String>,
) -> Response {
    let leases = on_agent(service, move |agent| leased(agent, caller, &session));
    match leases.await {
        Ok(leases) => answer(&json!({ "leases": leases })),
        Err(error) => failed(&error),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Holding {
    held: bool,
    why: String,
}

async fn lease(
    State(service): Asked,
    Extension(caller): Extension<Caller>,
    Named((session, data)): Named<(String, String)>,
    Json(Holding { held, why }): Json<Holding>,
) -> Response {
    let leases = on_agent(service, move |agent| {
        let leases = leased(agent, caller, &session)?;
        if leases.iter().all(|lease| lease.data != data) {
            return Err(AgentError::NoData(session, data));
        }
        let data = [data].into();
        let command = match held {
            true => Command::Restore(data),
            false => Command::Withdraw(data),
        };
        agent.adjust(caller, &session, command, &why)?;
        leased(agent, caller, &session)
    });
    match leases.await {
        Ok(leases) => answer(&json!({ "leases": leases })),
        Err(error) => failed(&error),
    }
}

fn leased(agent: &Agent, caller: Caller, session: &str) -> Result<Vec<Leased>, AgentError> {
    let status = agent.reach(caller, session)?.1.handle.status()?;
    let names = status.plan.data.iter().chain(status.read.keys());
    let names: std::collections::BTreeSet<_> = names.collect();
    let lease = |name: &String| Leased {
        data: name.clone(),
        held: status.plan.data.contains(name),
        read: status.read.get(name).copied().unwrap_or_default(),
        withdrawn: status.orders.withdrawn.get(name).cloned(),
    };
    Ok(names.into_iter().map(lease).collect())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    payload: String,
}

async fn vouch(
    State(service): Asked,
    Extension(caller): Extension<Caller>,
    Named(session): Named<String>,
    Json(Payload { payload }): Json<Payload>,
) -> Response {
    let Some(bytes) = evidence::payload(&payload) else {
        let why = "a payload is up to 64 bytes in hexadecimal, in lower case";
        return respond(not_understood(why).line());
    };
    let vouched = on_agent(service, move |agent| {
        let (_, reached) = agent.reach(caller, &session)?;
        let caller = Asker {
            session,
            inside: caller.inside.is_some(),
            uid: caller.uid,
        };
        let (challenge, evidence) = reached.witness.vouch(evidence::nonce(&caller, &bytes))?;
        Ok(Vouched {
            caller,
            payload,
            challenge,
            evidence,
        })
    });
    match vouched.await {
        Ok(vouched) => answer(&json!({ "vouched": vouched })),
        Err(error) => failed(&error),
    }
}

/// Asks what every service answers.
async fn ask(service: Arc<dyn Service>, caller: Caller, request: api::Request) -> Response {
    let line = blocking(move || reply(&*service, caller, &request)).await;
    line.map_or_else(|broken| broken, respond)
}

/// Asks what only an agent answers.
async fn on_agent<T: Send + 'static>(
    service: Arc<dyn Service>,
    ask: impl FnOnce(&Agent) -> Result<T, AgentError> + Send + 'static,
) -> Result<T, AgentError> {
    let agent = service.agent().ok_or(AgentError::OneSession)?.clone();
    // What has panicked has said so on stderr.
    let asked = blocking(move || ask(&agent)).await;
    asked.map_err(|_| AgentError::Session(casemate::SessionError::Lost))?
}

/// Does what may wait, for a session or a disk.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Response> {
    let broken = |_| StatusCode::INTERNAL_SERVER_ERROR.into_response();
    tokio::task::spawn_blocking(work).await.map_err(broken)
}

fn answer(value: &Value) -> Response {
    let json = [(CONTENT_TYPE, "application/json")];
    (json, format!("{value}\n")).into_response()
}

fn failed(error: &AgentError) -> Response {
    respond(failure(error).line())
}

fn refusal(code: &'static str, message: &str) -> Response {
    let reply = Reply::Error {
        code,
        message: message.into(),
        help: None,
    };
    respond(reply.line())
}

/// Sends a line of [`crate::api`] with the status that goes with it.
fn respond(line: Vec<u8>) -> Response {
    let told: Value = serde_json::from_slice(&line).unwrap_or_default();
    let code = told["error"]["code"].as_str();
    let status = code.map_or(StatusCode::OK, status_of);
    (status, [(CONTENT_TYPE, "application/json")], line).into_response()
}

/// The status that goes with a reason.
pub(crate) fn status_of(code: &str) -> StatusCode {
    match code {
        "request" | "name" => StatusCode::BAD_REQUEST,
        "caller" | "inside" => StatusCode::FORBIDDEN,
        "path" | "no-policy" | "no-session" | "no-data" => StatusCode::NOT_FOUND,
        "method" => StatusCode::METHOD_NOT_ALLOWED,
        "time" => StatusCode::REQUEST_TIMEOUT,
        "too-long" => StatusCode::PAYLOAD_TOO_LARGE,
        "content-type" => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "order" | "no-signal" => StatusCode::UNPROCESSABLE_ENTITY,
        "full" => StatusCode::TOO_MANY_REQUESTS,
        "busy" | "stopping" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::CONFLICT,
    }
}

/// Tells line by line what happens, from this line on.
fn lines(following: Arc<Following>, first: Option<Vec<u8>>) -> Response {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let body = Lines {
        first,
        receiver,
        following: Arc::clone(&following),
    };
    tokio::task::spawn_blocking(move || {
        loop {
            let (line, last) = match following.next() {
                outbox::Next::Line(line) => (Ok(line), false),
                outbox::Next::End => return,
                // The connection breaks off, so that nobody takes this for the end.
                outbox::Next::Cut => (Err(io::Error::from(io::ErrorKind::BrokenPipe)), true),
            };
            if sender.blocking_send(line).is_err() || last {
                return;
            }
        }
    });
    let kind = [(CONTENT_TYPE, "application/x-ndjson")];
    (kind, Body::from_stream(body)).into_response()
}

/// What is told of a session, while somebody is there to be told.
struct Lines {
    first: Option<Vec<u8>>,
    receiver: tokio::sync::mpsc::Receiver<io::Result<Vec<u8>>>,
    following: Arc<Following>,
}

impl futures_core::Stream for Lines {
    type Item = io::Result<Vec<u8>>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Vec<u8>>>> {
        match self.first.take() {
            Some(first) => Poll::Ready(Some(Ok(first))),
            None => self.receiver.poll_recv(context),
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.following.end();
    }
}

/// A body in JSON, whole and in time.
struct Json<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Response;

    async fn from_request(request: Request, _: &S) -> Result<Self, Response> {
        let kind = request.headers().get(CONTENT_TYPE);
        let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            return Err(refusal(
                "content-type",
                "the body has to be application/json",
            ));
        }
        let body = axum::body::to_bytes(request.into_body(), MAX_REQUEST);
        let body: Bytes = match tokio::time::timeout(REQUEST_DEADLINE, body).await {
            Ok(Ok(body)) => body,
            Ok(Err(_)) => return Err(refusal("too-long", "a request has at most 64 KiB")),
            Err(_) => return Err(refusal("time", "it did not come in time")),
        };
        let value = serde_json::from_slice(&body);
        value
            .map(Self)
            .map_err(|error| respond(not_understood(&error.to_string()).line()))
    }
}

/// What stands behind the question mark.
struct Params<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Params<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match Query::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(respond(not_understood(&rejection.body_text()).line())),
        }
    }
}

/// The names in a path.
struct Named<T>(T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match Path::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(respond(not_understood(&rejection.body_text()).line())),
        }
    }
}
