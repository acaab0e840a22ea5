//! From a quote to an appraisal.
//!
//! ```text
//! parse ▶ PCK chain to the pinned root ▶ QE report signed by the PCK ▶ QE vouches for the key
//!       ▶ signature over the received bytes ▶ collateral is Intel's, current, about this platform
//!       ▶ QE and TDX module are Intel's ▶ bound to the challenge ▶ one check per claim (checks.rs)
//! ```
//!
//! No field is believed before the signature over it was verified, except those that say how to
//! verify it.

use ring::digest::{Context, SHA256, digest};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

use super::chain::{self, Anchor, Bundle, CertificateKind, Chain};
use super::checks;
use super::collateral::{CollateralError, QE_IDENTITY, QeIdentity, TCB_INFO, TcbInfo};
use super::pck::{self, PckExtensions};
use super::quote::{QeReport, Quote};
use super::status::{self, Judgement};
use crate::appraisal::{Appraisal, Claims, TdxClaims};
use crate::encoding::Hex;
use crate::endorsement::{Lists, Remembered};
use crate::evidence::{Endorsements, Evidence, Tee};
use crate::reference::TdxReferenceValues;
use crate::time::UnixTime;
use crate::verifier::AppraiseError;

/// Everything an appraisal depends on.
pub(crate) struct Inputs<'a> {
    pub(crate) evidence: &'a Evidence,
    pub(crate) report_data: &'a [u8; 64],
    /// Roots that quotes may chain to.
    pub(crate) anchors: &'a [Anchor],
    /// Certificates of the verifier, DER.
    pub(crate) store: &'a [Vec<u8>],
    /// Collateral of the verifier.
    pub(crate) collateral: &'a [Endorsements],
    /// CRLs of the verifier, DER.
    pub(crate) crls: &'a [Vec<u8>],
    /// Signatures that verified before.
    pub(crate) known: Option<&'a Remembered>,
    pub(crate) reference: &'a TdxReferenceValues,
    pub(crate) now: UnixTime,
}

pub(crate) fn appraise(inputs: &Inputs<'_>) -> Result<Appraisal, AppraiseError> {
    let quote = Quote::parse(inputs.evidence.report())?;
    let crls = inputs.crls.iter().map(Vec::as_slice);
    let lists = Lists::read(crls.chain(inputs.evidence.crls()))
        .map_err(|error| chain::broken(CertificateKind::Pck, error))?;
    let bundle = Bundle::from_pem(quote.certificates)?;
    let chain = chain::verify(&bundle, inputs.anchors, &lists, inputs.known, inputs.now)?;
    signed_by_platform(&quote, chain.pck.public_key)?;

    let pck =
        pck::read(&chain.pck).map_err(|extension| AppraiseError::PckExtension { extension })?;
    let collateral = Collateral::newest(inputs, &chain, &pck, &lists)?;
    is_quoting_enclave(quote.qe_report, collateral.as_ref())?;
    let judgement = collateral
        .as_ref()
        .map(|collateral| collateral.judge(&quote, &pck));
    if let Some(field) = judgement.as_ref().and_then(|it| it.foreign_module) {
        return Err(AppraiseError::TdxModule { field });
    }
    if quote.report().report_data() != *inputs.report_data {
        return Err(AppraiseError::Binding);
    }

    let evaluation = collateral
        .as_ref()
        .map(|collateral| collateral.info.tcb_evaluation_data_number);
    let claims = claims(&quote, &pck, judgement.as_ref(), evaluation);
    let not_after = collateral
        .as_ref()
        .map_or(chain.not_after, |it| chain.not_after.min(it.not_after));
    let verdict = checks::verdict(&checks::Subject {
        claims: &claims,
        reference: inputs.reference,
        chain: &chain,
        judgement: judgement.as_ref(),
        not_after,
    });
    let mut evidence_digest = [0; 32];
    evidence_digest.copy_from_slice(digest(&SHA256, quote.signed).as_ref());
    Ok(Appraisal {
        tee: if chain.anchor.simulated {
            Tee::Simulated
        } else {
            Tee::Tdx
        },
        simulated: chain.anchor.simulated,
        tier: verdict.tier,
        tcb_status: verdict.tcb_status,
        appraised_at: inputs.now,
        not_after,
        evidence_digest: Hex(evidence_digest),
        root: chain.anchor.spki,
        claims: Claims::Tdx(Box::new(claims)),
        vtpm: None,
        gpus: Vec::new(),
        checks: verdict.checks,
    })
}

/// Family of the platform, and whether its key is certified by the Platform CA: not authenticated.
pub(crate) fn platform(quote: &[u8]) -> Option<(Hex<6>, bool)> {
    let quote = Quote::parse(quote).ok()?;
    let bundle = Bundle::from_pem(quote.certificates).ok()?;
    let [pck, authority] = bundle.first_two()?;
    let pck = pck::read(&pck).ok()?;
    let by_platform_ca = authority.common_name == "Intel SGX PCK Platform CA";
    Some((Hex(pck.fmspc), by_platform_ca))
}

/// Checks the signatures from the platform's key to the quote, over the received bytes.
fn signed_by_platform(quote: &Quote<'_>, pck: &[u8]) -> Result<(), AppraiseError> {
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, pck)
        .verify(quote.qe_report.0, quote.qe_signature)
        .map_err(|_| AppraiseError::QeSignature)?;

    let mut bound = Context::new(&SHA256);
    bound.update(quote.attestation_key);
    bound.update(quote.qe_authentication);
    let mut expected = [0; 64];
    let (hash, _zeroes) = expected.split_at_mut(32);
    hash.copy_from_slice(bound.finish().as_ref());
    if quote.qe_report.report_data() != expected {
        return Err(AppraiseError::QeBinding);
    }

    let mut point = [4; 65];
    point[1..].copy_from_slice(quote.attestation_key);
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point)
        .verify(quote.signed, quote.signature)
        .map_err(|_| AppraiseError::Signature)
}

/// Intel's collateral, believed: signed under the root of the quote, and current.
struct Collateral {
    info: TcbInfo,
    identity: QeIdentity,
    not_after: UnixTime,
}

impl Collateral {
    /// The most recent collateral about this platform, whether it came with the evidence or not.
    ///
    /// Collateral in the evidence must be usable. That of the verifier may be about other platforms.
    fn newest(
        inputs: &Inputs<'_>,
        chain: &Chain<'_>,
        pck: &PckExtensions,
        lists: &Lists<'_>,
    ) -> Result<Option<Self>, AppraiseError> {
        let read = |endorsements| Self::read(endorsements, inputs, chain, pck, lists);
        let mut newest = read(inputs.evidence.endorsements())?;
        let mut refusal = None;
        for stored in inputs.collateral {
            match read(stored) {
                Ok(Some(other))
                    if newest
                        .as_ref()
                        .is_none_or(|it| other.recency() > it.recency()) =>
                {
                    newest = Some(other);
                }
                Ok(_) => {}
                Err(AppraiseError::Collateral(
                    CollateralError::Fmspc { .. } | CollateralError::PceId,
                )) => {}
                Err(error) => refusal = Some(error),
            }
        }
        match (newest, refusal) {
            (None, Some(error)) => Err(error),
            (newest, _) => Ok(newest),
        }
    }

    fn read(
        endorsements: &Endorsements,
        inputs: &Inputs<'_>,
        chain: &Chain<'_>,
        pck: &PckExtensions,
        lists: &Lists<'_>,
    ) -> Result<Option<Self>, AppraiseError> {
        let (info, identity) = match (endorsements.tcb_info(), endorsements.qe_identity()) {
            (None, None) => return Ok(None),
            (Some(info), Some(identity)) => (info, identity),
            (None, _) => return Err(CollateralError::Missing(TCB_INFO).into()),
            (_, None) => return Err(CollateralError::Missing(QE_IDENTITY).into()),
        };
        let (now, minimum) = (inputs.now, inputs.reference.minimum_tcb_evaluation);
        let signer = endorsements.tcb_signing();
        let signer = chain::tcb_signing(signer, inputs.store, chain, lists, inputs.known, now)?;
        let info = TcbInfo::read(info, signer.public_key)?;
        let identity = QeIdentity::read(identity, signer.public_key)?;
        info.is_about(pck.fmspc, pck.pce_id)?;
        let ends = [
            signer.not_after,
            info.current(now, minimum)?,
            identity.current(now, minimum)?,
        ];
        Ok(Some(Self {
            info,
            identity,
            not_after: ends.into_iter().fold(UnixTime(u64::MAX), UnixTime::min),
        }))
    }

    /// Greater for what takes more events into account.
    fn recency(&self) -> (u32, UnixTime) {
        (self.info.tcb_evaluation_data_number, self.info.issued())
    }

    fn judge(&self, quote: &Quote<'_>, pck: &PckExtensions) -> Judgement {
        let subject = status::Subject {
            pck,
            report: quote.report(),
            qe: quote.qe_report,
        };
        status::judge(&subject, &self.info, &self.identity)
    }
}

/// Intel's signer of quoting enclaves, as in every QE identity published.
const QE_SIGNER: [u8; 32] = *b"\xdc\x9e\x2a\x7c\x6f\x94\x8f\x17\x47\x4e\x34\xa7\xfc\x43\xed\x03\x0f\x7c\x15\x63\xf1\xba\xbd\xdf\x63\x40\xc8\x2e\x0e\x54\xa8\xc5";
/// The quoting enclave for TDX; that for SGX is 1.
const TD_QE: u16 = 2;
/// ATTRIBUTES bit 1: the enclave can be read from outside.
const ENCLAVE_DEBUG: u8 = 0b10;

/// Checks that the enclave that signed is the quoting enclave.
///
/// A platform's key vouches for other enclaves too, so this must not depend on whether the
/// collateral came along.
fn is_quoting_enclave(
    qe: QeReport<'_>,
    collateral: Option<&Collateral>,
) -> Result<(), AppraiseError> {
    let by_constants = || match qe {
        qe if qe.mr_signer() != QE_SIGNER => Some("MRSIGNER"),
        qe if qe.isv_prod_id() != TD_QE => Some("ISVPRODID"),
        qe if qe.attributes()[0] & ENCLAVE_DEBUG != 0 => Some("ATTRIBUTES"),
        _ => None,
    };
    let differs = match collateral {
        Some(collateral) => collateral.identity.differs_from(qe),
        None => by_constants(),
    };
    differs.map_or(Ok(()), |field| Err(AppraiseError::QeIdentity { field }))
}

fn claims(
    quote: &Quote<'_>,
    pck: &PckExtensions,
    judgement: Option<&Judgement>,
    tcb_evaluation: Option<u32>,
) -> TdxClaims {
    let report = quote.report();
    TdxClaims {
        quote_version: quote.version(),
        padding: quote.padding(),
        debug: report.td_attributes() & 1 == 1,
        td_attributes: report.td_attributes(),
        xfam: report.xfam(),
        mr_td: Hex(report.mr_td()),
        rtmrs: report.rtmrs().map(Hex),
        mr_config_id: Hex(report.mr_config_id()),
        mr_owner: Hex(report.mr_owner()),
        mr_owner_config: Hex(report.mr_owner_config()),
        report_data: Hex(report.report_data()),
        mr_seam: Hex(report.mr_seam()),
        mr_signer_seam: Hex(report.mr_signer_seam()),
        seam_attributes: Hex(report.seam_attributes()),
        mr_service_td: report.mr_service_td().map(Hex),
        initial_service_td: report.service_td().map(|it| Hex(it.initial_hash)),
        current_service_td: report.service_td().map(|it| Hex(it.current_hash)),
        tee_tcb_svn: Hex(report.tee_tcb_svn()),
        tee_tcb_svn_2: report.tee_tcb_svn_2().map(Hex),
        ppid: Hex(pck.ppid),
        platform_instance: pck.platform_instance.map(Hex),
        fmspc: Hex(pck.fmspc),
        cpu_svn: Hex(pck.cpu_svn),
        pce_svn: pck.pce_svn,
        smt: pck.smt,
        qe_svn: quote.qe_report.isv_svn(),
        tcb_evaluation,
        tcb_date: judgement.and_then(|it| it.tcb_date),
        advisories: judgement
            .map(|it| it.advisories.clone())
            .unwrap_or_default(),
    }
}
