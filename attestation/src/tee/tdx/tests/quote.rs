//! The quote itself: its bytes, its signatures, and who vouches for its key.

use proptest::prelude::*;

use super::forge::{Key, at};
use super::*;
use crate::evidence::{Endorsements, Evidence, Tee};
use crate::tee::tdx::{Quote, QuoteError};

/// The same body as TDX 1.0 in version 4, which has no descriptor.
fn version_4(forge: &mut Forge) {
    forge.header[0] = 4;
    forge.body.truncate(584);
}

fn extended(forge: &mut Forge) {
    forge.body_kind = 4;
    forge.body.resize(885, 0);
}

#[test]
fn evidence_as_it_should_be_is_affirmed() {
    let bodies: [fn(&mut Forge); 4] = [
        |_| {},
        version_4,
        extended,
        |forge| {
            forge.body_kind = 2;
            forge.body.truncate(584);
        },
    ];
    for edit in bodies {
        let mut forge = Forge::new();
        edit(&mut forge);
        let appraisal = forge.appraise().unwrap();
        assert_eq!(
            appraisal.tier(),
            TrustTier::Affirming,
            "{:?}",
            appraisal.checks()
        );
        assert_eq!(appraisal.tee(), Tee::Tdx);
        assert!(!appraisal.is_simulated());
        assert_eq!(appraisal.report_data(), &DATA);
        assert_eq!(appraisal.measurement(), [0x11; 48]);
        assert_eq!(appraisal.not_after(), NOW.plus_seconds(30));
    }
}

#[test]
fn a_quote_is_bound_to_its_challenge_in_all_64_bytes() {
    for offset in [0, 31, 32, 63] {
        let code = refused(|forge| forge.body[at::REPORT_DATA + offset] ^= 1);
        assert_eq!(code, "binding");
    }
}

#[test]
fn every_field_of_the_header_is_as_it_must_be() {
    let header = |at: usize, byte: u8| refused(|forge| forge.header[at] = byte);
    for version in [0, 3, 6] {
        assert_eq!(header(0, version), "quote-version");
    }
    assert_eq!(header(1, 1), "quote-version");
    assert_eq!(header(2, 3), "quote-key-type");
    assert_eq!(header(4, 0), "quote-tee-type");
    assert_eq!(header(7, 1), "quote-tee-type");
    assert_eq!(header(12, 0), "quote-vendor");
    assert_eq!(refused(|forge| forge.body_kind = 1), "quote-body");
    assert_eq!(refused(|forge| forge.body_kind = 2), "quote-body");
    assert_eq!(refused(|forge| forge.body_kind = 5), "quote-body");
    // A body of TDX 1.5 in version 4 is where the signature ought to be.
    assert_ne!(refused(|forge| forge.header[0] = 4), "binding");
}

#[test]
fn a_quote_without_its_chain_is_refused() {
    for kind in [1, 2, 3, 4, 7] {
        let code = refused(|forge| forge.certification[1] = kind);
        assert_eq!(code, "quote-certification");
    }
    let code = refused(|forge| forge.certification[0] = 5);
    assert_eq!(code, "quote-certification");
}

#[test]
fn only_zeroes_may_follow_a_quote() {
    let mut forge = Forge::new();
    forge.after[1] = vec![0; 3000];
    assert_eq!(claims(&forge.appraise().unwrap()).padding, 3000);
    forge.after[1][2999] = 1;
    assert_eq!(code(&forge), "quote-trailing");
}

#[test]
fn an_enclave_vouches_for_the_key_with_both_halves_of_its_report_data() {
    assert_eq!(
        refused(|forge| forge.qe_binding = Some([0; 64])),
        "qe-binding"
    );
    let mut forge = Forge::new();
    let quote = forge.quote();
    let right: [u8; 64] = Quote::parse(&quote).unwrap().qe_report.report_data();
    let mut second_half = right;
    second_half[63] = 1;
    forge.qe_binding = Some(second_half);
    assert_eq!(code(&forge), "qe-binding");
    forge.qe_binding = Some(right);
    assert!(forge.appraise().is_ok());
    forge.qe_authentication[0] ^= 1;
    assert_eq!(code(&forge), "qe-binding");
}

#[test]
fn the_enclave_must_have_run_on_the_certified_platform() {
    let code = refused(|forge| forge.qe_signer = Some(Key::new()));
    assert_eq!(code, "qe-signature");
}

#[test]
fn only_the_quoting_enclave_for_tdx_signs_quotes_with_collateral_or_without() {
    for with_collateral in [true, false] {
        let other = |offset: usize, byte: u8| {
            refused(|forge| {
                forge.with_collateral = with_collateral;
                forge.put_qe(offset, &[byte]);
            })
        };
        assert_eq!(other(at::QE_MR_SIGNER, 0), "qe-identity");
        assert_eq!(other(at::QE_PROD_ID, 1), "qe-identity");
        // Readable from outside.
        assert_eq!(other(at::QE_ATTRIBUTES, 0x13), "qe-identity");
    }
    let misc_select = refused(|forge| forge.put_qe(16, &[1]));
    assert_eq!(misc_select, "qe-identity");
}

#[test]
fn every_flipped_byte_of_a_quote_is_noticed() {
    let forge = Forge::new();
    let quote = forge.quote();
    for offset in 0..quote.len() {
        let mut other = quote.clone();
        other[offset] ^= 0x40;
        let evidence = Evidence::new(Tee::Tdx, other, Endorsements::default()).unwrap();
        assert!(forge.appraise_as(&evidence).is_err(), "byte {offset}");
    }
}

#[test]
fn every_truncation_is_refused_and_every_length_counts() {
    let quote = Forge::new().quote();
    for length in 0..quote.len() {
        assert!(Quote::parse(&quote[..length]).is_err(), "{length} bytes");
    }
    let parse = |offset: usize, delta: u8| {
        let mut other = quote.clone();
        other[offset] = other[offset].wrapping_add(delta);
        Quote::parse(&other).map(|_| ()).unwrap_err()
    };
    // Length of the signature data, of the outer and of the inner certification data.
    let data = 48 + 6 + 648;
    let outer = data + 4 + 128 + 2;
    let authentication = outer + 4 + 384 + 64;
    assert_eq!(parse(data, 1), QuoteError::Truncated("signature data"));
    assert_eq!(parse(outer, 1), QuoteError::Truncated("certification data"));
    let short = parse(outer, u8::MAX);
    assert!(matches!(
        short,
        QuoteError::Length { .. } | QuoteError::Truncated(_)
    ));
    assert_ne!(parse(authentication, 1).code(), "quote-trailing");
    assert_eq!(parse(data + 3, 0xff).code(), "quote-truncated");
    // Room for what nobody signed, at either depth.
    for depth in [0, 1] {
        let code = refused(|forge| forge.between[depth] = vec![0]);
        assert_eq!(code, "quote-length");
    }
}

#[test]
fn only_three_pem_certificates_are_a_chain() {
    let trailing = |bytes: &[u8]| refused(|forge| forge.after[0] = bytes.to_vec());
    assert_eq!(trailing(b"x"), "pck-chain-malformed");
    assert_eq!(trailing(b"\xff"), "pck-chain-malformed");
    assert_eq!(
        trailing(b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"),
        "pck-chain-malformed"
    );
    let mut forge = Forge::new();
    forge.after[0] = b"\n\0\0".to_vec();
    assert!(forge.appraise().is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_make_the_parser_panic(
        noise in proptest::collection::vec(any::<u8>(), 0..1500),
        version in 4_u8..6,
        kind in 0_u8..6,
    ) {
        let _ = Quote::parse(&noise);
        let forge = Forge::new();
        let mut bytes = forge.header.to_vec();
        bytes[0] = version;
        if version == 5 {
            bytes.extend_from_slice(&[kind, 0, 0x88, 2, 0, 0]);
        }
        bytes.extend_from_slice(&noise);
        if let Ok(quote) = Quote::parse(&bytes) {
            let report = quote.report();
            let _ = (report.rtmrs(), report.service_td(), format!("{quote:?} {report:?}"));
        }
    }
}
