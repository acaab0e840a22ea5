//! What a broker does in a second, as a ratio to what cannot be left out of it: the TLS handshake, and the
//! signature checks of the evidence.
//!
//! ```text
//! cargo bench -p casemate-broker-server --bench load
//! cargo bench -p casemate-broker-server --bench load -- streams 10000
//! ```
//!
//! The broker is the real program with its log and its store on a disk, and its clients are on the same
//! processors: each makes a connection of its own, with a full handshake, for one exchange (a nonce, evidence of a
//! simulated SEV-SNP guest, a secret as JWE). Evidence is signed beforehand; the nonce of the exchange is answered
//! in a later one. The floor is both ends of the same handshake in memory, and the four signature checks of that
//! evidence, on as many threads as there are processors. Floor and broker take turns.

#![allow(clippy::unwrap_used)]

#[path = "../../../benches/checks.rs"]
mod checks;
#[path = "../tests/play/mod.rs"]
mod play;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use attestation::{Attester as _, Evidence, SimulatedTee, UnixTime};
use checks::{Check, verify};
use play::{Asked, Guest, Play, Tls};
use rustls::{ClientConnection, ServerConnection};
use serde_json::Value;

/// The least that the broker must do, in times of the floor.
const BAR: f64 = 0.8;
/// Exchanges in one turn.
const TURN: usize = 1_500;
const TURNS: usize = 5;
/// Exchanges under way at once.
const CLIENTS: usize = 48;
/// The most memory that the idle streams may take, in MiB.
const MEMORY: u64 = 200;

const LIMITS: &str = "[limits]\nsession = 3600\nnonce = 3600\nlease = 7200\nconnections = 20000\n\
                      appraisals = 64\nasks-per-minute = 1000000\npatience = 600\n";

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|word| word != "--bench");
    let met = match arguments.next().as_deref() {
        Some("streams") => streams(
            arguments
                .next()
                .map_or(10_000, |text| text.parse().unwrap()),
        ),
        _ => exchanges(),
    };
    println!(
        "{}",
        if met {
            "within the bar"
        } else {
            "OVER THE BAR"
        }
    );
}

fn exchanges() -> bool {
    let play = Play::start(LIMITS);
    let processors = std::thread::available_parallelism().unwrap().get();
    let mut tee = SimulatedTee::new(UnixTime::from(std::time::SystemTime::now())).unwrap();
    let evidence = tee.attest(&[0; 64]).unwrap();
    let checks = of(&evidence);
    let mut ratios = Vec::new();
    println!("exchanges in a second, {processors} processors");
    for turn in 0..=TURNS {
        let sessions = sessions(&play, &mut tee, TURN);
        let floor = floor(&play, &checks, processors, Duration::from_secs(2));
        let before = play.processor_time();
        let began = Instant::now();
        exchanged(&play, sessions);
        let rate = TURN as f64 / began.elapsed().as_secs_f64();
        let busy = (play.processor_time() - before).as_secs_f64() / TURN as f64;
        let ratio = rate / floor.rate;
        let what = if turn == 0 { "warm-up" } else { "" };
        println!(
            "  floor {:>6.0}  broker {rate:>6.0}  ratio {ratio:.2}; processor time of the broker's end: floor {:>5.0} µs, broker {:>5.0} µs {what}",
            floor.rate,
            floor.own * 1e6,
            busy * 1e6,
        );
        if turn > 0 {
            ratios.push(ratio);
        }
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[TURNS / 2];
    println!("  median ratio {median:.2}, at least {BAR}");
    median >= BAR
}

/// The four checks that evidence of a simulated guest takes.
fn of(evidence: &Evidence) -> Vec<Check> {
    let endorsements = evidence.endorsements();
    let der = [
        endorsements.vek(),
        endorsements.intermediate(),
        endorsements.root(),
    ];
    let [vek, ask, ark] = der.map(Option::unwrap);
    vec![
        Check::certificate(ark, ark),
        Check::certificate(ask, ark),
        Check::certificate(vek, ask),
        Check::report(evidence.report(), vek),
    ]
}

struct Floor {
    /// In a second, both ends of the handshake.
    rate: f64,
    /// Seconds that one takes at the broker's end.
    own: f64,
}

/// Handshakes and checks, and nothing else.
fn floor(play: &Play, checks: &[Check], threads: usize, lasting: Duration) -> Floor {
    let (client, server) = (play.client_config(), play.server_config());
    let done = AtomicBool::new(false);
    let began = Instant::now();
    let counted: Vec<(usize, Duration)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let (mut count, mut own) = (0, Duration::ZERO);
                    while !done.load(Ordering::Relaxed) {
                        own += handshake(&client, &server);
                        let checking = Instant::now();
                        verify(checks);
                        own += checking.elapsed();
                        count += 1;
                    }
                    (count, own)
                })
            })
            .collect();
        std::thread::sleep(lasting);
        done.store(true, Ordering::Relaxed);
        threads.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let took = began.elapsed().as_secs_f64();
    let all: usize = counted.iter().map(|(count, _)| count).sum();
    let own: f64 = counted.iter().map(|(_, own)| own.as_secs_f64()).sum();
    Floor {
        rate: all as f64 / took,
        own: own / all as f64,
    }
}

/// A full handshake in memory; how long its server took.
fn handshake(client: &Arc<rustls::ClientConfig>, server: &Arc<rustls::ServerConfig>) -> Duration {
    let name = rustls::pki_types::ServerName::try_from("127.0.0.1").unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut own = Duration::ZERO;
    let began = Instant::now();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    own += began.elapsed();
    let mut bytes = Vec::new();
    while client.is_handshaking() || server.is_handshaking() {
        bytes.clear();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        let began = Instant::now();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            server.read_tls(&mut rest).unwrap();
            server.process_new_packets().unwrap();
        }
        let mut answer = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut answer).unwrap();
        }
        own += began.elapsed();
        let mut rest = &answer[..];
        while !rest.is_empty() {
            client.read_tls(&mut rest).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    own
}

/// What a client sends in its turn.
struct Prepared {
    asked: Asked,
    attestation: String,
}

/// Sessions whose evidence is ready to be sent.
fn sessions(play: &Play, tee: &mut SimulatedTee, many: usize) -> Mutex<VecDeque<Prepared>> {
    let (client, guest) = (play.client(), Guest::with_ec());
    let prepared = (0..many).map(|_| {
        let asked = client.auth();
        let attestation = guest.attestation_with(&asked, tee).to_string();
        Prepared { asked, attestation }
    });
    Mutex::new(prepared.collect())
}

/// One exchange for each session, each over a connection of its own.
fn exchanged(play: &Play, sessions: Mutex<VecDeque<Prepared>>) {
    let config = play.client_config();
    let served = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                loop {
                    let Some(next) = sessions.lock().unwrap().pop_front() else {
                        return;
                    };
                    let mut stream = play.tls_with(&config);
                    let auth = r#"{"version":"0.4.0","tee":"snp","extra-params":""}"#;
                    ask(&mut stream, "POST /kbs/v0/auth", "", auth);
                    let session = &next.asked.session;
                    ask(
                        &mut stream,
                        "POST /kbs/v0/attest",
                        session,
                        &next.attestation,
                    );
                    let resource = "GET /kbs/v0/resource/default/key/open";
                    let jwe = ask(&mut stream, resource, session, "");
                    assert!(jwe["ciphertext"].is_string(), "{jwe}");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(served.into_inner(), TURN);
}

/// One request, which must succeed; the body of its answer.
fn ask(stream: &mut Tls, line: &str, session: &str, body: &str) -> Value {
    play::send(stream, line, session, body);
    let (status, _, told) = play::receive(stream);
    assert_eq!(status, 200, "{told}");
    told
}

/// Guests that wait for news of their leases.
fn streams(many: usize) -> bool {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let files = Some(many as u64 + 1024);
    let room = Rlimit {
        current: files,
        maximum: files,
    };
    setrlimit(Resource::Nofile, room).unwrap();
    let play = Play::start(LIMITS);
    let before = play.memory();
    let held = play.waiting(many);
    let with = play.memory();
    let each = (with - before) * 1024 / many as u64;
    println!(
        "{many} streams that wait: {} MiB, {each} bytes for each; {} MiB before; at most {MEMORY} MiB",
        with >> 10,
        before >> 10
    );
    // All of them hear of a revocation.
    let began = Instant::now();
    play.admin(&["revoke", "default/key/open", "--why", "it leaked"])
        .unwrap();
    for mut stream in held {
        let (_, _, told) = play::receive(&mut stream);
        assert_eq!(told["ended"], "revoked", "{told}");
    }
    println!(
        "all of them have heard of a revocation after {:?}",
        began.elapsed()
    );
    with <= MEMORY << 10
}
