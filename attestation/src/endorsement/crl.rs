//! One certificate revocation list.

use der::Tag;

use super::certificate::extension;
use super::read::{CONTEXT_0, Elements};
use super::{Scheme, X509Error};
use crate::time::UnixTime;

/// A parsed X.509 v2 CRL; every slice is part of the received bytes.
pub(crate) struct Crl<'a> {
    pub(crate) issuer: &'a [u8],
    pub(crate) this_update: UnixTime,
    pub(crate) next_update: Option<UnixTime>,
    /// Serial numbers, each the content of its INTEGER.
    revoked: Vec<&'a [u8]>,
    scheme: Scheme,
    tbs: &'a [u8],
    signature: &'a [u8],
}

impl<'a> Crl<'a> {
    pub(crate) fn parse(der: &'a [u8]) -> Result<Self, X509Error> {
        let mut outer = Elements::of_whole(der, "CRL")?;
        let tbs = outer.next(Tag::Sequence)?;
        let algorithm = outer.next(Tag::Sequence)?;
        let signature = outer.bits()?;
        outer.end()?;

        let mut fields = Elements::of(tbs.content, "tbsCertList")?;
        if fields.next(Tag::Integer)?.content != [1] {
            return Err(X509Error::Structure("version"));
        }
        let inner_algorithm = fields.next(Tag::Sequence)?;
        if inner_algorithm.raw != algorithm.raw {
            return Err(X509Error::Algorithm);
        }
        let scheme = Scheme::of(algorithm.raw)?;
        let issuer = fields.next(Tag::Sequence)?.raw;
        let this_update = fields.time()?;
        // The date and the list are both optional, and told apart by their tags.
        let next_update = fields.optional_time()?;
        let revoked = match fields.next_if(Tag::Sequence)? {
            Some(list) => serials(list.content)?,
            None => Vec::new(),
        };
        if let Some(wrapped) = fields.next_if(CONTEXT_0)? {
            refuse_critical(Elements::of_whole(wrapped.content, "crlExtensions")?)?;
        }
        fields.end()?;

        Ok(Self {
            issuer,
            this_update,
            next_update,
            revoked,
            scheme,
            tbs: tbs.raw,
            signature,
        })
    }

    /// Whether the signature verifies under a key: content of the BIT STRING that holds it.
    pub(crate) fn is_signed_by(&self, public_key: &[u8]) -> bool {
        self.scheme.verifies(public_key, self.tbs, self.signature)
    }

    /// The signature, as received.
    pub(crate) fn signature(&self) -> &'a [u8] {
        self.signature
    }

    /// Whether a serial number (content of its INTEGER) is on the list.
    pub(crate) fn lists(&self, serial: &[u8]) -> bool {
        self.revoked.contains(&serial)
    }
}

/// Reads every entry, so that a malformed one cannot hide a later one.
fn serials(list: &[u8]) -> Result<Vec<&[u8]>, X509Error> {
    let mut entries = Elements::of(list, "revokedCertificates")?;
    let mut serials = Vec::new();
    // Nearly all entries have the same.
    let mut uncritical: &[u8] = &[];
    while !entries.is_at_end() {
        let entry = entries.next(Tag::Sequence)?;
        let mut fields = Elements::of(entry.content, "revokedCertificate")?;
        serials.push(fields.next(Tag::Integer)?.content);
        // When it was revoked is of no interest: it is.
        if !matches!(fields.any()?.tag, Tag::UtcTime | Tag::GeneralizedTime) {
            return Err(X509Error::Structure("revocationDate"));
        }
        if let Some(extensions) = fields.next_if(Tag::Sequence)?
            && extensions.content != uncritical
        {
            refuse_critical(Elements::of(extensions.content, "crlEntryExtensions")?)?;
            uncritical = extensions.content;
        }
        fields.end()?;
    }
    Ok(serials)
}

/// Critical extensions change what a list means: a delta, a partition, another issuer.
fn refuse_critical(mut list: Elements<'_>) -> Result<(), X509Error> {
    while !list.is_at_end() {
        let (_, critical) = extension(list.next(Tag::Sequence)?.content)?;
        if critical {
            return Err(X509Error::CriticalExtension);
        }
    }
    Ok(())
}
