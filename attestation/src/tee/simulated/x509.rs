//! Writes certificates and CRLs of the form that AMD issues, and with other algorithms Intel.

use std::time::Duration;

use der::Encode as _;
use der::asn1::{GeneralizedTime, UtcTime};

use crate::endorsement::{EC_P384, PSS_SHA384_EXPLICIT};
use crate::time::UnixTime;

/// A certificate before it is signed.
#[derive(Clone)]
pub(crate) struct Template {
    pub(crate) serial: u32,
    pub(crate) issuer: String,
    pub(crate) subject: String,
    pub(crate) not_before: UnixTime,
    pub(crate) not_after: UnixTime,
    /// `AlgorithmIdentifier` of the key.
    pub(crate) key_algorithm: Vec<u8>,
    pub(crate) public_key: Vec<u8>,
    /// Content of an OID, and content of the OCTET STRING.
    pub(crate) extensions: Vec<(Vec<u8>, Vec<u8>)>,
    /// The algorithm named in the signed part and outside of it.
    pub(crate) algorithm: Vec<u8>,
}

/// What varies between certificates of signing keys.
pub(super) struct VekTemplate {
    pub(super) tcb: [u8; 8],
    pub(super) chip: Option<Vec<u8>>,
    pub(super) provider: Option<String>,
    pub(super) not_before: UnixTime,
    pub(super) not_after: UnixTime,
}

/// A CRL before it is signed.
pub(crate) struct CrlTemplate {
    pub(crate) issuer: String,
    pub(crate) this_update: UnixTime,
    pub(crate) next_update: Option<UnixTime>,
    pub(crate) revoked: Vec<u32>,
    /// The algorithm named in the signed part.
    pub(crate) algorithm: Vec<u8>,
}

impl VekTemplate {
    pub(super) fn certificate(&self, point: &[u8]) -> Template {
        let mut extensions = vec![
            (amd(&[1]), integer(&[0])),
            (amd(&[2]), tlv(0x16, &[b"Genoa"])),
        ];
        // blSPL, teeSPL, spl4 to spl7, snpSPL, ucodeSPL: the order of the TCB_VERSION's bytes.
        for (arc, svn) in [1, 2, 4, 5, 6, 7, 3, 8].into_iter().zip(self.tcb) {
            extensions.push((amd(&[3, arc]), integer(&[svn])));
        }
        if let Some(chip) = &self.chip {
            extensions.push((amd(&[4]), chip.clone()));
        }
        if let Some(provider) = &self.provider {
            extensions.push((amd(&[5]), tlv(0x16, &[provider.as_bytes()])));
        }
        let (issuer, subject) = match self.provider {
            Some(_) => ("SEV-VLEK-Genoa", "SEV-VLEK"),
            None => ("SEV-Genoa", "SEV-VCEK"),
        };
        Template {
            serial: 0,
            issuer: issuer.to_owned(),
            subject: subject.to_owned(),
            not_before: self.not_before,
            not_after: self.not_after,
            key_algorithm: EC_P384.to_vec(),
            public_key: point.to_vec(),
            extensions,
            algorithm: PSS_SHA384_EXPLICIT.to_vec(),
        }
    }
}

impl Template {
    /// `TBSCertificate`, DER.
    pub(crate) fn tbs(&self) -> Vec<u8> {
        let key = sequence(&[&self.key_algorithm, &bits(&self.public_key)]);
        let extensions: Vec<Vec<u8>> = self
            .extensions
            .iter()
            .map(|(oid, value)| sequence(&[&tlv(0x06, &[oid]), &tlv(0x04, &[value])]))
            .collect();
        let extensions: Vec<&[u8]> = extensions.iter().map(Vec::as_slice).collect();
        sequence(&[
            &tlv(0xa0, &[&integer(&[2])]),
            &integer(&self.serial.to_be_bytes()),
            &self.algorithm,
            &name(&self.issuer),
            &sequence(&[&time(self.not_before), &time(self.not_after)]),
            &name(&self.subject),
            &key,
            &tlv(0xa3, &[&sequence(&extensions)]),
        ])
    }
}

impl CrlTemplate {
    /// `TBSCertList`, DER.
    pub(crate) fn tbs(&self) -> Vec<u8> {
        let entries: Vec<Vec<u8>> = self
            .revoked
            .iter()
            .map(|serial| sequence(&[&integer(&serial.to_be_bytes()), &time(self.this_update)]))
            .collect();
        let entries: Vec<&[u8]> = entries.iter().map(Vec::as_slice).collect();
        let next_update = self.next_update.map(time).unwrap_or_default();
        let revoked = if entries.is_empty() {
            Vec::new()
        } else {
            sequence(&entries)
        };
        sequence(&[
            &integer(&[1]),
            &self.algorithm,
            &name(&self.issuer),
            &time(self.this_update),
            &next_update,
            &revoked,
        ])
    }
}

/// What was signed, with the algorithm and the signature.
pub(crate) fn signed(tbs: &[u8], algorithm: &[u8], signature: &[u8]) -> Vec<u8> {
    sequence(&[tbs, algorithm, &bits(signature)])
}

/// Extensions of a certificate whose key signs certificates.
pub(crate) fn authority() -> Vec<(Vec<u8>, Vec<u8>)> {
    let constraints = sequence(&[&tlv(0x01, &[&[0xff]])]);
    let certificate_signing = tlv(0x03, &[&[2, 0b0000_0100]]);
    vec![
        (b"\x55\x1d\x13".to_vec(), constraints),
        (b"\x55\x1d\x0f".to_vec(), certificate_signing),
    ]
}

/// Content of the OID 1.3.6.1.4.1.3704.1 followed by `arcs`.
pub(crate) fn amd(arcs: &[u8]) -> Vec<u8> {
    [b"\x2b\x06\x01\x04\x01\x9c\x78\x01", arcs].concat()
}

/// An INTEGER of a big-endian unsigned number.
pub(crate) fn integer(big_endian: &[u8]) -> Vec<u8> {
    let first = big_endian.iter().position(|byte| *byte != 0);
    let digits = first
        .and_then(|first| big_endian.get(first..))
        .unwrap_or(&[0]);
    let sign: &[u8] = if digits.first().is_some_and(|byte| *byte >= 0x80) {
        &[0]
    } else {
        &[]
    };
    tlv(0x02, &[sign, digits])
}

fn name(common_name: &str) -> Vec<u8> {
    let attribute = |oid: &[u8], value: &str| {
        tlv(
            0x31,
            &[&sequence(&[
                &tlv(0x06, &[oid]),
                &tlv(0x0c, &[value.as_bytes()]),
            ])],
        )
    };
    sequence(&[
        &attribute(b"\x55\x04\x0b", "Simulated hardware, worth nothing"),
        &attribute(b"\x55\x04\x0a", "Casemate"),
        &attribute(b"\x55\x04\x03", common_name),
    ])
}

fn time(time: UnixTime) -> Vec<u8> {
    let since = Duration::from_secs(time.0);
    let encoded = UtcTime::from_unix_duration(since)
        .and_then(|time| time.to_der())
        .or_else(|_| GeneralizedTime::from_unix_duration(since).and_then(|time| time.to_der()));
    // Later than the year 9999: the last second that X.509 can write.
    encoded.unwrap_or_else(|_| tlv(0x18, &[b"99991231235959Z"]))
}

fn bits(bytes: &[u8]) -> Vec<u8> {
    tlv(0x03, &[&[0], bytes])
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, parts)
}

pub(crate) fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short < 0x80 => out.push(short),
        (Ok(byte), _) => out.extend_from_slice(&[0x81, byte]),
        (_, Ok(word)) => {
            out.push(0x82);
            out.extend_from_slice(&word.to_be_bytes());
        }
        _ => {
            let bytes = length.to_be_bytes();
            out.push(0x80 | u8::try_from(bytes.len()).unwrap_or(8));
            out.extend_from_slice(&bytes);
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}
