//! The supervisor is killed, at any moment: no process of its sandbox outlives it, no cgroup, no
//! mount, no plaintext.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{DATA, Policy, Room, cgroups_of, files, in_session, wait_until};

/// In the environment: the folder of the room, and the key of its vault. Makes this test the supervisor.
const ROOM: &str = "CASEMATE_STORY_ROOM";
const KEY: &str = "CASEMATE_STORY_KEY";
const SELF: &str = "nothing_of_a_sandbox_outlives_its_supervisor";

#[test]
fn nothing_of_a_sandbox_outlives_its_supervisor() {
    if let (Ok(room), Ok(key)) = (std::env::var(ROOM), std::env::var(KEY)) {
        return supervise(&room, &key);
    }
    let Some(room) = Room::new() else { return };
    let mut swept = 0;
    for round in 0..24 {
        let up = room.out().join("up");
        let _ = fs::remove_file(&up);
        let mut supervisor = start(&room);
        if round % 3 == 0 {
            wait_until("the workload to run", || {
                assert!(
                    supervisor.try_wait().unwrap().is_none(),
                    "the supervisor ended by itself"
                );
                up.exists()
            });
        } else {
            // Somewhere in the start, or just after it.
            let moment = Instant::now() + Duration::from_micros(random() % 80_000);
            while Instant::now() < moment {
                std::thread::yield_now();
            }
        }
        let pid = i32::try_from(supervisor.id()).unwrap();
        supervisor.kill().unwrap();
        supervisor.wait().unwrap();
        wait_until("every process of the sandbox to be gone", || {
            in_session(pid).is_empty()
        });
        if round % 3 == 0 {
            assert_eq!(
                cgroups_of(pid),
                Vec::<String>::new(),
                "cgroups in round {round}"
            );
        } else if !cgroups_of(pid).is_empty() {
            // Killed before anybody else knew of them: the next sandbox removes them.
            drop(casemate::isolation::cgroup::Cgroup::create());
            assert_eq!(
                cgroups_of(pid),
                Vec::<String>::new(),
                "cgroups in round {round}"
            );
            swept += 1;
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("casemate"), "{mounts}");
    assert_no_plaintext(room.path());
    println!("{swept} times cgroups were left for the next sandbox to remove");
}

/// Runs a workload with a child in the background that holds the data open, until killed.
fn supervise(room: &str, key: &str) {
    let room = Room::at(Path::new(room), key);
    let script = "exec 3< /data/customers.csv; read -r line <&3\n\
                  sh -c 'trap \"\" TERM HUP; while :; do sleep 1000; done' &\n\
                  echo up > /out/up; wait";
    let told = room
        .setup(&Policy::shell(script).with_data())
        .start()
        .wait_until_over();
    panic!("nothing was to end this: {told:#?}");
}

/// This program once more, as the supervisor, in a session of its own that its spawner and the
/// sandbox's init inherit.
fn start(room: &Room) -> Child {
    let key: String = room.key.iter().map(|byte| format!("{byte:02x}")).collect();
    Command::new("setsid")
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", SELF, "--nocapture"])
        .env(ROOM, room.path())
        .env(KEY, key)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

fn assert_no_plaintext(folder: &Path) {
    let words = DATA.lines().nth(1).unwrap().as_bytes();
    for file in files(folder) {
        let content = fs::read(&file).unwrap();
        let found = content.windows(words.len()).any(|window| window == words);
        assert!(!found, "plaintext in {}", file.display());
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    u64::from_ne_bytes(bytes)
}
