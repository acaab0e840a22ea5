//! Connections: TLS, and bounds on what each of them may cost.
//!
//! A client that is slow is given up, whatever it is slow at: the handshake, the header, the body, or
//! reading the answer. One connection too many is closed at once: nothing waits in a line without end.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::config::Limits;
use crate::tls::Channel;

/// How many times its patience with one request a connection may be there in all.
const REQUESTS: u32 = 12;
/// How long requests may take that are under way when the server ends.
const GRACE: Duration = Duration::from_secs(10);
/// Most bytes of a header.
const MAX_HEADER: usize = 16 << 10;
/// Most lines of a header.
const MAX_LINES: usize = 64;
/// How long to wait when the system has no descriptor for a client.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves clients until told to end, and then those whose requests are under way.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    router: Router,
    limits: Limits,
    end: impl Future<Output = ()>,
) {
    let acceptor = TlsAcceptor::from(tls);
    let room = Arc::new(Semaphore::new(limits.connections));
    let graceful = GracefulShutdown::new();
    let patience = Duration::from_secs(limits.patience);
    tokio::pin!(end);
    loop {
        let (stream, client) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    note(format_args!("cannot take a connection: {error}"));
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            },
            () = &mut end => break,
        };
        let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
            continue;
        };
        let (acceptor, watcher) = (acceptor.clone(), graceful.watcher());
        let served = Served {
            client,
            channel: None,
            router: TowerToHyperService::new(router.clone()),
        };
        tokio::spawn(async move {
            let _place = place;
            // What goes wrong with one connection is that client's business.
            let connection = one(stream, acceptor, served, watcher, patience);
            let _ = tokio::time::timeout(patience * REQUESTS, connection).await;
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(GRACE, graceful.shutdown()).await;
}

async fn one(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    mut served: Served,
    watcher: hyper_util::server::graceful::Watcher,
    patience: Duration,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    // In a box: what a handshake needs is not kept for as long as the connection.
    let handshake = Box::pin(tokio::time::timeout(patience, acceptor.accept(stream)));
    let stream = handshake.await??;
    served.channel = Channel::of(stream.get_ref().1);
    let stream = TokioIo::new(stream);
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_headers(MAX_LINES)
        .max_buf_size(MAX_HEADER);
    watcher
        .watch(builder.serve_connection(stream, served))
        .await?;
    Ok(())
}

/// What serves one connection: all requests alike, told whose they are.
struct Served {
    client: SocketAddr,
    channel: Option<Channel>,
    router: TowerToHyperService<Router>,
}

impl Service<Request<Incoming>> for Served {
    type Response = Response;
    type Error = Infallible;
    type Future = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(ConnectInfo(self.client));
        request.extensions_mut().insert(self.channel);
        self.router.call(request)
    }
}

/// Listens.
///
/// # Errors
///
/// What the system answers.
pub async fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Tells the operator something, on stderr.
pub fn note(what: fmt::Arguments<'_>) {
    use io::Write;
    let _ = writeln!(io::stderr().lock(), "casemate-broker: {what}");
}
