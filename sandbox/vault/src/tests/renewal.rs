//! Keys that are replaced, shared out and destroyed; objects that move to other names and vaults.

use super::slots::released;
use super::{Bench, content, read, terms};
use crate::kek::Recovery;
use crate::{Access, Part, Rotation, Vault, VaultError};

#[test]
fn after_rekeying_only_the_named_keys_open_the_vault_and_nothing_else_changed() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, 9000)[..]).unwrap();
    vault.add_slot(&released(2)).unwrap();
    let lease = vault.lease(terms()).unwrap();
    vault.rekey(&[&released(3), &released(4)]).unwrap();
    assert_eq!(read(&vault, "a").unwrap(), content(1, 9000));
    vault.put("b", &b"later"[..]).unwrap();
    drop(vault);
    for (key, opens) in [(0x42, false), (2, false), (3, true), (4, true)] {
        let opened = Vault::open(&bench.path(), &released(key), Access::ReadOnly);
        assert_eq!(opened.is_ok(), opens, "key {key}");
        if let Ok(vault) = opened {
            assert_eq!(read(&vault, "a").unwrap(), content(1, 9000));
            assert_eq!(read(&vault, "b").unwrap(), b"later");
        }
    }
    // A lease has what it needs, and goes on.
    let object = lease.open("a").unwrap();
    let mut bytes = [0; 100];
    lease.read_at(&object, &mut bytes, 0).unwrap();
    assert_eq!(bytes, content(1, 100)[..]);
}

#[test]
fn what_was_removed_before_rekeying_opens_with_no_key_that_is_left() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault
        .put_all([("kept", &b"kept"[..]), ("secret", &b"to be erased"[..])])
        .unwrap();
    drop(vault);
    let copy = bench.files();
    let header = bench.path().join("vault");
    let mut vault = bench.write().unwrap();
    vault.remove("secret").unwrap();
    vault.rekey(&[&bench.kek()]).unwrap();
    drop(vault);
    // Everything old, but for the header that holds the root key: it is of another one now.
    let new = std::fs::read(&header).unwrap();
    bench.restore(&copy);
    std::fs::write(&header, new).unwrap();
    assert!(matches!(
        bench.open(),
        Err(VaultError::Tampered {
            what: Part::Manifest,
            ..
        })
    ));
}

#[test]
fn rotation_seals_every_object_anew_and_goes_on_where_it_was_interrupted() {
    let bench = Bench::new();
    let mut vault = bench.create();
    let names = ["a", "b", "c", "d"];
    for (name, seed) in names.into_iter().zip(1..) {
        vault.put(name, &content(seed, 5000)[..]).unwrap();
    }
    let lease = vault.lease(terms()).unwrap();
    let before = vault.index().clone();
    assert_eq!(vault.rotation(), None);
    let due = |left| {
        Some(Rotation {
            epoch: 2,
            left,
            bytes_left: left * 5000,
        })
    };
    assert_eq!(vault.begin_rotation().unwrap(), due(4));
    assert_eq!(vault.rotate_some(1).unwrap(), due(3));
    // What is put meanwhile is of the new epoch, and a rotation that is under way is not begun again.
    vault.put("d", &content(4, 5000)[..]).unwrap();
    assert_eq!(vault.begin_rotation().unwrap(), due(2));
    drop(vault);
    let mut vault = bench.write().unwrap();
    assert_eq!(vault.rotation(), due(2));
    assert_eq!(vault.rotate_some(u64::MAX).unwrap(), None);
    for (name, seed) in names.into_iter().zip(1..) {
        assert_eq!(read(&vault, name).unwrap(), content(seed, 5000), "{name}");
        let (old, new) = (&before[name], &vault.index()[name]);
        assert_ne!(old.extents[0].file_id, new.extents[0].file_id);
        assert_eq!(
            (old.object_id, new.extents[0].key_epoch),
            (new.object_id, 2)
        );
    }
    assert_eq!(vault.info("a").unwrap().version, 1);
    // Again and again: a lease from before the first still reads what it was granted.
    for epoch in 3..6 {
        assert_eq!(vault.begin_rotation().unwrap().unwrap().epoch, epoch);
        assert_eq!(vault.rotate_some(u64::MAX).unwrap(), None);
    }
    let object = lease.open("c").unwrap();
    let mut bytes = [0; 5000];
    lease.read_at(&object, &mut bytes, 0).unwrap();
    assert_eq!(bytes, content(3, 5000)[..]);
    drop((object, lease, vault));
    assert_eq!(bench.open().unwrap().verify(|_| ()).unwrap().objects, 4);
}

#[test]
fn rotation_stops_at_a_damaged_object_and_changes_nothing() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, 5000)[..]).unwrap();
    vault.begin_rotation().unwrap();
    bench.damage(&vault, "a", 200);
    let generation = vault.generation();
    assert!(matches!(
        vault.rotate_some(1),
        Err(VaultError::Tampered {
            what: Part::Chunk(0),
            ..
        })
    ));
    assert_eq!(vault.generation(), generation);
    assert_eq!(
        bench
            .files()
            .iter()
            .filter(|f| f.0.parent().unwrap().ends_with("objects"))
            .count(),
        1
    );
}

#[test]
fn shares_of_a_recovery_key_open_the_vault_when_the_key_is_lost() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"x"[..]).unwrap();
    let (recovery, shares) = Recovery::split(2, 3).unwrap();
    vault.add_slot(&recovery).unwrap();
    // Another set, so that one slot of the kind does not open.
    let (other, _) = Recovery::split(2, 2).unwrap();
    vault.add_slot(&other).unwrap();
    drop((vault, recovery, other));
    let found = Recovery::combine([shares[2].as_str(), shares[0].as_str()]).unwrap();
    let vault = Vault::open(&bench.path(), &found, Access::ReadOnly).unwrap();
    assert_eq!(read(&vault, "a").unwrap(), b"x");
}

#[test]
fn an_erased_vault_opens_with_no_key_not_even_from_what_is_left() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"x"[..]).unwrap();
    assert!(matches!(
        Vault::erase(&bench.path()),
        Err(VaultError::Locked)
    ));
    drop(vault);
    let before = bench.files();
    let reader = bench.open().unwrap();
    assert!(matches!(
        Vault::erase(&bench.path()),
        Err(VaultError::Locked)
    ));
    drop(reader);
    // Whoever holds the files open still has them: what is in them is what counts.
    let open: Vec<_> = before
        .iter()
        .map(|(path, _)| (path.clone(), std::fs::File::open(path).unwrap()))
        .collect();
    Vault::erase(&bench.path()).unwrap();
    assert!(!bench.path().exists());
    for (path, file) in &open {
        let place = path.parent().unwrap();
        let locks = path.extension().is_some_and(|e| e == "lock");
        if !place.ends_with("objects") && !locks {
            let mut now = Vec::new();
            std::io::Read::read_to_end(&mut &*file, &mut now).unwrap();
            let old = &before.iter().find(|(p, _)| p == path).unwrap().1;
            assert_eq!(now.len(), old.len());
            let same = now.iter().zip(old).filter(|(a, b)| a == b).count();
            assert!(same < 16 + now.len() / 64, "{}", path.display());
        }
    }
    assert!(matches!(
        Vault::erase(&bench.path()),
        Err(VaultError::NotAVault)
    ));
}

#[test]
fn a_folder_that_is_no_vault_is_not_erased() {
    let bench = Bench::new();
    let dir = bench.dir.path().join("folder");
    std::fs::create_dir_all(dir.join("objects")).unwrap();
    std::fs::create_dir_all(dir.join("index")).unwrap();
    std::fs::write(dir.join("objects/precious"), b"x").unwrap();
    assert!(matches!(Vault::erase(&dir), Err(VaultError::NotAVault)));
    assert!(dir.join("objects/precious").exists());
}

#[test]
fn objects_copied_to_another_vault_are_sealed_anew_under_their_new_names() {
    let bench = Bench::new();
    let mut vault = bench.create();
    for (name, seed) in [("in/a", 1), ("in/b/c", 2), ("out", 3)] {
        vault.put(name, &content(seed, 700_000)[..]).unwrap();
    }
    let path = bench.dir.path().join("export");
    let mut export = Vault::create(&path, &released(7), Default::default()).unwrap();
    let mut told = Vec::new();
    let copied = export
        .copy_from(&vault, "in/", "from/", |name| told.push(name.to_owned()))
        .unwrap();
    assert_eq!(
        (copied.len(), told),
        (2, vec!["in/a".to_owned(), "in/b/c".to_owned()])
    );
    assert_eq!(read(&export, "from/a").unwrap(), content(1, 700_000));
    assert_eq!(read(&export, "from/b/c").unwrap(), content(2, 700_000));
    assert!(export.info("out").is_none());
    // Nothing is replaced, and damage on the way is told as damage.
    assert!(matches!(
        export.copy_from(&vault, "in/", "from/", |_| ()),
        Err(VaultError::Name(_))
    ));
    bench.damage(&vault, "out", 90_000);
    let generation = export.generation();
    let refused = export.copy_from(&vault, "", "", |_| ());
    assert!(
        matches!(&refused, Err(VaultError::Tampered { object: Some(name), .. }) if name == "out"),
        "{refused:?}"
    );
    assert_eq!(export.generation(), generation);
    assert_eq!(export.verify(|_| ()).unwrap().orphans, 0);
}

#[test]
fn a_snapshot_keeps_what_the_vault_goes_on_to_change() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"then"[..]).unwrap();
    let path = bench.dir.path().join("snapshot");
    vault.snapshot(&path).unwrap();
    assert!(matches!(vault.snapshot(&path), Err(VaultError::Exists)));
    vault.put("a", &b"now"[..]).unwrap();
    let snapshot = Vault::open(&path, &bench.kek(), Access::ReadWrite).unwrap();
    assert_eq!(read(&snapshot, "a").unwrap(), b"then");
    drop(snapshot);
    Vault::erase(&path).unwrap();
    assert_eq!(read(&vault, "a").unwrap(), b"now");
    assert!(matches!(
        bench.open().unwrap().snapshot(&path),
        Err(VaultError::ReadOnly)
    ));
}

#[test]
fn verification_names_the_first_of_several_damaged_objects() {
    let bench = Bench::new();
    let mut vault = bench.create();
    let names: Vec<String> = (0..40).map(|n| format!("{n:02}")).collect();
    let bytes = content(1, 100);
    vault
        .put_all(names.iter().map(|name| (name, &bytes[..])))
        .unwrap();
    for damaged in ["31", "17", "23"] {
        bench.damage(&vault, damaged, 150);
    }
    for _ in 0..20 {
        let refused = vault.verify(|_| ());
        assert!(
            matches!(&refused, Err(VaultError::Tampered { object: Some(name), .. }) if name == "17"),
            "{refused:?}"
        );
    }
}
