//! What is known of AMD's firmware versions, in Intel's vocabulary.
//!
//! AMD publishes bulletins, and no signed statement of what a security version is worth. This table
//! is one: for each generation, levels from the best to the oldest, each with what it takes to reach
//! it, a status, a date, the advisories that a platform at it is open to, and the source of the row.
//! Whoever keeps the table signs it as a note (C2SP "signed-note"); the relying party says which key.
//!
//! ```json
//! {
//!   "format": "casemate-amd-tcb/1", "version": 1,
//!   "issued": "2026-11-23T00:00:00Z", "next-update": "2027-02-23T00:00:00Z",
//!   "covers": ["AMD-SB-3019"],
//!   "generations": [{
//!     "product": "genoa",
//!     "levels": [
//!       { "requires": { "snp": 23 }, "status": "up-to-date", "date": "2025-02-03T00:00:00Z",
//!         "source": "AMD-SB-3019" },
//!       { "requires": {}, "status": "out-of-date", "date": "2022-11-10T00:00:00Z",
//!         "advisories": ["AMD-SB-3019"], "source": "AMD-SB-3019" }
//!     ]
//!   }]
//! }
//! ```

use serde::{Deserialize, Deserializer};

use super::platform::{Product, TcbVersion};
use super::report::PlatformFlag;
use crate::appraisal::TcbStatus;
use crate::note::{NoteError, NoteKey};
use crate::time::UnixTime;

/// The most bytes a table may have.
pub const MAX_TCB_TABLE: usize = 256 * 1024;
/// The most levels of a generation.
const MAX_LEVELS: usize = 64;
const FORMAT: &str = "casemate-amd-tcb/1";

/// A table of firmware levels that the holder of a given key signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcbTable(Content);

/// Why a table cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TcbTableError {
    /// It is larger than [`MAX_TCB_TABLE`].
    #[error("the TCB table has {0} bytes, at most 262144 are taken")]
    TooLarge(usize),
    /// It is not signed by the key.
    #[error("the TCB table is not to be believed")]
    Note(#[from] NoteError),
    /// It is not JSON of the documented form.
    #[error("the TCB table is not the documented JSON")]
    Json(#[source] serde_json::Error),
    /// It contradicts itself.
    #[error("the TCB table contradicts itself: {0}")]
    Content(&'static str),
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Content {
    format: String,
    version: u32,
    issued: Date,
    next_update: Date,
    /// Advisories that were taken into account. Others may be open at any level.
    covers: Vec<String>,
    generations: Vec<Generation>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Generation {
    product: Product,
    #[serde(default)]
    distrusted: Option<Distrust>,
    levels: Vec<Level>,
}

/// Why no firmware makes a generation trustworthy.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Distrust {
    since: Date,
    source: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Level {
    requires: Requires,
    status: Status,
    date: Date,
    #[serde(default)]
    advisories: Vec<String>,
    source: String,
}

/// What a platform has to have, each where it is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Requires {
    fmc: u8,
    bootloader: u8,
    tee: u8,
    snp: u8,
    microcode: u8,
    /// Committed firmware: major, minor, build.
    firmware: [u8; 3],
    /// Bits of CURRENT_MIT_VECTOR; a report that has none reaches no level that asks for any.
    mitigations: u64,
    platform: Vec<PlatformFlag>,
}

/// Statuses that firmware can have by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Status {
    UpToDate,
    SwHardeningNeeded,
    ConfigurationNeeded,
    ConfigurationAndSwHardeningNeeded,
    OutOfDate,
    OutOfDateConfigurationNeeded,
    Revoked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Date(UnixTime);

impl<'de> Deserialize<'de> for Date {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let date: der::DateTime = text
            .parse()
            .map_err(|_| serde::de::Error::custom("not a date as in `2026-03-16T22:06:09Z`"))?;
        Ok(Self(UnixTime(date.unix_duration().as_secs())))
    }
}

/// The platform as levels are compared with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Platform<'a> {
    pub(super) product: Product,
    pub(super) tcb: TcbVersion,
    pub(super) firmware: [u8; 3],
    pub(super) mitigations: Option<u64>,
    pub(super) flags: &'a [PlatformFlag],
}

/// What the table says of a platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) status: TcbStatus,
    /// The date of the level.
    pub(super) date: UnixTime,
    /// What the platform is open to.
    pub(super) advisories: Vec<String>,
    /// Who says so.
    pub(super) source: String,
    /// How many levels are above, and what the next one asks for.
    pub(super) behind: usize,
    pub(super) next: Option<String>,
    /// Since when there has been a better level.
    pub(super) behind_since: Option<UnixTime>,
    /// Why the whole generation is distrusted, if it is.
    pub(super) distrusted: Option<String>,
}

impl TcbTable {
    /// Takes a table that `key` signed.
    ///
    /// # Errors
    ///
    /// [`TcbTableError`] if it is not signed, not of the documented form, or contradicts itself:
    /// each level must ask for no more than the one above it, or the order would decide.
    pub fn open(note: &str, key: &NoteKey) -> Result<Self, TcbTableError> {
        if note.len() > MAX_TCB_TABLE {
            return Err(TcbTableError::TooLarge(note.len()));
        }
        let content = Self::check(key.open(note)?)?;
        Ok(Self(content))
    }

    /// Checks the text of a table before it is signed.
    ///
    /// # Errors
    ///
    /// As [`TcbTable::open`], but for the signature.
    pub fn check_text(text: &str) -> Result<(), TcbTableError> {
        Self::check(text).map(drop)
    }

    fn check(text: &str) -> Result<Content, TcbTableError> {
        let content: Content = serde_json::from_str(text).map_err(TcbTableError::Json)?;
        let fail = |what| Err(TcbTableError::Content(what));
        if content.format != FORMAT {
            return fail("its format is another one");
        }
        if content.issued >= content.next_update {
            return fail("it ends before it begins");
        }
        for (at, generation) in content.generations.iter().enumerate() {
            let earlier = content.generations.get(..at).unwrap_or_default();
            if earlier.iter().any(|it| it.product == generation.product) {
                return fail("a generation occurs twice");
            }
            if generation.levels.len() > MAX_LEVELS {
                return fail("a generation has too many levels");
            }
            let mut pairs = generation
                .levels
                .iter()
                .zip(generation.levels.iter().skip(1));
            if pairs.any(|(above, below)| !above.requires.includes(&below.requires)) {
                return fail("a level asks for something that the one above it does not");
            }
        }
        Ok(content)
    }

    /// The version; a later table has a higher one.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.0.version
    }

    /// When the table was issued.
    #[must_use]
    pub fn issued(&self) -> UnixTime {
        self.0.issued.0
    }

    /// When its successor is due.
    #[must_use]
    pub fn next_update(&self) -> UnixTime {
        self.0.next_update.0
    }

    /// The advisories that were taken into account.
    #[must_use]
    pub fn covers(&self) -> &[String] {
        &self.0.covers
    }

    /// What the table says of a platform; nothing if it does not have its generation, or no level
    /// that it reaches.
    pub(super) fn judge(&self, platform: &Platform<'_>) -> Option<Verdict> {
        let mut generations = self.0.generations.iter();
        let generation = generations.find(|it| it.product == platform.product)?;
        let mut levels = generation.levels.iter().enumerate();
        let (behind, level) = levels.find(|(_, level)| level.requires.is_met_by(platform))?;
        let above = generation.levels.get(..behind).unwrap_or_default();
        Some(Verdict {
            status: level.status.public(),
            date: level.date.0,
            advisories: level.advisories.clone(),
            source: level.source.clone(),
            behind,
            next: above.last().map(|level| level.requires.to_string()),
            behind_since: above.iter().map(|level| level.date.0).min(),
            distrusted: generation.distrusted.as_ref().map(|why| {
                let Distrust { since, source } = why;
                format!("since {}: {source}", since.0)
            }),
        })
    }
}

impl Requires {
    fn is_met_by(&self, platform: &Platform<'_>) -> bool {
        let tcb = platform.tcb;
        tcb.fmc.unwrap_or(0) >= self.fmc
            && tcb.bootloader >= self.bootloader
            && tcb.tee >= self.tee
            && tcb.snp >= self.snp
            && tcb.microcode >= self.microcode
            && platform.firmware >= self.firmware
            && (self.mitigations == 0
                || platform
                    .mitigations
                    .is_some_and(|it| it & self.mitigations == self.mitigations))
            && self
                .platform
                .iter()
                .all(|flag| platform.flags.contains(flag))
    }

    /// Whether whatever meets this meets `other`.
    fn includes(&self, other: &Self) -> bool {
        self.fmc >= other.fmc
            && self.bootloader >= other.bootloader
            && self.tee >= other.tee
            && self.snp >= other.snp
            && self.microcode >= other.microcode
            && self.firmware >= other.firmware
            && self.mitigations & other.mitigations == other.mitigations
            && other
                .platform
                .iter()
                .all(|flag| self.platform.contains(flag))
    }
}

impl std::fmt::Display for Requires {
    /// Writes `snp 24, firmware 1.55.22, alias-check-complete`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let svns = [
            ("fmc", self.fmc),
            ("bootloader", self.bootloader),
            ("tee", self.tee),
            ("snp", self.snp),
            ("microcode", self.microcode),
        ];
        let mut parts: Vec<String> = svns
            .into_iter()
            .filter(|(_, svn)| *svn > 0)
            .map(|(name, svn)| format!("{name} {svn}"))
            .collect();
        if self.firmware != [0; 3] {
            let [major, minor, build] = self.firmware;
            parts.push(format!("firmware {major}.{minor}.{build}"));
        }
        if self.mitigations != 0 {
            parts.push(format!("mitigations {:#x}", self.mitigations));
        }
        parts.extend(self.platform.iter().map(|flag| flag.name().to_owned()));
        f.write_str(&parts.join(", "))
    }
}

impl Status {
    fn public(self) -> TcbStatus {
        match self {
            Self::UpToDate => TcbStatus::UpToDate,
            Self::SwHardeningNeeded => TcbStatus::SwHardeningNeeded,
            Self::ConfigurationNeeded => TcbStatus::ConfigurationNeeded,
            Self::ConfigurationAndSwHardeningNeeded => TcbStatus::ConfigurationAndSwHardeningNeeded,
            Self::OutOfDate => TcbStatus::OutOfDate,
            Self::OutOfDateConfigurationNeeded => TcbStatus::OutOfDateConfigurationNeeded,
            Self::Revoked => TcbStatus::Revoked,
        }
    }
}
