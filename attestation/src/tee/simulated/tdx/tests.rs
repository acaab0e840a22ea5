//! Every knob, by what the verifier says.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::appraisal::{Appraisal, TrustTier};
use crate::verifier::{AppraiseError, Verifier};

const NOW: UnixTime = UnixTime(1_790_000_000);
const DATA: [u8; 64] = [7; 64];

fn appraise(builder: SimulatedTdxBuilder) -> Result<Appraisal, AppraiseError> {
    let verifier = Verifier::builder()
        .reference_values(SimulatedTdx::new(NOW).unwrap().reference_values())
        .dangerous()
        .accept_simulated()
        .build()
        .unwrap();
    let evidence = builder.build().unwrap().attest(&DATA).unwrap();
    verifier.appraise_bound_to(&evidence, &DATA, NOW)
}

fn tdx() -> SimulatedTdxBuilder {
    SimulatedTdx::builder(NOW)
}

#[test]
fn a_guest_as_it_should_be_is_affirmed_in_every_form_and_said_to_be_simulated() {
    for form in [
        QuoteForm::V4,
        QuoteForm::V5Tdx10,
        QuoteForm::V5Tdx15,
        QuoteForm::V5Tdx15Extended,
    ] {
        let appraisal = appraise(tdx().quote_form(form)).unwrap();
        assert_eq!(appraisal.tier(), TrustTier::Affirming, "{form:?}");
        assert_eq!(appraisal.tee(), Tee::Simulated);
        assert!(appraisal.is_simulated());
        assert_eq!(appraisal.tcb_status(), TcbStatus::UpToDate);
        assert_eq!(appraisal.report_data(), &DATA);
    }
}

#[test]
fn nobody_believes_the_simulator_by_accident() {
    let evidence = tdx().build().unwrap().attest(&DATA).unwrap();
    let verifier = Verifier::builder().build().unwrap();
    let refusal = verifier.appraise_bound_to(&evidence, &DATA, NOW);
    assert_eq!(refusal.unwrap_err().code(), "unknown-root");
}

#[test]
fn the_anchor_is_the_stored_key() {
    let key = Key::from_pkcs8(ROOT_KEY).unwrap();
    let platform = Platform::new(key, NOW).unwrap();
    let der = platform
        .root
        .signed(&platform.certificates[0].tbs())
        .unwrap();
    let root = crate::endorsement::Certificate::parse(&der).unwrap();
    assert_eq!(crate::endorsement::key_digest(root.spki), anchor().spki);
}

#[test]
fn what_is_not_to_be_believed_is_refused() {
    let code = |builder: SimulatedTdxBuilder| appraise(builder).unwrap_err().code();
    let (before, after) = (NOW.minus_seconds(9), NOW.plus_seconds(9));
    let ended = NOW.minus_seconds(1);
    assert_eq!(code(tdx().other_root()), "unknown-root");
    assert_eq!(code(tdx().answering([8; 64])), "binding");
    assert_eq!(code(tdx().tamper_quote(|it| it[60] ^= 1)), "signature");
    assert_eq!(code(tdx().tamper_quote(|it| it.push(1))), "quote-trailing");
    assert_eq!(
        code(tdx().edit_enclave_report(|it| it[256] = 1)),
        "qe-identity"
    );
    assert_eq!(code(tdx().edit_report(|it| it[64] = 1)), "tdx-module");
    assert_eq!(code(tdx().other_family()), "fmspc-mismatch");
    assert_eq!(
        code(tdx().pck_validity(before, ended)),
        "certificate-expired"
    );
    assert_eq!(code(tdx().crls(before, after, true)), "revoked");
    assert_eq!(code(tdx().crls(before, ended, false)), "crl-expired");
    assert_eq!(
        code(tdx().collateral_validity(before, ended)),
        "collateral-expired"
    );
    assert_eq!(
        code(tdx().collateral_validity(after, after)),
        "collateral-not-yet-valid"
    );
}

#[test]
fn what_is_unwelcome_is_believed_and_limits_the_tier() {
    use TrustTier::{Contraindicated, Warning};
    let verdict = |id: &str, builder: SimulatedTdxBuilder| {
        let appraisal = appraise(builder).unwrap();
        assert_ne!(
            appraisal.check(id).unwrap().leaves,
            TrustTier::Affirming,
            "{id}"
        );
        appraisal.tier()
    };
    assert_eq!(
        verdict("tdx.attributes.debug", tdx().debug(true)),
        Contraindicated
    );
    assert_eq!(
        verdict("tdx.attributes.sept-ve-disable", tdx().attributes(0)),
        Contraindicated
    );
    assert_eq!(verdict("tdx.xfam.fixed", tdx().xfam(1)), Contraindicated);
    assert_eq!(
        verdict("tdx.mr-td", tdx().measurement([1; 48])),
        Contraindicated
    );
    assert_eq!(
        verdict("tdx.rtmr2", tdx().rtmrs([[1; 48]; 4])),
        Contraindicated
    );
    assert_eq!(
        verdict("tdx.mr-service-td", tdx().mr_service_td([1; 48])),
        Contraindicated
    );
    assert_eq!(verdict("tdx.tcb.platform", tdx().pce_svn(5)), Warning);
    assert_eq!(
        verdict("tdx.tcb.platform", tdx().pce_svn(1)),
        Contraindicated
    );
    assert_eq!(
        verdict("tdx.tcb.quoting-enclave", tdx().quoting_enclave_svn(4)),
        Warning
    );
    assert_eq!(verdict("tdx.tcb", tdx().module_svn(6, 4)), Warning);
    assert_eq!(
        verdict("tdx.tcb", tdx().tcb_status(TcbStatus::Revoked, &[])),
        Contraindicated
    );
    assert_eq!(verdict("tdx.tcb", tdx().without_collateral()), Warning);
    assert_eq!(verdict("tdx.revocation", tdx().without_crls()), Warning);
    let status = appraise(tdx().tcb_status(TcbStatus::OutOfDate, &["INTEL-SA-1"])).unwrap();
    assert_eq!(status.tcb_status(), TcbStatus::OutOfDate);
    let relaunch = appraise(tdx().module_svn(6, 4)).unwrap();
    assert_eq!(relaunch.tcb_status(), TcbStatus::TdRelaunchAdvised);
}

#[test]
fn a_verifier_may_hold_the_collateral_and_ask_for_a_package_and_for_recent_collateral() {
    let mut tee = tdx()
        .without_collateral()
        .ppid([3; 16])
        .tcb_evaluation(20)
        .mr_config_id([4; 48])
        .fail_after(1)
        .build()
        .unwrap();
    let evidence = tee.attest(&DATA).unwrap();
    assert!(tee.attest(&DATA).is_err());
    let mut reference = tee.reference_values();
    reference.tdx.ppids = Some(vec![Hex([3; 16])]);
    reference.tdx.minimum_tcb_evaluation = Some(20);
    reference.tdx.mr_config_ids = Some(vec![Hex([4; 48])]);
    let verifier = Verifier::builder()
        .reference_values(reference)
        .collateral(tee.collateral().unwrap())
        .dangerous()
        .accept_simulated()
        .build()
        .unwrap();
    let appraisal = verifier.appraise_bound_to(&evidence, &DATA, NOW).unwrap();
    assert_eq!(appraisal.tier(), TrustTier::Affirming);
}
