//! The certificates: who signed whom, for what, and until when.

use super::*;
use crate::endorsement::{PSS_SHA384_EXPLICIT, RSA_ENCRYPTION};
use crate::tee::simulated::x509::{amd, integer, tlv};
use crate::tee::simulated::{simulated_crl, x509::Template};
use crate::tee::snp::TcbVersion;
use crate::{DEFAULT_TCB, SimulatedTee};

const YEAR: u64 = 365 * 24 * 60 * 60;

#[test]
fn every_flipped_byte_of_every_certificate_is_noticed() {
    let (genuine, verifier) = (evidence(tee()), verifier(reference()));
    let originals = certificates(&genuine);
    for which in 0..3 {
        for at in 0..originals[which].len() {
            let mut changed = originals.clone();
            changed[which][at] ^= 0x01;
            let verdict =
                verifier.appraise(&with_certificates(&genuine, changed), &challenge(), NOW);
            assert!(verdict.is_err(), "certificate {which}, byte {at}");
        }
    }
}

#[test]
fn a_certificate_that_is_cut_or_prolonged_is_refused() {
    let (genuine, verifier) = (evidence(tee()), verifier(reference()));
    for which in 0..3 {
        for cut in [true, false] {
            let mut changed = certificates(&genuine);
            if cut {
                changed[which].pop();
            } else {
                changed[which].push(0);
            }
            let verdict =
                verifier.appraise(&with_certificates(&genuine, changed), &challenge(), NOW);
            assert_eq!(verdict.unwrap_err().code(), "certificate-malformed");
        }
    }
}

#[test]
fn a_root_that_only_looks_the_same_is_unknown() {
    assert_eq!(code(tee().other_root()), "unknown-root");
    // Handing the verifier the certificates of such a root adds no trust in it.
    let lookalike = evidence(tee().other_root());
    let [_, intermediate, root] = certificates(&lookalike);
    let verifier = Verifier::builder()
        .endorsement(intermediate)
        .endorsement(root)
        .dangerous()
        .accept_simulated()
        .build()
        .unwrap();
    let refusal = verifier
        .appraise(&lookalike, &challenge(), NOW)
        .unwrap_err();
    assert_eq!(refusal.code(), "unknown-root");
}

#[test]
fn a_foreign_key_under_the_known_root_is_refused() {
    // Look-alike VEK and intermediate, genuine root: the names fit, the signatures do not.
    let (lookalike, genuine) = (evidence(tee().other_root()), evidence(tee()));
    let [vek, intermediate, _] = certificates(&lookalike);
    let [_, ask, root] = certificates(&genuine);
    for chain in [[vek.clone(), intermediate, root.clone()], [vek, ask, root]] {
        let verdict = verifier(reference()).appraise(
            &with_certificates(&lookalike, chain),
            &challenge(),
            NOW,
        );
        assert_eq!(verdict.unwrap_err().code(), "certificate-signature");
    }
}

#[test]
fn a_missing_certificate_may_come_from_the_verifier() {
    let genuine = evidence(tee());
    let [vek, intermediate, root] = certificates(&genuine);
    let bare = Endorsements::default().with_vek(vek).unwrap();
    let bare = Evidence::new(Tee::Simulated, genuine.report().to_vec(), bare).unwrap();
    let builder = || Verifier::builder().dangerous().accept_simulated();
    let code = |verifier: Verifier| {
        verifier
            .appraise(&bare, &challenge(), NOW)
            .unwrap_err()
            .code()
    };
    assert_eq!(code(builder().build().unwrap()), "intermediate-missing");
    let half = builder().endorsement(intermediate.clone());
    assert_eq!(code(half.clone().build().unwrap()), "root-missing");
    let whole = half.endorsement(root).build().unwrap();
    assert!(whole.appraise(&bare, &challenge(), NOW).is_ok());
    assert!(builder().endorsement(vec![0x30, 0]).build().is_err());
    assert!(builder().crl(intermediate).build().is_err());
}

#[test]
fn kinds_of_keys_do_not_sign_for_each_other() {
    let vlek_under_ask = tee().edit_certificate(|vek| vek.subject = "SEV-VLEK".to_owned());
    assert_eq!(code(vlek_under_ask), "intermediate-name");
    let vcek_under_asvk = tee()
        .vlek("provider")
        .edit_certificate(|vek| vek.subject = "SEV-VCEK".to_owned());
    assert_eq!(code(vcek_under_asvk), "intermediate-name");
    let genuine = evidence(tee());
    let [_, ask, root] = certificates(&genuine);
    let ask_as_vek = with_certificates(&genuine, [ask.clone(), ask, root]);
    let verdict = verifier(reference()).appraise(&ask_as_vek, &challenge(), NOW);
    assert_eq!(verdict.unwrap_err().code(), "vek-name");
    let elsewhere = tee().edit_certificate(|vek| vek.issuer = "SEV-Milan".to_owned());
    assert_eq!(code(elsewhere), "certificate-issuer");
}

#[test]
fn a_signing_key_is_p384_and_nothing_else() {
    fn rsa(vek: &mut Template) {
        vek.key_algorithm = RSA_ENCRYPTION.to_vec();
    }
    fn p256(vek: &mut Template) {
        vek.key_algorithm =
            b"\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07"
                .to_vec();
        vek.public_key.truncate(65);
    }
    fn short(vek: &mut Template) {
        vek.public_key.truncate(49);
    }
    for edit in [rsa as fn(&mut Template), p256, short] {
        assert_eq!(code(tee().edit_certificate(edit)), "certificate-key");
    }
}

#[test]
fn a_signing_key_may_not_sign_certificates() {
    let authority = tee().edit_certificate(|vek| {
        let constraints = tlv(0x30, &[&tlv(0x01, &[&[0xff]])]);
        vek.extensions.push((b"\x55\x1d\x13".to_vec(), constraints));
        vek.extensions
            .push((b"\x55\x1d\x0f".to_vec(), vec![0x03, 2, 2, 4]));
    });
    assert_eq!(code(authority), "certificate-usage");
}

#[test]
fn a_weaker_signature_algorithm_is_refused() {
    fn replaced(at: usize, from: u8, to: u8) -> Vec<u8> {
        let mut algorithm = PSS_SHA384_EXPLICIT.to_vec();
        assert_eq!(algorithm[at], from);
        algorithm[at] = to;
        algorithm
    }
    // SHA-256 in place of SHA-384, then a salt of 32 in place of 48.
    let sha256 = tee().edit_certificate(|vek| vek.algorithm = replaced(29, 2, 1));
    assert_eq!(code(sha256), "certificate-algorithm");
    let salt = tee().edit_certificate(|vek| vek.algorithm = replaced(66, 48, 32));
    assert_eq!(code(salt), "certificate-algorithm");
}

#[test]
fn an_expired_or_future_key_is_refused_and_the_last_second_is_not() {
    assert_eq!(code(tee().expired_vek()), "certificate-expired");
    let future = tee().vek_validity(NOW.plus_seconds(1), NOW.plus_seconds(YEAR));
    assert_eq!(code(future), "certificate-not-yet-valid");
    let appraisal = appraise(tee().vek_validity(NOW, NOW)).unwrap();
    assert_eq!(appraisal.not_after(), NOW);
}

#[test]
fn a_revoked_intermediate_revokes_its_keys() {
    let judged = |crl: Vec<u8>, tee| {
        let evidence = evidence(tee);
        let builder = Verifier::builder().reference_values(reference());
        let verifier = builder
            .clone()
            .crl(crl.clone())
            .dangerous()
            .accept_simulated();
        let by_verifier = verifier
            .build()
            .unwrap()
            .appraise(&evidence, &challenge(), NOW);
        let bundled = evidence.with_crl(crl).unwrap();
        let verifier = builder.dangerous().accept_simulated().build().unwrap();
        let by_evidence = verifier.appraise(&bundled, &challenge(), NOW);
        [by_verifier, by_evidence]
    };
    let (yesterday, tomorrow) = (NOW.minus_seconds(86_400), NOW.plus_seconds(86_400));
    for guest in [|| tee(), || tee().vlek("provider")] {
        let revoked = simulated_crl(yesterday, Some(tomorrow), true).unwrap();
        for verdict in judged(revoked, guest()) {
            assert_eq!(verdict.unwrap_err().code(), "revoked");
        }
        // Once revoked, always revoked, however old the list.
        let long_ago = simulated_crl(UnixTime(1), Some(UnixTime(2)), true).unwrap();
        for verdict in judged(long_ago, guest()) {
            assert_eq!(verdict.unwrap_err().code(), "revoked");
        }
        let clean = simulated_crl(yesterday, Some(tomorrow), false).unwrap();
        for verdict in judged(clean, guest()) {
            let appraisal = verdict.unwrap();
            assert_eq!(
                appraisal.check("snp.revocation").unwrap().outcome,
                Outcome::Pass
            );
            assert_eq!(appraisal.tier(), TrustTier::Affirming);
            assert_eq!(appraisal.not_after(), tomorrow);
        }
    }
}

#[test]
fn a_revocation_list_must_be_signed_and_current() {
    let code = |crl: Vec<u8>| {
        let bundled = evidence(tee()).with_crl(crl).unwrap();
        let verdict = verifier(reference()).appraise(&bundled, &challenge(), NOW);
        verdict.unwrap_err().code()
    };
    let before = NOW.minus_seconds(10);
    let list = |from, to| simulated_crl(from, to, false).unwrap();
    assert_eq!(
        code(list(before, Some(NOW.minus_seconds(1)))),
        "crl-expired"
    );
    assert_eq!(
        code(list(NOW.plus_seconds(1), Some(NOW.plus_seconds(9)))),
        "crl-not-yet-valid"
    );
    assert_eq!(code(list(before, None)), "crl-without-end");
    let mut forged = list(before, Some(NOW.plus_seconds(9)));
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(code(forged), "crl-signature");
    assert_eq!(code(vec![0x30, 0]), "crl-malformed");
}

#[test]
fn a_verifier_that_asks_for_revocation_affirms_nothing_without_it() {
    let (outcome, tier) = judge(tee(), "snp.revocation", |_| {});
    assert_eq!((outcome, tier), (Outcome::Skipped, TrustTier::Affirming));
    let (outcome, tier) = judge(tee(), "snp.revocation", |expected| {
        expected.require_revocation_check = true;
    });
    assert_eq!((outcome, tier), (Outcome::Unknown, TrustTier::Warning));
}

#[test]
fn an_extension_that_occurs_twice_is_refused() {
    let twice = tee().edit_certificate(|vek| vek.extensions.push((amd(&[3, 3]), integer(&[255]))));
    assert_eq!(code(twice), "certificate-duplicate-extension");
}

#[test]
fn a_chip_is_named_in_one_form_and_length() {
    let wrapped = tlv(0x04, &[&[0x5a; 64]]);
    assert_eq!(code(tee().vek_chip_id(&wrapped)), "vek-extension");
    assert_eq!(code(tee().vek_chip_id(&[0x5a; 8])), "vek-extension");
    assert_eq!(code(tee().vek_chip_id(&[0x5b; 64])), "chip-id-mismatch");
    // First bytes that look like the tags of an INTEGER and of an OCTET STRING.
    for first in [0x02, 0x04] {
        let mut chip = [0x3e; 64];
        chip[0] = first;
        assert!(appraise(tee().chip_id(chip)).is_ok());
    }
}

#[test]
fn a_key_belongs_to_a_chip_or_to_a_provider_never_to_both() {
    fn provider(vek: &mut Template) {
        vek.extensions.push((amd(&[5]), tlv(0x16, &[b"provider"])));
    }
    fn chip(vek: &mut Template) {
        vek.extensions.push((amd(&[4]), vec![0x5a; 64]));
    }
    fn nobody(vek: &mut Template) {
        vek.extensions
            .retain(|(oid, _)| *oid != amd(&[4]) && *oid != amd(&[5]));
    }
    assert_eq!(code(tee().edit_certificate(provider)), "vek-extension");
    assert_eq!(
        code(tee().vlek("provider").edit_certificate(chip)),
        "vek-extension"
    );
    assert_eq!(code(tee().edit_certificate(nobody)), "vek-extension");
    assert_eq!(
        code(tee().vlek("provider").edit_certificate(nobody)),
        "vek-extension"
    );
}

#[test]
fn the_key_belongs_to_the_reported_tcb_in_every_component() {
    let base = DEFAULT_TCB;
    for (other, expected) in [
        (
            TcbVersion {
                bootloader: 11,
                ..base
            },
            "blSPL",
        ),
        (TcbVersion { tee: 1, ..base }, "teeSPL"),
        (TcbVersion { snp: 26, ..base }, "snpSPL"),
        (
            TcbVersion {
                microcode: 200,
                ..base
            },
            "ucodeSPL",
        ),
    ] {
        match appraise(tee().vek_tcb(other)) {
            Err(AppraiseError::VekTcb { component }) => assert_eq!(component, expected),
            verdict => panic!("{expected}: {verdict:?}"),
        }
        assert_eq!(code(tee().reported_tcb(other)), "vek-tcb-mismatch");
    }
}

#[test]
fn a_key_without_all_components_of_its_product_is_refused() {
    fn without_microcode(vek: &mut Template) {
        vek.extensions.retain(|(oid, _)| *oid != amd(&[3, 8]));
    }
    fn with_fmc(vek: &mut Template) {
        vek.extensions.push((amd(&[3, 9]), integer(&[0])));
    }
    fn of_another_product(vek: &mut Template) {
        vek.extensions.retain(|(oid, _)| *oid != amd(&[2]));
        vek.extensions.push((amd(&[2]), tlv(0x16, &[b"Turin"])));
    }
    fn too_large(vek: &mut Template) {
        vek.extensions.retain(|(oid, _)| *oid != amd(&[3, 8]));
        vek.extensions.push((amd(&[3, 8]), integer(&[1, 84])));
    }
    for edit in [
        without_microcode as fn(&mut Template),
        with_fmc,
        of_another_product,
        too_large,
    ] {
        assert_eq!(code(tee().edit_certificate(edit)), "vek-extension");
    }
}

#[test]
fn certificates_of_two_instances_do_not_mix() {
    let [first, second] = [SimulatedTee::new(NOW), SimulatedTee::new(NOW)]
        .map(|tee| tee.unwrap().attest(&challenge().report_data()).unwrap());
    let mixed = with_report(&first, second.report().to_vec());
    let verdict = verifier(reference()).appraise(&mixed, &challenge(), NOW);
    assert_eq!(verdict.unwrap_err().code(), "signature");
}

fn keep(_: &mut Template) {}

#[test]
fn an_authority_is_named_and_used_as_one() {
    fn other_product(root: &mut Template) {
        root.issuer = "ARK-Turin".to_owned();
        root.subject = "ARK-Turin".to_owned();
    }
    fn issued_by_other(intermediate: &mut Template) {
        intermediate.issuer = "ARK-Turin".to_owned();
    }
    fn no_authority(it: &mut Template) {
        it.extensions.clear();
    }
    fn no_certificate_signing(it: &mut Template) {
        it.extensions.pop();
    }
    fn of_another_kind(it: &mut Template) {
        it.key_algorithm = crate::endorsement::EC_P384.to_vec();
    }
    assert!(appraise(tee().edit_authorities(keep, keep)).is_ok());
    let renamed = tee().edit_authorities(other_product, issued_by_other);
    assert_eq!(code(renamed), "root-name");
    assert_eq!(
        code(tee().edit_authorities(other_product, keep)),
        "root-name"
    );
    assert_eq!(
        code(tee().edit_authorities(keep, issued_by_other)),
        "certificate-issuer"
    );
    for useless in [no_authority as fn(&mut Template), no_certificate_signing] {
        assert_eq!(
            code(tee().edit_authorities(keep, useless)),
            "certificate-usage"
        );
        assert_eq!(
            code(tee().edit_authorities(useless, keep)),
            "certificate-usage"
        );
    }
    assert_eq!(
        code(tee().edit_authorities(keep, of_another_kind)),
        "certificate-key"
    );
}

#[test]
fn an_expired_authority_ends_the_chain() {
    fn expired(it: &mut Template) {
        it.not_after = NOW.minus_seconds(1);
    }
    fn soon(it: &mut Template) {
        it.not_after = NOW.plus_seconds(1);
    }
    assert_eq!(
        code(tee().edit_authorities(expired, keep)),
        "certificate-expired"
    );
    assert_eq!(
        code(tee().edit_authorities(keep, expired)),
        "certificate-expired"
    );
    let appraisal = appraise(tee().edit_authorities(soon, keep)).unwrap();
    assert_eq!(appraisal.not_after(), NOW.plus_seconds(1));
}

#[test]
fn a_remembered_chain_gets_every_verdict_that_a_new_one_gets() {
    let verifier = Verifier::builder()
        .reference_values(reference())
        .remember(8)
        .dangerous()
        .accept_simulated()
        .build()
        .unwrap();
    let guest = evidence(tee().vek_validity(NOW, NOW.plus_seconds(YEAR)));
    let first = verifier.appraise(&guest, &challenge(), NOW).unwrap();
    assert_eq!(verifier.appraise(&guest, &challenge(), NOW).unwrap(), first);
    let code = |evidence: &Evidence, now| {
        let verdict = verifier.appraise(evidence, &challenge(), now);
        verdict.unwrap_err().code()
    };
    let late = NOW.plus_seconds(YEAR + 1);
    assert_eq!(code(&guest, late), "certificate-expired");
    let revoked = simulated_crl(NOW, Some(NOW.plus_seconds(9)), true).unwrap();
    let revoked = guest.clone().with_crl(revoked).unwrap();
    assert_eq!(code(&revoked, NOW), "revoked");
    // Under the same names and keys, and never signed.
    for which in 0..3 {
        let mut changed = certificates(&guest);
        *changed[which].last_mut().unwrap() ^= 1;
        let changed = with_certificates(&guest, changed);
        assert_eq!(code(&changed, NOW), "certificate-signature");
    }
    let mut report = guest.report().to_vec();
    report[0x90] ^= 1;
    assert_eq!(code(&with_report(&guest, report), NOW), "signature");
}
