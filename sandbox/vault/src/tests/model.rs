//! Any sequence of operations, deaths among them, leaves what the same sequence leaves in a map.

use std::collections::BTreeMap;
use std::path::PathBuf;

use proptest::prelude::*;

use super::{Bench, content, read};
use crate::kek::Released;
use crate::{Vault, VaultError};

#[derive(Clone, Debug)]
enum Op {
    Put(usize, usize),
    PutTwo(usize, usize, usize),
    Remove(usize),
    Rename(usize, usize),
    Reopen,
    Rekey,
    BeginRotation,
    RotateSome(u64),
    AddAndRemoveSlot,
    Snapshot,
    /// The next operation dies after so many steps.
    DieAfter(i64),
}

/// Names that get in each other's way: `d` is a directory of some and an object of another.
const NAMES: [&str; 7] = ["a", "b", "d", "d/x", "d/y/z", "e/x", "ü"];

fn any_op() -> impl Strategy<Value = Op> {
    let name = || 0..NAMES.len();
    let len = || prop_oneof![Just(0usize), 1usize..20, Just(4096), 4000usize..13_000];
    prop_oneof![
        5 => (name(), len()).prop_map(|(name, len)| Op::Put(name, len)),
        1 => (name(), name(), len()).prop_map(|(one, two, len)| Op::PutTwo(one, two, len)),
        3 => name().prop_map(Op::Remove),
        4 => (name(), name()).prop_map(|(from, to)| Op::Rename(from, to)),
        2 => Just(Op::Reopen),
        1 => Just(Op::Rekey),
        1 => Just(Op::BeginRotation),
        2 => (0u64..10_000).prop_map(Op::RotateSome),
        1 => Just(Op::AddAndRemoveSlot),
        1 => Just(Op::Snapshot),
        3 => (0i64..25).prop_map(Op::DieAfter),
    ]
}

/// What a vault should hold.
type Model = BTreeMap<String, Vec<u8>>;

fn put(model: &mut Model, name: &str, bytes: Vec<u8>) -> bool {
    let under = format!("{name}/");
    let taken = model.keys().any(|n| n.starts_with(&under))
        || model.keys().any(|n| name.starts_with(&format!("{n}/")));
    if !taken {
        model.insert(name.to_owned(), bytes);
    }
    !taken
}

fn rename(model: &mut Model, from: &str, to: &str) -> bool {
    if let Some(bytes) = model.remove(from) {
        return put(model, to, bytes);
    }
    let under = format!("{from}/");
    let moved: Vec<_> = model
        .keys()
        .filter(|n| n.starts_with(&under))
        .cloned()
        .collect();
    if moved.is_empty() || model.contains_key(to) || to.starts_with(&under) {
        return false;
    }
    let moved: Vec<_> = moved
        .into_iter()
        .map(|name| {
            let bytes = model.remove(&name).unwrap();
            (format!("{to}/{}", &name[under.len()..]), bytes)
        })
        .collect();
    // A directory goes only where nothing is.
    let under = format!("{to}/");
    if model.keys().any(|n| n.starts_with(&under)) {
        return false;
    }
    moved
        .into_iter()
        .all(|(name, bytes)| put(model, &name, bytes))
}

/// Does `op` to the vault, and to the model what it should do; `None` if it should be refused.
fn act(
    bench: &Bench,
    vault: &mut Vault,
    before: &Model,
    op: &Op,
) -> (Result<(), VaultError>, Option<Model>) {
    let mut model = before.clone();
    let (outcome, allowed) = match op {
        Op::Put(name, len) => {
            let bytes = content(*len as u8, *len);
            let stored = vault.put(NAMES[*name], &bytes[..]).map(drop);
            (stored, put(&mut model, NAMES[*name], bytes))
        }
        Op::PutTwo(one, two, len) => {
            let (first, second) = (content(7, *len), content(8, *len + 1));
            let entries = [(NAMES[*one], &first[..]), (NAMES[*two], &second[..])];
            let stored = vault.put_all(entries).map(drop);
            let first = put(&mut model, NAMES[*one], first);
            (stored, first && put(&mut model, NAMES[*two], second))
        }
        Op::Remove(name) => (
            vault.remove(NAMES[*name]),
            model.remove(NAMES[*name]).is_some(),
        ),
        Op::Rename(from, to) => (
            vault.rename(NAMES[*from], NAMES[*to]),
            rename(&mut model, NAMES[*from], NAMES[*to]),
        ),
        Op::Rekey => (vault.rekey(&[&bench.kek()]), true),
        Op::BeginRotation => (vault.begin_rotation().map(drop), true),
        Op::RotateSome(bytes) => (vault.rotate_some(*bytes).map(drop), true),
        Op::AddAndRemoveSlot => {
            let other = Released::take(&mut [9; 32]).unwrap();
            // One that a death came upon half-way is still there, after the slot of the bench.
            let mut left = vault.slots().into_iter().skip(1);
            let gone = left.try_for_each(|slot| vault.remove_slot(slot.slot_id));
            let changed = gone
                .and_then(|()| vault.add_slot(&other))
                .and_then(|slot| vault.remove_slot(slot.slot_id));
            (changed, true)
        }
        Op::Snapshot => (snapshot(bench, vault, before), true),
        Op::Reopen | Op::DieAfter(_) => (Ok(()), true),
    };
    (outcome, allowed.then_some(model))
}

/// Takes a snapshot, and finds in it what is in the vault.
fn snapshot(bench: &Bench, vault: &Vault, expected: &Model) -> Result<(), VaultError> {
    let path: PathBuf = bench.dir.path().join("snapshot");
    vault.snapshot(&path)?;
    let snapshot = Vault::open(&path, &bench.kek(), crate::Access::ReadOnly)?;
    assert_eq!(&all(&snapshot), expected);
    assert_eq!(snapshot.root(), vault.root());
    std::fs::remove_dir_all(&path).unwrap();
    Ok(())
}

fn all(vault: &Vault) -> Model {
    let names = vault.list().into_iter().map(|info| info.name);
    names
        .map(|name| (name.clone(), read(vault, &name).unwrap()))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_vault_behaves_like_a_map_that_survives_deaths(
        ops in proptest::collection::vec(any_op(), 1..30),
    ) {
        let bench = Bench::new();
        let mut vault = bench.create();
        let mut model = Model::new();
        let mut dying = false;
        for op in &ops {
            if let Op::DieAfter(steps) = op {
                vault.shared().store.faults.die_after(*steps);
                dying = true;
                continue;
            }
            let (outcome, expected) = act(&bench, &mut vault, &model, op);
            if dying || matches!(op, Op::Reopen) {
                dying = false;
                drop(vault);
                vault = bench.write().unwrap();
                let found = all(&vault);
                let new = expected.as_ref() == Some(&found);
                prop_assert!(found == model || new, "{:?} left another state", op);
                prop_assert!(new || outcome.is_err(), "{:?} was acknowledged and is lost", op);
                model = found;
            } else {
                prop_assert_eq!(outcome.is_ok(), expected.is_some(), "{:?}: {:?}", op, outcome);
                model = expected.unwrap_or(model);
                prop_assert_eq!(&all(&vault), &model);
            }
        }
        vault.shared().store.faults.die_after(i64::MAX);
        let verified = vault.verify(|_| ()).unwrap();
        prop_assert_eq!(verified.objects, model.len() as u64);
        prop_assert_eq!(verified.bytes, model.values().map(|v| v.len() as u64).sum::<u64>());
        prop_assert_eq!(&all(&bench.open().unwrap()), &model);
    }
}
