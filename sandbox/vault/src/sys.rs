//! Memory for keys: hidden or at least locked, left out of core dumps and of forked children.
//!
//! The strongest kind the kernel offers is taken: memfd_secret(2), whose pages even the kernel's own
//! map does not contain, so that neither `/proc/self/mem`, ptrace(2) nor a dump reads them; else
//! anonymous pages under mlock(2). Which one it is, [`MemoryProtection`] reports.

use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use zeroize::Zeroize;

/// How well the memory that holds keys is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum MemoryProtection {
    /// Ordinary pages: the kernel refused to lock any. Left out of core dumps, but may be swapped.
    Ordinary,
    /// Locked pages (mlock(2)), left out of core dumps.
    Locked,
    /// Pages that exist in this process's page table only (memfd_secret(2)).
    Secret,
}

/// Bytes in one [`Cell`].
pub(crate) const CELL_LEN: usize = 32;

const PAGE_LEN: usize = 4096;
const CELLS: usize = PAGE_LEN / CELL_LEN;

/// Hands out cells of 32 bytes in protected pages; a new page is mapped when the others are full.
#[derive(Clone, Default)]
pub(crate) struct Arena {
    pages: Arc<Mutex<Vec<Arc<Page>>>>,
}

impl Arena {
    /// Takes an empty cell of zeros.
    pub(crate) fn cell(&self) -> io::Result<Cell> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        for page in pages.iter() {
            if let Some(index) = page.take() {
                return Ok(Cell {
                    page: Arc::clone(page),
                    index,
                });
            }
        }
        let page = Arc::new(Page::map()?);
        let index = page.take().unwrap_or(0);
        pages.push(Arc::clone(&page));
        Ok(Cell { page, index })
    }

    /// Cells that are taken.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> u32 {
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = |page: &Arc<Page>| *page.taken.lock().unwrap_or_else(PoisonError::into_inner);
        pages.iter().map(|page| taken(page).count_ones()).sum()
    }

    /// The weakest protection of any page mapped so far, `None` before the first.
    pub(crate) fn protection(&self) -> Option<MemoryProtection> {
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.iter().map(|page| page.protection).min()
    }
}

/// Thirty-two bytes of protected memory, zeroed when given back.
pub(crate) struct Cell {
    page: Arc<Page>,
    index: usize,
}

impl Cell {
    pub(crate) fn bytes(&self) -> &[u8; CELL_LEN] {
        // SAFETY: the address lies inside the page, which lives as long as `self.page`; the cell is
        // this value's alone (see `Page::take`), and `&self` lets nobody write it meanwhile.
        unsafe { &*self.page.address(self.index).cast::<[u8; CELL_LEN]>() }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8; CELL_LEN] {
        // SAFETY: as in `bytes`, and `&mut self` makes this the only reference.
        unsafe { &mut *self.page.address(self.index).cast::<[u8; CELL_LEN]>() }
    }

    /// How well this cell's page is protected.
    pub(crate) fn protection(&self) -> MemoryProtection {
        self.page.protection
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.bytes_mut().zeroize();
        self.page.give_back(self.index);
    }
}

struct Page {
    base: NonNull<u8>,
    protection: MemoryProtection,
    taken: Mutex<u128>,
}

// SAFETY: the page is plain memory with a fixed address; who may touch which cell of it is settled
// by `taken`, under a mutex.
unsafe impl Send for Page {}
// SAFETY: as above: shared access goes through `Cell`, and no two cells overlap.
unsafe impl Sync for Page {}

impl Page {
    fn map() -> io::Result<Self> {
        let (base, protection) = match map_secret() {
            Ok(base) => (base, MemoryProtection::Secret),
            Err(_) => {
                let base = map_anonymous()?;
                let locked = lock(base).is_ok();
                let kind = if locked {
                    MemoryProtection::Locked
                } else {
                    MemoryProtection::Ordinary
                };
                (base, kind)
            }
        };
        let page = Self {
            base,
            protection,
            taken: Mutex::new(0),
        };
        advise(base, libc::MADV_DONTDUMP)?;
        // A child of fork(2) must not own a copy of the keys.
        advise(base, libc::MADV_DONTFORK)?;
        Ok(page)
    }

    fn take(&self) -> Option<usize> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let index = (!*taken).trailing_zeros() as usize;
        if index >= CELLS {
            return None;
        }
        *taken |= 1 << index;
        Some(index)
    }

    fn give_back(&self, index: usize) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        *taken &= !(1 << index);
    }

    fn address(&self, index: usize) -> *mut u8 {
        debug_assert!(index < CELLS);
        self.base.as_ptr().wrapping_add((index % CELLS) * CELL_LEN)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length, and no cell is left: each holds the page alive.
        unsafe { libc::munmap(self.base.as_ptr().cast(), PAGE_LEN) };
    }
}

fn map_secret() -> io::Result<NonNull<u8>> {
    // SAFETY: takes one integer, returns a descriptor that is ours.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let fd = i32::try_from(fd)
        .ok()
        .filter(|fd| *fd >= 0)
        .ok_or_else(io::Error::last_os_error)?;
    // SAFETY: `fd` was just opened and is owned by nobody else.
    let fd = unsafe { <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    rustix::fs::ftruncate(&fd, PAGE_LEN as u64)?;
    map(libc::MAP_SHARED, std::os::fd::AsRawFd::as_raw_fd(&fd))
}

fn map_anonymous() -> io::Result<NonNull<u8>> {
    map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
}

fn map(flags: libc::c_int, fd: libc::c_int) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice; no memory of ours is replaced.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), PAGE_LEN, protection, flags, fd, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))
}

fn lock(base: NonNull<u8>) -> io::Result<()> {
    // SAFETY: names pages that `map` returned; changes no content.
    check(unsafe { libc::mlock(base.as_ptr().cast(), PAGE_LEN) })
}

fn advise(base: NonNull<u8>, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: names pages that `map` returned; both advices used here change no content.
    check(unsafe { libc::madvise(base.as_ptr().cast(), PAGE_LEN, advice) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Maps the beginning of a file to read, shared and for as long as the process lives; its address.
#[cfg(test)]
pub(crate) fn map_shared(file: &std::fs::File, length: usize) -> io::Result<u64> {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    let (read, shared) = (ProtFlags::READ, MapFlags::SHARED);
    // SAFETY: a new mapping at a place that the kernel chooses; nothing that there is changes.
    let map = unsafe { mmap(std::ptr::null_mut(), length, read, shared, file, 0) }?;
    Ok(map as u64)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn cells_do_not_overlap_and_come_back_as_zeros() {
        let arena = Arena::default();
        let mut cells: Vec<_> = (0..300).map(|_| arena.cell().unwrap()).collect();
        for (i, cell) in cells.iter_mut().enumerate() {
            *cell.bytes_mut() = [i as u8 ^ (i >> 8) as u8; CELL_LEN];
        }
        for (i, cell) in cells.iter().enumerate() {
            assert_eq!(cell.bytes(), &[i as u8 ^ (i >> 8) as u8; CELL_LEN]);
        }
        cells.clear();
        assert_eq!(arena.cell().unwrap().bytes(), &[0; CELL_LEN]);
    }

    #[test]
    fn secret_pages_cannot_be_read_through_proc() {
        use std::os::unix::fs::FileExt;
        let arena = Arena::default();
        let mut cell = arena.cell().unwrap();
        *cell.bytes_mut() = *b"only in the page table of this p";
        if cell.protection() != MemoryProtection::Secret {
            eprintln!("skipped: this kernel has no memfd_secret");
            return;
        }
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let mut copy = [0; CELL_LEN];
        let address = cell.bytes().as_ptr() as u64;
        assert!(memory.read_exact_at(&mut copy, address).is_err());
    }
}
