//! One check per claim of a quote that is already believed.
//!
//! A check states what it saw, what had to be, and the best tier it leaves. What concerns the guest
//! itself contraindicates; what concerns the age or knowledge of its platform warns, unless Intel
//! knows no such platform or has revoked it.

use super::chain::Chain;
use super::collateral::Status;
use super::status::{Found, Judgement};
use crate::appraisal::{Check, TcbStatus, TdxClaims, TrustTier};
use crate::encoding::Hex;
use crate::reference::TdxReferenceValues;
use crate::tee::checklist::{List, REFERENCE};
use crate::time::UnixTime;

/// What is checked, and against what.
pub(super) struct Subject<'a> {
    pub(super) claims: &'a TdxClaims,
    pub(super) reference: &'a TdxReferenceValues,
    pub(super) chain: &'a Chain<'a>,
    pub(super) judgement: Option<&'a Judgement>,
    pub(super) not_after: UnixTime,
}

/// All checks and what follows from them.
pub(super) struct Verdict {
    pub(super) checks: Vec<Check>,
    pub(super) tier: TrustTier,
    pub(super) tcb_status: TcbStatus,
}

const QUOTE: &str = "Intel TDX DCAP Quoting Library API, quote format";
const PCK: &str = "Intel SGX PCK Certificate and CRL Profile Specification";
const PCS: &str = "Intel PCS API version 4";
const ABI: &str = "Intel TDX Module ABI Specification";

pub(super) fn verdict(subject: &Subject<'_>) -> Verdict {
    let mut list = List::default();
    authenticity(&mut list, subject);
    attributes(&mut list, subject);
    guest_identity(&mut list, subject);
    service_td(&mut list, subject);
    platform_identity(&mut list, subject);
    let tcb_status = tcb(&mut list, subject.judgement);
    Verdict {
        tier: list.tier(),
        checks: list.0,
        tcb_status,
    }
}

/// What the verifier has already established; anything else was an error.
fn authenticity(list: &mut List, subject: &Subject<'_>) {
    let (claims, chain) = (subject.claims, subject.chain);
    list.passed(
        "tdx.signature",
        "ECDSA P-256 with SHA-256, over the received bytes",
        QUOTE,
    );
    let qe = format!("TD quoting enclave, version {}", claims.qe_svn);
    let source = if subject.judgement.is_some() {
        "Intel's QE identity"
    } else {
        "Intel's published signer of quoting enclaves"
    };
    list.passed("tdx.quoting-enclave", qe, source);
    let path = format!("PCK, {}, Intel SGX Root CA", chain.intermediate.common_name);
    list.passed("tdx.chain", path, PCK);
    list.passed(
        "tdx.validity",
        format!("through {}", subject.not_after),
        "RFC 5280, validity",
    );
    let root = if chain.anchor.simulated {
        "simulated root"
    } else {
        "Intel root"
    };
    list.passed(
        "tdx.root",
        format!("{root} {}", chain.anchor.spki),
        "trust anchors",
    );
    list.passed(
        "tdx.report-data",
        claims.report_data.to_string(),
        "challenge",
    );
    if chain.revocation_checked {
        list.passed(
            "tdx.revocation",
            "not revoked by current CRLs",
            "RFC 5280, CRL",
        );
    } else {
        list.unknown(
            "tdx.revocation",
            "CRLs are missing",
            "current CRLs of the PCK CA and of the root",
            PCS,
        );
    }
    list.passed("tdx.quote-version", claims.quote_version.to_string(), QUOTE);
    let padding = format!("{} zeroes follow the quote", claims.padding);
    list.passed("tdx.padding", padding, QUOTE);
}

/// TDATTRIBUTES that the specification reserves.
const RESERVED: u64 = bits(1, 3) | bits(7, 15) | bits(23, 26) | bits(32, 61);
/// Bits 4 to 6: the guest is under a profiler of the host.
const PROFILING: u64 = bits(4, 6);
const SEPT_VE_DISABLE: u64 = 1 << 28;
const MIGRATABLE: u64 = 1 << 29;
const PERFMON: u64 = 1 << 63;

const fn bits(first: u32, last: u32) -> u64 {
    (u64::MAX >> (63 - last)) & (u64::MAX << first)
}

fn attributes(list: &mut List, subject: &Subject<'_>) {
    use TrustTier::{Contraindicated, Warning};
    const SOURCE: &str = "Intel TDX Module ABI Specification, ATTRIBUTES";
    let (claims, reference) = (subject.claims, subject.reference);
    let on = |mask| claims.td_attributes & mask != 0;
    let mut off = |id, mask, allowed, otherwise| {
        let required = if allowed { "on or off" } else { "off" };
        list.judged(
            id,
            !on(mask) || allowed,
            onoff(on(mask)),
            required,
            SOURCE,
            otherwise,
        );
    };
    // Even where it is allowed, a readable guest is never affirmed.
    let debug = if reference.dangerously_allow_debug {
        Warning
    } else {
        Contraindicated
    };
    off("tdx.attributes.debug", 1, false, debug);
    off(
        "tdx.attributes.profiling",
        PROFILING,
        false,
        Contraindicated,
    );
    off("tdx.attributes.reserved", RESERVED, false, Contraindicated);
    off(
        "tdx.attributes.migratable",
        MIGRATABLE,
        reference.allow_migration,
        Contraindicated,
    );
    off(
        "tdx.attributes.perfmon",
        PERFMON,
        reference.allow_perfmon,
        Warning,
    );
    list.contraindicated(
        "tdx.attributes.sept-ve-disable",
        on(SEPT_VE_DISABLE) || reference.allow_sept_ve,
        onoff(on(SEPT_VE_DISABLE)),
        if reference.allow_sept_ve {
            "on or off"
        } else {
            "on"
        },
        SOURCE,
    );

    let xfam = claims.xfam;
    // Every processor with TDX has x87 and SSE state and cannot leave it out.
    list.contraindicated(
        "tdx.xfam.fixed",
        xfam & 0b11 == 0b11,
        format!("{xfam:#x}"),
        "bits 0 and 1 on",
        ABI,
    );
    match reference.allowed_xfam {
        None => list.skipped("tdx.xfam", format!("{xfam:#x}"), REFERENCE),
        Some(allowed) => list.contraindicated(
            "tdx.xfam",
            xfam & !allowed == 0,
            format!("{xfam:#x}"),
            &format!("within {allowed:#x}"),
            REFERENCE,
        ),
    }
}

fn guest_identity(list: &mut List, subject: &Subject<'_>) {
    let (claims, reference) = (subject.claims, subject.reference);
    let [rtmr0, rtmr1, rtmr2, rtmr3] = &claims.rtmrs;
    // What was built in, and the software that it started: unknown if not stated.
    required(
        list,
        "tdx.mr-td",
        &claims.mr_td,
        reference.measurements.as_deref(),
    );
    required(list, "tdx.rtmr1", rtmr1, reference.rtmr1.as_deref());
    required(list, "tdx.rtmr2", rtmr2, reference.rtmr2.as_deref());
    for (id, seen, allowed) in [
        ("tdx.rtmr0", rtmr0, &reference.rtmr0),
        ("tdx.rtmr3", rtmr3, &reference.rtmr3),
        (
            "tdx.mr-config-id",
            &claims.mr_config_id,
            &reference.mr_config_ids,
        ),
        ("tdx.mr-owner", &claims.mr_owner, &reference.mr_owners),
        (
            "tdx.mr-owner-config",
            &claims.mr_owner_config,
            &reference.mr_owner_configs,
        ),
        ("tdx.mr-seam", &claims.mr_seam, &reference.mr_seams),
    ] {
        list.optional(id, Some(seen), allowed.as_deref());
    }
    match &reference.mr_signer_seams {
        Some(allowed) => {
            list.one_of("tdx.mr-signer-seam", Some(&claims.mr_signer_seam), allowed);
        }
        None => list.contraindicated(
            "tdx.mr-signer-seam",
            claims.mr_signer_seam.is_zero(),
            claims.mr_signer_seam.to_string(),
            "all zero, which is Intel",
            ABI,
        ),
    }
    list.contraindicated(
        "tdx.seam-attributes",
        claims.seam_attributes.is_zero(),
        claims.seam_attributes.to_string(),
        "all zero",
        ABI,
    );
}

fn required(list: &mut List, id: &'static str, seen: &Hex<48>, allowed: Option<&[Hex<48>]>) {
    match allowed {
        Some(allowed) => list.one_of(id, Some(seen), allowed),
        None => list.unknown(id, seen.to_string(), "a reference value", REFERENCE),
    }
}

/// Service TDs can read and move a guest, so one that nobody named contraindicates.
fn service_td(list: &mut List, subject: &Subject<'_>) {
    let allowed = subject.reference.mr_service_tds.as_deref();
    let claims = subject.claims;
    for (id, seen) in [
        ("tdx.mr-service-td", claims.mr_service_td),
        ("tdx.service-td.initial", claims.initial_service_td),
        ("tdx.service-td.current", claims.current_service_td),
    ] {
        match (seen, allowed) {
            (None, None) => list.skipped(id, "not reported", ABI),
            (None, Some(_)) if id == "tdx.mr-service-td" => {
                list.unknown(id, "not reported", "a reference value", REFERENCE);
            }
            (None, Some(_)) => list.skipped(id, "not reported", ABI),
            (Some(seen), _) if seen.is_zero() => list.passed(id, "none", ABI),
            (Some(seen), allowed) => {
                list.one_of(id, Some(&seen), allowed.unwrap_or_default());
            }
        }
    }
}

fn platform_identity(list: &mut List, subject: &Subject<'_>) {
    let (claims, reference) = (subject.claims, subject.reference);
    list.optional("tdx.ppid", Some(&claims.ppid), reference.ppids.as_deref());
    list.optional(
        "tdx.fmspc",
        Some(&claims.fmspc),
        reference.fmspcs.as_deref(),
    );
    match (claims.smt, reference.forbid_smt) {
        (None, true) => list.unknown("tdx.smt", "not reported", "off", REFERENCE),
        (Some(smt), true) => list.judged(
            "tdx.smt",
            !smt,
            onoff(smt),
            "off",
            REFERENCE,
            TrustTier::Warning,
        ),
        (seen, false) => {
            let observed = seen.map_or_else(|| "not reported".to_owned(), onoff);
            list.skipped("tdx.smt", observed, REFERENCE);
        }
    }
}

fn tcb(list: &mut List, judgement: Option<&Judgement>) -> TcbStatus {
    const UP_TO_DATE: &str = "up-to-date";
    let Some(judgement) = judgement else {
        for id in [
            "tdx.tcb.platform",
            "tdx.tcb.module",
            "tdx.tcb.quoting-enclave",
            "tdx.tcb",
        ] {
            list.unknown(id, "no collateral", UP_TO_DATE, PCS);
        }
        list.skipped("tdx.advisories", "no collateral", PCS);
        return TcbStatus::Unknown;
    };
    for (id, found) in [
        ("tdx.tcb.platform", judgement.platform),
        ("tdx.tcb.module", judgement.module),
        ("tdx.tcb.quoting-enclave", judgement.qe),
    ] {
        let (observed, otherwise) = match found {
            Found::Exempt => {
                list.skipped(id, "judged by the platform's level", PCS);
                continue;
            }
            Found::NoLevel => ("older than every level", TrustTier::Contraindicated),
            Found::NoIdentity => ("a version without identity", TrustTier::Contraindicated),
            Found::Level(Status::Revoked) => ("revoked", TrustTier::Contraindicated),
            Found::Level(status) => (status.name(), TrustTier::Warning),
        };
        let met = found == Found::Level(Status::UpToDate);
        list.judged(id, met, observed.to_owned(), UP_TO_DATE, PCS, otherwise);
    }
    let otherwise = match judgement.status {
        TcbStatus::Revoked | TcbStatus::Unknown => TrustTier::Contraindicated,
        _ => TrustTier::Warning,
    };
    let met = judgement.status == TcbStatus::UpToDate;
    let observed = match judgement.tcb_date {
        Some(date) => format!("{}, as of {date}", judgement.status.name()),
        None => judgement.status.name().to_owned(),
    };
    list.judged("tdx.tcb", met, observed, UP_TO_DATE, PCS, otherwise);
    // The status says what they amount to.
    let advisories = match judgement.advisories.as_slice() {
        [] => "none".to_owned(),
        some => some.join(", "),
    };
    list.skipped("tdx.advisories", advisories, PCS);
    judgement.status
}

fn onoff(on: bool) -> String {
    if on { "on" } else { "off" }.to_owned()
}
