use std::sync::Arc;

use super::{Bench, read};
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
