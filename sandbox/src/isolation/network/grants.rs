//! Which addresses the workload may connect to now.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use policy::Endpoint;

use super::flows::Begun;

/// Most addresses of one name that are remembered; the oldest is forgotten first.
const MAX_ADDRESSES: usize = 64;
/// Most connections of which it is remembered where they were begun.
const MAX_BEGUN: usize = 64;

/// The endpoints of the policy, which of them are granted now, and what their names were said to be.
#[derive(Debug, Default)]
pub struct Grants {
    endpoints: BTreeMap<Endpoint, bool>,
    /// Whether the workload was ever given a socket.
    pub(super) used: bool,
    /// The connections that were begun last, and where: a hint, by which most are found at once.
    pub(super) begun: VecDeque<Begun>,
    /// Addresses that the resolver gave out, by name.
    given: BTreeMap<String, VecDeque<IpAddr>>,
}

impl Grants {
    /// Starts with the endpoints of the policy and whether each is granted.
    pub fn new(endpoints: impl IntoIterator<Item = (Endpoint, bool)>) -> Self {
        Self {
            endpoints: endpoints.into_iter().collect(),
            used: false,
            begun: VecDeque::new(),
            given: BTreeMap::new(),
        }
    }

    /// Grants an endpoint of the policy, or takes it back. False if the policy does not have it.
    pub fn set(&mut self, endpoint: &Endpoint, granted: bool) -> bool {
        let known = self.endpoints.get_mut(endpoint);
        known.map(|now| *now = granted).is_some()
    }

    /// Remembers where a connection was begun.
    pub(super) fn begin(&mut self, begun: Begun) {
        self.begun.truncate(MAX_BEGUN - 1);
        self.begun.push_front(begun);
    }

    /// Tells whether a connection to this address may be made, or go on.
    ///
    /// An address is granted literally, or because the resolver gave it out for a name that is granted
    /// with this port.
    pub fn permit(&self, to: SocketAddr) -> bool {
        let ip = to.ip().to_canonical();
        // Linux connects "nowhere" to the host itself.
        if ip.is_unspecified() {
            return false;
        }
        self.granted()
            .filter(|endpoint| endpoint.port == to.port())
            .any(|endpoint| match endpoint.host.parse::<IpAddr>() {
                Ok(literal) => literal.to_canonical() == ip,
                Err(_) => self
                    .given
                    .get(&endpoint.host)
                    .is_some_and(|given| given.contains(&ip)),
            })
    }

    /// Tells whether some port of this name is granted: whether it may be resolved at all.
    pub fn name(&self, name: &str) -> bool {
        self.granted().any(|endpoint| endpoint.host == name)
    }

    /// Remembers what a name was resolved to, and returns what of it the workload may know.
    ///
    /// Whoever owns a name chooses its addresses. So one that is not of the public Internet (the host
    /// itself, its neighbours, a cloud's metadata service) counts only if the policy also grants it
    /// literally.
    pub fn give_out(&mut self, name: &str, addresses: &[IpAddr]) -> Vec<IpAddr> {
        let allowed: Vec<_> = addresses
            .iter()
            .map(IpAddr::to_canonical)
            .filter(|ip| is_public(*ip) || self.literal(*ip))
            .take(MAX_ADDRESSES)
            .collect();
        let given = self.given.entry(name.to_owned()).or_default();
        for ip in &allowed {
            if !given.contains(ip) {
                given.push_back(*ip);
            }
        }
        given.drain(..given.len().saturating_sub(MAX_ADDRESSES));
        allowed
    }

    /// The name that this address was given out for, if it was.
    pub fn name_of(&self, ip: IpAddr) -> Option<&str> {
        let ip = ip.to_canonical();
        let named = self.given.iter().find(|(_, given)| given.contains(&ip));
        named.map(|(name, _)| name.as_str())
    }

    fn granted(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints
            .iter()
            .filter_map(|(endpoint, granted)| granted.then_some(endpoint))
    }

    fn literal(&self, ip: IpAddr) -> bool {
        self.granted()
            .filter_map(|endpoint| endpoint.host.parse::<IpAddr>().ok())
            .any(|literal| literal.to_canonical() == ip)
    }
}

/// Tells whether an address belongs to the public Internet. See the IANA special-purpose address
/// registries (RFC 6890).
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(v4: Ipv4Addr) -> bool {
    let [a, b, c, _] = v4.octets();
    let special = matches!(
        (a, b, c),
        (0 | 10 | 127 | 224..=255, ..)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 168, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    );
    // Azure's platform address and Alibaba's metadata service are public by number only; the latter is
    // within 100.64.0.0/10.
    !special && v4 != Ipv4Addr::new(168, 63, 129, 16)
}

fn is_public_v6(v6: Ipv6Addr) -> bool {
    let s = v6.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match (s[0], s[1]) {
        // Translated (RFC 6052) and tunnelled (6to4) addresses are the IPv4 address in them.
        (0x64, 0xff9b) => s[2..6] == [0; 4] && embedded(s[6], s[7]),
        (0x2002, _) => embedded(s[1], s[2]),
        // Protocol assignments (Teredo among them), benchmarking, documentation.
        (0x2001, 0..=0x01ff | 0x0db8) | (0x3fff, 0..=0x0fff) => false,
        (0x2000..=0x3fff, _) => true,
        _ => false,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn grants(endpoints: &[&str]) -> Grants {
        Grants::new(endpoints.iter().map(|e| (e.parse().unwrap(), true)))
    }

    fn permits(grants: &Grants, to: &str) -> bool {
        grants.permit(to.parse().unwrap())
    }

    #[test]
    fn an_address_is_granted_with_its_port_and_in_any_spelling() {
        let grants = grants(&["10.0.0.5:5432", "[2001:db8::1]:443"]);
        for to in [
            "10.0.0.5:5432",
            "[::ffff:10.0.0.5]:5432",
            "[2001:db8::1]:443",
        ] {
            assert!(permits(&grants, to), "{to}");
        }
        for to in [
            "10.0.0.5:5433",
            "10.0.0.6:5432",
            "[::ffff:10.0.0.6]:5432",
            "[::10.0.0.5]:5432",
            "[2001:db8::2]:443",
        ] {
            assert!(!permits(&grants, to), "{to}");
        }
    }

    #[test]
    fn nowhere_is_not_an_address_even_if_it_was_granted() {
        let grants = grants(&["0.0.0.0:80", "[::]:80"]);
        assert!(!permits(&grants, "0.0.0.0:80") && !permits(&grants, "[::]:80"));
        assert!(!permits(&grants, "[::ffff:0.0.0.0]:80"));
    }

    #[test]
    fn only_what_was_given_out_for_a_granted_name_can_be_connected() {
        let mut grants = grants(&["api.example.com:443", "other.example.com:80"]);
        let ip = "93.184.216.34".parse().unwrap();
        assert!(!permits(&grants, "93.184.216.34:443"));
        assert_eq!(grants.give_out("api.example.com", &[ip]), [ip]);
        assert!(permits(&grants, "93.184.216.34:443"));
        // Neither on another name's port, nor after the name was taken back.
        assert!(!permits(&grants, "93.184.216.34:80"));
        assert!(grants.set(&"api.example.com:443".parse().unwrap(), false));
        assert!(!permits(&grants, "93.184.216.34:443"));
        assert!(!grants.name("api.example.com") && grants.name("other.example.com"));
    }

    #[test]
    fn a_name_does_not_lead_to_the_host_its_neighbours_or_its_metadata() {
        let mut grants = grants(&["evil.example:80", "10.1.2.3:80"]);
        for special in [
            "127.0.0.1",
            "169.254.169.254",
            "10.0.0.1",
            "100.100.100.200",
            "168.63.129.16",
            "172.16.0.1",
            "192.168.1.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "::ffff:127.0.0.1",
            "::127.0.0.1",
            "fd00:ec2::254",
            "fe80::1",
            "ff02::1",
            "64:ff9b::a9fe:a9fe",
            "2002:7f00:1::",
            "2001:0:1::",
        ] {
            let ip: IpAddr = special.parse().unwrap();
            assert!(
                grants.give_out("evil.example", &[ip]).is_empty(),
                "{special}"
            );
            assert!(!grants.permit((ip, 80).into()), "{special}");
        }
        // Unless it is granted literally, too.
        let literal: IpAddr = "10.1.2.3".parse().unwrap();
        assert_eq!(grants.give_out("evil.example", &[literal]), [literal]);
        for public in ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"] {
            let ip: IpAddr = public.parse().unwrap();
            assert_eq!(grants.give_out("evil.example", &[ip]), [ip], "{public}");
        }
    }

    #[test]
    fn a_name_with_ever_new_addresses_does_not_grow_without_bound() {
        let mut grants = grants(&["many.example:1"]);
        for n in 0..1000u32 {
            let ip = Ipv4Addr::from(0x0800_0000 + n);
            grants.give_out("many.example", &[ip.into()]);
        }
        assert_eq!(grants.given["many.example"].len(), MAX_ADDRESSES);
        assert!(permits(&grants, "8.0.3.231:1"));
    }
}
