//! A workload writes to its vault: what it wrote is committed when it asks for it, ends or is stopped, and
//! lost when the vault is taken from it, which the log tells.

#![allow(clippy::unwrap_used)]

mod common;

use casemate::adjust::Change;
use casemate::isolation::child::Ending;
use casemate::record::Record;
use casemate::{By, Command, Order, Why};
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

#[test]
fn fio_finds_what_it_wrote_to_a_vault_inside_a_sandbox() {
    let Some(room) = room() else { return };
    if !std::path::Path::new("/usr/bin/fio").exists() {
        println!("skipped: there is no /usr/bin/fio");
        return;
    }
    // At random and in order, in pieces of all sizes, synced now and then; each is read back and checked.
    let policy = Policy::command(&[
        "/usr/bin/fio",
        "--directory=/data",
        "--ioengine=psync",
        "--thread",
        "--size=4m",
        "--fsync=64",
        "--verify=crc32c",
        "--output-format=terse",
        "--name=random",
        "--rw=randrw",
        "--bsrange=4k-64k",
        "--name=order",
        "--rw=write",
        "--bs=128k",
    ])
    .with_writable_data();
    let told = room.setup(&policy).run();
    let code = told.outcome().ending;
    assert_eq!(
        code,
        Ending::Code(0),
        "{}\n{:#?}",
        told.stdout,
        told.records
    );
    assert_eq!(recorded(&told, "lost"), 0);
    let vault = Vault::open(&room.vault(), &room.kek(), Access::ReadOnly).unwrap();
    for name in ["random.0.0", "order.0.0"] {
        assert_eq!(
            vault.info(name).map(|info| info.len),
            Some(4 << 20),
            "{name}"
        );
    }
    vault.verify(|_| ()).unwrap();
}

/// Writes, with a child that does too, and then waits to be stopped. Nothing is synced.
const WRITES_AND_WAITS: &str = "\
echo more >> /data/customers.csv
sh -c 'echo child > /data/child; echo ready; while :; do sleep 1000; done' &
while :; do sleep 1000; done";

fn assert_kept(room: &Room, told: &Told) {
    assert_eq!(recorded(told, "lost"), 0, "{:#?}", told.records);
    let ended = told.at("the end", |record| matches!(record, Record::Ended { .. }));
    let committed = told.at(
        "the commit",
        |record| matches!(record, Record::Committed { data, .. } if data == "customers"),
    );
    assert!(ended < committed, "{:#?}", told.records);
    assert_eq!(content(room, "customers.csv"), format!("{DATA}more\n"));
    assert_eq!(content(room, "child"), "child\n");
}

#[test]
fn what_was_written_is_kept_when_the_time_limit_stops_the_workload() {
    let Some(room) = room() else { return };
    let mut policy = Policy::shell(WRITES_AND_WAITS).with_writable_data();
    policy.time = "2s".into();
    let told = room.setup(&policy).start().wait_until_over();
    assert_eq!(told.outcome().why, Why::Time);
    if told.stdout.contains("ready") {
        assert_kept(&room, &told);
    } else {
        println!("skipped: this machine did not get it going in time");
    }
}

#[test]
fn what_was_written_is_kept_when_an_operator_stops_the_workload() {
    let Some(room) = room() else { return };
    let policy = Policy::shell(WRITES_AND_WAITS).with_writable_data();
    let running = room.setup(&policy).start();
    running.wait_for_output("ready");
    let (by, why) = (By { uid: 4711, pid: 1 }, "a drill".into());
    let command = Command::Stop;
    running.handle.order(Order { command, by, why }).unwrap();
    let told = running.wait_until_over();
    assert!(matches!(told.outcome().why, Why::Ordered(_)));
    assert_kept(&room, &told);
}

#[test]
fn what_was_written_is_kept_when_somebody_asks_twice_for_the_end() {
    let Some(room) = room() else { return };
    let script = format!("trap '' TERM\n{WRITES_AND_WAITS}");
    let policy = Policy::shell(&script).with_writable_data();
    let running = room.setup(&policy).start();
    running.wait_for_output("ready");
    running.handle.kill(TERM);
    running.handle.kill(TERM);
    let told = running.wait_until_over();
    assert_eq!(told.outcome().why, Why::Asked);
    assert_kept(&room, &told);
}

const TERM: i32 = rustix::process::Signal::TERM.as_raw();

#[test]
fn a_policy_that_stops_a_workload_keeps_what_may_still_be_written() {
    let Some(room) = room() else { return };
    let policy = Policy::shell(WRITES_AND_WAITS)
        .with_writable_data()
        .with_rules(
            RISK,
            "forbid (principal, action == Action::\"live\", resource) when { context.risk >= 10 };",
        );
    let running = room.setup(&policy).start();
    running.wait_for_output("ready");
    running.handle.operator("doubt");
    let told = running.wait_until_over();
    assert!(matches!(told.outcome().why, Why::Policy(_)));
    assert_kept(&room, &told);
}

#[test]
fn a_policy_that_stops_a_workload_commits_nothing_where_it_forbids_to_write() {
    let Some(room) = room() else { return };
    let policy = Policy::shell("echo ready; while :; do echo more >> /data/customers.csv; done")
        .with_writable_data()
        .with_rules(
            RISK,
            "forbid (principal, action == Action::\"live\", resource) when { context.risk >= 10 };\n\
             forbid (principal, action == Action::\"write\", resource is Vault) \
             when { context.risk >= 10 };",
        );
    let running = room.setup(&policy).start();
    running.wait_for_output("ready");
    running.handle.operator("doubt");
    let told = running.wait_until_over();
    assert!(matches!(told.outcome().why, Why::Policy(_)));
    let withdrawn = Change::Withdraw("customers".into());
    told.at(
        "the withdrawal",
        |record| matches!(record, Record::Adjusted { change, .. } if *change == withdrawn),
    );
    assert_eq!(recorded(&told, "committed"), 0, "{:#?}", told.records);
}

#[test]
fn a_vault_that_is_given_back_takes_writes_again_and_nothing_of_what_was_lost() {
    let Some(room) = room() else { return };
    let policy = Policy::shell(
        "echo kept >> /data/customers.csv; sync -d /data/customers.csv; exec 3>> /data/customers.csv\n\
         echo ready; while (echo lost >> /data/lost) 2> /dev/null; do :; done; echo refused\n\
         until (echo again > /data/again) 2> /dev/null; do :; done; echo back\n\
         if (echo old >&3) 2> /dev/null; then echo 'an old descriptor writes'; fi\n\
         cat /data/customers.csv; exit 3",
    )
    .with_writable_data()
    .with_rules(
        "operator = { adds = 30, half-life = \"100ms\" }",
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
    assert_eq!(told.stdout, format!("ready\nrefused\nback\n{DATA}kept\n"));
    let made = |change: Change| {
        told.at(
            "the change",
            |record| matches!(record, Record::Adjusted { change: made, .. } if *made == change),
        )
    };
    let taken = made(Change::Withdraw("customers".into()));
    let given = made(Change::Release("customers".into()));
    let committed = told.at("the commit", |record| {
        matches!(record, Record::Committed { .. })
    });
    assert!(taken < given && given < committed, "{:#?}", told.records);
    assert_eq!(content(&room, "customers.csv"), format!("{DATA}kept\n"));
    assert_eq!(content(&room, "again"), "again\n");
}

/// Writes through a mapping and never asks for it to be written back.
const MAPS: &str = "
import mmap, os, time
fd = os.open('/data/mapped', os.O_RDWR | os.O_CREAT)
os.truncate(fd, 1 << 16)
mapped = mmap.mmap(fd, 1 << 16)
os.close(fd)
mapped[:] = b'm' * (1 << 16)
print('ready', flush=True)
time.sleep(1000)
";

#[test]
fn what_was_written_through_a_mapping_is_kept_when_the_workload_is_stopped() {
    let Some(room) = room() else { return };
    if !std::path::Path::new("/usr/bin/python3").exists() {
        println!("skipped: there is no /usr/bin/python3");
        return;
    }
    let policy = Policy::command(&["/usr/bin/python3", "-c", MAPS]).with_writable_data();
    let running = room.setup(&policy).start();
    running.wait_for_output("ready");
    let (by, why) = (By { uid: 4711, pid: 1 }, "a drill".into());
    let command = Command::Stop;
    running.handle.order(Order { command, by, why }).unwrap();
    let told = running.wait_until_over();
    assert_eq!(recorded(&told, "lost"), 0, "{:#?}", told.records);
    assert_eq!(content(&room, "mapped"), "m".repeat(1 << 16));
}
