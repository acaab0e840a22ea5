//! The verifier tries itself: genuine evidence gets its verdict, and no changed field is believed.
//!
//! ```text
//! vectors.rs   reads a folder of genuine evidence with the verdicts that it should get
//! genuine.rs   one row for each piece of evidence
//! mutation.rs  one row for each field changed: in the bytes, in what is asked for, in the time
//! snp.rs, tdx.rs   the fields of each TEE
//! ```
//!
//! A mutation starts from evidence that reference values made for it affirm, and changes one thing.
//! It must not be affirmed any more, and the reason given should be the one that the change calls for.

mod genuine;
mod mutation;
mod snp;
mod tdx;
mod vectors;

use std::path::PathBuf;

pub use vectors::{Case, Expected, Vectors};

/// Why the verifier could not try itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelftestError {
    /// A file of the vectors cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file of the vectors is not what it is taken for.
    #[error("`{}` is not as the vectors have it: {what}", path.display())]
    Vector {
        /// The file.
        path: PathBuf,
        /// What is missing or wrong.
        what: &'static str,
    },
    /// The simulated TEE gave no evidence.
    #[error("the simulated evidence cannot be made")]
    Simulated(#[from] crate::AttestError),
}

/// What one row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    /// Evidence as it came, genuine or a forgery of somebody else's.
    Genuine,
    /// Evidence, or what is asked of it, with one thing changed.
    Mutation,
}

/// How a row came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The verdict is the expected one; for a mutation, for the expected reason.
    AsExpected,
    /// A mutation was refused, but for another reason.
    OtherReason,
    /// Genuine evidence did not get its verdict, or a mutation was affirmed.
    Wrong,
}

/// One thing that was tried.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is about.
    pub section: Section,
    /// The evidence, by the name of its file.
    pub case: String,
    /// What was changed; empty where nothing was.
    pub change: String,
    /// The verdict, or the error code or check that should have stood in the way.
    pub expected: String,
    /// What came out.
    pub seen: String,
    /// Whether that is well.
    pub finding: Finding,
}

/// Everything that was tried, in a fixed order.
#[derive(Clone, Debug, Default)]
pub struct Matrix {
    rows: Vec<Row>,
}

impl Matrix {
    /// Every row.
    #[must_use]
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// How many rows of a section came out like this.
    #[must_use]
    pub fn count(&self, section: Section, finding: Finding) -> usize {
        let alike = |row: &&Row| row.section == section && row.finding == finding;
        self.rows.iter().filter(alike).count()
    }

    /// Whether all genuine evidence got its verdict, no mutation was affirmed, and at least 95 of
    /// 100 mutations were refused for the reason that they call for.
    #[must_use]
    pub fn passes(&self) -> bool {
        use Finding::{AsExpected, OtherReason, Wrong};
        let tried = |section| self.rows.iter().any(|row| row.section == section);
        let none = |section| self.count(section, Wrong) == 0;
        let specific = self.count(Section::Mutation, AsExpected);
        let other = self.count(Section::Mutation, OtherReason);
        tried(Section::Genuine)
            && tried(Section::Mutation)
            && none(Section::Genuine)
            && none(Section::Mutation)
            && specific.saturating_mul(5) >= other.saturating_mul(95)
    }
}

/// Tries everything.
///
/// # Errors
///
/// [`SelftestError`] if vectors cannot be read; verdicts that are wrong are rows, not errors.
pub fn run(vectors: &Vectors) -> Result<Matrix, SelftestError> {
    let mut rows = genuine::rows(vectors)?;
    rows.extend(mutation::rows(vectors)?);
    Ok(Matrix { rows })
}
