//! Every kind of host: root and ordinary users, cgroups of both versions, and sandboxes inside of others. Each
//! runs the same policy, or says precisely what is missing.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// A folder with a policy, its log and the program, of which everybody may make use.
struct Host(tempfile::TempDir);

/// What a run came to.
struct Ran {
    code: Option<i32>,
    output: String,
    told: String,
    /// What was not wholly in force, and the words for it.
    gaps: BTreeMap<String, String>,
    /// What was.
    full: BTreeMap<String, String>,
}

impl Host {
    fn new(backend: &str) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("hosts")
            .tempdir_in("/var/tmp")
            .unwrap();
        let policy = format!(
            "version = 1\nname = \"hosts\"\n[workload]\ncommand = [\"sh\", \"-c\", \"echo inside; exit 3\"]\n\
             [isolation]\nbackend = {backend:?}\nmemory = \"64MiB\"\npids = 16\n\
             [rules]\ncedar = 'permit (principal, action, resource);'\n"
        );
        fs::write(folder.path().join("policy.toml"), policy).unwrap();
        fs::create_dir(folder.path().join("bin")).unwrap();
        let program = PathBuf::from(common::sandboxctl().get_program());
        let here = folder.path().join("bin/sandboxctl");
        fs::hard_link(&program, &here)
            .or_else(|_| fs::copy(&program, &here).map(drop))
            .unwrap();
        for (place, mode) in [("", 0o755), ("bin", 0o755), ("bin/sandboxctl", 0o755)] {
            let path = folder.path().join(place);
            let _ = fs::set_permissions(path, fs::Permissions::from_mode(mode));
        }
        let logs = folder.path().join("logs");
        fs::create_dir(&logs).unwrap();
        fs::set_permissions(&logs, fs::Permissions::from_mode(0o777)).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The command that runs the policy.
    fn words(&self) -> Vec<String> {
        let [program, policy, log] = ["bin/sandboxctl", "policy.toml", "logs/log"];
        let text = |name| self.path(name).display().to_string();
        vec![
            text(program),
            "run".into(),
            text(policy),
            "--log".into(),
            text(log),
        ]
    }

    /// Runs it, by way of another program.
    fn through(&self, program: &str, arguments: &[&str]) -> Ran {
        self.run(Command::new(program).args(arguments).args(self.words()))
    }

    fn run(&self, command: &mut Command) -> Ran {
        let output = command
            .env("TMPDIR", self.path("logs"))
            .env("HOME", self.path("logs"))
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (mut gaps, mut full) = (BTreeMap::new(), BTreeMap::new());
        for item in enforcement(&self.path("logs/log")) {
            let text = |key: &str| item[key].as_str().unwrap().to_owned();
            let place = match text("state").as_str() {
                "full" => &mut full,
                _ => &mut gaps,
            };
            place.insert(text("id"), text("detail"));
        }
        Ran {
            code: output.status.code(),
            output: text(&output.stdout),
            told: text(&output.stderr),
            gaps,
            full,
        }
    }
}

/// What the log says was enforced.
fn enforcement(log: &Path) -> Vec<Value> {
    let Ok(verified) = vault::audit::verify(log, None, None) else {
        return Vec::new();
    };
    let records = verified.records().flatten();
    let prepared = records
        .map(|entry| serde_json::to_value(entry.record.payload).unwrap())
        .find(|payload| !payload["enforcement"].is_null());
    prepared
        .and_then(|payload| payload["enforcement"].as_array().cloned())
        .unwrap_or_default()
}

impl Ran {
    /// It ran, and what was missing of its floor has a name among these.
    fn works(&self, missing: &[&str]) {
        assert_eq!(self.code, Some(3), "{}", self.told);
        assert!(self.output.contains("inside"), "{}", self.output);
        for (gap, detail) in &self.gaps {
            assert!(missing.contains(&&**gap), "{gap}: {detail}");
            assert!(!detail.is_empty(), "{gap}");
        }
    }
}

/// What an ordinary user does not have where no cgroup was delegated to them.
const OF_A_USER: [&str; 4] = ["cgroup", "freeze", "resources", "data"];
/// What there is not without namespaces.
const WITHOUT_NAMESPACES: [&str; 8] = [
    "namespaces",
    "rootfs",
    "proc",
    "file-owner",
    "memory-protection",
    "files",
    "tighten",
    "exec",
];

fn both<'a>(some: &[&'a str], others: &[&'a str]) -> Vec<&'a str> {
    some.iter().chain(others).copied().collect()
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn root_has_everything_in_cgroups_of_whatever_version() {
    if !is_root() {
        println!("skipped: this is not root");
        return;
    }
    let ran = Host::new("container").through("env", &[]);
    ran.works(&[]);
    println!("cgroups here: {}", ran.full["cgroup"]);
    for lever in ["cgroup", "freeze", "resources"] {
        assert!(ran.full.contains_key(lever), "{lever}: {:?}", ran.gaps);
    }
}

#[test]
fn an_ordinary_user_has_all_but_cgroups() {
    let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups"];
    for (backend, missing) in [
        ("container", OF_A_USER.to_vec()),
        ("process", both(&OF_A_USER, &WITHOUT_NAMESPACES)),
    ] {
        let host = Host::new(backend);
        let ran = match is_root() {
            true => host.through("setpriv", &user),
            false => host.through("env", &[]),
        };
        ran.works(&missing);
    }
}

#[test]
fn it_runs_inside_a_user_namespace_with_one_user() {
    let namespace = ["-U", "--map-root-user", "-m", "-p", "-f", "--mount-proc"];
    for (backend, missing) in [
        ("container", OF_A_USER.to_vec()),
        ("process", both(&OF_A_USER, &WITHOUT_NAMESPACES)),
    ] {
        Host::new(backend)
            .through("unshare", &namespace)
            .works(&missing);
    }
}

#[test]
fn it_runs_inside_bubblewrap() {
    if !Path::new("/usr/bin/bwrap").exists() {
        println!("skipped: bubblewrap is not installed");
        return;
    }
    let outer = [
        "--dev-bind",
        "/",
        "/",
        "--unshare-user",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--proc",
        "/proc",
    ];
    let ran = Host::new("container").through("bwrap", &outer);
    ran.works(&both(&OF_A_USER, &["proc"]));
}

#[test]
fn where_proc_is_masked_the_sandbox_has_none_and_says_so() {
    let mask = "mount -t tmpfs mask /proc/tty && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["-U", "--map-root-user", "-m", "-p", "-f", "--mount-proc"]);
    command.args(["sh", "-c", mask, "sh"]);
    let host = Host::new("container");
    let ran = host.run(command.args(host.words()));
    ran.works(&both(&OF_A_USER, &["proc"]));
    assert!(ran.gaps["proc"].contains("masks it"), "{:?}", ran.gaps);
}

#[test]
fn where_there_are_no_more_namespaces_that_is_told_and_the_other_backend_runs() {
    let forbid = "echo 0 > /proc/sys/user/max_user_namespaces && exec \"$@\"";
    let through = |host: &Host| {
        let mut command = Command::new("unshare");
        command.args(["-U", "--map-root-user", "sh", "-c", forbid, "sh"]);
        host.run(command.args(host.words()))
    };
    let refused = through(&Host::new("container"));
    assert_eq!(refused.code, Some(125), "{}", refused.told);
    for words in ["making the namespaces failed", "sandboxctl doctor"] {
        assert!(refused.told.contains(words), "{}", refused.told);
    }
    through(&Host::new("process")).works(&both(&OF_A_USER, &WITHOUT_NAMESPACES));
}

#[test]
fn inside_a_sandbox_of_its_own_kind_one_without_namespaces_runs_and_the_other_says_why_not() {
    let outer = Host::new("container");
    let nested = |inner: &Host| {
        let program = inner.path("bin");
        let policy = format!(
            "version = 1\nname = \"outer\"\n[workload]\ncommand = [{}]\n\
             [isolation]\nmemory = \"256MiB\"\npids = 64\n\
             [files]\nread = [{{ from = {program:?}, at = {program:?} }}, {{ from = {rules:?}, at = {rules:?} }}]\n\
             write = [{{ from = {logs:?}, at = {logs:?} }}]\n\
             [rules]\ncedar = 'permit (principal, action, resource);'\n",
            inner
                .words()
                .iter()
                .map(|word| format!("{word:?}"))
                .collect::<Vec<_>>()
                .join(", "),
            rules = inner.path("policy.toml"),
            logs = inner.path("logs"),
        );
        fs::write(outer.path("policy.toml"), policy).unwrap();
        let _ = fs::remove_dir_all(outer.path("logs/log"));
        outer.through("env", &[])
    };
    let refused = nested(&Host::new("container"));
    assert_eq!(refused.code, Some(125), "{}", refused.told);
    assert!(
        refused.told.contains("making the namespaces failed"),
        "{}",
        refused.told
    );
    let ran = nested(&Host::new("process"));
    assert_eq!(ran.code, Some(3), "{}", ran.told);
    assert!(ran.output.contains("inside"), "{}", ran.output);
}
