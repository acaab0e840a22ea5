//! Evidence in, appraisal out: a pure function of what it is given.

use std::sync::Arc;

use crate::appraisal::Appraisal;
use crate::attached;
use crate::challenge::Challenge;
use crate::endorsement::{Crl, Remembered, RootKey, X509Error};
use crate::eventlog::EventLogError;
use crate::evidence::{Endorsements, Evidence, MAX_CERTIFICATE, MAX_CRL, Tee};
use crate::reference::ReferenceValues;
use crate::tee::gpu::{self, GpuError};
use crate::tee::simulated;
use crate::tee::snp::{self, Anchor, ChainError, Product, ReportError, TcbTable};
use crate::tee::tdx::{self, CollateralError, QuoteError};
use crate::tee::vtpm::VtpmError;
use crate::time::UnixTime;

/// Appraises evidence against trust anchors, collateral and reference values.
///
/// Has no clock and no network, and nothing it did before changes a verdict: the same evidence, challenge and time give the same
/// appraisal, byte for byte.
#[derive(Clone, Debug)]
pub struct Verifier {
    reference: ReferenceValues,
    anchors: Vec<Anchor>,
    intel_anchors: Vec<tdx::Anchor>,
    gpu_roots: Vec<RootKey>,
    endorsements: Vec<Vec<u8>>,
    collateral: Vec<Endorsements>,
    crls: Vec<Vec<u8>>,
    remembered: Option<Arc<Remembered>>,
    tcb_table: Option<TcbTable>,
}

/// Collects what a [`Verifier`] appraises with.
#[derive(Clone, Debug, Default)]
pub struct VerifierBuilder {
    reference: ReferenceValues,
    endorsements: Vec<Vec<u8>>,
    collateral: Vec<Endorsements>,
    crls: Vec<Vec<u8>>,
    remembers: usize,
    tcb_table: Option<TcbTable>,
    accepts_simulated: bool,
}

/// Reaches what weakens a verifier; each use is one to be reviewed.
#[derive(Debug)]
pub struct DangerousVerifierBuilder(VerifierBuilder);

/// Why a verifier could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// An endorsement is not a certificate of the supported form.
    #[error("endorsement {index} cannot be used")]
    Endorsement {
        /// Its position among those added, from 0.
        index: usize,
        /// What is wrong with it.
        source: X509Error,
    },
    /// A CRL cannot be read.
    #[error("certificate revocation list {index} cannot be used")]
    Crl {
        /// Its position among those added, from 0.
        index: usize,
        /// What is wrong with it.
        source: X509Error,
    },
}

/// Why evidence could not be appraised: nothing in it may be relied on.
///
/// Genuine but unwelcome evidence (a debug guest, an old TCB, an unknown measurement) is no error.
/// It is an [`Appraisal`] with a lower [`crate::TrustTier`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppraiseError {
    /// The evidence is not a report.
    #[error("the evidence is not an attestation report")]
    Report(#[from] ReportError),
    /// The certificates do not lead to a trusted root.
    #[error("the evidence is not endorsed")]
    Chain(#[from] ChainError),
    /// The report is signed with an algorithm that no released firmware uses.
    #[error("signature algorithm {0} is not supported")]
    SignatureAlgorithm(u32),
    /// The platform withholds its signature.
    #[error("the report is not signed; the platform masks its chip key")]
    Unsigned,
    /// The report names a key that the specification reserves.
    #[error("signing key {0} is not supported")]
    SigningKey(u8),
    /// Unused bytes of the signature are in use.
    #[error("the signature has non-zero padding")]
    SignatureEncoding,
    /// A number of the signature is zero or not below the order of the curve.
    #[error("the signature is out of range")]
    SignatureRange,
    /// The signature does not verify.
    #[error("the signature does not verify")]
    Signature,
    /// The report names another kind of key than its certificate.
    #[error("the report names another kind of signing key than the certificate")]
    SignerMismatch,
    /// The report names another processor generation than its root.
    #[error("the report comes from CPUID {cpuid:02x?}, its key from {issuer}")]
    Product {
        /// Family, model, stepping of the report.
        cpuid: [u8; 3],
        /// The generation that the root belongs to.
        issuer: Product,
    },
    /// An extension of the key's certificate is missing, malformed or out of place.
    #[error("extension `{extension}` of the signing key's certificate is not as it must be")]
    VekExtension {
        /// Its name in the specification.
        extension: &'static str,
    },
    /// The key belongs to another chip.
    #[error("the signing key belongs to another chip")]
    ChipId,
    /// The key belongs to another TCB.
    #[error("the signing key belongs to another TCB: `{component}` differs")]
    VekTcb {
        /// The first component that differs.
        component: &'static str,
    },
    /// The host asked for the report, so what it is bound to is the host's choice.
    #[error("the report was requested by the host, not by the guest")]
    HostRequested,
    /// The evidence is not a quote.
    #[error("the evidence is not a TDX quote")]
    Quote(#[from] QuoteError),
    /// The certificates of a quote or of its collateral do not lead to a trusted root.
    #[error("the quote is not endorsed")]
    QuoteChain(#[from] tdx::ChainError),
    /// Intel's collateral cannot be used.
    #[error("the collateral cannot be used")]
    Collateral(#[from] CollateralError),
    /// An extension of the platform's certificate is missing or malformed.
    #[error("extension `{extension}` of the PCK certificate is not as it must be")]
    PckExtension {
        /// Its name in the specification.
        extension: &'static str,
    },
    /// The platform's key did not sign the quoting enclave's report.
    #[error("the signature on the quoting enclave's report does not verify")]
    QeSignature,
    /// The quoting enclave did not vouch for the key that signed.
    #[error("the quoting enclave vouches for another attestation key")]
    QeBinding,
    /// The enclave that signed is not Intel's quoting enclave for TDX.
    #[error("the enclave that signed is not the TD quoting enclave: `{field}` differs")]
    QeIdentity {
        /// The first field that differs.
        field: &'static str,
    },
    /// The TDX module is not Intel's.
    #[error("the TDX module is not Intel's: `{field}` differs")]
    TdxModule {
        /// The first field that differs.
        field: &'static str,
    },
    /// The evidence answers a different challenge.
    #[error("the evidence is bound to a different challenge")]
    Binding,
    /// What a virtual TPM gave is not to be believed.
    #[error("the virtual TPM is not to be believed")]
    Vtpm(#[from] VtpmError),
    /// What a GPU gave is not to be believed.
    #[error("a GPU is not to be believed")]
    Gpu(#[from] GpuError),
    /// An event log cannot be read.
    #[error("the event log cannot be used")]
    EventLog(#[from] EventLogError),
    /// A log of RTMRs comes with evidence that has none.
    #[error("an event log of RTMRs came with evidence of SEV-SNP, which has none")]
    EventLogMisplaced,
}

impl AppraiseError {
    /// The stable name of this reason, for records, metrics and tests.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Report(ReportError::Length(_)) => "report-length",
            Self::Report(ReportError::Version(_)) => "report-version",
            Self::Chain(chain) => chain.code(),
            Self::SignatureAlgorithm(_) => "signature-algorithm",
            Self::Unsigned => "unsigned",
            Self::SigningKey(_) => "signing-key",
            Self::SignatureEncoding => "signature-encoding",
            Self::SignatureRange => "signature-range",
            Self::Signature => "signature",
            Self::SignerMismatch => "signer-mismatch",
            Self::Product { .. } => "product-mismatch",
            Self::VekExtension { .. } => "vek-extension",
            Self::ChipId => "chip-id-mismatch",
            Self::VekTcb { .. } => "vek-tcb-mismatch",
            Self::HostRequested => "host-requested",
            Self::Quote(quote) => quote.code(),
            Self::QuoteChain(chain) => chain.code(),
            Self::Collateral(collateral) => collateral.code(),
            Self::PckExtension { .. } => "pck-extension",
            Self::QeSignature => "qe-signature",
            Self::QeBinding => "qe-binding",
            Self::QeIdentity { .. } => "qe-identity",
            Self::TdxModule { .. } => "tdx-module",
            Self::Binding => "binding",
            Self::Vtpm(vtpm) => vtpm.code(),
            Self::Gpu(gpu) => gpu.code(),
            Self::EventLog(log) => log.code(),
            Self::EventLogMisplaced => "event-log-misplaced",
        }
    }
}

impl Verifier {
    /// Starts a verifier that trusts AMD's and Intel's roots and expects nothing yet.
    #[must_use]
    pub fn builder() -> VerifierBuilder {
        VerifierBuilder::default()
    }

    /// Whether evidence under the simulated root is believed.
    #[must_use]
    pub fn accepts_simulated(&self) -> bool {
        self.anchors.iter().any(|anchor| anchor.simulated)
    }

    /// Appraises evidence against the challenge that asked for it.
    ///
    /// Signature and binding come before reference values, so no answer ever rests on a field that
    /// was not yet authenticated.
    ///
    /// # Errors
    ///
    /// [`AppraiseError::Binding`] if the evidence answers another challenge; the others if it is
    /// not authentic evidence at all.
    pub fn appraise(
        &self,
        evidence: &Evidence,
        challenge: &Challenge,
        now: UnixTime,
    ) -> Result<Appraisal, AppraiseError> {
        self.appraise_bound_to(evidence, &challenge.report_data(), now)
    }

    /// Appraises evidence that another protocol asked for, which says what its 64 bytes of report
    /// data must be.
    ///
    /// The caller answers for their freshness and for what they bind.
    ///
    /// # Errors
    ///
    /// As [`Verifier::appraise`].
    pub fn appraise_bound_to(
        &self,
        evidence: &Evidence,
        report_data: &[u8; 64],
        now: UnixTime,
    ) -> Result<Appraisal, AppraiseError> {
        attached::appraise(self, evidence, report_data, now)
    }

    /// Appraises evidence with the quote of a virtual TPM that another protocol asked for, which
    /// says what the TPM's qualifying data must be.
    ///
    /// The caller answers for their freshness and for what they bind.
    ///
    /// # Errors
    ///
    /// As [`Verifier::appraise`].
    pub fn appraise_quote_bound_to(
        &self,
        evidence: &Evidence,
        qualifying_data: &[u8],
        now: UnixTime,
    ) -> Result<Appraisal, AppraiseError> {
        attached::appraise(self, evidence, qualifying_data, now)
    }

    /// Appraises what the processor itself says.
    pub(crate) fn processor(
        &self,
        evidence: &Evidence,
        report_data: &[u8; 64],
        now: UnixTime,
    ) -> Result<Appraisal, AppraiseError> {
        match evidence.tee() {
            Tee::SevSnp | Tee::Simulated => snp::appraise(&snp::Inputs {
                evidence,
                report_data,
                anchors: &self.anchors,
                store: &self.endorsements,
                crls: &self.crls,
                known: self.remembered.as_deref(),
                tcb_table: self.tcb_table.as_ref(),
                reference: &self.reference.sev_snp,
                now,
            }),
            Tee::Tdx => tdx::appraise(&tdx::Inputs {
                evidence,
                report_data,
                anchors: &self.intel_anchors,
                store: &self.endorsements,
                collateral: &self.collateral,
                crls: &self.crls,
                known: self.remembered.as_deref(),
                reference: &self.reference.tdx,
                now,
            }),
        }
    }
}

impl Verifier {
    pub(crate) fn reference(&self) -> &ReferenceValues {
        &self.reference
    }

    pub(crate) fn crls(&self) -> &[Vec<u8>] {
        &self.crls
    }

    pub(crate) fn gpu_roots(&self) -> &[RootKey] {
        &self.gpu_roots
    }

    #[cfg(test)]
    pub(crate) fn with_gpu_roots(mut self, roots: Vec<RootKey>) -> Self {
        self.gpu_roots = roots;
        self
    }
}

impl VerifierBuilder {
    /// Sets what guests and platforms are expected to be.
    #[must_use]
    pub fn reference_values(mut self, reference: ReferenceValues) -> Self {
        self.reference = reference;
        self
    }

    /// Adds an intermediate or root certificate (DER) for evidence that comes without it.
    ///
    /// This adds no trust: chains must still end in a pinned root.
    #[must_use]
    pub fn endorsement(mut self, der: Vec<u8>) -> Self {
        self.endorsements.push(der);
        self
    }

    /// Adds Intel's collateral for TDX: TCB info of one family of platforms, QE identity, and the
    /// certificate of the key that signed both, unless that is an [`Self::endorsement`].
    ///
    /// Where evidence brings its own, the one with the higher evaluation number counts.
    #[must_use]
    pub fn collateral(mut self, collateral: Endorsements) -> Self {
        self.collateral.push(collateral);
        self
    }

    /// Adds a certificate revocation list (DER).
    ///
    /// From then on evidence is affirmed only if a current list of its own root was there. TDX
    /// evidence is always affirmed only with current lists of its PCK CA and of the root.
    #[must_use]
    pub fn crl(mut self, der: Vec<u8>) -> Self {
        self.crls.push(der);
        self
    }

    /// Judges AMD's firmware by a table, as Intel's is judged by its TCB info. Minimum TCBs among the
    /// reference values count besides.
    #[must_use]
    pub fn tcb_table(mut self, table: TcbTable) -> Self {
        self.tcb_table = Some(table);
        self
    }

    /// Remembers the newest `signatures` on certificates that verified, so that the chain of a platform
    /// seen before costs a digest instead of public-key operations. A chain has three or four.
    ///
    /// This changes no verdict: whether a signature verifies depends on bytes alone. Names, dates and
    /// revocation are looked at every time. Clones of the verifier share what they remember.
    #[must_use]
    pub fn remember(mut self, signatures: usize) -> Self {
        self.remembers = signatures;
        self
    }

    /// Reaches what weakens the verifier.
    #[must_use]
    pub fn dangerous(self) -> DangerousVerifierBuilder {
        DangerousVerifierBuilder(self)
    }

    /// Builds the verifier.
    ///
    /// # Errors
    ///
    /// [`BuildError`] if a certificate or revocation list cannot be read.
    pub fn build(self) -> Result<Verifier, BuildError> {
        const TOO_LARGE: X509Error = X509Error::Structure("length");
        for (index, der) in self.endorsements.iter().enumerate() {
            let bounded = if der.len() > MAX_CERTIFICATE {
                Err(TOO_LARGE)
            } else {
                Ok(())
            };
            bounded
                .and_then(|()| snp::is_certificate(der))
                .map_err(|source| BuildError::Endorsement { index, source })?;
        }
        for (index, der) in self.crls.iter().enumerate() {
            let bounded = if der.len() > MAX_CRL {
                Err(TOO_LARGE)
            } else {
                Ok(())
            };
            bounded
                .and_then(|()| Crl::parse(der).map(drop))
                .map_err(|source| BuildError::Crl { index, source })?;
        }
        let mut anchors = snp::amd_anchors();
        let mut intel_anchors = vec![tdx::Anchor::INTEL];
        if self.accepts_simulated {
            anchors.push(simulated::anchor());
            intel_anchors.push(simulated::tdx_anchor());
        }
        Ok(Verifier {
            reference: self.reference,
            anchors,
            intel_anchors,
            gpu_roots: gpu::ROOTS.to_vec(),
            endorsements: self.endorsements,
            collateral: self.collateral,
            crls: self.crls,
            tcb_table: self.tcb_table,
            remembered: (self.remembers > 0).then(|| Arc::new(Remembered::new(self.remembers))),
        })
    }
}

impl DangerousVerifierBuilder {
    /// Believes evidence of [`crate::SimulatedTee`] and [`crate::SimulatedTdx`], whose keys are public.
    ///
    /// Appraisals that rest on it say so; see [`Appraisal::is_simulated`].
    #[must_use]
    pub fn accept_simulated(self) -> VerifierBuilder {
        VerifierBuilder {
            accepts_simulated: true,
            ..self.0
        }
    }
}
