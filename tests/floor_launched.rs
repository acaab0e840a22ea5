//! Floors launched without a session around them: many in a row, made beforehand, and over trees of files
//! that try to show more than the policy's tables say.

#![allow(clippy::unwrap_used)]

#[path = "common/launched.rs"]
mod launched;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use casemate::isolation::child::Ending;
use casemate::isolation::container::Container;
use casemate::isolation::nursery::Nursery;
use casemate::isolation::pool::Pool;
use launched::{Launched, Room, held};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[test]
fn what_was_started_a_hundred_times_leaves_nothing_behind() {
    let _alone = launched::alone();
    let room = Room::new("exit 0", &[]);
    let before = held();
    let nursery = Nursery::start().unwrap();
    let work = || {
        for _ in 0..50 {
            let Launched { ending, .. } = room.run(nursery.container().unwrap());
            assert_eq!(ending, Ending::Code(0));
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    drop(nursery);
    before.again();
}

#[test]
fn a_sandbox_of_a_pool_has_the_stdio_of_its_run_and_is_used_once() {
    let _alone = launched::alone();
    let room = Room::new(
        "read -r line; touch /tmp/seen && echo \"$line $(ls /tmp)\"",
        &[],
    );
    let pool = Pool::start(
        Nursery::start().unwrap(),
        room.floor.clone(),
        room.limits,
        2,
    )
    .unwrap();
    let mut inits = BTreeSet::new();
    for word in ["one", "two", "three"] {
        pool.wait_until_full().unwrap();
        let told = room.run_with(pool.backend(), word);
        assert_eq!(told.output, format!("{word} seen\n"));
        assert!(inits.insert(told.init), "{} was used twice", told.init);
    }
}

#[test]
fn a_pool_gives_its_sandboxes_to_its_own_floor_only() {
    let _alone = launched::alone();
    let (pooled, other) = (Room::new("echo pooled", &[]), Room::new("echo other", &[]));
    let pool = Pool::start(
        Nursery::start().unwrap(),
        pooled.floor.clone(),
        pooled.limits,
        1,
    )
    .unwrap();
    pool.wait_until_full().unwrap();
    assert_eq!(other.run(pool.backend()).output, "other\n");
    assert_eq!(pooled.run(pool.backend()).output, "pooled\n");
}

#[test]
fn what_a_pool_still_has_is_gone_with_it() {
    let _alone = launched::alone();
    let room = Room::new("exit 0", &[]);
    let before = held();
    let pool = Pool::start(
        Nursery::start().unwrap(),
        room.floor.clone(),
        room.limits,
        3,
    )
    .unwrap();
    pool.wait_until_full().unwrap();
    assert_ne!(held(), before);
    drop(pool);
    before.again();
}

/// A tree of the host: folders, files whose content is their own path, and links to anywhere.
#[derive(Clone, Debug)]
struct Tree {
    /// Parent, by its place in the list; the first are below the top.
    folders: Vec<prop::sample::Index>,
    files: Vec<prop::sample::Index>,
    links: Vec<(prop::sample::Index, prop::sample::Index, u8)>,
    granted: Vec<prop::sample::Index>,
}

fn tree() -> impl Strategy<Value = Tree> {
    let index = any::<prop::sample::Index>;
    (
        prop::collection::vec(index(), 3..8),
        prop::collection::vec(index(), 4..10),
        prop::collection::vec((index(), index(), 0u8..5), 2..10),
        prop::collection::vec(index(), 1..4),
    )
        .prop_map(|(folders, files, links, granted)| Tree {
            folders,
            files,
            links,
            granted,
        })
}

impl Tree {
    /// Makes it; returns its folders, the top first.
    fn make(&self, top: &Path) -> Vec<PathBuf> {
        let mut folders = vec![top.to_owned()];
        for (number, parent) in self.folders.iter().enumerate() {
            let folder = parent.get(&folders).join(format!("d{number}"));
            fs::create_dir(&folder).unwrap();
            folders.push(folder);
        }
        for (number, parent) in self.files.iter().enumerate() {
            let file = parent.get(&folders).join(format!("f{number}"));
            fs::write(&file, format!("{}\n", file.display())).unwrap();
        }
        for (number, (parent, target, kind)) in self.links.iter().enumerate() {
            let (parent, target) = (parent.get(&folders), target.get(&folders));
            let link = parent.join(format!("l{number}"));
            match kind {
                // What is meant outside, by its whole path.
                0 => symlink(target, link),
                // Upwards beyond the top, and down again.
                1 => symlink(format!("{}{}", "../".repeat(30), target.display()), link),
                2 => symlink("../".repeat(3), link),
                // To itself, and to a sibling that may be a link too.
                3 => symlink(format!("l{number}"), link),
                _ => symlink(format!("l{}", number.saturating_sub(1)), link),
            }
            .unwrap();
        }
        folders
    }
}

#[test]
fn no_tree_of_links_shows_a_file_that_is_not_below_a_grant() {
    let _alone = launched::alone();
    let case = |tree: Tree| {
        let host = tempfile::Builder::new().prefix("floor").tempdir().unwrap();
        let folders = tree.make(host.path());
        let granted: BTreeSet<_> = tree
            .granted
            .iter()
            .map(|one| one.get(&folders).clone())
            .collect();
        // Each at a place of its own, and the first once more inside the last: a loop of binds.
        let mut grants: Vec<_> = granted
            .iter()
            .enumerate()
            .map(|(number, from)| (from.clone(), format!("/granted/g{number}")))
            .collect();
        let below = granted.iter().next_back().unwrap();
        if let Some(first) = granted.iter().next()
            && let Some(inner) = fs::read_dir(below)
                .unwrap()
                .flatten()
                .find(|e| e.path().is_dir() && !e.path().is_symlink())
        {
            let last = grants.len() - 1;
            let place = format!("/granted/g{last}/{}", inner.file_name().to_string_lossy());
            grants.push((first.clone(), place));
        }
        // Follows every link, but for those into the system, and looks for the host's own path besides.
        let system = "-name usr -o -name bin -o -name sbin -o -name lib* -o -name etc -o -name proc \
                      -o -name dev -o -name sys";
        let script = format!(
            "find -L /granted {host} /granted/g0/../../..{host} -maxdepth 9 '(' {system} ')' -prune \
             -o -type f -name 'f[0-9]*' -exec cat {{}} + 2> /dev/null; true",
            host = host.path().display()
        )
        .replace("lib*", "'lib*'");
        let room = Room::new(&script, &grants);
        let told = room.run(Container::prepare().unwrap());
        prop_assert_eq!(told.ending, Ending::Code(0));
        let shown: BTreeSet<_> = told
            .output
            .lines()
            .map(PathBuf::from)
            .filter(|content| content.starts_with(host.path()))
            .collect();
        let is_granted = |file: &PathBuf| granted.iter().any(|folder| file.starts_with(folder));
        let beyond: Vec<_> = shown.iter().filter(|file| !is_granted(file)).collect();
        prop_assert!(beyond.is_empty(), "shown without a grant: {:?}", beyond);
        // And what is granted is there: nothing is proven by a sandbox that shows nothing.
        for folder in &granted {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                let covered = grants.len() > granted.len();
                if entry.file_type().unwrap().is_file() && !covered {
                    prop_assert!(
                        shown.contains(&entry.path()),
                        "{:?} is not shown",
                        entry.path()
                    );
                }
            }
        }
        Ok(())
    };
    let config = Config {
        cases: 24,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config).run(&tree(), case).unwrap();
}

#[test]
fn places_that_are_exchanged_while_they_are_mounted_show_nothing_else() {
    let _alone = launched::alone();
    let host = tempfile::Builder::new().prefix("floor").tempdir().unwrap();
    let [outer, inner, secret] = ["outer", "inner", "secret"].map(|name| host.path().join(name));
    for folder in [&outer, &inner, &secret] {
        fs::create_dir(folder).unwrap();
    }
    fs::write(inner.join("file"), "granted").unwrap();
    fs::write(secret.join("file"), "secret").unwrap();
    // Where the inner grant is to be mounted there is a folder at one moment and a link at the next.
    let (place, link) = (outer.join("place"), outer.join("link"));
    fs::create_dir(&place).unwrap();
    symlink(format!("../../../../../..{}", secret.display()), &link).unwrap();
    let grants = [
        (outer.clone(), "/granted".to_owned()),
        (inner.clone(), "/granted/place".to_owned()),
    ];
    let script = format!(
        "cat /granted/place/file /granted/link/file {}/file 2> /dev/null; true",
        secret.display()
    );
    let room = Room::new(&script, &grants);
    let before = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let over = AtomicBool::new(false);
    let mut shown = BTreeSet::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let here = rustix::fs::CWD;
            while !over.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(here, &place, here, &link, flags).unwrap();
            }
        });
        for _ in 0..60 {
            // Refused, or shown where it is to be, or where a link leads below the same root.
            shown.insert(match room.try_run(Container::prepare().unwrap()) {
                Ok(told) => told.output,
                Err(failure) => format!("refused: {}", failure.error),
            });
        }
        over.store(true, Ordering::Relaxed);
    });
    let secrets = shown.iter().filter(|output| output.contains("secret"));
    assert_eq!(secrets.count(), 0, "{shown:?}");
    assert!(
        shown.iter().any(|output| output.contains("granted")),
        "{shown:?}"
    );
    assert_eq!(fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}
