//! TLS connections to a broker, and what names each of them: `tls-exporter` of RFC 9266.
//!
//! Evidence that is bound to the name of a connection is good over that connection only: whoever relays an
//! exchange has two connections, with two names.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, ProtocolVersion, StreamOwned};
use ureq::config::Config;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, TcpConnector, Transport,
    TransportAdapter,
};

/// Name of the exporter.
const LABEL: &[u8] = b"EXPORTER-Channel-Binding";

/// A client of one broker that makes a connection when it has none.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) agent: ureq::Agent,
    seen: Seen,
}

/// What names the connection that was made last.
type Seen = Arc<Mutex<Option<[u8; 32]>>>;

/// Makes connections.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    pub(crate) config: Config,
    pub(crate) tls: Arc<ClientConfig>,
    /// Where to connect instead of to a `HOST:PORT`; if there are any, nowhere else.
    pub(crate) ways: BTreeMap<String, SocketAddr>,
}

impl Lines {
    /// A line on which nothing was asked yet.
    pub(crate) fn line(&self) -> Line {
        let seen = Seen::default();
        let tls = Tls {
            config: Arc::clone(&self.tls),
            seen: Arc::clone(&seen),
        };
        let connector = TcpConnector::default().chain(tls);
        let config = self.config.clone();
        let agent = match self.ways.is_empty() {
            true => ureq::Agent::with_parts(config, connector, DefaultResolver::default()),
            false => ureq::Agent::with_parts(config, connector, Ways(self.ways.clone())),
        };
        Line { agent, seen }
    }
}

impl Line {
    /// What names the connection that was made last; `None` for versions of TLS before 1.3.
    pub(crate) fn channel(&self) -> Option<[u8; 32]> {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts TLS over a connection.
#[derive(Debug)]
struct Tls {
    config: Arc<ClientConfig>,
    seen: Seen,
}

impl<In: Transport> Connector<In> for Tls {
    type Out = Secured;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Secured>, ureq::Error> {
        let (Some(below), Some(host)) = (chained, details.uri.host()) else {
            return Ok(None);
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| ureq::Error::Tls("no name that a certificate can have"))?;
        let mut connection = ClientConnection::new(Arc::clone(&self.config), name)?;
        let mut socket = TransportAdapter::new(below.boxed(), details.current_time.clone());
        socket.set_timeout(details.timeout);
        connection.complete_io(&mut socket)?;
        let mut channel = None;
        if connection.protocol_version() == Some(ProtocolVersion::TLSv1_3) {
            channel = Some(connection.export_keying_material([0; 32], LABEL, Some(&[]))?);
        }
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = channel;
        let config = details.config;
        Ok(Some(Secured {
            buffers: LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size()),
            stream: StreamOwned::new(connection, socket),
        }))
    }
}

/// A connection with TLS.
struct Secured {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl std::fmt::Debug for Secured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secured(..)")
    }
}

impl Transport for Secured {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        use std::io::Write;
        self.stream.get_mut().set_timeout(timeout);
        self.stream.write_all(&self.buffers.output()[..amount])?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        use std::io::Read;
        self.stream.get_mut().set_timeout(timeout);
        let read = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

/// Resolves to the way to a host, and to nothing where there is none.
#[derive(Debug)]
struct Ways(BTreeMap<String, SocketAddr>);

impl Resolver for Ways {
    fn resolve(
        &self,
        uri: &ureq::http::Uri,
        _: &Config,
        _: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let way = uri.authority().and_then(|host| self.0.get(host.as_str()));
        let mut addresses = self.empty();
        addresses.push(*way.ok_or(ureq::Error::HostNotFound)?);
        Ok(addresses)
    }
}
