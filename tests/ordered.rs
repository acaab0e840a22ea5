//! What an operator orders: endpoints and programs are taken, and come back when the order is lifted;
//! system calls are taken for good.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpListener;

use casemate::adjust::Change;
use casemate::isolation::child::Ending;
use casemate::lever::tighten::Tightening;
use casemate::order::{EXEC, OrderError};
use casemate::record::Record;
use casemate::status::Status;
use casemate::{By, Command, Order};
use common::{Policy, Room, Running};

/// Bash, for its `/dev/tcp`: does what each line of stdin says, and tells what came of it.
const SCRIPT: &str = "\
opens() { if (exec 4<>$to) 2>/dev/null; then echo opens; else echo closed; fi; }
starts() { if /bin/true 2>/dev/null; then echo starts; else echo refused; fi; }
makes() { if mkdir /out/$1 2>/dev/null; then echo makes; else echo cannot; fi; }
hears() { if read -r got <&3; then echo \"hears $got\"; else echo over; fi; }
exec 3<>$to; echo ready
while read -r line; do $line; done; exit 7";

/// A rule that may take programs, so that each start is asked for.
const ASKING: &str =
    "forbid (principal, action == Action::\"exec\", resource) when { context.risk >= 90 };";

struct Ordered {
    running: Running,
    said: String,
}

impl Ordered {
    fn start(room: &Room, server: &TcpListener, rules: &str) -> Self {
        let to = server.local_addr().unwrap();
        let script = format!("to=/dev/tcp/{}/{}\n{SCRIPT}", to.ip(), to.port());
        let policy = Policy::command(&["bash", "-c", &script])
            .connecting(&[&to.to_string()])
            .with_rules("operator = { adds = 5, half-life = \"1h\" }", rules);
        let running = room.setup(&policy).start();
        let said = "ready\n".to_owned();
        running.wait_for_output(&said);
        Self { running, said }
    }

    /// Tells the workload to do something, and waits for what it says of it.
    fn does(&mut self, what: &str, answer: &str) {
        writeln!(self.running.stdin.as_ref().unwrap(), "{what}").unwrap();
        self.said += answer;
        self.said.push('\n');
        self.running.wait_for_output(&self.said);
    }

    fn order(&self, command: Command) -> Result<Box<Status>, OrderError> {
        let by = By { uid: 4711, pid: 1 };
        let why = "a drill".into();
        self.running.handle.order(Order { command, by, why })
    }
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn endpoints_and_programs_that_were_ordered_away_come_back_when_the_order_is_lifted() {
    let Some(room) = Room::new() else { return };
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = server.local_addr().unwrap().to_string();
    let mut ordered = Ordered::start(&room, &server, ASKING);
    let (mut flow, _) = server.accept().unwrap();
    flow.write_all(b"world\n").unwrap();
    ordered.does("hears", "hears world");
    ordered.does("starts", "starts");
    let both = || names(&[&endpoint, EXEC]);
    let status = ordered.order(Command::Withdraw(both())).unwrap();
    assert!(
        status.plan.connect.is_empty() && !status.plan.exec,
        "{status:?}"
    );
    // At once, before the workload does anything.
    assert!(matches!(flow.read(&mut [0]), Ok(0) | Err(_)));
    ordered.does("hears", "over");
    ordered.does("opens", "closed");
    ordered.does("starts", "refused");
    let status = ordered.order(Command::Restore(both())).unwrap();
    assert_eq!(status.plan.connect, names(&[&endpoint]));
    assert!(status.plan.exec);
    ordered.does("starts", "starts");
    ordered.does("opens", "opens");
    drop(server.accept().unwrap());
    let told = ordered.running.finish();
    assert_eq!(told.outcome().ending, Ending::Code(7), "{told:#?}");
    for change in [Change::Disconnect(endpoint.clone()), Change::Exec(false)] {
        let order = told.at(
            "the order",
            |r| matches!(r, Record::Ordered { by, why, .. } if by.uid == 4711 && why == "a drill"),
        );
        let announced = told.at("the announcement", |r| {
            matches!(r, Record::Adjusting { change: c, because }
                if *c == change && because[0].contains("uid 4711"))
        });
        let in_force = told.at(
            "the effect",
            |r| matches!(r, Record::Adjusted { change: c, .. } if *c == change),
        );
        assert!(order < announced && announced < in_force, "{change}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn what_was_tightened_stays_taken_whatever_is_lifted() {
    let Some(room) = Room::new() else { return };
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut ordered = Ordered::start(&room, &server, "");
    let _flow = server.accept().unwrap();
    ordered.does("makes one", "makes");
    let calls = Tightening::Calls(names(&["mkdir", "mkdirat"]));
    let status = ordered.order(Command::Tighten(calls.clone())).unwrap();
    assert_eq!(status.plan.tightened, BTreeSet::from([calls.clone()]));
    ordered.does("makes two", "cannot");
    assert!(room.out().join("one").is_dir() && !room.out().join("two").exists());
    // No rule takes programs, so nobody asks about them: they are taken for good, too.
    ordered.does("starts", "starts");
    let programs = || names(&[EXEC]);
    ordered.order(Command::Withdraw(programs())).unwrap();
    ordered.does("starts", "refused");
    let status = ordered.order(Command::Restore(programs())).unwrap();
    assert!(!status.plan.exec && status.orders.withdrawn.is_empty());
    ordered.does("starts", "refused");
    let unknown = Tightening::Calls(names(&["mkdir", "opennat"]));
    let refused = ordered.order(Command::Tighten(unknown));
    assert_eq!(refused.unwrap_err(), OrderError::Call("opennat".into()));
    let told = ordered.running.finish();
    assert_eq!(told.outcome().ending, Ending::Code(7), "{told:#?}");
    let wanted = Change::Tighten(calls);
    let announced = told.at(
        "the announcement",
        |r| matches!(r, Record::Adjusting { change, .. } if *change == wanted),
    );
    let order = told.at("the order", |r| {
        matches!(
            r,
            Record::Ordered {
                order: Command::Tighten(_),
                ..
            }
        )
    });
    assert!(order < announced);
}
