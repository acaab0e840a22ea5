//! Collateral: whether it counts, and what follows from its levels.

use proptest::prelude::*;
use serde_json::json;

use super::forge::{Key, at, date};
use super::*;
use crate::appraisal::TcbStatus;

fn status(edit: impl FnOnce(&mut Forge)) -> (TcbStatus, TrustTier) {
    let mut forge = Forge::new();
    edit(&mut forge);
    let appraisal = forge.appraise().unwrap();
    (appraisal.tcb_status(), appraisal.tier())
}

const OUT_OF_DATE: (TcbStatus, TrustTier) = (TcbStatus::OutOfDate, TrustTier::Warning);
const UNSUPPORTED: (TcbStatus, TrustTier) = (TcbStatus::Unknown, TrustTier::Contraindicated);
const REVOKED: (TcbStatus, TrustTier) = (TcbStatus::Revoked, TrustTier::Contraindicated);
const UP_TO_DATE: (TcbStatus, TrustTier) = (TcbStatus::UpToDate, TrustTier::Affirming);

/// Sets both TEE_TCB_SVNs.
fn svn(forge: &mut Forge, svn: [u8; 3]) {
    forge.put(at::TEE_TCB_SVN, &svn);
    forge.put(at::TEE_TCB_SVN_2, &svn);
}

#[test]
fn without_collateral_a_quote_is_believed_and_its_tcb_unknown() {
    let verdict = status(|forge| forge.with_collateral = false);
    assert_eq!(verdict, (TcbStatus::Unknown, TrustTier::Warning));
}

#[test]
fn collateral_is_signed_by_the_certified_key() {
    let code = refused(|forge| forge.tcb_signing = Key::new());
    assert_eq!(code, "collateral-signature");
}

#[test]
fn half_of_the_collateral_is_not_collateral() {
    let forge = Forge::new();
    let whole = forge.evidence();
    let endorsements = crate::Endorsements::default()
        .with_tcb_info(whole.endorsements().tcb_info().unwrap().to_vec())
        .unwrap();
    let half = crate::Evidence::new(crate::Tee::Tdx, forge.quote(), endorsements).unwrap();
    let error = forge.appraise_as(&half).unwrap_err();
    assert_eq!(error.code(), "collateral-missing");
    let endorsements = crate::Endorsements::default()
        .with_tcb_info(whole.endorsements().tcb_info().unwrap().to_vec())
        .and_then(|it| it.with_qe_identity(b"{}".to_vec()))
        .unwrap();
    let unsigned = crate::Evidence::new(crate::Tee::Tdx, forge.quote(), endorsements).unwrap();
    let error = forge.appraise_as(&unsigned).unwrap_err();
    assert_eq!(error.code(), "tcb-signing-missing");
}

#[test]
fn the_newest_collateral_counts_whoever_brought_it() {
    let mut forge = Forge::new();
    let bundled = forge.collateral();
    forge.tcb_info["tcbEvaluationDataNumber"] = json!(19);
    forge.tcb_info["tcbLevels"][1]["tcbStatus"] = json!("OutOfDate");
    let newer = forge.collateral();
    forge.tcb_info["fmspc"] = json!("000000000000");
    let foreign = forge.collateral();
    forge.tcb_info["fmspc"] = json!("90C06F000000");
    forge.tcb_info["nextUpdate"] = json!(date(NOW.minus_seconds(1)));
    let expired = forge.collateral();

    let quote = forge.quote();
    let mut status = |with: &crate::Endorsements, stored: &[&crate::Endorsements]| {
        forge.stored = stored.iter().copied().cloned().collect();
        let mut evidence =
            crate::Evidence::new(crate::Tee::Tdx, quote.clone(), with.clone()).unwrap();
        for crl in &forge.crls {
            evidence = evidence.with_crl(crl.clone()).unwrap();
        }
        let verdict = forge.appraise_as(&evidence);
        verdict
            .map(|it| it.tcb_status())
            .map_err(|error| error.code())
    };
    let nothing = crate::Endorsements::default();
    assert_eq!(status(&nothing, &[&bundled]), Ok(TcbStatus::UpToDate));
    assert_eq!(status(&nothing, &[&foreign]), Ok(TcbStatus::Unknown));
    assert_eq!(
        status(&nothing, &[&foreign, &newer, &bundled, &expired]),
        Ok(TcbStatus::OutOfDate)
    );
    // Evidence does not choose the age of what it is judged by.
    assert_eq!(status(&bundled, &[&newer]), Ok(TcbStatus::OutOfDate));
    assert_eq!(status(&newer, &[&bundled]), Ok(TcbStatus::OutOfDate));
    assert_eq!(status(&nothing, &[&expired]), Err("collateral-expired"));
    assert_eq!(status(&foreign, &[&bundled]), Err("fmspc-mismatch"));
}

#[test]
fn collateral_about_something_else_is_refused() {
    let info = |field: &str, value| refused(|forge| forge.tcb_info[field] = value);
    assert_eq!(info("id", json!("SGX")), "collateral-kind");
    assert_eq!(info("version", json!(2)), "collateral-version");
    assert_eq!(info("fmspc", json!("90C06F000001")), "fmspc-mismatch");
    assert_eq!(info("pceId", json!("0001")), "pceid-mismatch");
    assert_eq!(info("fmspc", json!("90C06F")), "collateral-malformed");
    assert_eq!(info("tcbType", json!(1)), "collateral-malformed");
    assert_eq!(
        info("issueDate", json!("yesterday")),
        "collateral-malformed"
    );
    assert_eq!(info("tcbLevels", json!(null)), "collateral-malformed");
    let qe = |field: &str, value| refused(|forge| forge.qe_identity[field] = value);
    assert_eq!(qe("id", json!("QE")), "collateral-kind");
    assert_eq!(qe("version", json!(1)), "collateral-version");
    assert_eq!(qe("isvprodid", json!(1)), "qe-identity");
}

#[test]
fn collateral_counts_from_its_issue_to_its_next_update() {
    let dates: [fn(&mut Forge) -> &mut serde_json::Value; 2] =
        [|forge| &mut forge.tcb_info, |forge| &mut forge.qe_identity];
    for document in dates {
        let mut forge = Forge::new();
        document(&mut forge)["nextUpdate"] = json!(date(NOW));
        assert_eq!(forge.appraise().unwrap().not_after(), NOW);
        document(&mut forge)["nextUpdate"] = json!(date(NOW.minus_seconds(1)));
        assert_eq!(code(&forge), "collateral-expired");
        let mut forge = Forge::new();
        document(&mut forge)["issueDate"] = json!(date(NOW.plus_seconds(1)));
        assert_eq!(code(&forge), "collateral-not-yet-valid");
        let mut forge = Forge::new();
        forge.reference.minimum_tcb_evaluation = Some(18);
        assert!(forge.appraise().is_ok());
        document(&mut forge)["tcbEvaluationDataNumber"] = json!(17);
        assert_eq!(code(&forge), "collateral-evaluation");
    }
}

#[test]
fn the_platform_is_judged_by_its_certificate() {
    assert_eq!(status(|_| {}), UP_TO_DATE);
    let component = |at: usize, svn| status(|forge| forge.extensions.components[at] = svn);
    assert_eq!(component(0, 2), OUT_OF_DATE);
    assert_eq!(component(0, 1), UNSUPPORTED);
    assert_eq!(component(15, 9), UP_TO_DATE);
    assert_eq!(status(|forge| forge.extensions.pce_svn = 12), OUT_OF_DATE);
    assert_eq!(status(|forge| forge.extensions.pce_svn = 4), UNSUPPORTED);
    // What the header says of the same is not believed.
    assert_eq!(status(|forge| forge.header[8..12].fill(0xff)), UP_TO_DATE);
    assert_eq!(
        status(|forge| {
            forge.extensions.pce_svn = 4;
            forge.header[8..12].fill(0xff);
        }),
        UNSUPPORTED
    );
    assert_eq!(status(|forge| svn(forge, [6, 1, 2])), OUT_OF_DATE);
    assert_eq!(status(|forge| svn(forge, [6, 1, 1])), UNSUPPORTED);
}

#[test]
fn the_module_is_judged_by_the_identity_of_its_version() {
    // Five at the first component is what the platform's level asks for, which then does not count.
    assert_eq!(status(|forge| svn(forge, [4, 1, 3])), OUT_OF_DATE);
    assert_eq!(status(|forge| svn(forge, [3, 1, 3])), UNSUPPORTED);
    assert_eq!(status(|forge| svn(forge, [6, 2, 3])), UNSUPPORTED);
    // Version 0 has no identity, and the platform's level asks for five.
    assert_eq!(status(|forge| svn(forge, [5, 0, 3])), UP_TO_DATE);
    assert_eq!(status(|forge| svn(forge, [4, 0, 3])), UNSUPPORTED);
}

#[test]
fn the_quoting_enclave_is_judged_by_its_version() {
    assert_eq!(status(|forge| forge.put_qe(at::QE_SVN, &[5])), OUT_OF_DATE);
    assert_eq!(status(|forge| forge.put_qe(at::QE_SVN, &[3])), UNSUPPORTED);
}

#[test]
fn revoked_anywhere_is_final() {
    let edits: [fn(&mut Forge); 3] = [
        |forge| forge.tcb_info["tcbLevels"][1]["tcbStatus"] = json!("Revoked"),
        |forge| {
            let module = &mut forge.tcb_info["tdxModuleIdentities"][0];
            module["tcbLevels"][1]["tcbStatus"] = json!("Revoked");
        },
        |forge| forge.qe_identity["tcbLevels"][1]["tcbStatus"] = json!("Revoked"),
    ];
    for edit in edits {
        assert_eq!(status(edit), REVOKED);
    }
    assert_eq!(
        status(|forge| {
            forge.qe_identity["tcbLevels"][1]["tcbStatus"] = json!("Revoked");
            forge.extensions.pce_svn = 4;
        }),
        REVOKED
    );
}

#[test]
fn every_status_of_a_level_is_carried_over() {
    for (word, expected) in [
        ("SWHardeningNeeded", TcbStatus::SwHardeningNeeded),
        ("ConfigurationNeeded", TcbStatus::ConfigurationNeeded),
        (
            "ConfigurationAndSWHardeningNeeded",
            TcbStatus::ConfigurationAndSwHardeningNeeded,
        ),
        (
            "OutOfDateConfigurationNeeded",
            TcbStatus::OutOfDateConfigurationNeeded,
        ),
    ] {
        let verdict = status(|forge| forge.tcb_info["tcbLevels"][1]["tcbStatus"] = json!(word));
        assert_eq!(verdict, (expected, TrustTier::Warning));
    }
    let code = refused(|forge| forge.tcb_info["tcbLevels"][1]["tcbStatus"] = json!("Fine"));
    assert_eq!(code, "collateral-malformed");
}

#[test]
fn a_td_built_before_an_update_is_advised_to_relaunch() {
    let relaunch = status(|forge| forge.put(at::TEE_TCB_SVN, &[4, 1, 3]));
    assert_eq!(relaunch, (TcbStatus::TdRelaunchAdvised, TrustTier::Warning));
    let configured = status(|forge| {
        forge.put(at::TEE_TCB_SVN, &[4, 1, 3]);
        forge.tcb_info["tcbLevels"][1]["tcbStatus"] = json!("ConfigurationNeeded");
    });
    assert_eq!(
        configured,
        (
            TcbStatus::TdRelaunchAdvisedConfigurationNeeded,
            TrustTier::Warning
        )
    );
    // The other way round nothing was gained.
    let back = status(|forge| forge.put(at::TEE_TCB_SVN_2, &[4, 1, 3]));
    assert_eq!(back, OUT_OF_DATE);
    let unsupported = status(|forge| forge.put(at::TEE_TCB_SVN_2, &[3, 1, 3]));
    assert_eq!(unsupported, UNSUPPORTED);
}

#[test]
fn advisories_of_all_levels_come_together_and_are_no_failure_by_themselves() {
    let mut forge = Forge::new();
    forge.tcb_info["tcbLevels"][1]["advisoryIDs"] = json!(["INTEL-SA-00001"]);
    let appraisal = forge.appraise().unwrap();
    assert_eq!(appraisal.tier(), TrustTier::Affirming);
    assert_eq!(claims(&appraisal).advisories, ["INTEL-SA-00001"]);

    forge.extensions.components[0] = 2;
    svn(&mut forge, [4, 1, 3]);
    forge.put_qe(at::QE_SVN, &[5]);
    let appraisal = forge.appraise().unwrap();
    assert_eq!(
        claims(&appraisal).advisories,
        ["INTEL-SA-00999", "INTEL-SA-01036", "INTEL-SA-01079"]
    );
    // 2018-01-04, the oldest of the three.
    assert_eq!(claims(&appraisal).tcb_date, Some(UnixTime(1_515_024_000)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_collateral_makes_the_parsers_panic(
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        field in "[a-zA-Z]{1,12}",
        number in any::<i64>(),
    ) {
        use crate::tee::tdx::collateral::{QeIdentity, TcbInfo};
        let _ = TcbInfo::read(&noise, &[4; 65]);
        let _ = QeIdentity::read(&noise, &[4; 65]);
        // Signed nonsense is nonsense still.
        let mut forge = Forge::new();
        forge.tcb_info[field.as_str()] = json!(number);
        forge.tcb_info["tcbLevels"][0]["tcb"]["pcesvn"] = json!(number);
        forge.qe_identity["tcbLevels"][0]["tcb"]["isvsvn"] = json!(number);
        let _ = forge.appraise();
    }
}
