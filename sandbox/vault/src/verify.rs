//! Reading everything there is, on all processors.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;

use crate::commit;
use crate::error::{ReadError, VaultError};
use crate::format::index::Record;
use crate::object::Object;
use crate::vault::Vault;

/// How far [`Vault::verify`] has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Objects verified.
    pub objects: u64,
    /// Objects in all.
    pub of_objects: u64,
    /// Bytes of content verified.
    pub bytes: u64,
    /// Bytes of content in all.
    pub of_bytes: u64,
}

/// What [`Vault::verify`] found to be in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Objects, each read to its last chunk.
    pub objects: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// Files in the store that belong to no object: left by an interrupted writer, and removed by
    /// the next one.
    pub orphans: u64,
}

/// Some chunks of an object: what one thread takes at a time.
struct Unit<'a> {
    name: &'a str,
    record: &'a Record,
    extent: usize,
    chunks: Range<u64>,
    /// With these, every chunk of the object was looked at.
    is_last: bool,
}

/// Bytes of content in a unit.
const UNIT: u64 = 16 << 20;

impl Vault {
    /// Reads every chunk of every object, on as many threads as there are processors, and tells how
    /// far it has come. Memory does not grow with what is stored.
    ///
    /// # Errors
    ///
    /// [`VaultError::Tampered`] with the first part, in order of names, that is not what was written.
    pub fn verify(&self, mut progress: impl FnMut(Progress)) -> Result<Verified, VaultError> {
        let index = &self.commit.index;
        let mut now = Progress {
            objects: 0,
            of_objects: index.len() as u64,
            bytes: 0,
            of_bytes: index
                .values()
                .fold(0, |sum, record| record.len.saturating_add(sum)),
        };
        progress(now);
        let units = || index.iter().flat_map(|(name, record)| cut(name, record));
        let of_units = units().count();
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel();
        // The lowest unit that failed: those before it were all taken, so all of them were sound.
        let mut failed: Option<(usize, VaultError)> = None;
        thread::scope(|scope| {
            let threads = thread::available_parallelism().map_or(1, usize::from);
            for _ in 0..threads.min(of_units) {
                let (sender, next, stop) = (sender.clone(), &next, &stop);
                scope.spawn(move || {
                    let (mut units, mut passed) = (units(), 0);
                    while !stop.load(Ordering::Relaxed) {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some(unit) = units.nth(number - passed) else {
                            return;
                        };
                        passed = number + 1;
                        let outcome = self.look_at(&unit).map_err(|e| e.of(unit.name));
                        let told = outcome.map(|bytes| (bytes, unit.is_last));
                        if sender.send((number, told)).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            for (number, outcome) in receiver {
                match outcome {
                    Ok((bytes, whole)) => {
                        now.bytes = now.bytes.saturating_add(bytes);
                        now.objects += u64::from(whole);
                        progress(now);
                    }
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        if failed.as_ref().is_none_or(|(first, _)| number < *first) {
                            failed = Some((number, error.into()));
                        }
                    }
                }
            }
        });
        if let Some((_, error)) = failed {
            return Err(error);
        }
        let orphans = commit::orphans(&self.shared.store, &self.commit)
            .map_err(VaultError::io("list the vault's files"))?;
        Ok(Verified {
            objects: now.objects,
            bytes: now.bytes,
            orphans: orphans.len() as u64,
        })
    }

    /// Reads the chunks of a unit; returns the bytes of content in them.
    fn look_at(&self, unit: &Unit<'_>) -> Result<u64, ReadError> {
        let object = Object::open(&self.shared.store, &self.shared.keys, unit.record)?;
        object.verify(unit.extent, unit.chunks.clone())
    }
}

/// Cuts an object into units.
fn cut<'a>(name: &'a str, record: &'a Record) -> impl Iterator<Item = Unit<'a>> {
    let step = UNIT / record.chunk.bytes() as u64;
    let last = record.extents.len().saturating_sub(1);
    let all = record.extents.iter().enumerate();
    let units = all.flat_map(move |(extent, sealed)| {
        let chunks = crate::format::chunks(sealed.stored, sealed.chunk);
        (0..chunks).step_by(step as usize).map(move |first| {
            let end = chunks.min(first + step);
            Unit {
                name,
                record,
                extent,
                chunks: first..end,
                is_last: extent == last && end == chunks,
            }
        })
    });
    // An object that was never written to has no extent, and nothing to look at.
    let empty = record.extents.is_empty().then_some(Unit {
        name,
        record,
        extent: 0,
        chunks: 0..0,
        is_last: true,
    });
    units.chain(empty)
}
