//! Our verdicts beside those of `dcap-qvl` 0.7.1 and `sev` 8.0.0, on every genuine vector.
//!
//! The vectors are not part of this repository: they are read from `$CASEMATE_VECTORS`, or else
//! from `../shared/vectors` beside the workspace. Where they are missing these tests say so and
//! pass, except under `CI`.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use attestation::selftest::{Case, Vectors};
use attestation::{
    Appraisal, AppraiseError, Claims, Evidence, TcbStatus, Tee, TrustTier, Verifier,
};
use differential::{TdxVerdict, snp_verdict, tdx_collateral, tdx_verdict};

fn vectors() -> Option<Vectors> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors");
    let root = std::env::var_os("CASEMATE_VECTORS").map_or(beside, PathBuf::from);
    if root.join("snp").is_dir() {
        return Some(Vectors::open(root).unwrap());
    }
    let missing = format!("no vectors in {}", root.display());
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    println!("skipped: {missing}; set CASEMATE_VECTORS");
    None
}

fn appraise(case: &Case, evidence: &Evidence) -> Result<Appraisal, AppraiseError> {
    let verifier = Verifier::builder().build().unwrap();
    verifier.appraise_bound_to(evidence, &case.report_data, case.now)
}

/// Where our verdict differs from that of `dcap-qvl`, and why ours is the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Difference {
    /// SEPT_VE_DISABLE clear is an error there, whatever the caller allows, so that nothing is said
    /// of all older TDs of Azure. Here it contraindicates unless the relying party allows it, and
    /// the status is told all the same.
    SeptVe,
    /// A service TD or a debug guest is an error there unless allowed. Here the quote is authentic,
    /// and the check contraindicates.
    ServiceTdOrDebug,
    /// A platform older than every level is an error there. Here it is the status `unknown`, which
    /// contraindicates, so that the appraisal can say what was seen.
    NoLevel,
    /// Out of date is `Ok` there. Here it is a warning.
    OutOfDateIsOk,
}

#[test]
fn dcap_qvl_agrees_but_for_differences_that_are_argued() {
    let Some(vectors) = vectors() else {
        return;
    };
    let root = vectors.read("tdx/ca/intel-sgx-root-ca.der").unwrap();
    let mut differences = std::collections::BTreeMap::<Difference, usize>::new();
    let (mut cases, mut agreed) = (0, 0);
    for case in vectors.tdx().unwrap() {
        let crls: Vec<&[u8]> = case.evidence.crls().collect();
        let endorsements = case.evidence.endorsements();
        let collateral = tdx_collateral(endorsements, [crls[0], crls[1]], &root).unwrap();
        let theirs = |lenient| tdx_verdict(case.evidence.report(), &collateral, case.now, lenient);
        let ours = appraise(&case, &case.evidence).unwrap();
        cases += 1;
        match difference(&theirs(false), &theirs(true), &ours, &case.name) {
            None => agreed += 1,
            Some(difference) => *differences.entry(difference).or_default() += 1,
        }
    }
    println!("{cases} cases, {agreed} alike, {differences:?}");
    assert!(cases >= 102);
    assert_eq!(agreed, 46, "up to date here and there");
    let expected = [
        (Difference::SeptVe, 24),
        (Difference::ServiceTdOrDebug, 5),
        (Difference::NoLevel, 15),
        (Difference::OutOfDateIsOk, 12),
    ];
    assert_eq!(differences, expected.into());
}

/// The listed difference between the verdicts of one case; panics on any other.
fn difference(
    strict: &Result<TdxVerdict, String>,
    lenient: &Result<TdxVerdict, String>,
    ours: &Appraisal,
    name: &str,
) -> Option<Difference> {
    let status = |verdict: &TdxVerdict| match verdict.status.as_str() {
        "UpToDate" => TcbStatus::UpToDate,
        "OutOfDate" => TcbStatus::OutOfDate,
        other => panic!("{name}: {other}"),
    };
    let Claims::Tdx(claims) = ours.claims() else {
        panic!("{name}: not TDX");
    };
    if let Ok(verdict) = lenient {
        assert_eq!(ours.tcb_status(), status(verdict), "{name}");
        assert_eq!(claims.advisories, verdict.advisories, "{name}");
    }
    let contraindicated = ours.tier() == TrustTier::Contraindicated;
    match strict {
        Ok(verdict) if verdict.status == "UpToDate" => {
            // No reference values: nothing more than a warning on either side.
            assert_eq!(ours.tier(), TrustTier::Warning, "{name}");
            None
        }
        Ok(_) => {
            assert_eq!(ours.tier(), TrustTier::Warning, "{name}");
            Some(Difference::OutOfDateIsOk)
        }
        Err(error) if error.contains("SEPT_VE_DISABLE") => {
            assert!(contraindicated && lenient.is_err(), "{name}");
            Some(Difference::SeptVe)
        }
        Err(error) if error.contains("service TD") || error.contains("Debug") => {
            assert!(contraindicated && lenient.is_ok(), "{name}");
            Some(Difference::ServiceTdOrDebug)
        }
        Err(error) if error.contains("No matching TCB level") => {
            assert!(contraindicated, "{name}");
            assert_eq!(ours.tcb_status(), TcbStatus::Unknown, "{name}");
            Some(Difference::NoLevel)
        }
        Err(error) => panic!("{name}: {error}"),
    }
}

#[test]
fn no_changed_quote_is_believed_that_dcap_qvl_refuses() {
    let Some(vectors) = vectors() else {
        return;
    };
    let root = vectors.read("tdx/ca/intel-sgx-root-ca.der").unwrap();
    let cases = vectors.tdx().unwrap();
    let case = cases
        .iter()
        .find(|it| it.name == "cf77a6e9/c5e1117e")
        .unwrap();
    let crls: Vec<&[u8]> = case.evidence.crls().collect();
    let collateral =
        tdx_collateral(case.evidence.endorsements(), [crls[0], crls[1]], &root).unwrap();
    let mut theirs_alone = Vec::new();
    for at in (0..case.evidence.report().len()).step_by(13) {
        let mut quote = case.evidence.report().to_vec();
        quote[at] ^= 0x04;
        let theirs = tdx_verdict(&quote, &collateral, case.now, false);
        let evidence =
            Evidence::new(Tee::Tdx, quote, case.evidence.endorsements().clone()).unwrap();
        let ours = appraise(case, &evidence);
        assert!(ours.is_err(), "byte {at}");
        if theirs.is_ok() {
            theirs_alone.push(at);
        }
    }
    // There the root in the quote is not looked at, and the chain ends in a root of its own.
    // Nor is how the line before it is spelt.
    let end = b"-----END CERTIFICATE-----";
    let quote = case.evidence.report();
    let mut ends = (0..quote.len()).filter(|at| quote[*at..].starts_with(end));
    let root = ends.nth(1).unwrap();
    assert!(
        theirs_alone.iter().all(|at| *at >= root),
        "{theirs_alone:?}"
    );

    let mut followed = case.evidence.report().to_vec();
    followed.push(1);
    assert!(tdx_verdict(&followed, &collateral, case.now, false).is_ok());
    let evidence = Evidence::new(Tee::Tdx, followed, case.evidence.endorsements().clone());
    let refusal = appraise(case, &evidence.unwrap()).unwrap_err();
    assert_eq!(refusal.code(), "quote-trailing");
}

#[test]
fn sev_agrees_on_every_report_that_it_can_read() {
    let Some(vectors) = vectors() else {
        return;
    };
    let (mut agreed, mut unreadable) = (0, Vec::new());
    for case in vectors.snp().unwrap() {
        let ours = appraise(&case, &case.evidence);
        assert!(ours.is_ok(), "{}", case.name);
        match theirs(&case, case.evidence.report()) {
            Ok(()) => agreed += 1,
            Err(error) if error.contains("MASK_CHIP_ID") => unreadable.push(case.name.clone()),
            Err(error) => panic!("{}: {error}", case.name),
        }
    }
    println!("{agreed} alike; not readable there: {unreadable:?}");
    assert!(agreed >= 27);
    // Version 2 with a masked chip, as AWS has it: there the layout of the TCB is told by the chip's
    // identity. Here by the root.
    assert!(
        unreadable
            .iter()
            .all(|name| name.contains("milan-v2-aws-vlek"))
    );
    assert!(!unreadable.is_empty());
}

#[test]
fn no_changed_report_is_believed_that_sev_refuses() {
    let Some(vectors) = vectors() else {
        return;
    };
    let cases = vectors.snp().unwrap();
    let case = cases
        .iter()
        .find(|it| it.name.contains("turin-v5"))
        .unwrap();
    let mut theirs_alone = Vec::new();
    for at in (0..case.evidence.report().len()).step_by(29) {
        let mut report = case.evidence.report().to_vec();
        report[at] ^= 0x04;
        let theirs = theirs(case, &report);
        let endorsements = case.evidence.endorsements().clone();
        let evidence = Evidence::new(Tee::SevSnp, report, endorsements).unwrap();
        assert!(appraise(case, &evidence).is_err(), "byte {at:#x}");
        if theirs.is_ok() {
            theirs_alone.push(at);
        }
    }
    // There a re-encoding is verified and what is unused in the signature is not looked at.
    assert!(!theirs_alone.is_empty());
    let unused = |at: &usize| (0x2d0..0x2e8).contains(at) || *at >= 0x318;
    assert!(theirs_alone.iter().all(unused), "{theirs_alone:x?}");
}

fn theirs(case: &Case, report: &[u8]) -> Result<(), String> {
    let endorsements = case.evidence.endorsements();
    snp_verdict(
        report,
        endorsements.vek().unwrap(),
        endorsements.intermediate().unwrap(),
        endorsements.root().unwrap(),
    )
}
