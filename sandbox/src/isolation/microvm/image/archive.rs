//! cpio, in the "newc" form that Linux unpacks as an initial RAM disk.
//!
//! Follows "initramfs buffer format" of the kernel's documentation. Also how trees cross the channel,
//! and so the reader trusts nothing: names stay inside the folder, and sizes below what was allowed.

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;

/// Most bytes of a name.
pub const MAX_NAME: usize = 4096;
/// Most entries that are unpacked.
pub const MAX_ENTRIES: u32 = 1 << 20;
const MAGIC: &[u8; 6] = b"070701";
const TRAILER: &str = "TRAILER!!!";
const KIND: u32 = 0o170_000;
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTERS: u32 = 0o020_000;

/// Why an archive cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// It cannot be read, or what is in it cannot be written.
    #[error("the archive cannot be copied")]
    Io(#[from] io::Error),
    /// It is none, or of a kind that is not unpacked here.
    #[error("it is no archive that can be unpacked here: {0}")]
    Form(&'static str),
    /// It has more in it than was allowed.
    #[error("the archive is larger than it may be")]
    TooLarge,
}

/// An archive that is being written.
pub struct Archive<W> {
    out: W,
    number: u32,
}

impl<W: Write> Archive<W> {
    /// Begins one.
    pub fn new(out: W) -> Self {
        Self { out, number: 0 }
    }

    /// Adds a folder.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Io`].
    pub fn folder(&mut self, name: &str, mode: u32) -> Result<(), ArchiveError> {
        self.entry(name, FOLDER | (mode & 0o777), &[], (0, 0))
    }

    /// Adds a file.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::TooLarge`] for more than the format can hold.
    pub fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.entry(name, FILE | (mode & 0o777), bytes, (0, 0))
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Io`].
    pub fn link(&mut self, name: &str, target: &str) -> Result<(), ArchiveError> {
        self.entry(name, LINK | 0o777, target.as_bytes(), (0, 0))
    }

    /// Adds the character device of the console.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Io`].
    pub fn console(&mut self, name: &str) -> Result<(), ArchiveError> {
        self.entry(name, CHARACTERS | 0o600, &[], (5, 1))
    }

    /// Adds a file, or a folder with all that is in it, below this name. Links stay links.
    ///
    /// # Errors
    ///
    /// [`ArchiveError`].
    pub fn tree(&mut self, from: &Path, name: &str) -> Result<(), ArchiveError> {
        let metadata = fs::symlink_metadata(from)?;
        let mode = metadata.permissions().mode();
        if metadata.is_symlink() {
            let target = fs::read_link(from)?;
            let target = target.to_str().ok_or(NO_TEXT)?;
            return self.link(name, target);
        }
        if metadata.is_file() {
            return self.file(name, mode, &fs::read(from)?);
        }
        if !metadata.is_dir() {
            // Sockets, pipes and devices mean nothing elsewhere.
            return Ok(());
        }
        self.folder(name, mode)?;
        self.inside(from, &format!("{name}/"))
    }

    /// Adds what is in a folder, without the folder itself.
    ///
    /// # Errors
    ///
    /// [`ArchiveError`].
    pub fn contents(&mut self, folder: &Path) -> Result<(), ArchiveError> {
        self.inside(folder, "")
    }

    fn inside(&mut self, folder: &Path, above: &str) -> Result<(), ArchiveError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(folder)? {
            names.push(entry?.file_name().into_string().map_err(|_| NO_TEXT)?);
        }
        names.sort();
        names
            .iter()
            .try_for_each(|name| self.tree(&folder.join(name), &format!("{above}{name}")))
    }

    /// Ends the archive.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Io`].
    pub fn finish(mut self) -> Result<(), ArchiveError> {
        self.entry(TRAILER, 0, &[], (0, 0))?;
        Ok(self.out.flush()?)
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        bytes: &[u8],
        device: (u32, u32),
    ) -> Result<(), ArchiveError> {
        self.number += 1;
        let size = u32::try_from(bytes.len()).map_err(|_| ArchiveError::TooLarge)?;
        let length = u32::try_from(name.len() + 1).map_err(|_| ArchiveError::TooLarge)?;
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let fields = [
            self.number,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            length,
            0,
        ];
        let mut head = MAGIC.to_vec();
        for field in fields {
            head.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        head.extend_from_slice(name.as_bytes());
        head.push(0);
        head.resize(head.len().next_multiple_of(4), 0);
        self.out.write_all(&head)?;
        self.out.write_all(bytes)?;
        self.out.write_all(&[0; 3][..padding(bytes.len())])?;
        Ok(())
    }
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Archived {
    /// Entries.
    pub entries: u32,
    /// Bytes of files.
    pub bytes: u64,
}

/// Unpacks an archive below a folder; at most `most` bytes of files. What is there already is replaced,
/// if it is of the same kind.
///
/// Names that would leave the folder are refused, and nothing is written through a link. Nothing behind
/// the archive's end is read.
///
/// # Errors
///
/// [`ArchiveError`]; what was unpacked before stays.
pub fn unpack(reader: &mut impl Read, folder: &Path, most: u64) -> Result<Archived, ArchiveError> {
    let mut done = Archived::default();
    loop {
        let mut head = [0; 110];
        reader.read_exact(&mut head)?;
        let head = Head::parse(&head)?;
        // The name is padded so that head and name together fill up four.
        let mut name = vec![0; head.name + padding(110 + head.name)];
        reader.read_exact(&mut name)?;
        name.truncate(head.name.saturating_sub(1));
        let name = String::from_utf8(name).map_err(|_| NO_TEXT)?;
        if name == TRAILER {
            return Ok(done);
        }
        if done.entries >= MAX_ENTRIES || head.size > most.saturating_sub(done.bytes) {
            return Err(ArchiveError::TooLarge);
        }
        done.entries += 1;
        let relative = name.trim_start_matches('/');
        let parts: Vec<&str> = relative.split('/').collect();
        if parts
            .iter()
            .any(|p| p.is_empty() || *p == "." || *p == "..")
            || name.contains('\0')
        {
            return Err(ArchiveError::Form("a name that leaves the folder"));
        }
        let (last, above) = parts.split_last().ok_or(NO_TEXT)?;
        let mut place = folder.to_owned();
        for part in above {
            place.push(part);
            if !fs::symlink_metadata(&place)?.is_dir() {
                return Err(ArchiveError::Form("a name that goes through a link"));
            }
        }
        place.push(last);
        done.bytes += head.size;
        head.unpack(reader, &place)?;
    }
}

struct Head {
    mode: u32,
    size: u64,
    name: usize,
}

impl Head {
    fn parse(bytes: &[u8; 110]) -> Result<Self, ArchiveError> {
        let (magic, fields) = bytes.split_at(6);
        if magic != MAGIC {
            return Err(ArchiveError::Form("it does not begin as one"));
        }
        let field = |number: usize| {
            let digits = fields.get(8 * number..8 * number + 8)?;
            let text = std::str::from_utf8(digits).ok()?;
            u32::from_str_radix(text, 16).ok()
        };
        let field = |number| field(number).ok_or(ArchiveError::Form("a field is no number"));
        let name = usize::try_from(field(11)?).unwrap_or(usize::MAX);
        if name == 0 || name > MAX_NAME {
            return Err(ArchiveError::Form("a name is too long"));
        }
        Ok(Self {
            mode: field(1)?,
            size: u64::from(field(6)?),
            name,
        })
    }

    fn unpack(&self, reader: &mut impl Read, place: &Path) -> Result<(), ArchiveError> {
        let there = fs::symlink_metadata(place).ok();
        let permissions = fs::Permissions::from_mode(self.mode & 0o777);
        match self.mode & KIND {
            FOLDER => {
                match there {
                    Some(there) if there.is_dir() => {}
                    Some(_) => return Err(ArchiveError::Form("a folder in the place of a file")),
                    None => fs::DirBuilder::new().mode(0o700).create(place)?,
                }
                self.skip(reader)?;
                // Whoever unpacks goes on into it.
                fs::set_permissions(place, fs::Permissions::from_mode(self.mode & 0o777 | 0o700))?;
            }
            FILE => {
                if there.is_some_and(|there| !there.is_file()) {
                    return Err(ArchiveError::Form("a file in the place of something else"));
                }
                let mut file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
                    .open(place)?;
                copy_exactly(reader, &mut file, self.size)?;
                self.skip_padding(reader)?;
                file.set_permissions(permissions)?;
            }
            LINK => {
                if self.size > MAX_NAME as u64 {
                    return Err(ArchiveError::Form("a link is too long"));
                }
                let mut target = Vec::new();
                copy_exactly(reader, &mut target, self.size)?;
                self.skip_padding(reader)?;
                let target = String::from_utf8(target).map_err(|_| NO_TEXT)?;
                match there {
                    Some(there) if there.is_symlink() => fs::remove_file(place)?,
                    Some(_) => return Err(ArchiveError::Form("a link in the place of a file")),
                    None => {}
                }
                symlink(target, place)?;
            }
            // A device is for the kernel alone to unpack.
            CHARACTERS => self.skip(reader)?,
            _ => return Err(ArchiveError::Form("an unknown kind of file")),
        }
        Ok(())
    }

    fn skip(&self, reader: &mut impl Read) -> Result<(), ArchiveError> {
        copy_exactly(reader, &mut io::sink(), self.size)?;
        self.skip_padding(reader)
    }

    fn skip_padding(&self, reader: &mut impl Read) -> Result<(), ArchiveError> {
        let padding = usize::try_from(self.size).map_or(0, padding);
        Ok(reader.read_exact(&mut [0; 3][..padding])?)
    }
}

fn copy_exactly(reader: &mut impl Read, to: &mut impl Write, size: u64) -> io::Result<()> {
    match io::copy(&mut reader.take(size), to)? {
        copied if copied == size => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Bytes that follow this many to fill up four.
fn padding(length: usize) -> usize {
    length.next_multiple_of(4) - length
}

const NO_TEXT: ArchiveError = ArchiveError::Form("a name is not UTF-8");

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn archive(fill: impl FnOnce(&mut Archive<&mut Vec<u8>>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut archive = Archive::new(&mut bytes);
        fill(&mut archive);
        archive.finish().unwrap();
        bytes
    }

    fn unpacked(bytes: &[u8], most: u64) -> Result<Archived, ArchiveError> {
        let folder = tempfile::tempdir().unwrap();
        unpack(&mut &bytes[..], folder.path(), most)
    }

    #[test]
    fn a_tree_comes_out_as_it_went_in() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(from.path().join("sub")).unwrap();
        fs::write(from.path().join("sub/file"), "12345").unwrap();
        fs::write(from.path().join("empty"), "").unwrap();
        symlink("sub/file", from.path().join("link")).unwrap();
        let bytes = archive(|archive| archive.tree(from.path(), "tree").unwrap());
        let done = unpack(&mut &bytes[..], to.path(), 5 + 8).unwrap();
        assert_eq!(done.entries, 5);
        let tree = to.path().join("tree");
        assert_eq!(fs::read_to_string(tree.join("link")).unwrap(), "12345");
        assert_eq!(fs::read(tree.join("empty")).unwrap(), b"");
    }

    #[test]
    fn nothing_is_unpacked_outside_of_the_folder() {
        for name in ["../up", "a/../../up", "/../up", "a//b", "."] {
            let bytes = archive(|archive| archive.file(name, 0o644, b"x").unwrap());
            assert!(
                matches!(unpacked(&bytes, 9), Err(ArchiveError::Form(_))),
                "{name}"
            );
        }
        let through = archive(|archive| {
            archive.link("out", "/tmp").unwrap();
            archive.file("out/file", 0o644, b"x").unwrap();
        });
        assert!(matches!(unpacked(&through, 9), Err(ArchiveError::Form(_))));
        let over = archive(|archive| {
            archive.link("file", "/tmp/elsewhere").unwrap();
            archive.file("file", 0o644, b"x").unwrap();
        });
        assert!(matches!(unpacked(&over, 99), Err(ArchiveError::Form(_))));
    }

    #[test]
    fn more_than_was_allowed_is_refused_before_it_is_written() {
        let bytes = archive(|archive| archive.file("a", 0o644, &[0; 100]).unwrap());
        assert!(matches!(unpacked(&bytes, 99), Err(ArchiveError::TooLarge)));
        assert!(unpacked(&bytes, 100).is_ok());
        assert!(
            unpacked(&bytes[..bytes.len() - 130], 100).is_err(),
            "cut short"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_unpacked_or_refused(
            flips in proptest::collection::vec((0_usize..600, any::<u8>()), 0..8),
        ) {
            let mut bytes = archive(|archive| {
                archive.folder("a", 0o755).unwrap();
                archive.file("a/b", 0o644, b"12345").unwrap();
                archive.link("c", "a").unwrap();
            });
            for (at, byte) in flips {
                if let Some(place) = bytes.get_mut(at) {
                    *place = byte;
                }
            }
            let _ = unpacked(&bytes, 1 << 16);
        }
    }
}
