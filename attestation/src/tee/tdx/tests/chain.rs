//! Certificates and revocation lists.

use super::forge::Key;
use super::*;
use crate::endorsement::EC_P384;

const ROOT: usize = 0;
const AUTHORITY: usize = 1;
const PCK: usize = 2;
const TCB_SIGNING: usize = 3;

#[test]
fn another_root_of_the_same_name_is_not_believed() {
    let forge = Forge::new();
    let error = forge.appraise_as(&Forge::new().evidence()).unwrap_err();
    assert_eq!(error.code(), "unknown-root");
    let verifier = crate::Verifier::builder().build().unwrap();
    let error = verifier
        .appraise_bound_to(&forge.evidence(), &DATA, NOW)
        .unwrap_err();
    assert_eq!(error.code(), "unknown-root");
}

#[test]
fn certificates_are_named_after_their_part() {
    let named = |which: usize| {
        refused(|forge| forge.certificates[which].subject = "Intel SGX Something".to_owned())
    };
    // The issuers below name the right subject, so names are looked at first.
    assert_eq!(named(ROOT), "root-name");
    assert_eq!(named(AUTHORITY), "intermediate-name");
    assert_eq!(named(PCK), "pck-name");
    assert_eq!(named(TCB_SIGNING), "tcb-signing-name");
}

#[test]
fn certificates_name_the_issuer_above_them() {
    for which in [AUTHORITY, PCK, TCB_SIGNING] {
        let code = refused(|forge| forge.certificates[which].issuer = "Somebody".to_owned());
        assert_eq!(code, "certificate-issuer");
    }
}

#[test]
fn a_key_of_another_kind_or_use_is_refused() {
    for which in [PCK, TCB_SIGNING] {
        let code = refused(|forge| forge.certificates[which].key_algorithm = EC_P384.to_vec());
        assert_eq!(code, "certificate-key");
        let code = refused(|forge| {
            let extensions = forge.certificates[ROOT].extensions.clone();
            forge.certificates[which].extensions = extensions;
        });
        assert_eq!(code, "certificate-usage");
    }
    let code = refused(|forge| forge.certificates[AUTHORITY].extensions.clear());
    assert_eq!(code, "certificate-usage");
}

#[test]
fn signatures_on_certificates_count() {
    // The PCK CA's key signs the PCK; another key is behind the name.
    let code = refused(|forge| forge.authority = Key::new());
    assert_eq!(code, "certificate-signature");
}

#[test]
fn certificates_count_through_their_last_second_only() {
    for which in [ROOT, AUTHORITY, PCK, TCB_SIGNING] {
        let mut forge = Forge::new();
        forge.certificates[which].not_after = NOW;
        assert_eq!(forge.appraise().unwrap().not_after(), NOW);
        forge.certificates[which].not_after = NOW.minus_seconds(1);
        assert_eq!(code(&forge), "certificate-expired");
        let code = refused(|forge| {
            forge.certificates[which].not_before = NOW.plus_seconds(1);
        });
        assert_eq!(code, "certificate-not-yet-valid");
    }
}

#[test]
fn whatever_is_revoked_is_refused_even_by_an_expired_list() {
    let revoked = |by_root: bool, serial: u32| {
        refused(|forge| {
            let (long_ago, ended) = (NOW.minus_seconds(100), Some(NOW.minus_seconds(50)));
            let list = if by_root {
                forge.root_crl(long_ago, ended, &[77, serial])
            } else {
                forge.pck_crl(long_ago, ended, &[77, serial])
            };
            forge.crls.push(list);
        })
    };
    assert_eq!(revoked(true, 2), "revoked");
    assert_eq!(revoked(false, 3), "revoked");
    assert_eq!(revoked(true, 4), "revoked");
    let mut forge = Forge::new();
    let end = Some(NOW.plus_seconds(1));
    // Serials are one authority's, not everybody's.
    let list = forge.pck_crl(NOW, end, &[1, 2, 4]);
    forge.crls.push(list);
    assert!(forge.appraise().is_ok());
}

#[test]
fn a_list_counts_while_it_is_current() {
    let only = |list: fn(&Forge) -> Vec<u8>| {
        refused(|forge| {
            let list = list(forge);
            forge.crls[1] = list;
        })
    };
    assert_eq!(
        only(|forge| forge.pck_crl(NOW.minus_seconds(9), Some(NOW.minus_seconds(1)), &[])),
        "crl-expired"
    );
    assert_eq!(
        only(|forge| forge.pck_crl(NOW.plus_seconds(1), Some(NOW.plus_seconds(9)), &[])),
        "crl-not-yet-valid"
    );
    assert_eq!(
        only(|forge| forge.pck_crl(NOW, None, &[])),
        "crl-without-end"
    );
    assert_eq!(only(Forge::forged_crl), "crl-signature");
    assert_eq!(only(|_| vec![0x30, 0]), "crl-malformed");
}

#[test]
fn evidence_is_not_affirmed_without_current_lists_of_both_authorities() {
    for missing in [0, 1] {
        let without = judged("tdx.revocation", |forge| {
            forge.crls.remove(missing);
        });
        assert_eq!(without, (Outcome::Unknown, TrustTier::Warning));
    }
    let foreign = judged("tdx.revocation", |forge| {
        forge.crls[1] = forge.foreign_crl()
    });
    assert_eq!(foreign, (Outcome::Unknown, TrustTier::Warning));
}

#[test]
fn the_platforms_extensions_must_be_complete_and_occur_once() {
    assert_eq!(
        refused(|forge| forge.extensions.fmspc.truncate(5)),
        "pck-extension"
    );
    assert_eq!(
        refused(|forge| forge.extensions.twice = true),
        "pck-extension"
    );
}
