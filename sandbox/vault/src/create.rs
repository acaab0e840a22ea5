//! Making a vault: beside its place, and then there, whole.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::commit::{self, Shared};
use crate::envelope::{Keys, random_id};
use crate::error::VaultError;
use crate::format::header::{self, Header};
use crate::kek::KekProvider;
use crate::store::{Place, Store, file_name};
use crate::vault::{CreateOptions, OpenOptions};

/// Makes an empty vault appear at `dir`.
pub(crate) fn create(
    dir: &Path,
    kek: &dyn KekProvider,
    options: CreateOptions,
    open: &OpenOptions,
) -> Result<(), VaultError> {
    appear(dir, |beside| make(beside, kek, options, open))
}

/// Makes a directory appear at `dir` whole or not at all: it is made beside, and renamed there.
pub(crate) fn appear(
    dir: &Path,
    make: impl FnOnce(&Path) -> Result<(), VaultError>,
) -> Result<(), VaultError> {
    let io = VaultError::io("create the vault");
    if fs::symlink_metadata(dir).is_ok() {
        return Err(VaultError::Exists);
    }
    let name = dir.file_name().ok_or(VaultError::Exists)?;
    let mut beside = std::ffi::OsString::from(".");
    beside.push(name);
    beside.push(format!(".{}", &file_name(&random_id()?)[..16]));
    let beside = dir.with_file_name(beside);
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };

    let made = make(&beside).and_then(|()| {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        match renameat_with(CWD, &beside, CWD, dir, RenameFlags::NOREPLACE) {
            Ok(()) => fs::File::open(parent)
                .and_then(|d| d.sync_all())
                .map_err(&io),
            Err(rustix::io::Errno::EXIST) => Err(VaultError::Exists),
            Err(e) => Err(io(e.into())),
        }
    });
    if let Err(e) = made {
        // Nothing half made is left; that it cannot be removed changes nothing about the error.
        let _ = fs::remove_dir_all(&beside);
        return Err(e);
    }
    Ok(())
}

/// Everything that is new at the time of creation, made durable at a place nobody looks at yet.
fn make(
    path: &Path,
    kek: &dyn KekProvider,
    options: CreateOptions,
    open: &OpenOptions,
) -> Result<(), VaultError> {
    let io = VaultError::io("create the vault");
    let (keys, slot) = Keys::create(random_id()?, kek)?;
    let header = Header {
        vault_id: keys.vault_id,
        chunk: options.chunk,
        padding: options.padding,
        epoch: commit::FIRST_HEADER_EPOCH,
        slots: vec![slot],
    };
    let bytes = keys.seal_header(&header);

    let store = Store::create(path).map_err(|e| match e.kind() {
        io::ErrorKind::AlreadyExists => VaultError::Exists,
        _ => io(e),
    })?;
    let file = store.create_file(Place::Root, header::FILE).map_err(&io)?;
    store.write_at(&file, &bytes, 0).map_err(&io)?;
    store.sync(&file).map_err(&io)?;
    let shared = Shared {
        store: Arc::new(store),
        keys,
        chunk: options.chunk,
        padding: options.padding,
    };
    commit::first(&shared, (open.clock)(), open.anchor.as_deref())?;
    shared.store.sync_dir(Place::Root).map_err(&io)
}
