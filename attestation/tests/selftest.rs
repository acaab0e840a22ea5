//! The verifier tries itself on genuine evidence and on everything that can be changed about it.
//!
//! The vectors are not part of this repository: they are read from `$CASEMATE_VECTORS`, or else
//! from `../shared/vectors` beside the workspace. Where they are missing this test says so and
//! passes, except under `CI`.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use attestation::selftest::{Finding, Section, Vectors, run};

#[test]
fn genuine_evidence_gets_its_verdict_and_no_changed_field_is_believed() {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
    let root = std::env::var_os("CASEMATE_VECTORS").map_or(beside, PathBuf::from);
    if !root.join("snp").is_dir() {
        let missing = format!("no vectors in {}", root.display());
        assert!(std::env::var_os("CI").is_none(), "{missing}");
        println!("skipped: {missing}; set CASEMATE_VECTORS");
        return;
    }
    let matrix = run(&Vectors::open(root).unwrap()).unwrap();
    for row in matrix.rows() {
        if row.finding != Finding::AsExpected {
            println!("{row:?}");
        }
    }
    let count = |section, finding| matrix.count(section, finding);
    assert!(count(Section::Genuine, Finding::AsExpected) >= 200);
    assert_eq!(count(Section::Genuine, Finding::Wrong), 0);
    assert!(count(Section::Mutation, Finding::AsExpected) >= 1000);
    assert_eq!(count(Section::Mutation, Finding::Wrong), 0);
    assert!(matrix.passes());
}
