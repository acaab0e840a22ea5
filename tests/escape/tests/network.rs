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
    let verdicts: BTreeMap<_, _> = run
        .output
        .lines()
        .filter_map(|l| l.split_once(' '))
        .collect();
    assert_eq!(verdicts.len(), 20, "{}", run.output);
    for (name, verdict) in &verdicts {
        let wanted = if name.starts_with("allowed") {
            "open"
        } else {
            "closed"
        };
        assert!(verdict.starts_with(wanted), "{name} {verdict}");
    }
    // The race was one: both addresses were seen.
    assert!(
        !verdicts["race"].starts_with("closed 0 of"),
        "{}",
        verdicts["race"]
    );

    for listener in others.into_iter().flatten().chain([denied]) {
        listener.set_nonblocking(true).unwrap();
        let came = listener.accept().map(|(_, from)| from);
        assert_eq!(came.unwrap_err().kind(), ErrorKind::WouldBlock);
    }
    datagrams.set_nonblocking(true).unwrap();
    let came = datagrams.recv(&mut [0; 16]);
    assert_eq!(came.unwrap_err().kind(), ErrorKind::WouldBlock);
}

/// What became of a connection that a workload holds in this way when it loses the grant: what the
/// workload says of it, or why the session failed.
fn held(how: &str) -> Result<String, String> {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = server.local_addr().unwrap();
    let policy = format!(
        "[network]\nconnect = [\"{endpoint}\"]\n[risk]\n\
         denied-syscall = {{ adds = 30, half-life = \"1h\" }}\n[rules]\ncedar = '''\n\
         permit (principal, action, resource);\n\
         forbid (principal, action == Action::\"connect\", resource) when {{ context.risk >= 20 }};\n'''"
    );
    let peer = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(30)))
            .unwrap();
        // Nothing but an end comes from a workload that sends nothing; it may have come already.
        let heard = stream
            .write_all(b"1")
            .and_then(|()| stream.read(&mut [0; 1]));
        match heard {
            Ok(read) => read == 0,
            Err(error) => matches!(
                error.kind(),
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            ),
        }
    });
    let port = endpoint.port().to_string();
    let run = World::new().inside(ROOMY, &policy, &["hold", how, &port]);
    assert!(peer.join().unwrap(), "the peer saw no end: {}", run.output);
    match run.result {
        Ok(outcome) => {
            assert_eq!((outcome.ending, outcome.why), (Ending::Code(0), Why::Ended));
            Ok(run.output.trim().to_owned())
        }
        Err(error) => Err(casemate::error::describe(&error)),
    }
}

#[test]
fn a_connection_ends_wherever_the_workload_keeps_it() {
    for how in ["hidden", "own-table", "closed"] {
        assert_eq!(held(how), Ok("over".to_owned()), "{how}");
    }
}

#[test]
fn a_connection_that_nobody_can_see_costs_the_workload_its_life() {
    let error = held("in-flight").unwrap_err();
    assert!(error.contains("on their way"), "{error}");
}
