//! The path of docs/policy.md, walked: from a program that nobody knows to a tested policy.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// The first block of this kind after the heading.
fn block<'a>(page: &'a str, heading: &str, kind: &str) -> &'a str {
    let section = page.split(heading).nth(1).unwrap();
    let block = section.split(&format!("```{kind}\n")).nth(1).unwrap();
    block.split("```").next().unwrap()
}

#[test]
fn five_commands_lead_from_an_unknown_program_to_a_tested_policy() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/policy.md");
    let page = fs::read_to_string(page).unwrap();
    let heading = "## From an unknown program to a tested policy";
    // Not in /tmp, which a sandbox replaces by its own.
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let program = folder.path().join("report.sh");
    fs::write(&program, block(&page, heading, "sh")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.path().join("names.txt"), "berta\nanton\n").unwrap();
    fs::create_dir(folder.path().join("out")).unwrap();

    let commands = block(&page, heading, "console");
    assert_eq!(commands.lines().count(), 5);
    for command in commands.lines() {
        let arguments = command.strip_prefix("$ sandboxctl ").unwrap().split(' ');
        let output = Command::new(env!("CARGO_BIN_EXE_sandboxctl"))
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{command}: {out}{err}");
    }
    let sorted = fs::read_to_string(folder.path().join("out/sorted.txt")).unwrap();
    assert_eq!(sorted, "anton\nberta\n");

    // Least privilege: what it did not do while it was watched, it cannot do.
    fs::write(folder.path().join("secret.txt"), "secret").unwrap();
    fs::write(&program, "#!/bin/sh\ncat secret.txt\n").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_sandboxctl"))
        .args(["run", "policy.toml", "--log", "log2", "--quiet"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(!String::from_utf8_lossy(&output.stdout).contains("secret"));
}
