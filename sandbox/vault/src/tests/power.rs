//! Power that goes at any moment, and processes that are killed at any step: what a store kept of
//! what was not synced is up to chance, and the vault opens at the old state or the new one.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Bench, content, read};
use crate::store::faults::Disk;
use crate::volume::Volume;
use crate::{Vault, VaultError};

/// A name, what happens to a vault that holds `kept` and `a`, and what tells that it happened.
type Story = (&'static str, Act, fn(&Vault) -> bool);
type Act = fn(&mut Vault) -> Result<(), VaultError>;

/// Every kind of commit.
const STORIES: [Story; 9] = [
    (
        "put",
        |vault| vault.put("b", &content(3, 60_000)[..]).map(drop),
        |vault| read(vault, "b").is_ok_and(|found| found == content(3, 60_000)),
    ),
    (
        "replace",
        |vault| vault.put("a", &content(4, 100)[..]).map(drop),
        |vault| read(vault, "a").is_ok_and(|found| found == content(4, 100)),
    ),
    (
        "remove",
        |vault| vault.remove("a"),
        |vault| vault.info("a").is_none(),
    ),
    (
        "add a slot",
        |vault| vault.add_slot(&super::slots::released(2)).map(drop),
        |vault| vault.slots().len() == 2,
    ),
    (
        "rename",
        |vault| vault.rename("a", "d/e"),
        |vault| read(vault, "d/e").is_ok_and(|found| found == content(2, 9000)),
    ),
    (
        "rekey",
        |vault| vault.rekey(&[&Bench::new().kek(), &super::slots::released(2)]),
        |vault| vault.slots().len() == 2 && vault.verify(|_| ()).is_ok(),
    ),
    (
        "begin a rotation",
        |vault| vault.begin_rotation().map(drop),
        |vault| vault.rotation().is_some(),
    ),
    (
        "rotate",
        |vault| {
            vault.begin_rotation()?;
            vault.rotate_some(u64::MAX).map(drop)
        },
        |vault| vault.index()["a"].extents[0].key_epoch == 2,
    ),
    (
        "write through a volume",
        |vault| {
            Volume::while_test(vault, |volume| {
                // Into the middle of one file, so that it comes to have two extents, and a new one.
                volume.put_at("a", &content(5, 2000), 5000);
                volume.put_at("c", &content(6, 9000), 0);
                volume.commit()
            })
        },
        |vault| {
            let mut a = content(2, 9000);
            a[5000..7000].copy_from_slice(&content(5, 2000));
            read(vault, "a").is_ok_and(|found| found == a)
                && read(vault, "c").is_ok_and(|found| found == content(6, 9000))
        },
    ),
];

fn prepared() -> (Bench, Vault) {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault
        .put_all([
            ("kept", &content(1, 5000)[..]),
            ("a", &content(2, 9000)[..]),
        ])
        .unwrap();
    (bench, vault)
}

/// Checks what a death left: `Some(true)` if the new state, `Some(false)` if the old one.
fn left(bench: &Bench, happened: fn(&Vault) -> bool, case: &str) -> bool {
    let found = bench
        .open()
        .unwrap_or_else(|e| panic!("{case}: does not open: {e:?}"));
    assert_eq!(read(&found, "kept").unwrap(), content(1, 5000), "{case}");
    let new = happened(&found);
    let old = !new
        && found.list().len() == 2
        && found.slots().len() == 1
        && read(&found, "a").is_ok_and(|found| found == content(2, 9000));
    assert!(old != new, "{case}: neither the old state nor the new one");
    drop(found);
    // The next writer cleans up, and goes on.
    let mut vault = bench
        .write()
        .unwrap_or_else(|e| panic!("{case}: cannot be written: {e:?}"));
    assert_eq!(vault.verify(|_| ()).unwrap().orphans, 0, "{case}");
    vault.put("later", &b"x"[..]).unwrap();
    drop(vault);
    assert_eq!(read(&bench.open().unwrap(), "later").unwrap(), b"x");
    new
}

#[test]
fn no_power_cut_leaves_anything_but_the_old_state_or_the_new_one() {
    for (name, act, happened) in STORIES {
        let (bench, mut vault) = prepared();
        let root = bench.path();
        let files: Vec<_> = bench
            .files()
            .into_iter()
            .map(|(path, bytes)| {
                let inode = path.metadata().unwrap().ino();
                (path.strip_prefix(&root).unwrap().to_owned(), inode, bytes)
            })
            .collect();
        vault.shared().store.faults.record();
        act(&mut vault).unwrap();
        let steps = vault.shared().store.faults.steps();
        drop(vault);

        let mut disk = Disk::new(&files);
        let (mut olds, mut news) = (0, 0);
        for at in 0..=steps.len() {
            for seed in 0..3 {
                // Nothing, everything, and what chance keeps.
                let mut dice = Dice(seed * 1000 + at as u64 + 1);
                let image = disk.after_power_cut(|| match seed {
                    0 => false,
                    1 => true,
                    _ => dice.roll(),
                });
                let image: Vec<(PathBuf, Vec<u8>)> = image
                    .into_iter()
                    .map(|(path, bytes)| (root.join(path), bytes))
                    .collect();
                bench.restore(&image);
                let case = format!("{name}, {at} of {} steps, seed {seed}", steps.len());
                let new = left(&bench, happened, &case);
                assert!(new || at < steps.len(), "{case}: acknowledged and lost");
                (olds, news) = (olds + usize::from(!new), news + usize::from(new));
            }
            if let Some(step) = steps.get(at) {
                disk.apply(step);
            }
        }
        assert!(olds > 3 && news > 3, "{name}: {olds} old, {news} new");
    }
}

/// Numbers that look random, the same in every run (xorshift64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 63 == 1
    }
}

const CHILD: &str = "CASEMATE_TEST_KILLED_WRITER";

#[test]
fn a_writer_killed_at_any_step_leaves_the_old_state_or_the_new_one() {
    for (story, (name, _, happened)) in STORIES.iter().enumerate() {
        let (bench, vault) = prepared();
        drop(vault);
        let before = bench.files();
        let (mut olds, mut news) = (0, 0);
        for steps in 0.. {
            bench.restore(&before);
            let dir = bench.path();
            let child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "tests::power::the_writer_that_is_killed"])
                .args(["--ignored", "--nocapture", "--test-threads=1"])
                .env(CHILD, format!("{story}:{steps}:{}", dir.display()))
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let killed = child.status.signal() == Some(9);
            assert!(killed || child.status.success(), "{child:?}");
            let new = left(&bench, *happened, &format!("{name}, killed at {steps}"));
            assert!(new || killed, "{name}: acknowledged and lost");
            (olds, news) = (olds + usize::from(!new), news + usize::from(new));
            if !killed {
                break;
            }
        }
        assert!(olds >= 4 && news >= 3, "{name}: {olds} old, {news} new");
    }
}

#[test]
#[ignore = "the child of `a_writer_killed_at_any_step_leaves_the_old_state_or_the_new_one`"]
fn the_writer_that_is_killed() {
    let Ok(told) = std::env::var(CHILD) else {
        return;
    };
    let mut told = told.splitn(3, ':');
    let story: usize = told.next().unwrap().parse().unwrap();
    let steps = told.next().unwrap().parse().unwrap();
    let path = PathBuf::from(told.next().unwrap());
    let mut vault = Vault::open(&path, &Bench::new().kek(), crate::Access::ReadWrite).unwrap();
    vault.shared().store.faults.kill_after(steps);
    STORIES[story].1(&mut vault).unwrap();
}

#[test]
fn a_snapshot_or_an_erasure_that_is_killed_leaves_a_whole_vault_or_none() {
    let (bench, vault) = prepared();
    drop(vault);
    let kept = bench.dir.path().join("kept");
    let mut dice = Dice(1);
    let mut found = 0;
    for round in 0..8 {
        std::fs::create_dir_all(&kept).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::power::the_keeper_that_is_killed"])
            .args(["--ignored", "--nocapture", "--test-threads=1"])
            .env(
                CHILD,
                format!("{}:{}", bench.path().display(), kept.display()),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while !lines.next().unwrap().unwrap().contains("ready") {}
        // Wherever it is by then: the outcome is the same.
        for _ in 0..(0..14).fold(0, |sum, bit| sum | u32::from(dice.roll()) << bit) {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let mut all: Vec<(u32, PathBuf)> = std::fs::read_dir(&kept)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter_map(|path| {
                let number = path.file_name()?.to_str()?.strip_prefix("s-")?.parse();
                Some((number.ok()?, path))
            })
            .collect();
        all.sort();
        let newest = all.last().map(|(number, _)| *number);
        for (number, path) in all {
            let opened = Vault::open(&path, &bench.kek(), crate::Access::ReadOnly);
            if let Ok(vault) = opened {
                vault.verify(|_| ()).unwrap();
                assert_eq!(
                    read(&vault, "a").unwrap(),
                    content(2, 9000),
                    "round {round}"
                );
                found += 1;
                continue;
            }
            // It was being erased, which can be done to its end.
            assert!(Some(number) < newest, "round {round}: {opened:?}");
            let erased = Vault::erase(&path);
            let gone = matches!(erased, Ok(()) | Err(VaultError::NotAVault));
            assert!(gone, "round {round}: {erased:?}");
        }
        std::fs::remove_dir_all(&kept).unwrap();
    }
    assert!(found > 0, "it was always killed before the first snapshot");
}

#[test]
#[ignore = "the child of `a_snapshot_or_an_erasure_that_is_killed_leaves_a_whole_vault_or_none`"]
fn the_keeper_that_is_killed() {
    let Ok(told) = std::env::var(CHILD) else {
        return;
    };
    let (path, kept) = told.split_once(':').unwrap();
    let kept = PathBuf::from(kept);
    let bench = Bench::new();
    let vault = Vault::open(path.as_ref(), &bench.kek(), crate::Access::ReadWrite).unwrap();
    println!("ready");
    for number in 0.. {
        vault.snapshot(&kept.join(format!("s-{number}"))).unwrap();
        if let Some(before) = u32::checked_sub(number, 1) {
            Vault::erase(&kept.join(format!("s-{before}"))).unwrap();
        }
    }
}
