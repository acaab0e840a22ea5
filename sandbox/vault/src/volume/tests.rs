#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::ops::{Change, New, NodeKind};
use super::{Errno, Limits, ROOT, Volume, VolumeError};
use crate::kek::Released;
use crate::tests::{Bench, content, read};
use crate::{Access, ChunkSize, CreateOptions, OpenOptions, Padding, Vault, VaultError};

/// Two chunks in memory at most, so that what is written is sealed on the way.
const SMALL: Limits = Limits { unsealed: 8192 };

fn volume(bench: &Bench) -> Volume {
    Volume::new(bench.write().unwrap(), SMALL).unwrap()
}

fn file(volume: &Volume, parent: u64, name: &str) -> u64 {
    let new = New::File { mode: 0o640 };
    volume.make(parent, name.as_bytes(), new).unwrap().node
}

fn directory(volume: &Volume, parent: u64, name: &str) -> u64 {
    let new = New::Directory { mode: 0o700 };
    volume.make(parent, name.as_bytes(), new).unwrap().node
}

fn find(volume: &Volume, path: &str) -> Result<u64, VolumeError> {
    let mut node = ROOT;
    for part in path.split('/') {
        node = volume.lookup(node, part.as_bytes())?.node;
    }
    Ok(node)
}

fn all(volume: &Volume, node: u64) -> Vec<u8> {
    let mut data = vec![0xee; volume.stat(node).unwrap().len as usize + 10];
    let len = volume.read(node, &mut data, 0).unwrap();
    data.truncate(len);
    data
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, VolumeError>) -> Errno {
    outcome.unwrap_err().errno()
}

#[test]
fn what_is_committed_is_there_again_with_directories_links_and_permissions() {
    let bench = Bench::new();
    drop(bench.create());
    let before = volume(&bench);
    let dir = directory(&before, ROOT, "dir");
    directory(&before, dir, "empty");
    let data = file(&before, dir, "data");
    before.write(data, &content(1, 50_000), 5000).unwrap();
    before.link(data, ROOT, b"same").unwrap();
    let target = New::Link {
        target: b"dir/data",
    };
    before.make(ROOT, b"link", target).unwrap();
    before.commit().unwrap();
    assert_eq!(before.close(), super::Uncommitted::default());
    drop(before);

    let after = volume(&bench);
    let data = find(&after, "dir/data").unwrap();
    let mut whole = vec![0; 5000];
    whole.extend(content(1, 50_000));
    assert_eq!(all(&after, data), whole);
    let stat = after.stat(data).unwrap();
    assert_eq!(
        (stat.mode, stat.links, stat.kind),
        (0o640, 2, NodeKind::File)
    );
    assert_eq!(find(&after, "same").unwrap(), data);
    let empty = after.stat(find(&after, "dir/empty").unwrap()).unwrap();
    assert_eq!((empty.kind, empty.mode), (NodeKind::Directory, 0o700));
    let link = find(&after, "link").unwrap();
    assert_eq!(after.read_link(link).unwrap(), b"dir/data");
    drop(after);
    let vault = bench.open().unwrap();
    assert_eq!(read(&vault, "dir/data").unwrap(), whole);
    assert_eq!(vault.verify(|_| ()).unwrap().orphans, 0);
}

#[test]
fn what_is_not_committed_is_gone_and_counted() {
    let bench = Bench::new();
    bench.create().put("a", &content(1, 9000)[..]).unwrap();
    let before = volume(&bench);
    let a = find(&before, "a").unwrap();
    before.write(a, b"lost", 100).unwrap();
    let b = file(&before, ROOT, "b");
    before.write(b, &content(2, 100_000), 0).unwrap();
    let lost = before.close();
    assert_eq!((lost.changes, lost.bytes), (3, 100_004));
    assert_eq!(refused(before.read(a, &mut [0; 4], 0)), Errno::ACCESS);
    assert_eq!(refused(before.commit()), Errno::ACCESS);
    drop(before);
    let vault = bench.open().unwrap();
    assert_eq!(vault.list().len(), 1);
    assert_eq!(read(&vault, "a").unwrap(), content(1, 9000));
    assert_eq!(vault.verify(|_| ()).unwrap().orphans, 0, "sealed and lost");
}

#[test]
fn a_file_that_was_unlinked_is_kept_for_whoever_has_it_open() {
    let bench = Bench::new();
    bench.create().put("a", &content(1, 9000)[..]).unwrap();
    let volume = volume(&bench);
    let a = find(&volume, "a").unwrap();
    volume.open(a).unwrap();
    volume.remove(ROOT, b"a", false).unwrap();
    volume.write(a, b"more", 9000).unwrap();
    volume.commit().unwrap();
    assert_eq!(refused(find(&volume, "a")), Errno::NOENT);
    assert_eq!(all(&volume, a).len(), 9004);
    assert_eq!(all(&volume, a)[..9000], content(1, 9000));
    volume.release(a);
    volume.forget(a, 1);
    assert_eq!(refused(volume.stat(a)), Errno::NOENT);
    drop(volume);
    let vault = bench.open().unwrap();
    assert_eq!(vault.verify(|_| ()).unwrap().orphans, 0);
}

#[test]
fn a_name_is_refused_as_a_file_system_refuses_it() {
    let bench = Bench::new();
    drop(bench.create());
    let volume = volume(&bench);
    let dir = directory(&volume, ROOT, "dir");
    let inner = directory(&volume, dir, "inner");
    let a = file(&volume, dir, "a");
    let rename = |from: (u64, &str), to: (u64, &str)| {
        volume.rename((from.0, from.1.as_bytes()), (to.0, to.1.as_bytes()), false)
    };
    assert_eq!(refused(volume.remove(ROOT, b"dir", false)), Errno::ISDIR);
    assert_eq!(refused(volume.remove(ROOT, b"dir", true)), Errno::NOTEMPTY);
    assert_eq!(refused(volume.remove(dir, b"a", true)), Errno::NOTDIR);
    assert_eq!(refused(rename((ROOT, "dir"), (inner, "x"))), Errno::INVAL);
    assert_eq!(refused(rename((dir, "a"), (dir, "inner"))), Errno::ISDIR);
    assert_eq!(refused(rename((dir, "inner"), (dir, "a"))), Errno::NOTDIR);
    assert_eq!(refused(rename((dir, "none"), (dir, "b"))), Errno::NOENT);
    assert_eq!(refused(volume.link(dir, ROOT, b"x")), Errno::PERM);
    let new = New::File { mode: 0o600 };
    assert_eq!(refused(volume.make(dir, b"a", new)), Errno::EXIST);
    assert_eq!(refused(volume.make(a, b"x", new)), Errno::NOTDIR);
    assert_eq!(
        refused(volume.make(dir, &[b'x'; 256], new)),
        Errno::NAMETOOLONG
    );
    assert_eq!(refused(volume.make(dir, b"\xff", new)), Errno::ILSEQ);
    assert_eq!(refused(volume.make(dir, b"..", new)), Errno::INVAL);
    assert_eq!(refused(volume.write(a, b"x", u64::MAX - 3)), Errno::FBIG);
}

#[test]
fn many_small_commits_do_not_pile_up_extents() {
    let bench = Bench::new();
    drop(bench.create());
    let volume = volume(&bench);
    let log = file(&volume, ROOT, "log");
    let mut whole = Vec::new();
    for n in 0..90u32 {
        let line = content(n as u8, 1000);
        volume.write(log, &line, whole.len() as u64).unwrap();
        volume.commit().unwrap();
        whole.extend(line);
        let state = volume.state();
        let extents = state.content(log).unwrap().read().record.extents.len();
        assert!(extents <= 17, "{extents} after {n}");
    }
    assert_eq!(all(&volume, log), whole);
    drop(volume);
    let vault = bench.open().unwrap();
    assert_eq!(read(&vault, "log").unwrap(), whole);
    assert_eq!(vault.verify(|_| ()).unwrap().orphans, 0);
}

#[test]
fn a_commit_that_failed_is_made_up_for_by_the_next() {
    let bench = Bench::new();
    drop(bench.create());
    for steps in 0..6 {
        let volume = volume(&bench);
        let name = format!("f{steps}");
        let node = file(&volume, ROOT, &name);
        volume
            .write(node, &content(steps as u8, 10_000), 0)
            .unwrap();
        let shared = volume.state().shared().unwrap();
        shared.store.faults.die_after(steps);
        let failed = volume.commit();
        shared.store.faults.die_after(i64::MAX);
        assert!(failed.is_err(), "{steps} steps were enough");
        volume.commit().unwrap();
        drop((volume, shared));
        let vault = bench.open().unwrap();
        assert_eq!(read(&vault, &name).unwrap(), content(steps as u8, 10_000));
    }
}

impl Volume {
    /// Does something to a vault through a volume of it, and gives the vault back.
    pub(crate) fn while_test(
        vault: &mut Vault,
        act: impl FnOnce(&Self) -> Result<(), VolumeError>,
    ) -> Result<(), VaultError> {
        let taken = std::mem::replace(vault, Bench::new().create());
        let volume = Self::new(taken, Limits::default())?;
        let outcome = act(&volume);
        *vault = volume.writer().take().unwrap().vault;
        outcome.map_err(|error| match error {
            VolumeError::Vault(error) => error,
            other => panic!("{other}"),
        })
    }

    /// Writes into a file of the root, which may be new.
    pub(crate) fn put_at(&self, name: &str, data: &[u8], offset: u64) {
        let node = find(self, name).unwrap_or_else(|_| file(self, ROOT, name));
        self.write(node, data, offset).unwrap();
    }
}

/// A vault with an object of three extents, and one of a hole.
fn in_extents(bench: &Bench) -> Vault {
    bench.create().put("a", &content(1, 20_000)[..]).unwrap();
    let volume = volume(bench);
    volume.put_at("a", &content(2, 100), 5000);
    volume.commit().unwrap();
    volume.put_at("a", &content(3, 5000), 9000);
    volume.put_at("hole", b"end", 9000);
    volume.commit().unwrap();
    drop(volume);
    let vault = bench.open().unwrap();
    assert_eq!(vault.index()["a"].extents.len(), 3);
    vault
}

#[test]
fn every_flipped_byte_of_every_extent_is_noticed() {
    let bench = Bench::new();
    drop(in_extents(&bench));
    let whole = bench.files();
    let objects = bench.path().join("objects");
    let index = bench.path().join("index");
    for (path, bytes) in &whole {
        if !path.starts_with(&objects) && !path.starts_with(&index) {
            continue;
        }
        // All of what is not ciphertext, and some of that.
        let dense = |at: usize| at < 160 || at + 160 > bytes.len() || at.is_multiple_of(97);
        for at in (0..bytes.len()).filter(|at| dense(*at)) {
            let mut flipped = bytes.clone();
            flipped[at] ^= 0x10;
            std::fs::write(path, flipped).unwrap();
            let found = bench.open().and_then(|vault| vault.verify(|_| ()));
            assert!(
                matches!(found, Err(VaultError::Tampered { .. })),
                "{} at {at}: {found:?}",
                path.display()
            );
        }
        for len in [0, 64, 96, bytes.len() - 1] {
            std::fs::write(path, &bytes[..len]).unwrap();
            assert!(bench.open().and_then(|vault| vault.verify(|_| ())).is_err());
        }
        std::fs::write(path, bytes).unwrap();
    }
    bench.open().unwrap().verify(|_| ()).unwrap();
}

#[test]
fn extents_cannot_be_exchanged_and_an_old_one_cannot_be_put_back() {
    let bench = Bench::new();
    let vault = in_extents(&bench);
    let record = vault.index()["a"].clone();
    let path = |extent: usize| {
        let name = crate::store::file_name(&record.extents[extent].file_id);
        bench.path().join("objects").join(name)
    };
    let bytes: Vec<_> = (0..3)
        .map(|extent| std::fs::read(path(extent)).unwrap())
        .collect();
    for (put, at) in [(0, 1), (1, 2), (2, 1)] {
        std::fs::write(path(at), &bytes[put]).unwrap();
        assert!(
            read(&vault, "a").is_err(),
            "extent {put} in the place of {at}"
        );
        std::fs::write(path(at), &bytes[at]).unwrap();
    }
    drop(vault);
    // What the second extent held is written once more: its file goes, and bringing it back does nothing.
    let before = read(&bench.open().unwrap(), "a").unwrap();
    let old = path(1);
    let volume = volume(&bench);
    volume.put_at("a", &content(4, 100), 5000);
    volume.commit().unwrap();
    drop(volume);
    assert!(!old.exists(), "what was overwritten is still there");
    std::fs::write(&old, &bytes[1]).unwrap();
    let vault = bench.open().unwrap();
    let mut after = before;
    after[5000..5100].copy_from_slice(&content(4, 100));
    assert_eq!(read(&vault, "a").unwrap(), after);
    assert_eq!(vault.verify(|_| ()).unwrap().orphans, 1);
}

#[test]
fn what_was_mounted_is_rotated_rekeyed_and_copied_like_any_vault() {
    let bench = Bench::new();
    drop(in_extents(&bench));
    let mut vault = bench.write().unwrap();
    let (a, hole) = (read(&vault, "a").unwrap(), read(&vault, "hole").unwrap());
    assert_eq!(hole.len(), 9003);
    assert!(hole[..9000].iter().all(|byte| *byte == 0));
    vault.rekey(&[&bench.kek()]).unwrap();
    assert_eq!(read(&vault, "a").unwrap(), a);
    vault.begin_rotation().unwrap();
    while vault.rotate_some(1).unwrap().is_some() {}
    assert_eq!(vault.index()["a"].extents.len(), 1);
    assert_eq!(
        (read(&vault, "a").unwrap(), read(&vault, "hole").unwrap()),
        (a.clone(), hole)
    );
    vault.rename("a", "d/a").unwrap();
    let copy = bench.dir.path().join("copy");
    vault.snapshot(&copy).unwrap();
    let copy = Vault::open(&copy, &bench.kek(), Access::ReadOnly).unwrap();
    assert_eq!(read(&copy, "d/a").unwrap(), a);
}

#[test]
#[ignore = "writes the golden vault anew; only for a new format"]
fn write_the_golden_vault() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v2.vault");
    let mut key = std::array::from_fn(|i| i as u8);
    let options = CreateOptions {
        chunk: ChunkSize::KiB4,
        padding: Padding::Padme,
    };
    let open = OpenOptions {
        clock: Arc::new(|| 1_000_000_007),
        ..OpenOptions::default()
    };
    let kek = Released::take(&mut key).unwrap();
    let vault = Vault::create_with(path.as_ref(), &kek, options, open).unwrap();
    let volume = Volume::new(vault, Limits::default()).unwrap();
    let dir = directory(&volume, ROOT, "dir");
    directory(&volume, ROOT, "empty");
    let make = |parent, name: &[u8], new| volume.make(parent, name, new).unwrap().node;
    let sparse = make(dir, b"sparse", New::File { mode: 0o600 });
    volume.write(sparse, b"start", 0).unwrap();
    volume.write(sparse, &[b'!'; 30_000], 10_001).unwrap();
    volume.commit().unwrap();
    volume.write(sparse, &[0; 29_999], 10_001).unwrap();
    volume.write(sparse, b"middle", 20_000).unwrap();
    let len = |len| Change {
        len: Some(len),
        ..Change::default()
    };
    volume.change(sparse, len(50_000)).unwrap();
    volume.commit().unwrap();
    volume.link(sparse, ROOT, b"same").unwrap();
    let target = b"dir/sparse";
    make(ROOT, b"link", New::Link { target });
    make(ROOT, b"nothing", New::File { mode: 0o755 });
    volume.commit().unwrap();
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize, u64, usize),
    Truncate(usize, u64),
    Remove(usize),
    Rename(usize, usize),
    Link(usize, usize),
    Commit,
    Crash,
    DieAfter(i64),
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn any_op() -> impl Strategy<Value = Op> {
    let name = || 0..NAMES.len();
    let at = || prop_oneof![0u64..100, 4000u64..4200, 0u64..60_000];
    prop_oneof![
        8 => (name(), at(), prop_oneof![1usize..50, 4000usize..9000])
            .prop_map(|(name, at, len)| Op::Write(name, at, len)),
        3 => (name(), at()).prop_map(|(name, len)| Op::Truncate(name, len)),
        1 => name().prop_map(Op::Remove),
        1 => (name(), name()).prop_map(|(from, to)| Op::Rename(from, to)),
        1 => (name(), name()).prop_map(|(from, to)| Op::Link(from, to)),
        4 => Just(Op::Commit),
        1 => Just(Op::Crash),
        1 => (0i64..12).prop_map(Op::DieAfter),
    ]
}

/// Names, and what is in the files that they lead to.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    names: BTreeMap<&'static str, usize>,
    files: Vec<Vec<u8>>,
}

impl Model {
    fn file(&mut self, name: &'static str) -> &mut Vec<u8> {
        let number = *self.names.entry(name).or_insert_with(|| {
            self.files.push(Vec::new());
            self.files.len() - 1
        });
        &mut self.files[number]
    }

    fn contents(&self) -> BTreeMap<&'static str, Vec<u8>> {
        let names = self.names.iter();
        names
            .map(|(name, file)| (*name, self.files[*file].clone()))
            .collect()
    }
}

fn contents(volume: &Volume) -> BTreeMap<&'static str, Vec<u8>> {
    let found = NAMES
        .iter()
        .filter_map(|name| Some((*name, find(volume, name).ok()?)));
    found
        .map(|(name, node)| (name, all(volume, node)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Any sequence of operations leaves what the same sequence leaves in memory; a crash leaves what
    /// the last commit left, or, where it came in the middle of one, perhaps what that one would have.
    #[test]
    fn a_volume_is_what_was_done_to_it(ops in proptest::collection::vec(any_op(), 1..60)) {
        let bench = Bench::new();
        drop(bench.create());
        let mut now = volume(&bench);
        let (mut model, mut committed) = (Model::default(), Model::default());
        for (seed, op) in ops.into_iter().enumerate() {
            match op {
                Op::Write(name, at, len) => {
                    let (name, data) = (NAMES[name], content(seed as u8, len));
                    let node = find(&now, name).unwrap_or_else(|_| file(&now, ROOT, name));
                    now.write(node, &data, at).unwrap();
                    let bytes = model.file(name);
                    let end = at as usize + len;
                    bytes.resize(bytes.len().max(end), 0);
                    bytes[at as usize..end].copy_from_slice(&data);
                }
                Op::Truncate(name, len) => {
                    let name = NAMES[name];
                    let node = find(&now, name).unwrap_or_else(|_| file(&now, ROOT, name));
                    let change = Change { len: Some(len), ..Change::default() };
                    now.change(node, change).unwrap();
                    model.file(name).resize(len as usize, 0);
                }
                Op::Remove(name) => {
                    let removed = now.remove(ROOT, NAMES[name].as_bytes(), false).is_ok();
                    prop_assert_eq!(removed, model.names.remove(NAMES[name]).is_some());
                }
                Op::Rename(from, to) => {
                    let (from, to) = (NAMES[from], NAMES[to]);
                    let moved =
                        now.rename((ROOT, from.as_bytes()), (ROOT, to.as_bytes()), false).is_ok();
                    prop_assert_eq!(moved, model.names.contains_key(from));
                    let same = model.names.get(from) == model.names.get(to);
                    if moved && !same && let Some(file) = model.names.remove(from) {
                        model.names.insert(to, file);
                    }
                }
                Op::Link(from, to) => {
                    let Ok(node) = find(&now, NAMES[from]) else { continue };
                    let linked = now.link(node, ROOT, NAMES[to].as_bytes()).is_ok();
                    prop_assert_eq!(linked, !model.names.contains_key(NAMES[to]));
                    if linked {
                        model.names.insert(NAMES[to], model.names[NAMES[from]]);
                    }
                }
                Op::Commit => {
                    now.commit().unwrap();
                    committed = model.clone();
                }
                Op::Crash => {
                    drop(now);
                    now = volume(&bench);
                    model = committed.clone();
                }
                Op::DieAfter(steps) => {
                    now.state().shared().unwrap().store.faults.die_after(steps);
                    let whole = now.commit().is_ok();
                    drop(now);
                    now = volume(&bench);
                    // What is there decides, and it is the one or the other.
                    if whole || contents(&now) == model.contents() {
                        committed = model.clone();
                    }
                    model = committed.clone();
                }
            }
            prop_assert_eq!(contents(&now), model.contents());
        }
        now.commit().unwrap();
        drop(now);
        let vault = bench.open().unwrap();
        prop_assert_eq!(vault.verify(|_| ()).unwrap().orphans, 0);
        for (name, bytes) in model.contents() {
            prop_assert_eq!(read(&vault, name).unwrap(), bytes);
        }
    }
}
