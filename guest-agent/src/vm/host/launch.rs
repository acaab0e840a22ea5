//! Launching QEMU: what it is given, and what is left of it afterwards.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Child;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use attestation::Hex;
use casemate::enforcement::Item;
use casemate::isolation::microvm::kernel::unpacked;
use casemate::isolation::microvm::machine::{Confidential, descriptor};
use casemate::isolation::microvm::qmp::Qmp;
use casemate::isolation::microvm::{Image, Machine, Origin, warden};
use rustix::fs::{MemfdFlags, SealFlags};
use sha2::{Digest, Sha256};

use super::{VmError, measurement};

/// Lines of the console that are kept for an error message, and how long each may be.
const LINES: usize = 48;
const MAX_LINE: u64 = 400;
/// How long QEMU may hold up whoever writes to the channel.
const WRITE_DEADLINE: Duration = Duration::from_secs(60);
/// Most bytes of a kernel.
const MAX_KERNEL: u64 = 512 << 20;

/// What a machine is made of, as its log has it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Digests {
    /// Of the file that was named, unpacked or not.
    pub(super) kernel: [u8; 32],
    pub(super) image: [u8; 32],
    pub(super) image_size: u64,
}

impl Digests {
    /// Reads everything, and keeps nothing of it.
    pub(super) fn of(image: &Image, kernel: &Path) -> Result<Self, VmError> {
        thread::scope(|scope| {
            let kernel = scope.spawn(|| Ok(Sha256::digest(read(kernel)?).into()));
            let mut counted = Counted(0);
            let image = image.write(&mut counted)?;
            Ok(Self {
                kernel: joined(kernel)?,
                image,
                image_size: counted.0,
            })
        })
    }
}

/// What a machine boots from: in memory, sealed, so that what is measured is what is booted.
pub(super) struct Files {
    pub(super) digests: Digests,
    kernel: File,
    image: File,
    firmware: Option<File>,
}

impl Files {
    /// Reads everything. With `unpack` the kernel is unpacked here, if it can be, and not in the guest, whom it
    /// takes a quarter of its boot.
    pub(super) fn prepare(
        image: &Image,
        kernel: &Path,
        firmware: Option<&Path>,
        unpack: bool,
    ) -> Result<Self, VmError> {
        let firmware = firmware
            .map(|path| sealed("firmware", &read(path)?))
            .transpose()?;
        thread::scope(|scope| {
            let kernel = scope.spawn(|| {
                let packed = read(kernel)?;
                let unpacked = unpack.then(|| unpacked(&packed)).flatten();
                let digest = Sha256::digest(&packed).into();
                Ok((sealed("kernel", &unpacked.unwrap_or(packed))?, digest))
            });
            let mut sealed_image = memory("image")?;
            let digest = image.write(&mut io::BufWriter::new(&mut sealed_image))?;
            let image_size = sealed_image.stream_position()?;
            seal(&sealed_image)?;
            let (kernel, kernel_digest) = joined(kernel)?;
            Ok(Self {
                digests: Digests {
                    kernel: kernel_digest,
                    image: digest,
                    image_size,
                },
                kernel,
                image: sealed_image,
                firmware,
            })
        })
    }

    /// What an SEV-SNP guest will be measured as; nothing is known of the others before.
    pub(super) fn expected(&self, machine: &Machine) -> Result<Option<Hex<48>>, VmError> {
        if machine.confidential.is_none() {
            return Ok(None);
        }
        let Some(firmware) = &self.firmware else {
            return Err(VmError::Missing {
                what: "firmware for a confidential guest",
                how: "name OVMF, built for AmdSev or TDX, with --firmware",
            });
        };
        if !matches!(machine.confidential, Some(Confidential::Snp(_))) {
            return Ok(None);
        }
        let [firmware, kernel, image] = [firmware, &self.kernel, &self.image].map(all_of);
        Ok(Some(measurement(machine, &firmware?, &kernel?, &image?)?))
    }
}

/// What a thread that reads the kernel came to.
fn joined<T>(thread: thread::ScopedJoinHandle<'_, Result<T, VmError>>) -> Result<T, VmError> {
    let gone = || io::Error::other("the thread that reads the kernel ended");
    thread.join().map_err(|_| gone())?
}

/// Takes everything, and knows how much it was.
struct Counted(u64);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Everything in a file, wherever somebody else is reading it.
fn all_of(file: &File) -> io::Result<Vec<u8>> {
    let size = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

fn read(path: &Path) -> Result<Vec<u8>, VmError> {
    let unreadable = |source| VmError::File {
        path: path.into(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_KERNEL)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    Ok(bytes)
}

/// Bytes that nobody can change any more.
fn sealed(name: &str, bytes: &[u8]) -> Result<File, VmError> {
    let mut file = memory(name)?;
    file.write_all(bytes)?;
    seal(&file)?;
    Ok(file)
}

fn memory(name: &str) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    Ok(rustix::fs::memfd_create(name, flags)?.into())
}

fn seal(file: &File) -> io::Result<()> {
    let all = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    Ok(rustix::fs::fcntl_add_seals(file, all)?)
}

/// The program, if it is here.
pub(super) fn qemu() -> Result<&'static str, VmError> {
    match Path::new(warden::QEMU).exists() {
        true => Ok(warden::QEMU),
        false => Err(VmError::Missing {
            what: "QEMU",
            how: "install qemu-system-x86, version 9.1 or later for SEV-SNP",
        }),
    }
}

/// A machine that runs. Dropping it kills QEMU, and waits until it is gone.
pub(super) struct Launched {
    child: Child,
    pub(super) qmp: Qmp,
    pub(super) channel: UnixStream,
    pub(super) confined: Vec<Item>,
    console: Console,
    errors: Console,
}

/// What a template keeps, in files: see [`Template`](super::template::Template).
#[derive(Clone, Copy)]
pub(super) struct Kept<'k> {
    pub(super) memory: &'k File,
    pub(super) devices: &'k File,
}

/// Launches it; it does not wait for the guest. A clone goes on from what is kept, and needs no files; a
/// template needs both.
pub(super) fn launch(
    qemu: &str,
    machine: &Machine,
    files: Option<&Files>,
    kept: Option<Kept<'_>>,
) -> Result<Launched, VmError> {
    let (channel, their_channel) = UnixStream::pair()?;
    let (control, their_control) = UnixStream::pair()?;
    let (console, their_console) = UnixStream::pair()?;
    let (errors, their_errors) = io::pipe()?;
    channel.set_write_timeout(Some(WRITE_DEADLINE))?;
    let mut descriptors = vec![
        (descriptor::CHANNEL, their_channel.as_fd()),
        (descriptor::CONTROL, their_control.as_fd()),
        (descriptor::CONSOLE, their_console.as_fd()),
    ];
    if let Some(files) = files {
        descriptors.push((descriptor::KERNEL, files.kernel.as_fd()));
        descriptors.push((descriptor::INITRD, files.image.as_fd()));
        if let Some(firmware) = &files.firmware {
            descriptors.push((descriptor::FIRMWARE, firmware.as_fd()));
        }
    }
    let mut reopened = Vec::new();
    if let Some(Kept { memory, devices }) = kept {
        descriptors.push((descriptor::MEMORY, memory.as_fd()));
        descriptors.push((descriptor::DEVICES, devices.as_fd()));
        let writes = machine.origin == Origin::Template;
        reopened = [descriptor::MEMORY, descriptor::DEVICES]
            .map(|number| (number, writes))
            .to_vec();
    }
    let (child, confined) = warden::start(
        qemu,
        &machine.arguments(),
        &descriptors,
        &reopened,
        their_errors.into(),
    )?;
    drop((their_channel, their_control, their_console));
    // From here on dropping it ends it.
    let mut child = Some(child);
    let errors = Console::of(errors)?;
    let qmp = Qmp::open(control).and_then(|mut qmp| {
        if machine.origin == Origin::Clone {
            qmp.go_on_from(descriptor::DEVICES)?;
        }
        Ok(qmp)
    });
    let qmp = match qmp {
        Ok(qmp) => qmp,
        Err(error) => {
            if let Some(mut child) = child.take() {
                let _ = child.kill();
                let _ = child.wait();
            }
            let said = errors.last_words();
            return Err(match said.is_empty() {
                true => error.into(),
                false => VmError::Lost { console: said },
            });
        }
    };
    let Some(child) = child else {
        return Err(io::Error::from(io::ErrorKind::NotFound).into());
    };
    Ok(Launched {
        child,
        qmp,
        channel,
        confined,
        console: Console::of(console)?,
        errors,
    })
}

impl Launched {
    /// Process id of QEMU.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until QEMU has ended by itself; kills it when that takes too long. True if it had to.
    pub(super) fn end(&mut self, patience: Duration) -> bool {
        let steps = patience.as_millis() / 10;
        for _ in 0..steps {
            match self.child.try_wait() {
                Ok(Some(_)) => return false,
                Ok(None) => thread::sleep(Duration::from_millis(10)),
                Err(_) => break,
            }
        }
        self.kill();
        true
    }

    /// Kills QEMU, and waits until it is gone.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// What QEMU and the guest said last; once QEMU is gone.
    pub(super) fn last_words(mut self) -> String {
        self.kill();
        let said = [&self.errors, &self.console].map(Console::last_words);
        said.concat()
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The last lines of something that is read all the time.
struct Console {
    lines: Arc<Mutex<VecDeque<String>>>,
    reader: Mutex<Option<JoinHandle<()>>>,
}

impl Console {
    fn of(reader: impl Read + Send + 'static) -> io::Result<Self> {
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let kept = Arc::clone(&lines);
        let follow = move || {
            let mut reader = BufReader::new(reader);
            loop {
                let mut line = Vec::new();
                match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
                let text = String::from_utf8_lossy(&line);
                let text = vault::audit::Escaped(text.trim_end()).to_string();
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() == LINES {
                    kept.pop_front();
                }
                if !text.is_empty() {
                    kept.push_back(text);
                }
            }
        };
        let reader = thread::Builder::new()
            .name("console".into())
            .spawn(follow)?;
        Ok(Self {
            lines,
            reader: Mutex::new(Some(reader)),
        })
    }

    /// Whoever writes is gone, so what was written is read to its end.
    fn last_words(&self) -> String {
        let reader = self
            .reader
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(reader) = reader {
            let _ = reader.join();
        }
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().map(|line| format!("\n  | {line}")).collect()
    }
}
