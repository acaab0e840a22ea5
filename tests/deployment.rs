//! What is in `deploy/` fits the programs: every flag exists, every configuration is accepted, units and
//! manifests say what their readers understand, and the image is the same bytes each time.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("deploy")
        .join(name)
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The programs that are deployed, by the path they are installed as.
fn installed() -> [(&'static str, PathBuf); 2] {
    [
        (
            "/usr/bin/casemate-broker",
            common::casemate_broker().get_program().into(),
        ),
        ("/usr/bin/casemate-guest-agent", common::guest_agent()),
    ]
}

/// Whether a command line is one that its program understands, as far as `--help` tells.
fn is_understood(program: &Path, arguments: &[&str]) -> bool {
    let (command, rest) = match arguments {
        [command, rest @ ..] if !command.starts_with('-') => (Some(*command), rest),
        rest => (None, rest),
    };
    let help = Command::new(program).args(command).arg("--help").output();
    let help = help.unwrap();
    let flags = rest.iter().filter(|argument| argument.starts_with("--"));
    let known = |flag: &&str| text(&help).contains(flag.split('=').next().unwrap());
    help.status.success() && flags.into_iter().all(known)
}

#[test]
fn the_units_verify_and_their_command_lines_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    for unit in ["casemate-broker.service", "casemate-guest-agent.service"] {
        let mut said = fs::read_to_string(deploy("systemd").join(unit)).unwrap();
        let starts = said.lines().filter_map(|line| {
            let command = line.strip_prefix("ExecStart")?;
            Some(command.trim_start_matches("Pre").trim_start_matches('='))
        });
        let starts: Vec<String> = starts.map(str::to_owned).collect();
        assert!(!starts.is_empty());
        for command in starts {
            let words: Vec<&str> = command.split(' ').collect();
            let programs = installed();
            let program = programs.iter().find(|(path, _)| *path == words[0]);
            let (_, program) = program.unwrap_or_else(|| panic!("{command}"));
            assert!(is_understood(program, &words[1..]), "{command}");
        }
        for (path, program) in installed() {
            said = said.replace(path, program.to_str().unwrap());
        }
        let copy = folder.path().join(unit);
        fs::write(&copy, said).unwrap();
        let mut verify = Command::new("systemd-analyze");
        let Ok(told) = verify.arg("verify").arg(&copy).output() else {
            println!("skipped: there is no systemd-analyze");
            continue;
        };
        let told = text(&told);
        assert!(!told.contains(unit), "{told}");
    }
}

#[test]
fn the_unit_of_the_broker_leaves_it_little() {
    let unit = deploy("systemd/casemate-broker.service");
    let mut security = Command::new("systemd-analyze");
    // In tenths: what systemd calls OK ends at 5.0.
    let security = security.args(["security", "--offline=true", "--threshold=20"]);
    match security.arg(unit).output() {
        Ok(told) => assert!(told.status.success(), "{}", text(&told)),
        Err(_) => println!("skipped: there is no systemd-analyze"),
    }
}

/// The documents of a YAML file; `None`, and a word about it, where no YAML can be read.
fn yaml(name: &str) -> Option<Vec<Value>> {
    const READS: &str =
        "import json, sys, yaml\nprint(json.dumps(list(yaml.safe_load_all(sys.stdin))))";
    let python = std::env::var_os("CASEMATE_PYTHON").unwrap_or_else(|| "python3".into());
    let mut read = Command::new(python);
    let file = fs::File::open(deploy(name)).unwrap();
    let told = read.args(["-c", READS]).stdin(file).output();
    match told {
        Ok(told) if told.status.success() => Some(serde_json::from_slice(&told.stdout).unwrap()),
        told => {
            let must = std::env::var_os("CI").is_some();
            assert!(!must, "no YAML can be read: {told:?}");
            println!("skipped: CASEMATE_PYTHON names no Python with tests/requirements.txt");
            None
        }
    }
}

#[test]
fn the_manifests_are_whole_and_name_only_what_there_is() {
    let Some(etcd) = yaml("kubernetes/etcd.yaml") else {
        return;
    };
    let broker = yaml("kubernetes/broker.yaml").unwrap();
    let all: Vec<_> = etcd.iter().chain(&broker).collect();
    for document in &all {
        for field in ["apiVersion", "kind"] {
            assert!(document[field].is_string(), "{document}");
        }
        let namespaced = document["kind"] != "Namespace";
        let namespace = &document["metadata"]["namespace"];
        assert!(!namespaced || namespace == "casemate", "{document}");
    }
    for set in all
        .iter()
        .filter(|document| document["kind"] == "StatefulSet")
    {
        let pod = &set["spec"]["template"];
        let labels = &pod["metadata"]["labels"];
        assert_eq!(set["spec"]["selector"]["matchLabels"], *labels);
        // The service that names its pods, and those who select them.
        let named = |kind: &str, name: &Value| {
            let mut all = all.iter();
            all.any(|it| it["kind"] == kind && it["metadata"]["name"] == *name)
        };
        assert!(named("Service", &set["spec"]["serviceName"]));
        for kind in ["PodDisruptionBudget", "NetworkPolicy"] {
            assert!(named(kind, &labels["app"]), "{kind} of {labels}");
        }
        let spec = &pod["spec"];
        let volumes = spec["volumes"].as_array().unwrap().iter();
        let claims = set["spec"]["volumeClaimTemplates"].as_array().unwrap();
        let claims = claims.iter().map(|claim| &claim["metadata"]);
        let volumes: Vec<_> = volumes.chain(claims).map(|it| &it["name"]).collect();
        for container in spec["containers"].as_array().unwrap() {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["readOnlyRootFilesystem"], true);
            assert_eq!(security["capabilities"]["drop"][0], "ALL");
            for mount in container["volumeMounts"].as_array().unwrap() {
                assert!(volumes.contains(&&mount["name"]), "{mount}");
            }
        }
    }
    // The broker's own command line, and that of etcd where there is one.
    let arguments = |documents: &[Value]| -> Vec<String> {
        let mut sets = documents.iter().filter(|it| it["kind"] == "StatefulSet");
        let container = sets.next().unwrap()["spec"]["template"]["spec"]["containers"][0].clone();
        let arguments = container["args"].as_array().unwrap().iter();
        arguments
            .map(|it| it.as_str().unwrap().to_owned())
            .collect()
    };
    let [(_, program), _] = installed();
    let own = arguments(&broker);
    let own: Vec<&str> = own.iter().map(String::as_str).collect();
    assert!(is_understood(&program, &own), "{own:?}");
    let asked = arguments(&etcd);
    let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
    match Command::new("etcd").arg("--version").output() {
        Ok(_) => assert!(is_understood(Path::new("etcd"), &asked), "{asked:?}"),
        Err(_) => println!("skipped: there is no etcd"),
    }
}

#[test]
fn the_configuration_in_the_manifest_is_accepted() {
    let Some(broker) = yaml("kubernetes/broker.yaml") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    };
    let mut maps = broker.iter().filter(|it| it["kind"] == "ConfigMap");
    for (name, text) in maps.next().unwrap()["data"].as_object().unwrap() {
        write(name, text.as_str().unwrap());
    }
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["broker.example".to_owned()]);
    let certificate = certificate.unwrap().self_signed(&key).unwrap().pem();
    for of in ["tls", "etcd"] {
        write(&format!("{of}/tls.crt"), &certificate);
        write(&format!("{of}/ca.crt"), &certificate);
        write(&format!("{of}/tls.key"), &key.serialize_pem());
    }
    write("keys/customers", &"07".repeat(32));
    for name in ["state", "run"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let mut check = common::casemate_broker();
    let told = check.arg("check").arg(folder.path().join("broker.toml"));
    let told = told.output().unwrap();
    assert!(told.status.success(), "{}", text(&told));
}

/// A program, linked as `how` says; `None` where it cannot be.
fn program(folder: &Path, name: &str, how: &str) -> Option<PathBuf> {
    let source = folder.join("main.rs");
    fs::write(&source, "fn main() {}").unwrap();
    let path = folder.join(name);
    let mut compile = Command::new("rustc");
    compile.args(["-C", how, "-o"]).arg(&path).arg(&source);
    let told = compile.output().unwrap();
    told.status.success().then_some(path)
}

#[test]
fn an_image_is_the_static_program_and_the_same_bytes_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let image = |program: &Path, layout: &str| {
        let mut make = Command::new("python3");
        make.arg(deploy("oci/image")).arg(program);
        make.arg(folder.path().join(layout)).output().unwrap()
    };
    let dynamic = program(folder.path(), "dynamic", "target-feature=-crt-static").unwrap();
    let told = image(&dynamic, "none");
    assert!(
        !told.status.success() && text(&told).contains("not static"),
        "{}",
        text(&told)
    );
    let Some(program) = program(folder.path(), "broker", "target-feature=+crt-static") else {
        println!("skipped: no static program can be linked here");
        return;
    };
    let digests = ["one", "two"].map(|layout| {
        let told = image(&program, layout);
        assert!(told.status.success(), "{}", text(&told));
        String::from_utf8(told.stdout).unwrap().trim().to_owned()
    });
    assert_eq!(digests[0], digests[1]);

    // From the index by digests down to the program.
    let layout = folder.path().join("one");
    let blob = |digest: &Value| {
        let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
        let bytes = fs::read(layout.join("blobs/sha256").join(hex)).unwrap();
        use sha2::Digest;
        let is: String = sha2::Sha256::digest(&bytes)
            .iter()
            .map(|it| format!("{it:02x}"))
            .collect();
        assert_eq!(is, hex);
        bytes
    };
    let json = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).unwrap();
    let marker = json(fs::read(layout.join("oci-layout")).unwrap());
    assert_eq!(marker["imageLayoutVersion"], "1.0.0");
    let index = json(fs::read(layout.join("index.json")).unwrap());
    assert_eq!(index["manifests"][0]["digest"], *digests[0]);
    let manifest = json(blob(&index["manifests"][0]["digest"]));
    let config = json(blob(&manifest["config"]["digest"]));
    assert_eq!(config["config"]["Entrypoint"][0], "/usr/bin/broker");
    assert_eq!(
        config["rootfs"]["diff_ids"][0],
        manifest["layers"][0]["digest"]
    );
    let layer = blob(&manifest["layers"][0]["digest"]);
    let inside = fs::read(&program).unwrap();
    assert!(
        layer
            .windows(inside.len())
            .step_by(512)
            .any(|it| it == inside)
    );
}
