//! What programs feel: a clone of a repository with many files, and transactions of a database before and
//! after, since a commit writes the names of all files.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::Kind;

/// Each transaction is durable when it returns.
const TRANSACTIONS: &str = "
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1])
db.execute('pragma journal_mode=wal')
db.execute('pragma synchronous=full')
db.execute('create table if not exists t (n integer primary key, b blob)')
count = int(sys.argv[2])
started = time.monotonic()
for n in range(count):
    with db:
        db.execute('insert into t (b) values (?)', (bytes(900),))
print(count / (time.monotonic() - started))
";

/// Makes a repository with this many files.
pub fn repository(at: &Path, files: usize) -> bool {
    fs::create_dir(at).unwrap();
    for file in 0..files {
        let folder = at.join(format!("folder-{}", file / 100));
        fs::create_dir_all(&folder).unwrap();
        let line = format!("this is line {file}\n").repeat(40);
        fs::write(folder.join(format!("file-{file}")), line).unwrap();
    }
    let script = "git init -q . && git add . && \
                  git -c user.name=a -c user.email=a@b -c gc.auto=0 commit -q -m first";
    runs(Command::new("sh").args(["-c", script]).current_dir(at))
}

/// Transactions a second in what is mounted, seconds of a clone, and transactions a second after it.
pub fn round(kind: &mut dyn Kind, origin: &Path, count: usize) -> Option<[f64; 3]> {
    let at = kind.mount()?;
    let before = transactions(&at.join("before.db"), count)?;
    let started = Instant::now();
    let clone = Command::new("git")
        .args(["clone", "-q", "--no-local"])
        .args([origin, &at.join("clone")])
        .stdin(Stdio::null())
        .status();
    assert!(clone.ok()?.success());
    let clone = started.elapsed().as_secs_f64();
    let after = transactions(&at.join("after.db"), count)?;
    fs::remove_dir_all(at.join("clone")).unwrap();
    fs::remove_file(at.join("before.db")).unwrap();
    fs::remove_file(at.join("after.db")).unwrap();
    kind.unmount();
    Some([before, clone, after])
}

fn transactions(database: &Path, count: usize) -> Option<f64> {
    let run = Command::new("python3")
        .args(["-c", TRANSACTIONS])
        .args([database.as_os_str(), count.to_string().as_ref()])
        .stdin(Stdio::null())
        .output()
        .ok()?;
    assert!(run.status.success(), "{run:?}");
    String::from_utf8(run.stdout).unwrap().trim().parse().ok()
}

fn runs(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
