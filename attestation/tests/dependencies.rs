//! The verifier stays small enough to be read: few crates, one library of cryptography, no openssl.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::process::Command;

/// Crates that a verifier brings along, itself included.
const MOST: usize = 45;

/// Crates that contain or build C. That of ring is the one to be there.
const C: [&str; 8] = [
    "openssl",
    "openssl-sys",
    "aws-lc-sys",
    "aws-lc-rs",
    "cc",
    "cmake",
    "tss-esapi-sys",
    "bindgen",
];

fn tree(arguments: &[&str]) -> String {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["tree", "--offline", "--locked", "--prefix", "none"]);
    command.args(["--package", "casemate-attestation"]);
    command
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_verifier_has_few_dependencies_and_no_c_but_that_of_ring() {
    let tree = tree(&["--edges", "normal"]);
    let crates: BTreeSet<(&str, &str)> = tree
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(name, rest)| (name, rest.split(' ').next().unwrap_or(rest)))
        .collect();
    assert!(crates.iter().any(|(name, _)| *name == "ring"), "{crates:?}");
    assert!(crates.len() <= MOST, "{}: {crates:?}", crates.len());
    for (name, _) in crates {
        assert!(!C.contains(&name), "{name} is or builds C");
    }
}

#[test]
fn only_ring_compiles_c() {
    // Whatever compiles C does it with this crate, at build time.
    let tree = tree(&["--edges", "normal,build", "--invert", "cc", "--depth", "1"]);
    let crates: Vec<&str> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| !name.is_empty())
        .collect();
    assert_eq!(crates, ["cc", "ring"], "{tree}");
}
