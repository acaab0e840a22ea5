//! How a vault goes from one state to the next, and finds its state again.
//!
//! ```text
//! object files ▸ index segment ▸ manifest slot ▸ anchor ▸ what the new state does not need is removed
//! ```
//!
//! Each arrow is a point where power may fail: everything before the manifest slot is unknown to
//! the old state, and the slot that is overwritten is the one before the old state's. So a store
//! holds the old state or the new one, whole, at any time.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use crate::anchor::{AnchorError, Anchored, FreshnessAnchor};
use crate::envelope::{FIRST_EPOCH, Keys, MAX_WRAPS, random_id};
use crate::error::{Part, VaultError};
use crate::format::header::{self, Header};
use crate::format::index::{self, Index};
use crate::format::manifest::{self, Manifest, Segment};
use crate::format::{ChunkSize, Id, Malformed, Padding};
use crate::sealed::{self, sha256};
use crate::secret::SecretKey;
use crate::store::{Place, Store, file_name};
use crate::vault::Access;

/// The epoch of a new vault's header.
pub(crate) const FIRST_HEADER_EPOCH: u64 = 1;

/// What an open vault and its leases have in common.
pub(crate) struct Shared {
    pub(crate) store: Arc<Store>,
    pub(crate) keys: Keys,
    pub(crate) chunk: ChunkSize,
    pub(crate) padding: Padding,
}

/// One state of a vault: manifest and index, verified.
pub(crate) struct Commit {
    pub(crate) manifest: Manifest,
    pub(crate) root: [u8; 32],
    pub(crate) index: Arc<Index>,
}

impl Commit {
    fn anchored(&self) -> Anchored {
        Anchored {
            generation: self.manifest.generation,
            root: self.root,
        }
    }
}

/// A commit that failed.
pub(crate) struct Failed {
    pub(crate) error: VaultError,
    /// Whether the disk may hold the new state all the same.
    pub(crate) undecided: bool,
}

impl From<VaultError> for Failed {
    fn from(error: VaultError) -> Self {
        Self {
            error,
            undecided: false,
        }
    }
}

const IO: &str = "commit to the vault";

/// Writes the first state: no objects.
pub(crate) fn first(
    shared: &Shared,
    time: u64,
    anchor: Option<&dyn FreshnessAnchor>,
) -> Result<(), VaultError> {
    let before = Manifest {
        generation: 0,
        previous: [0; 32],
        header_epoch: FIRST_HEADER_EPOCH,
        key_epoch: FIRST_EPOCH,
        policy_epoch: 0,
        audit_size: 0,
        audit_root: [0; 32],
        writer_fence: 1,
        time,
        objects: 0,
        segments: Vec::new(),
    };
    let before = Commit {
        manifest: before,
        root: [0; 32],
        index: Arc::default(),
    };
    let next = Next {
        index: Index::new(),
        header_epoch: FIRST_HEADER_EPOCH,
        key_epoch: FIRST_EPOCH,
        time,
    };
    match write(shared, &before, next, anchor) {
        Ok(_) => Ok(()),
        Err(failed) => Err(failed.error),
    }
}

/// What the next state shall be.
pub(crate) struct Next {
    pub(crate) index: Index,
    pub(crate) header_epoch: u64,
    pub(crate) key_epoch: u64,
    pub(crate) time: u64,
}

/// Makes `next` the state after `before`.
pub(crate) fn write(
    shared: &Shared,
    before: &Commit,
    next: Next,
    anchor: Option<&dyn FreshnessAnchor>,
) -> Result<Commit, Failed> {
    write_and(shared, before, next, || Ok(()), anchor)
}

/// Makes `next` the state after `before`, and does something more before the anchor hears of it.
pub(crate) fn write_and(
    shared: &Shared,
    before: &Commit,
    next: Next,
    more: impl FnOnce() -> Result<(), VaultError>,
    anchor: Option<&dyn FreshnessAnchor>,
) -> Result<Commit, Failed> {
    let generation = before.manifest.generation + 1;
    // Each commit wraps keys; the bound on wraps is one on commits.
    if generation >= MAX_WRAPS {
        return Err(VaultError::TooLarge.into());
    }
    unmoved(shared, before)?;
    let segment = write_segment(shared, &next, generation)?;
    let manifest = Manifest {
        generation,
        previous: before.root,
        header_epoch: next.header_epoch,
        key_epoch: next.key_epoch,
        time: next.time,
        objects: next.index.len() as u64,
        segments: vec![segment],
        ..before.manifest.clone()
    };
    let slot = seal_manifest(&shared.keys, &manifest)?;
    let root = sha256(&[&slot]);
    let next = Commit {
        manifest,
        root,
        index: Arc::new(next.index),
    };
    // From here on the disk may hold the new state, whatever a failing call says.
    let undecided = |error| Failed {
        error,
        undecided: true,
    };
    write_slot(&shared.store, generation, &slot)
        .map_err(VaultError::io(IO))
        .and_then(|()| more())
        .map_err(undecided)?;
    if let Some(anchor) = anchor {
        let from = (generation > 1).then(|| before.anchored());
        anchor
            .advance(&shared.keys.vault_id, from, next.anchored())
            .map_err(|e| match e {
                AnchorError::Moved => VaultError::Forked { generation },
                other => VaultError::Anchor(other),
            })
            .map_err(undecided)?;
    }
    Ok(next)
}

/// Refuses to write over what this writer does not know of. Its lock keeps other writers out, but not its
/// own later self: a machine that is put back to a snapshot has the memory of before, and perhaps not the
/// disk.
fn unmoved(shared: &Shared, known: &Commit) -> Result<(), VaultError> {
    let generation = known.manifest.generation;
    if generation == 0 {
        return Ok(());
    }
    for (name, slot) in manifest::FILES.into_iter().zip(read_slots(&shared.store)?) {
        let moved = if name == manifest::file(generation) {
            slot.is_none_or(|slot| sha256(&[&slot]) != known.root)
        } else {
            // What does not open was torn, or is another root key's.
            let there = slot.map(|slot| open_manifest(&shared.keys, name, &slot));
            there.is_some_and(|there| there.is_ok_and(|there| there.generation > generation))
        };
        if moved {
            return Err(VaultError::Moved { generation });
        }
    }
    Ok(())
}

/// Finds the newest state in the store.
///
/// A writer may overtake a reader between the two manifests, or between manifest and index. So what
/// does not fit together is looked at again, and is tampered with only if the manifests stood still.
pub(crate) fn newest(
    shared: &Shared,
    header: &Header,
    root_key: &SecretKey,
) -> Result<Commit, VaultError> {
    let mut before = None;
    for _ in 0..MAX_LOOKS {
        let slots = read_slots(&shared.store)?;
        let outcome = state(shared, header, root_key, &slots);
        if !matches!(outcome, Err(VaultError::Tampered { .. })) || before.as_ref() == Some(&slots) {
            return outcome;
        }
        before = Some(slots);
    }
    Err(VaultError::damaged(Part::Manifest))
}

/// How often a reader lets itself be overtaken.
const MAX_LOOKS: usize = 1000;

/// The bytes of both manifest files, where there are such files.
type Slots = [Option<Vec<u8>>; 2];

/// The state that these manifests and the index tell of.
fn state(
    shared: &Shared,
    header: &Header,
    root_key: &SecretKey,
    slots: &Slots,
) -> Result<Commit, VaultError> {
    let (manifest, root) = newest_manifest(shared, slots)?;
    let epoch = manifest.header_epoch;
    // One ahead: a writer renewed the header and died before its commit.
    if header.epoch != epoch && Some(header.epoch) != epoch.checked_add(1) {
        return Err(VaultError::damaged(Part::Header));
    }
    shared.keys.enter(root_key, manifest.key_epoch)?;
    let index = Arc::new(read_index(shared, &manifest)?);
    Ok(Commit {
        manifest,
        root,
        index,
    })
}

/// Compares the state found with the one remembered; `false` if nothing is remembered.
pub(crate) fn check_anchor(
    shared: &Shared,
    found: &Commit,
    access: Access,
    anchor: &dyn FreshnessAnchor,
) -> Result<bool, VaultError> {
    let vault = &shared.keys.vault_id;
    let remembered = anchor.read(vault).map_err(VaultError::Anchor)?;
    let generation = found.manifest.generation;
    let Some(remembered) = remembered else {
        // A vault that was never anchored: the first writer to bring an anchor sets it.
        return match access {
            Access::ReadOnly => Ok(false),
            Access::ReadWrite => anchor
                .advance(vault, None, found.anchored())
                .map(|()| true)
                .map_err(VaultError::Anchor),
        };
    };
    if remembered == found.anchored() {
        return Ok(true);
    }
    if generation < remembered.generation {
        let expected = remembered.generation;
        return Err(VaultError::RolledBack {
            found: generation,
            expected,
        });
    }
    // One ahead: a writer died between its manifest and the anchor. Its commit is finished.
    let one_ahead = remembered.generation.checked_add(1) == Some(generation)
        && found.manifest.previous == remembered.root;
    match (one_ahead, access) {
        (true, Access::ReadOnly) => Ok(true),
        (true, Access::ReadWrite) => anchor
            .advance(vault, Some(remembered), found.anchored())
            .map(|()| true)
            .map_err(VaultError::Anchor),
        (false, _) => Err(VaultError::Forked { generation }),
    }
}

/// Removes what the state before needed and the new one does not.
pub(crate) fn retire(store: &Store, before: Commit, now: &Commit) {
    for segment in &before.manifest.segments {
        // The old index holds old keys: it goes at once. Failing is no harm, `collect` comes again.
        let _ = store.remove(Place::Index, &file_name(&segment.id));
    }
    if let Ok(_alone) = store.lock_out_readers() {
        let kept: HashSet<Id> = now.index.files().collect();
        for file in before.index.files().filter(|file| !kept.contains(file)) {
            let _ = store.remove(Place::Objects, &file_name(&file));
        }
    }
}

/// Removes what an interrupted writer left. Only the holder of the writer's lock may call this.
pub(crate) fn collect(store: &Store, now: &Commit) {
    let Ok(_alone) = store.lock_out_readers() else {
        return;
    };
    let _ = store.remove(Place::Root, header::NEXT_FILE);
    for (place, id) in orphans(store, now).unwrap_or_default() {
        let _ = store.remove(place, &file_name(&id));
    }
}

/// Lists files that belong to no object and to no part of the index.
pub(crate) fn orphans(store: &Store, now: &Commit) -> io::Result<Vec<(Place, Id)>> {
    let objects: HashSet<Id> = now.index.files().collect();
    let segments: HashSet<Id> = now.manifest.segments.iter().map(|s| s.id).collect();
    let mut orphans = Vec::new();
    for (place, kept) in [(Place::Objects, objects), (Place::Index, segments)] {
        let ids = store
            .ids(place)?
            .into_iter()
            .filter(|id| !kept.contains(id));
        orphans.extend(ids.map(|id| (place, id)));
    }
    Ok(orphans)
}

fn write_segment(shared: &Shared, next: &Next, generation: u64) -> Result<Segment, VaultError> {
    let Shared { store, keys, .. } = shared;
    let key = keys.at(next.key_epoch).ok_or(VaultError::Crypto)?;
    let body = index::encode(&next.index).map_err(|_| VaultError::TooLarge)?;
    let id = random_id()?;
    let format = index::format(&next.index);
    let mut file = index::front(format, &keys.vault_id, &id, generation, body.len());
    let sealed = sealed::seal(&key.index, INDEX_LABEL, &file, &body)?;
    file.extend_from_slice(&sealed);
    let len = file.len() as u64;
    if len > index::MAX_LEN {
        return Err(VaultError::TooLarge);
    }
    let name = file_name(&id);
    let written = store.create_file(Place::Index, &name).and_then(|out| {
        store.write_at(&out, &file, 0)?;
        store.sync(&out)?;
        store.sync_dir(Place::Index)
    });
    if let Err(source) = written {
        let _ = store.remove(Place::Index, &name);
        return Err(VaultError::Io { doing: IO, source });
    }
    Ok(Segment {
        id,
        len,
        digest: sha256(&[&file]),
    })
}

/// Reads and verifies the index that this manifest names.
fn read_index(shared: &Shared, manifest: &Manifest) -> Result<Index, VaultError> {
    let Shared { store, keys, .. } = shared;
    let tampered = || VaultError::damaged(Part::Index);
    let [segment] = &manifest.segments[..] else {
        return Err(tampered());
    };
    let file = match store.read(Place::Index, &file_name(&segment.id), index::MAX_LEN) {
        Ok(file) => file,
        Err(e) if is_wrong_file(&e) => return Err(tampered()),
        Err(e) => {
            return Err(VaultError::Io {
                doing: "read the index",
                source: e,
            });
        }
    };
    if file.len() as u64 != segment.len || sha256(&[&file]) != segment.digest {
        return Err(tampered());
    }
    let (front, sealed) = file
        .split_at_checked(index::FRONT_LEN)
        .ok_or_else(tampered)?;
    let body_len = sealed.len().saturating_sub(sealed::OVERHEAD);
    let format = index::format_of(front).map_err(VaultError::tampered(Part::Index))?;
    let (vault, generation) = (&keys.vault_id, manifest.generation);
    if front != index::front(format, vault, &segment.id, generation, body_len) {
        return Err(tampered());
    }
    let key = keys.at(manifest.key_epoch).ok_or_else(tampered)?;
    let body = sealed::open(&key.index, INDEX_LABEL, front, sealed).map_err(|_| tampered())?;
    let index = index::parse(format, &body).map_err(VaultError::tampered(Part::Index))?;
    if index.len() as u64 != manifest.objects {
        return Err(tampered());
    }
    Ok(index)
}

fn seal_manifest(keys: &Keys, manifest: &Manifest) -> Result<Vec<u8>, VaultError> {
    let mut slot = manifest::front(&keys.vault_id, manifest.generation);
    let sealed = sealed::seal(keys.manifest(), MANIFEST_LABEL, &slot, &manifest.encode())?;
    slot.extend_from_slice(&sealed);
    debug_assert_eq!(slot.len(), manifest::LEN);
    Ok(slot)
}

fn write_slot(store: &Store, generation: u64, slot: &[u8]) -> io::Result<()> {
    let file = store.slot_file(manifest::file(generation))?;
    store.write_at(&file, slot, 0)?;
    store.sync(&file)?;
    // Each of the two files appears once; after that the directory does not change.
    if generation <= 2 {
        store.sync_dir(Place::Root)
    } else {
        Ok(())
    }
}

/// A file that is gone or of an impossible length is a matter of the format, not of the system.
fn is_wrong_file(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::FileTooLarge
    )
}

fn read_slots(store: &Store) -> Result<Slots, VaultError> {
    let mut slots = [None, None];
    for (slot, name) in slots.iter_mut().zip(manifest::FILES) {
        *slot = match store.read(Place::Root, name, manifest::LEN as u64) {
            Ok(file) => Some(file),
            Err(e) if is_wrong_file(&e) => None,
            Err(source) => {
                return Err(VaultError::Io {
                    doing: "read the manifest",
                    source,
                });
            }
        };
    }
    Ok(slots)
}

/// The newest of the two slots that opens.
///
/// One slot may be torn or missing, as a writer that died leaves it. Two that open must be
/// neighbours, and linked.
fn newest_manifest(shared: &Shared, slots: &Slots) -> Result<(Manifest, [u8; 32]), VaultError> {
    let tampered = VaultError::damaged(Part::Manifest);
    let mut found = Vec::new();
    let mut newer = None;
    for (name, slot) in manifest::FILES.into_iter().zip(slots) {
        let Some(file) = slot else { continue };
        match open_manifest(&shared.keys, name, file) {
            Ok(manifest) => found.push((manifest, sha256(&[file]))),
            Err(Malformed::Newer(format)) => newer = Some(format),
            Err(_) => {}
        }
    }
    found.sort_by_key(|(manifest, _)| manifest.generation);
    let newest = match (found.pop(), newer) {
        (Some(newest), _) => newest,
        (None, Some(format)) => {
            return Err(VaultError::tampered(Part::Manifest)(Malformed::Newer(
                format,
            )));
        }
        (None, None) => return Err(tampered),
    };
    if let Some((before, root)) = found.pop() {
        let linked = newest.0.previous == root;
        if before.generation.checked_add(1) != Some(newest.0.generation) || !linked {
            return Err(tampered);
        }
    }
    Ok(newest)
}

fn open_manifest(keys: &Keys, name: &str, file: &[u8]) -> Result<Manifest, Malformed> {
    let generation = manifest::parse_front(file, &keys.vault_id)?;
    if generation == 0 || manifest::file(generation) != name {
        return Err(Malformed::Field);
    }
    let (front, sealed) = file
        .split_at_checked(manifest::FRONT_LEN)
        .ok_or(Malformed::Field)?;
    let body = sealed::open(keys.manifest(), MANIFEST_LABEL, front, sealed)
        .map_err(|_| Malformed::Field)?;
    Manifest::parse(generation, &body)
}

const INDEX_LABEL: &str = "casemate-vault v1 index";
const MANIFEST_LABEL: &str = "casemate-vault v1 manifest";
