//! The broker's TLS.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;

use crate::config::{ConfigError, private, read};

/// Most bytes of a certificate chain or of its key.
const MAX_PEM: u64 = 64 << 10;

/// What a broker with this certificate and this key offers. No connection goes on from another: each is
/// worth a handshake, and a ticket would be two more secrets for each.
///
/// # Errors
///
/// [`ConfigError::Tls`], and those of reading the files.
pub fn server(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, ConfigError> {
    let wrong = |error: &dyn std::fmt::Display| ConfigError::Tls(error.to_string());
    let chain = read(certificate, MAX_PEM)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
    let key = private(key, MAX_PEM as usize)?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| wrong(&error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&error))?
        .with_no_client_auth()
        .with_single_cert(chain.map_err(|error| wrong(&error))?, key);
    let mut config = config.map_err(|error| wrong(&error))?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
