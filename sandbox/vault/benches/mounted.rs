//! A mounted vault against gocryptfs and the file system below, in turns, in one run.
//!
//! ```text
//! write   256 MiB in pieces of 1 MiB, and fsync          read    the same, after a new mount
//! random  4 KiB at a time, in a file of 64 MiB: writes, then one fsync; reads, after a new mount
//! ```
//!
//! All on the same disk, through the kernel's page cache as any program would; a new mount begins with
//! an empty one. `fsync` is what `write` waits for most on a slow disk, so it is told apart. Needs
//! /dev/fuse; without gocryptfs its column is left out. Without `--bench` there is one small round,
//! which shows that it runs and nothing else.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

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
    let mut kinds: Vec<Box<dyn Kind>> = vec![Box::new(Below(root.path().join("below")))];
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
    println!("medians of {rounds}; MiB/s, then thousands of operations a second");
    println!("                write  +fsync    read   4k write   4k read");
    for (kind, figures) in kinds.iter().zip(&figures).filter(|(_, f)| !f.is_empty()) {
        let median = |of: usize| {
            let mut all: Vec<f64> = figures
                .iter()
                .map(|figures: &[f64; 5]| figures[of])
                .collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        let (name, m) = (kind.name(), [0, 1, 2, 3, 4].map(median));
        println!(
            "{name:<12}{:>9.0}{:>8.0}{:>8.0}{:>11.1}{:>10.1}",
            m[0], m[1], m[2], m[3], m[4]
        );
    }
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
        "gocryptfs".into()
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
