//! What a workload reads of its vault is watched: more than its policy expects raises the risk, and the
//! rules take the data away.

#![allow(clippy::unwrap_used)]

mod common;

use casemate::adjust::Change;
use casemate::isolation::child::Ending;
use casemate::record::Record;
use casemate::{By, Command, Order};
use common::{DATA, Policy, Room};

const RULE: &str = "forbid (principal, action == Action::\"read\", resource is Vault) \
                    when { context.risk >= 40 };";

fn withdrawal(record: &Record) -> bool {
    matches!(record, Record::Adjusted { change: Change::Withdraw(name), .. } if name == "customers")
}

#[test]
fn data_is_withdrawn_from_a_workload_that_reads_more_than_it_should() {
    let Some(room) = Room::new() else { return };
    let risk = format!(
        "lease-use = {{ adds = 50, half-life = \"1h\", volume = \"{}B\" }}",
        DATA.len()
    );
    let script = "read -r line; cat /data/customers.csv; read -r line; cat /data/customers.csv 2>/dev/null; exit 5";
    let policy = Policy::shell(script).with_data().with_rules(&risk, RULE);
    let mut running = room.setup(&policy).start();
    running.wait_for("the start", |record| record.kind() == "started");
    let status = running.handle.status().unwrap();
    if status.gaps.contains("data") {
        println!("skipped: without FUSE all of the vault is read at the start");
        running.finish();
        return;
    }
    assert_eq!((status.risk, status.read["customers"]), (0, 0));
    std::io::Write::write_all(running.stdin.as_mut().unwrap(), b"\n").unwrap();
    running.wait_for_output(DATA);
    running.wait_for("the signal", |record| {
        matches!(
            record,
            Record::Signal {
                sensor: "lease-use",
                ..
            }
        )
    });
    running.wait_for("the withdrawal", withdrawal);
    let told = running.finish();
    assert_eq!(
        told.outcome().ending,
        Ending::Code(5),
        "{:#?}",
        told.records
    );
    assert_eq!(told.stdout, DATA, "once, and not again");
    assert_eq!(told.signals("lease-use"), 1);
}

#[test]
fn an_order_takes_data_at_once_and_its_record_comes_first() {
    let Some(room) = Room::new() else { return };
    let policy =
        Policy::shell("cat /data/customers.csv; read -r line; cat /data/customers.csv; exit 6")
            .with_data();
    let running = room.setup(&policy).start();
    running.wait_for_output(DATA);
    let order = Order {
        command: Command::Withdraw(["customers".to_owned()].into()),
        by: By { uid: 7, pid: 9 },
        why: "not any more".into(),
    };
    let status = running.handle.order(order).unwrap();
    assert!(status.plan.data.is_empty());
    assert!(status.orders.withdrawn["customers"].contains("not any more"));
    let told = running.finish();
    assert_eq!(told.stdout, DATA, "nothing more was read");
    let ordered = told.at("the order", |record| {
        matches!(
            record,
            Record::Ordered {
                by: By { uid: 7, pid: 9 },
                ..
            }
        )
    });
    let announced = told.at("the announcement", |record| {
        matches!(
            record,
            Record::Adjusting {
                change: Change::Withdraw(_),
                ..
            }
        )
    });
    assert!(ordered < announced && announced < told.at("the withdrawal", withdrawal));
}
