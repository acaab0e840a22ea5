//! Namespaces of a sandbox, and the one user that exists inside.
//!
//! See namespaces(7) and user_namespaces(7). The cgroup namespace is entered by the init itself, after
//! it was placed in its cgroups; the time namespace is left alone: programs measure real time.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::{Pid, Signal};

use super::floor::{Floor, INSIDE_ID};
use super::spawner::Failure;
use crate::sys::process::{self, Forked, NamespaceFlags};

/// Namespaces every sandbox is born into.
pub const ALL: NamespaceFlags = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS) as u32 as NamespaceFlags;

/// First of the user ids on the host under which root's sandboxes run: far above what systems and
/// subordinate ranges use, one per sandbox, so that limits and keyrings counted by user stay apart.
const FIRST_SANDBOX_UID: u32 = 0x6361_0000;

/// The user id on the host for a sandbox that root starts; `None` where it does not exist, as in a
/// container with users of its own. Root is there what others are: it can give a sandbox no user but its own.
pub fn sandbox_uid() -> Option<u32> {
    existing(FIRST_SANDBOX_UID + (std::process::id() & 0xffff))
}

/// The user id on the host for a sandbox of root's that shares the host's user namespace: another for each, as
/// far as chance has it.
pub fn any_sandbox_uid() -> Option<u32> {
    let mut random = [0u8; 2];
    // Two sandboxes of the same user are kept apart by Landlock still.
    let _ = rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty());
    existing(FIRST_SANDBOX_UID + u32::from(u16::from_ne_bytes(random)))
}

fn existing(id: u32) -> Option<u32> {
    // A host that tells nothing has no `/proc`, and mapping would fail all the same.
    let maps = ["uid", "gid"].map(|kind| fs::read_to_string(format!("/proc/self/{kind}_map")));
    let there = |map: &io::Result<String>| map.as_ref().is_ok_and(|map| is_mapped(map, id));
    maps.iter().all(there).then_some(id)
}

/// Whether an id exists in a user namespace of this map. See user_namespaces(7).
fn is_mapped(map: &str, wanted: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        let (Some(Ok(first)), Some(Ok(_)), Some(Ok(count))) =
            (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        (first..first.saturating_add(count)).contains(&u64::from(wanted))
    })
}

/// Whether a user id is that of a sandbox of root's.
pub fn is_sandbox_uid(uid: u32) -> bool {
    uid & 0xffff_0000 == FIRST_SANDBOX_UID
}

/// Lets exactly one user and group exist in the user namespace of `pid`. For root, from outside.
pub fn map_user(pid: Pid, floor: &Floor) -> Result<(), Failure> {
    map(&format!("/proc/{}", pid.as_raw_nonzero()), floor)
}

/// Lets exactly one user and group exist in the user namespace that this process was born into. For an
/// ordinary user, who may map nobody but himself.
pub fn map_own_user(floor: &Floor) -> Result<(), Failure> {
    // The files of a process that cannot be dumped, as the spawner is, belong to root.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)
        .map_err(|errno| Failure::at("mapping the sandbox's user")(errno.into()))?;
    // Without this an ordinary user may not map a group. See user_namespaces(7).
    write("/proc/self/setgroups", "deny")?;
    map("/proc/self", floor)
}

fn map(process: &str, floor: &Floor) -> Result<(), Failure> {
    write(
        &format!("{process}/uid_map"),
        &format!("{INSIDE_ID} {} 1\n", floor.host_uid),
    )?;
    write(
        &format!("{process}/gid_map"),
        &format!("{INSIDE_ID} {} 1\n", floor.host_gid),
    )
}

/// A user and group, and the ones they stand for.
pub type Mapping = ((u32, u32), (u32, u32));

/// Most namespaces that are kept.
const KEPT_MAPPINGS: usize = 16;

/// User namespaces in which one user stands for another, for mounts that show files of the one as the
/// other's. Nothing runs in them, and they are the same for every sandbox that needs them.
#[derive(Debug, Default)]
pub struct Mappings(BTreeMap<Mapping, OwnedFd>);

impl Mappings {
    /// Takes over namespaces that were made elsewhere, as far as there is room.
    pub fn keep(&mut self, known: Vec<Mapping>, namespaces: Vec<OwnedFd>) {
        for (mapping, namespace) in known.into_iter().zip(namespaces) {
            if self.0.len() < KEPT_MAPPINGS {
                self.0.entry(mapping).or_insert(namespace);
            }
        }
    }

    /// The same namespaces under other descriptors.
    ///
    /// # Errors
    ///
    /// When this process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let copies = self.0.iter();
        let copies = copies.map(|(mapping, namespace)| Ok((*mapping, namespace.try_clone()?)));
        copies.collect::<io::Result<_>>().map(Self)
    }

    /// What is there, and in the same order the namespaces.
    pub fn known(&self) -> (Vec<Mapping>, Vec<BorrowedFd<'_>>) {
        let namespaces = self.0.values().map(AsFd::as_fd);
        (self.0.keys().copied().collect(), namespaces.collect())
    }

    /// The namespace in which `from` stands for `to`, made if there is none yet.
    ///
    /// # Errors
    ///
    /// When the host forbids another user namespace.
    pub fn get(&mut self, from: (u32, u32), to: (u32, u32)) -> Result<BorrowedFd<'_>, Failure> {
        let namespace: &OwnedFd = match self.0.entry((from, to)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(make_mapping(from, to)?),
        };
        Ok(namespace.as_fd())
    }

    /// Takes out what is not among these.
    pub fn others(mut self, known: &[Mapping]) -> (Vec<Mapping>, Vec<OwnedFd>) {
        self.0.retain(|mapping, _| !known.contains(mapping));
        self.0.into_iter().unzip()
    }
}

fn make_mapping(from: (u32, u32), to: (u32, u32)) -> Result<OwnedFd, Failure> {
    let step = "making an id mapping";
    let (hold, released) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| Failure::at(step)(e.into()))?;
    let flags = libc::CLONE_NEWUSER as NamespaceFlags;
    match process::fork_into(flags, None).map_err(Failure::at(step))? {
        Forked::Child => {
            drop(released);
            // Ends when the parent closes its end, or is gone.
            let _ = rustix::io::read(&hold, &mut [0u8; 1]);
            process::exit_now(0)
        }
        Forked::Parent { pid, pidfd } => {
            let raw = pid.as_raw_nonzero();
            let namespace = write(
                &format!("/proc/{raw}/uid_map"),
                &format!("{} {} 1\n", from.0, to.0),
            )
            .and_then(|()| {
                write(
                    &format!("/proc/{raw}/gid_map"),
                    &format!("{} {} 1\n", from.1, to.1),
                )
            })
            .and_then(|()| {
                fs::File::open(format!("/proc/{raw}/ns/user")).map_err(Failure::at(step))
            });
            let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(pidfd.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            );
            namespace.map(OwnedFd::from)
        }
    }
}

fn write(path: &str, content: &str) -> Result<(), Failure> {
    // One write: these files take their content whole or not at all.
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .map_err(Failure::at("mapping the sandbox's user"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_given_only_where_it_exists() {
        let whole = "         0          0 4294967295\n";
        let rootless = "         0       1000          1\n         1     100000      65536\n";
        assert!(is_mapped(whole, FIRST_SANDBOX_UID));
        assert!(!is_mapped(rootless, FIRST_SANDBOX_UID));
        assert!(is_mapped(rootless, 65534));
        for garbage in ["", "a b c", "1 2", "0 0 18446744073709551616"] {
            assert!(!is_mapped(garbage, 7), "{garbage}");
        }
        assert!(is_mapped("18446744073709551615 0 5\n0 0 10", 7));
    }
}
