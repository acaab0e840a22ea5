//! Logs whose writer was killed, whose power was cut, or whose disk failed.

use super::faulty::{Fault, Faulty};
use super::*;

/// Records of a few pages, so that segments rotate and writes can tear.
fn padded(n: u64) -> Record {
    let mut record = record(n);
    record.payload = json!({ "n": n, "pad": "x".repeat(5000) });
    record
}

const APPENDS: u64 = 50;

/// Ways to lose what was not synced, tried at each cut.
const SEEDS: u64 = 1;

/// What one run of a log was told: after how many operations how many records were acknowledged.
#[derive(Default)]
struct Told {
    created: Option<usize>,
    acknowledged: Vec<(usize, u64)>,
}

/// Creates a log, appends, publishes now and then, closes. Goes on after an error, to see whether
/// the log wrongly does too.
fn run(disk: &Faulty, dir: &Path) -> (Told, Result<(), LogError>) {
    let mut told = Told::default();
    let log = match Log::create_on(Arc::new(disk.clone()), dir, ORIGIN, key(), SMALL) {
        Ok(log) => log,
        Err(error) => return (told, Err(error)),
    };
    told.created = Some(disk.ops());
    let mut first_error = Ok(());
    for n in 0..APPENDS {
        let appended = log
            .append(&padded(n))
            .map(|receipt| assert_eq!(receipt.index, n));
        let appended = match n % 7 {
            3 => appended.and_then(|()| log.checkpoint().map(drop)),
            _ => appended,
        };
        if first_error.is_err() {
            assert!(
                matches!(appended, Err(LogError::Stopped(_))),
                "a stopped log goes on"
            );
        } else if appended.is_ok() {
            told.acknowledged.push((disk.ops(), n + 1));
        } else {
            first_error = appended;
        }
    }
    let closed = log.close().map(drop);
    (told, first_error.and(closed))
}

/// Opens what is left, and holds it against what was told. Gives the number of records.
fn recover(dir: &Path, told: u64, case: &str) -> u64 {
    let disk = Arc::new(Sparing::default());
    let log = Log::open_on(disk, dir, key(), SMALL).unwrap_or_else(|e| panic!("{case}: {e:?}"));
    let size = log.size();
    assert!(size >= told, "{case}: {size} records of {told}");
    log.append(&padded(size)).unwrap();
    log.close().unwrap();
    let verified = verify(dir, Some(&verifier()), None).unwrap_or_else(|e| panic!("{case}: {e:?}"));
    assert_eq!(
        (verified.size(), verified.unsigned_tail()),
        (size + 1, 0),
        "{case}"
    );
    for entry in verified.records().map(Result::unwrap) {
        let recovered = entry.record.kind == RECOVERED && entry.seq == size - 1;
        assert!(
            recovered || entry.record == padded(entry.seq),
            "{case}: {entry}"
        );
        assert!(
            !recovered || entry.seq >= told,
            "{case}: an acknowledged record was cut"
        );
    }
    size
}

#[test]
fn no_power_cut_loses_an_acknowledged_record() {
    let (root, dir) = scratch();
    let disk = Faulty::default();
    let (told, ran) = run(&disk, &dir);
    ran.unwrap();
    assert!(disk.named("spare") > 0, "no segment was used twice");
    let created = told.created.unwrap();
    let (mut torn, mut kept) = (0, 0);
    for (count, more) in (created..=disk.ops()).flat_map(|c| (0..SEEDS).map(move |m| (c, m))) {
        let left = root.path().join(format!("cut-{count}"));
        disk.power_cut(count, count as u64 * 1000 + more, &dir, &left);
        let acknowledged = told.acknowledged.iter().filter(|(ops, _)| *ops <= count);
        let acknowledged = acknowledged.map(|(_, size)| *size).max().unwrap_or(0);
        let size = recover(&left, acknowledged, &format!("cut after {count}"));
        (torn, kept) = (torn + u64::from(size > acknowledged), kept + acknowledged);
        std::fs::remove_dir_all(left).unwrap();
    }
    assert!(torn > 0 && kept > 0, "the cuts hit nothing");
}

#[test]
fn no_power_cut_while_publishing_harms_the_published_tree() {
    // Long enough for a tile of level 1 that several checkpoints share.
    let (root, dir) = scratch();
    let disk = Faulty::default();
    let log = Log::create_on(Arc::new(disk.clone()), &dir, ORIGIN, key(), SMALL).unwrap();
    log.append_all(&(0..260).map(padded).collect::<Vec<_>>())
        .unwrap();
    log.checkpoint().unwrap();
    let before = disk.ops();
    for n in 260..263 {
        log.append(&padded(n)).unwrap();
        log.checkpoint().unwrap();
    }
    for count in before..=disk.ops() {
        for seed in 0..SEEDS {
            let left = root.path().join(format!("cut-{count}-{seed}"));
            disk.power_cut(count, count as u64 * 1000 + seed, &dir, &left);
            recover(&left, 260, &format!("cut after {count}"));
            std::fs::remove_dir_all(left).unwrap();
        }
    }
}

#[test]
fn no_failing_operation_is_taken_for_a_success() {
    let (_root, dir) = scratch();
    let disk = Faulty::default();
    run(&disk, &dir).1.unwrap();
    for at in 1..=disk.ops() {
        let fault = [Fault::Full, Fault::Broken, Fault::Short][at % 3];
        let (_root, dir) = scratch();
        let disk = Faulty::failing(at, fault);
        let (told, ran) = run(&disk, &dir);
        let case = format!("{fault:?} at operation {at}");
        match (&ran, fault) {
            // The run was shorter than the one that was counted: publishing is a matter of timing.
            (Ok(()), _) if disk.ops() < at => {}
            (Err(LogError::Full { .. } | LogError::Stopped(_)), Fault::Full) => {}
            (Err(LogError::Io { .. } | LogError::Stopped(_)), Fault::Broken | Fault::Short) => {}
            _ => panic!("{case}: {ran:?}"),
        }
        let Some(created) = told.created else {
            continue;
        };
        assert!(created > 0);
        let acknowledged = told.acknowledged.last().map_or(0, |(_, size)| *size);
        recover(&dir, acknowledged, &case);
    }
}

/// A log of `size` records without a checkpoint over them, copied as a kill would leave it.
fn killed(root: &Path, size: u64) -> std::path::PathBuf {
    let (dir, left) = (root.join("log"), root.join("killed"));
    let log = create(&dir, LIMITS).unwrap();
    (0..size).for_each(|n| assert_eq!(log.append(&padded(n)).unwrap().index, n));
    copy(&dir, &left);
    left
}

fn segment(dir: &Path) -> std::path::PathBuf {
    dir.join("wal/00000000000000000000")
}

#[test]
fn a_killed_writer_loses_nothing_and_leaves_an_unsigned_tail() {
    let root = tempfile::tempdir().unwrap();
    let dir = killed(root.path(), 9);
    let verified = verify(&dir, Some(&verifier()), None).unwrap();
    assert_eq!(
        (
            verified.size(),
            verified.unsigned_tail(),
            verified.torn_tail()
        ),
        (0, 9, false)
    );
    assert_eq!(recover(&dir, 9, "killed"), 9);
}

#[test]
fn a_torn_write_is_cut_and_the_cut_is_on_record() {
    let root = tempfile::tempdir().unwrap();
    let dir = killed(root.path(), 5);
    // Each commit takes two pages; the second one of the last goes back to zeros.
    let mut bytes = std::fs::read(segment(&dir)).unwrap();
    bytes[4096 * 10..4096 * 11].fill(0);
    std::fs::write(segment(&dir), bytes).unwrap();
    let verified = verify(&dir, Some(&verifier()), None).unwrap();
    assert_eq!((verified.unsigned_tail(), verified.torn_tail()), (4, true));
    drop(Log::open(&dir, key()).unwrap());
    let verified = verify(&dir, Some(&verifier()), None).unwrap();
    let last = verified.records().last().unwrap().unwrap();
    assert_eq!((last.seq, last.record.kind.as_ref()), (4, RECOVERED));
    assert_eq!(
        (last.record.time, last.record.payload["at"].clone()),
        (padded(3).time, json!(4))
    );
}

#[test]
fn an_acknowledged_record_that_is_missing_keeps_the_log_shut() {
    let root = tempfile::tempdir().unwrap();
    let dir = killed(root.path(), 5);
    let whole = std::fs::read(segment(&dir)).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = whole.clone();
        change(&mut bytes);
        std::fs::write(segment(&dir), bytes).unwrap();
        let unsigned = verify(&dir, Some(&verifier()), None);
        assert!(unsigned.is_err(), "{unsigned:?}");
        Log::open(&dir, key()).unwrap_err()
    };
    // The third commit torn, lost, or in another's place, with whole ones behind it.
    let torn = refused(&|bytes| bytes[4096 * 5 + 200] ^= 1);
    assert!(matches!(torn, LogError::Lost { index: 2, .. }), "{torn:?}");
    let lost = refused(&|bytes| bytes[4096 * 5..4096 * 7].fill(0));
    assert!(matches!(lost, LogError::Lost { index: 2, .. }), "{lost:?}");
    let moved = refused(&|bytes| bytes.copy_within(4096 * 7..4096 * 9, 4096 * 5));
    assert!(
        matches!(moved, LogError::Lost { index: 2, .. }),
        "{moved:?}"
    );
    let head = refused(&|bytes| bytes[20] ^= 1);
    assert!(matches!(head, LogError::Damaged { .. }), "{head:?}");
    std::fs::remove_file(segment(&dir)).unwrap();
    assert!(matches!(
        Log::open(&dir, key()),
        Err(LogError::Lost { index: 0, .. })
    ));
    // Nothing was repaired or removed meanwhile.
    std::fs::write(segment(&dir), &whole).unwrap();
    assert_eq!(recover(&dir, 5, "restored"), 5);
}

#[test]
fn every_flipped_byte_of_an_unsigned_tail_is_noticed() {
    let root = tempfile::tempdir().unwrap();
    let dir = killed(root.path(), 3);
    let whole = std::fs::read(segment(&dir)).unwrap();
    for at in (0..4096 * 8).step_by(97) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x40;
        std::fs::write(segment(&dir), bytes).unwrap();
        let verified = verify(&dir, Some(&verifier()), None);
        assert!(
            verified.is_err() || verified.is_ok_and(|v| v.torn_tail()),
            "byte {at}"
        );
    }
}

#[test]
fn records_written_without_the_key_are_never_signed() {
    let root = tempfile::tempdir().unwrap();
    let dir = killed(root.path(), 3);
    std::fs::remove_file(segment(&dir)).unwrap();
    let thief = LogKey::from_seed(&[66; 32]).unwrap();
    let mut wal = Wal::start(
        &dir.join("wal"),
        Arc::<OsDisk>::default(),
        &thief,
        SMALL.segments,
        0,
    )
    .unwrap();
    let entry = Entry {
        seq: 0,
        boot: [0; 16],
        origin: ORIGIN.into(),
        record: record(0),
    };
    let entry = entry.encode().unwrap();
    let body = [&(entry.len() as u16).to_be_bytes(), &entry[..]].concat();
    wal.commit(&thief, 0, 1, &body).unwrap();
    assert!(matches!(Log::open(&dir, key()), Err(LogError::Forged(_))));
}

#[test]
fn a_device_that_is_full_gives_a_typed_error_and_no_acknowledgement() {
    // The real thing, where mounting is allowed: a tmpfs too small for the first segments.
    let root = tempfile::tempdir().unwrap();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=600k", "none"])
        .arg(root.path())
        .output();
    if !mount.is_ok_and(|mount| mount.status.success()) {
        eprintln!("skipped: mounting a tmpfs takes root");
        return;
    }
    let dir = root.path().join("log");
    let log = Log::create_on(Arc::<OsDisk>::default(), &dir, ORIGIN, key(), SMALL).unwrap();
    let mut acknowledged = 0;
    let error = loop {
        match log.append(&padded(acknowledged)) {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    let full = matches!(error, LogError::Full { .. } | LogError::Stopped(_));
    let stopped = matches!(log.append(&padded(0)), Err(LogError::Stopped(_)));
    drop(log);
    let kept = root.path().join("log");
    let elsewhere = tempfile::tempdir().unwrap();
    copy(&kept, elsewhere.path());
    let unmount = std::process::Command::new("umount")
        .arg("-l")
        .arg(root.path())
        .status();
    assert!(unmount.is_ok_and(|status| status.success()));
    assert!(full && stopped, "{error:?}");
    assert!(acknowledged > 0);
    assert!(recover(elsewhere.path(), acknowledged, "full") >= acknowledged);
}
