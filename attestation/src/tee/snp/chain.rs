//! From the key that signed a report to a pinned root: signatures, names, dates, revocation.
//!
//! ```text
//! VCEK ◀ ASK  (SEV-Milan)      ◀ ARK (ARK-Milan), pinned by the SHA-256 of its public key
//! VLEK ◀ ASVK (SEV-VLEK-Milan) ◀
//! ```
//!
//! Follows "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification".
//! VEK certificates all have serial number 0, so a CRL can only ever revoke an ASK or ASVK.

use std::fmt;

use super::platform::Product;
use crate::encoding::Hex;
use crate::endorsement::{
    Certificate, EC_P384, LinkError, Lists, RSA_ENCRYPTION, Remembered, X509Error, current, issued,
    key_digest,
};
use crate::evidence::Endorsements;
use crate::time::UnixTime;

/// A root that chains may end in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anchor {
    /// SHA-256 of the root's `SubjectPublicKeyInfo`. Roots get reissued with the same key, so the
    /// certificate itself is not pinned.
    pub(crate) spki: Hex<32>,
    pub(crate) product: Product,
    pub(crate) simulated: bool,
}

/// The roots of AMD, as published for each generation.
pub(crate) fn amd_anchors() -> Vec<Anchor> {
    const ARKS: [(Product, [u8; 32]); 3] = [
        (
            Product::Milan,
            *b"\x9f\x05\x6b\xee\x44\x37\x7e\x29\x30\x8c\xb5\xff\xa8\x95\xbd\xfb\x62\xd1\x88\x81\xfa\x6b\xed\x8d\x6f\x07\x5b\x02\x04\x08\x9c\xb9",
        ),
        (
            Product::Genoa,
            *b"\x42\x9a\x69\xc9\x42\x2a\xa2\x58\xee\x4d\x8d\xb5\xfc\xda\x9c\x64\x70\xef\x15\xf8\xcd\x5a\x9c\xeb\xd6\xcb\xc7\xd9\x0b\x86\x38\x31",
        ),
        (
            Product::Turin,
            *b"\x4f\x12\x54\x10\x56\x3a\x2a\xb9\xa5\x03\x56\xf9\x24\x3f\x6f\xe0\xb6\xf7\x3d\xe9\x86\x03\xf5\x3f\x90\x33\x9c\x70\xe9\xd7\xad\x08",
        ),
    ];
    ARKS.map(|(product, spki)| Anchor {
        spki: Hex(spki),
        product,
        simulated: false,
    })
    .to_vec()
}

/// Whether bytes are a certificate of the form that AMD or Intel issues.
pub(crate) fn is_certificate(der: &[u8]) -> Result<(), X509Error> {
    Certificate::parse(der).map(drop)
}

/// Which certificate of a chain is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateKind {
    /// VCEK or VLEK: signs reports.
    Vek,
    /// ASK or ASVK: signs VEKs.
    Intermediate,
    /// ARK: the root.
    Root,
}

impl fmt::Display for CertificateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vek => "VEK",
            Self::Intermediate => "intermediate",
            Self::Root => "root",
        })
    }
}

/// Why certificates do not lead from a report to a trusted root.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// A certificate is in neither the evidence nor the verifier.
    #[error("the {0} certificate is missing; add it to the evidence or to the verifier")]
    Missing(CertificateKind),
    /// A certificate cannot be read.
    #[error("the {which} certificate cannot be used")]
    Certificate {
        /// Which one.
        which: CertificateKind,
        /// Why not.
        source: X509Error,
    },
    /// The chain ends in a root that is not trusted here.
    #[error("the chain ends in the unknown root with key digest `{spki}`")]
    UnknownRoot {
        /// SHA-256 of the root's public key.
        spki: Hex<32>,
    },
    /// A certificate is not named as one of its kind, product and issuer is.
    #[error("the {which} certificate is named `{found}` instead of `{expected}`")]
    Name {
        /// Which one.
        which: CertificateKind,
        /// Its common name.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A certificate names another issuer than the one above it.
    #[error("the {0} certificate was issued by somebody else")]
    Issuer(CertificateKind),
    /// A certificate has a key of the wrong kind.
    #[error("the {0} certificate has a key of the wrong kind")]
    Key(CertificateKind),
    /// A certificate may not sign certificates but did, or may and should not.
    #[error("the {0} certificate is used for what it was not issued for")]
    Usage(CertificateKind),
    /// A signature does not verify.
    #[error("the signature on the {0} certificate does not verify")]
    Signature(CertificateKind),
    /// A certificate is not valid yet.
    #[error("the {which} certificate is not valid before {not_before}")]
    NotYetValid {
        /// Which one.
        which: CertificateKind,
        /// When it begins to be valid.
        not_before: UnixTime,
    },
    /// A certificate is no longer valid.
    #[error("the {which} certificate expired on {not_after}")]
    Expired {
        /// Which one.
        which: CertificateKind,
        /// When it ended.
        not_after: UnixTime,
    },
    /// A CRL cannot be read.
    #[error("a certificate revocation list cannot be read")]
    Crl(#[source] X509Error),
    /// A CRL names this root but the root did not sign it.
    #[error("a certificate revocation list is not signed by the root")]
    CrlSignature,
    /// A CRL of this root is from the future.
    #[error("the certificate revocation list is not valid before {0}")]
    CrlNotYetValid(UnixTime),
    /// The newest CRL of this root is past its next update.
    #[error("the certificate revocation list expired on {0}; fetch a newer one")]
    CrlExpired(UnixTime),
    /// A CRL does not say when the next one comes.
    #[error("the certificate revocation list has no next update")]
    CrlWithoutEnd,
    /// The intermediate certificate was revoked.
    #[error("the intermediate certificate with serial `{0}` is revoked")]
    Revoked(String),
}

impl ChainError {
    /// The stable name of this reason.
    #[must_use]
    pub fn code(&self) -> &'static str {
        use CertificateKind::{Intermediate, Root, Vek};
        match self {
            Self::Missing(Vek) => "vek-missing",
            Self::Missing(Intermediate) => "intermediate-missing",
            Self::Missing(Root) => "root-missing",
            Self::Certificate { source, .. } => match source {
                X509Error::Structure(_) => "certificate-malformed",
                X509Error::Algorithm => "certificate-algorithm",
                X509Error::DuplicateExtension => "certificate-duplicate-extension",
                X509Error::CriticalExtension => "certificate-critical-extension",
            },
            Self::UnknownRoot { .. } => "unknown-root",
            Self::Name { which: Vek, .. } => "vek-name",
            Self::Name {
                which: Intermediate,
                ..
            } => "intermediate-name",
            Self::Name { which: Root, .. } => "root-name",
            Self::Issuer(_) => "certificate-issuer",
            Self::Key(_) => "certificate-key",
            Self::Usage(_) => "certificate-usage",
            Self::Signature(_) => "certificate-signature",
            Self::NotYetValid { .. } => "certificate-not-yet-valid",
            Self::Expired { .. } => "certificate-expired",
            Self::Crl(_) => "crl-malformed",
            Self::CrlSignature => "crl-signature",
            Self::CrlNotYetValid(_) => "crl-not-yet-valid",
            Self::CrlExpired(_) => "crl-expired",
            Self::CrlWithoutEnd => "crl-without-end",
            Self::Revoked(_) => "revoked",
        }
    }
}

/// Which kind of key a VEK certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VekKind {
    Vcek,
    Vlek,
}

/// A chain that verified at a given time.
pub(super) struct Chain<'a> {
    pub(super) anchor: Anchor,
    pub(super) vek: Certificate<'a>,
    pub(super) kind: VekKind,
    pub(super) intermediate_name: &'a str,
    /// The earliest end of the certificates and of the CRL, if there is one.
    pub(super) not_after: UnixTime,
    /// Whether a CRL of this root was there and current.
    pub(super) revocation_checked: bool,
}

/// Where certificates and CRLs are looked for.
pub(super) struct Sources<'a> {
    pub(super) bundled: &'a Endorsements,
    /// Intermediates and roots of the verifier, DER.
    pub(super) store: &'a [Vec<u8>],
    pub(super) crls: Vec<&'a [u8]>,
    /// Signatures that verified before.
    pub(super) known: Option<&'a Remembered>,
}

pub(super) fn verify<'a>(
    sources: &Sources<'a>,
    anchors: &[Anchor],
    now: UnixTime,
) -> Result<Chain<'a>, ChainError> {
    use CertificateKind::{Intermediate, Root, Vek};
    let vek = sources.bundled.vek().ok_or(ChainError::Missing(Vek))?;
    let vek = parse(Vek, vek)?;
    let kind = vek_kind(&vek)?;
    let intermediate = sources.find(Intermediate, vek.issuer)?;
    let root = sources.find(Root, intermediate.issuer)?;

    let spki = key_digest(root.spki);
    let anchor = *anchors
        .iter()
        .find(|anchor| anchor.spki == spki)
        .ok_or(ChainError::UnknownRoot { spki })?;
    named(Root, &root, format!("ARK-{}", anchor.product))?;
    let expected = match kind {
        VekKind::Vcek => format!("SEV-{}", anchor.product),
        VekKind::Vlek => format!("SEV-VLEK-{}", anchor.product),
    };
    named(Intermediate, &intermediate, expected)?;

    authority(Root, &root)?;
    authority(Intermediate, &intermediate)?;
    if vek.key_algorithm != EC_P384 || vek.public_key.len() != 97 {
        return Err(ChainError::Key(Vek));
    }
    if vek.may_sign_certificates() {
        return Err(ChainError::Usage(Vek));
    }
    for (which, certificate, issuer) in [
        (Root, &root, &root),
        (Intermediate, &intermediate, &root),
        (Vek, &vek, &intermediate),
    ] {
        issued(certificate, issuer, sources.known).map_err(|error| broken(which, error))?;
    }
    let mut not_after = UnixTime(u64::MAX);
    for (which, certificate) in [(Root, &root), (Intermediate, &intermediate), (Vek, &vek)] {
        let end = current(certificate, now).map_err(|error| broken(which, error))?;
        not_after = not_after.min(end);
    }
    let crl_end = Lists::read(sources.crls.iter().copied())
        .and_then(|lists| lists.permit(&intermediate, &root, now))
        .map_err(|error| broken(Intermediate, error))?;
    Ok(Chain {
        anchor,
        kind,
        intermediate_name: intermediate.common_name,
        not_after: not_after.min(crl_end.unwrap_or(not_after)),
        revocation_checked: crl_end.is_some(),
        vek,
    })
}

impl<'a> Sources<'a> {
    /// The bundled certificate, or else the stored one of that name.
    fn find(&self, which: CertificateKind, subject: &[u8]) -> Result<Certificate<'a>, ChainError> {
        let bundled = match which {
            CertificateKind::Intermediate => self.bundled.intermediate(),
            _ => self.bundled.root(),
        };
        if let Some(der) = bundled {
            return parse(which, der);
        }
        self.store
            .iter()
            .filter_map(|der| Certificate::parse(der).ok())
            .find(|certificate| certificate.subject == subject)
            .ok_or(ChainError::Missing(which))
    }
}

fn parse(which: CertificateKind, der: &[u8]) -> Result<Certificate<'_>, ChainError> {
    Certificate::parse(der).map_err(|source| ChainError::Certificate { which, source })
}

fn vek_kind(vek: &Certificate<'_>) -> Result<VekKind, ChainError> {
    match vek.common_name {
        "SEV-VCEK" => Ok(VekKind::Vcek),
        "SEV-VLEK" => Ok(VekKind::Vlek),
        other => Err(ChainError::Name {
            which: CertificateKind::Vek,
            found: other.to_owned(),
            expected: "SEV-VCEK or SEV-VLEK".to_owned(),
        }),
    }
}

fn named(
    which: CertificateKind,
    certificate: &Certificate<'_>,
    expected: String,
) -> Result<(), ChainError> {
    if certificate.common_name == expected {
        return Ok(());
    }
    Err(ChainError::Name {
        which,
        found: certificate.common_name.to_owned(),
        expected,
    })
}

fn authority(which: CertificateKind, certificate: &Certificate<'_>) -> Result<(), ChainError> {
    if certificate.key_algorithm != RSA_ENCRYPTION {
        return Err(ChainError::Key(which));
    }
    if !certificate.may_sign_certificates() {
        return Err(ChainError::Usage(which));
    }
    Ok(())
}

fn broken(which: CertificateKind, link: LinkError) -> ChainError {
    match link {
        LinkError::Issuer => ChainError::Issuer(which),
        LinkError::Signature => ChainError::Signature(which),
        LinkError::NotYetValid(not_before) => ChainError::NotYetValid { which, not_before },
        LinkError::Expired(not_after) => ChainError::Expired { which, not_after },
        LinkError::Crl(source) => ChainError::Crl(source),
        LinkError::CrlSignature => ChainError::CrlSignature,
        LinkError::CrlNotYetValid(from) => ChainError::CrlNotYetValid(from),
        LinkError::CrlExpired(end) => ChainError::CrlExpired(end),
        LinkError::CrlWithoutEnd => ChainError::CrlWithoutEnd,
        LinkError::Revoked(serial) => ChainError::Revoked(serial),
    }
}
