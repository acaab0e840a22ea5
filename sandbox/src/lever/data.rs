//! The `data` lever: vaults shown to the workload under a lease, and taken away from it.
//!
//! Where `/dev/fuse` can be opened, the vault is served through FUSE: each read asks the lease, and a
//! revocation reaches descriptors that are already open. Elsewhere the plaintext is put into a tmpfs
//! of the sandbox, and taking it away truncates every file in it: open descriptors read nothing more,
//! mappings fault. That is a gap (`data`), because the plaintext is all in memory from the start.
//!
//! With the lease go the vault's keys. So what comes back is a vault opened anew, with a key that was
//! released anew: it is shown at the same place under a new lease, and what was open under the old one
//! stays useless.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use rustix::fs::{AtFlags, Mode, OFlags};
use vault::fuse::FuseServer;
use vault::volume::{Limits, Uncommitted, Volume};
use vault::{Lease, LeaseTerms, LeaseUse, Rights, Vault};
use zeroize::Zeroizing;

use crate::enforcement::Item;
use crate::event::Event;
use crate::isolation::Place;
use crate::isolation::floor::INSIDE_ID;
use crate::isolation::spawner::Failure;
use crate::sys::process::First;

/// The vaults of a session.
pub struct Vaults {
    open: BTreeMap<String, Shown>,
    /// What was lost by withdrawing, until it is recorded.
    lost: Vec<(String, Uncommitted)>,
    events: SyncSender<Event>,
}

/// The generation and root that a commit came to, or what could not be committed.
type Committed = Result<(u64, [u8; 32]), Uncommitted>;

/// One vault, open, and shown to the workload once its place exists.
struct Shown {
    /// Until it is withdrawn: then its keys go with it.
    vault: Option<Data>,
    /// The volume before the one that is shown, whose nodes the kernel may still know.
    earlier: Option<Arc<Volume>>,
    lease: Option<Arc<Lease>>,
    view: Option<View>,
    /// What was done under leases that have ended.
    before: LeaseUse,
}

/// An open vault, as far as it was opened.
enum Data {
    ReadOnly(Arc<Vault>),
    Writable(Arc<Volume>),
}

/// How the workload sees a vault.
enum View {
    Fuse(FuseServer),
    Memory(Memory),
}

impl Vaults {
    /// No vault yet. What happens to those to come is reported to `events`.
    pub fn new(events: SyncSender<Event>) -> Self {
        Self {
            open: BTreeMap::new(),
            lost: Vec::new(),
            events,
        }
    }

    /// Takes an open vault under the name of its `[data]` entry.
    ///
    /// # Errors
    ///
    /// When the vault is open for writing and somebody else has it too.
    pub fn insert(&mut self, name: String, vault: Arc<Vault>) -> Result<(), Failure> {
        let step = format!("opening vault `{name}`");
        let data = Data::of(vault, None).map_err(Failure::at(step))?;
        self.open.insert(
            name,
            Shown {
                vault: Some(data),
                earlier: None,
                lease: None,
                view: None,
                before: LeaseUse::default(),
            },
        );
        Ok(())
    }

    /// Upper bound of each vault's plaintext in bytes.
    pub fn sizes(&self) -> BTreeMap<String, u64> {
        self.open
            .iter()
            .map(|(name, shown)| {
                // A page at least for each file, as the tmpfs counts.
                let objects = match &shown.vault {
                    Some(Data::ReadOnly(vault)) => vault.list(),
                    // Never copied into memory.
                    _ => Vec::new(),
                };
                let sizes = objects.iter();
                let size = sizes.map(|object| object.len.next_multiple_of(4096)).sum();
                (name.clone(), size)
            })
            .collect()
    }

    /// Shows a vault at the place that was mounted for it, under a new lease.
    ///
    /// # Errors
    ///
    /// When the vault cannot be served or read.
    pub fn show(&mut self, name: &str, place: Place) -> Result<Item, Failure> {
        let step = format!("showing vault `{name}`");
        let events = self.events.clone();
        let shown = self.open.get_mut(name).ok_or_else(|| not_open(&step))?;
        let lease = shown.lease(name, events, &step)?;
        let (view, item) = match place {
            Place::Fuse(device) => {
                let (lease, owner) = (Arc::clone(&lease), (INSIDE_ID, INSIDE_ID));
                let (served, asked) = match &shown.vault {
                    Some(Data::Writable(volume)) => {
                        let volume = Arc::clone(volume);
                        let served = vault::fuse::serve_volume(device, volume, lease, owner);
                        (served, "operation, writable")
                    }
                    _ => (vault::fuse::serve(device, lease, owner), "read"),
                };
                let server = served
                    .map_err(io::Error::other)
                    .map_err(Failure::at(step))?;
                let detail = format!("{name}: FUSE, lease asked at each {asked}");
                (View::Fuse(server), Item::full(4, "data", detail))
            }
            Place::Memory(folder) => {
                let memory = Memory::fill(folder, &lease).map_err(Failure::at(step))?;
                let detail = format!(
                    "{name}: copied into the sandbox's memory, because /dev/fuse cannot be opened; \
                     withdrawing empties the copy"
                );
                (View::Memory(memory), Item::partly(4, "data", detail))
            }
        };
        shown.lease = Some(lease);
        shown.view = Some(view);
        Ok(item)
    }

    /// Shows a vault that was withdrawn, opened anew, at the place where it was.
    ///
    /// # Errors
    ///
    /// When the vault cannot be served or read; it stays withdrawn.
    pub fn give_back(&mut self, name: &str, vault: Arc<Vault>) -> Result<(), Failure> {
        let step = format!("giving vault `{name}` back");
        let events = self.events.clone();
        let shown = self.open.get_mut(name).ok_or_else(|| not_open(&step))?;
        let data = Data::of(vault, shown.earlier.as_deref()).map_err(Failure::at(step.clone()))?;
        shown.vault = Some(data);
        let lease = shown.lease(name, events, &step)?;
        let given = match &mut shown.view {
            Some(View::Fuse(server)) => match &shown.vault {
                Some(Data::Writable(volume)) => {
                    server.renew_volume(Arc::clone(volume), Arc::clone(&lease))
                }
                _ => server.renew(Arc::clone(&lease)),
            }
            .map_err(io::Error::other),
            Some(View::Memory(memory)) => memory.refill(&lease),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        let given = given.map_err(Failure::at(step));
        if given.is_err() {
            lease.revoke();
            shown.vault = None;
        }
        shown.lease = Some(lease);
        given
    }

    /// Takes a vault away: when this returns, no read gives a byte of it any more, and nothing is written
    /// to it. What was written and not committed is lost; [`Vaults::take_lost`] tells.
    ///
    /// # Errors
    ///
    /// When the copy in memory could not be emptied; the caller then stops the sandbox.
    pub fn withdraw(&mut self, name: &str) -> Result<(), Failure> {
        let Some(shown) = self.open.get_mut(name) else {
            return Ok(());
        };
        let data = shown.vault.take();
        // A read that is under way is waited for: whoever makes it may be waiting for a processor.
        let workers = match &shown.view {
            Some(View::Fuse(server)) => server.workers(),
            _ => Vec::new(),
        };
        let _first: Vec<_> = workers.into_iter().map(First::begin).collect();
        if let Some(lease) = shown.lease.take() {
            lease.revoke();
            shown.before = sum(shown.before, lease.usage());
        }
        if let Some(Data::Writable(volume)) = data {
            let lost = volume.close();
            if lost != Uncommitted::default() {
                self.lost.push((name.to_owned(), lost));
            }
            shown.earlier = Some(volume);
        }
        match &mut shown.view {
            Some(View::Fuse(server)) => {
                server.invalidate();
                Ok(())
            }
            Some(View::Memory(memory)) => memory
                .empty()
                .map_err(Failure::at(format!("withdrawing vault `{name}`"))),
            None => Ok(()),
        }
    }

    /// What withdrawing has lost since this was last asked.
    pub fn take_lost(&mut self) -> Vec<(String, Uncommitted)> {
        std::mem::take(&mut self.lost)
    }

    /// Whether a vault is shown to be written to.
    pub fn is_writable(&self, name: &str) -> bool {
        let shown = self.open.get(name);
        shown.is_some_and(|shown| matches!(shown.vault, Some(Data::Writable(_))))
    }

    /// Closes the vaults that can be written to and are still shown, when nobody is left to write: what
    /// was written is committed before if `commit`. A vault to which nothing was written since its last
    /// commit is told as committed.
    pub fn close(&mut self, commit: bool) -> Vec<(String, Committed)> {
        let mut closed = Vec::new();
        for (name, shown) in &mut self.open {
            let Some(Data::Writable(volume)) = &shown.vault else {
                continue;
            };
            let written = if commit { volume.commit() } else { Ok(()) };
            let committed = volume.committed();
            if let Some(lease) = shown.lease.take() {
                lease.revoke();
                shown.before = sum(shown.before, lease.usage());
            }
            let lost = volume.close();
            shown.vault = None;
            closed.push((
                name.clone(),
                match committed {
                    Some(state) if written.is_ok() && lost == Uncommitted::default() => Ok(state),
                    _ => Err(lost),
                },
            ));
        }
        closed
    }

    /// What nothing remembers: without an anchor, a vault that was put back as a whole to an earlier day
    /// looks like a fresh one.
    pub fn freshness(&self) -> impl Iterator<Item = Item> {
        let unanchored = |(_, shown): &(&String, &Shown)| !match &shown.vault {
            Some(Data::ReadOnly(vault)) => vault.is_anchored(),
            Some(Data::Writable(volume)) => volume.is_anchored(),
            None => false,
        };
        self.open.iter().filter(unanchored).map(|(name, _)| {
            let detail = format!("{name}: no anchor remembers its newest root; putting back the whole vault goes unseen");
            Item::partly(4, "freshness", detail)
        })
    }

    /// What the workload read of each vault.
    pub fn usage(&self) -> BTreeMap<String, LeaseUse> {
        let used = |shown: &Shown| {
            let now = shown.lease.as_ref().map(|lease| lease.usage());
            sum(shown.before, now.unwrap_or_default())
        };
        let all = self.open.iter();
        all.map(|(name, shown)| (name.clone(), used(shown)))
            .collect()
    }
}

impl Shown {
    /// A new lease for the workload, whose damage is reported.
    fn lease(
        &self,
        name: &str,
        events: SyncSender<Event>,
        step: &str,
    ) -> Result<Arc<Lease>, Failure> {
        let data = self.vault.as_ref().ok_or_else(|| not_open(step))?;
        let terms = |rights| LeaseTerms {
            subject: "workload".into(),
            prefix: String::new(),
            rights,
            expires: None,
        };
        let lease = match data {
            Data::ReadOnly(vault) => vault.lease(terms(Rights::READ)).map_err(io::Error::other),
            Data::Writable(volume) => volume.lease(terms(Rights::WRITE)).map_err(io::Error::other),
        };
        let lease = Arc::new(lease.map_err(Failure::at(step))?);
        let data = name.to_owned();
        lease.on_damage(move |damage| {
            let what = format!("the {} of `{}`", damage.what, damage.object);
            // A session that is over needs to hear no more.
            let _ = events.send(Event::Damaged {
                data: data.clone(),
                what,
            });
        });
        Ok(lease)
    }
}

impl Data {
    /// What a vault is shown as; one to be written to after an earlier one at the same place.
    fn of(vault: Arc<Vault>, earlier: Option<&Volume>) -> io::Result<Self> {
        if !vault.is_writable() {
            return Ok(Self::ReadOnly(vault));
        }
        let vault = Arc::into_inner(vault).ok_or(io::ErrorKind::ResourceBusy)?;
        let volume = Volume::after(earlier, vault, Limits::default());
        let volume = volume.map_err(io::Error::other)?;
        Ok(Self::Writable(Arc::new(volume)))
    }
}

fn not_open(step: &str) -> Failure {
    Failure {
        step: step.into(),
        error: "it is not open".into(),
        errno: None,
    }
}

fn sum(one: LeaseUse, other: LeaseUse) -> LeaseUse {
    LeaseUse {
        opens: one.opens + other.opens,
        reads: one.reads + other.reads,
        bytes: one.bytes + other.bytes,
        writes: one.writes + other.writes,
        written: one.written + other.written,
        refused: one.refused + other.refused,
        // At least: which ones they are is not known here.
        objects: one.objects.max(other.objects),
    }
}

/// A copy of a vault in a tmpfs that only the sandbox sees.
struct Memory {
    folder: OwnedFd,
    files: Vec<File>,
}

impl Memory {
    fn fill(folder: OwnedFd, lease: &Lease) -> io::Result<Self> {
        let mut files = Vec::new();
        for object in lease.list().map_err(io::Error::other)? {
            let (parents, name) = object.name.rsplit_once('/').unwrap_or(("", &object.name));
            let mut parent = folder.try_clone()?;
            for part in parents.split('/').filter(|part| !part.is_empty()) {
                parent = enter(parent.as_fd(), part)?;
            }
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(0o444);
            let mut file = File::from(rustix::fs::openat(&parent, name, flags, mode)?);
            rustix::fs::fchmod(&file, mode)?;
            copy(lease, &object.name, &mut file)?;
            files.push(file);
        }
        Ok(Self { folder, files })
    }

    /// Fills new files, after the empty ones were removed: whoever has one of those open reads nothing.
    fn refill(&mut self, lease: &Lease) -> io::Result<()> {
        clear(self.folder.as_fd())?;
        *self = Self::fill(self.folder.try_clone()?, lease)?;
        Ok(())
    }

    fn empty(&mut self) -> io::Result<()> {
        // All are tried before an error is reported.
        let results: Vec<_> = self.files.iter().map(|file| file.set_len(0)).collect();
        results.into_iter().collect()
    }
}

/// Copies an object, chunk by verified chunk.
fn copy(lease: &Lease, name: &str, file: &mut File) -> io::Result<()> {
    let object = lease.open(name).map_err(io::Error::other)?;
    let mut buffer = Zeroizing::new(vec![0u8; 256 << 10]);
    let mut offset = 0;
    loop {
        let read = lease
            .read_at(&object, &mut buffer, offset)
            .map_err(io::Error::other)?;
        if read == 0 {
            return Ok(());
        }
        file.write_all(&buffer[..read])?;
        offset += read as u64;
    }
}

/// Removes everything in a folder.
fn clear(folder: BorrowedFd<'_>) -> io::Result<()> {
    for entry in rustix::fs::Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
            Err(rustix::io::Errno::ISDIR) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let inner = rustix::fs::openat(folder, name, flags, Mode::empty())?;
                clear(inner.as_fd())?;
                rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR)?;
            }
            other => other?,
        }
    }
    Ok(())
}

fn enter(parent: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}
