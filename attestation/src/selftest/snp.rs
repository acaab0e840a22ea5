//! What can be changed about an SEV-SNP report and its endorsements.

use super::SelftestError;
use super::mutation::{Bench, Field, Subject, certificate_fields, crl_fields, turned, values};
use super::vectors::Vectors;
use crate::appraisal::{Claims, SnpClaims};
use crate::attester::Attester as _;
use crate::encoding::Hex;
use crate::endorsement::{Certificate, Crl};
use crate::evidence::Endorsements;
use crate::reference::{ReferenceValues, SnpReferenceValues};
use crate::tee::simulated::{DEFAULT_TCB, SimulatedTee, SimulatedTeeBuilder};
use crate::tee::snp::report::at;
use crate::tee::snp::{PlatformFlag, REPORT_LENGTH, Report, SigningKey, TcbVersion};
use crate::time::UnixTime;

const DAY: u64 = 24 * 60 * 60;

pub(super) fn mutate(vectors: &Vectors, bench: &mut Bench) -> Result<(), SelftestError> {
    let cases = vectors.snp()?;
    // One report of each version, generation and kind of key.
    for name in [
        "milan-v2-aws-vlek",
        "milan-v2-azure-vcek",
        "milan-v3-azure-vcek",
        "genoa-v3-azure-vcek",
        "genoazen4c-v5",
        "turin-v5-azure",
    ] {
        let case = cases.iter().find(|case| case.name.contains(name));
        let case = case.ok_or_else(|| vectors.wrong("snp/expected.json", "a report is missing"))?;
        let mut subject = Subject::of(case);
        let Ok(appraisal) = subject.appraise() else {
            continue;
        };
        subject.reference = ReferenceValues::naming(&appraisal);
        let Claims::SevSnp(claims) = appraisal.claims else {
            continue;
        };
        if !bench.starts_affirmed(&case.name, &subject) {
            continue;
        }
        report(&case.name, &subject, bench);
        certificates(&case.name, &subject, bench);
        asked(&case.name, &subject, &claims, bench);
        times(&case.name, &subject, bench);
        revocation(&case.name, &subject, vectors, bench)?;
    }
    claims_of_the_guest(bench)
}

const FIELDS: [(&str, usize, usize); 44] = [
    ("VERSION", at::VERSION, 4),
    ("GUEST_SVN", at::GUEST_SVN, 4),
    ("POLICY", at::POLICY, 8),
    ("FAMILY_ID", at::FAMILY_ID, 16),
    ("IMAGE_ID", at::IMAGE_ID, 16),
    ("VMPL", at::VMPL, 4),
    ("SIGNATURE_ALGO", at::SIGNATURE_ALGO, 4),
    ("CURRENT_TCB[0]", at::CURRENT_TCB, 1),
    ("CURRENT_TCB[1]", at::CURRENT_TCB + 1, 1),
    ("CURRENT_TCB[3]", at::CURRENT_TCB + 3, 1),
    ("CURRENT_TCB[6]", at::CURRENT_TCB + 6, 1),
    ("CURRENT_TCB[7]", at::CURRENT_TCB + 7, 1),
    ("PLATFORM_INFO", at::PLATFORM_INFO, 8),
    ("SIGNER_INFO", at::SIGNER_INFO, 4),
    ("reserved after SIGNER_INFO", at::RESERVED_SIGNER, 4),
    ("REPORT_DATA", at::REPORT_DATA, 64),
    ("MEASUREMENT", at::MEASUREMENT, 48),
    ("HOST_DATA", at::HOST_DATA, 32),
    ("ID_KEY_DIGEST", at::ID_KEY_DIGEST, 48),
    ("AUTHOR_KEY_DIGEST", at::AUTHOR_KEY_DIGEST, 48),
    ("REPORT_ID", at::REPORT_ID, 32),
    ("REPORT_ID_MA", at::REPORT_ID_MA, 32),
    ("REPORTED_TCB", at::REPORTED_TCB, 8),
    ("CPUID_FAM_ID", at::CPUID, 1),
    ("CPUID_MOD_ID", at::CPUID + 1, 1),
    ("CPUID_STEP", at::CPUID + 2, 1),
    ("reserved after CPUID", at::RESERVED_CPUID, 21),
    ("CHIP_ID", at::CHIP_ID, 64),
    ("COMMITTED_TCB", at::COMMITTED_TCB, 8),
    ("CURRENT_BUILD", at::CURRENT_FIRMWARE, 1),
    ("CURRENT_MINOR", at::CURRENT_FIRMWARE + 1, 1),
    ("CURRENT_MAJOR", at::CURRENT_FIRMWARE + 2, 1),
    ("COMMITTED_BUILD", at::COMMITTED_FIRMWARE, 1),
    ("COMMITTED_MINOR", at::COMMITTED_FIRMWARE + 1, 1),
    ("COMMITTED_MAJOR", at::COMMITTED_FIRMWARE + 2, 1),
    ("LAUNCH_TCB", at::LAUNCH_TCB, 8),
    ("LAUNCH_MIT_VECTOR", at::LAUNCH_MITIGATIONS, 8),
    ("CURRENT_MIT_VECTOR", at::CURRENT_MITIGATIONS, 8),
    ("reserved before the signature", at::RESERVED_END, 152),
    ("R", at::SIGNATURE_R, 48),
    ("padding of R", at::SIGNATURE_R + 48, 24),
    ("S", at::SIGNATURE_S, 48),
    ("padding of S", at::SIGNATURE_S + 48, 24),
    ("reserved after the signature", at::RESERVED_SIGNATURE, 368),
];

/// The report as an attacker can change it, who cannot sign.
fn report(case: &str, subject: &Subject, bench: &mut Bench) {
    for (name, offset, length) in FIELDS {
        let field = Field {
            name: name.to_owned(),
            offset,
            length,
            reason: "signature",
        };
        for (value, changed) in values(&subject.report, &field) {
            let reason = reason(&field, &changed);
            let mut other = subject.clone();
            other.report = changed;
            bench.try_one(case, format!("{name}: {value}"), reason, &other);
        }
    }
    for (change, length) in [("cut", REPORT_LENGTH - 1), ("prolonged", REPORT_LENGTH + 1)] {
        let mut other = subject.clone();
        other.report.resize(length, 0);
        bench.try_one(case, format!("report {change}"), "report-length", &other);
    }
}

/// What a verifier meets first: a few fields say how the signature is to be verified.
fn reason(field: &Field, changed: &[u8]) -> &'static str {
    let Ok(report) = Report::parse(changed) else {
        return "report-version";
    };
    let part = changed
        .get(field.offset..field.offset.saturating_add(field.length))
        .unwrap_or_default();
    match field.offset {
        at::SIGNATURE_ALGO => "signature-algorithm",
        at::SIGNER_INFO if report.masks_chip_key() => "unsigned",
        at::SIGNER_INFO => match report.signing_key() {
            SigningKey::None => "unsigned",
            SigningKey::Reserved(_) => "signing-key",
            _ => "signature",
        },
        at::SIGNATURE_R | at::SIGNATURE_S
            if part.iter().all(|byte| *byte == 0) || part.iter().all(|byte| *byte == 0xff) =>
        {
            "signature-range"
        }
        at::SIGNATURE_R | at::SIGNATURE_S => "signature",
        offset if offset > at::SIGNATURE_R => "signature-encoding",
        _ => "signature",
    }
}

type Take = fn(&Endorsements) -> Option<&[u8]>;
type Put = fn(Endorsements, Vec<u8>) -> Result<Endorsements, crate::EvidenceError>;

fn certificates(case: &str, subject: &Subject, bench: &mut Bench) {
    let parts: [(&str, Take, Put, [&'static str; 3]); 3] = [
        (
            "VEK",
            Endorsements::vek,
            Endorsements::with_vek,
            ["certificate-issuer", "vek-name", "certificate-signature"],
        ),
        (
            "intermediate",
            Endorsements::intermediate,
            Endorsements::with_intermediate,
            [
                "certificate-issuer",
                "intermediate-name",
                "certificate-signature",
            ],
        ),
        (
            "root",
            Endorsements::root,
            Endorsements::with_root,
            ["certificate-issuer", "root-name", "unknown-root"],
        ),
    ];
    for (part, take, put, [issuer, name, key]) in parts {
        let Some(der) = take(&subject.certificates) else {
            continue;
        };
        for field in certificate_fields(der, issuer, name, key) {
            if let Ok(certificates) = put(subject.certificates.clone(), turned(der, &field)) {
                let mut other = subject.clone();
                other.certificates = certificates;
                let change = format!("{part}, {}: one bit turned", field.name);
                bench.try_one(case, change, field.reason, &other);
            }
        }
    }
}

/// What is asked for, changed so that this report does not meet it.
fn asked(case: &str, subject: &Subject, claims: &SnpClaims, bench: &mut Bench) {
    let mut ask = |change: &str, reason: &str, edit: &dyn Fn(&mut SnpReferenceValues)| {
        let mut other = subject.clone();
        edit(&mut other.reference.sev_snp);
        bench.try_one(case, format!("asked: {change}"), reason, &other);
    };
    let digest = Some(vec![Hex([0x77; 48])]);
    ask("another measurement", "snp.measurement", &|it| {
        it.measurements = digest.clone()
    });
    ask("no measurement", "snp.measurement", &|it| {
        it.measurements = Some(vec![])
    });
    ask("nothing of the measurement", "snp.measurement", &|it| {
        it.measurements = None
    });
    ask("other host data", "snp.host-data", &|it| {
        it.host_data = Some(vec![Hex([0x77; 32])])
    });
    ask("another ID key", "snp.id-key", &|it| {
        it.id_key_digests = digest.clone()
    });
    ask("another author key", "snp.author-key", &|it| {
        it.author_key_digests = digest.clone()
    });
    ask("a newer guest", "snp.guest-svn", &|it| {
        it.minimum_guest_svn = Some(u32::MAX)
    });
    ask("another generation", "snp.product", &|it| {
        it.products = Some(vec![])
    });
    ask("another chip", "snp.chip-id", &|it| {
        it.chip_ids = Some(vec![Hex([0x77; 64])])
    });
    ask("another provider", "snp.provider", &|it| {
        it.providers = Some(vec!["CN=x".to_owned()])
    });
    ask("no minimum TCB", "snp.minimum-tcb", &|it| {
        it.minimum_tcb.clear()
    });
    ask("all mitigations", "snp.mitigations", &|it| {
        it.required_mitigations = Some(u64::MAX)
    });
    ask("revocation", "snp.revocation", &|it| {
        it.require_revocation_check = true
    });
    let tcb = claims.reported_tcb;
    let next = |svn: u8| svn.checked_add(1);
    let higher = [
        (
            "FMC",
            tcb.fmc.and_then(next).map(|svn| TcbVersion {
                fmc: Some(svn),
                ..tcb
            }),
        ),
        (
            "boot loader",
            next(tcb.bootloader).map(|bootloader| TcbVersion { bootloader, ..tcb }),
        ),
        ("TEE", next(tcb.tee).map(|tee| TcbVersion { tee, ..tcb })),
        (
            "SNP firmware",
            next(tcb.snp).map(|snp| TcbVersion { snp, ..tcb }),
        ),
        (
            "microcode",
            next(tcb.microcode).map(|microcode| TcbVersion { microcode, ..tcb }),
        ),
    ];
    for (component, floor) in higher {
        if let Some(floor) = floor {
            ask(&format!("newer {component}"), "snp.minimum-tcb", &|it| {
                it.minimum_tcb.insert(claims.product, floor);
            });
        }
    }
    for flag in PlatformFlag::ALL {
        let id = format!("snp.platform.{}", flag.name());
        if claims.platform.contains(&flag) {
            ask(&format!("{} off", flag.name()), &id, &|it| {
                it.forbidden_platform = vec![flag]
            });
        } else {
            ask(&format!("{} on", flag.name()), &id, &|it| {
                it.required_platform = vec![flag]
            });
        }
    }
    if let Some(lower) = claims.vmpl.checked_sub(1) {
        ask("a higher privilege", "snp.vmpl", &|it| it.max_vmpl = lower);
    }
    for byte in [0, 31, 32, 63] {
        let mut other = subject.clone();
        if let Some(byte) = other.report_data.get_mut(byte) {
            *byte ^= 1;
        }
        bench.try_one(
            case,
            format!("asked: other report data, byte {byte}"),
            "binding",
            &other,
        );
    }
}

fn times(case: &str, subject: &Subject, bench: &mut Bench) {
    let Ok(appraisal) = subject.appraise() else {
        return;
    };
    for (when, now, reason) in [
        (
            "the end",
            appraisal.not_after().plus_seconds(1),
            "certificate-expired",
        ),
        ("any certificate", UnixTime(0), "certificate-not-yet-valid"),
    ] {
        let mut other = subject.clone();
        other.now = now;
        let change = if now.0 == 0 { "before" } else { "after" };
        bench.try_one(case, format!("time: {change} {when}"), reason, &other);
    }
}

/// A genuine list of the root's, where there is one from a time at which the key was valid.
fn revocation(
    case: &str,
    subject: &Subject,
    vectors: &Vectors,
    bench: &mut Bench,
) -> Result<(), SelftestError> {
    let root = subject
        .certificates
        .root()
        .and_then(|der| Certificate::parse(der).ok());
    let vek = subject
        .certificates
        .vek()
        .and_then(|der| Certificate::parse(der).ok());
    let (Some(root), Some(vek)) = (root, vek) else {
        return Ok(());
    };
    for file in vectors.files("snp/crl")? {
        let der = vectors.read(&file)?;
        let Ok(crl) = Crl::parse(&der) else {
            return Err(vectors.wrong(&file, "not a list"));
        };
        let now = crl.this_update.max(vek.not_before).plus_seconds(DAY);
        let Some(end) = crl.next_update else {
            continue;
        };
        if crl.issuer != root.subject || now > end || now > vek.not_after {
            continue;
        }
        let mut listed = subject.clone();
        listed.crls = vec![der.clone()];
        listed.now = now;
        listed.reference.sev_snp.require_revocation_check = true;
        if !bench.starts_affirmed(case, &listed) {
            continue;
        }
        for field in crl_fields(&der) {
            let mut other = listed.clone();
            other.crls = vec![turned(&der, &field)];
            let change = format!("CRL, {}: one bit turned", field.name);
            bench.try_one(case, change, field.reason, &other);
        }
        if end < vek.not_after {
            let mut other = listed.clone();
            other.now = end.plus_seconds(1);
            bench.try_one(
                case,
                "time: after the CRL".to_owned(),
                "crl-expired",
                &other,
            );
        }
        if crl.this_update > vek.not_before {
            let mut other = listed.clone();
            other.now = crl.this_update.minus_seconds(1);
            bench.try_one(
                case,
                "time: before the CRL".to_owned(),
                "crl-not-yet-valid",
                &other,
            );
        }
        let mut other = listed;
        other.crls = vec![vec![0x30, 0]];
        bench.try_one(case, "CRL: not a list".to_owned(), "crl-malformed", &other);
    }
    Ok(())
}

/// Claims that are authentic and unwelcome, which only a signer can make: here the simulated one.
fn claims_of_the_guest(bench: &mut Bench) -> Result<(), SelftestError> {
    const CASE: &str = "simulated";
    const NOW: UnixTime = UnixTime(1_790_000_000);
    const DATA: [u8; 64] = [7; 64];
    let reference = SimulatedTee::new(NOW)?.reference_values();
    let mut claim = |change: &str, reason: &str, tee: SimulatedTeeBuilder| {
        let evidence = tee.build()?.attest(&DATA)?;
        let subject = Subject {
            tee: evidence.tee(),
            report: evidence.report().to_vec(),
            certificates: evidence.endorsements().clone(),
            crls: Vec::new(),
            reference: reference.clone(),
            report_data: DATA,
            now: NOW,
            accepts_simulated: true,
        };
        if reason.is_empty() {
            bench.starts_affirmed(CASE, &subject);
        } else {
            bench.try_one(CASE, format!("signed: {change}"), reason, &subject);
        }
        Ok::<_, SelftestError>(())
    };
    let tee = || SimulatedTee::builder(NOW);
    let edit = |offset: usize, bytes: &'static [u8]| {
        tee().edit_report(move |report| {
            if let Some(part) = report.get_mut(offset..offset + bytes.len()) {
                part.copy_from_slice(bytes);
            }
        })
    };
    let older = TcbVersion {
        snp: DEFAULT_TCB.snp - 1,
        ..DEFAULT_TCB
    };
    let newer = TcbVersion {
        snp: DEFAULT_TCB.snp + 1,
        ..DEFAULT_TCB
    };
    claim("nothing", "", tee())?;
    claim("debug", "snp.policy.debug", tee().debug(true))?;
    claim(
        "migration agent",
        "snp.policy.migration-agent",
        tee().migration_agent(true),
    )?;
    claim(
        "policy bit 17 off",
        "snp.policy.reserved-one",
        edit(at::POLICY + 2, &[1]),
    )?;
    claim(
        "policy bit 40 on",
        "snp.policy.reserved",
        edit(at::POLICY + 5, &[1]),
    )?;
    claim(
        "SMT, which the policy forbids",
        "snp.policy.smt",
        edit(at::POLICY + 2, &[2]),
    )?;
    claim("VMPL 1", "snp.vmpl", tee().vmpl(1))?;
    claim(
        "asked for by the host",
        "host-requested",
        tee().vmpl(u32::MAX),
    )?;
    claim(
        "another measurement",
        "snp.measurement",
        tee().measurement([1; 48]),
    )?;
    claim("older TCB", "snp.minimum-tcb", tee().tcb(older))?;
    claim(
        "current below committed",
        "snp.tcb-order",
        tee().current_tcb(older),
    )?;
    claim(
        "launched under more than runs",
        "snp.tcb-order",
        tee().launch_tcb(newer),
    )?;
    claim(
        "committed below reported",
        "snp.tcb-order",
        tee().committed_tcb(older),
    )?;
    claim(
        "firmware not committed",
        "snp.provisional-firmware",
        edit(at::CURRENT_FIRMWARE, &[44]),
    )?;
    claim(
        "reported TCB of another key",
        "vek-tcb-mismatch",
        tee().reported_tcb(older),
    )?;
    claim(
        "key of another TCB",
        "vek-tcb-mismatch",
        tee().vek_tcb(newer),
    )?;
    claim(
        "key of another chip",
        "chip-id-mismatch",
        tee().vek_chip_id(&[0x5b; 64]),
    )?;
    claim(
        "chip masked",
        "chip-id-mismatch",
        edit(at::CHIP_ID, &[0; 64]),
    )?;
    claim(
        "key names half a chip",
        "vek-extension",
        tee().vek_chip_id(&[0x5a; 8]),
    )?;
    claim(
        "unknown platform bit",
        "snp.platform.reserved",
        tee().platform_info(0x125),
    )?;
    claim("version 1", "report-version", tee().report_version(1))?;
    claim("version 6", "snp.report-version", tee().report_version(6))?;
    claim(
        "another algorithm",
        "signature-algorithm",
        edit(at::SIGNATURE_ALGO, &[2]),
    )?;
    claim(
        "no signing key",
        "unsigned",
        edit(at::SIGNER_INFO, &[7 << 2]),
    )?;
    claim("chip key masked", "unsigned", edit(at::SIGNER_INFO, &[2]))?;
    claim(
        "reserved signing key",
        "signing-key",
        edit(at::SIGNER_INFO, &[2 << 2]),
    )?;
    claim(
        "the other kind of key",
        "signer-mismatch",
        edit(at::SIGNER_INFO, &[1 << 2]),
    )?;
    claim(
        "another generation",
        "product-mismatch",
        edit(at::CPUID, &[0x1a]),
    )?;
    claim(
        "reserved byte in use",
        "snp.reserved",
        edit(at::RESERVED_SIGNER, &[1]),
    )?;
    claim(
        "unused TCB byte in use",
        "snp.reserved",
        edit(at::CURRENT_TCB + 3, &[1]),
    )?;
    claim("key expired", "certificate-expired", tee().expired_vek())?;
    let (soon, late) = (NOW.plus_seconds(1), NOW.plus_seconds(DAY));
    claim(
        "key of tomorrow",
        "certificate-not-yet-valid",
        tee().vek_validity(soon, late),
    )?;
    claim(
        "another root of the same name",
        "unknown-root",
        tee().other_root(),
    )?;
    claim(
        "another challenge answered",
        "binding",
        tee().answering([8; 64]),
    )
}
