//! Genuine evidence of Azure's and GCP's virtual TPMs is believed, and nothing else is.
//!
//! The vectors are not part of this repository: they are read from `$CASEMATE_VECTORS`, or else
//! from `../shared/vectors` beside the workspace. Where they are missing these tests say so and
//! pass, except under `CI`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use attestation::snp::{Product, Report};
use attestation::tdx::EventLog;
use attestation::vtpm::{HclError, HclReport, TpmQuote, TpmSignature, VtpmEvidence};
use attestation::{
    Appraisal, AppraiseError, Endorsements, Evidence, Hex, Outcome, ReferenceValues, Tee,
    TrustTier, UnixTime, Verifier,
};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;

fn vectors() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
    let root = std::env::var_os("CASEMATE_VECTORS").map_or(beside, PathBuf::from);
    if root.join("vtpm").exists() {
        return Some(root);
    }
    let missing = format!("no vectors in {}", root.display());
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    println!("skipped: {missing}; set CASEMATE_VECTORS");
    None
}

fn read(root: &Path, path: &str) -> Vec<u8> {
    std::fs::read(root.join(path)).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// Evidence of Azure as other tools wrote it, taken apart.
#[derive(Clone)]
struct Azure {
    hcl: Vec<u8>,
    /// The quote, for TDX; the VCEK, for SEV-SNP.
    hardware: Vec<u8>,
    message: Vec<u8>,
    signature: Vec<u8>,
    pcrs: BTreeMap<u8, Hex<32>>,
}

/// 2026-01-01: certificates of every vector are valid then.
const NOW: UnixTime = UnixTime(1_767_225_600);

const SNP: [&str; 5] = [
    "ars-az-snp-live-evidence.json",
    "ars-az-snp-milan-v3.json",
    "trustee-az-snp-evidence-v1.json",
    "trustee-az-snp-evidence-v2.json",
    "kettle-az-snp-ripgrep-evidence.json",
];
const TDX: [&str; 2] = [
    "ars-az-tdx-live-evidence.json",
    "trustee-az-tdx-evidence-v1.json",
];

impl Azure {
    fn read(root: &Path, file: &str) -> Self {
        let json: Value = serde_json::from_slice(&read(root, &format!("vtpm/{file}"))).unwrap();
        let json = json.get("evidence").unwrap_or(&json);
        let text = |name: &str| json[name].as_str().unwrap_or_default();
        let url = |text: &str| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).unwrap();
        let quote = &json["tpm_quote"];
        let hardware = match text("td_quote") {
            "" => url(text("vcek")),
            quote => url(quote),
        };
        let pcrs = quote["pcrs"].as_array().unwrap().iter();
        Self {
            hcl: url(text("hcl_report")),
            hardware,
            message: bytes(quote["message"].as_str().unwrap()),
            signature: bytes(quote["signature"].as_str().unwrap()),
            pcrs: (0..)
                .zip(pcrs.map(|pcr| pcr.as_str().unwrap().parse().unwrap()))
                .collect(),
        }
    }

    fn vtpm(&self) -> VtpmEvidence {
        let runtime = HclReport::parse(&self.hcl).unwrap().runtime_data().to_vec();
        let signature = TpmSignature::from_rsassa_sha256(&self.signature);
        VtpmEvidence::new(self.message.clone(), signature, self.pcrs.clone())
            .unwrap()
            .with_runtime_data(runtime)
            .unwrap()
    }

    fn evidence(&self, root: &Path, vtpm: VtpmEvidence) -> Evidence {
        let hcl = HclReport::parse(&self.hcl).unwrap();
        let evidence = match hcl.tee() {
            Tee::Tdx => Evidence::new(Tee::Tdx, self.hardware.clone(), Endorsements::default()),
            tee => {
                let report = Report::parse(hcl.hardware_report()).unwrap();
                let (ask, ark) = match report.product() {
                    Some(Product::Genoa) => ("sev-genoa-5464738c", "ark-genoa-4c6598d1"),
                    _ => ("sev-milan-67d303bd", "ark-milan-69d063b4"),
                };
                let ca = |name: &str| read(root, &format!("snp/ca/{name}.der"));
                let endorsements = Endorsements::default()
                    .with_vek(self.hardware.clone())
                    .unwrap()
                    .with_intermediate(ca(ask))
                    .unwrap()
                    .with_root(ca(ark))
                    .unwrap();
                Evidence::new(tee, hcl.hardware_report().to_vec(), endorsements)
            }
        };
        evidence.unwrap().with_vtpm(vtpm)
    }

    /// What its quote was asked for with.
    fn nonce(&self) -> Vec<u8> {
        TpmQuote::parse(&self.message)
            .unwrap()
            .extra_data()
            .to_vec()
    }

    fn appraise(&self, root: &Path, vtpm: VtpmEvidence) -> Result<Appraisal, AppraiseError> {
        let verifier = Verifier::builder().build().unwrap();
        verifier.appraise_quote_bound_to(&self.evidence(root, vtpm), &self.nonce(), NOW)
    }

    fn code(&self, root: &Path, vtpm: VtpmEvidence) -> &'static str {
        self.appraise(root, vtpm).unwrap_err().code()
    }
}

#[test]
fn every_genuine_azure_guest_is_believed_and_its_pcrs_with_it() {
    let Some(root) = vectors() else { return };
    for file in SNP.into_iter().chain(TDX) {
        let azure = Azure::read(&root, file);
        let appraisal = azure
            .appraise(&root, azure.vtpm())
            .unwrap_or_else(|error| panic!("{file}: {error:?}"));
        let tpm = appraisal.vtpm().unwrap();
        assert_eq!(tpm.pcrs, azure.pcrs, "{file}");
        assert!(tpm.key_bound_to_processor, "{file}");
        assert!(tpm.secure_boot.is_some(), "{file}");
        // Nobody said what the PCRs should be.
        assert_eq!(
            appraisal.check("vtpm.pcrs").unwrap().outcome,
            Outcome::Unknown
        );
        assert_eq!(appraisal.check("vtpm.key").unwrap().outcome, Outcome::Pass);
        let through_json = azure.evidence(&root, azure.vtpm());
        let again = Evidence::from_json(through_json.to_json().as_bytes()).unwrap();
        assert_eq!(again, through_json, "{file}");
        assert_eq!(
            Evidence::from_cbor(&again.to_cbor()).unwrap(),
            again,
            "{file}"
        );
    }
}

#[test]
fn pcrs_are_held_against_the_reference_values() {
    let Some(root) = vectors() else { return };
    let azure = Azure::read(&root, SNP[0]);
    let appraise = |pcr: u8, value: Hex<32>| {
        let mut reference = ReferenceValues::default();
        reference.vtpm.pcrs.insert(pcr, vec![value]);
        let verifier = Verifier::builder()
            .reference_values(reference)
            .build()
            .unwrap();
        let evidence = azure.evidence(&root, azure.vtpm());
        let appraisal = verifier.appraise_quote_bound_to(&evidence, &azure.nonce(), NOW);
        let appraisal = appraisal.unwrap();
        (
            appraisal.check("vtpm.pcrs").unwrap().outcome,
            appraisal.tier(),
        )
    };
    assert_eq!(appraise(4, azure.pcrs[&4]).0, Outcome::Pass);
    let (outcome, tier) = appraise(4, Hex([4; 32]));
    assert_eq!((outcome, tier), (Outcome::Fail, TrustTier::Contraindicated));
    assert_eq!(appraise(30, Hex([0; 32])).0, Outcome::Fail);
}

#[test]
fn what_the_processor_or_the_tpm_did_not_sign_is_refused() {
    let Some(root) = vectors() else { return };
    for file in [SNP[0], TDX[0]] {
        let azure = Azure::read(&root, file);
        let runtime = HclReport::parse(&azure.hcl)
            .unwrap()
            .runtime_data()
            .to_vec();
        let vtpm = |message: &[u8], signature: &[u8], pcrs: &BTreeMap<u8, Hex<32>>| {
            let signature = TpmSignature::from_rsassa_sha256(signature);
            VtpmEvidence::new(message.to_vec(), signature, pcrs.clone()).unwrap()
        };
        let (message, signature, pcrs) = (&azure.message, &azure.signature, &azure.pcrs);
        let with = |vtpm: VtpmEvidence| {
            azure.code(&root, vtpm.with_runtime_data(runtime.clone()).unwrap())
        };
        // The quote and its signature.
        for at in [0, 5, 40, message.len() - 1] {
            let mut message = message.clone();
            message[at] ^= 1;
            // The nonce is read from what is damaged; it is the signature that must be in the way.
            let vtpm = vtpm(&message, signature, pcrs).with_runtime_data(runtime.clone());
            let evidence = azure.evidence(&root, vtpm.unwrap());
            let verifier = Verifier::builder().build().unwrap();
            let error = verifier.appraise_quote_bound_to(&evidence, &azure.nonce(), NOW);
            assert_eq!(error.unwrap_err().code(), "vtpm-signature", "{at}");
        }
        let mut damaged = signature.clone();
        damaged[17] ^= 1;
        assert_eq!(with(vtpm(message, &damaged, pcrs)), "vtpm-signature");
        // PCRs.
        let mut other = pcrs.clone();
        other.insert(4, Hex([4; 32]));
        assert_eq!(with(vtpm(message, signature, &other)), "vtpm-pcr-digest");
        other.remove(&4);
        assert_eq!(with(vtpm(message, signature, &other)), "vtpm-pcr-selection");
        other = pcrs.clone();
        other.insert(24, Hex([0; 32]));
        assert_eq!(with(vtpm(message, signature, &other)), "vtpm-pcr-selection");
        // Runtime data: another key, or other words about the same key.
        let mut swapped = runtime.clone();
        let at = swapped.len() - 10;
        swapped[at] ^= 1;
        let swapped = vtpm(message, signature, pcrs).with_runtime_data(swapped);
        assert_eq!(
            azure.code(&root, swapped.unwrap()),
            "vtpm-runtime-data-binding"
        );
        // Nothing about the key: then the processor must be bound to the challenge itself.
        assert_eq!(azure.code(&root, vtpm(message, signature, pcrs)), "binding");
        // Another challenge.
        let evidence = azure.evidence(&root, azure.vtpm());
        let verifier = Verifier::builder().build().unwrap();
        let error = verifier.appraise_bound_to(&evidence, &[7; 64], NOW);
        assert_eq!(error.unwrap_err().code(), "vtpm-nonce");
        // A certificate of another machine's key.
        let foreign = certificates(&root, "vtpm/attested-tls-azure-tdx-with-ak-chain.yaml");
        let later = UnixTime(1_781_000_000);
        let mut certified = azure.vtpm();
        for der in foreign {
            certified = certified.with_ak_certificate(der).unwrap();
        }
        let evidence = azure.evidence(&root, certified);
        let error = verifier.appraise_quote_bound_to(&evidence, &azure.nonce(), later);
        assert_eq!(error.unwrap_err().code(), "vtpm-key-mismatch");
    }
}

#[test]
fn a_quote_of_one_machine_does_not_pass_with_the_processor_of_another() {
    let Some(root) = vectors() else { return };
    let (one, other) = (Azure::read(&root, SNP[0]), Azure::read(&root, SNP[1]));
    let mixed = Azure {
        hcl: one.hcl.clone(),
        hardware: one.hardware.clone(),
        ..other.clone()
    };
    assert_eq!(mixed.code(&root, mixed.vtpm()), "vtpm-signature");
    // With the other's runtime data the signature is right, and the processor is not.
    assert_eq!(mixed.code(&root, other.vtpm()), "vtpm-runtime-data-binding");
}

/// Certificates in a file, DER, in order.
fn certificates(root: &Path, path: &str) -> Vec<Vec<u8>> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    let text = String::from_utf8(read(root, path)).unwrap();
    text.split(BEGIN)
        .skip(1)
        .map(|rest| {
            let (body, _) = rest.split_once("-----END").unwrap();
            let body: String = body.split_whitespace().collect();
            STANDARD.decode(body).unwrap()
        })
        .collect()
}

#[test]
fn a_genuine_chain_of_an_attestation_key_ends_in_azures_root() {
    const FILE: &str = "vtpm/attested-tls-azure-tdx-with-ak-chain.yaml";
    /// When it was taken.
    const NOW: UnixTime = UnixTime(1_780_922_561);
    let Some(root) = vectors() else { return };
    let yaml = String::from_utf8(read(&root, FILE)).unwrap();
    let field = |name: &str| {
        let (_, rest) = yaml.split_once(&format!("{name}: >-\n")).unwrap();
        let lines = rest.lines().take_while(|line| line.starts_with(' '));
        lines.map(str::trim).collect::<String>()
    };
    let url = |text: String| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).unwrap();
    let azure = Azure {
        hcl: url(field("hcl_report_base64")),
        hardware: url(field("tdx_quote_base64")),
        message: numbers(&yaml, "message:", "pcrs:").concat(),
        signature: numbers(&yaml, "signature:", "message:").concat(),
        pcrs: (0..)
            .zip(numbers(&yaml, "pcrs:", "event_log:"))
            .map(|(number, value)| (number, Hex(value.try_into().unwrap())))
            .collect(),
    };
    let chain = certificates(&root, FILE);
    let appraise = |certificates: &[&Vec<u8>], now: UnixTime| {
        let mut vtpm = azure.vtpm();
        for der in certificates {
            vtpm = vtpm.with_ak_certificate((*der).clone()).unwrap();
        }
        let verifier = Verifier::builder().build().unwrap();
        verifier.appraise_quote_bound_to(&azure.evidence(&root, vtpm), &azure.nonce(), now)
    };
    let [leaf, middle, top] = &chain[..] else {
        panic!("three certificates");
    };
    let appraisal = appraise(&[leaf, middle, top], NOW).unwrap();
    let tpm = appraisal.vtpm().unwrap();
    let subject = tpm.key_subject.as_deref().unwrap();
    assert!(
        subject.ends_with(".ConfidentialVM.Azure.windows.net"),
        "{subject}"
    );
    assert!(tpm.key_root.unwrap().starts_with("Azure Virtual TPM Root"));
    // The certificate of the key ends long before those of the processor.
    assert!(appraisal.not_after() < NOW.plus_seconds(366 * 86_400));

    let code = |certificates: &[&Vec<u8>], now| appraise(certificates, now).unwrap_err().code();
    assert_eq!(code(&[leaf, middle], NOW), "unknown-root");
    assert_eq!(code(&[leaf, top], NOW), "certificate-issuer");
    assert_eq!(code(&[middle, top], NOW), "certificate-usage");
    assert_eq!(
        code(&[leaf, middle, top], NOW.plus_seconds(400 * 86_400)),
        "certificate-expired"
    );
    assert_eq!(
        code(&[leaf, middle, top], UnixTime(1_780_000_000)),
        "certificate-not-yet-valid"
    );
    let mut damaged = leaf.clone();
    *damaged.last_mut().unwrap() ^= 1;
    assert_eq!(code(&[&damaged, middle, top], NOW), "certificate-signature");
    assert_eq!(
        code(&[&leaf[1..].to_vec(), middle, top], NOW),
        "certificate-malformed"
    );
    let doubled = [leaf, middle, middle, middle, middle, top];
    assert_eq!(code(&doubled, NOW), "certificate-issuer");
}

/// The lists of numbers between two keys of a YAML file.
fn numbers(yaml: &str, from: &str, to: &str) -> Vec<Vec<u8>> {
    let (_, rest) = yaml.split_once("  quote:").unwrap();
    let (_, rest) = rest.split_once(from).unwrap();
    let (list, _) = rest.split_once(to).unwrap();
    let mut lists: Vec<Vec<u8>> = Vec::new();
    for line in list.lines() {
        let line = line.trim();
        let Some(number) = line.trim_start_matches("- ").parse().ok() else {
            continue;
        };
        if line.starts_with("- - ") {
            lists.push(Vec::new());
        }
        match lists.last_mut() {
            Some(list) => list.push(number),
            None => lists.push(vec![number]),
        }
    }
    lists
}

#[test]
fn an_hcl_report_that_is_not_one_is_refused() {
    let Some(root) = vectors() else { return };
    for file in ["hcl-report-snp.bin", "hcl-report-tdx.bin"] {
        let bytes = read(&root, &format!("vtpm/{file}"));
        let report = HclReport::parse(&bytes).unwrap();
        assert!(report.runtime_data().starts_with(b"{\"keys\""));
        let end = 1236 + report.runtime_data().len();
        for length in [0, 31, 1215, 1235, end - 1] {
            let error = HclReport::parse(&bytes[..length]).unwrap_err();
            assert!(matches!(error, HclError::Truncated(_)), "{length}");
        }
        let damaged = |at: usize, byte: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = byte;
            HclReport::parse(&bytes).map(drop).unwrap_err()
        };
        assert_eq!(damaged(0, b'X'), HclError::Signature);
        assert_eq!(damaged(1224, 3), HclError::ReportType(3));
        // Other hashes exist, and must not be taken for SHA-256.
        assert_eq!(damaged(1228, 2), HclError::HashType(2));
        assert!(matches!(damaged(1235, 0xff), HclError::Truncated(_)));
    }
}

#[test]
fn genuine_tpm_logs_replay_to_the_expected_pcrs() {
    let Some(root) = vectors() else { return };
    let expected: Value = serde_json::from_slice(&read(&root, "eventlog/replay.json")).unwrap();
    let mut replayed = 0;
    for (file, expected) in expected.as_object().unwrap() {
        let pcrs = expected["sha256"].as_object().unwrap();
        if pcrs.is_empty() || file.contains("ccel") {
            continue;
        }
        let bytes = read(&root, file);
        let log = EventLog::parse_pcrs(&bytes).unwrap_or_else(|error| panic!("{file}: {error}"));
        let registers = log.replay_pcrs();
        for (pcr, value) in pcrs {
            let seen = registers.values()[pcr.parse::<usize>().unwrap()];
            assert_eq!(
                seen.to_string(),
                value.as_str().unwrap(),
                "{file}, PCR {pcr}"
            );
        }
        replayed += 1;
    }
    assert!(replayed >= 3, "{replayed}");
}
