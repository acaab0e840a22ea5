//! Whatever is wrong with what `sandboxctl` is given: one clear message that says what to do, an exit
//! code, nothing started, and no half-written file left.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use common::{Policy, Room, files, reference, sandboxctl};

const SIMULATED: &str = "--dangerously-accept-simulated";

/// A room with a policy file and all that it names.
struct Desk {
    room: Room,
}

impl Desk {
    fn new() -> Option<Self> {
        let desk = Self { room: Room::new()? };
        let key: String = desk
            .room
            .key
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let key_file = desk.room.path().join("customers.key");
        fs::write(&key_file, key).unwrap();
        fs::set_permissions(&key_file, PermissionsExt::from_mode(0o600)).unwrap();
        let reference = serde_json::to_vec(&reference()).unwrap();
        fs::write(desk.room.path().join("reference.json"), reference).unwrap();
        desk.write(&Policy::shell("touch /out/ran").with_data().text());
        Some(desk)
    }

    fn policy(&self) -> PathBuf {
        self.room.path().join("policy.toml")
    }

    fn log(&self) -> PathBuf {
        self.room.path().join("log")
    }

    fn write(&self, policy: &str) {
        fs::write(self.policy(), policy).unwrap();
    }

    fn change(&self, from: &str, to: &str) {
        let policy = fs::read_to_string(self.policy()).unwrap();
        assert!(policy.contains(from));
        self.write(&policy.replacen(from, to, 1));
    }

    fn command(&self) -> Command {
        let mut command = sandboxctl();
        command
            .arg("run")
            .arg(self.policy())
            .arg("--log")
            .arg(self.log());
        command.args(["--quiet", SIMULATED]).stdin(Stdio::null());
        command
    }

    /// Runs the policy, which fails; gives the exit code and what was said.
    fn fails(&self) -> (i32, String) {
        let said = failure(&self.command().output().unwrap());
        assert!(!self.room.out().join("ran").exists(), "it ran: {}", said.1);
        said
    }

    /// As [`Desk::fails`], before there was anything to log.
    fn fails_early(&self) -> (i32, String) {
        let before = files(self.room.path());
        let said = self.fails();
        assert_eq!(files(self.room.path()), before, "files are left");
        assert!(!self.log().exists(), "a log is left");
        said
    }
}

/// Exit code and text of a failure: one message, with at most one line of help.
fn failure(output: &Output) -> (i32, String) {
    let said = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!output.status.success(), "it succeeded: {said}");
    assert!(
        output.stdout.is_empty(),
        "on stdout: {}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert!(said.starts_with("sandboxctl: "), "{said}");
    assert_eq!(
        said.matches("sandboxctl: ").count(),
        1,
        "more than one message: {said}"
    );
    assert!(
        said.lines()
            .filter(|line| line.starts_with("  help: "))
            .count()
            <= 1,
        "{said}"
    );
    assert!(!said.contains("panicked"), "{said}");
    println!("{said}");
    (output.status.code().unwrap(), said)
}

fn assert_says(said: &str, words: &[&str]) {
    for word in words {
        assert!(said.contains(word), "no `{word}` in: {said}");
    }
}

#[test]
fn what_is_right_runs() {
    let Some(desk) = Desk::new() else { return };
    let output = desk.command().output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.stderr.is_empty(), "--quiet says nothing");
    assert!(desk.room.out().join("ran").exists());
}

#[test]
fn a_missing_policy_is_named() {
    let Some(desk) = Desk::new() else { return };
    fs::remove_file(desk.policy()).unwrap();
    let (code, said) = desk.fails_early();
    assert_eq!(code, 125);
    assert_says(&said, &["policy.toml", "No such file"]);
}

#[test]
fn malformed_toml_is_shown_with_its_line() {
    let Some(desk) = Desk::new() else { return };
    desk.change("name = \"story\"", "name = \"story");
    let (code, said) = desk.fails_early();
    assert_eq!(code, 125);
    assert_says(&said, &["policy.toml:2:"]);
}

#[test]
fn an_unknown_key_is_shown_with_what_was_probably_meant() {
    let Some(desk) = Desk::new() else { return };
    desk.change("memory =", "memroy =");
    let (code, said) = desk.fails_early();
    assert_eq!(code, 125);
    assert_says(&said, &["memroy", "did you mean", "memory", "policy.toml:"]);
}

#[test]
fn a_mistake_in_a_rule_is_shown_with_line_and_column() {
    let Some(desk) = Desk::new() else { return };
    desk.change(
        "permit (principal, action, resource);",
        "permit (principal, action, resource)\n  when { context.rsik > 1 };",
    );
    let (code, said) = desk.fails_early();
    assert_eq!(code, 125);
    let line = fs::read_to_string(desk.policy()).unwrap();
    let line = line.lines().position(|line| line.contains("rsik")).unwrap() + 1;
    assert_says(&said, &[&format!("policy.toml:{line}:"), "rsik"]);
}

#[test]
fn a_command_that_does_not_exist_is_named_as_a_shell_would() {
    let Some(desk) = Desk::new() else { return };
    desk.write(&Policy::command(&["no-such-command"]).text());
    let (code, said) = desk.fails();
    assert_eq!(code, 127);
    assert_says(&said, &["no-such-command", "No such file", "help:"]);
}

#[test]
fn a_vault_with_a_flipped_byte_is_named() {
    let Some(desk) = Desk::new() else { return };
    let index = files(&desk.room.vault())
        .into_iter()
        .find(|path| path.parent().unwrap().ends_with("index"));
    let index = index.unwrap();
    let mut bytes = fs::read(&index).unwrap();
    bytes[40] ^= 1;
    fs::write(&index, bytes).unwrap();
    let (code, said) = desk.fails();
    assert_eq!(code, 125);
    assert_says(
        &said,
        &[
            "customers.vault",
            "tampered with or damaged",
            "restore it from a copy",
        ],
    );
}

#[test]
fn a_key_of_another_vault_is_told_as_such() {
    let Some(desk) = Desk::new() else { return };
    fs::write(desk.room.path().join("customers.key"), "ab".repeat(32)).unwrap();
    let (code, said) = desk.fails();
    assert_eq!(code, 125);
    assert_says(&said, &["customers.vault", "key of another vault"]);
    // It was tried: the log tells.
    assert!(vault::audit::verify(&desk.log(), None, None).is_ok());
}

#[test]
fn a_key_file_that_is_missing_or_open_to_others_or_no_key_is_named() {
    let Some(desk) = Desk::new() else { return };
    let key = desk.room.path().join("customers.key");
    fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    assert_says(&desk.fails_early().1, &["customers.key", "help: chmod 600"]);
    fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(&key, "not a key").unwrap();
    assert_says(
        &desk.fails_early().1,
        &["customers.key", "64 hexadecimal digits"],
    );
    fs::remove_file(&key).unwrap();
    assert_says(&desk.fails_early().1, &["customers.key", "help:"]);
}

#[test]
fn reference_values_that_are_missing_or_malformed_are_named() {
    let Some(desk) = Desk::new() else { return };
    let path = desk.room.path().join("reference.json");
    fs::write(&path, "{ \"sev-snp\": { \"measurement\": [] } }").unwrap();
    assert_says(&desk.fails_early().1, &["reference.json", "measurement"]);
    fs::remove_file(&path).unwrap();
    assert_says(&desk.fails_early().1, &["reference.json", "No such file"]);
}

#[test]
fn without_the_dangerous_flag_simulated_evidence_is_not_even_collected() {
    let Some(desk) = Desk::new() else { return };
    let mut command = sandboxctl();
    command
        .arg("run")
        .arg(desk.policy())
        .arg("--log")
        .arg(desk.log())
        .arg("--quiet");
    let (code, said) = failure(&command.output().unwrap());
    assert_eq!(code, 125);
    assert_says(&said, &["no evidence", "help:", SIMULATED]);
    assert!(!desk.log().exists() && !desk.room.out().join("ran").exists());
}

#[test]
fn a_log_folder_that_holds_a_log_already_is_left_as_it_is() {
    let Some(desk) = Desk::new() else { return };
    assert!(desk.command().output().unwrap().status.success());
    fs::remove_file(desk.room.out().join("ran")).unwrap();
    let before = vault::audit::verify(&desk.log(), None, None)
        .unwrap()
        .size();
    let (code, said) = desk.fails();
    assert_eq!(code, 125);
    assert_says(&said, &["log", "help:", "--log DIR"]);
    assert_eq!(
        vault::audit::verify(&desk.log(), None, None)
            .unwrap()
            .size(),
        before
    );
}

#[test]
fn a_log_whose_tail_is_lost_does_not_verify() {
    let Some(desk) = Desk::new() else { return };
    assert!(desk.command().output().unwrap().status.success());
    let entries = files(&desk.log().join("tile/entries")).pop().unwrap();
    let whole = fs::read(&entries).unwrap();
    fs::write(&entries, &whole[..whole.len() / 2]).unwrap();
    let (code, said) = failure(
        &sandboxctl()
            .args(["audit", "verify"])
            .arg(desk.log())
            .output()
            .unwrap(),
    );
    assert_eq!(code, 1);
    assert_says(&said, &["does not verify", "help:"]);
}

#[test]
fn no_room_for_the_log_means_nothing_runs() {
    let Some(desk) = Desk::new() else { return };
    // Not one block for any file; the signal that comes with that is ignored.
    let run = desk.command();
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 0; exec \"$@\"", "sh"]);
    limited
        .arg(run.get_program())
        .args(run.get_args())
        .stdin(Stdio::null());
    let (code, said) = failure(&limited.output().unwrap());
    assert_eq!(code, 125);
    assert_says(&said, &["log", "help:"]);
    assert!(!desk.room.out().join("ran").exists());
}

#[test]
fn a_disk_that_fills_up_stops_the_workload() {
    if !rustix::process::getuid().is_root() {
        println!("skipped: only root mounts a small disk");
        return;
    }
    let Some(desk) = Desk::new() else { return };
    let script = "cat /dev/zero > /out/fill; while :; do unshare --user true; done";
    // Each refused call is decided upon, and so is its fading: many records.
    let policy = Policy::shell(script).with_rules(
        "falls-after = \"1ms\"\ndenied-syscall = { adds = 20, half-life = \"2ms\" }",
        "forbid (principal, action == Action::\"use\", resource) when { context.risk >= 10 };",
    );
    desk.write(&policy.text());
    let folder = desk.room.path();
    let run = desk.command();
    let mut small = Command::new("unshare");
    // A private mount namespace, in which the folder is moved to a disk of four mebibytes.
    let mount = "cp -a \"$1\" \"$1.copy\" && mount -t tmpfs -o size=4m small \"$1\" && \
                 cp -a \"$1.copy/.\" \"$1\" && rm -r \"$1.copy\" && shift && exec \"$@\"";
    small.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        mount,
        "sh",
    ]);
    small
        .arg(folder)
        .arg(run.get_program())
        .args(run.get_args())
        .stdin(Stdio::null());
    let output = small.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let own: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("sandboxctl: "))
        .collect();
    println!("{said}");
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(own.len() == 1 && own[0].contains("audit log"), "{said}");
    assert_says(&said, &["help: is the disk full?"]);
}
