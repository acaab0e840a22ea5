//! One check per claim of a report that is already believed.
//!
//! A check states what it saw, what had to be, and the best tier it leaves. What concerns the guest
//! itself contraindicates; what concerns the age or knowledge of its platform warns.

use super::chain::{Chain, VekKind};
use super::platform::{Product, TcbVersion};
use super::report::{PlatformFlag, PolicyFlag};
use super::tcb_table::{TcbTable, Verdict as Level};
use crate::appraisal::{Check, SnpClaims, TcbStatus, TrustTier};
use crate::reference::SnpReferenceValues;
use crate::tee::checklist::{List, REFERENCE};
use crate::time::UnixTime;

/// What is checked, and against what.
pub(super) struct Subject<'a> {
    pub(super) claims: &'a SnpClaims,
    pub(super) reference: &'a SnpReferenceValues,
    pub(super) chain: &'a Chain<'a>,
    pub(super) revocation_required: bool,
    pub(super) tcb_table: Option<&'a TcbTable>,
    /// What the table says of this platform.
    pub(super) level: Option<&'a Level>,
    pub(super) now: UnixTime,
}

/// All checks and what follows from them.
pub(super) struct Verdict {
    pub(super) checks: Vec<Check>,
    pub(super) tier: TrustTier,
    pub(super) tcb_status: TcbStatus,
}

const ABI: &str = "SEV-SNP Firmware ABI Specification";
const KDS: &str = "VCEK Certificate and KDS Interface Specification";

pub(super) fn verdict(subject: &Subject<'_>) -> Verdict {
    let mut list = List::default();
    authenticity(&mut list, subject);
    format(&mut list, subject);
    guest_policy(&mut list, subject);
    guest_identity(&mut list, subject);
    platform_identity(&mut list, subject);
    let tcb_status = firmware(&mut list, subject);
    platform_state(&mut list, subject);
    Verdict {
        tier: list.tier(),
        checks: list.0,
        tcb_status,
    }
}

/// What the verifier has already established; anything else was an error.
fn authenticity(list: &mut List, subject: &Subject<'_>) {
    let chain = subject.chain;
    list.passed(
        "snp.signature",
        "ECDSA P-384 with SHA-384, over 672 received bytes",
        ABI,
    );
    let kind = match chain.kind {
        VekKind::Vcek => "VCEK",
        VekKind::Vlek => "VLEK",
    };
    let path = format!(
        "{kind}, {}, ARK-{}",
        chain.intermediate_name, chain.anchor.product
    );
    list.passed("snp.chain", path, KDS);
    list.passed(
        "snp.validity",
        format!("through {}", chain.not_after),
        "RFC 5280, validity",
    );
    let root = if chain.anchor.simulated {
        "simulated root"
    } else {
        "AMD root"
    };
    list.passed(
        "snp.root",
        format!("{root} {}", chain.anchor.spki),
        "trust anchors",
    );
    let chip = subject.claims.chip_id.map_or_else(
        || {
            format!(
                "provider {}",
                subject.claims.provider.as_deref().unwrap_or_default()
            )
        },
        |chip| chip.to_string(),
    );
    list.passed("snp.vek-identity", chip, KDS);
    list.passed("snp.vek-tcb", subject.claims.reported_tcb.to_string(), KDS);
    list.passed(
        "snp.report-data",
        subject.claims.report_data.to_string(),
        "challenge",
    );

    let required = if subject.revocation_required {
        "a current CRL"
    } else {
        ""
    };
    if chain.revocation_checked {
        list.passed(
            "snp.revocation",
            "not revoked by a current CRL",
            "RFC 5280, CRL",
        );
    } else if subject.revocation_required {
        list.unknown("snp.revocation", "no CRL of this root", required, REFERENCE);
    } else {
        list.skipped("snp.revocation", "no CRL of this root", REFERENCE);
    }
}

fn format(list: &mut List, subject: &Subject<'_>) {
    let claims = subject.claims;
    match claims.report_version {
        version @ 2..=5 => list.passed("snp.report-version", version.to_string(), ABI),
        version => list.unknown("snp.report-version", version.to_string(), "2 to 5", ABI),
    }
    if claims.reserved_in_use.is_empty() {
        list.passed("snp.reserved", "all zero", ABI);
    } else {
        let offsets: Vec<String> = claims
            .reserved_in_use
            .iter()
            .take(8)
            .map(|at| format!("{at:#05x}"))
            .collect();
        list.unknown(
            "snp.reserved",
            format!("in use at {}", offsets.join(", ")),
            "all zero",
            ABI,
        );
    }
}

fn guest_policy(list: &mut List, subject: &Subject<'_>) {
    const SOURCE: &str = "SEV-SNP Firmware ABI Specification, guest policy";
    let (claims, reference) = (subject.claims, subject.reference);
    // Even where it is allowed, a readable guest is never affirmed.
    let debug = if reference.dangerously_allow_debug {
        TrustTier::Warning
    } else {
        TrustTier::Contraindicated
    };
    list.judged(
        "snp.policy.debug",
        !claims.debug,
        onoff(claims.debug),
        "off",
        SOURCE,
        debug,
    );
    list.contraindicated(
        "snp.policy.migration-agent",
        !claims.migration_agent || reference.allow_migration_agent,
        onoff(claims.migration_agent),
        if reference.allow_migration_agent {
            "on or off"
        } else {
            "off"
        },
        SOURCE,
    );
    let reserved_one = claims.policy >> 17 & 1 == 1;
    list.contraindicated(
        "snp.policy.reserved-one",
        reserved_one,
        onoff(reserved_one),
        "on",
        SOURCE,
    );
    let unknown = claims.policy >> 26;
    if unknown == 0 {
        list.passed("snp.policy.reserved", "all zero", SOURCE);
    } else {
        let observed = format!("{:#x}", unknown << 26);
        list.unknown("snp.policy.reserved", observed, "all zero", SOURCE);
    }
    // The firmware refuses to launch such a guest, so a report of one is not to be explained away.
    let smt = claims.platform_info & PlatformFlag::Smt.mask() != 0;
    list.contraindicated(
        "snp.policy.smt",
        claims.smt_allowed || !smt,
        format!("platform {}", onoff(smt)),
        if claims.smt_allowed {
            "on or off"
        } else {
            "off"
        },
        SOURCE,
    );
    policy_flags(
        list,
        "snp.policy.required",
        claims,
        &reference.required_policy,
        true,
    );
    policy_flags(
        list,
        "snp.policy.forbidden",
        claims,
        &reference.forbidden_policy,
        false,
    );
    list.contraindicated(
        "snp.vmpl",
        claims.vmpl <= reference.max_vmpl,
        claims.vmpl.to_string(),
        &format!("at most {}", reference.max_vmpl),
        REFERENCE,
    );
}

/// Whether each of these bits is as it should be.
fn policy_flags(
    list: &mut List,
    id: &'static str,
    claims: &SnpClaims,
    flags: &[PolicyFlag],
    on: bool,
) {
    let names = |flags: &[PolicyFlag]| {
        let names: Vec<&str> = flags.iter().map(|flag| flag.name()).collect();
        names.join(", ")
    };
    let is_on = |flag: &PolicyFlag| claims.policy & flag.mask() != 0;
    let odd: Vec<PolicyFlag> = flags.iter().copied().filter(|it| is_on(it) != on).collect();
    if flags.is_empty() {
        return list.skipped(id, format!("{:#x}", claims.policy), REFERENCE);
    }
    let observed = if odd.is_empty() {
        format!("{:#x}", claims.policy)
    } else {
        format!("{} {}", names(&odd), onoff(!on))
    };
    let required = format!("{} {}", names(flags), onoff(on));
    list.contraindicated(id, odd.is_empty(), observed, &required, REFERENCE);
}

fn guest_identity(list: &mut List, subject: &Subject<'_>) {
    let (claims, reference) = (subject.claims, subject.reference);
    match &reference.measurements {
        Some(allowed) => list.one_of("snp.measurement", Some(&claims.measurement), allowed),
        None => list.unknown(
            "snp.measurement",
            claims.measurement.to_string(),
            "a reference value",
            REFERENCE,
        ),
    }
    list.optional(
        "snp.host-data",
        Some(&claims.host_data),
        reference.host_data.as_deref(),
    );
    // Zeroes say that there is no key, so they are equal to no key's digest.
    let id_key = Some(&claims.id_key_digest).filter(|digest| !digest.is_zero());
    list.optional("snp.id-key", id_key, reference.id_key_digests.as_deref());
    let author = claims
        .author_key_digest
        .as_ref()
        .filter(|digest| !digest.is_zero());
    list.optional(
        "snp.author-key",
        author,
        reference.author_key_digests.as_deref(),
    );
    match reference.minimum_guest_svn {
        Some(minimum) => list.contraindicated(
            "snp.guest-svn",
            claims.guest_svn >= minimum,
            claims.guest_svn.to_string(),
            &format!("at least {minimum}"),
            REFERENCE,
        ),
        None => list.skipped("snp.guest-svn", claims.guest_svn.to_string(), REFERENCE),
    }
}

fn platform_identity(list: &mut List, subject: &Subject<'_>) {
    let (claims, reference) = (subject.claims, subject.reference);
    match &reference.products {
        Some(allowed) => {
            let names: Vec<&str> = allowed.iter().map(|product| product.key()).collect();
            list.contraindicated(
                "snp.product",
                allowed.contains(&claims.product),
                claims.product.key().to_owned(),
                &format!("one of [{}]", names.join(", ")),
                REFERENCE,
            );
        }
        None => list.judged(
            "snp.product",
            claims.product != Product::Milan,
            claims.product.key().to_owned(),
            "a generation whose root secret is safe, or `products` naming this one",
            "arXiv 2605.12990",
            TrustTier::Warning,
        ),
    }
    list.optional(
        "snp.chip-id",
        claims.chip_id.as_ref(),
        reference.chip_ids.as_deref(),
    );
    let provider = claims.provider.as_deref();
    let observed = provider.unwrap_or("none").to_owned();
    match &reference.providers {
        None => list.skipped("snp.provider", observed, REFERENCE),
        Some(allowed) => list.contraindicated(
            "snp.provider",
            allowed.iter().any(|name| Some(name.as_str()) == provider),
            observed,
            &format!("one of [{}]", allowed.join(", ")),
            REFERENCE,
        ),
    }
}

fn firmware(list: &mut List, subject: &Subject<'_>) -> TcbStatus {
    let (claims, reference) = (subject.claims, subject.reference);
    let (current, committed) = (claims.current_tcb, claims.committed_tcb);
    let ordered = current.reaches(&committed)
        && current.reaches(&claims.launch_tcb)
        && committed.reaches(&claims.reported_tcb);
    list.contraindicated(
        "snp.tcb-order",
        ordered,
        format!(
            "current {current}; committed {committed}; launch {}; reported {}",
            claims.launch_tcb, claims.reported_tcb
        ),
        "current at least committed and launch, committed at least reported",
        ABI,
    );
    // Microcode is loaded anew at every boot and is seldom committed; firmware stays.
    let microcode = committed.microcode;
    let provisional = TcbVersion {
        microcode,
        ..current
    } != committed
        || claims.current_firmware != claims.committed_firmware;
    list.judged(
        "snp.provisional-firmware",
        !provisional || reference.allow_provisional_firmware,
        if provisional {
            "provisional"
        } else {
            "committed"
        }
        .to_owned(),
        if reference.allow_provisional_firmware {
            "any"
        } else {
            "committed"
        },
        ABI,
        TrustTier::Warning,
    );
    let minimum = reference.minimum_tcb.get(&claims.product);
    let Some(table) = subject.tcb_table else {
        return minimum_tcb(list, &claims.reported_tcb, minimum);
    };
    let by_table = tcb_level(list, subject, table);
    if minimum.is_none() {
        list.skipped(
            "snp.minimum-tcb",
            claims.reported_tcb.to_string(),
            REFERENCE,
        );
        return by_table;
    }
    by_table.or_worse(minimum_tcb(list, &claims.reported_tcb, minimum))
}

/// The status by the table, and how far behind the platform is.
fn tcb_level(list: &mut List, subject: &Subject<'_>, table: &TcbTable) -> TcbStatus {
    const SOURCE: &str = "AMD TCB table";
    let (claims, reference, now) = (subject.claims, subject.reference, subject.now);
    let version = table.version();
    let recent = reference
        .minimum_tcb_table
        .is_none_or(|minimum| version >= minimum);
    let current = (table.issued()..=table.next_update()).contains(&now);
    list.judged(
        "snp.tcb-table",
        recent && current,
        format!(
            "version {version}, {} to {}, covers {}",
            table.issued(),
            table.next_update(),
            table.covers().join(", ")
        ),
        &match reference.minimum_tcb_table {
            Some(minimum) => format!("current, at least version {minimum}"),
            None => "current".to_owned(),
        },
        SOURCE,
        TrustTier::Warning,
    );
    let Some(level) = subject.level else {
        list.unknown(
            "snp.tcb",
            claims.reported_tcb.to_string(),
            "a level of this product",
            SOURCE,
        );
        return TcbStatus::Unknown;
    };
    let accepted = reference
        .products
        .as_ref()
        .is_some_and(|products| products.contains(&claims.product));
    let distrusted = level.distrusted.as_ref();
    list.contraindicated(
        "snp.generation",
        distrusted.is_none() || accepted,
        distrusted.map_or_else(
            || "not distrusted".to_owned(),
            |why| format!("distrusted {why}"),
        ),
        "one that the table does not distrust, or `products` naming it",
        SOURCE,
    );
    let status = match distrusted {
        Some(_) if !accepted => TcbStatus::Revoked,
        _ => level.status,
    };
    let grace = reference
        .tcb_grace_days
        .zip(level.behind_since)
        .map(|(days, since)| since.plus_seconds(u64::from(days).saturating_mul(24 * 60 * 60)));
    let in_grace = status == TcbStatus::OutOfDate && grace.is_some_and(|end| now <= end);
    let mut observed = format!("{}, as of {} ({})", status.name(), level.date, level.source);
    if in_grace && let Some(end) = grace {
        observed = format!("{observed}, in grace until {end}");
    }
    let required = match &level.next {
        Some(next) => format!(
            "up-to-date: {} levels behind, the next takes {next}",
            level.behind
        ),
        None => "up-to-date".to_owned(),
    };
    let otherwise = match status {
        TcbStatus::Revoked => TrustTier::Contraindicated,
        _ => TrustTier::Warning,
    };
    let met = status == TcbStatus::UpToDate || in_grace;
    list.judged("snp.tcb", met, observed, &required, SOURCE, otherwise);
    let advisories = match claims.advisories.as_slice() {
        [] => "none of those covered".to_owned(),
        some => some.join(", "),
    };
    list.skipped("snp.advisories", advisories, SOURCE);
    status
}

fn minimum_tcb(list: &mut List, tcb: &TcbVersion, minimum: Option<&TcbVersion>) -> TcbStatus {
    const ID: &str = "snp.minimum-tcb";
    let observed = tcb.to_string();
    let Some(minimum) = minimum else {
        list.unknown(ID, observed, "a minimum for this product", REFERENCE);
        return TcbStatus::Unknown;
    };
    if minimum.fmc.is_some() != tcb.fmc.is_some() {
        list.unknown(
            ID,
            observed,
            "a minimum with the components of this product",
            REFERENCE,
        );
        return TcbStatus::Unknown;
    }
    let met = tcb.reaches(minimum);
    let required = format!("at least {minimum}");
    list.judged(ID, met, observed, &required, REFERENCE, TrustTier::Warning);
    if met {
        TcbStatus::UpToDate
    } else {
        TcbStatus::OutOfDate
    }
}

fn platform_state(list: &mut List, subject: &Subject<'_>) {
    let (claims, reference) = (subject.claims, subject.reference);
    for flag in PlatformFlag::ALL {
        let on = claims.platform_info & flag.mask() != 0;
        let id = platform_check(flag);
        let required = reference.required_platform.contains(&flag);
        let forbidden = reference.forbidden_platform.contains(&flag);
        match (required, forbidden) {
            (false, false) => list.skipped(id, onoff(on), REFERENCE),
            _ => list.judged(
                id,
                (on || !required) && (!on || !forbidden),
                onoff(on),
                if forbidden { "off" } else { "on" },
                REFERENCE,
                TrustTier::Warning,
            ),
        }
    }
    // Bit 6 has no public meaning but is set on every genuine Turin.
    let known = PlatformFlag::ALL
        .iter()
        .fold(1 << 6, |known, flag| known | flag.mask());
    let unknown = claims.platform_info & !known;
    if unknown == 0 {
        list.passed("snp.platform.reserved", "all zero", ABI);
    } else {
        list.unknown(
            "snp.platform.reserved",
            format!("{unknown:#x}"),
            "all zero",
            ABI,
        );
    }
    let vector = |bits: u64| format!("{bits:#x}");
    match (reference.required_mitigations, claims.current_mitigations) {
        (None, seen) => {
            let observed = seen.map_or_else(|| "not reported".to_owned(), vector);
            list.skipped("snp.mitigations", observed, REFERENCE);
        }
        // A report that cannot tell says nothing, least of all that none is missing.
        (Some(required), None) => {
            list.unknown(
                "snp.mitigations",
                "not reported",
                &vector(required),
                REFERENCE,
            );
        }
        (Some(required), Some(seen)) => list.judged(
            "snp.mitigations",
            seen & required == required,
            vector(seen),
            &vector(required),
            REFERENCE,
            TrustTier::Warning,
        ),
    }
}

fn platform_check(flag: PlatformFlag) -> &'static str {
    match flag {
        PlatformFlag::Smt => "snp.platform.smt",
        PlatformFlag::Tsme => "snp.platform.tsme",
        PlatformFlag::Ecc => "snp.platform.ecc",
        PlatformFlag::RaplDisabled => "snp.platform.rapl-disabled",
        PlatformFlag::CiphertextHiding => "snp.platform.ciphertext-hiding",
        PlatformFlag::AliasCheckComplete => "snp.platform.alias-check-complete",
        PlatformFlag::TrustedIo => "snp.platform.trusted-io",
    }
}

fn onoff(on: bool) -> String {
    if on { "on" } else { "off" }.to_owned()
}
