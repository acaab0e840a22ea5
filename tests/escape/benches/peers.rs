//! The same attacks under other tools, as they are by default: what each of them stops.
//!
//! `cargo bench -p casemate-escape --bench peers` as root prints the table of docs/escape.md, with a column
//! for each tool that is installed. It proves nothing of ours, so it is not part of a test run.

#![allow(clippy::unwrap_used)]

#[allow(dead_code)] // What the other tests ask of a run.
#[path = "../tests/world/mod.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use world::{PROBE, World, verdicts};

const ROOMY: &str = "memory = \"256MiB\"\npids = 64\ncpu = 2.0\ntime = \"60s\"";
/// What the probe needs of the host to be executed.
const SYSTEM: [&str; 5] = ["/usr", "/bin", "/sbin", "/lib", "/lib64"];

type Verdicts = BTreeMap<String, String>;

fn main() {
    // `cargo test --all-targets` runs benches too, with this flag left out.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let world = World::new();
    let mut columns = vec![("none", verdicts(&world.outside()))];
    for (name, tool) in [
        ("bubblewrap", bubblewrap as fn(&World) -> Option<String>),
        ("firejail", firejail),
        ("crun", |world| oci(world, "crun")),
        ("runc", |world| oci(world, "runc")),
        ("gVisor", |world| oci(world, "runsc")),
    ] {
        match tool(&world) {
            Some(output) if verdicts(&output).len() > 50 => columns.push((name, verdicts(&output))),
            Some(output) => println!("{name} did not run the probe: {output}"),
            None => println!("{name} is not installed"),
        }
    }
    columns.push((
        "casemate, `process`",
        verdicts(&world.inside_process(ROOMY, "", &["all"]).output),
    ));
    columns.push((
        "casemate",
        verdicts(&world.inside(ROOMY, "", &["all"]).output),
    ));
    print(&columns);
}

/// A line for each attack that is open somewhere, and a last one that counts.
fn print(columns: &[(&str, Verdicts)]) {
    let names: BTreeSet<_> = columns
        .iter()
        .flat_map(|(_, column)| column.keys())
        .collect();
    let heads: Vec<_> = columns.iter().map(|(name, _)| *name).collect();
    println!("| attack | {} |", heads.join(" | "));
    println!("|---|{}", "---|".repeat(columns.len()));
    let word = |verdict: Option<&String>| match verdict.map(|v| v.split(' ').next().unwrap_or("")) {
        Some("open") => "open",
        Some("closed") => "",
        _ => "?",
    };
    for name in &names {
        let words: Vec<_> = columns
            .iter()
            .map(|(_, column)| word(column.get(*name)))
            .collect();
        if words.contains(&"open") {
            println!("| {name} | {} |", words.join(" | "));
        }
    }
    let open = |column: &Verdicts| column.values().filter(|v| v.starts_with("open")).count();
    let counts: Vec<_> = columns
        .iter()
        .map(|(_, column)| open(column).to_string())
        .collect();
    println!("| open, of {} | {} |", names.len(), counts.join(" | "));
}

fn installed(name: &str) -> Option<()> {
    let mut look = Command::new("sh");
    look.args(["-c", &format!("command -v {name}")]);
    let found = look.stdout(Stdio::null()).status().ok()?;
    found.success().then_some(())
}

/// With every namespace, a session of its own, and nothing to see but the system and the grants.
fn bubblewrap(world: &World) -> Option<String> {
    installed("bwrap")?;
    let mut command = Command::new("bwrap");
    command.args([
        "--unshare-all",
        "--new-session",
        "--die-with-parent",
        "--cap-drop",
        "ALL",
    ]);
    for path in SYSTEM {
        match fs::read_link(path) {
            Ok(target) => command.arg("--symlink").arg(target).arg(path),
            Err(_) => command.args(["--ro-bind-try", path, path]),
        };
    }
    command.args([
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--tmpfs",
        "/tmp",
        "--ro-bind",
        PROBE,
        "/probe",
    ]);
    command
        .arg("--ro-bind")
        .arg(world.path().join("read"))
        .arg("/granted");
    command
        .arg("--bind")
        .arg(world.path().join("write"))
        .arg("/kept");
    command.args(["/probe", "all"]);
    Some(world.through(&mut command, "/granted".as_ref(), "/kept".as_ref()))
}

/// Without a profile of a program, with its own filter, and no network.
fn firejail(world: &World) -> Option<String> {
    installed("firejail")?;
    let (read, write) = (world.path().join("read"), world.path().join("write"));
    let mut command = Command::new("firejail");
    command.args([
        "--quiet",
        "--noprofile",
        "--seccomp",
        "--caps.drop=all",
        "--net=none",
    ]);
    command.arg(format!("--read-only={}", read.display()));
    command.args([PROBE, "all"]);
    Some(world.through(&mut command, &read, &write))
}

/// With the configuration that `runc spec` writes, and the grants as mounts.
fn oci(world: &World, runtime: &str) -> Option<String> {
    installed(runtime).and_then(|()| installed("runc"))?;
    let bundle = tempfile::tempdir().unwrap();
    let made = Command::new("runc")
        .arg("spec")
        .current_dir(bundle.path())
        .status()
        .unwrap();
    assert!(made.success());
    let config = bundle.path().join("config.json");
    let mut spec: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    spec["process"]["terminal"] = json!(false);
    spec["process"]["args"] = json!(["/probe", "all"]);
    let variables = world.environment("/granted".as_ref(), "/kept".as_ref());
    let variables = variables
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"));
    let variables: Vec<_> = variables
        .chain(["PROBE_INSIDE=1".into(), "PATH=/bin".into()])
        .collect();
    spec["process"]["env"] = json!(variables);
    let mut bind = |from: &Path, at: &str, options: &[&str]| {
        let mount =
            json!({ "destination": at, "type": "bind", "source": from, "options": options });
        spec["mounts"].as_array_mut().unwrap().push(mount);
    };
    let root = bundle.path().join("rootfs");
    fs::create_dir(&root).unwrap();
    fs::create_dir(root.join("tmp")).unwrap();
    for path in SYSTEM {
        match fs::read_link(path) {
            Ok(target) => std::os::unix::fs::symlink(target, root.join(&path[1..])).unwrap(),
            Err(_) if Path::new(path).exists() => bind(path.as_ref(), path, &["rbind", "ro"]),
            Err(_) => {}
        }
    }
    bind(PROBE.as_ref(), "/probe", &["bind", "ro"]);
    bind(&world.path().join("read"), "/granted", &["bind", "ro"]);
    bind(&world.path().join("write"), "/kept", &["bind", "rw"]);
    fs::write(&config, spec.to_string()).unwrap();
    let id = format!("casemate-escape-{}", std::process::id());
    let run = match runtime {
        "runsc" => format!("exec runsc --network=none --ignore-cgroups run {id}"),
        // It refuses hosts with controllers on both versions.
        "crun" => format!("umount /sys/fs/cgroup/unified 2> /dev/null; exec crun run {id}"),
        other => format!("exec {other} run {id}"),
    };
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", &run])
        .current_dir(bundle.path());
    Some(world.through(&mut command, "/granted".as_ref(), "/kept".as_ref()))
}
