//! What the log adds to the disk: appends of 1, 8 and 64 writers against a bare group-commit loop.
//!
//! Both write the same number of bytes on the same disk, in turns. Absolute rates say more about
//! the disk than about the log; the ratio is what is held to 0.9.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::json;
use vault::audit::{Log, LogKey, Record};

const WRITERS: [usize; 3] = [1, 8, 64];
/// Records of a round, by all writers together; more where more are synced at once.
const RECORDS: [usize; 3] = [400, 1600, 7680];
const ROUNDS: usize = 21;
/// About what a record of a decision takes.
const BYTES: usize = 256;

fn append(c: &mut Criterion) {
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let log = Log::create(
        &root.path().join("log"),
        "example.org/bench",
        LogKey::generate().unwrap(),
    );
    let log = log.unwrap();
    let bare = Bare::new(&root.path().join("bare"));

    let record = record();
    for (writers, records) in WRITERS.into_iter().zip(RECORDS) {
        let mut rounds: Vec<(f64, f64)> = (0..ROUNDS)
            .map(|_| {
                (
                    rate(writers, records, || assert!(log.append(&record).is_ok())),
                    rate(writers, records, || bare.append()),
                )
            })
            .collect();
        rounds.sort_by(|a, b| (a.0 / a.1).total_cmp(&(b.0 / b.1)));
        let ratio = |round: (f64, f64)| round.0 / round.1;
        let middle = rounds[ROUNDS / 2];
        println!(
            "append, {writers} writers: log {:.0}/s, bare group commit {:.0}/s; ratio {:.2} in the \
             middle, {:.2} to {:.2}",
            middle.0,
            middle.1,
            ratio(middle),
            ratio(rounds[0]),
            ratio(rounds[ROUNDS - 1]),
        );
    }

    let mut group = c.benchmark_group("append");
    group
        .sample_size(10)
        .measurement_time(Duration::from_millis(500));
    group.warm_up_time(Duration::from_millis(100));
    group.bench_function("one writer, log", |b| {
        b.iter(|| log.append(&record).unwrap())
    });
    group.bench_function("one writer, bare", |b| b.iter(|| bare.append()));
    group.finish();
}

fn record() -> Record {
    let payload = json!({ "action": "connect", "resource": "api.example.com:443", "because": ["rule-7"],
        "granted": false, "risk": 20, "epoch": 12 });
    Record::new("decision", Duration::from_secs(1_700_000_000), 1, payload)
}

/// Appends per second of all writers together.
fn rate(writers: usize, records: usize, append: impl Fn() + Sync) -> f64 {
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..writers {
            scope.spawn(|| (0..records / writers).for_each(|_| append()));
        }
    });
    records as f64 / start.elapsed().as_secs_f64()
}

/// The least that group commit can be: gather, write once into a file of zeros, sync once, wake.
struct Bare {
    file: File,
    queue: Mutex<Queue>,
    durable: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<u8>,
    next: usize,
    durable: usize,
    writing: bool,
    end: u64,
}

/// The size of the file, which is written around and around.
const FILE: u64 = 8 << 20;

impl Bare {
    fn new(path: &Path) -> Bare {
        let file = File::create(path).unwrap();
        file.write_all_at(&vec![0; FILE as usize], 0).unwrap();
        file.sync_all().unwrap();
        Bare {
            file,
            queue: Mutex::default(),
            durable: Condvar::new(),
        }
    }

    fn append(&self) {
        let mut queue = self.queue.lock().unwrap();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.extend_from_slice(&[0x5a; BYTES]);
        while queue.durable <= number {
            if queue.writing {
                queue = self.durable.wait(queue).unwrap();
                continue;
            }
            queue.writing = true;
            let (body, next) = (std::mem::take(&mut queue.waiting), queue.next);
            if queue.end + body.len() as u64 > FILE {
                queue.end = 0;
            }
            let at = queue.end;
            queue.end += body.len() as u64;
            drop(queue);
            self.file.write_all_at(&body, at).unwrap();
            self.file.sync_data().unwrap();
            queue = self.queue.lock().unwrap();
            queue.writing = false;
            queue.durable = next;
            self.durable.notify_all();
        }
    }
}

criterion_group!(benches, append);
criterion_main!(benches);
