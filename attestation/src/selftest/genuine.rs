//! Evidence as it came, and the verdict that each piece should get.

use super::vectors::{Case, Expected, Vectors};
use super::{Finding, Row, Section, SelftestError};
use crate::appraisal::{Appraisal, Claims, Outcome, TrustTier};
use crate::encoding::Hex;
use crate::evidence::{Evidence, Tee};
use crate::tee::tdx::EventLog;
use crate::time::UnixTime;
use crate::verifier::{AppraiseError, Verifier};

/// 2026-09-01, at which every genuine PCK certificate is valid.
const LATER: UnixTime = UnixTime(1_788_220_800);
/// 2027-01-01, at which the VEK certificates that forgers changed would be valid.
const LATER_STILL: UnixTime = UnixTime(1_798_761_600);

pub(super) fn rows(vectors: &Vectors) -> Result<Vec<Row>, SelftestError> {
    let mut rows = Vec::new();
    for case in vectors.snp()?.iter().chain(&vectors.tdx()?) {
        rows.push(believed(case));
    }
    for file in vectors.files("snp/reports-no-cert")? {
        let bare = vectors.bare(Tee::SevSnp, &file)?;
        rows.push(refused(&file, "vek-missing", &bare, LATER));
    }
    doctored(vectors, &mut rows)?;
    for file in vectors.files("tdx/quotes")? {
        rows.push(alone(vectors, &file, 0)?);
    }
    for (file, padding) in [
        ("tdx/quotes-padded/gcp-quote-8000B-buffer.dat", 3065),
        ("tdx/quotes-padded/gcp-quote-8000B-buffer-2.dat", 3065),
        ("tdx/negative/quote_v4_trailing70.bin", 70),
    ] {
        rows.push(alone(vectors, file, padding)?);
    }
    for (file, code) in [
        // The root of Intel's pre-production platforms, and a root of Intel's own tests.
        (
            "tdx/negative/sprpreprod-v4-baremetal-3f49cfeb.dat",
            "unknown-root",
        ),
        (
            "tdx/negative/testroot-v4-baremetal-aa2cafad.dat",
            "pck-chain-malformed",
        ),
        (
            "tdx/negative/testroot-v4-baremetal-c04eb01f.dat",
            "pck-chain-malformed",
        ),
    ] {
        rows.push(refused(file, code, &vectors.bare(Tee::Tdx, file)?, LATER));
    }
    doctored_collateral(vectors, &mut rows)?;
    // A quote of SGX is genuine, and is not what was asked for.
    for folder in ["sgx/quotes", "sgx/negative"] {
        for file in vectors.files(folder)? {
            let bare = vectors.bare(Tee::Tdx, &file)?;
            rows.push(refused(&file, "quote-version", &bare, LATER));
        }
    }
    event_logs(vectors, &mut rows)?;
    Ok(rows)
}

/// Appraises without expecting anything.
fn appraise(
    evidence: &Evidence,
    report_data: &[u8; 64],
    now: UnixTime,
) -> Result<Appraisal, AppraiseError> {
    // A verifier without endorsements or lists has nothing that it could refuse to be built with.
    match Verifier::builder().build() {
        Ok(verifier) => verifier.appraise_bound_to(evidence, report_data, now),
        Err(_) => Err(AppraiseError::Binding),
    }
}

fn believed(case: &Case) -> Row {
    let verdict = appraise(&case.evidence, &case.report_data, case.now);
    let finding = match &verdict {
        Ok(appraisal) if is_as_expected(appraisal, &case.expected) => Finding::AsExpected,
        _ => Finding::Wrong,
    };
    row(&case.name, in_words(&case.expected), &verdict, finding)
}

fn is_as_expected(appraisal: &Appraisal, expected: &Expected) -> bool {
    let tier = if expected.failing.is_empty() {
        TrustTier::Warning
    } else {
        TrustTier::Contraindicated
    };
    let fails = |id: &&str| {
        appraisal
            .check(id)
            .is_some_and(|it| it.outcome == Outcome::Fail)
    };
    let advisories = match appraisal.claims() {
        Claims::Tdx(claims) => Some(&claims.advisories),
        _ => None,
    };
    appraisal.tier() == tier
        && expected.failing.iter().all(fails)
        && expected
            .status
            .is_none_or(|status| appraisal.tcb_status() == status)
        && (expected.advisories.is_none() || expected.advisories.as_ref() == advisories)
}

fn in_words(expected: &Expected) -> String {
    let status = expected.status.map_or("any status", |status| status.name());
    match expected.failing.as_slice() {
        [] => format!("warning, {status}"),
        failing => format!("contraindicated by {}, {status}", failing.join(", ")),
    }
}

/// Reports and certificates that somebody changed, each under the chain of a genuine Milan.
fn doctored(vectors: &Vectors, rows: &mut Vec<Row>) -> Result<(), SelftestError> {
    let genuine = vectors.snp()?;
    let chain = genuine
        .iter()
        .find(|case| case.name.contains("milan-v2-baremetal"))
        .ok_or_else(|| vectors.wrong("snp/expected.json", "no report of a Milan"))?;
    for file in vectors.files("snp/negative")? {
        let endorsements = chain.evidence.endorsements().clone();
        let (evidence, code) = if file.ends_with(".der") {
            let too_large = |_| vectors.wrong(&file, "size");
            let endorsements = endorsements
                .with_vek(vectors.read(&file)?)
                .map_err(too_large)?;
            let evidence = vectors.endorsed(Tee::SevSnp, &chain.name, endorsements)?;
            (evidence, "certificate-signature")
        } else {
            let evidence = vectors.endorsed(Tee::SevSnp, &file, endorsements)?;
            let corrupt = file.ends_with("guest_report_corrupt.bin");
            (
                evidence,
                if corrupt {
                    "report-length"
                } else {
                    "signature"
                },
            )
        };
        rows.push(refused(&file, code, &evidence, LATER_STILL));
    }
    Ok(())
}

/// A quote without collateral: authentic, and its status unknown.
fn alone(vectors: &Vectors, file: &str, padding: usize) -> Result<Row, SelftestError> {
    let evidence = vectors.bare(Tee::Tdx, file)?;
    let data = evidence.claimed_report_data().unwrap_or([0; 64]);
    let verdict = appraise(&evidence, &data, LATER);
    let finding = match verdict.as_ref().map(Appraisal::claims) {
        Ok(Claims::Tdx(claims)) if claims.padding == padding => Finding::AsExpected,
        _ => Finding::Wrong,
    };
    Ok(row(
        file,
        "believed, unknown status".to_owned(),
        &verdict,
        finding,
    ))
}

fn doctored_collateral(vectors: &Vectors, rows: &mut Vec<Row>) -> Result<(), SelftestError> {
    let cases = vectors.tdx()?;
    let case = cases.iter().find(|case| case.name.starts_with("46ca3f90"));
    let case = case.ok_or_else(|| vectors.wrong("tdx/cases.json", "no quote 46ca3f90"))?;
    for (file, code) in [
        (
            "tdx/negative/tcbinfo-tdx-c0806f000000-eval18-2026-03-16-9662895e.json",
            "collateral-signature",
        ),
        (
            "tdx/negative/tcbinfo-tdx-ed742af8adf5-eval0-2021-08-06-186c3c9c.json",
            "collateral-signature",
        ),
    ] {
        let too_large = |_| vectors.wrong(file, "size");
        let endorsements = case.evidence.endorsements().clone();
        let endorsements = endorsements
            .with_tcb_info(vectors.read(file)?)
            .map_err(too_large)?;
        let quote = case.evidence.report().to_vec();
        let evidence = Evidence::new(Tee::Tdx, quote, endorsements).map_err(too_large)?;
        rows.push(refused(file, code, &evidence, case.now));
    }
    Ok(())
}

/// Logs against the registers that another implementation replayed them to.
fn event_logs(vectors: &Vectors, rows: &mut Vec<Row>) -> Result<(), SelftestError> {
    const LIST: &str = "eventlog/replay.json";
    let replayed = vectors.json(LIST)?;
    let logs = replayed
        .as_object()
        .ok_or_else(|| vectors.wrong(LIST, "not an object"))?;
    for (file, expected) in logs.iter().filter(|(file, _)| file.contains("ccel")) {
        let bytes = vectors.read(file)?;
        let of_rtmr = |index: usize| {
            let digest = expected
                .get("sha384")?
                .get(index.saturating_add(1).to_string())?;
            digest.as_str()?.parse::<Hex<48>>().ok()
        };
        let expected = if file.contains("sm3") {
            "event-log-algorithm".to_owned()
        } else {
            let registers: [_; 4] = std::array::from_fn(|it| of_rtmr(it).unwrap_or(Hex([0; 48])));
            shortly(&registers)
        };
        let seen = match EventLog::parse(&bytes) {
            Ok(log) => shortly(log.replay().values()),
            Err(error) => error.code().to_owned(),
        };
        let finding = if seen == expected {
            Finding::AsExpected
        } else {
            Finding::Wrong
        };
        rows.push(Row {
            section: Section::Genuine,
            case: file.clone(),
            change: String::new(),
            expected,
            seen,
            finding,
        });
    }
    Ok(())
}

fn shortly(registers: &[Hex<48>; 4]) -> String {
    let short = registers.iter().map(|register| {
        let mut digits = register.to_string();
        digits.truncate(12);
        digits
    });
    short.collect::<Vec<_>>().join(" ")
}

fn refused(file: &str, code: &str, evidence: &Evidence, now: UnixTime) -> Row {
    let data = evidence.claimed_report_data().unwrap_or([0; 64]);
    let verdict = appraise(evidence, &data, now);
    let finding = match &verdict {
        Err(error) if error.code() == code => Finding::AsExpected,
        _ => Finding::Wrong,
    };
    row(file, format!("refused: {code}"), &verdict, finding)
}

fn row(
    case: &str,
    expected: String,
    verdict: &Result<Appraisal, AppraiseError>,
    finding: Finding,
) -> Row {
    let seen = match verdict {
        Ok(appraisal) => {
            let tier = appraisal.tier().name();
            format!("{tier}, {}", appraisal.tcb_status().name())
        }
        Err(error) => format!("refused: {}", error.code()),
    };
    Row {
        section: Section::Genuine,
        case: case.to_owned(),
        change: String::new(),
        expected,
        seen,
        finding,
    }
}
