//! One record, or one checkpoint, proven to somebody who does not have the log.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::checkpoint::{Checkpoint, NoteError};
use super::error::LogError;
use super::key::LogVerifier;
use super::merkle::{
    Hash, Nodes, TILE_WIDTH, TileId, leaf_hash, prove_consistency, prove_inclusion, subtree,
    verify_consistency, verify_inclusion,
};
use super::record::{Entry, RecordError};
use super::store::{Entries, read_bundle, read_tile};
use super::verify::{VerifyError, from_log, stored_checkpoint};

/// A record with its inclusion proof and the checkpoint it leads up to. Travels as JSON.
///
/// It proves nothing before [`Proof::check`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// The record's number.
    pub index: u64,
    /// The bytes of its leaf, base64.
    pub entry: String,
    /// The siblings from the leaf up (RFC 6962 audit path), base64 of 32 bytes each.
    pub path: Vec<String>,
    /// The signed checkpoint.
    pub checkpoint: String,
}

/// A checkpoint with the proof that it continues an older one. Travels as JSON.
///
/// It proves nothing before [`Consistency::check`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Consistency {
    /// The size of the older tree.
    pub since: u64,
    /// The consistency proof of RFC 6962, base64 of 32 bytes each.
    pub path: Vec<String>,
    /// The newer signed checkpoint.
    pub checkpoint: String,
}

/// Why a proof could not be made or does not hold.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProofError {
    /// The log is not to be believed.
    #[error("log cannot prove it")]
    Log(#[source] VerifyError),
    /// No checkpoint covers the record.
    #[error("record {index} is not among the {size} that are signed for")]
    Beyond {
        /// The record asked for.
        index: u64,
        /// How many there are.
        size: u64,
    },
    /// The checkpoint in the proof is not to be believed.
    #[error("checkpoint of the proof is not to be believed")]
    Checkpoint(#[source] NoteError),
    /// Something in the proof is not base64 of the length it should have.
    #[error("proof cannot be read")]
    Malformed,
    /// The path does not lead from the record, or the older root, to the signed root.
    #[error("proof does not hold")]
    Refuted,
    /// The leaf is proven, but is no record of this log at this place.
    #[error("proven leaf is no record")]
    Record(#[source] RecordError),
}

/// Exports record `index` of the log in `dir` with its proof.
///
/// What is exported was checked against the key.
///
/// # Errors
///
/// [`ProofError::Beyond`] if no checkpoint covers the record yet, [`ProofError::Log`] or
/// [`ProofError::Refuted`] if the files disagree.
pub fn prove(dir: &Path, key: &LogVerifier, index: u64) -> Result<Proof, ProofError> {
    let checkpoint = stored_checkpoint(dir, key).map_err(ProofError::Log)?;
    let size = checkpoint.size();
    if index >= size {
        return Err(ProofError::Beyond { index, size });
    }
    let log = |error| ProofError::Log(from_log(error));
    let (number, at) = (index / TILE_WIDTH, index % TILE_WIDTH);
    let width = (size - number * TILE_WIDTH).min(TILE_WIDTH);
    let bundle = read_bundle(dir, number, width).map_err(log)?;
    let entry = Entries::new(&bundle)
        .nth(at as usize)
        .ok_or(ProofError::Refuted)?;
    let path = prove_inclusion(&mut Tiles::new(dir, size), index, size).map_err(log)?;
    let (entry, path) = (
        STANDARD.encode(entry),
        path.iter().map(|h| STANDARD.encode(h)).collect(),
    );
    let proof = Proof {
        index,
        entry,
        path,
        checkpoint: checkpoint.note().to_owned(),
    };
    proof.check(key)?;
    Ok(proof)
}

/// Exports the proof that the log in `dir` continues the checkpoint `since`.
///
/// # Errors
///
/// [`ProofError::Refuted`] if it does not: the log was rolled back or forked.
pub fn prove_since(
    dir: &Path,
    key: &LogVerifier,
    since: &Checkpoint,
) -> Result<Consistency, ProofError> {
    let checkpoint = stored_checkpoint(dir, key).map_err(ProofError::Log)?;
    let size = checkpoint.size();
    let path = prove_consistency(&mut Tiles::new(dir, size), since.size(), size);
    let path = path.map_err(|error| ProofError::Log(from_log(error)))?;
    let path = path.iter().map(|h| STANDARD.encode(h)).collect();
    let checkpoint = checkpoint.note().to_owned();
    let proof = Consistency {
        since: since.size(),
        path,
        checkpoint,
    };
    proof.check(key, since)?;
    Ok(proof)
}

impl Proof {
    /// Checks the proof without the log, and gives the record it proves.
    ///
    /// # Errors
    ///
    /// Each [`ProofError`] is a reason not to believe it.
    pub fn check(&self, key: &LogVerifier) -> Result<Entry, ProofError> {
        let checkpoint = key
            .open(self.checkpoint.as_bytes())
            .map_err(ProofError::Checkpoint)?;
        let entry = STANDARD
            .decode(&self.entry)
            .map_err(|_| ProofError::Malformed)?;
        let path = hashes(&self.path)?;
        let (size, root) = (checkpoint.size(), checkpoint.root());
        if !verify_inclusion(&leaf_hash(&entry), self.index, size, &path, root) {
            return Err(ProofError::Refuted);
        }
        let entry = Entry::decode(&entry).map_err(ProofError::Record)?;
        if entry.seq != self.index || entry.origin != key.name() {
            return Err(ProofError::Record(RecordError::Malformed(
                "it is of another place",
            )));
        }
        Ok(entry)
    }
}

impl Consistency {
    /// Checks, without the log, that the newer checkpoint continues `since`, and gives it.
    ///
    /// # Errors
    ///
    /// [`ProofError::Refuted`] if it does not.
    pub fn check(&self, key: &LogVerifier, since: &Checkpoint) -> Result<Checkpoint, ProofError> {
        let checkpoint = key
            .open(self.checkpoint.as_bytes())
            .map_err(ProofError::Checkpoint)?;
        let (old, size) = (since.size(), checkpoint.size());
        let same_log = since.origin() == checkpoint.origin() && self.since == old;
        let path = hashes(&self.path)?;
        if !same_log || !verify_consistency(old, since.root(), size, checkpoint.root(), &path) {
            return Err(ProofError::Refuted);
        }
        Ok(checkpoint)
    }
}

fn hashes(path: &[String]) -> Result<Vec<Hash>, ProofError> {
    // A path has at most two nodes for each of 64 levels.
    if path.len() > 128 {
        return Err(ProofError::Malformed);
    }
    let hash = |text: &String| {
        STANDARD
            .decode(text)
            .ok()
            .and_then(|hash| hash.try_into().ok())
    };
    path.iter()
        .map(|text| hash(text).ok_or(ProofError::Malformed))
        .collect()
}

/// The nodes of a stored tree.
struct Tiles<'a> {
    dir: &'a Path,
    size: u64,
}

impl<'a> Tiles<'a> {
    fn new(dir: &'a Path, size: u64) -> Tiles<'a> {
        Tiles { dir, size }
    }
}

impl Nodes for Tiles<'_> {
    type Error = LogError;

    fn node(&mut self, level: u32, index: u64) -> Result<Hash, LogError> {
        // The tile level at or below holds 2^within of the hashes that the node stands over.
        let (tile_level, within) = (level / 8, level % 8);
        let first = index << within;
        let number = first / TILE_WIDTH;
        let stored = self.size >> (8 * tile_level);
        let width = (stored - number * TILE_WIDTH).min(TILE_WIDTH);
        let id = TileId {
            level: tile_level as u8,
            number,
        };
        let tile = read_tile(self.dir, id, width)?;
        let at = (first % TILE_WIDTH) as usize;
        let hashes = tile.get(at..at + (1 << within)).ok_or(LogError::Damaged {
            path: self.dir.join("tile"),
            why: "a tile lacks nodes of the tree",
        })?;
        Ok(subtree(hashes))
    }
}
