//! What a vault adds to its cipher: sequential put and get against the AEAD alone and a plain copy.
//!
//! All of it in turns, in one process, on a tmpfs, over the same bytes in the same chunks of 64 KiB:
//!
//! ```text
//! put    memory ─▶ read ▸ seal ▸ write ─▶ file          get    file ─▶ read ▸ open ▸ hand out
//! seal   memory, sealed in place                        open   memory ─▶ memory
//! write  memory ─▶ buffer ─▶ file                       read   file ─▶ buffer
//! ```
//!
//! The floor of put is seal and write one after the other, that of get read and open: a vault in one
//! thread cannot be faster. Ratios are of the medians. Without `--bench` there is one small round,
//! which shows that it runs and nothing else.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Instant;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use vault::kek::Released;
use vault::{ChunkSize, CreateOptions, Padding, Vault};

/// The vault's default, and what it reads and writes at once.
const CHUNK: usize = 16 * 1024;
const BATCH: usize = 512 * 1024;
const TAG: usize = 16;

fn main() {
    let measured = std::env::args().any(|argument| argument == "--bench");
    let (len, rounds) = if measured {
        (256 << 20, 9)
    } else {
        (4 << 20, 1)
    };
    let root = Path::new("/dev/shm");
    if !root.is_dir() {
        println!("skipped: there is no tmpfs at {}", root.display());
        return;
    }
    let root = tempfile::tempdir_in(root).unwrap();
    let mut bench = Bench::new(root.path(), len);
    let times: Vec<_> = (0..rounds).map(|_| bench.round()).collect();
    report(len, &times);
    drop(bench);
    cores(root.path(), len, rounds);
    tools(root.path(), len, rounds.min(5));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM"));
    println!("memory of this process: {}", peak.unwrap_or_default());
}

/// How much faster two threads are than one, each with a vault of its own.
fn cores(root: &Path, len: usize, rounds: usize) {
    let mut benches: Vec<_> = (0..2)
        .map(|n| {
            let root = root.join(n.to_string());
            std::fs::create_dir(&root).unwrap();
            Bench::new(&root, len / 2)
        })
        .collect();
    let mut gains = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..rounds {
        let acts: [fn(&mut Bench); 3] = [
            |bench| bench.seal(),
            |bench| {
                if bench.vault.info("a").is_some() {
                    bench.vault.remove("a").unwrap();
                }
                drop(bench.vault.put("a", &bench.data[..]).unwrap());
            },
            |bench| bench.get(),
        ];
        for (act, gains) in acts.into_iter().zip(&mut gains) {
            benches.iter_mut().for_each(|bench| bench.tags.clear());
            let one = seconds(|| benches.iter_mut().for_each(act));
            benches.iter_mut().for_each(|bench| bench.tags.clear());
            let both = seconds(|| {
                std::thread::scope(|scope| {
                    for bench in &mut benches {
                        scope.spawn(|| act(bench));
                    }
                });
            });
            gains.push(one / both);
        }
    }
    let [seal, put, get] = gains.map(|mut gains| {
        gains.sort_by(f64::total_cmp);
        gains[gains.len() / 2]
    });
    println!("two threads / one: seal alone {seal:.2}, put {put:.2}, get {get:.2}");
}

/// From a file into a vault, and into what other tools make of it, in turns.
fn tools(root: &Path, len: usize, rounds: usize) {
    let folder = root.join("tools");
    std::fs::create_dir(&folder).unwrap();
    let data: Vec<u8> = (0..len).map(|at| (at ^ (at >> 8)) as u8).collect();
    std::fs::write(folder.join("plain"), data).unwrap();
    let kek = Released::take(&mut [7; 32]).unwrap();
    let mut vault = Vault::create(&folder.join("v"), &kek, CreateOptions::default()).unwrap();
    let recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p";
    let tools: [(&str, &[&str]); 3] = [
        ("age", &["-r", recipient, "-o", "out", "plain"]),
        ("rage", &["-r", recipient, "-o", "out", "plain"]),
        (
            "openssl",
            &[
                "enc",
                "-aes-256-ctr",
                "-pass",
                "pass:bench",
                "-pbkdf2",
                "-iter",
                "1",
                "-in",
                "plain",
                "-out",
                "out",
            ],
        ),
    ];
    for (tool, arguments) in tools {
        let mut ratios = Vec::new();
        for _ in 0..rounds {
            let _ = std::fs::remove_file(folder.join("out"));
            let started = Instant::now();
            let mut command = std::process::Command::new(tool);
            let run = command.args(arguments).current_dir(&folder).output();
            let theirs = started.elapsed().as_secs_f64();
            if !run.is_ok_and(|run| run.status.success()) {
                break;
            }
            if vault.info("a").is_some() {
                vault.remove("a").unwrap();
            }
            let file = File::open(folder.join("plain")).unwrap();
            ratios.push(theirs / seconds(|| drop(vault.put("a", file).unwrap())));
        }
        ratios.sort_by(f64::total_cmp);
        match ratios.get(ratios.len() / 2) {
            Some(ratio) => println!("put of a file / {tool}: {ratio:.2} times as fast"),
            None => println!("{tool} cannot be run: left out"),
        }
    }
}

/// Seconds that each part of a round took.
struct Round {
    put: f64,
    seal: f64,
    write: f64,
    get: f64,
    open: f64,
    read: f64,
}

struct Bench {
    vault: Vault,
    plain: std::path::PathBuf,
    data: Vec<u8>,
    /// What the bare cipher works on, so that `data` stays what it is.
    scratch: Vec<u8>,
    opened: Vec<u8>,
    tags: Vec<u8>,
    cipher: LessSafeKey,
}

impl Bench {
    fn new(root: &Path, len: usize) -> Self {
        let options = CreateOptions {
            chunk: ChunkSize::default(),
            padding: Padding::None,
        };
        let kek = Released::take(&mut [7; 32]).unwrap();
        let key = UnboundKey::new(&AES_256_GCM, &[9; 32]).unwrap();
        let data: Vec<u8> = (0..len).map(|at| (at ^ (at >> 8)) as u8).collect();
        Self {
            vault: Vault::create(&root.join("v.vault"), &kek, options).unwrap(),
            plain: root.join("plain"),
            scratch: data.clone(),
            opened: vec![0; len],
            tags: Vec::with_capacity(len / CHUNK * TAG),
            cipher: LessSafeKey::new(key),
            data,
        }
    }

    fn round(&mut self) -> Round {
        // What a round needs is there before the clock starts, and its files are new, as a put's are.
        if self.vault.info("a").is_some() {
            self.vault.remove("a").unwrap();
        }
        let _ = std::fs::remove_file(&self.plain);
        self.scratch.copy_from_slice(&self.data);
        self.tags.clear();
        Round {
            seal: seconds(|| self.seal()),
            write: seconds(|| self.write().unwrap()),
            put: seconds(|| drop(self.vault.put("a", &self.data[..]).unwrap())),
            open: seconds(|| self.open()),
            read: seconds(|| self.read().unwrap()),
            get: seconds(|| self.get()),
        }
    }

    fn seal(&mut self) {
        for (index, chunk) in self.scratch.chunks_mut(CHUNK).enumerate() {
            let (nonce, aad) = (nonce(index), aad(index));
            let tag = self.cipher.seal_in_place_separate_tag(nonce, aad, chunk);
            self.tags.extend_from_slice(tag.unwrap().as_ref());
        }
    }

    fn open(&mut self) {
        let pieces = self.scratch.chunks(CHUNK).zip(self.tags.chunks(TAG));
        let pieces = pieces.zip(self.opened.chunks_mut(CHUNK));
        for (index, ((chunk, tag), out)) in pieces.enumerate() {
            let (nonce, aad) = (nonce(index), aad(index));
            let opened = self
                .cipher
                .open_separate_gather(nonce, aad, chunk, tag, out);
            opened.unwrap();
        }
        assert_eq!(self.opened[..CHUNK], self.data[..CHUNK]);
    }

    fn write(&self) -> io::Result<()> {
        let mut file = File::create(&self.plain)?;
        let mut buffer = vec![0; BATCH];
        for piece in self.data.chunks(BATCH) {
            let buffer = &mut buffer[..piece.len()];
            buffer.copy_from_slice(piece);
            file.write_all(buffer)?;
        }
        file.sync_data()
    }

    fn read(&self) -> io::Result<()> {
        let mut file = File::open(&self.plain)?;
        let mut buffer = vec![0; BATCH];
        while file.read(&mut buffer)? > 0 {
            black_box(&buffer);
        }
        Ok(())
    }

    fn get(&self) {
        let len = self.vault.get("a", Looked).unwrap();
        assert_eq!(len, self.data.len() as u64);
    }
}

/// A writer that takes what it is given, and keeps nothing.
struct Looked;

impl Write for Looked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(black_box(bytes).len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn seconds(act: impl FnOnce()) -> f64 {
    let start = Instant::now();
    act();
    start.elapsed().as_secs_f64()
}

fn nonce(index: usize) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&(index as u64).to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// As long as a vault's.
fn aad(index: usize) -> Aad<[u8; 41]> {
    Aad::from([index as u8; 41])
}

fn report(len: usize, rounds: &[Round]) {
    let median = |of: fn(&Round) -> f64| {
        let mut seconds: Vec<_> = rounds.iter().map(of).collect();
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    };
    let rate = |seconds: f64| len as f64 / seconds / 1e9;
    let line = |name, vault, (cipher, bare), (copy, plain)| {
        let floor: f64 = cipher + copy;
        println!(
            "{name}: {:.2} GB/s; {bare} alone {:.2} GB/s, plain {plain} {:.2} GB/s, both {:.2} GB/s",
            rate(vault),
            rate(cipher),
            rate(copy),
            rate(floor)
        );
        println!(
            "{name}, ratio: {:.2} of {bare} alone, {:.2} of plain {plain}, {:.2} of both one after the other",
            cipher / vault,
            copy / vault,
            floor / vault
        );
    };
    println!(
        "throughput: {} MiB in chunks of {} KiB, {} rounds, tmpfs, one thread",
        len >> 20,
        CHUNK >> 10,
        rounds.len()
    );
    line(
        "put",
        median(|r| r.put),
        (median(|r| r.seal), "seal"),
        (median(|r| r.write), "write"),
    );
    line(
        "get",
        median(|r| r.get),
        (median(|r| r.open), "open"),
        (median(|r| r.read), "read"),
    );
}
