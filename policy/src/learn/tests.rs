#![allow(clippy::unwrap_used)]

use super::*;

fn given<'a>(profiles: &'a [(&'a str, BTreeSet<&'a str>)]) -> Given<'a> {
    Given {
        trees: &["/usr", "/etc/ld.so.cache"],
        profiles,
        public: |address| address.to_string() != "203.0.113.6",
    }
}

fn observation(seen: Vec<What>) -> Observation {
    let seen = seen.into_iter().enumerate().map(|(at, what)| Seen {
        what,
        run: 1,
        at: at as u64,
        times: 1,
    });
    Observation {
        command: vec!["/srv/tool".into(), "a \"quoted\" one".into()],
        cwd: "/srv".into(),
        runs: 1,
        pids: 1,
        seen: seen.collect(),
        ..Observation::default()
    }
}

#[test]
fn what_was_seen_is_granted_and_nothing_else() {
    let mut seen = vec![
        What::Exec("/srv/tool".into()),
        What::Read("/usr/lib/libc.so".into()),
        What::Write("/usr/lib/evil".into()),
        What::Change("/srv/out".into()),
        What::Read("/srv/out/made".into()),
        What::Change("/tmp/x".into()),
        What::Connect("10.0.0.5:5432".into()),
        What::Connect("9.9.9.9:53".into()),
        What::Syscall("connect".into()),
        What::Connect("/run/\u{202e}bus".into()),
        What::Syscall("read".into()),
        What::Syscall("keyctl".into()),
    ];
    seen.extend((0..9).map(|n| What::Read(format!("/srv/models/{n}").into())));
    let profiles = [
        ("big", BTreeSet::from(["read", "write", "fork"])),
        ("small", BTreeSet::from(["read", "write"])),
    ];
    let text = observation(seen).propose("tool", &given(&profiles));
    let bundle = Bundle::parse(&text, "p.toml").unwrap_or_else(|e| panic!("{e}\n{text}"));
    let paths = |files: &[crate::FileGrant]| -> Vec<String> {
        files
            .iter()
            .map(|file| file.at.display().to_string())
            .collect()
    };
    let tables = bundle.tables();
    assert_eq!(paths(&tables.files.read), ["/srv/models", "/srv/tool"]);
    assert_eq!(paths(&tables.files.write), ["/srv/out"]);
    assert_eq!(tables.network.connect.len(), 1);
    assert_eq!(tables.syscalls.profile, "small");
    assert_eq!(tables.syscalls.allow, ["keyctl"]);
    assert_eq!(tables.workload.command[1], "a \"quoted\" one");
    assert!(text.contains("# it wrote `/usr/lib/evil`"), "{text}");
    assert!(!text.contains("9.9.9.9"), "{text}");
    assert!(tables.risk.contains_key("denied-address"), "{text}");
    let calm = Facts {
        risk: 0,
        ..Facts::unknown()
    };
    let decision = bundle.decide(&calm);
    assert!(decision.proceed() && decision.grants(&Grant::write_path("/srv/out")));
    let cases = crate::Cases::parse(&cases(&bundle), "t.toml", &bundle).unwrap();
    let report = cases.run(&bundle);
    assert!(
        report.passed() && report.uncovered().next().is_none(),
        "{report}"
    );
}

#[test]
fn runs_are_merged() {
    let mut first = Observation::default();
    first.merge(&observation(vec![What::Read("/srv/a".into())]));
    first.merge(&observation(vec![
        What::Read("/srv/a".into()),
        What::Read("/srv/b".into()),
    ]));
    assert_eq!((first.runs, first.seen.len()), (2, 2));
    assert_eq!((first.seen[0].times, first.seen[0].run), (2, 1));
    assert_eq!((first.seen[1].times, first.seen[1].run), (1, 2));
    let again: Observation = serde_json::from_str(&serde_json::to_string(&first).unwrap()).unwrap();
    assert_eq!(again, first);
}

#[test]
fn an_address_is_granted_by_the_name_that_led_to_it() {
    let address = |text: &str| text.parse().unwrap();
    let seen = vec![
        What::Resolved("api.example.com".into(), address("203.0.113.5")),
        What::Resolved("mirror.example.com".into(), address("203.0.113.6")),
        What::Resolved("other.example.com".into(), address("203.0.113.6")),
        What::Resolved("telemetry.example.com".into(), address("203.0.113.7")),
        What::Resolved("six.example.com".into(), address("2001:db8::1")),
        What::Connect("203.0.113.5:443".into()),
        What::Connect("203.0.113.6:80".into()),
        What::Connect("[2001:db8::1]:443".into()),
        What::Connect("203.0.113.8:22".into()),
    ];
    let profiles = [("default", BTreeSet::from(["read"]))];
    let text = observation(seen).propose("tool", &given(&profiles));
    let bundle = Bundle::parse(&text, "p.toml").unwrap_or_else(|e| panic!("{e}\n{text}"));
    let connect = &bundle.tables().network.connect;
    let connect: Vec<String> = connect.iter().map(ToString::to_string).collect();
    assert_eq!(
        connect,
        [
            "203.0.113.6:80",
            "203.0.113.8:22",
            "api.example.com:443",
            "mirror.example.com:80",
            "other.example.com:80",
            "six.example.com:443",
        ]
    );
    assert!(text.contains("connected as 203.0.113.5, once"), "{text}");
    assert!(
        text.contains("\"203.0.113.6:80\",    # no public address"),
        "{text}"
    );
    assert_eq!(text.matches("one of several names").count(), 2, "{text}");
    assert!(
        text.contains("the name `telemetry.example.com` and did not"),
        "{text}"
    );
}
