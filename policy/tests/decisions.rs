//! The example policy, decided: what holds when, why, and what the file is warned of.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use policy::{
    Access, BackendName, Bundle, Facts, Grant, ReasonKind, Risk, RiskModel, Rootfs, Severity, Tcb,
    TeeName, Tier,
};
use proptest::prelude::*;

const EXAMPLE: &str = include_str!("../examples/clean-room.toml");

const ONLY_LIVE: &str = "version = 1\nname = \"a\"\n[workload]\ncommand = [\"/bin/true\"]\n[rules]\ncedar = '''permit (principal, action == Action::\"live\", resource);'''\n";

fn example() -> Bundle {
    Bundle::parse(EXAMPLE, "clean-room.toml").unwrap_or_else(|error| panic!("{error}"))
}

fn good() -> Facts {
    Facts {
        risk: 0,
        tier: Tier::Affirming,
        tcb: Tcb::UpToDate,
        simulated: Some(false),
        debug: Some(false),
        evidence_age: Some(Duration::from_secs(5)),
        gaps: BTreeSet::new(),
    }
}

fn warnings(source: &str) -> Vec<(usize, usize, String)> {
    let bundle = Bundle::parse(source, "p.toml").unwrap_or_else(|error| panic!("{error}"));
    let lint = bundle.lint();
    assert!(
        lint.iter()
            .all(|finding| finding.severity == Severity::Warning)
    );
    lint.into_iter()
        .map(|finding| (finding.line, finding.column, finding.message))
        .collect()
}

#[test]
fn the_tables_are_read() {
    let bundle = example();
    let tables = bundle.tables();
    assert_eq!(tables.attestation.accept, [TeeName::SevSnp, TeeName::Tdx]);
    assert_eq!(tables.attestation.max_age, Some(Duration::from_secs(600)));
    assert_eq!(tables.workload.command, ["python3", "/app/analyse.py"]);
    assert_eq!(tables.workload.rootfs, Rootfs::Host);
    assert_eq!(tables.workload.cwd, Path::new("/"));
    assert_eq!(tables.isolation.backend, BackendName::Container);
    assert_eq!(
        (tables.isolation.memory, tables.isolation.pids),
        (512 << 20, 64)
    );
    let reduced = tables.isolation.reduced.as_ref().unwrap();
    assert_eq!(
        (reduced.memory, reduced.pids, reduced.cpu),
        (Some(128 << 20), None, Some(0.25))
    );
    assert_eq!(tables.files.write[0].from, Path::new("./out"));
    assert_eq!(tables.files.write[0].at, Path::new("/out"));
    assert_eq!(tables.data["customers"].access, Access::Read);
    assert_eq!(
        tables.data["customers"].key.as_deref(),
        Some("file:customers.key")
    );
    assert_eq!(
        tables.risk["denied-address"].half_life,
        Some(Duration::from_secs(60))
    );
    assert_eq!(tables.risk["stale-evidence"].half_life, None);
}

#[test]
fn every_table_entry_is_a_grant() {
    let grants: Vec<String> = example().grants().iter().map(ToString::to_string).collect();
    assert_eq!(
        grants,
        [
            "read /app",
            "read /out",
            "read vault customers",
            "write /out",
            "exec /",
            "connect 10.0.0.5:5432",
            "connect api.example.com:443",
            "use tier full",
            "proceed",
            "live",
        ]
    );
}

#[test]
fn grants_are_lost_one_after_the_other_as_risk_rises() {
    let bundle = example();
    let lost = |risk| -> Vec<String> {
        let decision = bundle.decide(&Facts { risk, ..good() });
        decision
            .denied
            .iter()
            .map(|denial| denial.grant.to_string())
            .collect()
    };
    assert_eq!(lost(19), [""; 0]);
    let network = ["connect 10.0.0.5:5432", "connect api.example.com:443"];
    assert_eq!(lost(20), network);
    assert_eq!(lost(30), [&network[..], &["use tier full"]].concat());
    assert_eq!(
        lost(40),
        [&["read vault customers"], &network[..], &["use tier full"]].concat()
    );
    assert!(lost(60).contains(&"proceed".to_owned()) && !lost(60).contains(&"live".to_owned()));
    assert!(lost(80).contains(&"live".to_owned()));
}

#[test]
fn a_decision_names_the_rules_it_rests_on() {
    let decision = example().decide(&Facts {
        tcb: Tcb::OutOfDate,
        ..good()
    });
    let denied = &decision.because(&Grant::read_vault("customers"))[0];
    assert_eq!(
        (&*denied.rule, denied.kind),
        ("data-needs-trust", ReasonKind::Forbidden)
    );
    assert_eq!(
        &*denied.text,
        "forbid (principal, action == Action::\"read\", resource is Vault) when { context.risk >= 40 || context.tcb != \"up-to-date\" };"
    );
    assert!(
        EXAMPLE
            .lines()
            .nth(denied.line - 1)
            .unwrap()
            .starts_with("forbid (principal, action == Action::\"read\"")
    );
    let permitted = &decision.because(&Grant::live())[0];
    assert_eq!(
        (&*permitted.rule, permitted.kind),
        ("rule 1", ReasonKind::Permitted)
    );
}

#[test]
fn a_grant_that_nothing_permits_says_so() {
    let source = EXAMPLE.replace("permit (principal, action, resource);", "permit (principal, action in [Action::\"live\", Action::\"connect\"], resource) when { context.risk < 10 };");
    let decision = Bundle::parse(&source, "p.toml")
        .unwrap()
        .decide(&Facts { risk: 15, ..good() });
    let live = &decision.because(&Grant::live())[0];
    assert_eq!(
        (&*live.rule, live.kind),
        ("rule 1", ReasonKind::NotPermitted)
    );
    let exec = &decision.because(&Grant::exec())[0];
    assert_eq!((&*exec.rule, exec.kind), ("", ReasonKind::NotPermitted));
    assert_eq!(&*exec.text, "no rule permits `exec /`");
}

#[test]
fn the_serialised_decision_is_as_it_always_was() {
    let decision = Bundle::parse(ONLY_LIVE, "p.toml").unwrap().decide(&good());
    assert_eq!(
        serde_json::to_string(&decision).unwrap(),
        concat!(
            r#"{"granted":["live"],"denied":["#,
            r#"{"grant":"exec /","because":[{"rule":"","line":6,"text":"no rule permits `exec /`","kind":"not-permitted"}]},"#,
            r#"{"grant":"use tier full","because":[{"rule":"","line":6,"text":"no rule permits `use tier full`","kind":"not-permitted"}]},"#,
            r#"{"grant":"proceed","because":[{"rule":"","line":6,"text":"no rule permits `proceed`","kind":"not-permitted"}]}],"#,
            r#""permitted":[{"grant":"live","because":[{"rule":"rule 1","line":6,"text":"permit (principal, action == Action::\"live\", resource);","kind":"permitted"}]}]}"#,
        )
    );
}

#[test]
fn the_digest_is_that_of_the_bytes() {
    let one = example().digest();
    assert_eq!(one, example().digest());
    let spaced = Bundle::parse(&format!("{EXAMPLE} "), "p.toml").unwrap();
    assert_ne!(one, spaced.digest());
    // By sha256sum.
    let hex = |digest: [u8; 32]| -> String { digest.iter().map(|b| format!("{b:02x}")).collect() };
    let digest = Bundle::parse(ONLY_LIVE, "p.toml").unwrap().digest();
    assert_eq!(
        hex(digest),
        "2ad43b449402a1a489bb6a634eb4e4609f300fb30178c7c1d4a40ae4bcc204ea"
    );
}

#[test]
fn signals_move_the_example_and_time_moves_it_back() {
    let bundle = example();
    let mut risk = Risk::new(RiskModel::from(&bundle));
    let start = Duration::from_secs(1_800_000_000);
    risk.signal("denied-syscall", start);
    risk.signal("denied-syscall", start);
    let decide = |risk: &Risk, now| {
        bundle.decide(&Facts {
            risk: risk.score(now),
            ..good()
        })
    };
    let lost = |risk: &Risk, now| decide(risk, now).denied.len();
    assert_eq!(lost(&risk, start), 2);
    let back = risk.next_change(start).unwrap();
    assert_eq!(lost(&risk, back), 0);
    risk.hold("stale-evidence", back);
    assert!(!decide(&risk, back).grants(&Grant::read_vault("customers")));
    risk.release("stale-evidence", back);
    assert!(
        lost(&risk, back) > 0,
        "a fall counts only after it stayed below"
    );
    assert_eq!(lost(&risk, back + bundle.tables().risk_falls_after), 0);
}

#[test]
fn the_next_age_is_the_first_at_which_a_decision_changes() {
    let rules = "permit (principal, action, resource) when { context.evidence_age <= 600 };\nforbid (principal, action == Action::\"exec\", resource) when { context.evidence_age >= 60 };";
    let bundle = Bundle::parse(&with_rules(rules), "p.toml").unwrap();
    let granted = |age| {
        bundle
            .decide(&Facts {
                evidence_age: Some(age),
                ..good()
            })
            .granted
    };
    let mut age = Duration::ZERO;
    let mut changes = Vec::new();
    while let Some(next) = bundle.next_age(age) {
        let until = next - Duration::from_nanos(1);
        assert!(next > age);
        assert_eq!(granted(until), granted(age));
        if granted(next) != granted(until) {
            changes.push(until.as_secs());
        }
        age = next;
    }
    assert_eq!(changes, [59, 600]);
    assert_eq!(granted(age), granted(Duration::MAX));
    assert_eq!(example().next_age(Duration::ZERO), None);
}

#[test]
fn a_denied_grant_is_explained_with_what_would_grant_it() {
    let bundle = example();
    let explain = |facts: &Facts, grant: &Grant| {
        let all = bundle.explain(facts);
        assert_eq!(all.len(), bundle.grants().len());
        all.into_iter().find(|one| one.grant == *grant).unwrap()
    };
    let network = bundle
        .grants()
        .iter()
        .find(|grant| grant.to_string().starts_with("connect"))
        .unwrap();
    let denied = explain(&Facts { risk: 45, ..good() }, network);
    assert_eq!(denied.would_be_granted_if, ["risk < 20"]);
    assert_eq!(
        denied.to_string(),
        "connect 10.0.0.5:5432: denied\n  \
           forbidden by quiet-network (line 48): forbid (principal, action == Action::\"connect\", resource) when { context.risk >= 20 };\n  \
           would be granted if risk < 20\n"
    );
    let vault = Grant::read_vault("customers");
    let denied = explain(
        &Facts {
            tcb: Tcb::Revoked,
            ..good()
        },
        &vault,
    );
    assert_eq!(denied.would_be_granted_if, ["tcb = \"up-to-date\""]);
    // Two things stand against it: no single one helps.
    let denied = explain(
        &Facts {
            tcb: Tcb::Revoked,
            risk: 50,
            ..good()
        },
        &vault,
    );
    assert_eq!(
        denied.would_be_granted_if,
        ["risk < 40 and tcb = \"up-to-date\""]
    );
    assert!(explain(&good(), &vault).granted);
    assert_eq!(explain(&good(), &vault).would_be_granted_if, [""; 0]);
}

#[test]
fn the_example_needs_no_warning() {
    assert_eq!(warnings(EXAMPLE), []);
}

#[test]
fn overbroad_tables_are_warned_of() {
    for (table, place, message) in [
        (
            "[files]\nread = [\"/\"]",
            (2, 9),
            "this gives the workload the whole host",
        ),
        (
            "[files]\nread = [\"/home/me\"]",
            (2, 9),
            "this gives the workload a whole home directory, with its keys",
        ),
        (
            "[files]\nread = [\"/proc/1\"]",
            (2, 9),
            "this gives the workload the host's kernel interfaces",
        ),
        (
            "[files]\nread = [\"/sys\"]",
            (2, 9),
            "this gives the workload the host's kernel interfaces",
        ),
        (
            "[files]\nwrite = [{ from = \"/var/run/docker.sock\", at = \"/d\" }]",
            (2, 10),
            "this gives the workload a container engine's socket, which is root on the host",
        ),
        (
            "[files]\nwrite = [\"/etc/cron.d\"]",
            (2, 10),
            "this gives the workload the host's own system files, for writing",
        ),
        (
            "[files]\nread = [{ from = \"~/x\", at = \"/x\" }]",
            (2, 9),
            "`~` is not expanded: this is a folder called `~`",
        ),
        (
            "[network]\nconnect = [\"169.254.169.254:80\"]",
            (2, 12),
            "this is the cloud's metadata service, which hands out credentials of the host",
        ),
        (
            "[network]\nconnect = [\"0.0.0.0:443\"]",
            (2, 12),
            "this is no address to connect to: it is refused",
        ),
        (
            "[attestation]\naccept = [\"simulated\"]",
            (2, 11),
            "`simulated` evidence proves nothing, and is accepted",
        ),
    ] {
        let source = format!(
            "version = 1\nname = \"a\"\n[workload]\ncommand = [\"/bin/true\"]\n{table}\n[risk]\noperator = {{ adds = 100 }}\n[rules]\ncedar = '''permit (principal, action, resource) when {{ context.risk < 50 }};'''\n"
        );
        assert_eq!(
            warnings(&source),
            [(place.0 + 4, place.1, message.to_owned())],
            "{table}"
        );
    }
}

fn with_rules(rules: &str) -> String {
    format!(
        "version = 1\nname = \"a\"\n[workload]\ncommand = [\"/bin/true\"]\n[files]\nread = [\"/app\"]\n[risk]\noperator = {{ adds = 50 }}\n[rules]\ncedar = '''\n{rules}\n'''\n"
    )
}

fn messages(rules: &str) -> Vec<(usize, String)> {
    warnings(&with_rules(rules))
        .into_iter()
        .map(|(line, _, message)| (line, message))
        .collect()
}

#[test]
fn rules_that_do_nothing_are_warned_of() {
    let base = "permit (principal, action, resource) when { context.risk < 40 };\n";
    assert_eq!(messages(base), []);
    assert_eq!(
        messages(&format!(
            "{base}forbid (principal, action == Action::\"connect\", resource);"
        )),
        [(
            12,
            "this rule is about nothing that a table lists".to_owned()
        )]
    );
    assert_eq!(
        messages(&format!(
            "{base}forbid (principal, action == Action::\"exec\", resource is Vault);"
        )),
        [(12, "this rule can never hold".to_owned())]
    );
    assert_eq!(
        messages(&format!(
            "{base}forbid (principal, action, resource) when {{ context.risk >= 51 }};"
        )),
        [(12, "risk never reaches 51 by itself".to_owned())]
    );
    assert_eq!(
        messages(&format!(
            "{base}forbid (principal, action == Action::\"exec\", resource) unless {{ context.debug && !context.debug }};"
        )),
        [(
            10,
            "`exec /` is never granted, whatever the facts".to_owned()
        )]
    );
}

#[test]
fn a_workload_that_nothing_stops_is_warned_of() {
    assert_eq!(
        messages("permit (principal, action, resource);"),
        [(10, "nothing ever freezes or stops this workload".to_owned())]
    );
    assert_eq!(
        messages(
            "permit (principal, action, resource);\nforbid (principal, action == Action::\"live\", resource) when { context.risk >= 40 };"
        ),
        []
    );
}

#[test]
fn rules_that_reward_the_worse_are_warned_of() {
    let base = "permit (principal, action, resource) when { context.risk < 45 };\n";
    let warned = messages(&format!(
        "{base}forbid (principal, action == Action::\"exec\", resource) when {{ context.risk < 10 }};"
    ));
    assert_eq!(
        warned,
        [(12, "a worse `risk` grants more: `exec /`".to_owned())]
    );
    // To know nothing must not grant what to know the worst does not.
    let warned = messages(&format!(
        "{base}forbid (principal, action, resource) when {{ context.tcb == \"revoked\" }};"
    ));
    assert_eq!(
        warned,
        [(12, "a worse `tcb` grants more: `read /app`".to_owned())]
    );
    let warned = messages(&format!(
        "{base}forbid (principal, action, resource) when {{ context.evidence_age < 60 }};"
    ));
    assert_eq!(
        warned,
        [(
            12,
            "a worse `evidence_age` grants more: `read /app`".to_owned()
        )]
    );
    let warned = messages(&format!(
        "{base}permit (principal, action, resource) when {{ context.debug }};"
    ));
    assert!(
        warned.contains(&(11, "a worse `debug` grants more: `read /app`".to_owned())),
        "{warned:?}"
    );
}

#[test]
fn linting_and_explaining_many_rules_stays_affordable() {
    let mut rules = String::from("permit (principal, action, resource);\n");
    for n in 0..400 {
        rules.push_str(&format!(
            "forbid (principal, action, resource) when {{ context.risk >= {} && context.evidence_age > {} && context.gaps.contains(\"g{n}\") }};\n",
            n % 51, n * 7
        ));
    }
    let bundle = Bundle::parse(&with_rules(&rules), "p.toml").unwrap();
    bundle.lint();
    assert_eq!(
        bundle.explain(&Facts::unknown()).len(),
        bundle.grants().len()
    );
}

fn any_facts() -> impl Strategy<Value = Facts> {
    (
        0..=100_u8,
        proptest::sample::select(Tier::ALL),
        proptest::sample::select(Tcb::ALL),
        proptest::option::of(any::<bool>()),
        proptest::option::of(any::<bool>()),
        proptest::option::of(0..u64::MAX),
        proptest::collection::btree_set("[a-z]{1,8}", 0..3),
    )
        .prop_map(|(risk, tier, tcb, simulated, debug, age, gaps)| Facts {
            risk,
            tier,
            tcb,
            simulated,
            debug,
            evidence_age: age.map(Duration::from_secs),
            gaps,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn replaying_logged_facts_gives_the_same_decision_to_the_byte(facts in any_facts()) {
        let logged = serde_json::to_string(&facts).unwrap();
        let replayed: Facts = serde_json::from_str(&logged).unwrap();
        prop_assert_eq!(&facts, &replayed);
        let now = serde_json::to_string(&example().decide(&facts)).unwrap();
        let later = serde_json::to_string(&example().decide(&replayed)).unwrap();
        prop_assert_eq!(now, later);
    }

    #[test]
    fn every_grant_is_either_granted_or_denied_for_a_reason(facts in any_facts()) {
        let bundle = example();
        let decision = bundle.decide(&facts);
        prop_assert_eq!(decision.granted.len() + decision.denied.len(), bundle.grants().len());
        for grant in bundle.grants() {
            prop_assert!(!decision.because(grant).is_empty());
            prop_assert_eq!(decision.grants(grant), decision.denied.iter().all(|d| d.grant != *grant));
        }
    }
}
