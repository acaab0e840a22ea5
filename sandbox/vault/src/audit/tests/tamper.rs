//! Logs that somebody changed. Each test is an attack that must be noticed.

use std::fs;
use std::sync::OnceLock;

use super::*;

/// Bundles of a closed log of `SIZE` records: one full, one partial.
const SIZE: u64 = 300;
const TAIL: &str = "tile/entries/001.p/44";

/// A copy of a fresh closed log, to be attacked.
fn attacked(attack: impl FnOnce(&Path)) -> Result<Verified, VerifyError> {
    static LOG: OnceLock<tempfile::TempDir> = OnceLock::new();
    let whole = LOG.get_or_init(|| {
        let root = tempfile::tempdir().unwrap();
        closed_log(&root.path().join("log"), SIZE);
        root
    });
    let (_root, dir) = scratch();
    copy(&whole.path().join("log"), &dir);
    attack(&dir);
    verify(&dir, Some(&verifier()), None)
}

/// Rewrites the entries of a bundle.
fn rewrite(path: &Path, change: impl FnOnce(&mut Vec<Vec<u8>>)) {
    let mut entries: Vec<_> = store::Entries::new(&fs::read(path).unwrap())
        .map(<[u8]>::to_vec)
        .collect();
    change(&mut entries);
    let bytes = entries.iter().flat_map(|entry| {
        let length = (entry.len() as u16).to_be_bytes();
        length
            .into_iter()
            .chain(entry.iter().copied())
            .collect::<Vec<_>>()
    });
    fs::write(path, bytes.collect::<Vec<_>>()).unwrap();
}

#[test]
fn every_flipped_byte_of_every_file_is_noticed() {
    let (_root, dir) = scratch();
    closed_log(&dir, 5);
    let mut flips = 0;
    for file in files(&dir) {
        let whole = fs::read(&file).unwrap();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            fs::write(&file, flipped).unwrap();
            let pinned = verify(&dir, Some(&verifier()), None);
            assert!(pinned.is_err(), "byte {at} of {file:?}");
            flips += 1;
        }
        fs::write(&file, whole).unwrap();
    }
    assert!(flips > 4096 + 5 * 100);
    verify(&dir, Some(&verifier()), None).unwrap();
}

#[test]
fn a_sample_of_flipped_bytes_of_a_longer_log_is_noticed() {
    let (_root, dir) = scratch();
    closed_log(&dir, SIZE);
    for file in files(&dir) {
        let whole = fs::read(&file).unwrap();
        for at in (0..whole.len()).step_by(whole.len().div_ceil(40)) {
            let mut flipped = whole.clone();
            flipped[at] ^= 0x10;
            fs::write(&file, flipped).unwrap();
            assert!(
                verify(&dir, Some(&verifier()), None).is_err(),
                "byte {at} of {file:?}"
            );
        }
        fs::write(&file, whole).unwrap();
    }
    verify(&dir, Some(&verifier()), None).unwrap();
}

#[test]
fn every_missing_file_is_noticed_and_every_cut_one() {
    let (_root, dir) = scratch();
    closed_log(&dir, SIZE);
    for file in files(&dir).iter().filter(|file| !file.ends_with("key.pub")) {
        let whole = fs::read(file).unwrap();
        fs::remove_file(file).unwrap();
        assert!(
            verify(&dir, Some(&verifier()), None).is_err(),
            "{file:?} missing"
        );
        for length in [0, 1, whole.len() / 2, whole.len() - 1] {
            fs::write(file, &whole[..length]).unwrap();
            assert!(
                verify(&dir, Some(&verifier()), None).is_err(),
                "{file:?} cut to {length}"
            );
        }
        let longer = [&whole[..], &[0]].concat();
        fs::write(file, longer).unwrap();
        let longer = verify(&dir, Some(&verifier()), None);
        let noticed = longer.is_err() || longer.is_ok_and(|v| v.torn_tail());
        assert!(
            noticed || file.parent().unwrap().ends_with("wal"),
            "{file:?} longer"
        );
        fs::write(file, whole).unwrap();
    }
}

#[test]
fn a_changed_record_is_named() {
    let forged = |n: u64| {
        let mut entry = Entry {
            seq: n,
            boot: [0; 16],
            origin: ORIGIN.into(),
            record: record(n),
        };
        entry.record.payload = json!("innocent");
        entry.encode().unwrap()
    };
    let mid = attacked(|dir| rewrite(&dir.join("tile/entries/000"), |all| all[17] = forged(17)));
    assert!(matches!(mid, Err(VerifyError::Changed(17))), "{mid:?}");
    let last = attacked(|dir| rewrite(&dir.join(TAIL), |all| all[43] = forged(299)));
    assert!(matches!(last, Err(VerifyError::Changed(299))), "{last:?}");
    // With the leaf tile made to agree, the root still does not.
    let both = attacked(|dir| {
        rewrite(&dir.join(TAIL), |all| all[43] = forged(299));
        let tile = dir.join("tile/0/001.p/44");
        let mut hashes = fs::read(&tile).unwrap();
        hashes[43 * 32..].copy_from_slice(&leaf_hash(&forged(299)));
        fs::write(tile, hashes).unwrap();
    });
    assert!(matches!(both, Err(VerifyError::OtherRoot)), "{both:?}");
}

#[test]
fn insertion_deletion_and_reordering_are_noticed() {
    let attacks: [fn(&mut Vec<Vec<u8>>); 5] = [
        |all| all.swap(3, 4),
        |all| drop(all.remove(10)),
        |all| all.insert(10, all[10].clone()),
        |all| {
            all.remove(10);
            all.push(all[200].clone());
        },
        |all| all[0] = all[1].clone(),
    ];
    for (n, attack) in attacks.into_iter().enumerate() {
        let noticed = attacked(|dir| rewrite(&dir.join("tile/entries/000"), attack));
        assert!(noticed.is_err(), "attack {n}");
    }
}

#[test]
fn a_lost_tail_of_any_length_is_noticed() {
    for cut in 1..=44usize {
        let lost = attacked(|dir| rewrite(&dir.join(TAIL), |all| all.truncate(44 - cut)));
        let have = SIZE - cut as u64;
        assert!(
            matches!(lost, Err(VerifyError::TailLost { have: h, signed: SIZE }) if h == have),
            "{cut}: {lost:?}"
        );
        if cut > 2 && cut < 43 {
            continue;
        }
        // Cut under the name that a bundle of this width would have.
        let renamed = attacked(|dir| {
            rewrite(&dir.join(TAIL), |all| all.truncate(44 - cut));
            fs::rename(
                dir.join(TAIL),
                dir.join(TAIL).with_file_name((44 - cut).to_string()),
            )
            .unwrap();
        });
        assert!(
            matches!(renamed, Err(VerifyError::TailLost { have: h, .. }) if h == have),
            "{cut}: {renamed:?}"
        );
    }
    let whole = attacked(|dir| fs::remove_dir_all(dir.join("tile/entries")).unwrap());
    assert!(matches!(
        whole,
        Err(VerifyError::TailLost {
            have: 0,
            signed: SIZE
        })
    ));
    let middle = attacked(|dir| fs::remove_file(dir.join("tile/entries/000")).unwrap());
    assert!(matches!(middle, Err(VerifyError::Missing(_))));
}

#[test]
fn a_tail_replaced_and_signed_with_another_key_is_refused() {
    let (_root, dir) = scratch();
    let genuine = closed_log(&dir, 20);
    // The attacker makes a log of their own with the same name, and puts it in place whole.
    let (_other_root, other) = scratch();
    let thief = || LogKey::from_seed(&[66; 32]).unwrap();
    let log = Log::create(&other, ORIGIN, thief()).unwrap();
    log.append_all(&(0..19).map(record).collect::<Vec<_>>())
        .unwrap();
    log.append(&Record::new(
        "innocent",
        Duration::ZERO,
        u64::MAX,
        json!(null),
    ))
    .unwrap();
    log.close().unwrap();
    let refused = verify(&other, Some(&verifier()), None);
    assert!(matches!(refused, Err(VerifyError::OtherKey)), "{refused:?}");
    fs::copy(dir.join("key.pub"), other.join("key.pub")).unwrap();
    let refused = verify(&other, Some(&verifier()), None);
    assert!(matches!(
        refused,
        Err(VerifyError::Checkpoint(NoteError::Unsigned(_)))
    ));
    assert!(Log::open(&other, key()).is_err());
    // With the genuine checkpoint over the replaced records, the records are wrong.
    fs::write(other.join("checkpoint"), genuine.note()).unwrap();
    assert!(verify(&other, Some(&verifier()), None).is_err());
}

#[test]
fn a_tail_replaced_and_signed_with_the_current_key_is_a_fork_of_the_expected_checkpoint() {
    let (_root, dir) = scratch();
    let seen = closed_log(&dir, 20);
    let (_other_root, other) = scratch();
    let log = create(&other, LIMITS).unwrap();
    log.append_all(&(0..30).map(|n| record(n + n / 19)).collect::<Vec<_>>())
        .unwrap();
    let forked = log.close().unwrap();
    let refused = verify(&other, Some(&verifier()), Some(&seen));
    assert!(matches!(refused, Err(VerifyError::Fork(20))), "{refused:?}");
    assert!(verify(&other, Some(&verifier()), Some(&forked)).is_ok());
}

#[test]
fn a_log_rolled_back_as_a_whole_is_noticed_by_the_expected_checkpoint() {
    let (root, dir) = scratch();
    let first = closed_log(&dir, 20);
    let backup = root.path().join("backup");
    copy(&dir, &backup);
    let log = open(&dir).unwrap();
    log.append(&record(20)).unwrap();
    let second = log.close().unwrap();
    let verified = verify(&dir, Some(&verifier()), Some(&first)).unwrap();
    assert_eq!(verified.size(), 21);
    assert!(
        verify(&backup, Some(&verifier()), None).is_ok(),
        "alone it is a good log"
    );
    let refused = verify(&backup, Some(&verifier()), Some(&second));
    assert!(matches!(
        refused,
        Err(VerifyError::RolledBack {
            expected: 21,
            signed: 20
        })
    ));
    // Only the checkpoint rolled back: its segments are gone, and records lie beyond it.
    fs::copy(backup.join("checkpoint"), dir.join("checkpoint")).unwrap();
    assert!(verify(&dir, Some(&verifier()), None).is_err());
}

#[test]
fn checkpoints_of_another_log_are_refused() {
    let (_root, dir) = scratch();
    closed_log(&dir, 5);
    let (_other_root, other) = scratch();
    let log = Log::create(&other, "example.org/vm-2", key()).unwrap();
    log.append_all(&(0..5).map(record).collect::<Vec<_>>())
        .unwrap();
    let theirs = log.close().unwrap();
    let refused = verify(&dir, Some(&verifier()), Some(&theirs));
    assert!(matches!(
        refused,
        Err(VerifyError::Checkpoint(NoteError::Origin { .. }))
    ));
    let replayed = verify(&other, Some(&verifier()), None);
    assert!(matches!(replayed, Err(VerifyError::OtherKey)));
    fs::copy(dir.join("key.pub"), other.join("key.pub")).unwrap();
    let replayed = verify(&other, Some(&verifier()), None);
    assert!(matches!(
        replayed,
        Err(VerifyError::Checkpoint(NoteError::Origin { .. }))
    ));
    // One log's records under another log's name, signed with the shared key.
    let head = Head {
        origin: ORIGIN.into(),
        ..theirs.head().clone()
    };
    fs::write(other.join("checkpoint"), key().sign(head).unwrap().note()).unwrap();
    let replayed = verify(&other, Some(&verifier()), None);
    assert!(
        matches!(replayed, Err(VerifyError::OutOfPlace { index: 0, .. })),
        "{replayed:?}"
    );
}

#[test]
fn a_missing_checkpoint_or_key_is_no_good_log() {
    let gone = attacked(|dir| fs::remove_file(dir.join("checkpoint")).unwrap());
    assert!(matches!(gone, Err(VerifyError::NoCheckpoint(_))));
    let (_root, dir) = scratch();
    closed_log(&dir, 5);
    fs::remove_file(dir.join("key.pub")).unwrap();
    assert!(matches!(
        verify(&dir, None, None),
        Err(VerifyError::NoKey(_))
    ));
    assert!(verify(&dir, Some(&verifier()), None).is_ok());
}

#[test]
fn a_published_copy_verifies_without_the_segments() {
    let copied = attacked(|dir| fs::remove_dir_all(dir.join("wal")).unwrap()).unwrap();
    assert!(copied.is_copy());
    let (_root, dir) = scratch();
    closed_log(&dir, 5);
    assert!(!verify(&dir, None, None).unwrap().is_copy());
    fs::remove_dir_all(dir.join("wal")).unwrap();
    assert!(matches!(open(&dir), Err(LogError::Lost { index: 5, .. })));
}

#[test]
fn records_changed_after_verification_are_noticed_while_reading() {
    let (_root, dir) = scratch();
    closed_log(&dir, SIZE);
    let verified = verify(&dir, None, None).unwrap();
    let mut records = verified.records();
    assert!(records.by_ref().take(10).all(|entry| entry.is_ok()));
    rewrite(&dir.join(TAIL), |all| {
        let mut entry = Entry::decode(&all[2]).unwrap();
        entry.record.payload = json!(0);
        all[2] = entry.encode().unwrap();
    });
    assert!(matches!(records.last(), Some(Err(VerifyError::OtherRoot))));
}
