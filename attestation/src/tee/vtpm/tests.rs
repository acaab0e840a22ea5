//! A TPM of our own, whose key is certified by nobody, for what genuine TPMs do not sign.

use std::collections::BTreeMap;

use proptest::prelude::*;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};

use super::evidence::VtpmEvidence;
use super::hcl::{HclReport, RuntimeData};
use super::key::AttestationKey;
use super::quote::{TpmQuote, TpmSignature};
use super::verifier::{VtpmError, quoted};
use crate::encoding::Hex;

const NONCE: &[u8] = b"a challenge";

/// What a quote says; each field can be set wrong.
struct Tpm {
    key: EcdsaKeyPair,
    magic: u32,
    kind: u16,
    bank: u16,
    select: Vec<u8>,
    pcrs: BTreeMap<u8, Hex<32>>,
    trailing: Vec<u8>,
    signature: fn(Vec<u8>) -> Vec<u8>,
}

/// r and s of 32 bytes each, as a TPMT_SIGNATURE of ECDSA with SHA-256.
fn ecdsa(signature: Vec<u8>) -> Vec<u8> {
    let (r, s) = signature.split_at(32);
    [&[0, 0x18, 0, 0x0b, 0, 32], r, &[0, 32], s].concat()
}

impl Tpm {
    fn new() -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        Self {
            key: EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap(),
            magic: 0xff54_4347,
            kind: 0x8018,
            bank: 0x000b,
            select: vec![0b0001_0001, 0, 0],
            pcrs: [(0, Hex([1; 32])), (4, Hex([2; 32]))].into(),
            trailing: Vec::new(),
            signature: ecdsa,
        }
    }

    fn quote(&self) -> Vec<u8> {
        let sized = |bytes: &[u8]| {
            let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
            [&length, bytes].concat()
        };
        let values: Vec<u8> = self.pcrs.values().flat_map(|value| value.0).collect();
        [
            &self.magic.to_be_bytes()[..],
            &self.kind.to_be_bytes(),
            &sized(b"a name"),
            &sized(NONCE),
            &[0; 17],
            &[7; 8],
            &1_u32.to_be_bytes(),
            &self.bank.to_be_bytes(),
            &[u8::try_from(self.select.len()).unwrap()],
            &self.select,
            &sized(digest(&SHA256, &values).as_ref()),
            &self.trailing,
        ]
        .concat()
    }

    fn verdict(&self, nonce: &[u8]) -> Result<(), VtpmError> {
        let quote = self.quote();
        let signature = self.key.sign(&SystemRandom::new(), &quote).unwrap();
        let signature = (self.signature)(signature.as_ref().to_vec());
        let evidence = VtpmEvidence::new(quote, signature, self.pcrs.clone()).unwrap();
        let key = AttestationKey::P256(self.key.public_key().as_ref().to_vec());
        quoted(&evidence, &key, nonce).map(drop)
    }

    fn code(&self) -> &'static str {
        self.verdict(NONCE).unwrap_err().code()
    }
}

#[test]
fn a_quote_on_p256_is_believed_for_its_own_challenge_only() {
    let tpm = Tpm::new();
    assert_eq!(tpm.verdict(NONCE), Ok(()));
    assert_eq!(tpm.verdict(b"a challeng"), Err(VtpmError::Nonce));
    assert_eq!(tpm.verdict(b"a challenge\0"), Err(VtpmError::Nonce));
    assert_eq!(tpm.verdict(b""), Err(VtpmError::Nonce));
}

#[test]
fn what_a_tpm_signs_that_is_no_quote_of_sha256_pcrs_is_refused() {
    let tpm = |set: fn(&mut Tpm)| {
        let mut tpm = Tpm::new();
        set(&mut tpm);
        tpm.code()
    };
    // A key that signs what it is given would sign this.
    assert_eq!(tpm(|tpm| tpm.magic = 0x0054_4347), "vtpm-quote-magic");
    assert_eq!(tpm(|tpm| tpm.kind = 0x8017), "vtpm-quote-kind");
    assert_eq!(tpm(|tpm| tpm.trailing = vec![0]), "vtpm-quote-malformed");
    assert_eq!(tpm(|tpm| tpm.select = vec![1; 5]), "vtpm-quote-malformed");
    assert_eq!(tpm(|tpm| tpm.bank = 0x0004), "vtpm-pcr-bank");
    assert_eq!(tpm(|tpm| tpm.bank = 0x0012), "vtpm-pcr-bank");
    assert_eq!(tpm(|tpm| tpm.select = vec![0; 3]), "vtpm-pcr-bank");
    assert_eq!(
        tpm(|tpm| tpm.select = vec![0x13, 0, 0]),
        "vtpm-pcr-selection"
    );
    assert_eq!(
        tpm(|tpm| tpm.select = vec![0x01, 0, 0]),
        "vtpm-pcr-selection"
    );
}

#[test]
fn a_signature_is_of_the_scheme_it_says_and_of_the_kind_of_the_key() {
    let code = |signature: fn(Vec<u8>) -> Vec<u8>| {
        let mut tpm = Tpm::new();
        tpm.signature = signature;
        tpm.code()
    };
    let as_rsa: fn(Vec<u8>) -> Vec<u8> = |raw| TpmSignature::from_rsassa_sha256(&raw);
    assert_eq!(code(as_rsa), "vtpm-signature-algorithm");
    // SHA-1; a MAC; SM2.
    for (at, byte) in [(3, 4), (1, 5), (1, 0x1b)] {
        let damaged = Tpm {
            signature: match (at, byte) {
                (3, _) => |raw| [&[0, 0x18, 0, 4], &ecdsa(raw)[4..]].concat(),
                (_, 5) => |raw| [&[0, 5, 0, 0x0b], &ecdsa(raw)[4..]].concat(),
                _ => |raw| [&[0, 0x1b, 0, 0x0b], &ecdsa(raw)[4..]].concat(),
            },
            ..Tpm::new()
        };
        assert_eq!(damaged.code(), "vtpm-signature-algorithm");
    }
    assert_eq!(
        code(|raw| ecdsa(raw)[..60].to_vec()),
        "vtpm-signature-encoding"
    );
    assert_eq!(
        code(|raw| [ecdsa(raw), vec![0]].concat()),
        "vtpm-signature-encoding"
    );
    assert_eq!(
        code(|raw| [&ecdsa(raw)[..6], &[0; 32], &[0, 32], &[0; 32]].concat()),
        "vtpm-signature"
    );
}

#[test]
fn runtime_data_have_exactly_one_attestation_key_of_the_right_kind() {
    let wrong = |json: &str| RuntimeData::read(json.as_bytes()).err();
    let key = r#"{"kid":"HCLAkPub","kty":"RSA","n":"AQAB","e":"AQAB"}"#;
    assert_eq!(wrong(&format!(r#"{{"keys":[{key}]}}"#)), None);
    let no_one = Some("not exactly one key `HCLAkPub`");
    assert_eq!(wrong(&format!(r#"{{"keys":[{key},{key}]}}"#)), no_one);
    assert_eq!(wrong(r#"{"keys":[]}"#), no_one);
    assert_eq!(
        wrong(r#"{"keys":[{"kid":"HCLEkPub","kty":"RSA"}]}"#),
        no_one
    );
    let other_kind = Some("`HCLAkPub` is no RSA key");
    assert_eq!(
        wrong(r#"{"keys":[{"kid":"HCLAkPub","kty":"EC"}]}"#),
        other_kind
    );
    let malformed = Some("not JSON of the documented form");
    assert_eq!(wrong(r#"{"keys":{}}"#), malformed);
    assert_eq!(
        wrong(&format!(r#"{{"keys":[{key}],"keys":[{key}]}}"#)),
        malformed
    );
    assert_eq!(wrong(&"[".repeat(10_000)), malformed);
}

/// The fields with this number of a protocol buffer.
fn fields(mut message: &[u8], wanted: u64) -> Vec<Vec<u8>> {
    fn number(message: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (byte, rest) = message.split_first().unwrap();
            *message = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                break;
            }
        }
        value
    }
    let mut found = Vec::new();
    while !message.is_empty() {
        let key = number(&mut message);
        if key & 7 == 0 {
            number(&mut message);
            continue;
        }
        let length = usize::try_from(number(&mut message)).unwrap();
        let (value, rest) = message.split_at(length);
        message = rest;
        if key >> 3 == wanted {
            found.push(value.to_vec());
        }
    }
    found
}

#[test]
fn a_genuine_quote_of_gcp_is_believed_and_its_log_replays() {
    let root = std::env::var_os("CASEMATE_VECTORS").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors"),
        std::path::PathBuf::from,
    );
    let Ok(message) = std::fs::read(root.join("vtpm/gce-cos85-nonce9009.pb")) else {
        assert!(std::env::var_os("CI").is_none(), "no vectors");
        println!(
            "skipped: no vectors in {}; set CASEMATE_VECTORS",
            root.display()
        );
        return;
    };
    // TPMT_PUBLIC of RSA with 2048 bits ends with the modulus.
    let key = &fields(&message, 1)[0];
    let key = AttestationKey::rsa(&key[key.len() - 256..], &[1, 0, 1]);
    let mut banks = Vec::new();
    for quote in fields(&message, 2) {
        let pcrs = fields(&fields(&quote, 3)[0], 2);
        let pcrs: BTreeMap<u8, Hex<32>> = pcrs
            .iter()
            .filter_map(|pcr| {
                // Protocol buffers leave out a zero.
                let number = if pcr[0] == 8 { pcr[1] } else { 0 };
                Some((number, Hex(fields(pcr, 2)[0].as_slice().try_into().ok()?)))
            })
            .collect();
        let [signed, signature] = [1, 2].map(|field| fields(&quote, field).swap_remove(0));
        let evidence = VtpmEvidence::new(signed, signature, pcrs.clone()).unwrap();
        let nonce = TpmQuote::parse(evidence.quote())
            .unwrap()
            .extra_data()
            .to_vec();
        match quoted(&evidence, &key, &nonce) {
            Ok(_) => {
                let log = fields(&message, 3).swap_remove(0);
                let log = crate::eventlog::EventLog::parse_pcrs(&log).unwrap();
                let replayed = log.replay_pcrs();
                for (number, value) in &pcrs {
                    if *number < 10 {
                        assert_eq!(replayed.values()[usize::from(*number)], *value, "{number}");
                    }
                }
                banks.push("sha256");
            }
            Err(error) => banks.push(error.code()),
        }
    }
    // One quote for each bank; ours is that of SHA-256.
    assert_eq!(banks, ["vtpm-pcr-bank", "sha256", "vtpm-pcr-bank"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_bytes_make_the_parsers_panic(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = TpmQuote::parse(&noise);
        let _ = TpmSignature::parse(&noise);
        let _ = HclReport::parse(&noise);
        let _ = RuntimeData::read(&noise);
        let mut quote = Tpm::new().quote();
        quote.extend_from_slice(&noise);
        for length in 0..quote.len() {
            let _ = TpmQuote::parse(&quote[..length]);
        }
    }
}
