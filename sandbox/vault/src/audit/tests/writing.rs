//! Logs as they are written when nothing goes wrong.

use std::os::unix::fs::PermissionsExt;

use super::*;

#[test]
fn what_was_appended_is_read_back_in_order() {
    let (_root, dir) = scratch();
    let log = create(&dir, LIMITS).unwrap();
    let mut edge = Edge::new();
    for n in 0..600 {
        let receipt = log.append_all(&[record(n)]).unwrap()[0];
        assert_eq!(receipt.index, n);
        edge.push(receipt.leaf_hash, |_, _| ());
    }
    assert_eq!((log.size(), log.root()), (600, edge.root()));
    let checkpoint = log.close().unwrap();
    assert_eq!((checkpoint.size(), checkpoint.root()), (600, &edge.root()));

    let verified = verify(&dir, Some(&verifier()), Some(&checkpoint)).unwrap();
    assert_eq!((verified.size(), verified.unsigned_tail()), (600, 0));
    assert_eq!(verified.key_source(), KeySource::Pinned);
    assert_eq!(verified.clock_jumps(), 0);
    let read: Vec<_> = verified
        .records()
        .map(|entry| entry.unwrap().record)
        .collect();
    assert_eq!(read, (0..600).map(record).collect::<Vec<_>>());
    let unpinned = verify(&dir, None, None).unwrap();
    assert_eq!(unpinned.key_source(), KeySource::BesideTheLog);
}

#[test]
fn logs_of_every_size_around_a_tile_are_taken_up_where_they_ended() {
    let (_root, dir) = scratch();
    let mut size = 0;
    create(&dir, LIMITS).unwrap().close().unwrap();
    assert_eq!(verify(&dir, None, None).unwrap().size(), 0);
    for more in [1, 1, 253, 1, 1, 255, 1, 300] {
        let log = open(&dir).unwrap();
        assert_eq!(log.size(), size);
        log.append_all(&(size..size + more).map(record).collect::<Vec<_>>())
            .unwrap();
        size += more;
        // Every second time the log is left as a crash would leave it, with a copy of its files.
        drop(log);
        assert_eq!(verify(&dir, None, None).unwrap().size(), size);
    }
}

#[test]
fn sixty_four_writers_get_sixty_four_orders_that_agree() {
    let (_root, dir) = scratch();
    let log = Log::create_on(Arc::<OsDisk>::default(), &dir, ORIGIN, key(), SMALL).unwrap();
    let receipts: Vec<(u64, u64, Receipt)> = std::thread::scope(|scope| {
        let write = |writer: u64| {
            let log = &log;
            scope.spawn(move || {
                let append = |n: u64| {
                    let payload = json!({ "writer": writer, "n": n, "pad": "x".repeat(100) });
                    let record = Record::new("test", Duration::ZERO, n, payload);
                    let receipt = log.append(&record).unwrap();
                    assert!(
                        log.size() > receipt.index,
                        "acknowledged before it was durable"
                    );
                    (writer, n, receipt)
                };
                (0..40).map(append).collect::<Vec<_>>()
            })
        };
        let writers: Vec<_> = (0..64).map(write).collect();
        writers
            .into_iter()
            .flat_map(|writer| writer.join().unwrap())
            .collect()
    });
    let live = verify(&dir, Some(&verifier()), None).unwrap();
    assert_eq!(live.size() + live.unsigned_tail(), 2560);
    log.close().unwrap();
    let entries: Vec<Entry> = verify(&dir, Some(&verifier()), None)
        .unwrap()
        .records()
        .map(Result::unwrap)
        .collect();
    assert_eq!(entries.len(), 2560);
    for (writer, n, receipt) in receipts {
        let entry = &entries[receipt.index as usize];
        assert_eq!(entry.record.payload["writer"], writer);
        assert_eq!(entry.record.payload["n"], n);
        assert_eq!(leaf_hash(&entry.encode().unwrap()), receipt.leaf_hash);
    }
    // Each writer's own order is kept, and the monotonic clock never runs backwards.
    assert!(entries.is_sorted_by_key(|entry| entry.record.mono_ns));
}

#[test]
fn a_log_verifies_at_every_moment_while_it_is_written() {
    let (_root, dir) = scratch();
    let log = create(&dir, SMALL).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..300 {
                let records: Vec<_> = (n * 9..n * 9 + 9).map(record).collect();
                log.append_all(&records).unwrap();
                if n % 10 == 0 {
                    log.checkpoint().unwrap();
                }
            }
            done.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        let mut seen: Option<Checkpoint> = None;
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let verified = verify(&dir, Some(&verifier()), seen.as_ref()).unwrap();
            seen = Some(verified.checkpoint().clone());
        }
        assert!(seen.is_some());
    });
    assert_eq!(log.close().unwrap().size(), 2700);
}

#[test]
fn a_first_commit_that_is_too_big_for_the_first_segment_loses_nothing() {
    let (root, dir) = scratch();
    let log = create(&dir, SMALL).unwrap();
    let mut big = record(0);
    big.payload = json!("x".repeat(16_000));
    log.append(&big).unwrap();
    log.checkpoint().unwrap();
    for n in 1..4 {
        log.append(&record(n)).unwrap();
    }
    let killed = root.path().join("killed");
    copy(&dir, &killed);
    assert_eq!(open(&killed).unwrap().size(), 4);
}

#[test]
fn looking_at_the_root_holds_nothing_back() {
    let (_root, dir) = scratch();
    let log = create(&dir, SMALL).unwrap();
    for n in 0..1500 {
        log.append_all(&[record(n), record(n), record(n)]).unwrap();
        log.root();
    }
    // Had the root taken the records from the publisher's count, nothing would be published yet.
    let published = verify(&dir, Some(&verifier()), None).unwrap().size();
    assert!(published > 0, "{published}");
}

#[test]
fn a_wall_clock_set_back_a_day_leaves_the_order_and_is_counted() {
    let (_root, dir) = scratch();
    let log = create(&dir, LIMITS).unwrap();
    for n in 0..3 {
        log.append(&record(n)).unwrap();
    }
    let back = Duration::new(1_700_000_000 - 86_400, 0);
    log.append(&Record::new("decision", back, 3_000_000_000, json!(null)))
        .unwrap();
    // A monotonic clock that runs backwards is held where it was.
    log.append(&Record::new("decision", back, 1, json!(null)))
        .unwrap();
    log.close().unwrap();
    let verified = verify(&dir, None, None).unwrap();
    assert_eq!(verified.clock_jumps(), 1);
    let mono: Vec<_> = verified
        .records()
        .map(|entry| entry.unwrap().record.mono_ns)
        .collect();
    assert_eq!(mono[2..], [2_000_000_000, 3_000_000_000, 3_000_000_000]);
}

#[test]
fn a_log_has_one_writer() {
    let (_root, dir) = scratch();
    let log = Log::create(&dir, ORIGIN, key()).unwrap();
    assert!(matches!(Log::open(&dir, key()), Err(LogError::Locked(_))));
    assert!(matches!(
        Log::create(&dir, ORIGIN, key()),
        Err(LogError::Locked(_))
    ));
    drop(log);
    assert!(matches!(
        Log::create(&dir, ORIGIN, key()),
        Err(LogError::Exists(_))
    ));
    let other = LogKey::from_seed(&[2; 32]).unwrap();
    assert!(matches!(Log::open(&dir, other), Err(LogError::WrongKey(_))));
    Log::open(&dir, key()).unwrap();
    let nowhere = dir.join("nowhere");
    assert!(matches!(
        Log::open(&nowhere, key()),
        Err(LogError::NoLog(_))
    ));
}

#[test]
fn a_log_is_not_started_over_what_is_left_of_one() {
    for left in ["checkpoint", "tile", "wal", "key.pub"] {
        let (_root, dir) = scratch();
        closed_log(&dir, 3);
        for name in ["checkpoint", "tile", "wal", "key.pub"]
            .iter()
            .filter(|name| **name != left)
        {
            let path = dir.join(name);
            let remove = if path.is_dir() {
                std::fs::remove_dir_all
            } else {
                std::fs::remove_file
            };
            remove(path).unwrap();
        }
        assert!(
            matches!(create(&dir, LIMITS), Err(LogError::Exists(_))),
            "{left}"
        );
    }
}

#[test]
fn a_refused_record_does_not_stop_the_log() {
    let (_root, dir) = scratch();
    let log = create(&dir, LIMITS).unwrap();
    let big = Record::new("big", Duration::ZERO, 0, "x".repeat(10 << 20).into());
    assert!(matches!(
        log.append(&big),
        Err(LogError::Record(RecordError::TooBig))
    ));
    assert!(matches!(
        log.append_all(&[record(0), big]),
        Err(LogError::Record(_))
    ));
    assert_eq!((log.size(), log.append(&record(0)).unwrap().index), (0, 0));
    let line = vec!["a\nb".to_owned()];
    assert!(matches!(
        log.checkpoint_with(&line),
        Err(LogError::Checkpoint(_))
    ));
    let signed = log.checkpoint_with(&["att 00".to_owned()]).unwrap();
    assert_eq!(signed.head().extensions, ["att 00"]);
    assert!(
        verifier()
            .open(&std::fs::read(dir.join("checkpoint")).unwrap())
            .unwrap()
            == signed
    );
    log.append(&record(1)).unwrap();
}

#[test]
fn a_file_that_others_moved_away_stops_the_log() {
    type Attack = fn(&Path);
    let attacks: [(&str, Attack); 5] = [
        ("unlink", |wal| std::fs::remove_file(wal).unwrap()),
        ("rename", |wal| {
            std::fs::rename(wal, wal.with_extension("old")).unwrap()
        }),
        ("link", |wal| {
            std::fs::hard_link(wal, wal.with_extension("2")).unwrap()
        }),
        ("truncate", |wal| {
            std::fs::OpenOptions::new()
                .write(true)
                .open(wal)
                .unwrap()
                .set_len(4096)
                .unwrap();
        }),
        ("replace", |wal| {
            std::fs::copy(wal, wal.with_extension("2")).unwrap();
            std::fs::rename(wal.with_extension("2"), wal).unwrap();
        }),
    ];
    for (name, attack) in attacks {
        let (_root, dir) = scratch();
        let log = create(&dir, LIMITS).unwrap();
        log.append(&record(0)).unwrap();
        attack(&dir.join("wal/00000000000000000000"));
        let refused = log.append(&record(1));
        assert!(
            matches!(refused, Err(LogError::Displaced(_))),
            "{name}: {refused:?}"
        );
        assert!(
            matches!(log.append(&record(2)), Err(LogError::Stopped(_))),
            "{name}"
        );
        assert!(
            matches!(log.checkpoint(), Err(LogError::Stopped(_))),
            "{name}"
        );
    }
}

#[test]
fn one_record_is_proven_to_who_does_not_have_the_log() {
    let (_root, dir) = scratch();
    let log = create(&dir, LIMITS).unwrap();
    log.append_all(&(0..100).map(record).collect::<Vec<_>>())
        .unwrap();
    let old = log.checkpoint().unwrap();
    log.append_all(&(100..700).map(record).collect::<Vec<_>>())
        .unwrap();
    assert!(matches!(
        prove(&dir, &verifier(), 100),
        Err(ProofError::Beyond { .. })
    ));
    log.checkpoint().unwrap();
    for index in [0, 255, 256, 511, 512, 600, 699] {
        let text = serde_json::to_string(&prove(&dir, &verifier(), index).unwrap()).unwrap();
        let mut proof: Proof = serde_json::from_str(&text).unwrap();
        assert_eq!(proof.check(&verifier()).unwrap().record, record(index));
        let other = LogKey::from_seed(&[2; 32])
            .unwrap()
            .verifier(ORIGIN)
            .unwrap();
        assert!(matches!(
            proof.check(&other),
            Err(ProofError::Checkpoint(_))
        ));
        proof.index ^= 1;
        assert!(matches!(proof.check(&verifier()), Err(ProofError::Refuted)));
    }
    let since = prove_since(&dir, &verifier(), &old).unwrap();
    assert_eq!(since.check(&verifier(), &old).unwrap().size(), 700);
    let forged = key()
        .sign(Head {
            root: [0; 32],
            ..old.head().clone()
        })
        .unwrap();
    assert!(matches!(
        prove_since(&dir, &verifier(), &forged),
        Err(ProofError::Refuted)
    ));
    assert!(matches!(
        since.check(&verifier(), &forged),
        Err(ProofError::Refuted)
    ));
}

#[test]
fn files_are_for_the_owner_only_and_old_partial_tiles_go() {
    let (_root, dir) = scratch();
    let log = create(&dir, LIMITS).unwrap();
    for n in 0..4 {
        log.append(&record(n)).unwrap();
        log.checkpoint().unwrap();
    }
    log.close().unwrap();
    let left = files(&dir);
    let names: Vec<_> = left
        .iter()
        .map(|p| p.strip_prefix(&dir).unwrap().display())
        .collect();
    let expected = [
        "checkpoint",
        "key.pub",
        "tile/0/000.p/4",
        "tile/entries/000.p/4",
    ];
    assert_eq!(
        names[..4].iter().map(|n| n.to_string()).collect::<Vec<_>>(),
        expected
    );
    assert_eq!(names[4..].len(), 1, "{names:?}");
    for file in left {
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file:?}");
    }
}
