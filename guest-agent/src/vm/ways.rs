//! Ways to brokers elsewhere: TCP in the guest, a stream through the channel, TCP on the host.
//!
//! TLS is spoken by the agent inside, so what is carried here is ciphertext, and its server is the one
//! whose certificate the agent believes.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use casemate::isolation::microvm::channel::Inlet;
use casemate::isolation::microvm::{Link, StreamId};
use policy::Bundle;

use super::{ToHost, stream};

/// How long the host may take to reach a broker.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// The port of a broker whose address names none.
const PORT: u16 = 443;

/// The brokers that a policy names, as `host` or `host:port`.
pub(super) fn brokers(bundle: &Bundle) -> Vec<String> {
    let uris = bundle
        .tables()
        .data
        .values()
        .filter_map(|data| data.key.as_deref());
    let rests = uris.filter_map(|uri| uri.strip_prefix(crate::remote_broker::SCHEME));
    let hosts = rests.filter_map(|rest| Some(rest.split_once('/')?.0));
    let mut brokers: Vec<_> = hosts
        .flat_map(|hosts| hosts.split(',').map(str::to_owned))
        .collect();
    brokers.sort();
    brokers.dedup();
    brokers
}

/// Opens a port of the guest for each broker, and carries what is connected there.
pub(super) fn open(link: &Arc<Link>, bundle: &Bundle) -> io::Result<BTreeMap<String, SocketAddr>> {
    let next = Arc::new(AtomicU32::new(stream::FIRST_WAY));
    let mut ways = BTreeMap::new();
    for broker in brokers(bundle) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        ways.insert(broker.clone(), listener.local_addr()?);
        let (link, next) = (Arc::clone(link), Arc::clone(&next));
        let serve = move || {
            for connection in listener.incoming().map_while(Result::ok) {
                let id = next.fetch_add(1, Ordering::Relaxed);
                let Ok(inlet) = link.open(id) else { continue };
                if link.send(&ToHost::Dial(id, broker.clone())).is_err() {
                    return;
                }
                let link = Arc::clone(&link);
                thread::spawn(move || carry(&link, id, inlet, &connection));
            }
        };
        thread::Builder::new().name("way".into()).spawn(serve)?;
    }
    Ok(ways)
}

/// Connects a stream to a broker, which the policy must name; without one the stream just ends.
pub(super) fn dial(link: &Arc<Link>, id: StreamId, inlet: Inlet, broker: String) {
    let link = Arc::clone(link);
    thread::spawn(move || match connect(&broker) {
        Ok(connection) => carry(&link, id, inlet, &connection),
        Err(_) => {
            drop(inlet);
            let _ = link.end(id);
            link.close(id);
        }
    });
}

fn connect(broker: &str) -> io::Result<TcpStream> {
    let bracketed = broker.ends_with(']');
    let addresses = match broker.rsplit_once(':').filter(|_| !bracketed) {
        Some(_) => broker.to_socket_addrs()?,
        None => (broker.trim_matches(['[', ']']), PORT).to_socket_addrs()?,
    };
    let mut last = io::ErrorKind::NotFound.into();
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_DEADLINE) {
            Ok(connection) => return Ok(connection),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Carries both directions until both are at their end.
fn carry(link: &Arc<Link>, id: StreamId, mut inlet: Inlet, connection: &TcpStream) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut piece = vec![0; 16 << 10];
            let mut reader = connection;
            while let Ok(read @ 1..) = reader.read(&mut piece) {
                if link.write(id, &piece[..read]).is_err() {
                    break;
                }
            }
            let _ = link.end(id);
        });
        let mut piece = vec![0; 16 << 10];
        let mut writer = connection;
        while let Ok(read @ 1..) = inlet.read(&mut piece) {
            if writer.write_all(&piece[..read]).is_err() {
                break;
            }
        }
        let _ = connection.shutdown(Shutdown::Write);
    });
    drop(inlet);
    link.close(id);
}
