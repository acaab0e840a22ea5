//! What is known at the moment of a decision.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What is known when a decision is made; what is not known has its worst value.
///
/// Serialised for the log with the names that rules use. Reading them back gives the same
/// decision; a duplicate or unknown key is refused, a missing one is worst.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Facts {
    /// How risky the workload has become, 0..=100; more counts as 100.
    #[serde(deserialize_with = "risk")]
    pub risk: u8,
    /// How far the evidence can be trusted.
    pub tier: Tier,
    /// How current the platform's trusted computing base is.
    pub tcb: Tcb,
    /// Whether the evidence rests on the simulator; `None` counts as true.
    pub simulated: Option<bool>,
    /// Whether the TEE can be debugged from outside; `None` counts as true.
    pub debug: Option<bool>,
    /// Age of the evidence, `None` if there is none. Rules, and the serialised form, see whole
    /// seconds, rounded up.
    #[serde(serialize_with = "seconds", deserialize_with = "from_seconds")]
    pub evidence_age: Option<Duration>,
    /// What the host could not enforce, by name. [`Facts::UNKNOWN_GAP`] stands for every gap that
    /// a rule mentions.
    pub gaps: BTreeSet<String>,
}

impl Facts {
    /// The gap to report when it is not known what is enforced.
    pub const UNKNOWN_GAP: &'static str = "unknown";

    /// Nothing is known: every fact has its worst value.
    pub fn unknown() -> Self {
        Facts {
            risk: 100,
            tier: Tier::None,
            tcb: Tcb::Unknown,
            simulated: None,
            debug: None,
            evidence_age: None,
            gaps: BTreeSet::from([Self::UNKNOWN_GAP.to_owned()]),
        }
    }

    /// Nothing is wrong: every fact has its best value.
    pub fn best() -> Self {
        Facts {
            risk: 0,
            tier: Tier::Affirming,
            tcb: Tcb::UpToDate,
            simulated: Some(false),
            debug: Some(false),
            evidence_age: Some(Duration::ZERO),
            gaps: BTreeSet::new(),
        }
    }

    /// The risk as rules see it.
    pub(crate) fn risk_points(&self) -> i64 {
        i64::from(self.risk.min(100))
    }

    /// The age of the evidence as rules see it, in seconds.
    pub(crate) fn age_seconds(&self) -> i64 {
        self.evidence_age.map_or(i64::MAX, |age| {
            i64::try_from(rounded_up(age)).unwrap_or(i64::MAX)
        })
    }
}

impl Default for Facts {
    /// [`Facts::unknown`].
    fn default() -> Self {
        Facts::unknown()
    }
}

/// Defines an enumeration whose values have one spelling in rules, facts and messages.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_doc])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// Every value, from best to worst.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The word that rules use for it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $($name::$variant => $word,)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// A trustworthiness tier of "Attestation Results for Secure Interactions" (AR4SI).
    Tier {
        /// The verifier vouches for the attester.
        Affirming = "affirming",
        /// The verifier found something to be wary of.
        Warning = "warning",
        /// The verifier found that the attester is not to be trusted.
        Contraindicated = "contraindicated",
        /// Nothing was appraised.
        None = "none",
    }
}

words! {
    /// The state of a platform's trusted computing base, in the vocabulary of Intel's
    /// Provisioning Certification Service.
    Tcb {
        /// Every known fix is in.
        UpToDate = "up-to-date",
        /// Fixes are in; software has to do its part.
        SwHardeningNeeded = "sw-hardening-needed",
        /// Fixes are in; the platform has to be configured.
        ConfigurationNeeded = "configuration-needed",
        /// Both of the above.
        ConfigurationAndSwHardeningNeeded = "configuration-and-sw-hardening-needed",
        /// Fixes are missing.
        OutOfDate = "out-of-date",
        /// Fixes are missing and the platform has to be configured.
        OutOfDateConfigurationNeeded = "out-of-date-configuration-needed",
        /// The platform is not to be trusted any more.
        Revoked = "revoked",
        /// Nothing is known.
        Unknown = "unknown",
    }
}

fn rounded_up(age: Duration) -> u64 {
    age.as_secs()
        .saturating_add(u64::from(age.subsec_nanos() > 0))
}

fn risk<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let risk = u8::deserialize(deserializer)?;
    match risk {
        0..=100 => Ok(risk),
        _ => Err(serde::de::Error::custom(format_args!(
            "risk `{risk}` is above 100"
        ))),
    }
}

fn seconds<S: Serializer>(age: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    age.map(rounded_up).serialize(serializer)
}

fn from_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_secs))
}
