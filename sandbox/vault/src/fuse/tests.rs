#![allow(clippy::unwrap_used)]

use std::ffi::CString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use super::{FuseServer, ServeError, serve};
use crate::tests::{Bench, content, terms};
use crate::{Damage, Expiry, Lease, LeaseTerms, Part, Vault};

/// A lease mounted in a temporary directory; unmounted when dropped.
struct Mounted {
    _bench: Bench,
    at: PathBuf,
    lease: Arc<Lease>,
    server: Option<FuseServer>,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Mounts /dev/fuse, as a sandbox's init does; `None`, with a message, where that is not allowed.
pub(super) fn mount(at: &Path) -> Option<OwnedFd> {
    let device = match fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
    {
        Ok(device) => device,
        Err(e) => {
            eprintln!("skipped: /dev/fuse cannot be opened: {e}");
            return None;
        }
    };
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
        device.as_raw_fd()
    );
    let data = CString::new(data).unwrap();
    let flags = rustix::mount::MountFlags::NODEV | rustix::mount::MountFlags::NOSUID;
    match rustix::mount::mount("vault", at, "fuse.vault", flags, data.as_c_str()) {
        Ok(()) => Some(device.into()),
        Err(e) => {
            eprintln!("skipped: this process may not mount: {e}");
            None
        }
    }
}

fn mounted(expires: Option<Expiry>) -> Option<Mounted> {
    mounted_after(expires, |_, _| ())
}

/// Mounts a lease of a vault after something was done to the vault.
fn mounted_after(expires: Option<Expiry>, act: impl FnOnce(&Bench, &Vault)) -> Option<Mounted> {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &content(1, 300_000)[..]).unwrap();
    vault.put("dir/b", &content(2, 10)[..]).unwrap();
    vault.put("dir/empty", &b""[..]).unwrap();
    act(&bench, &vault);
    let at = bench.dir.path().join("mnt");
    fs::create_dir(&at).unwrap();
    let device = mount(&at)?;
    let lease = Arc::new(vault.lease(LeaseTerms { expires, ..terms() }).unwrap());
    let server = serve(device, Arc::clone(&lease), (1000, 1001)).unwrap();
    Some(Mounted {
        _bench: bench,
        at,
        lease,
        server: Some(server),
    })
}

#[test]
fn a_served_lease_reads_as_files() {
    let Some(mounted) = mounted(None) else { return };
    assert_eq!(fs::read(mounted.at.join("a")).unwrap(), content(1, 300_000));
    assert_eq!(fs::read(mounted.at.join("dir/b")).unwrap(), content(2, 10));
    assert_eq!(fs::read(mounted.at.join("dir/empty")).unwrap(), b"");
    let mut names: Vec<_> = fs::read_dir(mounted.at.join("dir"))
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["b", "empty"]);
    let meta = fs::metadata(mounted.at.join("a")).unwrap();
    assert_eq!(
        (meta.len(), meta.uid(), meta.gid(), meta.mode() & 0o777),
        (300_000, 1000, 1001, 0o444)
    );
    let file = File::open(mounted.at.join("a")).unwrap();
    let mut buf = [0; 1000];
    file.read_exact_at(&mut buf, 123_456).unwrap();
    assert_eq!(buf, content(1, 300_000)[123_456..124_456]);
    assert_eq!(
        fs::metadata(mounted.at.join("none")).unwrap_err().kind(),
        ErrorKind::NotFound
    );
    assert!(mounted.lease.usage().bytes >= 300_010);
}

#[test]
fn nothing_can_be_written() {
    let Some(mounted) = mounted(None) else { return };
    let read_only = |e: std::io::Error| assert_eq!(e.kind(), ErrorKind::ReadOnlyFilesystem);
    read_only(fs::write(mounted.at.join("new"), b"x").unwrap_err());
    read_only(
        fs::OpenOptions::new()
            .append(true)
            .open(mounted.at.join("a"))
            .unwrap_err(),
    );
    read_only(fs::remove_file(mounted.at.join("a")).unwrap_err());
    read_only(fs::create_dir(mounted.at.join("d")).unwrap_err());
}

#[test]
fn after_revocation_open_descriptors_and_cached_pages_yield_nothing() {
    let Some(mounted) = mounted(None) else { return };
    let mut file = File::open(mounted.at.join("a")).unwrap();
    let mut all = Vec::new();
    file.read_to_end(&mut all).unwrap();
    assert_eq!(all.len(), 300_000);
    mounted.lease.revoke();
    let mut byte = [0];
    for offset in [0, 100_000, 299_999] {
        let refused = file.read_at(&mut byte, offset).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "at {offset}");
    }
    assert!(File::open(mounted.at.join("a")).is_err());
    assert!(fs::metadata(mounted.at.join("dir/b")).is_err());
    assert!(fs::read_dir(&mounted.at).is_err());
}

#[test]
fn a_new_lease_gives_names_back_but_no_descriptor_of_the_old_one() {
    let mut later = None;
    let mounted = mounted_after(None, |_, vault| later = Some(vault.lease(terms()).unwrap()));
    let Some(mut mounted) = mounted else { return };
    let later = Arc::new(later.unwrap());
    let server = mounted.server.as_mut().unwrap();
    assert!(
        matches!(server.renew(Arc::clone(&later)), Err(ServeError::Held)),
        "two leases at once"
    );
    let old = File::open(mounted.at.join("a")).unwrap();
    let mut byte = [0];
    old.read_exact_at(&mut byte, 0).unwrap();
    let before = old.metadata().unwrap().ino();
    mounted.lease.revoke();
    assert!(File::open(mounted.at.join("a")).is_err());
    server.renew(Arc::clone(&later)).unwrap();
    assert_eq!(fs::read(mounted.at.join("a")).unwrap(), content(1, 300_000));
    assert_eq!(fs::read(mounted.at.join("dir/b")).unwrap(), content(2, 10));
    assert_ne!(
        fs::metadata(mounted.at.join("a")).unwrap().ino(),
        before,
        "the kernel could take old pages for new ones"
    );
    assert!(
        old.read_at(&mut byte, 0).is_err(),
        "an old descriptor reads"
    );
    later.revoke();
    assert!(fs::read(mounted.at.join("a")).is_err());
}

/// A process must not fault in pages that it serves itself: it would wait for its own answer with its
/// own memory locked. So what maps is a process of its own, as a workload is.
#[test]
fn after_revocation_mapped_pages_are_gone() {
    let Some(mounted) = mounted(None) else { return };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "fuse::tests::a_process_that_maps",
            "--ignored",
            "--nocapture",
        ])
        .env("VAULT_TEST_MAPPED", mounted.at.join("a"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert!(said.any(|line| line.ends_with("mapped")));
    mounted.lease.revoke();
    child.stdin.take().unwrap().write_all(b"go on\n").unwrap();
    assert!(said.any(|line| line.ends_with("refused")));
    child.wait().unwrap();
}

#[test]
#[ignore = "run by the test above, in a process of its own"]
fn a_process_that_maps() {
    let Some(path) = std::env::var_os("VAULT_TEST_MAPPED") else {
        return;
    };
    let file = File::open(path).unwrap();
    // It is looked at through /proc only.
    let map = crate::sys::map_shared(&file, 8192).unwrap();
    let memory = File::open("/proc/self/mem").unwrap();
    let mut bytes = [0; 4096];
    // Reading through /proc faults the page in, and fails with EIO where a load gets SIGBUS.
    memory.read_exact_at(&mut bytes, map).unwrap();
    assert_eq!(bytes, content(1, 300_000)[..4096]);
    println!("mapped");
    std::io::stdin().read_line(&mut String::new()).unwrap();
    let refused = memory.read_exact_at(&mut bytes, map).is_err();
    println!("{}", if refused { "refused" } else { "still there" });
}

#[test]
fn an_expired_lease_is_taken_back_without_anybody_asking() {
    let started = Instant::now();
    let clock = Arc::new(move || started.elapsed());
    let expires = Expiry {
        at: Duration::from_secs(3),
        clock,
    };
    let Some(mounted) = mounted(Some(expires)) else {
        return;
    };
    let file = File::open(mounted.at.join("dir/b")).unwrap();
    let mut byte = [0];
    assert_eq!(file.read_at(&mut byte, 0).unwrap(), 1);
    let refused = loop {
        match file.read_at(&mut byte, 0) {
            Ok(_) => assert!(started.elapsed() < Duration::from_secs(30), "still served"),
            Err(error) => break error,
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    assert!(
        started.elapsed() >= Duration::from_secs(3),
        "taken back too early"
    );
}

#[test]
fn after_shutdown_everything_fails_although_it_is_mounted() {
    let Some(mut mounted) = mounted(None) else {
        return;
    };
    let file = File::open(mounted.at.join("a")).unwrap();
    let mut byte = [0];
    assert_eq!(file.read_at(&mut byte, 0).unwrap(), 1);
    mounted.server.take().unwrap().shutdown();
    assert!(file.read_at(&mut byte, 0).is_err());
    assert!(fs::read_dir(&mounted.at).is_err());
}

#[test]
fn unmounting_ends_the_service() {
    let Some(mounted) = mounted(None) else { return };
    let server = mounted.server.as_ref().unwrap();
    assert!(server.is_serving());
    rustix::mount::unmount(&mounted.at, rustix::mount::UnmountFlags::empty()).unwrap();
    let until = Instant::now() + Duration::from_secs(5);
    while server.is_serving() {
        assert!(Instant::now() < until, "still serving");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_descriptor_that_is_not_mounted_is_refused() {
    let bench = Bench::new();
    let vault = bench.create();
    let lease = Arc::new(vault.lease(terms()).unwrap());
    let null = File::open("/dev/null").unwrap();
    let refused = serve(null.into(), lease, (0, 0));
    assert!(matches!(refused, Err(ServeError::NotMounted(_))));
}

/// Two damaged objects: one in its 60th chunk, one in its header.
fn damaged() -> Option<Mounted> {
    mounted_after(None, |bench, vault| {
        bench.damage(vault, "a", 96 + 60 * 4096);
        bench.damage(vault, "dir/b", 70);
    })
}

#[test]
fn damage_met_while_serving_is_told_and_the_reader_gets_eio() {
    let Some(mounted) = damaged() else { return };
    let (told, damage) = channel();
    mounted
        .lease
        .on_damage(move |damage| told.send(damage.clone()).unwrap());
    let file = File::open(mounted.at.join("a")).unwrap();
    let mut byte = [0];
    for _ in 0..3 {
        let refused = file.read_at(&mut byte, 60 * 4096).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EIO));
        let refused = File::open(mounted.at.join("dir/b")).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EIO));
    }
    let wait = Duration::from_secs(5);
    let first = damage.recv_timeout(wait).unwrap();
    assert_eq!(
        first,
        Damage {
            object: "a".to_owned(),
            what: Part::Chunk(60),
        }
    );
    let second = damage.recv_timeout(wait).unwrap();
    assert_eq!((&*second.object, second.what), ("dir/b", Part::Object));
    // What is whole still reads, and nothing is told twice.
    assert_eq!(file.read_at(&mut byte, 0).unwrap(), 1);
    drop(file);
    drop(mounted);
    assert!(damage.recv().is_err());
}

#[test]
fn whoever_is_told_of_damage_while_serving_may_revoke() {
    let Some(mounted) = damaged() else { return };
    let (told, done) = channel();
    let lease = Arc::downgrade(&mounted.lease);
    mounted.lease.on_damage(move |_| {
        lease.upgrade().unwrap().revoke();
        told.send(()).unwrap();
    });
    let file = File::open(mounted.at.join("a")).unwrap();
    let mut byte = [0];
    assert!(file.read_at(&mut byte, 60 * 4096).is_err());
    done.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(
        file.read_at(&mut byte, 0).unwrap_err().kind(),
        ErrorKind::PermissionDenied
    );
}
