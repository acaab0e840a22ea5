//! The policy's folder of endorsements while a session runs: what is put there has evidence appraised
//! again.

use attestation::{EndorsementFolder, FolderState, Verifier, VerifierBuilder};
use casemate::Endorsements;
use casemate::error::describe;

use crate::assembly::AssemblyError;

/// A verifier that is made anew when its folder of endorsements has changed.
#[derive(Clone)]
pub struct Renewal {
    folder: EndorsementFolder,
    builder: VerifierBuilder,
    seen: FolderState,
}

impl Renewal {
    /// What the folder adds to this verifier, now and later. Gives the verifier of now, too.
    ///
    /// # Errors
    ///
    /// [`AssemblyError`] when the folder, or what is in it, cannot be used.
    pub fn read(
        folder: EndorsementFolder,
        builder: VerifierBuilder,
    ) -> Result<(Self, Verifier), AssemblyError> {
        // In this order: what comes in between is read again.
        let seen = folder.state()?;
        let verifier = folder.add_to(builder.clone())?.build()?;
        let renewal = Self {
            folder,
            builder,
            seen,
        };
        Ok((renewal, verifier))
    }
}

impl Endorsements for Renewal {
    fn renewed(&mut self) -> Result<Option<Verifier>, String> {
        let state = self.folder.state().map_err(|error| describe(&error))?;
        if state == self.seen {
            return Ok(None);
        }
        // A file that is being written is read again when it has changed again.
        self.seen = state;
        let builder = self.folder.add_to(self.builder.clone());
        let builder = builder.map_err(|error| describe(&error))?;
        let verifier = builder.build().map_err(|error| describe(&error))?;
        Ok(Some(verifier))
    }
}
