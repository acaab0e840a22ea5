//! What evidence is believed by, and how that changes while the broker serves.
//!
//! Reference values are those of the configuration, until some are registered in the store: those count
//! at every replica, from the next request on. Endorsements are read from the folder again when it has
//! changed. A guest that was appraised by anything older attests again.

use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use attestation::{
    BuildError, EndorsementFolder, FolderError, FolderState, ReferenceError, ReferenceValues,
    UnixTime, Verifier, VerifierBuilder,
};
use broker::Broker;

use crate::store::Entry;

/// Where in the store the registered reference values are.
pub const REFERENCE: &str = "told/reference";

/// What a verifier is made of.
pub struct Source {
    /// All but reference values and endorsements.
    pub builder: VerifierBuilder,
    /// The reference values of the configuration.
    pub reference: ReferenceValues,
    /// The folder of endorsements.
    pub folder: Option<EndorsementFolder>,
}

/// Why a verifier cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The reference values cannot be used.
    #[error("the reference values cannot be used")]
    Reference(#[from] ReferenceError),
    /// The folder of endorsements cannot be used.
    #[error("the folder of endorsements cannot be used")]
    Folder(#[from] FolderError),
    /// What is in it cannot be used.
    #[error("the endorsements cannot be used")]
    Verifier(#[from] BuildError),
}

/// Secrets, and the verifier of now.
pub struct Believing {
    source: Source,
    current: RwLock<Current>,
}

/// The verifier of now, in the broker that uses it.
pub struct Current {
    /// Secrets and verifier.
    pub broker: Broker,
    /// Which registered reference values it has; 0 for those of the configuration.
    pub reference: u64,
    /// Since when.
    pub since: UnixTime,
    registered: Option<Vec<u8>>,
    seen: Option<FolderState>,
}

impl Source {
    /// A verifier with these reference values, or those of the configuration; and the state of the folder
    /// that it was made of.
    ///
    /// # Errors
    ///
    /// [`SourceError`].
    pub fn verifier(
        &self,
        registered: Option<&[u8]>,
    ) -> Result<(Verifier, Option<FolderState>), SourceError> {
        let reference = match registered {
            Some(json) => ReferenceValues::from_json(json)?,
            None => self.reference.clone(),
        };
        let builder = self.builder.clone().reference_values(reference);
        match &self.folder {
            // In this order: what comes in between is read again.
            Some(folder) => {
                let seen = folder.state()?;
                Ok((folder.add_to(builder)?.build()?, Some(seen)))
            }
            None => Ok((builder.build()?, None)),
        }
    }
}

impl Believing {
    /// Believes by what the configuration says.
    ///
    /// # Errors
    ///
    /// [`SourceError`].
    pub fn new(source: Source, mut broker: Broker) -> Result<Self, SourceError> {
        let (verifier, seen) = source.verifier(None)?;
        broker.verify_with(verifier);
        let current = Current {
            broker,
            reference: 0,
            since: UnixTime(0),
            registered: None,
            seen,
        };
        Ok(Self {
            source,
            current: RwLock::new(current),
        })
    }

    /// The verifier with the registered reference values, which were just read.
    ///
    /// # Errors
    ///
    /// [`SourceError`]: those that are registered cannot be used, so nothing is believed.
    pub fn by(
        &self,
        registered: Option<&Entry>,
        now: UnixTime,
    ) -> Result<RwLockReadGuard<'_, Current>, SourceError> {
        let version = registered.map_or(0, |entry| entry.version);
        let current = self.now();
        if current.reference == version {
            return Ok(current);
        }
        drop(current);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.reference != version {
            let registered = registered.map(|entry| entry.value.clone());
            let (verifier, seen) = self.source.verifier(registered.as_deref())?;
            current.broker.verify_with(verifier);
            (current.seen, current.registered) = (seen, registered);
            (current.reference, current.since) = (version, now);
        }
        drop(current);
        Ok(self.now())
    }

    /// Reads the folder of endorsements again, if it has changed; whether it has.
    ///
    /// # Errors
    ///
    /// [`SourceError`]; what was believed by before goes on.
    pub fn reread(&self, now: UnixTime) -> Result<bool, SourceError> {
        let Some(folder) = &self.source.folder else {
            return Ok(false);
        };
        let state = Some(folder.state()?);
        if self.now().seen == state {
            return Ok(false);
        }
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        // A file that is being written is read again when it has changed again.
        current.seen = state;
        let (verifier, _) = self.source.verifier(current.registered.as_deref())?;
        current.broker.verify_with(verifier);
        current.since = now;
        Ok(true)
    }

    /// The folder of endorsements.
    pub fn folder(&self) -> Option<&EndorsementFolder> {
        self.source.folder.as_ref()
    }

    /// The verifier of now, whatever is registered since.
    pub fn now(&self) -> RwLockReadGuard<'_, Current> {
        // Every change is an assignment.
        self.current.read().unwrap_or_else(PoisonError::into_inner)
    }
}
