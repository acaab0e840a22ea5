//! Genuine reports and certificates of AMD hardware get the verdicts that an independent
//! implementation gave them.
//!
//! The vectors are not part of this repository: they are read from `$CASEMATE_VECTORS`, or else
//! from `../shared/vectors` beside the workspace. Where they are missing these tests say so and
//! pass, except under `CI`.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use attestation::snp::{Product, Report, TcbVersion};
use attestation::{
    Appraisal, AppraiseError, Claims, Endorsements, Evidence, Hex, Outcome, ReferenceValues,
    SnpClaims, TcbStatus, Tee, TrustTier, UnixTime, Verifier,
};
use serde_json::Value;

const DAY: u64 = 24 * 60 * 60;

struct Vectors {
    root: PathBuf,
    expected: Vec<Value>,
}

/// One report that some VEK in the corpus signed.
struct Genuine<'a> {
    name: &'a str,
    expected: &'a Value,
    report: Vec<u8>,
    vek: Vec<u8>,
    /// A moment at which all its certificates are valid: the last day of the VEK.
    now: UnixTime,
}

impl Vectors {
    fn open() -> Option<Self> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
        let root = std::env::var_os("CASEMATE_VECTORS").map_or(beside, PathBuf::from);
        let Ok(json) = std::fs::read(root.join("snp/expected.json")) else {
            assert!(
                std::env::var_os("CI").is_none(),
                "no vectors in {}",
                root.display()
            );
            println!(
                "skipped: no vectors in {}; set CASEMATE_VECTORS",
                root.display()
            );
            return None;
        };
        let expected = serde_json::from_slice(&json).unwrap();
        Some(Self { root, expected })
    }

    fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.root.join(path)).unwrap()
    }

    fn files(&self, folder: &str) -> Vec<String> {
        let mut files: Vec<String> = std::fs::read_dir(self.root.join(folder))
            .unwrap()
            .map(|entry| format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap()))
            .collect();
        files.sort();
        files
    }

    fn genuine(&self) -> Vec<Genuine<'_>> {
        let mut all = Vec::new();
        for expected in &self.expected {
            let name = expected["file"].as_str().unwrap();
            for signer in expected["signed_by"].as_array().unwrap() {
                all.push(Genuine {
                    name,
                    expected,
                    report: self.read(name),
                    vek: self.read(signer["vek"].as_str().unwrap()),
                    now: midnight(signer["not_after"].as_str().unwrap()),
                });
            }
        }
        all
    }

    /// A verifier that knows AMD's intermediates and roots and expects nothing.
    fn verifier(&self) -> Verifier {
        self.expecting(ReferenceValues::default())
    }

    fn expecting(&self, reference: ReferenceValues) -> Verifier {
        let mut builder = Verifier::builder().reference_values(reference);
        for file in self.files("snp/ca") {
            builder = builder.endorsement(self.read(&file));
        }
        builder.build().unwrap()
    }
}

impl Genuine<'_> {
    fn evidence(&self) -> Evidence {
        evidence(&self.report, &self.vek)
    }

    fn report_data(&self) -> [u8; 64] {
        self.hex::<64>("report_data").0
    }

    fn hex<const N: usize>(&self, field: &str) -> Hex<N> {
        self.expected[field].as_str().unwrap().parse().unwrap()
    }

    fn appraise(&self, verifier: &Verifier) -> Result<Appraisal, AppraiseError> {
        verifier.appraise_bound_to(&self.evidence(), &self.report_data(), self.now)
    }
}

fn evidence(report: &[u8], vek: &[u8]) -> Evidence {
    let endorsements = Endorsements::default().with_vek(vek.to_vec()).unwrap();
    Evidence::new(Tee::SevSnp, report.to_vec(), endorsements).unwrap()
}

fn claims(appraisal: &Appraisal) -> &SnpClaims {
    match appraisal.claims() {
        Claims::SevSnp(claims) => claims,
        other => panic!("{other:?}"),
    }
}

/// Seconds at the beginning of a day written as `2029-09-24`.
fn midnight(date: &str) -> UnixTime {
    let mut parts = date.split('-').map(|part| part.parse::<u64>().unwrap());
    let (year, month, day) = (
        parts.next().unwrap(),
        parts.next().unwrap(),
        parts.next().unwrap(),
    );
    // Years begin in March here, so that the leap day comes last.
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    UnixTime((days - 719_468) * DAY)
}

#[test]
fn every_genuine_report_is_believed_with_the_expected_claims() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let verifier = vectors.verifier();
    let genuine = vectors.genuine();
    assert!(genuine.len() >= 28, "only {} reports", genuine.len());
    for case in &genuine {
        let appraisal = case
            .appraise(&verifier)
            .unwrap_or_else(|error| panic!("{}: {error:?}", case.name));
        let claims = claims(&appraisal);
        let number = |field: &str| {
            let text = case.expected[field].as_str().unwrap();
            u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap()
        };
        let byte = |value: &Value| u8::try_from(value.as_u64().unwrap()).unwrap();
        assert_eq!(appraisal.tee(), Tee::SevSnp);
        assert!(!appraisal.is_simulated());
        assert_eq!(
            u64::from(claims.report_version),
            case.expected["version"].as_u64().unwrap()
        );
        assert_eq!(claims.policy, number("policy"), "{}", case.name);
        assert_eq!(claims.platform_info, number("platform_info"));
        assert_eq!(
            u64::from(claims.vmpl),
            case.expected["vmpl"].as_u64().unwrap()
        );
        assert_eq!(claims.measurement, case.hex("measurement"));
        assert_eq!(claims.host_data, case.hex("host_data"));
        assert_eq!(claims.id_key_digest, case.hex("id_key_digest"));
        assert_eq!(claims.report_data, case.hex("report_data"));
        let tcb = &case.expected["reported_tcb"];
        assert_eq!(claims.reported_tcb.bootloader, byte(&tcb["bl"]));
        assert_eq!(claims.reported_tcb.tee, byte(&tcb["tee"]));
        assert_eq!(claims.reported_tcb.snp, byte(&tcb["snp"]));
        assert_eq!(claims.reported_tcb.microcode, byte(&tcb["uc"]));
        assert_eq!(claims.reported_tcb.fmc.map(u64::from), tcb["fmc"].as_u64());
        let firmware = case.expected["current_fw"].as_array().unwrap();
        assert_eq!(
            claims.current_firmware.to_vec(),
            firmware.iter().map(byte).collect::<Vec<_>>()
        );
        assert_eq!(
            claims.current_mitigations,
            case.expected["current_mit"].as_u64()
        );
        let is_vlek = case.name.contains("vlek");
        assert_eq!(claims.chip_id, (!is_vlek).then(|| case.hex("chip_id")));
        assert_eq!(claims.provider.is_some(), is_vlek);
        let product = ["milan", "genoa", "turin"]
            .into_iter()
            .find(|name| case.name.contains(&format!("/{name}")));
        assert_eq!(Some(claims.product.key()), product);
        assert!(claims.reserved_in_use.is_empty(), "{}", case.name);
    }
}

#[test]
fn genuine_evidence_without_reference_values_is_never_affirmed() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let verifier = vectors.verifier();
    for case in vectors.genuine() {
        let appraisal = case.appraise(&verifier).unwrap();
        let unwelcome = appraisal.debug() || claims(&appraisal).vmpl != 0;
        let tier = if unwelcome {
            TrustTier::Contraindicated
        } else {
            TrustTier::Warning
        };
        assert_eq!(appraisal.tier(), tier, "{}", case.name);
        assert_eq!(appraisal.tcb_status(), TcbStatus::Unknown);
        assert_eq!(
            appraisal.check("snp.measurement").unwrap().outcome,
            Outcome::Unknown
        );
    }
}

#[test]
fn genuine_evidence_is_affirmed_by_reference_values_that_name_it() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let verifier = vectors.verifier();
    let mut affirmed = 0;
    for case in vectors.genuine() {
        let appraisal = case.appraise(&verifier).unwrap();
        let seen = claims(&appraisal);
        let mut reference = ReferenceValues::default();
        reference.sev_snp.measurements = Some(vec![seen.measurement]);
        reference.sev_snp.products = Some(vec![seen.product]);
        reference
            .sev_snp
            .minimum_tcb
            .insert(seen.product, seen.reported_tcb);
        reference.sev_snp.max_vmpl = seen.vmpl;
        let again = case
            .appraise(&vectors.expecting(reference.clone()))
            .unwrap();
        assert_eq!(again.tcb_status(), TcbStatus::UpToDate);
        let tier = if seen.debug {
            TrustTier::Contraindicated
        } else {
            TrustTier::Affirming
        };
        assert_eq!(again.tier(), tier, "{}: {:?}", case.name, again.checks());
        affirmed += usize::from(tier == TrustTier::Affirming);

        let mut floor = seen.reported_tcb;
        floor.snp += 1;
        reference.sev_snp.minimum_tcb.insert(seen.product, floor);
        let behind = case.appraise(&vectors.expecting(reference)).unwrap();
        assert_eq!(behind.tcb_status(), TcbStatus::OutOfDate);
        assert_ne!(behind.tier(), TrustTier::Affirming);
    }
    assert!(affirmed >= 27);
}

#[test]
fn a_milan_warns_unless_the_relying_party_names_it() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let verifier = vectors.verifier();
    for case in vectors.genuine() {
        let appraisal = case.appraise(&verifier).unwrap();
        let outcome = appraisal.check("snp.product").unwrap().outcome;
        let expected = match claims(&appraisal).product {
            Product::Milan => Outcome::Fail,
            _ => Outcome::Pass,
        };
        assert_eq!(outcome, expected);
    }
}

#[test]
fn no_report_verifies_under_a_key_that_did_not_sign_it() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let verifier = vectors.verifier();
    let veks: Vec<(String, Vec<u8>)> = vectors
        .files("snp/vek")
        .into_iter()
        .chain(
            vectors
                .files("snp/negative")
                .into_iter()
                .filter(|file| file.ends_with(".der")),
        )
        .map(|file| (file.clone(), vectors.read(&file)))
        .collect();
    let mut refused = 0;
    for expected in &vectors.expected {
        let name = expected["file"].as_str().unwrap();
        let report = vectors.read(name);
        let report_data = Report::parse(&report).unwrap().report_data().to_owned();
        let signers = expected["signed_by"].as_array().unwrap();
        for (file, vek) in &veks {
            if signers
                .iter()
                .any(|signer| signer["vek"].as_str() == Some(file))
            {
                continue;
            }
            let now = midnight("2027-01-01");
            let verdict = verifier.appraise_bound_to(&evidence(&report, vek), &report_data, now);
            assert!(verdict.is_err(), "{name} under {file}");
            refused += 1;
        }
    }
    assert!(refused > 1000);
}

#[test]
fn genuine_certificates_are_refused_outside_their_validity() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let verifier = vectors.verifier();
    for case in vectors.genuine() {
        let (evidence, data) = (case.evidence(), case.report_data());
        let at = |now| verifier.appraise_bound_to(&evidence, &data, now);
        let end = at(case.now).unwrap().not_after();
        assert!(at(end).is_ok(), "{}", case.name);
        assert_eq!(
            at(end.plus_seconds(1)).unwrap_err().code(),
            "certificate-expired"
        );
        let long_ago = case.now.minus_seconds(8 * 366 * DAY);
        assert_eq!(
            at(long_ago).unwrap_err().code(),
            "certificate-not-yet-valid"
        );
    }
}

#[test]
fn doctored_and_corrupt_files_are_refused() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let verifier = vectors.verifier();
    let report = vectors.read("snp/reports/milan-v2-baremetal-vcek-vmpl0-597d1fae.bin");
    for (file, codes) in [
        (
            "snp/negative/sev-vcek-cee96955.der",
            ["certificate-signature"],
        ),
        (
            "snp/negative/sev-vcek-f875ab6f.der",
            ["certificate-signature"],
        ),
    ] {
        let now = midnight("2027-01-01");
        let verdict =
            verifier.appraise_bound_to(&evidence(&report, &vectors.read(file)), &[0; 64], now);
        assert!(codes.contains(&verdict.unwrap_err().code()), "{file}");
    }
    assert!(Report::parse(&vectors.read("snp/negative/guest_report_corrupt.bin")).is_err());
}

#[test]
fn every_flipped_byte_of_a_genuine_report_is_noticed() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let verifier = vectors.verifier();
    let cases = vectors.genuine();
    let case = cases
        .iter()
        .find(|case| case.name.contains("turin"))
        .unwrap();
    for at in 0..case.report.len() {
        let mut report = case.report.clone();
        report[at] ^= 0x10;
        let verdict = verifier.appraise_bound_to(
            &evidence(&report, &case.vek),
            &case.report_data(),
            case.now,
        );
        assert!(verdict.is_err(), "byte {at:#x}");
    }
}

#[test]
fn genuine_revocation_lists_count_for_their_own_root_while_current() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let crl = |product: &str| {
        let files = vectors.files("snp/crl");
        vectors.read(files.iter().find(|file| file.contains(product)).unwrap())
    };
    let with = |crl: Vec<u8>| {
        let mut builder = Verifier::builder().crl(crl);
        for file in vectors.files("snp/ca") {
            builder = builder.endorsement(vectors.read(&file));
        }
        builder.build().unwrap()
    };
    let cases = vectors.genuine();
    let case = cases
        .iter()
        .find(|case| case.name.contains("genoa-v3-azure-vcek-vmpl0-a9e9196c"))
        .unwrap();
    let (evidence, data) = (case.evidence(), case.report_data());
    let revocation = |verifier: &Verifier, now| {
        let appraisal = verifier.appraise_bound_to(&evidence, &data, now)?;
        let outcome = appraisal.check("snp.revocation").unwrap().outcome;
        Ok::<_, AppraiseError>((outcome, appraisal.not_after()))
    };

    // The list of 2024-10-23 revokes the first Genoa ASK, not the one in use. It ends on
    // 2025-11-03 at 01:00, before any of the certificates.
    let genoa = with(crl("genoa"));
    let during = midnight("2025-09-01");
    let end = midnight("2025-11-03").plus_seconds(60 * 60);
    assert_eq!(revocation(&genoa, during).unwrap(), (Outcome::Pass, end));
    let late = revocation(&genoa, midnight("2025-11-04")).unwrap_err();
    assert_eq!(late.code(), "crl-expired");

    let milan = with(crl("milan"));
    assert_eq!(revocation(&milan, during).unwrap().0, Outcome::Unknown);
    let none = vectors.verifier();
    assert_eq!(revocation(&none, during).unwrap().0, Outcome::Skipped);
}

#[test]
fn the_authorities_of_another_generation_are_refused() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let ca = |name: &str| {
        let files = vectors.files("snp/ca");
        let prefix = format!("snp/ca/{name}");
        vectors.read(files.iter().find(|file| file.starts_with(&prefix)).unwrap())
    };
    let cases = vectors.genuine();
    let milan = cases
        .iter()
        .find(|case| case.name.contains("milan-v3-azure"))
        .unwrap();
    let code = |intermediate: &str, root: &str| {
        let chain = Endorsements::default()
            .with_vek(milan.vek.clone())
            .and_then(|chain| chain.with_intermediate(ca(intermediate)))
            .and_then(|chain| chain.with_root(ca(root)))
            .unwrap();
        let evidence = Evidence::new(Tee::SevSnp, milan.report.clone(), chain).unwrap();
        let verifier = Verifier::builder().build().unwrap();
        verifier
            .appraise_bound_to(&evidence, &milan.report_data(), milan.now)
            .map_or_else(|error| error.code(), |_| "believed")
    };
    assert_eq!(code("sev-milan", "ark-milan"), "believed");
    assert_eq!(code("sev-genoa", "ark-genoa"), "certificate-issuer");
    assert_eq!(code("sev-milan", "ark-genoa"), "intermediate-name");
    assert_eq!(code("sev-vlek-milan", "ark-milan"), "intermediate-name");
    assert_eq!(code("sev-genoa", "ark-milan"), "intermediate-name");
}

#[test]
fn reports_without_a_key_parse_and_are_not_believed() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    for file in vectors.files("snp/reports-no-cert") {
        let bytes = vectors.read(&file);
        let report = Report::parse(&bytes).unwrap();
        assert!(report.reserved_in_use().is_empty(), "{file}");
        if file.contains("milan-v4-gcp") {
            // The layout is that of the processor, whatever the version of the report.
            assert_eq!(report.product(), Some(Product::Milan));
            let tcb = TcbVersion::from_bytes(report.reported_tcb(), Product::Milan);
            assert_eq!((tcb.bootloader, tcb.snp, tcb.microcode), (4, 25, 219));
        }
        let bare = Evidence::new(Tee::SevSnp, bytes.clone(), Endorsements::default()).unwrap();
        let verdict =
            vectors
                .verifier()
                .appraise_bound_to(&bare, report.report_data(), UnixTime(0));
        assert_eq!(verdict.unwrap_err().code(), "vek-missing");
    }
}

#[test]
fn the_shipped_table_tells_what_genuine_firmware_is_open_to() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let key = ring::signature::Ed25519KeyPair::from_seed_unchecked(&[1; 32]).unwrap();
    let text = include_str!("../data/amd-tcb.json");
    let (note, key) = attestation::note::sign(text, "table", &key).unwrap();
    let table = attestation::snp::TcbTable::open(&note, &key).unwrap();
    let judged = |case: &Genuine<'_>, products| {
        let mut reference = ReferenceValues::default();
        reference.sev_snp.products = products;
        let mut builder = Verifier::builder()
            .reference_values(reference)
            .tcb_table(table.clone());
        for file in vectors.files("snp/ca") {
            builder = builder.endorsement(vectors.read(&file));
        }
        case.appraise(&builder.build().unwrap()).unwrap()
    };
    let mut seen = std::collections::BTreeMap::<_, usize>::new();
    for case in vectors.genuine() {
        let appraisal = judged(&case, Some(vec![Product::Milan]));
        let (claims, status) = (claims(&appraisal), appraisal.tcb_status());
        let tcb = claims.reported_tcb;
        let expected = match claims.product {
            Product::Milan if claims.platform_info & 1 << 5 == 0 => TcbStatus::OutOfDate,
            Product::Milan if tcb.snp >= 24 => TcbStatus::UpToDate,
            Product::Genoa if tcb.snp >= 23 => TcbStatus::UpToDate,
            Product::Milan | Product::Genoa => TcbStatus::OutOfDate,
            _ => TcbStatus::Unknown,
        };
        assert_eq!(
            status,
            expected,
            "{}: {:?}",
            case.name,
            appraisal.check("snp.tcb")
        );
        // Affected by EntrySign exactly where the security version says so.
        let entry_sign = claims.advisories.iter().any(|it| it == "AMD-SB-3019");
        assert_eq!(entry_sign, status == TcbStatus::OutOfDate);
        *seen.entry((claims.product, status.name())).or_default() += 1;
        if claims.product == Product::Milan {
            let distrusted = judged(&case, None);
            assert_eq!(distrusted.tcb_status(), TcbStatus::Revoked);
            assert_eq!(distrusted.tier(), TrustTier::Contraindicated);
        }
    }
    assert!(
        seen[&(Product::Milan, "up-to-date")] > 0 && seen[&(Product::Milan, "out-of-date")] > 0
    );
    assert!(seen[&(Product::Genoa, "up-to-date")] > 0 && seen[&(Product::Turin, "unknown")] > 0);
}
