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
use casemate::isolation::microvm::machine::{Confidential, descriptor};
use casemate::isolation::microvm::qmp::Qmp;
use casemate::isolation::microvm::{Image, Machine, warden};
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

/// What a machine is launched with: in memory, sealed, so that what is measured is what is booted.
pub(super) struct Files {
    pub(super) kernel: File,
    pub(super) kernel_digest: [u8; 32],
    pub(super) image: File,
    pub(super) image_digest: [u8; 32],
    pub(super) image_size: u64,
    pub(super) firmware: Option<File>,
}

impl Files {
    pub(super) fn prepare(
        image: &Image,
        kernel: &Path,
        firmware: Option<&Path>,
    ) -> Result<Self, VmError> {
        let (kernel, kernel_digest) = sealed("kernel", kernel)?;
        let firmware = firmware.map(|path| sealed("firmware", path)).transpose()?;
        let mut sealed_image = memory("image")?;
        let image_digest = image.write(&mut io::BufWriter::new(&mut sealed_image))?;
        let image_size = sealed_image.stream_position()?;
        seal(&sealed_image)?;
        Ok(Self {
            kernel,
            kernel_digest,
            image: sealed_image,
            image_digest,
            image_size,
            firmware: firmware.map(|(file, _)| file),
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

/// Everything in a file, wherever somebody else is reading it.
fn all_of(file: &File) -> io::Result<Vec<u8>> {
    let size = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mut bytes = vec![0; size];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

/// A copy of a file that nobody can change any more, and its SHA-256.
fn sealed(name: &str, path: &Path) -> Result<(File, [u8; 32]), VmError> {
    let unreadable = |source| VmError::File {
        path: path.into(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_KERNEL)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    let mut copy = memory(name)?;
    copy.write_all(&bytes)?;
    seal(&copy)?;
    Ok((copy, Sha256::digest(&bytes).into()))
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

/// Launches it; it does not wait for the guest.
pub(super) fn launch(qemu: &str, machine: &Machine, files: &Files) -> Result<Launched, VmError> {
    let (channel, their_channel) = UnixStream::pair()?;
    let (control, their_control) = UnixStream::pair()?;
    let (console, their_console) = UnixStream::pair()?;
    let (errors, their_errors) = io::pipe()?;
    channel.set_write_timeout(Some(WRITE_DEADLINE))?;
    let mut descriptors = vec![
        (descriptor::CHANNEL, their_channel.as_fd()),
        (descriptor::CONTROL, their_control.as_fd()),
        (descriptor::KERNEL, files.kernel.as_fd()),
        (descriptor::INITRD, files.image.as_fd()),
        (descriptor::CONSOLE, their_console.as_fd()),
    ];
    if let Some(firmware) = &files.firmware {
        descriptors.push((descriptor::FIRMWARE, firmware.as_fd()));
    }
    let (child, confined) = warden::start(
        qemu,
        &machine.arguments(),
        &descriptors,
        their_errors.into(),
    )?;
    drop((their_channel, their_control, their_console));
    // From here on dropping it ends it.
    let mut child = Some(child);
    let errors = Console::of(errors)?;
    let qmp = Qmp::open(control);
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
