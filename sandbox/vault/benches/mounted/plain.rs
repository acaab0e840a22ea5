//! The front end without a cipher: the loop of `vault::fuse` over plain files in one flat directory.
//!
//! Wire format, buffers, threads and answers are those of the vault's server; behind them are pread(2) and
//! pwrite(2) on the disk below, where the vault opens, seals and keeps what is written. Only what this bench
//! asks of a file system is here.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, epoll, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::listeners::Listeners;
use crate::wire::{self, Attr, Operation, Out, Request};

const ROOT: u64 = 1;
const VALID: Duration = Duration::from_secs(1);
/// As many as a volume has.
const WORKERS: usize = 4;
const DEVICE: u64 = 0;
const WAKE: u64 = 1;

/// The folder being served, until dropped.
pub struct Server {
    inner: Arc<Inner>,
    threads: Vec<JoinHandle<()>>,
}

struct Inner {
    folder: PathBuf,
    wake: OwnedFd,
    listeners: Listeners,
    nodes: Mutex<Nodes>,
}

#[derive(Default)]
struct Nodes {
    names: HashMap<String, u64>,
    files: HashMap<u64, Arc<File>>,
    next: u64,
}

pub fn serve(device: OwnedFd, folder: PathBuf) -> Server {
    let flags = fcntl_getfl(&device).unwrap();
    poll(&mut [PollFd::new(&device, PollFlags::IN)], None).unwrap();
    handshake(&device);
    fcntl_setfl(&device, flags | OFlags::NONBLOCK).unwrap();
    let mut nodes = Nodes {
        next: ROOT + 1,
        ..Nodes::default()
    };
    for entry in fs::read_dir(&folder).unwrap() {
        let entry = entry.unwrap();
        let file = File::options().read(true).write(true).open(entry.path());
        nodes.add(entry.file_name().into_string().unwrap(), file.unwrap());
    }
    let inner = Arc::new(Inner {
        folder,
        wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap(),
        listeners: Listeners::default(),
        nodes: Mutex::new(nodes),
    });
    let device = Arc::new(device);
    let threads = (0..WORKERS).map(|_| {
        let (inner, device) = (Arc::clone(&inner), Arc::clone(&device));
        std::thread::spawn(move || inner.work(&device))
    });
    Server {
        threads: threads.collect(),
        inner,
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        rustix::io::write(&self.inner.wake, &1u64.to_ne_bytes()).unwrap();
        self.inner.listeners.stop();
        self.threads.drain(..).for_each(|t| t.join().unwrap());
    }
}

fn handshake(device: &OwnedFd) {
    let mut buffer = vec![0; wire::REQUEST_LEN];
    let len = rustix::io::read(device, &mut buffer[..]).unwrap();
    let request = wire::parse(&buffer[..len]).unwrap();
    let Operation::Init {
        major,
        minor,
        flags,
    } = request.operation
    else {
        panic!("the kernel begins with INIT")
    };
    let out = wire::init(major, minor, flags, true).unwrap();
    send(device, request.unique, 0, out.as_slice()).unwrap();
}

impl Nodes {
    fn add(&mut self, name: String, file: File) -> u64 {
        let node = self.next;
        self.next += 1;
        self.names.insert(name, node);
        self.files.insert(node, Arc::new(file));
        node
    }
}

impl Inner {
    fn work(&self, device: &OwnedFd) {
        let mut request = vec![0; wire::WRITE_REQUEST_LEN];
        let mut data = vec![0; wire::MAX_READ];
        let room = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let one = epoll::EventFlags::IN | epoll::EventFlags::EXCLUSIVE;
        epoll::add(&room, device, epoll::EventData::new_u64(DEVICE), one).unwrap();
        let all = epoll::EventFlags::IN;
        epoll::add(&room, &self.wake, epoll::EventData::new_u64(WAKE), all).unwrap();
        while self.listeners.listen(|| ()) {
            if !self.take_one(device, &room, &mut request, &mut data) {
                self.listeners.stop();
            }
        }
    }

    /// Listens until there is a request, and answers it; `false` once there will be none.
    fn take_one(
        &self,
        device: &OwnedFd,
        room: &OwnedFd,
        request: &mut [u8],
        data: &mut [u8],
    ) -> bool {
        loop {
            match rustix::io::read(device, &mut request[..]) {
                Ok(len) => {
                    self.listeners.took_one();
                    let parsed = wire::parse(&request[..len]).unwrap();
                    return self.answer(device, parsed, data).is_some();
                }
                Err(Errno::AGAIN) if self.listeners.are_awake() => std::thread::yield_now(),
                Err(Errno::AGAIN) => {
                    let mut events = [const { MaybeUninit::uninit() }; 2];
                    let (events, _) = epoll::wait(room, &mut events[..], None).unwrap();
                    if events.iter().any(|event| event.data.u64() == WAKE) {
                        return false;
                    }
                }
                Err(Errno::INTR | Errno::NOENT) => {}
                Err(_) => return false,
            }
        }
    }

    fn answer(&self, device: &OwnedFd, request: Request<'_>, data: &mut [u8]) -> Option<()> {
        let unique = request.unique;
        let sent = match request.operation {
            Operation::Silent | Operation::Forget { .. } | Operation::ForgetMany { .. } => {
                return Some(());
            }
            Operation::Read { offset, size, .. } => {
                let data = &mut data[..size as usize];
                match self.read(request.node, data, offset) {
                    Ok(read) => send(device, unique, 0, &data[..read]),
                    Err(errno) => send(device, unique, -errno.raw_os_error(), &[]),
                }
            }
            _ => match self.reply(&request) {
                Ok(out) => send(device, unique, 0, out.as_slice()),
                Err(errno) => send(device, unique, -errno.raw_os_error(), &[]),
            },
        };
        matches!(sent, Ok(()) | Err(Errno::NOENT)).then_some(())
    }

    fn read(&self, node: u64, data: &mut [u8], offset: u64) -> Result<usize, Errno> {
        let file = self.file(node)?;
        let mut done = 0;
        while done < data.len() {
            match file.read_at(&mut data[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(_) => return Err(Errno::IO),
            }
        }
        Ok(done)
    }

    fn reply(&self, request: &Request<'_>) -> Result<Out, Errno> {
        let node = request.node;
        let failed = |_| Errno::IO;
        match request.operation {
            Operation::Lookup { name } => {
                let name = std::str::from_utf8(name).map_err(|_| Errno::ILSEQ)?;
                let node = self.nodes.lock().unwrap().names.get(name).copied();
                Ok(wire::entry(&self.attr(node.ok_or(Errno::NOENT)?)?, VALID))
            }
            Operation::GetAttr => Ok(wire::attributes(&self.attr(node)?, VALID)),
            Operation::SetAttr(set) => {
                if let Some(len) = set.change().len {
                    self.file(node)?.set_len(len).map_err(failed)?;
                }
                Ok(wire::attributes(&self.attr(node)?, VALID))
            }
            Operation::Create { name, .. } => {
                let name = std::str::from_utf8(name).map_err(|_| Errno::ILSEQ)?;
                let mut options = File::options();
                let options = options.read(true).write(true).create(true);
                let file = options.open(self.folder.join(name)).map_err(failed)?;
                let node = self.nodes.lock().unwrap().add(name.to_owned(), file);
                Ok(wire::created(&self.attr(node)?, VALID))
            }
            Operation::Unlink { name } => {
                let name = std::str::from_utf8(name).map_err(|_| Errno::ILSEQ)?;
                self.nodes.lock().unwrap().names.remove(name);
                fs::remove_file(self.folder.join(name)).map_err(failed)?;
                Ok(Out::default())
            }
            Operation::Open { .. } => Ok(wire::opened_as_cached()),
            Operation::Write { offset, data } => {
                self.file(node)?
                    .write_all_at(data, offset)
                    .map_err(failed)?;
                Ok(wire::written(data.len()))
            }
            Operation::Sync => {
                self.file(node)?.sync_data().map_err(failed)?;
                Ok(Out::default())
            }
            Operation::Release { .. } => Ok(Out::default()),
            Operation::StatFs => Ok(wire::statistics(1 << 40, 1 << 40, 1)),
            _ => Err(Errno::NOSYS),
        }
    }

    fn file(&self, node: u64) -> Result<Arc<File>, Errno> {
        let nodes = self.nodes.lock().unwrap();
        nodes.files.get(&node).cloned().ok_or(Errno::NOENT)
    }

    fn attr(&self, node: u64) -> Result<Attr, Errno> {
        let (size, mode) = match node {
            ROOT => (0, 0o040_755),
            _ => (
                self.file(node)?.metadata().map_err(|_| Errno::IO)?.size(),
                0o100_644,
            ),
        };
        let (user, group) = (rustix::process::getuid(), rustix::process::getgid());
        Ok(Attr {
            node,
            size,
            modified: 0,
            changed: 0,
            mode,
            links: 1,
            owner: (user.as_raw(), group.as_raw()),
        })
    }
}

fn send(device: &OwnedFd, unique: u64, error: i32, body: &[u8]) -> Result<(), Errno> {
    let header = wire::header(unique, error, body.len());
    rustix::io::writev(device, &[IoSlice::new(&header), IoSlice::new(body)]).map(|_| ())
}
