//! What a guest boots into: an initial RAM disk with `/init`, and what the policy's root file system needs.
//!
//! The same inputs give the same bytes: names in order, times and owners zero, nothing of the host but
//! what was asked for. So its digest, and the launch measurement that covers it, can be known before.

mod archive;
pub(super) mod elf;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

pub use archive::{Archive, ArchiveError, Archived, MAX_ENTRIES, MAX_NAME, unpack};

/// Where the dynamic linker looks, besides `$ORIGIN` and the like, which are not followed.
const LIBRARIES: [&str; 8] = [
    "/lib/x86_64-linux-gnu",
    "/usr/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib64",
    "/usr/lib64",
    "/lib",
    "/usr/lib",
];
/// Most programs and libraries that one program leads to.
const MAX_DEPTH: usize = 64;
/// Most bytes of a program or library.
const MAX_PROGRAM: u64 = 1 << 30;
/// Bytes at the beginning of a program that say what of it is loaded.
const HEAD: u64 = 64 << 10;

/// Why an image cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// A file that belongs into it cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A program needs a library that is not there.
    #[error("`{}` needs the library `{library}`, which is not on this host", program.display())]
    NoLibrary {
        /// Which program.
        program: PathBuf,
        /// Which library.
        library: String,
    },
    /// A file is of a kind that an image cannot hold.
    #[error("`{}` is neither a file, nor a folder, nor a link", .0.display())]
    Kind(PathBuf),
    /// A place inside is not absolute, or leaves the root.
    #[error("`{0}` is no place in an image")]
    Place(String),
    /// Two different things would be in one place.
    #[error("two things would be at `{0}`")]
    Twice(String),
    /// The image cannot be written.
    #[error("the image cannot be written")]
    Write(#[from] io::Error),
    /// It does not fit the format.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// An image that is being put together.
#[derive(Debug, Default)]
pub struct Image {
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Folder(u32),
    /// A file of the host, of which only what is loaded is taken if it is a program.
    File(PathBuf, u32),
    Bytes(Vec<u8>, u32),
    Link(String),
    /// The console, without which `/init` would begin without stdin, stdout and stderr.
    Console,
}

impl Image {
    /// Begins an image with this program as its `/init`.
    ///
    /// # Errors
    ///
    /// [`ImageError`].
    pub fn new(init: &Path) -> Result<Self, ImageError> {
        let mut image = Self::default();
        for folder in ["/dev", "/proc", "/sys", "/run", "/tmp", "/etc"] {
            image.put(folder, Entry::Folder(0o755))?;
        }
        image.put("/dev/console", Entry::Console)?;
        image.put("/init", Entry::File(init.into(), 0o755))?;
        image.needs_of(init, 0)?;
        Ok(image)
    }

    /// Adds a program of the host, at the same path, with all that it needs to be loaded.
    ///
    /// # Errors
    ///
    /// [`ImageError`].
    pub fn program(&mut self, path: &Path) -> Result<(), ImageError> {
        self.file(path, 0)
    }

    /// Adds a file, or a folder with all that is in it, at this place inside.
    ///
    /// # Errors
    ///
    /// [`ImageError`].
    pub fn tree(&mut self, from: &Path, at: &str) -> Result<(), ImageError> {
        let read = |source| ImageError::Read {
            path: from.into(),
            source,
        };
        let metadata = fs::symlink_metadata(from).map_err(read)?;
        let mode = metadata.permissions().mode() & 0o777;
        if metadata.is_symlink() {
            let target = fs::read_link(from).map_err(read)?;
            return self.put(at, Entry::Link(text(&target)?));
        }
        if metadata.is_file() {
            return self.put(at, Entry::File(from.into(), mode));
        }
        if !metadata.is_dir() {
            return Err(ImageError::Kind(from.into()));
        }
        self.put(at, Entry::Folder(mode))?;
        for entry in fs::read_dir(from).map_err(read)? {
            let name = text(Path::new(&entry.map_err(read)?.file_name()))?;
            let inside = format!("{}/{name}", at.trim_end_matches('/'));
            self.tree(&from.join(&name), &inside)?;
        }
        Ok(())
    }

    /// Adds a file with these bytes.
    ///
    /// # Errors
    ///
    /// [`ImageError::Place`] and [`ImageError::Twice`].
    pub fn bytes(&mut self, at: &str, bytes: impl Into<Vec<u8>>) -> Result<(), ImageError> {
        self.put(at, Entry::Bytes(bytes.into(), 0o644))
    }

    /// Adds an empty folder.
    ///
    /// # Errors
    ///
    /// As [`Image::bytes`].
    pub fn folder(&mut self, at: &str) -> Result<(), ImageError> {
        self.put(at, Entry::Folder(0o755))
    }

    /// Writes the image; gives its SHA-256.
    ///
    /// # Errors
    ///
    /// [`ImageError::Read`] and [`ImageError::Write`].
    pub fn write(&self, out: &mut impl Write) -> Result<[u8; 32], ImageError> {
        let mut out = Digested {
            out,
            digest: Sha256::new(),
        };
        let mut archive = Archive::new(&mut out);
        for (at, entry) in &self.entries {
            let name = at.trim_start_matches('/');
            match entry {
                Entry::Folder(mode) => archive.folder(name, *mode)?,
                Entry::Bytes(bytes, mode) => archive.file(name, *mode, bytes)?,
                Entry::Link(target) => archive.link(name, target)?,
                Entry::Console => archive.console(name)?,
                Entry::File(path, mode) => {
                    archive.file(name, *mode, &read(path)?)?;
                }
            }
        }
        archive.finish()?;
        Ok(out.digest.finalize().into())
    }

    /// Adds a path of the host with every link on the way, and what a program needs.
    fn file(&mut self, path: &Path, depth: usize) -> Result<(), ImageError> {
        if depth > MAX_DEPTH {
            return Err(ImageError::Kind(path.into()));
        }
        let mut seen = PathBuf::from("/");
        let mut parts = path.components().peekable();
        while let Some(part) = parts.next() {
            match part {
                Component::Normal(name) => seen.push(name),
                Component::ParentDir => {
                    seen.pop();
                }
                _ => continue,
            }
            let unread = |source| ImageError::Read {
                path: path.into(),
                source,
            };
            let metadata = fs::symlink_metadata(&seen).map_err(unread)?;
            let at = text(&seen)?;
            if metadata.is_symlink() {
                let target = fs::read_link(&seen).map_err(unread)?;
                self.put(&at, Entry::Link(text(&target)?))?;
                let rest: PathBuf = parts.collect();
                let folder = seen.parent().unwrap_or(Path::new("/"));
                return self.file(&folder.join(target).join(rest), depth + 1);
            }
            if metadata.is_dir() {
                self.put(&at, Entry::Folder(0o755))?;
                continue;
            }
            if !metadata.is_file() {
                return Err(ImageError::Kind(seen));
            }
            let new = Entry::File(seen.clone(), metadata.permissions().mode() & 0o777);
            if self.entries.get(&at) == Some(&new) {
                return Ok(());
            }
            self.put(&at, new)?;
            return self.needs_of(&seen, depth);
        }
        Ok(())
    }

    /// Adds what a program or script needs to be started.
    fn needs_of(&mut self, program: &Path, depth: usize) -> Result<(), ImageError> {
        let bytes = read(program)?;
        if let Some(interpreter) = elf::script_interpreter(&bytes) {
            return self.file(Path::new(&interpreter), depth + 1);
        }
        let Some(needs) = elf::needs(&bytes) else {
            return Ok(());
        };
        if let Some(interpreter) = needs.interpreter {
            self.file(Path::new(&interpreter), depth + 1)?;
        }
        for library in needs.libraries {
            let mut places = LIBRARIES
                .iter()
                .map(|folder| Path::new(folder).join(&library));
            let found = places.find(|path| path.exists());
            let found = found.ok_or_else(|| ImageError::NoLibrary {
                program: program.into(),
                library: library.clone(),
            })?;
            self.file(&found, depth + 1)?;
        }
        Ok(())
    }

    /// Puts something in its place, with the folders above it.
    fn put(&mut self, at: &str, entry: Entry) -> Result<(), ImageError> {
        let wrong = || ImageError::Place(at.into());
        let inside = at.strip_prefix('/').ok_or_else(wrong)?;
        let mut parts = inside.split('/').filter(|part| !part.is_empty());
        if parts.any(|part| part == "." || part == "..") {
            return Err(wrong());
        }
        let at = format!("/{}", inside.trim_matches('/'));
        if at == "/" {
            return Ok(());
        }
        let above = at.rsplit_once('/').map_or("", |(above, _)| above);
        if !above.is_empty() && !self.entries.contains_key(above) {
            self.put(above, Entry::Folder(0o755))?;
        }
        match self.entries.get(&at) {
            // That a folder is there says enough; who asked for it may have known its mode or not.
            Some(Entry::Folder(_)) if matches!(entry, Entry::Folder(_)) => Ok(()),
            Some(there) if *there != entry => Err(ImageError::Twice(at)),
            _ => {
                self.entries.insert(at, entry);
                Ok(())
            }
        }
    }
}

struct Digested<'o, W> {
    out: &'o mut W,
    digest: Sha256,
}

impl<W: Write> Write for Digested<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A file; of a program only what is loaded.
fn read(path: &Path) -> Result<Vec<u8>, ImageError> {
    let unread = |source| ImageError::Read {
        path: path.into(),
        source,
    };
    let file = File::open(path).map_err(unread)?;
    let size = file.metadata().map_err(unread)?.len();
    let mut file = file.take(HEAD);
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).map_err(unread)?;
    let end = elf::loaded(&bytes).filter(|end| *end < size);
    file.set_limit(
        end.unwrap_or(MAX_PROGRAM)
            .saturating_sub(bytes.len() as u64),
    );
    file.read_to_end(&mut bytes).map_err(unread)?;
    if let Some(end) = end.and_then(|end| usize::try_from(end).ok()) {
        bytes.truncate(end);
        elf::without_sections(&mut bytes);
    }
    Ok(bytes)
}

fn text(path: &Path) -> Result<String, ImageError> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| ImageError::Place(path.display().to_string()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn written(image: &Image) -> (Vec<u8>, [u8; 32]) {
        let mut bytes = Vec::new();
        let digest = image.write(&mut bytes).unwrap();
        (bytes, digest)
    }

    #[test]
    fn the_same_inputs_give_the_same_bytes_whenever_and_wherever_they_lie() {
        let build = |folder: &Path, names: &[&str]| {
            // Made in another order, at another time.
            for name in names {
                fs::write(folder.join(name), name).unwrap();
            }
            let mut image = Image::new(Path::new("/bin/sh")).unwrap();
            image.program(Path::new("/bin/cat")).unwrap();
            image.tree(folder, "/app").unwrap();
            image.bytes("/casemate/policy.toml", "version = 1").unwrap();
            written(&image)
        };
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let one = build(one.path(), &["a", "b", "c"]);
        let other = build(other.path(), &["c", "a", "b"]);
        assert!(one == other);
        let digest: [u8; 32] = Sha256::digest(&one.0).into();
        assert_eq!(one.1, digest);
    }

    #[test]
    fn a_program_comes_with_its_linker_and_libraries_and_every_link_on_the_way() {
        let mut image = Image::new(Path::new("/bin/sh")).unwrap();
        image.program(Path::new("/bin/cat")).unwrap();
        let (bytes, _) = written(&image);
        let folder = tempfile::tempdir().unwrap();
        unpack(&mut &bytes[..], folder.path(), 1 << 30).unwrap();
        // Whatever the host can start by this name, the image can too: nothing dangles.
        let mut command = std::process::Command::new("unshare");
        command.args(["--user", "--map-root-user", "--root"]);
        command.arg(folder.path()).args(["/bin/cat", "/bin/cat"]);
        match command.output() {
            Ok(output) if output.status.success() => assert!(!output.stdout.is_empty()),
            other => assert!(
                fs::symlink_metadata(folder.path().join("usr/bin/cat")).is_ok()
                    || folder.path().join("bin/cat").exists(),
                "{other:?}"
            ),
        }
    }

    #[test]
    fn nothing_is_put_outside_of_the_root_or_over_something_else() {
        let mut image = Image::default();
        for place in ["relative", "/../up", "/a/../../b", "/a/./b"] {
            assert!(matches!(image.bytes(place, ""), Err(ImageError::Place(_))));
        }
        image.bytes("/a", "1").unwrap();
        image.bytes("/a", "1").unwrap();
        assert!(matches!(image.bytes("/a", "2"), Err(ImageError::Twice(_))));
    }
}
