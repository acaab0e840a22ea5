//! Programs that keep their data in a vault, inside a sandbox that is killed at some moment, with or without
//! its supervisor: what they had made durable is there, whole, in the next sandbox.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{Policy, Room, files, in_session, sandboxctl, sqlite, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use vault::{Access, Vault};

/// What the simulator is welcome by.
const REFERENCE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/examples/clean-room/reference.json"
);

/// A room with the key of its vault in a file, where vaults can be written to.
fn room() -> Option<Room> {
    let fuse = fs::File::options().read(true).write(true).open("/dev/fuse");
    if let Err(error) = fuse {
        println!("skipped: /dev/fuse cannot be opened: {error}");
        return None;
    }
    let room = Room::new()?;
    let key: String = room.key.iter().map(|byte| format!("{byte:02x}")).collect();
    let file = room.path().join("customers.key");
    fs::write(&file, key + "\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    fs::set_permissions(file, mode).unwrap();
    Some(room)
}

/// Who dies.
#[derive(Clone, Copy, Debug)]
enum Dies {
    Supervisor,
    /// Every process of the sandbox; its supervisor lives on and ends in order.
    Sandbox,
}

/// `sandboxctl run`, in a session of its own.
struct Run {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Run {
    fn command(room: &Room, policy: &Policy) -> Command {
        fs::write(room.path().join("policy.toml"), policy.text()).unwrap();
        fs::copy(REFERENCE, room.path().join("reference.json")).unwrap();
        let mut command = Command::new("setsid");
        command
            .arg(sandboxctl().get_program())
            .args(["run", "--quiet", "--dangerously-accept-simulated", "--log"])
            .arg(room.new_log())
            .arg(room.path().join("policy.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped());
        command
    }

    fn start(room: &Room, policy: &Policy) -> Self {
        let mut child = Self::command(room, policy).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line that the workload prints.
    fn line(&mut self) -> String {
        let line = self.lines.next();
        line.unwrap_or_else(|| panic!("it ended: {:?}", self.child.wait()))
            .unwrap()
    }

    /// Kills, and waits until everything is gone.
    fn kill(mut self, who: Dies) {
        let supervisor = i32::try_from(self.child.id()).unwrap();
        match who {
            Dies::Supervisor => self.child.kill().unwrap(),
            Dies::Sandbox => {
                for pid in in_session(supervisor)
                    .into_iter()
                    .filter(|p| *p != supervisor)
                {
                    // One that is gone meanwhile needs no killing.
                    let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
                }
            }
        }
        self.child.wait().unwrap();
        wait_until("every process of the sandbox to be gone", || {
            in_session(supervisor).is_empty()
        });
    }
}

/// Runs a command on the vault to its end, and looks at every byte of the vault then; what it prints.
fn check(room: &Room, policy: &Policy, what: &str) -> String {
    let run = Run::command(room, policy).output().unwrap();
    let said = String::from_utf8(run.stdout).unwrap();
    let stderr = String::from_utf8(run.stderr).unwrap();
    let outside = || {
        let files = files(&room.out()).into_iter();
        let told = files.filter_map(|file| fs::read_to_string(file).ok());
        told.collect::<Vec<_>>().join("\n")
    };
    assert!(
        run.status.success(),
        "{what}: {said}\n{stderr}\n{}",
        outside()
    );
    let vault = Vault::open(&room.vault(), &room.kek(), Access::ReadOnly).unwrap();
    vault.verify(|_| ()).unwrap();
    said
}

fn python(script: &str, further: &[&str]) -> Policy {
    let command = ["/usr/bin/python3", "-c", script, "/data/db"];
    Policy::command(&[&command, further].concat()).with_writable_data()
}

#[test]
fn sqlite_in_a_sandbox_that_is_killed_loses_no_transaction_that_it_told_of() {
    let Some(room) = room() else { return };
    if !Path::new("/usr/bin/python3").exists() {
        println!("skipped: there is no /usr/bin/python3");
        return;
    }
    let rounds = [
        ("delete", Dies::Supervisor),
        ("wal", Dies::Sandbox),
        ("wal", Dies::Supervisor),
        ("delete", Dies::Sandbox),
    ];
    for (round, (mode, who)) in rounds.into_iter().enumerate() {
        let mut run = Run::start(&room, &python(sqlite::WRITES, &[mode]));
        // Killed after some transaction, wherever the next one is by then.
        let told = (0..2 + round * 2).map(|_| run.line()).last().unwrap();
        run.kill(who);
        let found = check(&room, &python(sqlite::CHECKS, &[]), mode);
        let (told, found): (u64, u64) = (told.parse().unwrap(), found.trim().parse().unwrap());
        assert!(found >= told, "{mode}, {who:?}: {found} of {told} rows");
    }
}

/// Clones, tells when the clone is durable, and clones again and again until it is killed. Then it checks
/// what was told of, and that a new clone can be made of it.
const CLONES: &str = "
set -e; cd /data; export HOME=/tmp GIT_CONFIG_NOSYSTEM=1
git='git -c core.fsync=all -c safe.directory=* -c gc.auto=0'
n=0
while :; do
    $git clone -q --no-local /origin clone-$n
    $git -C clone-$n checkout -q -b other
    $git -C clone-$n -c user.name=a -c user.email=a@b commit -q --allow-empty -m more
    sync clone-$n/.git/HEAD; echo $n
    n=$((n+1))
done";

const CHECKS_CLONES: &str = "
set -e; cd /data; export HOME=/tmp GIT_CONFIG_NOSYSTEM=1
git='git -c safe.directory=* -c gc.auto=0'
n=0
while [ $n -le LAST ]; do
    $git -C clone-$n fsck --strict > /tmp/said 2>&1 || { cat /tmp/said; exit 1; }
    [ -z \"$($git -C clone-$n status --porcelain)\" ]
    [ \"$($git -C clone-$n log --format=%s | head -1)\" = more ]
    rm -rf clone-$n
    n=$((n+1))
done
rm -rf /data/clone-*; echo fine";

/// A repository of a few files, in a folder that the sandbox sees as `/origin`.
fn repository(at: &Path) -> bool {
    let script = "set -e; git init -q -b main .; mkdir -p a/b\n\
                  for n in $(seq 60); do echo $n > a/file-$n; echo $n > a/b/file-$n; done\n\
                  git add .; git -c user.name=a -c user.email=a@b commit -q -m first";
    fs::create_dir(at).unwrap();
    let made = Command::new("sh")
        .args(["-c", script])
        .current_dir(at)
        .env("HOME", at)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    made.status.success()
}

#[test]
fn clones_in_a_sandbox_that_is_killed_are_whole_once_they_were_synced() {
    let Some(room) = room() else { return };
    if !repository(&room.path().join("origin")) {
        println!("skipped: git cannot be run");
        return;
    }
    let shell = |script: &str| {
        let mut policy = Policy::shell(script).with_writable_data();
        policy.files = "read = [{ from = \"origin\", at = \"/origin\" }]".into();
        policy
    };
    for (round, who) in [Dies::Supervisor, Dies::Sandbox].into_iter().enumerate() {
        let mut run = Run::start(&room, &shell(CLONES));
        let last = (0..1 + round).map(|_| run.line()).last().unwrap();
        run.kill(who);
        let script = CHECKS_CLONES.replace("LAST", &last);
        let said = check(&room, &shell(&script), "git");
        assert_eq!(said, "fine\n");
    }
}

/// Starts PostgreSQL on the vault, where the socket and what is not durable are in `/out`.
const SERVER: &str = r#"
set -e; export LC_ALL=C PGHOST=/out HOME=/out
start() {
    "$bin/pg_ctl" -D /data/cluster -w -t 120 -l /out/log -o "-c listen_addresses= \
        -c unix_socket_directories=/out -c wal_sync_method=fdatasync -c shared_buffers=16MB \
        -c dynamic_shared_memory_type=mmap -c jit=off -c max_connections=12" start > /out/said 2>&1
}
"#;

/// What is true of pgbench's tables after any number of whole transactions.
const SUMS: &str = "
select count(distinct s) from (select sum(abalance) s from pgbench_accounts
union all select sum(bbalance) from pgbench_branches
union all select sum(tbalance) from pgbench_tellers
union all select coalesce(sum(delta), 0) from pgbench_history) sums";

#[test]
fn postgresql_in_a_sandbox_that_is_killed_recovers() {
    let Some(room) = room() else { return };
    let newest = fs::read_dir("/usr/lib/postgresql").ok();
    let newest = newest.and_then(|all| all.filter_map(|e| Some(e.ok()?.path().join("bin"))).max());
    let Some(bin) = newest.filter(|bin| bin.join("pgbench").exists()) else {
        println!("skipped: PostgreSQL is not installed");
        return;
    };
    let shell = |script: &str| {
        let script = format!("bin={}\n{SERVER}\n{script}", bin.display());
        let mut policy = Policy::shell(&script).with_writable_data();
        policy.time = "300s".into();
        // Its clients come over a Unix socket, which older kernels refuse otherwise.
        policy.files += "\n[syscalls]\nallow = [\"connect\"]";
        policy
    };
    let made = "\"$bin/initdb\" -D /data/cluster -A trust --no-locale -U me --wal-segsize=1 > /out/initdb\n\
                chmod 700 /data/cluster; start\n\
                \"$bin/pgbench\" -U me -i -q -s 1 postgres > /out/init 2>&1\n\
                \"$bin/pg_ctl\" -D /data/cluster -w -m fast stop > /out/said";
    check(&room, &shell(made), "initdb");
    for who in [Dies::Supervisor, Dies::Sandbox] {
        // Killed while transactions are under way, as some were told.
        let bench = "start; \"$bin/pgbench\" -U me -n -c 4 -T 100 -P 1 postgres 2>&1";
        let mut run = Run::start(&room, &shell(bench));
        while !run.line().contains("tps") {}
        run.kill(who);
        let sums = format!(
            "rm -f /data/cluster/postmaster.pid /out/.s.PGSQL*; start\n\
             \"$bin/psql\" -U me -At postgres -c \"{SUMS}\"\n\
             \"$bin/psql\" -U me -At postgres -c 'select count(*) > 0 from pgbench_history'\n\
             \"$bin/pg_ctl\" -D /data/cluster -w -m fast stop > /out/said"
        );
        let said = check(&room, &shell(&sums), "recovery");
        assert_eq!(said, "1\nt\n", "{who:?}: half a transaction is there");
    }
}
