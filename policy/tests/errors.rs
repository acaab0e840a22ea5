//! What a refused policy file says, to the letter.

#![allow(clippy::unwrap_used)]

use policy::{Bundle, Facts, Severity};
use proptest::prelude::*;

const GOOD: &str = r#"version = 1
name = "good"
[workload]
command = ["/bin/true"]
[rules]
cedar = """
permit (principal, action, resource);
forbid (principal, action, resource) when { context.risk >= 1 };
"""
"#;

fn refusal(source: &str) -> String {
    Bundle::parse(source, "p.toml").unwrap_err().to_string()
}

/// Line, column and message of each problem.
fn problems(source: &str) -> Vec<(usize, usize, String)> {
    let error = Bundle::parse(source, "p.toml").unwrap_err();
    assert!(!error.diagnostics().is_empty());
    assert!(
        error
            .diagnostics()
            .iter()
            .all(|problem| problem.severity == Severity::Error)
    );
    error
        .diagnostics()
        .iter()
        .map(|p| (p.line, p.column, p.message.clone()))
        .collect()
}

/// The only problem after a replacement in the good file.
fn problem(from: &str, to: &str) -> (usize, usize, String) {
    assert!(GOOD.contains(from));
    let problems = problems(&GOOD.replace(from, to));
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.into_iter().next().unwrap()
}

/// The only problem of the good file with a table added before `[rules]`.
fn table(table: &str) -> (usize, usize, String) {
    let (line, column, message) = problem("[rules]", &format!("{table}\n[rules]"));
    (line - 4, column, message)
}

#[test]
fn the_good_file_is_good() {
    let bundle = Bundle::parse(GOOD, "p.toml").unwrap();
    assert_eq!((bundle.version(), bundle.name()), (1, "good"));
    assert_eq!(bundle.source(), GOOD);
}

#[test]
fn every_problem_is_told_at_once() {
    let source = "\
versoin = 1
name = 3
[workload]
command = []
[isolation]
memory = \"12\"
[files]
read = [\"app\"]
[rules]
cedar = \"permit (principal, action, resource);\"
";
    assert_eq!(
        refusal(source),
        "\
error: unknown key `versoin`
 --> p.toml:1:1
  |
1 | versoin = 1
  | ^^^^^^^
  = help: did you mean `version`?

error: missing `version`
 --> p.toml:1:1
  |
1 | versoin = 1
  | ^
  = help: add a number that only grows: `version = 1`

error: `name` takes a string, not an integer
 --> p.toml:2:8
  |
2 | name = 3
  |        ^
  = help: put it in quotes: `name = \"3\"`

error: `command` names no program
 --> p.toml:4:11
  |
4 | command = []
  |           ^^
  = help: `command = [\"/usr/bin/true\"]`

error: `12` is not a size
 --> p.toml:6:10
  |
6 | memory = \"12\"
  |          ^^^^
  = help: write digits and a unit: `512MiB` (B, KiB, MiB, GiB, TiB)

error: `app` is beside this file, and where the workload sees it is not said
 --> p.toml:8:9
  |
8 | read = [\"app\"]
  |         ^^^^^
  = help: `{ from = \"./app\", at = \"/app\" }`

p.toml: 6 problems"
    );
}

#[test]
fn missing_rules_are_refused_with_an_example_that_loads() {
    let text = refusal("version = 1\nname = \"a\"\n[workload]\ncommand = [\"/bin/true\"]\n");
    assert!(
        text.starts_with("error: missing `[rules]`: without rules nothing is granted\n"),
        "{text}"
    );
    let example: String = text
        .lines()
        .skip_while(|line| line.trim() != "[rules]")
        .take_while(|line| line.starts_with("      "))
        .map(|line| format!("{}\n", line.trim_start()))
        .collect();
    let source =
        format!("version = 1\nname = \"a\"\n[workload]\ncommand = [\"/bin/true\"]\n{example}");
    Bundle::parse(&source, "p.toml").unwrap();
}

#[test]
fn errors_of_rules_are_placed_in_the_file() {
    let text = refusal(&GOOD.replace("context.risk", "context.rsk"));
    assert_eq!(
        text,
        "\
error: attribute `rsk` in context for Action::\"connect\" not found
 --> p.toml:8:45
  |
8 | forbid (principal, action, resource) when { context.rsk >= 1 };
  |                                             ^^^^^^^^^^^
  = help: did you mean `risk`?

p.toml: 1 problem"
    );
    // Both quotes, one line, and literal strings.
    for quotes in ["'''", "'", "\"\"\""] {
        let source = GOOD.replace(
            "\"\"\"\npermit (principal, action, resource);\nforbid (principal, action, resource) when { context.risk >= 1 };\n\"\"\"",
            &format!("{quotes}permit (principal, action, resource) when {{ context.rsk > 1 }};{quotes}"),
        );
        let column = 8 + quotes.len() + 1 + "permit (principal, action, resource) when { ".len();
        assert_eq!(
            (problems(&source)[0].0, problems(&source)[0].1),
            (6, column),
            "{quotes}"
        );
    }
    // Windows line ends.
    let (line, column, _) = problems(
        &GOOD
            .replace("context.risk", "context.rsk")
            .replace('\n', "\r\n"),
    )[0];
    assert_eq!((line, column), (8, 45));
}

#[test]
fn rules_with_escapes_are_pointed_at_as_a_whole() {
    let source = GOOD.replace(
        "principal, action, resource) when",
        "principal, action == Action::\\\"reed\\\", resource) when",
    );
    let (line, column, message) = &problems(&source)[0];
    assert_eq!(
        (*line, *column, message.as_str()),
        (6, 9, "unrecognized action `Action::\"reed\"`")
    );
}

#[test]
fn errors_in_several_rules_are_all_told() {
    let source = GOOD
        .replace(
            "permit (principal, action, resource);",
            "permit (principal action, resource);",
        )
        .replace("context.risk >= 1", "context.risk >= 1 + 1");
    let problems = problems(&source);
    assert_eq!(
        problems,
        [
            (7, 19, "unexpected token `action`".to_owned()),
            (
                8,
                63,
                "arithmetic can overflow, and is not allowed in rules".to_owned()
            ),
        ]
    );
}

#[test]
fn toml_errors_are_told_with_their_place() {
    assert_eq!(
        problem("name = \"good\"", "name = \"good\"\nname = \"better\""),
        (3, 1, "duplicate key".to_owned())
    );
    let several = problems(
        &GOOD
            .replace("version = 1", "version = = 1")
            .replace("[rules]", "[rules"),
    );
    let places: Vec<_> = several
        .iter()
        .map(|(line, column, _)| (*line, *column))
        .collect();
    assert_eq!(places, [(1, 11), (1, 13), (5, 7)]);
}

#[test]
fn every_table_is_strict() {
    let at = |text: &str| table(text);
    let says = |text: &str| table(text).2;

    assert_eq!(at("[isolatoin]"), (1, 2, "unknown key `isolatoin`".into()));
    assert_eq!(
        at("[isolation]\nmemroy = \"1MiB\""),
        (2, 1, "unknown key `memroy` in `[isolation]`".into())
    );
    assert_eq!(
        says("[isolation]\nbackend = \"docker\""),
        "unknown backend `docker`"
    );
    assert_eq!(
        says("[isolation]\nmemory = 5"),
        "`memory` takes a string, not an integer"
    );
    assert_eq!(
        says("[isolation]\npids = 0"),
        "`pids` is not between 1 and 4194304"
    );
    assert_eq!(
        says("[isolation]\npids = -1"),
        "`pids` is not between 1 and 4194304"
    );
    assert_eq!(
        says("[isolation]\npids = 1.0"),
        "`pids` takes an integer, not a float"
    );
    assert_eq!(
        says("[isolation]\ntime = \"10 minutes\""),
        "`10 minutes` is not a duration"
    );
    assert_eq!(
        at("[isolation]\npids = 5\n[isolation.reduced]\npids = 6"),
        (
            4,
            8,
            "the reduced tier has more `pids` than the full one".into()
        )
    );
    for cpu in ["nan", "inf", "-1.0", "-0.0", "0", "1e300", "true"] {
        let message = says(&format!("[isolation]\ncpu = {cpu}"));
        assert!(message.contains("cores"), "{cpu}: {message}");
    }

    assert_eq!(
        says("[attestation]\naccept = [\"sev\"]"),
        "unknown kind of evidence `sev`"
    );
    assert_eq!(
        says("[attestation]\naccept = [\"tdx\", \"tdx\"]"),
        "`tdx` occurs twice"
    );
    assert_eq!(
        says("[attestation]\nmax-age = 10"),
        "`max-age` takes a string, not an integer"
    );
    assert_eq!(
        says("[attestation]\nmax_age = \"1s\""),
        "unknown key `max_age` in `[attestation]`"
    );

    assert_eq!(
        says("[files]\nread = \"/app\""),
        "`read` takes an array, not a string"
    );
    assert_eq!(
        says("[files]\nread = [5]"),
        "`read` takes a path or `{ from = …, at = … }`, not an integer"
    );
    assert_eq!(
        says("[files]\nread = [{ from = \"x\" }]"),
        "missing `at` in `[files.read]`"
    );
    assert_eq!(
        says("[files]\nread = [\"/a\", \"/a\"]"),
        "`/a` is already given by `[files]`"
    );
    assert_eq!(
        says("[files]\nread = [\"/a\"]\nwrite = [{ from = \"b\", at = \"/a\" }]"),
        "`/a` is already given by `[files]`"
    );
    assert_eq!(
        says("[files]\nread = [\"/a\"]\n[data]\nd = { vault = \"v\", at = \"/a\" }"),
        "`/a` is already given by `[files]`"
    );
    for path in [
        "/a/../b",
        "/..",
        "//a",
        "/a//b",
        "/a/",
        "/a/.",
        "",
        ".",
        "~/a",
        "/a\\u0000",
    ] {
        let message = says(&format!("[files]\nread = [\"{path}\"]"));
        assert!(
            message.contains("is not a path in the sandbox"),
            "{path}: {message}"
        );
    }
    for path in ["../a", "a/../b", "", "a\\u0000"] {
        let message = says(&format!(
            "[files]\nread = [{{ from = \"{path}\", at = \"/a\" }}]"
        ));
        assert!(message.contains("is not a path: "), "{path}: {message}");
    }

    for endpoint in [
        "a",
        "a:",
        "a:0",
        "a:65536",
        "a:+1",
        "a:01",
        ":1",
        "A.example:1",
        "a b:1",
        "*.a:1",
        "0.0.0.0/0:443",
        "010.0.0.1:1",
        "1.2:1",
        "256.0.0.1:1",
        "::1:80",
        "[::1:80",
        "[g::]:1",
        "a..b:1",
        "-a:1",
        "é:1",
    ] {
        let message = says(&format!("[network]\nconnect = [\"{endpoint}\"]"));
        assert!(
            message.contains("is not an endpoint"),
            "{endpoint}: {message}"
        );
    }
    assert_eq!(
        says("[network]\nconnect = [\"[::1]:1\", \"[0::1]:1\"]"),
        "`[0::1]:1` occurs twice"
    );

    assert_eq!(
        says("[syscalls]\nallow = [\"io-uring\"]"),
        "`io-uring` cannot be the name of a system call"
    );
    assert_eq!(
        says("[syscalls]\ndeny = [\"ptrace\", \"ptrace\"]"),
        "`ptrace` occurs twice"
    );

    assert_eq!(
        says("[data]\n\"../x\" = { vault = \"v\", at = \"/d\" }"),
        "`../x` is not a name"
    );
    assert_eq!(
        says("[data]\nx = { at = \"/d\" }"),
        "missing `vault` in `[data.x]`"
    );
    assert_eq!(
        says("[data]\nx = { vault = \"v\", at = \"/d\", access = \"write\" }"),
        "unknown access `write`"
    );
    assert_eq!(
        says("[data]\nx = { vault = \"v\", at = \"/d\", key = \"customers\" }"),
        "`key` is not a URI"
    );

    assert_eq!(
        at("[risk]\ndenied-sycall = { adds = 1 }"),
        (2, 1, "unknown sensor `denied-sycall`".into())
    );
    assert_eq!(
        says("[risk]\noperator = { adds = 101 }"),
        "`adds` is not between 0 and 100"
    );
    assert_eq!(
        says("[risk]\noperator = { adds = -1 }"),
        "`adds` is not between 0 and 100"
    );
    assert_eq!(
        says("[risk]\noperator = {}"),
        "missing `adds` in `[risk.operator]`"
    );
    assert_eq!(
        says("[risk]\noperator = { adds = 1, half-life = \"0s\" }"),
        "`0s` is not a duration"
    );
    for (entry, wrong) in [
        (
            "operator = { adds = 1, cap = 5, floor = 6 }",
            "`floor` is above `cap`",
        ),
        (
            "operator = { adds = 1, volume = \"1MiB\" }",
            "unknown key `volume` in `[risk.operator]`",
        ),
        ("falls-after = \"never\"", "`never` is not a duration"),
        (
            "lease-use = { adds = 1 }",
            "missing `volume` in `[risk.lease-use]`",
        ),
        (
            "lease-use = { adds = 1, rate = \"0B\" }",
            "`0B` is not a size",
        ),
        (
            "resource-pressure = { adds = 1, stall = 0 }",
            "`stall` is not between 1 and 100",
        ),
        (
            "new-exec = { adds = 1, known = [\"ls\"] }",
            "`ls` is not a path in the sandbox: it is not absolute",
        ),
        (
            "time-window = { adds = 1 }",
            "missing `outside` in `[risk.time-window]`",
        ),
        (
            "time-window = { adds = 1, outside = \"8-18\" }",
            "`8-18` is not a time window: its hours are not of the form `08:00`",
        ),
        (
            "external = { adds = 1 }",
            "missing `socket` in `[risk.external]`",
        ),
        (
            "external = { adds = 1, socket = \"s\", uids = [-1] }",
            "`uids` has an entry that is no user id",
        ),
    ] {
        assert_eq!(says(&format!("[risk]\n{entry}")), wrong, "{entry}");
    }
    assert_eq!(
        says("[risk]\noperator = 5"),
        "`operator` takes a table, not an integer"
    );
}

#[test]
fn values_that_no_program_can_take_are_refused() {
    assert_eq!(
        problem("/bin/true", "/bin/\\u0000").2,
        "a NUL character cannot be passed to a program"
    );
    let env = "[\"/bin/true\"]\nenv = { \"A=B\" = \"x\" }";
    assert_eq!(
        problem("[\"/bin/true\"]", env).2,
        "`A=B` cannot be the name of a variable"
    );
    assert_eq!(
        problem("version = 1", "version = 99999999999999999999").2,
        "`version` is not between 0 and 9223372036854775807"
    );
    assert_eq!(
        problem("version = 1", "version = -1").2,
        "`version` is not between 0 and 9223372036854775807"
    );
    assert_eq!(
        problem("\"good\"", "\"good/../bad\"").2,
        "`good/../bad` is not a name"
    );
}

#[test]
fn a_file_that_is_too_long_is_refused_unread() {
    let source = format!("{GOOD}#{}", "x".repeat(Bundle::MAX_LEN));
    let error = Bundle::parse(&source, "p.toml").unwrap_err();
    assert!(error.to_string().contains("longer than 1048576 bytes"));
}

#[test]
fn tables_that_are_too_long_are_refused() {
    let entries: Vec<String> = (0..5000).map(|n| format!("\"h{n}:1\"")).collect();
    let network = format!("[network]\nconnect = [{}]\n[rules]", entries.join(", "));
    let message = problem("[rules]", &network).2;
    assert_eq!(message, "the tables have more than 4096 entries");
    let rules = "permit (principal, action, resource);\n".repeat(5000);
    let message = problem("permit (principal, action, resource);", &rules).2;
    assert_eq!(message, "there are more than 4096 rules");
}

#[test]
fn deep_nesting_is_refused_and_does_not_overflow_the_stack() {
    for (open, close) in [
        ("(", ")"),
        ("!", ""),
        ("if true then true else ", ""),
        ("[", "]"),
        ("{a:", "}"),
    ] {
        let condition = format!("{}true{}", open.repeat(400), close.repeat(400));
        let source = GOOD.replace("context.risk >= 1", &condition);
        assert_eq!(
            problems(&source)[0].2,
            "this rule is too long or too deeply nested",
            "{open}"
        );
    }
    let chain = format!("true{}", " && true".repeat(5000));
    assert_eq!(
        problem("context.risk >= 1", &chain).2,
        "this rule is too long or too deeply nested"
    );
    // As long as it may be, it is parsed, validated, evaluated and dropped.
    let chain = format!("context.risk == 1{}", " && true".repeat(1000));
    let bundle = Bundle::parse(&GOOD.replace("context.risk >= 1", &chain), "p.toml").unwrap();
    assert!(
        !bundle
            .decide(&Facts {
                risk: 1,
                ..Facts::unknown()
            })
            .live()
    );
    let brackets = format!("x = {}{}\n{GOOD}", "[".repeat(5000), "]".repeat(5000));
    assert!(Bundle::parse(&brackets, "p.toml").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,80}") {
        if let Err(error) = Bundle::parse(&text, "p.toml") {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn no_rule_makes_the_reader_panic(rule in "(permit|forbid|\\(|\\)|principal|,|action|resource|;|when|\\{|\\}|context|\\.|risk|>=|[0-9]|\"| |==|-|is|@id|Vault|::|é){0,30}") {
        let source = GOOD.replace("permit (principal, action, resource);", &rule.replace('"', "\\\""));
        if let Err(error) = Bundle::parse(&source, "p.toml") {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn no_damage_to_a_good_file_makes_the_reader_panic(at in 0..GOOD.len(), with in "\\PC{0,3}", cut in 0..20_usize) {
        let mut source = GOOD.to_owned();
        let end = (at + cut).min(source.len());
        source.replace_range(at..end, &with);
        if let Err(error) = Bundle::parse(&source, "p.toml") {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
