//! A vault mounted by `sandboxctl vault mount`: whoever serves it may be killed at any moment, and what a
//! program had made durable is there again, whole, at the next mount.

#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::CString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{sandboxctl, sqlite};
use rustix::process::{Pid, Signal, kill_process};

/// A folder with a vault, its key, and a place to mount it at.
struct Room(tempfile::TempDir);

/// `sandboxctl vault mount`, until it is ended.
struct Mount {
    child: Child,
    at: PathBuf,
}

impl Room {
    /// `None`, with a printed reason, where nothing can be mounted.
    fn new() -> Option<Self> {
        let fuse = std::fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse");
        if let Err(error) = fuse {
            println!("skipped: /dev/fuse cannot be opened: {error}");
            return None;
        }
        let room = Self(
            tempfile::Builder::new()
                .prefix("mounted-")
                .tempdir()
                .unwrap(),
        );
        std::fs::create_dir(room.at()).unwrap();
        let made = sandboxctl()
            .args(["vault", "create"])
            .arg(room.0.path().join("v"))
            .arg("--key-file")
            .arg(room.0.path().join("key"))
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        Some(room)
    }

    fn at(&self) -> PathBuf {
        self.0.path().join("at")
    }

    /// Mounts the vault, and waits until it is mounted; `None` where that is forbidden.
    fn mount(&self, options: &[&str]) -> Option<Mount> {
        let mut child = sandboxctl()
            .args(["vault", "mount"])
            .args([self.0.path().join("v"), self.at()])
            .arg("--key-file")
            .arg(self.0.path().join("key"))
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        if line.contains("mounted") {
            child.stdout = Some(out.into_inner());
            return Some(Mount {
                child,
                at: self.at(),
            });
        }
        let mut why = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut why)
            .unwrap();
        child.wait().unwrap();
        assert!(why.contains("could not mount"), "{why}");
        println!("skipped: {why}");
        None
    }

    fn verify(&self) {
        let verified = sandboxctl()
            .args(["vault", "verify"])
            .arg(self.0.path().join("v"))
            .arg("--key-file")
            .arg(self.0.path().join("key"))
            .output()
            .unwrap();
        assert!(verified.status.success(), "{verified:?}");
    }
}

impl Mount {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Ends it as Ctrl-C does; returns what it said.
    fn end(mut self) -> Output {
        self.signal(Signal::INT);
        let out = std::mem::replace(&mut self.child, Command::new("true").spawn().unwrap());
        out.wait_with_output().unwrap()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let at = CString::new(self.at.as_os_str().as_bytes()).unwrap();
        let _ = rustix::mount::unmount(at.as_c_str(), rustix::mount::UnmountFlags::DETACH);
    }
}

fn run(program: &str, arguments: &[&str], at: &Path) -> Option<Output> {
    let run = Command::new(program)
        .args(arguments)
        .current_dir(at)
        .stdin(Stdio::null())
        .output();
    if let Err(error) = &run {
        println!("skipped: `{program}` cannot be run: {error}");
    }
    run.ok()
}

#[test]
fn what_a_mount_was_given_is_committed_when_it_ends_and_nothing_is_left_mounted() {
    let Some(room) = Room::new() else { return };
    let Some(mount) = room.mount(&["--json"]) else {
        return;
    };
    std::fs::create_dir_all(room.at().join("a/b")).unwrap();
    std::fs::write(room.at().join("a/b/c"), "content").unwrap();
    let ended = mount.end();
    assert!(ended.status.success(), "{ended:?}");
    let said = String::from_utf8(ended.stdout).unwrap();
    let said: serde_json::Value = serde_json::from_str(said.trim()).unwrap();
    assert_eq!(
        (&said["event"], &said["generation"]),
        (&"unmounted".into(), &2.into())
    );
    assert_eq!(std::fs::read_dir(room.at()).unwrap().count(), 0);
    let mount = room.mount(&["--read-only"]).unwrap();
    assert_eq!(std::fs::read(room.at().join("a/b/c")).unwrap(), b"content");
    assert!(std::fs::write(room.at().join("x"), "x").is_err());
    assert!(mount.end().status.success());
    room.verify();
}

#[test]
fn a_mount_that_is_in_use_when_it_ends_commits_and_gives_no_more() {
    let Some(room) = Room::new() else { return };
    let Some(mount) = room.mount(&[]) else { return };
    let file = std::fs::File::create(room.at().join("held")).unwrap();
    std::io::Write::write_all(&mut &file, b"kept").unwrap();
    let ended = mount.end();
    assert!(ended.status.success(), "{ended:?}");
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("is in use"), "{said}");
    assert!(std::io::Write::write_all(&mut &file, b"late").is_err());
    let mount = room.mount(&[]).unwrap();
    assert_eq!(std::fs::read(room.at().join("held")).unwrap(), b"kept");
    assert!(mount.end().status.success());
}

/// Who is nobody in particular.
const NOBODY: u32 = 65534;

/// Whether fusermount3 can mount for an ordinary user here.
fn fusermount3() -> Result<(), String> {
    use std::os::unix::fs::MetadataExt;
    let device = std::fs::metadata("/dev/fuse").map_err(|e| format!("/dev/fuse: {e}"))?;
    if device.mode() & 0o006 != 0o006 {
        return Err("/dev/fuse is not for everybody".into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|at| at.join("fusermount3"));
    let mut found = found.filter_map(|file| std::fs::metadata(file).ok());
    match found.next() {
        Some(file) if file.mode() & 0o4000 != 0 => Ok(()),
        Some(_) => Err("fusermount3 is not set-user-ID root".into()),
        None => Err("fusermount3 is not installed (`fuse3`)".into()),
    }
}

#[test]
fn an_ordinary_user_mounts_through_fusermount3() {
    if let Err(why) = fusermount3() {
        println!("skipped: {why}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("sandboxctl");
    std::fs::copy(sandboxctl().get_program(), &program).unwrap();
    let is_root = rustix::process::getuid().is_root();
    if is_root {
        std::os::unix::fs::chown(folder.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let user = |program: &Path| {
        let mut command = Command::new(if is_root {
            Path::new("setpriv")
        } else {
            program
        });
        if is_root {
            let ids = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}")];
            command.args(ids).arg("--clear-groups").arg(program);
        }
        command
            .current_dir(folder.path())
            .env("HOME", folder.path());
        command.stdin(Stdio::null());
        command
    };
    // What is mounted is for that user alone, not even for root.
    let shell = |script: &str| {
        let output = user(Path::new("/bin/sh")).args(["-c", script]).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{script}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    shell("mkdir at && ./sandboxctl vault create v --key-file key");
    let mount = |options: &[&str]| {
        let mut child = user(&program)
            .args(["vault", "mount", "v", "at", "--key-file", "key"])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        assert!(line.contains("mounted"), "{line}");
        child.stdout = Some(out.into_inner());
        Mount {
            child,
            at: folder.path().join("at"),
        }
    };
    let first = mount(&[]);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = mounts
        .lines()
        .find(|line| line.contains(folder.path().to_str().unwrap()));
    let ours = ours.unwrap();
    assert!(
        ours.contains("fuse.casemate") && ours.contains("nosuid,nodev"),
        "{ours}"
    );
    shell("mkdir at/d && echo content > at/d/file && cp sandboxctl at/large && sync at/large");
    assert!(first.end().status.success());
    assert_eq!(shell("ls at"), "", "it is still mounted");
    // Killed: the next mount finds what is left of it, and takes it away.
    let mut second = mount(&[]);
    second.kill();
    std::mem::forget(second);
    let third = mount(&["--read-only"]);
    assert_eq!(shell("cat at/d/file; cmp at/large sandboxctl"), "content\n");
    assert!(third.end().status.success());
}

#[test]
fn a_database_recovers_every_transaction_when_the_server_of_its_vault_is_killed() {
    let Some(room) = Room::new() else { return };
    for (round, mode) in ["delete", "wal", "delete", "wal"].into_iter().enumerate() {
        let Some(mut mount) = room.mount(&[]) else {
            return;
        };
        let writer = Command::new("python3")
            .args(["-c", sqlite::WRITES, "db", mode])
            .current_dir(room.at())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut writer) = writer else {
            println!("skipped: python3 cannot be run");
            return;
        };
        // Killed after some transaction, wherever the next one is by then.
        let mut lines = BufReader::new(writer.stdout.take().unwrap()).lines();
        let durable: u64 = (0..3 + round * 2)
            .map(|_| lines.next().unwrap().unwrap().parse().unwrap())
            .last()
            .unwrap();
        mount.kill();
        let _ = writer.kill();
        writer.wait().unwrap();
        // Mounting again finds the dead mount, and takes it away.
        std::mem::forget(mount);
        let mount = room.mount(&[]).unwrap();
        let checked = run("python3", &["-c", sqlite::CHECKS, "db"], &room.at()).unwrap();
        assert!(checked.status.success(), "{mode}: {checked:?}");
        let found: u64 = String::from_utf8(checked.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert!(found >= durable, "{found} of {durable} rows");
        assert!(mount.end().status.success());
        room.verify();
    }
}

const SERVER: &str = r#"
set -e
bin=$1 cluster=$2 run=$3
start() {
    "$bin/pg_ctl" -D "$cluster" -w -t 120 -l "$run/log" \
        -o "-c listen_addresses= -c unix_socket_directories=$run -c wal_sync_method=fdatasync" start
}
"#;

/// What is true of pgbench's tables after any number of whole transactions.
const SUMS: &str = "
select count(distinct s) from (select sum(abalance) s from pgbench_accounts
union all select sum(bbalance) from pgbench_branches
union all select sum(tbalance) from pgbench_tellers
union all select coalesce(sum(delta), 0) from pgbench_history) sums";

/// Runs a piece of shell as the user of the database, which refuses to run as root.
fn as_postgres(ids: (u32, u32), bin: &Path, room: &Room, script: &str) -> Output {
    let run = room.0.path().join("run");
    Command::new("setpriv")
        .args([
            "--reuid",
            &ids.0.to_string(),
            "--regid",
            &ids.1.to_string(),
            "--clear-groups",
        ])
        .args(["sh", "-c", &format!("{SERVER}{script}"), "sh"])
        .args([bin, &room.at().join("cluster"), &run])
        .env("HOME", &run)
        .env("PGHOST", &run)
        .current_dir(&run)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// PostgreSQL's programs, and the ids of its user.
fn postgres() -> Option<(PathBuf, (u32, u32))> {
    let newest = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let newest = newest
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .max()?;
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let user = users.lines().find(|line| line.starts_with("postgres:"))?;
    let mut ids = user.split(':').skip(2).map(|id| id.parse().ok());
    Some((newest, (ids.next()??, ids.next()??)))
}

#[test]
fn postgresql_recovers_when_the_server_of_its_vault_is_killed() {
    let Some(room) = Room::new() else { return };
    let Some((bin, ids)) = postgres().filter(|_| rustix::process::getuid().is_root()) else {
        println!("skipped: PostgreSQL is not installed, or this is not root");
        return;
    };
    let run = room.0.path().join("run");
    std::fs::create_dir(&run).unwrap();
    std::os::unix::fs::chown(&run, Some(ids.0), Some(ids.1)).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(room.0.path(), mode).unwrap();
    let owner = format!("{}:{}", ids.0, ids.1);
    let options = ["--owner", owner.as_str()];
    let Some(mut mount) = room.mount(&options) else {
        return;
    };
    let fine = |script: &str| {
        let output = as_postgres(ids, &bin, &room, script);
        let said = || {
            let files = common::files(&run).into_iter();
            let said = files.filter_map(|file| std::fs::read_to_string(file).ok());
            said.collect::<Vec<_>>().join("\n")
        };
        assert!(output.status.success(), "{output:?}\n{}", said());
        String::from_utf8(output.stdout).unwrap()
    };
    fine(
        "\"$bin/initdb\" -D \"$cluster\" -A trust --no-locale --wal-segsize=1 > \"$run/initdb\"\n\
         start > \"$run/out\" 2>&1\n\
         \"$bin/pgbench\" -i -q -s 1 postgres > \"$run/init\" 2>&1\n\
         \"$bin/pgbench\" -n -c 4 -t 10 postgres > \"$run/bench\" 2>&1\n",
    );
    // Killed while transactions are under way, as the first of them are told.
    let pid = std::fs::read_to_string(room.at().join("cluster/postmaster.pid")).unwrap();
    let pid: i32 = pid.lines().next().unwrap().parse().unwrap();
    std::thread::scope(|scope| {
        let bench = scope.spawn(|| {
            let script = "\"$bin/pgbench\" -n -c 4 -T 30 -P 1 postgres > \"$run/killed\" 2>&1";
            as_postgres(ids, &bin, &room, script)
        });
        common::wait_until("pgbench to be under way", || {
            std::fs::read_to_string(run.join("killed")).is_ok_and(|said| said.contains("tps"))
        });
        mount.kill();
        // The database without its disk: it goes too, all of it.
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
        assert!(
            !bench.join().unwrap().status.success(),
            "nothing was under way"
        );
    });
    std::mem::forget(mount);
    let mount = room.mount(&options).unwrap();
    // A postmaster that was killed leaves its files, and may be somebody's child still.
    std::fs::remove_file(room.at().join("cluster/postmaster.pid")).unwrap();
    let sums = fine(&format!(
        "rm -f \"$run\"/.s.PGSQL*\nstart > \"$run/out\" 2>&1\n\"$bin/psql\" -At postgres -c \"{SUMS}\"\n\
         \"$bin/pg_ctl\" -D \"$cluster\" -w -m fast stop > \"$run/out\" 2>&1"
    ));
    assert_eq!(
        sums.trim(),
        "1",
        "the sums differ: half a transaction is there"
    );
    assert!(mount.end().status.success());
    room.verify();
}
