//! A forger with a root of its own: evidence that is right in every byte, until a test edits it.

use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
};
use serde_json::{Value, json};

use super::{DATA, NOW};
use crate::appraisal::Appraisal;
use crate::encoding::Hex;
use crate::endorsement::{Certificate, EC_P256, ECDSA_SHA256};
use crate::evidence::{Endorsements, Evidence, Tee};
use crate::reference::TdxReferenceValues;
use crate::tee::simulated::x509::{CrlTemplate, Template, authority, integer, signed, tlv};
use crate::tee::tdx::pck::SGX_EXTENSIONS;
use crate::tee::tdx::verifier::{Inputs, appraise};
use crate::time::UnixTime;
use crate::verifier::AppraiseError;

const YEAR: u64 = 365 * 24 * 60 * 60;

pub(super) struct Key {
    fixed: EcdsaKeyPair,
    asn1: EcdsaKeyPair,
}

impl Key {
    pub(super) fn new() -> Self {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let asn1 = &ECDSA_P256_SHA256_ASN1_SIGNING;
        Self {
            fixed: EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap(),
            asn1: EcdsaKeyPair::from_pkcs8(asn1, pkcs8.as_ref(), &random).unwrap(),
        }
    }

    fn point(&self) -> &[u8] {
        self.fixed.public_key().as_ref()
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signature = self.fixed.sign(&SystemRandom::new(), message).unwrap();
        signature.as_ref().to_vec()
    }

    fn signed(&self, tbs: &[u8]) -> Vec<u8> {
        let signature = self.asn1.sign(&SystemRandom::new(), tbs).unwrap();
        signed(tbs, ECDSA_SHA256, signature.as_ref())
    }
}

/// Where fields of a TD report begin.
pub(super) mod at {
    pub(crate) const TEE_TCB_SVN: usize = 0;
    pub(crate) const MR_SIGNER_SEAM: usize = 64;
    pub(crate) const SEAM_ATTRIBUTES: usize = 112;
    pub(crate) const TD_ATTRIBUTES: usize = 120;
    pub(crate) const XFAM: usize = 128;
    pub(crate) const MR_TD: usize = 136;
    pub(crate) const MR_CONFIG_ID: usize = 184;
    pub(crate) const RTMR0: usize = 328;
    pub(crate) const REPORT_DATA: usize = 520;
    pub(crate) const TEE_TCB_SVN_2: usize = 584;
    pub(crate) const MR_SERVICE_TD: usize = 600;
    /// Of the QE report.
    pub(crate) const QE_ATTRIBUTES: usize = 48;
    pub(crate) const QE_MR_SIGNER: usize = 128;
    pub(crate) const QE_PROD_ID: usize = 256;
    pub(crate) const QE_SVN: usize = 258;
}

/// What the SGX extensions of the PCK certificate say.
pub(super) struct Pck {
    pub(super) components: [u8; 16],
    pub(super) pce_svn: u8,
    pub(super) fmspc: Vec<u8>,
    pub(super) twice: bool,
}

pub(super) struct Forge {
    pub(super) root: Key,
    pub(super) authority: Key,
    pub(super) pck: Key,
    /// Signs the QE report; the PCK's unless a test says otherwise.
    pub(super) qe_signer: Option<Key>,
    pub(super) attestation: Key,
    pub(super) tcb_signing: Key,
    /// Root, PCK CA, PCK, TCB signing.
    pub(super) certificates: [Template; 4],
    pub(super) extensions: Pck,

    /// Version, key type, TEE type, SVNs, vendor, user data.
    pub(super) header: [u8; 48],
    pub(super) body_kind: u16,
    pub(super) body: Vec<u8>,
    pub(super) qe_report: Vec<u8>,
    pub(super) qe_authentication: Vec<u8>,
    /// What the QE report is bound to, if not to the attestation key.
    pub(super) qe_binding: Option<[u8; 64]>,
    /// Type of the outer and of the inner certification data.
    pub(super) certification: [u16; 2],
    /// What comes after the PEM, and after the quote.
    pub(super) after: [Vec<u8>; 2],
    /// What comes after the inner certification data, and after the outer.
    pub(super) between: [Vec<u8>; 2],

    pub(super) tcb_info: Value,
    pub(super) qe_identity: Value,
    pub(super) with_collateral: bool,
    /// Collateral of the verifier.
    pub(super) stored: Vec<Endorsements>,
    pub(super) crls: Vec<Vec<u8>>,
    pub(super) reference: TdxReferenceValues,
    pub(super) now: UnixTime,
}

impl Forge {
    /// An affirmed TD of TDX 1.5 on an up-to-date platform.
    pub(super) fn new() -> Self {
        let [root, authority, pck, attestation, tcb_signing] = [(); 5].map(|()| Key::new());
        let certificates = certificates([&root, &authority, &pck, &tcb_signing]);
        let mut forge = Self {
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
            tcb_info: tcb_info(),
            qe_identity: qe_identity(),
            with_collateral: true,
            stored: Vec::new(),
            crls: Vec::new(),
            reference: TdxReferenceValues {
                measurements: Some(vec![Hex([0x11; 48])]),
                rtmr1: Some(vec![Hex([0x21; 48])]),
                rtmr2: Some(vec![Hex([0x22; 48])]),
                ..TdxReferenceValues::default()
            },
            now: NOW,
        };
        let end = Some(NOW.plus_seconds(30));
        forge.crls = vec![forge.root_crl(NOW, end, &[]), forge.pck_crl(NOW, end, &[])];
        forge
    }

    pub(super) fn put(&mut self, offset: usize, bytes: &[u8]) {
        self.body[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn put_qe(&mut self, offset: usize, bytes: &[u8]) {
        self.qe_report[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn root_crl(
        &self,
        this_update: UnixTime,
        next_update: Option<UnixTime>,
        revoked: &[u32],
    ) -> Vec<u8> {
        crl(
            &self.root,
            "Intel SGX Root CA",
            this_update,
            next_update,
            revoked,
        )
    }

    pub(super) fn pck_crl(
        &self,
        this_update: UnixTime,
        next_update: Option<UnixTime>,
        revoked: &[u32],
    ) -> Vec<u8> {
        let issuer = "Intel SGX PCK Platform CA";
        crl(&self.authority, issuer, this_update, next_update, revoked)
    }

    /// A list that names the PCK CA, signed by the root.
    pub(super) fn forged_crl(&self) -> Vec<u8> {
        let end = Some(NOW.plus_seconds(30));
        crl(&self.root, "Intel SGX PCK Platform CA", NOW, end, &[])
    }

    /// A list of the other PCK CA.
    pub(super) fn foreign_crl(&self) -> Vec<u8> {
        let end = Some(NOW.plus_seconds(30));
        crl(&self.authority, "Intel SGX PCK Processor CA", NOW, end, &[])
    }

    pub(super) fn quote(&self) -> Vec<u8> {
        let mut signed = self.header.to_vec();
        if self.header[0] == 5 {
            signed.extend_from_slice(&self.body_kind.to_le_bytes());
            signed.extend_from_slice(&u32::try_from(self.body.len()).unwrap().to_le_bytes());
        }
        signed.extend_from_slice(&self.body);

        let mut qe_report = self.qe_report.clone();
        let key = &self.attestation.point()[1..];
        let hash = digest(&SHA256, &[key, &self.qe_authentication].concat());
        qe_report[320..352].copy_from_slice(hash.as_ref());
        if let Some(binding) = self.qe_binding {
            qe_report[320..].copy_from_slice(&binding);
        }
        let signer = self.qe_signer.as_ref().unwrap_or(&self.pck);
        let qe_signature = signer.sign(&qe_report);
        let authentication = u16::try_from(self.qe_authentication.len()).unwrap();
        let [root, authority, pck] = self.chain().map(|der| pem(&der));
        let chain = [pck, authority, root, self.after[0].clone()].concat();
        let inner = [
            &qe_report[..],
            &qe_signature,
            &authentication.to_le_bytes(),
            &self.qe_authentication,
            &certification(self.certification[1], &chain),
            &self.between[0],
        ]
        .concat();
        let data = [
            &self.attestation.sign(&signed)[..],
            key,
            &certification(self.certification[0], &inner),
            &self.between[1],
        ]
        .concat();
        let length = u32::try_from(data.len()).unwrap().to_le_bytes();
        [&signed[..], &length, &data, &self.after[1]].concat()
    }

    /// Root, PCK CA, PCK.
    fn chain(&self) -> [Vec<u8>; 3] {
        let [root, authority, pck, _] = &self.certificates;
        let mut pck_tbs = Template {
            serial: pck.serial,
            issuer: pck.issuer.clone(),
            subject: pck.subject.clone(),
            not_before: pck.not_before,
            not_after: pck.not_after,
            key_algorithm: pck.key_algorithm.clone(),
            public_key: pck.public_key.clone(),
            extensions: pck.extensions.clone(),
            algorithm: pck.algorithm.clone(),
        };
        pck_tbs
            .extensions
            .push((SGX_EXTENSIONS.to_vec(), self.extensions.der()));
        [
            self.root.signed(&root.tbs()),
            self.root.signed(&authority.tbs()),
            self.authority.signed(&pck_tbs.tbs()),
        ]
    }

    pub(super) fn evidence(&self) -> Evidence {
        let endorsements = if self.with_collateral {
            self.collateral()
        } else {
            Endorsements::default()
        };
        let mut evidence = Evidence::new(Tee::Tdx, self.quote(), endorsements).unwrap();
        for crl in &self.crls {
            evidence = evidence.with_crl(crl.clone()).unwrap();
        }
        evidence
    }

    pub(super) fn collateral(&self) -> Endorsements {
        let document = |name: &str, value: &Value| {
            let inner = value.to_string();
            let mut signature = [0; 64];
            signature.copy_from_slice(&self.tcb_signing.sign(inner.as_bytes()));
            let signature = Hex(signature);
            format!(r#"{{"{name}": {inner} ,"signature":"{signature}"}}"#).into_bytes()
        };
        let certificate = self.root.signed(&self.certificates[3].tbs());
        Endorsements::default()
            .with_tcb_info(document("tcbInfo", &self.tcb_info))
            .and_then(|it| it.with_qe_identity(document("enclaveIdentity", &self.qe_identity)))
            .and_then(|it| it.with_tcb_signing(certificate))
            .unwrap()
    }

    /// SHA-256 of the forger's root key.
    pub(super) fn anchor(&self) -> Hex<32> {
        let der = self.root.signed(&self.certificates[0].tbs());
        let root = Certificate::parse(&der).unwrap();
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, root.spki).as_ref());
        Hex(hash)
    }

    pub(super) fn appraise(&self) -> Result<Appraisal, AppraiseError> {
        self.appraise_as(&self.evidence())
    }

    pub(super) fn appraise_as(&self, evidence: &Evidence) -> Result<Appraisal, AppraiseError> {
        appraise(&Inputs {
            evidence,
            report_data: &DATA,
            anchors: &[self.anchor()],
            store: &[],
            collateral: &self.stored,
            crls: &[],
            known: None,
            reference: &self.reference,
            now: self.now,
        })
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
            pair(&[1], tlv(0x04, &[&[0xaa; 16]])),
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

fn certificates([root, authority_key, pck, tcb_signing]: [&Key; 4]) -> [Template; 4] {
    let template = |serial, issuer: &str, subject: &str, key: &Key| Template {
        serial,
        issuer: issuer.to_owned(),
        subject: subject.to_owned(),
        not_before: NOW.minus_seconds(YEAR),
        not_after: NOW.plus_seconds(YEAR),
        key_algorithm: EC_P256.to_vec(),
        public_key: key.point().to_vec(),
        extensions: Vec::new(),
        algorithm: ECDSA_SHA256.to_vec(),
    };
    const ROOT: &str = "Intel SGX Root CA";
    const PLATFORM: &str = "Intel SGX PCK Platform CA";
    [
        Template {
            extensions: authority(),
            ..template(1, ROOT, ROOT, root)
        },
        Template {
            extensions: authority(),
            ..template(2, ROOT, PLATFORM, authority_key)
        },
        template(3, PLATFORM, "Intel SGX PCK Certificate", pck),
        template(4, ROOT, "Intel SGX TCB Signing", tcb_signing),
    ]
}

fn crl(
    key: &Key,
    issuer: &str,
    this_update: UnixTime,
    next_update: Option<UnixTime>,
    revoked: &[u32],
) -> Vec<u8> {
    let template = CrlTemplate {
        issuer: issuer.to_owned(),
        this_update,
        next_update,
        revoked: revoked.to_vec(),
        algorithm: ECDSA_SHA256.to_vec(),
    };
    key.signed(&template.tbs())
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
    let mut put = |offset: usize, bytes: &[u8]| {
        body[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(at::TEE_TCB_SVN, &[6, 1, 3]);
    put(at::TEE_TCB_SVN_2, &[6, 1, 3]);
    put(at::TD_ATTRIBUTES, &(1_u64 << 28).to_le_bytes());
    put(at::XFAM, &0x0006_02e7_u64.to_le_bytes());
    put(at::MR_TD, &[0x11; 48]);
    for (offset, byte) in (at::RTMR0..).step_by(48).zip(0x20..0x24) {
        put(offset, &[byte; 48]);
    }
    put(at::REPORT_DATA, &DATA);
    body
}

fn qe_report() -> Vec<u8> {
    let mut report = vec![0; 384];
    report[at::QE_ATTRIBUTES] = 0x15;
    report[at::QE_MR_SIGNER..][..32].copy_from_slice(&signer().0);
    report[at::QE_PROD_ID] = 2;
    report[at::QE_SVN] = 7;
    report
}

fn signer() -> Hex<32> {
    "dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5"
        .parse()
        .unwrap()
}

fn tcb_info() -> Value {
    let components = |svns: [u8; 8]| {
        let mut all = [0; 16];
        all[..8].copy_from_slice(&svns);
        Value::from(all.map(|svn| json!({ "svn": svn })).to_vec())
    };
    let module = json!({
        "mrsigner": "00".repeat(48), "attributes": "00".repeat(8), "attributesMask": "FF".repeat(8),
    });
    let mut identity = module.clone();
    identity["id"] = json!("TDX_01");
    identity["tcbLevels"] = json!([
        // The order must not matter, so the higher level comes last.
        {"tcb": {"isvsvn": 4}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": "OutOfDate",
            "advisoryIDs": ["INTEL-SA-01036"]},
        {"tcb": {"isvsvn": 6}, "tcbDate": "2024-11-13T00:00:00Z", "tcbStatus": "UpToDate"},
    ]);
    json!({
        "id": "TDX", "version": 3, "tcbType": 0, "tcbEvaluationDataNumber": 18,
        "issueDate": date(NOW.minus_seconds(60)), "nextUpdate": date(NOW.plus_seconds(60)),
        "fmspc": "90C06F000000", "pceId": "0000",
        "tdxModule": module, "tdxModuleIdentities": [identity],
        "tcbLevels": [
            {
                "tcb": {"sgxtcbcomponents": components([2, 2, 2, 2, 3, 1, 0, 5]), "pcesvn": 5,
                    "tdxtcbcomponents": components([5, 0, 2, 0, 0, 0, 0, 0])},
                "tcbDate": "2018-01-04T00:00:00Z", "tcbStatus": "OutOfDate",
                "advisoryIDs": ["INTEL-SA-01079", "INTEL-SA-01036"],
            },
            {
                "tcb": {"sgxtcbcomponents": components([3, 3, 2, 2, 4, 1, 0, 5]), "pcesvn": 13,
                    "tdxtcbcomponents": components([5, 0, 3, 0, 0, 0, 0, 0])},
                "tcbDate": "2024-11-13T00:00:00Z", "tcbStatus": "UpToDate",
            },
        ],
    })
}

fn qe_identity() -> Value {
    json!({
        "id": "TD_QE", "version": 2, "tcbEvaluationDataNumber": 18,
        "issueDate": date(NOW.minus_seconds(60)), "nextUpdate": date(NOW.plus_seconds(60)),
        "miscselect": "00000000", "miscselectMask": "FFFFFFFF",
        "attributes": "11000000000000000000000000000000",
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": signer().to_string().to_uppercase(), "isvprodid": 2,
        "tcbLevels": [
            {"tcb": {"isvsvn": 4}, "tcbDate": "2024-03-13T00:00:00Z", "tcbStatus": "OutOfDate",
                "advisoryIDs": ["INTEL-SA-00999"]},
            {"tcb": {"isvsvn": 6}, "tcbDate": "2024-11-13T00:00:00Z", "tcbStatus": "UpToDate"},
        ],
    })
}

/// A time as the service writes it.
pub(super) fn date(time: UnixTime) -> String {
    time.to_string()
}

fn certification(kind: u16, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap().to_le_bytes();
    [&kind.to_le_bytes()[..], &length, data].concat()
}

fn pem(der: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n").into_bytes()
}
