//! A path of certificates from a device's key to a pinned root key.
//!
//! ```text
//! leaf ◀ authority ◀ … ◀ root key, pinned
//! ```
//!
//! Used where a vendor's hierarchy has no fixed depth: keys of virtual TPMs and of GPUs. AMD's and
//! Intel's have, and names to be checked: see the `chain.rs` of each.

use super::{Certificate, Crl, X509Error};
use crate::time::UnixTime;

/// The most certificates a path may have.
pub(crate) const MAX_PATH: usize = 6;

/// A key that paths may end in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RootKey {
    /// Its vendor, for messages.
    pub(crate) name: &'static str,
    /// Content of the BIT STRING of its `SubjectPublicKeyInfo`.
    pub(crate) public_key: &'static [u8],
}

/// Why certificates do not lead from a device's key to a trusted root.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// There is no certificate.
    #[error("there is no certificate of the key")]
    Missing,
    /// There are more certificates than any vendor's hierarchy is deep.
    #[error("{0} certificates are too many for a path")]
    TooLong(usize),
    /// A certificate cannot be read.
    #[error("certificate {index} cannot be used")]
    Certificate {
        /// Its position, from 0 for that of the device's key.
        index: usize,
        /// Why not.
        source: X509Error,
    },
    /// A certificate names another issuer than the one that follows it.
    #[error("certificate {0} was issued by somebody else than the next")]
    Issuer(usize),
    /// A certificate that signed another may not, or that of the device may.
    #[error("certificate {0} is used for what it was not issued for")]
    Usage(usize),
    /// A signature does not verify.
    #[error("the signature on certificate {0} does not verify")]
    Signature(usize),
    /// The last certificate is not signed by a pinned key.
    #[error("the path ends in an unknown root")]
    UnknownRoot,
    /// A certificate is not valid yet.
    #[error("certificate {index} is not valid before {not_before}")]
    NotYetValid {
        /// Its position.
        index: usize,
        /// When it begins to be valid.
        not_before: UnixTime,
    },
    /// A certificate is no longer valid.
    #[error("certificate {index} expired on {not_after}")]
    Expired {
        /// Its position.
        index: usize,
        /// When it ended.
        not_after: UnixTime,
    },
    /// A CRL names an authority of the path, which did not sign it.
    #[error("a certificate revocation list is not signed by the authority it names")]
    CrlSignature,
    /// A certificate was revoked.
    #[error("certificate {0} is revoked")]
    Revoked(usize),
}

impl PathError {
    /// The stable name of this reason.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Missing => "certificate-missing",
            Self::TooLong(_) => "certificate-path",
            Self::Certificate { source, .. } => match source {
                X509Error::Structure(_) => "certificate-malformed",
                X509Error::Algorithm => "certificate-algorithm",
                X509Error::DuplicateExtension => "certificate-duplicate-extension",
                X509Error::CriticalExtension => "certificate-critical-extension",
            },
            Self::Issuer(_) => "certificate-issuer",
            Self::Usage(_) => "certificate-usage",
            Self::Signature(_) => "certificate-signature",
            Self::UnknownRoot => "unknown-root",
            Self::NotYetValid { .. } => "certificate-not-yet-valid",
            Self::Expired { .. } => "certificate-expired",
            Self::CrlSignature => "crl-signature",
            Self::Revoked(_) => "revoked",
        }
    }
}

/// A path that verified at a given time.
pub(crate) struct Path<'a> {
    pub(crate) leaf: Certificate<'a>,
    /// Whose root it ends in.
    pub(crate) root: &'static str,
    /// The earliest end of the certificates and of the CRLs that were used.
    pub(crate) not_after: UnixTime,
    /// Whether each certificate below the root's own was looked up in a current CRL.
    pub(crate) revocation_checked: bool,
}

impl<'a> Path<'a> {
    /// Verifies certificates in order, that of the device first; the root's own may be last.
    pub(crate) fn verify(
        certificates: impl ExactSizeIterator<Item = &'a [u8]>,
        roots: &[RootKey],
        crls: &[&[u8]],
        now: UnixTime,
    ) -> Result<Self, PathError> {
        if certificates.len() > MAX_PATH {
            return Err(PathError::TooLong(certificates.len()));
        }
        let path = certificates
            .enumerate()
            .map(|(index, der)| {
                Certificate::parse(der).map_err(|source| PathError::Certificate { index, source })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let last = path.last().ok_or(PathError::Missing)?;
        // Trust first: nothing is said about a path that ends anywhere.
        let root = roots
            .iter()
            .find(|root| last.is_signed_by(root.public_key))
            .ok_or(PathError::UnknownRoot)?;
        let mut not_after = UnixTime(u64::MAX);
        let mut revocation_checked = true;
        for (index, certificate) in path.iter().enumerate() {
            let issuer = path.get(index.saturating_add(1));
            let key = issuer.map_or(root.public_key, |issuer| issuer.public_key);
            if issuer.is_some_and(|issuer| issuer.subject != certificate.issuer) {
                return Err(PathError::Issuer(index));
            }
            if certificate.may_sign_certificates() != (index > 0) {
                return Err(PathError::Usage(index));
            }
            if !certificate.is_signed_by(key) {
                return Err(PathError::Signature(index));
            }
            not_after = not_after.min(current(index, certificate, now)?);
            if certificate.public_key == root.public_key {
                continue;
            }
            match unrevoked(index, certificate, key, crls, now)? {
                Some(end) => not_after = not_after.min(end),
                None => revocation_checked = false,
            }
        }
        let leaf = path.into_iter().next().ok_or(PathError::Missing)?;
        Ok(Self {
            leaf,
            root: root.name,
            not_after,
            revocation_checked,
        })
    }
}

/// Gives the end of a certificate that is valid now.
fn current(
    index: usize,
    certificate: &Certificate<'_>,
    now: UnixTime,
) -> Result<UnixTime, PathError> {
    let Certificate {
        not_before,
        not_after,
        ..
    } = *certificate;
    if now < not_before {
        return Err(PathError::NotYetValid { index, not_before });
    }
    if now > not_after {
        return Err(PathError::Expired { index, not_after });
    }
    Ok(not_after)
}

/// Looks a certificate up in every CRL of its issuer; gives the end of a current one.
fn unrevoked(
    index: usize,
    certificate: &Certificate<'_>,
    issuer_key: &[u8],
    crls: &[&[u8]],
    now: UnixTime,
) -> Result<Option<UnixTime>, PathError> {
    let mut end = None;
    for crl in crls.iter().filter_map(|der| Crl::parse(der).ok()) {
        if crl.issuer != certificate.issuer {
            continue;
        }
        if !crl.is_signed_by(issuer_key) {
            return Err(PathError::CrlSignature);
        }
        // Also a list that is past its end tells of what is revoked for good.
        if crl.lists(certificate.serial) {
            return Err(PathError::Revoked(index));
        }
        let next = crl.next_update.filter(|next| *next >= now);
        end = end.max(next.filter(|_| crl.this_update <= now));
    }
    Ok(end)
}
