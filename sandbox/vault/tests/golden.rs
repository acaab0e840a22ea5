//! A vault of format 1, written once and never again: every later version opens it.
//!
//! `golden/v1.vault` was written by this crate at version 0.1.0 with the clock at 1 000 000 007 ns,
//! the key below, chunks of 4 KiB, and Padmé padding. To write one for a new format:
//! `cargo test -p casemate-vault --test golden -- --ignored`.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use vault::kek::Released;
use vault::{Access, ChunkSize, CreateOptions, OpenOptions, Padding, Vault};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1.vault");

const GOLDEN_2: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v2.vault");

fn key() -> Released {
    let mut key = [0; 32];
    key.iter_mut().zip(0..).for_each(|(byte, i)| *byte = i);
    Released::take(&mut key).unwrap()
}

/// Name and content of what is in it.
fn objects() -> [(&'static str, Vec<u8>); 3] {
    let long = (0..10_000u32).map(|i| (i * 7 % 251) as u8).collect();
    [
        ("dir/long", long),
        ("empty", Vec::new()),
        ("ünïcode", b"short".to_vec()),
    ]
}

#[test]
fn a_vault_of_format_1_opens() {
    // A copy, because a reader's lock is taken in the directory.
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("v");
    copy_dir(Path::new(GOLDEN), &copy);
    let vault = Vault::open(&copy, &key(), Access::ReadOnly).unwrap();
    assert_eq!(vault.generation(), 5);
    assert_eq!(vault.list().len(), 3);
    for (name, content) in objects() {
        let mut found = Vec::new();
        vault.get(name, &mut found).unwrap();
        assert_eq!(found, content);
        assert_eq!(vault.info(name).unwrap().modified, 1_000_000_007);
    }
    assert_eq!(vault.info("empty").unwrap().version, 2);
    assert_eq!(vault.verify(|_| ()).unwrap().orphans, 0);
}

/// Written by a mounted vault of this crate, with the same clock, key and options: see
/// `volume::tests::write_the_golden_vault`.
#[test]
fn a_vault_with_an_index_of_format_2_opens() {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("v");
    copy_dir(Path::new(GOLDEN_2), &copy);
    let vault = Vault::open(&copy, &key(), Access::ReadOnly).unwrap();
    let mut sparse = vec![0; 50_000];
    sparse[..5].copy_from_slice(b"start");
    sparse[20_000..20_006].copy_from_slice(b"middle");
    sparse[40_000] = b'!';
    for (name, content, mode) in [
        ("dir/sparse", &sparse[..], 0o600),
        ("same", &sparse, 0o600),
        ("link", b"dir/sparse", 0o777),
        ("nothing", b"", 0o755),
    ] {
        let mut found = Vec::new();
        vault.get(name, &mut found).unwrap();
        assert_eq!(found, content, "{name}");
        let info = vault.info(name).unwrap();
        assert_eq!((info.mode, info.is_link), (mode, name == "link"));
        assert_eq!(info.modified, 1_000_000_007);
    }
    assert_eq!(vault.list().len(), 4);
    assert_eq!(vault.verify(|_| ()).unwrap().orphans, 0);
}

#[test]
#[ignore = "writes the golden vault anew; only for a new format"]
fn write_the_golden_vault() {
    let options = CreateOptions {
        chunk: ChunkSize::KiB4,
        padding: Padding::Padme,
    };
    let clock = Arc::new(|| 1_000_000_007);
    let open = OpenOptions {
        clock,
        ..OpenOptions::default()
    };
    let mut vault = Vault::create_with(Path::new(GOLDEN), &key(), options, open).unwrap();
    let objects = objects();
    vault
        .put_all(objects.iter().map(|(name, content)| (*name, &content[..])))
        .unwrap();
    vault.put("empty", &b""[..]).unwrap();
    vault.put("removed", &b"gone"[..]).unwrap();
    vault.remove("removed").unwrap();
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &to);
        } else {
            std::fs::copy(&path, &to).unwrap();
        }
    }
}
