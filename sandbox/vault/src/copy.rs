//! Objects that go from one vault to another: sealed anew, so nothing ties the copy to its origin.

use std::cell::RefCell;
use std::io::{self, Read};

use crate::error::{ReadError, VaultError};
use crate::name::NameError;
use crate::object::Object;
use crate::vault::{ObjectInfo, Vault};

impl Vault {
    /// Copies the objects of another vault whose names begin with `prefix`, in one commit; their new
    /// names begin with `under` in place of `prefix`.
    ///
    /// For an export, copy into a new vault of its own key; for an import, out of one. Every byte is
    /// verified on its way. `copied` is told of each object.
    ///
    /// # Errors
    ///
    /// [`VaultError::NotFound`] if no name begins so, [`VaultError::Name`] if a name is taken here,
    /// [`VaultError::Tampered`] if the other vault is damaged, and as for [`Vault::put`]. Then nothing
    /// has changed.
    pub fn copy_from(
        &mut self,
        other: &Vault,
        prefix: &str,
        under: &str,
        mut copied: impl FnMut(&str),
    ) -> Result<Vec<ObjectInfo>, VaultError> {
        let names: Vec<String> = other
            .list()
            .into_iter()
            .map(|info| info.name)
            .filter(|name| name.starts_with(prefix))
            .collect();
        if names.is_empty() {
            return Err(VaultError::NotFound);
        }
        let renamed = |name: &str| format!("{under}{}", &name[prefix.len()..]);
        if names.iter().any(|name| self.info(&renamed(name)).is_some()) {
            return Err(NameError::Conflict.into());
        }
        let failed = RefCell::new(None);
        let entries = names.iter().map(|name| {
            copied(name);
            let opened = other.object(name).map(Stream::new);
            let source = Source {
                name,
                opened,
                failed: &failed,
            };
            (renamed(name), source)
        });
        let stored = self.put_all(entries);
        // What a source met is told as what it is, not as a failed transfer.
        match failed.into_inner() {
            Some(error) => Err(error),
            None => stored,
        }
    }
}

/// An object of the other vault, or why there is none.
struct Source<'a> {
    name: &'a str,
    opened: Result<Stream, VaultError>,
    failed: &'a RefCell<Option<VaultError>>,
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let error = match &mut self.opened {
            Ok(stream) => match stream.read(buffer) {
                Ok(read) => return Ok(read),
                Err(_) => stream.why().map(|e| e.of(self.name).into()),
            },
            Err(error) => Some(std::mem::replace(error, VaultError::NotFound)),
        };
        self.failed.replace(error);
        Err(io::ErrorKind::InvalidData.into())
    }
}

/// An object from its first byte to its last.
pub(crate) struct Stream {
    object: Object,
    offset: u64,
    failed: Option<ReadError>,
}

impl Stream {
    pub(crate) fn new(object: Object) -> Self {
        Self {
            object,
            offset: 0,
            failed: None,
        }
    }

    /// Why the stream failed: an I/O error could not say it all.
    pub(crate) fn why(&mut self) -> Option<ReadError> {
        self.failed.take()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.object.read_at(buffer, self.offset) {
            Ok(read) => {
                self.offset += read as u64;
                Ok(read)
            }
            Err(error) => {
                self.failed = Some(error);
                Err(io::ErrorKind::InvalidData.into())
            }
        }
    }
}
