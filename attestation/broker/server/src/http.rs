//! What can be asked over HTTP, and how it is answered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use attestation::UnixTime;
use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Query, Request, State};
use axum::http::header::{CACHE_CONTROL, COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::json;

use crate::service::{Leased, Refused, Service};
use crate::tls::Channel;
use crate::wire::{self, ErrorInformation, MAX_AUTH, MAX_BODY};

/// Name of the cookie that names a session.
const SESSION: &str = "kbs-session-id";
/// Most bytes of a resource's name.
const MAX_NAME: usize = 1024;

/// The requests that are served.
pub fn router(service: Arc<Service>) -> Router {
    let auth = post(auth).layer(DefaultBodyLimit::max(MAX_AUTH));
    Router::new()
        .route("/kbs/v0/auth", auth)
        .route("/kbs/v0/attest", post(attest))
        .route("/kbs/v0/resource/{repository}/{kind}/{tag}", get(resource))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(|| async { Refused::Form("there is nothing of this name").into_response() })
        .layer(middleware::from_fn_with_state(
            Arc::clone(&service),
            in_time,
        ))
        // A lease is waited for, and has a time of its own.
        .route("/casemate/v0/lease/{repository}/{kind}/{tag}", get(lease))
        .layer(middleware::from_fn(uncached))
        .with_state(service)
}

/// Gives up on a request that is not there, or not answered, in time.
async fn in_time(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let answer = tokio::time::timeout(service.patience(), next.run(request)).await;
    answer.unwrap_or_else(|_| StatusCode::REQUEST_TIMEOUT.into_response())
}

/// Nothing is kept in caches.
async fn uncached(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn health(State(service): State<Arc<Service>>) -> Result<&'static str, Refused> {
    let task = tokio::task::spawn_blocking(move || service.health(now()));
    task.await.map_err(|_| Refused::Broken)?.map(|()| "ok\n")
}

async fn metrics(State(service): State<Arc<Service>>) -> String {
    service.tally().text()
}

async fn auth(
    State(service): State<Arc<Service>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    Extension(channel): Extension<Option<Channel>>,
    body: Bytes,
) -> Result<Response, Refused> {
    let request: wire::Request = serde_json::from_slice(&body)
        .map_err(|_| Refused::Form("the request is none of this protocol"))?;
    if !is_known(&request.version) {
        return Err(Refused::Form("the version of the protocol is not known"));
    }
    let task = tokio::task::spawn_blocking(move || {
        service.challenge(&request.tee, client, channel, now())
    });
    let (id, nonce) = task.await.map_err(|_| Refused::Broken)??;
    let challenge = wire::Challenge {
        nonce: STANDARD.encode(nonce),
        extra_params: "",
    };
    let cookie = format!("{SESSION}={id}; Path=/kbs/v0; Secure; HttpOnly; SameSite=Strict");
    Ok(([(SET_COOKIE, cookie)], Json(challenge)).into_response())
}

/// Whether this is a version of the protocol that is spoken here: 0.1 to 0.4.
pub(crate) fn is_known(version: &str) -> bool {
    let numbers: Option<Vec<u32>> = version
        .split('.')
        .map(|part| {
            part.bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| part.parse().ok())?
        })
        .collect();
    matches!(numbers.as_deref(), Some([0, 1..=4, _]))
}

async fn attest(
    State(service): State<Arc<Service>>,
    ConnectInfo(client): ConnectInfo<SocketAddr>,
    Extension(channel): Extension<Option<Channel>>,
    request: Request,
) -> Result<Response, Refused> {
    let id = session(request.headers()).ok_or(Refused::Session)?;
    // Before the body is read: as many of them are held at once as may be appraised at once.
    let permit = Arc::clone(service.room()).try_acquire_owned();
    let permit = permit.map_err(|_| Refused::Busy)?;
    let body = match axum::body::to_bytes(request.into_body(), MAX_BODY).await {
        Ok(body) => body,
        Err(_) => return Ok(StatusCode::PAYLOAD_TOO_LARGE.into_response()),
    };
    let task = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        service.attest(&id, &body, client, channel, now())
    });
    let token = task.await.map_err(|_| Refused::Broken)??;
    Ok(Json(json!({ "token": token })).into_response())
}

async fn resource(
    State(service): State<Arc<Service>>,
    name: Result<Path<Name>, PathRejection>,
    Extension(channel): Extension<Option<Channel>>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let id = session(&headers).ok_or(Refused::Session)?;
    let name = named(name)?;
    let task = tokio::task::spawn_blocking(move || service.release(&id, &name, channel, now()));
    let encrypted = task.await.map_err(|_| Refused::Broken)??;
    Ok(Json(encrypted).into_response())
}

/// REPO, TYPE and TAG.
type Name = (String, String, String);

/// The resource that a path names.
fn named(name: Result<Path<Name>, PathRejection>) -> Result<String, Refused> {
    let (repository, kind, tag) = name.map_err(|_| Refused::Resource)?.0;
    let name = format!("{repository}/{kind}/{tag}");
    match name.len() {
        0..=MAX_NAME => Ok(name),
        _ => Err(Refused::Resource),
    }
}

/// How long a client of a lease would wait for it to change.
#[derive(Deserialize)]
struct Wait {
    #[serde(default)]
    wait: u64,
}

/// Says how long a secret may be used from the moment of asking on; or, as soon as that is so, that it
/// may not be used any more.
async fn lease(
    State(service): State<Arc<Service>>,
    name: Result<Path<Name>, PathRejection>,
    wait: Result<Query<Wait>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let wait = wait
        .map_err(|_| Refused::Form("`wait` is a number of seconds"))?
        .wait;
    let id = session(&headers).ok_or(Refused::Session)?;
    // It holds the buffer that the request came in, and many wait here for long.
    drop(headers);
    let name = named(name)?;
    // A change that comes while the first look is under way is one to look again for.
    let mut news = service.news();
    let until = tokio::time::Instant::now() + Duration::from_secs(wait).min(service.longest_wait());
    loop {
        news.borrow_and_update();
        let (looking, id, name) = (Arc::clone(&service), id.clone(), name.clone());
        let task = tokio::task::spawn_blocking(move || looking.lease(&id, &name, now()));
        match task.await.map_err(|_| Refused::Broken)?? {
            // Whoever waits when the broker ends is answered, and asks elsewhere.
            Leased::For(seconds) if service.longest_wait().is_zero() => {
                return Ok(Json(json!({ "seconds": seconds })).into_response());
            }
            Leased::For(seconds) => {
                let waited = tokio::time::timeout_at(until, news.changed()).await;
                if waited.is_err() {
                    return Ok(Json(json!({ "seconds": seconds })).into_response());
                }
            }
            Leased::Ended(why) => return Ok(Json(json!({ "ended": why })).into_response()),
        }
    }
}

/// The session that a client names, in whichever of its cookies.
pub(crate) fn session(headers: &HeaderMap) -> Option<String> {
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
            Self::Unavailable => (
                StatusCode::SERVICE_UNAVAILABLE,
                "unavailable",
                "the broker cannot reach what it needs: try again later",
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

fn now() -> UnixTime {
    UnixTime::from(SystemTime::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_the_protocol_are_numbers_and_no_others_are_known() {
        assert!(
            ["0.1.0", "0.1.1", "0.2.0", "0.4.12"]
                .iter()
                .all(|known| is_known(known))
        );
        let unknown = [
            "", "0", "0.4", "0.4.0*", "0.4.0.1", "1.4.0", "0.5.0", "0.0.1", "0.+4.0", "0.4.",
        ];
        assert!(!unknown.iter().any(|version| is_known(version)));
    }
}
