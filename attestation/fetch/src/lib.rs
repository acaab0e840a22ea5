//! Endorsements from the services of AMD and Intel, kept in a folder.
//!
//! ```text
//! Platform ▶ what it takes ▶ still good in the folder? │ ask the vendor's service ▶ folder
//! ```
//!
//! This is the only part of attestation that uses a network, and nothing it gets is believed here:
//! the verifier appraises what lies in the folder like everything else. Follows "VCEK Certificate and
//! KDS Interface Specification" (AMD) and "Intel PCS API version 4".
//!
//! A service that asks for patience is waited for; the clock and the waiting are passed in.

#![forbid(unsafe_code)]

mod client;
mod service;
#[cfg(test)]
mod tests;

use std::time::Duration;

use attestation::{EndorsementFolder, EndorsementName, FolderError, Platform, UnixTime};

pub use client::{Client, Http, HttpError, Response};
pub use service::Services;

/// How often one thing is asked for.
const ATTEMPTS: u32 = 5;
/// AMD's service takes a request about every ten seconds from one address.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// A service that asks for more patience than that is given up.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Why an endorsement could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The service knows of no such thing.
    #[error("`{url}` does not exist")]
    NotFound {
        /// What was asked for.
        url: String,
    },
    /// The service refused.
    #[error("`{url}` answers with status {status}")]
    Refused {
        /// What was asked for.
        url: String,
        /// The status of the answer.
        status: u16,
    },
    /// The service stayed busy or out of reach.
    #[error("`{url}` could not be had in {attempts} attempts")]
    Unavailable {
        /// What was asked for.
        url: String,
        /// How often.
        attempts: u32,
        /// What went wrong last, if the service did not answer.
        source: Option<HttpError>,
    },
    /// The service asks for more patience than there is.
    #[error("`{url}` is not to be asked again for {} s", wait.as_secs())]
    TooBusy {
        /// What was asked for.
        url: String,
        /// How long the service wants to be left alone.
        wait: Duration,
    },
    /// The answer is something else.
    #[error("what `{url}` answers is not what was asked for")]
    Content {
        /// What was asked for.
        url: String,
    },
    /// The folder cannot be used.
    #[error("the endorsements cannot be kept")]
    Folder(#[from] FolderError),
}

impl FetchError {
    /// The stable name of this reason.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not-found",
            Self::Refused { .. } => "refused",
            Self::Unavailable { .. } => "unavailable",
            Self::TooBusy { .. } => "too-busy",
            Self::Content { .. } => "content",
            Self::Folder(_) => "folder",
        }
    }
}

/// Fetches what a folder lacks.
pub struct Fetcher<H> {
    http: H,
    services: Services,
    folder: EndorsementFolder,
    now: UnixTime,
    wait: Box<dyn FnMut(Duration)>,
}

impl<H: Http> Fetcher<H> {
    /// Fetches into a folder; `wait` is called with how long to wait before asking again.
    #[must_use]
    pub fn new(
        http: H,
        services: Services,
        folder: EndorsementFolder,
        now: UnixTime,
        wait: Box<dyn FnMut(Duration)>,
    ) -> Self {
        Self {
            http,
            services,
            folder,
            now,
            wait,
        }
    }

    /// Fetches everything that a platform's evidence takes and that is not in the folder, or not good
    /// any more. Gives the names of what was fetched.
    ///
    /// # Errors
    ///
    /// [`FetchError`]; what was fetched before stays in the folder.
    pub fn fetch(&mut self, platform: &Platform) -> Result<Vec<EndorsementName>, FetchError> {
        let mut fetched = Vec::new();
        for item in self.services.items(platform) {
            let missing: Vec<_> = item
                .gives
                .iter()
                .filter(|name| !matches!(self.folder.get(name, self.now), Ok(Some(_))))
                .collect();
            if missing.is_empty() {
                continue;
            }
            let response = self.get(&item.url)?;
            let content = || FetchError::Content {
                url: item.url.clone(),
            };
            let parts = item.parts(&response).ok_or_else(content)?;
            // All of an answer is looked at before any of it is kept.
            for (name, part) in item.gives.iter().zip(&parts) {
                if name.end_of(part).is_none_or(|end| end < self.now) {
                    return Err(content());
                }
            }
            for (name, part) in item.gives.iter().zip(&parts) {
                self.folder.put(name, part)?;
                fetched.push(name.clone());
            }
        }
        Ok(fetched)
    }

    fn get(&mut self, url: &str) -> Result<Response, FetchError> {
        let mut wait = FIRST_WAIT;
        let mut last = None;
        for attempt in 1..=ATTEMPTS {
            let mut asked = None;
            match self.http.get(url) {
                Ok(response) => match response.status {
                    200 => return Ok(response),
                    404 => return Err(FetchError::NotFound { url: url.into() }),
                    429 | 500..=599 => asked = response.retry_after(),
                    status => {
                        return Err(FetchError::Refused {
                            url: url.into(),
                            status,
                        });
                    }
                },
                Err(error) => last = Some(error),
            }
            if attempt == ATTEMPTS {
                break;
            }
            // As long as the service asks for, and never less than our own patience.
            let next = asked.unwrap_or(wait).max(wait);
            if next > LONGEST_WAIT {
                return Err(FetchError::TooBusy {
                    url: url.into(),
                    wait: next,
                });
            }
            (self.wait)(next);
            wait = wait.saturating_mul(2);
        }
        Err(FetchError::Unavailable {
            url: url.into(),
            attempts: ATTEMPTS,
            source: last,
        })
    }
}
