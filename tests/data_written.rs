//! A workload writes to its vault: what it wrote is committed when it ends, or asks for it, and lost when
//! the vault is taken from it, which the log tells.

#![allow(clippy::unwrap_used)]

mod common;

use casemate::adjust::Change;
use casemate::isolation::child::Ending;
use casemate::record::Record;
use common::{DATA, Policy, Room, Told};
use vault::{Access, Vault};

const RISK: &str = "operator = { adds = 30, half-life = \"1h\" }";

/// A room, where vaults can be written to.
fn room() -> Option<Room> {
    if std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .is_err()
    {
        println!("skipped: /dev/fuse cannot be opened, and vaults that are written to need it");
        return None;
    }
    Room::new()
}

fn content(room: &Room, name: &str) -> String {
    let vault = Vault::open(&room.vault(), &room.kek(), Access::ReadOnly).unwrap();
    vault.verify(|_| ()).unwrap();
    let mut content = Vec::new();
    vault.get(name, &mut content).unwrap();
    String::from_utf8(content).unwrap()
}

fn recorded(told: &Told, kind: &str) -> usize {
    told.kinds().iter().filter(|found| **found == kind).count()
}

#[test]
fn what_a_workload_wrote_is_in_the_vault_when_it_has_ended() {
    let Some(room) = room() else { return };
    let policy = Policy::shell(
        "set -e; cd /data; echo more >> customers.csv; mkdir -p new/empty; echo x > new/file\n\
         mv new/file new/renamed; ln -s renamed new/link; cat new/link; exit 3",
    )
    .with_writable_data();
    let told = room.setup(&policy).run();
    assert_eq!(
        told.outcome().ending,
        Ending::Code(3),
        "{:#?}",
        told.records
    );
    assert_eq!(told.stdout, "x\n");
    assert_eq!(content(&room, "customers.csv"), format!("{DATA}more\n"));
    assert_eq!(content(&room, "new/renamed"), "x\n");
    let ended = told.at("the end", |record| matches!(record, Record::Ended { .. }));
    let committed = told.at("the commit", |record| {
        matches!(record, Record::Committed { .. })
    });
    assert!(ended < committed);
    let Record::Committed { root, .. } = &told.records[committed] else {
        unreachable!("found as one")
    };
    let vault = Vault::open(&room.vault(), &room.kek(), Access::ReadOnly).unwrap();
    assert_eq!(*root, casemate::record::hex(&vault.root()));
    assert_eq!(recorded(&told, "lost"), 0);
}

#[test]
fn a_vault_that_is_withdrawn_takes_no_more_and_the_log_tells_what_was_lost() {
    let Some(room) = room() else { return };
    let policy = Policy::shell(
        "exec 3>> /data/customers.csv\n\
         echo kept >&3; sync -d /data/customers.csv; echo lost >&3; echo ready\n\
         while echo late >&3; do :; done 2> /dev/null; echo refused\n\
         cat /data/customers.csv 2> /dev/null || echo unreadable; exit 3",
    )
    .with_writable_data()
    .with_rules(
        RISK,
        "forbid (principal, action == Action::\"write\", resource is Vault) \
         when { context.risk >= 10 };",
    );
    let running = room.setup(&policy).start();
    running.wait_for_output("ready");
    running.doubt_until_output("refused");
    let told = running.finish();
    assert_eq!(
        told.outcome().ending,
        Ending::Code(3),
        "{:#?}",
        told.records
    );
    assert!(
        told.stdout.ends_with("refused\nunreadable\n"),
        "{}",
        told.stdout
    );
    let lost = told.at("the loss", |record| {
        matches!(record, Record::Lost { data, changes, .. } if data == "customers" && *changes > 0)
    });
    let withdrawn = Change::Withdraw("customers".into());
    let withdrawn = told.at(
        "the withdrawal",
        |record| matches!(record, Record::Adjusting { change, .. } if *change == withdrawn),
    );
    assert!(withdrawn < lost);
    let kept = content(&room, "customers.csv");
    assert!(kept.starts_with(&format!("{DATA}kept\n")), "{kept}");
}

/// SQLite, with its locks and shared memory, in both of its journals.
const SQLITE: &str = "
import sqlite3
for mode in ('delete', 'wal'):
    db = sqlite3.connect('/data/' + mode + '.db')
    assert db.execute('pragma journal_mode=' + mode).fetchone()[0] == mode
    db.execute('create table t (n integer primary key, b blob)')
    for n in range(10):
        with db:
            db.execute('insert into t values (?, ?)', (n, bytes([n]) * 5000))
    assert db.execute('pragma integrity_check').fetchone()[0] == 'ok'
    db.close()
print('fine')
";

#[test]
fn a_database_runs_on_a_vault_inside_a_sandbox() {
    let Some(room) = room() else { return };
    if !std::path::Path::new("/usr/bin/python3").exists() {
        println!("skipped: there is no /usr/bin/python3");
        return;
    }
    let policy = Policy::command(&["/usr/bin/python3", "-c", SQLITE]).with_writable_data();
    let told = room.setup(&policy).run();
    assert_eq!(
        told.outcome().ending,
        Ending::Code(0),
        "{:#?}",
        told.records
    );
    assert_eq!(told.stdout, "fine\n");
    let vault = Vault::open(&room.vault(), &room.kek(), Access::ReadOnly).unwrap();
    let mut database = Vec::new();
    vault.get("wal.db", &mut database).unwrap();
    assert!(database.starts_with(b"SQLite format 3\0"));
}
