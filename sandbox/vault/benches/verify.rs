//! How fast a log is verified, against the hashing that nobody can do without.
//!
//! The floor hashes the same entries, in memory already, into the same tree, on as many threads.
//! Verification reads the files, looks at every record, and compares every tile on top.
#![allow(clippy::unwrap_used, missing_docs)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::json;
use vault::audit::{Hash, Log, LogKey, Record, leaf_hash, node_hash, verify};

const RECORDS: u64 = 1_000_000;
const ROUNDS: usize = 7;
const TILE: usize = 256;

fn verification(c: &mut Criterion) {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let dir = root.path().join("log");
    let log = Log::create(&dir, "example.org/bench", LogKey::generate().unwrap()).unwrap();
    for first in (0..RECORDS).step_by(10_000) {
        let records: Vec<_> = (first..first + 10_000).map(record).collect();
        log.append_all(&records).unwrap();
    }
    log.close().unwrap();
    let entries = entries(&dir);
    assert_eq!(entries.len() as u64, RECORDS);
    let bytes: usize = entries.iter().map(Vec::len).sum();
    println!("verify: {} bytes a record", bytes / entries.len());

    let timed = |act: &dyn Fn()| {
        let start = Instant::now();
        act();
        RECORDS as f64 / start.elapsed().as_secs_f64()
    };
    let mut rounds: Vec<(f64, f64)> = (0..ROUNDS)
        .map(|_| {
            let floor = timed(&|| assert_eq!(floor(&entries).len(), 32));
            let verified = timed(&|| assert_eq!(verify(&dir, None, None).unwrap().size(), RECORDS));
            (verified, floor)
        })
        .collect();
    rounds.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
    let (verified, floor) = rounds[ROUNDS / 2];
    println!(
        "verify: {verified:.0} records/s, hash floor {floor:.0}/s, ratio {:.2}",
        verified / floor
    );

    let mut group = c.benchmark_group("verify");
    group
        .sample_size(10)
        .measurement_time(Duration::from_secs(5));
    group.bench_function("1,000,000 records", |b| {
        b.iter(|| verify(&dir, None, None).unwrap())
    });
    group.finish();
}

/// About what a record of a decision takes.
fn record(n: u64) -> Record {
    let payload = json!({ "action": "connect", "resource": "api.example.com:443", "because": ["rule-7"],
        "granted": false, "risk": 20, "epoch": 12 });
    Record::new(
        "decision",
        Duration::from_nanos(1_700_000_000_000_000_000 + n),
        n,
        payload,
    )
}

/// The root over all entries, a share of the tiles on each thread.
fn floor(entries: &[Vec<u8>]) -> Hash {
    let threads = std::thread::available_parallelism().unwrap().get();
    let tiles: Vec<&[Vec<u8>]> = entries.chunks(TILE).collect();
    let share = tiles.len().div_ceil(threads);
    let roots: Vec<Hash> = std::thread::scope(|scope| {
        let workers: Vec<_> = tiles
            .chunks(share)
            .map(|share| {
                scope.spawn(move || {
                    let leaves = |tile: &[Vec<u8>]| tile.iter().map(|e| leaf_hash(e)).collect();
                    share
                        .iter()
                        .map(|tile| fold(leaves(tile)))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        let roots = workers.into_iter().flat_map(|w| w.join().unwrap());
        roots.collect()
    });
    fold(roots)
}

fn fold(mut level: Vec<Hash>) -> Hash {
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => node_hash(left, right),
                pair => pair[0],
            })
            .collect();
    }
    level[0]
}

/// All entries of a log, out of its bundles.
fn entries(dir: &Path) -> Vec<Vec<u8>> {
    let mut bundles = Vec::new();
    files(&dir.join("tile/entries"), &mut bundles);
    bundles.sort();
    let mut entries = Vec::new();
    for path in bundles {
        let bytes = std::fs::read(path).unwrap();
        let mut rest = &bytes[..];
        while let Some((len, more)) = rest.split_first_chunk::<2>() {
            let (entry, more) = more.split_at(u16::from_be_bytes(*len).into());
            entries.push(entry.to_vec());
            rest = more;
        }
    }
    entries
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

criterion_group!(benches, verification);
criterion_main!(benches);
