//! From a report to an appraisal.
//!
//! ```text
//! parse ▶ chain to a pinned root ▶ signature over the received bytes
//!       ▶ certificate and report agree (key, product, chip, TCB) ▶ bound to the challenge
//!       ▶ one check per claim (checks.rs)
//! ```
//!
//! No field is believed before the signature over it was verified, except those that say how to
//! verify it, and these are compared with the certificate afterwards.

use ring::digest::{SHA256, digest};
use ring::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};

use super::chain::{self, Anchor, Chain, Sources, VekKind};
use super::checks;
use super::platform::{Product, TcbVersion, reserved_tcb_bytes};
use super::report::{HOST_VMPL, PlatformFlag, Report, SigningKey, at};
use super::tcb_table::{Platform, TcbTable};
use super::vek::{self, Identity, VekExtensions};
use crate::appraisal::{Appraisal, Claims, SnpClaims};
use crate::encoding::Hex;
use crate::endorsement::Remembered;
use crate::evidence::{Evidence, Tee};
use crate::reference::SnpReferenceValues;
use crate::time::UnixTime;
use crate::verifier::AppraiseError;

/// Everything an appraisal depends on.
pub(crate) struct Inputs<'a> {
    pub(crate) evidence: &'a Evidence,
    pub(crate) report_data: &'a [u8; 64],
    pub(crate) anchors: &'a [Anchor],
    /// Intermediates and roots, DER.
    pub(crate) store: &'a [Vec<u8>],
    /// CRLs of the verifier, DER.
    pub(crate) crls: &'a [Vec<u8>],
    /// Signatures that verified before.
    pub(crate) known: Option<&'a Remembered>,
    /// What firmware versions are worth.
    pub(crate) tcb_table: Option<&'a TcbTable>,
    pub(crate) reference: &'a SnpReferenceValues,
    pub(crate) now: UnixTime,
}

pub(crate) fn appraise(inputs: &Inputs<'_>) -> Result<Appraisal, AppraiseError> {
    let report = Report::parse(inputs.evidence.report())?;
    is_signed_at_all(&report)?;
    let sources = Sources {
        bundled: inputs.evidence.endorsements(),
        store: inputs.store,
        crls: inputs
            .crls
            .iter()
            .map(Vec::as_slice)
            .chain(inputs.evidence.crls())
            .collect(),
        known: inputs.known,
    };
    let chain = chain::verify(&sources, inputs.anchors, inputs.now)?;
    signature_verifies(&report, chain.vek.public_key)?;

    let product = chain.anchor.product;
    let vek = agreed(&report, &chain, product)?;
    if report.vmpl() == HOST_VMPL {
        return Err(AppraiseError::HostRequested);
    }
    if report.report_data() != inputs.report_data {
        return Err(AppraiseError::Binding);
    }

    let mut claims = claims(&report, product, &vek);
    let level = inputs.tcb_table.and_then(|table| {
        table.judge(&Platform {
            product,
            tcb: claims.reported_tcb,
            firmware: claims.committed_firmware,
            mitigations: claims.current_mitigations,
            flags: &claims.platform,
        })
    });
    claims.tcb_table = inputs.tcb_table.map(TcbTable::version);
    claims.tcb_date = level.as_ref().map(|level| level.date);
    claims.advisories = level
        .as_ref()
        .map_or_else(Vec::new, |level| level.advisories.clone());
    let revocation_required = inputs.reference.require_revocation_check || !inputs.crls.is_empty();
    let verdict = checks::verdict(&checks::Subject {
        claims: &claims,
        reference: inputs.reference,
        chain: &chain,
        revocation_required,
        tcb_table: inputs.tcb_table,
        level: level.as_ref(),
        now: inputs.now,
    });
    let table_end = inputs.tcb_table.map(TcbTable::next_update);
    let mut evidence_digest = [0; 32];
    evidence_digest.copy_from_slice(digest(&SHA256, report.signed()).as_ref());
    Ok(Appraisal {
        tee: if chain.anchor.simulated {
            Tee::Simulated
        } else {
            Tee::SevSnp
        },
        simulated: chain.anchor.simulated,
        tier: verdict.tier,
        tcb_status: verdict.tcb_status,
        appraised_at: inputs.now,
        // A table that has ended already warns, and does not end what it could not affirm.
        not_after: table_end
            .filter(|end| *end >= inputs.now)
            .map_or(chain.not_after, |end| end.min(chain.not_after)),
        evidence_digest: Hex(evidence_digest),
        root: chain.anchor.spki,
        claims: Claims::SevSnp(Box::new(claims)),
        vtpm: None,
        gpus: Vec::new(),
        checks: verdict.checks,
    })
}

fn is_signed_at_all(report: &Report) -> Result<(), AppraiseError> {
    if report.signature_algorithm() != 1 {
        return Err(AppraiseError::SignatureAlgorithm(
            report.signature_algorithm(),
        ));
    }
    match report.signing_key() {
        _ if report.masks_chip_key() => Err(AppraiseError::Unsigned),
        SigningKey::None => Err(AppraiseError::Unsigned),
        SigningKey::Reserved(key) => Err(AppraiseError::SigningKey(key)),
        SigningKey::Vcek | SigningKey::Vlek => Ok(()),
    }
}

/// The order of P-384, big endian.
pub(super) const ORDER: [u8; 48] = *b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xc7\x63\x4d\x81\xf4\x37\x2d\xdf\x58\x1a\x0d\xb2\x48\xb0\xa7\x7a\xec\xec\x19\x6a\xcc\xc5\x29\x73";

fn signature_verifies(report: &Report, public_key: &[u8]) -> Result<(), AppraiseError> {
    // These bytes are not signed: whoever passes the report on could hide something in them.
    if report.signature_reserved().iter().any(|byte| *byte != 0) {
        return Err(AppraiseError::SignatureEncoding);
    }
    let mut signature = [0; 96];
    let (r, s) = signature.split_at_mut(48);
    for (number, little_endian) in [(r, report.signature_r()), (s, report.signature_s())] {
        let (value, padding) = little_endian.split_at(48);
        if padding.iter().any(|byte| *byte != 0) {
            return Err(AppraiseError::SignatureEncoding);
        }
        for (to, from) in number.iter_mut().zip(value.iter().rev()) {
            *to = *from;
        }
        if number.iter().all(|byte| *byte == 0) || *number >= ORDER[..] {
            return Err(AppraiseError::SignatureRange);
        }
    }
    UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, public_key)
        .verify(report.signed(), &signature)
        .map_err(|_| AppraiseError::Signature)
}

/// Checks that the key's certificate is about this report, and gives what it says.
fn agreed<'a>(
    report: &Report,
    chain: &Chain<'a>,
    product: Product,
) -> Result<VekExtensions<'a>, AppraiseError> {
    match (report.signing_key(), chain.kind) {
        (SigningKey::Vcek, VekKind::Vcek) | (SigningKey::Vlek, VekKind::Vlek) => {}
        _ => return Err(AppraiseError::SignerMismatch),
    }
    // Version 2 does not say; then only the root does.
    if report.cpuid().is_some() && report.product() != Some(product) {
        return Err(AppraiseError::Product {
            cpuid: report.cpuid().unwrap_or_default(),
            issuer: product,
        });
    }
    let vek = vek::read(&chain.vek, chain.kind, product)
        .map_err(|extension| AppraiseError::VekExtension { extension })?;
    if let Identity::Chip(hwid) = vek.identity {
        let mut chip = [0; 64];
        chip.iter_mut().zip(hwid).for_each(|(to, from)| *to = *from);
        if *report.chip_id() != chip {
            return Err(AppraiseError::ChipId);
        }
    }
    let reported = report.reported_tcb();
    if let Some(at) = (0..8).find(|at| reported[*at] != vek.tcb[*at]) {
        let component = vek::component_at(at, product);
        return Err(AppraiseError::VekTcb { component });
    }
    Ok(vek)
}

fn claims(report: &Report, product: Product, vek: &VekExtensions<'_>) -> SnpClaims {
    let bit = |bit: u32| report.policy() >> bit & 1 == 1;
    let tcb = |bytes| TcbVersion::from_bytes(bytes, product);
    let (chip_id, provider) = match vek.identity {
        Identity::Chip(_) => (Some(Hex(*report.chip_id())), None),
        Identity::Provider(name) => (None, Some(name.to_owned())),
    };
    SnpClaims {
        report_version: report.version(),
        product,
        cpuid: report.cpuid(),
        chip_id,
        provider,
        debug: bit(19),
        migration_agent: bit(18),
        smt_allowed: bit(16),
        policy: report.policy(),
        guest_svn: report.guest_svn(),
        vmpl: report.vmpl(),
        measurement: Hex(*report.measurement()),
        report_data: Hex(*report.report_data()),
        host_data: Hex(*report.host_data()),
        id_key_digest: Hex(*report.id_key_digest()),
        author_key_digest: report
            .has_author_key()
            .then(|| Hex(*report.author_key_digest())),
        family_id: Hex(*report.family_id()),
        image_id: Hex(*report.image_id()),
        report_id: Hex(*report.report_id()),
        reported_tcb: tcb(report.reported_tcb()),
        current_tcb: tcb(report.current_tcb()),
        committed_tcb: tcb(report.committed_tcb()),
        launch_tcb: tcb(report.launch_tcb()),
        current_firmware: report.current_firmware(),
        committed_firmware: report.committed_firmware(),
        platform: PlatformFlag::ALL
            .into_iter()
            .filter(|flag| report.platform_info() & flag.mask() != 0)
            .collect(),
        platform_info: report.platform_info(),
        launch_mitigations: report.launch_mitigations(),
        current_mitigations: report.current_mitigations(),
        reserved_in_use: reserved_in_use(report, product),
        tcb_table: None,
        tcb_date: None,
        advisories: Vec::new(),
    }
}

/// Includes the unused bytes of the TCB versions, which only the product tells.
fn reserved_in_use(report: &Report, product: Product) -> Vec<usize> {
    let tcbs = [
        (at::CURRENT_TCB, report.current_tcb()),
        (at::REPORTED_TCB, report.reported_tcb()),
        (at::COMMITTED_TCB, report.committed_tcb()),
        (at::LAUNCH_TCB, report.launch_tcb()),
    ];
    let mut offsets = report.reserved_in_use();
    for (offset, bytes) in tcbs {
        let reserved = reserved_tcb_bytes(bytes, product);
        offsets.extend((0..8).filter(|at| reserved[*at] != 0).map(|at| offset + at));
    }
    offsets.sort_unstable();
    offsets
}
