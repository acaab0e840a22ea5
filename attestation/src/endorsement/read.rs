//! A cursor over DER that keeps the received bytes of what it reads.

use der::asn1::{GeneralizedTime, UtcTime};
use der::{Decode, SliceReader, Tag, TagNumber};

use super::X509Error;
use crate::time::UnixTime;

/// One element: the whole of it as received, and its content.
#[derive(Clone, Copy)]
pub(crate) struct Element<'a> {
    pub(crate) tag: Tag,
    pub(crate) raw: &'a [u8],
    pub(crate) content: &'a [u8],
}

/// Reads the elements of one constructed value in order.
pub(crate) struct Elements<'a> {
    rest: &'a [u8],
    what: &'static str,
}

pub(super) const CONTEXT_0: Tag = context(0);
pub(super) const CONTEXT_1: Tag = context(1);
pub(super) const CONTEXT_2: Tag = context(2);
pub(super) const CONTEXT_3: Tag = context(3);

const fn context(number: u32) -> Tag {
    Tag::ContextSpecific {
        constructed: true,
        number: TagNumber(number),
    }
}

impl<'a> Elements<'a> {
    /// Over the content of an element; `what` names it in errors.
    pub(crate) fn of(content: &'a [u8], what: &'static str) -> Result<Self, X509Error> {
        Ok(Self {
            rest: content,
            what,
        })
    }

    /// Over the content of the one element that `der` consists of.
    pub(crate) fn of_whole(der: &'a [u8], what: &'static str) -> Result<Self, X509Error> {
        let mut outer = Self::of(der, what)?;
        let inner = outer.next(Tag::Sequence)?;
        outer.end()?;
        Self::of(inner.content, what)
    }

    pub(crate) fn any(&mut self) -> Result<Element<'a>, X509Error> {
        let (element, rest) = element(self.rest).ok_or(X509Error::Structure(self.what))?;
        self.rest = rest;
        Ok(element)
    }

    pub(crate) fn next(&mut self, tag: Tag) -> Result<Element<'a>, X509Error> {
        let element = self.any()?;
        if element.tag != tag {
            return Err(X509Error::Structure(self.what));
        }
        Ok(element)
    }

    /// The next element if it has this tag.
    pub(crate) fn next_if(&mut self, tag: Tag) -> Result<Option<Element<'a>>, X509Error> {
        if self.peek() != Some(tag) {
            return Ok(None);
        }
        self.any().map(Some)
    }

    fn peek(&self) -> Option<Tag> {
        tag(self.rest)
    }

    /// A date in one of the two forms that X.509 has.
    pub(crate) fn time(&mut self) -> Result<UnixTime, X509Error> {
        let element = self.any()?;
        let wrong = X509Error::Structure(self.what);
        let since = match element.tag {
            Tag::UtcTime => UtcTime::from_der(element.raw).map(|time| time.to_unix_duration()),
            Tag::GeneralizedTime => {
                GeneralizedTime::from_der(element.raw).map(|time| time.to_unix_duration())
            }
            _ => return Err(wrong),
        };
        since
            .map(|since| UnixTime(since.as_secs()))
            .map_err(|_| wrong)
    }

    /// A date, if the next element is one.
    pub(crate) fn optional_time(&mut self) -> Result<Option<UnixTime>, X509Error> {
        match self.peek() {
            Some(Tag::UtcTime | Tag::GeneralizedTime) => self.time().map(Some),
            _ => Ok(None),
        }
    }

    /// A bit string of whole bytes.
    pub(crate) fn bits(&mut self) -> Result<&'a [u8], X509Error> {
        match self.next(Tag::BitString)?.content {
            [0, bytes @ ..] => Ok(bytes),
            _ => Err(X509Error::Structure(self.what)),
        }
    }

    pub(crate) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    pub(crate) fn end(&self) -> Result<(), X509Error> {
        if self.is_at_end() {
            return Ok(());
        }
        Err(X509Error::Structure(self.what))
    }
}

/// The element that DER begins with, and what follows it.
///
/// By hand, since a revocation list has thousands of them: tags of one byte, lengths of up to two bytes
/// more than their first, each in the one form that DER allows. Nothing in use is longer.
fn element(der: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let tag = tag(der)?;
    let (header, length) = match *der.get(1..)? {
        [short @ 0..=0x7f, ..] => (2, usize::from(short)),
        [0x81, length @ 0x80..=0xff, ..] => (3, usize::from(length)),
        [0x82, high @ 1..=0xff, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
        [0x83, top @ 1..=0xff, high, low, ..] => {
            let length = u32::from_be_bytes([0, top, high, low]);
            (5, usize::try_from(length).ok()?)
        }
        _ => return None,
    };
    let (raw, rest) = der.split_at_checked(header + length)?;
    let content = raw.get(header..)?;
    Some((Element { tag, raw, content }, rest))
}

/// The tag that DER begins with.
fn tag(der: &[u8]) -> Option<Tag> {
    Some(match *der.first()? {
        0x01 => Tag::Boolean,
        0x02 => Tag::Integer,
        0x03 => Tag::BitString,
        0x04 => Tag::OctetString,
        0x05 => Tag::Null,
        0x06 => Tag::ObjectIdentifier,
        0x0c => Tag::Utf8String,
        0x13 => Tag::PrintableString,
        0x17 => Tag::UtcTime,
        0x30 => Tag::Sequence,
        0x31 => Tag::Set,
        0xa0 => CONTEXT_0,
        0xa3 => CONTEXT_3,
        // A tag of more than one byte is none of those that are asked for.
        long if long & 0x1f == 0x1f => return None,
        _ => Tag::peek(&SliceReader::new(der).ok()?).ok()?,
    })
}

/// A DER INTEGER between 0 and 255 that is the whole of `der`.
pub(crate) fn integer(der: &[u8]) -> Option<u8> {
    u8::from_der(der).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use der::Reader as _;
    use der::Tagged as _;
    use der::asn1::AnyRef;
    use proptest::prelude::*;

    /// What the crate `der` makes of the same bytes.
    fn oracle(bytes: &[u8]) -> Option<(Tag, &[u8], &[u8])> {
        let mut reader = SliceReader::new(bytes).ok()?;
        let raw = reader.tlv_bytes().ok()?;
        let any = AnyRef::from_der(raw).ok()?;
        Some((any.tag(), raw, any.value()))
    }

    proptest! {
        #[test]
        fn an_element_is_what_another_parser_takes_it_for(
            tag in prop::sample::select(vec![
                1_u8, 2, 3, 4, 5, 6, 0x0c, 0x13, 0x16, 0x17, 0x18, 0x1f, 0x30, 0x31, 0x3f, 0x80, 0xa0,
                0xa1, 0xa2, 0xa3, 0xbf, 0xff, 0,
            ]),
            length in prop::sample::select(vec![
                vec![0], vec![1], vec![0x7f], vec![0x80], vec![0x81, 0x7f], vec![0x81, 0x80],
                vec![0x82, 0, 0x80], vec![0x82, 1, 0], vec![0x83, 0, 1, 0], vec![0x83, 1, 0, 0],
                vec![0x84, 0, 0, 1, 0], vec![0xff],
            ]),
            content in proptest::collection::vec(any::<u8>(), 0..300),
        ) {
            let bytes = [&[tag][..], &length, &content].concat();
            let ours = element(&bytes).map(|(it, _)| (it.tag, it.raw, it.content));
            let theirs = oracle(&bytes);
            // Tags of several bytes are read there, and are of no use here.
            if tag & 0x1f != 0x1f {
                prop_assert_eq!(ours, theirs);
            }
        }
    }
}
