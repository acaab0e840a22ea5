use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Bench, content, read};
use crate::anchor::{AnchorError, FileAnchor, FreshnessAnchor};
use crate::{Access, CreateOptions, OpenOptions, Vault, VaultError};

fn anchored(bench: &Bench, access: Access) -> OpenOptions {
    let anchor: Arc<dyn FreshnessAnchor> =
        Arc::new(FileAnchor::new(bench.dir.path().join("anchor")));
    OpenOptions {
        access,
        anchor: Some(anchor),
        ..OpenOptions::default()
    }
}

fn create(bench: &Bench) -> Vault {
    let open = anchored(bench, Access::ReadWrite);
    Vault::create_with(&bench.path(), &bench.kek(), CreateOptions::default(), open).unwrap()
}

fn open(bench: &Bench, access: Access) -> Result<Vault, VaultError> {
    Vault::open_with(&bench.path(), &bench.kek(), anchored(bench, access))
}

#[test]
fn a_store_put_back_as_a_whole_is_noticed_by_the_anchor() {
    let bench = Bench::new();
    let mut vault = create(&bench);
    vault.put("a", &b"old"[..]).unwrap();
    let old = bench.files();
    vault.put("a", &b"new"[..]).unwrap();
    drop(vault);
    assert_eq!(
        read(&open(&bench, Access::ReadOnly).unwrap(), "a").unwrap(),
        b"new"
    );
    bench.restore(&old);
    // Without an anchor nobody could know.
    assert_eq!(read(&bench.open().unwrap(), "a").unwrap(), b"old");
    let refused = open(&bench, Access::ReadOnly);
    assert!(matches!(
        refused,
        Err(VaultError::RolledBack {
            found: 2,
            expected: 3
        })
    ));
}

#[test]
fn a_writer_that_died_before_the_anchor_moved_is_finished_by_the_next() {
    let bench = Bench::new();
    drop(create(&bench));
    // Not anchored: as if the anchor could not be reached any more.
    bench.write().unwrap().put("a", &b"x"[..]).unwrap();
    assert_eq!(
        read(&open(&bench, Access::ReadOnly).unwrap(), "a").unwrap(),
        b"x"
    );
    drop(open(&bench, Access::ReadWrite).unwrap());
    open(&bench, Access::ReadWrite)
        .unwrap()
        .put("a", &b"y"[..])
        .unwrap();
    // Two ahead is no accident.
    let mut vault = bench.write().unwrap();
    vault.put("a", &b"z"[..]).unwrap();
    vault.put("a", &b"z"[..]).unwrap();
    drop(vault);
    assert!(matches!(
        open(&bench, Access::ReadOnly),
        Err(VaultError::Forked { .. })
    ));
}

#[test]
fn the_second_of_two_copies_cannot_commit() {
    let bench = Bench::new();
    let mut vault = create(&bench);
    vault.put("a", &b"x"[..]).unwrap();
    let copy = bench.files();
    vault.put("a", &b"here"[..]).unwrap();
    drop(vault);
    bench.restore(&copy);
    // The copy is opened with the knowledge of before, and commits something else.
    let forked = bench.write().unwrap().put("a", &b"there"[..]);
    forked.unwrap();
    assert!(matches!(
        open(&bench, Access::ReadWrite),
        Err(VaultError::Forked { generation: 3 })
    ));
}

#[test]
fn a_writer_that_lost_the_race_for_the_anchor_stops() {
    let bench = Bench::new();
    let mut vault = create(&bench);
    let anchor = FileAnchor::new(bench.dir.path().join("anchor"));
    let now = anchor.read(&vault.id()).unwrap();
    let other = crate::anchor::Anchored {
        generation: 2,
        root: [9; 32],
    };
    anchor.advance(&vault.id(), now, other).unwrap();
    assert!(matches!(
        vault.put("a", &b""[..]),
        Err(VaultError::Forked { generation: 2 })
    ));
    assert!(matches!(
        vault.put("a", &b""[..]),
        Err(VaultError::Poisoned)
    ));
}

#[test]
fn an_anchor_that_does_not_answer_keeps_the_vault_closed() {
    let bench = Bench::new();
    drop(create(&bench));
    std::fs::write(bench.dir.path().join("anchor"), b"rubbish").unwrap();
    let refused = open(&bench, Access::ReadOnly);
    assert!(matches!(
        refused,
        Err(VaultError::Anchor(AnchorError::Damaged))
    ));
}

#[test]
fn one_commit_ahead_on_another_line_is_a_fork() {
    let bench = Bench::new();
    let mut vault = create(&bench);
    let copy = bench.files();
    vault.put("a", &b"here"[..]).unwrap();
    drop(vault);
    bench.restore(&copy);
    let mut vault = bench.write().unwrap();
    vault.put("a", &b"there"[..]).unwrap();
    vault.put("a", &b"there"[..]).unwrap();
    drop(vault);
    assert!(matches!(
        open(&bench, Access::ReadOnly),
        Err(VaultError::Forked { generation: 3 })
    ));
}

/// What a machine that is resumed from a snapshot has: the memory of before, and the disk of before or of
/// now. The memory is a handle on one store; its future is written by another, on a copy.
fn put_back(bench: &Bench, disk_too: bool) -> (Vault, Vec<(PathBuf, Vec<u8>)>) {
    let mut vault = create(bench);
    vault.put("a", &b"x"[..]).unwrap();
    let then = bench.files();
    let future = Bench::new();
    std::fs::create_dir_all(future.path().join("objects")).unwrap();
    std::fs::create_dir_all(future.path().join("index")).unwrap();
    let moved = |files: &[(PathBuf, Vec<u8>)], from: &Bench, to: &Bench| -> Vec<_> {
        let there = |path: &PathBuf| to.path().join(path.strip_prefix(from.path()).unwrap());
        files.iter().map(|(p, b)| (there(p), b.clone())).collect()
    };
    future.restore(&moved(&then, bench, &future));
    let anchor = anchored(bench, Access::ReadWrite);
    let mut later = Vault::open_with(&future.path(), &future.kek(), anchor).unwrap();
    later.put("a", &content(1, 5000)[..]).unwrap();
    drop(later);
    let now = moved(&future.files(), &future, bench);
    if !disk_too {
        bench.restore(&now);
    }
    (vault, now)
}

#[test]
fn a_writer_put_back_to_an_earlier_moment_does_not_write_over_what_it_forgot() {
    let bench = Bench::new();
    let (mut vault, _) = put_back(&bench, false);
    let refused = vault.put("a", &b"again"[..]);
    assert!(
        matches!(refused, Err(VaultError::Moved { generation: 2 })),
        "{refused:?}"
    );
    drop(vault);
    let vault = open(&bench, Access::ReadWrite).unwrap();
    assert_eq!(read(&vault, "a").unwrap(), content(1, 5000));
}

#[test]
fn a_machine_put_back_with_its_disk_is_stopped_by_the_anchor_and_no_key_is_used_twice() {
    let bench = Bench::new();
    let (mut vault, now) = put_back(&bench, true);
    let refused = vault.put("a", &content(1, 5000)[..]);
    assert!(
        matches!(refused, Err(VaultError::Forked { generation: 3 })),
        "{refused:?}"
    );
    drop(vault);
    assert!(matches!(
        open(&bench, Access::ReadOnly),
        Err(VaultError::Forked { .. })
    ));
    // Both lines sealed the same content from the same memory: no block of it is the same.
    let new = |files: &[(PathBuf, Vec<u8>)]| -> Vec<u8> {
        let is_object = |path: &PathBuf| path.parent().unwrap().ends_with("objects");
        let objects = files.iter().filter(|(path, _)| is_object(path));
        objects
            .flat_map(|(_, bytes)| bytes[64..].to_vec())
            .collect()
    };
    let (one, other) = (new(&now), new(&bench.files()));
    assert!(!one.is_empty() && !other.is_empty());
    let blocks: HashSet<&[u8]> = one.chunks_exact(16).collect();
    let same = other
        .chunks_exact(16)
        .filter(|block| blocks.contains(block));
    assert_eq!(
        same.filter(|block| block.iter().any(|b| *b != 0)).count(),
        0
    );
}
