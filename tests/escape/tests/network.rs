//! A workload that may connect to one address of the host connects to that and to nothing else.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)]
mod world;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv6Addr, TcpListener, UdpSocket};

use casemate::Why;
use casemate::isolation::child::Ending;
use world::World;

const ROOMY: &str = "memory = \"256MiB\"\npids = 64\ncpu = 2.0\ntime = \"120s\"";

#[test]
fn a_granted_address_is_reached_and_no_other_by_any_way() {
    let allowed = TcpListener::bind("127.0.0.1:0").unwrap();
    let granted = allowed.local_addr().unwrap();
    // Says again what it hears, to as many as come.
    std::thread::spawn(move || {
        for stream in allowed.incoming().flatten() {
            let mut stream = stream;
            std::thread::spawn(move || {
                let mut heard = [0; 5];
                if stream.read_exact(&mut heard).is_ok() {
                    let _ = stream.write_all(&heard);
                }
            });
        }
    });
    let denied = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = denied.local_addr().unwrap().port();
    let others = [
        TcpListener::bind(("127.0.0.2", granted.port())).ok(),
        TcpListener::bind((Ipv6Addr::LOCALHOST, port)).ok(),
    ];
    let datagrams = UdpSocket::bind(("127.0.0.1", port)).unwrap();

    let network = format!("[network]\nconnect = [\"{granted}\"]");
    let arguments = ["network", &granted.port().to_string(), &port.to_string()];
    let run = World::new().inside(ROOMY, &network, &arguments);
    let outcome = run
        .result
        .unwrap_or_else(|error| panic!("{error:?}\n{}", run.output));
    assert_eq!(
        (outcome.ending, outcome.why),
        (Ending::Code(0), Why::Ended),
        "{}",
        run.output
    );
    println!("{}", run.output);
    let verdicts: BTreeMap<_, _> = run.output.lines().filter_map(|l| l.split_once(' ')).collect();
    assert_eq!(verdicts.len(), 20, "{}", run.output);
    for (name, verdict) in &verdicts {
        let wanted = if name.starts_with("allowed") { "open" } else { "closed" };
        assert!(verdict.starts_with(wanted), "{name} {verdict}");
    }
    // The race was one: both addresses were seen.
    assert!(!verdicts["race"].starts_with("closed 0 of"), "{}", verdicts["race"]);

    for listener in others.into_iter().flatten().chain([denied]) {
        listener.set_nonblocking(true).unwrap();
        let came = listener.accept().map(|(_, from)| from);
        assert_eq!(came.unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    datagrams.set_nonblocking(true).unwrap();
    let came = datagrams.recv(&mut [0; 16]);
    assert_eq!(came.unwrap_err().kind(), ErrorKind::WouldBlock);
}
