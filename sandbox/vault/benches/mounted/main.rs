//! A mounted vault against the same front end without a cipher, gocryptfs, and the file system below, in
//! turns, in one run.
//!
//! ```text
//! write   256 MiB in pieces of 1 MiB, and fsync          read    the same, after a new mount
//! random  4 KiB at a time, in a file of 64 MiB: writes, then one fsync; reads, after a new mount
//! ```
//!
//! All on the same disk, through the kernel's page cache as any program would; a new mount begins with
//! an empty one. `fsync` is what `write` waits for most on a slow disk, so it is told apart: a tmpfs
//! (`CASEMATE_BENCH_DIR=/dev/shm`) shows the front ends, a disk what is left of the difference. Needs
//! /dev/fuse; without gocryptfs its column is left out. Without `--bench` there is one small round,
//! which shows that it runs and nothing else. With `--programs` it is about programs instead: see there.
#![allow(clippy::unwrap_used, missing_docs)]

/// The vault's own, so that both front ends wait alike.
#[allow(dead_code, unused_imports)]
#[path = "../../src/fuse/listeners.rs"]
mod listeners;
mod plain;
mod programs;
/// The vault's own, so that both front ends say the same to the kernel.
#[allow(dead_code, unused_imports)]
#[path = "../../src/fuse/wire.rs"]
mod wire;

/// What the wire format knows of a volume.
#[allow(dead_code)]
mod volume {
    #[derive(Clone, Copy)]
    pub enum NodeKind {
        Directory,
        File,
        Link,
    }

    #[derive(Clone, Copy, Default)]
    pub struct Change {
        pub mode: Option<u16>,
        pub len: Option<u64>,
        pub modified: Option<Time>,
    }

    #[derive(Clone, Copy)]
    pub enum Time {
        Now,
        At(u64),
    }
}

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use vault::fuse::{FuseServer, Mount, serve_volume};
use vault::kek::Released;
use vault::volume::{Limits, Volume};
use vault::{Access, ChunkSize, CreateOptions, LeaseTerms, Padding, Rights, Vault};

fn main() {
    let measured = std::env::args().any(|argument| argument == "--bench");
    let (mib, random, rounds) = if measured { (256, 64, 5) } else { (2, 1, 1) };
    let root =
        std::env::var_os("CASEMATE_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let root = tempfile::Builder::new()
        .prefix("mounted-")
        .tempdir_in(root)
        .unwrap();
    if std::env::args().any(|argument| argument == "--programs") {
        return programs(root.path());
    }
    let mut kinds: Vec<Box<dyn Kind>> = vec![
        Box::new(Below(root.path().join("below"))),
        Box::new(Plain::new(root.path())),
    ];
    for chunk in [ChunkSize::KiB64, ChunkSize::KiB16, ChunkSize::KiB4] {
        kinds.push(Box::new(OfVault::new(root.path(), chunk)));
    }
    match Gocryptfs::new(root.path()) {
        Some(kind) => kinds.push(Box::new(kind)),
        None => println!("gocryptfs cannot be run: left out"),
    }
    let mut figures = vec![Vec::new(); kinds.len()];
    for _ in 0..rounds {
        for (kind, figures) in kinds.iter_mut().zip(&mut figures) {
            match round(kind.as_mut(), mib, random) {
                Some(round) => figures.push(round),
                None => println!("{}: cannot be mounted", kind.name()),
            }
        }
    }
    for chunk in [64 << 10, 16 << 10, 4 << 10] {
        println!("cipher alone, {}k: {:.0} MiB/s", chunk >> 10, cipher(chunk));
    }
    println!("medians of {rounds}; MiB/s, then thousands of operations a second");
    println!("                write  +fsync    read   4k write   4k read");
    let all: Vec<(String, &[[f64; 5]])> = kinds
        .iter()
        .zip(&figures)
        .filter(|(_, figures)| !figures.is_empty())
        .map(|(kind, figures)| (kind.name(), &figures[..]))
        .collect();
    for (name, figures) in &all {
        let m = [0, 1, 2, 3, 4].map(|of| median(figures, of));
        println!(
            "{name:<12}{:>9.0}{:>8.0}{:>8.0}{:>11.1}{:>10.1}",
            m[0], m[1], m[2], m[3], m[4]
        );
    }
    // A noisy machine is as noisy for both of a round, so each ratio is of one round.
    println!("medians of the ratios");
    let of = |wanted: &str| all.iter().find(|(name, _)| name == wanted);
    for (name, ours) in all.iter().filter(|(name, _)| name.starts_with("vault")) {
        for (other, theirs) in [PLAIN, GOCRYPTFS].into_iter().filter_map(of) {
            let pairs = ours.iter().zip(*theirs);
            let ratios: Vec<[f64; 5]> = pairs
                .map(|(a, b)| [0, 1, 2, 3, 4].map(|of| a[of] / b[of]))
                .collect();
            let r = [0, 1, 2, 3, 4].map(|of| median(&ratios, of));
            println!(
                "{name} / {other:<12}{:>9.2}{:>8.2}{:>8.2}{:>11.2}{:>10.2}",
                r[0], r[1], r[2], r[3], r[4]
            );
        }
    }
}

/// One round, with a repository of 10,000 files.
fn programs(root: &Path) {
    let mut kinds: Vec<Box<dyn Kind>> = vec![
        Box::new(Below(root.join("below"))),
        Box::new(OfVault::new(root, ChunkSize::KiB64)),
    ];
    kinds.extend(Gocryptfs::new(root).map(|kind| Box::new(kind) as Box<dyn Kind>));
    let origin = root.join("origin");
    if !programs::repository(&origin, 10_000) {
        println!("skipped: git cannot be run");
        return;
    }
    println!("            transactions/s   clone, s   transactions/s after it");
    for kind in &mut kinds {
        if let Some([before, clone, after]) = programs::round(kind.as_mut(), &origin, 300) {
            println!(
                "{:<12}{before:>14.0}{clone:>11.2}{after:>26.0}",
                kind.name()
            );
        }
    }
}

fn median(figures: &[[f64; 5]], of: usize) -> f64 {
    let mut all: Vec<f64> = figures.iter().map(|figures| figures[of]).collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

const PLAIN: &str = "no cipher";
const GOCRYPTFS: &str = "gocryptfs";

/// MiB/s of the cipher alone, in one thread, in chunks of this size: what a mount would gain at most if
/// it had none is its time less the time that this takes for the same bytes.
fn cipher(chunk: usize) -> f64 {
    let key = UnboundKey::new(&AES_256_GCM, &[9; 32]).unwrap();
    let key = LessSafeKey::new(key);
    let mut data = vec![7; 64 << 20];
    let started = Instant::now();
    for (index, chunk) in (0u64..).zip(data.chunks_mut(chunk)) {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&index.to_le_bytes());
        let nonce = Nonce::assume_unique_for_key(nonce);
        let aad = Aad::from([0; 41]);
        drop(key.seal_in_place_separate_tag(nonce, aad, chunk).unwrap());
    }
    64.0 / started.elapsed().as_secs_f64()
}

/// Somewhere to write to and to read from, mounted anew each time.
trait Kind {
    fn name(&self) -> String;
    /// The folder, until [`Kind::unmount`].
    fn mount(&mut self) -> Option<PathBuf>;
    fn unmount(&mut self);
}

/// Write, write with fsync, read, random writes, random reads.
fn round(kind: &mut dyn Kind, mib: usize, random_mib: usize) -> Option<[f64; 5]> {
    let piece: Vec<u8> = (0..1 << 20)
        .map(|at: usize| (at ^ (at >> 9)) as u8)
        .collect();
    let places = |count: usize| {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        (0..count).map(move |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % (random_mib as u64 * 256)) * 4096
        })
    };
    let count = random_mib * 256;

    let at = kind.mount()?;
    let mut file = File::create(at.join("sequential")).unwrap();
    let started = Instant::now();
    (0..mib).for_each(|_| file.write_all(&piece).unwrap());
    let written = started.elapsed().as_secs_f64();
    file.sync_all().unwrap();
    let synced = started.elapsed().as_secs_f64();
    drop(file);
    let mut file = File::create(at.join("random")).unwrap();
    (0..random_mib).for_each(|_| file.write_all(&piece).unwrap());
    file.sync_all().unwrap();
    let started = Instant::now();
    places(count).for_each(|place| file.write_all_at(&piece[..4096], place).unwrap());
    file.sync_all().unwrap();
    let random_writes = started.elapsed().as_secs_f64();
    drop(file);
    kind.unmount();

    let at = kind.mount()?;
    let mut buffer = vec![0; 1 << 20];
    let mut file = File::open(at.join("sequential")).unwrap();
    let started = Instant::now();
    (0..mib).for_each(|_| file.read_exact(&mut buffer).unwrap());
    let read = started.elapsed().as_secs_f64();
    assert_eq!(buffer, piece);
    drop(file);
    let file = File::open(at.join("random")).unwrap();
    // Each place asked for by itself, as a database does.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let started = Instant::now();
    places(count).for_each(|place| file.read_exact_at(&mut buffer[..4096], place).unwrap());
    let random_reads = started.elapsed().as_secs_f64();
    drop(file);
    fs::remove_file(at.join("sequential")).unwrap();
    fs::remove_file(at.join("random")).unwrap();
    kind.unmount();
    let (mib, count) = (mib as f64, count as f64 / 1000.0);
    Some([
        mib / written,
        mib / synced,
        mib / read,
        count / random_writes,
        count / random_reads,
    ])
}

struct Below(PathBuf);

impl Kind for Below {
    fn name(&self) -> String {
        "below".into()
    }

    fn mount(&mut self) -> Option<PathBuf> {
        fs::create_dir_all(&self.0).unwrap();
        for entry in fs::read_dir(&self.0).unwrap() {
            let file = File::open(entry.unwrap().path()).unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
        Some(self.0.clone())
    }

    fn unmount(&mut self) {}
}

/// The front end without a cipher.
struct Plain {
    folder: PathBuf,
    at: PathBuf,
    mounted: Option<(Mount, plain::Server)>,
}

impl Plain {
    fn new(root: &Path) -> Self {
        let (folder, at) = (root.join("plain"), root.join("plain.at"));
        fs::create_dir(&folder).unwrap();
        fs::create_dir(&at).unwrap();
        Self {
            folder,
            at,
            mounted: None,
        }
    }
}

impl Kind for Plain {
    fn name(&self) -> String {
        PLAIN.into()
    }

    fn mount(&mut self) -> Option<PathBuf> {
        let (mount, device) = Mount::new(&self.at, false, false).ok()?;
        self.mounted = Some((mount, plain::serve(device, self.folder.clone())));
        Some(self.at.clone())
    }

    fn unmount(&mut self) {
        let (mut mount, server) = self.mounted.take().unwrap();
        mount.unmount().unwrap();
        drop(server);
    }
}

struct OfVault {
    vault: PathBuf,
    at: PathBuf,
    chunk: ChunkSize,
    mounted: Option<(Mount, FuseServer, Arc<Volume>)>,
}

impl OfVault {
    fn new(root: &Path, chunk: ChunkSize) -> Self {
        let name = format!("vault {} KiB", chunk.bytes() >> 10);
        let (vault, at) = (root.join(&name), root.join(format!("{name}.at")));
        fs::create_dir(&at).unwrap();
        let options = CreateOptions {
            chunk,
            padding: Padding::Padme,
        };
        Vault::create(&vault, &kek(), options).unwrap();
        Self {
            vault,
            at,
            chunk,
            mounted: None,
        }
    }
}

fn kek() -> Released {
    Released::take(&mut [7; 32]).unwrap()
}

impl Kind for OfVault {
    fn name(&self) -> String {
        format!("vault, {}k", self.chunk.bytes() >> 10)
    }

    fn mount(&mut self) -> Option<PathBuf> {
        let (mount, device) = Mount::new(&self.at, false, false).ok()?;
        let vault = Vault::open(&self.vault, &kek(), Access::ReadWrite).unwrap();
        let volume = Arc::new(Volume::new(vault, Limits::default()).unwrap());
        let terms = LeaseTerms {
            subject: "bench".into(),
            prefix: String::new(),
            rights: Rights::WRITE,
            expires: None,
        };
        let lease = Arc::new(volume.lease(terms).unwrap());
        let owner = (rustix::process::getuid(), rustix::process::getgid());
        let owner = (owner.0.as_raw(), owner.1.as_raw());
        let server = serve_volume(device, Arc::clone(&volume), lease, owner).unwrap();
        self.mounted = Some((mount, server, volume));
        Some(self.at.clone())
    }

    fn unmount(&mut self) {
        let (mut mount, server, volume) = self.mounted.take().unwrap();
        mount.unmount().unwrap();
        volume.commit().unwrap();
        server.shutdown();
    }
}

struct Gocryptfs {
    cipher: PathBuf,
    at: PathBuf,
}

impl Gocryptfs {
    fn new(root: &Path) -> Option<Self> {
        let (cipher, at) = (root.join("gocryptfs"), root.join("gocryptfs.at"));
        fs::create_dir(&cipher).unwrap();
        fs::create_dir(&at).unwrap();
        let run = |arguments: &[&str]| {
            let mut command = Command::new("gocryptfs");
            command.args(arguments).arg(&cipher).stdin(Stdio::null());
            command.stdout(Stdio::null()).stderr(Stdio::null()).status()
        };
        let made = run(&["-q", "-init", "-scryptn", "10", "-extpass", "echo bench"]);
        made.ok().filter(|status| status.success())?;
        Some(Self { cipher, at })
    }
}

impl Kind for Gocryptfs {
    fn name(&self) -> String {
        GOCRYPTFS.into()
    }

    fn mount(&mut self) -> Option<PathBuf> {
        let mounted = Command::new("gocryptfs")
            .args(["-q", "-extpass", "echo bench"])
            .args([&self.cipher, &self.at])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .status();
        mounted.ok().filter(|status| status.success())?;
        Some(self.at.clone())
    }

    fn unmount(&mut self) {
        Command::new("fusermount3")
            .arg("-u")
            .arg(&self.at)
            .status()
            .unwrap();
    }
}
