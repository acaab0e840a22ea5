//! Genuine quotes and collateral of Intel get the verdicts that an independent implementation
//! (`dcap-qvl` 0.7.1) gave them, but for differences that are argued where they are listed.
//!
//! The vectors are not part of this repository: they are read from `$CASEMATE_VECTORS`, or else
//! from `../shared/vectors` beside the workspace. Where they are missing these tests say so and
//! pass, except under `CI`.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use attestation::tdx::Quote;
use attestation::{
    Appraisal, AppraiseError, Claims, Endorsements, Evidence, Hex, Outcome, ReferenceValues,
    TcbStatus, TdxClaims, Tee, TrustTier, UnixTime, Verifier,
};
use serde_json::Value;

struct Vectors {
    root: PathBuf,
    cases: Vec<Value>,
    parsed: Vec<Value>,
}

impl Vectors {
    fn open() -> Option<Self> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
        let root = std::env::var_os("CASEMATE_VECTORS").map_or(beside, PathBuf::from);
        let Ok(cases) = std::fs::read(root.join("tdx/cases.json")) else {
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
        let parsed = std::fs::read(root.join("tdx/quotes-parsed.json")).unwrap();
        Some(Self {
            root,
            cases: serde_json::from_slice(&cases).unwrap(),
            parsed: serde_json::from_slice(&parsed).unwrap(),
        })
    }

    fn read(&self, path: &str) -> Vec<u8> {
        std::fs::read(self.root.join(path)).unwrap()
    }

    fn evidence(&self, case: &Value) -> Evidence {
        self.evidence_with(case, |name| self.read(case[name].as_str().unwrap()))
    }

    /// The evidence of a case, with what `part` gives for each of its files.
    fn evidence_with(&self, _: &Value, part: impl Fn(&str) -> Vec<u8>) -> Evidence {
        let endorsements = Endorsements::default()
            .with_tcb_info(part("tcb_info"))
            .and_then(|it| it.with_qe_identity(part("qe_identity")))
            .and_then(|it| it.with_tcb_signing(part("tcb_signing")))
            .unwrap();
        Evidence::new(Tee::Tdx, part("quote"), endorsements)
            .and_then(|it| it.with_crl(part("pck_crl")))
            .and_then(|it| it.with_crl(part("root_crl")))
            .unwrap()
    }

    fn appraise(&self, case: &Value) -> Result<Appraisal, AppraiseError> {
        appraise(&self.evidence(case), at(case))
    }

    fn case(&self, id: &str) -> &Value {
        let mut cases = self.cases.iter();
        cases.find(|case| case["id"] == id).unwrap()
    }
}

fn at(case: &Value) -> UnixTime {
    UnixTime(case["verify_at_unix"].as_u64().unwrap())
}

/// Appraises without expectations, bound to whatever the quote is bound to.
fn appraise(evidence: &Evidence, now: UnixTime) -> Result<Appraisal, AppraiseError> {
    expecting(ReferenceValues::default(), evidence, now)
}

fn expecting(
    reference: ReferenceValues,
    evidence: &Evidence,
    now: UnixTime,
) -> Result<Appraisal, AppraiseError> {
    let report_data = Quote::parse(evidence.report())?.report().report_data();
    let verifier = Verifier::builder()
        .reference_values(reference)
        .build()
        .unwrap();
    verifier.appraise_bound_to(evidence, &report_data, now)
}

/// A quote without collateral.
fn bare(quote: Vec<u8>) -> Evidence {
    Evidence::new(Tee::Tdx, quote, Endorsements::default()).unwrap()
}

fn claims(appraisal: &Appraisal) -> &TdxClaims {
    match appraisal.claims() {
        Claims::Tdx(claims) => claims,
        other => panic!("{other:?}"),
    }
}

fn outcome(appraisal: &Appraisal, id: &str) -> Outcome {
    appraisal.check(id).unwrap().outcome
}

/// 2026-09-01, at which every genuine PCK certificate is valid.
const LATER: UnixTime = UnixTime(1_788_220_800);

#[test]
fn every_case_gets_the_status_that_an_independent_verifier_gave_it() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let mut seen = BTreeMap::<&str, usize>::new();
    for case in &vectors.cases {
        let appraisal = vectors
            .appraise(case)
            .unwrap_or_else(|error| panic!("{}: {error:?}", case["id"]));
        let verdict = case["dcap_qvl_0_7_1"].as_str().unwrap();
        let lenient = case["dcap_qvl_0_7_1_allow_debug_servicetd"]
            .as_str()
            .unwrap();
        let failed = |id| {
            assert_eq!(outcome(&appraisal, id), Outcome::Fail, "{}", case["id"]);
            assert_eq!(appraisal.tier(), TrustTier::Contraindicated);
        };
        // These three are errors there and policy here: the quote is authentic and its status known.
        match verdict {
            "ERR SEPT_VE_DISABLE is not enabled" => failed("tdx.attributes.sept-ve-disable"),
            "ERR Invalid MR service TD" => failed("tdx.mr-service-td"),
            "ERR Debug mode is enabled" => failed("tdx.attributes.debug"),
            "ERR No matching TCB level found" => failed("tdx.tcb"),
            _ => assert_eq!(appraisal.tier(), TrustTier::Warning, "{}", case["id"]),
        }
        let status = match lenient.strip_prefix("OK ") {
            Some("UpToDate") => TcbStatus::UpToDate,
            Some("OutOfDate") => TcbStatus::OutOfDate,
            Some(other) => panic!("{other}"),
            None if verdict == "ERR No matching TCB level found" => TcbStatus::Unknown,
            // There the attribute is looked at before the status, so there is no status to compare.
            None => appraisal.tcb_status(),
        };
        assert_eq!(appraisal.tcb_status(), status, "{}", case["id"]);
        if let Some((_, rest)) = verdict.split_once("adv=")
            && let Some((list, _)) = rest.split_once(" plat=")
        {
            let advisories: Vec<String> = serde_json::from_str(list).unwrap();
            assert_eq!(claims(&appraisal).advisories, advisories, "{}", case["id"]);
        }
        assert_eq!(outcome(&appraisal, "tdx.revocation"), Outcome::Pass);
        *seen.entry(appraisal.tcb_status().name()).or_default() += 1;
    }
    assert!(vectors.cases.len() >= 102, "{seen:?}");
    assert!(seen["up-to-date"] >= 46 && seen["out-of-date"] >= 12 && seen["unknown"] >= 15);
}

#[test]
fn every_genuine_quote_is_believed_with_the_expected_claims() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let mut believed = 0;
    for expected in &vectors.parsed {
        let file = expected["file"].as_str().unwrap();
        let evidence = bare(vectors.read(file));
        if !file.starts_with("tdx/quotes/") {
            continue;
        }
        let appraisal =
            appraise(&evidence, LATER).unwrap_or_else(|error| panic!("{file}: {error:?}"));
        let claims = claims(&appraisal);
        let number = |field: &str| {
            let hex: Hex<8> = expected[field].as_str().unwrap().parse().unwrap();
            u64::from_le_bytes(hex.0)
        };
        let text = |field: &str| expected[field].as_str().unwrap_or_default().to_owned();
        assert_eq!(appraisal.tee(), Tee::Tdx);
        assert_eq!(
            u64::from(claims.quote_version),
            expected["version"].as_u64().unwrap()
        );
        assert_eq!(claims.fmspc.to_string(), text("fmspc"));
        assert_eq!(claims.cpu_svn.to_string(), text("pck_cpusvn"));
        assert_eq!(
            u64::from(claims.pce_svn),
            expected["pck_pcesvn"].as_u64().unwrap()
        );
        assert_eq!(
            u64::from(claims.qe_svn),
            expected["qe_isvsvn"].as_u64().unwrap()
        );
        assert_eq!(claims.tee_tcb_svn.to_string(), text("tcbsvn"));
        let optional = |hex: Option<String>| hex.unwrap_or_default();
        assert_eq!(
            optional(claims.tee_tcb_svn_2.map(|it| it.to_string())),
            text("tcbsvn2")
        );
        assert_eq!(
            optional(claims.mr_service_td.map(|it| it.to_string())),
            text("mrservicetd")
        );
        assert_eq!(claims.mr_seam.to_string(), text("mrseam"));
        assert_eq!(claims.mr_signer_seam.to_string(), text("mrsignerseam"));
        assert_eq!(claims.seam_attributes.to_string(), text("seamattr"));
        assert_eq!(claims.td_attributes, number("tdattr"));
        assert_eq!(claims.xfam, number("xfam"));
        assert_eq!(claims.mr_td.to_string(), text("mrtd"));
        assert_eq!(claims.mr_config_id.to_string(), text("mrconfig"));
        assert_eq!(claims.mr_owner.to_string(), text("mrowner"));
        assert_eq!(claims.mr_owner_config.to_string(), text("mrownercfg"));
        assert_eq!(claims.report_data.to_string(), text("report_data"));
        assert_eq!(evidence.claimed_report_data(), Some(claims.report_data.0));
        for (seen, expected) in claims
            .rtmrs
            .iter()
            .zip(expected["rtmr"].as_array().unwrap())
        {
            assert_eq!(seen.to_string(), expected.as_str().unwrap());
        }
        // Nobody can tell the status, so nobody affirms.
        assert_eq!(appraisal.tcb_status(), TcbStatus::Unknown);
        assert_ne!(appraisal.tier(), TrustTier::Affirming);
        believed += 1;
    }
    assert!(believed >= 33);
}

#[test]
fn a_genuine_quote_is_affirmed_by_reference_values_that_name_it() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let mut affirmed = 0;
    for case in &vectors.cases {
        let evidence = vectors.evidence(case);
        let appraisal = appraise(&evidence, at(case)).unwrap();
        let seen = claims(&appraisal);
        let mut reference = ReferenceValues::default();
        reference.tdx.measurements = Some(vec![seen.mr_td]);
        reference.tdx.rtmr1 = Some(vec![seen.rtmrs[1]]);
        reference.tdx.rtmr2 = Some(vec![seen.rtmrs[2]]);
        reference.tdx.minimum_tcb_evaluation = seen.tcb_evaluation;
        reference.tdx.allow_perfmon = true;
        let again = expecting(reference.clone(), &evidence, at(case)).unwrap();
        let ours = case["dcap_qvl_0_7_1"]
            .as_str()
            .unwrap()
            .starts_with("OK UpToDate");
        assert_eq!(again.tier() == TrustTier::Affirming, ours, "{}", case["id"]);
        affirmed += usize::from(ours);

        reference.tdx.rtmr2 = Some(vec![Hex([7; 48])]);
        let other = expecting(reference.clone(), &evidence, at(case)).unwrap();
        assert_eq!(other.tier(), TrustTier::Contraindicated);
        reference.tdx.minimum_tcb_evaluation = seen.tcb_evaluation.map(|number| number + 1);
        let refused = expecting(reference, &evidence, at(case)).unwrap_err();
        assert_eq!(refused.code(), "collateral-evaluation");
    }
    assert!(affirmed >= 46);
}

#[test]
fn what_is_not_of_production_platforms_is_refused() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    for (file, code) in [
        (
            "tdx/negative/sprpreprod-v4-baremetal-3f49cfeb.dat",
            "unknown-root",
        ),
        // These bring DER where PEM belongs, under a root of Intel's own tests.
        (
            "tdx/negative/testroot-v4-baremetal-aa2cafad.dat",
            "pck-chain-malformed",
        ),
        (
            "tdx/negative/testroot-v4-baremetal-c04eb01f.dat",
            "pck-chain-malformed",
        ),
    ] {
        let error = appraise(&bare(vectors.read(file)), LATER).unwrap_err();
        assert_eq!(error.code(), code, "{file}: {error:?}");
    }
    let case = vectors
        .cases
        .iter()
        .find(|case| case["quote"].as_str().unwrap().contains("46ca3f90"))
        .unwrap();
    for (file, codes) in [
        (
            "tdx/negative/tcbinfo-tdx-c0806f000000-eval18-2026-03-16-9662895e.json",
            ["collateral-signature", "collateral-malformed"],
        ),
        (
            "tdx/negative/tcbinfo-tdx-ed742af8adf5-eval0-2021-08-06-186c3c9c.json",
            ["collateral-signature", "collateral-malformed"],
        ),
    ] {
        let evidence = vectors.evidence_with(case, |name| match name {
            "tcb_info" => vectors.read(file),
            other => vectors.read(case[other].as_str().unwrap()),
        });
        let code = appraise(&evidence, at(case)).unwrap_err().code();
        assert!(codes.contains(&code), "{file}: {code}");
    }
}

#[test]
fn zeroes_after_a_quote_are_reported_and_anything_else_is_refused() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    for (file, padding) in [
        ("tdx/quotes-padded/gcp-quote-8000B-buffer.dat", 3065),
        ("tdx/quotes-padded/gcp-quote-8000B-buffer-2.dat", 3065),
        ("tdx/negative/quote_v4_trailing70.bin", 70),
    ] {
        let mut quote = vectors.read(file);
        let appraisal = appraise(&bare(quote.clone()), LATER).unwrap();
        assert_eq!(claims(&appraisal).padding, padding);
        *quote.last_mut().unwrap() = 1;
        let error = appraise(&bare(quote), LATER).unwrap_err();
        assert_eq!(error.code(), "quote-trailing");
    }
}

#[test]
fn every_flipped_byte_of_a_genuine_quote_is_noticed() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    for id in ["d0ee491c/e708dafb", "cf77a6e9/c5e1117e"] {
        let case = vectors.case(id);
        let original = vectors.read(case["quote"].as_str().unwrap());
        let report_data = Quote::parse(&original).unwrap().report().report_data();
        let verifier = Verifier::builder().build().unwrap();
        let changes = |at: usize| {
            let mut quote = original.clone();
            quote[at] ^= 0x10;
            let verdict = verifier.appraise_bound_to(&bare(quote), &report_data, LATER);
            verdict.is_err()
        };
        let missed: Vec<usize> = (0..original.len()).filter(|at| !changes(*at)).collect();
        // Reserved bytes of the header are signed like all others.
        assert_eq!(missed, [0; 0]);
    }
}

#[test]
fn every_flipped_byte_of_genuine_collateral_is_noticed() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let case = vectors.case("d0ee491c/e708dafb");
    for part in ["tcb_info", "qe_identity", "tcb_signing", "root_crl"] {
        let length = vectors.read(case[part].as_str().unwrap()).len();
        // Every 7th byte of the longest; all of the others.
        let step = if part == "tcb_info" { 7 } else { 1 };
        for at_byte in (0..length).step_by(step) {
            let evidence = vectors.evidence_with(case, |name| {
                let mut bytes = vectors.read(case[name].as_str().unwrap());
                if name == part {
                    bytes[at_byte] ^= 0x01;
                }
                bytes
            });
            let unaffected = match appraise(&evidence, at(case)) {
                Err(_) => false,
                // A list that names nobody of this chain is none of this chain.
                Ok(appraisal) => {
                    !(part == "root_crl" && outcome(&appraisal, "tdx.revocation") != Outcome::Pass)
                }
            };
            assert!(!unaffected, "{part}, byte {at_byte}");
        }
    }
}

#[test]
fn collateral_written_anew_is_refused_even_if_it_says_the_same() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let case = vectors.case("cf77a6e9/c5e1117e");
    for part in ["tcb_info", "qe_identity"] {
        let evidence = vectors.evidence_with(case, |name| {
            let bytes = vectors.read(case[name].as_str().unwrap());
            if name != part {
                return bytes;
            }
            let value: Value = serde_json::from_slice(&bytes).unwrap();
            serde_json::to_vec_pretty(&value).unwrap()
        });
        let error = appraise(&evidence, at(case)).unwrap_err();
        assert_eq!(error.code(), "collateral-signature", "{part}");
    }
}

#[test]
fn genuine_collateral_counts_only_while_it_is_current_and_about_this_platform() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let case = vectors.case("cf77a6e9/c5e1117e");
    let evidence = vectors.evidence(case);
    let end = appraise(&evidence, at(case)).unwrap().not_after();
    assert!(appraise(&evidence, end).is_ok());
    let late = appraise(&evidence, end.plus_seconds(1)).unwrap_err();
    assert!(matches!(
        late.code(),
        "collateral-expired" | "crl-expired" | "certificate-expired"
    ));

    let other = vectors.case("3507b5f7/c6e95d37");
    let mixed = vectors.evidence_with(case, |name| {
        let from = if name == "tcb_info" { other } else { case };
        vectors.read(from[name].as_str().unwrap())
    });
    let error = appraise(&mixed, at(other)).unwrap_err();
    assert_eq!(error.code(), "fmspc-mismatch");

    // The certificate of 2018 has the same key, but ended on 2025-05-21.
    let old = vectors.evidence_with(case, |name| match name {
        "tcb_signing" => vectors.read("tdx/ca/intel-tcb-signing-2018.der"),
        other => vectors.read(case[other].as_str().unwrap()),
    });
    let error = appraise(&old, at(case)).unwrap_err();
    assert_eq!(error.code(), "certificate-expired");
}

#[test]
fn a_platform_never_gains_by_newer_collateral() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let mut history = BTreeMap::<&str, Vec<(u32, UnixTime, Appraisal)>>::new();
    for case in &vectors.cases {
        let appraisal = vectors.appraise(case).unwrap();
        let evaluation = claims(&appraisal).tcb_evaluation.unwrap();
        history
            .entry(case["quote"].as_str().unwrap())
            .or_default()
            .push((evaluation, at(case), appraisal));
    }
    let mut worsened = Vec::new();
    for (quote, mut verdicts) in history {
        verdicts.sort_by_key(|(evaluation, now, _)| (*evaluation, *now));
        for pair in verdicts.windows(2) {
            let [(from, _, before), (to, _, after)] = pair else {
                continue;
            };
            let worse = before.tcb_status().or_worse(after.tcb_status());
            assert_eq!(
                worse,
                after.tcb_status(),
                "{quote} improves from {from} to {to}"
            );
            if before.tcb_status() != after.tcb_status() {
                let what = |appraisal: &Appraisal| {
                    let level = &appraisal.check("tdx.tcb").unwrap().observed;
                    let parts = ["platform", "module", "quoting-enclave"].map(|part| {
                        let check = appraisal.check(&format!("tdx.tcb.{part}")).unwrap();
                        format!("{part} {}", check.observed)
                    });
                    let advisories = claims(appraisal).advisories.join(", ");
                    format!("{level}; {}; advisories [{advisories}]", parts.join(", "))
                };
                let (before, after) = (what(before), what(after));
                println!("{quote}, evaluation {from} to {to}:\n  {before}\n  {after}");
                worsened.push((quote, after));
            }
        }
    }
    // The only two in the corpus: evaluation 17 to 18, and 15 to 18.
    for (name, level, advisories) in DOWNGRADES {
        let of = |(quote, _): &&(&str, String)| quote.contains(name);
        let (_, after) = worsened.iter().find(of).unwrap();
        assert!(
            after.contains(level) && after.contains(advisories),
            "{after}"
        );
    }
    assert_eq!(worsened.len(), DOWNGRADES.len(), "{worsened:?}");
}

/// The quote, the level that it falls to, and what it is open to from then on.
const DOWNGRADES: [(&str, &str, &str); 2] = [
    (
        "d0010db6",
        "out-of-date, as of 2024-03-13T00:00:00Z; platform out-of-date, module out-of-date",
        "INTEL-SA-01036, INTEL-SA-01079, INTEL-SA-01099",
    ),
    (
        "12b401a8",
        "out-of-date, as of 2023-02-15T00:00:00Z; platform out-of-date",
        "INTEL-SA-00837, INTEL-SA-00960",
    ),
];

#[test]
fn evidence_with_collateral_survives_both_encodings() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let case = vectors.case("cf77a6e9/c5e1117e");
    let evidence = vectors.evidence(case);
    let json = Evidence::from_json(evidence.to_json().as_bytes()).unwrap();
    let cbor = Evidence::from_cbor(&evidence.to_cbor()).unwrap();
    assert_eq!(json, evidence);
    assert_eq!(cbor, evidence);
    let once = serde_json::to_string(&appraise(&json, at(case)).unwrap()).unwrap();
    let twice = serde_json::to_string(&appraise(&cbor, at(case)).unwrap()).unwrap();
    assert_eq!(once, twice);
}

#[test]
fn a_verifier_with_collateral_judges_quotes_that_come_alone() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let case = vectors.case("cf77a6e9/c5e1117e");
    let other = vectors.case("3507b5f7/c6e95d37");
    let read = |case: &Value, part: &str| vectors.read(case[part].as_str().unwrap());
    let mut builder = Verifier::builder()
        .endorsement(vectors.read("tdx/ca/intel-tcb-signing-2018.der"))
        .endorsement(vectors.read("tdx/ca/intel-tcb-signing-2025.der"))
        .crl(read(case, "pck_crl"))
        .crl(read(case, "root_crl"));
    for case in [other, case] {
        let collateral = Endorsements::default()
            .with_tcb_info(read(case, "tcb_info"))
            .and_then(|it| it.with_qe_identity(read(case, "qe_identity")))
            .unwrap();
        builder = builder.collateral(collateral);
    }
    let quote = read(case, "quote");
    let report_data = Quote::parse(&quote).unwrap().report().report_data();
    let appraisal = builder
        .build()
        .unwrap()
        .appraise_bound_to(&bare(quote), &report_data, at(case))
        .unwrap();
    assert_eq!(appraisal.tcb_status(), TcbStatus::UpToDate);
    assert_eq!(outcome(&appraisal, "tdx.revocation"), Outcome::Pass);
}

#[test]
fn one_verifier_takes_the_lists_of_both_vendors() {
    let Some(vectors) = Vectors::open() else {
        return;
    };
    let case = vectors.case("cf77a6e9/c5e1117e");
    let mut folder: Vec<_> = std::fs::read_dir(vectors.root.join("snp/crl"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    folder.sort();
    let amd = std::fs::read(&folder[0]).unwrap();
    let evidence = vectors.evidence(case);
    let report_data = evidence.claimed_report_data().unwrap();
    let verifier = Verifier::builder().crl(amd).build().unwrap();
    let appraisal = verifier
        .appraise_bound_to(&evidence, &report_data, at(case))
        .unwrap();
    assert_eq!(outcome(&appraisal, "tdx.revocation"), Outcome::Pass);

    // A list of Intel's says nothing about AMD's chain, and does not stand in its way.
    let now = UnixTime(1_790_000_000);
    let mut tee = attestation::SimulatedTee::new(now).unwrap();
    let evidence = attestation::Attester::attest(&mut tee, &[7; 64]).unwrap();
    let verifier = Verifier::builder()
        .crl(vectors.read(case["root_crl"].as_str().unwrap()))
        .reference_values(tee.reference_values())
        .dangerous()
        .accept_simulated()
        .build()
        .unwrap();
    let appraisal = verifier
        .appraise_bound_to(&evidence, &[7; 64], now)
        .unwrap();
    assert_eq!(outcome(&appraisal, "snp.revocation"), Outcome::Unknown);
}
