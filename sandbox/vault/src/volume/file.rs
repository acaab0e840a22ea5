//! One file of a mounted vault: what is sealed, and the chunks that were written since.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::commit::Shared;
use crate::envelope::random_id;
use crate::error::{ReadError, VaultError};
use crate::format::index::{Extent, Record, Run};
use crate::format::{Id, MAX_CHUNKS};
use crate::object::Object;
use crate::secret::Plaintext;
use crate::store::{Place, file_name};
use crate::stream::{self, Plan};

/// Extents that an object may have before some are sealed anew as one. Each is a descriptor of ours
/// while the file is open.
const MANY_EXTENTS: usize = 16;

/// Runs that an object may have before its extents are sealed anew.
const MANY_RUNS: usize = 4096;

/// A file, or the target of a symbolic link.
pub(super) struct File {
    /// What is sealed: of the last commit, or later. Its length and times are the file's.
    pub(super) record: Record,
    /// Opened when first read from, dropped when nobody has the file open.
    object: Option<Arc<Object>>,
    /// Whole chunks, with zeros after the end of the file.
    written: BTreeMap<u32, Plaintext>,
    /// Whether the record differs from the one that was committed.
    pub(super) changed: bool,
    /// Files of extents that no commit names yet.
    pub(super) fresh: Vec<Id>,
    /// When anything about it was changed, in nanoseconds since the Unix epoch.
    pub(super) touched: u64,
}

impl File {
    pub(super) fn new(record: Record) -> Self {
        let touched = record.modified;
        Self {
            record,
            object: None,
            written: BTreeMap::new(),
            changed: false,
            fresh: Vec::new(),
            touched,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.record.len
    }

    /// Bytes that were written and not sealed.
    pub(super) fn unsealed(&self) -> u64 {
        (self.written.len() * self.record.chunk.bytes()) as u64
    }

    /// Has what is sealed opened, so that [`File::read`] can read it.
    pub(super) fn open(&mut self, shared: &Shared) -> Result<(), ReadError> {
        if self.object.is_none() && !self.record.runs.is_empty() {
            let object = Object::open(&shared.store, &shared.keys, &self.record)?;
            self.object = Some(Arc::new(object));
        }
        Ok(())
    }

    /// Whether [`File::read`] has all it needs.
    pub(super) fn is_open(&self) -> bool {
        self.object.is_some() || self.record.runs.is_empty()
    }

    /// Closes what is sealed; what was written stays.
    pub(super) fn close(&mut self) {
        self.object = None;
    }

    /// Forgets what was written, and closes what is sealed.
    pub(super) fn forget(&mut self) {
        self.object = None;
        self.written.clear();
    }

    /// Reads from `offset` until `buf` is full or the file ends; returns the bytes read.
    pub(super) fn read(&self, buf: &mut [u8], offset: u64) -> Result<usize, ReadError> {
        let wanted = self.len().saturating_sub(offset).min(buf.len() as u64) as usize;
        let buf = &mut buf[..wanted];
        let chunk = self.record.chunk.bytes() as u64;
        let mut done = 0;
        while done < wanted {
            let at = offset + done as u64;
            let (index, skip) = ((at / chunk) as u32, (at % chunk) as usize);
            // What is sealed is read in one go, up to the next chunk that was written since.
            let next = self.written.range(index..).next();
            let len = match next {
                Some((found, data)) if *found == index => {
                    let len = (data.len() - skip).min(wanted - done);
                    buf[done..done + len].copy_from_slice(&data[skip..skip + len]);
                    len
                }
                Some((found, _)) => {
                    let until = u64::from(*found) * chunk - at;
                    let len = until.min((wanted - done) as u64) as usize;
                    self.read_sealed(&mut buf[done..done + len], at)?;
                    len
                }
                None => {
                    self.read_sealed(&mut buf[done..], at)?;
                    wanted - done
                }
            };
            done += len;
        }
        Ok(wanted)
    }

    /// What no extent holds is zeros.
    fn read_sealed(&self, buf: &mut [u8], offset: u64) -> Result<(), ReadError> {
        let read = match &self.object {
            Some(object) => object.read_at(buf, offset)?,
            None => 0,
        };
        buf[read..].fill(0);
        Ok(())
    }

    /// Writes at `offset`; the file is open.
    pub(super) fn write(&mut self, data: &[u8], offset: u64, now: u64) -> Result<(), WriteError> {
        let chunk = self.record.chunk.bytes() as u64;
        let end = offset.checked_add(data.len() as u64);
        let end = end.filter(|end| end.div_ceil(chunk) <= MAX_CHUNKS);
        let end = end.ok_or(WriteError::TooLarge)?;
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let (index, skip) = ((at / chunk) as u32, (at % chunk) as usize);
            let (now, later) = rest.split_at(rest.len().min(chunk as usize - skip));
            if now.len() as u64 == chunk {
                self.written.insert(index, now.into());
            } else {
                self.writable_chunk(index)?[skip..skip + now.len()].copy_from_slice(now);
            }
            at += now.len() as u64;
            rest = later;
        }
        self.record.len = self.len().max(end);
        self.touch_content(now);
        Ok(())
    }

    /// Makes the file this long: what is cut off is gone, what is added is zeros. The file is open.
    pub(super) fn set_len(&mut self, len: u64, now: u64) -> Result<(), WriteError> {
        let chunk = self.record.chunk.bytes() as u64;
        if len.div_ceil(chunk) > MAX_CHUNKS {
            return Err(WriteError::TooLarge);
        }
        if len < self.len() {
            let (end, tail) = (len.div_ceil(chunk) as u32, (len % chunk) as usize);
            let last = end.wrapping_sub(1);
            let stored = |run: &Run| run.at <= last && last < run.end();
            if tail > 0 && (self.written.contains_key(&last) || self.record.runs.iter().any(stored))
            {
                self.writable_chunk(last)?[tail..].fill(0);
            }
            self.written.split_off(&end);
            self.record.runs.retain_mut(|run| {
                run.count = run.count.min(end.saturating_sub(run.at));
                run.count > 0
            });
            self.record.len = len;
            // What is open believes in the old length.
            self.object = None;
        }
        self.record.len = len;
        self.touch_content(now);
        Ok(())
    }

    fn touch_content(&mut self, now: u64) {
        self.record.modified = now;
        self.touch(now);
    }

    pub(super) fn touch(&mut self, now: u64) {
        self.changed = true;
        self.touched = now;
    }

    /// A chunk to write into, with what it holds.
    fn writable_chunk(&mut self, index: u32) -> Result<&mut [u8], ReadError> {
        if !self.written.contains_key(&index) {
            let mut data = Plaintext::zeros(self.record.chunk.bytes());
            let at = u64::from(index) * data.len() as u64;
            let inside = self.len().saturating_sub(at).min(data.len() as u64) as usize;
            if inside > 0 {
                self.read_sealed(&mut data[..inside], at)?;
            }
            self.written.insert(index, data);
        }
        let data = self.written.get_mut(&index);
        Ok(data.map_or(&mut [][..], |data| &mut data[..]))
    }

    /// Seals what was written into an extent of its own; its file is not durable yet.
    ///
    /// An object that has come to many extents gets some of them, the small ones, sealed anew in the
    /// same go, so that each byte is sealed again only as often as the logarithm of the file's size.
    pub(super) fn seal(&mut self, shared: &Shared, key_epoch: u64) -> Result<(), VaultError> {
        if self.written.is_empty() {
            return Ok(());
        }
        let mut chunks: BTreeSet<u32> = self.written.keys().copied().collect();
        if self.record.extents.len() >= MANY_EXTENTS || self.record.runs.len() >= MANY_RUNS {
            self.open(shared)?;
            chunks.extend(self.chunks_of_small_extents());
        }
        let chunks: Vec<u32> = chunks.into_iter().collect();
        let plan = Plan {
            chunk: self.record.chunk,
            padding: shared.padding,
            file_id: random_id()?,
            object_id: self.record.object_id,
            // The one that the next commit gives it.
            version: self.record.version.saturating_add(1),
            key_epoch,
            number: 1,
        };
        let written = stream::write_volatile(shared, &plan, self.len_of(&chunks), |out, at| {
            self.read_chunks(&chunks, out, at).map_err(Into::into)
        });
        let extent = match written {
            Ok(extent) => extent,
            Err(error) => {
                let _ = shared
                    .store
                    .remove(Place::Objects, &file_name(&plan.file_id));
                return Err(error);
            }
        };
        self.fresh.push(plan.file_id);
        self.show(&chunks, extent);
        for gone in self.drop_unused() {
            // What was committed is removed by the commit that does without it.
            if let Some(at) = self.fresh.iter().position(|fresh| *fresh == gone) {
                self.fresh.swap_remove(at);
                let _ = shared.store.remove(Place::Objects, &file_name(&gone));
            }
        }
        self.written.clear();
        self.changed = true;
        if let Some(before) = self.object.take() {
            let before = Some(before.as_ref());
            // What cannot be opened now is told to whoever reads it.
            let object = Object::open_after(before, &shared.store, &shared.keys, &self.record);
            self.object = object.ok().map(Arc::new);
        }
        Ok(())
    }

    /// Bytes in these chunks, one after the other: all are whole, but the last one ends where the file
    /// does.
    fn len_of(&self, chunks: &[u32]) -> u64 {
        let whole = self.record.chunk.bytes() as u64;
        let (Some(last), before) = (chunks.last(), chunks.len().saturating_sub(1)) else {
            return 0;
        };
        let inside = self.len().saturating_sub(u64::from(*last) * whole);
        before as u64 * whole + inside.min(whole)
    }

    /// Reads from a place in these chunks, one after the other; the place is where one of them begins.
    fn read_chunks(&self, chunks: &[u32], out: &mut [u8], at: u64) -> Result<(), ReadError> {
        let whole = self.record.chunk.bytes();
        let first = (at / whole as u64) as usize;
        for (out, index) in out.chunks_mut(whole).zip(chunks.iter().skip(first)) {
            let read = self.read(out, u64::from(*index) * whole as u64)?;
            out[read..].fill(0);
        }
        Ok(())
    }

    /// The chunks that the smaller half of the extents hold, and those of about their size.
    fn chunks_of_small_extents(&self) -> BTreeSet<u32> {
        let mut live = vec![0u64; self.record.extents.len()];
        for run in &self.record.runs {
            live[run.extent as usize] += u64::from(run.count);
        }
        let mut order: Vec<usize> = (0..live.len()).collect();
        order.sort_by_key(|extent| live[*extent]);
        let (mut taken, mut sum) = (BTreeSet::new(), 0);
        for (rank, extent) in order.into_iter().enumerate() {
            if rank >= live.len() / 2 && live[extent] > sum {
                break;
            }
            sum += live[extent];
            taken.insert(extent as u32);
        }
        let runs = self.record.runs.iter();
        // Many runs: they are what has to go, whatever the extents are.
        let all = self.record.runs.len() >= MANY_RUNS;
        runs.filter(|run| all || taken.contains(&run.extent))
            .flat_map(|run| run.at..run.end())
            .collect()
    }

    /// Has these chunks come from a new extent, in this order.
    fn show(&mut self, chunks: &[u32], extent: Extent) {
        let number = self.record.extents.len() as u32;
        self.record.extents.push(extent);
        let mut places: Vec<Run> = Vec::with_capacity(self.record.runs.len() + 1);
        for (from, at) in (0u32..).zip(chunks) {
            match places.last_mut() {
                Some(run) if run.end() == *at => run.count += 1,
                _ => places.push(Run {
                    at: *at,
                    count: 1,
                    extent: number,
                    from,
                }),
            }
        }
        let mut old = Vec::new();
        let mut news = places.iter().peekable();
        for run in &self.record.runs {
            let mut rest = *run;
            while news.next_if(|new| new.end() <= rest.at).is_some() {}
            let mut covering = news.clone();
            while let Some(new) = covering.next_if(|new| new.at < rest.end()) {
                if rest.at < new.at {
                    let count = new.at - rest.at;
                    old.push(Run { count, ..rest });
                }
                let cut = new.end().clamp(rest.at, rest.end()) - rest.at;
                rest = Run {
                    at: rest.at + cut,
                    count: rest.count - cut,
                    from: rest.from + cut,
                    ..rest
                };
            }
            if rest.count > 0 {
                old.push(rest);
            }
        }
        places.extend(old);
        places.sort_by_key(|run| run.at);
        self.record.runs = places;
    }

    /// Drops extents that no run is in; returns their files.
    fn drop_unused(&mut self) -> Vec<Id> {
        let record = &mut self.record;
        let used: BTreeSet<u32> = record.runs.iter().map(|run| run.extent).collect();
        let numbers: BTreeMap<u32, u32> = used.iter().copied().zip(0..).collect();
        for run in &mut record.runs {
            run.extent = numbers.get(&run.extent).copied().unwrap_or(0);
        }
        let mut gone = Vec::new();
        let mut number = 0;
        record.extents.retain(|extent| {
            let keep = used.contains(&number);
            if !keep {
                gone.push(extent.file_id);
            }
            number += 1;
            keep
        });
        gone
    }
}

/// Why a file could not be written to.
pub(super) enum WriteError {
    TooLarge,
    Read(ReadError),
}

impl From<ReadError> for WriteError {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}
