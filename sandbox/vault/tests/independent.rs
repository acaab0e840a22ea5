//! A second reader, in Python, written from `docs/` alone: the documents are enough.
//!
//! Needs Python with the packages of `tests/reader/requirements.txt`; `CASEMATE_PYTHON` names the
//! interpreter, `python3` is the default. Without them these tests say so and pass, except under `CI`.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use vault::audit::{Log, LogKey, Record};
use vault::kek::{Cost, KekProvider, Passphrase, Released};
use vault::{Access, ChunkSize, CreateOptions, Padding, Vault};

const KEY: [u8; 32] = [0x42; 32];

/// The interpreter, or `None` after saying why there is none.
fn python() -> Option<PathBuf> {
    let python = std::env::var_os("CASEMATE_PYTHON").unwrap_or_else(|| "python3".into());
    let needed = "from cryptography.hazmat.primitives.kdf.argon2 import Argon2id";
    let found = Command::new(&python).args(["-c", needed]).output();
    if found.is_ok_and(|done| done.status.success()) {
        return Some(python.into());
    }
    let missing = "SKIPPED: no Python with `cryptography` 48, so the second reader was not run; \
                   see tests/reader/requirements.txt";
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    eprintln!("{missing}");
    None
}

/// What the second reader finds, or why it believes nothing.
fn read(python: &Path, what: &str, dir: &Path, with: &[&str]) -> Result<Value, String> {
    let reader = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reader/reader.py");
    let mut command = Command::new(python);
    command.arg(reader).arg(what).arg(dir).args(with);
    let done = command.output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    match done.status.code() {
        Some(0) => Ok(serde_json::from_slice(&done.stdout).unwrap()),
        Some(1) => {
            assert!(!said.contains("Traceback"), "{said}");
            Err(said)
        }
        code => panic!("the second reader ended with {code:?}: {said}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn content(len: usize) -> Vec<u8> {
    (0..len)
        .map(|i| (i % 251) as u8 ^ (i / 251) as u8)
        .collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref())
}

/// Makes a vault with objects of telling lengths; returns what a reader should find in it.
fn filled(dir: &Path, kek: &dyn KekProvider, padding: Padding) -> Value {
    let chunk = ChunkSize::KiB4;
    let mut vault = Vault::create(dir, kek, CreateOptions { chunk, padding }).unwrap();
    let lengths = [0, 1, 4095, 4096, 4097, 300 * 4096 + 5];
    for len in lengths {
        vault
            .put(&format!("of/{len:07}"), &content(len)[..])
            .unwrap();
    }
    vault.put("of/0000001", &b"2"[..]).unwrap();
    vault.remove("of/0004095").unwrap();
    // Some of the keys are of a second epoch, all under a second root key.
    vault.begin_rotation().unwrap();
    vault.rotate_some(5_000).unwrap();
    assert!(vault.rotation().is_some());
    vault.rekey(&[kek]).unwrap();
    let objects = objects(&vault);
    assert_eq!(objects.as_object().unwrap().len(), lengths.len() - 1);
    json!({
        "id": hex(&vault.id()), "generation": vault.generation(),
        "root": hex(&vault.root()), "objects": objects, "directories": {},
    })
}

/// What a reader should say of a vault's objects.
fn objects(vault: &Vault) -> Value {
    let objects = vault.list().into_iter().map(|info| {
        let mut bytes = Vec::new();
        vault.get(&info.name, &mut bytes).unwrap();
        let told = json!({
            "bytes": info.len, "sha256": sha256(&bytes),
            "version": info.version, "modified": info.modified,
            "mode": info.mode, "link": info.is_link,
        });
        (info.name, told)
    });
    Value::Object(objects.collect())
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut found: Vec<_> = entries
        .flat_map(|entry| {
            let path = entry.unwrap().path();
            if path.is_dir() {
                files(&path)
            } else {
                vec![path]
            }
        })
        .collect();
    found.sort();
    found
}

#[test]
fn a_second_implementation_opens_what_this_one_wrote() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    for (name, padding) in [("exact", Padding::None), ("padded", Padding::Padme)] {
        let dir = dir.path().join(name);
        let kek = Released::take(&mut KEY.clone()).unwrap();
        let expected = filled(&dir, &kek, padding);
        let found = read(&python, "vault", &dir, &["--key", &hex(&KEY)]);
        assert_eq!(found, Ok(expected), "{name}");
        let other = hex(&[0x41; 32]);
        assert!(read(&python, "vault", &dir, &["--key", &other]).is_err());
    }
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1.vault");
    let key = hex(&std::array::from_fn::<u8, 32, _>(|i| i as u8));
    let found = read(&python, "vault", Path::new(golden), &["--key", &key]).unwrap();
    assert_eq!(
        (&found["generation"], &found["objects"]["dir/long"]["bytes"]),
        (&json!(5), &json!(10_000))
    );
}

#[test]
fn a_second_implementation_opens_a_vault_that_was_mounted() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let copied = dir.path().join("v");
    copy(
        Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/golden/v2.vault"
        )),
        &copied,
    );
    let key: [u8; 32] = std::array::from_fn(|i| i as u8);
    let kek = Released::take(&mut key.clone()).unwrap();
    let vault = Vault::open(&copied, &kek, Access::ReadOnly).unwrap();
    let found = read(&python, "vault", &copied, &["--key", &hex(&key)]).unwrap();
    assert_eq!(found["root"], hex(&vault.root()));
    assert_eq!(found["objects"], objects(&vault));
    assert_eq!(found["directories"]["empty"]["mode"], 0o700);
    for file in files(&copied)
        .into_iter()
        .filter(|f| !f.to_string_lossy().contains("manifest"))
    {
        let whole = std::fs::read(&file).unwrap();
        for at in (0..whole.len()).step_by(whole.len() / 2 + 1) {
            let mut flipped = whole.clone();
            flipped[at] ^= 4;
            std::fs::write(&file, flipped).unwrap();
            let found = read(&python, "vault", &copied, &["--key", &hex(&key)]);
            assert!(found.is_err(), "{} at {at}", file.display());
        }
        std::fs::write(&file, whole).unwrap();
    }
}

fn copy(from: &Path, to: &Path) {
    for file in files(from) {
        let to = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(&file, to).unwrap();
    }
}

#[test]
fn a_second_implementation_opens_a_vault_by_its_passphrase_among_other_slots() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("v");
    let kek = Released::take(&mut KEY.clone()).unwrap();
    filled(&dir, &kek, Padding::None);
    let mut vault = Vault::open(&dir, &kek, Access::ReadWrite).unwrap();
    let phrase =
        |text: &str| Passphrase::new(text.as_bytes().to_vec().into()).with_cost(Cost::LEAST);
    vault.add_slot(&phrase("right pony")).unwrap();
    let found = read(&python, "vault", &dir, &["--passphrase", "right pony"]).unwrap();
    assert_eq!(found["root"], hex(&vault.root()));
    assert!(read(&python, "vault", &dir, &["--passphrase", "wrong pony"]).is_err());
}

#[test]
fn a_second_implementation_refuses_a_vault_that_was_changed_anywhere() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("v");
    let kek = Released::take(&mut KEY.clone()).unwrap();
    let root = filled(&dir, &kek, Padding::None)["root"].clone();
    for file in files(&dir) {
        let whole = std::fs::read(&file).unwrap();
        if whole.is_empty() {
            continue;
        }
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 4;
        std::fs::write(&file, flipped).unwrap();
        let found = read(&python, "vault", &dir, &["--key", &hex(&KEY)]);
        // A manifest that does not open is what a torn write leaves: the older one counts, and its
        // index is gone; or it was the older one, which nothing rests on.
        let newest = found.as_ref().is_ok_and(|found| found["root"] == root);
        let manifest = file.file_name().unwrap().to_str().unwrap();
        let old = manifest.starts_with("manifest.") && newest;
        assert!(found.is_err() || old, "{}", file.display());
        std::fs::write(&file, whole).unwrap();
    }
}

/// Writes a closed log of `size` records; returns what a reader should find in it.
fn written(dir: &Path, size: u64) -> Value {
    let log = Log::create(dir, "example.org/log", LogKey::from_seed(&[7; 32]).unwrap()).unwrap();
    let records: Vec<_> = (0..size)
        .map(|n| {
            let payload = json!({ "n": n, "minus": -1 - n as i64, "big": 1u64 << (n % 64),
                "float": n as f64 / 3.0, "text": "ünï", "list": [true, null, {}, []] });
            Record::new("test", Duration::from_nanos(1_000 + n), n, payload)
        })
        .collect();
    log.append_all(&records).unwrap();
    let key = hex(&log.public_key());
    let checkpoint = log.close().unwrap();
    let mut kinds = json!({});
    if size > 0 {
        kinds["test"] = size.into();
    }
    json!({ "origin": "example.org/log", "key": key, "size": size,
        "root": hex(checkpoint.root()), "kinds": kinds })
}

#[test]
fn a_second_implementation_verifies_logs_of_every_shape() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    for size in [0, 1, 255, 256, 257, 700] {
        let dir = dir.path().join(size.to_string());
        let expected = written(&dir, size);
        let key = expected["key"].as_str().unwrap().to_owned();
        let found = read(&python, "log", &dir, &["--key", &key]);
        assert_eq!(found, Ok(expected), "{size} records");
        assert!(read(&python, "log", &dir, &["--key", &hex(&KEY)]).is_err());
    }
}

#[test]
fn a_second_implementation_refuses_a_log_that_was_changed_anywhere() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("log");
    written(&dir, 300);
    // What is in `wal/` no checkpoint covers, and who has only the public key does not read it.
    let published = |file: &PathBuf| !file.parent().unwrap().ends_with("wal");
    for file in files(&dir).into_iter().filter(published) {
        let whole = std::fs::read(&file).unwrap();
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 4;
        std::fs::write(&file, flipped).unwrap();
        assert!(
            read(&python, "log", &dir, &[]).is_err(),
            "{}",
            file.display()
        );
        std::fs::write(&file, whole).unwrap();
    }
    read(&python, "log", &dir, &[]).unwrap();
}
