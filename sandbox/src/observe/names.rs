//! Which name an address was connected for: answers of name servers, as an observed program received them.
//!
//! Follows RFC 1035, section 4. Total; whatever is no answer about addresses says nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::isolation::network::message::{HEADER, read_name};

/// Most answers of one message that are looked at.
const MOST_ANSWERS: u16 = 64;
/// Records of an IPv4 address (`A`).
const ADDRESS_V4: u16 = 1;
/// Records of an IPv6 address (`AAAA`).
const ADDRESS_V6: u16 = 28;

/// The name that was asked for, and the addresses that are the answer, through whatever aliases.
pub fn answered(message: &[u8]) -> Option<(String, Vec<IpAddr>)> {
    let header = message.get(..HEADER)?;
    // A response, to a standard query, without an error; of one question.
    if header[2] & 0xf8 != 0x80 || header[3] & 0xf != 0 || header[4..6] != [0, 1] {
        return None;
    }
    let (name, mut at) = read_name(message, HEADER)?;
    at += 4;
    let mut addresses = Vec::new();
    for _ in 0..number(message, 6)?.min(MOST_ANSWERS) {
        at = after_name(message, at)?;
        let (kind, length) = (number(message, at)?, number(message, at + 8)?);
        let data = message.get(at + 10..at + 10 + usize::from(length))?;
        at += 10 + usize::from(length);
        match kind {
            ADDRESS_V4 => addresses.push(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into()),
            ADDRESS_V6 => addresses.push(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).into()),
            _ => {}
        }
    }
    (!addresses.is_empty()).then_some((name, addresses))
}

/// Where a name ends that may end in a pointer, which is not followed.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length @ 1..=63 => at += 1 + usize::from(length),
            192.. => return Some(at + 2),
            _ => return None,
        }
    }
}

fn number(message: &[u8], at: usize) -> Option<u16> {
    let bytes = message.get(at..at + 2)?;
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::isolation::network::message::tests::query;
    use crate::isolation::network::message::{Question, Verdict};

    #[test]
    fn an_answer_names_what_was_asked_and_what_it_led_to() {
        let question = Question::parse(&query("Api.example.com", 1)).unwrap();
        let address: IpAddr = "203.0.113.5".parse().unwrap();
        let response = question.response(Verdict::Addresses, &[address]);
        let told = ("api.example.com".to_owned(), vec![address]);
        assert_eq!(answered(&response), Some(told.clone()));
        // Through an alias, whose name stands before the address.
        let mut aliased = question.response(Verdict::Addresses, &[]);
        aliased[7] = 2;
        aliased.extend([
            0xc0, 0x0c, 0, 5, 0, 1, 0, 0, 0, 9, 0, 4, 1, b'b', 0xc0, 0x10,
        ]);
        aliased.extend([0xc0, 0x2d, 0, 1, 0, 1, 0, 0, 0, 9, 0, 4, 203, 0, 113, 5]);
        assert_eq!(answered(&aliased), Some(told));
        for other in [
            query("api.example.com", 1),
            question.response(Verdict::NoSuchName, &[]),
            question.response(Verdict::Addresses, &[]),
            response[..response.len() - 1].to_vec(),
        ] {
            assert_eq!(answered(&other), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            answered(&bytes);
            let mut response = query("a.example", 1);
            response[2] = 0x80;
            response[7] = 3;
            response.extend(&bytes);
            answered(&response);
        }
    }
}
