//! Evidence as it travels: one self-contained bundle, bounded in size.
//!
//! ```json
//! {
//!   "tee": "sev-snp",
//!   "report": "<base64>",
//!   "endorsements": { "vek": "<base64 DER>", "intermediate": "<base64 DER>", "root": "<base64 DER>" },
//!   "crls": ["<base64 DER>"]
//! }
//! ```
//!
//! For TDX the report is the quote, which brings the certificates of its key. The endorsements are
//! Intel's collateral: `tcb-info` and `qe-identity` as the service sent them, and the certificate
//! `tcb-signing` of the key that signed both.
//!
//! CBOR has the same fields with byte strings in place of base64. Nothing in a bundle is believed
//! before [`crate::Verifier::appraise`] has checked it.

use std::fmt;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::encoding::Blob;

/// The most bytes a bundle may have, in either encoding.
pub const MAX_EVIDENCE: usize = 512 * 1024;
/// The most bytes a report may have.
pub const MAX_REPORT: usize = 32 * 1024;
/// The most bytes a certificate may have.
pub const MAX_CERTIFICATE: usize = 8 * 1024;
/// The most bytes a CRL may have.
pub const MAX_CRL: usize = 64 * 1024;
/// The most bytes that TCB info or QE identity may have.
pub const MAX_COLLATERAL: usize = 64 * 1024;
/// The most CRLs a bundle may have.
pub const MAX_CRLS: usize = 4;

/// The kinds of trusted execution environment that give evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Tee {
    /// AMD SEV-SNP.
    SevSnp,
    /// Intel TDX.
    Tdx,
    /// SEV-SNP evidence signed by software under the simulated root. Proves nothing.
    Simulated,
}

impl Tee {
    /// The name used in evidence, policies and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SevSnp => "sev-snp",
            Self::Tdx => "tdx",
            Self::Simulated => "simulated",
        }
    }
}

impl fmt::Display for Tee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A hardware report with what is needed to check it without a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Evidence {
    tee: Tee,
    report: Blob<MAX_REPORT>,
    #[serde(default)]
    endorsements: Endorsements,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "few_crls"
    )]
    crls: Vec<Blob<MAX_CRL>>,
}

/// What vouches for a report, each optional: the certificates between an SEV-SNP report and its root
/// (DER), or Intel's collateral for a TDX quote.
///
/// What is missing here may come from [`crate::VerifierBuilder::endorsement`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Endorsements {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vek: Option<Blob<MAX_CERTIFICATE>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    intermediate: Option<Blob<MAX_CERTIFICATE>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    root: Option<Blob<MAX_CERTIFICATE>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tcb_info: Option<Blob<MAX_COLLATERAL>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    qe_identity: Option<Blob<MAX_COLLATERAL>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tcb_signing: Option<Blob<MAX_CERTIFICATE>>,
}

/// Why bytes are not an evidence bundle.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvidenceError {
    /// The bundle, or a part of it, is larger than any genuine one.
    #[error("{what} has {length} bytes, at most {limit} are taken")]
    TooLarge {
        /// The part that is too large.
        what: &'static str,
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// The bundle has bytes after its end.
    #[error("{0} bytes follow the evidence")]
    Trailing(usize),
    /// The bundle is not JSON of the documented form.
    #[error("evidence is not the documented JSON")]
    Json(#[source] serde_json::Error),
    /// The bundle is not CBOR of the documented form.
    #[error("evidence is not the documented CBOR")]
    Cbor(#[source] ciborium::de::Error<std::io::Error>),
    /// The certificate table that came with a report is malformed.
    #[error("certificate table: {0}")]
    CertificateTable(&'static str),
}

impl Evidence {
    /// Puts a report and its endorsements together.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`] if the report exceeds [`MAX_REPORT`].
    pub fn new(
        tee: Tee,
        report: Vec<u8>,
        endorsements: Endorsements,
    ) -> Result<Self, EvidenceError> {
        Ok(Self {
            tee,
            report: blob("report", report)?,
            endorsements,
            crls: Vec::new(),
        })
    }

    /// Adds a certificate revocation list (DER).
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`] if it exceeds [`MAX_CRL`] or there are [`MAX_CRLS`] already.
    pub fn with_crl(mut self, crl: Vec<u8>) -> Result<Self, EvidenceError> {
        if self.crls.len() >= MAX_CRLS {
            return Err(EvidenceError::TooLarge {
                what: "list of CRLs",
                length: self.crls.len().saturating_add(1),
                limit: MAX_CRLS,
            });
        }
        self.crls.push(blob("CRL", crl)?);
        Ok(self)
    }

    /// Reads the JSON form.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`] or [`EvidenceError::Json`].
    pub fn from_json(json: &[u8]) -> Result<Self, EvidenceError> {
        bounded(json)?;
        serde_json::from_slice(json).map_err(EvidenceError::Json)
    }

    /// Reads the CBOR form; one item and nothing after it.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`], [`EvidenceError::Cbor`] or [`EvidenceError::Trailing`].
    pub fn from_cbor(cbor: &[u8]) -> Result<Self, EvidenceError> {
        bounded(cbor)?;
        let mut rest = cbor;
        let evidence = ciborium::de::from_reader_with_recursion_limit(&mut rest, 8)
            .map_err(EvidenceError::Cbor)?;
        if !rest.is_empty() {
            return Err(EvidenceError::Trailing(rest.len()));
        }
        Ok(evidence)
    }

    /// Writes the JSON form; equal evidence gives equal bytes.
    #[must_use]
    pub fn to_json(&self) -> String {
        // Writing strings into memory has nothing that can fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Writes the CBOR form; equal evidence gives equal bytes.
    #[must_use]
    pub fn to_cbor(&self) -> Vec<u8> {
        let mut cbor = Vec::new();
        // A `Vec` takes every write.
        let _ = ciborium::into_writer(self, &mut cbor);
        cbor
    }

    /// The kind of TEE that the bundle says it comes from.
    ///
    /// Only chooses the parser: what the evidence really comes from is [`crate::Appraisal::tee`].
    #[must_use]
    pub fn tee(&self) -> Tee {
        self.tee
    }

    /// The report as the hardware gave it.
    #[must_use]
    pub fn report(&self) -> &[u8] {
        self.report.as_slice()
    }

    /// The 64 bytes that the report says it is bound to: not authenticated, for looking at only.
    #[must_use]
    pub fn claimed_report_data(&self) -> Option<[u8; 64]> {
        match self.tee {
            Tee::SevSnp | Tee::Simulated => crate::tee::snp::Report::parse(self.report())
                .ok()
                .map(|report| *report.report_data()),
            Tee::Tdx => crate::tee::tdx::Quote::parse(self.report())
                .ok()
                .map(|quote| quote.report().report_data()),
        }
    }

    /// The certificates in the bundle.
    #[must_use]
    pub fn endorsements(&self) -> &Endorsements {
        &self.endorsements
    }

    /// The revocation lists in the bundle, each DER.
    pub fn crls(&self) -> impl Iterator<Item = &[u8]> {
        self.crls.iter().map(Blob::as_slice)
    }
}

impl Endorsements {
    /// Sets the certificate of the key that signed the report (VCEK or VLEK).
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`] if it exceeds [`MAX_CERTIFICATE`]; likewise below.
    pub fn with_vek(mut self, der: Vec<u8>) -> Result<Self, EvidenceError> {
        self.vek = Some(blob("VEK certificate", der)?);
        Ok(self)
    }

    /// Sets the certificate between the VEK and the root (ASK or ASVK).
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`].
    pub fn with_intermediate(mut self, der: Vec<u8>) -> Result<Self, EvidenceError> {
        self.intermediate = Some(blob("intermediate certificate", der)?);
        Ok(self)
    }

    /// Sets the root certificate (ARK).
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`].
    pub fn with_root(mut self, der: Vec<u8>) -> Result<Self, EvidenceError> {
        self.root = Some(blob("root certificate", der)?);
        Ok(self)
    }

    /// Sets Intel's TCB info: the JSON with `tcbInfo` and `signature`, byte for byte as it came.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`] if it exceeds [`MAX_COLLATERAL`].
    pub fn with_tcb_info(mut self, json: Vec<u8>) -> Result<Self, EvidenceError> {
        self.tcb_info = Some(blob("TCB info", json)?);
        Ok(self)
    }

    /// Sets Intel's identity of the quoting enclave: the JSON with `enclaveIdentity` and
    /// `signature`, byte for byte as it came.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`] if it exceeds [`MAX_COLLATERAL`].
    pub fn with_qe_identity(mut self, json: Vec<u8>) -> Result<Self, EvidenceError> {
        self.qe_identity = Some(blob("QE identity", json)?);
        Ok(self)
    }

    /// Sets the certificate of the key that signed TCB info and QE identity.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`].
    pub fn with_tcb_signing(mut self, der: Vec<u8>) -> Result<Self, EvidenceError> {
        self.tcb_signing = Some(blob("TCB signing certificate", der)?);
        Ok(self)
    }

    /// Fills what is missing here from `other`.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        Self {
            vek: self.vek.or_else(|| other.vek.clone()),
            intermediate: self.intermediate.or_else(|| other.intermediate.clone()),
            root: self.root.or_else(|| other.root.clone()),
            tcb_info: self.tcb_info.or_else(|| other.tcb_info.clone()),
            qe_identity: self.qe_identity.or_else(|| other.qe_identity.clone()),
            tcb_signing: self.tcb_signing.or_else(|| other.tcb_signing.clone()),
        }
    }

    /// The certificate of the signing key, DER.
    #[must_use]
    pub fn vek(&self) -> Option<&[u8]> {
        self.vek.as_ref().map(Blob::as_slice)
    }

    /// The certificate between VEK and root, DER.
    #[must_use]
    pub fn intermediate(&self) -> Option<&[u8]> {
        self.intermediate.as_ref().map(Blob::as_slice)
    }

    /// The root certificate, DER.
    #[must_use]
    pub fn root(&self) -> Option<&[u8]> {
        self.root.as_ref().map(Blob::as_slice)
    }

    /// Intel's TCB info, JSON.
    #[must_use]
    pub fn tcb_info(&self) -> Option<&[u8]> {
        self.tcb_info.as_ref().map(Blob::as_slice)
    }

    /// Intel's identity of the quoting enclave, JSON.
    #[must_use]
    pub fn qe_identity(&self) -> Option<&[u8]> {
        self.qe_identity.as_ref().map(Blob::as_slice)
    }

    /// The certificate of the key that signed TCB info and QE identity, DER.
    #[must_use]
    pub fn tcb_signing(&self) -> Option<&[u8]> {
        self.tcb_signing.as_ref().map(Blob::as_slice)
    }
}

fn blob<const MAX: usize>(what: &'static str, bytes: Vec<u8>) -> Result<Blob<MAX>, EvidenceError> {
    Blob::new(bytes).map_err(|length| EvidenceError::TooLarge {
        what,
        length,
        limit: MAX,
    })
}

fn bounded(bytes: &[u8]) -> Result<(), EvidenceError> {
    if bytes.len() > MAX_EVIDENCE {
        return Err(EvidenceError::TooLarge {
            what: "evidence",
            length: bytes.len(),
            limit: MAX_EVIDENCE,
        });
    }
    Ok(())
}

/// Stops at the first CRL too many instead of collecting them all.
fn few_crls<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Blob<MAX_CRL>>, D::Error> {
    struct Few;
    impl<'de> Visitor<'de> for Few {
        type Value = Vec<Blob<MAX_CRL>>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {MAX_CRLS} CRLs")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
            let mut crls = Vec::new();
            while let Some(crl) = items.next_element()? {
                if crls.len() >= MAX_CRLS {
                    return Err(A::Error::invalid_length(crls.len(), &self));
                }
                crls.push(crl);
            }
            Ok(crls)
        }
    }
    deserializer.deserialize_seq(Few)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn evidence(report: Vec<u8>) -> Evidence {
        let endorsements = Endorsements::default().with_vek(vec![1, 2, 3]).unwrap();
        Evidence::new(Tee::SevSnp, report, endorsements)
            .unwrap()
            .with_crl(vec![4])
            .unwrap()
    }

    #[test]
    fn an_unknown_field_is_refused_in_both_encodings() {
        let json = evidence(vec![0; 4]).to_json();
        assert!(Evidence::from_json(json.as_bytes()).is_ok());
        let other = json.replace("\"crls\"", "\"clrs\"");
        assert!(Evidence::from_json(other.as_bytes()).is_err());
        let twice = json.replace("\"tee\"", "\"tee\":\"sev-snp\",\"tee\"");
        assert!(Evidence::from_json(twice.as_bytes()).is_err());

        let mut cbor = evidence(vec![0; 4]).to_cbor();
        let at = cbor
            .windows(4)
            .position(|window| window == b"crls")
            .unwrap();
        cbor[at] = b'k';
        assert!(Evidence::from_cbor(&cbor).is_err());
    }

    #[test]
    fn snp_evidence_reads_and_writes_as_it_did_before_there_was_tdx() {
        let before = r#"{"tee":"sev-snp","report":"AAAAAA==","endorsements":{"vek":"AQID"},"crls":["BA=="]}"#;
        let read = Evidence::from_json(before.as_bytes()).unwrap();
        assert_eq!(read, evidence(vec![0; 4]));
        assert_eq!(read.to_json(), before);
    }

    #[test]
    fn bytes_after_the_bundle_are_refused() {
        let mut cbor = evidence(vec![0; 4]).to_cbor();
        cbor.push(0);
        assert!(matches!(
            Evidence::from_cbor(&cbor),
            Err(EvidenceError::Trailing(1))
        ));
        let json = evidence(vec![0; 4]).to_json() + "x";
        assert!(Evidence::from_json(json.as_bytes()).is_err());
    }

    #[test]
    fn too_much_of_anything_is_refused() {
        assert!(Evidence::from_json(&vec![b' '; MAX_EVIDENCE + 1]).is_err());
        assert!(
            Evidence::new(
                Tee::SevSnp,
                vec![0; MAX_REPORT + 1],
                Endorsements::default()
            )
            .is_err()
        );
        assert!(
            Endorsements::default()
                .with_root(vec![0; MAX_CERTIFICATE + 1])
                .is_err()
        );
        let json = evidence(vec![])
            .to_json()
            .replace("[\"BA==\"]", "[\"\",\"\",\"\",\"\",\"\"]");
        assert!(Evidence::from_json(json.as_bytes()).is_err());
        // A CBOR byte string that announces 2^62 bytes and holds none.
        let liar = b"\xa1\x66report\x5b\x40\x00\x00\x00\x00\x00\x00\x00";
        assert!(Evidence::from_cbor(liar).is_err());
    }

    proptest! {
        #[test]
        fn evidence_survives_both_encodings(report in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let evidence = evidence(report);
            prop_assert_eq!(&Evidence::from_json(evidence.to_json().as_bytes()).unwrap(), &evidence);
            prop_assert_eq!(&Evidence::from_cbor(&evidence.to_cbor()).unwrap(), &evidence);
        }

        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let _ = Evidence::from_json(&bytes);
            let _ = Evidence::from_cbor(&bytes);
        }
    }
}
