//! Vaults from the command line: their keys, and what is said of damage.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A folder with a vault in it that `first.key` opens.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(tempfile::tempdir().unwrap());
        desk.does(&["vault", "create", "v.vault", "--key-file", "first.key"]);
        fs::write(desk.path("a.txt"), "content").unwrap();
        desk.does(&[
            "vault",
            "put",
            "v.vault",
            "names/a",
            "a.txt",
            "--key-file",
            "first.key",
        ]);
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_sandboxctl"))
            .args(arguments)
            .current_dir(self.0.path())
            .output()
            .unwrap()
    }

    /// Runs what must succeed; returns what it printed.
    fn does(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs what must fail; returns what it said.
    fn fails(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Ids and kinds of the slots.
    fn slots(&self, opened_with: &[&str]) -> Vec<(String, String)> {
        let listed =
            self.does(&[&["vault", "kek", "ls", "v.vault", "--json"], opened_with].concat());
        let listed: Vec<serde_json::Value> = serde_json::from_str(&listed).unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        listed
            .iter()
            .map(|slot| (text(&slot["slot"]), text(&slot["kind"])))
            .collect()
    }
}

const FIRST: &[&str] = &["--key-file", "first.key"];
const SECOND: &[&str] = &["--key-file", "second.key"];
const PHRASE: &[&str] = &["--passphrase-file", "phrase"];

fn get<'a>(key: &[&'a str]) -> Vec<&'a str> {
    [&["vault", "get", "v.vault", "names/a"], key].concat()
}

#[test]
fn keys_are_added_listed_and_removed() {
    let desk = Desk::new();
    fs::write(desk.path("phrase"), "correct horse battery\n").unwrap();
    let add = ["vault", "kek", "add", "v.vault", "--key-file", "first.key"];
    let said = desk.does(&[&add[..], &["--new-key-file", "second.key"]].concat());
    assert!(
        said.contains("added key slot") && said.contains("second.key"),
        "{said}"
    );
    desk.does(&[&add[..], &["--new-passphrase-file", "phrase"]].concat());
    for key in [FIRST, SECOND, PHRASE] {
        assert_eq!(desk.does(&get(key)), "content");
    }

    let slots = desk.slots(SECOND);
    let kinds: Vec<_> = slots.iter().map(|(_, kind)| &**kind).collect();
    assert_eq!(kinds, ["broker", "broker", "passphrase"]);
    let remove = |slot: &str, key: &[&str]| -> Vec<String> {
        let all = [&["vault", "kek", "rm", "v.vault", slot], key].concat();
        all.into_iter().map(str::to_owned).collect()
    };
    let does =
        |arguments: Vec<String>| desk.does(&arguments.iter().map(|a| &**a).collect::<Vec<_>>());
    let fails =
        |arguments: Vec<String>| desk.fails(&arguments.iter().map(|a| &**a).collect::<Vec<_>>());
    // The first digits are enough where only one slot has them.
    does(remove(&slots[0].0[..20], SECOND));
    does(remove(&slots[2].0, SECOND));
    assert!(desk.fails(&get(FIRST)).contains("opens no slot"));
    assert!(
        desk.fails(&get(PHRASE))
            .contains("no key slot of kind `passphrase`")
    );
    assert_eq!(desk.does(&get(SECOND)), "content");

    assert!(fails(remove(&slots[1].0, SECOND)).contains("last key slot"));
    let said = fails(remove("nothing", SECOND));
    assert!(
        said.contains("no key slot `nothing`") && said.contains("help:"),
        "{said}"
    );
    let twice = [
        "vault",
        "kek",
        "add",
        "v.vault",
        "--key-file",
        "second.key",
        "--new-key-file",
        "second.key",
    ];
    assert!(desk.fails(&twice).contains("opens the vault already"));
}

#[test]
fn a_wrong_key_makes_no_new_one() {
    let desk = Desk::new();
    desk.does(&["vault", "create", "other.vault", "--key-file", "other.key"]);
    desk.fails(&[
        "vault",
        "kek",
        "add",
        "v.vault",
        "--key-file",
        "other.key",
        "--new-key-file",
        "new.key",
    ]);
    assert!(!desk.path("new.key").exists());
    assert_eq!(desk.slots(FIRST).len(), 1);
}

#[test]
fn damage_is_told_with_the_name_of_the_object_and_once_what_to_do() {
    let desk = Desk::new();
    let object = only_file(&desk.path("v.vault/objects"));
    let mut bytes = fs::read(&object).unwrap();
    bytes[97] ^= 1;
    fs::write(&object, bytes).unwrap();
    for command in [
        get(FIRST),
        [&["vault", "verify", "v.vault"], FIRST].concat(),
    ] {
        let said = desk.fails(&command);
        assert!(said.contains("chunk 0 of object `names/a`"), "{said}");
        assert_eq!(said.matches("from a copy").count(), 1, "{said}");
    }
}

fn only_file(folder: &Path) -> PathBuf {
    let mut files = fs::read_dir(folder).unwrap();
    let file = files.next().unwrap().unwrap().path();
    assert!(files.next().is_none());
    file
}
