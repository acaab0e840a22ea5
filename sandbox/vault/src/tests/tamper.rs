//! What somebody with the store in hand can do to it, and cannot get away with.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Bench, content, read};
use crate::format::header::Header;
use crate::format::object::{HEADER_LEN, Layout};
use crate::{ChunkSize, Part, ReadError, Vault, VaultError};

/// Three chunks, the last one short.
const LEN: usize = 2 * 4096 + 100;

fn layout() -> Layout {
    Layout {
        chunk: ChunkSize::KiB4,
        stored: LEN as u64,
    }
}

/// Reads everything: it is all as it was put, or an error says that it is not.
fn read_all(vault: &Vault, names: &[(&str, Vec<u8>)]) -> Result<(), VaultError> {
    assert_eq!(
        vault.list().len(),
        names.len(),
        "an object appeared or vanished unnoticed"
    );
    for (name, content) in names {
        assert!(
            read(vault, name)? == *content,
            "wrong bytes were handed out"
        );
    }
    Ok(())
}

fn flip(path: &Path, at: u64) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

fn is_tampered(outcome: &Result<impl Sized, VaultError>) -> bool {
    matches!(outcome, Err(VaultError::Tampered { .. }))
}

fn object_paths(bench: &Bench) -> Vec<PathBuf> {
    let files = bench.files().into_iter().map(|(path, _)| path);
    files
        .filter(|path| path.starts_with(bench.path().join("objects")))
        .collect()
}

/// The file of this object.
fn path_of(bench: &Bench, vault: &Vault, name: &str) -> PathBuf {
    let id = vault.index()[name].extents[0].file_id;
    bench
        .path()
        .join("objects")
        .join(crate::store::file_name(&id))
}

#[test]
fn every_flipped_byte_is_noticed() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, LEN)[..]).unwrap();
    vault.put("b/c", &content(2, 10)[..]).unwrap();
    let newest = crate::format::manifest::file(vault.generation());
    drop(vault);
    let names = [("a", content(1, LEN)), ("b/c", content(2, 10))];
    let vault = bench.open().unwrap();
    read_all(&vault, &names).unwrap();
    for (path, bytes) in bench.files() {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let (object, manifest) = (
            path.parent() != Some(&bench.path()),
            name.starts_with("manif"),
        );
        let object = object && !path.starts_with(bench.path().join("index"));
        // A manifest is one box, and the boxes' own test flips every byte: here a sample.
        let looked_at = |at: &usize| !manifest || *at < 120 || *at > 4076 || at.is_multiple_of(17);
        for at in (0..bytes.len()).filter(looked_at) {
            file.write_all_at(&[bytes[at] ^ 1 << (at % 8)], at as u64)
                .unwrap();
            let outcome = if object {
                read_all(&vault, &names)
            } else {
                bench.open().and_then(|vault| read_all(&vault, &names))
            };
            file.write_all_at(&bytes[at..=at], at as u64).unwrap();
            // The older manifest is what a torn write leaves; nothing rests on it.
            let matters = !manifest || name == newest;
            assert_eq!(
                outcome.is_err(),
                matters,
                "{} byte {at}: {outcome:?}",
                path.display()
            );
        }
    }
    read_all(&vault, &names).unwrap();
}

#[test]
fn an_attacker_who_mends_the_checksum_gains_nothing() {
    let bench = Bench::new();
    drop(bench.create());
    let path = bench.path().join("vault");
    let original = fs::read(&path).unwrap();
    let body = original.len() - 64;
    for at in 0..body {
        let mut forged = original.clone();
        forged[at] ^= 1;
        let sum = crate::sealed::sha256(&[&forged[..body]]);
        forged[body..body + 32].copy_from_slice(&sum);
        fs::write(&path, &forged).unwrap();
        // Chunk size and padding are data of an allow list: a valid other value meets the MAC.
        assert!(bench.open().is_err(), "byte {at}");
    }
}

#[test]
fn values_outside_their_allow_lists_are_refused() {
    let bench = Bench::new();
    drop(bench.create());
    let path = bench.path().join("vault");
    let original = fs::read(&path).unwrap();
    let body = original.len() - 64;
    // (offset, value): format 0, suite none, chunk 2^0, chunk 2^40, padding 9, slot kind 0,
    // wrap 0, and a slot count of 65535.
    let attacks: [(usize, &[u8]); 8] = [
        (8, &[0, 0]),
        (10, &[0]),
        (11, &[0]),
        (11, &[40]),
        (12, &[9]),
        (64, &[0]),
        (65, &[0]),
        (40, &[255, 255]),
    ];
    for (at, value) in attacks {
        let mut forged = original.clone();
        forged[at..at + value.len()].copy_from_slice(value);
        let sum = crate::sealed::sha256(&[&forged[..body]]);
        forged[body..body + 32].copy_from_slice(&sum);
        fs::write(&path, &forged).unwrap();
        let refused = bench.open();
        assert!(
            is_tampered(&refused) || matches!(refused, Err(VaultError::NoSlot { .. })),
            "{at}: {refused:?}"
        );
    }
    let mut newer = original.clone();
    newer[8] = 2;
    fs::write(&path, &newer).unwrap();
    assert!(matches!(
        bench.open(),
        Err(VaultError::NewerFormat {
            found: 2,
            supported: 1
        })
    ));
    fs::write(&path, vec![0x41; 1 << 20]).unwrap();
    assert!(is_tampered(&bench.open()));
}

#[test]
fn a_slot_removed_or_brought_back_is_noticed() {
    let bench = Bench::new();
    drop(bench.create());
    let path = bench.path().join("vault");
    let original = fs::read(&path).unwrap();
    let (mut header, _, mac) = Header::parse(&original).unwrap();
    let slot = |header: &Header| crate::format::header::Slot {
        id: [9; 16],
        kind: header.slots[0].kind,
        epoch: 1,
        parameters: Vec::new(),
        sealed_key: header.slots[0].sealed_key,
    };
    let added = slot(&header);
    header.slots.push(added);
    let mut forged = header.encode();
    forged.extend_from_slice(mac);
    fs::write(&path, &forged).unwrap();
    assert!(matches!(
        bench.open(),
        Err(VaultError::Tampered {
            what: Part::Header,
            ..
        })
    ));
    // An older header of the same vault has a lower epoch than the manifest remembers.
    header.slots.pop();
    header.epoch = 0;
    let vault = {
        fs::write(&path, &original).unwrap();
        bench.open().unwrap()
    };
    let mut older = header.encode();
    let mac = vault.shared().keys.header_mac(&older);
    older.extend_from_slice(&mac);
    fs::write(&path, &older).unwrap();
    assert!(matches!(
        bench.open(),
        Err(VaultError::Tampered {
            what: Part::Header,
            ..
        })
    ));
}

#[test]
fn swapped_chunks_are_noticed() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, LEN)[..]).unwrap();
    let path = path_of(&bench, &vault, "a");
    let bytes = fs::read(&path).unwrap();
    let (first, second) = (layout().chunk_at(0) as usize, layout().chunk_at(1) as usize);
    // The ciphertexts alone; then with their tags.
    let mut swapped = bytes.clone();
    swapped[first..first + 4096].copy_from_slice(&bytes[second..second + 4096]);
    swapped[second..second + 4096].copy_from_slice(&bytes[first..first + 4096]);
    fs::write(&path, &swapped).unwrap();
    assert!(is_tampered(&read(&vault, "a")));
    let tags = layout().tags_at(0).0 as usize;
    swapped[tags..tags + 16].copy_from_slice(&bytes[tags + 16..tags + 32]);
    swapped[tags + 16..tags + 32].copy_from_slice(&bytes[tags..tags + 16]);
    fs::write(&path, &swapped).unwrap();
    assert!(is_tampered(&read(&vault, "a")));
}

#[test]
fn equal_chunks_of_two_objects_cannot_be_exchanged() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, LEN)[..]).unwrap();
    vault.put("b", &content(2, LEN)[..]).unwrap();
    let (a, b) = (path_of(&bench, &vault, "a"), path_of(&bench, &vault, "b"));
    let (mut of_a, of_b) = (fs::read(&a).unwrap(), fs::read(&b).unwrap());
    let (chunk, tags) = (
        layout().chunk_at(1) as usize,
        layout().tags_at(0).0 as usize,
    );
    of_a[chunk..chunk + 4096].copy_from_slice(&of_b[chunk..chunk + 4096]);
    of_a[tags + 16..tags + 32].copy_from_slice(&of_b[tags + 16..tags + 32]);
    fs::write(&a, &of_a).unwrap();
    assert!(is_tampered(&read(&vault, "a")));
    assert_eq!(read(&vault, "b").unwrap(), content(2, LEN));
}

#[test]
fn whole_objects_cannot_be_exchanged() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, LEN)[..]).unwrap();
    vault.put("b", &content(2, LEN)[..]).unwrap();
    let (a, b) = (path_of(&bench, &vault, "a"), path_of(&bench, &vault, "b"));
    let (of_a, of_b) = (fs::read(&a).unwrap(), fs::read(&b).unwrap());
    fs::write(&a, of_b).unwrap();
    fs::write(&b, of_a).unwrap();
    assert!(is_tampered(&read(&vault, "a")) && is_tampered(&read(&vault, "b")));
}

#[test]
fn files_of_another_vault_are_refused_even_under_the_same_key() {
    let (one, two) = (Bench::new(), Bench::new());
    for (bench, seed) in [(&one, 1), (&two, 2)] {
        bench.create().put("a", &content(seed, LEN)[..]).unwrap();
    }
    let original = one.files();
    for place in ["objects", "index", "vault", "manifest.a", "manifest.b"] {
        let path = |bench: &Bench| {
            let path = bench.path().join(place);
            if path.is_dir() {
                bench.only_file(place)
            } else {
                path
            }
        };
        fs::copy(path(&two), path(&one)).unwrap();
        let outcome = one
            .open()
            .and_then(|v| read_all(&v, &[("a", content(1, LEN))]));
        // One manifest alone is what a torn write leaves: the older of the two does not matter.
        let generation = two.open().unwrap().generation();
        let newest = crate::format::manifest::file(generation);
        let matters = !place.starts_with("manifest") || place == newest;
        assert_eq!(outcome.is_err(), matters, "{place}: {outcome:?}");
        one.restore(&original);
    }
}

#[test]
fn wrapped_keys_belong_to_their_object_and_version() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, LEN)[..]).unwrap();
    vault.put("b", &content(2, LEN)[..]).unwrap();
    let keys = &vault.shared().keys;
    let (a, b) = (&vault.index()["a"], &vault.index()["b"]);
    let (id, a, b) = (&a.object_id, &a.extents[0], &b.extents[0]);
    assert!(keys.dek(id, a).unwrap().is_some());
    let mut swapped = a.clone();
    swapped.wrapped_dek = b.wrapped_dek;
    assert!(keys.dek(id, &swapped).unwrap().is_none());
    let mut later = a.clone();
    later.version += 1;
    assert!(keys.dek(id, &later).unwrap().is_none());
    let mut other_epoch = a.clone();
    other_epoch.key_epoch += 1;
    assert!(keys.dek(id, &other_epoch).unwrap().is_none());
}

#[test]
fn a_file_of_another_length_is_never_read() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, LEN)[..]).unwrap();
    let path = path_of(&bench, &vault, "a");
    let bytes = fs::read(&path).unwrap();
    let boundaries = (0..3).map(|i| layout().chunk_at(i) as usize);
    let last_chunk = layout().chunk_at(2) as usize..bytes.len();
    for len in boundaries.chain(last_chunk).chain([0, HEADER_LEN - 1]) {
        fs::write(&path, &bytes[..len]).unwrap();
        assert!(is_tampered(&vault.object("a")), "cut at {len}");
    }
    for tail in [
        &b"\0"[..],
        &bytes[layout().chunk_at(2) as usize..],
        &[0; 4096],
    ] {
        fs::write(&path, [&bytes[..], tail].concat()).unwrap();
        assert!(is_tampered(&vault.object("a")), "{} bytes more", tail.len());
    }
}

#[test]
fn an_object_cut_while_it_is_open_yields_no_byte() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, LEN)[..]).unwrap();
    let object = vault.object("a").unwrap();
    let file = OpenOptions::new()
        .write(true)
        .open(path_of(&bench, &vault, "a"))
        .unwrap();
    file.set_len(layout().chunk_at(1)).unwrap();
    let mut buf = [0x55; 4096];
    assert!(matches!(
        object.read_at(&mut buf, 0),
        Err(ReadError::Tampered { .. })
    ));
    assert_eq!(buf, [0; 4096]);
}

#[test]
fn an_empty_object_whose_file_is_gone_or_emptied_is_not_an_empty_object() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("empty", &b""[..]).unwrap();
    let path = path_of(&bench, &vault, "empty");
    fs::write(&path, b"").unwrap();
    assert!(is_tampered(&read(&vault, "empty")));
    fs::remove_file(&path).unwrap();
    assert!(is_tampered(&read(&vault, "empty")));
}

#[test]
fn an_old_object_file_put_back_is_noticed() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, LEN)[..]).unwrap();
    let old = fs::read(path_of(&bench, &vault, "a")).unwrap();
    vault.put("a", &content(2, LEN)[..]).unwrap();
    fs::write(path_of(&bench, &vault, "a"), old).unwrap();
    assert!(is_tampered(&read(&vault, "a")));
}

#[test]
fn an_old_manifest_put_back_is_noticed() {
    let bench = Bench::new();
    let mut vault = bench.create();
    let mut history = vec![bench.files()];
    for version in 0..4 {
        vault.put("a", &content(version, LEN)[..]).unwrap();
        history.push(bench.files());
    }
    let newest = vault.generation();
    drop(vault);
    let now = bench.files();
    let (last, before) = (
        crate::format::manifest::file(newest),
        &history[..history.len() - 1],
    );
    for (name, files) in ["manifest.a", "manifest.b"]
        .iter()
        .flat_map(|n| before.iter().map(move |f| (n, f)))
    {
        let path = bench.path().join(name);
        let Some((_, old)) = files.iter().find(|(p, _)| *p == path) else {
            continue;
        };
        if fs::read(&path).unwrap() == *old {
            continue;
        }
        fs::write(&path, old).unwrap();
        let outcome = bench.open();
        assert!(
            is_tampered(&outcome),
            "{name} of an earlier day, the newest is {last}: {outcome:?}"
        );
        bench.restore(&now);
    }
}

#[test]
fn deleted_files_are_noticed() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, LEN)[..]).unwrap();
    let newest = crate::format::manifest::file(vault.generation());
    drop(vault);
    let original = bench.files();
    for (path, _) in &original {
        fs::remove_file(path).unwrap();
        let outcome = bench
            .open()
            .and_then(|v| read_all(&v, &[("a", content(1, LEN))]));
        let name = path.file_name().unwrap().to_str().unwrap();
        let needed =
            !name.starts_with("manifest.") && !name.starts_with("writer") || name == newest;
        assert_eq!(outcome.is_err(), needed, "{name}: {outcome:?}");
        bench.restore(&original);
    }
}

#[test]
fn a_name_that_is_given_anew_is_another_object() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, LEN)[..]).unwrap();
    let before = fs::read(path_of(&bench, &vault, "a")).unwrap();
    let id = vault.index()["a"].object_id;
    vault.remove("a").unwrap();
    vault.put("a", &content(2, LEN)[..]).unwrap();
    assert_ne!(vault.index()["a"].object_id, id);
    fs::write(path_of(&bench, &vault, "a"), before).unwrap();
    assert!(is_tampered(&read(&vault, "a")));
}

#[test]
fn holes_and_zeroed_blocks_are_not_zeros() {
    use rustix::fs::{FallocateFlags, fallocate};
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &vec![0; 3 * 4096][..]).unwrap();
    let path = path_of(&bench, &vault, "a");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    let len = file.metadata().unwrap().len();
    file.write_all_at(&[0; 4096], HEADER_LEN as u64).unwrap();
    assert!(is_tampered(&read(&vault, "a")));
    // A hole where the filesystem has holes; else zeros, which read the same.
    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if fallocate(&file, hole, 0, len).is_err() {
        file.write_all_at(&vec![0; len as usize], 0).unwrap();
    }
    assert!(is_tampered(&read(&vault, "a")));
}

#[test]
fn no_byte_of_a_damaged_chunk_is_released() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, LEN)[..]).unwrap();
    flip(&path_of(&bench, &vault, "a"), layout().chunk_at(0) + 4000);
    let mut out = Vec::new();
    assert!(is_tampered(&vault.get("a", &mut out)));
    assert!(out.is_empty());
    let object = vault.object("a").unwrap();
    let mut buf = [0x55; 8192];
    let refused = object.read_at(&mut buf, 0);
    assert!(matches!(
        refused,
        Err(ReadError::Tampered {
            what: Part::Chunk(0),
            ..
        })
    ));
    assert_eq!(buf, [0; 8192]);
    // The chunks beside it are whole.
    assert_eq!(object.read_at(&mut buf[..4096], 4096).unwrap(), 4096);
    assert_eq!(buf[..4096], content(1, LEN)[4096..8192]);
}

#[test]
fn a_file_that_opens_under_two_keys_is_refused_by_its_commitment() {
    // With AES-GCM a ciphertext can be built that opens under two chosen keys. What stops it here
    // is the commitment: it is derived from the DEK, and another DEK has another one.
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, LEN)[..]).unwrap();
    let keys = &vault.shared().keys;
    let record = vault.index()["a"].clone();
    let (_, wrapped_dek) = keys.new_dek(&record.object_id, record.version, 1).unwrap();
    let mut other_key = record;
    other_key.extents[0].wrapped_dek = wrapped_dek;
    let refused = crate::object::Object::open(&vault.shared().store, keys, &other_key);
    assert!(matches!(
        refused,
        Err(ReadError::Tampered {
            what: Part::Object,
            ..
        })
    ));
    // And a commitment that fits the other key does not fit the header that the chunks are bound to.
    let path = path_of(&bench, &vault, "a");
    let dek = keys
        .dek(&other_key.object_id, &other_key.extents[0])
        .unwrap()
        .unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let front = bytes[..64].try_into().unwrap();
    bytes[64..96].copy_from_slice(keys.extent(&dek, &front).unwrap().commitment());
    fs::write(&path, &bytes).unwrap();
    let object = crate::object::Object::open(&vault.shared().store, keys, &other_key).unwrap();
    assert!(object.read_at(&mut [0; 10], 0).is_err());
}

#[test]
fn a_link_in_place_of_a_file_is_not_followed() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, LEN)[..]).unwrap();
    let path = path_of(&bench, &vault, "a");
    let moved = bench.dir.path().join("moved");
    fs::rename(&path, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &path).unwrap();
    assert!(read(&vault, "a").is_err());
    assert_eq!(object_paths(&bench).len(), 1);
}

#[test]
fn an_object_that_does_not_have_the_index_s_root_is_refused() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, LEN)[..]).unwrap();
    let mut record = vault.index()["a"].clone();
    record.extents[0].root[0] ^= 1;
    let shared = vault.shared();
    let refused = crate::object::Object::open(&shared.store, &shared.keys, &record);
    assert!(matches!(
        refused,
        Err(ReadError::Tampered {
            what: Part::Object,
            ..
        })
    ));
}

#[test]
fn manifests_of_two_histories_do_not_go_together() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"common"[..]).unwrap();
    drop(vault);
    let common = bench.files();
    bench.write().unwrap().put("a", &b"here"[..]).unwrap();
    let third = bench.path().join(crate::format::manifest::file(3));
    let of_here = fs::read(&third).unwrap();
    bench.restore(&common);
    let mut vault = bench.write().unwrap();
    vault.put("a", &b"there"[..]).unwrap();
    vault.put("a", &b"there again"[..]).unwrap();
    drop(vault);
    fs::write(&third, of_here).unwrap();
    assert!(matches!(
        bench.open(),
        Err(VaultError::Tampered {
            what: Part::Manifest,
            ..
        })
    ));
}
