//! regorus beside this crate, on the same 1,000 rules and 23 grants, in one run.
//!
//! Each is asked about every grant; the rules look at the resource and at the risk. regorus gets
//! them twice: one rule for each, and as data that one rule looks up, which is how its users make
//! it fast.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::hint::black_box;
use std::time::{Duration, Instant};

use policy::{Bundle, Facts, Tcb, Tier};
use regorus::{Engine, Value};

const RULES: usize = 1000;
const ENDPOINTS: usize = 23;
const ROUNDS: usize = 60;
const RISK: u8 = 10;

fn main() {
    let ours = ours();
    let facts = Facts {
        risk: RISK,
        tier: Tier::Affirming,
        tcb: Tcb::UpToDate,
        simulated: Some(false),
        debug: Some(false),
        evidence_age: Some(Duration::ZERO),
        gaps: BTreeSet::new(),
    };
    let granted = ours.decide(&facts).granted.len();
    report("casemate-policy", || ours.decide(&facts));

    let mut rego = regorus(&rule_each());
    assert_eq!(allowed(&mut rego), ENDPOINTS.min(granted));
    report("regorus, a rule each", || allowed(&mut rego));
    let mut rego = regorus(&looked_up());
    assert_eq!(allowed(&mut rego), ENDPOINTS.min(granted));
    report("regorus, rules as data", || allowed(&mut rego));
}

/// What rule `n` is about: a host by number, a port that is not meant, the least risk.
fn rule(n: usize) -> (usize, usize, usize) {
    (n % ENDPOINTS, n % 7 + 1, 20 + n % 80)
}

fn ours() -> Bundle {
    let connect: Vec<String> = (0..ENDPOINTS).map(|n| format!("\"h{n}.example:443\"")).collect();
    let mut source = format!(
        "version = 1\nname = \"bench\"\n[workload]\ncommand = [\"true\"]\n[network]\nconnect = [{}]\n[rules]\ncedar = '''\npermit (principal, action, resource);\n",
        connect.join(", ")
    );
    for (host, port, risk) in (1..RULES).map(rule) {
        writeln!(source, "forbid (principal, action == Action::\"connect\", resource) when {{ resource.host == \"h{host}.example\" && resource.port != {port} && context.risk >= {risk} }};").unwrap();
    }
    source.push_str("'''\n");
    Bundle::parse(&source, "bench.toml").unwrap()
}

fn rule_each() -> String {
    let mut rego = "package bench\nimport rego.v1\ndefault allow := false\nallow if not deny\n".to_owned();
    for (host, port, risk) in (1..RULES).map(rule) {
        writeln!(rego, "deny if {{ input.action == \"connect\"; input.host == \"h{host}.example\"; input.port != {port}; input.risk >= {risk} }}").unwrap();
    }
    rego
}

fn looked_up() -> String {
    let mut hosts = vec![Vec::new(); ENDPOINTS];
    for (host, port, risk) in (1..RULES).map(rule) {
        hosts[host].push(format!("{{\"port\": {port}, \"risk\": {risk}}}"));
    }
    let table: Vec<String> = hosts
        .iter()
        .enumerate()
        .map(|(n, rules)| format!("\"h{n}.example\": [{}]", rules.join(", ")))
        .collect();
    format!(
        "package bench\nimport rego.v1\ntable := {{{}}}\ndefault allow := false\nallow if not deny\ndeny if {{ input.action == \"connect\"; some rule in table[input.host]; input.port != rule.port; input.risk >= rule.risk }}\n",
        table.join(", ")
    )
}

fn regorus(rego: &str) -> Engine {
    let mut engine = Engine::new();
    engine.add_policy("bench.rego".to_owned(), rego.to_owned()).unwrap();
    engine
}

/// How many endpoints may be connected to.
fn allowed(engine: &mut Engine) -> usize {
    let mut allowed = 0;
    for n in 0..ENDPOINTS {
        let input = format!("{{\"action\": \"connect\", \"host\": \"h{n}.example\", \"port\": 443, \"risk\": {RISK}}}");
        engine.set_input(Value::from_json_str(&input).unwrap());
        let value = engine.eval_rule("data.bench.allow".to_owned()).unwrap();
        allowed += usize::from(value == Value::from(true));
    }
    allowed
}

fn report<T>(name: &str, mut work: impl FnMut() -> T) {
    let mut taken: Vec<Duration> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            black_box(work());
            start.elapsed()
        })
        .collect();
    taken.sort();
    let ms = |duration: Duration| 1000.0 * duration.as_secs_f64();
    println!("{name}: {:.3} ms (p99 {:.3} ms)", ms(taken[ROUNDS / 2]), ms(taken[ROUNDS * 99 / 100]));
}
