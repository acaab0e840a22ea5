//! What every chain of certificates has in common: one certificate under another, at a time.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use ring::digest::{Context, SHA256, digest};

use super::{Certificate, Crl, X509Error};
use crate::encoding::Hex;
use crate::time::UnixTime;

/// Why a certificate does not hang on the one above it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkError {
    /// It names another issuer.
    Issuer,
    /// The signature does not verify.
    Signature,
    /// It is not valid before this time.
    NotYetValid(UnixTime),
    /// It was valid until this time.
    Expired(UnixTime),
    /// A CRL cannot be read.
    Crl(X509Error),
    /// A CRL names the issuer, who did not sign it.
    CrlSignature,
    /// A CRL of the issuer is from the future.
    CrlNotYetValid(UnixTime),
    /// The newest CRL of the issuer is past its next update.
    CrlExpired(UnixTime),
    /// A CRL does not say when the next one comes.
    CrlWithoutEnd,
    /// The issuer revoked this serial number.
    Revoked(String),
}

/// Checks that `issuer` issued `certificate`.
pub(crate) fn issued(
    certificate: &Certificate<'_>,
    issuer: &Certificate<'_>,
    known: Option<&Remembered>,
) -> Result<(), LinkError> {
    if certificate.issuer != issuer.subject {
        return Err(LinkError::Issuer);
    }
    let verify = || certificate.is_signed_by(issuer.public_key);
    let verifies = match known {
        None => verify(),
        Some(known) => {
            let parts = [
                issuer.public_key,
                certificate.tbs(),
                certificate.signature(),
            ];
            known.or_verify(parts, verify)
        }
    };
    if verifies {
        return Ok(());
    }
    Err(LinkError::Signature)
}

/// RFC 5280: valid from `notBefore` through `notAfter`, both inclusive. Gives the end.
pub(crate) fn current(certificate: &Certificate<'_>, now: UnixTime) -> Result<UnixTime, LinkError> {
    if now < certificate.not_before {
        return Err(LinkError::NotYetValid(certificate.not_before));
    }
    if now > certificate.not_after {
        return Err(LinkError::Expired(certificate.not_after));
    }
    Ok(certificate.not_after)
}

/// Revocation lists, each read once and verified at most once.
pub(crate) struct Lists<'a>(Vec<(Crl<'a>, Cell<bool>)>);

impl<'a> Lists<'a> {
    /// Reads every list, also those of others: what cannot be read could be about this chain.
    pub(crate) fn read(crls: impl Iterator<Item = &'a [u8]>) -> Result<Self, LinkError> {
        let read = |der| Crl::parse(der).map(|crl| (crl, Cell::new(false)));
        let lists: Result<Vec<_>, X509Error> = crls.map(read).collect();
        lists.map(Self).map_err(LinkError::Crl)
    }

    /// Checks a certificate against every list of its issuer; gives the end of the newest one.
    ///
    /// Lists of others say nothing here: names are compared whole, and no two authorities of a chain
    /// share one. An expired list still revokes, for there is no way back onto good terms, but does
    /// not count as having been checked.
    pub(crate) fn permit(
        &self,
        certificate: &Certificate<'_>,
        issuer: &Certificate<'_>,
        now: UnixTime,
    ) -> Result<Option<UnixTime>, LinkError> {
        let mut newest: Option<UnixTime> = None;
        for (crl, verified) in &self.0 {
            if crl.issuer != issuer.subject {
                continue;
            }
            if !verified.get() && !crl.is_signed_by(issuer.public_key) {
                return Err(LinkError::CrlSignature);
            }
            verified.set(true);
            if crl.lists(certificate.serial) {
                return Err(LinkError::Revoked(hexadecimal(certificate.serial)));
            }
            if now < crl.this_update {
                return Err(LinkError::CrlNotYetValid(crl.this_update));
            }
            let end = crl.next_update.ok_or(LinkError::CrlWithoutEnd)?;
            newest = newest.max(Some(end));
        }
        match newest {
            Some(end) if now > end => Err(LinkError::CrlExpired(end)),
            other => Ok(other),
        }
    }
}

/// Signatures on certificates that verified before, so that they need not be verified again.
///
/// Whether a signature verifies depends on bytes alone, so remembering it changes no verdict. Names,
/// dates and revocation are looked at every time. Holds digests of the newest `most`.
#[derive(Debug)]
pub(crate) struct Remembered {
    digests: Mutex<VecDeque<[u8; 32]>>,
    most: usize,
}

impl Remembered {
    pub(crate) fn new(most: usize) -> Self {
        Self {
            digests: Mutex::new(VecDeque::new()),
            most,
        }
    }

    /// Whether `parts` (key, message, signature) are known to verify, or do.
    fn or_verify(&self, parts: [&[u8]; 3], verify: impl FnOnce() -> bool) -> bool {
        let mut all = Context::new(&SHA256);
        for part in parts {
            all.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
            all.update(part);
        }
        let mut digest = [0; 32];
        digest.copy_from_slice(all.finish().as_ref());
        let digests = || self.digests.lock().unwrap_or_else(PoisonError::into_inner);
        if digests().contains(&digest) {
            return true;
        }
        let verifies = verify();
        if verifies {
            let mut digests = digests();
            if digests.len() >= self.most {
                digests.pop_front();
            }
            if self.most > 0 {
                digests.push_back(digest);
            }
        }
        verifies
    }
}

/// SHA-256 of a public key with its algorithm, by which roots are pinned.
pub(crate) fn key_digest(spki: &[u8]) -> Hex<32> {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, spki).as_ref());
    Hex(hash)
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: [&[u8]; 3] = [b"key", b"message", b"signature"];

    #[test]
    fn what_verified_once_is_not_verified_again_and_what_did_not_is() {
        let known = Remembered::new(2);
        assert!(!known.or_verify(PARTS, || false));
        assert!(known.or_verify(PARTS, || true));
        assert!(known.or_verify(PARTS, || false), "remembered");
        // The same bytes, divided in another way.
        assert!(!known.or_verify([b"keym", b"essage", b"signature"], || false));
    }

    #[test]
    fn the_oldest_is_forgotten_first() {
        let known = Remembered::new(2);
        let other = |byte: &'static [u8]| [byte, b"", b""];
        for first in [b"1", b"2", b"3"] {
            assert!(known.or_verify(other(first), || true));
        }
        assert!(!known.or_verify(other(b"1"), || false));
        assert!(known.or_verify(other(b"2"), || false));
        assert!(known.or_verify(other(b"3"), || false));
        assert!(known.digests.lock().is_ok_and(|it| it.len() == 2));
    }
}
