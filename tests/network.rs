//! A connection that was granted, taken back while it is used, and granted again.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use casemate::Why;
use casemate::adjust::Change;
use casemate::isolation::child::Ending;
use casemate::record::Record;
use common::{DEADLINE, Policy, Room, Told};

const LOST: &str =
    "forbid (principal, action == Action::\"connect\", resource) when { context.risk >= 20 };";
const FREEZE: &str =
    "forbid (principal, action == Action::\"proceed\", resource) when { context.risk >= 20 };";
const RISK: &str = "operator = { adds = 30, half-life = \"1h\" }";
/// As above, but so that the grant comes back by itself.
const FADING: &str = "operator = { adds = 30, half-life = \"1s\" }";

/// Bash, for its `/dev/tcp`; `opens` says whether a new connection is possible.
fn script(rest: &str, server: &TcpListener) -> Policy {
    let to = server.local_addr().unwrap();
    let script = format!(
        "to=/dev/tcp/{}/{}\nopens() {{ if (exec 4<>$to) 2>/dev/null; then echo opens; else echo refused; fi; }}\n\
         go_on() {{ read -r line; }}\n{rest}",
        to.ip(),
        to.port()
    );
    Policy::command(&["bash", "-c", &script]).connecting(&[&to.to_string()])
}

fn server() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").unwrap()
}

/// Waits for a connection, and answers its first line.
fn answer(server: &TcpListener, with: &str) -> TcpStream {
    let (mut stream, _) = server.accept().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(line(&mut stream).unwrap(), "hello\n");
    stream.write_all(with.as_bytes()).unwrap();
    stream
}

fn line(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte)? == 1 {
        line.push(byte[0]);
        if byte[0] == b'\n' {
            break;
        }
    }
    Ok(String::from_utf8(line).unwrap())
}

fn is_over(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 1]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() == ErrorKind::ConnectionReset,
    }
}

fn disconnected(told: &Told, endpoint: &str) {
    let wanted = Change::Disconnect(endpoint.to_owned());
    let before = told.at(
        "announcing",
        |r| matches!(r, Record::Adjusting { change, because } if *change == wanted && !because.is_empty()),
    );
    let after = told.at(
        "adjusting",
        |r| matches!(r, Record::Adjusted { change, .. } if *change == wanted),
    );
    assert!(before < after);
    if let Record::Adjusted { micros, .. } = &told.records[after] {
        println!("in force after {micros} µs");
    }
}

#[test]
fn a_flow_ends_when_its_grant_is_lost_and_no_new_one_begins() {
    let Some(room) = Room::new() else { return };
    let server = server();
    let endpoint = server.local_addr().unwrap().to_string();
    // The flow is held by a child, too, and the one who has it hides its descriptors.
    let policy = script(
        "opens\nexec 3<>$to; echo hello >&3; read -r got <&3; echo \"got $got\"\n\
         sleep 1000 <&3 & held=$!\ngo_on\n\
         if read -r got <&3; then echo \"still $got\"; else echo ended; fi\n\
         opens\nkill $held\nexit 7",
        &server,
    )
    .with_rules(RISK, LOST);
    let mut running = room.setup(&policy).start();
    drop(server.accept().unwrap());
    let mut flow = answer(&server, "world\n");
    running.wait_for_output("got world");
    running.handle.operator("a drill");
    running.wait_for("the end of connections", |r| {
        matches!(
            r,
            Record::Adjusted {
                change: Change::Disconnect(_),
                ..
            }
        )
    });
    // At once: before the workload does anything.
    assert!(is_over(&mut flow));
    running.stdin = None;
    let told = running.finish();
    assert_eq!(
        told.stdout, "opens\ngot world\nended\nrefused\n",
        "{told:#?}"
    );
    assert_eq!(
        (told.outcome().ending, &told.outcome().why),
        (Ending::Code(7), &Why::Ended)
    );
    assert_eq!(told.signals("denied-address"), 1);
    disconnected(&told, &endpoint);
}

#[test]
fn an_endpoint_that_is_granted_again_can_be_connected_again() {
    let Some(room) = Room::new() else { return };
    let server = server();
    let policy = script("go_on; opens; go_on; opens", &server).with_rules(FADING, LOST);
    let mut running = room.setup(&policy).start();
    running.wait_for("the start", |r| matches!(r, Record::Started));
    running.handle.operator("a drill");
    running.wait_for("the end of connections", |r| {
        matches!(
            r,
            Record::Adjusted {
                change: Change::Disconnect(_),
                ..
            }
        )
    });
    let mut stdin = running.stdin.take().unwrap();
    // It may come back before the workload has tried: then there is nothing to be seen of it.
    running.wait_for("connections again", |r| {
        matches!(
            r,
            Record::Adjusted {
                change: Change::Reconnect(_),
                ..
            }
        )
    });
    stdin.write_all(b"\n").unwrap();
    drop(server.accept().unwrap());
    stdin.write_all(b"\n").unwrap();
    drop(server.accept().unwrap());
    drop(stdin);
    let told = running.finish();
    assert_eq!(told.stdout, "opens\nopens\n", "{told:#?}");
    assert_eq!(told.signals("denied-address"), 0);
}

#[test]
fn a_connection_that_is_not_granted_is_refused_told_and_weighed() {
    let Some(room) = Room::new() else { return };
    let (granted, other) = (server(), server());
    let mut policy = script(
        "opens; getent hosts nowhere.example || echo unknown",
        &other,
    );
    policy.connect = vec![granted.local_addr().unwrap().to_string()];
    let policy = policy.with_rules("denied-address = { adds = 7, half-life = \"1h\" }", "");
    let told = room.setup(&policy).run();
    assert_eq!(told.stdout, "refused\nunknown\n", "{told:#?}");
    let details: Vec<_> = told
        .records
        .iter()
        .filter_map(|r| match r {
            Record::Signal {
                sensor: "denied-address",
                detail,
                ..
            } => Some(detail.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(details[0], other.local_addr().unwrap().to_string());
    assert!(
        details[1..].iter().all(|d| d == "nowhere.example") && details.len() > 1,
        "{details:?}"
    );
    other.set_nonblocking(true).unwrap();
    assert_eq!(other.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_connection_that_takes_its_time_is_waited_for_and_holds_nobody_up() {
    let Some(room) = Room::new() else { return };
    let Some((full, _filling)) = full_server() else {
        println!("skipped: this kernel's queue of connections cannot be filled");
        return;
    };
    let quick = server();
    let mut policy = script(
        &format!(
            "slow=/dev/tcp/127.0.0.1/{}\n\
             {{ (exec 4<>$slow) 2>/dev/null && echo slow; }} & opens; opens; go_on; kill %1; wait; echo over",
            full.local_addr().unwrap().port()
        ),
        &quick,
    );
    policy.connect.push(full.local_addr().unwrap().to_string());
    let mut running = room.setup(&policy).start();
    drop(quick.accept().unwrap());
    drop(quick.accept().unwrap());
    running.wait_for_output("opens\nopens\n");
    running.stdin = None;
    let told = running.finish();
    assert_eq!(told.stdout, "opens\nopens\nover\n", "{told:#?}");
}

#[test]
fn a_connection_under_way_is_given_up_when_its_grant_is_lost() {
    let Some(room) = Room::new() else { return };
    let Some((full, _filling)) = full_server() else {
        println!("skipped: this kernel's queue of connections cannot be filled");
        return;
    };
    let quick = server();
    let slow = full.local_addr().unwrap();
    let mut policy = script(
        &format!(
            "{{ (exec 4<>/dev/tcp/127.0.0.1/{}) 2>/dev/null && echo slow || echo given up; }} &\n\
             opens; wait",
            slow.port()
        ),
        &quick,
    );
    policy.connect.push(slow.to_string());
    let running = room.setup(&policy.with_rules(RISK, LOST)).start();
    drop(quick.accept().unwrap());
    running.wait_for_output("opens");
    running.handle.operator("a drill");
    let told = running.finish();
    assert_eq!(told.stdout, "opens\ngiven up\n", "{told:#?}");
    disconnected(&told, &slow.to_string());
}

#[test]
fn a_workload_that_waits_for_a_connection_can_be_frozen_and_goes_on_waiting() {
    let Some(room) = Room::new() else { return };
    let Some((full, filling)) = full_server() else {
        println!("skipped: this kernel's queue of connections cannot be filled");
        return;
    };
    let quick = server();
    let slow = full.local_addr().unwrap();
    let mut policy = script(
        &format!(
            "(exec 4<>/dev/tcp/127.0.0.1/{}) 2>/dev/null && echo slow & opens; wait",
            slow.port()
        ),
        &quick,
    );
    policy.connect.push(slow.to_string());
    let running = room.setup(&policy.with_rules(FADING, FREEZE)).start();
    drop(quick.accept().unwrap());
    running.wait_for_output("opens");
    running.handle.operator("a drill");
    for frozen in [true, false] {
        running.wait_for(
            "freezing and going on",
            |r| matches!(r, Record::Adjusted { change: Change::Freeze(f), .. } if *f == frozen),
        );
    }
    // Room in the queue, so that the connection can be made.
    drop(filling);
    let draining = std::thread::spawn(move || full.incoming().take(3).for_each(drop));
    let told = running.finish();
    assert_eq!(told.stdout, "opens\nslow\n", "{told:#?}");
    drop(draining);
}

/// A server whose queue is full, so that whoever connects has to wait.
fn full_server() -> Option<(TcpListener, Vec<TcpStream>)> {
    let socket = rustix::net::socket(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    rustix::net::bind(
        &socket,
        &"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap(),
    )
    .unwrap();
    rustix::net::listen(&socket, 0).unwrap();
    let server = TcpListener::from(socket);
    let to = server.local_addr().unwrap();
    let mut filling = Vec::new();
    for _ in 0..8 {
        match TcpStream::connect_timeout(&to, Duration::from_millis(300)) {
            Ok(stream) => filling.push(stream),
            Err(_) => return Some((server, filling)),
        }
    }
    None
}

/// A name that this host knows without asking anybody, for 127.0.0.1.
fn local_name() -> Option<String> {
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let names = hosts
        .lines()
        .filter_map(|line| line.strip_prefix("127.0.0.1"))
        .flat_map(str::split_whitespace);
    let plain = |name: &&str| {
        *name != "localhost"
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
    };
    let mut names = names.filter(plain);
    let name = names.next().map(str::to_owned);
    if name.is_none() {
        println!("skipped: /etc/hosts has no name for 127.0.0.1 beside localhost");
    }
    name
}

#[test]
fn a_granted_name_is_resolved_inside_and_leads_to_the_host_only_if_that_is_granted_too() {
    let Some(room) = Room::new() else { return };
    let Some(name) = local_name() else { return };
    let server = server();
    let port = server.local_addr().unwrap().port();
    let by_name = |more: &[String]| {
        let script =
            format!("(exec 4<>/dev/tcp/{name}/{port}) 2>/dev/null && echo opens || echo refused");
        let mut policy = Policy::command(&["bash", "-c", &script]);
        policy.connect = vec![format!("{name}:{port}")];
        policy.connect.extend_from_slice(more);
        room.setup(&policy).run()
    };
    let told = by_name(&[format!("127.0.0.1:{port}")]);
    assert_eq!(told.stdout, "opens\n", "{told:#?}");
    assert_eq!(told.signals("denied-address"), 0);
    // Whoever owns the name could have it lead anywhere.
    let told = by_name(&[]);
    assert_eq!(told.stdout, "refused\n", "{told:#?}");
    assert!(told.signals("denied-address") > 0);
}
