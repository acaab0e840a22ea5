//! What a decision costs: all 27 grants of a bundle of 1,000 rules, and one grant.
//!
//! Beside it, in the same run, the same rules without anything to tell apart (their conditions
//! look at no resource), the bundle of a few rules that most workloads have, and plain Cedar, asked
//! about every grant with all rules, as it is used where nobody slices. regorus on equivalent rules
//! is in `policy/peers`. `cargo test` runs one round, to see that it works; `cargo bench` measures.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::hint::black_box;
use std::time::{Duration, Instant};

use cedar_policy::{
    Authorizer, Context, Entities, Entity, EntityUid, PolicySet, Request, RestrictedExpression,
};

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
        one_grant(name, bundle, rounds);
    }
    plain_cedar(&by_resource, rounds.min(40));
}

/// The grant that takes longest, alone.
fn one_grant(name: &str, bundle: &Bundle, rounds: usize) {
    let slowest = bundle.grants().iter().map(|grant| {
        let mut taken: Vec<Duration> = (0..rounds * 5)
            .map(|_| timed(|| bundle.decide_about(black_box(&facts(50)), black_box(grant))))
            .collect();
        taken.sort();
        (taken[taken.len() * 99 / 100], taken[taken.len() / 2], grant)
    });
    let (p99, median, grant) = slowest.max().unwrap();
    println!(
        "{name}, one grant ({grant}): {:.1} µs (p99 {:.1} µs)",
        1000.0 * ms(median),
        1000.0 * ms(p99)
    );
}

/// All rules for every grant, by the authorizer as it comes.
fn plain_cedar(bundle: &Bundle, rounds: usize) {
    let cedar = bundle.source().split("'''").nth(1).unwrap();
    let rules: PolicySet = cedar.parse().unwrap();
    let uid = |text: &str| -> EntityUid { text.parse().unwrap() };
    let endpoints = (0..ENDPOINTS).map(|n| {
        let host = RestrictedExpression::new_string(format!("h{n}.example"));
        let attributes = [
            ("host", host),
            ("port", RestrictedExpression::new_long(443)),
        ];
        let attributes = attributes
            .map(|(key, value)| (key.to_owned(), value))
            .into();
        Entity::new(
            uid(&format!("Endpoint::\"h{n}.example:443\"")),
            attributes,
            [].into(),
        )
        .unwrap()
    });
    let entities = Entities::from_entities(endpoints, None).unwrap();
    let context =
        Context::from_pairs([("risk".to_owned(), RestrictedExpression::new_long(50))]).unwrap();
    let requests: Vec<Request> = (0..ENDPOINTS)
        .map(|n| {
            Request::new(
                uid("Workload::\"bench\""),
                uid("Action::\"connect\""),
                uid(&format!("Endpoint::\"h{n}.example:443\"")),
                context.clone(),
                None,
            )
            .unwrap()
        })
        .collect();
    let authorizer = Authorizer::new();
    let mut taken: Vec<Duration> = (0..rounds)
        .map(|_| {
            timed(|| {
                for request in &requests {
                    black_box(authorizer.is_authorized(request, &rules, &entities));
                }
            })
        })
        .collect();
    taken.sort();
    println!(
        "plain Cedar, the same 1000 rules, {ENDPOINTS} grants: {:.3} ms (p99 {:.3} ms), {:.1} µs a grant",
        ms(taken[rounds / 2]),
        ms(taken[rounds * 99 / 100]),
        1000.0 * ms(taken[rounds / 2]) / ENDPOINTS as f64
    );
}

fn timed<T>(work: impl FnOnce() -> T) -> Duration {
    let start = Instant::now();
    black_box(work());
    start.elapsed()
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
    let facts = facts(risk);
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

fn facts(risk: u8) -> Facts {
    Facts {
        risk,
        tier: Tier::Affirming,
        tcb: Tcb::UpToDate,
        simulated: Some(false),
        debug: Some(false),
        evidence_age: Some(Duration::from_secs(5)),
        gaps: BTreeSet::new(),
    }
}
