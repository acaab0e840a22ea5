//! Which of a policy's files are where, on the host and in the guest.
//!
//! Programs, granted trees that are only read, and the policy itself are in the image, and so measured.
//! What cannot be, because it changes, or because the measurement itself is in it, crosses at the start:
//! vaults (which bring their own proof), reference values (by which the guest judges itself, and nobody
//! else), and what is in writable trees before.

use std::path::{Component, Path, PathBuf};

use policy::{Bundle, Rootfs};

use super::POLICY_FOLDER;

/// A file or folder that the policy names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// What it is called while it crosses.
    pub(super) name: String,
    /// As the policy has it.
    pub(super) written: PathBuf,
    /// In the guest.
    pub(super) inside: String,
}

/// Why a policy cannot be run in a machine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlaceError {
    /// A relative path leaves the policy's folder.
    #[error("`{}` leads out of the policy's folder, which is all that a guest has of it", .0.display())]
    Outside(PathBuf),
    /// Something that a guest does not have yet.
    #[error("{0} is not available with the backend `microvm` yet")]
    NotYet(&'static str),
}

/// Everything that goes into the image.
pub(super) fn measured(bundle: &Bundle) -> Result<Vec<Place>, PlaceError> {
    let tables = bundle.tables();
    let mut places = granted(bundle)?;
    if let Rootfs::Path(folder) = &tables.workload.rootfs {
        places.push(place("rootfs".into(), folder)?);
    }
    if let Some(folder) = &tables.attestation.endorsements {
        places.push(place("endorsements".into(), folder)?);
    }
    for (name, data) in &tables.data {
        let uri = data.key.as_deref().unwrap_or_default();
        let remote = uri.starts_with(crate::remote_broker::SCHEME);
        if let Some((_, ca)) = uri.split_once("?ca=").filter(|_| remote) {
            places.push(place(format!("ca-{name}"), Path::new(ca))?);
        }
    }
    places.dedup_by(|one, other| one.inside == other.inside);
    Ok(places)
}

/// The trees that are only read.
pub(super) fn granted(bundle: &Bundle) -> Result<Vec<Place>, PlaceError> {
    let trees = bundle.tables().files.read.iter().enumerate();
    trees
        .map(|(number, file)| place(format!("read-{number}"), &file.from))
        .collect()
}

/// Everything that crosses at the start.
pub(super) fn carried(bundle: &Bundle) -> Result<Vec<Place>, PlaceError> {
    let tables = bundle.tables();
    if !tables.network.connect.is_empty() {
        return Err(PlaceError::NotYet("`[network] connect`"));
    }
    let mut places = written(bundle)?;
    for (name, data) in &tables.data {
        if data.anchor.is_some() {
            return Err(PlaceError::NotYet("`anchor` of a `[data]` entry"));
        }
        if data.access == policy::Access::ReadWrite {
            return Err(PlaceError::NotYet("writing to a vault"));
        }
        places.push(place(format!("vault-{name}"), &data.vault)?);
    }
    if let Some(path) = &tables.attestation.reference_values {
        places.push(place("reference".into(), path)?);
    }
    Ok(places)
}

/// The writable trees, which come back at the end.
pub(super) fn written(bundle: &Bundle) -> Result<Vec<Place>, PlaceError> {
    let trees = bundle.tables().files.write.iter().enumerate();
    trees
        .map(|(number, file)| place(format!("write-{number}"), &file.from))
        .collect()
}

fn place(name: String, written: &Path) -> Result<Place, PlaceError> {
    let mut inside = match written.is_absolute() {
        true => PathBuf::from("/"),
        false => PathBuf::from(POLICY_FOLDER),
    };
    let least = inside.components().count();
    for part in written.components() {
        match part {
            Component::Normal(part) => inside.push(part),
            Component::ParentDir if inside.components().count() > least => drop(inside.pop()),
            Component::ParentDir => return Err(PlaceError::Outside(written.into())),
            _ => {}
        }
    }
    Ok(Place {
        name,
        written: written.into(),
        inside: inside.to_string_lossy().into_owned(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn relative_places_are_in_the_policys_folder_and_do_not_leave_it() {
        let inside = |written: &str| place("x".into(), Path::new(written)).map(|p| p.inside);
        assert_eq!(inside("app").unwrap(), "/policy/app");
        assert_eq!(inside("./a/../b").unwrap(), "/policy/b");
        assert_eq!(inside("/srv/./data").unwrap(), "/srv/data");
        for outside in ["..", "../owner", "a/../../b"] {
            assert!(
                matches!(inside(outside), Err(PlaceError::Outside(_))),
                "{outside}"
            );
        }
    }
}
