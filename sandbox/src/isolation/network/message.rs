//! The part of the DNS that the resolver speaks: one question, and answers made of addresses.
//!
//! Follows RFC 1035, section 4. Parsing is total, follows no compression pointer, and looks at no more
//! than the first question.

use std::net::IpAddr;

/// Longest query that is looked at, in bytes, and longest response without EDNS (RFC 1035, section 2.3.4).
pub const MAX_MESSAGE: usize = 512;
/// How long the workload may remember an answer, in seconds.
const TTL: u32 = 30;
/// Bytes of the header.
pub const HEADER: usize = 12;

/// A question about one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The name in lower case, without a final dot.
    pub name: String,
    /// What is asked for.
    pub kind: Kind,
    id: [u8; 2],
    recursion_desired: bool,
    /// The question as it stood in the query: it is repeated in the response.
    wire: Vec<u8>,
}

/// The type of records that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 addresses (`A`).
    V4,
    /// IPv6 addresses (`AAAA`).
    V6,
    /// Anything else, of which there is none.
    Other,
}

/// What becomes of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// These are all the addresses there are, of both kinds.
    Addresses,
    /// The name does not exist, as far as the workload is concerned.
    NoSuchName,
    /// The name could not be resolved this time.
    Failed,
}

impl Question {
    /// Reads a query. `None` for what is no query of one question about a host's name.
    pub fn parse(query: &[u8]) -> Option<Self> {
        let header = query.get(..HEADER)?;
        let flags = header[2];
        let is_query = flags & 0xf8 == 0;
        if !is_query || header[4..6] != [0, 1] {
            return None;
        }
        let (name, at) = read_name(query, HEADER)?;
        let end = at + 4;
        let [kind_high, kind_low, class_high, class_low] = query.get(at..end)?.try_into().ok()?;
        let kind = match (
            u16::from_be_bytes([kind_high, kind_low]),
            u16::from_be_bytes([class_high, class_low]),
        ) {
            (1, 1) => Kind::V4,
            (28, 1) => Kind::V6,
            _ => Kind::Other,
        };
        Some(Self {
            name,
            kind,
            id: [header[0], header[1]],
            recursion_desired: flags & 1 == 1,
            wire: query[HEADER..end].to_vec(),
        })
    }

    /// Writes the response: as many addresses of the kind that was asked for as have room.
    pub fn response(&self, verdict: Verdict, addresses: &[IpAddr]) -> Vec<u8> {
        let code = match verdict {
            Verdict::Addresses => 0,
            Verdict::Failed => 2,
            Verdict::NoSuchName => 3,
        };
        let mut message = Vec::with_capacity(MAX_MESSAGE);
        message.extend(self.id);
        // A response; recursion is available.
        message.push(0x80 | u8::from(self.recursion_desired));
        message.push(0x80 | code);
        message.extend([0, 1, 0, 0, 0, 0, 0, 0]);
        message.extend(&self.wire);
        let mut count = 0u16;
        for address in addresses {
            let (kind, bytes): (u16, Vec<u8>) = match (self.kind, address) {
                (Kind::V4, IpAddr::V4(v4)) => (1, v4.octets().into()),
                (Kind::V6, IpAddr::V6(v6)) => (28, v6.octets().into()),
                _ => continue,
            };
            if message.len() + HEADER + bytes.len() > MAX_MESSAGE {
                break;
            }
            // The name is that of the question, which follows the header.
            message.extend([0xc0, 0x0c]);
            message.extend(kind.to_be_bytes());
            message.extend([0, 1]);
            message.extend(TTL.to_be_bytes());
            message.extend([0, bytes.len() as u8]);
            message.extend(bytes);
            count += 1;
        }
        message[6..8].copy_from_slice(&count.to_be_bytes());
        message
    }
}

/// A host's name that is written out, in lower case and without a final dot, and where it ends.
pub fn read_name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut name = String::new();
    loop {
        let length = usize::from(*message.get(at)?);
        at += 1;
        match length {
            0 => return Some((name, at)),
            1..=63 => {}
            _ => return None,
        }
        let label = message.get(at..at + length)?;
        at += length;
        let plain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
        if !label.iter().all(plain) {
            return None;
        }
        if !name.is_empty() {
            name.push('.');
        }
        name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
        if name.len() > 253 {
            return None;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A query as a C library writes it.
    pub fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            message.push(label.len() as u8);
            message.extend(label.as_bytes());
        }
        message.push(0);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        message
    }

    #[test]
    fn a_response_answers_its_question_with_addresses_of_the_kind_asked_for() {
        let question = Question::parse(&query("API.example.com", 1)).unwrap();
        assert_eq!(
            (&*question.name, question.kind),
            ("api.example.com", Kind::V4)
        );
        let addresses = [
            "8.8.4.4".parse().unwrap(),
            "2606:4700::1111".parse().unwrap(),
        ];
        let response = question.response(Verdict::Addresses, &addresses);
        assert_eq!(response[..8], [0xab, 0xcd, 0x81, 0x80, 0, 1, 0, 1]);
        assert!(response.ends_with(&[0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 8, 8, 4, 4]));
        let refusal = question.response(Verdict::NoSuchName, &[]);
        assert_eq!(refusal[3] & 0xf, 3);
    }

    #[test]
    fn a_response_never_outgrows_a_datagram() {
        let addresses: Vec<IpAddr> = (0..1000u32)
            .map(|n| std::net::Ipv4Addr::from(0x0800_0000 + n).into())
            .collect();
        let question = Question::parse(&query("many.example", 1)).unwrap();
        assert!(question.response(Verdict::Addresses, &addresses).len() <= MAX_MESSAGE);
    }

    #[test]
    fn pointers_and_odd_names_are_no_question() {
        let mut pointer = query("a.b", 1);
        pointer[HEADER] = 0xc0;
        let mut response = query("a.b", 1);
        response[2] |= 0x80;
        for message in [pointer, response, query("a b.c", 1), query("a\0.c", 1)] {
            assert_eq!(Question::parse(&message), None);
        }
    }

    proptest! {
        #[test]
        fn no_message_is_too_odd_to_be_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some(question) = Question::parse(&bytes) {
                prop_assert!(question.name.len() <= 253);
                prop_assert!(question.response(Verdict::Failed, &[]).len() <= MAX_MESSAGE);
            }
        }

        #[test]
        fn a_query_that_is_cut_short_is_no_question(name in "[a-z]{1,20}(\\.[a-z]{1,20}){0,3}", cut in 1usize..20) {
            let whole = query(&name, 28);
            prop_assert!(Question::parse(&whole).is_some());
            prop_assert_eq!(Question::parse(&whole[..whole.len() - cut.min(whole.len())]), None);
        }
    }
}
