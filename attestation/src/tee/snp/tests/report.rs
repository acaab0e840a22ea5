//! The report itself: its bytes, its signature, and what it says of its signer.

use proptest::prelude::*;

use super::*;
use crate::tee::snp::report::{REPORT_LENGTH, SIGNED_LENGTH, at};
use crate::tee::snp::{Product, Report};

#[test]
fn evidence_as_it_should_be_is_affirmed() {
    for version in 2..=5 {
        let appraisal = appraise(tee().report_version(version)).unwrap();
        assert_eq!(
            appraisal.tier(),
            TrustTier::Affirming,
            "{:?}",
            appraisal.checks()
        );
        assert!(appraisal.is_simulated());
        assert_eq!(appraisal.tee(), Tee::Simulated);
        assert_eq!(claims(&appraisal).report_version, version);
        assert!(
            !appraisal
                .checks()
                .iter()
                .any(|check| check.outcome == Outcome::Unknown)
        );
    }
}

#[test]
fn nobody_believes_the_simulator_by_accident() {
    let verifier = Verifier::builder()
        .reference_values(reference())
        .build()
        .unwrap();
    assert!(!verifier.accepts_simulated());
    let refusal = verifier
        .appraise(&evidence(tee()), &challenge(), NOW)
        .unwrap_err();
    assert_eq!(refusal.code(), "unknown-root");
    // The label is not what is believed.
    let labelled = Evidence::new(
        Tee::SevSnp,
        evidence(tee()).report().to_vec(),
        evidence(tee()).endorsements().clone(),
    );
    let refusal = verifier
        .appraise(&labelled.unwrap(), &challenge(), NOW)
        .unwrap_err();
    assert_eq!(refusal.code(), "unknown-root");
}

#[test]
fn a_wrong_label_does_not_hide_the_simulated_root() {
    let simulated = evidence(tee());
    let report = simulated.report().to_vec();
    let labelled = Evidence::new(Tee::SevSnp, report, simulated.endorsements().clone()).unwrap();
    let appraisal = verifier(reference())
        .appraise(&labelled, &challenge(), NOW)
        .unwrap();
    assert!(appraisal.is_simulated());
    assert_eq!(appraisal.tee(), Tee::Simulated);
}

#[test]
fn every_flipped_byte_of_a_report_is_noticed() {
    let (genuine, verifier) = (evidence(tee().report_version(5)), verifier(reference()));
    for at in 0..REPORT_LENGTH {
        for bit in [0x01, 0x80] {
            let mut report = genuine.report().to_vec();
            report[at] ^= bit;
            let verdict = verifier.appraise(&with_report(&genuine, report), &challenge(), NOW);
            assert!(verdict.is_err(), "byte {at:#x}, bit {bit:#x}");
        }
    }
}

#[test]
fn a_flipped_byte_of_the_body_is_a_wrong_signature() {
    assert_eq!(
        code(tee().tamper_report(|report| report[at::MEASUREMENT] ^= 1)),
        "signature"
    );
    assert_eq!(
        code(tee().tamper_report(|report| report[at::SIGNATURE_R] ^= 1)),
        "signature"
    );
    assert_eq!(
        code(tee().tamper_report(|report| report[at::SIGNATURE_S] ^= 1)),
        "signature"
    );
}

#[test]
fn a_report_of_another_length_is_refused() {
    let genuine = evidence(tee());
    for length in [
        0,
        1,
        REPORT_LENGTH - 1,
        REPORT_LENGTH + 1,
        REPORT_LENGTH * 2,
    ] {
        let mut report = genuine.report().to_vec();
        report.resize(length, 0);
        let verdict =
            verifier(reference()).appraise(&with_report(&genuine, report), &challenge(), NOW);
        assert_eq!(verdict.unwrap_err().code(), "report-length");
    }
}

#[test]
fn a_signature_algorithm_other_than_one_is_refused() {
    for algorithm in [0, 2, 0xff] {
        let tee = tee().edit_report(move |report| report[at::SIGNATURE_ALGO] = algorithm);
        assert_eq!(code(tee), "signature-algorithm");
    }
}

#[test]
fn unused_bytes_of_the_signature_must_be_zero() {
    for offset in [
        at::SIGNATURE_R + 48,
        at::SIGNATURE_R + 71,
        at::SIGNATURE_S + 48,
        at::SIGNATURE_S + 71,
        at::RESERVED_SIGNATURE,
        REPORT_LENGTH - 1,
    ] {
        let tee = tee().tamper_report(move |report| report[offset] = 1);
        assert_eq!(code(tee), "signature-encoding", "{offset:#x}");
    }
}

const ORDER: [u8; 48] = super::super::verifier::ORDER;

#[test]
fn a_number_of_the_signature_is_neither_zero_nor_the_order() {
    let order: Vec<u8> = ORDER.iter().rev().copied().collect();
    for offset in [at::SIGNATURE_R, at::SIGNATURE_S] {
        let numbers = [vec![0; 48], order.clone(), vec![0xff; 48]];
        for number in numbers {
            let tee = tee().tamper_report(move |report| {
                report[offset..offset + 48].copy_from_slice(&number);
            });
            assert_eq!(code(tee), "signature-range");
        }
    }
}

#[test]
fn a_rewritten_signature_is_no_second_identity() {
    let first = evidence(tee());
    let mut report = first.report().to_vec();
    // s becomes n - s, which verifies as well.
    let mut borrow = 0_i16;
    for (byte, order) in report[at::SIGNATURE_S..].iter_mut().zip(ORDER.iter().rev()) {
        let difference = i16::from(*order) - i16::from(*byte) - borrow;
        borrow = i16::from(difference < 0);
        *byte = u8::try_from(difference.rem_euclid(256)).unwrap();
    }
    let second = with_report(&first, report);
    assert_ne!(first, second);
    let verifier = verifier(reference());
    let [first, second] =
        [first, second].map(|evidence| verifier.appraise(&evidence, &challenge(), NOW).unwrap());
    assert_eq!(first.evidence_digest(), second.evidence_digest());
    assert_eq!(first, second);
}

#[test]
fn reserved_bytes_in_use_are_reported_and_not_affirmed() {
    for offset in [
        at::RESERVED_SIGNER,
        at::RESERVED_CPUID,
        at::CHIP_ID - 1,
        at::CURRENT_FIRMWARE + 3,
        at::COMMITTED_FIRMWARE + 3,
        at::LAUNCH_MITIGATIONS,
        SIGNED_LENGTH - 1,
        at::CURRENT_TCB + 2,
        at::LAUNCH_TCB + 5,
    ] {
        let appraisal = appraise(tee().edit_report(move |report| report[offset] = 1)).unwrap();
        assert_eq!(claims(&appraisal).reserved_in_use, [offset]);
        assert_eq!(
            appraisal.check("snp.reserved").unwrap().outcome,
            Outcome::Unknown
        );
        assert_eq!(appraisal.tier(), TrustTier::Warning);
    }
}

#[test]
fn an_unsigned_report_is_refused_even_if_somebody_signed_it() {
    assert_eq!(
        code(tee().edit_report(|report| report[at::SIGNER_INFO] = 0b00010)),
        "unsigned"
    );
    assert_eq!(
        code(tee().edit_report(|report| report[at::SIGNER_INFO] = 0b11100)),
        "unsigned"
    );
}

#[test]
fn a_reserved_signing_key_is_refused() {
    for key in 2..=6 {
        let tee = tee().edit_report(move |report| report[at::SIGNER_INFO] = key << 2);
        assert_eq!(code(tee), "signing-key");
    }
}

#[test]
fn the_named_key_and_the_certificate_must_be_of_one_kind() {
    let says_vlek = tee().edit_report(|report| report[at::SIGNER_INFO] = 1 << 2);
    assert_eq!(code(says_vlek), "signer-mismatch");
    let says_vcek = tee()
        .vlek("provider")
        .edit_report(|report| report[at::SIGNER_INFO] = 0);
    assert_eq!(code(says_vcek), "signer-mismatch");
}

#[test]
fn a_masked_chip_passes_with_a_providers_key_only() {
    let appraisal = appraise(tee().vlek("CN=cc-test.example")).unwrap();
    assert_eq!(appraisal.tier(), TrustTier::Affirming);
    assert_eq!(claims(&appraisal).chip_id, None);
    assert_eq!(
        claims(&appraisal).provider.as_deref(),
        Some("CN=cc-test.example")
    );
    let masked = tee().edit_report(|report| report[at::CHIP_ID..at::COMMITTED_TCB].fill(0));
    assert_eq!(code(masked), "chip-id-mismatch");
}

#[test]
fn unknown_versions_are_refused_or_warned_about() {
    for version in [0, 1] {
        assert_eq!(code(tee().report_version(version)), "report-version");
    }
    for version in [6, 7, u32::MAX] {
        let appraisal = appraise(tee().report_version(version)).unwrap();
        assert_eq!(
            appraisal.check("snp.report-version").unwrap().outcome,
            Outcome::Unknown
        );
        assert_eq!(appraisal.tier(), TrustTier::Warning);
    }
}

#[test]
fn the_product_of_a_version_two_report_is_that_of_its_root() {
    let appraisal = appraise(tee().report_version(2)).unwrap();
    assert_eq!(claims(&appraisal).product, Product::Genoa);
    assert_eq!(claims(&appraisal).cpuid, None);
}

#[test]
fn the_processor_and_the_root_must_be_of_one_generation() {
    for cpuid in [
        [0x19, 0x01, 1],
        [0x1a, 0x02, 1],
        [0, 0, 0],
        [0x19, 0x20, 0],
        [0xff; 3],
    ] {
        let tee = tee().edit_report(move |report| {
            report[at::CPUID..at::RESERVED_CPUID].copy_from_slice(&cpuid);
        });
        assert_eq!(code(tee), "product-mismatch", "{cpuid:02x?}");
    }
    let zen4c = tee().edit_report(|report| report[at::CPUID + 1] = 0xa0);
    assert_eq!(appraise(zen4c).unwrap().tier(), TrustTier::Affirming);
}

#[test]
fn evidence_for_another_challenge_is_refused() {
    assert_eq!(code(tee().answering([0; 64])), "binding");
    // All 64 bytes count, the last as much as the first.
    for at in [0, 31, 32, 63] {
        let mut almost = challenge().report_data();
        almost[at] ^= 1;
        assert_eq!(code(tee().answering(almost)), "binding");
    }
    let reflected = Challenge {
        role: Role::Broker,
        ..challenge()
    };
    let verdict = verifier(reference()).appraise(&evidence(tee()), &reflected, NOW);
    assert_eq!(verdict.unwrap_err().code(), "binding");
}

#[test]
fn a_report_that_the_host_asked_for_is_refused() {
    assert_eq!(code(tee().vmpl(u32::MAX)), "host-requested");
}

#[test]
fn a_simulated_report_has_the_bytes_that_firmware_writes() {
    let bytes = evidence(tee().report_version(5)).report().to_vec();
    let report = Report::parse(&bytes).unwrap();
    assert!(report.reserved_in_use().is_empty());
    assert_eq!(report.policy(), 0x30000);
    assert_eq!(report.current_firmware(), [1, 55, 43]);
    assert_eq!(report.measurement(), &crate::DEFAULT_MEASUREMENT);
    assert_eq!(report.report_id_ma(), &[0xff; 32]);
    assert_eq!(report.current_mitigations(), Some(1));
}

#[test]
fn the_simulator_fails_when_told_to() {
    let mut tee = tee().fail_after(2).build().unwrap();
    assert!(tee.attest(&[0; 64]).is_ok());
    assert!(tee.attest(&[0; 64]).is_ok());
    assert!(tee.attest(&[0; 64]).is_err());
    assert!(tee.attest(&[0; 64]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_evidence_is_refused_without_a_panic(
        report in proptest::collection::vec(any::<u8>(), REPORT_LENGTH),
        noise in proptest::collection::vec(any::<u8>(), 0..100),
        genuine in any::<[bool; 3]>(),
        believable in any::<bool>(),
    ) {
        let original = evidence(tee());
        let mut report = report;
        if believable {
            // As far as the signature: a version, an algorithm, and a VCEK as the signer.
            report[..4].copy_from_slice(&3_u32.to_le_bytes());
            report[at::SIGNATURE_ALGO..at::CURRENT_TCB].copy_from_slice(&1_u32.to_le_bytes());
            report[at::SIGNER_INFO..at::REPORT_DATA].fill(0);
            report[at::RESERVED_SIGNATURE..].fill(0);
            report[at::SIGNATURE_R + 48..at::SIGNATURE_S].fill(0);
            report[at::SIGNATURE_S + 48..at::RESERVED_SIGNATURE].fill(0);
        }
        let chain = certificates(&original);
        let chain = std::array::from_fn(|which| {
            if genuine[which] { chain[which].clone() } else { noise.clone() }
        });
        let made_up = with_certificates(&with_report(&original, report), chain)
            .with_crl(noise.clone())
            .unwrap();
        prop_assert!(verifier(reference()).appraise(&made_up, &challenge(), NOW).is_err());
    }
}
