//! Finding a vault's state behind a key: header, slot, manifest, index.

use std::io;
use std::sync::Arc;

use crate::commit::{self, Commit, Shared};
use crate::envelope::Keys;
use crate::error::{Part, VaultError};
use crate::format::Malformed;
use crate::format::header::{self, Header};
use crate::kek::KekProvider;
use crate::secret::SecretKey;
use crate::store::{Place, Store};

/// What a key opened, verified.
pub(crate) struct Found {
    pub(crate) header: Header,
    pub(crate) root: SecretKey,
    pub(crate) shared: Shared,
    pub(crate) commit: Commit,
}

/// Opens a slot of the header, and the newest state.
///
/// A writer may replace the header, and the root key with it, while a reader is between header and
/// manifest. So what does not go with the header is tampered with only if the header stands still.
pub(crate) fn find(store: Store, kek: &dyn KekProvider) -> Result<Found, VaultError> {
    let store = Arc::new(store);
    let mut file = read_header(&store)?;
    for _ in 0..MAX_LOOKS {
        let (header, keys, root) = unlock(&file, kek)?;
        let shared = Shared {
            store: Arc::clone(&store),
            keys,
            chunk: header.chunk,
            padding: header.padding,
        };
        let outcome = commit::newest(&shared, &header, &root);
        let Err(VaultError::Tampered { .. }) = outcome else {
            return outcome.map(|commit| Found {
                header,
                root,
                shared,
                commit,
            });
        };
        let now = read_header(&store)?;
        if now == file {
            return Err(outcome.err().unwrap_or(VaultError::damaged(Part::Header)));
        }
        file = now;
    }
    Err(VaultError::damaged(Part::Header))
}

/// How many headers a reader lets pass.
const MAX_LOOKS: usize = 16;

fn read_header(store: &Store) -> Result<Vec<u8>, VaultError> {
    match store.read(Place::Root, header::FILE, header::MAX_LEN as u64) {
        Ok(file) => Ok(file),
        Err(e) if e.kind() == io::ErrorKind::FileTooLarge => Err(VaultError::damaged(Part::Header)),
        Err(e) => Err(not_a_vault(e)),
    }
}

/// Opens a slot of the header; after this the header is believed.
fn unlock(file: &[u8], kek: &dyn KekProvider) -> Result<(Header, Keys, SecretKey), VaultError> {
    let (header, covered, mac) = Header::parse(file).map_err(|malformed| match malformed {
        Malformed::Magic => VaultError::NotAVault,
        other => VaultError::tampered(Part::Header)(other),
    })?;
    let (keys, root) = Keys::open(&header, kek)?;
    keys.check_header(covered, mac)?;
    Ok((header, keys, root))
}

/// A directory that is not one of a vault, told from one that cannot be opened.
pub(crate) fn not_a_vault(error: io::Error) -> VaultError {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput => {
            VaultError::NotAVault
        }
        _ => VaultError::Io {
            doing: "open the vault",
            source: error,
        },
    }
}
