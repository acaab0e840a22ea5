//! Where a store is, as a configuration says it.
//!
//! ```text
//! broker.redb                                                                 a file
//! etcd://10.0.0.1:2379,10.0.0.2:2379/casemate?ca=ca.pem&certificate=broker.pem&key=broker.key
//! etcd://127.0.0.1:2379/casemate?dangerously-plain                           without TLS
//! ```

use std::path::Path;
use std::sync::Arc;

use super::embedded::Embedded;
use super::etcd::{Etcd, Trust};
use super::{AnyStore, StoreError};

/// How the address of an etcd begins.
const SCHEME: &str = "etcd://";
/// The prefix of all keys, if none is named.
const PREFIX: &str = "casemate";

/// Why there is no store.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UriError {
    /// The address is not of the documented form.
    #[error(
        "a store is a file, or `{SCHEME}HOST:PORT,…/PREFIX?ca=FILE`, with `certificate` and `key` if etcd asks for them"
    )]
    Form,
    /// Whoever can listen on the way would see, and could change, what decides about secrets.
    #[error(
        "`{SCHEME}` without `ca` is not protected: name its certificates, or say `?dangerously-plain`"
    )]
    Plain,
    /// A certificate or key cannot be used.
    #[error("the store's TLS cannot be used: {0}")]
    Tls(String),
    /// It cannot be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Opens the store at an address; relative paths start at `base`. An etcd is not asked yet.
///
/// # Errors
///
/// [`UriError`].
pub fn at(uri: &str, base: &Path) -> Result<AnyStore, UriError> {
    let Some(rest) = uri.strip_prefix(SCHEME) else {
        return match uri.contains("://") || uri.is_empty() {
            true => Err(UriError::Form),
            false => Ok(Arc::new(Embedded::open(&base.join(uri))?)),
        };
    };
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, PREFIX));
    let plain = |text: &str, more: &[u8]| {
        let known = |byte: u8| byte.is_ascii_alphanumeric() || more.contains(&byte);
        !text.is_empty() && text.bytes().all(known)
    };
    let hosts: Vec<_> = hosts.split(',').collect();
    if !hosts.iter().all(|host| plain(host, b"-.:[]")) || !plain(prefix, b"-_.") {
        return Err(UriError::Form);
    }
    let (mut ca, mut certificate, mut key, mut in_plain) = (None, None, None, false);
    for part in query.split('&').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            Some(("ca", path)) => ca = Some(base.join(path)),
            Some(("certificate", path)) => certificate = Some(base.join(path)),
            Some(("key", path)) => key = Some(base.join(path)),
            None if part == "dangerously-plain" => in_plain = true,
            _ => return Err(UriError::Form),
        }
    }
    let own = match (&certificate, &key) {
        (Some(certificate), Some(key)) => Some((certificate.as_path(), key.as_path())),
        (None, None) => None,
        _ => return Err(UriError::Form),
    };
    let trust = match (&ca, in_plain) {
        (Some(ca), false) => Some(Trust { ca, own }),
        (None, true) if own.is_none() => None,
        (None, false) => return Err(UriError::Plain),
        _ => return Err(UriError::Form),
    };
    let etcd = Etcd::new(&hosts, prefix, trust.as_ref()).map_err(UriError::Tls)?;
    Ok(Arc::new(etcd))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_etcd_is_reached_over_tls_unless_it_is_said_that_it_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |uri: &str| at(uri, folder.path()).err();
        assert!(matches!(refused("etcd://a:2379"), Some(UriError::Plain)));
        assert!(refused("etcd://a:2379,b:2379/one?dangerously-plain").is_none());
        for wrong in [
            "etcd://",
            "etcd://a b:1?dangerously-plain",
            "etcd://a:1/x/y?dangerously-plain",
            "etcd://a:1?ca=x&insecure=1",
            "etcd://a:1?ca=x&certificate=y",
            "etcd://a:1?ca=x&dangerously-plain",
            "http://a:1",
            "",
        ] {
            assert!(matches!(refused(wrong), Some(UriError::Form)), "{wrong}");
        }
        assert!(matches!(
            refused("etcd://a:1?ca=missing.pem"),
            Some(UriError::Tls(_))
        ));
    }
}
