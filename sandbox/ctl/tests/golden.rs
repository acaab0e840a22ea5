//! Whole sessions with `sandboxctl policy`, word for word.
//!
//! A file in `golden/` is a session: files to make (`--- NAME` to `---`), commands (`$ sandboxctl …`)
//! and below each what it prints (`! ` before what goes to stderr, `? N` for an exit code other
//! than 0); `## ` begins a remark. `GOLDEN=write cargo test -p sandboxctl --test golden` writes what is printed now; review the
//! difference. Paths, digests and times are replaced by words before they are compared.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

macro_rules! sessions {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            session(stringify!($name));
        })*

        #[test]
        fn every_file_is_a_session() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
            for entry in fs::read_dir(folder).unwrap() {
                let name = entry.unwrap().file_name().into_string().unwrap();
                let name = name.strip_suffix(".session").unwrap();
                assert!([$(stringify!($name)),*].contains(&name), "{name}");
            }
        }
    };
}

sessions! { check errors rule_errors beginner explain diff test sign import learn replay }

#[test]
fn the_sessions_hold_many_different_errors() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut errors = std::collections::BTreeSet::new();
    for entry in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        let said = text.lines().map(|line| line.trim_start_matches("! "));
        let error = |line: &&str| line.starts_with("error: ") || line.starts_with("sandboxctl: ");
        errors.extend(said.filter(error).map(str::to_owned));
    }
    assert!(errors.len() >= 100, "{}: {errors:#?}", errors.len());
}

fn session(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.session"));
    let written = fs::read_to_string(&path).unwrap();
    // Not in /tmp, which a sandbox replaces by its own.
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let mut told = String::new();
    let mut lines = written.lines().peekable();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("--- ") {
            let mut text = String::new();
            let _ = writeln!(told, "{line}");
            for line in lines.by_ref().take_while(|line| *line != "---") {
                let _ = writeln!(text, "{line}");
            }
            told.push_str(&text);
            told.push_str("---\n");
            make(&folder.path().join(name), &text);
        } else if let Some(command) = line.strip_prefix("$ sandboxctl ") {
            let _ = writeln!(told, "{line}");
            told.push_str(&run(command, folder.path()));
            let ends = |line: &&str| {
                ["$ ", "--- ", "## "]
                    .iter()
                    .any(|start| line.starts_with(start))
            };
            while lines.peek().is_some_and(|line| !ends(line)) {
                lines.next();
            }
        } else if line.starts_with("## ") || line.is_empty() {
            let _ = writeln!(told, "{line}");
        }
    }
    if std::env::var_os("GOLDEN").is_some() {
        fs::write(&path, told).unwrap();
        return;
    }
    let (written, told): (Vec<&str>, Vec<&str>) =
        (written.lines().collect(), told.lines().collect());
    for (at, (written, told)) in written.iter().zip(&told).enumerate() {
        assert_eq!(told, written, "{name}.session:{}", at + 1);
    }
    assert_eq!(told.len(), written.len(), "{name}.session");
}

fn make(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
    if text.starts_with("#!") {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn run(command: &str, folder: &Path) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_sandboxctl"))
        .args(command.split(' '))
        .current_dir(folder)
        .env_clear()
        .output()
        .unwrap();
    let mut told = String::new();
    for (sign, text) in [("", &output.stdout), ("! ", &output.stderr)] {
        let text = String::from_utf8(text.clone()).unwrap();
        for line in text.lines() {
            let _ = writeln!(told, "{sign}{}", plain(line, folder).trim_end());
        }
    }
    match output.status.code() {
        Some(0) => {}
        Some(code) => writeln!(told, "? {code}").unwrap(),
        None => told.push_str("? killed\n"),
    }
    told.push('\n');
    told
}

/// The line without what is another one each time.
fn plain(line: &str, folder: &Path) -> String {
    let line = digests(&line.replace(&*folder.to_string_lossy(), "FOLDER"));
    let mut plain = String::new();
    let mut words = line.split(' ').peekable();
    while let Some(word) = words.next() {
        let number = word.chars().all(|c| c.is_ascii_digit()) && !word.is_empty();
        let (start, key) = word.split_once('+').unwrap_or_default();
        if number && words.peek().is_some_and(|unit| *unit == "ms") {
            plain.push('N');
        } else if key.len() > 40 && !start.is_empty() {
            let _ = write!(plain, "{start}+KEY");
        } else {
            plain.push_str(word);
        }
        if words.peek().is_some() {
            plain.push(' ');
        }
    }
    plain
}

/// The line with a word for each run of 64 hexadecimal digits.
fn digests(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while let Some(start) = rest.find(|c: char| c.is_ascii_hexdigit()) {
        let (before, run) = rest.split_at(start);
        let length = run
            .find(|c: char| !c.is_ascii_hexdigit())
            .unwrap_or(run.len());
        plain.push_str(before);
        plain.push_str(if length >= 64 {
            "SHA256"
        } else {
            &run[..length]
        });
        rest = &run[length..];
    }
    plain + rest
}
