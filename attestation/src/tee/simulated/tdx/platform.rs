//! A platform with TDX: its keys and certificates, its quoting enclave, and the quote of one TD.
//!
//! Every part can be set wrong before it is signed, so that the verifier's tests forge with it too.

use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
};
use serde_json::Value;

use super::collateral;
use crate::attester::AttestError;
use crate::endorsement::{EC_P256, ECDSA_SHA256};
use crate::evidence::{Endorsements, Evidence, Tee};
use crate::tee::simulated::x509::{CrlTemplate, Template, authority, integer, signed, tlv};
use crate::tee::tdx::SGX_EXTENSIONS;
use crate::time::UnixTime;

const YEAR: u64 = 365 * 24 * 60 * 60;
const DAY: u64 = 24 * 60 * 60;

pub(crate) const ROOT: &str = "Intel SGX Root CA";
pub(crate) const PLATFORM_CA: &str = "Intel SGX PCK Platform CA";

/// A key on P-256, for signatures in both encodings.
pub(crate) struct Key {
    fixed: EcdsaKeyPair,
    asn1: EcdsaKeyPair,
}

impl Key {
    pub(crate) fn generate() -> Result<Self, AttestError> {
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new())
            .map_err(|_| AttestError::Simulated("cannot make a key"))?;
        Self::from_pkcs8(pkcs8.as_ref())
    }

    pub(crate) fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, AttestError> {
        let random = SystemRandom::new();
        let read = |algorithm| {
            EcdsaKeyPair::from_pkcs8(algorithm, pkcs8, &random)
                .map_err(|_| AttestError::Simulated("cannot read a key"))
        };
        Ok(Self {
            fixed: read(&ECDSA_P256_SHA256_FIXED_SIGNING)?,
            asn1: read(&ECDSA_P256_SHA256_ASN1_SIGNING)?,
        })
    }

    fn point(&self) -> &[u8] {
        self.fixed.public_key().as_ref()
    }

    /// r and s, 32 bytes each.
    pub(crate) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, AttestError> {
        let signature = self.fixed.sign(&SystemRandom::new(), message);
        signature
            .map(|signature| signature.as_ref().to_vec())
            .map_err(|_| AttestError::Simulated("cannot sign"))
    }

    /// A certificate or list of its signed part.
    pub(crate) fn signed(&self, tbs: &[u8]) -> Result<Vec<u8>, AttestError> {
        let signature = self.asn1.sign(&SystemRandom::new(), tbs);
        signature
            .map(|signature| signed(tbs, ECDSA_SHA256, signature.as_ref()))
            .map_err(|_| AttestError::Simulated("cannot sign a certificate"))
    }

    /// A revocation list by the authority of this name.
    pub(crate) fn crl(
        &self,
        issuer: &str,
        this_update: UnixTime,
        next_update: Option<UnixTime>,
        revoked: &[u32],
    ) -> Result<Vec<u8>, AttestError> {
        let template = CrlTemplate {
            issuer: issuer.to_owned(),
            this_update,
            next_update,
            revoked: revoked.to_vec(),
            algorithm: ECDSA_SHA256.to_vec(),
        };
        self.signed(&template.tbs())
    }
}

/// Where fields of a TD report begin, and those of a QE report.
pub(crate) mod at {
    pub(crate) const TEE_TCB_SVN: usize = 0;
    #[cfg(test)]
    pub(crate) const MR_SIGNER_SEAM: usize = 64;
    #[cfg(test)]
    pub(crate) const SEAM_ATTRIBUTES: usize = 112;
    pub(crate) const TD_ATTRIBUTES: usize = 120;
    pub(crate) const XFAM: usize = 128;
    pub(crate) const MR_TD: usize = 136;
    pub(crate) const MR_CONFIG_ID: usize = 184;
    pub(crate) const RTMR0: usize = 328;
    pub(crate) const REPORT_DATA: usize = 520;
    pub(crate) const TEE_TCB_SVN_2: usize = 584;
    pub(crate) const MR_SERVICE_TD: usize = 600;

    pub(crate) const QE_ATTRIBUTES: usize = 48;
    pub(crate) const QE_MR_SIGNER: usize = 128;
    pub(crate) const QE_PROD_ID: usize = 256;
    pub(crate) const QE_SVN: usize = 258;
}

/// What the SGX extensions of the PCK certificate say.
pub(crate) struct Pck {
    pub(crate) components: [u8; 16],
    pub(crate) pce_svn: u8,
    pub(crate) fmspc: Vec<u8>,
    pub(crate) ppid: [u8; 16],
    /// Says its family twice.
    pub(crate) twice: bool,
}

/// Everything that evidence of TDX is made of.
pub(crate) struct Platform {
    pub(crate) root: Key,
    pub(crate) authority: Key,
    pub(crate) pck: Key,
    /// Signs the QE report instead of the PCK.
    pub(crate) qe_signer: Option<Key>,
    pub(crate) attestation: Key,
    pub(crate) tcb_signing: Key,
    /// Root, PCK CA, PCK, TCB signing.
    pub(crate) certificates: [Template; 4],
    pub(crate) extensions: Pck,

    /// Version, key type, TEE type, SVNs, vendor, user data.
    pub(crate) header: [u8; 48],
    pub(crate) body_kind: u16,
    pub(crate) body: Vec<u8>,
    pub(crate) qe_report: Vec<u8>,
    pub(crate) qe_authentication: Vec<u8>,
    /// What the QE report is bound to, if not to the attestation key.
    pub(crate) qe_binding: Option<[u8; 64]>,
    /// Type of the outer and of the inner certification data.
    pub(crate) certification: [u16; 2],
    /// What comes after the PEM, and after the quote.
    pub(crate) after: [Vec<u8>; 2],
    /// What comes after the inner certification data, and after the outer.
    pub(crate) between: [Vec<u8>; 2],

    pub(crate) tcb_info: Value,
    pub(crate) qe_identity: Value,
    pub(crate) with_collateral: bool,
    pub(crate) crls: Vec<Vec<u8>>,
}

impl Platform {
    /// An up-to-date platform of the family 90C06F with a TD of TDX 1.5, whose registers are
    /// recognisable and whose collateral and lists are current for 30 days around `now`.
    pub(crate) fn new(root: Key, now: UnixTime) -> Result<Self, AttestError> {
        let [authority, pck, attestation, tcb_signing] = [
            Key::generate()?,
            Key::generate()?,
            Key::generate()?,
            Key::generate()?,
        ];
        let (from, to) = (now.minus_seconds(DAY), now.plus_seconds(29 * DAY));
        let crls = vec![
            root.crl(ROOT, from, Some(to), &[])?,
            authority.crl(PLATFORM_CA, from, Some(to), &[])?,
        ];
        let certificates = certificates([&root, &authority, &pck, &tcb_signing], now);
        Ok(Self {
            root,
            authority,
            pck,
            qe_signer: None,
            attestation,
            tcb_signing,
            certificates,
            extensions: Pck {
                components: [3, 3, 2, 2, 4, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0],
                pce_svn: 13,
                fmspc: vec![0x90, 0xc0, 0x6f, 0, 0, 0],
                ppid: [0xaa; 16],
                twice: false,
            },
            header: header(),
            body_kind: 3,
            body: body(),
            qe_report: qe_report(),
            qe_authentication: (0..32).collect(),
            qe_binding: None,
            certification: [6, 5],
            after: [vec![0], Vec::new()],
            between: [Vec::new(), Vec::new()],
            tcb_info: collateral::tcb_info(from, to),
            qe_identity: collateral::qe_identity(from, to),
            with_collateral: true,
            crls,
        })
    }

    /// Puts bytes into the TD report; what it has no room for is left out.
    pub(crate) fn put(&mut self, offset: usize, bytes: &[u8]) {
        put(&mut self.body, offset, bytes);
    }

    /// Puts bytes into the QE report.
    pub(crate) fn put_qe(&mut self, offset: usize, bytes: &[u8]) {
        put(&mut self.qe_report, offset, bytes);
    }

    pub(crate) fn quote(&self) -> Result<Vec<u8>, AttestError> {
        let mut signed = self.header.to_vec();
        if self.header[0] == 5 {
            signed.extend_from_slice(&self.body_kind.to_le_bytes());
            signed.extend_from_slice(&length(&self.body));
        }
        signed.extend_from_slice(&self.body);

        let mut qe_report = self.qe_report.clone();
        let key = self.attestation.point().get(1..).unwrap_or_default();
        let hash = digest(&SHA256, &[key, &self.qe_authentication].concat());
        put(&mut qe_report, 320, hash.as_ref());
        if let Some(binding) = self.qe_binding {
            put(&mut qe_report, 320, &binding);
        }
        let signer = self.qe_signer.as_ref().unwrap_or(&self.pck);
        let qe_signature = signer.sign(&qe_report)?;
        let [low, high, ..] = length(&self.qe_authentication);
        let [root, authority, pck] = self.chain()?.map(|der| pem(&der));
        let chain = [pck, authority, root, self.after[0].clone()].concat();
        let inner = [
            &qe_report[..],
            &qe_signature,
            &[low, high],
            &self.qe_authentication,
            &certification(self.certification[1], &chain),
            &self.between[0],
        ]
        .concat();
        let data = [
            &self.attestation.sign(&signed)?[..],
            key,
            &certification(self.certification[0], &inner),
            &self.between[1],
        ]
        .concat();
        Ok([&signed[..], &length(&data), &data, &self.after[1]].concat())
    }

    /// Root, PCK CA, PCK.
    fn chain(&self) -> Result<[Vec<u8>; 3], AttestError> {
        let [root, authority, pck, _] = &self.certificates;
        let mut pck = pck.clone();
        pck.extensions
            .push((SGX_EXTENSIONS.to_vec(), self.extensions.der()));
        Ok([
            self.root.signed(&root.tbs())?,
            self.root.signed(&authority.tbs())?,
            self.authority.signed(&pck.tbs())?,
        ])
    }

    /// A quote with what vouches for it.
    pub(crate) fn evidence(&self) -> Result<Evidence, AttestError> {
        let endorsements = if self.with_collateral {
            self.collateral()?
        } else {
            Endorsements::default()
        };
        let mut evidence = Evidence::new(Tee::Tdx, self.quote()?, endorsements)?;
        for crl in &self.crls {
            evidence = evidence.with_crl(crl.clone())?;
        }
        Ok(evidence)
    }

    /// TCB info, QE identity and the certificate of their signer.
    pub(crate) fn collateral(&self) -> Result<Endorsements, AttestError> {
        let document = |name, value| collateral::signed(name, value, &self.tcb_signing);
        let certificate = self.root.signed(&self.certificates[3].tbs())?;
        Ok(Endorsements::default()
            .with_tcb_info(document("tcbInfo", &self.tcb_info)?)?
            .with_qe_identity(document("enclaveIdentity", &self.qe_identity)?)?
            .with_tcb_signing(certificate)?)
    }
}

impl Pck {
    fn der(&self) -> Vec<u8> {
        let oid = |arcs: &[u8]| tlv(0x06, &[SGX_EXTENSIONS, arcs]);
        let pair = |arcs: &[u8], value: Vec<u8>| tlv(0x30, &[&oid(arcs), &value]);
        let mut tcb: Vec<Vec<u8>> = (1..)
            .zip(self.components)
            .map(|(arc, svn)| pair(&[2, arc], integer(&[svn])))
            .collect();
        tcb.push(pair(&[2, 17], integer(&[self.pce_svn])));
        tcb.push(pair(&[2, 18], tlv(0x04, &[&self.components])));
        let mut fields = vec![
            pair(&[1], tlv(0x04, &[&self.ppid])),
            pair(&[2], tlv(0x30, &[&tcb.concat()])),
            pair(&[3], tlv(0x04, &[&[0, 0]])),
            pair(&[4], tlv(0x04, &[&self.fmspc])),
            pair(&[5], tlv(0x0a, &[&[1]])),
        ];
        if self.twice {
            fields.push(pair(&[4], tlv(0x04, &[&self.fmspc])));
        }
        tlv(0x30, &[&fields.concat()])
    }
}

fn certificates(
    [root, authority_key, pck, tcb_signing]: [&Key; 4],
    now: UnixTime,
) -> [Template; 4] {
    let template = |serial, issuer: &str, subject: &str, key: &Key| Template {
        serial,
        issuer: issuer.to_owned(),
        subject: subject.to_owned(),
        not_before: now.minus_seconds(YEAR),
        not_after: now.plus_seconds(YEAR),
        key_algorithm: EC_P256.to_vec(),
        public_key: key.point().to_vec(),
        extensions: Vec::new(),
        algorithm: ECDSA_SHA256.to_vec(),
    };
    [
        Template {
            extensions: authority(),
            ..template(1, ROOT, ROOT, root)
        },
        Template {
            extensions: authority(),
            ..template(2, ROOT, PLATFORM_CA, authority_key)
        },
        template(3, PLATFORM_CA, "Intel SGX PCK Certificate", pck),
        template(4, ROOT, "Intel SGX TCB Signing", tcb_signing),
    ]
}

fn header() -> [u8; 48] {
    let mut header = [0; 48];
    header[..8].copy_from_slice(&[5, 0, 2, 0, 0x81, 0, 0, 0]);
    header[12..28]
        .copy_from_slice(b"\x93\x9a\x72\x33\xf7\x9c\x4c\xa9\x94\x0a\x0d\xb3\x95\x7f\x06\x07");
    header
}

fn body() -> Vec<u8> {
    let mut body = vec![0; 648];
    put(&mut body, at::TEE_TCB_SVN, &[6, 1, 3]);
    put(&mut body, at::TEE_TCB_SVN_2, &[6, 1, 3]);
    put(&mut body, at::TD_ATTRIBUTES, &(1_u64 << 28).to_le_bytes());
    put(&mut body, at::XFAM, &0x0006_02e7_u64.to_le_bytes());
    put(&mut body, at::MR_TD, &[0x11; 48]);
    for (offset, byte) in (at::RTMR0..).step_by(48).zip(0x20..0x24) {
        put(&mut body, offset, &[byte; 48]);
    }
    body
}

fn qe_report() -> Vec<u8> {
    let mut report = vec![0; 384];
    put(&mut report, at::QE_ATTRIBUTES, &[0x15]);
    put(&mut report, at::QE_MR_SIGNER, &collateral::QE_SIGNER.0);
    put(&mut report, at::QE_PROD_ID, &[2]);
    put(&mut report, at::QE_SVN, &[7]);
    report
}

fn put(into: &mut [u8], offset: usize, bytes: &[u8]) {
    for (to, from) in into.iter_mut().skip(offset).zip(bytes) {
        *to = *from;
    }
}

fn certification(kind: u16, data: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &length(data), data].concat()
}

fn length(data: &[u8]) -> [u8; 4] {
    u32::try_from(data.len()).unwrap_or(u32::MAX).to_le_bytes()
}

fn pem(der: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n").into_bytes()
}
