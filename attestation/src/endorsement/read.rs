//! A cursor over DER that keeps the received bytes of what it reads.

use der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use der::{Decode, Reader, SliceReader, Tag, TagNumber, Tagged};

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
    reader: SliceReader<'a>,
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
        let reader = SliceReader::new(content).map_err(|_| X509Error::Structure(what))?;
        Ok(Self { reader, what })
    }

    /// Over the content of the one element that `der` consists of.
    pub(crate) fn of_whole(der: &'a [u8], what: &'static str) -> Result<Self, X509Error> {
        let mut outer = Self::of(der, what)?;
        let inner = outer.next(Tag::Sequence)?;
        outer.end()?;
        Self::of(inner.content, what)
    }

    pub(crate) fn any(&mut self) -> Result<Element<'a>, X509Error> {
        let wrong = X509Error::Structure(self.what);
        let raw = self.reader.tlv_bytes().map_err(|_| wrong)?;
        let element = AnyRef::from_der(raw).map_err(|_| wrong)?;
        Ok(Element {
            tag: element.tag(),
            raw,
            content: element.value(),
        })
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
        Tag::peek(&self.reader).ok()
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
        self.reader.is_finished()
    }

    pub(crate) fn end(&self) -> Result<(), X509Error> {
        if self.is_at_end() {
            return Ok(());
        }
        Err(X509Error::Structure(self.what))
    }
}

/// A DER INTEGER between 0 and 255 that is the whole of `der`.
pub(crate) fn integer(der: &[u8]) -> Option<u8> {
    u8::from_der(der).ok()
}
