//! A writer that dies at any step leaves the old state or the new one.

use std::path::PathBuf;

use super::{Bench, content, read};
use crate::{Vault, VaultError};

/// Lets the writer do `steps` steps of `act` and then die; `true` if it got through.
fn die_after(
    vault: &mut Vault,
    steps: i64,
    act: impl FnOnce(&mut Vault) -> Result<(), VaultError>,
) -> bool {
    vault.shared().store.faults.die_after(steps);
    act(vault).is_ok()
}

/// Kills a writer at every step of an action, and looks at what each death leaves.
fn at_every_step(
    act: impl Fn(&mut Vault) -> Result<(), VaultError>,
    is_old: impl Fn(&Vault) -> bool,
    is_new: impl Fn(&Vault) -> bool,
) {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("kept", &content(1, 5000)[..]).unwrap();
    vault.put("a", &content(2, 9000)[..]).unwrap();
    drop(vault);
    let before = bench.files();
    let (mut olds, mut news) = (0, 0);
    for steps in 0.. {
        bench.restore(&before);
        let mut vault = bench.write().unwrap();
        let through = die_after(&mut vault, steps, &act);
        drop(vault);

        let found = bench.open().unwrap();
        assert_eq!(
            read(&found, "kept").unwrap(),
            content(1, 5000),
            "step {steps}"
        );
        let (old, new) = (is_old(&found), is_new(&found));
        assert!(
            old != new,
            "step {steps} left neither the old state nor the new one"
        );
        assert!(new || !through, "step {steps} was acknowledged and is lost");
        (olds, news) = (olds + usize::from(old), news + usize::from(new));
        drop(found);

        // The next writer cleans up and goes on.
        let mut vault = bench.write().unwrap();
        assert_eq!(vault.verify(|_| ()).unwrap().orphans, 0, "step {steps}");
        vault.put("later", &b"x"[..]).unwrap();
        drop(vault);
        assert_eq!(read(&bench.open().unwrap(), "later").unwrap(), b"x");
        // Through, and nothing was left to die at.
        if through && steps > 40 {
            break;
        }
    }
    assert!(
        olds >= 6 && news >= 3,
        "{olds} deaths before and {news} after the commit"
    );
}

#[test]
fn a_put_happens_whole_or_not_at_all() {
    at_every_step(
        |vault| vault.put("b", &content(3, 700_000)[..]).map(drop),
        |vault| vault.info("b").is_none() && vault.list().len() == 2,
        |vault| read(vault, "b").is_ok_and(|found| found == content(3, 700_000)),
    );
}

#[test]
fn a_replacement_happens_whole_or_not_at_all() {
    at_every_step(
        |vault| vault.put("a", &content(4, 100)[..]).map(drop),
        |vault| read(vault, "a").is_ok_and(|found| found == content(2, 9000)),
        |vault| read(vault, "a").is_ok_and(|found| found == content(4, 100)),
    );
}

#[test]
fn a_removal_happens_whole_or_not_at_all() {
    at_every_step(
        |vault| vault.remove("a"),
        |vault| read(vault, "a").is_ok_and(|found| found == content(2, 9000)),
        |vault| vault.info("a").is_none() && vault.list().len() == 1,
    );
}

#[test]
fn a_manifest_torn_at_any_sector_leaves_the_old_state() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"old"[..]).unwrap();
    let before = bench.files();
    vault.put("a", &b"new"[..]).unwrap();
    let slot = bench
        .path()
        .join(crate::format::manifest::file(vault.generation()));
    drop(vault);
    let after = bench.files();
    let bytes_of = |files: &[(PathBuf, Vec<u8>)]| {
        files
            .iter()
            .find(|(path, _)| *path == slot)
            .map(|(_, bytes)| bytes.clone())
            .unwrap()
    };
    let (old, new) = (bytes_of(&before), bytes_of(&after));
    // Before anything was removed, the store holds the files of both states.
    let mut both = before;
    both.extend(after);
    for sectors in 0..=8 {
        bench.restore(&both);
        let torn = [&new[..sectors * 512], &old[sectors * 512..]].concat();
        std::fs::write(&slot, torn).unwrap();
        let expected: &[u8] = if sectors == 8 { b"new" } else { b"old" };
        assert_eq!(
            read(&bench.open().unwrap(), "a").unwrap(),
            expected,
            "{sectors} sectors"
        );
    }
}

#[test]
fn a_failed_commit_poisons_the_handle_but_not_the_vault() {
    let bench = Bench::new();
    let mut vault = bench.create();
    vault.put("a", &b"old"[..]).unwrap();
    for steps in 0..30 {
        vault.shared().store.faults.die_after(steps);
        let failed = vault.put("a", &b"newer"[..]);
        vault.shared().store.faults.die_after(i64::MAX);
        match (failed, vault.put("b", &b""[..])) {
            (Err(_), Err(VaultError::Poisoned)) => {
                drop(vault);
                assert!(bench.open().is_ok());
                return;
            }
            (Err(_), after) => assert!(after.is_ok(), "step {steps}: {after:?}"),
            (Ok(_), _) => break,
        }
    }
    panic!("no failure poisoned the handle");
}
