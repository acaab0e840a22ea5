//! Programs that people run, under the profiles as they are, with only their tables written down.
//!
//! Where one is not installed its test says so and passes; Python, git and PostgreSQL have to be there in CI.

#![allow(clippy::unwrap_used)]

#[path = "common/launched.rs"]
#[allow(dead_code)]
mod launched;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use casemate::isolation::child::Ending;
use casemate::isolation::container::Container;
use launched::Room;

/// Whether the program is there. In CI the first few have to be.
fn installed(program: &str, in_ci: bool) -> bool {
    let there = Path::new(program).exists()
        || ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"]
            .iter()
            .any(|folder| Path::new(folder).join(program).exists());
    assert!(
        there || !in_ci || std::env::var_os("CI").is_none(),
        "`{program}` is not installed, and CI needs it"
    );
    if !there {
        println!("skipped: `{program}` is not installed");
    }
    there
}

/// Runs a script with a writable folder at `/scratch`, and these lines for the policy. What it prints at its
/// end is the last line.
fn last_line(script: &str, tables: &str) -> String {
    last_line_with(script, &[], tables)
}

/// The same, with these folders of the host to read.
fn last_line_with(script: &str, read: &[&str], tables: &str) -> String {
    let work = tempfile::tempdir().unwrap();
    let write = format!(
        "read = {read:?}\nwrite = [{{ from = {:?}, at = \"/scratch\" }}]",
        work.path()
    );
    let command = [
        "/bin/sh",
        "-ec",
        &format!("cd /scratch; export HOME=/scratch; {script}"),
    ];
    let told = Room::of(&command, &write, tables).run(Container::prepare().unwrap());
    assert_eq!(told.ending, Ending::Code(0), "{}", told.output);
    told.output.lines().last().unwrap_or_default().to_owned()
}

#[test]
fn python_runs_threads_processes_and_a_database() {
    if !installed("python3", true) {
        return;
    }
    let script = r#"cat > job.py <<'END'
import concurrent.futures, hashlib, os, sqlite3, subprocess, tempfile
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    digests = list(pool.map(lambda n: hashlib.sha256(bytes([n])).hexdigest(), range(8)))
with sqlite3.connect("/scratch/base") as base:
    base.execute("create table digests (text)")
    base.executemany("insert into digests values (?)", [[digest] for digest in digests])
    count = base.execute("select count(distinct text) from digests").fetchone()[0]
said = subprocess.run(["/bin/echo", "child"], capture_output=True, text=True).stdout.strip()
with tempfile.NamedTemporaryFile() as file:
    file.write(os.urandom(16))
print(count, said)
END
python3 job.py"#;
    assert_eq!(last_line(script, ""), "8 child");
}

#[test]
fn git_commits_merges_and_packs() {
    if !installed("git", true) {
        return;
    }
    let script = "export GIT_CONFIG_GLOBAL=/scratch/config
        git config --global user.name N; git config --global user.email n@localhost
        git init -q -b main r; cd r; echo one > f; git add f; git commit -qm one
        git checkout -qb side; echo two > g; git add g; git commit -qm two
        git checkout -q main; echo three > h; git add h; git commit -qm three
        git merge -qm both side; git gc -q; git fsck; git log --oneline | wc -l";
    assert_eq!(last_line(script, "").trim(), "4");
}

#[test]
fn a_compiler_compiles_and_what_it_made_does_not_run() {
    if !installed("gcc", false) {
        return;
    }
    let script = "echo 'int main(void) { return 7; }' > m.c; gcc -O2 -o m m.c
        test -s m; ./m 2> /dev/null && echo ran || echo $?";
    // It was written, so it is not executed: no file is both.
    assert_eq!(last_line(script, ""), "126");
}

#[test]
fn node_and_java_run_under_the_profile_for_compilers() {
    let jit = "[syscalls]\nprofile = \"jit\"";
    if installed("node", false) {
        let script =
            "node -e 'let s = 0; for (let i = 0; i < 1e6; i++) s += i % 7; console.log(s)'";
        assert_eq!(last_line(script, jit), "2999997");
    }
    if installed("java", false) {
        let script = "java -Xmx64m -XX:-UsePerfData -version 2>&1; echo $?";
        assert_eq!(last_line(script, jit), "0");
    }
    if installed("javac", false) {
        let script = "cat > Sum.java <<'END'
import java.util.concurrent.*;
import java.util.stream.*;
class Sum {
  public static void main(String[] words) throws Exception {
    ExecutorService pool = Executors.newFixedThreadPool(4);
    long sum = 0;
    for (Future<Long> part : pool.invokeAll(IntStream.range(0, 8).mapToObj(n ->
        (Callable<Long>) () -> LongStream.range(0, 200_000).map(i -> (i + n) % 7).sum()).toList())) sum += part.get();
    pool.shutdown();
    System.out.println(sum);
  }
}
END
javac -J-Xmx128m -J-XX:-UsePerfData Sum.java; java -Xmx64m -XX:-UsePerfData Sum";
        // Eight times 200,000 numbers, three on average; the last few of each are no whole round of seven.
        let parts = (0..8u64).map(|n| (0..200_000).map(|i| (i + n) % 7).sum::<u64>());
        let settings = java_settings();
        let settings: Vec<_> = settings.iter().map(String::as_str).collect();
        let sum = last_line_with(script, &settings, jit);
        assert_eq!(sum, parts.sum::<u64>().to_string());
    }
}

/// Where Debian has the settings of its JVMs, to which links in their folders lead.
fn java_settings() -> Vec<String> {
    let entries = std::fs::read_dir("/etc").unwrap().flatten();
    let paths = entries.map(|entry| entry.path().display().to_string());
    paths
        .filter(|path| path.starts_with("/etc/java-"))
        .collect()
}

#[test]
fn curl_reaches_the_server_that_is_granted_and_no_other() {
    if !installed("curl", false) {
        return;
    }
    let (granted, other) = (server("granted"), server("other"));
    let script = format!(
        "curl -sS http://127.0.0.1:{granted}/; curl -sS http://127.0.0.1:{other}/ 2> /dev/null || echo \" $?\""
    );
    let tables = format!("[network]\nconnect = [\"127.0.0.1:{granted}\"]");
    // "Failed to connect to host" is 7.
    assert_eq!(last_line(&script, &tables), "granted 7");
}

#[test]
fn curl_is_a_client_and_starts_nothing_under_the_profile_for_clients() {
    if !installed("curl", false) {
        return;
    }
    let (granted, other) = (server("granted"), server("other"));
    let tables = format!(
        "[syscalls]\nprofile = \"network-client\"\n[network]\nconnect = [\"127.0.0.1:{granted}\"]"
    );
    let run = |command: &[&str]| Room::of(command, "", &tables).run(Container::prepare().unwrap());
    let told = run(&[
        "/usr/bin/curl",
        "-sS",
        &format!("http://127.0.0.1:{granted}/"),
    ]);
    assert_eq!((told.ending, &*told.output), (Ending::Code(0), "granted"));
    let told = run(&[
        "/usr/bin/curl",
        "-sS",
        &format!("http://127.0.0.1:{other}/"),
    ]);
    assert_eq!(told.ending, Ending::Code(7), "{}", told.output);
    let told = run(&["/bin/sh", "-c", "(:) && echo forked"]);
    assert!(!told.output.contains("forked"), "{}", told.output);
}

/// Answers every request with one word. Its port.
fn server(word: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for flow in listener.incoming() {
            let mut flow = flow.unwrap();
            let _ = flow.read(&mut [0; 1024]);
            let length = word.len();
            let _ = write!(
                flow,
                "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{word}"
            );
        }
    });
    port
}

/// Servers and their clients inside speak over a Unix socket, which the policy has to name before
/// Landlock can tell such sockets apart by their place.
const UNIX_SOCKETS: &str = "[syscalls]\nallow = [\"socket\", \"connect\", \"bind\", \"listen\"]";

#[test]
fn postgresql_makes_a_cluster_serves_it_and_keeps_it() {
    let Some(programs) = postgresql() else { return };
    let script = format!(
        "PATH={programs}:$PATH; export PGHOST=/tmp PGDATA=/scratch/base PGUSER=workload
        initdb --no-sync --no-locale -A trust > /dev/null
        serve() {{ pg_ctl -s -w -o \"-k /tmp -c listen_addresses= -c fsync=off\" -l /scratch/log $1 || {{ cat /scratch/log; exit 1; }}; }}
        serve start
        psql -qd postgres -c 'create table t as select generate_series(1, 1000) as n'
        serve restart
        psql -Atd postgres -c 'select sum(n) from t'
        serve stop > /dev/null"
    );
    assert_eq!(last_line(&script, UNIX_SOCKETS), "500500");
}

/// Where the programs of the newest version are.
fn postgresql() -> Option<String> {
    let versions = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let programs = versions.map(|version| version.path().join("bin"));
    let newest = programs
        .filter(|folder| folder.join("initdb").exists())
        .max();
    let place = newest.map(|folder| folder.display().to_string());
    let shown = place.clone().unwrap_or("/usr/lib/postgresql".into());
    installed(&format!("{shown}/initdb"), true)
        .then_some(place)
        .flatten()
}

#[test]
fn nginx_serves_what_it_was_given() {
    if !installed("/usr/sbin/nginx", false) || !installed("curl", false) {
        return;
    }
    let script = r#"mkdir www tmp; echo hello > www/index.html
        cat > nginx.conf <<'END'
daemon off; pid /scratch/pid; error_log /scratch/log; worker_processes 2;
events {}
http {
  access_log off; client_body_temp_path /scratch/tmp; proxy_temp_path /scratch/tmp; fastcgi_temp_path /scratch/tmp;
  uwsgi_temp_path /scratch/tmp; scgi_temp_path /scratch/tmp;
  server { listen unix:/tmp/http; root /scratch/www; }
}
END
        /usr/sbin/nginx -e /scratch/log -c /scratch/nginx.conf & 
        until [ -S /tmp/http ]; do kill -0 $! || { cat /scratch/log; exit 1; }; done
        curl -sS --retry 20 --retry-all-errors --retry-delay 0 --unix-socket /tmp/http http://localhost/
        kill $!; wait $!"#;
    assert_eq!(last_line(script, UNIX_SOCKETS), "hello");
}
