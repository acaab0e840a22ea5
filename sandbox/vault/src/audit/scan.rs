//! Reading and hashing the bundles of a log on all processors, and handing them on in order.

use std::path::Path;
use std::sync::mpsc;
use std::thread;

use super::checkpoint::Checkpoint;
use super::leaf::Leaf;
use super::merkle::{Hash, TILE_WIDTH, leaf_hash, subtree};
use super::store::{Entries, read_bundle};
use super::verify::{VerifyError, without};

/// A bundle that was read: its records as far as they are records, and why it ended before its width.
pub(super) struct Bundle {
    pub(super) seen: Vec<Seen>,
    /// The root over the leaves of a whole tile.
    pub(super) root: Option<Hash>,
    pub(super) error: Option<VerifyError>,
}

/// What matters of a record once it was looked at.
pub(super) struct Seen {
    pub(super) leaf: Hash,
    pub(super) boot: [u8; 16],
    pub(super) mono_ns: u64,
    pub(super) time_ns: u64,
}

/// Bundles each thread may be ahead by: bounds the memory.
const AHEAD: usize = 8;

/// Reads all bundles that this checkpoint covers; hands them to `each` in order until it says stop.
pub(super) fn bundles(dir: &Path, checkpoint: &Checkpoint, mut each: impl FnMut(Bundle) -> Next) {
    let count = checkpoint.size().div_ceil(TILE_WIDTH);
    let threads = thread::available_parallelism().map_or(1, usize::from) as u64;
    let threads = threads.min(count);
    thread::scope(|scope| {
        // Thread t reads bundles t, t + threads, …; taking turns among them gives the order.
        let lanes: Vec<_> = (0..threads)
            .map(|first| {
                let (sender, lane) = mpsc::sync_channel(AHEAD);
                scope.spawn(move || {
                    for number in (first..count).step_by(threads as usize) {
                        if sender.send(read(dir, checkpoint, number)).is_err() {
                            return;
                        }
                    }
                });
                lane
            })
            .collect();
        let mut turns = lanes.iter().cycle();
        for _ in 0..count {
            let Some(bundle) = turns.next().and_then(|lane| lane.recv().ok()) else {
                return;
            };
            if each(bundle) == Next::Stop {
                return;
            }
        }
    });
}

/// Whether to go on.
#[derive(PartialEq, Eq)]
pub(super) enum Next {
    More,
    Stop,
}

fn read(dir: &Path, checkpoint: &Checkpoint, number: u64) -> Bundle {
    let first = number * TILE_WIDTH;
    let width = (checkpoint.size() - first).min(TILE_WIDTH);
    let mut bundle = Bundle {
        seen: Vec::with_capacity(width as usize),
        root: None,
        error: None,
    };
    match read_bundle(dir, number, width) {
        Ok(bytes) => {
            let entries = Entries::new(&bytes);
            let outcome = entries.zip(first..).try_for_each(|(bytes, index)| {
                bundle
                    .seen
                    .push(look_at(bytes, index, checkpoint.origin())?);
                Ok(())
            });
            bundle.error = outcome.err();
        }
        Err(error) => bundle.error = Some(without(dir, checkpoint.size(), number, width, error)),
    }
    if bundle.seen.len() as u64 == TILE_WIDTH {
        let leaves: Vec<Hash> = bundle.seen.iter().map(|seen| seen.leaf).collect();
        bundle.root = Some(subtree(&leaves));
    }
    bundle
}

/// Checks what can be checked of a record without those before it.
pub(super) fn look_at(bytes: &[u8], index: u64, origin: &str) -> Result<Seen, VerifyError> {
    let leaf = Leaf::scan(bytes).map_err(|source| VerifyError::Record { index, source })?;
    let out_of_place = |why| Err(VerifyError::OutOfPlace { index, why });
    if leaf.seq != index {
        return out_of_place("it bears another number");
    }
    if leaf.origin != origin {
        return out_of_place("it was written for another log");
    }
    Ok(Seen {
        leaf: leaf_hash(bytes),
        boot: leaf.boot,
        mono_ns: leaf.mono_ns,
        time_ns: leaf.time_ns,
    })
}
