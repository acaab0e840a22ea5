//! The signature checks that an appraisal cannot do without, with nothing around them.

// Each bench uses a part of it.
#![allow(dead_code)]

use std::hint::black_box;

use der::{Decode as _, Reader as _, SliceReader};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_FIXED, RSA_PSS_2048_8192_SHA384, UnparsedPublicKey,
    VerificationAlgorithm,
};

/// One signature, ready to be verified.
pub struct Check {
    pub algorithm: &'static dyn VerificationAlgorithm,
    pub key: Vec<u8>,
    pub message: Vec<u8>,
    pub signature: Vec<u8>,
}

impl Check {
    /// A certificate or a CRL: both are a signed part, an algorithm and a signature.
    pub fn certificate(der: &[u8], issuer: &[u8]) -> Self {
        let [tbs, _, signature] = elements(der);
        let key = public_key(issuer);
        let is_point = key.len() == 65;
        let algorithm: &dyn VerificationAlgorithm = if is_point {
            &ECDSA_P256_SHA256_ASN1
        } else {
            &RSA_PSS_2048_8192_SHA384
        };
        Self {
            algorithm,
            key,
            message: tbs.to_vec(),
            signature: bits(signature),
        }
    }

    pub fn report(report: &[u8], vek: &[u8]) -> Self {
        let big_endian = |at: usize| report[at..at + 48].iter().rev().copied();
        Self {
            algorithm: &ECDSA_P384_SHA384_FIXED,
            key: public_key(vek),
            message: report[..0x2a0].to_vec(),
            signature: big_endian(0x2a0).chain(big_endian(0x2e8)).collect(),
        }
    }
}

/// Verifies them all.
pub fn verify<'a>(checks: impl IntoIterator<Item = &'a Check>) {
    for check in checks {
        UnparsedPublicKey::new(check.algorithm, &check.key)
            .verify(black_box(&check.message), &check.signature)
            .unwrap();
    }
}

/// The three elements of a certificate or of a CRL.
fn elements(der: &[u8]) -> [&[u8]; 3] {
    let mut reader = SliceReader::new(content(der)).unwrap();
    std::array::from_fn(|_| reader.tlv_bytes().unwrap())
}

fn content(der: &[u8]) -> &[u8] {
    der::asn1::AnyRef::from_der(der).unwrap().value()
}

/// The bytes of a BIT STRING, after the number of unused bits.
fn bits(der: &[u8]) -> Vec<u8> {
    content(der)[1..].to_vec()
}

pub fn public_key(certificate: &[u8]) -> Vec<u8> {
    let [tbs, ..] = elements(certificate);
    let mut fields = SliceReader::new(content(tbs)).unwrap();
    // Version, serial, algorithm, issuer, validity, subject.
    for _ in 0..6 {
        fields.tlv_bytes().unwrap();
    }
    let mut key = SliceReader::new(content(fields.tlv_bytes().unwrap())).unwrap();
    key.tlv_bytes().unwrap();
    bits(key.tlv_bytes().unwrap())
}
