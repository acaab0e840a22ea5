//! What remains of a run: one file that proves it to somebody who was not there.
//!
//! ```text
//!  anchors ─▶ evidence ─▶ challenge { policy digest, log key }
//!                              │            └─▶ checkpoint ─▶ every entry of the log ─▶ statement
//!                              └─▶ policy ─▶ each decision of the log, arrived at again ──┘
//! ```
//!
//! The evidence names the log's key, the key signed for the whole log, and the log says everything else.
//! A receipt's [`Statement`] is there to be read; it is made again from the log's entries, and has to be
//! the same. What cannot be told from a receipt is when it was made, beyond the word of the guest: its
//! evidence may be older than the end of what vouches for it, and [`Proven::lapsed`] says so.

mod statement;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use attestation::{Appraisal, AppraiseError, Challenge, Evidence, Role, UnixTime, Verifier};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use policy::{Bundle, BundleError};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use vault::audit::{
    self, Edge, Entry, KeyError, Log, LogVerifier, MAX_ENTRY, NoteError, RecordError, Signed,
    SignedError, Signer, VerifyError, leaf_hash,
};

use crate::record::hex;

pub use statement::{
    Adjustment, Data, Decided, Named, Ordered, Statement, StatementError, Workload,
};

/// Most bytes of a receipt: that of a run with some ten thousand records.
pub const MAX_RECEIPT: usize = 64 << 20;
/// Most bytes of entries that are put into one; in Base64 they take a third more.
const MAX_ENTRIES: usize = 32 << 20;
/// Most policies that a run was under, reloads counted.
const MAX_POLICIES: usize = 256;
/// What a receipt is called in its signed form.
const KIND: &str = "application/vnd.casemate.receipt+cbor";
/// The layout of receipts that this version writes and reads.
const VERSION: u32 = 1;

/// A run with everything that proves it. Travels as JSON, or in CBOR signed with the log's key
/// (`COSE_Sign1`).
///
/// It proves nothing before [`Receipt::verify`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Receipt {
    casemate_receipt: u32,
    statement: Statement,
    challenge: Challenge,
    evidence: Evidence,
    policies: Vec<Source>,
    checkpoint: String,
    entries: Vec<String>,
}

/// A policy as its files say it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Source {
    text: String,
    /// The files that it includes: name and text.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    included: Vec<(String, String)>,
}

/// What a session keeps for its receipt: the evidence that was believed first, and its policies.
#[derive(Clone, Debug)]
pub struct Basis(Arc<Mutex<Kept>>);

#[derive(Debug)]
struct Kept {
    origin: String,
    signer: Signer,
    policies: Vec<Source>,
    believed: Option<(Evidence, Challenge)>,
}

/// A receipt whose every word was found to be proven.
///
/// Only [`Receipt::verify`] makes one.
#[derive(Clone, Debug)]
pub struct Proven {
    statement: Statement,
    appraisal: Appraisal,
    as_of: UnixTime,
    lapsed: Option<Lapsed>,
}

/// Why the evidence of a receipt is not believed any more, although it was when it was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lapsed {
    /// Stable name of the reason.
    pub code: String,
    /// The reason in words.
    pub message: String,
}

/// Why there is no receipt of a run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// No evidence was believed, so nothing says whose log it is.
    #[error("no evidence was believed in this run: nothing would prove its log to anybody else")]
    NoEvidence,
    /// The log has a name that no key can be said to be of.
    #[error("the log's name cannot be used")]
    Key(#[from] KeyError),
    /// The log is not to be believed.
    #[error("the log does not verify")]
    Log(#[from] VerifyError),
    /// A record cannot be encoded again.
    #[error("a record of the log cannot be encoded")]
    Record(#[from] RecordError),
    /// There are more records than a receipt has room for.
    #[error("the log has more than {} MiB of records: a receipt has no room for them", MAX_ENTRIES >> 20)]
    TooLong,
    /// The policy was reloaded too often.
    #[error("the run was under more than {MAX_POLICIES} policies")]
    TooManyPolicies,
    /// The log does not tell of a whole run.
    #[error("the log does not tell of a whole run")]
    Statement(#[from] StatementError),
}

/// Why a receipt proves nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refuted {
    /// It is larger than any receipt.
    #[error("a receipt has at most {MAX_RECEIPT} bytes")]
    TooLarge,
    /// It is not JSON of the documented form.
    #[error("it is no receipt")]
    Json(#[source] serde_json::Error),
    /// It is not what its signature says.
    #[error("it is no receipt that was signed")]
    Signed(#[source] SignedError),
    /// What was signed is no receipt.
    #[error("what was signed is no receipt")]
    Cbor,
    /// Another key than the log's has signed it.
    #[error("it was not signed with the key of its log")]
    OtherKey,
    /// A value in it is written otherwise than a receipt has it, or said though it goes without saying.
    #[error("it is a receipt, but not in the one spelling")]
    Spelling,
    /// It is of a layout that this version does not know.
    #[error("it is a receipt of version {0}, which is not known here")]
    Version(u32),
    /// The evidence is not to be believed.
    #[error("its evidence is not to be believed")]
    Evidence(#[source] AppraiseError),
    /// The log does not say that this evidence was believed.
    #[error("its log does not tell of this evidence")]
    OtherEvidence,
    /// The log has a name that no key can be said to be of.
    #[error("the name of its log cannot be one")]
    Log(#[source] KeyError),
    /// The checkpoint was not signed with the key that the evidence names.
    #[error("its checkpoint is not that of the log that the evidence names")]
    Checkpoint(#[source] NoteError),
    /// The entries are not those that were signed for.
    #[error("its records are not those that were signed for")]
    Entries,
    /// An entry is no record of this log at its place.
    #[error("record {index} is none of this log")]
    Record {
        /// Its number.
        index: u64,
        /// What is wrong with it.
        source: RecordError,
    },
    /// A policy cannot be read.
    #[error("policy {index} of it cannot be read")]
    Policy {
        /// Its position, from 0.
        index: usize,
        /// What is wrong with it.
        source: BundleError,
    },
    /// The policies are not those that the evidence and the log name.
    #[error("its policies are not those that the run was under")]
    OtherPolicy,
    /// A decision does not follow from its policy and its facts.
    #[error("the decision of record {0} does not follow from the policy and what was known")]
    Decision(u64),
    /// The log does not tell of a whole run.
    #[error("its log does not tell of a whole run")]
    Run(#[source] StatementError),
    /// What it states is not what its log says.
    #[error("what it states is not what its log says")]
    Statement,
    /// It is of a run that is not over yet at the time it is asked about.
    #[error("the run was over at {ended} only")]
    Future {
        /// When it was over.
        ended: UnixTime,
    },
}

impl Basis {
    pub(crate) fn new(bundle: &Bundle, log: &Log) -> Self {
        Self(Arc::new(Mutex::new(Kept {
            origin: log.origin().to_owned(),
            signer: log.signer(),
            policies: vec![Source::of(bundle)],
            believed: None,
        })))
    }

    /// Takes the first evidence that was believed: what keys and launch rest on.
    pub(crate) fn believed(&self, evidence: &Evidence, challenge: &Challenge) {
        let first = &mut self.lock().believed;
        if first.is_none() {
            *first = Some((evidence.clone(), challenge.clone()));
        }
    }

    pub(crate) fn reloaded(&self, bundle: &Bundle) {
        let policies = &mut self.lock().policies;
        // One more than there may be is enough to know that there are too many.
        if policies.len() <= MAX_POLICIES {
            policies.push(Source::of(bundle));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Kept> {
        // Every change is one assignment.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Source {
    fn of(bundle: &Bundle) -> Self {
        Self {
            text: bundle.source().to_owned(),
            included: bundle.included().to_vec(),
        }
    }

    /// Reads the policy. Nothing may be left over: every included file is one that it names.
    fn read(&self, index: usize) -> Result<Bundle, Refuted> {
        let text_of = |name: &str| {
            let file = self.included.iter().find(|(file, _)| file == name);
            file.map(|(_, text)| text.clone())
                .ok_or_else(|| "the receipt does not have it".to_owned())
        };
        let bundle = Bundle::parse_with(&self.text, "policy.toml", &text_of)
            .map_err(|source| Refuted::Policy { index, source })?;
        match bundle.included() == self.included {
            true => Ok(bundle),
            false => Err(Refuted::OtherPolicy),
        }
    }
}

impl Receipt {
    /// Makes the receipt of a session that is over, from its log and what it kept.
    ///
    /// # Errors
    ///
    /// [`ReceiptError::NoEvidence`] of a run without evidence; else the log is not to be believed, or too
    /// long.
    pub fn of(log: &Path, basis: &Basis) -> Result<Self, ReceiptError> {
        let kept = basis.lock();
        let (evidence, challenge) = kept.believed.clone().ok_or(ReceiptError::NoEvidence)?;
        if kept.policies.len() > MAX_POLICIES {
            return Err(ReceiptError::TooManyPolicies);
        }
        let key = LogVerifier::new(&kept.origin, challenge.log_key)?;
        let verified = audit::verify(log, Some(&key), None)?;
        let (mut records, mut entries, mut bytes) = (Vec::new(), Vec::new(), 0);
        for entry in verified.records() {
            let entry = entry?;
            let leaf = entry.encode()?;
            bytes += leaf.len();
            if bytes > MAX_ENTRIES {
                return Err(ReceiptError::TooLong);
            }
            entries.push(STANDARD.encode(leaf));
            records.push(entry);
        }
        Ok(Self {
            casemate_receipt: VERSION,
            statement: Statement::of(&kept.origin, &records)?,
            challenge,
            evidence,
            policies: kept.policies.clone(),
            checkpoint: verified.checkpoint().note().to_owned(),
            entries,
        })
    }

    /// Reads the JSON form. Each value has one spelling: whoever compares receipts as files compares what
    /// they say.
    ///
    /// # Errors
    ///
    /// [`Refuted::TooLarge`], [`Refuted::Json`] or [`Refuted::Spelling`].
    pub fn from_json(json: &[u8]) -> Result<Self, Refuted> {
        if json.len() > MAX_RECEIPT {
            return Err(Refuted::TooLarge);
        }
        let value: Value = serde_json::from_slice(json).map_err(Refuted::Json)?;
        let receipt = Self::deserialize(&value).map_err(Refuted::Json)?;
        match serde_json::to_value(&receipt).map_err(Refuted::Json)? == value {
            true => Ok(receipt),
            false => Err(Refuted::Spelling),
        }
    }

    /// Reads either form.
    ///
    /// # Errors
    ///
    /// As [`Receipt::from_json`] and [`Receipt::from_cose`].
    pub fn read(bytes: &[u8]) -> Result<Self, Refuted> {
        match bytes.first() {
            Some(&audit::FIRST_BYTE) => Self::from_cose(bytes),
            _ => Self::from_json(bytes),
        }
    }

    /// The signed form, from whoever kept what the receipt rests on.
    ///
    /// # Errors
    ///
    /// When it is larger than a receipt may be.
    pub fn to_cose(&self, basis: &Basis) -> Result<Vec<u8>, ReceiptError> {
        let message = basis.lock().signer.sign(KIND, &self.as_cbor());
        match message.len() {
            0..=MAX_RECEIPT => Ok(message),
            _ => Err(ReceiptError::TooLong),
        }
    }

    /// Reads the signed form. The key that signed it is the log's, which the evidence names.
    ///
    /// # Errors
    ///
    /// [`Refuted::TooLarge`], [`Refuted::Signed`], [`Refuted::OtherKey`], [`Refuted::Cbor`] or
    /// [`Refuted::Spelling`].
    pub fn from_cose(message: &[u8]) -> Result<Self, Refuted> {
        if message.len() > MAX_RECEIPT {
            return Err(Refuted::TooLarge);
        }
        let signed = Signed::open(KIND, message).map_err(Refuted::Signed)?;
        let receipt: Self = ciborium::from_reader(signed.payload()).map_err(|_| Refuted::Cbor)?;
        if *signed.key() != receipt.challenge.log_key {
            return Err(Refuted::OtherKey);
        }
        match receipt.as_cbor() == signed.payload() {
            true => Ok(receipt),
            false => Err(Refuted::Spelling),
        }
    }

    fn as_cbor(&self) -> Vec<u8> {
        let mut cbor = Vec::new();
        // Writing to memory does not fail, and everything in it has a form.
        let _ = ciborium::into_writer(self, &mut cbor);
        cbor
    }

    /// Checks everything that the receipt says, offline, as of a time.
    ///
    /// Evidence comes before the log, and the log before what is read from it. Where only the time has
    /// passed over what vouches for the evidence, it is appraised as of the time of the run instead, and
    /// [`Proven::lapsed`] says so.
    ///
    /// # Errors
    ///
    /// [`Refuted`]: nothing in it may be relied on.
    pub fn verify(&self, verifier: &Verifier, at: UnixTime) -> Result<Proven, Refuted> {
        if self.casemate_receipt != VERSION {
            return Err(Refuted::Version(self.casemate_receipt));
        }
        let appraised = match verifier.appraise(&self.evidence, &self.challenge, at) {
            Err(error) if !has_lapsed(&error) => return Err(Refuted::Evidence(error)),
            other => other,
        };
        let records = self.records()?;
        let digest = digest_of(&self.evidence);
        let tells = |entry: &&Entry| {
            entry.record.kind == "attested" && entry.record.payload["bundle"] == *digest
        };
        if self.challenge.role != Role::Guest {
            return Err(Refuted::OtherEvidence);
        }
        let believed = records.iter().find(tells).ok_or(Refuted::OtherEvidence)?;
        let then = UnixTime(believed.record.time.as_secs());
        let (appraisal, as_of, lapsed) = match appraised {
            Ok(appraisal) => (appraisal, at, None),
            Err(error) => {
                let then_appraised = verifier.appraise(&self.evidence, &self.challenge, then);
                let appraisal = then_appraised.map_err(Refuted::Evidence)?;
                (appraisal, then, Some(Lapsed::of(&error)))
            }
        };
        let statement = Statement::of(&self.statement.log, &records).map_err(Refuted::Run)?;
        self.decided(&statement, &records, believed.seq)?;
        if statement != self.statement {
            return Err(Refuted::Statement);
        }
        if at < statement.ended {
            let ended = statement.ended;
            return Err(Refuted::Future { ended });
        }
        Ok(Proven {
            statement,
            appraisal,
            as_of,
            lapsed,
        })
    }

    /// The log's records: all those, and only those, that the key in the evidence signed for.
    fn records(&self) -> Result<Vec<Entry>, Refuted> {
        let origin = &self.statement.log;
        let key = LogVerifier::new(origin, self.challenge.log_key).map_err(Refuted::Log)?;
        let checkpoint = key
            .open(self.checkpoint.as_bytes())
            .map_err(Refuted::Checkpoint)?;
        let mut tree = Edge::new();
        let mut leaves = Vec::with_capacity(self.entries.len());
        for text in &self.entries {
            let fits = text.len() <= MAX_ENTRY.div_ceil(3) * 4;
            let leaf = fits.then(|| STANDARD.decode(text).ok()).flatten();
            let leaf = leaf.ok_or(Refuted::Entries)?;
            tree.push(leaf_hash(&leaf), |_, _| ());
            leaves.push(leaf);
        }
        if tree.size() != checkpoint.size() || tree.root() != *checkpoint.root() {
            return Err(Refuted::Entries);
        }
        let records = leaves.iter().zip(0_u64..).map(|(leaf, index)| {
            let entry = Entry::decode(leaf);
            let entry = entry.map_err(|source| Refuted::Record { index, source })?;
            if entry.seq != index || entry.origin != *origin {
                let source = RecordError::Malformed("it is of another place");
                return Err(Refuted::Record { index, source });
            }
            Ok(entry)
        });
        records.collect()
    }

    /// Arrives at every decision again, under the policy that was in force. The evidence was asked for
    /// under the one that was in force where it was `believed`.
    fn decided(
        &self,
        statement: &Statement,
        records: &[Entry],
        believed: u64,
    ) -> Result<(), Refuted> {
        let named: Vec<_> = statement
            .policies
            .iter()
            .map(|named| &named.digest)
            .collect();
        let first = hex(&self.challenge.policy_digest);
        if self.policies.len() != named.len() || named.first() != Some(&&first) {
            return Err(Refuted::OtherPolicy);
        }
        let mut bundles = Vec::with_capacity(self.policies.len());
        for (index, (source, digest)) in self.policies.iter().zip(named).enumerate() {
            let bundle = source.read(index)?;
            if hex(&bundle.digest()) != *digest {
                return Err(Refuted::OtherPolicy);
            }
            bundles.push(bundle);
        }
        let runs = bundles
            .first()
            .map(|first| &first.tables().workload.command);
        if runs != Some(&statement.workload.command) {
            return Err(Refuted::OtherPolicy);
        }
        let mut in_force = bundles.iter();
        let mut bundle = in_force.next();
        for entry in records {
            let in_evidence = bundle.map(Bundle::digest) == Some(self.challenge.policy_digest);
            if entry.seq == believed && !in_evidence {
                return Err(Refuted::OtherPolicy);
            }
            match &*entry.record.kind {
                "reloading" => bundle = in_force.next(),
                "decided" => {
                    let wrong = || Refuted::Decision(entry.seq);
                    let payload = &entry.record.payload;
                    let facts = serde_json::from_value(payload["facts"].clone());
                    let decision = bundle
                        .ok_or_else(wrong)?
                        .decide(&facts.map_err(|_| wrong())?);
                    if payload["digest"] != crate::record::decision_digest(&decision) {
                        return Err(wrong());
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Proven {
    /// What was stated, and is proven.
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// The verdict on the evidence, by this verifier's anchors and reference values.
    pub fn appraisal(&self) -> &Appraisal {
        &self.appraisal
    }

    /// The time that the verdict is of: the one asked about, or that of the run if the evidence lapsed.
    pub fn as_of(&self) -> UnixTime {
        self.as_of
    }

    /// Why the evidence is not believed any more, if only time has passed over what vouches for it.
    /// That the run was before that end is then the word of the guest alone.
    pub fn lapsed(&self) -> Option<&Lapsed> {
        self.lapsed.as_ref()
    }
}

impl Lapsed {
    fn of(error: &AppraiseError) -> Self {
        Self {
            code: error.code().to_owned(),
            message: crate::error::describe(error),
        }
    }
}

impl Refuted {
    /// The stable name of this reason; of evidence that is not believed, that of
    /// [`AppraiseError::code`].
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge => "too-large",
            Self::Json(_) | Self::Cbor | Self::Spelling => "malformed",
            Self::Signed(_) | Self::OtherKey => "signature",
            Self::Version(_) => "version",
            Self::Evidence(error) => error.code(),
            Self::OtherEvidence => "other-evidence",
            Self::Log(_) => "log",
            Self::Checkpoint(_) => "checkpoint",
            Self::Entries => "entries",
            Self::Record { .. } => "record",
            Self::Policy { .. } => "policy",
            Self::OtherPolicy => "other-policy",
            Self::Decision(_) => "decision",
            Self::Run(_) => "run",
            Self::Statement => "statement",
            Self::Future { .. } => "future",
        }
    }
}

/// SHA-256 of a whole evidence bundle as JSON, hexadecimal: how a log names it.
pub fn digest_of(evidence: &Evidence) -> String {
    hex(&Sha256::digest(
        serde_json::to_vec(evidence).unwrap_or_default(),
    ))
}

/// Whether nothing is wrong with evidence but that what vouches for it has ended.
fn has_lapsed(error: &AppraiseError) -> bool {
    ["certificate-expired", "crl-expired", "collateral-expired"].contains(&error.code())
}
