//! Genuine reports, and those of a GPU of our own under a root of our own.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
};

use super::evidence::{GpuEvidence, committed_report_data, gpu_nonce};
use super::spdm::GpuReport;
use super::verifier::{FWID_SHA384, GpuError, Inputs, ROOTS, TCB_INFO, Verified, verify_one};
use crate::appraisal::{Appraisal, Outcome, TrustTier};
use crate::attester::Attester as _;
use crate::encoding::Hex;
use crate::endorsement::{EC_P384, ECDSA_SHA384, RootKey};
use crate::evidence::Evidence;
use crate::tee::simulated::x509::{CrlTemplate, Template, authority, signed};
use crate::time::UnixTime;
use crate::verifier::{AppraiseError, Verifier};
use crate::{ReferenceValues, SimulatedTee};

const NOW: UnixTime = UnixTime(1_790_000_000);
const DATA: [u8; 64] = [9; 64];

fn vectors() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
    let root = std::env::var_os("CASEMATE_VECTORS").map_or(beside, PathBuf::from);
    if root.join("nvidia").exists() {
        return Some(root.join("nvidia"));
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "no vectors in {}",
        root.display()
    );
    println!(
        "skipped: no vectors in {}; set CASEMATE_VECTORS",
        root.display()
    );
    None
}

const GENUINE: [(&str, &str, &str); 2] = [
    (
        "hopper_coco_report1.txt",
        "hopper_coco_certs1.txt",
        "580.95.05",
    ),
    (
        "hopperAttestationReport.txt",
        "hopper_cert_chain_case1.txt",
        "550.90.07",
    ),
];

fn genuine(folder: &Path, report: &str, certificates: &str) -> GpuEvidence {
    let text = std::fs::read_to_string(folder.join(report)).unwrap();
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| !byte.is_ascii_whitespace())
        .collect();
    let report = digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    let pem = std::fs::read_to_string(folder.join(certificates)).unwrap();
    let mut gpu = GpuEvidence::new(report).unwrap();
    for rest in pem.split("-----BEGIN CERTIFICATE-----").skip(1) {
        let (body, _) = rest.split_once("-----END").unwrap();
        let body: String = body.split_whitespace().collect();
        gpu = gpu
            .with_certificate(STANDARD.decode(body).unwrap())
            .unwrap();
    }
    gpu
}

fn verified(gpu: &GpuEvidence, nonce: &[u8; 32], roots: &[RootKey]) -> Result<Verified, GpuError> {
    let inputs = Inputs {
        report_data: &DATA,
        roots,
        crls: &[],
        now: NOW,
    };
    verify_one(&inputs, nonce, 0, gpu)
}

fn without_certificates(report: Vec<u8>, certificates: Vec<Vec<u8>>) -> GpuEvidence {
    let gpu = GpuEvidence::new(report).unwrap();
    let add = |gpu: GpuEvidence, der| gpu.with_certificate(der).unwrap();
    certificates.into_iter().fold(gpu, add)
}

#[test]
fn every_genuine_hopper_report_is_believed() {
    let Some(folder) = vectors() else { return };
    for (report, certificates, driver) in GENUINE {
        let gpu = genuine(&folder, report, certificates);
        let nonce = *GpuReport::parse(gpu.report()).unwrap().nonce();
        let verified = verified(&gpu, &nonce, ROOTS).unwrap();
        assert_eq!(verified.claims.driver_version.as_deref(), Some(driver));
        assert!(verified.claims.vbios_version.unwrap().starts_with("96.00."));
        assert_eq!(verified.claims.measurements.len(), 64);
        assert_eq!(verified.claims.model, "GH100 A01 GSP FMC LF");
        assert!(!verified.revocation_checked);
    }
}

#[test]
fn every_damage_to_a_genuine_report_is_refused() {
    let Some(folder) = vectors() else { return };
    let (report, certificates, _) = GENUINE[1];
    let gpu = genuine(&folder, report, certificates);
    let nonce = *GpuReport::parse(gpu.report()).unwrap().nonce();
    let chain: Vec<Vec<u8>> = gpu.certificates().map(<[u8]>::to_vec).collect();
    for at in (0..gpu.report().len()).step_by(7) {
        let mut damaged = gpu.report().to_vec();
        damaged[at] ^= 0x10;
        let damaged = without_certificates(damaged, chain.clone());
        let error = verified(&damaged, &nonce, ROOTS).map(|_| at).unwrap_err();
        assert!(error.code().starts_with("gpu-"), "{at}: {error}");
    }
    assert_eq!(
        verified(&gpu, &[0; 32], ROOTS).map(|_| ()),
        Err(GpuError::Nonce(0))
    );
    let foreign = genuine(&folder, GENUINE[1].0, GENUINE[0].1);
    assert_eq!(
        verified(&foreign, &nonce, ROOTS).map(|_| ()),
        Err(GpuError::Signature(0))
    );
    let code = |chain: &[Vec<u8>]| {
        let gpu = without_certificates(gpu.report().to_vec(), chain.to_vec());
        verified(&gpu, &nonce, ROOTS)
            .map(|_| "believed")
            .unwrap_or_else(|error| error.code())
    };
    assert_eq!(code(&chain), "believed");
    // The root's own certificate says nothing that is not pinned.
    assert_eq!(code(&chain[..4]), "believed");
    assert_eq!(code(&chain[..3]), "unknown-root");
    assert_eq!(code(&[]), "certificate-missing");
    assert_eq!(code(&chain[1..]), "certificate-usage");
    let mut swapped = chain.clone();
    swapped.swap(1, 2);
    assert_eq!(code(&swapped), "certificate-issuer");
}

/// A GPU of our own.
struct Gpu {
    root: EcdsaKeyPair,
    key: EcdsaKeyPair,
    firmware: [[u8; 48]; 2],
    serial: u32,
    attributes: u8,
    measurements: Vec<(u8, u8, usize)>,
    trailing: Vec<u8>,
    root_key: RootKey,
}

impl Gpu {
    fn new() -> Self {
        let random = SystemRandom::new();
        let pair = |algorithm| {
            let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
            EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).unwrap()
        };
        let root = pair(&ECDSA_P384_SHA384_ASN1_SIGNING);
        let public_key = root.public_key().as_ref().to_vec();
        Self {
            root_key: RootKey {
                name: "root of these tests",
                public_key: Vec::leak(public_key),
            },
            root,
            key: pair(&ECDSA_P384_SHA384_FIXED_SIGNING),
            firmware: [[5; 48]; 2],
            serial: 77,
            attributes: 1,
            measurements: vec![(1, 0, 48), (2, 2, 48)],
            trailing: Vec::new(),
        }
    }

    fn certificate(&self) -> Vec<u8> {
        let tcb_info = [
            &[0x30, 0x3f, 0xa6, 0x3d, 0x30, 0x3d],
            FWID_SHA384,
            &self.firmware[0],
        ];
        let tbs = Template {
            serial: self.serial,
            issuer: "root".into(),
            subject: "GPU".into(),
            not_before: NOW.minus_seconds(10),
            not_after: NOW.plus_seconds(1000),
            key_algorithm: EC_P384.to_vec(),
            public_key: self.key.public_key().as_ref().to_vec(),
            extensions: vec![(TCB_INFO.to_vec(), tcb_info.concat())],
            algorithm: ECDSA_SHA384.to_vec(),
        }
        .tbs();
        self.signed(&tbs)
    }

    fn signed(&self, tbs: &[u8]) -> Vec<u8> {
        let signature = self.root.sign(&SystemRandom::new(), tbs).unwrap();
        signed(tbs, ECDSA_SHA384, signature.as_ref())
    }

    fn crl(&self, revoked: &[u32]) -> Vec<u8> {
        let crl = CrlTemplate {
            issuer: "root".into(),
            this_update: NOW,
            next_update: Some(NOW.plus_seconds(5)),
            revoked: revoked.to_vec(),
            algorithm: ECDSA_SHA384.to_vec(),
        };
        self.signed(&crl.tbs())
    }

    fn evidence(&self, data: &[u8; 64]) -> GpuEvidence {
        let blocks: Vec<u8> = self
            .measurements
            .iter()
            .flat_map(|(index, kind, length)| {
                let length = u8::try_from(*length).unwrap();
                let head = [*index, 1, length + 3, 0, *kind, length, 0];
                [&head[..], &vec![*index; usize::from(length)]].concat()
            })
            .collect();
        let blocks_length = u8::try_from(blocks.len()).unwrap();
        let opaque = [
            &[3, 0, 4, 0][..],
            b"1.2\0",
            &[20, 0, 48, 0],
            &self.firmware[1],
        ]
        .concat();
        let message = [
            &[0x11, 0xe0, self.attributes, 0xff][..],
            &gpu_nonce(data),
            &[0, 0x11, 0x60, 0, 0],
            &[
                u8::try_from(self.measurements.len()).unwrap(),
                blocks_length,
                0,
                0,
            ],
            &blocks,
            &[0; 32],
            &[u8::try_from(opaque.len()).unwrap(), 0],
            &opaque,
        ]
        .concat();
        let signature = self.key.sign(&SystemRandom::new(), &message).unwrap();
        let report = [&message[..], signature.as_ref(), &self.trailing].concat();
        without_certificates(report, vec![self.certificate()])
    }

    fn code(&self) -> &'static str {
        verified(&self.evidence(&DATA), &gpu_nonce(&DATA), &[self.root_key])
            .map_or_else(|error| error.code(), |_| "believed")
    }
}

fn with(edit: impl FnOnce(&mut Gpu)) -> &'static str {
    let mut gpu = Gpu::new();
    edit(&mut gpu);
    gpu.code()
}

#[test]
fn a_signed_report_that_is_not_as_the_specification_says_is_refused() {
    assert_eq!(with(|_| {}), "believed");
    assert_eq!(with(|gpu| gpu.trailing = vec![0; 64]), "believed");
    assert_eq!(
        with(|gpu| gpu.trailing = vec![0; 65]),
        "gpu-report-trailing"
    );
    assert_eq!(with(|gpu| gpu.trailing = vec![1]), "gpu-report-trailing");
    assert_eq!(with(|gpu| gpu.attributes = 0), "gpu-report-request");
    assert_eq!(
        with(|gpu| gpu.measurements[1].0 = 1),
        "gpu-report-duplicate"
    );
    // A raw value instead of a digest; a digest of another length.
    assert_eq!(
        with(|gpu| gpu.measurements[1].1 = 0x82),
        "gpu-report-measurement"
    );
    assert_eq!(
        with(|gpu| gpu.measurements[1].2 = 32),
        "gpu-report-measurement"
    );
    assert_eq!(with(|gpu| gpu.firmware[0] = [6; 48]), "gpu-firmware-id");
}

/// A simulated processor that commits to these GPUs.
fn appraised(
    gpus: &[&Gpu],
    reference: impl FnOnce(&mut ReferenceValues),
    crls: Vec<Vec<u8>>,
    edit: impl FnOnce(Evidence, Vec<GpuEvidence>) -> Evidence,
) -> Result<Appraisal, AppraiseError> {
    let reports: Vec<GpuEvidence> = gpus.iter().map(|gpu| gpu.evidence(&DATA)).collect();
    let mut tee = SimulatedTee::new(NOW).unwrap();
    let committed = committed_report_data(&DATA, reports.iter());
    let evidence = edit(tee.attest(&committed).unwrap(), reports);
    let mut values = tee.reference_values();
    reference(&mut values);
    let mut builder = Verifier::builder().reference_values(values);
    for crl in crls {
        builder = builder.crl(crl);
    }
    let verifier = builder.dangerous().accept_simulated().build().unwrap();
    let roots = gpus.iter().map(|gpu| gpu.root_key).collect();
    verifier
        .with_gpu_roots(roots)
        .appraise_bound_to(&evidence, &DATA, NOW)
}

fn together(evidence: Evidence, gpus: Vec<GpuEvidence>) -> Evidence {
    let add = |evidence: Evidence, gpu| evidence.with_gpu(gpu).unwrap();
    gpus.into_iter().fold(evidence, add)
}

#[test]
fn gpus_are_believed_with_the_processor_that_commits_to_them() {
    let (one, two) = (
        Gpu::new(),
        Gpu {
            serial: 78,
            ..Gpu::new()
        },
    );
    let appraisal = appraised(&[&one, &two], |_| {}, vec![], together).unwrap();
    assert_eq!(appraisal.gpus().len(), 2);
    // Nobody knows what their measurements should be.
    assert_eq!(
        appraisal.check("gpu.measurements").unwrap().outcome,
        Outcome::Unknown
    );
    assert_eq!(appraisal.tier(), TrustTier::Warning);
    let expect = |values: &mut ReferenceValues| {
        values.gpu.measurements.insert(2, vec![Hex([2; 48])]);
        values.gpu.driver_versions = Some(vec!["1.2".into()]);
    };
    let crls = || vec![one.crl(&[])];
    let appraisal = appraised(&[&one], expect, crls(), together).unwrap();
    for id in ["gpu.measurements", "gpu.driver-version", "gpu.revocation"] {
        assert_eq!(appraisal.check(id).unwrap().outcome, Outcome::Pass, "{id}");
    }
    // The list of the GPU's issuer ends first.
    assert_eq!(appraisal.not_after(), NOW.plus_seconds(5));
    for expect in [
        |values: &mut ReferenceValues| {
            values.gpu.measurements.insert(2, vec![Hex([3; 48])]);
        },
        |values: &mut ReferenceValues| {
            values.gpu.measurements.insert(9, vec![Hex([9; 48])]);
        },
        |values: &mut ReferenceValues| values.gpu.driver_versions = Some(vec![]),
        |values: &mut ReferenceValues| values.gpu.vbios_versions = Some(vec!["1".into()]),
    ] {
        let appraisal = appraised(&[&one], expect, crls(), together).unwrap();
        assert_eq!(appraisal.tier(), TrustTier::Contraindicated);
    }
}

#[test]
fn gpus_that_the_processor_does_not_commit_to_are_refused() {
    let code = |gpus: &[&Gpu], edit: fn(Evidence, Vec<GpuEvidence>) -> Evidence| {
        appraised(gpus, |_| {}, vec![], edit).unwrap_err().code()
    };
    let (one, two) = (
        Gpu::new(),
        Gpu {
            serial: 78,
            ..Gpu::new()
        },
    );
    let swapped = |evidence, mut gpus: Vec<GpuEvidence>| {
        gpus.reverse();
        together(evidence, gpus)
    };
    assert_eq!(code(&[&one, &two], swapped), "gpu-uncommitted");
    let dropped = |evidence, mut gpus: Vec<GpuEvidence>| {
        gpus.pop();
        together(evidence, gpus)
    };
    assert_eq!(code(&[&one, &two], dropped), "gpu-uncommitted");
    assert_eq!(code(&[&one], |evidence, _| evidence), "binding");
    assert_eq!(code(&[&one, &one], together), "gpu-duplicate");
    let revoked = appraised(&[&one], |_| {}, vec![one.crl(&[77])], together);
    assert_eq!(revoked.unwrap_err().code(), "revoked");
}

#[test]
fn a_report_for_another_challenge_is_refused_though_committed_to() {
    let gpu = Gpu::new();
    let stale = gpu.evidence(&[8; 64]);
    let mut tee = SimulatedTee::new(NOW).unwrap();
    let committed = committed_report_data(&DATA, [&stale].into_iter());
    let evidence = tee.attest(&committed).unwrap().with_gpu(stale).unwrap();
    let verifier = Verifier::builder().dangerous().accept_simulated().build();
    let verifier = verifier.unwrap().with_gpu_roots(vec![gpu.root_key]);
    let error = verifier
        .appraise_bound_to(&evidence, &DATA, NOW)
        .unwrap_err();
    assert_eq!(error.code(), "gpu-nonce");
}

#[test]
fn an_authority_does_not_sign_reports() {
    let gpu = Gpu::new();
    let mut tbs = Template {
        serial: 1,
        issuer: "root".into(),
        subject: "GPU".into(),
        not_before: NOW,
        not_after: NOW.plus_seconds(10),
        key_algorithm: EC_P384.to_vec(),
        public_key: gpu.key.public_key().as_ref().to_vec(),
        extensions: authority(),
        algorithm: ECDSA_SHA384.to_vec(),
    };
    let code = |tbs: &Template| {
        let report = gpu.evidence(&DATA).report().to_vec();
        let gpu_evidence = without_certificates(report, vec![gpu.signed(&tbs.tbs())]);
        verified(&gpu_evidence, &gpu_nonce(&DATA), &[gpu.root_key])
            .map_or_else(|error| error.code(), |_| "believed")
    };
    assert_eq!(code(&tbs), "certificate-usage");
    tbs.extensions.clear();
    // Without a statement of its firmware the key could be that of any other.
    assert_eq!(code(&tbs), "gpu-firmware-id");
    tbs.not_before = NOW.plus_seconds(1);
    assert_eq!(code(&tbs), "certificate-not-yet-valid");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_bytes_make_the_parser_panic(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = GpuReport::parse(&noise);
        let mut report = Gpu::new().evidence(&DATA).report().to_vec();
        for (at, byte) in noise.iter().enumerate() {
            let at = (at * 31) % report.len();
            report[at] ^= byte;
            let _ = GpuReport::parse(&report);
        }
    }
}
