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

#[test]
fn shares_that_were_printed_once_open_the_vault_when_its_key_is_lost() {
    let desk = Desk::new();
    let add = ["vault", "kek", "add", "v.vault", "--new-recovery", "2-of-3"];
    let said = desk.does(&[&add[..], FIRST].concat());
    let lines: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("casemate-share-1-"))
        .collect();
    assert_eq!(lines.len(), 3);
    fs::write(desk.path("alice"), lines[2]).unwrap();
    fs::write(desk.path("bob"), format!("\n{}\n", lines[0])).unwrap();
    let alice = ["--share-file", "alice"];
    assert!(desk.fails(&get(&alice)).contains("2 are needed"));
    let both = [&alice[..], &["--share-file", "bob"]].concat();
    assert_eq!(desk.does(&get(&both)), "content");
}

#[test]
fn rekeying_leaves_one_key_and_rotating_leaves_all() {
    let desk = Desk::new();
    let add = [
        "vault",
        "kek",
        "add",
        "v.vault",
        "--new-key-file",
        "second.key",
    ];
    desk.does(&[&add[..], FIRST].concat());
    let said = desk.does(&[&["vault", "rotate", "v.vault"], FIRST].concat());
    assert_eq!(said, "rotated the keys of 1 objects\n");
    assert_eq!(desk.does(&get(SECOND)), "content");
    let rekey = ["vault", "rekey", "v.vault", "--new-key-file", "third.key"];
    let said = desk.does(&[&rekey[..], FIRST].concat());
    assert!(said.contains("`third.key`"), "{said}");
    for lost in [FIRST, SECOND] {
        assert!(desk.fails(&get(lost)).contains("the key opens no slot"));
    }
    assert_eq!(desk.does(&get(&["--key-file", "third.key"])), "content");
}

#[test]
fn objects_are_renamed_exported_imported_and_kept_in_a_snapshot() {
    let desk = Desk::new();
    desk.does(&[&["vault", "snapshot", "v.vault", "then"], FIRST].concat());
    desk.does(&[&["vault", "mv", "v.vault", "names", "people"], FIRST].concat());
    assert!(desk.fails(&get(FIRST)).contains("no object of that name"));
    let then = [&["vault", "get", "then", "names/a"], FIRST].concat();
    assert_eq!(desk.does(&then), "content");

    let export = ["vault", "export", "v.vault", "out", "--prefix", "people/"];
    desk.does(&[&export[..], &["--new-key-file", "out.key"], FIRST].concat());
    let import = ["vault", "import", "v.vault", "out", "--under", "back/"];
    let from = ["--prefix", "people/", "--from-key-file", "out.key"];
    let import = [&import[..], &from, FIRST].concat();
    desk.does(&import);
    let back = [&["vault", "get", "v.vault", "back/a"], FIRST].concat();
    assert_eq!(desk.does(&back), "content");
    assert!(desk.fails(&import).contains("cannot share a name"));

    let over = [&["vault", "mv", "v.vault", "back/a", "people/a"], FIRST].concat();
    assert!(desk.fails(&over).contains("--replace"));
    desk.does(&[&over[..], &["--replace"]].concat());
    assert!(desk.fails(&back).contains("no object of that name"));
}

#[test]
fn a_vault_is_erased_only_on_purpose() {
    let desk = Desk::new();
    let careless = desk.run(&["vault", "erase", "v.vault"]);
    assert_eq!(careless.status.code(), Some(2));
    assert!(desk.path("v.vault/vault").exists());
    desk.does(&["vault", "erase", "v.vault", "--yes"]);
    assert!(!desk.path("v.vault").exists());
    assert!(
        desk.fails(&["vault", "erase", "v.vault", "--yes"])
            .contains("not a vault")
    );
}

#[test]
fn a_credential_of_a_service_opens_a_vault_and_nothing_outside_its_folder_does() {
    let desk = Desk::new();
    let with = |name: &str, folder: Option<PathBuf>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandboxctl"));
        command
            .args(["vault", "ls", "v.vault", "--credential", name])
            .current_dir(desk.0.path())
            .env_remove("CREDENTIALS_DIRECTORY");
        if let Some(folder) = folder {
            command.env("CREDENTIALS_DIRECTORY", folder);
        }
        command.output().unwrap().status.success()
    };
    let folder = || Some(desk.0.path().to_owned());
    assert!(with("first.key", folder()));
    assert!(!with("first.key", None));
    fs::create_dir(desk.path("empty")).unwrap();
    assert!(!with("../first.key", Some(desk.path("empty"))));
}

#[test]
fn a_vault_put_back_to_an_earlier_day_does_not_open_where_an_anchor_remembers_it() {
    let desk = Desk::new();
    let anchor = [FIRST, &["--anchor", "file:anchor"]].concat();
    let verify = [&["vault", "verify", "v.vault"], &anchor[..]].concat();
    assert!(desk.does(&verify).contains("no anchor remembers"));
    desk.does(&[&["vault", "put", "v.vault", "b", "a.txt"], &anchor[..]].concat());
    assert!(desk.does(&verify).contains("an anchor remembers"));
    desk.does(&[&["vault", "snapshot", "v.vault", "old"], &anchor[..]].concat());
    desk.does(&[&["vault", "rm", "v.vault", "b"], &anchor[..]].concat());
    fs::rename(desk.path("v.vault"), desk.path("new")).unwrap();
    fs::rename(desk.path("old"), desk.path("v.vault")).unwrap();
    assert!(desk.fails(&verify).contains("put back to generation"));
    desk.does(&[&["vault", "verify", "v.vault"], FIRST].concat());
    let none = [FIRST, &["--anchor", "paper"]].concat();
    assert!(desk.fails(&get(&none)).contains("`paper` is no anchor"));
}
