//! Policies compared and tested from the command line.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const CLEAN_ROOM: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../examples/clean-room/policy.toml"
);

fn policy(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_sandboxctl"))
        .arg("policy")
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code(), text(stdout), text(stderr))
}

/// The clean room with one thing changed.
fn changed(folder: &Path, from: &str, to: &str) -> PathBuf {
    let source = std::fs::read_to_string(CLEAN_ROOM).unwrap();
    assert!(source.contains(from));
    let path = folder.join("changed.toml");
    std::fs::write(&path, source.replace(from, to)).unwrap();
    path
}

#[test]
fn diff_answers_as_diff_does() {
    let folder = tempfile::tempdir().unwrap();
    let (code, out, _) = policy(&["diff", CLEAN_ROOM, CLEAN_ROOM]);
    assert_eq!((code, out.as_str()), (Some(0), "both grant the same\n"));

    let stricter = changed(folder.path(), "risk >= 70", "risk >= 50");
    let stricter = stricter.to_str().unwrap();
    let (code, out, _) = policy(&["diff", CLEAN_ROOM, stricter]);
    assert_eq!(code, Some(1), "{out}");
    assert_eq!(
        out,
        "- live: denied with risk 50\nthe newer grants at most as much\n"
    );
    let (code, out, _) = policy(&["diff", stricter, CLEAN_ROOM, "--json"]);
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, Some(1));
    assert_eq!(
        (&value["equal"], &value["narrowing"]),
        (&false.into(), &false.into())
    );
    assert_eq!(value["flips"][0]["change"], "gained");
    assert_eq!(value["flips"][0]["facts"]["risk"], 50);

    let (code, out, err) = policy(&["diff", CLEAN_ROOM, "/nowhere/policy.toml"]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(err.contains("/nowhere/policy.toml"), "{err}");
}

#[test]
fn the_cases_of_the_clean_room_hold_and_reach_every_rule() {
    let cases = CLEAN_ROOM.replace("policy.toml", "policy.test.toml");
    let (code, out, err) = policy(&["test", CLEAN_ROOM, &cases]);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(
        out.ends_with("5 passed, 0 failed\n3 of 3 rules decided something\n"),
        "{out}"
    );

    // A policy without its threshold fails them.
    let folder = tempfile::tempdir().unwrap();
    let lax = changed(folder.path(), "risk >= 20", "risk >= 30");
    let (code, out, _) = policy(&["test", lax.to_str().unwrap(), &cases, "--json"]);
    assert_eq!(code, Some(1), "{out}");
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(value["passed"], false);
    assert_eq!(
        value["outcomes"][1]["wrong"][0]["grant"],
        "read vault customers"
    );
    assert_eq!(value["coverage"][0]["rule"], "rule 1");
}

#[test]
fn cases_with_mistakes_are_refused_with_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let cases = folder.path().join("cases.toml");
    std::fs::write(
        &cases,
        "[[case]]\nname = \"a\"\nexpect = { denied = [\"read vault costumers\"] }\n",
    )
    .unwrap();
    let (code, out, err) = policy(&["test", CLEAN_ROOM, cases.to_str().unwrap()]);
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(
        err.contains("did you mean `read vault customers`?"),
        "{err}"
    );
}
