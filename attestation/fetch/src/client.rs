//! One request, one answer.

use std::time::Duration;

/// The most bytes of an answer: more than any endorsement has.
const MAX_BODY: u64 = 1 << 20;
/// The longest an answer may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// An answer of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// Its headers: names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

impl Response {
    /// The value of a header, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(other, _)| other == name)
            .map(|(_, value)| value.as_str())
    }

    /// How long the service wants to be left alone, in whole seconds.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let seconds = self.header("retry-after")?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds))
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[error("no answer")]
pub struct HttpError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// Asks services.
pub trait Http {
    /// Asks once. Any status is an answer.
    ///
    /// # Errors
    ///
    /// [`HttpError`] if there is none, or not a whole one.
    fn get(&mut self, url: &str) -> Result<Response, HttpError>;
}

/// Asks over HTTP and TLS, following no redirection.
#[derive(Debug)]
pub struct Client(ureq::Agent);

impl Default for Client {
    fn default() -> Self {
        Self::new()
    }
}

impl Client {
    /// A client that gives up after half a minute.
    #[must_use]
    pub fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(TIMEOUT))
            .build();
        Self(config.into())
    }
}

impl Http for Client {
    fn get(&mut self, url: &str) -> Result<Response, HttpError> {
        let failed = |error: ureq::Error| HttpError(Box::new(error));
        let mut response = self.0.get(url).call().map_err(failed)?;
        let status = response.status().as_u16();
        let headers = response
            .headers()
            .iter()
            .filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned())))
            .collect();
        let body = response.body_mut().with_config().limit(MAX_BODY);
        let body = body.read_to_vec().map_err(failed)?;
        Ok(Response {
            status,
            headers,
            body,
        })
    }
}
