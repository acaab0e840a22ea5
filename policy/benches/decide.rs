//! What a decision costs: all 27 grants of a bundle of 1,000 rules, and one grant.
//!
//! Beside it, in the same run, the same rules without anything to tell apart (their conditions
//! look at no resource), and the bundle of a few rules that most workloads have. `cargo test` runs
//! one round, to see that it works; `cargo bench` measures.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::hint::black_box;
use std::time::{Duration, Instant};

use policy::{Bundle, Facts, Tcb, Tier};

const RULES: usize = 1000;
const ENDPOINTS: usize = 23;

fn main() {
    let rounds = match std::env::args().any(|argument| argument == "--bench") {
        true => 400,
        false => 1,
    };
    let by_resource = bundle(ENDPOINTS, |n| {
        let (host, port) = (n % ENDPOINTS, n % 7 + 1);
        format!(
            "resource.host == \"h{host}.example\" && resource.port != {port} && context.risk >= {}",
            20 + n % 80
        )
    });
    let by_facts = bundle(ENDPOINTS, |n| format!("context.risk >= {}", 20 + n % 80));
    let one = bundle(0, |_| "context.risk >= 80".to_owned());
    assert_eq!(by_resource.grants().len(), 27);
    let few = Bundle::parse(include_str!("../examples/clean-room.toml"), "few.toml").unwrap();

    for (name, bundle) in [
        ("1000 rules that look at the resource", &by_resource),
        ("1000 rules that look at the facts only", &by_facts),
        ("1000 rules about other grants", &one),
        ("6 rules", &few),
    ] {
        for (risk, weather) in [(0, "nothing denied"), (100, "all denied")] {
            let (median, p99) = measure(bundle, risk, rounds);
            let grants = u32::try_from(bundle.grants().len()).unwrap();
            println!(
                "{name}, {grants} grants, {weather}: {:.3} ms (p99 {:.3} ms), {:.1} µs a grant",
                ms(median),
                ms(p99),
                1000.0 * ms(median) / f64::from(grants)
            );
        }
    }
}

/// A bundle with this many endpoints, and rules about connecting under these conditions.
fn bundle(endpoints: usize, condition: impl Fn(usize) -> String) -> Bundle {
    let connect: Vec<String> = (0..endpoints)
        .map(|n| format!("\"h{n}.example:443\""))
        .collect();
    let mut source = format!(
        "version = 1\nname = \"bench\"\n[workload]\ncommand = [\"/bin/true\"]\n[network]\nconnect = [{}]\n[rules]\ncedar = '''\npermit (principal, action, resource);\n",
        connect.join(", ")
    );
    for n in 1..RULES {
        let condition = condition(n);
        writeln!(
            source,
            "forbid (principal, action == Action::\"connect\", resource) when {{ {condition} }};"
        )
        .unwrap();
    }
    source.push_str("'''\n");
    Bundle::parse(&source, "bench.toml").unwrap_or_else(|error| panic!("{error}"))
}

/// The median and the 99th percentile of a decision.
fn measure(bundle: &Bundle, risk: u8, rounds: usize) -> (Duration, Duration) {
    let facts = Facts {
        risk,
        tier: Tier::Affirming,
        tcb: Tcb::UpToDate,
        simulated: Some(false),
        debug: Some(false),
        evidence_age: Some(Duration::from_secs(5)),
        gaps: BTreeSet::new(),
    };
    let mut taken: Vec<Duration> = (0..rounds)
        .map(|_| {
            let start = Instant::now();
            black_box(bundle.decide(black_box(&facts)));
            start.elapsed()
        })
        .collect();
    taken.sort();
    (taken[rounds / 2], taken[rounds * 99 / 100])
}

fn ms(duration: Duration) -> f64 {
    1000.0 * duration.as_secs_f64()
}
