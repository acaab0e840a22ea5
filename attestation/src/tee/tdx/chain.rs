//! From the key of a platform to Intel's root: signatures, names, dates, revocation.
//!
//! ```text
//! PCK ◀ Intel SGX PCK Platform CA │ Processor CA ◀ Intel SGX Root CA, pinned by the SHA-256
//!                   Intel SGX TCB Signing ◀──────┘ of its public key
//! ```
//!
//! Follows "Intel SGX PCK Certificate and Certificate Revocation List Profile Specification".

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::encoding::Hex;
use crate::endorsement::{
    Certificate, EC_P256, LinkError, Lists, Remembered, X509Error, current, issued, key_digest,
};
use crate::evidence::MAX_CERTIFICATE;
use crate::time::UnixTime;

/// A root that quotes may chain to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Anchor {
    /// SHA-256 of its `SubjectPublicKeyInfo`. Intel's certificate was reissued with the same key, so
    /// the certificate itself is not pinned.
    pub(crate) spki: Hex<32>,
    pub(crate) simulated: bool,
}

impl Anchor {
    /// Intel SGX Root CA.
    pub(crate) const INTEL: Self = Self {
        spki: Hex(
            *b"\xa0\xaf\x03\x12\x89\xf5\xd5\xd4\x13\x2f\x91\x86\x06\x8a\x7f\xc1\x36\x28\x63\x3b\xa2\x35\x77\x74\x72\xe2\x9b\x6b\x6c\x67\xa4\x9e",
        ),
        simulated: false,
    };
}

/// Which certificate is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateKind {
    /// PCK: signs reports of the quoting enclave.
    Pck,
    /// PCK Platform CA or PCK Processor CA: signs PCKs.
    Intermediate,
    /// TCB Signing: signs TCB info and QE identity.
    TcbSigning,
    /// Intel SGX Root CA.
    Root,
}

impl fmt::Display for CertificateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pck => "PCK",
            Self::Intermediate => "PCK CA",
            Self::TcbSigning => "TCB signing",
            Self::Root => "root",
        })
    }
}

/// Why certificates do not lead from a quote or its collateral to a trusted root.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The quote's certification data is not PEM of three certificates.
    #[error("the quote does not bring its PCK, PCK CA and root certificates as PEM")]
    Pem,
    /// The certificate that signs collateral is in neither the evidence nor the verifier.
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
    /// A certificate is not named as one of its kind is.
    #[error("the {which} certificate is named `{found}`")]
    Name {
        /// Which one.
        which: CertificateKind,
        /// Its common name.
        found: String,
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
    /// A CRL names an authority of this chain, which did not sign it.
    #[error("a certificate revocation list is not signed by the authority it names")]
    CrlSignature,
    /// A CRL of this chain is from the future.
    #[error("the certificate revocation list is not valid before {0}")]
    CrlNotYetValid(UnixTime),
    /// The newest CRL of an authority is past its next update.
    #[error("the certificate revocation list expired on {0}; fetch a newer one")]
    CrlExpired(UnixTime),
    /// A CRL does not say when the next one comes.
    #[error("the certificate revocation list has no next update")]
    CrlWithoutEnd,
    /// A certificate was revoked.
    #[error("the {which} certificate with serial `{serial}` is revoked")]
    Revoked {
        /// Which one.
        which: CertificateKind,
        /// Its serial number, in hexadecimal.
        serial: String,
    },
}

impl ChainError {
    /// The stable name of this reason.
    #[must_use]
    pub fn code(&self) -> &'static str {
        use CertificateKind::{Intermediate, Pck, Root, TcbSigning};
        match self {
            Self::Pem => "pck-chain-malformed",
            Self::Missing(_) => "tcb-signing-missing",
            Self::Certificate { source, .. } => match source {
                X509Error::Structure(_) => "certificate-malformed",
                X509Error::Algorithm => "certificate-algorithm",
                X509Error::DuplicateExtension => "certificate-duplicate-extension",
                X509Error::CriticalExtension => "certificate-critical-extension",
            },
            Self::UnknownRoot { .. } => "unknown-root",
            Self::Name { which: Pck, .. } => "pck-name",
            Self::Name {
                which: Intermediate,
                ..
            } => "intermediate-name",
            Self::Name {
                which: TcbSigning, ..
            } => "tcb-signing-name",
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
            Self::Revoked { .. } => "revoked",
        }
    }
}

/// The certificates that a quote brings, DER: PCK, PCK CA, root.
pub(super) struct Bundle([Vec<u8>; 3]);

impl Bundle {
    /// Reads three PEM certificates; a NUL or white space may follow.
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, ChainError> {
        const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
        const END: &str = "-----END CERTIFICATE-----";
        let mut rest = std::str::from_utf8(pem)
            .map_err(|_| ChainError::Pem)?
            .trim_end_matches('\0');
        let mut certificates = [const { Vec::new() }; 3];
        for certificate in &mut certificates {
            let body = rest.trim_start().strip_prefix(BEGIN);
            let (body, after) = body
                .and_then(|body| body.split_once(END))
                .ok_or(ChainError::Pem)?;
            let mut text = Vec::with_capacity(body.len());
            for line in body.lines() {
                text.extend_from_slice(line.trim_ascii().as_bytes());
            }
            if text.len() / 4 > MAX_CERTIFICATE / 3 {
                return Err(ChainError::Pem);
            }
            *certificate = STANDARD.decode(text).map_err(|_| ChainError::Pem)?;
            rest = after;
        }
        if !rest.trim().is_empty() {
            return Err(ChainError::Pem);
        }
        Ok(Self(certificates))
    }

    /// PCK and PCK CA, before anything about them was verified.
    pub(super) fn first_two(&self) -> Option<[Certificate<'_>; 2]> {
        let [pck, intermediate, _] = &self.0;
        Some([
            Certificate::parse(pck).ok()?,
            Certificate::parse(intermediate).ok()?,
        ])
    }
}

/// A chain that verified at a given time.
pub(super) struct Chain<'a> {
    pub(super) pck: Certificate<'a>,
    pub(super) intermediate: Certificate<'a>,
    pub(super) root: Certificate<'a>,
    pub(super) anchor: Anchor,
    /// The earliest end of the certificates and of the CRLs, if there are any.
    pub(super) not_after: UnixTime,
    /// Whether current CRLs of both the PCK CA and the root were there.
    pub(super) revocation_checked: bool,
}

pub(super) fn verify<'a>(
    bundle: &'a Bundle,
    anchors: &[Anchor],
    lists: &Lists<'_>,
    known: Option<&Remembered>,
    now: UnixTime,
) -> Result<Chain<'a>, ChainError> {
    use CertificateKind::{Intermediate, Pck, Root};
    let Bundle([pck, intermediate, root]) = bundle;
    let pck = parse(Pck, pck)?;
    let intermediate = parse(Intermediate, intermediate)?;
    let root = parse(Root, root)?;

    let spki = key_digest(root.spki);
    let anchor = *anchors
        .iter()
        .find(|anchor| anchor.spki == spki)
        .ok_or(ChainError::UnknownRoot { spki })?;
    named(Root, &root, &["Intel SGX Root CA"])?;
    named(
        Intermediate,
        &intermediate,
        &["Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"],
    )?;
    named(Pck, &pck, &["Intel SGX PCK Certificate"])?;
    is_authority(Root, &root, true)?;
    is_authority(Intermediate, &intermediate, true)?;
    is_authority(Pck, &pck, false)?;
    for (which, certificate, issuer) in [
        (Root, &root, &root),
        (Intermediate, &intermediate, &root),
        (Pck, &pck, &intermediate),
    ] {
        issued(certificate, issuer, known).map_err(|error| broken(which, error))?;
    }
    let mut not_after = UnixTime(u64::MAX);
    for (which, certificate) in [(Root, &root), (Intermediate, &intermediate), (Pck, &pck)] {
        let end = current(certificate, now).map_err(|error| broken(which, error))?;
        not_after = not_after.min(end);
    }
    let permit = |which, certificate, issuer| {
        let end = lists.permit(certificate, issuer, now);
        end.map_err(|error| broken(which, error))
    };
    let by_root = permit(Intermediate, &intermediate, &root)?;
    let by_intermediate = permit(Pck, &pck, &intermediate)?;
    for end in [by_root, by_intermediate].into_iter().flatten() {
        not_after = not_after.min(end);
    }
    Ok(Chain {
        pck,
        intermediate,
        root,
        anchor,
        not_after,
        revocation_checked: by_root.is_some() && by_intermediate.is_some(),
    })
}

/// Checks the certificate of the key that signs collateral, under the root of the quote.
///
/// Gives the certificate and the end of its validity.
pub(super) fn tcb_signing<'a>(
    bundled: Option<&'a [u8]>,
    store: &'a [Vec<u8>],
    chain: &Chain<'_>,
    lists: &Lists<'_>,
    known: Option<&Remembered>,
    now: UnixTime,
) -> Result<Certificate<'a>, ChainError> {
    const WHICH: CertificateKind = CertificateKind::TcbSigning;
    const NAME: &str = "Intel SGX TCB Signing";
    let certificate = match bundled {
        Some(der) => parse(WHICH, der)?,
        // The certificate was reissued: the one that is valid now is the one to take.
        None => store
            .iter()
            .filter_map(|der| Certificate::parse(der).ok())
            .filter(|certificate| certificate.common_name == NAME)
            .max_by_key(|certificate| current(certificate, now).is_ok())
            .ok_or(ChainError::Missing(WHICH))?,
    };
    named(WHICH, &certificate, &[NAME])?;
    is_authority(WHICH, &certificate, false)?;
    issued(&certificate, &chain.root, known)
        .and_then(|()| current(&certificate, now))
        .and_then(|_| lists.permit(&certificate, &chain.root, now))
        .map_err(|error| broken(WHICH, error))?;
    Ok(certificate)
}

fn parse(which: CertificateKind, der: &[u8]) -> Result<Certificate<'_>, ChainError> {
    Certificate::parse(der).map_err(|source| ChainError::Certificate { which, source })
}

fn named(
    which: CertificateKind,
    certificate: &Certificate<'_>,
    expected: &[&str],
) -> Result<(), ChainError> {
    if expected.contains(&certificate.common_name) {
        return Ok(());
    }
    let found = certificate.common_name.to_owned();
    Err(ChainError::Name { which, found })
}

/// Checks that the key is one of P-256, and may sign certificates exactly if it is an authority's.
fn is_authority(
    which: CertificateKind,
    certificate: &Certificate<'_>,
    authority: bool,
) -> Result<(), ChainError> {
    if certificate.key_algorithm != EC_P256 || certificate.public_key.len() != 65 {
        return Err(ChainError::Key(which));
    }
    if certificate.may_sign_certificates() != authority {
        return Err(ChainError::Usage(which));
    }
    Ok(())
}

pub(super) fn broken(which: CertificateKind, link: LinkError) -> ChainError {
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
        LinkError::Revoked(serial) => ChainError::Revoked { which, serial },
    }
}
