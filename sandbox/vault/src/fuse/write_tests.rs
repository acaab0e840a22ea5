#![allow(clippy::unwrap_used)]

use std::fs::{self, File, Permissions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::tests::mount;
use super::{FuseServer, serve_volume};
use crate::tests::{Bench, content, read, terms};
use crate::volume::{Limits, Volume};
use crate::{Lease, LeaseTerms, Rights};

/// A volume mounted in a temporary directory; unmounted when dropped.
struct Mounted {
    bench: Bench,
    at: PathBuf,
    volume: Arc<Volume>,
    lease: Arc<Lease>,
    server: Option<FuseServer>,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
    }
}

impl Mounted {
    /// Unmounts, commits, and gives the vault's directory back.
    fn end(mut self) -> Bench {
        rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::empty()).unwrap();
        self.volume.commit().unwrap();
        self.server.take().unwrap().shutdown();
        self.lease.revoke();
        self.volume.close();
        std::mem::replace(&mut self.bench, Bench::new())
    }
}

fn mounted() -> Option<Mounted> {
    mounted_with(Rights::WRITE)
}

fn mounted_with(rights: Rights) -> Option<Mounted> {
    let bench = Bench::new();
    bench.create().put("a", &content(1, 30_000)[..]).unwrap();
    let at = bench.dir.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let device = mount(&at)?;
    let limits = Limits { unsealed: 1 << 20 };
    let volume = Arc::new(Volume::new(bench.write().unwrap(), limits).unwrap());
    let terms = LeaseTerms { rights, ..terms() };
    let lease = Arc::new(volume.lease(terms).unwrap());
    let owner = (rustix::process::getuid(), rustix::process::getgid());
    let owner = (owner.0.as_raw(), owner.1.as_raw());
    let server = serve_volume(device, Arc::clone(&volume), Arc::clone(&lease), owner).unwrap();
    Some(Mounted {
        bench,
        at,
        volume,
        lease,
        server: Some(server),
    })
}

#[test]
fn what_is_written_to_a_mount_is_what_is_read_and_what_the_vault_keeps() {
    let Some(mounted) = mounted() else { return };
    let at = |name: &str| mounted.at.join(name);
    assert_eq!(fs::read(at("a")).unwrap(), content(1, 30_000));
    fs::create_dir_all(at("x/y")).unwrap();
    fs::create_dir(at("empty")).unwrap();
    let mut file = File::options()
        .append(true)
        .create(true)
        .open(at("x/log"))
        .unwrap();
    for n in 0..100 {
        file.write_all(&content(n, 999)).unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(at("a"))
        .unwrap();
    file.seek(SeekFrom::Start(29_990)).unwrap();
    file.write_all(&content(9, 100)).unwrap();
    file.write_all_at(b"middle", 5000).unwrap();
    file.set_len(40_000).unwrap();
    let mut a = content(1, 30_000);
    a.truncate(29_990);
    a.extend(content(9, 100));
    a[5000..5006].copy_from_slice(b"middle");
    a.resize(40_000, 0);
    let mut found = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut found).unwrap();
    assert_eq!(found, a);
    file.set_len(10).unwrap();
    assert_eq!(fs::read(at("a")).unwrap(), a[..10]);
    drop(file);

    fs::write(at("new"), b"new").unwrap();
    fs::rename(at("new"), at("x/log")).unwrap();
    assert_eq!(fs::read(at("x/log")).unwrap(), b"new");
    fs::set_permissions(at("x/log"), Permissions::from_mode(0o750)).unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_234_567_890_123_456_789);
    File::open(at("x/log")).unwrap().set_modified(then).unwrap();
    fs::hard_link(at("x/log"), at("hard")).unwrap();
    symlink("x/log", at("soft")).unwrap();
    assert_eq!(fs::read(at("soft")).unwrap(), b"new");
    let meta = fs::metadata(at("hard")).unwrap();
    assert_eq!(
        (meta.nlink(), meta.mode(), meta.modified().unwrap()),
        (2, 0o100_750, then)
    );
    assert_eq!(
        fs::remove_dir(at("x")).unwrap_err().kind(),
        ErrorKind::DirectoryNotEmpty
    );
    fs::remove_dir(at("x/y")).unwrap();
    let mut names: Vec<_> = fs::read_dir(&mounted.at)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["a", "empty", "hard", "soft", "x"]);
    let usage = mounted.lease.usage();
    assert!(usage.writes > 100 && usage.written >= 99_900, "{usage:?}");

    let bench = mounted.end();
    let vault = bench.open().unwrap();
    assert_eq!(read(&vault, "x/log").unwrap(), b"new");
    assert_eq!(read(&vault, "hard").unwrap(), b"new");
    assert_eq!(read(&vault, "a").unwrap(), a[..10]);
    assert_eq!(
        vault.info("x/log").unwrap().modified,
        1_234_567_890_123_456_789
    );
    assert_eq!(vault.info("x/log").unwrap().mode, 0o750);
    assert_eq!(vault.verify(|_| ()).unwrap().orphans, 0);
}

#[test]
fn a_file_that_is_open_outlives_its_name() {
    let Some(mounted) = mounted() else { return };
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(mounted.at.join("a"))
        .unwrap();
    fs::remove_file(mounted.at.join("a")).unwrap();
    file.sync_all().unwrap();
    file.write_all_at(b"still", 3).unwrap();
    let mut found = Vec::new();
    file.read_to_end(&mut found).unwrap();
    let mut wanted = content(1, 30_000);
    wanted[3..8].copy_from_slice(b"still");
    assert_eq!(found, wanted);
    assert!(fs::metadata(mounted.at.join("a")).is_err());
    drop(file);
    assert!(mounted.end().open().unwrap().list().is_empty());
}

#[test]
fn after_revocation_nothing_is_written_through_open_descriptors_and_what_was_lost_is_told() {
    let Some(mounted) = mounted() else { return };
    let file = File::options()
        .read(true)
        .write(true)
        .open(mounted.at.join("a"))
        .unwrap();
    file.write_all_at(b"kept", 0).unwrap();
    file.sync_all().unwrap();
    file.write_all_at(b"lost", 0).unwrap();
    mounted.lease.revoke();
    let refused = file.write_at(b"late", 0).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    assert!(file.read_at(&mut [0; 4], 0).is_err());
    assert!(file.sync_all().is_err());
    assert!(fs::write(mounted.at.join("b"), b"x").is_err());
    let lost = mounted.volume.uncommitted();
    assert_eq!((lost.changes, lost.bytes), (1, 4));
    let vault = mounted
        .bench
        .write()
        .expect("the vault was given up with the lease");
    assert_eq!(read(&vault, "a").unwrap()[..4], *b"kept");
}

#[test]
fn a_lease_without_the_right_to_write_writes_nothing() {
    let Some(mounted) = mounted_with(Rights::READ) else {
        return;
    };
    let denied = |e: std::io::Error| assert_eq!(e.kind(), ErrorKind::PermissionDenied);
    assert_eq!(fs::read(mounted.at.join("a")).unwrap(), content(1, 30_000));
    denied(fs::write(mounted.at.join("new"), b"x").unwrap_err());
    denied(
        File::options()
            .append(true)
            .open(mounted.at.join("a"))
            .map(drop)
            .unwrap_err(),
    );
    denied(fs::remove_file(mounted.at.join("a")).unwrap_err());
    denied(fs::create_dir(mounted.at.join("d")).unwrap_err());
    denied(fs::set_permissions(mounted.at.join("a"), Permissions::from_mode(0o600)).unwrap_err());
    assert_eq!(mounted.volume.uncommitted().changes, 0);
}

/// Runs a script with the mount as its working directory; `None` if there is no such program.
fn run(mounted: &Mounted, program: &str, arguments: &[&str]) -> Option<String> {
    let run = Command::new(program)
        .args(arguments)
        .current_dir(&mounted.at)
        .env("HOME", mounted.bench.dir.path())
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .stdin(Stdio::null())
        .output();
    let Ok(run) = run else {
        eprintln!("skipped: `{program}` cannot be run");
        return None;
    };
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    let errors = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(run.status.success(), "{program}: {said}{errors}");
    Some(said)
}

const SQLITE: &str = "
import sqlite3, sys
for mode in ('delete', 'wal'):
    db = sqlite3.connect(mode + '.db')
    assert db.execute('pragma journal_mode=' + mode).fetchone()[0] == mode
    db.execute('create table t (n integer primary key, b blob)')
    for n in range(10):
        with db:
            db.executemany('insert into t (b) values (?)', [(bytes([n]) * 700,)] * 20)
    with db:
        db.execute('delete from t where n % 3 = 0')
    db.execute('vacuum')
    assert db.execute('pragma integrity_check').fetchone()[0] == 'ok'
    assert db.execute('select count(*) from t').fetchone()[0] == 134
    db.close()
";

#[test]
fn sqlite_runs_on_a_mounted_vault() {
    let Some(mounted) = mounted() else { return };
    if run(&mounted, "python3", &["-c", SQLITE]).is_none() {
        return;
    }
    let bench = mounted.end();
    let vault = bench.open().unwrap();
    let database = read(&vault, "wal.db").unwrap();
    assert!(database.starts_with(b"SQLite format 3\0"));
    assert_eq!(vault.verify(|_| ()).unwrap().orphans, 0);
}

const GIT: &str = "
set -e
git init -q origin
cd origin
git config user.name n; git config user.email e
mkdir d
for n in 1 2 3 4 5 6 7 8; do echo $n > d/$n; ln -sf d/$n link; git add .; git commit -qm $n; done
cd ..
git clone -q origin clone
git clone -q --no-local origin packed
cd packed
git config user.name n; git config user.email e
git checkout -qb side HEAD~3; echo side > side; git add side; git commit -qm side
git merge -q -m merge origin/HEAD; git gc -q; git fsck --strict
git log --oneline | wc -l
";

#[test]
fn git_runs_on_a_mounted_vault() {
    let Some(mounted) = mounted() else { return };
    let Some(said) = run(&mounted, "sh", &["-c", GIT]) else {
        return;
    };
    assert_eq!(said.trim(), "10");
    let bench = mounted.end();
    assert_eq!(bench.open().unwrap().verify(|_| ()).unwrap().orphans, 0);
}
