//! The TCB table: who signed it, whether it is current, and what follows from its levels.

use ring::signature::Ed25519KeyPair;
use serde_json::{Value, json};

use super::*;
use crate::appraisal::TcbStatus;
use crate::note;
use crate::tee::snp::{Product, TcbTable, TcbTableError, TcbVersion};
use crate::{DEFAULT_TCB, Hex};

const DAY: u64 = 24 * 60 * 60;
/// 2026-09-21, the day of `NOW`, is 100 days after this.
const FIXED: &str = "2026-06-13T13:33:20Z";

fn sign(table: &Value) -> Result<TcbTable, TcbTableError> {
    let key = Ed25519KeyPair::from_seed_unchecked(&[3; 32]).unwrap();
    let (note, key) = note::sign(&format!("{table}\n"), "table", &key).unwrap();
    TcbTable::open(&note, &key)
}

/// Genoa: up to date from SNP firmware 25 on, out of date from 20 on, and nothing below.
fn table() -> Value {
    json!({
        "format": "casemate-amd-tcb/1",
        "version": 7,
        "issued": "2026-09-01T00:00:00Z",
        "next-update": "2026-12-01T00:00:00Z",
        "covers": ["AMD-SB-0001"],
        "generations": [{
            "product": "genoa",
            "levels": [
                { "requires": { "snp": 25 }, "status": "up-to-date", "date": FIXED, "source": "a" },
                { "requires": { "snp": 20 }, "status": "out-of-date", "date": "2025-01-01T00:00:00Z",
                  "advisories": ["AMD-SB-0001"], "source": "b" },
            ],
        }],
    })
}

fn with(table: &Value, snp: u8, expect: impl FnOnce(&mut crate::SnpReferenceValues)) -> Appraisal {
    let mut reference = reference();
    reference.sev_snp.minimum_tcb.clear();
    expect(&mut reference.sev_snp);
    let tcb = TcbVersion { snp, ..DEFAULT_TCB };
    let verifier = Verifier::builder()
        .reference_values(reference)
        .tcb_table(sign(table).unwrap())
        .dangerous()
        .accept_simulated()
        .build()
        .unwrap();
    verifier
        .appraise(&evidence(tee().tcb(tcb)), &challenge(), NOW)
        .unwrap()
}

fn outcome(appraisal: &Appraisal, id: &str) -> Outcome {
    appraisal.check(id).unwrap().outcome
}

#[test]
fn the_table_says_what_firmware_is_worth_and_how_far_it_is_behind() {
    let current = with(&table(), 25, |_| {});
    assert_eq!(current.tcb_status(), TcbStatus::UpToDate);
    assert_eq!(
        current.tier(),
        TrustTier::Affirming,
        "{:?}",
        current.checks()
    );
    assert_eq!(claims(&current).tcb_table, Some(7));
    // 2026-12-01, before the certificates end.
    assert_eq!(current.not_after(), UnixTime(1_796_083_200));

    let behind = with(&table(), 24, |_| {});
    assert_eq!(behind.tcb_status(), TcbStatus::OutOfDate);
    assert_eq!(behind.tier(), TrustTier::Warning);
    assert_eq!(claims(&behind).advisories, ["AMD-SB-0001"]);
    let required = &behind.check("snp.tcb").unwrap().required;
    assert!(
        required.contains("1 levels behind, the next takes snp 25"),
        "{required}"
    );

    let ancient = with(&table(), 19, |_| {});
    assert_eq!(ancient.tcb_status(), TcbStatus::Unknown);
    assert_eq!(outcome(&ancient, "snp.tcb"), Outcome::Unknown);
}

#[test]
fn grace_lets_a_platform_pass_for_some_days_and_no_longer() {
    let graced = |days| with(&table(), 24, |it| it.tcb_grace_days = Some(days));
    let passed = graced(101);
    assert_eq!(outcome(&passed, "snp.tcb"), Outcome::Pass);
    assert_eq!(passed.tier(), TrustTier::Affirming);
    assert_eq!(passed.tcb_status(), TcbStatus::OutOfDate, "and it says so");
    assert_eq!(outcome(&graced(99), "snp.tcb"), Outcome::Fail);
    // There is no grace for what was revoked.
    let mut revoked = table();
    revoked["generations"][0]["levels"][1]["status"] = json!("revoked");
    let refused = with(&revoked, 24, |it| it.tcb_grace_days = Some(1000));
    assert_eq!(refused.tcb_status(), TcbStatus::Revoked);
    assert_eq!(refused.tier(), TrustTier::Contraindicated);
}

#[test]
fn a_distrusted_generation_is_revoked_unless_it_is_named() {
    let mut table = table();
    table["generations"][0]["distrusted"] = json!({ "since": FIXED, "source": "a paper" });
    let distrusted = with(&table, 25, |_| {});
    assert_eq!(distrusted.tcb_status(), TcbStatus::Revoked);
    assert_eq!(distrusted.tier(), TrustTier::Contraindicated);
    assert_eq!(outcome(&distrusted, "snp.generation"), Outcome::Fail);
    let named = with(&table, 25, |it| it.products = Some(vec![Product::Genoa]));
    assert_eq!(named.tcb_status(), TcbStatus::UpToDate);
    assert_eq!(named.tier(), TrustTier::Affirming);
}

#[test]
fn chips_are_taken_by_name_where_they_are_named() {
    let named = |chip| with(&table(), 25, |it| it.chip_ids = Some(vec![Hex(chip)]));
    assert_eq!(named([0x5a; 64]).tier(), TrustTier::Affirming);
    assert_eq!(named([0x5b; 64]).tier(), TrustTier::Contraindicated);
}

#[test]
fn a_table_that_ended_or_is_too_old_affirms_nothing() {
    let mut ended = table();
    ended["next-update"] = json!("2026-09-02T00:00:00Z");
    let mut early = table();
    early["issued"] = json!("2026-11-01T00:00:00Z");
    for odd in [ended, early] {
        let appraisal = with(&odd, 25, |_| {});
        assert_eq!(outcome(&appraisal, "snp.tcb-table"), Outcome::Fail);
        assert_eq!(appraisal.tier(), TrustTier::Warning);
        assert!(appraisal.not_after() > NOW.plus_seconds(DAY));
    }
    let rolled_back = with(&table(), 25, |it| it.minimum_tcb_table = Some(8));
    assert_eq!(rolled_back.tier(), TrustTier::Warning);
    let recent = with(&table(), 25, |it| it.minimum_tcb_table = Some(7));
    assert_eq!(recent.tier(), TrustTier::Affirming);
}

#[test]
fn a_generation_that_the_table_does_not_have_is_unknown() {
    let mut other = table();
    other["generations"][0]["product"] = json!("turin");
    let appraisal = with(&other, 25, |_| {});
    assert_eq!(appraisal.tcb_status(), TcbStatus::Unknown);
    assert_eq!(appraisal.tier(), TrustTier::Warning);
}

#[test]
fn minimum_tcbs_of_the_relying_party_count_besides() {
    let strict = with(&table(), 25, |it| {
        let minimum = TcbVersion {
            snp: 26,
            ..DEFAULT_TCB
        };
        it.minimum_tcb.insert(Product::Genoa, minimum);
    });
    assert_eq!(strict.tcb_status(), TcbStatus::OutOfDate);
    assert_eq!(strict.tier(), TrustTier::Warning);
}

#[test]
fn levels_may_ask_for_firmware_mitigations_and_state_of_the_platform() {
    for (requires, met) in [
        (json!({ "firmware": [1, 55, 43] }), true),
        (json!({ "firmware": [1, 55, 44] }), false),
        (json!({ "firmware": [1, 54, 99] }), true),
        (json!({ "platform": ["alias-check-complete"] }), true),
        (json!({ "platform": ["ciphertext-hiding"] }), false),
        // The report is of version 3 and has no vector, which is not a vector of zeroes.
        (json!({ "mitigations": 1 }), false),
        (json!({ "microcode": 85 }), false),
    ] {
        let mut table = table();
        table["generations"][0]["levels"] = json!([
            { "requires": requires, "status": "up-to-date", "date": FIXED, "source": "a" },
            { "requires": {}, "status": "out-of-date", "date": FIXED, "source": "b" },
        ]);
        let status = with(&table, 25, |_| {}).tcb_status();
        assert_eq!(status == TcbStatus::UpToDate, met, "{requires}");
    }
}

#[test]
fn a_table_that_contradicts_itself_is_refused() {
    let refused = |edit: fn(&mut Value)| {
        let mut table = table();
        edit(&mut table);
        sign(&table).unwrap_err().to_string()
    };
    assert!(
        refused(|it| it["generations"][0]["levels"][1]["requires"]["tee"] = json!(1))
            .contains("above")
    );
    assert!(refused(|it| it["format"] = json!("casemate-amd-tcb/2")).contains("format"));
    assert!(refused(|it| it["next-update"] = it["issued"].clone()).contains("ends"));
    let twice = refused(|it| {
        let generation = it["generations"][0].clone();
        it["generations"] = json!([generation.clone(), generation]);
    });
    assert!(twice.contains("twice"));
    assert!(refused(|it| it["generation"] = json!([])).contains("JSON"));
    assert!(
        refused(|it| it["generations"][0]["levels"][0]["status"] = json!("fine")).contains("JSON")
    );
}

#[test]
fn a_table_is_believed_only_under_the_key_of_the_relying_party() {
    let [ours, other] =
        [3, 4].map(|seed| Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap());
    let text = format!("{}\n", table());
    let (signed, ours) = note::sign(&text, "table", &ours).unwrap();
    let (_, other) = note::sign(&text, "table", &other).unwrap();
    assert!(TcbTable::open(&signed, &ours).is_ok());
    assert!(matches!(
        TcbTable::open(&signed, &other),
        Err(TcbTableError::Note(_))
    ));
    let changed = signed.replace("\"snp\":25", "\"snp\":05");
    assert!(matches!(
        TcbTable::open(&changed, &ours),
        Err(TcbTableError::Note(_))
    ));
    assert!(matches!(
        TcbTable::open(&text, &ours),
        Err(TcbTableError::Note(_))
    ));
}

#[test]
fn the_table_that_is_shipped_is_one() {
    let text = include_str!("../../../../data/amd-tcb.json");
    TcbTable::check_text(text).unwrap();
    let table: Value = serde_json::from_str(text).unwrap();
    // Every row says who says so.
    for generation in table["generations"].as_array().unwrap() {
        for level in generation["levels"].as_array().unwrap() {
            assert!(!level["source"].as_str().unwrap().is_empty());
        }
    }
}
