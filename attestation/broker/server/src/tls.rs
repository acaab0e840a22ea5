//! The broker's TLS.

use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{ProtocolVersion, ServerConfig, ServerConnection};

use crate::config::{ConfigError, private, read};

/// Most bytes of a certificate chain or of its key.
const MAX_PEM: u64 = 64 << 10;

/// What names a connection: `tls-exporter` of RFC 9266, which both of its ends know and nobody between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel(pub [u8; 32]);

impl Channel {
    /// That of a connection after its handshake; `None` for versions of TLS before 1.3.
    pub fn of(connection: &ServerConnection) -> Option<Self> {
        if connection.protocol_version() != Some(ProtocolVersion::TLSv1_3) {
            return None;
        }
        let label = b"EXPORTER-Channel-Binding";
        let exported = connection.export_keying_material([0; 32], label, Some(&[]));
        exported.ok().map(Self)
    }
}

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
