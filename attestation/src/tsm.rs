//! Reports from the kernel, whatever the TEE.
//!
//! Follows "configfs-tsm-report" in the Linux kernel's ABI documentation. A directory made below
//! the root is one request:
//!
//! ```text
//! mkdir name ▶ write inblob ▶ read outblob, auxblob, provider ▶ read generation ▶ rmdir name
//! ```
//!
//! `generation` counts the writes. If it is not the number of our own, somebody else wrote too, and
//! what was read is thrown away and asked for again in a new directory.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::encoding::Hex;

/// Where the kernel keeps report requests.
pub const TSM_ROOT: &str = "/sys/kernel/config/tsm/report";

const ATTEMPTS: u32 = 5;
/// Begins the names of our requests, followed by the process id.
const PREFIX: &str = "casemate-";
/// The kernel limits outblob to 32 KiB and auxblob to 16 KiB.
const MAX_BLOB: u64 = 64 * 1024;

/// A report as the kernel hands it out.
#[derive(Clone, PartialEq, Eq)]
pub struct TsmReport {
    /// The kernel's driver: `sev_guest`, `tdx_guest`, …
    pub provider: String,
    /// The report or quote.
    pub outblob: Vec<u8>,
    /// What else the host handed over, for `sev_guest` a certificate table; may be empty.
    pub auxblob: Vec<u8>,
}

impl std::fmt::Debug for TsmReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TsmReport")
            .field("provider", &self.provider)
            .field("outblob", &self.outblob.len())
            .field("auxblob", &self.auxblob.len())
            .finish()
    }
}

/// Why the kernel gave no report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TsmError {
    /// A file of a request could not be used.
    #[error("cannot {step} in the report tree `{root}`")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The tree.
        root: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Others kept interfering with our requests.
    #[error("reports kept being changed by another process")]
    Contended,
    /// A file has other content than the kernel writes.
    #[error("`{0}` is not as the kernel writes it")]
    Malformed(&'static str),
    /// The operating system gives no random numbers.
    #[error("no random numbers for the name of a request")]
    Random,
}

/// The tree of report requests.
#[derive(Clone)]
pub struct TsmReports {
    tree: Arc<dyn Tree>,
}

impl TsmReports {
    /// The tree of this machine, at [`TSM_ROOT`].
    #[must_use]
    pub fn of_this_machine() -> Self {
        Self::at(PathBuf::from(TSM_ROOT))
    }

    /// A tree elsewhere.
    #[must_use]
    pub fn at(root: PathBuf) -> Self {
        Self {
            tree: Arc::new(Configfs(root)),
        }
    }

    /// Whether the kernel offers reports here.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.tree.list().is_ok()
    }

    /// Removes requests that processes of ours left behind when they died.
    ///
    /// Does what it can; a request that stays does no harm but occupy memory.
    pub fn remove_stale(&self) {
        for name in self.tree.list().unwrap_or_default() {
            let process = name
                .strip_prefix(PREFIX)
                .and_then(|rest| rest.split('-').next());
            let process = process.and_then(|id| id.parse::<u32>().ok());
            if process.is_some_and(|id| !Path::new("/proc").join(id.to_string()).exists()) {
                let _ = self.tree.remove(&name);
            }
        }
    }

    /// The kernel's driver: `sev_guest`, `tdx_guest`, …
    ///
    /// # Errors
    ///
    /// [`TsmError::Io`] or [`TsmError::Malformed`].
    pub fn provider(&self) -> Result<String, TsmError> {
        Request::new(&*self.tree)
            .and_then(|request| request.text("provider"))
            .map_err(|fault| self.error(fault))
    }

    /// Asks for a report bound to `inblob`.
    ///
    /// # Errors
    ///
    /// [`TsmError::Contended`] after five attempts that others interfered with, [`TsmError::Io`] at
    /// once for anything else.
    pub fn report(&self, inblob: &[u8; 64]) -> Result<TsmReport, TsmError> {
        for _ in 0..ATTEMPTS {
            match self.attempt(inblob) {
                Ok(report) => return Ok(report),
                Err(Fault::Interference) => {}
                Err(fault) => return Err(self.error(fault)),
            }
        }
        Err(TsmError::Contended)
    }

    fn attempt(&self, inblob: &[u8; 64]) -> Result<TsmReport, Fault> {
        let request = Request::new(&*self.tree)?;
        self.tree
            .write(&request.name, "inblob", inblob)
            .map_err(|error| Fault::io("write `inblob`", error))?;
        let report = TsmReport {
            outblob: request.bytes("outblob")?,
            auxblob: request.optional_bytes("auxblob")?,
            provider: request.text("provider")?,
        };
        let generation = request.text("generation")?;
        match generation.parse::<u64>() {
            // One write, by us.
            Ok(1) => Ok(report),
            Ok(_) => Err(Fault::Interference),
            Err(_) => Err(Fault::Other(TsmError::Malformed("generation"))),
        }
    }

    fn error(&self, fault: Fault) -> TsmError {
        match fault {
            Fault::Interference => TsmError::Contended,
            Fault::Io(step, source) => TsmError::Io {
                step,
                root: self.tree.root(),
                source,
            },
            Fault::Other(error) => error,
        }
    }
}

impl std::fmt::Debug for TsmReports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TsmReports")
            .field(&self.tree.root())
            .finish()
    }
}

/// One directory, removed again when dropped.
struct Request<'a> {
    tree: &'a dyn Tree,
    name: String,
}

impl<'a> Request<'a> {
    fn new(tree: &'a dyn Tree) -> Result<Self, Fault> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|_| Fault::Other(TsmError::Random))?;
        let name = format!("{PREFIX}{}-{}", std::process::id(), Hex(random));
        tree.make(&name)
            .map_err(|error| Fault::io("make a request", error))?;
        Ok(Self { tree, name })
    }

    fn bytes(&self, file: &'static str) -> Result<Vec<u8>, Fault> {
        self.tree
            .read(&self.name, file)
            .map_err(|error| Fault::io(reading(file), error))
    }

    /// Empty if the provider has no such file.
    fn optional_bytes(&self, file: &'static str) -> Result<Vec<u8>, Fault> {
        match self.tree.read(&self.name, file) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            other => other.map_err(|error| Fault::io(reading(file), error)),
        }
    }

    /// One short line.
    fn text(&self, file: &'static str) -> Result<String, Fault> {
        let malformed = || Fault::Other(TsmError::Malformed(file));
        let text = String::from_utf8(self.bytes(file)?).map_err(|_| malformed())?;
        let line = text.strip_suffix('\n').unwrap_or(&text);
        if line.is_empty() || line.len() > 64 || line.contains(|c: char| c.is_control()) {
            return Err(malformed());
        }
        Ok(line.to_owned())
    }
}

impl Drop for Request<'_> {
    fn drop(&mut self) {
        // What cannot be removed now is found by `remove_stale` later.
        let _ = self.tree.remove(&self.name);
    }
}

fn reading(file: &str) -> &'static str {
    match file {
        "outblob" => "read `outblob`",
        "auxblob" => "read `auxblob`",
        "provider" => "read `provider`",
        _ => "read `generation`",
    }
}

/// What went wrong with one attempt.
enum Fault {
    /// Another process got in between; a new attempt may succeed.
    Interference,
    Io(&'static str, io::Error),
    Other(TsmError),
}

impl Fault {
    fn io(step: &'static str, error: io::Error) -> Self {
        match error.kind() {
            // EBUSY: written too often to count. EWOULDBLOCK: written while being read.
            ErrorKind::ResourceBusy | ErrorKind::WouldBlock | ErrorKind::Interrupted => {
                Self::Interference
            }
            _ => Self::Io(step, error),
        }
    }
}

/// What is asked of the file system; the kernel's is [`Configfs`].
trait Tree: Send + Sync {
    fn root(&self) -> PathBuf;
    fn list(&self) -> io::Result<Vec<String>>;
    fn make(&self, name: &str) -> io::Result<()>;
    fn write(&self, name: &str, file: &str, bytes: &[u8]) -> io::Result<()>;
    fn read(&self, name: &str, file: &str) -> io::Result<Vec<u8>>;
    fn remove(&self, name: &str) -> io::Result<()>;
}

struct Configfs(PathBuf);

impl Tree for Configfs {
    fn root(&self) -> PathBuf {
        self.0.clone()
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn make(&self, name: &str) -> io::Result<()> {
        // Only we may write to our request.
        DirBuilder::new().mode(0o700).create(self.0.join(name))
    }

    fn write(&self, name: &str, file: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.0.join(name).join(file);
        let mut file = OpenOptions::new().write(true).open(path)?;
        // The kernel takes a blob in one write and stores it when the file is closed.
        let written = file.write(bytes)?;
        if written != bytes.len() {
            return Err(ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    fn read(&self, name: &str, file: &str) -> io::Result<Vec<u8>> {
        let file = OpenOptions::new()
            .read(true)
            .open(self.0.join(name).join(file))?;
        let mut bytes = Vec::new();
        file.take(MAX_BLOB + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_BLOB {
            return Err(ErrorKind::FileTooLarge.into());
        }
        Ok(bytes)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_dir(self.0.join(name))
    }
}

#[cfg(test)]
#[path = "tsm_tests.rs"]
mod tests;
