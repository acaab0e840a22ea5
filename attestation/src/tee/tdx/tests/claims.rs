//! Claims against reference values.

use super::forge::at;
use super::*;
use crate::encoding::Hex;

const FAILED: (Outcome, TrustTier) = (Outcome::Fail, TrustTier::Contraindicated);
const WARNED: (Outcome, TrustTier) = (Outcome::Fail, TrustTier::Warning);
const PASSED: (Outcome, TrustTier) = (Outcome::Pass, TrustTier::Affirming);

fn attributes(bits: u64) -> impl FnOnce(&mut Forge) {
    move |forge| forge.put(at::TD_ATTRIBUTES, &bits.to_le_bytes())
}

const SEPT_VE_DISABLE: u64 = 1 << 28;

#[test]
fn a_readable_guest_is_never_affirmed() {
    const ID: &str = "tdx.attributes.debug";
    let debug = SEPT_VE_DISABLE | 1;
    assert_eq!(judged(ID, attributes(debug)), FAILED);
    let allowed = weighed(ID, attributes(debug), |reference| {
        reference.dangerously_allow_debug = true;
    });
    assert_eq!(allowed, WARNED);
    let mut forge = Forge::new();
    attributes(debug)(&mut forge);
    assert!(forge.appraise().unwrap().debug());
    for bit in 4..=6 {
        let bits = SEPT_VE_DISABLE | 1 << bit;
        assert_eq!(judged("tdx.attributes.profiling", attributes(bits)), FAILED);
    }
}

#[test]
fn reserved_attributes_are_not_explained_away() {
    for bit in (1..=3).chain(7..=15).chain(23..=26).chain(32..=61) {
        let bits = SEPT_VE_DISABLE | 1 << bit;
        assert_eq!(judged("tdx.attributes.reserved", attributes(bits)), FAILED);
    }
    for bit in [16, 17, 18, 22, 27, 30, 31, 62] {
        let bits = SEPT_VE_DISABLE | 1 << bit;
        assert_eq!(judged("tdx.attributes.reserved", attributes(bits)), PASSED);
    }
}

#[test]
fn attributes_that_a_relying_party_may_allow_are_refused_until_it_does() {
    const SEPT: &str = "tdx.attributes.sept-ve-disable";
    assert_eq!(judged(SEPT, attributes(0)), FAILED);
    let allowed = weighed(SEPT, attributes(0), |it| it.allow_sept_ve = true);
    assert_eq!(allowed, PASSED);

    const MIGRATABLE: &str = "tdx.attributes.migratable";
    let bits = SEPT_VE_DISABLE | 1 << 29;
    assert_eq!(judged(MIGRATABLE, attributes(bits)), FAILED);
    let allowed = weighed(MIGRATABLE, attributes(bits), |it| it.allow_migration = true);
    assert_eq!(allowed, PASSED);

    const PERFMON: &str = "tdx.attributes.perfmon";
    let bits = SEPT_VE_DISABLE | 1 << 63;
    assert_eq!(judged(PERFMON, attributes(bits)), WARNED);
    let allowed = weighed(PERFMON, attributes(bits), |it| it.allow_perfmon = true);
    assert_eq!(allowed, PASSED);
}

#[test]
fn extended_state_stays_within_what_is_allowed() {
    let allow = |mask| weighed("tdx.xfam", |_| {}, move |it| it.allowed_xfam = Some(mask));
    assert_eq!(allow(0x0006_02e7), PASSED);
    assert_eq!(allow(0xe7), FAILED);
    let without_sse = |forge: &mut Forge| forge.put(at::XFAM, &1_u64.to_le_bytes());
    assert_eq!(judged("tdx.xfam.fixed", without_sse), FAILED);
}

#[test]
fn what_the_guest_consists_of_must_be_known_to_be_affirmed() {
    let unknown = (Outcome::Unknown, TrustTier::Warning);
    assert_eq!(
        weighed("tdx.mr-td", |_| {}, |it| it.measurements = None),
        unknown
    );
    assert_eq!(weighed("tdx.rtmr1", |_| {}, |it| it.rtmr1 = None), unknown);
    assert_eq!(weighed("tdx.rtmr2", |_| {}, |it| it.rtmr2 = None), unknown);
    let nothing = weighed("tdx.mr-td", |_| {}, |it| it.measurements = Some(vec![]));
    assert_eq!(nothing, FAILED);
}

#[test]
fn every_register_is_compared_with_its_own_reference_value() {
    type Expect = fn(&mut TdxReferenceValues, Option<Vec<Hex<48>>>);
    let registers: [(&str, u8, Expect); 9] = [
        ("tdx.mr-td", 0x11, |it, to| it.measurements = to),
        ("tdx.rtmr0", 0x20, |it, to| it.rtmr0 = to),
        ("tdx.rtmr1", 0x21, |it, to| it.rtmr1 = to),
        ("tdx.rtmr2", 0x22, |it, to| it.rtmr2 = to),
        ("tdx.rtmr3", 0x23, |it, to| it.rtmr3 = to),
        ("tdx.mr-config-id", 0, |it, to| it.mr_config_ids = to),
        ("tdx.mr-owner", 0, |it, to| it.mr_owners = to),
        ("tdx.mr-owner-config", 0, |it, to| it.mr_owner_configs = to),
        ("tdx.mr-seam", 0, |it, to| it.mr_seams = to),
    ];
    for (id, byte, expect) in registers {
        let right = weighed(id, |_| {}, |it| expect(it, Some(vec![Hex([byte; 48])])));
        assert_eq!(right, PASSED, "{id}");
        let wrong = weighed(id, |_| {}, |it| expect(it, Some(vec![Hex([0x99; 48])])));
        assert_eq!(wrong, FAILED, "{id}");
    }
    let configured = |forge: &mut Forge| forge.put(at::MR_CONFIG_ID, &[5; 48]);
    let expected = weighed("tdx.mr-config-id", configured, |it| {
        it.mr_config_ids = Some(vec![Hex([5; 48])]);
    });
    assert_eq!(expected, PASSED);
}

#[test]
fn a_service_td_that_nobody_named_is_not_let_near_the_guest() {
    const ID: &str = "tdx.mr-service-td";
    let bound = |forge: &mut Forge| forge.put(at::MR_SERVICE_TD, &[8; 48]);
    assert_eq!(judged(ID, bound), FAILED);
    let named = weighed(ID, bound, |it| it.mr_service_tds = Some(vec![Hex([8; 48])]));
    assert_eq!(named, PASSED);
    // TDX 1.0 does not report them, which is not the same as none.
    let unreported = weighed(
        ID,
        |forge| {
            forge.header[0] = 4;
            forge.body.truncate(584);
        },
        |it| it.mr_service_tds = Some(vec![Hex([8; 48])]),
    );
    assert_eq!(unreported, (Outcome::Unknown, TrustTier::Warning));
    let late = judged("tdx.service-td.current", |forge| {
        forge.body_kind = 4;
        forge.body.resize(885, 0);
        forge.put(829, &[8; 48]);
    });
    assert_eq!(late, FAILED);
}

#[test]
fn a_module_of_another_signer_is_refused() {
    let by_other = |forge: &mut Forge| forge.put(at::MR_SIGNER_SEAM, &[1]);
    assert_eq!(refused(by_other), "tdx-module");
    assert_eq!(
        refused(|forge| forge.put(at::SEAM_ATTRIBUTES, &[1])),
        "tdx-module"
    );
    // Without collateral it is Intel's signer all the same.
    let alone = judged("tdx.mr-signer-seam", |forge| {
        by_other(forge);
        forge.with_collateral = false;
    });
    assert_eq!(alone, FAILED);
}

#[test]
fn only_named_platforms_are_taken_where_platforms_are_named() {
    let ppid = |byte| {
        weighed(
            "tdx.ppid",
            |_| {},
            move |it| it.ppids = Some(vec![Hex([byte; 16])]),
        )
    };
    assert_eq!(ppid(0xaa), PASSED);
    assert_eq!(ppid(0xab), FAILED);
    let fmspc = |first| {
        let fmspc = Hex([first, 0xc0, 0x6f, 0, 0, 0]);
        weighed("tdx.fmspc", |_| {}, move |it| it.fmspcs = Some(vec![fmspc]))
    };
    assert_eq!(fmspc(0x90), PASSED);
    assert_eq!(fmspc(0x91), FAILED);
    let smt = weighed("tdx.smt", |_| {}, |it| it.forbid_smt = true);
    assert_eq!(smt, (Outcome::Unknown, TrustTier::Warning));
}
