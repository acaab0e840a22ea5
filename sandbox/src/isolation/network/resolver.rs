//! The resolver inside the sandbox: it answers for names that are granted, and for no other.
//!
//! It hears on a socket of the sandbox's own, empty network, where nothing else is. A name that is not
//! granted now does not exist, and nobody outside is asked about it: what cannot be said to a name
//! server cannot be smuggled out as a name.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::Shared;
use super::message::{MAX_MESSAGE, Question, Verdict};
use crate::event::{DeniedAddress, Event, Wanted};

/// How long an answer of the host's resolver is good for. There are as many as names in the policy.
const FRESH: Duration = Duration::from_secs(30);

/// How long the same question again is still the same lookup.
const ONE_LOOKUP: Duration = Duration::from_secs(1);

/// Asks the host for the addresses of a name.
pub type Upstream = Arc<dyn Fn(&str) -> io::Result<Vec<IpAddr>> + Send + Sync>;

/// The host's own way of resolving names: see getaddrinfo(3).
pub fn host() -> Upstream {
    Arc::new(|name| {
        let addresses = (name, 0).to_socket_addrs()?;
        Ok(addresses.map(|address| address.ip()).collect())
    })
}

/// Starts to answer queries on this socket, until the process of `alive` ends.
///
/// # Errors
///
/// When no thread can be started.
pub fn start(
    socket: OwnedFd,
    alive: OwnedFd,
    grants: Shared,
    upstream: Upstream,
    events: SyncSender<Event>,
) -> io::Result<()> {
    let resolver = Resolver {
        grants,
        upstream,
        fresh: Mutex::default(),
    };
    std::thread::Builder::new()
        .name("sandbox-resolver".into())
        .spawn(move || serve(&socket.into(), &alive, &resolver, &events))
        .map(drop)
}

fn serve(socket: &UdpSocket, alive: &OwnedFd, resolver: &Resolver, events: &SyncSender<Event>) {
    let mut lookups = Lookups::default();
    loop {
        let mut watched = [
            PollFd::new(socket, PollFlags::IN),
            PollFd::new(alive, PollFlags::IN),
        ];
        match rustix::event::poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        if !watched[1].revents().is_empty() {
            return;
        }
        if watched[0].revents().is_empty() {
            continue;
        }
        // One byte more than is looked at, so that what is longer is not taken for its beginning.
        let mut query = [0u8; MAX_MESSAGE + 1];
        let Ok((length, from)) = socket.recv_from(&mut query) else {
            continue;
        };
        if length > MAX_MESSAGE {
            continue;
        }
        let Some((response, denied)) = resolver.answer(&query[..length]) else {
            continue;
        };
        // The report first: what a workload does last is heard of before its end.
        if let Some(denied) = denied.filter(|denied| lookups.is_new(&denied.wanted, Instant::now()))
            && events.send(Event::DeniedAddress(denied)).is_err()
        {
            return;
        }
        let _ = socket.send_to(&response, from);
    }
}

/// What was told last: programs ask for each family of addresses, and again when nothing comes, and that
/// is one wish.
#[derive(Default)]
struct Lookups(Option<(Wanted, Instant)>);

impl Lookups {
    fn is_new(&mut self, wanted: &Wanted, now: Instant) -> bool {
        let same = |(told, since): &(Wanted, Instant)| told == wanted && now < *since + ONE_LOOKUP;
        if self.0.as_ref().is_some_and(same) {
            return false;
        }
        self.0 = Some((wanted.clone(), now));
        true
    }
}

struct Resolver {
    grants: Shared,
    upstream: Upstream,
    fresh: Mutex<BTreeMap<String, (Instant, Vec<IpAddr>)>>,
}

impl Resolver {
    /// Answers one query; tells of a name that is not granted. Silent to what is no query.
    fn answer(&self, query: &[u8]) -> Option<(Vec<u8>, Option<DeniedAddress>)> {
        let question = Question::parse(query)?;
        let name = question.name.as_str();
        let denied = || {
            let denied = DeniedAddress {
                wanted: Wanted::Name(name.to_owned()),
                pid: 0,
            };
            Some((question.response(Verdict::NoSuchName, &[]), Some(denied)))
        };
        if !super::lock(&self.grants).name(name) {
            return denied();
        }
        let Ok(addresses) = self.addresses(name) else {
            return Some((question.response(Verdict::Failed, &[]), None));
        };
        let mut grants = super::lock(&self.grants);
        // It can have been taken back while the host was asked.
        if !grants.name(name) {
            drop(grants);
            return denied();
        }
        let known = grants.give_out(name, &addresses);
        if known.is_empty() && !addresses.is_empty() {
            // Only addresses that a name must not lead to.
            let denied = addresses.first().map(|ip| DeniedAddress {
                wanted: Wanted::Address {
                    address: SocketAddr::new(*ip, 0),
                    name: Some(name.to_owned()),
                },
                pid: 0,
            });
            return Some((question.response(Verdict::NoSuchName, &[]), denied));
        }
        Some((question.response(Verdict::Addresses, &known), None))
    }

    /// What the host says of a granted name, or said a moment ago.
    fn addresses(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let mut fresh = self
            .fresh
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((since, addresses)) = fresh.get(name)
            && since.elapsed() < FRESH
        {
            return Ok(addresses.clone());
        }
        let mut addresses = Vec::new();
        for address in (self.upstream)(name)? {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        fresh.insert(name.to_owned(), (Instant::now(), addresses.clone()));
        Ok(addresses)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::grants::Grants;
    use super::super::message::tests::query;
    use super::*;

    fn resolver(endpoints: &[&str], upstream: Upstream) -> Resolver {
        let grants = Grants::new(endpoints.iter().map(|e| (e.parse().unwrap(), true)));
        Resolver {
            grants: Arc::new(Mutex::new(grants)),
            upstream,
            fresh: Mutex::default(),
        }
    }

    fn code(answer: &Option<(Vec<u8>, Option<DeniedAddress>)>) -> (u8, u8, bool) {
        let (response, denied) = answer.as_ref().unwrap();
        (response[3] & 0xf, response[7], denied.is_some())
    }

    #[test]
    fn nobody_is_asked_about_a_name_that_is_not_granted() {
        let resolver = resolver(&["api.example.com:443"], Arc::new(|name| panic!("{name}")));
        for name in [
            "c2VjcmV0.example.com",
            "example.com",
            "api.example.com.evil",
        ] {
            assert_eq!(
                code(&resolver.answer(&query(name, 1))),
                (3, 0, true),
                "{name}"
            );
        }
    }

    #[test]
    fn a_granted_name_is_answered_and_no_longer_when_it_was_taken_back() {
        let ip: IpAddr = "8.8.8.8".parse().unwrap();
        let resolver = resolver(
            &["api.example.com:443"],
            Arc::new(move |_| Ok(vec![ip, ip])),
        );
        let asked = query("api.example.com", 1);
        assert_eq!(code(&resolver.answer(&asked)), (0, 1, false));
        assert_eq!(
            code(&resolver.answer(&query("api.example.com", 28))),
            (0, 0, false)
        );
        assert!(super::super::lock(&resolver.grants).permit((ip, 443).into()));
        let endpoint = "api.example.com:443".parse().unwrap();
        super::super::lock(&resolver.grants).set(&endpoint, false);
        assert_eq!(code(&resolver.answer(&asked)), (3, 0, true));
        super::super::lock(&resolver.grants).set(&endpoint, true);
        assert_eq!(code(&resolver.answer(&asked)), (0, 1, false));
    }

    #[test]
    fn a_name_that_is_bound_again_to_an_inner_address_is_refused_and_told_of() {
        let inner = "169.254.169.254".parse().unwrap();
        let resolver = resolver(&["api.example.com:80"], Arc::new(move |_| Ok(vec![inner])));
        let asked = query("api.example.com", 1);
        assert_eq!(code(&resolver.answer(&asked)), (3, 0, true));
        assert!(!super::super::lock(&resolver.grants).permit((inner, 80).into()));
    }

    #[test]
    fn a_host_that_cannot_resolve_is_a_failure_and_no_answer() {
        let failing: Upstream = Arc::new(|_| Err(io::ErrorKind::TimedOut.into()));
        let resolver = resolver(&["api.example.com:80"], failing);
        assert_eq!(
            code(&resolver.answer(&query("api.example.com", 1))),
            (2, 0, false)
        );
    }

    #[test]
    fn a_lookup_for_both_families_is_told_once_and_another_name_at_once() {
        let name = |text: &str| Wanted::Name(text.to_owned());
        let (mut lookups, now) = (Lookups::default(), Instant::now());
        assert!(lookups.is_new(&name("a.example"), now));
        assert!(!lookups.is_new(&name("a.example"), now));
        assert!(lookups.is_new(&name("b.example"), now));
        assert!(lookups.is_new(&name("a.example"), now));
        assert!(lookups.is_new(&name("a.example"), now + ONE_LOOKUP));
    }
}
