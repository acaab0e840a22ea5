//! Memory does not grow with what is stored: the peak of a process that puts, gets, or serves a mount is
//! the same for a short file and for one sixteen times as long, but for its tags (16 bytes a chunk).
//!
//! `CASEMATE_TEST_MEMORY_MIB=64` measures 64 MiB against 1 GiB; by default it is 16 MiB and 256.

#![cfg(feature = "fuse")]
#![allow(clippy::unwrap_used)]

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use vault::fuse::{Mount, serve_volume};
use vault::kek::Released;
use vault::volume::{Limits, Volume};
use vault::{Access, CreateOptions, LeaseTerms, Rights, Vault};

const CHILD: &str = "CASEMATE_TEST_MEASURED";

/// KiB that a process may need more for the long file: its tags, and what an allocator does not give back.
const MORE: u64 = 12 << 10;

#[test]
fn the_memory_of_put_get_and_a_mount_does_not_grow_with_the_file() {
    let mib = std::env::var("CASEMATE_TEST_MEMORY_MIB").ok();
    let mib: u64 = mib.and_then(|mib| mib.parse().ok()).unwrap_or(16);
    for act in ["put", "get", "mount"] {
        let peaks = [mib, 16 * mib].map(|mib| peak(act, mib));
        let [Some(short), Some(long)] = peaks else {
            eprintln!("skipped: {act}: no file system can be mounted here");
            continue;
        };
        println!(
            "{act}: {short} KiB for {mib} MiB, {long} KiB for {}",
            16 * mib
        );
        assert!(long < short + MORE, "{act}: {short} KiB, then {long} KiB");
    }
}

/// The peak of resident memory, in KiB, of a process that does this with so much; `None` if it cannot.
fn peak(act: &str, mib: u64) -> Option<u64> {
    let home = tempfile::tempdir().unwrap();
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_one_that_is_measured"])
        .args(["--ignored", "--nocapture", "--test-threads=1"])
        .env(CHILD, format!("{act}:{mib}:{}", home.path().display()))
        // Else each thread may keep as much of what it gave back as the others use.
        .env("MALLOC_ARENA_MAX", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(child.status.success(), "{act}: {child:?}");
    let peak = said.lines().find_map(|line| line.split_once("peak "));
    peak.map(|(_, peak)| peak.trim().parse().unwrap())
}

#[test]
#[ignore = "the child of the test above"]
fn the_one_that_is_measured() {
    let Ok(told) = std::env::var(CHILD) else {
        return;
    };
    let mut told = told.splitn(3, ':');
    let act = told.next().unwrap();
    let mib: u64 = told.next().unwrap().parse().unwrap();
    let home = PathBuf::from(told.next().unwrap());
    let path = home.join("v");
    let mut vault = Vault::create(&path, &kek(), CreateOptions::default()).unwrap();
    if act == "mount" {
        drop(vault);
        if !mounted(&home, mib) {
            return;
        }
    } else {
        vault.put("a", io::repeat(7).take(mib << 20)).unwrap();
        if act == "get" {
            let len = vault.get("a", io::sink()).unwrap();
            assert_eq!(len, mib << 20);
        }
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    println!("peak {}", peak.unwrap().trim().trim_end_matches(" kB"));
}

/// Has another process write and read a file on a mount that this one serves.
fn mounted(home: &Path, mib: u64) -> bool {
    let at = home.join("at");
    std::fs::create_dir(&at).unwrap();
    let Ok((mut mount, device)) = Mount::new(&at, false, false) else {
        return false;
    };
    // Less than either file, so that both reach it.
    let limits = Limits { unsealed: 8 << 20 };
    let vault = Vault::open(&home.join("v"), &kek(), Access::ReadWrite).unwrap();
    let volume = Arc::new(Volume::new(vault, limits).unwrap());
    let terms = LeaseTerms {
        subject: "test".into(),
        prefix: String::new(),
        rights: Rights::WRITE,
        expires: None,
    };
    let lease = Arc::new(volume.lease(terms).unwrap());
    let owner = (rustix::process::getuid(), rustix::process::getgid());
    let owner = (owner.0.as_raw(), owner.1.as_raw());
    let server = serve_volume(device, Arc::clone(&volume), lease, owner).unwrap();
    let file = at.join("a");
    let dd = |arguments: [String; 3]| {
        let mut command = Command::new("dd");
        command.args(arguments).arg("bs=1M").arg("status=none");
        assert!(command.stdin(Stdio::null()).status().unwrap().success());
    };
    let (count, file) = (format!("count={mib}"), file.display());
    dd(["if=/dev/zero".into(), format!("of={file}"), count.clone()]);
    dd([format!("if={file}"), "of=/dev/null".into(), count]);
    mount.unmount().unwrap();
    volume.commit().unwrap();
    server.shutdown();
    true
}

fn kek() -> Released {
    Released::take(&mut [7; 32]).unwrap()
}
