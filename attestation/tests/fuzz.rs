//! Parsers of bytes from outside neither panic nor allocate out of proportion, whatever the bytes.
//!
//! A deterministic walk through changed genuine evidence, short enough for every test run; the same
//! functions are driven by libFuzzer for longer (`fuzz/README.md`).
//!
//! The vectors are not part of this repository: they are read from `$CASEMATE_VECTORS`, or else
//! from `../shared/vectors` beside the workspace. Where they are missing only simulated evidence is
//! changed, except under `CI`.

#![allow(clippy::unwrap_used)]

#[path = "../fuzz/attached.rs"]
mod attached;
#[path = "../fuzz/changes.rs"]
mod changes;
#[path = "../fuzz/targets.rs"]
mod targets;

use std::alloc::System;
use std::path::{Path, PathBuf};

use attestation::selftest::Vectors;
use attestation::{Attester as _, Evidence, SimulatedTee, UnixTime};
use changes::{Random, changed};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

/// Counts what is allocated, by this one test of this one process.
#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const EXECUTIONS: usize = 20_000;
/// Verifying signatures, and measuring firmware, take longer than reading.
const SLOW_EXECUTIONS: usize = 3_000;

/// All that one execution may allocate, over its whole time: a part for what does not depend on the
/// input, and some multiple of it.
fn allowance(length: usize) -> usize {
    16 * 1024 + 8 * length
}

#[test]
fn no_bytes_make_a_parser_panic_or_allocate_out_of_proportion() {
    let vectors = vectors();
    let mut random = Random::new();
    for (name, target) in targets::TARGETS.into_iter().chain(attached::TARGETS) {
        let seeds = seeds(name, vectors.as_ref());
        assert!(!seeds.is_empty(), "{name}");
        let executions = match name {
            "quote" | "bundle" | "launch" => SLOW_EXECUTIONS,
            _ => EXECUTIONS,
        };
        let mut most = 0;
        for execution in 0..executions {
            let seed = &seeds[execution % seeds.len()];
            let input = if execution < seeds.len() {
                seed.clone()
            } else {
                changed(seed, &mut random)
            };
            let region = Region::new(ALLOCATOR);
            target(&input);
            let allocated = region.change().bytes_allocated;
            most = most.max(allocated);
            assert!(
                allocated <= allowance(input.len()),
                "{name}: {allocated} bytes for {} of input",
                input.len()
            );
        }
        println!("{name}: {executions} executions, at most {most} bytes allocated in one");
    }
}

fn vectors() -> Option<Vectors> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors");
    let root = std::env::var_os("CASEMATE_VECTORS").map_or(beside, PathBuf::from);
    if root.join("snp").is_dir() {
        return Some(Vectors::open(root).unwrap());
    }
    let missing = format!("no vectors in {}", root.display());
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    println!("only simulated evidence: {missing}; set CASEMATE_VECTORS");
    None
}

/// What to begin with: genuine evidence of the kind, and simulated evidence.
fn seeds(target: &str, vectors: Option<&Vectors>) -> Vec<Vec<u8>> {
    let evidence = simulated();
    let folders: &[&str] = match target {
        "report" => &["snp/reports", "snp/negative"],
        "quote" => &["tdx/quotes", "tdx/negative"],
        "certificate" => &["snp/vek", "snp/ca", "snp/crl", "tdx/ca"],
        "ccel" => &["eventlog"],
        "tcb_info" => &["tdx/collateral"],
        "hcl" | "tpms" => &["vtpm"],
        "spdm" => &["nvidia"],
        "tpm_log" => &["eventlog"],
        "launch" => &["launch-measurement"],
        _ => &[],
    };
    let endorsements = evidence.endorsements();
    let mut seeds = match target {
        "report" => vec![evidence.report().to_vec()],
        "certificate" => vec![endorsements.vek().unwrap().to_vec()],
        "certificate_table" => vec![table(endorsements.vek().unwrap())],
        "bundle" => vec![evidence.to_json().into_bytes(), evidence.to_cbor()],
        // Not much of a beginning, but one.
        _ => vec![b"{}".to_vec()],
    };
    let Some(vectors) = vectors else {
        return seeds;
    };
    if target == "bundle" {
        for case in vectors.tdx().unwrap().iter().take(3) {
            seeds.push(case.evidence.to_json().into_bytes());
            seeds.push(case.evidence.to_cbor());
        }
    }
    for folder in folders {
        for file in vectors.files(folder).unwrap() {
            let mut bytes = binary(vectors.read(&file).unwrap());
            // Logs end in up to a mebibyte of filler.
            bytes.truncate(48 * 1024);
            seeds.push(bytes);
        }
    }
    seeds
}

/// Some vectors are hexadecimal digits.
fn binary(bytes: Vec<u8>) -> Vec<u8> {
    let digits: Vec<u8> = bytes
        .iter()
        .copied()
        .filter(|it| !it.is_ascii_whitespace())
        .collect();
    let pairs = digits.chunks_exact(2).map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16).ok()
    });
    pairs.collect::<Option<Vec<u8>>>().unwrap_or(bytes)
}

fn simulated() -> Evidence {
    let mut tee = SimulatedTee::new(UnixTime(1_790_000_000)).unwrap();
    tee.attest(&[7; 64]).unwrap()
}

/// One entry, the VCEK.
fn table(vek: &[u8]) -> Vec<u8> {
    const VCEK: [u8; 16] = [
        0x63, 0xda, 0x75, 0x8d, 0xe6, 0x64, 0x45, 0x64, 0xad, 0xc5, 0xf4, 0xb9, 0x3b, 0xe8, 0xac,
        0xcd,
    ];
    let length = u32::try_from(vek.len()).unwrap();
    let mut table = VCEK.to_vec();
    table.extend_from_slice(&48_u32.to_le_bytes());
    table.extend_from_slice(&length.to_le_bytes());
    table.extend_from_slice(&[0; 24]);
    table.extend_from_slice(vek);
    table
}
