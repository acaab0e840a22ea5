//! The fuzz targets of what comes beside a report, for a moment, on damaged genuine bytes.

#![allow(clippy::unwrap_used)]

#[path = "../fuzz/attached.rs"]
mod attached;

use std::path::Path;

const SEEDS: [&str; 7] = [
    "vtpm/hcl-report-snp.bin",
    "vtpm/hcl-report-tdx.bin",
    "vtpm/trustee-tpm-quote.msg",
    "vtpm/tpm-quote.bin",
    "eventlog/gcp-cos101-eventlog.bin",
    "launch-measurement/ovmf_AmdSev_suffix.bin",
    "launch-measurement/virtee-test_auth_block.bin",
];

#[test]
fn no_damage_to_genuine_bytes_makes_a_parser_panic() {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
    let root = std::env::var_os("CASEMATE_VECTORS").map_or(beside, Into::into);
    if !root.join("vtpm").exists() {
        assert!(
            std::env::var_os("CI").is_none(),
            "no vectors in {}",
            root.display()
        );
        println!(
            "skipped: no vectors in {}; set CASEMATE_VECTORS",
            root.display()
        );
        return;
    }
    // A generator of numbers that is the same in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = |below: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        usize::try_from(state >> 33).unwrap() % below
    };
    for seed in SEEDS {
        let seed = std::fs::read(root.join(seed)).unwrap();
        for _ in 0..60 {
            let mut bytes = seed.clone();
            bytes.truncate(seed.len() - next(3) * next(seed.len()) / 3);
            for _ in 0..next(8) {
                let at = next(bytes.len().max(1));
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = u8::try_from(next(256)).unwrap();
                }
            }
            for (_, target) in attached::TARGETS {
                target(&bytes);
            }
        }
    }
}
