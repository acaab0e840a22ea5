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
//! `tcb-signing` of the key that signed both. `event-log` and `application-log` say what its RTMRs
//! were extended with; `vtpm` ([`VtpmEvidence`]) and `gpus` ([`GpuEvidence`]) go with either TEE.
//!
//! CBOR has the same fields with byte strings in place of base64. Nothing in a bundle is believed
//! before [`crate::Verifier::appraise`] has checked it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::encoding::{Blob, Few, Hex};
use crate::eventlog::MAX_EVENT_LOG;
use crate::tee::gpu::{GpuEvidence, MAX_GPUS};
use crate::tee::vtpm::VtpmEvidence;

/// The most bytes a bundle may have, in either encoding.
pub const MAX_EVIDENCE: usize = 2 * 1024 * 1024;
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
/// The most events that an application's own log may have.
pub const MAX_APPLICATION_EVENTS: usize = 4096;

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
    #[serde(default, skip_serializing_if = "Few::is_empty")]
    crls: Few<Blob<MAX_CRL>, MAX_CRLS>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    event_log: Option<Blob<MAX_EVENT_LOG>>,
    #[serde(default, skip_serializing_if = "Few::is_empty")]
    application_log: Few<ApplicationEvent, MAX_APPLICATION_EVENTS>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vtpm: Option<VtpmEvidence>,
    #[serde(default, skip_serializing_if = "Few::is_empty")]
    gpus: Few<GpuEvidence, MAX_GPUS>,
}

/// What an application extended an RTMR with after the firmware's log ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ApplicationEvent {
    /// The RTMR: 0 to 3.
    pub rtmr: u8,
    /// What the register was extended with.
    pub digest: Hex<48>,
    /// What it is about, for people; as authentic as the digest only where that is its SHA-384.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub data: String,
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
    #[error("evidence is not the documented CBOR: {0}")]
    Cbor(String),
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
            crls: Few::default(),
            event_log: None,
            application_log: Few::default(),
            vtpm: None,
            gpus: Few::default(),
        })
    }

    /// Fills what is missing among the endorsements.
    #[must_use]
    pub fn endorsed_by(mut self, endorsements: Endorsements) -> Self {
        self.endorsements = self.endorsements.or(&endorsements);
        self
    }

    /// Adds a certificate revocation list (DER).
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`] if it exceeds [`MAX_CRL`] or there are [`MAX_CRLS`] already.
    pub fn with_crl(mut self, crl: Vec<u8>) -> Result<Self, EvidenceError> {
        add(&mut self.crls, "list of CRLs", blob("CRL", crl)?)?;
        Ok(self)
    }

    /// Adds the log of what firmware and boot loader extended the RTMRs of a TDX guest with: what
    /// the kernel shows as `/sys/firmware/acpi/tables/data/CCEL`.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`] if it exceeds [`MAX_EVENT_LOG`].
    pub fn with_event_log(mut self, log: Vec<u8>) -> Result<Self, EvidenceError> {
        self.event_log = Some(blob("event log", log)?);
        Ok(self)
    }

    /// Adds what an application extended an RTMR with, after what was added before.
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`] if there are [`MAX_APPLICATION_EVENTS`] already.
    pub fn with_application_event(
        mut self,
        event: ApplicationEvent,
    ) -> Result<Self, EvidenceError> {
        add(&mut self.application_log, "application log", event)?;
        Ok(self)
    }

    /// Adds the quote of a virtual TPM, which then is what answers the challenge.
    #[must_use]
    pub fn with_vtpm(mut self, vtpm: VtpmEvidence) -> Self {
        self.vtpm = Some(vtpm);
        self
    }

    /// Adds the report of a GPU, which has to be committed to; see
    /// [`crate::gpu::committed_report_data`].
    ///
    /// # Errors
    ///
    /// [`EvidenceError::TooLarge`] if there are [`MAX_GPUS`] already.
    pub fn with_gpu(mut self, gpu: GpuEvidence) -> Result<Self, EvidenceError> {
        add(&mut self.gpus, "list of GPUs", gpu)?;
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
            .map_err(|error| EvidenceError::Cbor(in_words(&error)))?;
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

    /// What the evidence says it is bound to, 64 bytes or what a TPM was asked to quote: not
    /// authenticated, for looking at only.
    ///
    /// Evidence with GPUs does not say so.
    #[must_use]
    pub fn claimed_binding(&self) -> Option<Vec<u8>> {
        if !self.gpus.is_empty() {
            return None;
        }
        if let Some(vtpm) = &self.vtpm {
            let quote = crate::tee::vtpm::TpmQuote::parse(vtpm.quote())?;
            return Some(quote.extra_data().to_vec());
        }
        self.claimed_report_data().map(|data| data.to_vec())
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

    /// The firmware's event log of a TDX guest.
    #[must_use]
    pub fn event_log(&self) -> Option<&[u8]> {
        self.event_log.as_ref().map(Blob::as_slice)
    }

    /// What applications extended RTMRs with, in order.
    pub fn application_log(&self) -> impl Iterator<Item = &ApplicationEvent> {
        self.application_log.iter()
    }

    /// The quote of a virtual TPM.
    #[must_use]
    pub fn vtpm(&self) -> Option<&VtpmEvidence> {
        self.vtpm.as_ref()
    }

    /// The reports of GPUs.
    pub fn gpus(&self) -> impl ExactSizeIterator<Item = &GpuEvidence> {
        self.gpus.iter()
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

/// Adds one item more, if it is not one too many.
pub(crate) fn add<T, const MAX: usize>(
    list: &mut Few<T, MAX>,
    what: &'static str,
    item: T,
) -> Result<(), EvidenceError> {
    list.push(item).map_err(|length| EvidenceError::TooLarge {
        what,
        length,
        limit: MAX,
    })
}

pub(crate) fn blob<const MAX: usize>(
    what: &'static str,
    bytes: Vec<u8>,
) -> Result<Blob<MAX>, EvidenceError> {
    Blob::new(bytes).map_err(|length| EvidenceError::TooLarge {
        what,
        length,
        limit: MAX,
    })
}

/// What is wrong with CBOR, which `ciborium` tells in the terms of its own types.
fn in_words(error: &ciborium::de::Error<std::io::Error>) -> String {
    use ciborium::de::Error::{Io, RecursionLimitExceeded, Semantic, Syntax};
    match error {
        Io(_) => "it ends too early".to_owned(),
        Syntax(at) => format!("no item begins at byte {at}"),
        Semantic(_, what) => what.clone(),
        RecursionLimitExceeded => "it is nested too deeply".to_owned(),
    }
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
