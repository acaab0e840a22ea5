//! Believed evidence: what is welcome, what is not, and what cannot be told.

use super::*;
use crate::appraisal::TcbStatus;
use crate::encoding::Hex;
use crate::tee::snp::report::at;
use crate::tee::snp::{PlatformFlag, Product, TcbVersion};
use crate::{DEFAULT_MEASUREMENT, DEFAULT_TCB};

const FAILED: (Outcome, TrustTier) = (Outcome::Fail, TrustTier::Contraindicated);
const WARNED: (Outcome, TrustTier) = (Outcome::Fail, TrustTier::Warning);
const UNKNOWN: (Outcome, TrustTier) = (Outcome::Unknown, TrustTier::Warning);
const PASSED: (Outcome, TrustTier) = (Outcome::Pass, TrustTier::Affirming);
const SKIPPED: (Outcome, TrustTier) = (Outcome::Skipped, TrustTier::Affirming);

#[test]
fn a_debug_guest_is_contraindicated_and_never_affirmed() {
    let guest = || tee().debug(true);
    assert_eq!(judge(guest(), "snp.policy.debug", |_| {}), FAILED);
    let allowed = judge(guest(), "snp.policy.debug", |r| {
        r.dangerously_allow_debug = true
    });
    assert_eq!(allowed, WARNED);
    assert!(appraise(guest()).unwrap().debug());
    assert!(!appraise(tee()).unwrap().debug());
}

#[test]
fn a_migration_agent_is_contraindicated_unless_allowed() {
    let (guest, id) = (|| tee().migration_agent(true), "snp.policy.migration-agent");
    assert_eq!(judge(guest(), id, |_| {}), FAILED);
    assert_eq!(
        judge(guest(), id, |r| r.allow_migration_agent = true),
        PASSED
    );
}

#[test]
fn a_policy_without_its_fixed_bit_or_with_unknown_bits_is_not_affirmed() {
    let clear = tee().edit_report(|report| report[at::POLICY + 2] = 1);
    assert_eq!(judge(clear, "snp.policy.reserved-one", |_| {}), FAILED);
    let unknown = tee().edit_report(|report| report[at::POLICY + 3] = 0x04);
    assert_eq!(judge(unknown, "snp.policy.reserved", |_| {}), UNKNOWN);
    let highest = tee().edit_report(|report| report[at::POLICY + 7] = 0x80);
    assert_eq!(judge(highest, "snp.policy.reserved", |_| {}), UNKNOWN);
    let known = tee().edit_report(|report| report[at::POLICY + 3] = 0x03);
    assert_eq!(judge(known, "snp.policy.reserved", |_| {}), PASSED);
}

#[test]
fn a_less_privileged_level_is_contraindicated_unless_allowed() {
    for vmpl in 1..=3 {
        assert_eq!(judge(tee().vmpl(vmpl), "snp.vmpl", |_| {}), FAILED);
        assert_eq!(
            judge(tee().vmpl(vmpl), "snp.vmpl", |r| r.max_vmpl = vmpl),
            PASSED
        );
        assert_eq!(
            judge(tee().vmpl(vmpl), "snp.vmpl", |r| r.max_vmpl = vmpl - 1),
            FAILED
        );
    }
}

#[test]
fn another_measurement_is_contraindicated_and_none_expected_is_unknown() {
    let (id, other) = ("snp.measurement", [7; 48]);
    assert_eq!(judge(tee().measurement(other), id, |_| {}), FAILED);
    assert_eq!(judge(tee(), id, |r| r.measurements = Some(vec![])), FAILED);
    assert_eq!(judge(tee(), id, |r| r.measurements = None), UNKNOWN);
    let either = judge(tee().measurement(other), id, |r| {
        r.measurements = Some(vec![Hex(DEFAULT_MEASUREMENT), Hex(other)]);
    });
    assert_eq!(either, PASSED);
}

#[test]
fn host_data_is_compared_whole() {
    let id = "snp.host-data";
    let guest = || tee().host_data([9; 32]);
    assert_eq!(judge(guest(), id, |_| {}), SKIPPED);
    assert_eq!(
        judge(guest(), id, |r| r.host_data = Some(vec![Hex([9; 32])])),
        PASSED
    );
    let mut almost = [9; 32];
    almost[31] = 0;
    assert_eq!(
        judge(guest(), id, |r| r.host_data = Some(vec![Hex(almost)])),
        FAILED
    );
}

#[test]
fn a_guest_without_a_key_has_no_keys_digest() {
    let id = "snp.id-key";
    let zero = || Some(vec![Hex([0; 48])]);
    assert_eq!(judge(tee(), id, |r| r.id_key_digests = zero()), FAILED);
    assert_eq!(
        judge(tee(), "snp.author-key", |r| r.author_key_digests = zero()),
        FAILED
    );
    let guest = || tee().id_key_digest([3; 48]);
    assert_eq!(
        judge(guest(), id, |r| r.id_key_digests = Some(vec![Hex([3; 48])])),
        PASSED
    );
    assert_eq!(
        judge(guest(), id, |r| r.id_key_digests = Some(vec![Hex([4; 48])])),
        FAILED
    );
}

#[test]
fn an_author_key_counts_only_where_it_is_enabled() {
    let id = "snp.author-key";
    let guest = |enabled: u8| {
        tee().edit_report(move |report| {
            report[at::SIGNER_INFO] = enabled;
            report[at::AUTHOR_KEY_DIGEST..at::REPORT_ID].fill(6);
        })
    };
    let expected = || Some(vec![Hex([6; 48])]);
    assert_eq!(
        judge(guest(1), id, |r| r.author_key_digests = expected()),
        PASSED
    );
    assert_eq!(
        judge(guest(0), id, |r| r.author_key_digests = expected()),
        FAILED
    );
}

#[test]
fn an_older_guest_is_contraindicated() {
    let id = "snp.guest-svn";
    assert_eq!(
        judge(tee().guest_svn(4), id, |r| r.minimum_guest_svn = Some(5)),
        FAILED
    );
    assert_eq!(
        judge(tee().guest_svn(5), id, |r| r.minimum_guest_svn = Some(5)),
        PASSED
    );
}

#[test]
fn each_component_of_the_tcb_has_its_own_floor() {
    let base = DEFAULT_TCB;
    let status = |floor: Option<TcbVersion>| {
        let mut expected = reference();
        expected.sev_snp.minimum_tcb.clear();
        if let Some(floor) = floor {
            expected.sev_snp.minimum_tcb.insert(Product::Genoa, floor);
        }
        let appraisal = verifier(expected)
            .appraise(&evidence(tee()), &challenge(), NOW)
            .unwrap();
        (appraisal.tcb_status(), appraisal.tier())
    };
    assert_eq!(
        status(Some(base)),
        (TcbStatus::UpToDate, TrustTier::Affirming)
    );
    for floor in [
        TcbVersion {
            bootloader: base.bootloader + 1,
            ..base
        },
        TcbVersion {
            tee: base.tee + 1,
            ..base
        },
        // Lower microcode must not make up for this, as it would in one 64-bit number.
        TcbVersion {
            snp: base.snp + 1,
            microcode: 0,
            ..base
        },
        TcbVersion {
            microcode: base.microcode + 1,
            ..base
        },
    ] {
        assert_eq!(
            status(Some(floor)),
            (TcbStatus::OutOfDate, TrustTier::Warning),
            "{floor}"
        );
    }
    assert_eq!(status(None), (TcbStatus::Unknown, TrustTier::Warning));
    // A floor for another layout cannot be compared.
    let turin = TcbVersion {
        fmc: Some(0),
        ..base
    };
    assert_eq!(
        status(Some(turin)),
        (TcbStatus::Unknown, TrustTier::Warning)
    );
}

#[test]
fn versions_that_contradict_each_other_are_contraindicated() {
    let id = "snp.tcb-order";
    let newer = TcbVersion {
        snp: DEFAULT_TCB.snp + 1,
        ..DEFAULT_TCB
    };
    let older = TcbVersion {
        snp: DEFAULT_TCB.snp - 1,
        ..DEFAULT_TCB
    };
    assert_eq!(judge(tee().committed_tcb(newer), id, |_| {}), FAILED);
    assert_eq!(judge(tee().launch_tcb(newer), id, |_| {}), FAILED);
    assert_eq!(judge(tee().committed_tcb(older), id, |_| {}), FAILED);
    assert_eq!(judge(tee().launch_tcb(older), id, |_| {}), PASSED);
}

#[test]
fn provisional_firmware_warns_unless_allowed() {
    let id = "snp.provisional-firmware";
    let newer = TcbVersion {
        snp: DEFAULT_TCB.snp + 1,
        ..DEFAULT_TCB
    };
    assert_eq!(judge(tee().current_tcb(newer), id, |_| {}), WARNED);
    let build = || tee().edit_report(|report| report[at::CURRENT_FIRMWARE] += 1);
    assert_eq!(judge(build(), id, |_| {}), WARNED);
    assert_eq!(
        judge(build(), id, |r| r.allow_provisional_firmware = true),
        PASSED
    );
    let microcode = TcbVersion {
        microcode: DEFAULT_TCB.microcode + 1,
        ..DEFAULT_TCB
    };
    assert_eq!(judge(tee().current_tcb(microcode), id, |_| {}), PASSED);
}

#[test]
fn what_must_be_on_or_off_at_the_platform_is_looked_at() {
    for flag in PlatformFlag::ALL {
        let id = format!("snp.platform.{}", flag.name());
        let (on, off) = (
            || tee().platform_info(flag.mask()),
            || tee().platform_info(0),
        );
        assert_eq!(judge(on(), &id, |_| {}), SKIPPED);
        assert_eq!(
            judge(on(), &id, |r| r.required_platform = vec![flag]),
            PASSED
        );
        assert_eq!(
            judge(off(), &id, |r| r.required_platform = vec![flag]),
            WARNED
        );
        assert_eq!(
            judge(on(), &id, |r| r.forbidden_platform = vec![flag]),
            WARNED
        );
        assert_eq!(
            judge(off(), &id, |r| r.forbidden_platform = vec![flag]),
            PASSED
        );
        for guest in [on(), off()] {
            let both = judge(guest, &id, |r| {
                r.required_platform = vec![flag];
                r.forbidden_platform = vec![flag];
            });
            assert_eq!(both, WARNED);
        }
    }
}

#[test]
fn unknown_platform_bits_are_unknown_and_the_one_of_every_turin_is_not() {
    let id = "snp.platform.reserved";
    assert_eq!(judge(tee().platform_info(1 << 6), id, |_| {}), PASSED);
    assert_eq!(judge(tee().platform_info(1 << 8), id, |_| {}), UNKNOWN);
    assert_eq!(judge(tee().platform_info(1 << 63), id, |_| {}), UNKNOWN);
}

#[test]
fn mitigations_that_are_not_reported_are_unknown() {
    let id = "snp.mitigations";
    for version in [2, 3, 4] {
        let old = judge(tee().report_version(version), id, |r| {
            r.required_mitigations = Some(0)
        });
        assert_eq!(old, UNKNOWN);
    }
    let guest = || tee().report_version(5);
    assert_eq!(
        judge(guest(), id, |r| r.required_mitigations = Some(1)),
        PASSED
    );
    assert_eq!(
        judge(guest(), id, |r| r.required_mitigations = Some(3)),
        WARNED
    );
    assert_eq!(judge(guest(), id, |_| {}), SKIPPED);
}

#[test]
fn products_and_chips_that_are_not_named_are_contraindicated() {
    let id = "snp.product";
    assert_eq!(
        judge(tee(), id, |r| r.products = Some(vec![Product::Genoa])),
        PASSED
    );
    assert_eq!(
        judge(tee(), id, |r| r.products = Some(vec![Product::Turin])),
        FAILED
    );
    let id = "snp.chip-id";
    let chip = |byte| Some(vec![Hex([byte; 64])]);
    assert_eq!(judge(tee(), id, |r| r.chip_ids = chip(0x5a)), PASSED);
    assert_eq!(judge(tee(), id, |r| r.chip_ids = chip(0x5b)), FAILED);
    // A provider's key proves no chip, not even the chip of all zeroes.
    assert_eq!(
        judge(tee().vlek("provider"), id, |r| r.chip_ids = chip(0)),
        FAILED
    );
}

#[test]
fn the_same_inputs_give_the_same_bytes() {
    let (evidence, verifier) = (evidence(tee()), verifier(reference()));
    let json = |now| {
        let appraisal = verifier.appraise(&evidence, &challenge(), now).unwrap();
        serde_json::to_string(&appraisal).unwrap()
    };
    assert_eq!(json(NOW), json(NOW));
    assert_ne!(json(NOW), json(NOW.plus_seconds(1)));
    assert!(json(NOW).contains(r#""simulated":true"#));
}

#[test]
fn every_check_has_a_name_of_its_own() {
    let appraisal = appraise(tee()).unwrap();
    let mut names: Vec<&str> = appraisal.checks().iter().map(|check| check.id).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
    assert!(all >= 30);
}

#[test]
fn the_worse_tier_wins() {
    use TrustTier::{Affirming, Contraindicated, Warning};
    assert_eq!(Affirming.or_worse(Warning), Warning);
    assert_eq!(Contraindicated.or_worse(Affirming), Contraindicated);
    assert_eq!(
        [TrustTier::None, Affirming, Warning, Contraindicated].map(TrustTier::value),
        [0, 2, 32, 96]
    );
}

#[test]
fn only_the_keys_of_named_providers_are_welcome() {
    let id = "snp.provider";
    let named = |name: &str| Some(vec![name.to_owned()]);
    let guest = || tee().vlek("CN=cc-test.example");
    assert_eq!(
        judge(guest(), id, |r| r.providers = named("CN=cc-test.example")),
        PASSED
    );
    assert_eq!(
        judge(guest(), id, |r| r.providers =
            named("CN=cc-test.example.org")),
        FAILED
    );
    assert_eq!(judge(tee(), id, |r| r.providers = named("none")), FAILED);
    assert_eq!(judge(guest(), id, |_| {}), SKIPPED);
}

#[test]
fn names_are_those_of_the_serialized_form() {
    for tier in [TrustTier::None, TrustTier::Affirming, TrustTier::Warning] {
        assert_eq!(serde_json::to_value(tier).unwrap(), tier.name());
    }
    for status in [
        TcbStatus::UpToDate,
        TcbStatus::OutOfDate,
        TcbStatus::Unknown,
    ] {
        assert_eq!(serde_json::to_value(status).unwrap(), status.name());
    }
}

#[test]
fn a_platform_that_does_what_the_guest_forbids_is_refused() {
    // SMT on, and a policy without bit 16.
    let forbidden = tee().edit_report(|report| report[at::POLICY + 2] = 0b10);
    let (outcome, tier) = judge(forbidden, "snp.policy.smt", |_| {});
    assert_eq!((outcome, tier), (Outcome::Fail, TrustTier::Contraindicated));
    let (outcome, _) = judge(tee(), "snp.policy.smt", |_| {});
    assert_eq!(outcome, Outcome::Pass);
}

#[test]
fn protection_against_side_channels_is_asked_for_by_name() {
    use crate::tee::snp::PolicyFlag::{CiphertextHiding, Cxl, PageSwapDisabled};
    let hiding = || tee().edit_report(|report| report[at::POLICY + 3] = 0b11);
    let asked = |tee| {
        judge(tee, "snp.policy.required", |expected| {
            expected.required_policy = vec![CiphertextHiding, PageSwapDisabled];
        })
    };
    assert_eq!(asked(hiding()), (Outcome::Pass, TrustTier::Affirming));
    assert_eq!(asked(tee()), (Outcome::Fail, TrustTier::Contraindicated));
    let without = |tee| {
        judge(tee, "snp.policy.forbidden", |expected| {
            expected.forbidden_policy = vec![Cxl]
        })
    };
    assert_eq!(without(tee()), (Outcome::Pass, TrustTier::Affirming));
    let cxl = tee().edit_report(|report| report[at::POLICY + 2] = 0b10_0011);
    assert_eq!(without(cxl), (Outcome::Fail, TrustTier::Contraindicated));
}
