//! One certificate, as far as trust depends on it.

use der::Tag;

use super::read::{CONTEXT_0, CONTEXT_1, CONTEXT_2, CONTEXT_3, Elements};
use super::{Scheme, X509Error};
use crate::time::UnixTime;

const COMMON_NAME: &[u8] = b"\x55\x04\x03";
const BASIC_CONSTRAINTS: &[u8] = b"\x55\x1d\x13";
const KEY_USAGE: &[u8] = b"\x55\x1d\x0f";
/// Genuine certificates have at most 13 extensions.
const MAX_EXTENSIONS: usize = 32;

/// A parsed X.509 v3 certificate; every slice is part of the received bytes.
///
/// Parsing proves structure and the kind of signature, not that the signature verifies.
pub(crate) struct Certificate<'a> {
    pub(crate) serial: &'a [u8],
    pub(crate) issuer: &'a [u8],
    pub(crate) subject: &'a [u8],
    /// The only common name of the subject.
    pub(crate) common_name: &'a str,
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
    /// `SubjectPublicKeyInfo`, whole.
    pub(crate) spki: &'a [u8],
    pub(crate) key_algorithm: &'a [u8],
    pub(crate) public_key: &'a [u8],
    pub(crate) extensions: Vec<Extension<'a>>,
    scheme: Scheme,
    tbs: &'a [u8],
    signature: &'a [u8],
}

/// One extension: the content of its OID, and the content of its OCTET STRING.
#[derive(Clone, Copy)]
pub(crate) struct Extension<'a> {
    pub(crate) oid: &'a [u8],
    pub(crate) value: &'a [u8],
}

impl<'a> Certificate<'a> {
    pub(crate) fn parse(der: &'a [u8]) -> Result<Self, X509Error> {
        let mut outer = Elements::of_whole(der, "certificate")?;
        let tbs = outer.next(Tag::Sequence)?;
        let algorithm = outer.next(Tag::Sequence)?;
        let signature = outer.bits()?;
        outer.end()?;

        let mut fields = Elements::of(tbs.content, "tbsCertificate")?;
        let version = fields.next(CONTEXT_0)?;
        if version.content != [2, 1, 2] {
            return Err(X509Error::Structure("version"));
        }
        let serial = fields.next(Tag::Integer)?;
        let inner_algorithm = fields.next(Tag::Sequence)?;
        if inner_algorithm.raw != algorithm.raw {
            return Err(X509Error::Algorithm);
        }
        let scheme = Scheme::of(algorithm.raw)?;
        let issuer = fields.next(Tag::Sequence)?;
        let validity = fields.next(Tag::Sequence)?;
        let subject = fields.next(Tag::Sequence)?;
        let spki = fields.next(Tag::Sequence)?;
        fields.next_if(CONTEXT_1)?;
        fields.next_if(CONTEXT_2)?;
        let extensions = match fields.next_if(CONTEXT_3)? {
            Some(wrapped) => extensions(wrapped.content)?,
            None => Vec::new(),
        };
        fields.end()?;

        let mut dates = Elements::of(validity.content, "validity")?;
        let (not_before, not_after) = (dates.time()?, dates.time()?);
        dates.end()?;
        let mut key = Elements::of(spki.content, "subjectPublicKeyInfo")?;
        let key_algorithm = key.next(Tag::Sequence)?.raw;
        let public_key = key.bits()?;
        key.end()?;

        Ok(Self {
            serial: serial.content,
            issuer: issuer.raw,
            subject: subject.raw,
            common_name: common_name(subject.content)?,
            not_before,
            not_after,
            spki: spki.raw,
            key_algorithm,
            public_key,
            extensions,
            scheme,
            tbs: tbs.raw,
            signature,
        })
    }

    /// Whether the signature verifies under a key: content of the BIT STRING that holds it.
    pub(crate) fn is_signed_by(&self, public_key: &[u8]) -> bool {
        self.scheme.verifies(public_key, self.tbs, self.signature)
    }

    /// What the signature is over, as received.
    pub(crate) fn tbs(&self) -> &'a [u8] {
        self.tbs
    }

    /// The signature, as received.
    pub(crate) fn signature(&self) -> &'a [u8] {
        self.signature
    }

    /// The value of an extension, by the content of its OID.
    pub(crate) fn extension(&self, oid: &[u8]) -> Option<&'a [u8]> {
        self.extensions
            .iter()
            .find(|extension| extension.oid == oid)
            .map(|extension| extension.value)
    }

    /// Whether the certificate says that its key may sign certificates.
    pub(crate) fn may_sign_certificates(&self) -> bool {
        self.is_authority() && self.key_usage_allows_signing()
    }

    fn is_authority(&self) -> bool {
        let Some(value) = self.extension(BASIC_CONSTRAINTS) else {
            return false;
        };
        Elements::of_whole(value, "basicConstraints")
            .and_then(|mut fields| fields.next(Tag::Boolean))
            .is_ok_and(|authority| authority.content == [0xff])
    }

    fn key_usage_allows_signing(&self) -> bool {
        const KEY_CERT_SIGN: u8 = 0x04;
        match self.extension(KEY_USAGE) {
            // BIT STRING, its length, the number of unused bits, the first eight bits.
            Some([0x03, _, _, bits, ..]) => bits & KEY_CERT_SIGN != 0,
            _ => false,
        }
    }
}

fn common_name(name: &[u8]) -> Result<&str, X509Error> {
    const WRONG: X509Error = X509Error::Structure("subject");
    let mut found = None;
    let mut sets = Elements::of(name, "subject")?;
    while !sets.is_at_end() {
        let mut attributes = Elements::of(sets.next(Tag::Set)?.content, "subject")?;
        while !attributes.is_at_end() {
            let mut attribute = Elements::of(attributes.next(Tag::Sequence)?.content, "subject")?;
            let kind = attribute.next(Tag::ObjectIdentifier)?;
            let value = attribute.any()?;
            attribute.end()?;
            if kind.content == COMMON_NAME {
                let text = std::str::from_utf8(value.content).map_err(|_| WRONG)?;
                if found.replace(text).is_some() {
                    return Err(WRONG);
                }
            }
        }
    }
    found.ok_or(WRONG)
}

fn extensions(wrapped: &[u8]) -> Result<Vec<Extension<'_>>, X509Error> {
    let mut list = Elements::of_whole(wrapped, "extensions")?;
    let mut extensions: Vec<Extension<'_>> = Vec::new();
    while !list.is_at_end() {
        if extensions.len() >= MAX_EXTENSIONS {
            return Err(X509Error::Structure("extensions"));
        }
        let (extension, critical) = extension(list.next(Tag::Sequence)?.content)?;
        if critical && extension.oid != BASIC_CONSTRAINTS && extension.oid != KEY_USAGE {
            return Err(X509Error::CriticalExtension);
        }
        if extensions.iter().any(|other| other.oid == extension.oid) {
            return Err(X509Error::DuplicateExtension);
        }
        extensions.push(extension);
    }
    Ok(extensions)
}

/// One extension, and whether it is critical.
pub(super) fn extension(content: &[u8]) -> Result<(Extension<'_>, bool), X509Error> {
    let mut fields = Elements::of(content, "extension")?;
    let oid = fields.next(Tag::ObjectIdentifier)?.content;
    let critical = match fields.next_if(Tag::Boolean)? {
        Some(flag) => flag.content != [0],
        None => false,
    };
    let value = fields.next(Tag::OctetString)?.content;
    fields.end()?;
    Ok((Extension { oid, value }, critical))
}
